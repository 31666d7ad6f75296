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

const fullConfiguration = `apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: appconfig}
spec:
  httpPipeline:
    handlers:
    - {name: limit, type: middleware.http.ratelimit, selector: {fields: [{field: a, value: b}]}}
  appHttpPipeline: {handlers: [{name: up, type: middleware.http.uppercase}]}
  tracing:
    samplingRate: 1
    stdout: true
    zipkin: {endpointAddress: "http://localhost:9411/api/v2/spans"}
    otel: {protocol: grpc, endpointAddress: "${OTLP}", isSecure: false, timeout: 10s, headers: [{name: k, value: v}]}
  metric: {enabled: false, http: {increasedCardinality: false, pathMatching: [/a]}}
  metrics:
    recordErrorCodes: true
    http: {pathMatching: [/b]}
    latencyDistributionBuckets: [1, 5]
    rules: [{name: m, labels: [{name: method, regex: {"orders/": "orders/.+"}}]}]
  mtls: {enabled: false, workloadCertTTL: 24h}
  accessControl: {defaultAction: allow, trustDomain: public}
  nameResolution: {component: sqlite, version: v1, configuration: {connectionString: a.db, updateInterval: 5s, tags: [a, b], num: 3, deep: {x: 1}}}
  features: [{name: HotReload, enabled: false}]
  api: {allowed: [{name: state, version: v1, protocol: http}], denied: [{name: invoke, version: v1, protocol: grpc}]}
  components: {deny: [state.redis]}
  logging: {apiLogging: {enabled: true, obfuscateURLs: true, omitHealthChecks: true}}
  wasm: {strictSandbox: true}
`

func TestLoadConfiguration(t *testing.T) {
	dir := writeFiles(t, map[string]string{"a.yaml": fullConfiguration, "b.yaml": `
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: second}
spec:
  features: [{name: X, enabled: true}]
  tracing: {samplingRate: "0"}
`})
	env := func(n string) string { return map[string]string{"OTLP": "collector:4317"}[n] }
	a := filepath.Join(dir, "a.yaml")
	cfg, found, err := settings.LoadConfiguration([]string{a}, env)
	if err != nil || len(found) != 0 {
		t.Fatalf("%v, findings %v", err, found)
	}
	o := cfg.Tracing.Otel
	if cfg.Tracing.SamplingRate != "1" || !cfg.Tracing.Stdout || o.EndpointAddress != "collector:4317" || o.Secure() || o.Timeout != 10*time.Second || o.Headers[0].Value.Reveal() != "v" {
		t.Errorf("wrong tracing: %+v %+v", cfg.Tracing, o)
	}
	if cfg.HTTPPipeline.Handlers[0].Name != "limit" || cfg.AppHTTPPipeline.Handlers[0].Type != "middleware.http.uppercase" || !*cfg.Logging.APILogging.Enabled || !cfg.Wasm.StrictSandbox {
		t.Errorf("wrong sections: %+v", cfg)
	}
	wantMetrics := settings.Metrics{RecordErrorCodes: true, PathMatching: []string{"/b"}, LatencyDistributionBuckets: []int{1, 5},
		Rules: []settings.MetricRule{{Name: "m", Labels: []settings.MetricLabel{{Name: "method", Regex: map[string]string{"orders/": "orders/.+"}}}}}}
	if diff := cmp.Diff(wantMetrics, cfg.Metrics()); diff != "" {
		t.Errorf("metrics: -want +got:\n%s", diff)
	}
	var items []string
	for _, it := range cfg.NameResolution.Items() {
		items = append(items, it.Name+"="+it.Value)
	}
	if want := []string{"connectionString=a.db", `deep={"x":1}`, "num=3", "tags=a,b", "updateInterval=5s"}; !cmp.Equal(want, items) {
		t.Errorf("name resolution: got %v, want %v", items, want)
	}
	if cfg.Feature("HotReload", true) || !cfg.Feature("Other", true) {
		t.Error("features are read wrongly")
	}

	both, _, err := settings.LoadConfiguration([]string{a, filepath.Join(dir, "b.yaml")}, env)
	if err != nil {
		t.Fatal(err)
	}
	if both.Name != "second" || len(both.Features) != 1 || both.Features[0].Name != "X" || both.Tracing.Stdout || both.Tracing.SamplingRate != "0" {
		t.Errorf("sections of the second file do not replace those of the first: %+v", both)
	}
	if both.API == nil || both.NameResolution == nil {
		t.Error("sections absent from the second file were lost")
	}
}

