package mesh

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"

	"github.com/mecha-project/mecha/test/harness"
)

// line is one log line.
type line struct{ level, scope, msg, rest string }

func (l line) String() string { return l.level + " " + l.scope + ": " + l.msg + " " + l.rest }

// textLine is Dapr's text format: time, level, message, then fields in order of their names.
var textLine = regexp.MustCompile(`^time="([^"]+)" level=(\w+) msg=("(?:[^"\\]|\\.)*"|\S+) (.*)$`)

// lines parses a sidecar's log; every line must have the format.
func lines(t *testing.T, s *harness.Sidecar) []line {
	t.Helper()
	var out []line
	host, _ := os.Hostname()
	for text := range strings.Lines(s.Log()) {
		text = strings.TrimSuffix(text, "\n")
		m := textLine.FindStringSubmatch(text)
		if m == nil {
			t.Errorf("log line %q is not of the form", text)
			continue
		}
		if _, err := time.Parse(time.RFC3339Nano, m[1]); err != nil {
			t.Errorf("log line %q: %v", text, err)
		}
		fields := " " + m[4] + " "
		for _, want := range []string{" app_id=" + s.AppID + " ", " instance=" + host + " ", " type=log ", " ver="} {
			if !strings.Contains(fields, want) {
				t.Errorf("log line %q lacks%s", text, want)
			}
		}
		_, scope, _ := strings.Cut(fields, " scope=")
		scope, _, _ = strings.Cut(scope, " ")
		out = append(out, line{level: m[2], scope: scope, msg: unquoted(m[3]), rest: m[4]})
	}
	return out
}

func unquoted(s string) string {
	var out string
	if json.Unmarshal([]byte(s), &out) == nil {
		return out
	}
	return s
}

// inOrder checks that lines come in this order, others between them allowed. Entries are
// "level scope: message" with a regular expression for the message.
func inOrder(t *testing.T, got []line, want ...string) {
	t.Helper()
	at := 0
	for _, w := range want {
		head, msg, _ := strings.Cut(w, ": ")
		level, scope, _ := strings.Cut(head, " ")
		form := regexp.MustCompile("^(?:" + msg + ")$")
		found := false
		for i := at; i < len(got) && !found; i++ {
			if l := got[i]; l.level == level && l.scope == scope && form.MatchString(l.msg) {
				at, found = i+1, true
			}
		}
		if !found {
			var b strings.Builder
			for _, l := range got {
				fmt.Fprintln(&b, l)
			}
			t.Errorf("no line %q after the one before it; the log is\n%s", w, &b)
			return
		}
	}
}

func TestLogWithoutApp(t *testing.T) {
	s := harness.NewMesh(t).Start(harness.Options{AppID: "plain"})
	s.WaitLog("dapr initialized")
	stop(s)
	log := lines(t, s)
	inOrder(t, log,
		`info dapr.runtime: Starting Dapr Runtime -- version \S+ -- commit \S+`,
		`info dapr.runtime: Log level set to: info`,
		fmt.Sprintf(`info dapr.runtime: metrics server started on \S+:%d/`, s.Metrics),
		`info dapr.runtime: standalone mode configured`,
		`info dapr.runtime: app id: plain`,
		fmt.Sprintf(`info dapr.runtime.grpc.api: gRPC server listening on TCP address: 127.0.0.1:%d`, s.GRPC),
		fmt.Sprintf(`info dapr.runtime.http: HTTP server listening on TCP address: 127.0.0.1:%d`, s.HTTP),
		`info dapr.runtime: Initialized name resolution to \S+`,
		`warning dapr.runtime.channels: App channel is not initialized. Did you configure an app-port\?`,
		fmt.Sprintf(`info dapr.runtime: HTTP server is running on port %d`, s.HTTP),
		fmt.Sprintf(`info dapr.runtime: API gRPC server is running on port %d`, s.GRPC),
		fmt.Sprintf(`info dapr.runtime: Internal gRPC server is running on \S*:%d`, s.Peer),
		`info dapr.runtime: Loading components…`,
		`info dapr.runtime: Waiting for all outstanding components to be processed…`,
		`info dapr.runtime: All outstanding components processed`,
		`info dapr.runtime: Loading endpoints…`,
		`info dapr.runtime: All outstanding http endpoints processed`,
		`info dapr.runtime: dapr initialized. Status: Running. Init Elapsed \d+ms`,
		`info dapr.signals: Received signal 'terminated'; beginning shutdown`,
		`info dapr.runtime: Dapr is shutting down`,
		`info dapr.runtime: Dapr runtime stopped`,
		`info dapr.runtime: Daprd shutdown gracefully`)
	if !strings.HasPrefix(log[0].msg, "Starting Dapr Runtime") || log[len(log)-1].msg != "Daprd shutdown gracefully" {
		t.Errorf("the first line is %q and the last %q", log[0].msg, log[len(log)-1].msg)
	}
	for _, l := range log {
		if l.level != "info" && l.scope != "dapr.runtime.channels" {
			t.Errorf("a sidecar with nothing wrong logs %s", l)
		}
	}
}

