package policy_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
)

func TestAuthorize(t *testing.T) {
	checkout := call.Caller{App: "checkout", Namespace: "shop", Proven: true}
	claimed := call.Caller{App: "checkout", Namespace: "shop"}
	invocation := func(c call.Caller) call.Desc {
		return call.Desc{Op: "GET", Resource: "admin/users", Caller: c}
	}
	grpc := call.Desc{Op: "/shop.Orders/Place", Resource: "/shop.Orders/Place", Caller: checkout}
	get := call.Desc{Op: "get", Resource: "cart", Caller: checkout}
	tests := []struct {
		name string
		z    policy.Authz
		d    call.Desc
		deny string // part of the message; empty: let through
	}{
		{"nothing fits a deny list alone", policy.Authz{Deny: []policy.Rule{{From: policy.Words{"other"}}}}, invocation(checkout), ""},
		{"deny comes before allow", policy.Authz{Deny: []policy.Rule{{Name: "no-admin", Path: policy.Words{"/admin/**"}}}, Allow: []policy.Rule{{From: policy.Words{"*"}}}}, invocation(checkout), "rule no-admin denies it"},
		{"an unnamed rule has its place", policy.Authz{Deny: []policy.Rule{{Op: policy.Words{"PUT"}}, {Op: policy.Words{"get"}}}}, invocation(checkout), "rule deny[1]"},
		{"an empty allow list refuses all", policy.Authz{Allow: []policy.Rule{}}, invocation(checkout), "no allow rule fits"},
		{"allowed by app", policy.Authz{Allow: []policy.Rule{{From: policy.Words{"checkout"}}}}, invocation(checkout), ""},
		{"allowed by app and namespace", policy.Authz{Allow: []policy.Rule{{From: policy.Words{"checkout.shop"}}}}, invocation(checkout), ""},
		{"another namespace", policy.Authz{Allow: []policy.Rule{{From: policy.Words{"checkout.prod"}}}}, invocation(checkout), "no allow rule fits"},
		{"a claim does not allow", policy.Authz{Allow: []policy.Rule{{From: policy.Words{"checkout"}}}}, invocation(claimed), "without proof"},
		{"not even everybody", policy.Authz{Allow: []policy.Rule{{From: policy.Words{"*"}}}}, invocation(claimed), "without proof"},
		{"unless the rule asks for nobody in particular", policy.Authz{Allow: []policy.Rule{{Op: policy.Words{"GET"}}}}, invocation(claimed), ""},
		{"whoever is not proven may be the one denied", policy.Authz{Deny: []policy.Rule{{From: policy.Words{"evil"}}}}, invocation(claimed), "deny[0]"},
		{"nobody at all may be, too", policy.Authz{Deny: []policy.Rule{{From: policy.Words{"evil"}}}}, invocation(call.Caller{}), "an unknown caller"},
		{"the proven are who they are", policy.Authz{Deny: []policy.Rule{{From: policy.Words{"evil"}}}}, invocation(checkout), ""},
		{"a path with its slash", policy.Authz{Allow: []policy.Rule{{Path: policy.Words{"/admin/users"}}}}, invocation(checkout), ""},
		{"a path without", policy.Authz{Allow: []policy.Rule{{Path: policy.Words{"admin/users"}}}}, invocation(checkout), ""},
		{"everything below is not the thing itself", policy.Authz{Allow: []policy.Rule{{Path: policy.Words{"/admin/users/**"}}}}, invocation(checkout), "no allow rule"},
		{"everything", policy.Authz{Deny: []policy.Rule{{Path: policy.Words{"/**"}}}}, invocation(checkout), "deny[0]"},
		{"names are exact", policy.Authz{Deny: []policy.Rule{{Path: policy.Words{"/Admin/users"}}}}, invocation(checkout), ""},
		{"a gRPC method", policy.Authz{Deny: []policy.Rule{{Path: policy.Words{"/shop.Orders/*"}}}}, grpc, "deny[0]"},
		{"a gRPC method as an operation", policy.Authz{Deny: []policy.Rule{{Op: policy.Words{"/shop.Orders/Place"}}}}, grpc, "deny[0]"},
		{"a gRPC method has no verb", policy.Authz{Deny: []policy.Rule{{Method: policy.Words{"*"}}}}, grpc, ""},
		{"nor has a component's operation", policy.Authz{Deny: []policy.Rule{{Method: policy.Words{"GET"}}}}, get, ""},
		{"a verb", policy.Authz{Deny: []policy.Rule{{Method: policy.Words{"POST", "GET"}}}}, invocation(checkout), "deny[0]"},
		{"all fields must fit", policy.Authz{Deny: []policy.Rule{{Method: policy.Words{"GET"}, Path: policy.Words{"/other"}}}}, invocation(checkout), ""},
		{"shadow only reports", policy.Authz{Allow: []policy.Rule{}, Shadow: true}, invocation(checkout), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rec := &recorded{}
			tg := governed(engine(t, policy.Options{Record: rec}, pol("guard", policy.Spec{Authz: &tt.z})), call.Service, "orders")
			ran := false
			err := do(t.Context(), tg, tt.d, func(context.Context) error { ran = true; return nil })
			if (tt.deny == "") != (err == nil) || ran != (err == nil) {
				t.Fatalf("got %v, made %v; want refusal %q", err, ran, tt.deny)
			}
			if err != nil && (!strings.Contains(err.Error(), tt.deny) || fault.Of(err) != fault.Denied || fault.ReasonOf(err) != fault.PolicyRejected ||
				fault.RuleOf(err) != "guard" || fault.SentOf(err) != fault.SentNever) {
				t.Errorf("got %v (%v, %v, rule %q); want %q", err, fault.Of(err), fault.ReasonOf(err), fault.RuleOf(err), tt.deny)
			}
			want := ""
			if tt.deny != "" || tt.z.Shadow {
				want = fmt.Sprintf("service orders authorize guard shadow=%v", tt.z.Shadow)
			}
			if got := strings.Join(rec.all(), "; "); got != want {
				t.Errorf("counted %q, want %q", got, want)
			}
		})
	}
}

