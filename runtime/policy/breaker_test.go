package policy_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/policy/breaker"
)

// Calls through a whole chain are refused exactly when sony/gobreaker would refuse them.
func TestBreakerLikeGobreaker(t *testing.T) {
	const openFor = 5 * time.Second
	for _, failures := range []int{1, 3, 5} {
		for _, halfOpen := range []int{1, 2} {
			t.Run(fmt.Sprintf("%d failures, %d half-open", failures, halfOpen), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					tg := under(t, call.State, policy.Spec{Breaker: &policy.Breaker{ConsecutiveFailures: failures, Open: openFor, HalfOpen: halfOpen},
						Timeout: &policy.Timeout{Total: time.Minute}, Limits: &policy.Limits{MaxRequests: 10}})
					theirs := gobreaker.NewCircuitBreaker[any](gobreaker.Settings{MaxRequests: uint32(halfOpen), Timeout: openFor,
						ReadyToTrip: func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= failures }})
					rnd, refused := rand.New(rand.NewPCG(uint64(failures), uint64(halfOpen))), 0
					for i := range 3000 {
						time.Sleep(time.Duration(rnd.Int64N(int64(openFor) / 2)))
						var result error
						if rnd.IntN(10) < 5 {
							result = errMaybe
						}
						err := do(t.Context(), tg, call.Desc{}, failing(result))
						_, want := theirs.Execute(func() (any, error) { return nil, result })
						open := errors.Is(want, gobreaker.ErrOpenState)
						if open != (fault.ReasonOf(err) == fault.PolicyRejected) || !open && !errors.Is(err, result) {
							t.Fatalf("call %d: got %v, gobreaker says %v", i, err, want)
						}
						if open {
							refused++
						}
					}
					if refused < 100 {
						t.Errorf("only %d refused: nothing was compared", refused)
					}
				})
			})
		}
	}
}

func TestBreakerPer(t *testing.T) {
	d := func(op, path string) call.Desc { return call.Desc{Op: op, Resource: path} }
	daprs := policy.Resilience{Breaker: &policy.DaprBreaker{Named: policy.Named{Name: "Resiliency r/b"}, Config: breaker.Config{Trip: trip(t, "consecutiveFailures >= 1")}}}
	tests := []struct {
		name  string
		make  func(t *testing.T) *call.Target
		first call.Desc // opens it
		open  []call.Desc
		other []call.Desc
	}{
		{"target", func(t *testing.T) *call.Target {
			return under(t, call.Service, policy.Spec{Breaker: &policy.Breaker{ConsecutiveFailures: 1}})
		}, d("GET", "a"), []call.Desc{d("GET", "a"), d("POST", "b")}, nil},
		{"operation of a service: verb and path", func(t *testing.T) *call.Target {
			return under(t, call.Service, policy.Spec{Breaker: &policy.Breaker{ConsecutiveFailures: 1, Per: "operation"}})
		}, d("GET", "a"), []call.Desc{d("GET", "a")}, []call.Desc{d("GET", "b"), d("PUT", "a")}},
		{"operation of a component, whatever the key", func(t *testing.T) *call.Target {
			return under(t, call.State, policy.Spec{Breaker: &policy.Breaker{ConsecutiveFailures: 1, Per: "operation"}})
		}, d("get", "k1"), []call.Desc{d("get", "k2")}, []call.Desc{d("set", "k1")}},
		{"method in Resiliency", func(t *testing.T) *call.Target { return dapr(t, call.Service, daprs) },
			d("GET", "a"), []call.Desc{d("GET", "a"), d("POST", "a")}, []call.Desc{d("GET", "b")}},
		{"component in Resiliency", func(t *testing.T) *call.Target { return dapr(t, call.State, daprs) },
			d("get", "a"), []call.Desc{d("set", "b")}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tg := tt.make(t)
				if err := do(t.Context(), tg, tt.first, failing(errMaybe)); !errors.Is(err, errMaybe) {
					t.Fatal(err)
				}
				for _, d := range tt.open {
					if err := do(t.Context(), tg, d, fine); call.OutcomeOf(err, call.Status{}) != call.Rejected || fault.RuleOf(err) == "" {
						t.Errorf("%s %s: %v (policy %q), want the breaker's refusal", d.Op, d.Resource, err, fault.RuleOf(err))
					}
				}
				for _, d := range tt.other {
					if err := do(t.Context(), tg, d, fine); err != nil {
						t.Errorf("%s %s has its own: %v", d.Op, d.Resource, err)
					}
				}
			})
		})
	}
}

