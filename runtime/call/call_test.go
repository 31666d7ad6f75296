package call_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

type key string

func TestLayersNestAndMayReplaceTheOutcome(t *testing.T) {
	refused := errors.New("refused")
	replaced := errors.New("replaced")
	tests := []struct {
		name   string
		layers func(log *[]string) []call.Layer
		fn     error
		want   error
		log    []string
	}{
		{"in order, and out in reverse", func(log *[]string) []call.Layer {
			return []call.Layer{recorder{name: "a", log: log}, recorder{name: "b", log: log}}
		}, nil, nil, []string{"enter a", "enter b", "run", "exit b: ok", "exit a: ok"}},

		{"an inner layer replaces a failure", func(log *[]string) []call.Layer {
			return []call.Layer{recorder{name: "a", log: log}, recorder{name: "b", log: log, exit: func(error) error { return replaced }}}
		}, errFirst, replaced, []string{"enter a", "enter b", "run", "exit b: first", "exit a: replaced"}},

		{"an outer layer turns a failure into success", func(log *[]string) []call.Layer {
			return []call.Layer{recorder{name: "a", log: log, exit: func(error) error { return nil }}}
		}, errFirst, nil, []string{"enter a", "run", "exit a: first"}},

		{"a layer that refuses is not exited, those outside are", func(log *[]string) []call.Layer {
			return []call.Layer{recorder{name: "a", log: log}, recorder{name: "b", log: log, refuse: refused}, recorder{name: "c", log: log}}
		}, nil, refused, []string{"enter a", "enter b", "exit a: refused"}},

		{"the outermost refuses", func(log *[]string) []call.Layer {
			return []call.Layer{recorder{name: "a", log: log, refuse: refused}}
		}, nil, refused, []string{"enter a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var log []string
			tg := target(&call.Chain{Layers: tt.layers(&log)})
			_, err := call.Do(t.Context(), tg, call.Desc{}, func(context.Context) (int, error) {
				log = append(log, "run")
				return 0, tt.fn
			})
			if !errors.Is(err, tt.want) || (tt.want == nil) != (err == nil) {
				t.Errorf("outcome %v, want %v", err, tt.want)
			}
			if d := cmp.Diff(tt.log, log); d != "" {
				t.Errorf("order (-want +got):\n%s", d)
			}
		})
	}
}

func TestLayersChangeTheContextOfTheCall(t *testing.T) {
	var log []string
	with := func(k, v string) func(context.Context) context.Context {
		return func(ctx context.Context) context.Context { return context.WithValue(ctx, key(k), v) }
	}
	tg := target(&call.Chain{Layers: []call.Layer{recorder{name: "a", log: &log, ctx: with("a", "1")}, recorder{name: "b", log: &log, ctx: with("b", "2")}}})
	got, err := call.Do(t.Context(), tg, call.Desc{}, func(ctx context.Context) (string, error) {
		return ctx.Value(key("a")).(string) + ctx.Value(key("b")).(string), nil
	})
	if err != nil || got != "12" {
		t.Errorf("got %q, %v; want both layers' values", got, err)
	}
}

func TestALayerSeesTheCallItStandsAround(t *testing.T) {
	d := call.Desc{Op: "get", Resource: "k", Safety: call.Safe, Streamed: true}
	var entered, exited call.Desc
	var attempts int
	var outcome error
	tg := target(nil)
	tg.SetChain(&call.Chain{Layers: []call.Layer{probe{
		enter: func(c *call.Call) { entered = c.Desc },
		exit:  func(c *call.Call) { exited, attempts, outcome = c.Desc, c.Attempt, c.Err },
	}}})
	_, _ = call.Do(t.Context(), tg, d, func(context.Context) (int, error) { return 0, errFirst })
	if entered != d || exited != d {
		t.Errorf("Enter saw %+v, Exit saw %+v, want %+v", entered, exited, d)
	}
	if attempts != 1 || !errors.Is(outcome, errFirst) {
		t.Errorf("Exit saw %d attempts and %v, want 1 and %v", attempts, outcome, errFirst)
	}
}

type probe struct{ enter, exit func(*call.Call) }

func (p probe) Enter(ctx context.Context, c *call.Call) (context.Context, error) {
	p.enter(c)
	return ctx, nil
}

func (p probe) Exit(c *call.Call, err error) error { p.exit(c); return err }

