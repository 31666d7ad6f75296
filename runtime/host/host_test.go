package host_test

import (
	"encoding/json"
	"errors"
	"flag"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/host"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

var update = flag.Bool("update", false, "rewrite testdata")

func yaml(docs ...string) string { return strings.Join(docs, "\n---\n") }

func store(name, typ string, more ...string) string {
	return "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: " + name + "\nspec:\n  type: " + typ + "\n  version: v1\n" + strings.Join(more, "\n")
}

// The whole life in order: up from the outside in, down in reverse.
func TestLifeInOrder(t *testing.T) {
	k := newKit(t, store("db", "state.good"))
	k.start()
	k.ready(t)
	for _, l := range append(k.edges.services.Listeners.HTTP, append(k.edges.services.Listeners.GRPC, k.edges.services.Listeners.Peer)...) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Errorf("%s does not answer: %v", l.Addr(), err)
			continue
		}
		c.Close()
	}
	k.end()
	if err := k.wait(t); err != nil {
		t.Errorf("ended with %v", err)
	}
	got := k.all()
	// Both edges drain at once.
	for i, line := range got {
		if line == "gRPC draining" && i+1 < len(got) && got[i+1] == "HTTP draining" {
			got[i], got[i+1] = got[i+1], got[i]
		}
	}
	want := []string{"HTTP opened", "gRPC opened", "open db", "ping db", "register app.default at 127.0.0.1",
		"deregister", "HTTP draining", "gRPC draining", "edges closed", "close db", "close registry"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestReadiness(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	l.Close() // the app is not there yet
	k := newKit(t, yaml(store("db", "state.good"), store("bus", "pubsub.good")))
	k.o.Settings.AppPort = addr.Port
	k.edges.app = &appSide{story: k.story, subs: []pubsub.Subscription{{PubSub: "bus", Topic: "t", Rules: []pubsub.Rule{{Path: "/t"}}}}}
	k.start()
	until(t, "the search for the app", func() bool { return k.logged("waiting on port") })
	about := k.edges.services.About
	if !about.Outbound() {
		t.Error("components are up, and the app may not use them")
	}
	if d := cmp.Diff([]string{"runtime"}, about.Pending()); d != "" {
		t.Errorf("pending (-want +got):\n%s", d)
	}
	if k.has("asked for subscriptions") || k.has("register app.default at 127.0.0.1") {
		t.Errorf("announced or asked before the app is there: %v", k.all())
	}
	if l, err = net.Listen("tcp", addr.String()); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k.ready(t)
	until(t, "the subscription", func() bool { return k.has("consume t") })
	if len(about.Pending()) != 0 {
		t.Errorf("still pending: %v", about.Pending())
	}
	k.end()
	if err := k.wait(t); err != nil {
		t.Error(err)
	}
	if about.Outbound() || len(about.Pending()) == 0 {
		t.Error("a sidecar that has ended is said to be ready")
	}
	order(t, k.all(), "consume t", "deregister", "consumed t", "HTTP draining", "edges closed", "app closed", "close bus", "close db", "close registry")
}

// order checks that lines occur in this order.
func order(t *testing.T, all []string, want ...string) {
	t.Helper()
	at := -1
	for _, w := range want {
		found := -1
		for i := at + 1; i < len(all); i++ {
			if all[i] == w {
				found = i
				break
			}
		}
		if found < 0 {
			t.Errorf("%q does not come where it should in\n  %s", w, strings.Join(all, "\n  "))
			return
		}
		at = found
	}
}

func TestComponentsThatFail(t *testing.T) {
	const ignore = "  ignoreErrors: true"
	tests := []struct {
		name, yaml string
		text       string // of Run's error; empty: it runs without the component
	}{
		{"unreachable", store("db", "state.down"), "process component db error: [INIT_COMPONENT_FAILURE]: initialization error occurred for db (state.down/v1): dial db:1: refused"},
		{"unreachable, ignored", store("db", "state.down", ignore), ""},
		{"hanging", store("db", "state.hangs", "  initTimeout: 50ms"), "process component db error: [INIT_COMPONENT_FAILURE]: initialization error occurred for db (state.hangs/v1): context deadline exceeded: init timeout for component db (state.hangs/v1)"},
		{"hanging, ignored", store("db", "state.hangs", "  initTimeout: 50ms", ignore), ""},
		{"of no known type", store("db", "state.goof"), "process component db error: [CREATE_COMPONENT_FAILURE]: initialization error occurred for db (state.goof/v1): couldn't find state store state.goof/v1; did you mean state.good?"},
		{"of no known type, ignored", store("db", "state.goof", ignore), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(t, yaml(tt.yaml, store("other", "state.good")))
			k.start()
			if tt.text != "" {
				if err := k.wait(t); err == nil || err.Error() != tt.text {
					t.Errorf("got  %v\nwant %s", err, tt.text)
				}
			} else {
				k.ready(t)
				for _, c := range k.edges.services.About.Metadata().Components {
					if c.Name == "db" {
						t.Error("it is listed among the components")
					}
				}
				k.end()
				if err := k.wait(t); err != nil {
					t.Error(err)
				}
			}
			if k.has("open db") && !k.has("close db") {
				t.Errorf("it was opened and not closed: %v", k.all())
			}
			order(t, k.all(), "edges closed", "close registry")
		})
	}
}

func TestPortsInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	tests := []struct {
		name string
		set  func(k *kit)
		text []string
	}{
		{"HTTP", func(k *kit) { k.o.Settings.HTTPPort = port }, []string{"failed to start API HTTP server: could not listen on any endpoint", taken.Addr().String(), "in use"}},
		{"gRPC", func(k *kit) { k.o.Settings.GRPCPort = port }, []string{"failed to start API gRPC server: could not listen on any endpoint", taken.Addr().String(), "in use"}},
		{"public", func(k *kit) { k.o.Settings.PublicPort = port }, []string{"failed to start public HTTP server", taken.Addr().String(), "in use"}},
		{"peer", func(k *kit) { k.o.Settings.PeerPort, k.o.Settings.PeerPortGiven = port, true }, []string{"failed to start internal gRPC server", taken.Addr().String(), "in use"}},
		{"an address of another host", func(k *kit) { k.o.Settings.ListenAddresses, k.o.ListenFor = []string{"192.0.2.1"}, time.Minute }, []string{"failed to start API gRPC server", "192.0.2.1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(t, store("db", "state.good"))
			tt.set(k)
			k.start()
			err := k.wait(t)
			for _, text := range tt.text {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("got %v, want %q in it", err, text)
				}
			}
			if k.has("open db") || k.has("HTTP opened") {
				t.Errorf("listeners come first, but %v", k.all())
			}
		})
	}
}

func TestAPortThatIsFreedInTime(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := newKit(t, "")
	k.o.Settings.HTTPPort, k.o.ListenFor = taken.Addr().(*net.TCPAddr).Port, 10*time.Second
	time.AfterFunc(150*time.Millisecond, func() { taken.Close() })
	k.start()
	k.ready(t)
	k.end()
	if err := k.wait(t); err != nil {
		t.Error(err)
	}
}

// A start that fails half-way leaves no port bound: the next try must find them free.
func TestAFailedStartFreesItsPorts(t *testing.T) {
	k := newKit(t, "")
	broken := errors.New("broken")
	k.edges.fail = broken
	k.start()
	if err := k.wait(t); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	for _, l := range append(k.edges.services.Listeners.HTTP, k.edges.services.Listeners.Peer) {
		again, err := net.Listen("tcp", l.Addr().String())
		if err != nil {
			t.Errorf("%s is still bound: %v", l.Addr(), err)
			continue
		}
		again.Close()
	}
	order(t, k.all(), "edges closed", "close registry")
}

