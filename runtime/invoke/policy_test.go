package invoke_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/invoke"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/policy/outlier"
)

// mesh is peers whose answers a test decides, by address.
type mesh struct {
	mu     sync.Mutex
	called []string // guarded by mu
	serve  func(ctx context.Context, addr string, r *call.Request) (*call.Response, error)
}

func (m *mesh) Invoke(ctx context.Context, to block.Instance, req *call.Request) (*call.Response, error) {
	m.mu.Lock()
	m.called = append(m.called, to.Address)
	m.mu.Unlock()
	return m.serve(ctx, to.Address, req)
}

func (m *mesh) take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.called
	m.called = nil
	return out
}

// governed is the service under policies.
func governed(t testing.TB, m *mesh, specs ...policy.Spec) (*kit, *policy.Engine) {
	t.Helper()
	e := policy.New(policy.Options{})
	s := &policy.Snapshot{}
	for i, spec := range specs {
		if found := spec.Check(); len(found) > 0 {
			t.Fatal(found)
		}
		s.Policies = append(s.Policies, policy.Policy{Name: fmt.Sprintf("p%d", i), Spec: spec})
	}
	e.Swap(s)
	k := newKit(t, func(o *invoke.Options) { o.Govern, o.Peers = e.Govern, m })
	t.Cleanup(e.Close)
	return k, e
}

func ok(body string) (*call.Response, error) {
	return &call.Response{Status: 200, Data: []byte(body)}, nil
}

func status(code int) (*call.Response, error) {
	return &call.Response{Status: code, Data: []byte(fmt.Sprint(code))}, nil
}

func two() *int { n := 2; return &n }

func TestARetryGoesToAnotherInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{serve: func(_ context.Context, addr string, _ *call.Request) (*call.Response, error) {
			if addr == "good" {
				return ok("fine")
			}
			return status(503)
		}}
		k, _ := governed(t, m, policy.Spec{Retry: &policy.Retry{Max: two()}, LB: &policy.Balance{Policy: "round_robin"}})
		defer k.Close()
		k.reg.set(shop, "bad1", "good", "bad2")
		for range 20 {
			var out answer
			if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET"}, &out); err != nil || out.body != "fine" {
				t.Fatalf("got %d %q, %v", out.status, out.body, err)
			}
			called := m.take()
			slices.Sort(called)
			if len(slices.Compact(called)) != len(called) || len(called) > 3 {
				t.Errorf("called %v: an instance that has failed this call is asked last", called)
			}
		}
	})
}

func TestTheLastAnswerIsPassedOnWhenRetriesAreUsedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var closed atomic.Int32
		m := &mesh{serve: func(context.Context, string, *call.Request) (*call.Response, error) {
			return &call.Response{Status: 503, Data: []byte("sorry"), Held: released(func() { closed.Add(1) })}, nil
		}}
		k, _ := governed(t, m, policy.Spec{Retry: &policy.Retry{Max: two()}})
		k.reg.set(shop, "a")
		var out answer
		if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET"}, &out); err != nil || out.status != 503 || out.body != "sorry" {
			t.Errorf("got %d %q, %v", out.status, out.body, err)
		}
		if n := len(m.take()); n != 3 {
			t.Errorf("%d attempts, want 3", n)
		}
		if n := closed.Load(); n != 3 {
			t.Errorf("%d of 3 answers were closed: each may hold a connection", n)
		}
	})
}

type released func()

func (c released) Close() error { c(); return nil }

// A POST may have acted, so an answer that says unavailable does not make it safe to repeat.
func TestUnsafeCallsAreNotRepeatedAfterAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{serve: func(context.Context, string, *call.Request) (*call.Response, error) { return status(503) }}
		for _, tt := range []struct {
			verb        string
			atLeastOnce bool
			want        int
		}{{"POST", false, 1}, {"POST", true, 3}, {"PUT", false, 3}, {"GET", false, 3}} {
			k, _ := governed(t, m, policy.Spec{Retry: &policy.Retry{Max: two(), AtLeastOnce: tt.atLeastOnce}})
			k.reg.set(shop, "a")
			_ = k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: tt.verb}, &answer{})
			if n := len(m.take()); n != tt.want {
				t.Errorf("%s, at least once %v: %d attempts, want %d", tt.verb, tt.atLeastOnce, n, tt.want)
			}
		}
	})
}

func TestAStreamedBodyIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		m := &mesh{}
		m.serve = func(_ context.Context, _ string, r *call.Request) (*call.Response, error) {
			b, err := io.ReadAll(r.Stream)
			if err != nil {
				return nil, err
			}
			if got = append(got, string(b)); len(got) < 3 {
				return status(503)
			}
			return ok("fine")
		}
		k, _ := governed(t, m, policy.Spec{Retry: &policy.Retry{Max: two()}})
		k.reg.set(shop, "a")
		text := strings.Repeat("0123456789", 5000)
		var out answer
		err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "PUT", Stream: io.NopCloser(strings.NewReader(text)), Length: call.Unknown}, &out)
		if err != nil || out.body != "fine" {
			t.Fatalf("got %q, %v", out.body, err)
		}
		if d := cmp.Diff([]string{text, text, text}, got); d != "" {
			t.Errorf("each attempt must see the whole body:\n%s", d)
		}
	})
}

func TestAHedgeBeatsASlowInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cancelled atomic.Int32
		m := &mesh{serve: func(ctx context.Context, addr string, r *call.Request) (*call.Response, error) {
			r.Header.Set("x-seen-by", addr) // attempts must not share headers
			if addr == "slow" {
				select {
				case <-time.After(10 * time.Second):
				case <-ctx.Done():
					cancelled.Add(1)
					return nil, fault.Wrap("peer", fault.Canceled, ctx.Err())
				}
			}
			return ok(addr)
		}}
		k, _ := governed(t, m, policy.Spec{Hedge: &policy.Hedge{Delay: "50ms"}, LB: &policy.Balance{}})
		k.reg.set(shop, "slow", "fast")
		start := time.Now()
		for range 10 {
			var out answer
			if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET", Header: call.Fields{{Name: "a", Value: "b"}}}, &out); err != nil || out.body != "fast" {
				t.Fatalf("got %q, %v", out.body, err)
			}
		}
		if took := time.Since(start); took > 600*time.Millisecond {
			t.Errorf("10 calls took %v; a slow instance costs the hedge's delay", took)
		}
		synctest.Wait()
		if cancelled.Load() == 0 {
			t.Error("no attempt that lost was told to stop")
		}
		m.take()
		if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "POST", Path: "x"}, &answer{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if n := len(m.take()); n != 1 {
			t.Errorf("a POST was sent %d times", n)
		}
	})
}

func TestRoutesLeadToOtherApps(t *testing.T) {
	m := &mesh{serve: func(_ context.Context, addr string, r *call.Request) (*call.Response, error) {
		return ok(addr + " as " + r.Target)
	}}
	zero := 0
	k, _ := governed(t, m, policy.Spec{
		Match: []policy.Match{{Kind: policy.Words{"service"}, Dest: policy.Words{"shop"}, Headers: map[string]string{"x-canary": "1"}}},
		Route: []policy.Destination{{To: "shop", Weight: &zero}, {To: "shop-next"}},
	})
	k.reg.set(shop, "a")
	k.reg.set(block.Name{App: "shop-next", Namespace: "home"}, "n")
	for _, tt := range []struct {
		header call.Fields
		want   string
	}{{nil, "a as shop"}, {call.Fields{{Name: "X-Canary", Value: "1"}}, "n as shop-next"}, {call.Fields{{Name: "X-Canary", Value: "2"}}, "a as shop"}} {
		var out answer
		if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET", Header: tt.header}, &out); err != nil || out.body != tt.want {
			t.Errorf("%v: got %q, %v; want %q", tt.header, out.body, err, tt.want)
		}
	}
}

