package e2e

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/test/harness"
)

func basic(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }

// TestInvokeForms covers the ways an HTTP caller names its target.
func TestInvokeForms(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(echo))
	for _, way := range bothWays(callee, caller) {
		for _, tt := range []struct {
			name, method, target string
			header               []string
			want                 string // URI at the app
		}{
			{"path", "GET", "/v1.0/invoke/callee/method/a/b?x=1", nil, "/a/b?x=1"},
			{"path with namespace", "GET", "/v1.0/invoke/callee.default/method/a", nil, "/a"},
			{"escaped id", "GET", "/v1.0/invoke/call%65e/method/a", nil, "/a"},
			{"header", "GET", "/a/b?x=1", []string{"dapr-app-id", "callee"}, "/a/b?x=1"},
			{"header, any case", "GET", "/a", []string{"Dapr-App-Id", "callee"}, "/a"},
			{"header, root", "GET", "/", []string{"dapr-app-id", "callee"}, "/"},
			{"header wins over path", "GET", "/v1.0/invoke/other/method/y", []string{"dapr-app-id", "callee"}, "/v1.0/invoke/other/method/y"},
			{"header on a path of the API with another verb", "PUT", "/v1.0/healthz", []string{"dapr-app-id", "callee"}, "/v1.0/healthz"},
			{"basic", "GET", "/a/b?x=1", []string{"Authorization", basic("dapr-app-id:callee")}, "/a/b?x=1"},
			{"basic, any case", "GET", "/a", []string{"Authorization", basic("DAPR-APP-ID:callee")}, "/a"},
		} {
			t.Run(way.name+"/"+tt.name, func(t *testing.T) {
				resp, body := raw(t, way.via.HTTP, tt.method, get(tt.method, tt.target, tt.header...))
				if resp.StatusCode != 200 {
					t.Fatalf("got %d %s", resp.StatusCode, body)
				}
				got := decodeSeen(t, []byte(body))
				if got.URI != tt.want || got.Method != tt.method {
					t.Errorf("app saw %s %s, want %s %s", got.Method, got.URI, tt.method, tt.want)
				}
				if v := got.Header.Get("Dapr-App-Id"); v != "" {
					t.Errorf("dapr-app-id: %s reached the app", v)
				}
				if tt.header != nil && tt.header[0] == "Authorization" && got.Header.Get("Authorization") == "" {
					t.Error("the Authorization header is lost; the app may want it")
				}
			})
		}
	}
}

