package nats_test

import (
	"context"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/nats"
)

// watched is a running Watch and the items that are there as far as it was told.
type watched struct {
	t    testing.TB
	stop context.CancelFunc
	done chan error

	mu    sync.Mutex
	items map[string]string // guarded by mu
	gone  map[string]int    // guarded by mu; removals told
}

func watch(t testing.TB, s block.State, prefix string) *watched {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	w := &watched{t: t, stop: stop, done: make(chan error, 1), items: map[string]string{}, gone: map[string]int{}}
	started := make(chan struct{})
	go func() { w.done <- s.(block.StateWatch).Watch(ctx, prefix, func() { close(started) }, w.changed) }()
	t.Cleanup(stop)
	select {
	case <-started:
	case err := <-w.done:
		t.Fatalf("Watch: %v", err)
	case <-time.After(patience):
		t.Fatal("Watch does not start")
	}
	return w
}

func (w *watched) changed(items []block.StateItem) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		if it.Exists {
			w.items[it.Key] = string(it.Value)
		} else {
			delete(w.items, it.Key)
			w.gone[it.Key]++
		}
	}
}

func (w *watched) has(want map[string]string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Equal(w.items, want)
}

// hears waits until what was told amounts to this.
func (w *watched) hears(want map[string]string) {
	w.t.Helper()
	defer func() {
		if w.t.Failed() {
			w.mu.Lock()
			w.t.Logf("was told %v, want %v", w.items, want)
			w.mu.Unlock()
		}
	}()
	waitFor(w.t, "the changes to be told", func() bool {
		select {
		case err := <-w.done:
			w.done <- err
			w.t.Fatalf("Watch ended: %v", err)
		default:
		}
		return w.has(want)
	})
}

// ends waits for the end of a watch that may have missed something.
func (w *watched) ends(because string) {
	w.t.Helper()
	select {
	case err := <-w.done:
		w.done <- err
		if fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), because) {
			w.t.Errorf("Watch: %v (%v), want unavailable, because %q", err, fault.Of(err), because)
		}
	case <-time.After(patience):
		w.t.Errorf("Watch goes on, want its end because %q", because)
	}
}

// endsQuietly ends a watch that missed nothing.
func (w *watched) endsQuietly() {
	w.t.Helper()
	w.stop()
	select {
	case err := <-w.done:
		if fault.Of(err) != fault.Canceled {
			w.t.Errorf("Watch: %v (%v), want canceled", err, fault.Of(err))
		}
	case <-time.After(patience):
		w.t.Error("Watch does not end")
	}
}

func remove(t testing.TB, s block.State, key string) {
	t.Helper()
	if err := s.Delete(t.Context(), block.StateDelete{Key: key}); err != nil {
		t.Fatal(err)
	}
}

// Connections are cut again and again while others write and remove: nothing is missed.
func TestWatchThroughLostConnections(t *testing.T) {
	url := startServer(t).ClientURL()
	g := newGate(t, strings.TrimPrefix(url, "nats://"))
	s, writer := serverState(t, "nats://"+g.l.Addr().String(), "store"), serverState(t, url, "store")
	defer s.Close(t.Context())
	defer writer.Close(t.Context())
	set(t, writer, "a||kept", "before")
	w := watch(t, s, "a||")
	want := map[string]string{}
	for round := range 4 {
		g.set(round%2 == 1)
		for i := range 20 {
			key := "a||" + strconv.Itoa(i)
			if (i+round)%3 == 0 {
				remove(t, writer, key)
				delete(want, key)
			} else {
				set(t, writer, key, strconv.Itoa(round))
				want[key] = strconv.Itoa(round)
			}
			set(t, writer, "b||"+strconv.Itoa(i), "of no interest")
		}
		g.set(true)
		w.hears(want)
	}
	w.endsQuietly()
}

