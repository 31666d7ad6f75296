package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"

	"github.com/mecha-project/mecha/test/harness"
)

// gate is an app whose requests to /hold stay until they are let go.
type gate struct {
	held chan struct{} // one per request that is being held
	open chan struct{} // closed: let go
}

func newGate() *gate { return &gate{held: make(chan struct{}, 64), open: make(chan struct{})} }

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/hold" {
		g.held <- struct{}{}
		select {
		case <-g.open:
		case <-r.Context().Done():
			return
		}
	}
	io.WriteString(w, "done")
}

// result is the outcome of a request made in the background.
type result struct {
	status int
	body   string
	err    error
}

func inBackground(url string) <-chan result {
	out := make(chan result, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		status, body, err := fetch(ctx, "POST", url, strings.NewReader("x"))
		out <- result{status, string(body), err}
	}()
	return out
}

// TestDrain: a request to end lets calls in flight finish, takes no new ones, and ends with 0.
func TestDrain(t *testing.T) {
	t.Parallel()
	stops := []struct {
		name string
		stop func(*harness.Sidecar)
		log  string
	}{
		{"SIGTERM", func(s *harness.Sidecar) { s.Signal(syscall.SIGTERM) }, "Received signal 'terminated'; beginning shutdown"},
		{"SIGINT", func(s *harness.Sidecar) { s.Signal(syscall.SIGINT) }, "Received signal 'interrupt'; beginning shutdown"},
		{"API", func(s *harness.Sidecar) { fetch(context.Background(), "POST", s.URL("/v1.0/shutdown"), nil) }, "Shutdown requested via API"},
	}
	for _, tt := range stops {
		for _, which := range []string{"callee", "caller"} {
			t.Run(tt.name+" of the "+which, func(t *testing.T) {
				t.Parallel()
				g := newGate()
				callee, caller := pair(t, g)
				call := inBackground(invokeURL(caller, "callee", "hold"))
				within(t, 5*time.Second, "the app gets the call", g.held)
				s := map[string]*harness.Sidecar{"callee": callee, "caller": caller}[which]
				tt.stop(s)
				s.WaitLog("Dapr is shutting down")
				eventually(t, 3*time.Second, "no new connections", func() bool {
					c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.HTTP))
					if err == nil {
						c.Close()
					}
					return err != nil
				})
				time.Sleep(300 * time.Millisecond)
				close(g.open)
				if r := <-call; r.err != nil || r.status != 200 || r.body != "done" {
					t.Errorf("the call in flight ended with %+v", r)
				}
				if code := s.Wait(5 * time.Second); code != 0 {
					t.Errorf("exit code %d, want 0", code)
				}
				for _, text := range []string{tt.log, "Dapr runtime stopped", "Daprd shutdown gracefully"} {
					if !strings.Contains(s.Log(), text) {
						t.Errorf("the log lacks %q", text)
					}
				}
			})
		}
	}
}

// TestStopIdle: an idle sidecar ends quickly even while clients hold connections open.
func TestStopIdle(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(echo))
	harness.Do(t, "GET", invokeURL(caller, "callee", "x"), nil) // peers and clients are connected now
	dialPort(t, caller.HTTP)
	h2 := &http.Client{Transport: h2c()}
	resp, err := h2.Get(invokeURL(caller, "callee", "x"))
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	for _, s := range []*harness.Sidecar{caller, callee} {
		start := time.Now()
		s.Signal(syscall.SIGTERM)
		if code := s.Wait(6 * time.Second); code != 0 {
			t.Errorf("%s: exit code %d, want 0", s.AppID, code)
		}
		if took := time.Since(start); took > 2500*time.Millisecond {
			t.Errorf("%s took %v to end without anything to do", s.AppID, took)
		}
	}
}

// TestGracePeriod: a call that does not end is cut off after the grace period.
func TestGracePeriod(t *testing.T) {
	t.Parallel()
	g := newGate()
	mesh := harness.NewMesh(t)
	s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, g), Args: []string{"--dapr-graceful-shutdown-seconds=1"}})
	call := inBackground(invokeURL(s, "me", "hold"))
	within(t, 5*time.Second, "the app gets the call", g.held)
	start := time.Now()
	s.Signal(syscall.SIGTERM)
	if code := s.Wait(5 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if took := time.Since(start); took < 900*time.Millisecond || took > 3*time.Second {
		t.Errorf("it took %v with a grace period of 1 s", took)
	}
	if r := <-call; r.err == nil && r.status == 200 {
		t.Errorf("the call that was cut off ended with %+v", r)
	}
}

