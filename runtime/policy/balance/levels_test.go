package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// cell is a number of endpoints of one kind, the first of them healthy.
type cell struct {
	priority int
	zone     string
	n, well  int
	weight   int
}

// populate makes a cluster of cells and gives the cell of each host.
func populate(cfg Config, cells []cell) (*Cluster, map[string]int) {
	var eps []Endpoint
	of := make(map[string]int)
	for i, c := range cells {
		for n := range c.n {
			id := fmt.Sprintf("c%d-%d", i, n)
			eps = append(eps, Endpoint{ID: id, Weight: c.weight, Zone: c.zone, Priority: c.priority})
			of[id] = i
		}
	}
	cl := seeded(cfg, eps)
	for i, c := range cells {
		for n := c.well; n < c.n; n++ {
			h, _ := cl.Host(fmt.Sprintf("c%d-%d", i, n))
			h.SetEjected(true)
		}
	}
	return cl, of
}

// shares checks by picking which part of the calls each cell gets.
func shares(t *testing.T, c *Cluster, of map[string]int, want []float64) {
	t.Helper()
	const n = 20000
	got := make([]int, len(want))
	for id, k := range tally(t, c.Pick, Request{}, n) {
		got[of[id]] += k
	}
	for i, w := range want {
		near(t, fmt.Sprintf("cell %d", i), got[i], n, w)
	}
}

func TestPriorities(t *testing.T) {
	cases := []struct {
		name  string
		cells []cell
		want  []float64
	}{
		{"all well", []cell{{0, "", 10, 10, 1}, {1, "", 10, 10, 1}}, []float64{1, 0}},
		{"within the reserve", []cell{{0, "", 100, 72, 1}, {1, "", 10, 10, 1}}, []float64{1, 0}},
		{"just beyond", []cell{{0, "", 100, 71, 1}, {1, "", 10, 10, 1}}, []float64{0.994, 0.006}},
		{"half", []cell{{0, "", 10, 5, 1}, {1, "", 10, 10, 1}}, []float64{0.7, 0.3}},
		{"none", []cell{{0, "", 10, 0, 1}, {1, "", 10, 10, 1}}, []float64{0, 1}},
		{"three", []cell{{0, "", 10, 2, 1}, {1, "", 10, 3, 1}, {2, "", 10, 10, 1}}, []float64{0.28, 0.42, 0.30}},
		{"third not needed", []cell{{0, "", 10, 2, 1}, {1, "", 10, 10, 1}, {2, "", 10, 10, 1}}, []float64{0.28, 0.72, 0}},
		{"together too few", []cell{{0, "", 10, 1, 1}, {1, "", 10, 3, 1}}, []float64{0.25, 0.75}},
		{"gaps in numbers", []cell{{7, "", 10, 10, 1}, {3, "", 10, 5, 1}}, []float64{0.3, 0.7}},
		{"counts, not weights", []cell{{0, "", 5, 5, 1}, {0, "", 5, 0, 100}, {1, "", 1, 1, 1}}, []float64{0.7, 0, 0.3}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c, of := populate(Config{}, tc.cells)
			shares(t, c, of, tc.want)
		})
	}
}

func TestPanic(t *testing.T) {
	cases := []struct {
		name  string
		panic int
		cells []cell
		// sick is the part of all calls that goes to unhealthy hosts; -1: no host is given.
		sick float64
	}{
		{"at the threshold", 50, []cell{{0, "", 10, 5, 1}}, 0},
		{"below it", 50, []cell{{0, "", 10, 4, 1}}, 0.6},
		{"nobody well", 50, []cell{{0, "", 10, 0, 1}}, 1},
		{"nobody well, never", 0, []cell{{0, "", 10, 0, 1}}, -1},
		{"one well, never", 0, []cell{{0, "", 10, 1, 1}}, 0},
		{"one percent", 1, []cell{{0, "", 10, 0, 1}}, 1},
		{"above the reserve", 80, []cell{{0, "", 10, 7, 1}}, 0.3},
		{"always short of all", 100, []cell{{0, "", 10, 9, 1}}, 0.1},
		{"the next priority stands in", 50, []cell{{0, "", 10, 4, 1}, {1, "", 10, 10, 1}}, 0},
		{"the next priority is short too", 50, []cell{{0, "", 10, 2, 1}, {1, "", 10, 3, 1}}, 0.4*0.8 + 0.6*0.7},
		{"only one of them is in panic", 35, []cell{{0, "", 10, 3, 1}, {1, "", 10, 4, 1}}, 0.3 / 0.7 * 0.7},
		{"the next is empty of healthy", 50, []cell{{0, "", 10, 4, 1}, {1, "", 10, 0, 1}}, 0.6},
		{"all are", 50, []cell{{0, "", 10, 0, 1}, {1, "", 10, 0, 1}}, 1},
		{"all are, never", 0, []cell{{0, "", 10, 0, 1}, {1, "", 10, 0, 1}}, -1},
	}
	for _, tc := range cases {
		for _, p := range policies() {
			t.Run(tc.name+"/"+p.String(), func(t *testing.T) {
				c, _ := populate(Config{Policy: p, Panic: tc.panic}, tc.cells)
				if tc.sick < 0 {
					if h, ok := c.Pick(Request{Hashed: true}); ok {
						t.Fatalf("picked %s, and nobody is well", h.ID())
					}
					return
				}
				const n = 4000
				sick := 0
				for range n {
					h, ok := c.Pick(Request{})
					if !ok {
						t.Fatal("Pick found no host")
					}
					if !h.Healthy() {
						sick++
					}
				}
				near(t, "calls to unhealthy hosts", sick, n, tc.sick)
			})
		}
	}
}

