package policy_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
)

func never(code fault.Code, r fault.Reason) error {
	return fault.New("t", code, "not sent").With(r).WithSent(fault.SentNever)
}

func TestBuiltInRetries(t *testing.T) {
	maybe := fault.New("t", fault.Unavailable, "maybe sent").WithSent(fault.SentMaybe)
	tests := []struct {
		name   string
		kind   call.Kind
		safety call.Safety
		stream bool
		errs   []error // of the attempts; the last repeats
		at     []time.Duration
		want   error
	}{
		{"a peer that cannot be reached is tried four times, a second apart", call.Service, call.Unsafe, false,
			[]error{never(fault.Unavailable, "")}, seconds(0, 1, 2, 3), never(fault.Unavailable, "")},
		{"until it is there", call.Service, call.Unsafe, false, []error{never(fault.Unavailable, ""), never(fault.Unavailable, ""), nil}, seconds(0, 1, 2), nil},
		{"what may have been sent is not repeated", call.Service, call.Unsafe, false, []error{maybe}, seconds(0), maybe},
		{"unless a repetition does no harm", call.Service, call.Idempotent, false, []error{maybe, nil}, seconds(0, 1), nil},
		{"nor what nobody knows about", call.Service, call.Unsafe, false, []error{errors.New("x")}, seconds(0), errors.New("x")},
		{"what will fail the same way again is not repeated", call.Service, call.Unsafe, false, []error{never(fault.Unauthenticated, "")}, seconds(0), never(fault.Unauthenticated, "")},
		{"a sidecar whose app is down has answered", call.Service, call.Unsafe, false, []error{never(fault.Unavailable, fault.AppUnreachable)}, seconds(0), never(fault.Unavailable, fault.AppUnreachable)},
		{"a second failure of another kind ends it", call.Service, call.Unsafe, false, []error{never(fault.Unavailable, ""), maybe}, seconds(0, 1), maybe},
		{"a streamed body is gone", call.Service, call.Unsafe, true, []error{never(fault.Unavailable, "")}, seconds(0), never(fault.Unavailable, "")},
		{"the own app is not retried", call.App, call.Unsafe, false, []error{never(fault.Unavailable, "")}, seconds(0), never(fault.Unavailable, "")},
		{"a store is not retried", call.State, call.Unsafe, false, []error{never(fault.Unavailable, "")}, seconds(0), never(fault.Unavailable, "")},
		{"nor a broker", call.Publish, call.Unsafe, false, []error{never(fault.Unavailable, "")}, seconds(0), never(fault.Unavailable, "")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tg := &call.Target{Kind: tt.kind}
				policy.New(policy.Options{}).Govern(tg)
				start, at := time.Now(), []time.Duration{}
				_, err := call.Do(t.Context(), tg, call.Desc{Streamed: tt.stream, Safety: tt.safety}, func(context.Context) (int, error) {
					at = append(at, time.Since(start))
					return 0, tt.errs[min(len(at), len(tt.errs))-1]
				})
				if d := cmp.Diff(tt.at, at); d != "" {
					t.Errorf("attempts (-want +got):\n%s", d)
				}
				if fault.Of(err) != fault.Of(tt.want) {
					t.Errorf("outcome %v, want %v", err, tt.want)
				}
			})
		})
	}
}

func seconds(ns ...int) (out []time.Duration) {
	for _, n := range ns {
		out = append(out, time.Duration(n)*time.Second)
	}
	return out
}

func TestInboundCallsAreNotRepeated(t *testing.T) {
	for _, kind := range []call.Kind{call.Service, call.App, call.Deliver} {
		tg := &call.Target{Kind: kind, Direction: call.Inbound}
		if govern(policy.Options{}, tg).Retry != nil {
			t.Errorf("%v: the caller repeats its call, or the messaging service its event; not both", kind)
		}
	}
}

