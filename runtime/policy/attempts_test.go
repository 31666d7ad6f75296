package policy_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
)

// until waits for the context, as a component does that answers too late.
func until(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestTimeouts(t *testing.T) {
	second := time.Second
	tests := []struct {
		name    string
		timeout policy.Timeout
		retry   *policy.Retry
		fn      func(context.Context) error
		took    time.Duration
		tries   int
		code    fault.Code
		sent    fault.Sent
	}{
		{"an attempt", policy.Timeout{PerTry: second}, nil, until, second, 1, fault.Deadline, fault.SentMaybe},
		{"the whole call", policy.Timeout{Total: second}, nil, until, second, 1, fault.Deadline, fault.SentMaybe},
		{"the shorter one counts", policy.Timeout{Total: 5 * second, PerTry: second}, nil, until, second, 1, fault.Deadline, fault.SentMaybe},
		{"each attempt has its own", policy.Timeout{Total: 10 * second, PerTry: second}, &policy.Retry{Max: ptr(2), On: policy.Words{"deadline"}, Backoff: policy.Backoff{Base: 1, Max: 1}}, until, 3 * second, 3, fault.Deadline, fault.SentMaybe},
		{"the total ends an attempt that has time left", policy.Timeout{Total: 1500 * time.Millisecond, PerTry: second}, &policy.Retry{On: policy.Words{"deadline"}, Backoff: policy.Backoff{Base: 1, Max: 1}}, until, 1500 * time.Millisecond, 2, fault.Deadline, fault.SentMaybe},
		{"what was certainly not sent stays so", policy.Timeout{PerTry: second}, nil, func(ctx context.Context) error {
			<-ctx.Done()
			return errNever
		}, second, 1, fault.Deadline, fault.SentNever},
		{"an answer that comes just in time is one", policy.Timeout{PerTry: second}, nil, func(ctx context.Context) error {
			<-ctx.Done()
			return errOf(fault.Conflict, fault.SentMaybe)
		}, second, 1, fault.Conflict, fault.SentMaybe},
		{"so is success", policy.Timeout{PerTry: second}, nil, func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		}, second, 1, fault.OK, fault.SentUnknown},
		{"an attempt that looks at its context only now and then", policy.Timeout{PerTry: second}, nil, func(ctx context.Context) error {
			for ctx.Err() == nil {
				time.Sleep(300 * time.Millisecond)
			}
			return ctx.Err()
		}, 1200 * time.Millisecond, 1, fault.Deadline, fault.SentMaybe},
		{"a child of its context", policy.Timeout{PerTry: second}, nil, func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			return until(ctx)
		}, second, 1, fault.Deadline, fault.SentMaybe},
	}
	for _, tt := range tests {
		for _, kind := range []call.Kind{call.State, call.Service} {
			t.Run(kind.String()+": "+tt.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					tg := under(t, kind, policy.Spec{Timeout: &tt.timeout, Retry: tt.retry})
					if tt.retry == nil {
						tg = under(t, kind, policy.Spec{Timeout: &tt.timeout, Retry: &policy.Retry{Max: ptr(0)}})
					}
					start, n := time.Now(), 0
					err := do(t.Context(), tg, call.Desc{Safety: call.Safe}, func(ctx context.Context) error {
						n++
						_, shown := ctx.Deadline()
						if shown == (kind == call.Service) {
							t.Errorf("a deadline is shown: %v; an invocation's ends with the head of the answer", shown)
						}
						return tt.fn(ctx)
					})
					if took := time.Since(start); fault.Of(err) != tt.code || fault.SentOf(err) != tt.sent || n != tt.tries || took < tt.took || took > tt.took+10*time.Millisecond {
						t.Errorf("got %v (%v), %d attempts in %v; want %v (%v), %d in %v", err, fault.SentOf(err), n, took, tt.code, tt.sent, tt.tries, tt.took)
					}
					if tt.code == fault.Deadline && fault.RuleOf(err) != "p" {
						t.Errorf("the error names policy %q", fault.RuleOf(err))
					}
				})
			})
		}
	}
}