func TestSubsetsByLabels(t *testing.T) {
	m := &mesh{serve: func(_ context.Context, addr string, _ *call.Request) (*call.Response, error) { return ok(addr) }}
	ninety, ten := 90, 10
	k, _ := governed(t, m, policy.Spec{
		Route:   []policy.Destination{{Subset: "v1", Weight: &ninety}, {Subset: "v2", Weight: &ten}},
		Subsets: map[string]map[string]string{"v1": {"version": "v1"}, "v2": {"version": "v2"}},
	})
	k.reg.mu.Lock()
	k.reg.apps = map[block.Name][]block.Instance{shop: {
		{ID: "1", Address: "one", Labels: map[string]string{"version": "v1"}}, {ID: "2", Address: "two", Labels: map[string]string{"version": "v1"}},
		{ID: "3", Address: "three", Labels: map[string]string{"version": "v2"}}, {ID: "4", Address: "none"}}}
	k.reg.mu.Unlock()
	got := map[string]int{}
	for range 2000 {
		var out answer
		if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET"}, &out); err != nil {
			t.Fatal(err)
		}
		got[out.body]++
	}
	// 2000 × 10 % with a standard deviation of 13.4.
	if got["three"] < 140 || got["three"] > 260 || got["none"] != 0 || got["one"] < 700 || got["two"] < 700 {
		t.Errorf("the shares are %v", got)
	}
}

func TestAnInstanceThatFailsIsEjected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad atomic.Bool
		bad.Store(true)
		m := &mesh{serve: func(_ context.Context, addr string, _ *call.Request) (*call.Response, error) {
			if addr == "b" && bad.Load() {
				return status(500)
			}
			return ok(addr)
		}}
		k, e := governed(t, m, policy.Spec{Outlier: &outlier.Config{Consecutive5xx: 3, BaseEjection: 10 * time.Second, MaxEjectionPercent: 50}})
		defer e.Close() // in the bubble
		k.reg.set(shop, "a", "b", "c")
		share := func(n int) (failed, toB int) {
			for range n {
				var out answer
				_ = k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET"}, &out)
				if out.status == 500 {
					failed++
				}
			}
			for _, a := range m.take() {
				if a == "b" {
					toB++
				}
			}
			return failed, toB
		}
		if failed, _ := share(300); failed != 3 {
			t.Errorf("%d calls failed, want the 3 that prove it", failed)
		}
		if st := e.Status(); len(st.Endpoints) != 3 || !slices.ContainsFunc(st.Endpoints, func(s policy.EndpointStatus) bool { return s.ID == "b" && s.Ejected }) {
			t.Errorf("the status does not show it: %+v", st.Endpoints)
		}
		bad.Store(false)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if failed, toB := share(300); failed != 0 || toB < 90 {
			t.Errorf("after its time: %d failed, %d went to it", failed, toB)
		}
	})
}

func TestCopiesOfRequests(t *testing.T) {
	var mu sync.Mutex
	var copies []string
	done := make(chan struct{}, 100)
	m := &mesh{serve: func(_ context.Context, addr string, r *call.Request) (*call.Response, error) {
		if addr == "shadow" {
			mu.Lock()
			copies = append(copies, r.Path+" "+string(r.Data)+" "+r.Header.Get("x-mecha-mirror"))
			mu.Unlock()
			done <- struct{}{}
			return nil, errors.New("the shadow is broken")
		}
		return ok("real")
	}}
	k, _ := governed(t, m, policy.Spec{Match: []policy.Match{{Dest: policy.Words{"shop"}}}, Mirror: &policy.Mirror{To: "shop-next"}},
		policy.Spec{Match: []policy.Match{{Dest: policy.Words{"shop-next"}}}, Mirror: &policy.Mirror{To: "shop"}}) // a circle: copies are not copied
	k.reg.set(shop, "a")
	k.reg.set(block.Name{App: "shop-next", Namespace: "home"}, "shadow")
	data := []byte("abc")
	for range 3 {
		var out answer
		if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "POST", Path: "pay", Data: data}, &out); err != nil || out.body != "real" {
			t.Fatalf("got %q, %v", out.body, err)
		}
		copy(data, "xyz") // the caller's buffer is its own again
		<-done
		copy(data, "abc")
	}
	mu.Lock()
	defer mu.Unlock()
	if d := cmp.Diff([]string{"pay abc true", "pay abc true", "pay abc true"}, copies); d != "" {
		t.Errorf("copies (-want +got):\n%s", d)
	}
}

