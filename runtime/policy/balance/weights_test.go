package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var weightCases = []struct {
	name    string
	weights []int
}{
	{"equal", []int{1, 1, 1, 1}},
	{"equal and heavy", []int{50, 50, 50}},
	{"unset and negative count as one", []int{0, -3, 1, 2}},
	{"canary", []int{95, 5}},
	{"ladder", []int{1, 2, 3, 4, 5, 6, 7}},
	{"one heavy", []int{20, 1, 1, 1, 1, 1}},
}

func TestShareByWeight(t *testing.T) {
	for _, p := range []Policy{RoundRobin, LeastRequest, PeakEWMA, Random, RingHash, Maglev} {
		for _, tc := range weightCases {
			// PeakEWMA compares latencies too; with nothing measured and nothing in flight
			// the draw alone decides, as for the other policies here.
			t.Run(fmt.Sprintf("%v/%s", p, tc.name), func(t *testing.T) {
				c := seeded(Config{Policy: p}, weighted(tc.weights...))
				const n = 20000
				got, total := tally(t, c.Pick, Request{}, n), 0
				for _, w := range tc.weights {
					total += max(w, 1)
				}
				for i, w := range tc.weights {
					id := fmt.Sprintf("h%d", i)
					near(t, id, got[id], n, float64(max(w, 1))/float64(total))
				}
			})
		}
	}
}

// The draws of a cluster of many uneven hosts as a whole: chi-square, within four standard
// deviations of its mean.
func TestRandomChiSquare(t *testing.T) {
	weights := make([]int, 60)
	total := 0
	for i := range weights {
		weights[i] = 1 + i*i%37
		total += weights[i]
	}
	c := seeded(Config{Policy: Random}, weighted(weights...))
	const n = 200_000
	got, chi := tally(t, c.Pick, Request{}, n), 0.0
	for i, w := range weights {
		want := n * float64(w) / float64(total)
		d := float64(got[fmt.Sprintf("h%d", i)]) - want
		chi += d * d / want
	}
	free := float64(len(weights) - 1)
	if math.Abs(chi-free) > 4*math.Sqrt(2*free) {
		t.Errorf("chi-square is %.1f with %v degrees of freedom", chi, free)
	}
}

func TestLargestWeights(t *testing.T) {
	for _, p := range policies() {
		c := seeded(Config{Policy: p}, weighted(math.MaxInt, math.MaxInt, 1))
		const n = 4000
		near(t, p.String(), tally(t, c.Pick, Request{}, n)["h0"], n, 0.5)
	}
}

func slotsOf(weights ...int) []slot {
	out := make([]slot, len(weights))
	for i, w := range weights {
		out[i] = slot{weight: float64(w)}
	}
	return out
}

func TestInterleave(t *testing.T) {
	cases := []struct {
		name    string
		weights []int
		want    []uint32
	}{
		{"equal needs none", []int{3, 3}, nil},
		{"one", []int{5}, nil},
		{"five, one, one", []int{5, 1, 1}, []uint32{0, 0, 1, 0, 2, 0, 0}},
		{"lowest terms", []int{50, 10, 10}, []uint32{0, 0, 1, 0, 2, 0, 0}},
		{"two to three", []int{2, 3}, []uint32{1, 0, 1, 0, 1}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, interleave(slotsOf(tc.weights...))); d != "" {
				t.Errorf("order (-want +got):\n%s", d)
			}
		})
	}
}

// At every moment of a round every host has had its share of the turns, give or take two.
func TestInterleaveIsSmooth(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		weights, total := make([]int, 2+rnd.IntN(12)), 0
		for i := range weights {
			weights[i] = 1 + rnd.IntN(60)
			total += weights[i]
		}
		order := interleave(slotsOf(weights...))
		had := make([]int, len(weights))
		for turn, i := range order {
			had[i]++
			for j, w := range weights {
				if due := float64(turn+1) * float64(w) / float64(total); math.Abs(float64(had[j])-due) >= 2 {
					t.Fatalf("weights %v: after %d turns host %d had %d, due %.2f", weights, turn+1, j, had[j], due)
				}
			}
		}
	}
}

func TestInterleaveIsBounded(t *testing.T) {
	cases := []struct {
		name    string
		weights func(i int) int
		hosts   int
	}{
		{"primes", func(i int) int { return []int{1_000_003, 999_983, 7}[i] }, 3},
		{"many", func(i int) int { return 10_000 + i }, 3000},
		{"largest", func(i int) int { return maxWeight - i }, 2},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			weights, sum := make([]int, tc.hosts), 0.0
			for i := range weights {
				weights[i] = tc.weights(i)
				sum += float64(weights[i])
			}
			order := interleave(slotsOf(weights...))
			if limit := mostTurns + tc.hosts; len(order) == 0 || len(order) > limit {
				t.Fatalf("%d turns, want at most %d", len(order), limit)
			}
			had := make([]int, tc.hosts)
			for _, i := range order {
				had[i]++
			}
			for i, w := range weights {
				if want := float64(w) / sum * float64(len(order)); math.Abs(float64(had[i])-want) > 1.5 || had[i] == 0 {
					t.Errorf("host %d has %d turns, want %.1f", i, had[i], want)
				}
			}
		})
	}
}

