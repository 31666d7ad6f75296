package middleware_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/api/httpapi/middleware"
	"github.com/mecha-project/mecha/runtime/call"
)

const tooMany = "You have reached maximum request limit."

func TestRateLimitAnswers(t *testing.T) {
	// So slow that no request comes back while the test runs.
	a := serve(t, open(t, "ratelimit", "maxRequestsPerSecond", "0.001"))
	headers := map[string]string{"RateLimit-Limit": "0", "RateLimit-Remaining": "0", "RateLimit-Reset": "1",
		"X-Rate-Limit-Limit": "0.00", "X-Rate-Limit-Duration": "1"}

	first := a.do("GET", "/v1.0/state/store/a", "")
	first.want(t, 200, `"store/a"`)
	second := a.do("GET", "/v1.0/state/store/a", "")
	second.want(t, http.StatusTooManyRequests, tooMany)
	for name, got := range map[string]answer{"admitted": first, "refused": second} {
		for k, v := range headers {
			if got.header.Get(k) != v || len(got.header.Values(k)) != 1 {
				t.Errorf("%s: %s is %q, want %q", name, k, got.header.Values(k), v)
			}
		}
		if addr := got.header.Get("X-Rate-Limit-Request-Remote-Addr"); !strings.HasPrefix(addr, "127.0.0.1:") {
			t.Errorf("%s: remote address is %q", name, addr)
		}
		if got.header.Get("X-Rate-Limit-Request-Forwarded-For") != "" {
			t.Errorf("%s: there is no forwarded address to tell", name)
		}
	}
}

func TestRateLimitDefault(t *testing.T) {
	got := serve(t, open(t, "ratelimit")).do("GET", "/v1.0/state/store/a", "")
	for k, want := range map[string]string{"RateLimit-Limit": "100", "RateLimit-Remaining": "99", "RateLimit-Reset": "1",
		"X-Rate-Limit-Limit": "100.00", "X-Rate-Limit-Duration": "1"} {
		if v := got.header.Get(k); v != want {
			t.Errorf("%s is %q, want %q", k, v, want)
		}
	}
}

func TestRateLimitBuckets(t *testing.T) {
	a := serve(t, open(t, "ratelimit", "maxRequestsPerSecond", "0.001"))
	for _, tc := range []struct {
		name, path string
		header     []string
		status     int
	}{
		{"first", "/v1.0/state/store/a", nil, 200},
		{"again", "/v1.0/state/store/a", nil, 429},
		{"the same path in other words", "/v1.0/state/store/%61", nil, 429},
		{"the query does not count", "/v1.0/state/store/a?consistency=strong", nil, 429},
		{"another path", "/v1.0/state/store/b", nil, 200},
		{"an unknown path counts too", "/nowhere", nil, 404},
		{"and is refused the second time", "/nowhere", nil, 429},
		{"health is limited", "/v1.0/healthz", nil, 204},
		{"also when asked often", "/v1.0/healthz", nil, 429},
		{"another client, forwarded", "/v1.0/state/store/a", []string{"X-Forwarded-For", "10.0.0.1"}, 200},
		{"the nearest proxy's word counts", "/v1.0/state/store/a", []string{"X-Forwarded-For", "9.9.9.9, 10.0.0.1"}, 429},
		{"forwarded wins over real", "/v1.0/state/store/a", []string{"X-Forwarded-For", "10.0.0.1", "X-Real-IP", "10.0.0.2"}, 429},
		{"another client, real address", "/v1.0/state/store/a", []string{"X-Real-IP", "10.0.0.2"}, 200},
		{"the same real address", "/v1.0/state/store/a", []string{"X-Real-IP", "10.0.0.2"}, 429},
		{"an empty forwarding means nobody", "/v1.0/state/store/a", []string{"X-Forwarded-For", " "}, 429},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := a.do("GET", tc.path, "", tc.header...)
			if got.status != tc.status {
				t.Errorf("status %d, want %d", got.status, tc.status)
			}
			if len(tc.header) > 0 && tc.header[0] == "X-Forwarded-For" && strings.TrimSpace(tc.header[1]) != "" {
				if f := got.header.Get("X-Rate-Limit-Request-Forwarded-For"); f != tc.header[1] {
					t.Errorf("forwarded address is told as %q, want %q", f, tc.header[1])
				}
			}
		})
	}
}

