package httpapi_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/runtime/call"
)

const (
	stable = "v1.0"
	both   = "v1.0 v1.0-alpha1"
	alpha  = "v1.0-alpha1"
	flows  = "v1.0 v1.0-beta1 v1.0-alpha1"
)

// paths are what is asked, with who answers: methods and versions as Dapr's API has them, the
// name as in API logs. Whatever is not listed is service invocation.
var paths = []struct {
	path string
	rows []row
}{
	{"publish/p/t", []row{{"POST PUT", stable, "PublishEvent"}}},
	{"publish/p/t/with/slashes", []row{{"POST PUT", stable, "PublishEvent"}}},
	{"publish/p", nil},
	{"publish/bulk/p/t", []row{{"POST PUT", both, "BulkPublishEvent"}}},
	{"publish/bulk/p", []row{{"POST PUT", stable, "PublishEvent"}}}, // to the pubsub "bulk"
	{"state/s/k", []row{{"GET", stable, "GetState"}, {"DELETE", stable, "DeleteState"}}},
	{"state/s", []row{{"POST PUT", stable, "SaveState"}}},
	{"state/s/bulk", []row{{"POST PUT", stable, "GetBulkState"}, {"GET", stable, "GetState"}, {"DELETE", stable, "DeleteState"}}},
	{"state/s/transaction", []row{{"POST PUT", stable, "ExecuteStateTransaction"}, {"GET", stable, "GetState"}, {"DELETE", stable, "DeleteState"}}},
	{"state/s/query", []row{{"POST PUT", alpha, "QueryStateAlpha1"}, {"GET", stable, "GetState"}, {"DELETE", stable, "DeleteState"}}},
	{"state/s/k/more", nil},
	{"state", nil},
	{"configuration/s", []row{{"GET", both, "GetConfiguration"}}},
	{"configuration/s/subscribe", []row{{"GET", both, "SubscribeConfiguration"}}},
	{"configuration/s/id/unsubscribe", []row{{"GET", both, "UnsubscribeConfiguration"}}},
	{"configuration/s/other", nil},
	{"lock/s", []row{{"POST", alpha, "TryLockAlpha1"}}},
	{"unlock/s", []row{{"POST", alpha, "UnlockAlpha1"}}},
	{"secrets/s/k", []row{{"GET", stable, "GetSecret"}}},
	{"secrets/s/bulk", []row{{"GET", stable, "GetBulkSecret"}}},
	{"secrets/s", nil},
	{"bindings/b", []row{{"POST PUT", stable, "InvokeBinding"}}},
	{"jobs/j", []row{{"POST GET DELETE", both, "ScheduleJob"}}},
	{"jobs", nil},
	{"actors/t/i/state", []row{{"POST PUT", stable, "ExecuteActorStateTransaction"}}},
	{"actors/t/i/state/k", []row{{"GET", stable, "GetActorState"}}},
	{"actors/t/i/method/m", []row{{"GET POST PUT DELETE", stable, "InvokeActor"}}},
	{"actors/t/i/method/m/n", []row{{"GET POST PUT DELETE", stable, "InvokeActor"}}},
	{"actors/t/i/reminders/r", []row{{"POST PUT DELETE GET", stable, "RegisterActorReminder"}}},
	{"actors/t/i/timers/r", []row{{"POST PUT DELETE", stable, "RegisterActorTimer"}}},
	{"workflows/c/i", []row{{"GET", flows, "GetWorkflow"}}},
	{"workflows/c/n/start", []row{{"POST", flows, "StartWorkflow"}}},
	{"workflows/c/i/pause", []row{{"POST", flows, "PauseWorkflow"}}},
	{"workflows/c/i/resume", []row{{"POST", flows, "ResumeWorkflow"}}},
	{"workflows/c/i/terminate", []row{{"POST", flows, "TerminateWorkflow"}}},
	{"workflows/c/i/purge", []row{{"POST", flows, "PurgeWorkflow"}}},
	{"workflows/c/i/raiseEvent/e", []row{{"POST", flows, "RaiseEventWorkflow"}}},
	{"workflows/c/i/other", nil},
	{"crypto/c/encrypt", []row{{"PUT", alpha, "EncryptAlpha1"}}},
	{"crypto/c/decrypt", []row{{"PUT", alpha, "DecryptAlpha1"}}},
	{"subtlecrypto/c/getkey", []row{{"POST", alpha, "SubtleGetKeyAlpha1"}}},
	{"subtlecrypto/c/encrypt", []row{{"POST", alpha, "SubtleEncryptAlpha1"}}},
	{"subtlecrypto/c/decrypt", []row{{"POST", alpha, "SubtleDecryptAlpha1"}}},
	{"subtlecrypto/c/wrapkey", []row{{"POST", alpha, "SubtleWrapKeyAlpha1"}}},
	{"subtlecrypto/c/unwrapkey", []row{{"POST", alpha, "SubtleUnwrapKeyAlpha1"}}},
	{"subtlecrypto/c/sign", []row{{"POST", alpha, "SubtleSignAlpha1"}}},
	{"subtlecrypto/c/verify", []row{{"POST", alpha, "SubtleVerifyAlpha1"}}},
	{"subtlecrypto/c/other", nil},
	{"crypto/c/other", nil},
	{"conversation/c/converse", []row{{"POST", "v1.0-alpha1 v1.0-alpha2", "Converse"}}},
	{"metadata", []row{{"GET", stable, "GetMetadata"}}},
	{"metadata/k", []row{{"PUT", stable, "SetMetadata"}}},
	{"healthz", []row{{"GET", stable, "Healthz"}}},
	{"healthz/outbound", []row{{"GET", stable, "HealthzOutbound"}}},
	{"healthz/other", nil},
	{"shutdown", []row{{"POST", stable, "Shutdown"}}},
	{"", nil},
	{"nonsense/a/b", nil},
}