// TestEndAtOnce: a second signal or a forced shutdown does not wait for anything; exit code 1.
func TestEndAtOnce(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		end  func(*testing.T, *harness.Sidecar)
	}{
		{"second signal", func(t *testing.T, s *harness.Sidecar) {
			s.Signal(syscall.SIGTERM)
			s.WaitLog("Dapr is shutting down")
			s.Signal(syscall.SIGTERM)
		}},
		{"forced over the API", func(t *testing.T, s *harness.Sidecar) {
			resp, _ := harness.Do(t, "POST", s.URL("/v1.0/shutdown"), nil, "dapr-force-shutdown", "true")
			if resp.StatusCode != 204 {
				t.Errorf("the request for it got %d, want 204", resp.StatusCode)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newGate()
			mesh := harness.NewMesh(t)
			s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, g)})
			inBackground(invokeURL(s, "me", "hold"))
			within(t, 5*time.Second, "the app gets the call", g.held)
			start := time.Now()
			tt.end(t, s)
			if code := s.Wait(4 * time.Second); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestHangup: SIGHUP starts the sidecar again in the same process, with files read anew.
func TestHangup(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, http.HandlerFunc(echo))})
	harness.Do(t, "PUT", s.URL("/v1.0/metadata/mark"), []byte("set"))
	for i := range 2 {
		began := strings.Count(s.Log(), "dapr initialized. Status: Running")
		s.Signal(syscall.SIGHUP)
		s.Signal(syscall.SIGHUP) // one too many does no harm
		eventually(t, 8*time.Second, "it runs again", func() bool { return strings.Count(s.Log(), "dapr initialized. Status: Running") > began })
		s.WaitHealthy()
		if !strings.Contains(s.Log(), "Received signal 'hangup'; restarting") {
			t.Error("the log does not say why it restarts")
		}
		if _, body := harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil); strings.Contains(string(body), "mark") {
			t.Errorf("round %d: values set at run time survive: %s", i, body)
		}
		if resp, _ := harness.Do(t, "GET", invokeURL(s, "me", "x"), nil); resp.StatusCode != 200 {
			t.Errorf("round %d: a call got %d", i, resp.StatusCode)
		}
	}
	s.Signal(syscall.SIGTERM)
	if code := s.Wait(6 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// TestBlockShutdown: with a block duration the APIs stay open that long, and health says so.
func TestBlockShutdown(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, http.HandlerFunc(echo)), Args: []string{"--dapr-block-shutdown-duration=1500ms"}})
	start := time.Now()
	s.Signal(syscall.SIGTERM)
	s.WaitLog("Blocking graceful shutdown for 1.5s or until app reports unhealthy...")
	if resp, body := harness.Do(t, "GET", s.URL("/v1.0/healthz"), nil); resp.StatusCode != 500 || !strings.Contains(string(body), "ERR_HEALTH_NOT_READY") {
		t.Errorf("healthz says %d %s, want 500", resp.StatusCode, body)
	}
	if resp, body := harness.Do(t, "GET", invokeURL(s, "me", "x"), nil); resp.StatusCode != 200 {
		t.Errorf("a call got %d %s; the APIs are to stay open", resp.StatusCode, body)
	}
	if code := s.Wait(6 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if took := time.Since(start); took < 1400*time.Millisecond {
		t.Errorf("it ended after %v, want 1.5 s at least", took)
	}
	if !strings.Contains(s.Log(), "Block shutdown period expired, entering shutdown...") {
		t.Error("the log does not tell the end of the block duration")
	}
}

// TestHealthz: what the two health endpoints say while the app comes up.
func TestHealthz(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	port := harness.FreePort(t)
	s := mesh.Start(harness.Options{AppID: "me", AppPort: port, NoWait: true})
	s.WaitOutbound()
	resp, body := harness.Do(t, "GET", s.URL("/v1.0/healthz"), nil)
	wantError(t, resp, body, 500, "ERR_HEALTH_NOT_READY", "dapr is not ready: [runtime]")
	resp, body = harness.Do(t, "GET", invokeURL(s, "me", "x"), nil)
	wantError(t, resp, body, 500, "ERR_DIRECT_INVOKE", "connection refused")
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(echo)}
	go srv.Serve(l)
	defer srv.Close()
	s.WaitHealthy()
	for path, want := range map[string]int{"/v1.0/healthz": 204, "/v1.0/healthz/": 204, "/v1.0/healthz/outbound": 204, "/v1.0/healthz?appid=me": 204, "/v1.0/healthz?appid=you": 500} {
		resp, body := harness.Do(t, "GET", s.URL(path), nil)
		if resp.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", path, resp.StatusCode, body, want)
		}
		if want == 500 {
			wantError(t, resp, body, 500, "ERR_HEALTH_APPID_NOT_MATCH", "dapr app-id does not match")
		}
	}
	for _, text := range []string{
		"application protocol: http. waiting on port " + fmt.Sprint(port) + ".  This will block until the app is listening on that port.",
		fmt.Sprintf("application discovered on port %d", port), "dapr initialized. Status: Running. Init Elapsed ", "app id: me", "standalone mode configured"} {
		s.WaitLog(text)
	}
}