// Picks of one round match the weights exactly, wherever the round began.
func TestRoundRobinIsExact(t *testing.T) {
	for _, tc := range weightCases {
		t.Run(tc.name, func(t *testing.T) {
			c := seeded(Config{}, weighted(tc.weights...))
			want, total := map[string]int{}, 0
			for i, w := range tc.weights {
				want[fmt.Sprintf("h%d", i)] = max(w, 1)
				total += max(w, 1)
			}
			for range 3 {
				if d := cmp.Diff(want, tally(t, c.Pick, Request{}, total)); d != "" {
					t.Errorf("one round (-want +got):\n%s", d)
				}
			}
		})
	}
}

// A host that is left out does not leave its turns to one neighbour.
func TestRoundRobinSpreadsLostTurns(t *testing.T) {
	c := seeded(Config{}, plain(5))
	out := c.Hosts()[2:3]
	got := tally(t, c.Pick, Request{Tried: out}, 400)
	for _, id := range []string{"h0", "h1", "h3", "h4"} {
		if got[id] != 100 {
			t.Errorf("turns are uneven: %v", got)
		}
	}
}

func TestLeastRequestAvoidsStuckHost(t *testing.T) {
	for _, choices := range []int{2, 3, 10} {
		for _, weights := range [][]int{{1, 1, 1, 1, 1}, {4, 1, 1, 1, 1}} {
			t.Run(fmt.Sprintf("%d choices, weights %v", choices, weights), func(t *testing.T) {
				c := seeded(Config{Policy: LeastRequest, Choices: choices}, weighted(weights...))
				for range 1000 {
					h, _ := c.Pick(Request{})
					h.Begin()
					if h.ID() != "h0" {
						h.End(time.Millisecond, true)
					}
				}
				if h, _ := c.Host("h0"); h.Inflight() != 1 {
					t.Errorf("the host that never answers has %d calls", h.Inflight())
				}
			})
		}
	}
}

// When nothing ends, calls pile up in proportion to the weights, closer with more choices.
func TestLeastRequestLevelsByWeight(t *testing.T) {
	for _, tc := range []struct {
		choices int
		within  float64
	}{{2, 0.2}, {6, 0.02}} {
		c := seeded(Config{Policy: LeastRequest, Choices: tc.choices}, weighted(1, 2, 3, 4, 5, 5))
		for range 2000 {
			h, _ := c.Pick(Request{})
			h.Begin()
		}
		for _, h := range c.Hosts() {
			want := 100 * float64(h.weight())
			if got := float64(h.Inflight()); math.Abs(got-want) > tc.within*want {
				t.Errorf("%d choices: %s of weight %d has %v calls", tc.choices, h.ID(), h.weight(), got)
			}
		}
	}
}

func TestLeastRequestComparesAll(t *testing.T) {
	c := seeded(Config{Policy: LeastRequest, Choices: 20}, plain(20))
	hosts := c.Hosts()
	for i, h := range hosts {
		if i != 13 {
			h.Begin()
		}
	}
	if got := tally(t, c.Pick, Request{}, 100); got["h13"] != 100 {
		t.Errorf("the only idle host was missed: %v", got)
	}
}

// A host that comes back starts with a tenth of its weight and has all of it after the window.
func TestSlowStart(t *testing.T) {
	const window = 100 * time.Second
	steps := []struct {
		at     time.Duration
		factor float64
	}{{0, 0.1}, {5 * time.Second, 0.1}, {25 * time.Second, 0.25}, {60 * time.Second, 0.6}, {window, 1}, {5 * window, 1}}
	how := []struct {
		name string
		back func(c *Cluster, cfg Config, eps []Endpoint)
	}{
		{"healthy again", func(c *Cluster, _ Config, _ []Endpoint) {
			h, _ := c.Host("h3")
			h.SetFailing(true)
			time.Sleep(time.Second)
			h.SetFailing(false)
		}},
		{"new", func(c *Cluster, cfg Config, eps []Endpoint) {
			c.Update(cfg, eps[:3])
			time.Sleep(time.Second)
			c.Update(cfg, eps)
		}},
	}
	for _, p := range []Policy{RoundRobin, LeastRequest} {
		for _, weights := range [][]int{{1, 1, 1, 1}, {1, 2, 3, 4}} {
			for _, w := range how {
				t.Run(fmt.Sprintf("%v/%v/%s", p, weights, w.name), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						cfg, eps := Config{Policy: p, SlowStart: window}, weighted(weights...)
						c := seeded(cfg, eps)
						time.Sleep(2 * window)
						w.back(c, cfg, eps)
						begun := time.Now()
						for _, s := range steps {
							time.Sleep(time.Until(begun.Add(s.at)))
							const n = 20000
							got := tally(t, c.Pick, Request{}, n)
							mine := s.factor * float64(weights[3])
							share := mine / (mine + float64(weights[0]+weights[1]+weights[2]))
							near(t, fmt.Sprintf("after %v", s.at), got["h3"], n, share)
						}
					})
				})
			}
		}
	}
}