type row struct{ methods, versions, name string }

func who(rows []row, method, version string) string {
	for _, r := range rows {
		if slices.Contains(strings.Fields(r.methods), method) && slices.Contains(strings.Fields(r.versions), version) {
			return r.name
		}
	}
	return "InvokeService"
}

func TestRoutes(t *testing.T) {
	k := newKit()
	for _, p := range paths {
		for _, version := range []string{"v1.0", "v1.0-alpha1", "v1.0-alpha2", "v1.0-beta1", "v2.0", "V1.0"} {
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get"} {
				for _, form := range []string{"/" + version + "/" + p.path, "//" + version + "//" + strings.ReplaceAll(p.path, "/", "//"), "/" + version + "/" + p.path + "/?q=/x"} {
					want := who(p.rows, method, version)
					if p.path == "" && form != "/"+version+"/" {
						continue
					}
					x := k.do(method, form, "")
					if got := k.served.last(t); got.Route != want {
						t.Errorf("%s %s went to %s, want %s", method, form, got.Route, want)
					}
					if want == "InvokeService" && (x.Status != 404 || !strings.Contains(string(x.Out), "ERR_DIRECT_INVOKE")) {
						t.Errorf("%s %s: %d %s", method, form, x.Status, x.Out)
					}
					if x.Answers != 1 {
						t.Errorf("%s %s was answered %d×", method, form, x.Answers)
					}
				}
			}
		}
	}
}

func TestPathParameters(t *testing.T) {
	k := newKit()
	tests := []struct{ target, store, key string }{
		{"/v1.0/state/s/k", "s", "k"},
		{"/v1.0/state/s/a%2Fb", "s", "a/b"},
		{"/v1.0/state/s/a%7C%7Cb", "s", "a||b"},
		{"/v1.0/state/s%20t/%E2%82%AC", "s t", "€"},
		{"/v1.0/state/s/100%25", "s", "100%"},
		{"/v1.0/state/s/a+b", "s", "a+b"},
		{"http://elsewhere/v1.0/state/s/k", "s", "k"}, // absolute form
	}
	for _, tt := range tests {
		k.do("GET", tt.target, "")
		if k.state.store != tt.store || k.state.key != tt.key {
			t.Errorf("%s asked for %q in %q, want %q in %q", tt.target, k.state.key, k.state.store, tt.key, tt.store)
		}
	}
	for _, bad := range []string{"/v1.0/state/s/%", "/v1.0/state/s/%zz", "/v1.0/state/s/a%2", "/%"} {
		if x := k.do("GET", bad, ""); x.Status != 400 || string(x.Out) != "400 Bad Request" {
			t.Errorf("%s: %d %q", bad, x.Status, x.Out)
		}
	}
}

