package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/untested"
)

// TestAPIToken: with DAPR_API_TOKEN every request needs it, save probes of health.
func TestAPIToken(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: harness.Serve(t, http.HandlerFunc(echo)), Env: []string{"DAPR_API_TOKEN=sesame"}})
	caller := mesh.Start(harness.Options{AppID: "caller", Env: []string{"DAPR_API_TOKEN=sesame"}})
	const refused = "invalid api token"
	for _, tt := range []struct {
		name, method, path, token string
		status                    int
	}{
		{"no token", "GET", "/v1.0/metadata", "", 401},
		{"wrong token", "GET", "/v1.0/metadata", "open", 401},
		{"a beginning of the token", "GET", "/v1.0/metadata", "sesam", 401},
		{"right token", "GET", "/v1.0/metadata", "sesame", 200},
		{"unknown path", "GET", "/nothing", "", 401},
		{"invocation without", "GET", "/v1.0/invoke/callee/method/x", "", 401},
		{"invocation", "GET", "/v1.0/invoke/callee/method/x", "sesame", 200},
		{"health", "GET", "/v1.0/healthz", "", 204},
		{"health with slash", "GET", "/v1.0/healthz/", "", 204},
		{"outbound health", "GET", "/v1.0/healthz/outbound", "", 204},
		{"another verb on health", "POST", "/v1.0/healthz", "", 401},
		{"a path that begins like health", "GET", "/v1.0/healthzzz", "", 401},
		{"a path below health", "GET", "/v1.0/healthz/outbound/../../v1.0/metadata", "", 401},
		{"shutdown", "POST", "/v1.0/shutdown", "", 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var header []string
			if tt.token != "" {
				header = []string{"dapr-api-token", tt.token}
			}
			resp, body := raw(t, caller.HTTP, tt.method, get(tt.method, tt.path, header...))
			if resp.StatusCode != tt.status || tt.status == 401 && body != refused {
				t.Errorf("got %d %q, want %d", resp.StatusCode, body, tt.status)
			}
			if tt.name == "invocation" && decodeSeen(t, []byte(body)).Header.Get("Dapr-Api-Token") != "" {
				t.Error("the token reached the app")
			}
		})
	}
	t.Run("health with another app's header", func(t *testing.T) {
		resp, body := raw(t, caller.HTTP, "GET", get("GET", "/v1.0/healthz/outbound/x", "dapr-app-id", "callee"))
		if resp.StatusCode != 401 {
			t.Errorf("got %d %s; a call got through without a token", resp.StatusCode, body)
		}
	})
	t.Run("gRPC", func(t *testing.T) {
		c := dapr(t, caller.Target())
		_, err := c.GetMetadata(callContext(t), &runtimev1.GetMetadataRequest{})
		st := status.Convert(err)
		if st.Code() != codes.Unauthenticated || st.Message() != "Unauthorized" || len(st.Details()) != 1 {
			t.Fatalf("got %v", st)
		}
		info := st.Details()[0].(*errdetails.ErrorInfo)
		if info.Metadata["http.code"] != "401" || info.Metadata["http.error_message"] != "missing api token in request metadata" {
			t.Errorf("detail %v", info)
		}
		if _, err := c.GetMetadata(callContext(t, "dapr-api-token", "open"), &runtimev1.GetMetadataRequest{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("wrong token: %v", err)
		}
		if _, err := c.GetMetadata(callContext(t, "dapr-api-token", "sesame"), &runtimev1.GetMetadataRequest{}); err != nil {
			t.Errorf("right token: %v", err)
		}
		if _, err := dial(t, caller.Target()).UnaryCall(callContext(t, "dapr-app-id", "callee"), &grpc_testing.SimpleRequest{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("proxied without token: %v", err)
		}
	})
	_ = callee
}

// TestCORS: off unless origins are given.
func TestCORS(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	off := mesh.Start(harness.Options{AppID: "off"})
	all := mesh.Start(harness.Options{AppID: "all", Args: []string{"--allowed-origins=*"}, Env: []string{"DAPR_API_TOKEN=sesame"}})
	some := mesh.Start(harness.Options{AppID: "some", Args: []string{"--allowed-origins=http://a.example, http://b.example"}})
	preflight := func(s *harness.Sidecar, origin string) *http.Response {
		resp, body := harness.Do(t, "OPTIONS", s.URL("/v1.0/state/x"), nil, "Origin", origin, "Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "x-mine, content-type")
		if s != off && (resp.StatusCode != 200 || len(body) > 0) {
			t.Errorf("preflight of %s at %s got %d %s", origin, s.AppID, resp.StatusCode, body)
		}
		return resp
	}
	if resp := preflight(off, "http://a.example"); resp.StatusCode != 404 || resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("without origins a preflight got %d %v", resp.StatusCode, resp.Header)
	}
	resp := preflight(all, "http://any.example")
	for name, want := range map[string]string{"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "PUT", "Access-Control-Allow-Headers": "X-Mine, Content-Type",
		"Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"} {
		if got := strings.Join(resp.Header.Values(name), ", "); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if resp := preflight(some, "http://b.example"); resp.Header.Get("Access-Control-Allow-Origin") != "http://b.example" {
		t.Errorf("headers %v", resp.Header)
	}
	if resp := preflight(some, "http://evil.example"); resp.Header.Get("Access-Control-Allow-Origin") != "" || resp.Header.Get("Access-Control-Allow-Methods") != "" {
		t.Errorf("a refused origin got %v", resp.Header)
	}
	for origin, want := range map[string]string{"http://a.example": "http://a.example", "http://evil.example": ""} {
		resp, _ := harness.Do(t, "GET", some.URL("/v1.0/metadata"), nil, "Origin", origin)
		if got := resp.Header.Get("Access-Control-Allow-Origin"); got != want || resp.Header.Get("Vary") != "Origin" {
			t.Errorf("%s: allow %q, vary %q", origin, got, resp.Header.Get("Vary"))
		}
	}
}

// TestAPILists: allowed and denied APIs.
func TestAPILists(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	lists := func(text string) string {
		return "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec:\n  api:\n" + text
	}
	port := harness.Serve(t, http.HandlerFunc(echo))
	deny := mesh.Start(harness.Options{AppID: "deny", AppPort: port, Config: lists("    denied:\n    - {name: metadata, version: v1.0, protocol: http}\n    - {name: invoke, version: v1, protocol: grpc}\n")})
	allow := mesh.Start(harness.Options{AppID: "allow", AppPort: port, Config: lists("    allowed:\n    - {name: metadata, version: v1, protocol: http}\n    - {name: metadata, version: v1, protocol: grpc}\n")})
	for _, tt := range []struct {
		name   string
		at     *harness.Sidecar
		path   string
		status int
		text   string
	}{
		{"denied", deny, "/v1.0/metadata", 404, "ERR_DIRECT_INVOKE"},
		{"not denied", deny, "/v1.0/invoke/deny/method/x", 200, "/x"},
		{"allowed", allow, "/v1.0/metadata", 200, `"id":"allow"`},
		{"not allowed", allow, "/v1.0/invoke/allow/method/x", 404, "404 page not found"},
		{"fallback not allowed", allow, "/v1.0/state/a/b", 404, "404 page not found"},
		{"health always", allow, "/v1.0/healthz", 204, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := harness.Do(t, "GET", tt.at.URL(tt.path), nil)
			if resp.StatusCode != tt.status || !strings.Contains(string(body), tt.text) {
				t.Errorf("got %d %s, want %d with %q", resp.StatusCode, body, tt.status, tt.text)
			}
		})
	}
	_, err := dapr(t, deny.Target()).InvokeService(callContext(t), invokeRequest("deny", "x", 1, ""))
	if st := status.Convert(err); st.Code() != codes.Unimplemented || st.Message() != "Not Implemented" || len(st.Details()) != 1 {
		t.Errorf("denied gRPC: %v", err)
	}
	if _, err := dapr(t, deny.Target()).GetMetadata(callContext(t), &runtimev1.GetMetadataRequest{}); err != nil {
		t.Errorf("a rule for HTTP hit gRPC: %v", err)
	}
	if _, err := dapr(t, allow.Target()).GetMetadata(callContext(t), &runtimev1.GetMetadataRequest{}); err != nil {
		t.Errorf("allowed gRPC: %v", err)
	}
	if _, err := dapr(t, allow.Target()).InvokeService(callContext(t), invokeRequest("allow", "x", 1, "")); status.Code(err) != codes.Unimplemented {
		t.Errorf("gRPC not allowed: %v", err)
	}
}

// TestUnixSockets: with a socket folder the APIs are there, and not on TCP.
func TestUnixSockets(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	dir := t.TempDir()
	s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, http.HandlerFunc(echo)), Args: []string{"--unix-domain-socket", dir}, NoWait: true})
	s.WaitLog("dapr initialized")
	path := filepath.Join(dir, "dapr-me-http.socket")
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}}
	resp, err := client.Get("http://sidecar/v1.0/invoke/me/method/x")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if decodeSeen(t, body).URI != "/x" {
		t.Errorf("got %s", body)
	}
	if _, err := dapr(t, "unix://"+filepath.Join(dir, "dapr-me-grpc.socket")).GetMetadata(callContext(t), &runtimev1.GetMetadataRequest{}); err != nil {
		t.Errorf("gRPC: %v", err)
	}
	for _, port := range []int{s.HTTP, s.GRPC} {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			t.Errorf("TCP port %d is open too", port)
		}
	}
	// A socket file left by a killed sidecar does not stop the next one.
	s.Kill()
	again := mesh.Start(harness.Options{AppID: "me", Args: []string{"--unix-domain-socket", dir}, NoWait: true})
	again.WaitLog("dapr initialized")
}

