package health_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/runtime/policy/health"
)

func ids(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("h%03d", i)
	}
	return out
}

// gauge counts what is under way, and the most there ever was.
type gauge struct{ now, most atomic.Int32 }

func (g *gauge) enter() {
	n := g.now.Add(1)
	for {
		most := g.most.Load()
		if n <= most || g.most.CompareAndSwap(most, n) {
			return
		}
	}
}

func (g *gauge) leave() { g.now.Add(-1) }

func TestChecksAtOnceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var under gauge
		var checks sync.Map
		c := health.New(health.Config{}, func(ctx context.Context, id string) error {
			under.enter()
			defer under.leave()
			checks.Store(id, true)
			time.Sleep(100 * time.Millisecond)
			return nil
		}, func(string, bool) {}, nil)
		defer c.Close()
		all := ids(100)
		c.Keep(all)
		time.Sleep(710 * time.Millisecond) // 7 rounds of 16
		for _, id := range all {
			if _, ok := checks.Load(id); !ok {
				t.Errorf("%s was not checked", id)
			}
		}
		if most := under.most.Load(); most != health.MaxAtOnce {
			t.Errorf("up to %d checks at once, want %d", most, health.MaxAtOnce)
		}
	})
}

// Probes that ignore their context cost a goroutine each, and nothing else: hosts in good health are
// checked on time, and neither time nor hosts that come and go make more of them.
func TestStuckProbesBlockNobodyAndDoNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		var good atomic.Int32
		var stuck gauge
		c := health.New(health.Config{IdleInterval: 10 * time.Second, Jitter: 1}, func(_ context.Context, id string) error {
			if id == "good" {
				good.Add(1)
				return nil
			}
			stuck.enter()
			defer stuck.leave()
			<-release
			return nil
		}, func(string, bool) {}, nil)
		defer c.Close()
		bad := ids(40)
		for range 20 {
			c.Keep(append(slices.Clone(bad), "good"))
			time.Sleep(15 * time.Second)
			c.Keep([]string{"good"})
			time.Sleep(15 * time.Second)
		}
		if most := stuck.most.Load(); most != 40 {
			t.Errorf("up to %d probes hung at once, want one for each of 40 hosts", most)
		}
		// In 600s: the first, then one every 10s and up to a percent; at most three times a round of
		// stuck probes goes before.
		if n := good.Load(); n < 56 {
			t.Errorf("the good host was checked %d times in ten minutes, want one check every 10s", n)
		}
		close(release)
		synctest.Wait()
		if flying, probes, hosts := c.Load(); flying != 0 || probes != 0 || hosts != 1 {
			t.Errorf("%d checks, %d goroutines and %d hosts are left, want 0, 0 and 1", flying, probes, hosts)
		}
	})
}

// Hosts that wait for room may go, and come back, without being checked once too often.
func TestGoneWhileWaitingForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		checks := map[string]int{}
		c := health.New(health.Config{}, func(_ context.Context, id string) error {
			mu.Lock()
			checks[id]++
			mu.Unlock()
			time.Sleep(100 * time.Millisecond)
			return nil
		}, func(string, bool) {}, nil)
		defer c.Close()
		all := ids(health.MaxAtOnce + 3)
		c.Keep(all)
		synctest.Wait()
		c.Keep(all[:health.MaxAtOnce])
		if n := len(c.Snapshot()); n != health.MaxAtOnce {
			t.Errorf("the snapshot has %d hosts, want %d", n, health.MaxAtOnce)
		}
		c.Keep(all[:health.MaxAtOnce+1])
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		for i, id := range all {
			want := 1
			if i > health.MaxAtOnce {
				want = 0
			}
			if checks[id] != want {
				t.Errorf("%s was checked %d times, want %d", id, checks[id], want)
			}
		}
		if _, _, hosts := c.Load(); hosts != health.MaxAtOnce+1 {
			t.Errorf("%d hosts are remembered, want %d", hosts, health.MaxAtOnce+1)
		}
	})
}

func TestProbeWithoutAnAnswerFails(t *testing.T) {
	tests := []struct {
		name  string
		probe health.Probe
		want  string
	}{
		{"panics", func(context.Context, string) error { panic("boom") }, "health check panicked: boom"},
		{"ends its goroutine", func(context.Context, string) error { runtime.Goexit(); return nil }, "health check ended without an answer"},
		{"passes too late", func(ctx context.Context, _ string) error { <-ctx.Done(); return nil }, "context deadline exceeded"},
		{"hangs", func(context.Context, string) error { time.Sleep(time.Minute); return nil }, health.ErrHangs.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []string
				c := health.New(health.Config{}, tt.probe, func(string, bool) {}, func(e health.Event) { got = append(got, e.Err.Error()) })
				c.Keep([]string{"a"})
				time.Sleep(2 * time.Second)
				c.Close()
				if len(got) != 1 || got[0] != tt.want {
					t.Errorf("errors %q, want %q", got, tt.want)
				}
				time.Sleep(time.Minute) // for the one that hangs
			})
		})
	}
}