func TestWhereInvocationsGo(t *testing.T) {
	const none = "-"
	tests := []struct {
		name, target  string
		headers       []string
		app, path     string // app none: 404
		query, appID  string
		authorization bool // the header travels on
	}{
		{"by path", "/v1.0/invoke/shop/method/a/b?x=1&y", nil, "shop", "a/b", "x=1&y", "", false},
		{"the app's root", "/v1.0/invoke/shop/method/", nil, "shop", "", "", "", false},
		{"no method", "/v1.0/invoke/shop/method", nil, none, "", "", "", false},
		{"no method at all", "/v1.0/invoke/shop", nil, none, "", "", "", false},
		{"no app", "/v1.0/invoke//method/a", nil, none, "", "", "", false},
		{"an escaped app", "/v1.0/invoke/shop%2Eaway/method/a", nil, "shop.away", "a", "", "", false},
		{"duplicate slashes", "/v1.0//invoke/shop//method//a//b", nil, "shop", "a/b", "", "", false},
		{"dots in the method", "/v1.0/invoke/shop/method/a/../../b/./c", nil, "shop", "b/c", "", "", false},
		{"escaped dots", "/v1.0/invoke/shop/method/a/%2e%2e/b", nil, "shop", "b", "", "", false},
		{"an escaped slash", "/v1.0/invoke/shop/method/a%2Fb", nil, "shop", "a/b", "", "", false},
		{"method twice", "/v1.0/invoke/shop/method/x/method/y", nil, "shop", "x/method/y", "", "", false},
		{"a URL", "/v1.0/invoke/http://example.com/base/method/a", nil, "http://example.com/base", "a", "", "", false},
		{"an escaped URL", "/v1.0/invoke/https%3A%2F%2Fexample.com/method/a", nil, "https://example.com", "a", "", "", false},
		{"a header wins, and the path is the method", "/v1.0/invoke/x/method/y", []string{"Dapr-App-Id", "shop"}, "shop", "v1.0/invoke/x/method/y", "", "", false},
		{"a header", "/a/b", []string{"dapr-app-id", "shop"}, "shop", "a/b", "", "", false},
		{"an API route wins over the header", "/v1.0/metadata/k", []string{"dapr-app-id", "shop"}, none, "", "", "", false},
		{"basic credentials", "/a", []string{"Authorization", "basic ZGFwci1hcHAtaWQ6c2hvcA=="}, "shop", "a", "", "", true},
		{"other credentials", "/a", []string{"Authorization", "Basic dXNlcjpwYXNz"}, none, "", "", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got *call.Request
			k := newKit(withInvoke(func(ctx context.Context, req *call.Request, out call.Responder) error {
				got = req
				return out.Respond(ctx, &call.Response{Status: 200})
			}))
			x := k.do("PUT", tt.target, "body", append(tt.headers, "Content-Type", "text/x", "X-Mine", "1")...)
			if tt.app == none {
				if got != nil {
					t.Errorf("%q was called", got.Target)
				}
				return
			}
			if got == nil {
				t.Fatalf("nobody was called: %d %s", x.Status, x.Out)
			}
			if got.Target != tt.app || got.Path != tt.path || got.Query != tt.query || got.Verb != "PUT" || got.Protocol != call.HTTP || string(got.Data) != "body" || got.Type != "text/x" {
				t.Errorf("asked %q for %q?%q: %+v", got.Target, got.Path, got.Query, got)
			}
			if _, ok := got.Header.Lookup("dapr-app-id"); ok {
				t.Error("the app id header travels on")
			}
			if _, ok := got.Header.Lookup("Authorization"); ok != tt.authorization {
				t.Errorf("credentials travel on: %v", ok)
			}
			if route := k.served.last(t).Route; route != "InvokeService/"+tt.app {
				t.Errorf("route %q", route)
			}
		})
	}
}

