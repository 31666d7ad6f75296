package mesh

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
)

// within checks a count that chance decides. The bounds are about five standard deviations
// away from what is expected: a correct share leaves them once in a million runs.
func within(t *testing.T, what string, n, least, most int) {
	t.Helper()
	if n < least || n > most {
		t.Errorf("%s: %d, want %d to %d", what, n, least, most)
	}
}

// One file governs a call to a service, a state call and a publish through the embedded node.
func showEverywhere(g *guide) {
	g.app("orders", answers("orders"))
	// What `mecha run` gives its sidecars: statestore and pubsub without a resource.
	s := g.Start(harness.Options{AppID: "caller", Files: map[string]string{"policy.yaml": g.file},
		Args: []string{"--data-dir", nodeDir(g.t)}, Env: []string{"MECHA_IMPLICIT_EMBEDDED=1"}})
	for _, c := range []struct{ what, verb, path string }{
		{"a call of a service", "GET", "/v1.0/invoke/orders/method/x"},
		{"a state call", "GET", "/v1.0/state/statestore/x"},
		{"a publish", "POST", "/v1.0/publish/pubsub/x"},
	} {
		for range 2 {
			if resp, body := harness.Do(g.t, c.verb, s.URL(c.path), nil); resp.StatusCode >= 300 {
				g.t.Fatalf("%s: %d %s", c.what, resp.StatusCode, body)
			}
		}
		resp, body := harness.Do(g.t, c.verb, s.URL(c.path), nil)
		g.refused(resp, c.what+": "+string(body), http.StatusTooManyRequests, "everywhere")
		if resp.Header.Get("Retry-After") == "" {
			g.t.Errorf("%s: nothing says when to try again", c.what)
		}
	}
}

func showMerge(g *guide) {
	app := &tries{answer: func(_ int, w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "down"):
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/report/slow":
			hang(r)
		default:
			time.Sleep(400 * time.Millisecond) // longer than reports may take
		}
	}}
	g.app("orders", app)
	s := g.caller()
	resp, body := g.call(s, "GET", "/report/slow")
	g.refused(resp, body, http.StatusInternalServerError, "for-reports")
	if n := app.count("GET /report/slow"); n != 1 {
		g.t.Errorf("%d attempts, want 1: a deadline is not among what the other policy retries", n)
	}
	g.call(s, "GET", "/report/down")
	if n := app.count("GET /report/down"); n != 4 {
		g.t.Errorf("a report was tried %d times, want 4: the retries of the other policy", n)
	}
	if resp, body := g.call(s, "GET", "/slow"); resp.StatusCode != http.StatusOK {
		g.t.Errorf("another call than a report: %d %s", resp.StatusCode, body)
	}
}

func showWeights(g *guide) {
	g.app("orders", answers("orders"))
	g.app("orders-next", answers("next"))
	got := g.tally(g.caller(), 200)
	within(g.t, "calls of 200 to orders-next", got["next"], 20, 80)
}

func showSubsets(g *guide) {
	g.replica("v1", "MECHA_LABELS=version=v1")
	g.replica("v2", "MECHA_LABELS=version=v2,team=x")
	got := g.tally(g.caller(), 200)
	within(g.t, "calls of 200 to v2", got["v2"], 2, 45)
}

func showCanary(g *guide) {
	g.replica("v1", "MECHA_LABELS=version=v1")
	g.replica("v2", "MECHA_LABELS=version=v2")
	s := g.caller()
	if got := g.tally(s, 20); got["v1"] != 20 {
		g.t.Errorf("without the header: %v", got)
	}
	if got := g.tally(s, 20, "x-canary", "1"); got["v2"] != 20 {
		g.t.Errorf("with the header: %v", got)
	}
}