// An item that expires while the connection is lost is told as removed.
func TestWatchExpiryThroughLostConnection(t *testing.T) {
	url := startServer(t).ClientURL()
	g := newGate(t, strings.TrimPrefix(url, "nats://"))
	s, writer := serverState(t, "nats://"+g.l.Addr().String(), "store"), serverState(t, url, "store")
	defer s.Close(t.Context())
	defer writer.Close(t.Context())
	set(t, writer, "stays", "v") // a bucket that has nothing of what it had might have been purged
	if err := writer.Set(t.Context(), block.StateWrite{Key: "there before", Value: []byte("v"), TTL: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	w := watch(t, s, "")
	if err := writer.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("v"), TTL: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	w.hears(map[string]string{"k": "v"})
	if err := writer.Set(t.Context(), block.StateWrite{Key: "long", Value: []byte("v"), TTL: time.Second}); err != nil {
		t.Fatal(err)
	}
	g.set(false)
	set(t, writer, "long", "w")
	waitFor(t, "the end", func() bool {
		item, err := writer.Get(t.Context(), "k", block.StateRead{})
		return err == nil && !item.Exists
	})
	g.set(true)
	w.hears(map[string]string{"long": "w"})
	w.mu.Lock()
	if w.gone["there before"] != 1 || w.gone["k"] != 1 {
		t.Errorf("removals were told %v times", w.gone)
	}
	w.mu.Unlock()
	w.endsQuietly()
}

// A server that is restarted goes on telling.
func TestWatchThroughRestart(t *testing.T) {
	dir := t.TempDir()
	start := func(port int) *server.Server {
		srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true, JetStream: true, StoreDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		srv.Start()
		if !srv.ReadyForConnections(patience) {
			t.Fatal("no server")
		}
		return srv
	}
	srv := start(-1)
	s := serverState(t, srv.ClientURL(), "store")
	defer s.Close(t.Context())
	w := watch(t, s, "")
	want := map[string]string{}
	for round := range 3 {
		port := srv.Addr().(*net.TCPAddr).Port
		srv.Shutdown()
		srv.WaitForShutdown()
		srv = start(port)
		waitFor(t, "a write", func() bool {
			return s.Set(t.Context(), block.StateWrite{Key: "k" + strconv.Itoa(round), Value: []byte("v")}) == nil
		})
		want["k"+strconv.Itoa(round)] = "v"
		w.hears(want)
	}
	w.endsQuietly()
	srv.Shutdown()
	srv.WaitForShutdown()
}

// What takes messages away without a trace ends a watch that they concern.
func TestWatchOfPurgedBucket(t *testing.T) {
	url := startServer(t).ClientURL()
	js := admin(t, url)
	s := serverState(t, url, "mine")
	defer s.Close(t.Context())
	for name, tc := range map[string]struct {
		do      func(t *testing.T, stream jetstream.Stream) error
		because string
	}{
		"purged": {func(t *testing.T, stream jetstream.Stream) error { return stream.Purge(t.Context()) }, "were removed"},
		"purged of a key": {func(t *testing.T, stream jetstream.Stream) error {
			return stream.Purge(t.Context(), jetstream.WithPurgeSubject("$KV.mine.a.k"))
		}, "were removed"},
		"purged of some": {func(t *testing.T, stream jetstream.Stream) error {
			return stream.Purge(t.Context(), jetstream.WithPurgeSubject("$KV.mine.a.*"))
		}, "were removed"},
		"purged of others": {func(t *testing.T, stream jetstream.Stream) error {
			return stream.Purge(t.Context(), jetstream.WithPurgeSubject("$KV.mine.b.k"))
		}, ""},
		"removed": {func(t *testing.T, _ jetstream.Stream) error { return js.DeleteStream(t.Context(), "KV_mine") }, "were removed"},
	} {
		t.Run(name, func(t *testing.T) {
			waitFor(t, "the bucket", func() bool { return s.Set(t.Context(), block.StateWrite{Key: "a||k", Value: []byte("v")}) == nil })
			set(t, s, "b||k", "v")
			w := watch(t, s, "a||")
			stream, err := js.Stream(t.Context(), "KV_mine")
			if err == nil {
				err = tc.do(t, stream)
			}
			if err != nil {
				t.Fatal(err)
			}
			if tc.because != "" {
				w.ends(tc.because)
				return
			}
			set(t, s, "a||k", "w")
			w.hears(map[string]string{"a||k": "w"})
			w.endsQuietly()
		})
	}
}

// What happened to the bucket while the connection was lost is found out afterwards.
func TestWatchOfBucketLostMeanwhile(t *testing.T) {
	url := startServer(t).ClientURL()
	js := admin(t, url)
	writer := serverState(t, url, "mine")
	defer writer.Close(t.Context())
	for name, tc := range map[string]struct {
		do      func(t *testing.T)
		because string
	}{
		"purged": {func(t *testing.T) {
			stream, err := js.Stream(t.Context(), "KV_mine")
			if err == nil {
				err = stream.Purge(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
		}, "emptied"},
		"made anew": {func(t *testing.T) {
			if err := js.DeleteStream(t.Context(), "KV_mine"); err != nil {
				t.Fatal(err)
			}
		}, "made anew"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, strings.TrimPrefix(url, "nats://"))
			s := serverState(t, "nats://"+g.l.Addr().String(), "mine")
			defer s.Close(t.Context())
			waitFor(t, "the bucket", func() bool { return writer.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("v")}) == nil })
			w := watch(t, s, "")
			g.set(false)
			tc.do(t)
			g.set(true)
			w.ends(tc.because)
		})
	}
}

// A connection that is lost for longer than removed keys are remembered ends a watch; an idle one
// that is not lost does not end, however long nothing happens.
func TestWatchOfShortMemory(t *testing.T) {
	url := startServer(t).ClientURL()
	const memory = 8 * time.Second
	g := newGate(t, strings.TrimPrefix(url, "nats://"))
	s, writer := serverState(t, "nats://"+g.l.Addr().String(), "mine"), serverState(t, url, "mine")
	defer s.Close(t.Context())
	defer writer.Close(t.Context())
	nats.RememberFor(s, memory)
	nats.RememberFor(writer, memory)
	w, idle := watch(t, s, ""), watch(t, writer, "")
	g.set(false)
	w.ends("is remembered for 8s")
	g.set(true)
	time.Sleep(memory) // nothing happens
	set(t, writer, "k", "v")
	idle.hears(map[string]string{"k": "v"})
	idle.endsQuietly()
}

// What waits for a callee is bounded.
func TestWatchOfBlockedCallee(t *testing.T) {
	s := embeddedState(t, nodeDir(t), "statestore")
	defer s.Close(t.Context())
	block1, started, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.(block.StateWatch).Watch(context.Background(), "", func() { close(started) }, func([]block.StateItem) { <-block1 })
	}()
	<-started
	value := strings.Repeat("x", 7<<20)
	for i := range 12 {
		set(t, s, strconv.Itoa(i), value)
		set(t, s, "same", value) // waits once
	}
	close(block1)
	select {
	case err := <-done:
		if fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "wait to be told") {
			t.Errorf("Watch: %v (%v), want unavailable", err, fault.Of(err))
		}
	case <-time.After(patience):
		t.Error("Watch goes on although more waits than may")
	}
}