func TestVerbs(t *testing.T) {
	var verb string
	k := newKit(withInvoke(func(ctx context.Context, req *call.Request, out call.Responder) error {
		verb = req.Verb
		return out.Respond(ctx, &call.Response{Status: 200})
	}))
	for _, v := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"} {
		if k.do(v, "/v1.0/invoke/a/method/m", ""); verb != v {
			t.Errorf("%s arrives as %s", v, verb)
		}
	}
	for _, v := range []string{"FOO", "QUERY", "get"} {
		if k.do(v, "/v1.0/invoke/a/method/m", ""); verb != "POST" {
			t.Errorf("%s arrives as %s, want POST", v, verb)
		}
	}
	if x := k.do("CONNECT", "/v1.0/invoke/a/method/m", ""); x.Status != 500 || !strings.Contains(string(x.Out), "invalid HTTP verb") {
		t.Errorf("CONNECT: %d %s", x.Status, x.Out)
	}
	for _, bad := range []string{"a%23b", "a%3Fb", "a%00", "a%0ab"} {
		if x := k.do("GET", "/v1.0/invoke/a/method/"+bad, ""); x.Status != 500 || !strings.Contains(string(x.Out), "forbidden character") {
			t.Errorf("%s: %d %s", bad, x.Status, x.Out)
		}
	}
}

func TestPublicPort(t *testing.T) {
	k := newKit(func(o *httpapi.Options) { o.Token, o.Origins = "secret", []string{"*"} })
	tests := []struct {
		method, target string
		status         int
	}{{"GET", "/v1.0/metadata", 200}, {"PUT", "/v1.0/metadata/k", 204}, {"GET", "/v1.0/healthz", 204}, {"GET", "/v1.0/healthz/outbound", 500},
		{"GET", "/v1.0/state/s/k", 404}, {"POST", "/v1.0/shutdown", 404}, {"POST", "/v1.0/invoke/a/method/m", 404}, {"GET", "/", 404}}
	for _, tt := range tests {
		x := &httpapi.Exchange{Verb: tt.method, To: tt.target, Fields: fields("Origin", "http://x", "dapr-app-id", "shop")}
		k.DoPublic(x)
		if x.Status != tt.status {
			t.Errorf("%s %s: %d, want %d", tt.method, tt.target, x.Status, tt.status)
		}
		if tt.status == 404 && string(x.Out) != "404 page not found\n" {
			t.Errorf("%s %s: %q", tt.method, tt.target, x.Out)
		}
		if x.Answer.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s %s has CORS", tt.method, tt.target)
		}
	}
}

func TestAPILists(t *testing.T) {
	rule := func(name, version string) httpapi.Rule {
		return httpapi.Rule{Name: name, Version: version, Protocol: "http"}
	}
	tests := []struct {
		name           string
		rules          httpapi.Rules
		served, hidden []string // "METHOD target"
	}{
		{"an allow list hides the rest", httpapi.Rules{Allowed: []httpapi.Rule{rule("state", "v1")}}, []string{"GET /v1.0/state/s/k", "GET /v1.0/healthz"}, []string{"GET /v1.0/metadata", "POST /v1.0-alpha1/state/s/query", "POST /v1.0/invoke/a/method/m"}},
		{"a long version", httpapi.Rules{Allowed: []httpapi.Rule{rule("state", "v1.0-alpha1")}}, []string{"POST /v1.0-alpha1/state/s/query"}, []string{"GET /v1.0/state/s/k"}},
		{"deny wins", httpapi.Rules{Allowed: []httpapi.Rule{rule("state", "v1")}, Denied: []httpapi.Rule{rule("state", "v1")}}, nil, []string{"GET /v1.0/state/s/k"}},
		{"a deny list leaves the rest", httpapi.Rules{Denied: []httpapi.Rule{rule("metadata", "v1")}}, []string{"GET /v1.0/state/s/k"}, []string{"GET /v1.0/metadata"}},
		{"health stays", httpapi.Rules{Denied: []httpapi.Rule{rule("healthz", "v1")}}, []string{"GET /v1.0/healthz"}, nil},
		{"rules of the other protocol", httpapi.Rules{Allowed: []httpapi.Rule{{Name: "state", Version: "v1", Protocol: "grpc"}}}, []string{"GET /v1.0/metadata"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(func(o *httpapi.Options) { o.Allow = &tt.rules })
			for _, s := range tt.served {
				m, target, _ := strings.Cut(s, " ")
				if x := k.do(m, target, ""); x.Status == 404 {
					t.Errorf("%s is hidden", s)
				}
			}
			for _, s := range tt.hidden {
				m, target, _ := strings.Cut(s, " ")
				if x := k.do(m, target, ""); x.Status != 404 {
					t.Errorf("%s is served: %d %s", s, x.Status, x.Out)
				}
			}
		})
	}
	hidden := newKit(func(o *httpapi.Options) { o.Allow = &httpapi.Rules{Denied: []httpapi.Rule{rule("invoke", "v1")}} })
	for _, target := range []string{"/v1.0/invoke/a/method/m", "/anything"} {
		if x := hidden.do("GET", target, "", "dapr-app-id", "a"); x.Status != 404 || string(x.Out) != "404 page not found\n" {
			t.Errorf("%s with invocation hidden: %d %q", target, x.Status, x.Out)
		}
	}
}