// TestMetadata: the document and values set at run time.
func TestMetadata(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	s := mesh.Start(harness.Options{AppID: "me", Env: []string{"NAMESPACE=prod"}})
	resp, body := harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil)
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("got %d, %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	for _, part := range []string{`{"id":"me","runtimeVersion":"`, `"extended":{"daprRuntimeVersion":"`, `"appConnectionProperties":{"protocol":"http","channelAddress":"127.0.0.1"}`,
		`"actorRuntime":{"runtimeStatus":"DISABLED","hostReady":false,"placement":"placement: disconnected"}`} {
		if !bytes.Contains(body, []byte(part)) {
			t.Errorf("metadata lacks %s:\n%s", part, body)
		}
	}
	for key, value := range map[string]string{"plain": "value", "a%20b": "with space", "quote": `"<&>`, "empty": ""} {
		if resp, body := harness.Do(t, "PUT", s.URL("/v1.0/metadata/"+key), []byte(value)); resp.StatusCode != 204 {
			t.Errorf("PUT %s: %d %s", key, resp.StatusCode, body)
		}
	}
	_, body = harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil)
	for _, part := range []string{`"plain":"value"`, `"a b":"with space"`} {
		if !bytes.Contains(body, []byte(part)) {
			t.Errorf("metadata lacks %s:\n%s", part, body)
		}
	}
	resp, body = harness.Do(t, "PUT", s.URL("/v1.0/metadata/big"), make([]byte, 5<<20))
	wantError(t, resp, body, 400, "ERR_BODY_READ")
}

