package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"

	"github.com/mecha-project/mecha/test/harness"
)

// TestBodyLimit: --max-body-size bounds requests, and only them.
func TestBodyLimit(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	app := harness.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			w.Header().Set("Content-Type", "a/b")
			io.Copy(w, zeros(9<<20))
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d %v", n, err)
	}))
	files := map[string]string{"c.yaml": "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: store}\nspec: {type: state.in-memory, version: v1}\n---\napiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: ps}\nspec: {type: pubsub.in-memory, version: v1}\n"}
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: app, Files: files})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	small := mesh.Start(harness.Options{AppID: "small", Args: []string{"--max-body-size=1Ki"}})
	wide := mesh.Start(harness.Options{AppID: "wide", Args: []string{"--max-body-size=-1"}})
	const limit = 4 << 20
	for _, tt := range []struct {
		name string
		via  *harness.Sidecar
		n    int64
		ok   bool
	}{
		{"at the limit", caller, limit, true},
		{"over the limit", caller, limit + 1, false},
		{"own app, at the limit", callee, limit, true},
		{"own app, over the limit", callee, limit + 1, false},
		{"small, at the limit", small, 1024, true},
		{"small, over the limit", small, 1025, false},
		{"no limit here", wide, 3 * limit, true},
	} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/chunked=%v", tt.name, chunked), func(t *testing.T) {
				var body io.Reader = bytes.NewReader(make([]byte, tt.n))
				if chunked {
					body = io.MultiReader(body)
				}
				resp, err := (&http.Client{Timeout: 10 * time.Second}).Post(invokeURL(tt.via, "callee", "x"), "a/b", body)
				if err != nil {
					if tt.ok || !isReset(err) { // the refusal may overtake the body
						t.Fatal(err)
					}
					return
				}
				defer resp.Body.Close()
				got, _ := io.ReadAll(resp.Body)
				if tt.ok {
					if string(got) != fmt.Sprintf("%d <nil>", tt.n) {
						t.Errorf("the app says %s", got)
					}
					return
				}
				wantError(t, resp, got, 500, "ERR_DIRECT_INVOKE", "stream too large")
			})
		}
	}
	t.Run("answers have no limit", func(t *testing.T) {
		for _, s := range []*harness.Sidecar{caller, callee, small} {
			if _, body := harness.Do(t, "GET", invokeURL(s, "callee", "large"), nil); len(body) != 9<<20 {
				t.Errorf("%s: got %d bytes", s.AppID, len(body))
			}
		}
	})
	t.Run("other APIs", func(t *testing.T) {
		big := make([]byte, limit+1)
		resp, body := harness.Do(t, "PUT", callee.URL("/v1.0/metadata/k"), big)
		wantError(t, resp, body, 400, "ERR_BODY_READ", "too large")
		resp, body = harness.Do(t, "POST", callee.URL("/v1.0/state/store"), big)
		wantError(t, resp, body, 400, "ERR_MALFORMED_REQUEST", "too large")
		resp, body = harness.Do(t, "POST", callee.URL("/v1.0/publish/ps/topic"), big)
		wantError(t, resp, body, 500, "ERR_PUBSUB_PUBLISH_MESSAGE", "too large")
	})
	t.Run("gRPC", func(t *testing.T) {
		c := dapr(t, caller.Target())
		if _, err := c.InvokeService(callContext(t), invokeRequest("callee", "x", commonv1.HTTPExtension_POST, strings.Repeat("x", limit+1))); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a large request: %v, want ResourceExhausted", err)
		}
		if _, err := c.InvokeService(callContext(t), invokeRequest("callee", "large", commonv1.HTTPExtension_GET, "")); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a large answer: %v, want ResourceExhausted", err)
		}
	})
}

func isReset(err error) bool {
	text := err.Error()
	return strings.Contains(text, "reset") || strings.Contains(text, "broken pipe")
}

