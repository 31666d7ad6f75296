package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/settings"
)

const middlewareConfig = `apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: config}
spec:
  components: {deny: [middleware.http.routerchecker/v1]}
  httpPipeline:
    handlers:
    - {name: limit, type: middleware.http.ratelimit}
    - {name: up, type: middleware.http.uppercase}
  appHttpPipeline:
    handlers:
    - {name: alias, type: middleware.http.RouterAlias, version: v1}
    - {name: up, type: middleware.http.uppercase}
    - {name: up, type: middleware.http.uppercase, version: v2}
    - {name: up, type: middleware.http.ratelimit}
    - {name: nobody, type: middleware.http.bearer}
    - {name: denied, type: middleware.http.routerchecker}
`

// middlewareYAML is a Component resource of a type, with metadata and further fields as YAML.
func middlewareYAML(name, typ, metadata, more string) string {
	return "---\napiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: " + name + "}\nspec:\n  type: " + typ +
		"\n  version: v1\n  metadata: [" + metadata + "]\n" + more
}

// openWritten opens the middleware among written components.
func openWritten(t *testing.T, components string) (*middlewareSet, *settings.Configuration, *bytes.Buffer, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"components.yaml": components, "config.yaml": middlewareConfig} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, _, err := settings.LoadConfiguration([]string{filepath.Join(dir, "config.yaml")}, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	logs := &bytes.Buffer{}
	log := slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "scope" || a.Key == "component" {
			return slog.Attr{}
		}
		return a
	}}))
	s, err := openMiddleware(middlewareOptions{Components: settings.ParseFile(filepath.Join(dir, "components.yaml")).Components,
		Config: config, Expand: settings.Expansion{AppID: "app", Env: func(name string) string { return map[string]string{"RATE": "0.001"}[name] }}, Log: log})
	t.Cleanup(s.close)
	return s, config, logs, err
}

func TestMiddlewarePipelines(t *testing.T) {
	s, config, logs, err := openWritten(t,
		middlewareYAML("up", "middleware.http.uppercase", "", "")+
			middlewareYAML("limit", "middleware.http.ratelimit", "{name: maxRequestsPerSecond, envRef: RATE}", "")+
			middlewareYAML("unused", "middleware.http.bearer", "{name: issuer, value: 'https://login.example'}, {name: audience, value: me}, {name: issuerr, value: x}", "")+
			middlewareYAML("store", "state.in-memory", "", "")+
			middlewareYAML("denied", "middleware.http.routerchecker", "{name: rule, value: '^/'}", "")+
			middlewareYAML("alias", "middleware.http.RouterAlias", "{name: routes, value: '/old: /new'}", ""))
	if err != nil {
		t.Fatal(err)
	}
	if got := len(s.api(config.HTTPPipeline)); got != 2 {
		t.Errorf("the API pipeline has %d middleware, want 2", got)
	}
	// The first listed is outermost: it sees the request first.
	app := s.app(config.AppHTTPPipeline)
	if len(app) != 2 {
		t.Fatalf("the app pipeline has %d middleware, want 2: those whose component has the name, the type and the version", len(app))
	}
	var seen *call.Request
	end := func(_ context.Context, req *call.Request) (*call.Response, error) {
		seen = req
		return &call.Response{Status: 200}, nil
	}
	if _, err := app[0](end)(t.Context(), &call.Request{Path: "old", Data: []byte("x")}); err != nil || seen.Path != "new" || string(seen.Data) != "x" {
		t.Errorf("the outermost did %+v, %v; want the alias", seen, err)
	}
	if _, err := app[1](end)(t.Context(), &call.Request{Path: "old", Data: []byte("x")}); err != nil || seen.Path != "old" || string(seen.Data) != "X" {
		t.Errorf("the second did %+v, %v; want upper case", seen, err)
	}
	// The environment's value came through.
	limit := s.opened[1].App(end)
	for _, want := range []int{200, 429} {
		if resp, err := limit(t.Context(), &call.Request{Path: "a"}); err != nil || resp.Status != want {
			t.Errorf("got %+v, %v, want %d", resp, err, want)
		}
	}
	const leftOut = `msg="a handler of the HTTP pipeline is left out: no component of its name and type is loaded`
	want := `level=INFO msg="Adding middleware.http.uppercase/v1 up middleware"
level=INFO msg="Component loaded: up (middleware.http.uppercase/v1)"
level=INFO msg="Adding middleware.http.ratelimit/v1 limit middleware"
level=INFO msg="Component loaded: limit (middleware.http.ratelimit/v1)"
level=WARN msg="component metadata: FILE:24: warning: issuerr: unknown key, ignored; did you mean issuer?"
level=INFO msg="Adding middleware.http.bearer/v1 unused middleware"
level=INFO msg="Component loaded: unused (middleware.http.bearer/v1)"
level=INFO msg="Adding middleware.http.RouterAlias/v1 alias middleware"
level=INFO msg="Component loaded: alias (middleware.http.RouterAlias/v1)"
level=DEBUG ` + leftOut + `" pipeline=appHttpPipeline name=up type=middleware.http.uppercase
level=WARN ` + leftOut + `; what it should refuse gets through" pipeline=appHttpPipeline name=up type=middleware.http.ratelimit
level=WARN ` + leftOut + `; what it should refuse gets through" pipeline=appHttpPipeline name=nobody type=middleware.http.bearer
level=WARN ` + leftOut + `; what it should refuse gets through" pipeline=appHttpPipeline name=denied type=middleware.http.routerchecker
`
	if diff := cmp.Diff(want, withoutFolders(logs.String())); diff != "" {
		t.Errorf("log:\n%s", diff)
	}
	var infos []string
	for _, i := range s.infos() {
		infos = append(infos, i.Name+" "+i.Type+" "+i.Version)
	}
	wantInfos := []string{"up middleware.http.uppercase v1", "limit middleware.http.ratelimit v1", "unused middleware.http.bearer v1", "alias middleware.http.routeralias v1"}
	if diff := cmp.Diff(wantInfos, infos); diff != "" {
		t.Errorf("components:\n%s", diff)
	}
}