func TestTheCallersOwnDeadlineIsNotThePolicys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := under(t, call.State, policy.Spec{Timeout: &policy.Timeout{Total: time.Minute, PerTry: 30 * time.Second}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := do(ctx, tg, call.Desc{}, until)
		if fault.Of(err) != fault.Deadline || fault.RuleOf(err) != "" {
			t.Errorf("got %v, said to be of policy %q", err, fault.RuleOf(err))
		}
	})
}

func TestReadingAnAnswerIsNotTimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := under(t, call.Service, policy.Spec{Timeout: &policy.Timeout{Total: time.Second, PerTry: time.Second}})
		c, err := call.Begin(t.Context(), tg, call.Desc{Op: "GET"})
		if err != nil || !c.Next() {
			t.Fatal(err)
		}
		ctx := c.Context()
		done := ctx.Done()
		c.Ended(nil, call.Status{HTTP: 200, Open: true})
		time.Sleep(time.Hour)
		if err := ctx.Err(); err != nil {
			t.Errorf("an hour into the answer: %v", err)
		}
		if err := c.End(nil); err != nil {
			t.Error(err)
		}
		<-done // the call's end ends it
	})
}

func TestAPauseThatOutlastsTheTotalIsNotBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := under(t, call.State, policy.Spec{Timeout: &policy.Timeout{Total: time.Second}, Retry: &policy.Retry{On: policy.Words{"throttled"}}})
		start := time.Now()
		want := fault.New("t", fault.Exhausted, "later").WithAfter(2 * time.Second)
		if err := do(t.Context(), tg, call.Desc{Safety: call.Safe}, failing(want)); !errors.Is(err, want) || time.Since(start) != 0 {
			t.Errorf("got %v after %v; want the attempt's own error at once", err, time.Since(start))
		}
	})
}

func TestRetrySafety(t *testing.T) {
	codes := []fault.Sent{fault.SentUnknown, fault.SentNever, fault.SentMaybe}
	for _, safety := range []call.Safety{call.Unsafe, call.Conditional, call.Idempotent, call.Safe} {
		for _, sent := range codes {
			for _, atLeastOnce := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					tg := under(t, call.State, policy.Spec{Retry: &policy.Retry{AtLeastOnce: atLeastOnce}})
					n := 0
					err := do(t.Context(), tg, call.Desc{Safety: safety}, func(context.Context) error { n++; return errOf(fault.Unavailable, sent) })
					want := 1
					if safety >= call.Idempotent || sent == fault.SentNever || atLeastOnce {
						want = 3
					}
					if n != want || fault.SentOf(err) != sent {
						t.Errorf("safety %d, sent %d, at least once %v: %d attempts, want %d; the error says sent %d", safety, sent, atLeastOnce, n, want, fault.SentOf(err))
					}
				})
			}
		}
	}
}

// A call whose last attempt was never sent may have been sent by an earlier one.
func TestTheErrorOfACallRemembersWhatMayHaveBeenSent(t *testing.T) {
	tests := []struct {
		name string
		errs []error
		spec policy.Spec
		want fault.Sent
		code fault.Code
	}{
		{"never, never", []error{errNever, errNever}, policy.Spec{}, fault.SentNever, fault.Unavailable},
		{"never, maybe", []error{errNever, errMaybe}, policy.Spec{}, fault.SentMaybe, fault.Unavailable},
		{"maybe, never", []error{errMaybe, errNever}, policy.Spec{}, fault.SentMaybe, fault.Unavailable},
		{"unknown, never", []error{errOf(fault.Unavailable, fault.SentUnknown), errNever}, policy.Spec{}, fault.SentMaybe, fault.Unavailable},
		{"maybe, refused by the breaker", []error{errMaybe, nil}, policy.Spec{Breaker: &policy.Breaker{ConsecutiveFailures: 1}}, fault.SentMaybe, fault.Unavailable},
		{"never, refused by the breaker", []error{errNever, nil}, policy.Spec{Breaker: &policy.Breaker{ConsecutiveFailures: 1}}, fault.SentNever, fault.Unavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt.spec.Retry = &policy.Retry{Max: ptr(1)}
				n := 0
				err := do(t.Context(), under(t, call.State, tt.spec), call.Desc{Safety: call.Idempotent}, func(context.Context) error { n++; return tt.errs[n-1] })
				if fault.SentOf(err) != tt.want || fault.Of(err) != tt.code {
					t.Errorf("got %v, sent %d; want sent %d", err, fault.SentOf(err), tt.want)
				}
			})
		})
	}
}