// TestListening: loopback unless told otherwise; the public port has health and metadata only.
func TestListening(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	public := harness.FreePort(t)
	s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, http.HandlerFunc(echo)), Env: []string{"DAPR_API_TOKEN=sesame"},
		Args: []string{"--dapr-public-port", fmt.Sprint(public), "--allowed-origins=*"}})
	for _, tt := range []struct {
		method, path string
		status       int
		text         string
	}{
		{"GET", "/v1.0/healthz", 204, ""},
		{"GET", "/v1.0/healthz/outbound", 204, ""},
		{"GET", "/v1.0/metadata", 200, `"id":"me"`},
		{"PUT", "/v1.0/metadata/k", 204, ""},
		{"GET", "/v1.0/invoke/me/method/x", 404, "404 page not found"},
		{"POST", "/v1.0/shutdown", 404, "404 page not found"},
		{"GET", "/", 404, "404 page not found"},
	} {
		resp, body := raw(t, public, tt.method, get(tt.method, tt.path, "dapr-app-id", "me", "Origin", "http://x.example"))
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.text) {
			t.Errorf("%s %s got %d %q, want %d", tt.method, tt.path, resp.StatusCode, body, tt.status)
		}
		if v := resp.Header["Access-Control-Allow-Origin"]; v != nil || resp.Header.Get("Vary") != "" {
			t.Errorf("%s: CORS on the public port: %v", tt.path, resp.Header)
		}
	}
	t.Run("listen addresses", func(t *testing.T) {
		other := otherAddress(t)
		for _, port := range []int{s.HTTP, s.GRPC, s.Metrics, s.Peer, public} {
			if c, err := net.Dial("tcp", net.JoinHostPort(other, fmt.Sprint(port))); err == nil {
				c.Close()
				t.Errorf("port %d is open beyond 127.0.0.1", port)
			}
		}
		s := mesh.Start(harness.Options{AppID: "wide", Args: []string{"--dapr-listen-addresses=127.0.0.1," + other}})
		if status, _, err := fetch(t.Context(), "GET", fmt.Sprintf("http://%s/v1.0/healthz", net.JoinHostPort(other, fmt.Sprint(s.HTTP))), nil); err != nil || status != 204 {
			t.Errorf("got %d, %v", status, err)
		}
	})
}

