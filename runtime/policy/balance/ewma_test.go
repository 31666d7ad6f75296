package balance

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const ms = time.Millisecond

// about fails when got is further than a hundredth from want: the average keeps whole ticks.
func about(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if d := (got - want).Abs(); d > want/100+time.Microsecond {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// kept is the mean of an old value and a newer one after so much of the default decay.
func kept(old, sample, after time.Duration) time.Duration {
	w := math.Exp(-after.Seconds() / 10)
	return time.Duration(float64(old)*w + float64(sample)*(1-w))
}

func TestLatency(t *testing.T) {
	type call struct {
		pause, took time.Duration
		failed      bool
		want        time.Duration
	}
	cases := []struct {
		name  string
		calls []call
	}{
		{"first sample", []call{{0, 7 * ms, false, 7 * ms}}},
		{"a slow call counts at once", []call{{0, ms, false, ms}, {0, 80 * ms, false, 80 * ms}}},
		{"a fast call counts with time", []call{{0, 80 * ms, false, 80 * ms}, {0, ms, false, 80 * ms},
			{5 * time.Second, ms, false, kept(80*ms, ms, 5*time.Second)}, {time.Hour, 2 * ms, false, 2 * ms}}},
		{"no time at all is a measurement", []call{{0, 0, false, 1}, {0, -5, false, 1}}},
		{"a failure costs five times the average", []call{{0, 10 * ms, false, 10 * ms}, {0, 100 * time.Microsecond, true, 50 * ms}}},
		{"a slow failure costs what it took", []call{{0, 10 * ms, false, 10 * ms}, {0, 3 * time.Second, true, 3 * time.Second}}},
		{"a first failure", []call{{0, 20 * time.Microsecond, true, ms}}},
		{"failures have a limit", []call{{0, 150 * ms, false, 150 * ms}, {0, ms, true, 750 * ms}, {0, ms, true, time.Second}, {0, ms, true, time.Second}}},
		{"a failure decays", []call{{0, 10 * ms, false, 10 * ms}, {0, ms, true, 50 * ms},
			{10 * time.Second, 10 * ms, false, kept(50*ms, 10*ms, 10*time.Second)}}},
		{"after most of a round of ticks", []call{{0, 80 * ms, false, 80 * ms}, {6 * 24 * time.Hour, ms, false, ms}}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := seeded(Config{}, plain(1)).Hosts()[0]
				for i, c := range tc.calls {
					time.Sleep(c.pause)
					h.Begin()
					h.End(c.took, !c.failed)
					about(t, fmt.Sprintf("after call %d", i+1), h.Latency(), c.want)
				}
				if h.Inflight() != 0 {
					t.Errorf("%d calls in flight", h.Inflight())
				}
			})
		})
	}
}

func TestElapsed(t *testing.T) {
	const tick = 1 << tickBits
	cases := []struct {
		name string
		a, b uint32
		want float64
	}{
		{"same", 7, 7, 0},
		{"later", 7, 10, 3 * tick},
		{"round", math.MaxUint32, 1, 2 * tick},
		{"a little before", 10, 7, 0},
		{"long ago", 10, 10 + 1<<31, 1 << 31 * tick},
	}
	for _, tc := range cases {
		if got := elapsed(tc.a, tc.b); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// simulate sends one call per interval for a while; hosts answer after service(id). It gives
// the calls per host and the 99th percentile of their time.
func simulate(c *Cluster, interval, span time.Duration, service func(id string) time.Duration) (map[string]int, time.Duration) {
	var (
		calls = make(map[string]int)
		took  []time.Duration
		wg    sync.WaitGroup
	)
	for begun := time.Now(); time.Since(begun) < span; time.Sleep(interval) {
		h, _ := c.Pick(Request{})
		d := service(h.ID())
		calls[h.ID()]++
		took = append(took, d)
		h.Begin()
		wg.Go(func() {
			time.Sleep(d)
			h.End(d, true)
		})
	}
	wg.Wait()
	slices.Sort(took)
	return calls, took[len(took)*99/100]
}

func slowHost(id string) time.Duration {
	if id == "h3" {
		return 200 * ms
	}
	return 10 * ms
}

func TestPeakEWMAAvoidsSlowHost(t *testing.T) {
	p99 := make(map[Policy]time.Duration)
	for _, p := range []Policy{RoundRobin, PeakEWMA} {
		synctest.Test(t, func(t *testing.T) {
			calls, tail := simulate(seeded(Config{Policy: p}, plain(10)), 2*ms, 30*time.Second, slowHost)
			p99[p] = tail
			total := 0
			for _, n := range calls {
				total += n
			}
			if share := float64(calls["h3"]) / float64(total); p == PeakEWMA && share > 0.01 {
				t.Errorf("the slow host has %.3f of the calls", share)
			}
		})
	}
	if p99[PeakEWMA] >= p99[RoundRobin] || p99[PeakEWMA] > 10*ms {
		t.Errorf("99th percentile: %v, round robin %v", p99[PeakEWMA], p99[RoundRobin])
	}
}

// A host that recovers is found out and has its share again.
func TestPeakEWMAForgives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := seeded(Config{Policy: PeakEWMA, Decay: 2 * time.Second}, plain(4))
		simulate(c, 5*ms, 5*time.Second, slowHost)
		same := func(string) time.Duration { return 10 * ms }
		simulate(c, 5*ms, 15*time.Second, same)
		calls, _ := simulate(c, 5*ms, 10*time.Second, same)
		near(t, "calls of the recovered host", calls["h3"], 2000, 0.25)
	})
}