// When everything is in panic the first priority has the calls, and a retry can still leave it.
func TestPanicEverywhere(t *testing.T) {
	c, of := populate(Config{Panic: 50}, []cell{{0, "", 2, 0, 1}, {1, "", 2, 0, 1}})
	shares(t, c, of, []float64{1, 0})
	hosts := c.Hosts()
	if h, ok := c.Pick(Request{Tried: hosts[:2]}); !ok || of[h.ID()] != 1 {
		t.Error("a retry did not leave the first priority")
	}
}

// A retry prefers a healthy host of a later priority to an ill one of a priority in panic.
func TestRetryPrefersHealthToPanic(t *testing.T) {
	c, of := populate(Config{Panic: 20}, []cell{{0, "", 20, 3, 1}, {1, "", 10, 3, 1}})
	hosts := c.Hosts()
	filter := func(h *Host) bool { return h == hosts[5] || h == hosts[20] } // ill, well
	for range 50 {
		h, ok := c.Pick(Request{Tried: hosts[5:6], Filter: filter})
		if !ok || of[h.ID()] != 1 {
			t.Fatal("the retry went to an ill host")
		}
	}
	s := c.whole.snap.Load()
	if len(s.groups) != 2 || s.groups[0].panic || !s.groups[1].panic {
		t.Error("the group in panic is not the last resort")
	}
}

