package e2e

import (
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dapr/go-sdk/client"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/test/harness"
)

const (
	secretsText = `{"plain": "pl4in", "db": {"user": "u", "password": "p4ssword"}, "token": "t0ken", "size": "9Ki", "routes": "{\"/short\": \"/v1.0/healthz\"}"}`
	localStore  = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: local}\nspec:\n  type: secretstores.local.file\n  version: v1\n  metadata:\n  - {name: secretsFile, value: %s}\n"
	envStore    = "---\napiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: env}\nspec: {type: secretstores.local.env, version: v1}\n"
	scopesText  = `apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: c}
spec:
  secrets:
    scopes:
    - {storeName: local, deniedSecrets: ["db:password", "nothing"]}
    - {storeName: env, defaultAccess: deny, allowedSecrets: [MECHA_TEST_COLOR, MECHA_TEST_UNSET, DAPR_API_TOKEN]}
`
)

// secretStores are the resources of a file with secrets and of the environment.
func secretStores(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secrets.json")
	if err := os.WriteFile(path, []byte(secretsText), 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(localStore, path) + envStore
}

func TestSecretsOverHTTP(t *testing.T) {
	t.Parallel()
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Files: map[string]string{"s.yaml": secretStores(t)}, Config: scopesText,
		Env: []string{"MECHA_TEST_COLOR=gr33n", "MECHA_TEST_OTHER=y3llow", "APP_API_TOKEN=app-t0ken"}, Args: []string{"--log-level=debug", "--enable-api-logging"}})
	s.WaitOutbound()
	for _, tt := range []struct {
		path   string
		status int
		body   string
	}{
		{"local/plain", 200, `{"plain":"pl4in"}` + "\n"},
		{"local/db:user", 200, `{"db:user":"u"}` + "\n"},
		{"local/db%3Auser?metadata.namespace=x", 200, `{"db:user":"u"}` + "\n"},
		{"local/db:password", 403, `{"errorCode":"ERR_PERMISSION_DENIED","message":"access denied by policy to get \"db:password\" from \"local\""}`},
		{"local/nothing", 403, `{"errorCode":"ERR_PERMISSION_DENIED","message":"access denied by policy to get \"nothing\" from \"local\""}`},
		{"local/none", 500, `{"errorCode":"ERR_SECRET_GET","message":"failed getting secret with key none from secret store local: secret none not found"}`},
		{"local/db", 500, `{"errorCode":"ERR_SECRET_GET","message":"failed getting secret with key db from secret store local: secret db not found"}`},
		{"local/bulk", 200, `{"db:user":{"db:user":"u"},"plain":{"plain":"pl4in"},"routes":{"routes":"{\"/short\": \"/v1.0/healthz\"}"},"size":{"size":"9Ki"},"token":{"token":"t0ken"}}` + "\n"},
		{"env/MECHA_TEST_COLOR", 200, `{"MECHA_TEST_COLOR":"gr33n"}` + "\n"},
		{"env/MECHA_TEST_UNSET", 200, `{"MECHA_TEST_UNSET":""}` + "\n"},
		{"env/DAPR_API_TOKEN", 200, `{"DAPR_API_TOKEN":""}` + "\n"},
		{"env/mecha_test_color", 403, `{"errorCode":"ERR_PERMISSION_DENIED","message":"access denied by policy to get \"mecha_test_color\" from \"env\""}`},
		{"env/MECHA_TEST_OTHER", 403, `{"errorCode":"ERR_PERMISSION_DENIED","message":"access denied by policy to get \"MECHA_TEST_OTHER\" from \"env\""}`},
		{"env/bulk", 200, `{"MECHA_TEST_COLOR":{"MECHA_TEST_COLOR":"gr33n"}}` + "\n"},
		{"nosuch/k", 401, `{"errorCode":"ERR_SECRET_STORE_NOT_FOUND","message":"failed finding secret store with key nosuch"}`},
	} {
		resp, body := harness.Do(t, "GET", s.URL("/v1.0/secrets/"+tt.path), nil)
		if resp.StatusCode != tt.status || string(body) != tt.body {
			t.Errorf("%s: %d %s\nwant %d %s", tt.path, resp.StatusCode, body, tt.status, tt.body)
		}
	}
	_, metadata := harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil)
	_, metrics := harness.Do(t, "GET", fmt.Sprintf("http://127.0.0.1:%d/", s.Metrics), nil)
	for where, text := range map[string]string{"log": s.Log(), "metadata": string(metadata), "metrics": string(metrics)} {
		for _, secret := range []string{"pl4in", "p4ssword", "gr33n", "y3llow", "app-t0ken"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s is in the %s", secret, where)
			}
		}
	}
	for _, want := range []string{ // a refusal is no operation of the store
		`dapr_component_secret_count{app_id="me",component="local",namespace="",operation="get",success="true"} 3`,
		`dapr_component_secret_count{app_id="me",component="local",namespace="",operation="get",success="false"} 2`,
		`dapr_component_secret_count{app_id="me",component="env",namespace="",operation="bulk_get",success="true"} 1`,
		`component="local",namespace="",operation="bulk_get",success="true"`, `path="/v1.0/secrets/local"`} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("the metrics lack %s:\n%s", want, linesWith(string(metrics), "secret"))
		}
	}
	if !strings.Contains(string(metadata), `"name":"local","type":"secretstores.local.file","version":"v1"}`) {
		t.Errorf("metadata: %s", metadata)
	}
}