func showTimeouts(g *guide) {
	app := &tries{answer: func(n int, w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/never" || n < 3 {
			hang(r)
		}
	}}
	g.app("orders", app)
	s := g.caller()
	if resp, body := g.call(s, "GET", "/third"); resp.StatusCode != http.StatusOK {
		g.t.Errorf("the third attempt would have answered: %d %s", resp.StatusCode, body)
	}
	resp, body := g.call(s, "GET", "/never")
	g.refused(resp, body, http.StatusInternalServerError, "orders-in-time")
	resp, body = g.call(s, "POST", "/never")
	g.refused(resp, body, http.StatusInternalServerError, "orders-in-time")
	if n := app.count("POST /never"); n != 1 {
		g.t.Errorf("a POST that may have been received was made %d times", n)
	}
}

func showRetries(g *guide) {
	app := &tries{answer: func(n int, w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/503" && n < 3:
			w.WriteHeader(503)
		case r.URL.Path == "/500" && n < 3:
			w.WriteHeader(500)
		case r.URL.Path == "/501":
			w.WriteHeader(501)
		}
	}}
	g.app("orders", app)
	s := g.caller()
	for _, tt := range []struct {
		call           string
		attempts, last int
	}{{"GET /503", 3, 200}, {"PUT /503", 3, 200}, {"POST /503", 1, 503}, {"GET /500", 3, 200}, {"GET /501", 1, 501}} {
		verb, path, _ := strings.Cut(tt.call, " ")
		resp, body := g.call(s, verb, path)
		if n := app.count(tt.call); n != tt.attempts || resp.StatusCode != tt.last {
			g.t.Errorf("%s: %d attempts, then %d %s; want %d, then %d", tt.call, n, resp.StatusCode, body, tt.attempts, tt.last)
		}
	}
	g.call(s, "DELETE", "/503")
	app.mu.Lock()
	defer app.mu.Unlock()
	if n := app.last.Get("x-envoy-attempt-count"); n != "3" {
		g.t.Errorf("the last attempt says it is number %q, want 3", n)
	}
}

func showBudget(g *guide) {
	app := &tries{answer: func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }}
	g.app("orders", app)
	s := g.caller()
	const calls = 100
	for range calls {
		g.call(s, "GET", "/x")
	}
	extra := app.count("GET /x") - calls
	if extra < 5 || extra > calls {
		g.t.Errorf("%d retries of %d calls; want some, and nothing like the three of each without a budget", extra, calls)
	}
	if !g.counted(s, "mecha_policy_retries_total", `result="over-budget"`, `rule="orders-budget"`) {
		g.t.Error("no metric tells of retries that the budget did not allow")
	}
}

func showHedging(g *guide) {
	var first atomic.Bool
	app := &tries{answer: func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" && r.URL.Path == "/x" && first.CompareAndSwap(false, true) {
			hang(r)
		}
		if r.Method == "POST" {
			time.Sleep(300 * time.Millisecond) // far longer than the delay of the hedge
		}
		fmt.Fprint(w, "fast")
	}}
	g.app("orders", app)
	g.app("orders", app)
	s := g.caller()
	if resp, body := g.call(s, "GET", "/x"); resp.StatusCode != 200 || body != "fast" || app.count("GET /x") != 2 {
		g.t.Errorf("%d %s after %d attempts, want the answer of the second", resp.StatusCode, body, app.count("GET /x"))
	}
	if g.call(s, "POST", "/x"); app.count("POST /x") != 1 {
		g.t.Errorf("a POST was sent %d times", app.count("POST /x"))
	}
}

func showCaps(g *guide) {
	release := make(chan struct{})
	var now atomic.Int64 // calls that came to the app
	g.app("orders", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/x" {
			return // a question of the app's own sidecar
		}
		now.Add(1)
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	s := g.caller()
	type result struct {
		resp *http.Response
		body string
	}
	results := make(chan result, 4)
	for range 4 {
		go func() {
			resp, body := g.call(s, "GET", "/x")
			results <- result{resp, body}
		}()
	}
	r := <-results // two run and one waits for as long as nothing is released
	g.refused(r.resp, r.body, http.StatusTooManyRequests, "orders-caps")
	eventually(g.t, 15*time.Second, "two calls are at the app", func() bool { return now.Load() == 2 })
	release <- struct{}{}
	if r := <-results; r.resp.StatusCode != http.StatusOK {
		g.t.Errorf("%d %s", r.resp.StatusCode, r.body)
	}
	eventually(g.t, 15*time.Second, "the one that waited is at the app", func() bool { return now.Load() == 3 })
	close(release)
	for range 2 {
		if r := <-results; r.resp.StatusCode != http.StatusOK {
			g.t.Errorf("%d %s", r.resp.StatusCode, r.body)
		}
	}
}