// otherAddress is an IPv4 address of this host other than 127.0.0.1, if possible one that others
// reach.
func otherAddress(t *testing.T) string {
	t.Helper()
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	if runtime.GOOS != "linux" { // where all of 127.0.0.0/8 is there
		untested.Skip(t, "listening on another address: this host has only 127.0.0.1")
	}
	return "127.0.0.2"
}

// TestAPILogging: one line per call, if asked for.
func TestAPILogging(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	port := harness.Serve(t, http.HandlerFunc(echo))
	config := "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec:\n  logging:\n    apiLogging: {enabled: true, obfuscateURLs: true, omitHealthChecks: true}\n"
	plainLog := mesh.Start(harness.Options{AppID: "plain", AppPort: port, Args: []string{"--enable-api-logging"}})
	hidden := mesh.Start(harness.Options{AppID: "hidden", AppPort: port, Config: config})
	silent := mesh.Start(harness.Options{AppID: "silent", AppPort: port, Config: config, Args: []string{"--enable-api-logging=false"}})
	for _, s := range []*harness.Sidecar{plainLog, hidden, silent} {
		harness.Do(t, "POST", invokeURL(s, s.AppID, "secret/path?q=1"), []byte("x"), "User-Agent", "tester/1")
		harness.Do(t, "GET", s.URL("/v1.0/healthz"), nil)
		dapr(t, s.Target()).GetMetadata(callContext(t), &runtimev1.GetMetadataRequest{})
	}
	line := func(s *harness.Sidecar, part string) string {
		for scan := bufio.NewScanner(strings.NewReader(s.Log())); scan.Scan(); {
			if strings.Contains(scan.Text(), "API Called") && strings.Contains(scan.Text(), part) {
				return scan.Text()
			}
		}
		return ""
	}
	plainLog.WaitLog("gRPC API Called")
	hidden.WaitLog("gRPC API Called")
	for _, want := range []string{`msg="HTTP API Called"`, `method="POST /v1.0/invoke/plain/method/secret/path"`, "code=200", "useragent=tester/1", "size=", "duration=", "scope=dapr.runtime.http-info", "level=info"} {
		if !strings.Contains(line(plainLog, "secret"), want) {
			t.Errorf("the line %q lacks %s", line(plainLog, "secret"), want)
		}
	}
	if line(plainLog, "healthz") == "" {
		t.Error("health checks are not logged, though nothing says to omit them")
	}
	for _, want := range []string{"method=/dapr.proto.runtime.v1.Dapr/GetMetadata", "code=0", "scope=dapr.runtime.grpc.api-info"} {
		if !strings.Contains(line(plainLog, "gRPC"), want) {
			t.Errorf("the line %q lacks %s", line(plainLog, "gRPC"), want)
		}
	}
	if line(hidden, "InvokeService/hidden") == "" || line(hidden, "secret") != "" || line(hidden, "ealthz") != "" {
		t.Errorf("URLs are not hidden:\n%s", hidden.Log())
	}
	if line(silent, "") != "" {
		t.Errorf("it logs although the flag says no: %s", line(silent, ""))
	}
}