func TestAccessControl(t *testing.T) {
	ops := []policy.AccessOperation{
		{Name: "/orders/*", Verbs: []string{"GET", "put"}},
		{Name: "/deep/**"},
		{Name: "/mid/*/end", Verbs: []string{"*"}},
		{Name: "/shop.Orders/Place"},
		{Name: "/secret/**", Deny: true},
	}
	closed := &policy.Access{Deny: true, Policies: []policy.AccessPolicy{{App: "a", Namespace: "ns", Deny: true, Operations: ops}}}
	open := &policy.Access{Policies: []policy.AccessPolicy{{App: "a", Namespace: "ns", Operations: ops}}}
	a := call.Caller{App: "a", Namespace: "ns", Proven: true}
	tests := []struct {
		name   string
		access *policy.Access
		who    call.Caller
		op     string
		path   string
		ok     bool
	}{
		{"a star is one segment", closed, a, "GET", "orders/1", true},
		{"not two", closed, a, "GET", "orders/1/x", false},
		{"nor none", closed, a, "GET", "orders", false},
		{"verbs without regard to case", closed, a, "PUT", "orders/1", true},
		{"another verb is the policy's default", closed, a, "POST", "orders/1", false},
		{"which may allow", open, a, "POST", "orders/1", true},
		{"HTTP paths without regard to case", closed, a, "GET", "ORDERS/1", true},
		{"two stars are any number of segments", closed, a, "POST", "deep/1/2/3", true},
		{"at least one", closed, a, "POST", "deep", false},
		{"a star inside", closed, a, "DELETE", "mid/x/end", true},
		{"and what follows it", closed, a, "DELETE", "mid/x/other", false},
		{"a gRPC method", closed, a, "/shop.Orders/Place", "/shop.Orders/Place", true},
		{"whose case counts", closed, a, "/shop.orders/place", "/shop.orders/place", false},
		{"a denied operation of an allowed app", open, a, "GET", "secret/1", false},
		{"others have the default", open, call.Caller{App: "b", Namespace: "ns", Proven: true}, "GET", "secret/1", true},
		{"so has the same app elsewhere", closed, call.Caller{App: "a", Namespace: "other", Proven: true}, "GET", "orders/1", false},
		{"a claim does not open what is closed", closed, call.Caller{App: "a", Namespace: "ns"}, "GET", "orders/1", false},
		{"nor what any policy denies", open, call.Caller{App: "b"}, "GET", "secret/1", false},
		{"but what none denies", open, call.Caller{App: "b"}, "GET", "orders/1", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := policy.New(policy.Options{})
			e.Swap(&policy.Snapshot{Access: tt.access})
			tg := &call.Target{Kind: call.App, Direction: call.Inbound, Name: "me"}
			e.Govern(tg)
			err := do(t.Context(), tg, call.Desc{Op: tt.op, Resource: tt.path, Caller: tt.who}, fine)
			if (err == nil) != tt.ok || err != nil && (fault.ReasonOf(err) != fault.AccessDenied || fault.Of(err) != fault.Denied) {
				t.Errorf("got %v (%v), want allowed %v", err, fault.ReasonOf(err), tt.ok)
			}
			deliver := &call.Target{Kind: call.Deliver, Direction: call.Inbound, Name: "me"}
			e.Govern(deliver)
			if err := do(t.Context(), deliver, call.Desc{Op: "deliver"}, fine); err != nil {
				t.Errorf("it is for invocations, not events: %v", err)
			}
		})
	}
}

