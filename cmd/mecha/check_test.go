package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/settings"
)

type checkedConfig struct {
	Host     string      `yaml:"host" required:"true"`
	DB       int         `yaml:"db"`
	Password conf.Secret `yaml:"password"`
}

type checkedState struct{ block.State }
type checkedPubSub struct{ block.PubSub }
type checkedRegistry struct{ block.Registry }

func checkedBackends(t *testing.T) *block.Set {
	t.Helper()
	defaults := func() *checkedConfig { return &checkedConfig{} }
	set, err := block.NewSet(block.Backend{Name: "fake", Parts: []block.Part{
		block.StatePart("redis", "", defaults, func(block.Env, *checkedConfig) (block.State, error) {
			t.Error("a component was opened")
			return checkedState{}, nil
		}, block.Version("v2")),
		block.PubSubPart("memory", "", func() *struct{} { return &struct{}{} }, func(block.Env, *struct{}) (block.PubSub, error) { return checkedPubSub{}, nil }),
		block.RegistryPart("sqlite", "", defaults, func(block.Env, *checkedConfig) (block.Registry, error) { return checkedRegistry{}, nil }),
	}})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// check runs the command in a folder with the given files and gives its output and exit code.
func check(t *testing.T, files map[string]string, args ...string) (string, int) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := newCheckCommand(checkedBackends(t))
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.Background())
	if err == nil {
		return out.String(), 0
	}
	exit, ok := errors.AsType[*settings.ExitError](err)
	if !ok {
		t.Fatalf("error %v has no exit code", err)
	}
	return out.String() + exit.Error(), exit.ExitCode()
}

func component(name, typ, metadata string) string {
	return "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: " + name + "\nspec:\n  type: " + typ + "\n  metadata:\n" + metadata + "---\n"
}

func TestCheckGoodFiles(t *testing.T) {
	out, code := check(t, map[string]string{
		"res/a.yaml": component("store", "state.Redis", "  - {name: host, value: h}\n  - {name: keyPrefix, value: none}\n  - {name: db, envRef: DB}\n  - {name: password, secretKeyRef: {name: s}}\nauth: {secretStore: elsewhere}\n") +
			component("ps", "pubsub.memory", "  - {name: allowedTopics, value: t}\n") +
			"apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata: {name: s}\nspec: {pubsubname: ps, topic: t, routes: {default: /x}}\n",
		"config.yaml": "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec: {nameResolution: {component: sqlite, configuration: {host: h}}}\n",
	}, "-d", "res", "-c", "config.yaml")
	if code != 0 || out != "no findings in 2 files with 4 usable resources\n" {
		t.Errorf("exit code %d, output:\n%s", code, out)
	}
}

