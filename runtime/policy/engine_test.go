package policy_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/policy/breaker"
	"github.com/mecha-project/mecha/runtime/policy/health"
	"github.com/mecha-project/mecha/runtime/policy/outlier"
)

// attempts counts the attempts of one failing call, which tells retry policies apart.
func attempts(t testing.TB, tg *call.Target, d call.Desc) (n int) {
	t.Helper()
	d.Safety = call.Safe
	_ = do(t.Context(), tg, d, func(context.Context) error { n++; return errNever })
	return n
}

func retries(n int) policy.Spec { return policy.Spec{Retry: &policy.Retry{Max: &n}} }

func with(s policy.Spec, change func(*policy.Spec)) policy.Spec { change(&s); return s }

func TestMergePrecedence(t *testing.T) {
	slow := &policy.Timeout{Total: time.Hour}
	resiliency := policy.Resilience{Retry: &policy.DaprRetry{Named: policy.Named{Name: "Resiliency r/x"}, Max: 5}, Timeout: &policy.DaprTimeout{Named: policy.Named{Name: "Resiliency r/t"}, After: time.Minute}}
	tests := []struct {
		name    string
		ps      []policy.Policy // in the order in which they are asked
		dapr    *policy.Resilience
		kind    call.Kind
		retries int
		total   time.Duration
	}{
		{"the first that sets a field", []policy.Policy{pol("a", retries(1)), pol("b", retries(2))}, nil, call.State, 1, 0},
		{"field by field", []policy.Policy{pol("a", policy.Spec{Timeout: slow}), pol("b", retries(2))}, nil, call.State, 2, time.Hour},
		{"a policy that does not match sets nothing", []policy.Policy{pol("a", with(retries(1), func(s *policy.Spec) { s.Match = []policy.Match{{Dest: policy.Words{"other"}}} })), pol("b", retries(2))}, nil, call.State, 2, 0},
		{"a field is taken whole", []policy.Policy{pol("a", policy.Spec{Timeout: &policy.Timeout{PerTry: time.Second}}), pol("b", policy.Spec{Timeout: slow})}, nil, call.State, 0, 0},
		{"Resiliency fills in", []policy.Policy{pol("a", policy.Spec{Timeout: slow})}, &resiliency, call.State, 5, time.Hour},
		{"and gives way", []policy.Policy{pol("a", retries(1))}, &resiliency, call.State, 1, 0},
		{"to none at all", []policy.Policy{pol("a", retries(0))}, &resiliency, call.Service, 0, 0},
		{"Resiliency before what is built in", nil, &resiliency, call.Service, 5, 0},
		{"which comes last", nil, nil, call.Service, 3, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := policy.New(policy.Options{})
				s := &policy.Snapshot{Policies: tt.ps}
				if tt.dapr != nil {
					s.Resilience = func(*call.Target) *policy.Resilience { return tt.dapr }
				}
				e.Swap(s)
				tg := governed(e, tt.kind, "orders")
				if n := attempts(t, tg, call.Desc{}); n != tt.retries+1 {
					t.Errorf("%d retries, want %d", n-1, tt.retries)
				}
				if got := tg.Chain().Total; got != tt.total {
					t.Errorf("total %v, want %v", got, tt.total)
				}
			})
		})
	}
}

// Whatever field a policy may set: it reaches the chain only from the first policy that has it.
// The list is taken from Spec, so that a new field that merging forgets is found.
func TestEveryFieldIsMerged(t *testing.T) {
	known := map[string]policy.Spec{
		"Authz": {Authz: &policy.Authz{Allow: []policy.Rule{}}}, "Fault": {Fault: &policy.Fault{Abort: &policy.Abort{}}},
		"RateLimit": {RateLimit: &policy.RateLimit{Local: &policy.LocalRate{Tokens: 1}}}, "Headers": {Headers: &policy.Headers{Request: policy.Rewrite{Remove: policy.Words{"x"}}}},
		"Mirror": {Mirror: &policy.Mirror{To: "x"}}, "Timeout": {Timeout: &policy.Timeout{Total: 1}}, "Retry": retries(1), "Hedge": {Hedge: &policy.Hedge{Delay: "1s"}},
		"Route": {Route: ways("x")}, "Limits": {Limits: &policy.Limits{MaxRequests: 1}}, "Breaker": {Breaker: &policy.Breaker{}}, "LB": {LB: &policy.Balance{Policy: "random"}},
		"Outlier": {Outlier: &outlier.Config{}}, "Health": {Health: &health.Config{}}, "Subsets": {}, "Split": {}, "WriteFailover": {}, "Match": {}, "Priority": {},
	}
	for f := range reflect.TypeFor[policy.Spec]().Fields() {
		s, ok := known[f.Name]
		if !ok {
			t.Errorf("no case for the field %s: is it merged?", f.Name)
			continue
		}
		if reflect.ValueOf(s).IsZero() {
			continue // tested elsewhere
		}
		c := under(t, call.Service, s).Chain()
		if reflect.DeepEqual(shape(c), shape(under(t, call.Service, policy.Spec{}).Chain())) {
			t.Errorf("%s does not reach the chain", f.Name)
		}
	}
}

