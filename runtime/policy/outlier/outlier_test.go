package outlier_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/runtime/policy/outlier"
)

// Whatever happens, no more hosts are out than the percentage allows, or one with AlwaysEjectOne;
// and what set was told is what the snapshot says.
func TestNeverTooManyOut(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomLife(t, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

func randomLife(t *testing.T, r *rand.Rand) {
	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprintf("h%02d", i))
	}
	var mu sync.Mutex
	told := map[string]bool{}
	cfg, size, most := randomConfig(r), len(ids), 0
	d := outlier.New(cfg, func(id string, ejected bool) {
		mu.Lock()
		defer mu.Unlock()
		if told[id] == ejected {
			t.Errorf("%s: ejected=%v was told twice", id, ejected)
		}
		told[id] = ejected
	}, nil)
	defer d.Close()
	d.Seed(r.Uint64())
	d.Keep(ids)
	for range 400 {
		did := ""
		switch n := r.IntN(100); {
		case n < 70:
			did = "report"
			h, what, times := d.Host(ids[r.IntN(size)]), outlier.Result(r.IntN(5)), r.IntN(12)
			for range times {
				h.Report(what)
			}
		case n < 85:
			did = "sleep"
			time.Sleep(time.Duration(r.IntN(15000)) * time.Millisecond)
		case n < 90:
			did = "uneject"
			d.Uneject(ids[r.IntN(len(ids))])
		case n < 96:
			did = "keep"
			r.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
			size = 1 + r.IntN(len(ids))
			d.Keep(ids[:size])
		default:
			did = "reconfigure"
			cfg = randomConfig(r)
			d.Reconfigure(cfg)
		}
		synctest.Wait()
		out := outOf(d)
		most = max(most, len(out))
		if allowed := allowed(cfg, size); len(out) > allowed {
			t.Fatalf("after %s: %d of %d are out, want at most %d (%+v)", did, len(out), size, allowed, cfg)
		}
		mu.Lock()
		maps.DeleteFunc(told, func(_ string, ejected bool) bool { return !ejected })
		got := slices.Sorted(maps.Keys(told))
		mu.Unlock()
		if !slices.Equal(got, out) {
			t.Fatalf("after %s: set was told of %v, the snapshot has %v", did, got, out)
		}
	}
	if most == 0 {
		t.Error("nothing was ever ejected: the test shows nothing")
	}
}

func randomConfig(r *rand.Rand) outlier.Config {
	c := outlier.Config{Consecutive5xx: 1 + r.IntN(5), ConsecutiveLocalOrigin: r.IntN(5), SplitLocalOrigin: r.IntN(2) == 0,
		MaxEjectionPercent: 1 + r.IntN(100), AlwaysEjectOne: ptr(r.IntN(2) == 0), BaseEjection: time.Duration(1+r.IntN(30)) * time.Second}
	if r.IntN(2) == 0 {
		c.FailurePercentage = &outlier.FailurePercentage{Threshold: 20, MinHosts: 1, Volume: 5}
	}
	if r.IntN(2) == 0 {
		c.SuccessRate = &outlier.SuccessRate{StdevFactor: 0.5, MinHosts: 2, Volume: 5}
	}
	return c
}

func allowed(c outlier.Config, size int) int {
	n := c.MaxEjectionPercent * size / 100
	if n == 0 && *c.AlwaysEjectOne {
		return 1
	}
	return n
}

func outOf(d *outlier.Detector) []string {
	var out []string
	for _, h := range d.Snapshot() {
		if h.Ejected {
			out = append(out, h.ID)
		}
	}
	return out
}

func TestJitterBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const base, jitter = 30 * time.Second, 10 * time.Second
		var lengths []time.Duration
		d := outlier.New(outlier.Config{Consecutive5xx: 1, BaseEjection: base, MaxEjection: base, MaxEjectionJitter: jitter},
			func(string, bool) {}, func(e outlier.Event) {
				if e.Ejected {
					lengths = append(lengths, e.For)
				}
			})
		defer d.Close()
		d.Seed(1)
		for range 1000 {
			d.Host("a").Report(outlier.Failure5xx)
			d.Uneject("a")
		}
		low, high := slices.Min(lengths), slices.Max(lengths)
		if low < base || high > base+jitter {
			t.Errorf("ejections took %v to %v, want them within %v to %v", low, high, base, base+jitter)
		}
		// A thousand draws leave the outer tenths of the range empty with a chance of 0.9^1000.
		if low > base+jitter/10 || high < base+jitter*9/10 {
			t.Errorf("ejections took %v to %v only, want them spread over %v to %v", low, high, base, base+jitter)
		}
	})
}

