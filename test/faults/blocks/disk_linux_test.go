package blocks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/untested"
)

// smallDisk is a node's directory on a file system of its own of that size.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := nodeDir(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		untested.Skip(t, "a full disk: mounting a file system of its own needs root: %v", err)
	}
	t.Cleanup(func() {
		if pid := nodePID(dir); pid > 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	})
	return dir
}

// hoard is keys of a store on a small disk.
type hoard struct {
	t    *testing.T
	a    *api
	next atomic.Int64

	mu   sync.Mutex
	kept map[int64]bool // guarded by mu; acknowledged
}

func (h *hoard) key(n int64) string { return fmt.Sprint("k", n) }

// large is what is stored under a key: few fill the disk.
func large(n int64) []byte {
	return slices.Concat(value(n), make([]byte, 32<<10), value(n))
}

// set uses the native API, whose codes say what is the matter.
func (h *hoard) set(n int64) error {
	err := h.a.call(context.Background(), mechav1.State_Write_FullMethodName, &mechav1.WriteRequest{StoreName: "store", Operations: []*mechav1.StateOperation{
		{Operation: &mechav1.StateOperation_Set{Set: &mechav1.SetState{Key: h.key(n), Value: large(n)}}}}}, &mechav1.WriteResponse{})
	if err == nil {
		h.mu.Lock()
		h.kept[n] = true
		h.mu.Unlock()
	}
	return err
}

func (h *hoard) drop(n int64) error {
	err := h.a.call(context.Background(), runtimev1.Dapr_DeleteState_FullMethodName, &runtimev1.DeleteStateRequest{StoreName: "store", Key: h.key(n)}, &emptypb.Empty{})
	if err == nil {
		h.mu.Lock()
		delete(h.kept, n)
		h.mu.Unlock()
	}
	return err
}

// fill has four callers write until each is refused, and returns the refusal.
func (h *hoard) fill() (refusal error) {
	h.t.Helper()
	var mu sync.Mutex
	each(make([]struct{}, 4), func(struct{}) {
		for range 5000 { // several times the disk
			if err := h.set(h.next.Add(1)); err != nil {
				mu.Lock()
				refusal = err
				mu.Unlock()
				return
			}
		}
		h.t.Error("the disk does not fill up")
	})
	return refusal
}

func (h *hoard) all() []int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.kept))
}

// audit reads everything.
func (h *hoard) audit(when string) {
	h.t.Helper()
	each(h.all(), func(n int64) {
		if got := mustRead(h.t, h.a, "store", h.key(n)); string(got) != string(large(n)) {
			h.t.Errorf("%s: the acknowledged write %d reads %d bytes %.20q", when, n, len(got), got)
		}
	})
}

func (h *hoard) writesAgain(what string) time.Duration {
	h.t.Helper()
	return soon(h.t, again, "writing "+what, func() bool { return h.set(h.next.Add(1)) == nil })
}

// The disk of the embedded node fills up under four callers who write.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "32m")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	side := harness.NewMesh(t).Start(harness.Options{AppID: "shop", Files: map[string]string{"store.yaml": component("store", "state.embedded", "dataDir", dir)}})
	h := &hoard{t: t, a: newAPI(t, side), kept: map[int64]bool{}}
	kill := func() {
		t.Helper()
		if err := syscall.Kill(nodePID(dir), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
	h.writesAgain("before") // the node starts

	refusal := h.fill()
	if status.Code(refusal) != codes.ResourceExhausted || !strings.Contains(refusal.Error(), "disk full") {
		t.Errorf("a write on a full disk: %v, want RESOURCE_EXHAUSTED and that the disk is full", refusal)
	}
	if err := save(context.Background(), h.a, "store", "other", large(0)); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("a write with Dapr's API: %v, want INTERNAL, as Dapr has it, and that the disk is full", err)
	}
	resp, body := harness.Do(t, http.MethodPost, side.URL("/v1.0/state/store"), []byte(`[{"key":"other","value":1}]`), "Content-Type", "application/json")
	if resp.StatusCode != http.StatusInternalServerError || !strings.Contains(string(body), "disk full") {
		t.Errorf("a write over HTTP: %d %s, want 500 and that the disk is full", resp.StatusCode, body)
	}
	first := nodePID(dir)
	h.audit("on a full disk")
	full := h.all()
	dropped := full[:5]
	for _, n := range dropped {
		if err := h.drop(n); err != nil {
			t.Errorf("removing key %d on a full disk: %v", n, err)
		}
	}
	if pid := nodePID(dir); pid != first {
		t.Errorf("the node ended on a full disk: process %d is now %d", first, pid)
	}
	kill()
	h.audit("after the node was killed on a full disk")
	for _, n := range dropped {
		if got := mustRead(t, h.a, "store", h.key(n)); len(got) > 0 {
			t.Errorf("key %d, removed on a full disk, is back after the node was killed", n)
		}
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	room := h.writesAgain("when there is room")
	kill()
	h.audit("after there was room and the node was killed")

	// Full once more, and nobody else gives room: what is removed does.
	h.fill()
	kept := h.all()
	start := time.Now()
	for _, n := range kept {
		if err := h.drop(n); err != nil {
			t.Fatalf("removing key %d: %v", n, err)
		}
	}
	h.writesAgain("when all was removed")
	h.audit("when all was removed")
	if got := len(h.all()); got == 0 {
		t.Error("nothing was acknowledged")
	}
	report("state.embedded, disk full: %d values of 34 KiB acknowledged and there, also after kill -9 of the node; refused with %v; writes %v after room was made; after a second time full, %d keys removed and written again within %v",
		len(full), status.Code(refusal), ms(room), len(kept), ms(time.Since(start)))
}
