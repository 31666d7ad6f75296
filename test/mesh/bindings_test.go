package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dapr/go-sdk/client"
	"github.com/dapr/go-sdk/service/common"
	daprd "github.com/dapr/go-sdk/service/grpc"

	"github.com/mecha-project/mecha/test/harness"
)

// An app calls output bindings over HTTP and through the official client: an HTTP server with its
// metadata and failures, files that stay in their folder.
func TestOutputBindings(t *testing.T) {
	root := t.TempDir()
	var box inbox
	box.more = func(path string, _ seen, w http.ResponseWriter) {
		w.Header().Set("X-Answer", "a")
		if path == "/base/missing" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, "answer")
	}
	port := harness.Serve(t, &box)
	s := harness.NewMesh(t).Start(harness.Options{AppID: "shop", Files: map[string]string{
		"h.yaml": component("web", "bindings.http", "url", fmt.Sprintf("http://127.0.0.1:%d/base", port), "securityTokenHeader", "X-Token", "securityToken", "s3cret"),
		"f.yaml": component("files", "bindings.localstorage", "rootPath", root),
		"c.yaml": component("tick", "bindings.cron", "schedule", "@daily")}})
	s.WaitLog("successful init for output binding (web (bindings.http/v1))")
	s.WaitLog("successful init for input binding (tick (bindings.cron/v1))")

	for _, q := range []struct {
		path, body string
		status     int
		want       string
		header     string // a response header, "name: value"
	}{
		{"web", `{"operation":"create","data":{"b": 1},"metadata":{"path":"orders?x=1","X-Own":"2"}}`, 200, "answer", "metadata.statusCode: 200"},
		{"web", `{"operation":"get","metadata":{"path":"/missing"}}`, 500, `"message":"error invoking output binding web: received status code 404"`, "metadata.X-Answer: a"},
		{"web", `{"operation":"get","metadata":{"path":"/missing","errorIfNot2XX":"false"}}`, 200, "answer", "metadata.status: 404 Not Found"},
		{"files", `{"operation":"create","data":"te xt!","metadata":{"fileName":"a/b.txt"}}`, 200, `{"fileName":"a/b.txt"}`, ""},
		{"files?metadata.fileName=../a/b.txt", `{"operation":"get"}`, 200, "te xt!", "Content-Type: application/json"},
		{"files", `{"operation":"get","metadata":{"fileName":"../../etc/passwd"}}`, 500, "file not found: etc/passwd", ""},
		{"files", `{"operation":"delete","metadata":{"fileName":"a/b.txt"}}`, 204, "", ""},
		{"files", `{"operation":"delete","metadata":{"fileName":"a/b.txt"}}`, 500, `"errorCode":"ERR_INVOKE_OUTPUT_BINDING"`, ""},
		{"files", `{"operation":"exec"}`, 500, "error invoking output binding files: binding files does not support operation exec. supported operations:create get list delete", ""},
		{"files", `{"data":1}`, 500, "operation field is missing from request", ""},
		{"nothing", `{"operation":"get"}`, 500, "error invoking output binding nothing: couldn't find output binding nothing", ""},
		{"tick", `{"operation":"get"}`, 500, "couldn't find output binding tick", ""},
		{"web", `{"operation":`, 400, "ERR_MALFORMED_REQUEST", ""},
	} {
		resp, body := harness.Do(t, "POST", s.URL("/v1.0/bindings/"+q.path), []byte(q.body))
		name, value, _ := strings.Cut(q.header, ": ")
		if resp.StatusCode != q.status || !strings.Contains(string(body), q.want) || q.header != "" && resp.Header.Get(name) != value {
			t.Errorf("%s %s: %d %s %v, want %d %s %s", q.path, q.body, resp.StatusCode, body, resp.Header, q.status, q.want, q.header)
		}
	}
	got := box.last(t, "/base/orders")
	if got.Body != `{"b":1}` || got.Header.Get("X-Own") != "2" || got.Header.Get("X-Token") != "s3cret" || got.Header.Get("Content-Type") != "application/json; charset=utf-8" {
		t.Errorf("the server got %s %v", got.Body, got.Header)
	}

	c := sdk(t, s)
	out, err := c.InvokeBinding(t.Context(), &client.InvokeBindingRequest{Name: "web", Operation: "put", Data: []byte("\x00raw"), Metadata: map[string]string{"path": "raw"}})
	if err != nil || string(out.Data) != "answer" || out.Metadata["statusCode"] != "200" || out.Metadata["X-Answer"] != "a" {
		t.Fatalf("InvokeBinding: %+v, %v", out, err)
	}
	if got := box.last(t, "/base/raw"); got.Body != "\x00raw" {
		t.Errorf("the server got %q", got.Body)
	}
	if err := c.InvokeOutputBinding(t.Context(), &client.InvokeBindingRequest{Name: "files", Operation: "create", Data: []byte("from the client!"), Metadata: map[string]string{"fileName": "c"}}); err != nil {
		t.Errorf("InvokeOutputBinding: %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(root, "c")); string(text) != "from the client!" || err != nil {
		t.Errorf("the file holds %q, %v", text, err)
	}
	if _, err := c.InvokeBinding(t.Context(), &client.InvokeBindingRequest{Name: "files", Operation: "get", Metadata: map[string]string{"fileName": "none"}}); err == nil || !strings.Contains(err.Error(), "error invoking output binding files: file not found: none") {
		t.Errorf("a missing file: %v", err)
	}

	_, body := harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil)
	var md struct {
		Components []struct {
			Name         string
			Capabilities []string
		}
	}
	if err := json.Unmarshal(body, &md); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"web": "OUTPUT_BINDING", "files": "OUTPUT_BINDING", "tick": "INPUT_BINDING"} {
		i := slices.IndexFunc(md.Components, func(c struct {
			Name         string
			Capabilities []string
		}) bool {
			return c.Name == name
		})
		if i < 0 || !slices.Equal(md.Components[i].Capabilities, []string{want}) {
			t.Errorf("metadata of %s: %s", name, body)
		}
	}
	wantMetric(t, s, "dapr_component_output_binding_count{", `component="web"`, `operation="get"`, `success="false"`)
	wantMetric(t, s, "dapr_component_output_binding_count{", `component="files"`, `operation="create"`, `success="true"`)
}

