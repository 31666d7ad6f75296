package policy_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
)

// race runs a call as services do that can hedge; fn is told which attempt it is, by the order
// in which they begin.
func race(ctx context.Context, tg *call.Target, d call.Desc, drop func(int), fn func(ctx context.Context, n int) (int, error)) (int, error) {
	c, err := call.Begin(ctx, tg, d)
	if err != nil {
		return 0, err
	}
	var n atomic.Int32
	out, err := call.Run(c, 0, nil, drop, func(ctx context.Context, _ *call.Try, _ int) (int, call.Status, error) {
		out, err := fn(ctx, int(n.Add(1)))
		return out, call.Status{}, err
	})
	return out, c.End(err)
}

var safe = call.Desc{Op: "get", Safety: call.Safe}

func hedged(t testing.TB, h policy.Hedge, more policy.Spec) *call.Target {
	more.Hedge = &h
	return under(t, call.State, more)
}

func after(d time.Duration, ctx context.Context) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestHedging(t *testing.T) {
	tests := []struct {
		name  string
		h     policy.Hedge
		d     call.Desc
		takes []time.Duration // of the attempts in order; negative: fails then
		want  int             // who wins; 0: error
		took  time.Duration
		tries int
	}{
		{"a fast answer is alone", policy.Hedge{Delay: "100ms"}, safe, millis(50), 1, 50 * time.Millisecond, 1},
		{"the second wins", policy.Hedge{Delay: "100ms"}, safe, millis(1000, 50), 2, 150 * time.Millisecond, 2},
		{"the first wins", policy.Hedge{Delay: "100ms"}, safe, millis(150, 1000), 1, 150 * time.Millisecond, 2},
		{"two more", policy.Hedge{Delay: "100ms", Max: 2}, safe, millis(1000, 1000, 10), 3, 210 * time.Millisecond, 3},
		{"not a third of two", policy.Hedge{Delay: "100ms"}, safe, millis(1000, 500, 1), 2, 600 * time.Millisecond, 2},
		{"a failure waits for the other", policy.Hedge{Delay: "100ms"}, safe, millis(-150, 300), 2, 400 * time.Millisecond, 2},
		{"two failures are one", policy.Hedge{Delay: "100ms"}, safe, millis(-150, -300), 0, 400 * time.Millisecond, 2},
		{"a failure before the delay is no reason", policy.Hedge{Delay: "100ms"}, safe, millis(-50), 0, 50 * time.Millisecond, 1},
		{"only what is safe", policy.Hedge{Delay: "100ms"}, call.Desc{Op: "set", Safety: call.Idempotent}, millis(1000, 50), 1, time.Second, 1},
		{"nothing streamed", policy.Hedge{Delay: "100ms"}, call.Desc{Safety: call.Safe, Streamed: true}, millis(1000, 50), 1, time.Second, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var tries, stopped atomic.Int32
				got, err := race(t.Context(), hedged(t, tt.h, policy.Spec{}), tt.d, nil, func(ctx context.Context, n int) (int, error) {
					tries.Add(1)
					d := tt.takes[n-1]
					if err := after(max(d, -d), ctx); err != nil {
						stopped.Add(1)
						return 0, err
					}
					if d < 0 {
						return 0, errMaybe
					}
					return n, nil
				})
				took := time.Since(start)
				synctest.Wait()
				if got != tt.want || (err == nil) != (tt.want > 0) || took != tt.took || int(tries.Load()) != tt.tries {
					t.Errorf("attempt %d (%v) after %v of %d; want %d after %v of %d", got, err, took, tries.Load(), tt.want, tt.took, tt.tries)
				}
				losers := 0
				if tt.want > 0 {
					for i := range tt.tries {
						if i+1 != tt.want && tt.takes[i] > 0 {
							losers++
						}
					}
				}
				if int(stopped.Load()) != losers {
					t.Errorf("%d attempts were stopped, want %d", stopped.Load(), losers)
				}
			})
		})
	}
}

func TestResultsThatComeTooLateAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dropped sync.Map
		tg := hedged(t, policy.Hedge{Delay: "100ms", Max: 2}, policy.Spec{Limits: &policy.Limits{MaxRequests: 3, MaxPending: -1}})
		got, err := race(t.Context(), tg, safe, func(n int) { dropped.Store(n, true) }, func(ctx context.Context, n int) (int, error) {
			time.Sleep([]time.Duration{time.Second, 300 * time.Millisecond, 3 * time.Second}[n-1]) // deaf to its context
			return n, nil
		})
		if got != 2 || err != nil {
			t.Fatal(got, err)
		}
		if n := inProgress(t, tg, 3); n != 2 {
			t.Errorf("%d losers hold a place, want 2 until they end", n)
		}
		time.Sleep(5 * time.Second)
		for n, want := range map[int]bool{1: true, 2: false, 3: true} {
			if _, ok := dropped.Load(n); ok != want {
				t.Errorf("result %d dropped: %v", n, ok)
			}
		}
		if n := inProgress(t, tg, 3); n != 0 {
			t.Errorf("%d places are lost", n)
		}
	})
}