func TestTheTimeOfAnAttemptEndsWithTheHeadOfTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{serve: func(ctx context.Context, _ string, r *call.Request) (*call.Response, error) {
			if r.Path == "hangs" {
				<-ctx.Done()
				return nil, fault.Wrap("peer", fault.Unavailable, ctx.Err())
			}
			if _, limited := ctx.Deadline(); limited {
				t.Error("the limit of the head is passed on as one of the whole")
			}
			return &call.Response{Status: 200, Stream: &slow{ctx: ctx, n: 5}}, nil
		}}
		k, _ := governed(t, m, policy.Spec{Timeout: &policy.Timeout{PerTry: time.Second, Total: 2 * time.Second}})
		k.reg.set(shop, "a")
		var out answer
		if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET", Path: "stream"}, &out); err != nil || out.body != "....." {
			t.Errorf("a stream of 5 s: %q, %v", out.body, err)
		}
		start := time.Now()
		err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET", Path: "hangs"}, &answer{})
		if fault.Of(err) != fault.Deadline || fault.RuleOf(err) != "p0" || time.Since(start) != time.Second {
			t.Errorf("a head that does not come: %v (%v, by %q) after %v", err, fault.Of(err), fault.RuleOf(err), time.Since(start))
		}
	})
}

// slow is a body of one dot a second.
type slow struct {
	ctx context.Context
	n   int
}

func (s *slow) Read(p []byte) (int, error) {
	if s.n == 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(time.Second):
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
	s.n--
	p[0] = '.'
	return 1, nil
}

func (s *slow) Close() error { return nil }

func TestPlacesAreHeldAsLongAsTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{serve: func(ctx context.Context, _ string, _ *call.Request) (*call.Response, error) {
			return &call.Response{Status: 200, Stream: &slow{ctx: ctx, n: 3}}, nil
		}}
		k, _ := governed(t, m, policy.Spec{Limits: &policy.Limits{MaxRequests: 1, MaxPending: -1}})
		k.reg.set(shop, "a")
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET"}, &answer{}); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(2 * time.Second) // its head is there, its body is not
		err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET"}, &answer{})
		if fault.Of(err) != fault.Exhausted || fault.ReasonOf(err) != fault.PolicyRejected {
			t.Errorf("a second call while the first is being read: %v", err)
		}
		wg.Wait()
		if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET"}, &answer{}); err != nil {
			t.Errorf("after it: %v", err)
		}
	})
}

func TestStickyClientsStayWhereTheyAre(t *testing.T) {
	m := &mesh{serve: func(_ context.Context, addr string, _ *call.Request) (*call.Response, error) { return ok(addr) }}
	k, _ := governed(t, m, policy.Spec{LB: &policy.Balance{Policy: "random", Sticky: &policy.Sticky{Cookie: "where", TTL: time.Hour}}})
	k.reg.set(shop, "a", "b", "c")
	first := &heads{}
	if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET"}, first); err != nil {
		t.Fatal(err)
	}
	set := first.header.Get("Set-Cookie")
	if want := "where=" + first.body + "; Path=/; HttpOnly; Max-Age=3600"; set != want {
		t.Fatalf("the client is told %q, want %q", set, want)
	}
	pair, _, _ := strings.Cut(set, ";")
	for range 20 {
		again := &heads{}
		if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET", Header: call.Fields{{Name: "Cookie", Value: "x=y; " + pair}}}, again); err != nil || again.body != first.body {
			t.Errorf("went to %q, %v; it belongs to %q", again.body, err, first.body)
		}
		if again.header.Get("Set-Cookie") != "" {
			t.Error("a client that is where it belongs is told again")
		}
	}
}

// heads keeps an answer with its header.
type heads struct {
	answer
	header call.Fields
}

func (h *heads) Respond(ctx context.Context, resp *call.Response) error {
	h.header = slices.Clone(resp.Header)
	return h.answer.Respond(ctx, resp)
}