func TestCheckFindings(t *testing.T) {
	files := map[string]string{
		"res/a.yaml": component("store", "state.redis", "  - {name: hots, value: h}\n  - {name: db, value: one}\n") +
			component("store", "state.rediss", "  - {name: host, value: h}\n"),
		"res/b.yaml": component("ps", "pubsub.memory", "  - {name: x, value: t}\n") +
			"apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata: {name: s}\nspec: {pubsubname: pss, topic: t, routes: {default: /x}}\n---\na: [\n",
		"config.yaml": "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec:\n  nameResolution: {component: sqlit, version: v1}\n",
		"mtls.yaml":   "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec:\n  mtls: {enabled: true}\n",
		"v3.yaml":     strings.Replace(component("v", "state.redis", "  - {name: host, value: h}\n"), "  type:", "  version: v3\n  type:", 1),
	}
	out, code := check(t, files, "--resources-path", "res", "-c", "config.yaml", "-c", "mtls.yaml", "-c", "none.yaml", "v3.yaml")
	want := `config.yaml:5: spec.nameResolution.component: couldn't find name resolver sqlit/v1; did you mean sqlite?
mtls.yaml:5: spec.mtls.enabled: this version of Mecha does not enforce it, and would run with less protection than the file asks for: traffic between sidecars would not be encrypted; set it to false to accept that
none.yaml: error loading configuration: stat none.yaml: no such file or directory
res/a.yaml:1: host: required, but not given
res/a.yaml:8: hots: unknown key, ignored; did you mean host?
res/a.yaml:9: db: "one" is not a whole number
res/a.yaml:11: failed to load components: duplicate definition of Component name store (state.rediss) with existing store (state.redis)
res/a.yaml:11: spec.type: unknown component type "state.rediss" (a pluggable component's cannot be checked offline); did you mean state.redis?
res/b.yaml:8: x: unknown key, ignored
res/b.yaml:10: spec.pubsubname: no pub/sub component is called "pss"; did you mean ps?
res/b.yaml:15: not valid YAML: did not find expected node content
v3.yaml:1: spec.type: state.redis has no version "v3"; leave spec.version out or write v1
12 findings in 6 files with 6 usable resources
`
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// References to secrets must lead somewhere, as far as that can be seen.
func TestCheckReferences(t *testing.T) {
	ref := func(auth string) string {
		return component("store", "state.redis", "  - {name: host, value: h}\n  - {name: password, secretKeyRef: {name: s}}\n"+auth)
	}
	vault := component("vault", "secretstores.local", "  - {name: x, value: y}\n")
	endpoint := func(spec, auth string) string {
		return "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: e}\nspec: {baseUrl: https://x, " + spec + "}\n" + auth
	}
	const to, none = "auth: {secretStore: vault}\n", "required with secretKeyRef, but not given"
	for name, tt := range map[string]struct{ text, want string }{
		"a store that is there":       {ref(to) + vault, ""},
		"a store nobody can see":      {ref(to), ""},
		"none named":                  {ref(""), "auth.secretStore: " + none},
		"another":                     {ref("auth: {secretStore: valt}\n") + vault, `auth.secretStore: no secret store is called "valt"; did you mean vault?`},
		"a header":                    {vault + endpoint("headers: [{name: a, secretKeyRef: {name: s}}]", ""), "auth.secretStore: " + none},
		"a key":                       {vault + endpoint("clientTLS: {rootCA: {secretKeyRef: {name: s}}}", "auth: {secretStore: v}\n"), `no secret store is called "v"`},
		"a header from what is there": {vault + endpoint("headers: [{name: a, secretKeyRef: {name: s}}]", to), ""},
	} {
		t.Run(name, func(t *testing.T) {
			out, _ := check(t, map[string]string{"a.yaml": tt.text}, "a.yaml")
			if tt.want == "" && strings.Contains(out, "secretStore") || !strings.Contains(out, tt.want) {
				t.Errorf("got %s, want %q", out, tt.want)
			}
		})
	}
}

func TestCheckJSON(t *testing.T) {
	out, code := check(t, map[string]string{"a.yaml": component("s", "state.redis", "  - {name: hots, value: h}\n  - {name: host, value: h}\n")}, "--json", "a.yaml")
	var got []map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 {
		t.Fatalf("exit code %d, %v:\n%s", code, err, out)
	}
	want := []map[string]any{{"file": "a.yaml", "line": 8.0, "key": "hots", "message": "unknown key, ignored", "nearest": "host"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if out, code := check(t, map[string]string{"a.yaml": component("s", "state.redis", "  - {name: host, value: h}\n")}, "--json", "a.yaml"); code != 0 || out != "[]\n" {
		t.Errorf("exit code %d, output %q, want an empty list", code, out)
	}
}

// A folder is taken for a folder with -d and without.
func TestCheckAFolder(t *testing.T) {
	for _, args := range [][]string{{"in"}, {"-d", "in"}} {
		out, code := check(t, map[string]string{"in/a.yaml": component("s", "state.redis", "  - {name: hots, value: h}\n")}, args...)
		if code != 1 || !strings.Contains(out, filepath.Join("in", "a.yaml")) || !strings.Contains(out, "hots") {
			t.Errorf("%v: exit code %d, output %q", args, code, out)
		}
	}
}

func TestCheckUsage(t *testing.T) {
	for name, args := range map[string][]string{"nothing to check": nil, "unknown flag": {"--nope"}} {
		if out, code := check(t, nil, args...); code != 2 || out == "" {
			t.Errorf("%s: exit code %d, output %q", name, code, out)
		}
	}
	if out, code := check(t, nil, "-d", "none"); code != 1 || !strings.Contains(out, "failed to create watcher") {
		t.Errorf("missing folder: exit code %d, output %q", code, out)
	}
}