// TestInvokePaths is what becomes of the method path on its way to the app.
func TestInvokePaths(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(echo))
	for _, way := range bothWays(callee, caller) {
		for _, tt := range []struct {
			name, method string // as sent behind /method/
			want         string // URI at the app; empty: refused
			status       int
			text         string // in the refusal
		}{
			{name: "plain", method: "a/b", want: "/a/b"},
			{name: "empty", method: "", want: "/"},
			{name: "only a query", method: "?a=1", want: "/?a=1"},
			{name: "trailing slash", method: "a/", want: "/a"},
			{name: "double slashes", method: "a//b///c", want: "/a/b/c"},
			{name: "dots", method: "a/./b/../c", want: "/a/c"},
			{name: "dots above the root", method: "../../../etc/passwd", want: "/etc/passwd"},
			{name: "escaped dots", method: "a/%2e%2e/%2E%2E/b", want: "/b"},
			{name: "escaped slash", method: "a%2Fb", want: "/a/b"},
			{name: "escaped slash and dots", method: "a%2F..%2Fb", want: "/b"},
			{name: "doubly escaped space", method: "a%2520b", want: "/a%20b"},
			{name: "escaped space", method: "a%20b", want: "/a%20b"},
			{name: "unicode", method: "caf%C3%A9", want: "/caf%C3%A9"},
			{name: "raw unicode", method: "café", want: "/caf%C3%A9"},
			{name: "sub-delims", method: "a;b=c,d:@!$&'()*+~_-.", want: "/a;b=c,d:@!$&'()*+~_-."},
			{name: "the word method again", method: "method/x", want: "/method/x"},
			{name: "query verbatim", method: "a?b=%2f%2F&&c=d;e&=&f=%zz&g=a+b", want: "/a?b=%2f%2F&&c=d;e&=&f=%zz&g=a+b"},
			{name: "empty query is kept or dropped", method: "a?", want: "/a"},
			{name: "question mark in the query", method: "a?b?c", want: "/a?b?c"},
			{name: "escaped question mark", method: "a%3Fb", status: 500, text: "forbidden character"},
			{name: "escaped hash", method: "a%23b", status: 500, text: "forbidden character"},
			{name: "escaped NUL", method: "a%00b", status: 500, text: "forbidden character"},
			{name: "escaped line feed", method: "a%0Ab", status: 500, text: "forbidden character"},
			{name: "escaped CR LF", method: "a%0D%0AX-Evil:1", status: 500, text: "forbidden character"},
			{name: "escaped DEL", method: "a%7Fb", status: 500, text: "forbidden character"},
			{name: "a lone percent inside", method: "a%25c", status: 500, text: "invalid URL escape"},
			{name: "invalid escape", method: "a%zz", status: 400, text: "400 Bad Request"},
			{name: "cut escape", method: "a%2", status: 400, text: "400 Bad Request"},
		} {
			t.Run(way.name+"/"+tt.name, func(t *testing.T) {
				resp, body := raw(t, way.via.HTTP, "GET", get("GET", "/v1.0/invoke/callee/method/"+tt.method))
				if tt.want == "" {
					if resp.StatusCode != tt.status || !strings.Contains(body, tt.text) {
						t.Fatalf("got %d %s, want %d with %q", resp.StatusCode, body, tt.status, tt.text)
					}
					if tt.status == 500 {
						wantError(t, resp, []byte(body), 500, "ERR_DIRECT_INVOKE")
					}
					return
				}
				if resp.StatusCode != 200 {
					t.Fatalf("got %d %s", resp.StatusCode, body)
				}
				if got := decodeSeen(t, []byte(body)).URI; got != tt.want {
					t.Errorf("app saw %s, want %s", got, tt.want)
				}
			})
		}
	}
}

func TestInvokeVerbs(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Method", r.Method)
		echo(w, r)
	}))
	verbs := map[string]string{"GET": "GET", "HEAD": "HEAD", "POST": "POST", "PUT": "PUT", "DELETE": "DELETE", "OPTIONS": "OPTIONS",
		"TRACE": "TRACE", "PATCH": "PATCH", "FOO": "POST", "QUERY": "POST", "PROPFIND": "POST"}
	for _, way := range bothWays(callee, caller) {
		for verb, want := range verbs {
			t.Run(way.name+"/"+verb, func(t *testing.T) {
				resp, body := raw(t, way.via.HTTP, verb, get(verb, "/v1.0/invoke/callee/method/v"))
				if got := resp.Header.Get("X-Method"); resp.StatusCode != 200 || got != want {
					t.Errorf("got %d, the app saw %q, want %q: %s", resp.StatusCode, got, want, body)
				}
			})
		}
		t.Run(way.name+"/CONNECT", func(t *testing.T) {
			resp, body := raw(t, way.via.HTTP, "POST", get("CONNECT", "/v1.0/invoke/callee/method/v"))
			wantError(t, resp, []byte(body), 500, "ERR_DIRECT_INVOKE", "invalid HTTP verb")
		})
		t.Run(way.name+"/body with GET", func(t *testing.T) {
			_, body := harness.Do(t, "GET", invokeURL(way.via, "callee", "v"), []byte("payload"))
			if got := decodeSeen(t, body); got.Body != "payload" {
				t.Errorf("app saw body %q, want payload", got.Body)
			}
		})
	}
}