func TestLogWithApp(t *testing.T) {
	app := webApp()
	port := harness.Serve(t, app)
	broken := strings.Replace(component("broken", "state.unknown"), "  version: v1\n", "  version: v1\n  ignoreErrors: true\n", 1)
	s := harness.NewMesh(t).Start(harness.Options{AppID: "web", AppPort: port, Args: []string{"--enable-app-health-check", "--app-health-check-path", "/health"}, Files: map[string]string{
		"p.yaml": component("pubsub", "pubsub.in-memory"), "x.yaml": broken,
		"e.yaml": "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: out}\nspec: {baseUrl: \"http://127.0.0.1:1\"}\n",
		"u.yaml": "apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata: {name: sub}\nspec: {pubsubname: pubsub, topic: declared, routes: {default: /d}}\n"}})
	s.WaitLog("app is subscribed to the following topics")
	harness.Do(t, "POST", s.URL("/v1.0/shutdown"), nil)
	if code := s.Wait(10 * time.Second); code != 0 {
		t.Errorf("ended with %d after a shutdown by API, want 0", code)
	}
	log := lines(t, s)
	inOrder(t, log,
		`info dapr.runtime: Loading Declarative Subscriptions…`,
		`info dapr.runtime: Found Subscription: sub`,
		`info dapr.runtime: Loading components…`,
		`info dapr.runtime.processor: Component loaded: pubsub \(pubsub.in-memory/v1\)`,
		`info dapr.runtime: All outstanding components processed`,
		`info dapr.runtime: Found http endpoint: out`,
		fmt.Sprintf(`info dapr.runtime: application protocol: http. waiting on port %d.  This will block until the app is listening on that port.`, port),
		fmt.Sprintf(`info dapr.runtime: application discovered on port %d`, port),
		`info dapr.runtime: dapr initialized. Status: Running. Init Elapsed \d+ms`,
		`info dapr.apphealth: App health probes starting`,
		`info dapr.apphealth: App entered healthy status`,
		`info dapr.runtime: Application configuration loaded`,
		`info dapr.runtime.processor.subscription: app is subscribed to the following topics: \[\[.*\]\] through pubsub=pubsub`,
		`info dapr.api: Shutdown requested via API`,
		`info dapr.runtime: Dapr is shutting down`,
		`info dapr.contrib: Shutting down component pubsub \(pubsub.in-memory/v1\)`,
		`info dapr.runtime: Dapr runtime stopped`,
		`info dapr.runtime: Daprd shutdown gracefully`)
	inOrder(t, log,
		`error dapr.runtime.processor: Failed to init component broken \(state.unknown/v1\): \[CREATE_COMPONENT_FAILURE\]: initialization error occurred for broken \(state.unknown/v1\): .+`,
		`error dapr.runtime.processor: Ignoring error processing component: process component broken error: .+`)
	inOrder(t, log, `info dapr.apphealth: App health probes stopping`)
	for _, l := range log {
		if strings.HasPrefix(l.msg, "app is subscribed") && (!strings.Contains(l.msg, "b") || !strings.Contains(l.msg, "declared") || !strings.Contains(l.msg, "t")) {
			t.Errorf("the line of subscriptions is %q; want the topics b, declared and t in it", l.msg)
		}
	}
}

// A component that cannot be loaded ends the sidecar, with the reason last.
func TestLogOfFatalComponent(t *testing.T) {
	s := harness.NewMesh(t).Start(harness.Options{AppID: "x", NoWait: true, Files: map[string]string{"x.yaml": component("broken", "state.unknown")}})
	if code := s.Wait(10 * time.Second); code != 1 {
		t.Errorf("ended with %d, want 1", code)
	}
	log := lines(t, s)
	inOrder(t, log, `error dapr.runtime.processor: Failed to init component broken \(state.unknown/v1\): .+`,
		`fatal dapr.runtime: Fatal error from runtime: process component broken error: .+`)
	if last := log[len(log)-1]; last.level != "fatal" {
		t.Errorf("the last line is %s, want the fatal one", last)
	}
}