func trip(t testing.TB, expr string) *breaker.Trip {
	t.Helper()
	tr, err := breaker.ParseTrip(expr)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestWhatCountsAsFailure(t *testing.T) {
	for o, counts := range map[call.Outcome]bool{call.AppError: true, call.Unavailable: true, call.ConnectFailure: true, call.Reset: true, call.Deadline: true,
		call.NotFound: false, call.Conflict: false, call.Throttled: false, call.Canceled: false, call.Permanent: false} {
		synctest.Test(t, func(t *testing.T) {
			tg := under(t, call.State, policy.Spec{Breaker: &policy.Breaker{ConsecutiveFailures: 1}})
			err := map[call.Outcome]error{call.AppError: errOf(fault.Internal, 0), call.Unavailable: errOf(fault.Unavailable, 0), call.ConnectFailure: errNever, call.Reset: errMaybe,
				call.Deadline: errOf(fault.Deadline, 0), call.NotFound: errOf(fault.NotFound, 0), call.Conflict: errOf(fault.Conflict, 0), call.Throttled: errOf(fault.Exhausted, 0),
				call.Canceled: errOf(fault.Canceled, 0), call.Permanent: errOf(fault.Invalid, 0)}[o]
			_ = do(t.Context(), tg, call.Desc{}, failing(err))
			if open := do(t.Context(), tg, call.Desc{}, fine) != nil; open != counts {
				t.Errorf("%v opened the breaker: %v", o, open)
			}
		})
	}
}

func TestRetriesOpenTheBreakerAndStopThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, tg := range map[string]*call.Target{
			"policy": under(t, call.State, policy.Spec{Retry: &policy.Retry{Max: ptr(10)}, Breaker: &policy.Breaker{ConsecutiveFailures: 3}}),
			"Resiliency": dapr(t, call.State, policy.Resilience{Retry: &policy.DaprRetry{Max: 10, Pause: time.Second},
				Breaker: &policy.DaprBreaker{Config: breaker.Config{Trip: trip(t, "consecutiveFailures >= 3")}}}),
		} {
			n := 0
			err := do(t.Context(), tg, call.Desc{Safety: call.Safe}, func(context.Context) error { n++; return errMaybe })
			if n != 3 || call.OutcomeOf(err, call.Status{}) != call.Rejected {
				t.Errorf("%s: %d attempts, then %v; want the breaker's refusal after 3", name, n, err)
			}
		}
	})
}

func TestDaprSeries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorded{}
		e := policy.New(policy.Options{Record: rec})
		n := policy.Named{Resource: "r", Name: "Resiliency r/x"}
		res := &policy.Resilience{Timeout: &policy.DaprTimeout{Named: n, After: time.Second}, Retry: &policy.DaprRetry{Named: n, Max: 1, Pause: time.Second},
			Breaker: &policy.DaprBreaker{Named: n, Config: breaker.Config{Trip: trip(t, "consecutiveFailures >= 2")}}}
		e.Swap(&policy.Snapshot{Resilience: func(*call.Target) *policy.Resilience { return res }})
		_ = do(t.Context(), governed(e, call.State, "orders"), call.Desc{}, until)
		want := []string{"state circuitbreaker 1", "count retry 0", "count circuitbreaker 1", "count timeout 0", "activate timeout 0", "activate retry 0",
			"count circuitbreaker 1", "count timeout 0", "activate timeout 0", "state circuitbreaker 3", "activate circuitbreaker 3"}
		if got := rec.all(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
	})
}

// A caller that gave up says nothing about the destination: neither a success nor, as every
// error does in Resiliency, a failure.
func TestWhoGaveUpDoesNotCount(t *testing.T) {
	errCanceled := errOf(fault.Canceled, fault.SentMaybe)
	for name, tg := range map[string]*call.Target{
		"policy":     under(t, call.State, policy.Spec{Breaker: &policy.Breaker{ConsecutiveFailures: 2}}),
		"Resiliency": dapr(t, call.State, policy.Resilience{Breaker: &policy.DaprBreaker{Config: breaker.Config{Trip: trip(t, "consecutiveFailures >= 2")}}}),
	} {
		for i, err := range []error{errCanceled, errCanceled, errMaybe, errCanceled, errMaybe} {
			if got := do(t.Context(), tg, call.Desc{}, failing(err)); !errors.Is(got, err) {
				t.Errorf("%s: call %d: %v", name, i, got)
			}
		}
		if err := do(t.Context(), tg, call.Desc{}, fine); call.OutcomeOf(err, call.Status{}) != call.Rejected {
			t.Errorf("%s: two failures, and the breaker is closed (%v)", name, err)
		}
	}
}