// likely tells whether n of total is what a share of p gives: within four and a half standard
// deviations, for the test draws anew each time it runs.
func likely(n, total int, p float64) bool {
	return math.Abs(float64(n)-p*float64(total)) <= 4.5*math.Sqrt(float64(total)*p*(1-p))+1
}

func TestInjectedFaults(t *testing.T) {
	t.Run("a share of the calls", func(t *testing.T) {
		tg := under(t, call.State, policy.Spec{Fault: &policy.Fault{Abort: &policy.Abort{Percent: ptr(20.0)}}})
		n := 0
		for range 5000 {
			if do(t.Context(), tg, call.Desc{}, fine) != nil {
				n++
			}
		}
		if !likely(n, 5000, 0.2) {
			t.Errorf("%d of 5000 failed, want 20 %%", n)
		}
	})
	t.Run("each outcome is what it says", func(t *testing.T) {
		for o := call.AppError; o <= call.Rejected; o++ {
			tg := under(t, call.State, policy.Spec{Fault: &policy.Fault{Abort: &policy.Abort{Outcome: o.String()}}})
			err := do(t.Context(), tg, call.Desc{}, fine)
			// The reason says who did it; without it the rest must be the outcome's own.
			plain := fault.New("t", fault.Of(err), "x").WithSent(fault.SentOf(err))
			if got := call.OutcomeOf(plain, call.Status{}); err == nil || (got != o && o != call.Rejected) || fault.RuleOf(err) != "p" {
				t.Errorf("%v: got %v, which is %v (rule %q)", o, err, got, fault.RuleOf(err))
			}
		}
	})
	t.Run("only with the header", func(t *testing.T) {
		tg := under(t, call.Service, policy.Spec{Fault: &policy.Fault{Abort: &policy.Abort{Header: "X-Fault"}}})
		if err := do(t.Context(), tg, call.Desc{}, fine); err != nil {
			t.Errorf("without headers: %v", err)
		}
		if err := do(t.Context(), tg, call.Desc{Attrs: call.Fields{{Name: "x-other", Value: "1"}}}, fine); err != nil {
			t.Errorf("with another: %v", err)
		}
		if err := do(t.Context(), tg, call.Desc{Attrs: call.Fields{{Name: "x-fault", Value: ""}}}, fine); fault.Of(err) != fault.Unavailable {
			t.Errorf("with the header: %v", err)
		}
	})
	t.Run("a delay, ended by whoever waits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tg := under(t, call.State, policy.Spec{Fault: &policy.Fault{Delay: &policy.Delay{Fixed: time.Minute}}})
			start := time.Now()
			if err := do(t.Context(), tg, call.Desc{}, fine); err != nil || time.Since(start) != time.Minute {
				t.Errorf("%v after %v, want a minute", err, time.Since(start))
			}
			start = time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err := do(ctx, tg, call.Desc{}, func(context.Context) error { t.Error("the call was made"); return nil })
			if fault.Of(err) != fault.Deadline || !errors.Is(err, context.DeadlineExceeded) || fault.SentOf(err) != fault.SentNever || time.Since(start) != time.Second {
				t.Errorf("%v (%v) after %v", err, fault.SentOf(err), time.Since(start))
			}
		})
	})
	t.Run("an injected fault is not retried and costs no tokens", func(t *testing.T) {
		tg := under(t, call.State, policy.Spec{Fault: &policy.Fault{Abort: &policy.Abort{Header: "f"}}, Retry: &policy.Retry{Max: ptr(5)},
			RateLimit: &policy.RateLimit{Local: &policy.LocalRate{Tokens: 1, Per: time.Hour}}})
		for range 3 {
			if err := do(t.Context(), tg, call.Desc{Safety: call.Safe, Attrs: call.Fields{{Name: "f"}}}, fine); fault.Of(err) != fault.Unavailable {
				t.Fatal(err)
			}
		}
		if err := do(t.Context(), tg, call.Desc{Attrs: call.Fields{}}, fine); err != nil {
			t.Errorf("the allowance is gone: %v", err)
		}
	})
}