func linesWith(text, word string) string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// The official SDK reads secrets as it does from Dapr.
func TestSecretsWithTheGoSDK(t *testing.T) {
	t.Parallel()
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Files: map[string]string{"s.yaml": strings.Replace(secretStores(t), "  - {name: secretsFile", "  - {name: multiValued, value: 'true'}\n  - {name: secretsFile", 1)},
		Config: strings.Replace(scopesText, `"db:password"`, "token", 1), Env: []string{"MECHA_TEST_COLOR=gr33n"}})
	s.WaitOutbound()
	c, err := client.NewClientWithAddress(s.Target())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	one, err := c.GetSecret(ctx, "local", "db", map[string]string{"version_id": "1"})
	if d := cmp.Diff(map[string]string{"user": "u", "password": "p4ssword"}, one); err != nil || d != "" {
		t.Errorf("one: %v (-want +got):\n%s", err, d)
	}
	all, err := c.GetBulkSecret(ctx, "env", nil)
	if d := cmp.Diff(map[string]map[string]string{"MECHA_TEST_COLOR": {"MECHA_TEST_COLOR": "gr33n"}}, all); err != nil || d != "" {
		t.Errorf("all: %v (-want +got):\n%s", err, d)
	}
	if _, metadata := harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil); !strings.Contains(string(metadata), `"capabilities":["MULTIPLE_KEY_VALUES_PER_SECRET"]`) {
		t.Errorf("metadata: %s", metadata)
	}
	for what, tt := range map[string]struct {
		store, name string
		code        codes.Code
	}{
		"a denied secret": {"local", "token", codes.PermissionDenied}, "an unknown secret": {"local", "none", codes.Internal}, "an unknown store": {"none", "x", codes.InvalidArgument},
	} {
		_, err := c.GetSecret(ctx, tt.store, tt.name, nil)
		if status.Code(err) != tt.code {
			t.Errorf("%s: %v, want %v", what, err, tt.code)
		}
	}
}

// Whatever is configured may take its values from a store: components, HTTP middleware, endpoints
// and the headers of a collector.
func TestConfiguredWithSecrets(t *testing.T) {
	t.Parallel()
	var collected, called atomic.Value
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { collected.Store(r.Header.Get("X-Key")) }))
	t.Cleanup(collector.Close)
	external := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { called.Store(r.Header.Get("X-Key")) }))
	t.Cleanup(external.Close)
	const auth = "auth: {secretStore: local}\n---\n"
	resources := "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: store}\nspec:\n  type: state.in-memory\n  version: v1\n  metadata: [{name: maxBytes, secretKeyRef: {name: size}}]\n" + auth +
		"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: alias}\nspec:\n  type: middleware.http.routeralias\n  version: v1\n  metadata: [{name: routes, secretKeyRef: {name: routes}}]\n" + auth +
		"apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: ext}\nspec: {baseUrl: '" + external.URL + "', headers: [{name: X-Key, secretKeyRef: {name: 'db:password', key: 'db:password'}}]}\n" + auth +
		secretStores(t)
	config := scopesText + "  httpPipeline: {handlers: [{name: alias, type: middleware.http.routeralias}]}\n" +
		"  tracing:\n    samplingRate: '1'\n    otel: {protocol: http, isSecure: false, endpointAddress: '" + strings.TrimPrefix(collector.URL, "http://") + "', headers: [{name: X-Key, secretKeyRef: {name: token}}]}\n" + "auth: {secretStore: local}\n"
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Files: map[string]string{"r.yaml": resources}, Config: config, Args: []string{"--log-level=debug"}})
	s.WaitOutbound()
	if resp, body := harness.Do(t, "POST", s.URL("/v1.0/state/store"), []byte(`[{"key":"k","value":"`+strings.Repeat("x", 8<<10)+`"}]`)); resp.StatusCode != 204 {
		t.Errorf("a value within the store's limit: %d %s", resp.StatusCode, body)
	}
	if resp, body := harness.Do(t, "POST", s.URL("/v1.0/state/store"), []byte(`[{"key":"l","value":"`+strings.Repeat("x", 8<<10)+`"}]`)); resp.StatusCode != 500 {
		t.Errorf("a value over it: %d %s", resp.StatusCode, body)
	}
	if resp, body := harness.Do(t, "GET", s.URL("/short"), nil); resp.StatusCode != 204 {
		t.Errorf("the alias: %d %s", resp.StatusCode, body)
	}
	if resp, body := harness.Do(t, "GET", invokeURL(s, "ext", "x"), nil); resp.StatusCode != 200 || called.Load() != "p4ssword" {
		t.Errorf("the endpoint: %d %s, it saw %q", resp.StatusCode, body, called.Load())
	}
	for end := time.Now().Add(20 * time.Second); collected.Load() == nil && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	if collected.Load() != "t0ken" {
		t.Errorf("the collector saw %q", collected.Load())
	}
	for _, secret := range []string{"p4ssword", "t0ken"} {
		if strings.Contains(s.Log(), secret) {
			t.Errorf("%s is in the log", secret)
		}
	}
}