// Nobody holds a lock while telling: set and note may use the detector.
func TestToldFunctionsMayCallBack(t *testing.T) {
	var d *outlier.Detector
	var told []string
	d = outlier.New(outlier.Config{Consecutive5xx: 1}, func(id string, ejected bool) {
		told = append(told, fmt.Sprintf("set %s %v", id, ejected))
		d.Snapshot()
		if ejected {
			d.Uneject(id)
		}
	}, func(e outlier.Event) {
		told = append(told, fmt.Sprintf("note %s %v", e.Host, e.Ejected))
		d.Host("b").Report(outlier.Success)
	})
	defer d.Close()
	d.Host("a").Report(outlier.Failure5xx)
	want := []string{"set a true", "note a true", "set a false", "note a false"}
	if !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

// A change made while an older one is being told waits its turn, and its maker does not wait.
func TestToldInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		busy := make(chan bool)
		d := outlier.New(outlier.Config{Consecutive5xx: 1}, func(id string, ejected bool) {
			if ejected {
				<-busy
			}
			told = append(told, fmt.Sprint(id, " ", ejected))
		}, nil)
		defer d.Close()
		go d.Host("a").Report(outlier.Failure5xx)
		synctest.Wait()
		d.Uneject("a")
		if len(told) > 0 {
			t.Fatalf("told %v before the ejection was", told)
		}
		close(busy)
		synctest.Wait()
		if want := []string{"a true", "a false"}; !slices.Equal(told, want) {
			t.Errorf("told %v, want %v", told, want)
		}
	})
}

func TestPanicWhileTellingLosesNothingElse(t *testing.T) {
	var told []string
	d := outlier.New(outlier.Config{Consecutive5xx: 1, MaxEjectionPercent: 100}, func(id string, ejected bool) {
		if id == "a" && ejected {
			panic("set fails")
		}
		told = append(told, fmt.Sprint(id, " ", ejected))
	}, nil)
	defer d.Close()
	func() {
		defer func() { _ = recover() }()
		d.Host("a").Report(outlier.Failure5xx)
	}()
	d.Host("b").Report(outlier.Failure5xx)
	if want := []string{"b true"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

func TestIdleIsNotWoken(t *testing.T) {
	all := &outlier.FailurePercentage{MinHosts: 1, Volume: 1}
	tests := []struct {
		name string
		cfg  outlier.Config
		do   func(d *outlier.Detector)
		want bool
	}{
		{"nothing happened", outlier.Config{Consecutive5xx: 1, FailurePercentage: all}, func(*outlier.Detector) {}, false},
		{"a call for an interval detector", outlier.Config{FailurePercentage: all},
			func(d *outlier.Detector) { d.Host("a").Report(outlier.Success) }, true},
		{"neutral calls", outlier.Config{FailurePercentage: all},
			func(d *outlier.Detector) { d.Host("a").Report(outlier.Neutral) }, false},
		{"calls without an interval detector", outlier.Config{Consecutive5xx: 5},
			func(d *outlier.Detector) { d.Host("a").Report(outlier.Failure5xx) }, false},
		{"the interval is over", outlier.Config{FailurePercentage: all}, func(d *outlier.Detector) {
			d.Host("a").Report(outlier.Success)
			time.Sleep(11 * time.Second)
		}, false},
		{"a host is out", outlier.Config{Consecutive5xx: 1},
			func(d *outlier.Detector) { d.Host("a").Report(outlier.Failure5xx) }, true},
		{"a host came back", outlier.Config{Consecutive5xx: 1}, func(d *outlier.Detector) {
			d.Host("a").Report(outlier.Failure5xx)
			time.Sleep(31 * time.Second)
		}, false},
		{"a host was brought back", outlier.Config{Consecutive5xx: 1}, func(d *outlier.Detector) {
			d.Host("a").Report(outlier.Failure5xx)
			d.Uneject("a")
		}, false},
		{"closed", outlier.Config{Consecutive5xx: 1, FailurePercentage: all}, func(d *outlier.Detector) {
			d.Host("a").Report(outlier.Failure5xx)
			d.Close()
			d.Host("b").Report(outlier.Failure5xx)
		}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := outlier.New(tt.cfg, func(string, bool) {}, nil)
				defer d.Close()
				tt.do(d)
				synctest.Wait()
				if got := d.Armed(); got != tt.want {
					t.Errorf("timer set: %v, want %v", got, tt.want)
				}
			})
		})
	}
}