// The same arrivals meet golang.org/x/time/rate's limiter. Rates are such that a token's time is
// a whole number of nanoseconds, and arrivals are off the instants when a token comes back, where
// two roundings may differ.
func TestRateLimitLikeXTimeRate(t *testing.T) {
	for _, tt := range []struct{ tokens, burst int }{{10, 0}, {4, 1}, {100, 7}, {1, 3}} {
		t.Run(fmt.Sprintf("%d a second, burst %d", tt.tokens, tt.burst), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tg := under(t, call.State, policy.Spec{RateLimit: &policy.RateLimit{Local: &policy.LocalRate{Tokens: tt.tokens, Burst: tt.burst}}})
				burst := tt.burst
				if burst == 0 {
					burst = tt.tokens
				}
				theirs := rate.NewLimiter(rate.Limit(tt.tokens), burst)
				rnd := rand.New(rand.NewPCG(uint64(tt.tokens), uint64(tt.burst)))
				refused := 0
				for i := range 2000 {
					time.Sleep(time.Duration(rnd.Int64N(int64(3*time.Second)/int64(tt.tokens)))/2/1e5*1e5 + 37*time.Nanosecond)
					err, want := do(t.Context(), tg, call.Desc{}, fine), theirs.Allow()
					if (err == nil) != want {
						t.Fatalf("arrival %d: got %v, x/time/rate says %v", i, err, want)
					}
					if err != nil {
						refused++
						if after := fault.AfterOf(err); fault.Of(err) != fault.Exhausted || after <= 0 || after > time.Second/time.Duration(tt.tokens) {
							t.Fatalf("refused with %v, again after %v", err, after)
						}
					}
				}
				if refused < 50 || refused > 1900 {
					t.Errorf("%d of 2000 refused: nothing was compared", refused)
				}
			})
		})
	}
}