// TestNoSecretsOut: tokens are in no log, metadata or metrics.
func TestNoSecretsOut(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	secrets := []string{"api-s3cret", "app-s3cret", "comp-s3cret"}
	s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, http.HandlerFunc(echo)),
		Env: []string{"DAPR_API_TOKEN=api-s3cret", "APP_API_TOKEN=app-s3cret"}, Args: []string{"--log-level=debug", "--enable-api-logging"},
		Files: map[string]string{"c.yaml": "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: store}\nspec:\n  type: state.in-memory\n  version: v1\n  metadata: [{name: password, value: comp-s3cret}]\n"}})
	harness.Do(t, "GET", invokeURL(s, "me", "x"), nil, "dapr-api-token", "api-s3cret")
	harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil, "dapr-api-token", "wr0ng-guess")
	_, metadata := harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil, "dapr-api-token", "api-s3cret")
	_, metrics := harness.Do(t, "GET", fmt.Sprintf("http://127.0.0.1:%d/", s.Metrics), nil)
	for where, text := range map[string]string{"log": s.Log(), "metadata": string(metadata), "metrics": string(metrics)} {
		for _, secret := range append(slices.Clone(secrets), "wr0ng-guess") {
			if strings.Contains(text, secret) {
				t.Errorf("%s is in the %s", secret, where)
			}
		}
	}
}