// TestHeadLimit: heads of ordinary size pass, huge ones are refused with 431.
func TestHeadLimit(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/answer" {
			w.Header().Set("X-Big", strings.Repeat("h", 7000))
		}
		fmt.Fprint(w, len(r.Header.Get("X-Big")))
	}))
	for _, way := range bothWays(callee, caller) {
		resp, body := raw(t, way.via.HTTP, "GET", get("GET", "/v1.0/invoke/callee/method/x", "X-Big", strings.Repeat("h", 5000)))
		if resp.StatusCode != 200 || body != "5000" {
			t.Errorf("%s: a header of 5000 bytes got %d %q", way.name, resp.StatusCode, body)
		}
		resp, body = raw(t, way.via.HTTP, "GET", get("GET", "/v1.0/invoke/callee/method/x", "X-Big", strings.Repeat("h", 9500)))
		if resp.StatusCode != 431 || !resp.Close {
			t.Errorf("%s: a header of 9500 bytes got %d %q, close=%v", way.name, resp.StatusCode, body, resp.Close)
		}
		if resp, _ := raw(t, way.via.HTTP, "GET", get("GET", "/v1.0/invoke/callee/method/answer")); resp.StatusCode != 200 || len(resp.Header.Get("X-Big")) != 7000 {
			t.Errorf("%s: an answer with a header of 7000 bytes got %d", way.name, resp.StatusCode)
		}
	}
}

// TestMalformed: requests no two parsers would read alike are refused, and cost only their
// own connection.
func TestMalformed(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, http.HandlerFunc(echo))})
	const head = "POST /v1.0/invoke/me/method/x HTTP/1.1\r\nHost: s\r\n"
	for name, request := range map[string]string{
		"two lengths":            head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"length and chunked":     head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"unknown coding":         head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"space before the colon": head + "X-A : b\r\n\r\n",
		"folded line":            head + "X-A: b\r\n c\r\n\r\n",
		"bare line feed":         "GET /v1.0/healthz HTTP/1.1\nHost: s\n\n",
		"no host":                "GET /v1.0/healthz HTTP/1.1\r\n\r\n",
		"negative length":        head + "Content-Length: -1\r\n\r\n",
		"length with plus":       head + "Content-Length: +1\r\n\r\na",
		"control byte":           head + "X-A: b\x00c\r\n\r\n",
		"bad chunk size":         head + "Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
		"no HTTP at all":         "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and more of it\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := dialPort(t, s.HTTP)
			io.WriteString(conn, request)
			r := bufio.NewReader(conn)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				return // the connection was closed, which is an answer
			}
			io.Copy(io.Discard, resp.Body)
			if resp.StatusCode < 400 {
				t.Errorf("got %d", resp.StatusCode)
			}
			if _, err := r.ReadByte(); err == nil {
				t.Error("the connection lives on, with who knows what on it")
			}
		})
	}
	if resp, _ := harness.Do(t, "GET", s.URL("/v1.0/healthz"), nil); resp.StatusCode != 204 {
		t.Errorf("afterwards healthz says %d", resp.StatusCode)
	}
}

// TestIdleConnections: ten thousand callers that say nothing cost little, and the API answers
// others meanwhile.
func TestIdleConnections(t *testing.T) {
	n := 10_000
	if limit := openFiles(t); limit < n+500 {
		n = limit - 500
		t.Logf("only %d connections: the limit of open files is %d", n, limit)
	}
	mesh := harness.NewMesh(t)
	s := mesh.Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, http.HandlerFunc(echo))})
	before := memory(t, s, "VmRSS")
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	var d net.Dialer
	for range n {
		c, err := d.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", s.HTTP))
		if err != nil {
			t.Fatalf("connection %d: %v", len(conns), err)
		}
		conns = append(conns, c)
	}
	// Half of them have been used once, as clients' idle connections have.
	for i := 0; i < n; i += 2 {
		io.WriteString(conns[i], get("GET", "/v1.0/healthz"))
		conns[i].SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 512)
		if k, err := conns[i].Read(buf); err != nil || !bytes.HasPrefix(buf[:k], []byte("HTTP/1.1 204")) {
			t.Fatalf("connection %d: %q, %v", i, buf[:k], err)
		}
	}
	start := time.Now()
	if resp, _ := harness.Do(t, "GET", invokeURL(s, "me", "x"), nil); resp.StatusCode != 200 || time.Since(start) > time.Second {
		t.Errorf("a call got %d after %v", resp.StatusCode, time.Since(start))
	}
	each := (memory(t, s, "VmRSS") - before) / int64(n)
	t.Logf("%d idle connections take %d bytes each", n, each)
	if each > 12<<10 {
		t.Errorf("an idle connection takes %d bytes, want at most 12 KiB", each)
	}
}