func TestHostForgottenEjectsNobody(t *testing.T) {
	told := 0
	d := outlier.New(outlier.Config{Consecutive5xx: 1, MaxEjectionPercent: 100}, func(string, bool) { told++ }, nil)
	defer d.Close()
	d.Keep([]string{"a", "b"})
	old := d.Host("a")
	d.Keep([]string{"b"})
	old.Report(outlier.Failure5xx)
	d.Keep([]string{"a", "b"})
	old.Report(outlier.Failure5xx)
	if told > 0 {
		t.Errorf("set was called %d times for a host that was forgotten", told)
	}
	if d.Host("a") == old {
		t.Error("the host came back with its old standing")
	}
	d.Host("a").Report(outlier.Failure5xx)
	if told != 1 {
		t.Errorf("set was called %d times for the new host, want once", told)
	}
}

func TestCloseWaitsForTheSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back, closed := make(chan bool), make(chan bool)
		d := outlier.New(outlier.Config{Consecutive5xx: 1}, func(_ string, ejected bool) {
			if !ejected {
				<-back
			}
		}, nil)
		d.Host("a").Report(outlier.Failure5xx)
		time.Sleep(31 * time.Second) // the timer's goroutine is in set
		go func() { d.Close(); close(closed) }()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("Close did not wait for the sweep")
		default:
		}
		close(back)
		<-closed
		d.Close()
		d.Host("a").Report(outlier.Failure5xx)
		if out := outOf(d); len(out) > 0 {
			t.Errorf("%v ejected after Close", out)
		}
	})
}

// The caller's Config stays the caller's.
func TestConfigIsCopied(t *testing.T) {
	cfg := outlier.Config{Consecutive5xx: 1, AlwaysEjectOne: ptr(false), MaxEjectionPercent: 1}
	d := outlier.New(cfg, func(string, bool) {}, nil)
	defer d.Close()
	*cfg.AlwaysEjectOne = true
	d.Host("a").Report(outlier.Failure5xx)
	if out := outOf(d); len(out) > 0 {
		t.Errorf("%v ejected by a change to the caller's Config", out)
	}
}

// For the race detector, and for calls counted exactly once across sweeps.
func TestConcurrentUse(t *testing.T) {
	all := &outlier.FailurePercentage{Threshold: 60, MinHosts: 1, Volume: 1}
	cfgs := []outlier.Config{
		{Consecutive5xx: 3, MaxEjectionPercent: 50, Interval: 10 * time.Millisecond, BaseEjection: time.Millisecond, FailurePercentage: all},
		{ConsecutiveGateway: 2, MaxEjectionPercent: 100, Interval: 20 * time.Millisecond, BaseEjection: time.Millisecond},
		{},
	}
	var mu sync.Mutex
	told := map[string]bool{}
	d := outlier.New(cfgs[0], func(id string, ejected bool) {
		mu.Lock()
		defer mu.Unlock()
		if told[id] == ejected {
			t.Errorf("%s: ejected=%v was told twice", id, ejected)
		}
		told[id] = ejected
	}, func(outlier.Event) {})
	ids := strings.Fields("a b c d e f")
	d.Keep(ids)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for i := range 3000 {
				id := ids[r.IntN(len(ids))]
				d.Host(id).Report(outlier.Result(r.IntN(5)))
				switch i % 200 {
				case 50:
					d.Keep(ids[:1+r.IntN(len(ids))])
				case 100:
					d.Reconfigure(cfgs[r.IntN(len(cfgs))])
				case 150:
					d.Uneject(id)
					d.Snapshot()
				}
			}
		})
	}
	wg.Wait()
	d.Reconfigure(outlier.Config{})
	d.Close()
	mu.Lock()
	defer mu.Unlock()
	for id, ejected := range told {
		if ejected {
			t.Errorf("%s is still marked with no detector on", id)
		}
	}
}

// A call that meets a sweep is in that interval or starts the next: it is never left uncounted with
// no timer set.
func TestReportDuringSweepIsJudged(t *testing.T) {
	d := outlier.New(outlier.Config{FailurePercentage: &outlier.FailurePercentage{}, Interval: time.Hour}, func(string, bool) {}, nil)
	defer d.Close()
	var hosts []*outlier.Host
	for i := range 100 {
		hosts = append(hosts, d.Host(fmt.Sprint(i)))
	}
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 500 {
		hosts[0].Report(outlier.Success)
		calls, start := r.IntN(4000), make(chan bool)
		var wg sync.WaitGroup
		wg.Go(func() {
			<-start
			for n := range calls {
				hosts[n%len(hosts)].Report(outlier.Success)
			}
		})
		wg.Go(func() { <-start; d.Sweep() })
		close(start)
		wg.Wait()
		waits := slices.ContainsFunc(d.Snapshot(), func(h outlier.HostInfo) bool { return h.OK > 0 })
		if waits && !d.Armed() {
			t.Fatalf("round %d: calls wait to be judged and no timer is set", i)
		}
		d.Sweep()
	}
}

