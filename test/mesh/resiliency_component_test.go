package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mecha-project/mecha/test/harness"
)

// nodeProcess is the process of the embedded node in dir.
func nodeProcess(t *testing.T, dir string) *os.Process {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A state store that does not answer: attempts are cut off, made again and then refused, until
// it is back.
func TestResiliencyOfStores(t *testing.T) {
	dir := nodeDir(t)
	s := harness.NewMesh(t).Start(harness.Options{AppID: "web", Files: map[string]string{
		"s.yaml": component("store", "state.embedded", "dataDir", dir), "other.yaml": component("other", "state.in-memory"),
		"r.yaml": resiliency("res", "{timeouts: {t: 300ms}, retries: {r: {policy: constant, duration: 10ms, maxRetries: 1}}, circuitBreakers: {cb: {timeout: 500ms, trip: consecutiveFailures >= 4}}}",
			"{components: {store: {outbound: {timeout: t, retry: r, circuitBreaker: cb}}}}")}})
	save := func(store string) (*http.Response, []byte) {
		return harness.Do(t, "POST", s.URL("/v1.0/state/"+store), []byte(`[{"key": "k", "value": 1}]`), "Content-Type", "application/json")
	}
	eventually(t, 20*time.Second, "the store takes a value", func() bool { resp, _ := save("store"); return resp.StatusCode == 204 })
	eventually(t, 10*time.Second, "the breaker is closed", func() bool { // failures while the node started may have opened it
		return !strings.Contains(s.Log(), "Circuit breaker") || strings.Contains(s.Log(), "half-open to closed")
	})
	node := nodeProcess(t, dir)
	if err := node.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = node.Signal(syscall.SIGCONT) }) // it may have ended
	before := strings.Count(s.Log(), "Error processing operation component[store] output. Retrying in 10ms…")
	var resp *http.Response
	var body []byte
	for i := range 2 { // two attempts each
		resp, body = save("store")
		for end := time.Now().Add(10 * time.Second); i == 0 && resp.StatusCode == 204 && time.Now().Before(end); { // the signal takes a moment
			resp, body = save("store")
		}
		if code, message := failure(t, body); resp.StatusCode != 500 || code != "ERR_STATE_SAVE" || !strings.Contains(message, "context deadline exceeded") {
			t.Errorf("a store that hangs: %d %s, want 500 ERR_STATE_SAVE, context deadline exceeded", resp.StatusCode, body)
		}
	}
	resp, body = save("store")
	if code, message := failure(t, body); resp.StatusCode != 500 || code != "ERR_STATE_SAVE" || !strings.Contains(message, "circuit breaker is open") {
		t.Errorf("after four failures: %d %s, want 500 ERR_STATE_SAVE, circuit breaker is open", resp.StatusCode, body)
	}
	if _, err := runtimev1.NewDaprClient(dial(t, s.Target())).GetState(limited(t), &runtimev1.GetStateRequest{StoreName: "store", Key: "k"}); !strings.Contains(status.Convert(err).Message(), "circuit breaker is open") &&
		!strings.Contains(status.Convert(err).Message(), "context deadline exceeded") { // half-open by now, on a slow machine
		t.Errorf("another operation: %v, want it refused too", err)
	}
	if resp, body := save("other"); resp.StatusCode != 204 {
		t.Errorf("another store: %d %s, want 204", resp.StatusCode, body)
	}
	s.WaitLog(`Circuit breaker \"cb-store\" changed state from closed to open`)
	if n := strings.Count(s.Log(), "Error processing operation component[store] output. Retrying in 10ms…") - before; n < 2 {
		t.Errorf("%d lines tell of retries, want one for each", n)
	}
	if err := node.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the store is used again", func() bool { resp, _ := save("store"); return resp.StatusCode == 204 })
	s.WaitLog(`Circuit breaker \"cb-store\" changed state from half-open to closed`)
	labels := func(policy, status string) []string {
		return []string{"name", "res", "namespace", "", "policy", policy, "flow_direction", "outbound", "target", "Statestore_store", "status", status}
	}
	for _, want := range []struct {
		labels []string
		min    float64
	}{{labels("timeout", ""), 4}, {labels("retry", ""), 2}, {labels("circuitbreaker", "open"), 1}, {labels("circuitbreaker", "half-open"), 1}, {labels("circuitbreaker", "closed"), 1}} {
		if got := value(scrape(t, s), "dapr_resiliency_activations_total", want.labels...); got < want.min {
			t.Errorf("dapr_resiliency_activations_total%v is %v, want at least %v", want.labels, got, want.min)
		}
	}
}

// events is an app that takes the events of topics and answers as a script says.
type events struct {
	mu     sync.Mutex
	topics map[string]topic
	got    map[string]int // deliveries by topic
}

// topic is how one subscription goes.
type topic struct {
	dead   string // dead-letter topic
	answer func(n int, w http.ResponseWriter)
}

