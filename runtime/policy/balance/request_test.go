package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestTried(t *testing.T) {
	for _, p := range policies() {
		t.Run(p.String(), func(t *testing.T) {
			c := seeded(Config{Policy: p}, plain(5))
			for key := range uint64(200) {
				r := Request{Hash: key, Hashed: true}
				for range 5 {
					h, ok := c.Pick(r)
					if !ok || slices.Contains(r.Tried, h) {
						t.Fatalf("attempt %d went to %v again", len(r.Tried)+1, h)
					}
					r.Tried = append(r.Tried, h)
				}
				if _, ok := c.Pick(r); !ok {
					t.Fatal("with all hosts tried none was given")
				}
			}
		})
	}
}

func TestTriedLeavesThePriority(t *testing.T) {
	eps := plain(3)
	eps[2].Priority = 1
	for _, p := range policies() {
		c := seeded(Config{Policy: p}, eps)
		hosts := c.Hosts()
		got := tally(t, c.Pick, Request{Hashed: true, Tried: hosts[:2]}, 20)
		if got["h2"] != 20 {
			t.Errorf("%v: with the first priority tried: %v", p, got)
		}
	}
}

func TestSticky(t *testing.T) {
	eps := plain(4)
	eps[3].Priority = 1
	for _, p := range policies() {
		t.Run(p.String(), func(t *testing.T) {
			c := seeded(Config{Policy: p}, eps)
			hosts := c.Hosts()
			for i, h := range hosts {
				if got := tally(t, c.Pick, Request{Sticky: h.ID()}, 20); got[h.ID()] != 20 {
					t.Errorf("sticky to %s: %v", h.ID(), got)
				}
				for name, r := range map[string]Request{
					"tried":    {Tried: hosts[i : i+1]},
					"filtered": {Filter: func(o *Host) bool { return o != h }},
				} {
					r.Sticky = h.ID()
					if got := tally(t, c.Pick, r, 20); got[h.ID()] != 0 {
						t.Errorf("sticky to %s, %s: %v", h.ID(), name, got)
					}
				}
				h.SetFailing(true)
				if got := tally(t, c.Pick, Request{Sticky: h.ID()}, 20); got[h.ID()] != 0 {
					t.Errorf("sticky to %s, failing: %v", h.ID(), got)
				}
				h.SetFailing(false)
			}
			tally(t, c.Pick, Request{Sticky: "gone"}, 20)
		})
	}
}

// A filter must not bend the balance among the hosts it lets through, be they many or few.
func TestFilter(t *testing.T) {
	for _, p := range policies() {
		for _, kept := range []int{1, 3, 30} {
			t.Run(fmt.Sprintf("%v/%d of 40", p, kept), func(t *testing.T) {
				c := seeded(Config{Policy: p}, plain(40))
				in := c.Hosts()[5 : 5+kept]
				const n = 3000
				got := make(map[*Host]int)
				for i := range uint64(n) {
					h, ok := c.Pick(Request{Hash: i, Hashed: true, Filter: func(h *Host) bool { return slices.Contains(in, h) }})
					if !ok || !slices.Contains(in, h) {
						t.Fatalf("picked %v outside of the filter", h)
					}
					got[h]++
				}
				for _, h := range in {
					if share := float64(got[h]) / n * float64(kept); share < 0.5 || share > 1.7 {
						t.Errorf("%s got %.2f of its share", h.ID(), share)
					}
				}
				if _, ok := c.Pick(Request{Filter: func(*Host) bool { return false }}); ok {
					t.Error("picked through a filter that refuses all")
				}
			})
		}
	}
}

func TestSubset(t *testing.T) {
	eps := plain(6)
	eps[4].Priority, eps[5].Priority = 1, 1
	c := seeded(Config{}, eps)
	odd := c.Subset("odd", func(e Endpoint) bool { return e.ID == "h1" || e.ID == "h5" || e.ID == "h7" })
	if got := tally(t, odd.Pick, Request{}, 20); got["h1"] != 20 {
		t.Errorf("the subset's first priority: %v", got)
	}
	h1, _ := c.Host("h1")
	h1.SetEjected(true)
	if got := tally(t, odd.Pick, Request{}, 20); got["h5"] != 20 {
		t.Errorf("with its first priority out: %v", got)
	}
	if got := tally(t, c.Pick, Request{}, 30); got["h5"] != 0 {
		t.Errorf("the whole cluster left its first priority: %v", got)
	}
	c.Update(Config{}, append(slices.Delete(slices.Clone(eps), 1, 2), Endpoint{ID: "h7"}))
	if got := tally(t, odd.Pick, Request{}, 20); got["h7"] != 20 || len(odd.Hosts()) != 2 {
		t.Errorf("after an update the subset has %d hosts: %v", len(odd.Hosts()), got)
	}
	again := c.Subset("odd", func(e Endpoint) bool { return e.ID == "h7" })
	if got := tally(t, odd.Pick, Request{}, 20); again != odd || got["h7"] != 20 {
		t.Errorf("a subset made again: %v", got)
	}
	c.DropSubset("odd")
	c.Update(Config{}, eps)
	if got := tally(t, odd.Pick, Request{}, 20); got["h7"] != 20 {
		t.Errorf("a dropped subset changed: %v", got)
	}
}