func TestIntervalsAreLengthenedByChance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interval, most = 10 * time.Second, 12 * time.Second
		var at []time.Time
		c := health.New(health.Config{Interval: interval, IdleInterval: interval, Jitter: 20}, func(context.Context, string) error {
			at = append(at, time.Now())
			return nil
		}, func(string, bool) {}, nil)
		c.Seed(1)
		c.Keep([]string{"a"})
		time.Sleep(time.Hour)
		c.Close()
		var gaps []time.Duration
		for i := range at[1:] {
			gaps = append(gaps, at[i+1].Sub(at[i]))
		}
		low, high := slices.Min(gaps), slices.Max(gaps)
		if low < interval || high > most {
			t.Errorf("checks were %v to %v apart, want within %v to %v", low, high, interval, most)
		}
		if low > interval+200*time.Millisecond || high < most-200*time.Millisecond {
			t.Errorf("checks were only %v to %v apart, want them spread over %v to %v", low, high, interval, most)
		}
	})
}

// However a call and a check meet, the next check is not left to the idle interval.
func TestUseIsNeverMissed(t *testing.T) {
	for range 300 {
		synctest.Test(t, func(t *testing.T) {
			var checks atomic.Int32
			c := health.New(health.Config{Jitter: 1}, func(context.Context, string) error {
				checks.Add(1)
				return nil
			}, func(string, bool) {}, nil)
			defer c.Close()
			go c.Keep([]string{"a"})
			for range 3 {
				go c.Used()
			}
			time.Sleep(11 * time.Second)
			if n := checks.Load(); n != 2 {
				t.Errorf("%d checks in 11s, want 2: the cluster was used with the first", n)
			}
		})
	}
}

func TestUseThatMeetsTheLoopIsNotMissed(t *testing.T) {
	if n := health.MissedUses(5000); n > 0 {
		t.Errorf("%d of 5000 calls were missed", n)
	}
}

// Checks take place when the snapshot says, also after plans have changed.
func TestChecksKeepToThePlan(t *testing.T) {
	tests := []struct {
		name   string
		change func(c *health.Checker)
	}{
		{"nothing", func(*health.Checker) {}},
		{"used", (*health.Checker).Used},
		{"reconfigure", func(c *health.Checker) { c.Reconfigure(health.Config{IdleInterval: 20 * time.Second, Jitter: 100}) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				checked := map[string]time.Time{}
				c := health.New(health.Config{Jitter: 100}, func(context.Context, string) error { return nil }, func(string, bool) {},
					func(e health.Event) { checked[e.Host] = time.Now() })
				c.Seed(1)
				c.Keep(ids(10))
				time.Sleep(5 * time.Second)
				tt.change(c)
				synctest.Wait()
				plan := c.Snapshot()
				time.Sleep(time.Until(slices.MaxFunc(plan, func(a, b health.HostInfo) int { return a.Next.Compare(b.Next) }).Next))
				synctest.Wait()
				now := c.Snapshot()
				c.Close()
				for i, h := range plan {
					if h.Next.IsZero() || now[i].Checked.Before(h.Next) {
						t.Errorf("%s was planned for %v and not checked since", h.ID, h.Next)
					}
					// Some are due twice in that time; the others can be held to the moment.
					if now[i].Passed == h.Passed+1 && !checked[h.ID].Equal(h.Next) {
						t.Errorf("%s was planned for %v and checked at %v", h.ID, h.Next, checked[h.ID])
					}
				}
			})
		})
	}
}

func TestIdleClusterIsCheckedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var checks atomic.Int32
		c := health.New(health.Config{}, func(context.Context, string) error { checks.Add(1); return nil }, func(string, bool) {}, nil)
		defer c.Close()
		c.Keep([]string{"a"})
		time.Sleep(time.Hour)
		if n := checks.Load(); n < 54 || n > 61 {
			t.Errorf("%d checks in an idle hour, want one every 60s to 66s", n)
		}
	})
}

func TestToldFunctionsMayCallBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		var c *health.Checker
		made := make(chan bool)
		c = health.New(health.Config{UnhealthyThreshold: 1}, func(context.Context, string) error { return errors.New("ill") },
			func(id string, failing bool) {
				<-made
				told = append(told, fmt.Sprint(id, " ", failing))
				c.Snapshot()
				c.Used()
				c.Reconfigure(health.Config{UnhealthyThreshold: 1})
				if failing {
					c.Keep([]string{"b"})
				}
				if id == "b" {
					c.Keep(nil)
				}
			}, nil)
		close(made)
		c.Keep([]string{"a"})
		synctest.Wait()
		c.Close()
		if want := []string{"a true", "a false", "b true", "b false"}; !slices.Equal(told, want) {
			t.Errorf("told %v, want %v", told, want)
		}
	})
}

func TestClose(t *testing.T) {
	tests := []struct {
		name  string
		probe health.Probe
		took  time.Duration
	}{
		{"nothing under way", func(context.Context, string) error { return nil }, 0},
		{"a probe heeds its context", func(ctx context.Context, _ string) error {
			<-ctx.Done()
			time.Sleep(300 * time.Millisecond)
			return ctx.Err()
		}, 300 * time.Millisecond},
		{"a probe ignores its context", func(context.Context, string) error { time.Sleep(time.Minute); return nil }, time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told, closed atomic.Bool
				c := health.New(health.Config{UnhealthyThreshold: 1}, tt.probe, func(string, bool) { told.Store(true) },
					func(health.Event) {
						if closed.Load() {
							t.Error("note was called after Close")
						}
					})
				c.Keep([]string{"a"})
				synctest.Wait()
				start := time.Now()
				var wg sync.WaitGroup
				for range 2 {
					wg.Go(c.Close)
				}
				wg.Wait()
				closed.Store(true)
				if took := time.Since(start); took != tt.took {
					t.Errorf("Close took %v, want %v", took, tt.took)
				}
				if told.Load() {
					t.Error("the end of a probe by Close counted as a failure")
				}
				c.Close()
				c.Used()
				c.Keep([]string{"b"})
				c.Reconfigure(health.Config{})
				time.Sleep(time.Hour)
			})
		})
	}
}

// A probe that ends because of Close says nothing about its host.
func TestCloseIsNoFailure(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan bool)
			c := health.New(health.Config{UnhealthyThreshold: 1}, func(ctx context.Context, id string) error {
				if id == "h000" {
					return nil
				}
				<-ctx.Done()
				return ctx.Err()
			}, func(id string, _ bool) { t.Errorf("set was called for %s", id) }, func(e health.Event) {
				<-release // so that Close and the others' ends are found together
				if e.Err != nil {
					t.Errorf("note was called: %+v", e)
				}
			})
			c.Keep(ids(10))
			synctest.Wait()
			go func() { synctest.Wait(); close(release) }()
			c.Close()
		})
	}
}

func TestCloseWaitsForSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, closed := make(chan bool), make(chan bool)
		c := health.New(health.Config{UnhealthyThreshold: 1}, func(context.Context, string) error { return errors.New("ill") },
			func(string, bool) { <-release }, nil)
		c.Keep([]string{"a"})
		synctest.Wait()
		go func() { c.Close(); close(closed) }()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("Close did not wait for set")
		default:
		}
		close(release)
		<-closed
	})
}

// Whatever happens: a host changes its standing exactly when its thresholds say so, what set was told
// is what the snapshot says, no host is checked twice at once, and no more hosts than the bound.
func TestRandomLife(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomLife(t, rand.New(rand.NewPCG(seed, 5))) })
		})
	}
}

// model repeats the thresholds from what note tells.
type model struct {
	t      *testing.T
	cfg    health.Config
	mu     sync.Mutex
	told   map[string]bool // by set
	passed map[string]int
	failed map[string]int
	events int
}

func (m *model) set(id string, failing bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.told[id] == failing {
		m.t.Errorf("%s: failing=%v was told twice", id, failing)
	}
	m.told[id] = failing
}

func (m *model) note(e health.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events++
	if e.Err == nil {
		m.passed[e.Host], m.failed[e.Host] = m.passed[e.Host]+1, 0
	} else {
		m.passed[e.Host], m.failed[e.Host] = 0, m.failed[e.Host]+1
	}
	before := e.Failing != e.Changed
	want := before && m.passed[e.Host] < m.cfg.HealthyThreshold || !before && m.failed[e.Host] >= m.cfg.UnhealthyThreshold
	if e.Failing != want || m.told[e.Host] != want {
		m.t.Errorf("%+v after %d passed and %d failed, told %v; want failing=%v",
			e, m.passed[e.Host], m.failed[e.Host], m.told[e.Host], want)
	}
}

