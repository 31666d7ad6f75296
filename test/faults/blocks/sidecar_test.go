//go:build unix

package blocks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

// nodePID is the process serving an embedded directory; 0 when there is none.
func nodePID(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, "lock"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// nodeDir is a directory for an embedded node, which is ended with the test.
func nodeDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "node-") // short: a socket lives in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if pid := nodePID(dir); pid > 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have left
		}
		os.RemoveAll(dir)
	})
	return dir
}

// The sidecar is killed again and again while it writes, so that writes are between the caller
// and the store, and answers between the store and the caller.
func TestSidecarKilledOnEmbedded(t *testing.T) {
	killSidecar(t, "state.embedded", component("store", "state.embedded", "dataDir", nodeDir(t)))
}

func TestSidecarKilledOnRedis(t *testing.T) {
	killSidecar(t, "state.redis", component("store", "state.redis", "redisHost", servers.StartRedis(t).Addr))
}

// writers are callers with three ways to write: a key of its own, two keys of their own in a
// transaction, and in a transaction the same two keys each time.
const writers = 9

func killSidecar(t *testing.T, name, store string) {
	t.Parallel()
	const kills = 5
	options := harness.Options{AppID: "shop", Files: map[string]string{"store.yaml": store}}
	mesh := harness.NewMesh(t)
	side := mesh.Start(options)
	options.Ports = side.Ports()
	a := newAPI(t, side)
	var mu sync.Mutex
	kind := map[int64]int{}          // of each number, 0 to 2
	highest := map[int]int64{}       // acknowledged by each writer of kind 2
	mine := map[int]map[int64]bool{} // tried by each writer of kind 2
	l := begin(t, name, writers, func(ctx context.Context, who int, n int64) (err error) {
		mu.Lock()
		kind[n] = who % 3
		if mine[who] == nil {
			mine[who] = map[int64]bool{}
		}
		mine[who][n] = true
		mu.Unlock()
		switch who % 3 {
		case 0:
			err = save(ctx, a, "store", fmt.Sprint("k", n), value(n))
		case 1:
			err = savePair(ctx, a, "store", fmt.Sprint("a", n), fmt.Sprint("b", n), value(n))
		case 2:
			if err = savePair(ctx, a, "store", fmt.Sprint("left", who), fmt.Sprint("right", who), value(n)); err == nil {
				mu.Lock()
				highest[who] = n // a writer has one call at a time
				mu.Unlock()
			}
		}
		return err
	})
	l.works(again)
	var slowest time.Duration
	for range kills {
		time.Sleep(100*time.Millisecond + rand.N(300*time.Millisecond))
		side.Kill()
		killed := time.Now()
		side = mesh.Start(options)
		l.works(again)
		slowest = max(slowest, time.Since(killed))
	}
	f := l.judge()
	if f.failed == 0 {
		t.Error("no call failed: the test did not test")
	}

	acked := map[int64]bool{}
	for _, n := range l.acked {
		acked[n] = true
	}
	happened := 0
	each(append(l.acked, l.tried...), func(n int64) {
		keys := [][]string{{fmt.Sprint("k", n)}, {fmt.Sprint("a", n), fmt.Sprint("b", n)}, nil}[kind[n]]
		there := 0
		for _, key := range keys {
			switch got := string(mustRead(t, a, "store", key)); got {
			case string(value(n)):
				there++
			case "":
			default:
				t.Errorf("%s: key %s is there in part: %d bytes of %d", name, key, len(got), len(value(n)))
			}
		}
		switch {
		case acked[n] && there < len(keys):
			t.Errorf("%s: the acknowledged write %d has %d of its %d keys", name, n, there, len(keys))
		case there != 0 && there != len(keys):
			t.Errorf("%s: the transaction %d happened in part: %d of %d keys", name, n, there, len(keys))
		case !acked[n] && there > 0:
			mu.Lock()
			happened++
			mu.Unlock()
		}
	})
	for who := 2; who < writers; who += 3 {
		left, right := mustRead(t, a, "store", fmt.Sprint("left", who)), mustRead(t, a, "store", fmt.Sprint("right", who))
		number, _, _ := strings.Cut(string(left), ":")
		n, _ := strconv.ParseInt(number, 10, 64)
		if string(left) != string(right) || string(left) != string(value(n)) {
			t.Errorf("%s: a transaction happened in part: left is %.20q, right is %.20q", name, left, right)
		}
		if n < highest[who] || !mine[who][n] {
			t.Errorf("%s: the pair of writer %d has transaction %d, and %d was acknowledged", name, who, n, highest[who])
		}
	}
	report("%s, sidecar killed %d times: %d calls, %d acknowledged and there, %d unanswered of which %d had happened, wholly; back to work within %v",
		name, kills, f.calls, len(l.acked), f.failed, happened, ms(slowest))
}