// A host that fails at once is not mistaken for a fast one.
func TestPeakEWMAAvoidsFailingHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := seeded(Config{Policy: PeakEWMA}, plain(4))
		bad := 0
		for range 5000 {
			h, _ := c.Pick(Request{})
			h.Begin()
			if h.ID() == "h0" {
				bad++
				h.End(50*time.Microsecond, false)
			} else {
				h.End(5*ms, true)
			}
			time.Sleep(ms)
		}
		if bad > 25 {
			t.Errorf("%d of 5000 calls went to the host that fails", bad)
		}
	})
}

// Neither a new host nor one whose latency has faded is flooded before it has answered.
func TestPeakEWMACreditIsOneCall(t *testing.T) {
	steady := func(c *Cluster, d time.Duration) {
		simulate(c, 100*ms, d, func(string) time.Duration { return 10 * ms })
	}
	cases := []struct {
		name    string
		prepare func(c *Cluster)
	}{
		{"new", func(c *Cluster) {
			c.Update(Config{Policy: PeakEWMA}, plain(1))
			steady(c, 10*time.Second)
			c.Update(Config{Policy: PeakEWMA}, plain(2))
		}},
		{"faded", func(c *Cluster) {
			steady(c, 10*time.Second)
			h, _ := c.Host("h1")
			h.SetEjected(true)
			steady(c, 200*time.Second)
			h.SetEjected(false)
		}},
		{"faded after a failure", func(c *Cluster) {
			steady(c, 10*time.Second)
			h, _ := c.Host("h1")
			h.Begin()
			h.End(time.Second, false)
			h.SetEjected(true)
			steady(c, 200*time.Second)
			h.SetEjected(false)
		}},
		{"nothing known of any", func(*Cluster) {}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := seeded(Config{Policy: PeakEWMA}, plain(2))
				tc.prepare(c)
				if h, _ := c.Pick(Request{}); tc.name != "nothing known of any" && h.ID() != "h1" {
					t.Errorf("the first call went to %s", h.ID())
				}
				for range 100 {
					h, _ := c.Pick(Request{})
					h.Begin()
				}
				if h, _ := c.Host("h1"); h.Inflight() < 40 || h.Inflight() > 60 {
					t.Errorf("%d of 100 calls hang on the host", h.Inflight())
				}
			})
		})
	}
}

// A call that stays open for long does not keep an old peak alive.
func TestPeakFadesUnderLongCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := seeded(Config{Policy: PeakEWMA}, plain(2))
		h, _ := c.Host("h1")
		h.Begin() // and stays
		h.Begin()
		h.End(time.Second, false)
		calls, _ := simulate(c, 10*ms, 200*time.Second, func(string) time.Duration { return 15 * ms })
		if calls["h1"] < 2000 {
			t.Errorf("%d of 20000 calls went to the host with the long call", calls["h1"])
		}
	})
}

// Under load and with equal latency, calls in flight follow the weights.
func TestPeakEWMALevelsByWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := seeded(Config{Policy: PeakEWMA}, weighted(1, 3))
		for _, h := range c.Hosts() {
			h.Begin()
			h.End(10*ms, true)
		}
		for range 400 {
			h, _ := c.Pick(Request{})
			h.Begin()
		}
		if h, _ := c.Host("h1"); h.Inflight() < 290 || h.Inflight() > 310 {
			t.Errorf("the host of weight 3 of 4 has %d of 400 calls", h.Inflight())
		}
	})
}

// A host ten times as fast as what is typical carries ten times the calls.
func TestPeakEWMAUsesFastHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := seeded(Config{Policy: PeakEWMA}, plain(2))
		for i, h := range c.Hosts() {
			h.Begin()
			h.End([]time.Duration{10 * ms, ms}[i], true)
		}
		for range 220 {
			h, _ := c.Pick(Request{})
			h.Begin()
		}
		if h, _ := c.Host("h1"); h.Inflight() < 195 || h.Inflight() > 205 {
			t.Errorf("the fast host has %d of 220 calls", h.Inflight())
		}
	})
}

func TestDecayFollowsUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := seeded(Config{}, plain(1))
		h := c.Hosts()[0]
		h.Begin()
		h.End(time.Second, true)
		c.Update(Config{Decay: 100 * ms}, plain(1))
		time.Sleep(time.Second)
		h.Begin()
		h.End(ms, true)
		if h.Latency() > 2*ms {
			t.Errorf("after ten decays the latency is %v", h.Latency())
		}
	})
}
