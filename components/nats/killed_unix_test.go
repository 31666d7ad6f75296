//go:build unix

package nats_test

import (
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/nats"
)

func TestEmbeddedConfiguration(t *testing.T) {
	dir := nodeDir(t)
	blocktest.Configuration(t, func(t *testing.T) blocktest.ConfigurationPlace {
		open := func() *nats.Configuration { return embeddedConfiguration(t, dir, "configstore") }
		p := placeOf(t, open, open())
		p.Interrupt = func(meanwhile func()) {
			killNode(t, dir)
			meanwhile()
		}
		return p
	})
}

// Locks and their numbers outlive the node: also the number of a lock that is gone, for what it
// guards may still hear of it.
func TestKilledNodeKeepsLocks(t *testing.T) {
	dir := nodeDir(t)
	l := embeddedLock(t, dir, "lockstore")
	defer func() { _ = l.Close(t.Context()) }()
	f := l.(block.LockFence)
	take := func(name, owner string) (token uint64) {
		t.Helper()
		waitFor(t, "an answer", func() bool { // calls under way fail when the node is killed
			var err error
			token, err = f.TryLockFenced(t.Context(), name, owner, time.Hour)
			if err != nil && fault.Of(err) != fault.Unavailable {
				t.Fatalf("TryLockFenced: %v", err)
			}
			return err == nil
		})
		return token
	}
	first := take("gone", "a")
	if st, err := l.Unlock(t.Context(), "gone", "a"); err != nil || st != block.Unlocked {
		t.Fatalf("Unlock: %d, %v", st, err)
	}
	held := take("held", "a")
	killNode(t, dir)
	if token := take("held", "b"); token != 0 {
		t.Errorf("a held lock was granted again after the node was killed")
	}
	if token := take("gone", "b"); token <= first || token <= held {
		t.Errorf("grants before were %d and %d, after it %d", first, held, token)
	}
}

// A bucket that an operator removes and makes again is followed, although no connection was lost.
func TestNewBucketIsFollowed(t *testing.T) {
	url := startServer(t).ClientURL()
	s := serverConfiguration(t, url, "mine")
	s.RecheckEvery(50 * time.Millisecond)
	defer func() { _ = s.Close(t.Context()) }()
	if _, err := s.Set(t.Context(), "k", "old"); err != nil {
		t.Fatal(err)
	}
	started, told, done := make(chan struct{}), make(chan string, 16), make(chan error, 1)
	go func() {
		done <- s.Subscribe(t.Context(), []string{"k"}, nil, func() { close(started) }, func(items map[string]block.ConfigItem) { told <- items["k"].Value })
	}()
	<-started
	if err := admin(t, url).DeleteStream(t.Context(), "KV_mine"); err != nil {
		t.Fatal(err)
	}
	hear := func(want string) {
		t.Helper()
		for {
			select {
			case got := <-told:
				if got == want {
					return
				}
			case err := <-done:
				t.Fatalf("Subscribe returned %v", err)
			case <-time.After(patience):
				t.Fatalf("%q was not told", want)
			}
		}
	}
	hear("") // it is gone
	if _, err := s.Set(t.Context(), "k", "new"); err != nil {
		t.Fatal(err)
	}
	hear("new")
}

// A watch goes on with the next node, and is told what was written, removed and has expired
// meanwhile.
func TestKilledNodeKeepsWatches(t *testing.T) {
	dir := nodeDir(t)
	s := embeddedState(t, dir, "statestore")
	defer func() { _ = s.Close(t.Context()) }()
	w := watch(t, s, "app||")
	want := map[string]string{}
	write := func(o block.StateWrite) {
		t.Helper()
		waitFor(t, "a write", func() bool { return s.Set(t.Context(), o) == nil })
	}
	for _, round := range []string{"1", "2", "3"} {
		write(block.StateWrite{Key: "app||removed", Value: []byte(round)})
		write(block.StateWrite{Key: "app||short", Value: []byte(round), TTL: time.Second})
		killNode(t, dir)
		write(block.StateWrite{Key: "app||" + round, Value: []byte(round)})
		waitFor(t, "a removal", func() bool { return s.Delete(t.Context(), block.StateDelete{Key: "app||removed"}) == nil })
		want["app||"+round] = round
		w.hears(want)
	}
	w.endsQuietly()
}