// keep forgets what the hosts that go have passed and failed.
func (m *model) keep(ids []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.told {
		if !slices.Contains(ids, id) {
			delete(m.passed, id)
			delete(m.failed, id)
		}
	}
}

func randomLife(t *testing.T, r *rand.Rand) {
	all := ids(30)
	m := &model{t: t, told: map[string]bool{}, passed: map[string]int{}, failed: map[string]int{},
		cfg: health.Config{HealthyThreshold: 1 + r.IntN(3), UnhealthyThreshold: 1 + r.IntN(3), IdleInterval: 20 * time.Second}}
	for _, id := range all {
		m.told[id] = false
	}
	release := make(chan bool)
	var mu sync.Mutex
	under, chance := map[string]bool{}, rand.New(rand.NewPCG(r.Uint64(), 1))
	c := health.New(m.cfg, func(ctx context.Context, id string) error {
		mu.Lock()
		if under[id] {
			t.Errorf("%s is checked twice at once", id)
		}
		under[id] = true
		what := chance.IntN(100)
		mu.Unlock()
		defer func() { mu.Lock(); under[id] = false; mu.Unlock() }()
		switch {
		case what < 50:
			return nil
		case what < 80:
			return errors.New("ill")
		case what < 90:
			<-ctx.Done()
			return ctx.Err()
		case what < 95:
			select {
			case <-time.After(time.Duration(what-85) * 5 * time.Second): // ignores its context for a while
			case <-release:
			}
			return nil
		}
		panic("boom")
	}, m.set, m.note)
	c.Seed(r.Uint64())
	kept := all
	c.Keep(kept)
	for range 100 {
		switch n := r.IntN(10); {
		case n < 6:
			time.Sleep(time.Duration(r.IntN(15000)) * time.Millisecond)
		case n < 8:
			c.Used()
		default:
			r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			kept = slices.Clone(all[:r.IntN(len(all)+1)])
			synctest.Wait()
			m.keep(kept)
			c.Keep(kept)
		}
		synctest.Wait()
		check(t, c, m, kept)
	}
	close(release)
	c.Close()
	if m.events == 0 {
		t.Error("no check was ever noted: the test shows nothing")
	}
}

func check(t *testing.T, c *health.Checker, m *model, kept []string) {
	t.Helper()
	var known []string
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, h := range c.Snapshot() {
		known = append(known, h.ID)
		if m.told[h.ID] != h.Failing || m.passed[h.ID] != h.Passed || m.failed[h.ID] != h.Failed {
			t.Errorf("snapshot %+v; told failing=%v after %d passed and %d failed", h, m.told[h.ID], m.passed[h.ID], m.failed[h.ID])
		}
	}
	if want := slices.Sorted(slices.Values(kept)); !slices.Equal(known, want) {
		t.Errorf("the snapshot has %v, want %v", known, want)
	}
	for id, failing := range m.told {
		if failing && !slices.Contains(kept, id) {
			t.Errorf("%s is gone and still marked as failing", id)
		}
	}
	if flying, probes, _ := c.Load(); flying > health.MaxAtOnce || flying < 0 || probes < flying {
		t.Errorf("%d checks in %d goroutines, want at most %d", flying, probes, health.MaxAtOnce)
	}
}

// For the race detector.
func TestConcurrentUse(t *testing.T) {
	c := health.New(health.Config{Interval: 10 * time.Millisecond, IdleInterval: 10 * time.Millisecond}, func(_ context.Context, id string) error {
		if id < "d" {
			return errors.New("ill")
		}
		return nil
	}, func(string, bool) {}, func(health.Event) {})
	all := strings.Fields("a b c d e f")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for i := range 500 {
				c.Used()
				switch i % 20 {
				case 5:
					c.Keep(all[:r.IntN(len(all)+1)])
				case 10:
					c.Reconfigure(health.Config{Interval: 20 * time.Millisecond, UnhealthyThreshold: 1})
				case 15:
					c.Snapshot()
				}
			}
		})
	}
	wg.Wait()
	c.Close()
}

func TestUsedDoesNotAllocate(t *testing.T) {
	c := health.New(health.Config{}, func(context.Context, string) error { return nil }, func(string, bool) {}, nil)
	defer c.Close()
	if n := testing.AllocsPerRun(100, c.Used); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func BenchmarkUsed(b *testing.B) {
	c := health.New(health.Config{}, func(context.Context, string) error { return nil }, func(string, bool) {}, nil)
	defer c.Close()
	c.Keep(ids(10))
	b.Run("one_core", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.Used()
		}
	})
	b.Run("all_cores", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				c.Used()
			}
		})
	})
}