// Hosts that start together share evenly, and a policy without slow start has none.
func TestSlowStartAmongEquals(t *testing.T) {
	for _, p := range []Policy{RoundRobin, LeastRequest, PeakEWMA, Random} {
		synctest.Test(t, func(t *testing.T) {
			cfg := Config{Policy: p, SlowStart: time.Hour}
			c := seeded(cfg, plain(3))
			time.Sleep(time.Minute)
			const n = 6000
			got := tally(t, c.Pick, Request{}, n)
			near(t, p.String()+", all new", got["h1"], n, 1.0/3)
			if p == PeakEWMA || p == Random {
				time.Sleep(2 * time.Hour)
				c.Update(cfg, plain(4))
				got := tally(t, c.Pick, Request{}, n)
				near(t, p.String()+", one new", got["h3"], n, 1.0/4)
			}
		})
	}
}

// With the warmest of several new hosts as the measure, differences keep their proportion.
func TestSlowStartIsRelative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, eps := Config{SlowStart: 100 * time.Second}, plain(3)
		c := seeded(cfg, eps[:2])
		time.Sleep(20 * time.Second)
		c.Update(cfg, eps)
		time.Sleep(20 * time.Second) // 0.4, 0.4 and 0.2 of their weights
		const n = 20000
		near(t, "the newer one", tally(t, c.Pick, Request{}, n)["h2"], n, 0.2)

		s := c.whole.snap.Load()
		g := s.groups[0]
		for range 1000 {
			if now := g.warming(&c.env); now == 0 || !s.ready(g, &g.slots[0], now) {
				t.Fatal("the warmest host lost a turn")
			}
		}
	})
}

// Under load, too, a host has calls by the part of its weight it has so far.
func TestSlowStartUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{Policy: LeastRequest, Choices: 4, SlowStart: 100 * time.Second}
		c := seeded(cfg, plain(3))
		time.Sleep(time.Hour)
		c.Update(cfg, plain(4))
		time.Sleep(50 * time.Second)
		for range 350 {
			h, _ := c.Pick(Request{})
			h.Begin()
		}
		if h, _ := c.Host("h3"); h.Inflight() < 48 || h.Inflight() > 52 {
			t.Errorf("the host at half of its weight has %d of 350 calls", h.Inflight())
		}
	})
}

// Callers that get the same list at the same time do not all begin with the same host.
func TestRoundRobinStartsAnywhere(t *testing.T) {
	c := seeded(Config{}, plain(4))
	got := make(map[string]int)
	for i := range 400 {
		c.Update(Config{Decay: time.Duration(i+1) * time.Second}, plain(4))
		h, _ := c.Pick(Request{})
		got[h.ID()]++
	}
	for i := range 4 {
		id := fmt.Sprintf("h%d", i)
		near(t, "rounds begun by "+id, got[id], 400, 0.25)
	}
}

func TestAliasIsExact(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for range 200 {
		slots, total := make([]slot, 1+rnd.IntN(40)), 0.0
		for i := range slots {
			slots[i].weight = float64(1 + rnd.IntN(1000))
			total += slots[i].weight
		}
		for i := range slots {
			slots[i].scale = total / float64(len(slots)) / slots[i].weight
		}
		a := newAlias(slots)
		if a == nil {
			a = slices.Repeat(alias{{keep: 1 << 32}}, len(slots))
		}
		share := make([]float64, len(slots))
		for i, cell := range a {
			keep := float64(cell.keep) / (1 << 32) / float64(len(slots))
			share[i] += keep
			share[cell.other] += 1/float64(len(slots)) - keep
		}
		for i, s := range share {
			if want := slots[i].weight / total; math.Abs(s-want) > 1e-6 {
				t.Fatalf("slot %d is drawn with %.7f, want %.7f", i, s, want)
			}
		}
	}
}