// TestInvokeErrors: what a caller learns when there is nobody to call.
func TestInvokeErrors(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	caller := mesh.Start(harness.Options{AppID: "caller"})
	noApp := mesh.Start(harness.Options{AppID: "noapp"})
	for _, tt := range []struct {
		name, method, path string
		status             int
		texts              []string
	}{
		{"no target", "GET", "/", 404, []string{"failed getting app id either from the URL path or the header dapr-app-id"}},
		{"unknown route", "GET", "/v1.0/nothing", 404, []string{"failed getting app id"}},
		{"wrong verb of a route", "DELETE", "/v1.0/metadata", 404, []string{"failed getting app id"}},
		{"no method part", "GET", "/v1.0/invoke/callee", 404, []string{"failed getting app id"}},
		{"method without slash", "GET", "/v1.0/invoke/callee/method", 404, []string{"failed getting app id"}},
		{"empty id", "GET", "/v1.0/invoke//method/x", 404, []string{"failed getting app id"}},
		{"unknown app", "GET", "/v1.0/invoke/ghost/method/x", 500, []string{"failed to invoke, id: ghost, err: ", "couldn't find service: ghost"}},
		{"unknown namespace", "GET", "/v1.0/invoke/noapp.elsewhere/method/x", 500, []string{"couldn't find service: noapp"}},
		{"two dots", "GET", "/v1.0/invoke/a.b.c/method/x", 500, []string{"invalid app id a.b.c"}},
		{"self without app port", "GET", "/v1.0/invoke/caller/method/x", 500, []string{"app channel"}},
		{"remote without app port", "GET", "/v1.0/invoke/noapp/method/x", 500, []string{"app channel is not initialized"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := raw(t, caller.HTTP, tt.method, get(tt.method, tt.path))
			wantError(t, resp, []byte(body), tt.status, "ERR_DIRECT_INVOKE", tt.texts...)
			if got := resp.Header.Get("Content-Type"); got != "application/json" {
				t.Errorf("content type %q, want application/json", got)
			}
		})
	}
	_ = noApp
}

// TestInvokeOtherNamespace: one app id in two namespaces is two apps.
func TestInvokeOtherNamespace(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	named := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s called from %s", name, r.Header.Get("Dapr-Caller-Namespace"))
		})
	}
	mesh.Start(harness.Options{AppID: "svc", AppPort: harness.Serve(t, named("red")), Env: []string{"NAMESPACE=red"}})
	mesh.Start(harness.Options{AppID: "svc", AppPort: harness.Serve(t, named("blue")), Env: []string{"NAMESPACE=blue"}})
	caller := mesh.Start(harness.Options{AppID: "caller", Env: []string{"NAMESPACE=red"}})
	for target, want := range map[string]string{"svc": "red called from red", "svc.red": "red called from red", "svc.blue": "blue called from red"} {
		if _, body := harness.Do(t, "GET", invokeURL(caller, target, "x"), nil); string(body) != want {
			t.Errorf("%s answered %q, want %q", target, body, want)
		}
	}
	resp, body := harness.Do(t, "GET", invokeURL(caller, "svc.default", "x"), nil)
	wantError(t, resp, body, 500, "ERR_DIRECT_INVOKE", "couldn't find service: svc")
}