func TestBegunCallsKeepTheirChain(t *testing.T) {
	var log []string
	tg := target(&call.Chain{Layers: []call.Layer{recorder{name: "old", log: &log}}})
	c, err := call.Begin(t.Context(), tg, call.Desc{})
	if err != nil {
		t.Fatal(err)
	}
	tg.SetChain(&call.Chain{Layers: []call.Layer{recorder{name: "new", log: &log}, recorder{name: "newer", log: &log}}})
	if err := c.End(nil); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"enter old", "exit old: ok"}, log); d != "" {
		t.Errorf("a reload changed a call in progress (-want +got):\n%s", d)
	}
}

// retries answers the n-th question with pauses[n]; beyond the list the answer is no.
func retries(pauses ...time.Duration) call.Retry {
	return func(c *call.Call, _ error) (time.Duration, bool) {
		if c.Attempt > len(pauses) {
			return 0, false
		}
		return pauses[c.Attempt-1], true
	}
}

func TestRetryPausesBetweenAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var at []time.Duration
		tg := target(&call.Chain{Retry: retries(time.Second, 0, 3*time.Second)})
		n, err := call.Do(t.Context(), tg, call.Desc{}, func(context.Context) (int, error) {
			at = append(at, time.Since(start))
			return len(at), errFirst
		})
		if !errors.Is(err, errFirst) || n != 4 {
			t.Errorf("got %d, %v; want the last attempt's result", n, err)
		}
		want := []time.Duration{0, time.Second, time.Second, 4 * time.Second}
		if d := cmp.Diff(want, at); d != "" {
			t.Errorf("attempts (-want +got):\n%s", d)
		}
	})
}

func TestASuccessfulRepeatLeavesNoError(t *testing.T) {
	tg := target(&call.Chain{Retry: retries(0, 0, 0)})
	n := 0
	got, err := call.Do(t.Context(), tg, call.Desc{}, func(context.Context) (int, error) {
		if n++; n < 3 {
			return -1, errFirst
		}
		return n, nil
	})
	if got != 3 || err != nil {
		t.Errorf("got %d, %v; want 3 and no error", got, err)
	}
}

func TestContextThatEndsInAPauseKeepsTheLastError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		start, n := time.Now(), 0
		tg := target(&call.Chain{Retry: retries(time.Second, time.Second, time.Second)})
		_, err := call.Do(ctx, tg, call.Desc{}, func(context.Context) (int, error) { n++; return 0, errFirst })
		if !errors.Is(err, errFirst) {
			t.Errorf("got %v, want the last attempt's error", err)
		}
		if n != 2 || time.Since(start) != 1500*time.Millisecond {
			t.Errorf("%d attempts in %v, want 2 in 1.5s: the pause must end with the context", n, time.Since(start))
		}
	})
}

func TestAnEndedContextForbidsRepeatsWithoutAPause(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	_, _ = call.Do(ctx, target(&call.Chain{Retry: retries(0, 0)}), call.Desc{}, func(context.Context) (int, error) {
		n++
		cancel()
		return 0, errFirst
	})
	if n != 1 {
		t.Errorf("%d attempts on an ended context, want 1", n)
	}
}

func TestWhatIsNeverRepeated(t *testing.T) {
	always := call.Retry(func(*call.Call, error) (time.Duration, bool) { return 0, true })
	tests := []struct {
		name  string
		desc  call.Desc
		chain *call.Chain
		done  func(c *call.Call)
	}{
		{"a streamed call", call.Desc{Streamed: true}, &call.Chain{Retry: always}, func(c *call.Call) { c.Done(errFirst) }},
		{"an answer that began", call.Desc{}, &call.Chain{Retry: always}, func(c *call.Call) { c.Done(errFirst); c.Final() }},
		{"a success", call.Desc{}, &call.Chain{Retry: always}, func(c *call.Call) { c.Done(nil) }},
		{"no policy", call.Desc{}, nil, func(c *call.Call) { c.Done(errFirst) }},
		{"a policy without retries", call.Desc{}, &call.Chain{}, func(c *call.Call) { c.Done(errFirst) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := call.Begin(t.Context(), target(tt.chain), tt.desc)
			if err != nil {
				t.Fatal(err)
			}
			if !c.Next() {
				t.Fatal("there is always a first attempt")
			}
			tt.done(c)
			if c.Next() {
				t.Errorf("attempt %d was granted", c.Attempt)
			}
			_ = c.End(nil)
		})
	}
}