func (e *events) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/dapr/subscribe" {
		var list []map[string]string
		for name, s := range e.topics {
			list = append(list, map[string]string{"pubsubname": "pubsub", "topic": name, "route": "/on/" + name, "deadLetterTopic": s.dead})
		}
		_ = json.NewEncoder(w).Encode(list)
		return
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/on/")
	if !ok {
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	e.mu.Lock()
	if e.got == nil {
		e.got = map[string]int{}
	}
	e.got[name]++
	n := e.got[name]
	e.mu.Unlock()
	if answer := e.topics[name].answer; answer != nil {
		answer(n, w)
	}
}

func (e *events) count(name string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.got[name]
}

func failing(code, times int) func(int, http.ResponseWriter) {
	return func(n int, w http.ResponseWriter) {
		if n <= times {
			w.WriteHeader(code)
		}
	}
}

func saying(word string) func(int, http.ResponseWriter) {
	return func(_ int, w http.ResponseWriter) { fmt.Fprintf(w, `{"status": %q}`, word) }
}

// Deliveries of events under an inbound policy: what is repeated, and that the dead-letter topic
// comes after it.
func TestResiliencyOfDeliveries(t *testing.T) {
	for _, tt := range []struct {
		name, policies, targets string
		want                    map[string]int // deliveries by topic
	}{
		{"retry", "{retries: {r: {policy: constant, duration: 10ms, maxRetries: 2}}}", "{components: {pubsub: {inbound: {retry: r}}}}",
			map[string]int{"twice": 3, "dead": 1, "always": 3, "never": 1, "drop": 1, "missing": 1, "again": 3, "badrequest": 3}},
		{"matching", `{retries: {r: {policy: constant, duration: 10ms, maxRetries: 2, matching: {httpStatusCodes: "400-499"}}}}`, "{components: {pubsub: {inbound: {retry: r}}}}",
			map[string]int{"dead": 1, "always": 1, "never": 1, "drop": 1, "missing": 1, "badrequest": 3}},
		{"default", "{retries: {DefaultPubsubComponentInboundRetryPolicy: {policy: constant, duration: 10ms, maxRetries: 1}, DefaultRetryPolicy: {policy: constant, duration: 10ms, maxRetries: 5}}}", "{}",
			map[string]int{"dead": 1, "always": 2, "never": 1}},
		{"outbound only", "{timeouts: {t: 300ms}, retries: {r: {policy: constant, duration: 10ms, maxRetries: 2}}}", "{components: {pubsub: {outbound: {retry: r, timeout: t}}}}",
			map[string]int{"dead": 1, "always": 1, "never": 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			app := &events{topics: map[string]topic{
				"twice": {"", failing(500, 2)}, "always": {"dead", failing(500, 99)}, "dead": {}, "never": {}, "drop": {"", saying("DROP")}, "missing": {"", failing(404, 99)},
				"again": {"otherdead", saying("RETRY")}, "badrequest": {"otherdead", failing(400, 99)}, "last": {}}}
			s := harness.NewMesh(t).Start(harness.Options{AppID: "web", AppPort: harness.Serve(t, app), Args: []string{"--log-level", "debug"}, Files: map[string]string{
				"p.yaml": component("pubsub", "pubsub.in-memory"), "r.yaml": resiliency("res", tt.policies, tt.targets)}})
			s.WaitLog("app is subscribed to the following topics")
			publish := func(name string) {
				t.Helper()
				if resp, body := harness.Do(t, "POST", s.URL("/v1.0/publish/pubsub/"+name), []byte(`{"a": 1}`), "Content-Type", "application/json"); resp.StatusCode != 204 {
					t.Fatalf("publishing: %d %s", resp.StatusCode, body)
				}
			}
			for name := range app.topics {
				if tt.want[name] > 0 && name != "dead" {
					publish(name)
				}
			}
			for name, n := range tt.want {
				eventually(t, 10*time.Second, fmt.Sprintf("%d deliveries of %s (there are %d)", n, name, app.count(name)), func() bool { return app.count(name) >= n })
			}
			if tt.name == "outbound only" {
				time.Sleep(400 * time.Millisecond) // subscriptions outlive the limit of calls
			}
			publish("last")
			eventually(t, 10*time.Second, "the last event", func() bool { return app.count("last") == 1 })
			for name, n := range tt.want {
				if got := app.count(name); got != n {
					t.Errorf("%d deliveries of %s, want %d", got, name, n)
				}
			}
			if tt.name == "outbound only" && strings.Contains(s.Log(), "subscription failed") {
				t.Error("a time limit of outbound calls disturbs subscriptions")
			}
		})
	}
}

