package middleware_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/api/httpapi/middleware"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestUppercase(t *testing.T) {
	const up, both, out = "request", "both", "response"
	big := strings.Repeat("größe ", 20_000) // more than is read in one piece
	for _, tc := range []struct {
		name, direction, path, body string
		chunked                     bool
		wantIn, wantOut             bool
	}{
		{"request, by default", "", "m", "abc", false, true, false},
		{"request", up, "m", "abc", false, true, false},
		{"response", out, "m", "abc", false, false, true},
		{"both", both, "m", "abc", false, true, true},
		{"no body", both, "m", "", false, true, true},
		{"streamed request", up, "m", big, true, true, false},
		{"long request", up, "m", big, false, true, false},
		{"streamed response", out, "stream", "abc", false, false, true},
		{"streamed both ways", both, "stream", big, true, true, true},
	} {
		var metadata []string
		if tc.direction != "" {
			metadata = []string{"direction", tc.direction}
		}
		m := open(t, "uppercase", metadata...)
		check := func(t *testing.T, got answer, streamed bool) {
			t.Helper()
			length := "unknown"
			body := tc.body
			if tc.wantIn {
				body = strings.ToUpper(body)
			}
			if tc.wantOut {
				body = strings.ToUpper(body)
				if got.body != strings.ToUpper(got.body) || !strings.Contains(got.body, `"BODY"`) {
					t.Errorf("the answer is not in upper case: %.80q", got.body)
				}
			}
			if !streamed {
				length = strconv.Itoa(len(tc.body))
			}
			if e := got.echo(t); e.Body != body || !strings.EqualFold(e.Length, length) {
				t.Errorf("the end saw %.20q (%d bytes, length %s), want %.20q (%d bytes, length %s)", e.Body, len(e.Body), e.Length, body, len(body), length)
			}
		}
		t.Run("api "+tc.name, func(t *testing.T) {
			var body io.Reader = strings.NewReader(tc.body)
			if tc.chunked {
				body = io.MultiReader(body) // of unknown length
			}
			check(t, serve(t, m).send("POST", "/v1.0/invoke/app/method/"+tc.path, body), len(tc.body) > 64<<10)
		})
		t.Run("app "+tc.name, func(t *testing.T) {
			req := post(tc.path, tc.body)
			if tc.chunked {
				req.Data, req.Stream, req.Length = nil, io.NopCloser(strings.NewReader(tc.body)), call.Unknown
			}
			check(t, callApp(t, m).do(req), tc.chunked)
		})
	}
}

// Middleware sees every API, so a state save is changed too: its key as well as its value.
func TestUppercaseState(t *testing.T) {
	a := serve(t, open(t, "uppercase", "direction", "both"))
	a.do("POST", "/v1.0/state/store", `[{"key":"k","value":"v"}]`).want(t, 204, "")
	if len(a.state.saved) != 1 || a.state.saved[0].Key != "K" || string(a.state.saved[0].Value) != `"V"` {
		t.Errorf("saved %+v, want K: V", a.state.saved)
	}
	a.do("GET", "/v1.0/state/store/k", "").want(t, 200, `"STORE/K"`)
}