// runToEnd runs the binary until it ends by itself.
func runToEnd(t *testing.T, limit time.Duration, name string, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(append(os.Environ(), "MECHA_RUNTIME_DIR="+t.TempDir(), "HOME="+t.TempDir()), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%v still ran after %v\n%s%s", args, limit, out.String(), errs.String())
	}
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// TestRefusedStarts: command lines and files that cannot work end at once, and say why.
func TestRefusedStarts(t *testing.T) {
	t.Parallel()
	bin := harness.Binary(t)
	ports := func() []string {
		return []string{"--dapr-http-port=0", "--dapr-grpc-port=0", "--metrics-port=0", "--dapr-internal-grpc-port=0"}
	}
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mkdir := func(name, text string) string {
		sub := filepath.Join(dir, name)
		if err := os.MkdirAll(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, "a.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return sub
	}
	for _, tt := range []struct {
		name  string
		args  []string
		code  int
		texts []string
	}{
		{"no app id", nil, 1, []string{"parameter app-id cannot be empty"}},
		{"app id with dots", []string{"--app-id=a.b"}, 1, []string{"parameter app-id cannot contain dots"}},
		{"unknown flag", []string{"--app-id=a", "--nonsense"}, 2, []string{"nonsense"}},
		{"misspelt flag", []string{"--app-id=a", "--app-prot=1"}, 2, []string{"app-prot"}},
		{"bad value", []string{"--app-id=a", "--app-port=x"}, 2, []string{"app-port"}},
		{"probe interval with unit", []string{"--app-id=a", "--app-health-probe-interval=5s"}, 2, []string{"app-health-probe-interval"}},
		{"log level", append(ports(), "--app-id=a", "--log-level=loud"), 1, []string{"invalid value for --log-level: loud"}},
		{"app protocol", append(ports(), "--app-id=a", "--app-port=5", "--app-protocol=smtp"), 1, []string{"smtp"}},
		{"HTTP port is the app's", []string{"--app-id=a", "--app-port=7000", "--dapr-http-port=7000"}, 1, []string{"the 'dapr-http-port' argument value 7000 conflicts with 'app-port'"}},
		{"gRPC port is the app's", []string{"--app-id=a", "--app-port=7000", "--dapr-grpc-port=7000"}, 1, []string{"the 'dapr-grpc-port' argument value 7000 conflicts with 'app-port'"}},
		{"resources path missing", append(ports(), "--app-id=a", "--resources-path="+filepath.Join(dir, "nowhere")), 1, []string{"nowhere"}},
		{"configuration missing", append(ports(), "--app-id=a", "--config="+filepath.Join(dir, "none.yaml")), 1, []string{"error loading configuration", "none.yaml"}},
		{"component of unknown type", append(ports(), "--app-id=a", "--resources-path="+mkdir("type", "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: store}\nspec: {type: state.nosuch, version: v1}\n")), 1,
			[]string{"store", "state.nosuch", "Fatal error from runtime"}},
		{"access control", append(ports(), "--app-id=a", "--config="+file("acl.yaml", "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec: {accessControl: {defaultAction: refuse}}\n")), 1, []string{"acl.yaml:4", "accessControl.defaultAction"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			code, out, errs := runToEnd(t, 8*time.Second, bin, nil, append([]string{"sidecar"}, tt.args...)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, text := range tt.texts {
				if !strings.Contains(out+errs, text) {
					t.Errorf("it does not say %q:\n%s%s", text, out, errs)
				}
			}
		})
	}
}

// TestTolerated: slips that Dapr lives with are told and passed over.
func TestTolerated(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	for _, tt := range []struct{ name, text, want string }{
		{"unknown metadata key", "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: store}\nspec:\n  type: state.in-memory\n  version: v1\n  metadata: [{name: keyPrefx, value: none}]\n", "keyPrefx"},
		{"unknown kind", "apiVersion: dapr.io/v1alpha1\nkind: Componet\nmetadata: {name: store}\n", "Componet"},
		{"component that may fail", "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: store}\nspec: {type: state.nosuch, version: v1, ignoreErrors: true}\n", "Ignoring error processing component"},
	} {
		s := mesh.Start(harness.Options{AppID: "me", Files: map[string]string{"a.yaml": tt.text}})
		if !strings.Contains(s.Log(), tt.want) {
			t.Errorf("%s: the log does not mention %s:\n%s", tt.name, tt.want, s.Log())
		}
		s.Kill()
	}
}

// TestPortsInUse: a port that is taken is tried for ten seconds, since its holder may be on
// its way out; then the sidecar gives up and says which.
func TestPortsInUse(t *testing.T) {
	t.Parallel()
	t.Run("becomes free", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(1500*time.Millisecond, func() { l.Close() })
		mesh := harness.NewMesh(t)
		s := mesh.Start(harness.Options{AppID: "me", Args: []string{"--dapr-grpc-port", fmt.Sprint(l.Addr().(*net.TCPAddr).Port)}})
		if resp, _ := harness.Do(t, "GET", s.URL("/v1.0/healthz"), nil); resp.StatusCode != 204 {
			t.Errorf("healthz says %d", resp.StatusCode)
		}
	})
	t.Run("told to end while waiting", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		mesh := harness.NewMesh(t)
		s := mesh.Start(harness.Options{AppID: "me", NoWait: true, Args: []string{"--dapr-http-port", fmt.Sprint(l.Addr().(*net.TCPAddr).Port)}})
		s.WaitLog("gRPC server listening on TCP address")
		time.Sleep(200 * time.Millisecond)
		s.Signal(syscall.SIGTERM)
		if code := s.Wait(3 * time.Second); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
	})
	for name, text := range map[string]string{"dapr-grpc-port": "failed to start API gRPC server: could not listen on any endpoint", "dapr-http-port": "failed to start API HTTP server: could not listen on any endpoint"} {
		t.Run(name+" stays taken", func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if six, err := net.Listen("tcp", fmt.Sprintf("[::1]:%d", l.Addr().(*net.TCPAddr).Port)); err == nil {
				defer six.Close() // the wait is for all addresses together
			}
			mesh := harness.NewMesh(t)
			start := time.Now()
			s := mesh.Start(harness.Options{AppID: "me", NoWait: true, Args: []string{"--" + name, fmt.Sprint(l.Addr().(*net.TCPAddr).Port)}})
			if code := s.Wait(20 * time.Second); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			if took := time.Since(start); took < 9*time.Second || took > 16*time.Second {
				t.Errorf("it gave up after %v, want about 10 s", took)
			}
			for _, want := range []string{text, "is in use; waiting up to 10s", "choose another with --" + name, "address already in use", fmt.Sprint(l.Addr().(*net.TCPAddr).Port), "level=fatal"} {
				if !strings.Contains(s.Log(), want) {
					t.Errorf("the log lacks %q:\n%s", want, s.Log())
				}
			}
		})
	}
	t.Run("metrics", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		mesh := harness.NewMesh(t)
		s := mesh.Start(harness.Options{AppID: "me", NoWait: true, Args: []string{"--metrics-listen-address=127.0.0.1", "--metrics-port", fmt.Sprint(l.Addr().(*net.TCPAddr).Port)}})
		if code := s.Wait(20 * time.Second); code != 1 || !strings.Contains(s.Log(), "address already in use") || !strings.Contains(s.Log(), "failed to listen on") {
			t.Errorf("exit code %d, want 1:\n%s", code, s.Log())
		}
	})
}