func TestConfigurationDefaults(t *testing.T) {
	cfg, found, err := settings.LoadConfiguration(nil, nil)
	if err != nil || len(found) != 0 {
		t.Fatal(err, found)
	}
	if diff := cmp.Diff(settings.Metrics{Enabled: true, IncreasedCardinality: true}, cfg.Metrics()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestConfigurationRefusals(t *testing.T) {
	spec := func(s string) string {
		return "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec:\n  " + s + "\n"
	}
	for _, tc := range []struct{ name, text, want string }{
		{"mTLS", spec("mtls: {enabled: true}"), "spec.mtls.enabled: this version of Mecha does not enforce it"},
		{"access control with an unknown default", spec("accessControl: {defaultAction: refuse}"), `c.yaml:5: spec.accessControl.defaultAction: "refuse" is not one of allow, deny`},
		{"access control with a misspelt default", spec("accessControl: {defaultAction: dney}"), "did you mean deny?"},
		{"access control with a misspelt field", spec("accessControl: {defaultActon: deny}"), "c.yaml:5: spec.accessControl.defaultActon: unknown field; did you mean defaultAction?"},
		{"access policy without an app", spec("accessControl:\n    policies:\n    - {trustDomain: public, namespace: default}"), "c.yaml:7: spec.accessControl.policies[0].appId: required"},
		{"access policy without a trust domain", spec("accessControl: {policies: [{appId: a, namespace: default}]}"), "spec.accessControl.policies[0].trustDomain: required"},
		{"access policy without a namespace", spec("accessControl: {policies: [{appId: a, trustDomain: public}]}"), "spec.accessControl.policies[0].namespace: required"},
		{"access policy with an unknown default", spec("accessControl: {policies: [{appId: a, trustDomain: public, namespace: n, defaultAction: maybe}]}"), "spec.accessControl.policies[0].defaultAction: \"maybe\""},
		{"access rule with an unknown action", spec("accessControl:\n    policies:\n    - {appId: a, trustDomain: public, namespace: n}\n    - appId: b\n      trustDomain: public\n      namespace: n\n      operations:\n      - {name: /x, action: block}"),
			"c.yaml:12: spec.accessControl.policies[1].operations[0].action: \"block\" is not one of allow, deny"},
		{"access rule without a name", spec("accessControl: {policies: [{appId: a, trustDomain: public, namespace: n, operations: [{action: deny}]}]}"), "operations[0].name: required"},
		{"a secret scope without a store", spec("secrets: {scopes: [{defaultAccess: deny}]}"), "c.yaml:5: spec.secrets.scopes[0].storeName: required"},
		{"a secret scope with an unknown default", spec("secrets: {scopes: [{storeName: s, defaultAccess: refuse}]}"), `spec.secrets.scopes[0].defaultAccess: "refuse" is not one of allow, deny`},
		{"a secret scope with a misspelt field", spec("secrets: {scopes: [{storeName: s, allowedSecret: [a]}]}"), "unknown field; did you mean allowedSecrets?"},
		{"secrets with a misspelt field", spec("secrets: {scope: [{storeName: s, defaultAccess: deny}]}"), "spec.secrets.scope: unknown field; did you mean scopes?"},
		{"two secret scopes for one store", spec("secrets:\n    scopes:\n    - {storeName: s}\n    - {storeName: t}\n    - {storeName: s, defaultAccess: deny}"),
			"c.yaml:9: spec.secrets.scopes[2].storeName: s storeName is repeated in secrets configuration (first on line 7)"},
		{"a traced secret without a store", spec("tracing: {otel: {headers: [{name: h, secretKeyRef: {name: s}}]}}"), "auth.secretStore: required"},
		{"API rule without protocol", spec("api: {denied: [{name: state, version: v1}]}"), "spec.api.denied.protocol: want http or grpc"},
		{"wrong type", spec("features: {a: b}"), "spec.features: want a list"},
		{"wrong protocol", spec("tracing: {otel: {protocol: tcp}}"), "spec.tracing.otel.protocol: want http or grpc"},
		{"another kind", "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: c}\nspec: {type: a.b}\n", "holds no Configuration"},
		{"not YAML", "a: [", "not valid YAML"},
		{"empty", "", "holds no Configuration"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(writeFiles(t, map[string]string{"c.yaml": tc.text}), "c.yaml")
			_, _, err := settings.LoadConfiguration([]string{file}, nil)
			if err == nil || !strings.HasPrefix(err.Error(), "error loading configuration: ") || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	for _, ok := range []string{"mtls: {enabled: false}", "accessControl: {}", "accessControl: {defaultAction: Allow}", "accessControl: {defaultAction: deny}",
		"accessControl: {policies: [{appId: a, trustDomain: public, namespace: n, defaultAction: deny, operations: [{name: /x/**, httpVerb: [GET], action: allow}]}]}",
		"secrets: {scopes: []}", "secrets: {}", "secrets: {scopes: [{storeName: s, defaultAccess: Deny, allowedSecrets: [a], deniedSecrets: [a, b]}, {storeName: t}]}", "api: {}"} {
		file := filepath.Join(writeFiles(t, map[string]string{"c.yaml": spec(ok)}), "c.yaml")
		if _, _, err := settings.LoadConfiguration([]string{file}, nil); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	if _, _, err := settings.LoadConfiguration([]string{"no/such.yaml"}, nil); err == nil || !strings.HasPrefix(err.Error(), "error loading configuration: ") {
		t.Errorf("missing file: %v", err)
	}
}

func TestSecretScopes(t *testing.T) {
	file := filepath.Join(writeFiles(t, map[string]string{"c.yaml": "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nspec:\n  secrets:\n    scopes:\n" +
		"    - {storeName: s, defaultAccess: DENY, allowedSecrets: [a, b], deniedSecrets: [c]}\n    - {storeName: t, defaultAccess: allow}\n    - storeName: u\n"}), "c.yaml")
	c, found, err := settings.LoadConfiguration([]string{file}, nil)
	if err != nil || len(found) > 0 {
		t.Fatalf("%v, findings %v", err, found)
	}
	want := []settings.SecretScope{{StoreName: "s", DefaultAccess: "DENY", AllowedSecrets: []string{"a", "b"}, DeniedSecrets: []string{"c"}, Line: 6},
		{StoreName: "t", DefaultAccess: "allow", Line: 7}, {StoreName: "u", Line: 8}}
	if diff := cmp.Diff(want, c.Secrets.Scopes); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for i, denies := range []bool{true, false, false} {
		if c.Secrets.Scopes[i].Denies() != denies {
			t.Errorf("scope %d: denies is %v", i, !denies)
		}
	}
}

func TestCollectorHeaders(t *testing.T) {
	file := filepath.Join(writeFiles(t, map[string]string{"c.yaml": `apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: c}
spec:
  tracing:
    otel:
      headers:
      - {name: plain, value: v}
      - {name: env, envRef: KEY}
      - {name: both, value: v, envRef: KEY}
      - {name: secret, secretKeyRef: {name: s}}
      - {name: key, secretKeyRef: {name: s, key: k}}
      - {name: kept, value: v, secretKeyRef: {name: none}}
      - {name: gone, secretKeyRef: {name: none}}
auth: {secretStore: st}
`}), "c.yaml")
	c, found, err := settings.LoadConfiguration([]string{file}, nil)
	if err != nil || len(found) > 0 {
		t.Fatalf("%v, findings %v", err, found)
	}
	items, found := c.Tracing.Otel.HeaderItems(settings.Expansion{Env: environment(map[string]string{"KEY": "e"}),
		Secret: func(c *settings.Component, ref *settings.SecretRef) (string, error) {
			if ref.Name == "none" {
				return "", errors.New("no such secret")
			}
			return c.SecretStore + "/" + ref.Name + "/" + ref.Key, nil
		}})
	got := map[string]string{}
	for _, it := range items {
		got[it.Name] = it.Value
		if !it.Secret {
			t.Errorf("%s is no secret", it.Name)
		}
	}
	want := map[string]string{"plain": "v", "env": "e", "both": "v", "secret": "st/s/s", "key": "st/s/k", "kept": "v", "gone": ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := found.Err(); len(found) != 2 || err == nil || err.Error() != file+`:14: spec.tracing.otel.headers.gone: secret "none" (key "none") of secret store "st" cannot be used: no such secret` {
		t.Errorf("findings %v", found)
	}
}

func TestConfigurationWarnings(t *testing.T) {
	file := filepath.Join(writeFiles(t, map[string]string{"c.yaml": "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nspec:\n  workflow: {maxConcurrentWorkflowInvocations: 3}\n  accesControl: {}\n"}), "c.yaml")
	_, found, err := settings.LoadConfiguration([]string{file}, nil)
	if err != nil || len(found) != 2 {
		t.Fatalf("%v, findings %v", err, found)
	}
	if found[0].Nearest != "accessControl" || found[0].Severity != conf.Warning {
		t.Errorf("got %v", found[0])
	}
}
