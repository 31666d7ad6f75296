package balance

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const keys = 20000

// homes is where each of the keys goes.
func homes(t testing.TB, c *Cluster) []string {
	t.Helper()
	out := make([]string, keys)
	for i := range out {
		h, ok := c.Pick(Request{Hash: uint64(i), Hashed: true})
		if !ok {
			t.Fatal("Pick found no host")
		}
		out[i] = h.ID()
	}
	return out
}

// moved counts the keys that changed host, of those that need not.
func moved(before, after []string, forced func(string) bool) (needless, of int) {
	for i, was := range before {
		if forced(was) {
			continue
		}
		of++
		if after[i] != was {
			needless++
		}
	}
	return needless, of
}

func TestPlacementIsTheContract(t *testing.T) {
	var got bytes.Buffer
	for _, p := range []Policy{RingHash, Maglev} {
		for _, weights := range [][]int{{1, 1, 1}, {1, 2, 3, 4, 5, 6, 7}} {
			c := seeded(Config{Policy: p}, weighted(weights...))
			fmt.Fprintf(&got, "%v %v:", p, weights)
			for i := range uint64(40) {
				h, _ := c.Pick(Request{Hash: i * i * i, Hashed: true})
				second, _ := c.Pick(Request{Hash: i * i * i, Hashed: true, Tried: []*Host{h}})
				fmt.Fprintf(&got, " %s-%s", h.ID(), second.ID())
			}
			got.WriteByte('\n')
		}
	}
	file := filepath.Join("testdata", "placement.txt")
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got.Bytes()) {
		t.Errorf("keys live elsewhere than other sidecars believe; want\n%s got\n%s", want, got.Bytes())
	}
}

func TestPlacementIgnoresOrderOfEndpoints(t *testing.T) {
	for _, p := range []Policy{RingHash, Maglev} {
		eps := weighted(1, 2, 3, 4, 5, 6, 7, 8)
		before := homes(t, seeded(Config{Policy: p}, eps))
		slices.Reverse(eps)
		after := homes(t, seeded(Config{Policy: p}, eps))
		if n, _ := moved(before, after, func(string) bool { return false }); n != 0 {
			t.Errorf("%v: %d keys depend on the order of the list", p, n)
		}
	}
}

func TestMaglevBalance(t *testing.T) {
	c := seeded(Config{Policy: Maglev}, plain(100))
	cells := make([]int, 100)
	for _, m := range c.whole.snap.Load().groups[0].table.cells {
		cells[m]++
	}
	if lo, hi := slices.Min(cells), slices.Max(cells); float64(hi) > 1.01*float64(lo) {
		t.Errorf("hosts have between %d and %d slots", lo, hi)
	}
}

func TestMaglevBalanceByWeight(t *testing.T) {
	c := seeded(Config{Policy: Maglev}, weighted(1, 2, 3, 40))
	g := c.whole.snap.Load().groups[0]
	cells := make([]int, 4)
	for _, m := range g.table.cells {
		cells[m]++
	}
	for i, n := range cells {
		want := float64(g.table.weights[i]) / 46 * 65537
		if math.Abs(float64(n)-want) > 0.01*want {
			t.Errorf("weight %d has %d slots, want %.0f", g.table.weights[i], n, want)
		}
	}
}

// With 128 points a host's load has a deviation of a tenth; none of 100 is off by half.
func TestRingBalance(t *testing.T) {
	c := seeded(Config{Policy: RingHash}, plain(100))
	ring := c.whole.snap.Load().groups[0].table
	if len(ring.cells) < 100*leastPoints {
		t.Errorf("100 hosts have %d points", len(ring.cells))
	}
	load, sum := make([]float64, 100), 0.0
	for i, m := range ring.cells {
		arc := ring.ring[i] - ring.ring[(i+len(ring.ring)-1)%len(ring.ring)]
		load[m] += float64(arc) / (1 << 64) * 100
	}
	for _, l := range load {
		sum += (l - 1) * (l - 1)
	}
	if lo, hi, dev := slices.Min(load), slices.Max(load), math.Sqrt(sum/100); lo < 0.6 || hi > 1.5 || dev > 0.12 {
		t.Errorf("loads are between %.2f and %.2f, deviation %.3f", lo, hi, dev)
	}
}