// shape is what a chain has.
func shape(c *call.Chain) string {
	return fmt.Sprint(len(c.Layers), len(c.Steps), c.Replay, c.Hedge != nil, c.Total, c.Mirror != nil, c.Balance != nil, c.Request != nil, c.Answer != nil)
}

func TestDynamicMatching(t *testing.T) {
	match := func(n int, ms ...policy.Match) policy.Policy {
		return pol(fmt.Sprint("p", n), with(retries(n), func(s *policy.Spec) { s.Match = ms }))
	}
	w := func(words ...string) policy.Words { return words }
	ps := []policy.Policy{
		match(1, policy.Match{Headers: map[string]string{"x-canary": "1"}}),
		match(2, policy.Match{Path: w("/admin/**")}, policy.Match{Path: w("/root"), Op: w("GET")}),
		match(3, policy.Match{Op: w("/shop.Orders/*")}),
		match(4, policy.Match{Method: w("PUT", "PATCH")}),
		match(5, policy.Match{From: w("checkout.shop", "other*")}),
		match(6, policy.Match{Headers: map[string]string{"x-any": "*"}, Op: w("get", "post")}),
		match(7),
	}
	tests := []struct {
		name string
		d    call.Desc
		want int
	}{
		{"nothing", call.Desc{Op: "GET"}, 7},
		{"a header", call.Desc{Op: "GET", Attrs: call.Fields{{Name: "X-Canary", Value: "1"}}}, 1},
		{"another value", call.Desc{Op: "GET", Attrs: call.Fields{{Name: "x-canary", Value: "2"}}}, 7},
		{"the first wins", call.Desc{Op: "PUT", Resource: "admin/x", Attrs: call.Fields{{Name: "x-canary", Value: "1"}}}, 1},
		{"a path below", call.Desc{Op: "GET", Resource: "admin/x/y"}, 2},
		{"the second of its matches", call.Desc{Op: "GET", Resource: "root"}, 2},
		{"of which all fields count", call.Desc{Op: "POST", Resource: "root"}, 7},
		{"a gRPC method", call.Desc{Op: "/shop.Orders/Place", Resource: "/shop.Orders/Place"}, 3},
		{"a verb", call.Desc{Op: "PATCH"}, 4},
		{"an app with its namespace", call.Desc{Op: "GET", Caller: call.Caller{App: "checkout", Namespace: "shop"}}, 5},
		{"without", call.Desc{Op: "GET", Caller: call.Caller{App: "checkout"}}, 7},
		{"a pattern", call.Desc{Op: "GET", Caller: call.Caller{App: "otherwise"}}, 5},
		{"any value of a header", call.Desc{Op: "POST", Attrs: call.Fields{{Name: "X-Any", Value: ""}}}, 6},
		{"a lower verb comes first only if it fits", call.Desc{Op: "PUT", Caller: call.Caller{App: "otherwise"}, Attrs: call.Fields{{Name: "x-any"}}}, 4},
	}
	synctest.Test(t, func(t *testing.T) {
		tg := governed(engine(t, policy.Options{}, ps...), call.Service, "orders")
		for range 2 { // the second time all chains are known
			for _, tt := range tests {
				if n := attempts(t, tg, tt.d) - 1; n != tt.want {
					t.Errorf("%s: policy %d, want %d", tt.name, n, tt.want)
				}
			}
		}
		chain := tg.Chain()
		a := call.PolicyOf(tg, call.Desc{Op: "PATCH"})
		if b := call.PolicyOf(tg, call.Desc{Op: "PUT", Resource: "else"}); a != b || tg.Chain() != chain {
			t.Error("two calls that match alike have different chains: they are compiled anew for each")
		}
		d := call.Desc{Op: "PATCH", Safety: call.Safe, Attrs: call.Fields{{Name: "x-canary", Value: "1"}}}
		ctx := t.Context()
		if n := testing.AllocsPerRun(200, func() { _, _ = call.Do(ctx, tg, d, one) }); n != 0 {
			t.Errorf("%v allocations to find a known chain", n)
		}
	})
}

