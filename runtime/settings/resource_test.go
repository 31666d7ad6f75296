package settings_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/settings"
)

const twoComponents = `# a comment before the first document
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: store
  namespace: prod
  labels: {tier: a}
spec:
  type: state.redis
  version: v1
  initTimeout: 20s
  ignoreErrors: yes
  metadata:
  - name: redisHost
    value: "localhost:6379"
  - {name: redisDB, value: 3}
  - {name: enableTLS, value: on}
  - {name: quoted, value: "on"}
  - {name: hex, value: 0x10}
  - {name: octal, value: 010}
  - {name: float, value: 1.50}
  - {name: exp, value: 1e3}
  - {name: big, value: 123456789012345678901234567890}
  - {name: none, value: null}
  - {name: date, value: 2020-01-02}
  - {name: deep, value: {b: [1, yes, x], a: ~}}
  - name: password
    secretKeyRef: {name: redis, key: pw}
  - name: user
    secretKeyRef: {name: redis}
  - {name: region, envRef: REGION}
auth:
  secretStore: vault
scopes: [app1, app2]
---
---
# nothing here
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: y}
spec: {type: pubsub.in-memory}
`

func load(t *testing.T, files map[string]string, sel settings.Selection) *settings.Resources {
	t.Helper()
	r, err := settings.LoadResources([]string{writeFiles(t, files)}, sel)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLoadComponents(t *testing.T) {
	r := load(t, map[string]string{"a.yaml": twoComponents, "b.txt": "not read", "sub/c.yaml": "kind: {", "d.YML": "# empty"}, settings.Selection{})
	if len(r.Findings) != 0 || len(r.Components) != 2 {
		t.Fatalf("%d components, findings %v", len(r.Components), r.Findings)
	}
	c := r.Components[0]
	if c.Name != "store" || c.Namespace != "prod" || c.Type != "state.redis" || c.Version != "v1" || c.InitTimeout != 20*time.Second ||
		!c.IgnoreErrors || c.SecretStore != "vault" || c.Labels["tier"] != "a" || c.Line != 2 || filepath.Base(c.File) != "a.yaml" {
		t.Errorf("wrong component: %+v", c)
	}
	got := map[string]string{}
	for _, e := range c.Metadata {
		got[e.Name] = string(e.Value)
	}
	want := map[string]string{"redisHost": "localhost:6379", "redisDB": "3", "enableTLS": "true", "quoted": "on", "hex": "16", "octal": "8",
		"float": "1.5", "exp": "1000", "big": "123456789012345678901234567890", "none": "", "date": "2020-01-02",
		"deep": `{"a":null,"b":[1,true,"x"]}`, "password": "", "user": "", "region": ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metadata: -want +got:\n%s", diff)
	}
	if e := c.Metadata[0]; e.Line != 14 || e.File != c.File {
		t.Errorf("entry at %s:%d, want line 14", e.File, e.Line)
	}
	if y := r.Components[1]; y.Name != "true" || y.InitTimeout != 5*time.Second || y.Line != 39 || y.LogName() != "true (pubsub.in-memory)" {
		t.Errorf("wrong second component: %+v", y)
	}
}

func TestFilter(t *testing.T) {
	files := map[string]string{"a.yaml": twoComponents}
	for _, tc := range []struct {
		name string
		sel  settings.Selection
		want int
	}{
		{"in scope", settings.Selection{AppID: "app1"}, 2},
		{"out of scope", settings.Selection{AppID: "app3"}, 1},
		{"same namespace", settings.Selection{AppID: "app1", Namespace: "prod"}, 2},
		{"other namespace", settings.Selection{AppID: "app1", Namespace: "test"}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := len(load(t, files, tc.sel).Components); got != tc.want {
				t.Errorf("got %d components, want %d", got, tc.want)
			}
		})
	}
}