// TestDaprdName: under the name daprd, and with single dashes, it is a sidecar.
func TestDaprdName(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "daprd")
	if err := os.Symlink(harness.Binary(t), link); err != nil {
		t.Fatal(err)
	}
	code, _, errs := runToEnd(t, 5*time.Second, link, nil, "-app-id", "a", "-nonsense")
	if code != 2 || !strings.Contains(errs, "daprd") {
		t.Errorf("exit code %d, want 2, naming daprd:\n%s", code, errs)
	}
	code, out, _ := runToEnd(t, 5*time.Second, link, nil, "--version")
	if code != 0 || len(strings.Fields(out)) != 1 {
		t.Errorf("--version: %d %q", code, out)
	}
	http, grpc, metrics := harness.FreePort(t), harness.FreePort(t), harness.FreePort(t)
	cmd := exec.Command(link, "-app-id", "me", "-dapr-http-port", fmt.Sprint(http), "-dapr-grpc-port", fmt.Sprint(grpc), "-metrics-port", fmt.Sprint(metrics))
	cmd.Env = append(os.Environ(), "MECHA_RUNTIME_DIR="+t.TempDir(), "HOME="+t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	code, out, errs = runToEnd(t, 20*time.Second, link, nil, "--wait", "--dapr-http-port", fmt.Sprint(http), "--app-id", "x")
	if code != 0 || !strings.Contains(out, "Dapr is outbound ready!") {
		t.Errorf("--wait: %d %s%s", code, out, errs)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("daprd ended with %v", err)
	}
}

// TestShutdownOverGRPC: the gRPC API can end the sidecar as the HTTP API can.
func TestShutdownOverGRPC(t *testing.T) {
	t.Parallel()
	for _, force := range []bool{false, true} {
		mesh := harness.NewMesh(t)
		s := mesh.Start(harness.Options{AppID: "me"})
		ctx, want := callContext(t), 0
		if force {
			ctx, want = callContext(t, "dapr-force-shutdown", "true"), 1
		}
		if _, err := dapr(t, s.Target()).Shutdown(ctx, &runtimev1.ShutdownRequest{}); err != nil {
			t.Errorf("force=%v: %v", force, err)
		}
		if code := s.Wait(4 * time.Second); code != want {
			t.Errorf("force=%v: exit code %d, want %d", force, code, want)
		}
	}
}

// TestBlockShutdownEndsWithApp: the block duration is over when the app turns unhealthy.
func TestBlockShutdownEndsWithApp(t *testing.T) {
	t.Parallel()
	var ill atomic.Bool
	mesh := harness.NewMesh(t)
	s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ill.Load() {
			w.WriteHeader(500)
		}
	})), Args: []string{"--dapr-block-shutdown-duration=30s", "--enable-app-health-check", "--app-health-probe-interval=1", "--app-health-threshold=1"}})
	s.WaitLog("App entered healthy status")
	s.Signal(syscall.SIGTERM)
	s.WaitLog("Blocking graceful shutdown")
	time.Sleep(200 * time.Millisecond)
	ill.Store(true)
	if code := s.Wait(6 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// TestOutboundBeforeApp: an app may use its sidecar while it is still starting itself.
func TestOutboundBeforeApp(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	mesh.Start(harness.Options{AppID: "other", AppPort: harness.Serve(t, http.HandlerFunc(echo))})
	s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.FreePort(t), NoWait: true})
	s.WaitOutbound()
	if resp, body := harness.Do(t, "GET", invokeURL(s, "other", "x"), nil); resp.StatusCode != 200 {
		t.Errorf("a call to another app got %d %s", resp.StatusCode, body)
	}
	s.Signal(syscall.SIGTERM)
	if code := s.Wait(6 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0, though the app never came", code)
	}
}
