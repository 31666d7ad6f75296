//go:build unix

package faults

import (
	"bytes"
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
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
)

// embeddedFiles are a state store and a broker in the embedded node of dir, and a subscription
// of the app to topic.
func embeddedFiles(dir string) map[string]string {
	component := func(name, typ string) string {
		return fmt.Sprintf("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: %s}\nspec:\n  type: %s\n  version: v1\n  metadata:\n  - {name: dataDir, value: %q}\n", name, typ, dir)
	}
	return map[string]string{"state.yaml": component("statestore", "state.embedded"),
		// The default of a gibibyte is set aside at once, and small disks do not have it.
		"pubsub.yaml": component("pubsub", "pubsub.embedded") + "  - {name: maxBytes, value: 16Mi}\n"}
}

// ledger holds what was acknowledged to callers, and what arrived.
type ledger struct {
	mu      sync.Mutex
	written map[int64]bool // acknowledged writes
	sent    map[int64]bool // acknowledged events
	arrived map[int64]int  // deliveries of each event
}

func newLedger() *ledger {
	return &ledger{written: map[int64]bool{}, sent: map[int64]bool{}, arrived: map[int64]int{}}
}

// subscriber is the app that takes the events.
func (g *ledger) subscriber(t testing.TB) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/dapr/subscribe", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `[{"pubsubname":"pubsub","topic":"numbers","route":"/number"}]`)
	})
	mux.HandleFunc("/number", func(w http.ResponseWriter, r *http.Request) {
		var event struct{ Data struct{ N int64 } }
		if err := json.NewDecoder(r.Body).Decode(&event); err != nil || event.Data.N == 0 {
			t.Errorf("an event came damaged: %v", err)
		}
		g.mu.Lock()
		g.arrived[event.Data.N]++
		g.mu.Unlock()
	})
	return mux
}

// post sends JSON to a sidecar; only a 2xx answer is a success.
func post(ctx context.Context, client *http.Client, url, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	req.GetBody = nil
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%d %s", resp.StatusCode, text)
	}
	return err
}

func newClient(t testing.TB) *http.Client {
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// writes stores a number under a key of its own.
func (g *ledger) writes(t testing.TB, s *harness.Sidecar, size int) caller {
	client := newClient(t)
	pad := strings.Repeat("x", size)
	return func(ctx context.Context, n int64) error {
		err := post(ctx, client, s.URL("/v1.0/state/statestore"), fmt.Sprintf(`[{"key":"k%d","value":{"n":%d,"pad":%q}}]`, n, n, pad))
		if err == nil {
			g.mu.Lock()
			g.written[n] = true
			g.mu.Unlock()
		}
		return err
	}
}

// publishes sends a number as an event.
func (g *ledger) publishes(t testing.TB, s *harness.Sidecar) caller {
	client := newClient(t)
	return func(ctx context.Context, n int64) error {
		err := post(ctx, client, s.URL("/v1.0/publish/pubsub/numbers"), fmt.Sprintf(`{"n":%d}`, n))
		if err == nil {
			g.mu.Lock()
			g.sent[n] = true
			g.mu.Unlock()
		}
		return err
	}
}

// audit compares what was acknowledged with what is there. Events may take until limit.
func (g *ledger) audit(t *testing.T, s *harness.Sidecar, limit time.Duration) {
	t.Helper()
	client := newClient(t)
	lost := 0
	for n := range g.written {
		resp, err := client.Get(s.URL(fmt.Sprintf("/v1.0/state/statestore/k%d", n)))
		if err != nil {
			t.Fatal(err)
		}
		var v struct{ N int64 }
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || json.Unmarshal(body, &v) != nil || v.N != n {
			if lost++; lost <= 5 {
				t.Errorf("the acknowledged write of k%d reads %d %.80s", n, resp.StatusCode, body)
			}
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged writes are lost", lost, len(g.written))
	}
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		missing := g.missing()
		if missing == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d acknowledged events never arrived", missing, len(g.sent))
		}
	}
	again := 0
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range g.arrived {
		if n > 1 {
			again++
		}
	}
	t.Logf("%d writes and %d events were acknowledged, none is lost; %d events came more than once", len(g.written), len(g.sent), again)
	if len(g.written) == 0 || len(g.sent) == 0 {
		t.Error("the load did not reach the store or the broker")
	}
}

func (g *ledger) missing() (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range g.sent {
		if g.arrived[id] == 0 {
			n++
		}
	}
	return n
}

// nodePID is the process serving an embedded directory.
func nodePID(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// dataDir is a directory for an embedded node, which is ended with the test.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "node-") // short: a socket lives in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(filepath.Join(dir, "lock")); err == nil {
			_ = syscall.Kill(nodePID(t, dir), syscall.SIGKILL) // it may have left
		}
		os.RemoveAll(dir)
	})
	return dir
}

// The embedded node is killed twice while it takes writes and events. The sidecars start it
// again; what it had acknowledged is there.
func TestEmbeddedNodeKilled(t *testing.T) {
	dir, g := dataDir(t), newLedger()
	mesh := harness.NewMesh(t)
	mesh.Start(harness.Options{AppID: "taker", AppPort: harness.Serve(t, g.subscriber(t)), Files: embeddedFiles(dir)})
	writer := mesh.Start(harness.Options{AppID: "writer", Files: embeddedFiles(dir)})
	l := begin(t, "embedded node killed twice", 16, g.writes(t, writer, 100), g.publishes(t, writer))
	l.warm()
	var first int
	for range 2 {
		pid := nodePID(t, dir)
		if pid == first {
			t.Errorf("the killed node %d still serves", pid)
		}
		first = pid
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		l.awaitGood(10 * time.Second)
		time.Sleep(500 * time.Millisecond)
	}
	back := l.now() - 500*time.Millisecond
	finish(t, l, back, limits{failures: -1, outage: 4 * time.Second, recovery: 2 * time.Second})
	g.audit(t, writer, 10*time.Second)
}
