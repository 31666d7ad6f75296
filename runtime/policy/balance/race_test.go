package balance

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// While the list and the health of hosts change under them, pickers always find a host as long
// as one is well, never one that was ill all the time, and calls are neither lost nor invented.
func TestConcurrent(t *testing.T) {
	for _, p := range policies() {
		t.Run(p.String(), func(t *testing.T) {
			cfg := Config{Policy: p, TableSize: 251, Zone: "a", Locality: LocalityFailover}
			eps := plain(16)
			for i := range eps {
				eps[i].Priority, eps[i].Zone, eps[i].Weight = i%2, []string{"a", "b"}[i/2%2], i%3
			}
			c := New(cfg)
			c.Update(cfg, eps)
			all := c.Hosts()
			all[0].SetEjected(true) // all the time
			all[1].SetFailing(true)
			sub := c.Subset("ill and well", func(e Endpoint) bool { return e.ID == "h0" || e.ID == "h3" })

			var stop atomic.Bool
			var writers, pickers sync.WaitGroup
			writers.Go(func() { // hosts 8 to 15 come, go and change
				rnd := rand.New(rand.NewPCG(1, 1))
				for !stop.Load() {
					next := append([]Endpoint(nil), eps[:8+rnd.IntN(9)]...)
					next[5].Weight = rnd.IntN(5)
					changed := cfg
					changed.Decay = time.Duration(1+rnd.IntN(3)) * time.Second
					c.Update(changed, next)
				}
			})
			for w := range 2 {
				writers.Go(func() { // hosts 4 to 15 fall ill and recover; 2 and 3 take turns
					rnd := rand.New(rand.NewPCG(2, uint64(w)))
					for !stop.Load() {
						h := all[4+rnd.IntN(12)]
						h.SetEjected(rnd.IntN(2) == 0)
						h.SetFailing(rnd.IntN(2) == 0)
						if w == 0 {
							all[2].SetEjected(false)
							all[7].SetFailing(true)
							all[2].SetEjected(true)
						}
					}
				})
			}
			for w := range 3 {
				pickers.Go(func() {
					rnd := rand.New(rand.NewPCG(3, uint64(w)))
					for range 4000 {
						pick(t, c, sub, all, rnd)
					}
				})
			}
			pickers.Wait()
			stop.Store(true)
			writers.Wait()
			for _, h := range c.Hosts() {
				if h.Inflight() != 0 {
					t.Errorf("%s has %d calls in flight", h.ID(), h.Inflight())
				}
			}
		})
	}
}

func pick(t *testing.T, c *Cluster, sub *Subset, all []*Host, rnd *rand.Rand) {
	r := Request{Hash: rnd.Uint64(), Hashed: rnd.IntN(2) == 0}
	switch rnd.IntN(6) {
	case 0:
		r.Tried = all[2:5]
	case 1:
		r.Sticky = fmt.Sprintf("h%d", rnd.IntN(16))
	case 2:
		r.Filter = func(h *Host) bool { return h == all[0] || h == all[1] || h == all[3] }
	}
	h, ok := c.Pick(r)
	if !ok || h == all[0] || h == all[1] {
		t.Errorf("picked %v, %v", h, ok)
		return
	}
	h.Begin()
	if other, ok := sub.Pick(Request{}); !ok || other != all[3] {
		t.Errorf("the subset gave %v, %v", other, ok)
	}
	h.End(1e6, rnd.IntN(9) != 0)
}

// One of two hosts is well at every moment, though never the same for long. The order of the
// flips is what counts: the one falls ill only after the other has been let in.
func TestConcurrentHandover(t *testing.T) {
	for _, p := range policies() {
		t.Run(p.String(), func(t *testing.T) {
			c := New(Config{})
			c.Update(Config{Policy: p, TableSize: 7}, plain(2))
			hosts := c.Hosts()
			var stop atomic.Bool
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := 0; !stop.Load(); i++ {
					hosts[i&1].SetEjected(false)
					hosts[1-i&1].SetEjected(true)
				}
			})
			for i := range uint64(20000) {
				if _, ok := c.Pick(Request{Hash: i, Hashed: true}); !ok {
					t.Error("Pick found no host")
					break
				}
			}
			stop.Store(true)
			wg.Wait()
		})
	}
}
