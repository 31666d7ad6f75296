package file_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/policy/file"
	"github.com/mecha-project/mecha/runtime/settings"
)

// traffic is a TrafficPolicy resource: the spec begins in line 4.
func traffic(name, spec string) string {
	return "apiVersion: mecha.io/v1\nkind: TrafficPolicy\nmetadata: {name: " + name + "}\nspec:\n" + spec
}

func joined(docs ...string) string { return strings.Join(docs, "\n---\n") }

// compile reads resources as the sidecar does.
func compile(t testing.TB, yaml string, components map[call.Kind][]string) *file.Compiled {
	t.Helper()
	r := settings.ParseResources("p.yaml", []byte(yaml))
	c := file.Compile(file.Source{Policies: r.Policies, Resiliencies: r.Resiliencies, Components: components})
	c.Findings = append(r.Findings, c.Findings...)
	return c
}

func TestFindings(t *testing.T) {
	stores := map[call.Kind][]string{call.State: {"orders", "orders-next", "archive"}, call.Publish: {"events"}}
	tests := []struct {
		name, yaml string
		want       []string // all of them, without the file; in order
	}{
		{"an unknown field", traffic("p", "  retry: {max: 3}\n  retri: {max: 3}\n"), []string{`6: error: spec.retri: unknown field; did you mean retry?`}},
		{"an unknown field further in", traffic("p", "  retry:\n    maxx: 3\n"), []string{`6: error: spec.retry.maxx: unknown field; did you mean max?`}},
		{"a word for a number", traffic("p", "  retry:\n    max: three\n"), []string{`6: error: spec.retry.max: `}},
		{"a number for a duration", traffic("p", "  timeout:\n    total: 5\n"), []string{`6: error: spec.timeout.total: `}},
		{"a list for a mapping", traffic("p", "  timeout: [1s]\n"), []string{`5: error: spec.timeout: `}},
		{"nothing but a match", traffic("p", "  match:\n    - {kind: state}\n"), []string{`1: error: spec: says nothing about the calls it is for`}},
		{"an impossible percentage", traffic("p", "  fault:\n    delay: {fixed: 1s, percent: 101}\n    abort: {percent: -1}\n"), []string{
			`6: error: spec.fault.delay.percent: 101 is not a percentage; want 0 to 100`, `7: error: spec.fault.abort.percent: -1 is not a percentage; want 0 to 100`}},
		{"an outcome that is none", traffic("p", "  fault:\n    abort: {outcome: unavailible}\n"), []string{`6: error: spec.fault.abort.outcome: "unavailible" is not one of app-error, `}},
		{"injected success", traffic("p", "  fault:\n    abort: {outcome: ok}\n"), []string{`6: error: spec.fault.abort.outcome: "ok" is not one of `}},
		{"a fault without either", traffic("p", "  fault: {}\n"), []string{`5: error: spec.fault: has neither delay nor abort and does nothing`}},
		{"perTry longer than total", traffic("p", "  timeout:\n    total: 1s\n    perTry: 2s\n"), []string{`7: error: spec.timeout.perTry: 2s is longer than the whole call may take (total: 1s)`}},
		{"a hedge that never comes", traffic("p", "  timeout: {perTry: 1s}\n  hedge: {delay: 2s}\n"), []string{`6: error: spec.hedge.delay: 2s is not shorter than an attempt may take`}},
		{"a hedge at no time", traffic("p", "  hedge: {delay: p100}\n"), []string{`5: error: spec.hedge.delay: "p100" is no percentile like p95`}},
		{"an unknown outcome to retry", traffic("p", "  retry:\n    on: [unavailable, conect-failure]\n"), []string{`6: error: spec.retry.on[1]: "conect-failure" is not one of `}},
		{"an outcome that cannot be retried", traffic("p", "  retry: {on: policy-rejected}\n"), []string{`5: error: spec.retry.on[0]: "policy-rejected" is not one of `}},
		{"statuses that are none", traffic("p", "  retry: {statuses: \"429,504-502\"}\n"), []string{`5: error: spec.retry.statuses: "504-502" is no status or range like 502-504`}},
		{"a budget over one", traffic("p", "  retry: {budget: {ratio: 20}}\n"), []string{`5: error: spec.retry.budget.ratio: 20 is not a share of the calls; want 0 to 1`}},
		{"backoff upside down", traffic("p", "  retry: {backoff: {base: 1s, max: 1ms}}\n"), []string{`5: error: spec.retry.backoff.max: is shorter than base`}},
		{"a bad trip", traffic("p", "  breaker:\n    trip: consecutiveFailure > 5\n"), []string{`6: error: spec.breaker.trip: `}},
		{"a breaker per something", traffic("p", "  breaker: {per: operations}\n"), []string{`5: error: spec.breaker.per: "operations" is not one of target, operation; did you mean operation?`}},
		{"a failure rate over a hundred", traffic("p", "  breaker:\n    failureRate: 150\n"), []string{`6: error: spec.breaker.failureRate: must be from 0 to 100 percent, is 150`}},
		{"no tokens", traffic("p", "  rateLimit:\n    local: {per: 1s}\n"), []string{`6: error: spec.rateLimit.local.tokens: want how many calls`}},
		{"a limit by what is not known", traffic("p", "  rateLimit:\n    local: {tokens: 1, key: callr}\n"), []string{`6: error: spec.rateLimit.local.key: "callr" is not one of caller, op, resource, key, header:NAME; did you mean caller?`}},
		{"waiting without a cap", traffic("p", "  limits: {maxPending: 5}\n"), []string{`5: error: spec.limits.maxPending: nothing waits without maxRequests`}},
		{"no way at all", traffic("p", "  route:\n    - {to: archive, weight: 0}\n"), []string{`5: error: spec.route: every weight is 0, so calls can go nowhere`}},
		{"the same way twice", traffic("p", "  route:\n    - to: archive\n    - to: archive\n"), []string{`7: error: spec.route[1]: is the same way as route[0]`}},
		{"an unknown subset", traffic("p", "  subsets: {blue: {v: \"1\"}}\n  route:\n    - {subset: blu}\n"), []string{`7: error: spec.route[0].subset: no subset is called "blu"; did you mean blue?`}},
		{"data by chance", traffic("p", "  match: [{kind: state}]\n  route: [{to: orders}, {to: archive}]\n  split: {by: random}\n"), []string{`7: error: spec.split.by: "random" would spread the writes of one key over several places (kind state); use key, or promise readOnly: true`}},
		{"a split of nothing", traffic("p", "  timeout: {total: 1s}\n  split: {by: key}\n"), []string{`6: error: spec.split: there is no route to split`}},
		{"endpoints of a component", traffic("p", "  match: [{kind: state}]\n  lb: {policy: random}\n"), []string{`6: error: spec.lb: components are chosen by route, not by lb`}},
		{"a hash of nothing", traffic("p", "  lb: {policy: maglev}\n"), []string{`5: error: spec.lb.hash: maglev needs something to hash`}},
		{"a kind that is none", traffic("p", "  match:\n    - {kind: stat}\n  timeout: {total: 1s}\n"), []string{`6: error: spec.match[0].kind[0]: "stat" is not one of `}},
		{"a verb that is none", traffic("p", "  match:\n    - {method: get}\n  timeout: {total: 1s}\n"), []string{`6: error: spec.match[0].method[0]: "get" is not an HTTP verb in capital letters`}},
		{"a header that is none", traffic("p", "  headers:\n    request:\n      set: {\"x y\": z}\n"), []string{`: error: spec.headers.request.set: "x y" is not the name of a header`}},
		{"a rule for everything", traffic("p", "  authz:\n    deny:\n      - {name: all}\n"), []string{`7: error: spec.authz.deny[0]: fits every call`}},
		{"authz without either", traffic("p", "  authz: {shadow: true}\n"), []string{`5: error: spec.authz: has neither deny nor allow and does nothing`}},
		{"a destination that does not exist", traffic("p", "  match: [{kind: state, dest: orders}]\n  route:\n    - to: orders\n    - to: orders-nxt\n"), []string{`8: error: spec.route[1].to: no state component is called "orders-nxt"; did you mean orders-next?`}},
		{"of another kind", traffic("p", "  match: [{kind: state, dest: orders}]\n  mirror: {to: events}\n"), []string{`6: error: spec.mirror.to: no state component is called "events"`}},
		{"a name that is nowhere", traffic("p", "  match: [{kind: state, dest: ordres}]\n  timeout: {total: 1s}\n"), []string{`5: warning: spec.match: no state component is called "ordres"; the policy is for nothing there; did you mean orders?`}},
		{"a name of policy that leads to itself", traffic("p", "  match: [{kind: state, dest: all}]\n  route: [{to: orders}, {to: \"\"}]\n"), []string{`6: error: spec.route: no state component is called "all", so every route must say where to`}},
		{"a mirror of itself", traffic("p", "  match: [{kind: state, dest: orders}]\n  mirror: {to: orders}\n"), []string{`6: error: spec.mirror.to: copies go in a circle: orders → orders`}},
		{"two mirrors", joined(traffic("p", "  match: [{kind: state, dest: orders}]\n  mirror: {to: archive}\n"), traffic("q", "  match: [{kind: state, dest: archive}]\n  mirror: {to: orders}\n")), []string{
			`6: error: spec.mirror.to: copies go in a circle: orders → archive → orders`, `14: error: spec.mirror.to: copies go in a circle: archive → orders → archive`}},
		{"three mirrors", joined(traffic("p", "  match: [{kind: state, dest: orders}]\n  mirror: {to: archive}\n"), traffic("q", "  match: [{kind: state, dest: archive}]\n  mirror: {to: orders-next}\n"),
			traffic("r", "  match: [{kind: state, dest: orders-next}]\n  mirror: {to: orders}\n")), []string{
			`6: error: spec.mirror.to: copies go in a circle: orders → archive → orders-next → orders`, `14: error: spec.mirror.to: copies go in a circle: archive → orders-next → orders → archive`,
			`22: error: spec.mirror.to: copies go in a circle: orders-next → orders → archive → orders-next`}},
		{"a chain that ends in a circle is not part of it", joined(traffic("p", "  match: [{kind: state, dest: orders}]\n  mirror: {to: archive}\n"), traffic("q", "  match: [{kind: state, dest: archive}]\n  mirror: {to: archive}\n")), []string{
			`14: error: spec.mirror.to: copies go in a circle: archive → archive`}},
		{"two findings at once", traffic("p", "  timeout: {total: -1s}\n  retry: {max: -1}\n"), []string{`5: error: spec.timeout.total: cannot be negative`, `6: error: spec.retry.max: cannot be negative`}},
		{"a Resiliency with a bad trip", resiliency("r", "  policies:\n    circuitBreakers:\n      b: {trip: nonsense > 1}\n"), []string{`7: error: spec.policies.circuitBreakers.b.trip: `}},
		{"too few built-in retries", resiliency("r", "  policies:\n    retries:\n      DaprBuiltInServiceRetries: {policy: constant, duration: 1s, maxRetries: 1}\n"), []string{`7: warning: spec.policies.retries.DaprBuiltInServiceRetries.maxRetries: 1 is too few for DaprBuiltInServiceRetries; 3 are made`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := compile(t, tt.yaml, stores)
			var got []string
			for _, f := range c.Findings {
				got = append(got, strings.TrimPrefix(f.String(), "p.yaml:"))
			}
			ok := len(got) == len(tt.want)
			for i := range min(len(got), len(tt.want)) {
				ok = ok && (strings.HasPrefix(got[i], tt.want[i]) || tt.want[i][0] == ':' && strings.Contains(got[i], tt.want[i]))
			}
			if !ok {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			bad := strings.Contains(strings.Join(tt.want, "\n"), ": error: ")
			if c.Refused != (bad && !strings.Contains(tt.yaml, "kind: Resiliency")) {
				t.Errorf("refused: %v", c.Refused)
			}
		})
	}
}

func resiliency(name, spec string) string {
	return "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: " + name + "}\nspec:\n" + spec
}

func TestDuplicateNamesAreFoundOnLoading(t *testing.T) {
	dir := t.TempDir()
	for name, spec := range map[string]string{"a.yaml": "  timeout: {total: 1s}\n", "b.yaml": "  timeout: {total: 2s}\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(traffic("same", spec)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := settings.LoadResources([]string{dir}, settings.Selection{AppID: "app"})
	if err == nil || !strings.Contains(err.Error(), `another TrafficPolicy is called "same"`) || !strings.Contains(err.Error(), "b.yaml:1") {
		t.Errorf("got %v", err)
	}
}

func TestCompiles(t *testing.T) {
	c := compile(t, joined(
		traffic("late", "  priority: -1\n  timeout: {total: 9s}\n"),
		traffic("first", `
  match: [{kind: [state, Publish], dest: orders, op: [get, set], headers: {x-a: "1"}}]
  authz: {allow: []}
  retry: {max: 0, on: unavailable, statuses: "429", backoff: {base: 25ms}, budget: {ratio: 0.2, minPerSecond: 10}}
  hedge: {delay: p95, max: 1}
  route: [{to: orders, weight: 0}, {to: next, weight: 7, priority: 1}]
  lb: {hash: [{header: x-user}, key]}
`), traffic("urgent", "  priority: 5\n  timeout: {total: 1s, perTry: 200ms}\n")), nil)
	if err := c.Findings.Err(); err != nil || c.Refused {
		t.Fatal(err)
	}
	var names []string
	for _, p := range c.Snapshot.Policies {
		names = append(names, p.Name+" "+p.Where)
	}
	if d := cmp.Diff([]string{"urgent p.yaml:22", "first p.yaml:9", "late p.yaml:1"}, names); d != "" {
		t.Errorf("order (-want +got):\n%s", d)
	}
	s := c.Snapshot.Policies[1].Spec
	if s.Authz == nil || s.Authz.Allow == nil || len(s.Authz.Allow) != 0 {
		t.Errorf("an empty allow list is not the same as none: %+v", s.Authz)
	}
	want := policy.Spec{
		Match: []policy.Match{{Kind: policy.Words{"state", "Publish"}, Dest: policy.Words{"orders"}, Op: policy.Words{"get", "set"}, Headers: map[string]string{"x-a": "1"}}},
		Authz: &policy.Authz{Allow: []policy.Rule{}},
		Retry: &policy.Retry{Max: new(int), On: policy.Words{"unavailable"}, Statuses: "429", Backoff: policy.Backoff{Base: 25 * time.Millisecond}, Budget: &policy.Budget{Ratio: 0.2, MinPerSecond: 10}},
		Hedge: &policy.Hedge{Delay: "p95", Max: 1},
		Route: []policy.Destination{{To: "orders", Weight: new(int)}, {To: "next", Weight: ptr(7), Priority: 1}},
		LB:    &policy.Balance{Hash: []policy.HashKey{{Header: "x-user"}, {Word: "key"}}},
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func ptr[T any](v T) *T { return &v }

// A policy with an error is left out; the others hold.
func TestOneErrorDoesNotTakeTheRest(t *testing.T) {
	c := compile(t, joined(traffic("good", "  timeout: {total: 1s}\n"), traffic("bad", "  retry: {max: -1}\n")), nil)
	if len(c.Snapshot.Policies) != 1 || c.Snapshot.Policies[0].Name != "good" || !c.Refused {
		t.Errorf("in force: %+v, refused %v", c.Snapshot.Policies, c.Refused)
	}
}

func TestNamesThatExistInPolicyOnly(t *testing.T) {
	c := compile(t, traffic("p", "  match: [{kind: state, dest: [all, orders]}]\n  route: [{to: gone, weight: 0}, {to: orders}, {to: next}]\n"),
		map[call.Kind][]string{call.State: {"orders", "next", "gone"}})
	if err := c.Findings.Err(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]file.Away{{Kind: call.State, Name: "all", First: "orders"}}, c.Away); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Each level of default names, the most specific first. A target that is listed has no defaults.
func TestResiliencyDefaults(t *testing.T) {
	levels := []string{"", "App", "Component", "ComponentOutbound", "ComponentInbound", "StatestoreComponentOutbound", "PubsubComponentOutbound", "PubsubComponentInbound", "LockComponentOutbound",
		"ConfigurationComponentOutbound", "SecretstoreComponentOutbound", "BindingComponentOutbound", "BindingComponentInbound", "CryptoComponentOutbound"}
	all := func(names []string) string {
		var timeouts, retries, breakers strings.Builder
		for i, l := range names {
			fmt.Fprintf(&timeouts, "      Default%sTimeoutPolicy: %ds\n", l, at(levels, l)+1)
			fmt.Fprintf(&retries, "      Default%sRetryPolicy: {policy: constant, duration: 1s, maxRetries: %d}\n", l, at(levels, l)+1)
			fmt.Fprintf(&breakers, "      Default%sCircuitBreakerPolicy: {trip: consecutiveFailures > %d}\n", l, at(levels, l)+1)
			_ = i
		}
		return resiliency("r", "  policies:\n    timeouts:\n"+timeouts.String()+"    retries:\n"+retries.String()+"    circuitBreakers:\n"+breakers.String()+
			"  targets:\n    apps: {listed: {}}\n    components: {listed: {outbound: {timeout: DefaultTimeoutPolicy}}}\n")
	}
	target := func(k call.Kind, d call.Direction, name string) *call.Target {
		return &call.Target{Kind: k, Direction: d, Name: name}
	}
	tests := []struct {
		t    *call.Target
		want []string // the levels that apply, the first that is defined
	}{
		{target(call.Service, call.Outbound, "x"), []string{"App", ""}},
		{target(call.App, call.Outbound, "x"), []string{"App", ""}},
		{target(call.App, call.Inbound, "x"), nil},
		{target(call.Service, call.Outbound, "listed"), nil},
		{target(call.State, call.Outbound, "x"), []string{"StatestoreComponentOutbound", "ComponentOutbound", "Component", ""}},
		{target(call.Publish, call.Outbound, "x"), []string{"PubsubComponentOutbound", "ComponentOutbound", "Component", ""}},
		{target(call.Deliver, call.Inbound, "x"), []string{"PubsubComponentInbound", "ComponentInbound", "Component", ""}},
		{target(call.Lock, call.Outbound, "x"), []string{"LockComponentOutbound", "ComponentOutbound", "Component", ""}},
		{target(call.Config, call.Outbound, "x"), []string{"ConfigurationComponentOutbound", "ComponentOutbound", "Component", ""}},
		{target(call.Secret, call.Outbound, "x"), []string{"SecretstoreComponentOutbound", "ComponentOutbound", "Component", ""}},
		{target(call.Binding, call.Outbound, "x"), []string{"BindingComponentOutbound", "ComponentOutbound", "Component", ""}},
		{target(call.Binding, call.Inbound, "x"), []string{"BindingComponentInbound", "ComponentInbound", "Component", ""}},
		{target(call.Crypto, call.Outbound, "x"), []string{"CryptoComponentOutbound", "ComponentOutbound", "Component", ""}},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%v %v %s", tt.t.Kind, tt.t.Direction, tt.t.Name), func(t *testing.T) {
			for left := range len(tt.want) + 1 { // without the most specific ones
				var names []string
				for _, l := range levels {
					if i := at(tt.want, l); i < 0 || i >= left {
						names = append(names, l)
					}
				}
				c := compile(t, all(names), nil)
				if err := c.Findings.Err(); err != nil {
					t.Fatal(err)
				}
				r := c.Snapshot.Resilience(tt.t)
				if left >= len(tt.want) {
					if r != nil {
						t.Errorf("without defaults for it: %+v", r)
					}
					continue
				}
				want := tt.want[left]
				n := at(levels, want) + 1
				if r == nil || r.Timeout == nil || r.Retry == nil || r.Breaker == nil || r.Timeout.After != time.Duration(n)*time.Second || r.Retry.Max != n ||
					r.Breaker.Config.Trip.String() != fmt.Sprintf("consecutiveFailures > %d", n) || r.Timeout.Name != "Resiliency r/Default"+want+"TimeoutPolicy" {
					t.Errorf("want the level %q, got %+v", want, r)
				}
			}
		})
	}
	c := compile(t, all(levels), nil)
	if r := c.Snapshot.Resilience(target(call.State, call.Outbound, "listed")); r == nil || r.Timeout == nil || r.Timeout.After != time.Second || r.Retry != nil || r.Breaker != nil {
		t.Errorf("a component that is listed has what it lists: %+v", r)
	}
}

func at(list []string, s string) int {
	for i, x := range list {
		if x == s {
			return i
		}
	}
	return -1
}

func TestResiliencies(t *testing.T) {
	c := compile(t, joined(
		resiliency("one", "  policies:\n    timeouts: {fast: 1s}\n    retries:\n      many: {policy: exponential, maxInterval: 9s, maxRetries: -1, matching: {httpStatusCodes: \"429,500-502\", gRPCStatusCodes: \"14\"}}\n      plain: {policy: constant}\n  targets:\n    components: {orders: {outbound: {timeout: fast, retry: plain}}}\n"),
		resiliency("two", "  policies:\n    circuitBreakers:\n      cb: {maxRequests: 2, interval: 3s, timeout: 4s}\n  targets:\n    apps: {checkout: {timeout: fast, retry: many, circuitBreaker: cb, circuitBreakerCacheSize: 7}}\n"),
		resiliency("bad", "  policies:\n    timeouts: {fast: 1h}\n    circuitBreakers:\n      x: {trip: \"(\"}\n")), nil)
	if len(c.Resiliencies) != 2 || c.Refused {
		t.Errorf("%d in force, refused %v: one is wrong and left out whole", len(c.Resiliencies), c.Refused)
	}
	r := c.Snapshot.Resilience(&call.Target{Kind: call.Service, Name: "checkout"})
	if r == nil || r.Timeout.After != time.Second || r.Timeout.Resource != "one" {
		t.Fatalf("names of one resource are known in the other, and those of the bad one are not: %+v", r)
	}
	if d := cmp.Diff(policy.DaprRetry{Named: policy.Named{Resource: "one", Policy: "many", Name: "Resiliency one/many"}, Exponential: true, Pause: 5 * time.Second, MaxPause: 9 * time.Second, Max: -1,
		HTTP: []policy.Span{{From: 429, To: 429}, {From: 500, To: 502}}, GRPC: []policy.Span{{From: 14, To: 14}}}, *r.Retry); d != "" {
		t.Errorf("retry (-want +got):\n%s", d)
	}
	if b := r.Breaker; b.CacheSize != 7 || b.Config.MaxRequests != 2 || b.Config.Interval != 3*time.Second || b.Config.Timeout != 4*time.Second || b.Resource != "two" {
		t.Errorf("breaker %+v", b)
	}
	if r := c.Snapshot.Resilience(&call.Target{Kind: call.State, Name: "orders"}); r == nil || r.Retry == nil || r.Retry.Pause != 5*time.Second || r.Breaker != nil {
		t.Errorf("orders: %+v", r)
	}
	if r := c.Snapshot.Resilience(&call.Target{Kind: call.State, Name: "other"}); r != nil {
		t.Errorf("other: %+v", r)
	}
}

func TestBuiltInRetriesCanBeChanged(t *testing.T) {
	c := compile(t, resiliency("r", "  policies:\n    retries:\n      DaprBuiltInServiceRetries: {policy: constant, duration: 2s, maxRetries: 8}\n"), nil)
	service := &call.Target{Kind: call.Service, Name: "x"}
	r := c.Snapshot.Resilience(service)
	if r == nil || r.Retry == nil || r.Retry.Max != 8 || r.Retry.Pause != 2*time.Second || !r.Retry.OnlyTransport {
		t.Fatalf("got %+v", r)
	}
	for _, tg := range []*call.Target{{Kind: call.App, Name: "x"}, {Kind: call.State, Name: "x"}} {
		if r := c.Snapshot.Resilience(tg); r != nil {
			t.Errorf("%v: %+v; they have no built-in retries", tg.Kind, r)
		}
	}
	e := policy.New(policy.Options{})
	e.Swap(c.Snapshot)
	e.Govern(service)
	if pause, again := service.Chain().Retry(&call.Call{Target: service, Attempt: 8, Outcome: call.ConnectFailure}, fault.New("t", fault.Unavailable, "x")); !again || pause != 2*time.Second {
		t.Errorf("the eighth retry: %v after %v", again, pause)
	}
}

func TestAccess(t *testing.T) {
	tests := []struct {
		name string
		a    settings.AccessControl
		want *policy.Access
	}{
		{"nothing", settings.AccessControl{}, nil},
		{"allow", settings.AccessControl{DefaultAction: "allow"}, nil},
		{"deny", settings.AccessControl{DefaultAction: "deny"}, &policy.Access{Deny: true}},
		{"policies deny the rest", settings.AccessControl{Policies: []settings.AppAccessPolicy{{AppID: "a", Namespace: "n"}}}, &policy.Access{Deny: true, Policies: []policy.AccessPolicy{{App: "a", Namespace: "n", Deny: true}}}},
		{"unless it is said", settings.AccessControl{DefaultAction: "Allow", Policies: []settings.AppAccessPolicy{{AppID: "a", DefaultAction: "deny"}}}, &policy.Access{Policies: []policy.AccessPolicy{{App: "a", Deny: true}}}},
		{"a word that is neither denies", settings.AccessControl{DefaultAction: "alow"}, &policy.Access{Deny: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := file.Compile(file.Source{Access: &tt.a}).Snapshot.Access
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// FuzzCompile feeds bytes through reading and compiling, builds chains for a few targets and
// makes calls. Whatever is written, nothing may panic.
func FuzzCompile(f *testing.F) {
	f.Add([]byte(traffic("p", "  route: [{to: a}, {to: b, weight: 3, priority: 1}]\n  retry: {max: 1, backoff: {base: 1ns, max: 1ns}, budget: {ratio: 0.1}}\n  breaker: {failureRate: 50, per: operation}\n")))
	f.Add([]byte(traffic("p", "  match: [{kind: \"*\", path: \"/a/**\", headers: {x: \"*\"}}]\n  authz: {deny: [{from: a*b*c}], allow: [{op: get}]}\n  headers: {request: {set: {a: b}}}\n")))
	f.Add([]byte(traffic("p", "  rateLimit: {local: {tokens: 3, key: header:x}}\n  limits: {maxRequests: 1, maxPending: -1}\n  hedge: {delay: p95}\n  mirror: {to: b, percent: 10}\n  timeout: {total: 1s, perTry: 10ms}\n")))
	f.Add([]byte(traffic("p", "  lb: {policy: maglev, hash: [key, {cookie: c}], sticky: {cookie: c}}\n  outlier: {consecutive5xx: 1}\n  health: {interval: 1s}\n")))
	f.Add([]byte(traffic("p", "  fault: {delay: {fixed: 1ns}, abort: {percent: 50, outcome: reset}}\n")))
	f.Add([]byte(resiliency("r", "  policies:\n    timeouts: {DefaultTimeoutPolicy: 1s}\n    retries: {DefaultRetryPolicy: {policy: exponential, maxRetries: 1}}\n    circuitBreakers: {DefaultCircuitBreakerPolicy: {trip: consecutiveFailures > 1}}\n")))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := settings.ParseResources("f.yaml", data)
		var access *settings.AccessControl
		for i := range r.Configurations {
			access = r.Configurations[i].AccessControl
		}
		c := file.Compile(file.Source{Policies: r.Policies, Resiliencies: r.Resiliencies, Access: access, Components: map[call.Kind][]string{call.State: {"a", "b"}, call.Publish: {"a"}}})
		e := policy.New(policy.Options{})
		defer e.Close()
		e.Swap(c.Snapshot)
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // no pause is waited for
		for kind := call.Service; kind <= call.App; kind++ {
			for _, d := range []call.Direction{call.Outbound, call.Inbound} {
				tg := &call.Target{Kind: kind, Direction: d, Name: "a"}
				e.Govern(tg)
				for _, err := range []error{nil, fault.New("t", fault.Unavailable, "x").WithSent(fault.SentNever)} {
					n := 0
					desc := call.Desc{Op: "get", Resource: "a/b", Key: "k", Safety: call.Safe, Attrs: call.Fields{{Name: "x", Value: "y"}}, Caller: call.Caller{App: "abc", Proven: true}}
					_, _ = call.Do(ctx, tg, desc, func(context.Context) (int, error) {
						if n++; n > 1000 {
							t.Fatal("a call without end")
						}
						return 0, err
					})
				}
				if retry := call.PolicyOf(tg, call.Desc{}).Retry; retry != nil {
					for _, attempt := range []int{1, 30, 1000} {
						if pause, _ := retry(&call.Call{Target: tg, Desc: call.Desc{Safety: call.Safe}, Attempt: attempt, Outcome: call.Unavailable}, fault.New("t", fault.Unavailable, "x")); pause < 0 {
							t.Errorf("a pause of %v", pause)
						}
					}
				}
			}
		}
	})
}

func TestBuiltInRetriesHaveALeast(t *testing.T) {
	for written, want := range map[int]int{0: 3, 1: 3, 3: 3, 4: 4, -1: -1} {
		c := compile(t, resiliency("r", fmt.Sprintf("  policies:\n    retries:\n      DaprBuiltInServiceRetries: {policy: constant, maxRetries: %d}\n", written)), nil)
		if r := c.Snapshot.Resilience(&call.Target{Kind: call.Service, Name: "x"}); r == nil || r.Retry == nil || r.Retry.Max != want {
			t.Errorf("maxRetries %d: %+v, want %d", written, r, want)
		}
	}
}