func TestLocality(t *testing.T) {
	cases := []struct {
		name  string
		cfg   Config
		cells []cell
		want  []float64
	}{
		{"off", Config{Zone: "a"}, []cell{{0, "a", 2, 2, 1}, {0, "b", 6, 6, 1}}, []float64{0.25, 0.75}},
		{"own zone unknown", Config{Locality: LocalityFailover}, []cell{{0, "a", 2, 2, 1}, {0, "", 6, 6, 1}}, []float64{0.25, 0.75}},

		{"failover, all well", Config{Zone: "a", Locality: LocalityFailover},
			[]cell{{0, "b", 6, 6, 1}, {0, "a", 2, 2, 1}}, []float64{0, 1}},
		{"failover, half of the own zone", Config{Zone: "a", Locality: LocalityFailover},
			[]cell{{0, "a", 4, 2, 1}, {0, "b", 3, 3, 1}, {0, "c", 3, 3, 1}}, []float64{0.7, 0.15, 0.15}},
		{"failover, own zone gone", Config{Zone: "a", Locality: LocalityFailover},
			[]cell{{0, "a", 4, 0, 1}, {0, "b", 3, 3, 1}}, []float64{0, 1}},
		{"failover, by distance", Config{Zone: "eu/a/1", Locality: LocalityFailover},
			[]cell{{0, "eu/a/1", 10, 2, 1}, {0, "eu/a/2", 10, 2, 1}, {0, "eu/b", 10, 2, 1}, {0, "us", 2, 2, 1}, {0, "", 2, 2, 1}},
			[]float64{0.28, 0.28, 0.28, 0.08, 0.08}},
		{"failover, names share no part", Config{Zone: "eu1", Locality: LocalityFailover},
			[]cell{{0, "eu1", 2, 0, 1}, {0, "eu", 2, 2, 1}, {0, "us", 2, 2, 1}}, []float64{0, 0.5, 0.5}},
		{"failover within priorities", Config{Zone: "a", Locality: LocalityFailover},
			[]cell{{0, "b", 2, 1, 1}, {0, "c", 2, 1, 1}, {1, "a", 2, 2, 1}, {1, "b", 2, 2, 1}}, []float64{0.35, 0.35, 0.3, 0}},
		{"failover, not in panic", Config{Zone: "a", Locality: LocalityFailover, Panic: 50},
			[]cell{{0, "a", 4, 0, 1}, {0, "b", 4, 3, 1}}, []float64{0.5, 0.5}},

		{"weighted, own zone suffices", Config{Zone: "a", Locality: LocalityWeighted},
			[]cell{{0, "a", 4, 4, 1}, {0, "b", 4, 4, 1}}, []float64{1, 0}},
		{"weighted, own zone larger", Config{Zone: "a", Locality: LocalityWeighted},
			[]cell{{0, "a", 6, 6, 1}, {0, "b", 2, 2, 1}}, []float64{1, 0}},
		{"weighted, own zone smaller", Config{Zone: "a", Locality: LocalityWeighted},
			[]cell{{0, "a", 2, 2, 1}, {0, "b", 6, 6, 1}}, []float64{0.5, 0.5}},
		{"weighted by weight", Config{Zone: "a", Locality: LocalityWeighted},
			[]cell{{0, "a", 4, 4, 1}, {0, "b", 4, 4, 3}}, []float64{0.5, 0.5}},
		{"weighted by health", Config{Zone: "a", Locality: LocalityWeighted},
			[]cell{{0, "a", 6, 2, 1}, {0, "b", 6, 6, 1}}, []float64{0.5, 0.5}},
		{"weighted, spare by proportion", Config{Zone: "a", Locality: LocalityWeighted},
			[]cell{{0, "a", 2, 2, 1}, {0, "b", 7, 7, 1}, {0, "c", 9, 9, 1}}, []float64{1.0 / 3, 2.0 / 3 / 4, 2.0 / 3 * 3 / 4}},
		{"weighted, none at home", Config{Zone: "a", Locality: LocalityWeighted},
			[]cell{{0, "b", 4, 4, 1}, {0, "c", 4, 4, 1}}, []float64{0.5, 0.5}},
		{"weighted, none well at home", Config{Zone: "a", Locality: LocalityWeighted},
			[]cell{{0, "a", 1, 0, 1}, {0, "b", 4, 4, 1}, {0, "c", 4, 4, 1}}, []float64{0, 0.5, 0.5}},
		{"weighted, too few", Config{Zone: "a", Locality: LocalityWeighted},
			[]cell{{0, "a", 3, 3, 1}, {0, "b", 3, 2, 1}}, []float64{0.6, 0.4}},
		{"weighted, nobody calls from nowhere", Config{Zone: "a", Locality: LocalityWeighted},
			[]cell{{0, "a", 2, 2, 1}, {0, "b", 4, 4, 1}, {0, "", 2, 2, 1}}, []float64{0.5, 0, 0.5}},
		{"weighted, not in panic", Config{Zone: "a", Locality: LocalityWeighted, Panic: 70},
			[]cell{{0, "a", 6, 4, 1}, {0, "b", 6, 4, 1}}, []float64{0.5, 0.5}},
		{"weighted, a key's home does not depend on ours", Config{Policy: Maglev, Zone: "a", Locality: LocalityWeighted},
			[]cell{{0, "a", 4, 4, 1}, {0, "b", 4, 4, 1}}, []float64{0.5, 0.5}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c, of := populate(tc.cfg, tc.cells)
			shares(t, c, of, tc.want)
		})
	}
}

// Whatever the capacities, the callers of all zones together load each zone by its capacity,
// and each keeps at home what fits.
func TestZoneSharesAddUp(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 12))
	for range 1000 {
		capacity, sum := make([]float64, 2+rnd.IntN(5)), 0.0
		for i := range capacity {
			capacity[i] = 0.01 + rnd.Float64()
			sum += capacity[i]
		}
		named := len(capacity)
		nameless := rnd.IntN(2)
		named -= nameless
		load := make([]float64, len(capacity))
		for i := range capacity {
			capacity[i] /= sum
		}
		for mine := nameless; mine < len(capacity); mine++ {
			total := 0.0
			shares := zoneShares(capacity, mine, named, func(i int) bool { return i >= nameless })
			for i, s := range shares {
				load[i] += s / float64(named)
				total += s
			}
			if home := math.Min(1, capacity[mine]*float64(named)); math.Abs(shares[mine]-home) > 1e-9 || math.Abs(total-1) > 1e-9 {
				t.Fatalf("zone %d of %v keeps %v, want %v; in all %v", mine, capacity, shares[mine], home, total)
			}
		}
		for i := range load {
			if math.Abs(load[i]-capacity[i]) > 1e-9 {
				t.Fatalf("capacities %v are loaded with %v", capacity, load)
			}
		}
	}
}

func TestSpillAddsUp(t *testing.T) {
	rnd := rand.New(rand.NewPCG(13, 14))
	for range 1000 {
		avail := make([]float64, 1+rnd.IntN(5))
		for i := range avail {
			avail[i] = rnd.Float64() * float64(rnd.IntN(2))
		}
		total := 0.0
		for _, s := range spill(avail) {
			total += s
		}
		if math.Abs(total-1) > 1e-9 {
			t.Fatalf("%v gives shares that add up to %v", avail, total)
		}
	}
}