func showRate(g *guide) {
	g.Start(harness.Options{AppID: "orders", AppPort: harness.Serve(g.t, answers("x")), Files: map[string]string{"policy.yaml": g.file}})
	s, other := g.caller(), g.Start(harness.Options{AppID: "other"})
	g.tally(s, 5)
	resp, body := g.call(s, "GET", "/who")
	g.refused(resp, body, http.StatusTooManyRequests, "five-a-minute")
	if resp.Header.Get("Retry-After") == "" {
		g.t.Error("nothing says when to try again")
	}
	g.tally(other, 5) // has tokens of its own
}

func showBreaker(g *guide) {
	var well atomic.Bool
	app := &tries{answer: func(_ int, w http.ResponseWriter, _ *http.Request) {
		if !well.Load() {
			w.WriteHeader(500)
		}
	}}
	g.app("orders", app)
	s := g.caller()
	for range 3 {
		g.call(s, "GET", "/x")
	}
	resp, body := g.call(s, "GET", "/x")
	g.refused(resp, body, http.StatusServiceUnavailable, "orders-breaker")
	if n := app.count("GET /x"); n != 3 {
		g.t.Errorf("the app got %d calls, want the three that failed", n)
	}
	well.Store(true)
	eventually(g.t, 15*time.Second, "the breaker lets calls through again", func() bool {
		resp, _ := g.call(s, "GET", "/x")
		return resp.StatusCode == http.StatusOK
	})
}

func showOutliers(g *guide) {
	bad := &tries{answer: func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }}
	g.app("orders", bad)
	g.replica("good")
	s := g.caller()
	for range 20 {
		g.call(s, "GET", "/x")
	}
	if n := bad.count("GET /x"); n != 3 {
		g.t.Errorf("the replica that always fails got %d calls of 20, want 3", n)
	}
	g.tally(s, 20)
	if !g.counted(s, "mecha_policy_ejections_total", `rule="orders-outliers"`) {
		g.t.Error("no metric tells of the ejection")
	}
}

// outcast starts a replica that answers as told beside others that are well, and returns how to
// count its calls.
func (g *guide) outcast(others int, answer func(n int, w http.ResponseWriter, r *http.Request)) *tries {
	bad := &tries{answer: answer}
	g.app("orders", bad)
	for i := range others {
		g.replica(fmt.Sprint("good", i))
	}
	return bad
}

func showGatewayFailures(g *guide) {
	bad := g.outcast(1, func(n int, w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(map[bool]int{true: 500, false: 503}[n <= 5])
	})
	s := g.caller()
	for range 40 {
		g.call(s, "GET", "/x")
	}
	if n := bad.count("GET /x"); n != 8 { // five times 500, then three times 503
		g.t.Errorf("the replica got %d calls of 40, want 8", n)
	}
}

func showSilentReplicas(g *guide) {
	bad := g.outcast(1, func(_ int, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s := g.caller()
	for range 20 {
		g.call(s, "GET", "/x")
	}
	if n := bad.count("GET /x"); n != 2 {
		g.t.Errorf("the replica that never answers got %d calls of 20, want 2", n)
	}
}

// spared waits until a replica gets no calls any more.
func (g *guide) spared(s *harness.Sidecar, bad *tries) {
	g.t.Helper()
	eventually(g.t, 20*time.Second, "the replica gets no calls", func() bool {
		before := bad.count("GET /x")
		for range 30 {
			g.call(s, "GET", "/x")
		}
		return bad.count("GET /x") == before
	})
}

func showFailurePercentage(g *guide) {
	bad := g.outcast(1, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n%2 == 0 {
			w.WriteHeader(500)
		}
	})
	g.spared(g.caller(), bad)
}

func showSuccessRate(g *guide) {
	bad := g.outcast(3, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n%2 == 0 {
			w.WriteHeader(500)
		}
	})
	g.spared(g.caller(), bad)
}