func TestRetryOutcomes(t *testing.T) {
	errs := map[call.Outcome]error{
		call.AppError: errOf(fault.Internal, fault.SentMaybe), call.NotFound: errOf(fault.NotFound, fault.SentMaybe), call.Conflict: errOf(fault.Conflict, fault.SentMaybe),
		call.Throttled: errOf(fault.Exhausted, fault.SentMaybe), call.Unavailable: errOf(fault.Unavailable, fault.SentUnknown), call.ConnectFailure: errNever, call.Reset: errMaybe,
		call.Deadline: errOf(fault.Deadline, fault.SentMaybe), call.Canceled: errOf(fault.Canceled, fault.SentMaybe), call.Permanent: errOf(fault.Invalid, fault.SentMaybe),
		call.Rejected: fault.New("t", fault.Unavailable, "x").With(fault.PolicyRejected),
	}
	tests := map[string][]call.Outcome{
		"":                  {call.ConnectFailure, call.Reset, call.Unavailable, call.Throttled},
		"5xx":               {call.AppError, call.Unavailable, call.Deadline, call.Reset, call.ConnectFailure},
		"gateway-error":     {call.Unavailable, call.Deadline},
		"refused-stream":    {call.ConnectFailure},
		"retriable-4xx":     {call.Conflict},
		"envoy-ratelimited": {call.Throttled},
		"internal":          {call.AppError},
		"policy-rejected":   nil,
		"deadline-exceeded": {call.Deadline}, "resource-exhausted": {call.Throttled},
		"retriable-status-codes": nil,
	}
	for o := call.AppError; o < call.Rejected; o++ {
		tests[o.String()] = []call.Outcome{o}
	}
	for word, want := range tests {
		t.Run(word, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &policy.Retry{Max: ptr(1)}
				if word != "" {
					r.On = policy.Words{word}
				}
				tg := under(t, call.State, policy.Spec{Retry: r})
				var got []call.Outcome
				for o := call.AppError; o <= call.Rejected; o++ {
					n := 0
					_ = do(t.Context(), tg, call.Desc{Safety: call.Safe}, func(context.Context) error { n++; return errs[o] })
					if n == 2 {
						got = append(got, o)
					}
				}
				if d := cmp.Diff(set(want), set(got)); d != "" {
					t.Errorf("repeated outcomes (-want +got):\n%s", d)
				}
			})
		})
	}
}

func set[T comparable](list []T) map[T]bool {
	out := map[T]bool{}
	for _, x := range list {
		out[x] = true
	}
	return out
}

func TestRetryStatuses(t *testing.T) {
	tests := []struct {
		name string
		r    policy.Retry
		st   call.Status
		safe call.Safety
		want int
	}{
		{"a listed status", policy.Retry{On: policy.Words{"reset"}, Statuses: "429, 502-504"}, call.HTTPStatus(503), call.Safe, 3},
		{"the end of a range", policy.Retry{On: policy.Words{"reset"}, Statuses: "429, 502-504"}, call.HTTPStatus(504), call.Safe, 3},
		{"another one", policy.Retry{On: policy.Words{"reset"}, Statuses: "429, 502-504"}, call.HTTPStatus(500), call.Safe, 1},
		{"an unsafe call was answered, so it was sent", policy.Retry{Statuses: "503"}, call.HTTPStatus(503), call.Unsafe, 1},
		{"by its outcome", policy.Retry{}, call.HTTPStatus(503), call.Idempotent, 3},
		{"a gRPC code", policy.Retry{On: policy.Words{"reset"}, Statuses: "14"}, call.GRPCStatus(14), call.Safe, 3},
		{"is no HTTP status", policy.Retry{On: policy.Words{"reset"}, Statuses: "14"}, call.HTTPStatus(500), call.Safe, 1},
		{"success is success", policy.Retry{Statuses: "200"}, call.HTTPStatus(200), call.Safe, 1},
		{"gRPC's too", policy.Retry{Statuses: "0"}, call.GRPCStatus(0), call.Safe, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, err := answered(t.Context(), under(t, call.Service, policy.Spec{Retry: &tt.r}), call.Desc{Safety: tt.safe}, func(int) call.Status { return tt.st })
				if n != tt.want || err != nil {
					t.Errorf("%d attempts, want %d (%v)", n, tt.want, err)
				}
			})
		})
	}
}