func TestHeadersAreRewritten(t *testing.T) {
	var got call.Fields
	m := &mesh{serve: func(_ context.Context, _ string, r *call.Request) (*call.Response, error) {
		got = slices.Clone(r.Header)
		return &call.Response{Status: 200, Header: call.Fields{{Name: "Server", Value: "secret"}}}, nil
	}}
	k, _ := governed(t, m, policy.Spec{Headers: &policy.Headers{
		Request:  policy.Rewrite{Set: map[string]string{"x-tenant": "acme"}, Add: map[string]string{"x-via": "mecha"}, Remove: policy.Words{"x-debug"}},
		Response: policy.Rewrite{Remove: policy.Words{"server"}, Set: map[string]string{"x-policy": "yes"}}}})
	k.reg.set(shop, "a")
	mine := call.Fields{{Name: "X-Debug", Value: "1"}, {Name: "X-Tenant", Value: "forged"}, {Name: "X-Via", Value: "client"}}
	out := &heads{}
	if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET", Header: slices.Clone(mine)}, out); err != nil {
		t.Fatal(err)
	}
	if got.Get("x-tenant") != "acme" || got.Get("x-debug") != "" || bytes.Count([]byte(fmt.Sprint(got)), []byte("forged")) != 0 || !slices.Contains(got, call.Field{Name: "x-via", Value: "mecha"}) {
		t.Errorf("the app sees %v", got)
	}
	if out.header.Get("server") != "" || out.header.Get("x-policy") != "yes" {
		t.Errorf("the caller sees %v", out.header)
	}
}

// A call of an app to itself passes what calls that arrive pass.
func TestSelfCallsPassTheInboundPolicy(t *testing.T) {
	k, _ := governed(t, &mesh{}, policy.Spec{Match: []policy.Match{{Kind: policy.Words{"app"}}}, Authz: &policy.Authz{Deny: []policy.Rule{{Path: policy.Words{"/admin/**"}}}}})
	if err := k.Invoke(t.Context(), &call.Request{Target: "me", Verb: "GET", Path: "x"}, &answer{}); err != nil {
		t.Errorf("an allowed call: %v", err)
	}
	err := k.Invoke(t.Context(), &call.Request{Target: "me", Verb: "GET", Path: "admin/x"}, &answer{})
	if fault.Of(err) != fault.Denied || fault.RuleOf(err) != "p0" {
		t.Errorf("a denied call: %v", err)
	}
	byHeader, _ := governed(t, &mesh{}, policy.Spec{Match: []policy.Match{{Kind: policy.Words{"app"}, Headers: map[string]string{"x-bad": "*"}}}, Authz: &policy.Authz{Deny: []policy.Rule{{From: policy.Words{"*"}}}}})
	if err := byHeader.Invoke(t.Context(), &call.Request{Target: "me", Verb: "GET", Header: call.Fields{{Name: "X-Bad", Value: "1"}}}, &answer{}); fault.Of(err) != fault.Denied {
		t.Errorf("a call that a policy judges by its header: %v", err)
	}
	err = k.Serve(t.Context(), &call.Request{Target: "me", Verb: "GET", Path: "a/..//admin/./x"}, "other", &answer{})
	if fault.Of(err) != fault.Denied {
		t.Errorf("a denied call that arrives with a path to be cleaned: %v", err)
	}
}

// A breaker that opens between two attempts ends the call, and the answer before it is closed.
func TestARefusedRetryClosesTheAnswerBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answered, closed atomic.Int32
		m := &mesh{serve: func(context.Context, string, *call.Request) (*call.Response, error) {
			answered.Add(1)
			return &call.Response{Status: 503, Held: released(func() { closed.Add(1) })}, nil
		}}
		k, _ := governed(t, m, policy.Spec{Retry: &policy.Retry{Max: two()}, Breaker: &policy.Breaker{ConsecutiveFailures: 2}})
		k.reg.set(shop, "a")
		err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET"}, &answer{})
		if fault.Of(err) != fault.Unavailable || fault.ReasonOf(err) != fault.PolicyRejected {
			t.Errorf("got %v", err)
		}
		if answered.Load() != 2 || closed.Load() != 2 {
			t.Errorf("%d of %d answers were closed, want 2 of 2", closed.Load(), answered.Load())
		}
	})
}