// withoutFolders replaces the file that messages name.
func withoutFolders(s string) string {
	var out []string
	for word := range strings.SplitSeq(s, " ") {
		if _, line, ok := strings.Cut(word, "components.yaml:"); ok {
			word = "FILE:" + line
		}
		out = append(out, word)
	}
	return strings.Join(out, " ")
}

func TestMiddlewareFailures(t *testing.T) {
	const failed = "process component x error: "
	for _, tc := range []struct{ name, typ, metadata, want string }{
		{"bad value", "middleware.http.ratelimit", "{name: maxRequestsPerSecond, value: '-1'}",
			failed + "[INIT_COMPONENT_FAILURE]: initialization error occurred for x (middleware.http.ratelimit/v1): FILE:8: maxRequestsPerSecond: -1 must be a positive number"},
		{"missing value", "middleware.http.bearer", "{name: issuer, value: 'https://a.example'}",
			failed + "[INIT_COMPONENT_FAILURE]: initialization error occurred for x (middleware.http.bearer/v1): FILE"},
		{"misspelt type", "middleware.http.routeralais", "",
			failed + "[CREATE_COMPONENT_FAILURE]: initialization error occurred for x (middleware.http.routeralais/v1): couldn't find HTTP middleware middleware.http.routeralais/v1; did you mean middleware.http.routeralias?"},
		{"type to come", "middleware.http.opa", "",
			failed + "[CREATE_COMPONENT_FAILURE]: initialization error occurred for x (middleware.http.opa/v1): couldn't find HTTP middleware middleware.http.opa/v1; there are middleware.http.bearer, "},
	} {
		for _, ignore := range []string{"", "  ignoreErrors: true\n"} {
			t.Run(tc.name+strings.TrimSpace(ignore), func(t *testing.T) {
				s, config, logs, err := openWritten(t, middlewareYAML("x", tc.typ, tc.metadata, ignore)+middlewareYAML("up", "middleware.http.uppercase", "", ""))
				text := withoutFolders(logs.String())
				if !strings.Contains(text, "Failed to init component x ("+tc.typ+"/v1): [") {
					t.Errorf("the log does not tell:\n%s", text)
				}
				if ignore != "" {
					if err != nil || len(s.api(config.HTTPPipeline)) != 1 {
						t.Errorf("got %v; want the others to work", err)
					}
					if !strings.Contains(text, "Ignoring error processing component: process component x error: [") {
						t.Errorf("the log does not say what is ignored:\n%s", text)
					}
					return
				}
				if err == nil || s != nil {
					t.Fatalf("got %v, %v; want an error", s, err)
				}
				if got := withoutFolders(err.Error()); !strings.HasPrefix(got, tc.want) {
					t.Errorf("got  %s\nwant %s…", got, tc.want)
				}
			})
		}
	}
	_, _, _, err := openWritten(t, strings.Replace(middlewareYAML("x", "middleware.http.bearer", "", ""), "version: v1", "version: v7", 1))
	if err == nil || !strings.Contains(err.Error(), "middleware.http.bearer/v7; leave spec.version out") {
		t.Errorf("another version: %v", err)
	}
}