func TestPanicEndsItsOwnCallOnly(t *testing.T) {
	var log []string
	tg := target(&call.Chain{Layers: []call.Layer{recorder{name: "a", log: &log}}})
	_, err := call.Do(t.Context(), tg, call.Desc{}, func(context.Context) (int, error) { panic("boom") })
	if fault.Of(err) != fault.Internal {
		t.Fatalf("code %v, want internal", fault.Of(err))
	}
	if s := err.Error(); !strings.Contains(s, "boom") || !strings.Contains(s, "call_test.go") {
		t.Errorf("the error has neither the value nor the stack: %s", s)
	}
	if len(log) != 2 || !strings.HasPrefix(log[1], "exit a: panic: boom") {
		t.Errorf("the layers did not see the panic as an outcome: %v", log)
	}
}

// A layer or a service that keeps a *Call beyond End must not see the next call: the one who
// keeps it reads an emptied value, and a second End of it must not poison the pool.
func TestCallsAreEmptiedWhenTheyEnd(t *testing.T) {
	c, err := call.Begin(t.Context(), target(nil), call.Desc{Op: "secret", Resource: "k"})
	if err != nil {
		t.Fatal(err)
	}
	c.Next()
	c.Done(errFirst)
	_ = c.End(errFirst)
	if c.Op != "" || c.Resource != "" || c.Err != nil || c.Target != nil || c.Attempt != 0 || c.Context() != nil {
		t.Errorf("an ended call still holds %+v", c.Desc)
	}
}

// Every call in progress has a Call of its own: with reuse too early, two callers would share
// one and see each other's operation. Run with -race this also finds writes after End.
func TestCallsInProgressAreNotShared(t *testing.T) {
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			op := string(rune('a' + worker))
			var log []string
			chain := &call.Chain{Layers: []call.Layer{recorder{name: op, log: &log}}, Retry: retries(0)}
			tg := target(chain)
			for range 300 {
				c, err := call.Begin(context.Background(), tg, call.Desc{Op: op})
				if err != nil {
					t.Error(err)
					return
				}
				for c.Next() {
					if c.Op != op || c.Target != tg {
						t.Errorf("worker %s holds the call of %s", op, c.Op)
					}
					c.Done(errFirst)
				}
				if c.Attempt != 2 {
					t.Errorf("%d attempts, want 2", c.Attempt)
				}
				_ = c.End(nil)
			}
		})
	}
	wg.Wait()
}

func TestNamesOfKinds(t *testing.T) {
	// Metric labels: appending is fine, changing is not.
	want := []string{"service", "state", "publish", "deliver", "configuration", "lock", "secret", "binding", "crypto", "app", "cache", "kind_11"}
	for i, w := range want {
		if got := call.Kind(i).String(); got != w {
			t.Errorf("kind %d is %q, want %q", i, got, w)
		}
	}
}

func nothing(context.Context) (int, error) { return 1, nil }

func TestACallWithoutPolicyAllocatesNothing(t *testing.T) {
	ctx := t.Context()
	for name, tg := range map[string]*call.Target{"nil chain": target(nil), "empty chain": target(&call.Chain{})} {
		t.Run(name, func(t *testing.T) {
			if n := testing.AllocsPerRun(1000, func() { _, _ = call.Do(ctx, tg, call.Desc{Op: "get", Resource: "k"}, nothing) }); n != 0 {
				t.Errorf("%v allocations per call, want none", n)
			}
		})
	}
}

func BenchmarkDo(b *testing.B) {
	ctx := b.Context()
	quiet := probe{enter: func(*call.Call) {}, exit: func(*call.Call) {}}
	for _, bb := range []struct {
		name  string
		chain *call.Chain
	}{{"nil", nil}, {"one layer", &call.Chain{Layers: []call.Layer{quiet}}}, {"four layers", &call.Chain{Layers: []call.Layer{quiet, quiet, quiet, quiet}}}} {
		b.Run(bb.name, func(b *testing.B) {
			tg := target(bb.chain)
			b.ReportAllocs()
			for b.Loop() {
				_, _ = call.Do(ctx, tg, call.Desc{Op: "get", Resource: "k"}, nothing)
			}
		})
	}
}