// The pauses are random; each must be within its bound, and the longest of many near it.
func TestBackoffBounds(t *testing.T) {
	huge := time.Duration(math.MaxInt64)
	tests := []struct {
		name string
		b    policy.Backoff
		want []time.Duration
	}{
		{"defaults", policy.Backoff{}, millis(25, 50, 100, 200, 250, 250)},
		{"given", policy.Backoff{Base: 10 * time.Millisecond, Max: 35 * time.Millisecond}, millis(10, 20, 35, 35)},
		{"ten times the base unless said", policy.Backoff{Base: time.Second}, millis(1000, 2000, 4000, 8000, 10000)},
		{"one length", policy.Backoff{Base: time.Second, Max: time.Second}, millis(1000, 1000)},
		{"as long as can be said", policy.Backoff{Base: huge, Max: huge}, []time.Duration{huge}},
		{"so long that doubling it overflows", policy.Backoff{Base: huge / 3}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tg := under(t, call.State, policy.Spec{Retry: &policy.Retry{Max: ptr(1000), Backoff: tt.b}})
			retry := tg.Chain().Retry
			for attempt := 1; attempt <= 100; attempt++ {
				c := &call.Call{Target: tg, Desc: call.Desc{Safety: call.Safe}, Attempt: attempt, Outcome: call.Unavailable}
				longest := time.Duration(0)
				for range 300 {
					pause, again := retry(c, errMaybe)
					if !again || pause < 0 {
						t.Fatalf("attempt %d: again %v after %v", attempt, again, pause)
					}
					longest = max(longest, pause)
				}
				if len(tt.want) == 0 {
					continue
				}
				most := tt.want[min(attempt, len(tt.want))-1]
				if longest > most || float64(longest) < 0.9*float64(most) {
					t.Errorf("attempt %d: the longest pause of 300 is %v, want nearly %v", attempt, longest, most)
				}
			}
		})
	}
}

func millis(ns ...int) (out []time.Duration) {
	for _, n := range ns {
		out = append(out, time.Duration(n)*time.Millisecond)
	}
	return out
}

func TestRetryHintAndNesting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := under(t, call.State, policy.Spec{Retry: &policy.Retry{Max: ptr(1)}})
		start := time.Now()
		_ = do(t.Context(), tg, call.Desc{Safety: call.Safe}, failing(fault.New("t", fault.Exhausted, "x").WithAfter(3*time.Second)))
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("the hint says 3s, the pause was %v", took)
		}
		start = time.Now()
		_ = do(t.Context(), tg, call.Desc{Safety: call.Safe}, failing(fault.New("t", fault.Unavailable, "x").WithAfter(3*time.Second)))
		if took := time.Since(start); took > 25*time.Millisecond {
			t.Errorf("only who throttles is asked when: %v", took)
		}
		for header, want := range map[string]int{"": 2, "1": 2, "2": 1, "7": 1} {
			for _, nested := range []bool{false, true} {
				tg := under(t, call.Service, policy.Spec{Retry: &policy.Retry{Max: ptr(1), Nested: nested}})
				n, most := 0, want
				if nested {
					most = 2
				}
				_ = do(t.Context(), tg, call.Desc{Safety: call.Safe, Attrs: call.Fields{{Name: "X-Envoy-Attempt-Count", Value: header}}}, func(context.Context) error { n++; return errNever })
				if n != most {
					t.Errorf("attempt %q of somebody's, nested %v: %d attempts, want %d", header, nested, n, most)
				}
			}
		}
	})
}

func TestRetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorded{}
		tg := governed(engine(t, policy.Options{Record: rec}, pol("p", policy.Spec{Retry: &policy.Retry{Max: ptr(1), Backoff: policy.Backoff{Base: 1, Max: 1}, Budget: &policy.Budget{Ratio: 0.1}}})), call.State, "orders")
		n := 0
		for range 1000 {
			_ = do(t.Context(), tg, call.Desc{Safety: call.Safe}, func(context.Context) error { n++; return errMaybe })
		}
		if n < 1099 || n > 1100 {
			t.Errorf("%d attempts of 1000 calls, want a tenth more", n)
		}
		if got := rec.count("retried state orders p exhausted=true"); got != 2000-n {
			t.Errorf("%d retries were too many for the budget, want %d", got, 2000-n)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		tg := under(t, call.State, policy.Spec{Retry: &policy.Retry{Max: ptr(1), Backoff: policy.Backoff{Base: 1, Max: 1}, Budget: &policy.Budget{}}})
		n := 0
		for range 600 {
			_ = do(t.Context(), tg, call.Desc{Safety: call.Safe}, func(context.Context) error { n++; return errMaybe })
		}
		if want := 600 + 120 + 100; n < want-1 || n > want {
			t.Errorf("%d attempts, want %d: a fifth of the calls and 10 for each second of ten", n, want)
		}
	})
}

// For what both can say, failsafe-go's retry policy makes the same number of attempts.
func TestRetryLikeFailsafe(t *testing.T) {
	for most := range 5 {
		for good := 1; good <= 6; good++ { // the attempt that succeeds
			synctest.Test(t, func(t *testing.T) {
				var ours, theirs int
				attempt := func(n *int) error {
					if *n++; *n >= good {
						return nil
					}
					return errMaybe
				}
				tg := under(t, call.State, policy.Spec{Retry: &policy.Retry{Max: &most, Backoff: policy.Backoff{Base: time.Millisecond}}})
				err := do(t.Context(), tg, call.Desc{Safety: call.Safe}, func(context.Context) error { return attempt(&ours) })
				rp := retrypolicy.NewBuilder[any]().WithMaxRetries(most).WithBackoff(time.Millisecond, 10*time.Millisecond).Build()
				if most == 0 {
					rp = retrypolicy.NewBuilder[any]().WithMaxAttempts(1).Build()
				}
				want := failsafe.With(rp).Run(func() error { return attempt(&theirs) })
				if ours != theirs || (err == nil) != (want == nil) {
					t.Errorf("max %d, good at %d: %d attempts and %v, failsafe-go %d and %v", most, good, ours, err, theirs, want)
				}
			})
		}
	}
}

// dapr is a target under what a Resiliency resource says.
func dapr(t testing.TB, kind call.Kind, r policy.Resilience, ps ...policy.Policy) *call.Target {
	t.Helper()
	e := policy.New(policy.Options{})
	t.Cleanup(e.Close)
	e.Swap(&policy.Snapshot{Policies: ps, Resilience: func(*call.Target) *policy.Resilience { return &r }})
	return governed(e, kind, "orders")
}