// A streamed answer is passed on as it comes, not gathered first.
func TestUppercaseDoesNotHoldBack(t *testing.T) {
	src, feed := io.Pipe()
	defer feed.Close()
	ask := open(t, "uppercase", "direction", "response").App(func(context.Context, *call.Request) (*call.Response, error) {
		return &call.Response{Status: 200, Stream: src, Length: call.Unknown}, nil
	})
	resp, err := ask(t.Context(), post("events", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	got := make(chan string, 1)
	go func() {
		p := make([]byte, 16)
		n, _ := resp.Stream.Read(p)
		got <- string(p[:n])
	}()
	feed.Write([]byte("event \xc3")) // half a character stays behind
	select {
	case s := <-got:
		if s != "EVENT " {
			t.Errorf("read %q", s)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("nothing was passed on before the stream's end")
	}
}

// Calls may be sent again by their caller: middleware changes a copy.
func TestMiddlewareLeavesTheCallersRequest(t *testing.T) {
	for name, m := range map[string]*middleware.Middleware{
		"uppercase":   open(t, "uppercase"),
		"routeralias": open(t, "routeralias", "routes", `{"/a/{id}": "/b"}`),
	} {
		t.Run(name, func(t *testing.T) {
			req := post("a/1", "body")
			want := *req
			if _, err := m.App(answering)(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, *req); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRouterAlias(t *testing.T) {
	a := serve(t, open(t, "routeralias", "routes", `{
		"/goods/{id}": "/v1.0/invoke/shop/method/goods",
		"/goods/7": "/v1.0/invoke/never/method/reached",
		"/plain": "/v1.0/invoke/shop/method/plain",
		"/fixed/{a}-{b}": "/v1.0/invoke/shop/method/fixed?size=2",
		"/n/{n:[0-9]{1,3}}/x": "/v1.0/invoke/shop/method/n",
		"/esc": "/v1.0/invoke/shop/method/a%20b",
		"/v1.0/old/{store}": "/v1.0/state/store/key",
		"/url": "/v1.0/invoke/http://shop.example:80/method/goods"
	}`))
	for _, tc := range []struct {
		name, path          string
		target, to, queries string // of the invocation; no target means 404
	}{
		{"variable", "/goods/77", "shop", "goods", "id=77"},
		{"before the query there is", "/goods/77?y=2", "shop", "goods", "id=77&y=2"},
		{"the first pattern wins", "/goods/7", "shop", "goods", "id=7"},
		{"escapes are values", "/goods/a%26b%20c", "shop", "goods", "id=a%26b+c"},
		{"no longer path", "/goods/77/more", "", "", ""},
		{"no longer path, hidden", "/goods/77%2Fmore", "", "", ""},
		{"no shorter path", "/goods/", "", "", ""},
		{"plain", "/plain", "shop", "plain", ""},
		{"plain in other words", "/pl%61in", "shop", "plain", ""},
		{"plain with a query", "/plain?x=1", "shop", "plain", "x=1"},
		{"two variables and a query", "/fixed/1-2?z=3", "shop", "fixed", "a=1&b=2&size=2&z=3"},
		{"expression", "/n/123/x", "shop", "n", "n=123"},
		{"expression that does not match", "/n/1234/x", "", "", ""},
		{"escapes in the target", "/esc", "shop", "a b", ""},
		{"a target that is an address", "/url", "http://shop.example:80", "goods", ""},
		{"no alias", "/v1.0/invoke/other/method/m", "other", "m", ""},
	} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			t.Run(method+" "+tc.name, func(t *testing.T) {
				got := a.do(method, tc.path, "")
				if tc.target == "" {
					if got.status != 404 || !strings.Contains(got.body, "ERR_DIRECT_INVOKE") {
						t.Errorf("got %d %s, want no such path", got.status, got.body)
					}
					return
				}
				e := got.echo(t)
				if e.Target != tc.target || e.Path != tc.to || e.Query != tc.queries || e.Verb != method {
					t.Errorf("invoked %s %s %q ? %q, want %s %q ? %q", e.Verb, e.Target, e.Path, e.Query, tc.target, tc.to, tc.queries)
				}
			})
		}
	}
	// Any API is a good target, unlike in Dapr.
	a.do("GET", "/v1.0/old/x", "").want(t, 200, `"store/key"`)
}

// Whatever stands outside the alias sees the path as the caller wrote it, what stands inside
// sees the new one.
func TestRouterAliasAndItsPlace(t *testing.T) {
	alias := open(t, "routeralias", "routes", "/short: /v1.0/invoke/shop/method/long")
	check := open(t, "routerchecker", "rule", "^/v1\\.0/")
	serve(t, check, alias).do("GET", "/short", "").want(t, 400, "invalid router")
	if got := serve(t, alias, check).do("GET", "/short", ""); got.status != 200 {
		t.Errorf("got %d, want the rule to see the new path", got.status)
	}
}

func TestRouterAliasToTheApp(t *testing.T) {
	a := callApp(t, open(t, "routeralias", "routes", "# as YAML\n/old/{id}: /new%20place/\n/gone: /other?x=1\n"))
	for _, tc := range []struct{ path, query, to, queries string }{
		{"old/5", "y=2", "/new%20place", "id=5&y=2"},
		{"old/5/6", "y=2", "/old/5/6", "y=2"},
		{"gone", "", "/other", "x=1"},
		{"new", "", "/new", ""},
	} {
		req := post(tc.path, "")
		req.Query = tc.query
		if e := a.do(req).echo(t); e.Path != tc.to || e.Query != tc.queries {
			t.Errorf("%s?%s reached %s?%s, want %s?%s", tc.path, tc.query, e.Path, e.Query, tc.to, tc.queries)
		}
	}
}

func TestRouterChecker(t *testing.T) {
	const invalid = "invalid router"
	m := open(t, "routerchecker", "rule", `^/v1\.0/(invoke/shop/method/public/|healthz$)`)
	a := serve(t, m)
	for _, tc := range []struct {
		name, path string
		status     int
	}{
		{"matches", "/v1.0/invoke/shop/method/public/a", 200},
		{"the query does not count", "/v1.0/invoke/shop/method/public/a?x=^", 200},
		{"matches when decoded", "/v1.0/invoke/shop/method/%70ublic/a", 200},
		{"another method", "/v1.0/invoke/shop/method/private", 400},
		{"another API", "/v1.0/state/store/key", 400},
		{"health, admitted by the rule", "/v1.0/healthz", 204},
		{"metadata", "/v1.0/metadata", 400},
		{"dots lead elsewhere", "/v1.0/invoke/shop/method/public/../private", 400},
		{"so do escaped dots", "/v1.0/invoke/shop/method/public/%2e%2e/private", 400},
		{"and an escaped slash", "/v1.0/invoke/shop/method/public/..%2fprivate", 400},
		{"and twice escaped dots, for the app", "/v1.0/invoke/shop/method/public/%252e%252e/private", 400},
		{"dots in a name are none", "/v1.0/invoke/shop/method/public/..a/.b", 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := a.do("GET", tc.path, "")
			if got.status != tc.status || got.status == 400 && got.body != invalid {
				t.Errorf("got %d %q, want %d", got.status, got.body, tc.status)
			}
		})
	}
	t.Run("calls to the app", func(t *testing.T) {
		a := callApp(t, open(t, "routerchecker", "rule", "^/orders"))
		if got := a.do(post("orders/1", "")); got.status != 200 {
			t.Errorf("got %d", got.status)
		}
		a.do(post("other", "")).want(t, 400, invalid)
	})
}

// A refusal must not leave a body behind that nobody reads.
func TestRefusalsCloseTheBody(t *testing.T) {
	m := open(t, "routerchecker", "rule", "^/orders")
	body := &closing{Reader: bytes.NewReader([]byte("x"))}
	req := post("other", "")
	req.Data, req.Stream, req.Length = nil, body, call.Unknown
	resp, err := m.App(answering)(t.Context(), req)
	if err != nil || resp.Status != http.StatusBadRequest || !body.closed {
		t.Errorf("got %+v, %v, closed %v", resp, err, body.closed)
	}
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

// gRPC traffic is not the business of HTTP middleware.
func TestGRPCPasses(t *testing.T) {
	for name, m := range map[string]*middleware.Middleware{
		"bearer":        open(t, "bearer", "issuer", "https://login.example", "audience", "a"),
		"ratelimit":     open(t, "ratelimit", "maxRequestsPerSecond", "0.001"),
		"routeralias":   open(t, "routeralias", "routes", "/a: /b"),
		"routerchecker": open(t, "routerchecker", "rule", "^$"),
		"uppercase":     open(t, "uppercase", "direction", "both"),
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 {
				req := &call.Request{Protocol: call.GRPC, Path: "a", Data: []byte("x")}
				resp, err := m.App(func(_ context.Context, got *call.Request) (*call.Response, error) {
					if got != req || got.Path != "a" || string(got.Data) != "x" {
						t.Errorf("the call became %+v", got)
					}
					return answering(t.Context(), got)
				})(t.Context(), req)
				if err != nil || resp.Status != 200 {
					t.Errorf("got %+v, %v", resp, err)
				}
			}
		})
	}
}

func TestOrder(t *testing.T) {
	limit := open(t, "ratelimit", "maxRequestsPerSecond", "0.001")
	check := open(t, "routerchecker", "rule", "^/v1\\.0/invoke")
	up := open(t, "uppercase", "direction", "response")
	// The first listed is outermost: it sees, and may change, the refusals of the others.
	a := serve(t, up, limit, check)
	a.do("GET", "/bad", "").want(t, 400, "INVALID ROUTER")
	a.do("GET", "/bad", "").want(t, 429, strings.ToUpper(tooMany))
	// Inside of what refuses it is not asked.
	serve(t, check, up).do("GET", "/bad", "").want(t, 400, "invalid router")
}

func TestConfigurationErrors(t *testing.T) {
	for _, tc := range []struct {
		name, typ string
		metadata  []string
		want      string // in the error; empty means there is none
	}{
		{"rate of nothing", "ratelimit", []string{"maxRequestsPerSecond", "0"}, "must be a positive number"},
		{"negative rate", "ratelimit", []string{"maxRequestsPerSecond", "-1"}, "must be a positive number"},
		{"rate that is no number", "ratelimit", []string{"maxRequestsPerSecond", "NaN"}, "must be a positive number"},
		{"rate without end", "ratelimit", []string{"maxRequestsPerSecond", "Inf"}, "must be a positive number"},
		{"rate in words", "ratelimit", []string{"maxRequestsPerSecond", "many"}, "is not a number"},
		{"no issuer", "bearer", []string{"audience", "a"}, "issuer: required"},
		{"no audience", "bearer", []string{"issuer", "https://a.example"}, "audience: required"},
		{"aliases", "bearer", []string{"issuerURL", "https://a.example", "clientID", "a"}, ""},
		{"issuer without an address", "bearer", []string{"issuer", "accounts", "audience", "a"}, "or set jwksURL"},
		{"issuer without an address, keys with one", "bearer", []string{"issuer", "accounts", "audience", "a", "jwksURL", "http://k.example/keys"}, ""},
		{"keys in a file", "bearer", []string{"issuer", "i", "audience", "a", "jwksURL", "file:///etc/keys"}, "jwksURL: must be an address"},
		{"unknown direction", "uppercase", []string{"direction", "down"}, "one of request, response, both"},
		{"direction in capitals", "uppercase", []string{"direction", "BOTH"}, ""},
		{"no rule", "routerchecker", nil, "rule: required"},
		{"bad rule", "routerchecker", []string{"rule", "("}, "rule: is not a regular expression"},
		{"no routes", "routeralias", nil, ""},
		{"blank routes", "routeralias", []string{"routes", " \n# nothing\n"}, ""},
		{"null routes", "routeralias", []string{"routes", "null"}, ""},
		{"a list", "routeralias", []string{"routes", `["/a"]`}, "is not a map"},
		{"a text", "routeralias", []string{"routes", `hello`}, "is not a map"},
		{"broken", "routeralias", []string{"routes", `{"/a": `}, "neither JSON nor YAML"},
		{"target is a number", "routeralias", []string{"routes", `{"/a": 1}`}, `the target of "/a" must be a text`},
		{"target is an object", "routeralias", []string{"routes", `{"/a": {"/b": "/c"}}`}, `the target of "/a" must be a text`},
		{"target is a map", "routeralias", []string{"routes", "/a:\n  /b: /c\n"}, "each entry must be a pattern and a path"},
		{"twice in JSON", "routeralias", []string{"routes", `{"/a": "/b", "/a": "/c"}`}, "given twice"},
		{"pattern without a slash", "routeralias", []string{"routes", `{"a": "/b"}`}, "must begin with a slash"},
		{"target without a slash", "routeralias", []string{"routes", `{"/a": "b"}`}, "must be a path that begins with a slash"},
		{"target with a bad escape", "routeralias", []string{"routes", `{"/a": "/b%zz"}`}, "bad escape"},
		{"target with a fragment", "routeralias", []string{"routes", `{"/a": "/b#c"}`}, "cannot be called"},
		{"open brace", "routeralias", []string{"routes", `{"/a/{b": "/b"}`}, "{ without a }"},
		{"closed brace", "routeralias", []string{"routes", `{"/a/b}": "/b"}`}, "} without a {"},
		{"variable without a name", "routeralias", []string{"routes", `{"/a/{}": "/b"}`}, "without a name"},
		{"bad expression", "routeralias", []string{"routes", `{"/a/{b:[}": "/b"}`}, "variable b"},
		{"expression with a group", "routeralias", []string{"routes", `{"/a/{b:(x)}": "/b"}`}, "has a group"},
	} {
		t.Run(tc.typ+" "+tc.name, func(t *testing.T) {
			f, ok := middleware.Find("middleware.http."+tc.typ, "")
			if !ok {
				t.Fatal("no such type")
			}
			c := f.Config()
			err := conf.Decode(conf.Items(tc.metadata...), c).Err()
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want …%s…", err, tc.want)
			case tc.want == "":
				openIn(t, middleware.Env{Log: quiet}, tc.typ, tc.metadata...)
			}
		})
	}
}

func TestFind(t *testing.T) {
	for _, tc := range []struct {
		typ, version string
		want         bool
	}{
		{"middleware.http.bearer", "", true},
		{"middleware.http.Bearer", "v1", true},
		{"middleware.http.bearer", "v0", true},
		{"middleware.http.bearer", "v2", false},
		{"middleware.HTTP.bearer", "v1", false},
		{"middleware.http.oauth2", "v1", false},
		{"bearer", "v1", false},
	} {
		if _, ok := middleware.Find(tc.typ, tc.version); ok != tc.want {
			t.Errorf("Find(%q, %q) is %v, want %v", tc.typ, tc.version, ok, tc.want)
		}
	}
	f, _ := middleware.Find("middleware.http.bearer", "")
	if _, err := f.Open(middleware.Env{Log: quiet}, &middleware.RateLimitConfig{}); err == nil {
		t.Error("a configuration of another type was taken")
	}
}

func FuzzRoutes(f *testing.F) {
	f.Add(`{"/a/{b}": "/c"}`, "/a/1")
	f.Add("/a/{b:[0-9]+}/{c}: /d?e=1\n", "/a/1/2")
	f.Add(`{"/a": "/b", "/a": "/c"}`, "/a")
	f.Fuzz(func(t *testing.T, routes, path string) {
		fac, _ := middleware.Find("middleware.http.routeralias", "")
		c := fac.Config()
		valid := conf.Decode(conf.Items("routes", routes), c).Err() == nil
		m, err := fac.Open(middleware.Env{Log: quiet}, c)
		if valid != (err == nil) {
			t.Fatalf("valid %v, opening it: %v", valid, err)
		}
		if err != nil {
			return
		}
		_, err = m.App(func(_ context.Context, req *call.Request) (*call.Response, error) {
			if clean, err := call.CleanPath(req.Path); req.Path != strings.TrimPrefix(path, "/") && (err != nil || clean != req.Path) {
				t.Fatalf("%q became %q, which is not clean: %v", path, req.Path, err)
			}
			return answering(t.Context(), req)
		})(t.Context(), post(strings.TrimPrefix(path, "/"), ""))
		if err != nil {
			t.Fatal(err)
		}
	})
}