// With --log-as-json the same fields come as JSON, one object per line.
func TestLogAsJSON(t *testing.T) {
	s := harness.NewMesh(t).Start(harness.Options{AppID: "js", Args: []string{"--log-as-json"}})
	s.WaitLog("dapr initialized")
	s.Signal(syscall.SIGINT)
	s.Wait(10 * time.Second)
	var last map[string]string
	for text := range strings.Lines(s.Log()) {
		var l map[string]string
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("log line %q: %v", text, err)
		}
		for _, field := range []string{"app_id", "instance", "level", "msg", "scope", "time", "type", "ver"} {
			if l[field] == "" {
				t.Errorf("log line %q lacks %s", text, field)
			}
		}
		if l["msg"] == "Received signal 'interrupt'; beginning shutdown" && l["scope"] != "dapr.signals" {
			t.Errorf("the signal's line has scope %s", l["scope"])
		}
		last = l
	}
	if last["msg"] != "Daprd shutdown gracefully" || !strings.Contains(s.Log(), "Received signal 'interrupt'; beginning shutdown") {
		t.Errorf("the last line is %v", last)
	}
}

// API logging: what a line says, who turns it on, and what it leaves out.
func TestAPILog(t *testing.T) {
	type want struct{ http, grpc, invoke, health string } // the method fields; empty: no line
	path := want{"GET /v1.0/state/store/k", "/dapr.proto.runtime.v1.Dapr/GetState", "GET /v1.0/invoke/nobody/method/m", "GET /v1.0/healthz"}
	enabled := configuration("  logging: {apiLogging: {enabled: true}}\n")
	for _, tt := range []struct {
		name, config string
		args         []string
		want         want
	}{
		{"off", "", nil, want{}},
		{"flag", "", []string{"--enable-api-logging"}, path},
		{"configuration", enabled, nil, path},
		{"flag wins", enabled, []string{"--enable-api-logging=false"}, want{}},
		{"obfuscated", configuration("  logging: {apiLogging: {enabled: true, obfuscateURLs: true}}\n"), nil, want{"GetState", path.grpc, "InvokeService/nobody", "Healthz"}},
		{"without health checks", configuration("  logging: {apiLogging: {enabled: true, omitHealthChecks: true}}\n"), nil, want{path.http, path.grpc, path.invoke, ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := harness.NewMesh(t).Start(harness.Options{AppID: "x", Config: tt.config, Args: tt.args, Files: map[string]string{"s.yaml": component("store", "state.in-memory")}})
			s.WaitOutbound()
			harness.Do(t, "GET", s.URL("/v1.0/state/store/k?metadata.secret=1"), nil, "User-Agent", "tester/1")
			harness.Do(t, "GET", s.URL("/v1.0/invoke/nobody/method/m"), nil)
			if _, err := runtimev1.NewDaprClient(dial(t, s.Target())).GetState(limited(t), &runtimev1.GetStateRequest{StoreName: "store", Key: "k"}); err != nil {
				t.Fatal(err)
			}
			stop(s)
			var web, rpc []line
			for _, l := range lines(t, s) {
				switch l.msg {
				case "HTTP API Called":
					web = append(web, l)
				case "gRPC API Called":
					rpc = append(rpc, l)
				}
			}
			checkCall(t, web, "dapr.runtime.http-info", tt.want.http, `code=204 `, `duration=\d+ `, `size=0 `, `useragent="?tester/1"? `)
			checkCall(t, web, "dapr.runtime.http-info", tt.want.invoke, `code=500 `, `size=[1-9]\d* `)
			checkCall(t, web, "dapr.runtime.http-info", tt.want.health, `code=(?:204|500) `) // 500 until the sidecar is ready
			checkCall(t, rpc, "dapr.runtime.grpc.api-info", tt.want.grpc, `code=0 `, `duration=\d+ `)
			if tt.want.health == "" {
				for _, l := range web {
					if strings.Contains(l.rest, "ealth") {
						t.Errorf("a health check is logged: %s", l)
					}
				}
			}
			if tt.want == (want{}) && len(web)+len(rpc) > 0 {
				t.Errorf("there are lines although API logging is off: %v %v", web, rpc)
			}
			if strings.Contains(s.Log(), "metadata.secret") {
				t.Error("the query is logged")
			}
		})
	}
}

// checkCall wants one line or more with a method and these fields.
func checkCall(t *testing.T, got []line, scope, method string, fields ...string) {
	t.Helper()
	if method == "" {
		return
	}
	form := regexp.MustCompile(`(?:^| )method="?(?:` + method + `)"? `)
	for _, l := range got {
		rest := l.rest + " "
		if !form.MatchString(rest) {
			continue
		}
		for _, f := range fields {
			if !regexp.MustCompile(`(?:^| )` + f).MatchString(rest) {
				t.Errorf("line %s has no field %s", l, f)
			}
		}
		if l.scope != scope || l.level != "info" {
			t.Errorf("line %s has another scope or level than info %s", l, scope)
		}
		return
	}
	t.Errorf("no line of %s with method %s; there are %v", scope, method, got)
}