// A Resiliency file that changes is in force without a restart, and one with an error leaves
// what was in force before.
func TestResiliencyReload(t *testing.T) {
	retry := func(n int) string {
		return resiliency("res", fmt.Sprintf("{retries: {r: {policy: constant, duration: 5ms, maxRetries: %d}}}", n), targetBack)
	}
	p := newPair(t, map[string]string{"s.yaml": component("store", "state.in-memory")})
	file := filepath.Join(p.front.Dir, "r.yaml")
	calls := 0
	made := func() int { // how often the app sees one invocation
		calls++
		path := fmt.Sprintf("/fail/500/99/%d", calls)
		invoke(t, p.front, "GET", "back", path)
		return p.app.calls(path)
	}
	harness.Do(t, "POST", p.front.URL("/v1.0/state/store"), []byte(`[{"key": "k", "value": 1}]`), "Content-Type", "application/json")
	if n := made(); n != 1 {
		t.Fatalf("%d calls without a policy, want 1", n)
	}
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	becomes := func(n int) {
		t.Helper()
		eventually(t, 15*time.Second, fmt.Sprintf("invocations are made %d times", n), func() bool { return made() == n })
	}
	put(retry(1))
	becomes(2)
	p.front.WaitLog("Loading Resiliency configuration: res")
	for i, broken := range []string{strings.Replace(retry(4), "5ms", "soon", 1), strings.Replace(retry(4), "{retries:", "{circuitBreakers: {cb: {trip: no more}}, retries:", 1), "a: [", ""} {
		logged := strings.Count(p.front.Log(), "level=")
		put(broken)
		switch {
		case i < 2:
			eventually(t, 15*time.Second, "the error is logged", func() bool {
				return strings.Count(p.front.Log(), `level=error msg="Could not read resiliency policy res: `) == i+1
			})
		case broken != "":
			eventually(t, 15*time.Second, "the error is logged", func() bool { return strings.Count(p.front.Log(), "level=") > logged })
		default: // an editor may empty a file before it writes
			put(retry(2))
			becomes(3)
			continue
		}
		if n := made(); n != 2 {
			t.Errorf("%d calls after %q, want 2 as before", n, broken)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	becomes(1)
	if resp, body := harness.Do(t, "GET", p.front.URL("/v1.0/state/store/k"), nil); resp.StatusCode != 200 || string(body) != "1" {
		t.Errorf("the in-memory store has %d %q, want what was written before: the sidecar has restarted", resp.StatusCode, body)
	}
	if got := value(scrape(t, p.front), "dapr_resiliency_loaded", "name", "res", "namespace", ""); got != 2 {
		t.Errorf("dapr_resiliency_loaded is %v, want 2: loaded once and changed once", got)
	}
}

// eventRPC is a gRPC app that answers every event with a code.
type eventRPC struct {
	runtimev1.UnimplementedAppCallbackServer
	code codes.Code
	n    atomic.Int32
}

func (e *eventRPC) ListTopicSubscriptions(context.Context, *emptypb.Empty) (*runtimev1.ListTopicSubscriptionsResponse, error) {
	return &runtimev1.ListTopicSubscriptionsResponse{Subscriptions: []*runtimev1.TopicSubscription{{PubsubName: "pubsub", Topic: "t", DeadLetterTopic: "dead"}}}, nil
}

func (e *eventRPC) OnTopicEvent(context.Context, *runtimev1.TopicEventRequest) (*runtimev1.TopicEventResponse, error) {
	e.n.Add(1)
	return nil, status.Error(e.code, "not now")
}

// A gRPC app's code is what matching looks at.
func TestResiliencyOfGRPCDeliveries(t *testing.T) {
	for _, tt := range []struct {
		name, matching string
		code           codes.Code
		want           int32
	}{
		{"every code", "", codes.InvalidArgument, 3}, {"not found", "", codes.NotFound, 3},
		{"one of those", `, matching: {gRPCStatusCodes: "3,8"}`, codes.InvalidArgument, 3}, {"none of those", `, matching: {gRPCStatusCodes: "3,8"}`, codes.Internal, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			app := &eventRPC{code: tt.code}
			port := serveGRPC(t, func(s *grpc.Server) { runtimev1.RegisterAppCallbackServer(s, app) })
			s := harness.NewMesh(t).Start(harness.Options{AppID: "web", AppPort: port, Protocol: "grpc", Files: map[string]string{"p.yaml": component("pubsub", "pubsub.in-memory"),
				"r.yaml": resiliency("res", "{retries: {r: {policy: constant, duration: 10ms, maxRetries: 2"+tt.matching+"}}}", "{components: {pubsub: {inbound: {retry: r}}}}")}})
			s.WaitLog("app is subscribed to the following topics")
			if resp, body := harness.Do(t, "POST", s.URL("/v1.0/publish/pubsub/t"), []byte(`{"a": 1}`), "Content-Type", "application/json"); resp.StatusCode != 204 {
				t.Fatalf("publishing: %d %s", resp.StatusCode, body)
			}
			s.WaitLog("message moved to the dead-letter topic")
			if n := app.n.Load(); n != tt.want {
				t.Errorf("%d deliveries, want %d", n, tt.want)
			}
		})
	}
}
