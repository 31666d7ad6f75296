//go:build unix

package policy

import (
	"context"
	"fmt"
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

// store is a sidecar with a state store in an embedded node of its own.
type store struct {
	dir    string
	side   *harness.Sidecar
	client *http.Client

	mu      sync.Mutex
	written []int64 // acknowledged
}

const component = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: statestore}\nspec:\n  type: state.embedded\n  version: v1\n" +
	"  metadata:\n  - {name: dataDir, value: %q}\n"

func newStore(t *testing.T, under regime) *store {
	t.Helper()
	dir, err := os.MkdirTemp("", "node-") // short: a socket lives in it
	if err != nil {
		t.Fatal(err)
	}
	s := &store{dir: dir, client: newClient(t)}
	t.Cleanup(func() {
		if pid := s.node(); pid > 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have left
		}
		os.RemoveAll(dir)
	})
	files := under.files()
	files["state.yaml"] = fmt.Sprintf(component, dir)
	s.side = harness.NewMesh(t).Start(harness.Options{AppID: "writer", Files: files})
	return s
}

// node is the process of the embedded node; 0 when there is none.
func (s *store) node() int {
	text, err := os.ReadFile(filepath.Join(s.dir, "lock"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

const shared = "shared"

// call writes a key of its own, or reads the one that is always there.
func (s *store) call(ctx context.Context, verb string, n int64) error {
	if verb == http.MethodGet {
		return s.read(ctx, shared, 0)
	}
	err := s.write(ctx, key(n), n)
	if err == nil {
		s.mu.Lock()
		s.written = append(s.written, n)
		s.mu.Unlock()
	}
	return err
}

func key(n int64) string { return fmt.Sprintf("k%d", n) }

func (s *store) write(ctx context.Context, key string, n int64) error {
	return ask(ctx, s.client, http.MethodPost, s.side.URL("/v1.0/state/statestore"), fmt.Sprintf(`[{"key":%q,"value":%d}]`, key, n), "")
}

func (s *store) read(ctx context.Context, key string, n int64) error {
	return ask(ctx, s.client, http.MethodGet, s.side.URL("/v1.0/state/statestore/"+key), "", fmt.Sprint(n))
}

// audit reads every acknowledged write.
func (s *store) audit(t *testing.T) {
	t.Helper()
	if len(s.written) == 0 {
		t.Error("no write was acknowledged")
	}
	lost := 0
	for _, n := range s.written {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := s.read(ctx, key(n), n); err != nil {
			if lost++; lost <= 5 {
				t.Errorf("the acknowledged write of %s reads %v", key(n), err)
			}
		}
		cancel()
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged writes are lost", lost, len(s.written))
	}
}

// blow is a fault of the embedded node.
type blow struct {
	name   string
	strike func(t *testing.T, s *store) (heal func())
}

var blows = []blow{
	{"node stopped", func(t *testing.T, s *store) func() {
		pid := s.node()
		signal(t, pid, syscall.SIGSTOP)
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
		return func() { signal(t, pid, syscall.SIGCONT) }
	}},
	{"node killed", func(t *testing.T, s *store) func() {
		signal(t, s.node(), syscall.SIGKILL)
		return func() {} // the sidecar starts it again
	}},
}

func signal(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if pid <= 0 {
		t.Fatal("no embedded node is running")
	}
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

func TestStore(t *testing.T) {
	for i, b := range blows {
		for k, under := range storeRegimes {
			t.Run(b.name+"/"+under.name, func(t *testing.T) {
				t.Parallel()
				f := b.run(t, under)
				f.order, f.fault, f.under = len(harms)*len(regimes)+i*len(storeRegimes)+k, b.name, under.name
				results.add(f)
			})
		}
	}
}

func (b blow) run(t *testing.T, under regime) figures {
	s := newStore(t, under)
	if err := s.write(t.Context(), shared, 0); err != nil {
		t.Fatal(err)
	}
	ld := begin(t, s.call)
	ld.await(t, 20*time.Second)
	time.Sleep(before)
	at, broke := usageOf(t, s.side), ld.now()
	heal := b.strike(t, s)
	time.Sleep(lengthened(t, 2*time.Second))
	healed := ld.now()
	heal()
	ld.await(t, 20*time.Second)
	time.Sleep(300 * time.Millisecond)
	ld.end()
	f := ld.judge(t, broke, healed)
	if f.reads.all == 0 || f.writes.all == 0 {
		t.Fatalf("%d reads and %d writes were made during the fault", f.reads.all, f.writes.all)
	}
	if f.recovered == never {
		t.Error("reads do not succeed again after the end of the fault")
	}
	s.audit(t)
	s.client.CloseIdleConnections()
	checkUsage(t, s.side, at)
	return f
}