// Policy begins before anybody looks for the app: one that is nowhere can be refused, faulted or
// routed elsewhere.
func TestAnAppThatIsNowhereHasAPolicyToo(t *testing.T) {
	m := &mesh{serve: func(_ context.Context, addr string, r *call.Request) (*call.Response, error) {
		return ok(addr + " as " + r.Target)
	}}
	next := block.Name{App: "shop-next", Namespace: "home"}
	invokeIt := func(t *testing.T, k *kit) (string, error) {
		var out answer
		err := k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET"}, &out)
		return out.body, err
	}
	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	run("without policy it is not found at once", func(t *testing.T) {
		k, _ := governed(t, m)
		start := time.Now()
		if _, err := invokeIt(t, k); fault.Of(err) != fault.NotFound || !strings.Contains(err.Error(), "couldn't find service: shop") || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
	run("a rule refuses before a lookup", func(t *testing.T) {
		k, _ := governed(t, m, policy.Spec{Authz: &policy.Authz{Deny: []policy.Rule{{From: policy.Words{"*"}}}}})
		if _, err := invokeIt(t, k); fault.Of(err) != fault.Denied || k.reg.lookups() != 0 {
			t.Errorf("%v, %d lookups", err, k.reg.lookups())
		}
	})
	run("a route leads past it", func(t *testing.T) {
		k, _ := governed(t, m, policy.Spec{Route: []policy.Destination{{To: "shop-next"}}})
		k.reg.set(next, "n")
		if body, err := invokeIt(t, k); err != nil || body != "n as shop-next" {
			t.Errorf("%q, %v", body, err)
		}
	})
	run("a retry takes the next priority, and a breaker remembers", func(t *testing.T) {
		k, _ := governed(t, m, policy.Spec{Match: []policy.Match{{Dest: policy.Words{"shop"}}}, Route: []policy.Destination{{To: "shop"}, {To: "shop-next", Priority: 1}},
			Retry: &policy.Retry{Max: two()}, Breaker: &policy.Breaker{ConsecutiveFailures: 3}})
		k.reg.set(next, "n")
		for range 10 {
			if body, err := invokeIt(t, k); err != nil || body != "n as shop-next" {
				t.Fatalf("%q, %v", body, err)
			}
		}
		k.reg.mu.Lock()
		asked := slices.DeleteFunc(slices.Clone(k.reg.asked), func(n block.Name) bool { return n != shop })
		k.reg.mu.Unlock()
		if len(asked) != 3 {
			t.Errorf("it was looked for %d times; after 3 failures the breaker is open", len(asked))
		}
		k.reg.set(shop, "s")
		time.Sleep(31 * time.Second) // the breaker is half-open
		if body, err := invokeIt(t, k); err != nil || body != "s as shop" {
			t.Errorf("when it is back: %q, %v", body, err)
		}
	})
}

// Each attempt says who calls, once, and the later ones which attempt they are.
func TestAttemptsAreStampedOnce(t *testing.T) {
	for name, spec := range map[string]policy.Spec{
		"retries":             {Retry: &policy.Retry{Max: two()}},
		"retries and headers": {Retry: &policy.Retry{Max: two()}, Headers: &policy.Headers{Request: policy.Rewrite{Set: map[string]string{"x-a": "b"}}}},
		"retries and routes":  {Retry: &policy.Retry{Max: two()}, Route: []policy.Destination{{To: "shop"}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []string
				m := &mesh{serve: func(_ context.Context, _ string, r *call.Request) (*call.Response, error) {
					var line []string
					for _, f := range r.Header {
						if n := strings.ToLower(f.Name); n != "x-a" {
							line = append(line, n)
						}
					}
					slices.Sort(line)
					got = append(got, strings.Join(line, " ")+" "+r.Header.Get("x-envoy-attempt-count"))
					return status(503)
				}}
				k, _ := governed(t, m, spec)
				k.reg.set(shop, "a")
				_ = k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "GET", Header: call.Fields{{Name: "X-Forwarded-For", Value: "client"}}}, &answer{})
				stamps := "dapr-callee-app-id dapr-caller-app-id dapr-caller-namespace forwarded "
				want := []string{stamps + "x-forwarded-for x-forwarded-for x-forwarded-host ", stamps + "x-envoy-attempt-count x-forwarded-for x-forwarded-for x-forwarded-host 2",
					stamps + "x-envoy-attempt-count x-forwarded-for x-forwarded-for x-forwarded-host 3"}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("headers of the attempts (-want +got):\n%s", d)
				}
			})
		})
	}
}