// inProgress counts the places of a target that are taken, of max.
func inProgress(t *testing.T, tg *call.Target, max int) int {
	t.Helper()
	var open []*call.Call
	for range max {
		c, err := call.Begin(t.Context(), tg, call.Desc{})
		if err != nil {
			t.Fatal(err)
		}
		if !c.Next() {
			_ = c.End(c.Err)
			break
		}
		open = append(open, c)
	}
	for _, c := range open {
		_ = c.End(nil)
	}
	return max - len(open)
}

// A hedge that waited for a place would wait for the one of the attempt it is to replace.
func TestAHedgeDoesNotWaitForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := hedged(t, policy.Hedge{Delay: "10ms"}, policy.Spec{Limits: &policy.Limits{MaxRequests: 1}})
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		got, err := race(ctx, tg, safe, nil, func(ctx context.Context, n int) (int, error) { return n, after(time.Second, ctx) })
		if got != 1 || err != nil || time.Since(start) != time.Second {
			t.Errorf("attempt %d, %v after %v; want the first after a second", got, err, time.Since(start))
		}
	})
}

func TestHedgesCountAsRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := hedged(t, policy.Hedge{Delay: "10ms", Max: 3}, policy.Spec{Limits: &policy.Limits{MaxRetries: 1}})
		var n atomic.Int32
		_, _ = race(t.Context(), tg, safe, nil, func(ctx context.Context, _ int) (int, error) { n.Add(1); return 0, after(time.Second, ctx) })
		if n.Load() != 2 {
			t.Errorf("%d attempts, want the first and one more", n.Load())
		}
	})
}

func TestAPanicInARaceIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := hedged(t, policy.Hedge{Delay: "10ms"}, policy.Spec{})
		_, err := race(t.Context(), tg, safe, nil, func(ctx context.Context, n int) (int, error) { time.Sleep(20 * time.Millisecond); panic(n) })
		if fault.Of(err) != fault.Internal {
			t.Errorf("got %v", err)
		}
	})
}

func TestARetryFollowsALostRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := hedged(t, policy.Hedge{Delay: "10ms"}, policy.Spec{Retry: &policy.Retry{Max: ptr(1)}, Timeout: &policy.Timeout{PerTry: time.Second}})
		got, err := race(t.Context(), tg, safe, nil, func(ctx context.Context, n int) (int, error) {
			if n < 3 {
				time.Sleep(20 * time.Millisecond)
				return 0, errMaybe
			}
			return n, nil
		})
		if got != 3 || err != nil {
			t.Errorf("got %d, %v; want the third", got, err)
		}
	})
}

func TestHedgeByPercentile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := hedged(t, policy.Hedge{Delay: "p90"}, policy.Spec{})
		for i := range 640 { // one in twenty is slow
			d := 10 * time.Millisecond
			if i%20 == 0 {
				d = time.Second
			}
			var tries atomic.Int32
			_, _ = race(t.Context(), tg, safe, nil, func(ctx context.Context, n int) (int, error) {
				tries.Add(1)
				if n > 1 {
					return n, after(10*time.Millisecond, ctx)
				}
				return n, after(d, ctx)
			})
			switch got := tries.Load(); {
			case i < 63 && got != 1:
				t.Fatalf("call %d: %d attempts before anything is known", i, got)
			case i >= 130 && d == time.Second && got != 2:
				t.Fatalf("call %d: a slow one was not made again", i)
			}
			synctest.Wait()
		}
		start := time.Now()
		_, _ = race(t.Context(), tg, safe, nil, func(ctx context.Context, n int) (int, error) {
			if n == 1 {
				return n, after(time.Second, ctx)
			}
			return n, nil
		})
		if took := time.Since(start); took != 10*time.Millisecond {
			t.Errorf("the hedge began after %v, want nine tenths' 10ms", took)
		}
	})
}

// Under the race detector: many calls that hedge, lose, fail and retry at once.
func TestManyRaces(t *testing.T) {
	tg := hedged(t, policy.Hedge{Delay: "50us", Max: 2}, policy.Spec{Retry: &policy.Retry{Max: ptr(1), Backoff: policy.Backoff{Base: 1, Max: 1}, Budget: &policy.Budget{Ratio: 1}},
		Breaker: &policy.Breaker{FailureRate: 90}, Limits: &policy.Limits{MaxRequests: 64}, Timeout: &policy.Timeout{Total: time.Minute, PerTry: 10 * time.Second}})
	var wg sync.WaitGroup
	var given, dropped, made atomic.Int64
	for w := range 8 {
		wg.Go(func() {
			for i := range 100 {
				_, err := race(t.Context(), tg, safe, func(n int) {
					if n > 0 { // an answer
						dropped.Add(1)
					}
				}, func(ctx context.Context, n int) (int, error) {
					time.Sleep(time.Duration((w+i+n)%4) * 30 * time.Microsecond)
					if (w*i+n)%5 == 0 {
						return 0, errMaybe
					}
					made.Add(1)
					return n, nil
				})
				if err == nil {
					given.Add(1)
				}
			}
		})
	}
	wg.Wait()
	for start := time.Now(); made.Load() != given.Load()+dropped.Load() && time.Since(start) < 10*time.Second; {
		time.Sleep(time.Millisecond)
	}
	if made.Load() != given.Load()+dropped.Load() || given.Load() == 0 {
		t.Errorf("%d answers, %d given and %d dropped", made.Load(), given.Load(), dropped.Load())
	}
}