func TestKeyedRateLimit(t *testing.T) {
	who := func(app string) call.Desc { return call.Desc{Caller: call.Caller{App: app}} }
	for _, tt := range []struct {
		key        string
		a, b, same call.Desc
	}{
		{"caller", who("a"), who("b"), call.Desc{Op: "x", Caller: call.Caller{App: "a"}}},
		{"op", call.Desc{Op: "get"}, call.Desc{Op: "set"}, call.Desc{Op: "get", Resource: "x"}},
		{"resource", call.Desc{Resource: "a"}, call.Desc{Resource: "b"}, call.Desc{Resource: "a", Op: "x"}},
		{"key", call.Desc{Key: "a"}, call.Desc{Key: "b"}, call.Desc{Key: "a", Op: "x"}},
		{"header:x-user", call.Desc{Attrs: call.Fields{{Name: "X-User", Value: "a"}}}, call.Desc{Attrs: call.Fields{{Name: "X-User", Value: "b"}}},
			call.Desc{Op: "x", Attrs: call.Fields{{Name: "x-user", Value: "a"}}}},
	} {
		t.Run(tt.key, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tg := under(t, call.State, policy.Spec{RateLimit: &policy.RateLimit{Local: &policy.LocalRate{Tokens: 1, Per: time.Minute, Key: tt.key}}})
				for i, d := range []call.Desc{tt.a, tt.b} {
					if err := do(t.Context(), tg, d, fine); err != nil {
						t.Errorf("the first of key %d: %v", i, err)
					}
				}
				if err := do(t.Context(), tg, tt.same, fine); fault.Of(err) != fault.Exhausted || fault.RuleOf(err) != "p" {
					t.Errorf("a second of the same key: %v", err)
				}
				shadow := tt.same
				shadow.Shadow = true
				if err := do(t.Context(), tg, shadow, fine); err != nil {
					t.Errorf("a copy was charged: %v", err)
				}
				time.Sleep(time.Minute)
				if err := do(t.Context(), tg, tt.same, fine); err != nil {
					t.Errorf("a minute later: %v", err)
				}
			})
		})
	}
}

func TestRetriesAreChargedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := under(t, call.State, policy.Spec{Retry: &policy.Retry{Max: ptr(3)}, RateLimit: &policy.RateLimit{Local: &policy.LocalRate{Tokens: 2, Per: time.Hour}}})
		for i := range 2 {
			n := 0
			_ = do(t.Context(), tg, call.Desc{Safety: call.Safe}, func(context.Context) error { n++; return errNever })
			if n != 4 {
				t.Errorf("call %d: %d attempts, want 4", i, n)
			}
		}
	})
}

func TestHeaderRewrite(t *testing.T) {
	c := under(t, call.Service, policy.Spec{Headers: &policy.Headers{
		Request:  policy.Rewrite{Remove: policy.Words{"X-Drop", "x-old"}, Set: map[string]string{"x-set": "new", "x-old": "again"}, Add: map[string]string{"x-add": "2"}},
		Response: policy.Rewrite{Set: map[string]string{"x-from": "mecha"}},
	}}).Chain()
	h := call.Fields{{Name: "x-drop", Value: "1"}, {Name: "X-Set", Value: "a"}, {Name: "x-set", Value: "b"}, {Name: "x-add", Value: "1"}, {Name: "x-old", Value: "0"}, {Name: "keep", Value: "k"}}
	c.Request(&call.Call{}, &h)
	got := fmt.Sprint(h)
	for _, want := range []string{"x-set new", "x-old again", "x-add 1", "x-add 2", "keep k"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in %s", want, got)
		}
	}
	if len(h) != 5 {
		t.Errorf("got %s: a removed or replaced header is left", got)
	}
	var answer call.Fields
	c.Answer(&call.Call{}, &answer)
	if fmt.Sprint(answer) != "[{x-from mecha}]" {
		t.Errorf("the answer has %v", answer)
	}
	if c := under(t, call.Service, policy.Spec{Headers: &policy.Headers{Response: policy.Rewrite{Remove: policy.Words{"x"}}}}).Chain(); c.Request != nil {
		t.Error("requests are looked at for nothing")
	}
}

func TestRetriesAreNumbered(t *testing.T) {
	c := under(t, call.Service, policy.Spec{Retry: &policy.Retry{}}).Chain()
	if c.AttemptHeader != "x-envoy-attempt-count" || c.Request != nil {
		t.Errorf("attempts carry their number in %q; a request is looked at for nothing: %v", c.AttemptHeader, c.Request != nil)
	}
	if c := under(t, call.State, policy.Spec{Retry: &policy.Retry{}}).Chain(); c.AttemptHeader != "" {
		t.Error("a store is told which attempt it sees")
	}
}