func TestMatchingOfTargets(t *testing.T) {
	w := func(words ...string) policy.Words { return words }
	tests := []struct {
		name string
		m    policy.Match
		t    *call.Target
		want bool
	}{
		{"kind", policy.Match{Kind: w("state")}, &call.Target{Kind: call.State}, true},
		{"another", policy.Match{Kind: w("state", "lock")}, &call.Target{Kind: call.Publish}, false},
		{"the own app is a service", policy.Match{Kind: w("service")}, &call.Target{Kind: call.App}, true},
		{"but not what arrives", policy.Match{Kind: w("service")}, &call.Target{Kind: call.App, Direction: call.Inbound}, false},
		{"that is app", policy.Match{Kind: w("app")}, &call.Target{Kind: call.App, Direction: call.Inbound}, true},
		{"name", policy.Match{Dest: w("orders")}, &call.Target{Name: "orders"}, true},
		{"names are exact", policy.Match{Dest: w("Orders")}, &call.Target{Name: "orders"}, false},
		{"with its namespace", policy.Match{Dest: w("orders.shop")}, &call.Target{Name: "orders", Namespace: "shop"}, true},
		{"of another", policy.Match{Dest: w("orders.shop")}, &call.Target{Name: "orders", Namespace: "prod"}, false},
		{"pattern in front", policy.Match{Dest: w("*-db")}, &call.Target{Name: "orders-db"}, true},
		{"at the end", policy.Match{Dest: w("ord*")}, &call.Target{Name: "orders-db"}, true},
		{"inside", policy.Match{Dest: w("o*r*b")}, &call.Target{Name: "orders-db"}, true},
		{"around", policy.Match{Dest: w("*der*")}, &call.Target{Name: "orders-db"}, true},
		{"whose ends may not overlap", policy.Match{Dest: w("ab*ba")}, &call.Target{Name: "aba"}, false},
		{"of three pieces in order", policy.Match{Dest: w("a*b*c*d")}, &call.Target{Name: "acbd"}, false},
		{"both", policy.Match{Kind: w("lock"), Dest: w("orders")}, &call.Target{Kind: call.State, Name: "orders"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := engine(t, policy.Options{}, pol("p", policy.Spec{Match: []policy.Match{tt.m}, Timeout: &policy.Timeout{Total: time.Hour}}))
			e.Govern(tt.t)
			if got := tt.t.Chain().Total != 0; got != tt.want {
				t.Errorf("matches: %v", got)
			}
		})
	}
}

func TestManyPolicies(t *testing.T) {
	var ps []policy.Policy
	for i := range 70 { // more than can be told apart
		ps = append(ps, pol(fmt.Sprint("p", i), with(policy.Spec{Timeout: &policy.Timeout{Total: time.Duration(i+1) * time.Hour}}, func(s *policy.Spec) {
			s.Match = []policy.Match{{Op: policy.Words{fmt.Sprint("op", i)}}}
		})))
	}
	tg := governed(engine(t, policy.Options{}, ps...), call.State, "orders")
	for i := range 70 {
		want := time.Duration(i+1) * time.Hour
		if i >= 64 {
			want = 0
		}
		if got := call.PolicyOf(tg, call.Desc{Op: fmt.Sprint("op", i)}).Total; got != want {
			t.Errorf("op%d: total %v, want %v", i, got, want)
		}
	}
}

func TestSwapKeepsState(t *testing.T) {
	full := policy.Spec{Breaker: &policy.Breaker{ConsecutiveFailures: 1}, RateLimit: &policy.RateLimit{Local: &policy.LocalRate{Tokens: 5, Per: time.Hour}}}
	for _, name := range []string{"p", "p+q", "p q", "Resiliency"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := engine(t, policy.Options{}, pol(name, full))
				tg := governed(e, call.State, "orders")
				again := governed(e, call.State, "orders")
				_ = do(t.Context(), tg, call.Desc{}, failing(errMaybe)) // opens the breaker, takes a token
				changed := full
				changed.RateLimit = &policy.RateLimit{Local: &policy.LocalRate{Tokens: 3, Per: time.Hour}}
				changed.Timeout = &policy.Timeout{Total: time.Minute}
				for range 3 { // what a change forgets is missed at the next
					e.Swap(&policy.Snapshot{Policies: []policy.Policy{pol("new", policy.Spec{Match: []policy.Match{{Headers: map[string]string{"x": "y"}}}, Retry: &policy.Retry{}}), pol(name, changed)}})
				}
				for i, want := range []fault.Code{fault.Unavailable, fault.Unavailable, fault.Exhausted} {
					if err := do(t.Context(), again, call.Desc{}, fine); fault.Of(err) != want || fault.RuleOf(err) != name {
						t.Errorf("call %d after the change: %v (policy %q), want %v: 2 of 3 tokens, and the breaker open", i, err, fault.RuleOf(err), want)
					}
				}
				e.Swap(&policy.Snapshot{})
				if err := do(t.Context(), tg, call.Desc{}, fine); err != nil {
					t.Errorf("without policy: %v", err)
				}
				e.Swap(&policy.Snapshot{Policies: []policy.Policy{pol(name, full)}})
				if err := do(t.Context(), tg, call.Desc{}, fine); err != nil {
					t.Errorf("a policy that was gone remembers: %v", err)
				}
			})
		})
	}
}

func TestCallsInFlightKeepTheirChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, s := range map[string]policy.Spec{"static": retries(2), "dynamic": with(retries(2), func(s *policy.Spec) { s.Match = []policy.Match{{Op: policy.Words{"get"}}} })} {
			e := engine(t, policy.Options{}, pol("p", s))
			tg := governed(e, call.State, "orders")
			n := 0
			_ = do(t.Context(), tg, safe, func(context.Context) error {
				if n++; n == 1 {
					e.Swap(&policy.Snapshot{Policies: []policy.Policy{pol("p", retries(0))}})
					if n := attempts(t, tg, safe); n != 1 {
						t.Errorf("%s: a new call makes %d attempts, want 1", name, n)
					}
				}
				return errNever
			})
			if n != 3 {
				t.Errorf("%s: the old call made %d attempts, want 3", name, n)
			}
		}
	})
}

// Calls, targets that come and go, and changes of policy at once; the leak check of this package
// sees what is left running.
func TestSwapsDuringCalls(t *testing.T) {
	full := policy.Spec{Retry: &policy.Retry{Max: ptr(1), Backoff: policy.Backoff{Base: 1, Max: 1}, Budget: &policy.Budget{}}, Breaker: &policy.Breaker{FailureRate: 99}, Limits: &policy.Limits{MaxRequests: 100},
		Hedge: &policy.Hedge{Delay: "p99"}, Timeout: &policy.Timeout{Total: time.Minute}, RateLimit: &policy.RateLimit{Local: &policy.LocalRate{Tokens: 1e6, Key: "caller"}}, Route: ways("a", "b"), Mirror: &policy.Mirror{To: "a"}}
	e := engine(t, policy.Options{Record: &recorded{}}, pol("p", full))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				tg := governed(e, call.Kind(i%6), fmt.Sprint("t", i%3))
				d := call.Desc{Op: "get", Key: fmt.Sprint(i), Safety: call.Safe, Caller: call.Caller{App: fmt.Sprint(w)}}
				err := do(context.Background(), tg, d, func(context.Context) error {
					if i%7 == 0 {
						return errMaybe
					}
					return nil
				})
				if err != nil && !errors.Is(err, errMaybe) {
					t.Errorf("call %d: %v", i, err)
					return
				}
			}
		})
	}
	for i := range 150 {
		s := full
		switch i % 3 {
		case 0:
			s.Match = []policy.Match{{Op: policy.Words{"get"}}}
		case 1:
			s.Limits = &policy.Limits{MaxRequests: 50 + i}
		}
		e.Swap(&policy.Snapshot{Policies: []policy.Policy{pol([]string{"p", "q"}[i%2], s)}})
	}
	close(stop)
	wg.Wait()
}

func TestTargetsThatAreGoneAreForgotten(t *testing.T) {
	e := engine(t, policy.Options{}, pol("p", retries(1)))
	for i := range 20000 {
		governed(e, call.Service, fmt.Sprint("app-", i))
	}
	kept := governed(e, call.Service, "app-1")
	e.Swap(&policy.Snapshot{})
	if kept.Chain().Replay {
		t.Error("a target in use keeps the old policy")
	}
}

func TestDaprTimeoutAndBreakerGiveWayOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := policy.Resilience{Timeout: &policy.DaprTimeout{After: time.Second}, Breaker: &policy.DaprBreaker{Config: breaker.Config{Trip: trip(t, "consecutiveFailures >= 1")}}}
		tg := dapr(t, call.State, r, pol("p", policy.Spec{Breaker: &policy.Breaker{Trip: "false"}}))
		for range 3 {
			start := time.Now()
			if err := do(t.Context(), tg, call.Desc{}, until); fault.Of(err) != fault.Deadline || time.Since(start) != time.Second {
				t.Errorf("%v after %v; want Resiliency's timeout, and the policy's breaker", err, time.Since(start))
			}
		}
	})
}