func showHealth(g *guide) {
	var ill atomic.Bool
	ill.Store(true)
	g.replica("well")
	g.app("orders", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ready" && ill.Load() {
			w.WriteHeader(503)
		}
		fmt.Fprint(w, "ill")
	}))
	s := g.caller()
	eventually(g.t, 15*time.Second, "the replica that is not ready gets no calls", func() bool { return g.tally(s, 10)["ill"] == 0 })
	ill.Store(false)
	eventually(g.t, 15*time.Second, "it gets calls again when it is", func() bool { return g.tally(s, 10)["ill"] > 0 })
}

func showDelay(g *guide) {
	g.replica("orders")
	s := g.caller()
	start := time.Now()
	g.tally(s, 1, "x-slow", "1")
	if took := time.Since(start); took < 300*time.Millisecond {
		g.t.Errorf("%v, want at least 300ms", took)
	}
	start = time.Now()
	g.tally(s, 30)
	if took := time.Since(start); took > 30*300*time.Millisecond {
		g.t.Errorf("%v for 30 calls without the header: they are delayed too", took)
	}
}

func showAbort(g *guide) {
	app := &tries{answer: func(int, http.ResponseWriter, *http.Request) {}}
	g.app("orders", app)
	s := g.caller()
	failed := 0
	for range 200 {
		if resp, body := g.call(s, "GET", "/x"); resp.StatusCode != http.StatusOK {
			g.refused(resp, body, http.StatusTooManyRequests, "orders-broken")
			failed++
		}
	}
	within(g.t, "calls of 200 that failed", failed, 27, 93)
	if n := app.count("GET /x"); n != 200-failed {
		g.t.Errorf("the app got %d calls, want the %d that did not fail", n, 200-failed)
	}
}

// The statuses that the page gives for outcomes.
func TestInjectedOutcomes(t *testing.T) {
	for outcome, status := range map[string]int{"unavailable": 503, "deadline": 504, "app-error": 500, "throttled": 429} {
		t.Run(outcome, func(t *testing.T) {
			t.Parallel()
			g := newGuide(t, "faults/abort.yaml")
			g.file = strings.NewReplacer("throttled", outcome, "30", "100").Replace(g.file)
			g.replica("orders")
			resp, body := g.call(g.caller(), "GET", "/x")
			g.refused(resp, body, status, "orders-broken")
		})
	}
}

func showHeaders(g *guide) {
	app := &tries{answer: func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Powered-By", "an old framework")
	}}
	g.app("orders", app)
	resp, _ := g.call(g.caller(), "GET", "/x", "x-debug", "1", "x-tenant", "mallory")
	app.mu.Lock()
	defer app.mu.Unlock()
	if got := app.last.Values("x-tenant"); len(got) != 1 || got[0] != "acme" || app.last.Get("x-debug") != "" {
		g.t.Errorf("the app got %v", app.last)
	}
	if resp.Header.Get("cache-control") != "no-store" || resp.Header.Get("x-powered-by") != "" {
		g.t.Errorf("the caller got %v", resp.Header)
	}
}

func showServiceAccess(g *guide) {
	g.Start(harness.Options{AppID: "orders", AppPort: harness.Serve(g.t, answers("x")), Files: map[string]string{"policy.yaml": g.file}})
	s := g.caller() // has the file too, which is not for it
	if resp, body := g.call(s, "POST", "/x"); resp.StatusCode != http.StatusOK {
		g.t.Errorf("%d %s", resp.StatusCode, body)
	}
	for _, c := range []string{"DELETE /x", "GET /admin/users"} {
		verb, path, _ := strings.Cut(c, " ")
		resp, body := g.call(s, verb, path)
		g.refused(resp, c+": "+body, http.StatusForbidden, "orders-doors")
	}
}

