//go:build unix

package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
)

// The sidecar whose transactions have an outbox is killed in the middle of them. Every transaction
// that was acknowledged has its event, and every event its transaction.
func TestOutboxSurvivesKill(t *testing.T) {
	mesh, dir, g := harness.NewMesh(t), dataDir(t), newLedger()
	files := embeddedFiles(dir)
	files["state.yaml"] += "  - {name: outboxPublishPubsub, value: pubsub}\n  - {name: outboxPublishTopic, value: numbers}\n"
	port := harness.Serve(t, g.subscriber(t))
	start := func() *harness.Sidecar {
		return mesh.Start(harness.Options{AppID: "shop", AppPort: port, Files: files})
	}
	var next atomic.Int64
	transact := func(ctx context.Context, s *harness.Sidecar) {
		n := next.Add(1)
		body := fmt.Sprintf(`{"operations":[{"operation":"upsert","request":{"key":"n%d","value":{"N":%d}}}]}`, n, n)
		req, err := http.NewRequestWithContext(ctx, "POST", s.URL("/v1.0/state/statestore/transaction"), strings.NewReader(body))
		if err != nil {
			return
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusNoContent {
			g.mu.Lock()
			g.written[n] = true
			g.mu.Unlock()
		}
	}
	for range 3 {
		s := start()
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		var load sync.WaitGroup
		for range 4 {
			load.Go(func() {
				for ctx.Err() == nil {
					select {
					case <-s.Exited():
						return
					default:
						transact(ctx, s)
					}
				}
			})
		}
		time.Sleep(400 * time.Millisecond)
		s.Kill()
		load.Wait()
		cancel()
	}
	last := start()
	missing := func() (out []int64) {
		g.mu.Lock()
		defer g.mu.Unlock()
		for n := range g.written {
			if g.arrived[n] == 0 {
				out = append(out, n)
			}
		}
		return out
	}
	// Messages that the killed sidecars held come again when the broker's patience is over.
	for end := time.Now().Add(90 * time.Second); len(missing()) > 0 && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
	}
	g.mu.Lock()
	written, arrived := len(g.written), len(g.arrived)
	g.mu.Unlock()
	if m := missing(); len(m) > 0 || written == 0 {
		t.Errorf("%d of %d acknowledged transactions have no event", len(m), written)
	}
	t.Logf("%d transactions acknowledged, %d events of others that were not", written, arrived-written)
	g.mu.Lock()
	defer g.mu.Unlock()
	for n := range g.arrived {
		_, b := harness.Do(t, "GET", last.URL(fmt.Sprintf("/v1.0/state/statestore/n%d", n)), nil)
		if !bytes.Contains(b, []byte(fmt.Sprint(n))) {
			t.Errorf("event %d has no transaction", n)
		}
	}
}