// Whatever the target, the answer is an answer, and what reaches the app is a clean path.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"/v1.0/state/s/k", "/v1.0/invoke/a/method/../x?q", "*", "http://h/v1.0/metadata", "//", "/%2e%2e/%00", "/v1.0/invoke/http://a/b/method/c", "?", "", "/v1.0/publish/bulk/p/t/", "://", "/v1.0/invoke/%68ttp://x/method/%2F"} {
		f.Add(s, "")
		f.Add(s, "shop")
	}
	var got *call.Request
	k := newKit(withInvoke(func(ctx context.Context, req *call.Request, out call.Responder) error {
		got = req
		return out.Respond(ctx, &call.Response{Status: 200})
	}))
	f.Fuzz(func(t *testing.T, target, app string) {
		got = nil
		x := &httpapi.Exchange{Verb: "GET", To: target}
		if app != "" {
			x.Fields = fields("dapr-app-id", app)
		}
		k.Do(x)
		if x.Answers != 1 || !x.Ended || x.Status < 200 || x.Status > 599 {
			t.Fatalf("%d answers, ended %v, status %d", x.Answers, x.Ended, x.Status)
		}
		if got == nil {
			return
		}
		if clean, err := call.CleanPath(got.Path); err != nil || clean != got.Path {
			t.Fatalf("the path %q is not clean: %q, %v", got.Path, clean, err)
		}
		if app != "" && got.Target != app {
			t.Fatalf("%q was called, want %q", got.Target, app)
		}
	})
}

// TestCollapsedAndRawPathAgree: a URL target is read from the path before slashes were
// collapsed. It must be the target that whoever judged the collapsed path saw.
func TestCollapsedAndRawPathAgree(t *testing.T) {
	for _, tt := range []struct{ name, path, target, method string }{
		{"plain", "/v1.0/invoke/http://good.test/method/m", "http://good.test", "m"},
		{"slashes everywhere", "//v1.0//invoke//http://good.test//method//m", "http://good.test/", "m"},
		{"a second API path behind", "/v1.0//invoke/http://good.test/method/v1.0/invoke/shop/method/admin", "http://good.test", "v1.0/invoke/shop/method/admin"},
		{"and without one slash too many", "//v1.0/invoke/http://good.test/method/v1.0/invoke/shop/method/admin", "http://good.test", "v1.0/invoke/shop/method/admin"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got *call.Request
			k := newKit(withInvoke(func(ctx context.Context, req *call.Request, out call.Responder) error {
				got = req
				return out.Respond(ctx, &call.Response{Status: 200})
			}))
			x := k.do("GET", tt.path, "")
			if got == nil || got.Target != tt.target || got.Path != tt.method {
				t.Errorf("status %d, called %+v, want target %s, method %s", x.Status, got, tt.target, tt.method)
			}
		})
	}
}