// A sidecar does not start with an empty password, whatever was to have it.
func TestNoStartWithoutSecrets(t *testing.T) {
	t.Parallel()
	const auth = "auth: {secretStore: local}\n---\n"
	for name, tt := range map[string]struct{ resources, config, want string }{
		"a component": {"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: store}\nspec: {type: state.in-memory, metadata: [{name: maxBytes, secretKeyRef: {name: size, key: bytes}}]}\n" + auth, "",
			`process component store error: [INIT_COMPONENT_FAILURE]: initialization error occurred for store (state.in-memory): `},
		"middleware": {"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: alias}\nspec: {type: middleware.http.routeralias, metadata: [{name: routes, secretKeyRef: {name: size, key: bytes}}]}\n" + auth, "",
			"process component alias error: "},
		"an endpoint": {"apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: ext}\nspec: {baseUrl: 'http://x', headers: [{name: X, secretKeyRef: {name: size, key: bytes}}]}\n" + auth, "",
			"http endpoint ext: "},
		"a collector's header": {"", scopesText + "  tracing: {otel: {endpointAddress: 'x:1', headers: [{name: X, secretKeyRef: {name: size, key: bytes}}]}}\nauth: {secretStore: local}\n",
			"tracing: "},
	} {
		t.Run(name, func(t *testing.T) {
			s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Files: map[string]string{"r.yaml": tt.resources + secretStores(t)}, Config: tt.config, NoWait: true})
			if code := s.Wait(20 * time.Second); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			for _, want := range []string{"Fatal error from runtime: " + tt.want, `secret \"size\" (key \"bytes\") of secret store \"local\" cannot be used: the secret has no key \"bytes\"`} {
				if !strings.Contains(s.Log(), want) {
					t.Errorf("the log lacks %s", want)
				}
			}
		})
	}
}

// A component's password from a cluster's API: its namespace goes along, and a new token is used at
// once. The server here is a stand-in.
func TestSecretsOfACluster(t *testing.T) {
	t.Parallel()
	var token, asked atomic.Value
	token.Store("first")
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token.Load().(string) {
			w.WriteHeader(401)
			return
		}
		if r.URL.Path == "/version" {
			fmt.Fprint(w, `{"gitVersion":"v1.33.1"}`)
			return
		}
		asked.Store(r.URL.Path)
		fmt.Fprint(w, `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"limits"},"data":{"size":"OUtp","other":"aHVzaA=="}}`)
	}))
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	for name, text := range map[string]string{"token": "first", "ca.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})),
		"config": "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\nclusters: [{name: c, cluster: {server: '" + srv.URL + "', certificate-authority: ca.crt}}]\nusers: [{name: u, user: {tokenFile: token}}]\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Files: map[string]string{"r.yaml": "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: cluster}\n" +
		"spec:\n  type: secretstores.kubernetes\n  version: v1\n  metadata: [{name: kubeconfigPath, value: '" + filepath.Join(dir, "config") + "'}]\n---\n" +
		"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: store, namespace: team}\nspec:\n  type: state.in-memory\n  version: v1\n  metadata: [{name: maxBytes, secretKeyRef: {name: limits, key: size}}]\nauth: {secretStore: cluster}\n"}})
	s.WaitOutbound()
	if asked.Load() != "/api/v1/namespaces/team/secrets/limits" {
		t.Errorf("asked for %v", asked.Load())
	}
	token.Store("second")
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	if resp, body := harness.Do(t, "GET", s.URL("/v1.0/secrets/cluster/limits?metadata.namespace=prod"), nil); resp.StatusCode != 200 || strings.TrimSpace(string(body)) != `{"other":"hush","size":"9Ki"}` || asked.Load() != "/api/v1/namespaces/prod/secrets/limits" {
		t.Errorf("%d %s, asked for %v", resp.StatusCode, body, asked.Load())
	}
	if strings.Contains(s.Log(), "hush") {
		t.Error("a secret is in the log")
	}
}