func TestEnforce(t *testing.T) {
	tests := []struct{ percent, least, most int }{{0, 0, 0}, {30, 270, 330}, {100, 1000, 1000}}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.percent), func(t *testing.T) {
			ejected := 0
			d := outlier.New(outlier.Config{FailurePercentage: &outlier.FailurePercentage{MinHosts: 1, Volume: 1, Enforce: &tt.percent}},
				func(_ string, out bool) {
					if out {
						ejected++
					}
				}, nil)
			defer d.Close()
			d.Seed(1)
			for range 1000 {
				d.Host("a").Report(outlier.Failure5xx)
				d.Sweep()
				d.Uneject("a")
			}
			if ejected < tt.least || ejected > tt.most {
				t.Errorf("%d of 1000 outliers were ejected, want %d to %d", ejected, tt.least, tt.most)
			}
		})
	}
}

// Hosts that are all alike are never outliers, however the mean is rounded.
func TestAllAlikeAreNoOutliers(t *testing.T) {
	for hosts := 5; hosts < 9; hosts++ {
		for failed := 1; failed < 100; failed++ {
			d := outlier.New(outlier.Config{SuccessRate: &outlier.SuccessRate{StdevFactor: 0.01}}, func(id string, _ bool) {
				t.Errorf("%d hosts with %d of 100 calls failed: %s is ejected", hosts, failed, id)
			}, nil)
			for i := range hosts {
				for n := range 100 {
					r := outlier.Success
					if n < failed {
						r = outlier.Failure5xx
					}
					d.Host(fmt.Sprint(i)).Report(r)
				}
			}
			d.Sweep()
			d.Close()
		}
	}
}

func TestCallsAreCountedOnce(t *testing.T) {
	d := outlier.New(outlier.Config{FailurePercentage: &outlier.FailurePercentage{}, Interval: time.Hour}, func(string, bool) {}, nil)
	defer d.Close()
	h := d.Host("a")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				h.Report(outlier.Success)
				h.Report(outlier.Failure5xx)
				h.Report(outlier.FailureLocal)
			}
		})
	}
	wg.Wait()
	if s := d.Snapshot()[0]; s.OK != 4000 || s.Failed != 4000 || s.Local != 4000 {
		t.Errorf("counted %d, %d and %d calls, want 4000 each", s.OK, s.Failed, s.Local)
	}
}

// A host keeps its counters on lines of its own; 128 bytes is the pair of lines a core fetches.
func TestHotHalfOfHostIsPadded(t *testing.T) {
	if strconv.IntSize == 64 && outlier.HotEnd != 128 {
		t.Errorf("the counters' half of a Host has %d bytes, want 128", outlier.HotEnd)
	}
}

func TestReportDoesNotAllocate(t *testing.T) {
	d := outlier.New(outlier.Config{Consecutive5xx: 1 << 30, FailurePercentage: &outlier.FailurePercentage{}, Interval: time.Hour},
		func(string, bool) {}, nil)
	defer d.Close()
	h := d.Host("a")
	h.Report(outlier.Success)
	for r := outlier.Success; r <= outlier.Neutral; r++ {
		if n := testing.AllocsPerRun(100, func() { h.Report(r) }); n != 0 {
			t.Errorf("result %d: %v allocations, want none", r, n)
		}
	}
}

func BenchmarkReport(b *testing.B) {
	consecutive := outlier.Config{Consecutive5xx: 1 << 30, ConsecutiveGateway: 1 << 30}
	interval := consecutive
	interval.FailurePercentage = &outlier.FailurePercentage{}
	tests := []struct {
		name string
		cfg  outlier.Config
		r    outlier.Result
	}{
		{"success", consecutive, outlier.Success},
		{"success_counted", interval, outlier.Success},
		{"failure_counted", interval, outlier.FailureGateway},
	}
	for _, tt := range tests {
		d := outlier.New(tt.cfg, func(string, bool) {}, nil)
		defer d.Close()
		b.Run(tt.name, func(b *testing.B) {
			h := d.Host("a")
			b.ReportAllocs()
			for b.Loop() {
				h.Report(tt.r)
			}
		})
		b.Run(tt.name+"/one_host_all_cores", func(b *testing.B) {
			h := d.Host("a")
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					h.Report(tt.r)
				}
			})
		})
	}
}

func BenchmarkSweep(b *testing.B) {
	const hosts = 1000
	d := outlier.New(outlier.Config{SuccessRate: &outlier.SuccessRate{}, Interval: time.Hour}, func(string, bool) {}, nil)
	defer d.Close()
	hs := make([]*outlier.Host, hosts)
	for i := range hs {
		hs[i] = d.Host(fmt.Sprint(i))
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, h := range hs {
			h.Report(outlier.Success)
		}
		d.Sweep()
	}
}