func TestAnEdgeThatEndsByItselfEndsTheSidecar(t *testing.T) {
	k := newKit(t, store("db", "state.good"))
	k.start()
	k.ready(t)
	broken := errors.New("accept failed")
	k.edges.breaks <- broken
	if err := k.wait(t); !errors.Is(err, broken) || err.Error() != "HTTP server: accept failed" {
		t.Errorf("got %v", err)
	}
	order(t, k.all(), "deregister", "edges closed", "close db")
}

func TestEndsAskedForOverTheAPI(t *testing.T) {
	k := newKit(t, store("db", "state.good"))
	k.start()
	k.ready(t)
	k.edges.services.About.Shutdown(false)
	if err := k.wait(t); err != nil {
		t.Errorf("gracefully: %v", err)
	}
	order(t, k.all(), "deregister", "HTTP draining", "close db")

	k = newKit(t, "")
	k.start()
	k.ready(t)
	k.edges.services.About.Shutdown(true)
	if err := k.wait(t); !errors.Is(err, host.ErrForced) {
		t.Errorf("forced: %v", err)
	}
	if k.has("HTTP draining") {
		t.Error("a forced end waits for nobody")
	}
	// The process would end here; the test has to clean up for it.
	close(k.edges.stop)
	l := k.edges.services.Listeners
	for _, x := range append(append(l.HTTP, l.GRPC...), l.Peer) {
		x.Close()
	}
	k.edges.services.Invoke.Close()
}

func TestBlockedShutdown(t *testing.T) {
	k := newKit(t, yaml(store("db", "state.good"), store("bus", "pubsub.good")))
	k.o.Settings.BlockShutdown = 400 * time.Millisecond
	k.start()
	k.ready(t)
	start := time.Now()
	k.end()
	until(t, "the block", func() bool { return k.logged("Blocking graceful shutdown for 400ms") })
	about := k.edges.services.About
	if len(about.Pending()) == 0 {
		t.Error("it is still said to be ready: callers keep coming")
	}
	if !about.Outbound() || k.has("HTTP draining") || k.has("close db") {
		t.Errorf("the app cannot work on: %v", k.all())
	}
	if err := k.wait(t); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < 400*time.Millisecond {
		t.Errorf("blocked for %v only", took)
	}
	if !k.logged("Block shutdown period expired") {
		t.Error("the end of the block is not logged")
	}
}

func TestCallsThatDoNotEndAreCut(t *testing.T) {
	k := newKit(t, store("db", "state.good"))
	k.o.Settings.GracefulShutdown = 100 * time.Millisecond
	k.edges.drain = time.Hour
	k.start()
	k.ready(t)
	start := time.Now()
	k.end()
	if err := k.wait(t); err != nil {
		t.Errorf("a call that is cut is no failure of the sidecar: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v with a grace of 100ms", took)
	}
	if !k.logged("some calls were cut off") {
		t.Error("nobody is told")
	}
	order(t, k.all(), "HTTP draining", "HTTP cut", "edges closed", "close db")
}

func TestMetadataDocument(t *testing.T) {
	k := newKit(t, yaml(store("db", "state.good"), store("bus", "pubsub.good"),
		"apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata:\n  name: github\nspec:\n  baseUrl: https://api.github.com",
		"apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata:\n  name: sub\nspec:\n  pubsubname: bus\n  topic: t\n  deadLetterTopic: dead\n  routes:\n    rules:\n      - match: event.type == \"a\"\n        path: /a\n    default: /d"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k.o.Settings.AppPort, k.o.Settings.AppMaxConcurrency, k.o.Settings.AppHealth.Enabled = l.Addr().(*net.TCPAddr).Port, 5, true
	k.edges.app = &appSide{story: k.story}
	k.start()
	k.ready(t)
	until(t, "the subscription", func() bool { return k.has("consume t") })
	doc := k.edges.services.About.Metadata()
	if doc.AppConnection.Port != k.o.Settings.AppPort {
		t.Errorf("app port %d", doc.AppConnection.Port)
	}
	doc.AppConnection.Port = 3000
	got, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const path = "testdata/metadata.json"
	if *update {
		if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got)+"\n", "\n")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	k.end()
	if err := k.wait(t); err != nil {
		t.Error(err)
	}
}