// wantMetric looks for a series.
func wantMetric(t *testing.T, s *harness.Sidecar, name string, labels ...string) {
	t.Helper()
	_, body := harness.Do(t, "GET", fmt.Sprintf("http://127.0.0.1:%d/metrics", s.Metrics), nil)
	if !slices.ContainsFunc(strings.Split(string(body), "\n"), func(l string) bool {
		return strings.HasPrefix(l, name) && !slices.ContainsFunc(labels, func(label string) bool { return !strings.Contains(l, label) })
	}) {
		t.Errorf("no series %s with %q", name, labels)
	}
}

// counted is an HTTP app whose answers the test sets.
type counted struct {
	mu     sync.Mutex
	got    map[string]int         // by "METHOD path"
	answer func(what string) int  // by the same
	head   map[string]http.Header // of the last
}

func (c *counted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what := r.Method + " " + r.URL.Path
	c.mu.Lock()
	c.got[what]++
	c.head[what] = r.Header
	status := c.answer(what)
	c.mu.Unlock()
	w.WriteHeader(status)
}

func (c *counted) count(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got[what]
}

// Schedules reach an HTTP app that wants them, under the inbound policy of the component, and stop
// while the app is unhealthy.
func TestInputBindings(t *testing.T) {
	healthy, answers := true, 200
	app := &counted{got: map[string]int{}, head: map[string]http.Header{}}
	app.answer = func(what string) int {
		switch {
		case what == "GET /healthz" && !healthy:
			return 503
		case what == "OPTIONS /unwanted":
			return 404
		case what == "OPTIONS /odd":
			return 405
		case what == "POST /failing":
			return 500
		case what == "POST /every/second":
			return answers
		}
		return 200
	}
	set := func(f func()) { app.mu.Lock(); defer app.mu.Unlock(); f() }
	s := harness.NewMesh(t).Start(harness.Options{AppID: "shop", AppPort: harness.Serve(t, app),
		Args: []string{"--enable-app-health-check", "--app-health-probe-interval", "1", "--app-health-probe-timeout", "900", "--app-health-threshold", "1"},
		Files: map[string]string{
			"1.yaml": component("tick", "bindings.cron", "schedule", "@every 1s", "route", "/every/second"),
			"2.yaml": component("unwanted", "bindings.cron", "schedule", "@every 1s"),
			"3.yaml": component("odd", "bindings.cron", "schedule", "* * * * * *"),
			"4.yaml": component("closed", "bindings.cron", "schedule", "@every 1s", "direction", "output"),
			"5.yaml": component("told", "bindings.cron", "schedule", "@every 1s", "direction", "input"),
			"6.yaml": component("failing", "bindings.cron", "schedule", "@every 1s"),
			"r.yaml": resiliency("res", "{retries: {r: {policy: constant, duration: 10ms, maxRetries: 2}}}", "{components: {failing: {inbound: {retry: r}}}}")}})
	for _, what := range []string{"POST /every/second", "POST /odd", "POST /told"} {
		eventually(t, 20*time.Second, what, func() bool { return app.count(what) > 1 })
	}
	s.WaitLog("app has not subscribed to binding unwanted.")
	eventually(t, 20*time.Second, "an event is repeated", func() bool { return app.count("POST /failing") >= 3 })
	for what, want := range map[string]int{"OPTIONS /unwanted": 1, "POST /unwanted": 0, "OPTIONS /closed": 0, "POST /closed": 0, "OPTIONS /told": 0, "OPTIONS /odd": 1} {
		if n := app.count(what); n != want {
			t.Errorf("%s: %d times, want %d", what, n, want)
		}
	}
	var head http.Header
	set(func() { head = app.head["POST /every/second"] })
	if head.Get("Content-Type") != "application/json" || head.Get("timeZone") == "" || !strings.HasSuffix(head.Get("readTimeUTC"), " +0000 UTC") || head.Get("Content-Length") != "0" {
		t.Errorf("headers of an event: %v", head)
	}
	set(func() { answers = 204 })
	was := app.count("POST /every/second")
	eventually(t, 20*time.Second, "more events", func() bool { return app.count("POST /every/second") > was+1 })
	wantMetric(t, s, "dapr_component_input_binding_count{", `component="tick"`, `success="true"`)
	wantMetric(t, s, "dapr_component_input_binding_count{", `component="failing"`, `success="false"`)
	_, metrics := harness.Do(t, "GET", fmt.Sprintf("http://127.0.0.1:%d/metrics", s.Metrics), nil)
	if strings.Contains(string(metrics), `component="tick",namespace="",success="false"`) {
		t.Error("an event that was answered with 204 counts as failed")
	}

	set(func() { healthy = false })
	s.WaitLog("App entered un-healthy status")
	was = app.count("POST /every/second")
	time.Sleep(2500 * time.Millisecond)
	if n := app.count("POST /every/second"); n > was+1 { // one may have been on its way
		t.Errorf("%d events while the app was unhealthy", n-was)
	}
	set(func() { healthy = true })
	eventually(t, 20*time.Second, "events after recovery", func() bool { return app.count("POST /every/second") > was+1 })
	s.Signal(syscall.SIGTERM)
	if code := s.Wait(10 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// The official SDK as a gRPC app: it lists its bindings, and what it answers is passed on.
func TestInputBindingsForTheSDK(t *testing.T) {
	root := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan *common.BindingEvent, 100)
	app := daprd.NewServiceWithListener(l)
	if err := app.AddBindingInvocationHandler("tick", func(_ context.Context, in *common.BindingEvent) ([]byte, error) {
		select {
		case events <- in:
		default:
		}
		return []byte("fine"), nil
	}); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- app.Start() }()
	t.Cleanup(func() { _ = app.GracefulStop(); <-served })
	s := harness.NewMesh(t).Start(harness.Options{AppID: "shop", AppPort: l.Addr().(*net.TCPAddr).Port, Protocol: "grpc", Files: map[string]string{
		"1.yaml": component("tick", "bindings.cron", "schedule", "@every 1s"),
		"2.yaml": component("unwanted", "bindings.cron", "schedule", "@every 1s"),
		"f.yaml": component("files", "bindings.localstorage", "rootPath", root)}})
	s.WaitLog("app has not subscribed to binding unwanted.")
	for range 2 {
		select {
		case e := <-events:
			if len(e.Data) != 0 || e.Metadata["timeZone"] == "" || e.Metadata["readTimeUTC"] == "" {
				t.Errorf("event %+v", e)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("no event")
		}
	}
	wantMetric(t, s, "dapr_component_input_binding_count{", `component="tick"`, `success="true"`)
}

// A binding whose file changes is read anew, and one whose file goes is not read any more.
func TestInputBindingsReload(t *testing.T) {
	app := &counted{got: map[string]int{}, head: map[string]http.Header{}, answer: func(string) int { return 200 }}
	s := harness.NewMesh(t).Start(harness.Options{AppID: "shop", AppPort: harness.Serve(t, app), Files: map[string]string{
		"1.yaml": component("tick", "bindings.cron", "schedule", "@every 1s")}})
	eventually(t, 20*time.Second, "an event", func() bool { return app.count("POST /tick") > 0 })
	path := filepath.Join(s.Dir, "1.yaml")
	if err := os.WriteFile(path, []byte(component("tick", "bindings.cron", "schedule", "* * * * * *", "route", "other")), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "an event at the new route", func() bool { return app.count("POST /other") > 0 })
	was := app.count("POST /tick")
	eventually(t, 20*time.Second, "more events", func() bool { return app.count("POST /other") > 2 })
	if n := app.count("POST /tick"); n > was {
		t.Errorf("%d events at the old route", n-was)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.WaitLog("Component removed: tick (bindings.cron/v1)")
	was = app.count("POST /other")
	time.Sleep(2500 * time.Millisecond)
	if n := app.count("POST /other"); n > was+1 { // one may have been on its way
		t.Errorf("%d events of a binding that was removed", n-was)
	}
}