func TestDuplicates(t *testing.T) {
	component := func(name, scopes string) string {
		return "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: " + name + "}\nspec: {type: state.in-memory, version: v1}\nscopes: [" + scopes + "]\n---\n"
	}
	for _, tc := range []struct{ name, text, want string }{
		{"same name", component("x", "") + component("x", ""), "failed to load components: duplicate definition of Component name x (state.in-memory/v1) with existing x (state.in-memory/v1)"},
		{"unquoted y twice", component("y", "") + component("yes", ""), "failed to load components: duplicate definition of Component name true (state.in-memory/v1) with existing true (state.in-memory/v1)"},
		{"same name, other apps", component("x", "a") + component("x", "b"), ""},
		{"same name, an app in both", component("x", "a,b") + component("x", "b,c"), "failed to load components: duplicate definition of Component name x (state.in-memory/v1) with existing x (state.in-memory/v1)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := settings.LoadResources([]string{writeFiles(t, map[string]string{"a.yaml": tc.text})}, settings.Selection{})
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestLoadFindings(t *testing.T) {
	const good = "\n---\napiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: good}\nspec: {type: state.x}\n"
	head := func(kind, rest string) string {
		return "apiVersion: dapr.io/v1alpha1\nkind: " + kind + "\nmetadata:\n  name: n\n" + rest
	}
	tests := []struct {
		name, text string
		want       []string
	}{
		{"bad YAML", "a: b\nc: [1\n", []string{"2: error: not valid YAML: did not find expected ',' or ']'"}},
		{"not a mapping", "- a\n", []string{"1: error: want a resource (apiVersion, kind, metadata, spec), got a list"}},
		{"no kind", "a: 1\n", []string{"1: warning: kind: the document names no kind, ignored"}},
		{"misspelt kind", head("Componnent", ""), []string{`1: warning: kind: kind "Componnent" is not read, ignored; did you mean Component?`}},
		{"misspelt fields", head("Component", "spec:\n  tpye: state.x\n  type: state.x\nscope: [a]\n"), []string{
			"6: warning: spec.tpye: unknown field, ignored; did you mean type?", "8: warning: scope: unknown field, ignored; did you mean scopes?"}},
		{"field in another case", head("Component", "Spec:\n  TYPE: state.x\n"), nil},
		{"wrong types", head("Component", "spec:\n  type: [a]\n  ignoreErrors: \"true\"\n  metadata: x\nscopes: a\n"), []string{
			"6: error: spec.type: want one value, got a list",
			"7: error: spec.ignoreErrors: want true or false, got text in quotes; remove the quotes",
			`8: error: spec.metadata: want a list, got "x"`, `9: error: scopes: want a list, got "a"`,
			"6: error: spec.type: required, but not given; write for example state.redis"}},
		{"required fields", "apiVersion: dapr.io/v1alpha1\nkind: Component\nspec: {metadata: [{value: 1}]}\n", []string{
			"1: error: metadata.name: required, but not given", "3: error: spec.type: required, but not given; write for example state.redis",
			"3: error: spec.metadata[0]: the entry has no name"}},
		{"bad initTimeout", head("Component", "spec: {type: a.b, initTimeout: 5}\n"), []string{
			`5: warning: spec.initTimeout: "5" has no unit; write for example 5s or 5ms; 5s is used`}},
		{"key twice", head("Component", "spec: {type: a.b, type: a.c}\n"), []string{"5: warning: spec.type: given twice; the last one counts"}},
		{"two references", head("Component", "spec: {type: a.b, metadata: [{name: x, value: 1, envRef: A}]}\n"), []string{
			"5: warning: spec.metadata[0]: has both value and envRef; the value counts"}},
		{"other API version", strings.Replace(head("Component", "spec: {type: a.b}\n"), "v1alpha1", "v1", 1), []string{
			`1: warning: apiVersion: "dapr.io/v1" is not a version of Component; read as dapr.io/v1alpha1`}},
		{"kind of ours that does not exist", "apiVersion: mecha.io/v1\nkind: TrafficPolice\nmetadata: {name: x}\n", []string{
			`1: error: kind: this version of Mecha reads no "TrafficPolice" of mecha.io/v1; it reads TrafficPolicy of mecha.io/v1; did you mean TrafficPolicy?`}},
		{"policy without content", "apiVersion: mecha.io/v1\nkind: TrafficPolicy\n", []string{
			"1: error: metadata.name: required, but not given", "1: error: spec: required, but not given; a policy without it does nothing"}},
		{"policy of Dapr's group", "apiVersion: dapr.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: x}\nspec: {}\n", []string{
			`1: error: apiVersion: "dapr.io/v1alpha1" is not a version of TrafficPolicy; write mecha.io/v1`}},
		{"policy with a field twice and one that does not exist", "apiVersion: mecha.io/v1\nkind: TrafficPolicy\nmetadata: {name: x}\nspec: {}\nspecs: {}\nspec: {}\n", []string{
			"5: error: specs: unknown field; did you mean spec?", "6: error: spec: given twice; the last one counts"}},
		{"subscription", head("Subscription", "spec: {topic: t, routes: {default: /x}}\n"), []string{
			"5: warning: spec.routes: unknown field, ignored; did you mean route?", "5: error: spec.pubsubname: required, but not given",
			"5: warning: spec: has no route; events cannot be delivered over HTTP"}},
		{"endpoint", head("HTTPEndpoint", "spec: {baseUrl: ftp://x, clientTLS: {certificate: {value: c}, renegotiation: no}}\n"), []string{
			"5: error: spec.baseUrl: is not an http or https URL; write for example https://api.example.com/v1",
			"5: error: spec.clientTLS: certificate and privateKey go together",
			`5: error: spec.clientTLS.renegotiation: "false" is not one of [RenegotiateNever RenegotiateOnceAsClient RenegotiateFreelyAsClient]`}},
		{"alias bomb", "a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\n" +
			"d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e, *e, *e, *e]\n", []string{
			"1: error: the document is too large once its aliases are expanded (over 200000 values)"}},
		{"alias to itself", "a: &a [*a]\n", []string{"1: error: nested deeper than 100 levels"}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r := load(t, map[string]string{"f.yaml": tc.text + good}, settings.Selection{})
			var got []string
			for _, f := range r.Findings {
				got = append(got, strings.SplitN(f.String(), "f.yaml:", 2)[1])
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if n := len(r.Components); n == 0 || r.Components[n-1].Name != "good" {
				t.Errorf("the good document of the file was lost")
			}
		})
	}
}

func TestDocumentsAreFoundHoweverSeparated(t *testing.T) {
	doc := func(name, eol string) string {
		return strings.Join([]string{"apiVersion: dapr.io/v1alpha1", "kind: Component", "metadata: {name: " + name + "}", "spec: {type: a.b}", ""}, eol)
	}
	for name, text := range map[string]string{
		"marker":              doc("a", "\n") + "...\n---\n" + doc("b", "\n"),
		"marker with comment": doc("a", "\n") + "--- # next\n" + doc("b", "\n"),
		"leading and last":    "---\n" + doc("a", "\n") + "---\n" + doc("b", "\n") + "---\n",
		"Windows line ends":   doc("a", "\r\n") + "---\r\n" + doc("b", "\r\n"),
		"bare returns":        doc("a", "\r") + "---\r" + doc("b", "\r"),
		"end marker":          doc("a", "\n") + "...\n---\n" + doc("b", "\n"),
		"byte order mark":     "\ufeff" + doc("a", "\n") + "...\n---\n" + doc("b", "\n"),
		"version directive":   "%YAML 1.1\n---\n" + doc("a", "\n") + "...\n---\n" + doc("b", "\n"),
		"on the marker line":  doc("a", "\n") + "--- {apiVersion: dapr.io/v1alpha1, kind: Component, metadata: {name: b}, spec: {type: a.b}}\n",
		"dashes inside text":  doc("a", "\n") + "---\n" + strings.Replace(doc("b", "\n"), "{type: a.b}", "\n  type: a.b\n  version: |-\n    x\n    --- y\n  initTimeout: 1s", 1),
	} {
		t.Run(name, func(t *testing.T) {
			r := settings.ParseResources("f", []byte(text))
			if len(r.Components) != 2 || r.Components[0].Name != "a" || r.Components[1].Name != "b" || len(r.Findings) != 0 {
				t.Errorf("got %+v, findings %v", r.Components, r.Findings)
			}
		})
	}
}

func TestMergeKeysAndAliases(t *testing.T) {
	r := load(t, map[string]string{"f.yaml": `
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: &m {name: n}
spec:
  type: a.b
  metadata:
  - &base {name: k, value: v}
  - <<: *base
    name: l
  - *base
`}, settings.Selection{})
	var got []string
	for _, e := range r.Components[0].Metadata {
		got = append(got, e.Name+"="+string(e.Value))
	}
	if want := []string{"k=v", "l=v", "k=v"}; !cmp.Equal(want, got) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSubscriptionsEndpointsAndResiliency(t *testing.T) {
	r := load(t, map[string]string{"f.yaml": `
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: s2}
spec:
  pubsubname: p
  topic: t
  routes:
    rules:
    - {match: event.type == "a", path: /a}
    default: /d
  deadLetterTopic: dead
  metadata: {rawPayload: true}
  bulkSubscribe: {enabled: true, maxMessagesCount: 10, maxAwaitDurationMs: 40}
---
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {name: s1}
spec: {pubsubname: p, topic: t, route: /r}
---
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: h}
spec:
  baseUrl: https://x/y
  headers: [{name: a, value: b}, {name: s, secretKeyRef: {name: k}}]
  clientTLS: {rootCA: {value: pem}}
auth: {secretStore: st}
---
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies:
    timeouts: {fast: 500, slow: 5s}
    retries: {often: {policy: exponential, maxInterval: 15s, maxRetries: 10, matching: {httpStatusCodes: "429,500-599"}}}
    circuitBreakers: {cb: {maxRequests: 1, timeout: 30s, trip: consecutiveFailures >= 5}}
  targets:
    apps: {b: {timeout: fast, retry: often, circuitBreaker: cb}}
    components: {p: {outbound: {retry: oftn}, inbound: {retry: DaprBuiltInServiceRetries}}}
---
apiVersion: apps/v1
kind: Deployment
`}, settings.Selection{})
	s := r.Subscriptions[0]
	if s.PubSub != "p" || s.Topic != "t" || s.Default != "/d" || s.DeadLetterTopic != "dead" || s.Metadata["rawPayload"] != "true" ||
		s.Rules[0] != (settings.Rule{Match: `event.type == "a"`, Path: "/a"}) || s.Bulk != (settings.BulkSubscribe{Enabled: true, MaxMessagesCount: 10, MaxAwaitDurationMs: 40}) {
		t.Errorf("wrong subscription: %+v", s)
	}
	if s := r.Subscriptions[1]; s.Default != "/r" || s.Rules != nil {
		t.Errorf("wrong v1 subscription: %+v", s)
	}
	if h := r.HTTPEndpoints[0]; h.BaseURL != "https://x/y" || h.Headers[1].SecretRef.Key != "k" || h.ClientTLS.RootCA.Value != "pem" || h.SecretStore != "st" {
		t.Errorf("wrong endpoint: %+v", h)
	}
	p := r.Resiliencies[0]
	if p.Timeouts["fast"] != 500*time.Millisecond || p.Timeouts["slow"] != 5*time.Second || p.Retries["often"].MaxInterval.Std() != 15*time.Second || *p.Retries["often"].MaxRetries != 10 || p.Breakers["cb"].Timeout.Std() != 30*time.Second {
		t.Errorf("wrong resiliency: %+v", p)
	}
	var got []string
	for _, f := range r.Findings {
		got = append(got, f.Text())
	}
	want := []string{`spec.targets.components.p.outbound.retry: no policy is called "oftn"; this part of the target has no effect; did you mean often?`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings: -want +got:\n%s", diff)
	}
	if len(r.Ignored) != 1 {
		t.Errorf("ignored: %v, want the Deployment", r.Ignored)
	}
}

func TestResiliencyErrors(t *testing.T) {
	r := load(t, map[string]string{"f.yaml": `apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies:
    timeouts:
      a: soon
    retries:
      b: {policy: sometimes, matching: {httpStatusCodes: "500-400", gRPCStatusCodes: "1,x"}}
    circuitBreakers:
      c: {timeout: -1s}
  targets:
    actors: {t: {circuitBreaker: c}}
`}, settings.Selection{})
	if len(r.Resiliencies) != 0 {
		t.Error("a wrong resource was kept")
	}
	var got []string
	for _, f := range r.Findings {
		got = append(got, strings.SplitN(f.String(), "f.yaml:", 2)[1])
	}
	want := []string{
		`7: error: spec.policies.timeouts.a: "soon" is not a duration; write for example 30s, 250ms or 1h30m`,
		`9: error: spec.policies.retries.b.matching.gRPCStatusCodes: "x" is not a status code or a range like 0-16`,
		`9: error: spec.policies.retries.b.matching.httpStatusCodes: "500-400" is not a status code or a range like 100-599`,
		`9: error: spec.policies.retries.b.policy: "sometimes" is not one of constant, exponential`,
		"11: error: spec.policies.circuitBreakers.c.timeout: cannot be negative",
		`13: error: spec.targets.actors.t.circuitBreakerScope: want type, id or both with a circuit breaker, got ""`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestMissingFolder(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "none"), writeFiles(t, map[string]string{"f.yaml": ""}) + "/f.yaml"} {
		_, err := settings.LoadResources([]string{path}, settings.Selection{})
		if err == nil || !strings.HasPrefix(err.Error(), "failed to create watcher") || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestItems(t *testing.T) {
	r := load(t, map[string]string{"f.yaml": `
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: c}
spec:
  type: Pubsub.Redis
  metadata:
  - {name: id, value: "{appID}-{podName}-{namespace}"}
  - {name: u, value: "{uuid} {uuid}"}
  - {name: env, envRef: REGION}
  - {name: token, envRef: DAPR_API_TOKEN}
  - {name: lower, envRef: dapr_x}
  - {name: app, envRef: APP_API_TOKEN}
  - {name: blank, envRef: "A B"}
  - {name: secret, value: old, secretKeyRef: {name: s, key: k}}
  - {name: lost, value: kept, secretKeyRef: {name: none}}
  - {name: empty, value: kept too, secretKeyRef: {name: blank}}
  - {name: gone, secretKeyRef: {name: none, key: k}}
  - {name: nothing, secretKeyRef: {name: blank}}
auth: {secretStore: st}
`}, settings.Selection{})
	c := r.Components[0]
	if c.LookupType() != "Pubsub.redis" || !c.NamespaceScoped() {
		t.Errorf("lookup type %q, scoped %v", c.LookupType(), c.NamespaceScoped())
	}
	env := map[string]string{"REGION": "eu", "DAPR_API_TOKEN": "hunter2", "dapr_x": "hunter2", "APP_API_TOKEN": "hunter2", "A B": "hunter2"}
	x := settings.Expansion{AppID: "app", PodName: "pod", Env: func(n string) string { return env[n] },
		Secret: func(c *settings.Component, ref *settings.SecretRef) (string, error) {
			switch ref.Name {
			case "s":
				return c.Name + "." + c.SecretStore + "/" + ref.Name + "/" + ref.Key, nil
			case "blank":
				return "", nil
			}
			return "hunter2", errors.New("no such secret")
		}}
	items, found := c.Items(x)
	got := map[string]string{}
	for _, it := range items {
		got[it.Name] = it.Value
	}
	u := strings.Fields(got["u"])
	if len(u) != 2 || len(u[0]) != 36 || u[0] == u[1] {
		t.Errorf("uuids %v", u)
	}
	delete(got, "u")
	want := map[string]string{"id": "app-pod-default.app", "env": "eu", "token": "", "lower": "", "app": "", "blank": "", "secret": "c.st/s/k", "lost": "kept", "empty": "kept too", "gone": "", "nothing": ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	var texts []string
	for _, f := range found {
		texts = append(texts, f.Msg)
	}
	wantTexts := []string{"Component c references an env variable that isn't allowed: DAPR_API_TOKEN", "Component c references an env variable that isn't allowed: dapr_x",
		"Component c references an env variable that isn't allowed: APP_API_TOKEN", "Component c references an env variable that isn't allowed: A B",
		`secret "none" (key "none") of secret store "st" cannot be used: no such secret; the value stays as written`,
		`secret "blank" (key "blank") of secret store "st" cannot be used: it is empty or does not exist; remove the reference if it is meant to be empty; the value stays as written`,
		`secret "none" (key "k") of secret store "st" cannot be used: no such secret`,
		`secret "blank" (key "blank") of secret store "st" cannot be used: it is empty or does not exist; remove the reference if it is meant to be empty`}
	if diff := cmp.Diff(wantTexts, texts); diff != "" {
		t.Errorf("findings: -want +got:\n%s", diff)
	}
	if n := len(found) - len(found.Warnings()); n != 2 {
		t.Errorf("%d findings are errors, want those of gone and nothing: %v", n, found.Err())
	}
	for _, it := range items {
		if secret := it.Name != "id" && it.Name != "u"; it.Secret != secret {
			t.Errorf("%s: secret is %v", it.Name, it.Secret)
		}
	}
	env["DAPR_ENV_KEYS"] = "OTHER"
	if _, found := c.Items(x); len(found) != 9 {
		t.Errorf("with a list of allowed variables: %d findings, want 9", len(found))
	}
	x.PodName, x.Secret = "", nil
	_, found = c.Items(x)
	if err := found.Err(); err == nil || !strings.Contains(err.Error(), "property id refers to {podName} but podName is not set") {
		t.Errorf("got %v", err)
	}
	if err := found.Err(); err == nil || !strings.Contains(err.Error(), `secret "none" (key "k") of secret store "st" cannot be used: there is no secret store here`) {
		t.Errorf("without stores: %v", err)
	}
}

func TestItemsThatProtect(t *testing.T) {
	for _, tc := range []struct{ name, typ, entry, want string }{
		{"scopes from an unset variable", "pubsub.x", "{name: publishingScopes, envRef: UNSET}", "less protected than written"},
		{"scopes from a forbidden variable", "pubsub.x", "{name: ALLOWEDTOPICS, envRef: DAPR_X}", "less protected than written"},
		{"scopes from a secret", "pubsub.x", "{name: protectedTopics, secretKeyRef: {name: s}}", "less protected than written"},
		{"a literal key of encryption", "state.x", "{name: primaryEncryptionKey, value: 00}", "must come from a secret store"},
		{"an empty key of encryption", "state.x", "{name: secondaryEncryptionKey, value: \"\"}", "must come from a secret store"},
		{"a key of encryption from a variable", "state.x", "{name: primaryEncryptionKey, envRef: SCOPES}", "must come from a secret store"},
		{"a key of encryption that is not there", "state.x", "{name: PRIMARYencryptionkey, value: 00, secretKeyRef: {name: none}}", "no such secret"},
		{"scopes from a variable", "pubsub.x", "{name: subscriptionScopes, envRef: SCOPES}", ""},
		{"scopes from a secret that is there", "pubsub.x", "{name: protectedTopics, secretKeyRef: {name: there}}", ""},
		{"no scopes on purpose", "pubsub.x", "{name: subscriptionScopes, value: \"\"}", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := settings.ParseResources("f", []byte("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: c}\nspec: {type: "+tc.typ+", metadata: ["+tc.entry+"]}\n"))
			items, found := r.Components[0].Items(settings.Expansion{AppID: "a", Env: environment(map[string]string{"SCOPES": "a=t", "DAPR_X": "t"}),
				Secret: func(_ *settings.Component, ref *settings.SecretRef) (string, error) {
					if ref.Name == "there" {
						return "a=t", nil
					}
					return "", errors.New("no such secret")
				}})
			err := found.Err()
			if (err != nil) != (tc.want != "") || (err != nil && !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if tc.want == "" && !strings.Contains(tc.entry, "\"\"") && (items[0].Secret || items[0].Value != "a=t") {
				t.Errorf("the service cannot see %+v", items[0])
			}
		})
	}
}

// A key of encryption brings the name of its secret along, and nothing is printed of it.
func TestItemsEncryptionKey(t *testing.T) {
	r := settings.ParseResources("f", []byte("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: c}\nspec: {type: state.x, metadata: ["+
		"{name: primaryEncryptionKey, value: beside, secretKeyRef: {name: keys, key: new}}]}\n"))
	items, found := r.Components[0].Items(settings.Expansion{AppID: "a", Secret: func(_ *settings.Component, ref *settings.SecretRef) (string, error) { return "00ff-" + ref.Key, nil }})
	if len(found) > 0 || len(items) != 1 || items[0].Value != "00ff-new" || items[0].SecretName != "keys" || !items[0].Secret {
		t.Errorf("got %+v, %v", items, found)
	}
}

func TestDeniedComponents(t *testing.T) {
	cfg := settings.Configuration{Components: &settings.ComponentRules{Deny: []string{"state.redis/v1", "pubsub.kafka", "state.pg/v2"}}}
	for name, tc := range map[string]struct {
		typ, version string
		want         bool
	}{
		"version named": {"state.redis", "v1", true}, "no version is v1": {"state.redis", "", true}, "v0 is v1": {"state.redis", "v0", true},
		"other version": {"state.redis", "v2", false}, "any version": {"pubsub.kafka", "v7", true}, "case": {"pubsub.KAFKA", "", true},
		"v2 only": {"state.pg", "", false}, "other": {"state.x", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := cfg.Denied(&settings.Component{Type: tc.typ, Version: tc.version}); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	if (&settings.Configuration{}).Denied(&settings.Component{Type: "state.redis"}) {
		t.Error("denied without a list")
	}
}

func FuzzParseResources(f *testing.F) {
	f.Add(twoComponents)
	f.Add("a: &a [*a]\n---\n<<: {a: b}\n")
	f.Add("apiVersion: dapr.io/v1alpha1\nkind: Configuration\nspec: {metric: {enabled: no}, api: {denied: [{name: state}]}}\n")
	f.Add("apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nspec: {policies: {timeouts: {a: 5}}, targets: {apps: {a: ~}}}\n")
	f.Add("%YAML 1.1\n--- # x\n!!binary \"YQ==\"\n...\n")
	f.Fuzz(func(t *testing.T, text string) {
		r := settings.ParseResources("f.yaml", []byte(text))
		lines := 1
		for _, r := range text { // everything YAML takes for a line break
			if strings.ContainsRune("\n\r\u0085\u2028\u2029", r) {
				lines++
			}
		}
		for _, fd := range append(r.Findings, r.Ignored...) {
			if fd.Line > lines || fd.Msg == "" {
				t.Errorf("finding %v beyond the %d lines of the file", fd, lines)
			}
		}
		for _, c := range r.Components {
			if c.Name == "" || c.Type == "" {
				t.Errorf("unusable component %+v", c)
			}
			items, _ := c.Items(settings.Expansion{AppID: "a"})
			conf.Decode(items, &struct {
				A string `yaml:"a"`
			}{})
		}
	})
}