// ended is an observer that keeps what it was told.
type ended struct {
	attempts []int
	errs     []error
	took     []time.Duration
}

func (e *ended) CallEnded(c *call.Call, err error, took time.Duration) {
	e.attempts, e.errs, e.took = append(e.attempts, c.Attempt), append(e.errs, err), append(e.took, took)
}

func TestObserverSeesEachCallOnceWithItsOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got ended
		tg := &call.Target{Kind: call.Service}
		policy.New(policy.Options{Observe: &got}).Govern(tg)
		n := 0
		_, _ = call.Do(t.Context(), tg, call.Desc{}, func(context.Context) (int, error) {
			time.Sleep(100 * time.Millisecond)
			if n++; n < 3 {
				return 0, never(fault.Unavailable, "")
			}
			return 0, nil
		})
		want := ended{attempts: []int{3}, errs: []error{nil}, took: []time.Duration{2300 * time.Millisecond}}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(ended{})); d != "" {
			t.Errorf("three attempts are one call (-want +got):\n%s", d)
		}
	})
}

// Whatever layers join a chain later: observe counts what they refuse, so it comes first.
func TestObserveIsOutermost(t *testing.T) {
	for name, direction := range map[string]call.Direction{"outbound": call.Outbound, "inbound": call.Inbound} {
		var got ended
		c := govern(policy.Options{Observe: &got}, &call.Target{Direction: direction})
		if len(c.Layers) == 0 {
			t.Fatalf("%s: no layer observes", name)
		}
		tg := &call.Target{}
		refused := errors.New("refused")
		tg.SetChain(&call.Chain{Layers: append(c.Layers[:1:1], refuse{refused})})
		_, err := call.Begin(t.Context(), tg, call.Desc{})
		if !errors.Is(err, refused) || len(got.errs) != 1 || !errors.Is(got.errs[0], refused) {
			t.Errorf("%s: the first layer was told %v; it must see what the second refuses", name, got.errs)
		}
	}
}

type refuse struct{ err error }

func (r refuse) Enter(context.Context, *call.Call) (context.Context, error) { return nil, r.err }
func (r refuse) Exit(_ *call.Call, err error) error                         { return err }

func TestNothingSetCostsNothing(t *testing.T) {
	for name, c := range map[string]*call.Chain{
		"state": govern(policy.Options{}, &call.Target{Kind: call.State}), "inbound": govern(policy.Options{}, &call.Target{Direction: call.Inbound})} {
		if len(c.Layers) != 0 || c.Retry != nil {
			t.Errorf("%s: %d layers, retry %v; want an empty chain", name, len(c.Layers), c.Retry != nil)
		}
	}
}

type quiet struct{}

func (quiet) CallEnded(*call.Call, error, time.Duration) {}

func TestChainsAllocateNothing(t *testing.T) {
	tg := &call.Target{Kind: call.Service}
	policy.New(policy.Options{Observe: quiet{}}).Govern(tg)
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() { _, _ = call.Do(ctx, tg, call.Desc{Op: "GET"}, one) }); n != 0 {
		t.Errorf("%v allocations per observed call, want none", n)
	}
}

func one(context.Context) (int, error) { return 1, nil }

func BenchmarkChain(b *testing.B) {
	ctx := b.Context()
	for _, bb := range []struct {
		name string
		o    policy.Options
	}{{"defaults", policy.Options{}}, {"observed", policy.Options{Observe: quiet{}}}} {
		b.Run(bb.name, func(b *testing.B) {
			tg := &call.Target{Kind: call.Service}
			policy.New(bb.o).Govern(tg)
			b.ReportAllocs()
			for b.Loop() {
				_, _ = call.Do(ctx, tg, call.Desc{Op: "GET"}, one)
			}
		})
	}
}

// govern is the chain that an engine gives a target.
func govern(o policy.Options, t *call.Target) *call.Chain {
	policy.New(o).Govern(t)
	return t.Chain()
}
