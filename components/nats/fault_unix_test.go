//go:build unix

package nats_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// killNode ends the node serving dir without a chance to say goodbye.
func killNode(t testing.TB, dir string) {
	t.Helper()
	pid, err := strconv.Atoi(nodeOf(t, dir))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		t.Errorf("kill -9 of the node: %v", err)
	}
}

// stopNode halts the node serving dir, and returns when it has halted.
func stopNode(t testing.TB, dir string) int {
	t.Helper()
	pid, err := strconv.Atoi(nodeOf(t, dir))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGSTOP)
	}
	if err != nil {
		t.Fatalf("stop the node: %v", err)
	}
	waitFor(t, "the node to halt", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil { // not Linux
			time.Sleep(200 * time.Millisecond)
			return true
		}
		return strings.HasPrefix(string(text[strings.LastIndexByte(string(text), ')')+1:]), " T")
	})
	return pid
}

// Nothing acknowledged is lost when the node is killed under load, a transaction is there
// wholly or not at all, and clients go on by themselves.
func TestKilledNodeLosesNoState(t *testing.T) {
	dir := nodeDir(t)
	s := embeddedState(t, dir, "statestore")
	defer s.Close(t.Context())
	tx, _ := s.(block.StateTx)
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	const writers = 3
	stop := make(chan struct{})
	acked := make([]int, writers) // the last value known to be stored, one writer each
	pairs := 0                    // the last transaction known to be stored
	var wg sync.WaitGroup
	running := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	for w := range writers {
		wg.Go(func() {
			for n := 1; running(); n++ {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				err := s.Set(ctx, block.StateWrite{Key: fmt.Sprint("w", w), Value: []byte(strconv.Itoa(n))})
				cancel()
				if err == nil {
					acked[w] = n
				} else if fault.Of(err) != fault.Unavailable {
					t.Errorf("Set: %v (%v), want success or unavailable", err, fault.Of(err))
				}
			}
		})
	}
	wg.Go(func() {
		for n := 1; running(); n++ {
			v := []byte(strconv.Itoa(n))
			err := tx.Transact(context.Background(), []block.StateOp{
				{StateWrite: block.StateWrite{Key: "pair||a", Value: v}}, {StateWrite: block.StateWrite{Key: "pair||b", Value: v}}})
			if err == nil {
				pairs = n
			}
		}
	})
	for range 3 {
		time.Sleep(300 * time.Millisecond)
		killNode(t, dir)
	}
	time.Sleep(300 * time.Millisecond)
	close(stop)
	wg.Wait()
	killNode(t, dir)
	read := func(key string) int {
		t.Helper()
		var item block.StateItem
		waitFor(t, "a read", func() (ok bool) {
			var err error
			item, err = s.Get(t.Context(), key, block.StateRead{})
			return err == nil
		})
		n, _ := strconv.Atoi(string(item.Value))
		return n
	}
	for w, want := range acked {
		// A later write may have happened although its answer was lost.
		if got := read(fmt.Sprint("w", w)); got < want || want == 0 {
			t.Errorf("writer %d has %d acknowledged and %d stored", w, want, got)
		}
	}
	a, b := read("pair||a"), read("pair||b")
	if a != b || a < pairs || pairs == 0 {
		t.Errorf("transactions: %d acknowledged, a is %d and b is %d", pairs, a, b)
	}
}

// A call that was under way when the connection broke fails at once, and says that it may have
// happened.
func TestLostConnectionFailsCallsPromptly(t *testing.T) {
	dir := nodeDir(t)
	s := embeddedState(t, dir, "statestore")
	defer s.Close(context.Background())
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := stopNode(t, dir) // it takes the request and never answers
	result := make(chan error, 1)
	go func() {
		result <- s.Set(context.Background(), block.StateWrite{Key: "k", Value: []byte("v")})
	}()
	time.Sleep(100 * time.Millisecond)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	select {
	case err := <-result:
		if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe {
			t.Errorf("Set: %v (%v, sent %v); want unavailable, maybe sent", err, fault.Of(err), fault.SentOf(err))
		}
	case <-time.After(patience):
		t.Fatal("Set hangs although the connection is lost")
	}
	if err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("v")}); err != nil {
		t.Errorf("the next Set: %v", err)
	}
}

// Deadlines hold while the node is silent.
func TestSilentNodeRespectsDeadline(t *testing.T) {
	dir := nodeDir(t)
	s := embeddedState(t, dir, "statestore")
	defer s.Close(context.Background())
	if err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	pid := stopNode(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := s.Set(ctx, block.StateWrite{Key: "k", Value: []byte("2")})
	if fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("Set: %v (%v, sent %v); want deadline, maybe sent", err, fault.Of(err), fault.SentOf(err))
	}
	_ = syscall.Kill(pid, syscall.SIGCONT)
	// The late answer must not be taken for that of the next request.
	for n := 3; n < 20; n++ {
		v := strconv.Itoa(n)
		if err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte(v)}); err != nil {
			t.Fatal(err)
		}
		if item, err := s.Get(t.Context(), "k", block.StateRead{}); err != nil || string(item.Value) != v {
			t.Fatalf("Get = %q, %v; want %s", item.Value, err, v)
		}
	}
}

// A full disk is reported promptly and in words, loses nothing acknowledged, and is over when
// it is over.
func TestFullDisk(t *testing.T) {
	dir := nodeDir(t)
	t.Setenv(envFileSize, strconv.Itoa(1<<20))
	s := embeddedState(t, dir, "statestore")
	defer s.Close(context.Background())
	acked := 0
	var err error
	for ; err == nil; acked++ {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err = s.Set(ctx, block.StateWrite{Key: strconv.Itoa(acked), Value: make([]byte, 64<<10)})
		cancel()
	}
	acked--
	if fault.Of(err) != fault.Unavailable || acked < 10 {
		t.Fatalf("after %d writes of 64 KiB into 1 MiB: %v (%v), want unavailable", acked, err, fault.Of(err))
	}
	t.Setenv(envFileSize, "")
	waitFor(t, "the store to work again", func() bool {
		return s.Set(t.Context(), block.StateWrite{Key: "after", Value: make([]byte, 64<<10)}) == nil
	})
	for i := range acked {
		if item, err := s.Get(t.Context(), strconv.Itoa(i), block.StateRead{}); err != nil || len(item.Value) != 64<<10 {
			t.Errorf("acknowledged write %d is gone: %v, %v", i, item.Exists, err)
		}
	}
}