// Another sidecar proves nothing yet: who is let in by name stays out, and who is kept out by
// name may be anybody.
func TestUnprovenCallers(t *testing.T) {
	for _, rule := range []string{"allow: [{from: caller}]", "deny: [{from: somebody}]"} {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			g := newGuide(t, "access/services.yaml")
			before, _, _ := strings.Cut(g.file, "    deny:")
			g.file = before + "    " + rule + "\n"
			g.Start(harness.Options{AppID: "orders", AppPort: harness.Serve(t, answers("x")), Files: map[string]string{"policy.yaml": g.file}})
			resp, body := g.call(g.Start(harness.Options{AppID: "caller"}), "GET", "/x")
			g.refused(resp, body, http.StatusForbidden, "orders-doors")
		})
	}
}

func showShadowAccess(g *guide) {
	orders := g.Start(harness.Options{AppID: "orders", AppPort: harness.Serve(g.t, answers("x")), Files: map[string]string{"policy.yaml": g.file}})
	if resp, body := g.call(g.caller(), "POST", "/x"); resp.StatusCode != http.StatusOK {
		g.t.Errorf("a rule in shadow mode refused: %d %s", resp.StatusCode, body)
	}
	orders.WaitLog("an access rule in shadow mode would refuse this call")
	if !g.counted(orders, "mecha_policy_rejections_total", `mode="shadow"`, `rule="orders-trial"`) {
		g.t.Error("no metric tells of the call that would have been refused")
	}
}

func showMirroredRequests(g *guide) {
	g.replica("orders")
	next := &inbox{more: func(_ string, _ seen, w http.ResponseWriter) { w.WriteHeader(500) }}
	g.app("orders-next", next)
	resp, body := harness.Do(g.t, "POST", g.caller().URL("/v1.0/invoke/orders/method/buy"), []byte("three"))
	if resp.StatusCode != http.StatusOK || string(body) != "orders" {
		g.t.Errorf("the caller got %d %s, want the answer of orders", resp.StatusCode, body)
	}
	if s := next.await(g.t, "/buy"); s.Body != "three" || s.Header.Get("x-mecha-mirror") != "true" {
		g.t.Errorf("the copy: %q, %v", s.Body, s.Header)
	}
}

func showResiliency(g *guide) {
	app := &tries{answer: func(n int, w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/slow":
			hang(r)
		case r.URL.Path == "/down" || n < 3:
			w.WriteHeader(500)
		}
	}}
	g.app("orders", app)
	s := g.caller()
	if resp, body := g.call(s, "POST", "/x"); resp.StatusCode != 200 || app.count("POST /x") != 3 {
		g.t.Errorf("%d %s after %d attempts, want 200 after 3: Dapr repeats POSTs too", resp.StatusCode, body, app.count("POST /x"))
	}
	if resp, body := g.call(s, "GET", "/slow"); resp.StatusCode < 500 || app.count("GET /slow") != 3 {
		g.t.Errorf("%d %s after %d attempts, want three that ran out of time", resp.StatusCode, body, app.count("GET /slow"))
	}
	for range 3 {
		g.call(s, "GET", "/down")
	}
	resp, body := g.call(s, "GET", "/down")
	if n := app.count("GET /down"); n != 6 || !strings.Contains(body, "circuit breaker is open") {
		g.t.Errorf("%d attempts of /down, then %d %s; want 6, then the breaker", n, resp.StatusCode, body)
	}
}

func showResiliencyMerged(g *guide) {
	app := &tries{answer: func(n int, w http.ResponseWriter, r *http.Request) {
		if n < 3 {
			w.WriteHeader(503)
			return
		}
		time.Sleep(400 * time.Millisecond) // longer than short
	}}
	g.app("orders", app)
	if resp, body := g.call(g.caller(), "GET", "/x"); resp.StatusCode != 200 || app.count("GET /x") != 3 {
		g.t.Errorf("%d %s after %d attempts, want 200 after 3", resp.StatusCode, body, app.count("GET /x"))
	}
}