func TestRingSize(t *testing.T) {
	cases := []struct {
		name    string
		size    int
		weights []int
		lo, hi  int
	}{
		{"default for one", 0, []int{1}, 1024, 2047},
		{"points per host", 0, slices.Repeat([]int{1}, 50), 5000, 9999},
		{"asked for", 30000, []int{1, 1, 1}, 30000, 59999},
		{"heavy weights do not multiply", 0, []int{1_000_000, 1_000_000}, 1024, 2048},
		{"the lightest has a point", 0, []int{1_000_000, 1}, 1024, 2048},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c := seeded(Config{Policy: RingHash, RingSize: tc.size}, weighted(tc.weights...))
			ring := c.whole.snap.Load().groups[0].table
			if n := len(ring.cells); n < tc.lo || n > tc.hi {
				t.Errorf("%d points, want %d to %d", n, tc.lo, tc.hi)
			}
			for i := range tc.weights {
				if !slices.Contains(ring.cells, uint32(i)) {
					t.Errorf("host %d is not on the ring", i)
				}
			}
		})
	}
}

// The shortcut into the ring finds what a plain search finds.
func TestRingPlace(t *testing.T) {
	ring := seeded(Config{Policy: RingHash}, weighted(1, 2, 3)).whole.snap.Load().groups[0].table
	rnd := rand.New(rand.NewPCG(9, 10))
	check := func(hash uint64) {
		want, _ := slices.BinarySearch(ring.ring, hash)
		if want == len(ring.ring) {
			want = 0
		}
		if got := ring.place(hash); got != want {
			t.Fatalf("hash %x is at %d, want %d", hash, got, want)
		}
	}
	for range 20000 {
		check(rnd.Uint64())
	}
	for _, hash := range ring.ring {
		check(hash - 1)
		check(hash)
		check(hash + 1)
	}
	check(0)
	check(math.MaxUint64)
}

// A host that leaves takes its own keys along, and few others: none on the ring, about one in
// a hundred in Maglev's table.
func TestDisruption(t *testing.T) {
	for _, tc := range []struct {
		policy Policy
		most   float64
	}{{RingHash, 0}, {Maglev, 0.02}} {
		for _, gone := range []int{0, 42, 99} {
			t.Run(fmt.Sprintf("%v without %d", tc.policy, gone), func(t *testing.T) {
				c := seeded(Config{Policy: tc.policy}, plain(100))
				before := homes(t, c)
				c.Update(Config{Policy: tc.policy}, slices.Delete(plain(100), gone, gone+1))
				after := homes(t, c)
				id := fmt.Sprintf("h%d", gone)
				n, of := moved(before, after, func(was string) bool { return was == id })
				if float64(n) > tc.most*float64(of) {
					t.Errorf("%d of %d keys of other hosts moved", n, of)
				}
				taken := make(map[string]int)
				for i, was := range before {
					if was == id {
						taken[after[i]]++
					}
				}
				if len(taken) < 50 {
					t.Errorf("the lost keys went to %d hosts only", len(taken))
				}
			})
		}
	}
}

// Bad health moves the keys of that host and no others, and brings the same ones back.
func TestHealthMovesOwnKeysOnly(t *testing.T) {
	for _, p := range []Policy{RingHash, Maglev} {
		t.Run(p.String(), func(t *testing.T) {
			c := seeded(Config{Policy: p}, weighted(1, 2, 3, 4, 5, 6, 7, 8))
			table := c.whole.snap.Load().groups[0].table
			before := homes(t, c)
			h, _ := c.Host("h6")
			h.SetEjected(true)
			after := homes(t, c)
			if n, _ := moved(before, after, func(was string) bool { return was == "h6" }); n != 0 {
				t.Errorf("%d keys of other hosts moved", n)
			}
			if slices.Contains(after, "h6") {
				t.Error("keys go to an ejected host")
			}
			h.SetEjected(false)
			if !slices.Equal(before, homes(t, c)) {
				t.Error("the keys did not come back")
			}
			if c.whole.snap.Load().groups[0].table != table {
				t.Error("a change of health built a table")
			}
			c.Update(Config{Policy: p}, weighted(1, 2, 3, 4, 5, 6, 7, 9))
			if c.whole.snap.Load().groups[0].table == table {
				t.Error("a change of weight kept the table")
			}
		})
	}
}