// model decides without pickers which hosts a request may get.
func model(cfg Config, hosts []*Host, r Request) (may []*Host) {
	size, well, able := map[int]int{}, map[int]int{}, map[int]float64{}
	for _, h := range hosts {
		size[h.Endpoint().Priority]++
		if h.Healthy() {
			well[h.Endpoint().Priority]++
		}
	}
	total := 0.0
	for p := range size {
		able[p] = math.Min(1, float64(well[p])*1.4/float64(size[p]))
		total += able[p]
	}
	for _, h := range hosts {
		p := h.Endpoint().Priority
		others := false
		for q := range able {
			others = others || q != p && able[q] > 0
		}
		panics := well[p]*100 < cfg.Panic*size[p] && (!others || total < 1)
		if (h.Healthy() || panics) && (r.Filter == nil || r.Filter(h)) {
			may = append(may, h)
		}
	}
	return may
}

// For any configuration, list, health and request, Pick gives a host exactly when there is one,
// one that may be had, and an untried one while there is one.
func TestPickAgainstModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	zones := []string{"", "eu/a", "eu/a/1", "eu/b", "us/a"}
	for range 4000 {
		cfg := Config{
			Policy: policies()[rnd.IntN(6)], Choices: []int{0, 2, 3, 100}[rnd.IntN(4)], TableSize: []int{7, 251}[rnd.IntN(2)],
			RingSize: 1 + rnd.IntN(100), SlowStart: time.Duration(rnd.IntN(2)) * time.Hour, Panic: rnd.IntN(101) * rnd.IntN(2),
			Zone: zones[rnd.IntN(len(zones))], Locality: Locality(rnd.IntN(3)),
		}
		eps := plain(rnd.IntN(14))
		spread := 1 + rnd.IntN(3)
		for i := range eps {
			eps[i].Weight, eps[i].Zone, eps[i].Priority = rnd.IntN(20)*rnd.IntN(2), zones[rnd.IntN(len(zones))], rnd.IntN(spread)
		}
		c := seeded(cfg, eps)
		hosts := c.Hosts()
		sick := rnd.Float64() * 1.3
		for _, h := range hosts {
			h.SetEjected(rnd.Float64() < sick)
			h.SetFailing(rnd.Float64() < sick/4)
		}
		for range 8 {
			r := Request{Hash: rnd.Uint64(), Hashed: rnd.IntN(2) == 0}
			for _, h := range hosts {
				if rnd.IntN(3) == 0 {
					r.Tried = append(r.Tried, h)
				}
			}
			if bits := rnd.Uint64(); rnd.IntN(2) == 0 {
				r.Filter = func(h *Host) bool { return mix(h.hash^bits)&3 == 0 }
			}
			if len(hosts) > 0 && rnd.IntN(4) == 0 {
				r.Sticky = hosts[rnd.IntN(len(hosts))].ID()
			}
			checkPick(t, c, cfg, hosts, r)
		}
		for _, edge := range []uint64{0, math.MaxUint64} { // where rounding would show
			c.env.random = func() uint64 { return edge }
			checkPick(t, c, cfg, hosts, Request{})
		}
	}
}

func checkPick(t *testing.T, c *Cluster, cfg Config, hosts []*Host, r Request) {
	t.Helper()
	may := model(cfg, hosts, r)
	untried := slices.DeleteFunc(slices.Clone(may), func(h *Host) bool { return slices.Contains(r.Tried, h) })
	h, ok := c.Pick(r)
	switch {
	case ok != (len(may) > 0):
		t.Fatalf("%+v: %d hosts may be picked, Pick says %v", cfg, len(may), ok)
	case !ok:
	case !slices.Contains(may, h):
		t.Fatalf("%+v: %s may not be picked", cfg, h.ID())
	case len(untried) > 0 && !slices.Contains(untried, h):
		t.Fatalf("%+v: %s is tried, %d are not", cfg, h.ID(), len(untried))
	}
	if i := slices.IndexFunc(untried, func(h *Host) bool { return h.ID() == r.Sticky }); i >= 0 && h != untried[i] {
		t.Fatalf("%+v: sticky to %s, got %s", cfg, r.Sticky, h.ID())
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	for _, p := range policies() {
		c := seeded(Config{Policy: p, SlowStart: time.Hour, Locality: LocalityFailover, Zone: "eu"}, weighted(1, 2, 3, 4, 5, 6))
		hosts := c.Hosts()
		hosts[5].SetEjected(true)
		hosts[5].SetEjected(false)
		for name, r := range map[string]Request{
			"zero":   {},
			"hashed": {Hashed: true, Hash: 9},
			"tried":  {Tried: hosts[:5]},
			"sticky": {Sticky: "h3"},
			"filter": {Filter: func(h *Host) bool { return h == hosts[2] }},
		} {
			allocs := testing.AllocsPerRun(100, func() {
				h, _ := c.Pick(r)
				h.Begin()
				h.End(time.Millisecond, true)
			})
			if allocs != 0 {
				t.Errorf("%v, %s: %v allocations", p, name, allocs)
			}
		}
	}
}
