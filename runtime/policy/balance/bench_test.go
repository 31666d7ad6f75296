package balance

import (
	"fmt"
	"testing"
	"time"
)

func benchCluster(p Policy, n int, weights bool) *Cluster {
	c := New(Config{})
	eps := make([]Endpoint, n)
	for i := range eps {
		eps[i] = Endpoint{ID: fmt.Sprintf("10.0.%d.%d:8080", i/250, i%250)}
		if weights {
			eps[i].Weight = 1 + i%7
		}
	}
	c.Update(Config{Policy: p}, eps)
	for i, h := range c.Hosts() {
		h.Begin()
		h.End(time.Duration(i+1)*time.Millisecond, true)
	}
	return c
}

func BenchmarkPick(b *testing.B) {
	for p := RoundRobin; p <= Maglev; p++ {
		for _, n := range []int{3, 100} {
			c := benchCluster(p, n, false)
			b.Run(fmt.Sprintf("%v/%d/serial", p, n), func(b *testing.B) {
				b.ReportAllocs()
				r := Request{Hashed: true}
				for b.Loop() {
					r.Hash += golden
					if _, ok := c.Pick(r); !ok {
						b.Fatal("no host")
					}
				}
			})
			b.Run(fmt.Sprintf("%v/%d/parallel", p, n), func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					r := Request{Hashed: true}
					for pb.Next() {
						r.Hash += golden
						if _, ok := c.Pick(r); !ok {
							panic("no host")
						}
					}
				})
			})
		}
	}
}

func BenchmarkPickWeighted(b *testing.B) {
	for p := RoundRobin; p <= Random; p++ {
		c := benchCluster(p, 100, true)
		b.Run(p.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.Pick(Request{})
			}
		})
	}
}

// BenchmarkPickAround measures the requests that ask for more: a retry, affinity, a subset.
func BenchmarkPickAround(b *testing.B) {
	c := benchCluster(RoundRobin, 100, false)
	hosts := c.Hosts()
	for name, r := range map[string]Request{
		"tried":  {Tried: hosts[:2]},
		"sticky": {Sticky: hosts[7].ID()},
		"half":   {Filter: func(h *Host) bool { return h.hash&1 == 0 }},
		"one":    {Filter: func(h *Host) bool { return h == hosts[50] }},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.Pick(r)
			}
		})
	}
}

func BenchmarkCall(b *testing.B) {
	c := benchCluster(PeakEWMA, 100, false)
	b.Run("serial", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			h, _ := c.Pick(Request{})
			h.Begin()
			h.End(time.Millisecond, true)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				h, _ := c.Pick(Request{})
				h.Begin()
				h.End(time.Millisecond, true)
			}
		})
	})
}

// BenchmarkRebuild is what one change of health costs its caller.
func BenchmarkRebuild(b *testing.B) {
	for p := RoundRobin; p <= Maglev; p++ {
		c := benchCluster(p, 100, true)
		h := c.Hosts()[3]
		b.Run(p.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h.SetEjected(!h.Ejected())
			}
		})
	}
}

// BenchmarkFill is what a change of the list costs the hash policies.
func BenchmarkFill(b *testing.B) {
	for _, p := range []Policy{RingHash, Maglev} {
		c := benchCluster(p, 100, true)
		b.Run(p.String(), func(b *testing.B) {
			for b.Loop() {
				tableKey(Config{Policy: p}.resolved(), c.hosts).fill()
			}
		})
	}
}
