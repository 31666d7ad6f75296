package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
)

const twoPolicies = `apiVersion: mecha.io/v1
kind: TrafficPolicy
metadata: {name: stores}
spec:
  match: [{kind: state, dest: orders-db}]
  route: [{to: red, weight: 50}, {to: blue, weight: 50}]
  timeout: {total: 2s}
---
apiVersion: mecha.io/v1
kind: TrafficPolicy
metadata: {name: reads}
spec:
  priority: 1
  match: [{kind: state, op: get}]
  timeout: {total: 100ms}
  authz: {deny: [{name: no-secrets, path: "secret/**"}]}
---
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: res}
spec:
  policies: {retries: {often: {policy: constant, duration: 10ms, maxRetries: 4}}}
  targets: {components: {orders-db: {outbound: {retry: often}}}}
`

func explain(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newExplainCommand()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.Execute()
	return out.String(), err
}

func TestExplainByFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p.yaml"), []byte(twoPolicies), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		want []string
		not  []string
	}{
		{"each field has its source", []string{"--kind", "state", "--dest", "orders-db", "--op", "get", "--key", "k1"},
			[]string{"+ reads (", "+ stores (", "at most 100ms in all\n                     by reads", "red 50, blue 50 by key\n                     by stores",
				"up to 4 times, 10ms apart\n                     by Resiliency res/often", "it goes to "}, nil},
		{"a policy that does not match says why", []string{"--kind", "state", "--dest", "orders-db", "--op", "set", "--key", "k1"},
			[]string{"- reads (", "op, method, path, headers or from differ", "at most 2s in all\n                     by stores"}, []string{"by reads"}},
		{"another destination", []string{"--kind", "publish", "--dest", "pubsub", "--op", "publish", "--path", "t"},
			[]string{"- stores (", "it is for other kinds or destinations", "nothing"}, []string{"+ "}},
		{"a refusal is foreseen", []string{"--kind", "state", "--dest", "orders-db", "--op", "get", "--key", "secret/x", "--app-id", "shop"},
			[]string{"it is refused: policy reads, rule no-secrets", "from shop"}, []string{"it goes to"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := explain(t, append([]string{"-d", dir}, tt.args...)...)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range tt.want {
				if !strings.Contains(got, w) {
					t.Errorf("%q is missing in\n%s", w, got)
				}
			}
			for _, w := range tt.not {
				if strings.Contains(got, w) {
					t.Errorf("%q is in\n%s", w, got)
				}
			}
		})
	}
}

func TestExplainRefusesWhatItCannotAnswer(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p.yaml"), []byte(strings.Replace(twoPolicies, "total: 2s", "totl: 2s", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		want string
		code int
	}{
		{"nothing to look at", []string{"--kind", "state", "--dest", "x"}, "name resource folders with -d", 2},
		{"both at once", []string{"-d", dir, "--metrics-port", "1"}, "choose one", 2},
		{"no call", []string{"-d", dir}, "say what the call is", 2},
		{"an unknown kind", []string{"-d", dir, "--kind", "stat", "--dest", "x"}, `"stat" is not one of service, state`, 2},
		{"no destination", []string{"-d", dir, "--kind", "state"}, "--dest", 2},
		{"policies that are wrong", []string{"-d", dir, "--kind", "state", "--dest", "x"}, "did you mean total?", 1},
		{"no sidecar", []string{"--metrics-port", "1"}, "no sidecar answers on metrics port 1", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := explain(t, tt.args...)
			if err == nil || !strings.Contains(out+err.Error(), tt.want) {
				t.Errorf("got %q, %v; want %q", out, err, tt.want)
			}
			if coded, ok := err.(interface{ ExitCode() int }); !ok || coded.ExitCode() != tt.code {
				t.Errorf("exit code of %v, want %d", err, tt.code)
			}
		})
	}
}

func TestExplainARunningSidecar(t *testing.T) {
	p := &policyPort{app: "shop", namespace: "home"}
	srv := httptest.NewServer(p)
	defer srv.Close()
	port := srv.URL[strings.LastIndex(srv.URL, ":")+1:]
	if out, err := explain(t, "--metrics-port", port); err == nil || !strings.Contains(err.Error(), "still starting") {
		t.Errorf("before there is an engine: %q, %v", out, err)
	}
	e := policy.New(policy.Options{})
	defer e.Close()
	e.Swap(&policy.Snapshot{Policies: []policy.Policy{{Name: "tight", Where: "f.yaml:1",
		Spec: policy.Spec{RateLimit: &policy.RateLimit{Local: &policy.LocalRate{Tokens: 1}}}}}})
	p.engine.Store(e)
	tg := &call.Target{Kind: call.State, Name: "db"}
	e.Govern(tg)
	for range 3 {
		if c, err := call.Begin(t.Context(), tg, call.Desc{Op: "get", Resource: "k", Caller: call.Caller{App: "shop"}}); err == nil {
			_ = c.End(nil)
		}
	}
	got, err := explain(t, "--metrics-port", port)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"tight (f.yaml:1)", "rate limit of tight: get db k from shop, 2 times in all"} {
		if !strings.Contains(got, w) {
			t.Errorf("%q is missing in\n%s", w, got)
		}
	}
	got, err = explain(t, "--metrics-port", port, "--kind", "state", "--dest", "db", "--op", "get", "--json")
	var x policy.Explanation
	if err != nil || json.Unmarshal([]byte(got), &x) != nil || len(x.Parts) != 1 || x.Parts[0].Rule != "tight" {
		t.Errorf("got %s, %v", got, err)
	}
	for path, want := range map[string]int{"explain": 400, "explain?kind=x&dest=y": 400, "other": 404, "status": 200} {
		resp, err := http.Get(srv.URL + "/mecha/v1/policy/" + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}