// TestInvokeExternal: HTTPEndpoint resources and URLs as targets.
func TestInvokeExternal(t *testing.T) {
	t.Parallel()
	port := harness.Serve(t, http.HandlerFunc(echo))
	mesh := harness.NewMesh(t)
	s := mesh.Start(harness.Options{AppID: "caller", Env: []string{"E2E_HEADER=from-env"}, Files: map[string]string{"endpoint.yaml": fmt.Sprintf(`
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: ext}
spec:
  baseUrl: http://127.0.0.1:%d/base/v1
  headers:
  - {name: X-Key, value: secret}
  - {name: X-Env, envRef: E2E_HEADER}
---
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: other}
spec: {baseUrl: "http://127.0.0.1:%d"}
scopes: [somebody-else]
`, port, port)}})
	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	for _, tt := range []struct{ name, target, want string }{
		{"endpoint", "/v1.0/invoke/ext/method/a/b?x=1", "/base/v1/a/b?x=1"},
		{"endpoint, empty method", "/v1.0/invoke/ext/method/", "/base/v1/"},
		{"raw URL", "/v1.0/invoke/" + base + "/method/a?x=1", "/a?x=1"},
		{"raw URL with path", "/v1.0/invoke/" + base + "/sub/method/a", "/sub/a"},
		{"escaped URL", "/v1.0/invoke/" + url.PathEscape(base) + "/method/a", "/a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := raw(t, s.HTTP, "GET", get("GET", tt.target, "X-Mine", "1", "dapr-caller-app-id", "forged"))
			if resp.StatusCode != 200 {
				t.Fatalf("got %d %s", resp.StatusCode, body)
			}
			got := decodeSeen(t, []byte(body))
			if got.URI != tt.want {
				t.Errorf("server saw %s, want %s", got.URI, tt.want)
			}
			if got.Host != fmt.Sprintf("127.0.0.1:%d", port) {
				t.Errorf("server saw host %s", got.Host)
			}
			if got.Header.Get("X-Mine") != "1" {
				t.Error("the caller's header is lost")
			}
			for name := range got.Header {
				if strings.HasPrefix(name, "Dapr-Caller") || strings.HasPrefix(name, "Dapr-Callee") || strings.Contains(name, "Forwarded") {
					t.Errorf("%s went to a server outside the mesh", name)
				}
			}
			if strings.HasPrefix(tt.name, "endpoint") && (got.Header.Get("X-Key") != "secret" || got.Header.Get("X-Env") != "from-env") {
				t.Errorf("headers of the resource are missing: %v", got.Header)
			}
		})
	}
	t.Run("header form", func(t *testing.T) {
		_, body := harness.Do(t, "POST", s.URL("/a"), []byte("x"), "dapr-app-id", "ext")
		if got := decodeSeen(t, body); got.URI != "/base/v1/a" || got.Body != "x" {
			t.Errorf("server saw %s with %q", got.URI, got.Body)
		}
	})
	t.Run("out of scope", func(t *testing.T) {
		resp, body := harness.Do(t, "GET", invokeURL(s, "other", "a"), nil)
		wantError(t, resp, body, 500, "ERR_DIRECT_INVOKE", "couldn't find service: other")
	})
	t.Run("nobody listens", func(t *testing.T) {
		resp, body := raw(t, s.HTTP, "GET", get("GET", fmt.Sprintf("/v1.0/invoke/http://127.0.0.1:%d/method/a", harness.FreePort(t))))
		wantError(t, resp, []byte(body), 500, "ERR_DIRECT_INVOKE", "refused")
	})
	t.Run("metadata lists it", func(t *testing.T) {
		if _, body := harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil); !strings.Contains(string(body), `"httpEndpoints":[{"name":"ext"}]`) {
			t.Errorf("metadata: %s", body)
		}
	})
}

// TestSelfCall: an app calling itself goes straight to its own app.
func TestSelfCall(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, http.HandlerFunc(echo))})
	for _, id := range []string{"me", "me.default"} {
		_, body := harness.Do(t, "POST", invokeURL(s, id, "x"), []byte("hi"), "dapr-caller-app-id", "forged")
		got := decodeSeen(t, body)
		if got.Body != "hi" || got.Header.Get("Dapr-Caller-App-Id") != "me" || len(got.Header["Dapr-Caller-App-Id"]) != 1 {
			t.Errorf("%s: app saw %+v", id, got)
		}
		if got.Header.Get("Forwarded") != "" {
			t.Errorf("%s: a self-call is not forwarded, yet the app saw %s", id, got.Header.Get("Forwarded"))
		}
	}
}