// answering is the end of a call pipeline without any network.
func answering(context.Context, *call.Request) (*call.Response, error) {
	return &call.Response{Status: 200}, nil
}

func TestRateLimitRefills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := open(t, "ratelimit", "maxRequestsPerSecond", "4").App(answering)
		get := func(n int) string {
			out := ""
			for range n {
				resp, err := ask(t.Context(), post("a", ""))
				if err != nil {
					t.Fatal(err)
				}
				out += fmt.Sprintf("%d/%s ", resp.Status, resp.Header.Get("RateLimit-Remaining"))
			}
			return strings.TrimSpace(out)
		}
		for _, step := range []struct {
			wait time.Duration
			n    int
			want string
		}{
			{0, 5, "200/3 200/2 200/1 200/0 429/0"},
			{249 * time.Millisecond, 1, "429/0"},
			{time.Millisecond, 2, "200/0 429/0"}, // a refused request costs nothing
			{500 * time.Millisecond, 3, "200/1 200/0 429/0"},
			{time.Hour, 5, "200/3 200/2 200/1 200/0 429/0"}, // a rest is not saved up
		} {
			time.Sleep(step.wait)
			if got := get(step.n); got != step.want {
				t.Errorf("after %v: got %s, want %s", step.wait, got, step.want)
			}
		}
	})
}

func TestRateLimitCountsExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // where time stands still
		ask := open(t, "ratelimit", "maxRequestsPerSecond", "100").App(answering)
		var admitted atomic.Int64
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 50 {
					resp, err := ask(t.Context(), post("a", ""))
					if err != nil {
						t.Error(err)
						return
					}
					if resp.Status == 200 {
						admitted.Add(1)
					}
				}
			})
		}
		all.Wait()
		if got := admitted.Load(); got != 100 {
			t.Errorf("%d of 400 simultaneous requests were admitted, want 100", got)
		}
	})
}

func TestRateLimitCallsToTheApp(t *testing.T) {
	a := callApp(t, open(t, "ratelimit", "maxRequestsPerSecond", "0.001"))
	first := a.do(post("orders", "x", "X-Forwarded-For", "10.0.0.1"))
	if first.status != 200 || first.header.Get("X-App") != "yes" || first.header.Get("X-Rate-Limit-Limit") != "0.00" {
		t.Errorf("got %d %v", first.status, first.header)
	}
	a.do(post("orders", "x", "X-Forwarded-For", "10.0.0.1")).want(t, 429, tooMany)
	if got := a.do(post("orders", "x", "X-Forwarded-For", "10.0.0.2")); got.status != 200 {
		t.Errorf("another client got %d", got.status)
	}
}

// One middleware in both pipelines, or in two calls of one, is one limit.
func TestRateLimitIsShared(t *testing.T) {
	m := open(t, "ratelimit", "maxRequestsPerSecond", "0.001")
	one, two := m.App(answering), m.App(answering)
	for i, ask := range []func(context.Context, *call.Request) (*call.Response, error){one, two} {
		resp, err := ask(t.Context(), post("a", ""))
		if err != nil {
			t.Fatal(err)
		}
		if want := []int{200, 429}[i]; resp.Status != want {
			t.Errorf("call %d: status %d, want %d", i, resp.Status, want)
		}
	}
}

func BenchmarkRateLimit(b *testing.B) {
	f, _ := middleware.Find("middleware.http.ratelimit", "")
	m, err := f.Open(middleware.Env{}, f.Config())
	if err != nil {
		b.Fatal(err)
	}
	resp := &call.Response{Status: 200}
	ask := m.App(func(context.Context, *call.Request) (*call.Response, error) {
		resp.Header = resp.Header[:0]
		return resp, nil
	})
	reqs := make([]*call.Request, 1024)
	for i := range reqs {
		reqs[i] = post("path/"+strconv.Itoa(i), "", "X-Forwarded-For", "10.0.0.1")
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := ask(context.Background(), reqs[i%len(reqs)]); err != nil {
			b.Fatal(err)
		}
	}
}