// A retry goes where the key would go if the first host were ill, each time the same.
func TestRetryOfAKey(t *testing.T) {
	for _, p := range []Policy{RingHash, Maglev} {
		for _, n := range []int{2, 10, 200} {
			c := seeded(Config{Policy: p}, plain(n))
			for key := range uint64(50) {
				r := Request{Hash: key, Hashed: true}
				first, _ := c.Pick(r)
				r.Tried = []*Host{first}
				second, _ := c.Pick(r)
				again, _ := c.Pick(r)
				r.Tried = nil
				first.SetFailing(true)
				ill, _ := c.Pick(r)
				first.SetFailing(false)
				if second == first || second != again || second != ill {
					t.Fatalf("%v of %d: key %d goes to %s, then %s or %s, when ill %s",
						p, n, key, first.ID(), second.ID(), again.ID(), ill.ID())
				}
			}
		}
	}
}

// With nearly all hosts out the walk ends early; the choice stays stable and spread.
func TestKeysWithFewHostsLeft(t *testing.T) {
	for _, p := range []Policy{RingHash, Maglev} {
		c := seeded(Config{Policy: p}, plain(2000))
		hosts := c.Hosts()
		left := []*Host{hosts[3], hosts[500], hosts[1999]}
		in := func(h *Host) bool { return slices.Contains(left, h) }
		got := make(map[*Host]int)
		for key := range uint64(1500) {
			r := Request{Hash: key, Hashed: true, Filter: in}
			a, ok := c.Pick(r)
			b, _ := c.Pick(r)
			if !ok || a != b || !in(a) {
				t.Fatalf("%v: key %d goes to %v and %v", p, key, a, b)
			}
			got[a]++
		}
		for _, h := range left {
			near(t, p.String()+" "+h.ID(), got[h], 1500, 1.0/3)
		}
	}
}

func TestMoreHostsThanSlots(t *testing.T) {
	c := seeded(Config{Policy: Maglev, TableSize: 7}, plain(20))
	homes(t, c)
	for _, h := range c.Hosts()[1:] {
		h.SetEjected(true)
	}
	if got := tally(t, c.Pick, Request{Hashed: true}, 5); got["h0"] != 5 {
		t.Errorf("the host left over was not found: %v", got)
	}
}

// Two priorities share the keys by hash: as health changes, keys only move out of the first.
func TestKeysAcrossPriorities(t *testing.T) {
	eps := plain(20)
	for i := 10; i < 20; i++ {
		eps[i].Priority = 1
	}
	for _, p := range []Policy{RingHash, Maglev} {
		c := seeded(Config{Policy: p}, eps)
		hosts := c.Hosts()
		for i := range 5 {
			hosts[i].SetFailing(true)
		}
		before := homes(t, c)
		hosts[5].SetFailing(true) // 70 % to 56 % in the first priority
		after := homes(t, c)
		toSecond := 0
		for i := range before {
			was, is := before[i], after[i]
			second, stays := eps[indexOf(is)].Priority == 1, was == is
			switch {
			case eps[indexOf(was)].Priority == 1 && !stays:
				t.Fatalf("%v: a key of the second priority moved from %s to %s", p, was, is)
			case second && !stays:
				toSecond++
			case !stays && was != "h5":
				t.Fatalf("%v: a key moved from %s to %s within the first priority", p, was, is)
			}
		}
		near(t, p.String()+": keys that left the first priority", toSecond, keys, 0.14)
	}
}

// Which priority a key has says nothing about its host there.
func TestKeysSpreadInNextPriority(t *testing.T) {
	for _, p := range []Policy{RingHash, Maglev} {
		c, of := populate(Config{Policy: p}, []cell{{0, "", 100, 70, 1}, {1, "", 10, 10, 1}})
		got := make(map[string]int)
		for _, id := range homes(t, c) {
			if of[id] == 1 {
				got[id]++
			}
		}
		for _, h := range c.Hosts()[100:] {
			if n := got[h.ID()]; n < 15 || n > 80 { // of 400
				t.Errorf("%v: %s has %d keys", p, h.ID(), n)
			}
		}
	}
}

func indexOf(id string) (i int) {
	fmt.Sscanf(id, "h%d", &i)
	return i
}