func TestDaprRetries(t *testing.T) {
	constant := func(max int) policy.DaprRetry { return policy.DaprRetry{Pause: 2 * time.Second, Max: max} }
	matching := constant(2)
	matching.HTTP, matching.GRPC = []policy.Span{{From: 500, To: 503}}, []policy.Span{{From: 14, To: 14}}
	tests := []struct {
		name string
		r    policy.DaprRetry
		err  error
		st   call.Status
		want int
		took time.Duration
	}{
		{"constant", constant(3), errMaybe, call.Status{}, 4, 6 * time.Second},
		{"also what may have been sent, as Dapr does", constant(1), errMaybe, call.Status{}, 2, 2 * time.Second},
		{"never", constant(0), errMaybe, call.Status{}, 1, 0},
		{"every status from 400", constant(1), nil, call.HTTPStatus(404), 2, 2 * time.Second},
		{"every gRPC code but OK", constant(1), nil, call.GRPCStatus(3), 2, 2 * time.Second},
		{"a status that matches", matching, nil, call.HTTPStatus(500), 3, 4 * time.Second},
		{"one that does not", matching, nil, call.HTTPStatus(504), 1, 0},
		{"a gRPC code that matches", matching, nil, call.GRPCStatus(14), 3, 4 * time.Second},
		{"one that does not match", matching, nil, call.GRPCStatus(13), 1, 0},
		{"what is wrong and will be wrong again", constant(3), errOf(fault.Invalid, fault.SentMaybe), call.Status{}, 1, 0},
		{"a version that did not match", constant(3), errOf(fault.Conflict, fault.SentMaybe), call.Status{}, 1, 0},
		{"an open breaker", constant(3), fault.New("t", fault.Unavailable, "open").With(fault.BreakerOpen), call.Status{}, 1, 0},
		{"only transport: what was answered", policy.DaprRetry{Max: 3, OnlyTransport: true}, nil, call.HTTPStatus(503), 1, 0},
		{"only transport: no connection", policy.DaprRetry{Pause: time.Second, Max: 3, OnlyTransport: true}, errNever, call.Status{}, 4, 3 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start, n := time.Now(), 0
				c, err := call.Begin(t.Context(), dapr(t, call.Service, policy.Resilience{Retry: &tt.r}), call.Desc{})
				if err != nil {
					t.Fatal(err)
				}
				_, err = call.Run(c, 0, nil, nil, func(context.Context, *call.Try, int) (int, call.Status, error) { n++; return 0, tt.st, tt.err })
				if err = c.End(err); n != tt.want || time.Since(start) != tt.took || !errors.Is(err, tt.err) {
					t.Errorf("%d attempts in %v (%v), want %d in %v", n, time.Since(start), err, tt.want, tt.took)
				}
			})
		})
	}
	t.Run("without limit, until somebody gives up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour-time.Second)
			defer cancel()
			r, n := constant(-1), 0
			if err := do(ctx, dapr(t, call.State, policy.Resilience{Retry: &r}), call.Desc{}, func(context.Context) error { n++; return errMaybe }); n != 1800 || !errors.Is(err, errMaybe) {
				t.Errorf("%d attempts in an hour, %v; want 1800 and the last one's error", n, err)
			}
		})
	})
	t.Run("exponential", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := policy.DaprRetry{Exponential: true, Max: -1, MaxPause: 20 * time.Second}
			start, last, n := time.Now(), time.Now(), 0
			_ = do(t.Context(), dapr(t, call.State, policy.Resilience{Retry: &r}), call.Desc{}, func(context.Context) error {
				if n++; n > 1 {
					mid := min(500*time.Millisecond.Seconds()*math.Pow(1.5, float64(n-2)), 20)
					if pause := time.Since(last).Seconds(); pause < mid/2-1e-6 || pause > min(mid*1.5, 20)+1e-6 {
						t.Errorf("pause %d is %vs, want around %vs", n-1, pause, mid)
					}
				}
				last = time.Now()
				return errMaybe
			})
			if took := time.Since(start); took > 15*time.Minute || took < 14*time.Minute {
				t.Errorf("given up after %v, want a quarter of an hour", took)
			}
		})
	})
}