// TestConcurrencyLimit: --app-max-concurrency holds for all calls together; the rest wait.
func TestConcurrencyLimit(t *testing.T) {
	t.Parallel()
	var now, peak atomic.Int32
	mesh := harness.NewMesh(t)
	app := harness.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/work" {
			return
		}
		n := now.Add(1)
		defer now.Add(-1)
		for {
			p := peak.Load()
			if n <= p || peak.CompareAndSwap(p, n) {
				break
			}
		}
		time.Sleep(30 * time.Millisecond)
		io.WriteString(w, "done")
	}))
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: app, Args: []string{"--app-max-concurrency=2"}})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	var all sync.WaitGroup
	for i := range 20 {
		via := []*harness.Sidecar{caller, callee}[i%2]
		all.Go(func() {
			if resp, body := harness.Do(t, "POST", invokeURL(via, "callee", "work"), nil); resp.StatusCode != 200 {
				t.Errorf("got %d %s", resp.StatusCode, body)
			}
		})
	}
	all.Wait()
	if p := peak.Load(); p != 2 {
		t.Errorf("up to %d calls were in the app at once, want 2", p)
	}
	// A caller that gives up while waiting does not leave its place taken.
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		fetch(ctx, "POST", invokeURL(caller, "callee", "work"), nil)
		cancel()
	}
	if resp, body := harness.Do(t, "POST", invokeURL(caller, "callee", "work"), nil); resp.StatusCode != 200 {
		t.Errorf("afterwards a call got %d %s", resp.StatusCode, body)
	}
	if _, body := harness.Do(t, "GET", callee.URL("/v1.0/metadata"), nil); !strings.Contains(string(body), `"maxConcurrency":2`) {
		t.Errorf("metadata: %s", body)
	}
}

// TestAppHealth: calls are refused while the app says it is ill, and go on when it recovers.
func TestAppHealth(t *testing.T) {
	t.Parallel()
	var ill atomic.Bool
	var probes atomic.Int32
	mesh := harness.NewMesh(t)
	app := harness.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/alive" {
			probes.Add(1)
			if ill.Load() {
				w.WriteHeader(500)
			}
			return
		}
		echo(w, r)
	}))
	ill.Store(true)
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: app, Args: []string{"--enable-app-health-check", "--app-health-check-path=/alive",
		"--app-health-probe-interval=1", "--app-health-probe-timeout=200", "--app-health-threshold=2"}})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	refused := func(s *harness.Sidecar) bool {
		resp, body := harness.Do(t, "GET", invokeURL(s, "callee", "x"), nil)
		if resp.StatusCode == 200 {
			return false
		}
		wantError(t, resp, body, 500, "ERR_DIRECT_INVOKE", "app is not in a healthy state")
		return true
	}
	for _, way := range bothWays(callee, caller) {
		if !refused(way.via) {
			t.Errorf("%s: a call passed before the first good probe", way.name)
		}
	}
	ill.Store(false)
	eventually(t, 4*time.Second, "the app is healthy", func() bool { return !refused(caller) })
	callee.WaitLog("App entered healthy status")
	ill.Store(true)
	since := probes.Load()
	eventually(t, 5*time.Second, "the app is unhealthy", func() bool { return refused(caller) })
	if n := probes.Load() - since; n < 2 {
		t.Errorf("%d failed probes made it unhealthy, want 2", n)
	}
	callee.WaitLog("App entered un-healthy status: Health check failed with status code: 500")
	if _, err := dapr(t, caller.Target()).InvokeService(callContext(t), invokeRequest("callee", "x", commonv1.HTTPExtension_GET, "")); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "app is not in a healthy state") {
		t.Errorf("gRPC: %v", err)
	}
	if resp, _ := harness.Do(t, "GET", callee.URL("/v1.0/healthz"), nil); resp.StatusCode != 204 {
		t.Errorf("the sidecar's own health is %d, want 204", resp.StatusCode)
	}
	ill.Store(false)
	eventually(t, 4*time.Second, "the app recovers", func() bool { return !refused(callee) })
	if _, body := harness.Do(t, "GET", callee.URL("/v1.0/metadata"), nil); !strings.Contains(string(body), `"health":{"healthCheckPath":"/alive","healthProbeInterval":"1s","healthProbeTimeout":"200ms","healthThreshold":2}`) {
		t.Errorf("metadata: %s", body)
	}
}