func TestCaps(t *testing.T) {
	t.Run("wait, refuse, go on", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tg := under(t, call.State, policy.Spec{Limits: &policy.Limits{MaxRequests: 1, MaxPending: 1}})
			results := make(chan string, 3)
			for range 3 {
				go func() {
					start := time.Now()
					err := do(t.Context(), tg, call.Desc{}, func(context.Context) error { time.Sleep(time.Second); return nil })
					results <- fmt.Sprintf("%v %v %v", fault.Of(err), fault.RuleOf(err), time.Since(start))
				}()
				synctest.Wait()
			}
			got := []string{<-results, <-results, <-results}
			if d := cmp.Diff([]string{"exhausted p 0s", "ok  1s", "ok  2s"}, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	})
	t.Run("waiting ends with the time of the call", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tg := under(t, call.State, policy.Spec{Limits: &policy.Limits{MaxRequests: 1}, Timeout: &policy.Timeout{Total: time.Second}})
			c, err := call.Begin(t.Context(), tg, call.Desc{})
			if err != nil || !c.Next() {
				t.Fatal(err)
			}
			start := time.Now()
			err = do(t.Context(), tg, call.Desc{}, func(context.Context) error { t.Error("the call was made"); return nil })
			if fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentNever || time.Since(start) != time.Second {
				t.Errorf("got %v (%v) after %v", err, fault.SentOf(err), time.Since(start))
			}
			_ = c.End(nil)
			if err := do(t.Context(), tg, call.Desc{}, fine); err != nil {
				t.Errorf("after the place is free: %v", err)
			}
		})
	})
	t.Run("given back on every path", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tg := under(t, call.State, policy.Spec{Limits: &policy.Limits{MaxRequests: 1, MaxPending: -1, MaxRetries: 1}, Retry: &policy.Retry{Max: ptr(1)},
				Breaker: &policy.Breaker{Trip: "false"}, Timeout: &policy.Timeout{PerTry: time.Second}})
			ctx, cancel := context.WithCancel(t.Context())
			for i, fn := range []func(context.Context) error{fine, failing(errMaybe), failing(errNever), until,
				func(context.Context) error { panic("x") },
				func(ctx context.Context) error { cancel(); return ctx.Err() }} {
				_ = do(ctx, tg, call.Desc{Safety: call.Safe}, fn)
				if err := do(t.Context(), tg, call.Desc{}, fine); err != nil {
					t.Fatalf("after case %d the place is lost: %v", i, err)
				}
			}
			c, err := call.Begin(t.Context(), tg, call.Desc{}) // left by a panic of who reads the answer
			if err != nil || !c.Next() {
				t.Fatal(err)
			}
			c.Ended(nil, call.Status{HTTP: 200, Open: true})
			if err := do(t.Context(), tg, call.Desc{}, fine); fault.Of(err) != fault.Exhausted {
				t.Errorf("while the answer is read its place is free: %v", err)
			}
			_ = c.End(errMaybe)
			if c, err = call.Begin(t.Context(), tg, call.Desc{}); err != nil || !c.Next() {
				t.Fatal("the place is lost after the answer")
			}
			_ = c.End(errMaybe) // without Done
			if err := do(t.Context(), tg, call.Desc{}, fine); err != nil {
				t.Errorf("after a panic: %v", err)
			}
		})
	})
	t.Run("retries", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tg := under(t, call.State, policy.Spec{Limits: &policy.Limits{MaxRetries: 1}, Retry: &policy.Retry{Max: ptr(1), Backoff: policy.Backoff{Base: 1, Max: 1}}})
			done := make(chan error)
			for range 2 {
				go func() {
					n := 0
					done <- do(t.Context(), tg, call.Desc{Safety: call.Safe}, func(context.Context) error {
						if n++; n == 1 {
							return errMaybe
						}
						time.Sleep(time.Second)
						return nil
					})
				}()
				synctest.Wait()
				time.Sleep(time.Millisecond)
			}
			if err := <-done; fault.Of(err) != fault.Exhausted {
				t.Errorf("a second retry at once: %v", err)
			}
			if err := <-done; err != nil {
				t.Errorf("the first: %v", err)
			}
		})
	})
}

// A failure that was answered is not lost when its repetition is refused, nor does it stay open.
func TestAnAnswerWhoseRepetitionIsRefusedIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := under(t, call.Service, policy.Spec{Breaker: &policy.Breaker{ConsecutiveFailures: 1}, Retry: &policy.Retry{}})
		c, err := call.Begin(t.Context(), tg, call.Desc{Safety: call.Safe})
		if err != nil {
			t.Fatal(err)
		}
		var dropped []int
		out, err := call.Run(c, 0, nil, func(n int) { dropped = append(dropped, n) }, func(context.Context, *call.Try, int) (int, call.Status, error) {
			return 7, call.HTTPStatus(503), nil
		})
		if err = c.End(err); out != 0 || fault.RuleOf(err) != "p" || len(dropped) != 1 || dropped[0] != 7 {
			t.Errorf("got %d, %v; dropped %v, want the answer", out, err, dropped)
		}
	})
}
