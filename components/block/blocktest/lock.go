package blocktest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Lock checks a lock store. open prepares a store and returns a way to open components on it:
// each call is another client, as another sidecar would be. Names are unique to the subtest, so
// the server behind may be shared; the suite closes what it opens.
//
// Locks here last whole seconds and a half, because some products count in seconds. That a lock
// does not end early is measured; how late it may end is not.
func Lock(t *testing.T, open func(t *testing.T) func() block.Lock) {
	t.Helper()
	suite(t, block.KindLock)
	groups := []struct {
		name string
		run  func(*lockTest)
	}{
		{"take, refuse, give back", lockRoundTrip},
		{"names and owners of every shape", lockNames},
		{"locks end by themselves", lockExpiry},
		{"a late owner", lockLateOwner},
		{"one winner", lockOneWinner},
		{"mutual exclusion", lockExclusion},
		{"fencing tokens grow", lockFence},
		{"renewal", lockRenew},
		{"a time that is none", lockBadTTL},
		{"an ended context", lockContext},
		{"close", lockClose},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			client := open(t)
			l := &lockTest{T: t, prefix: unique(), client: func() block.Lock {
				c := client()
				t.Cleanup(func() { closeQuietly(t, c) })
				return c
			}}
			l.store = l.client()
			g.run(l)
		})
	}
}

// long is a time no test waits for.
const long = time.Hour

type lockTest struct {
	*testing.T
	client func() block.Lock // opens another client of the same store
	store  block.Lock        // the first client
	prefix string
}

func (l *lockTest) ctx() context.Context    { return patiently(l.T) }
func (l *lockTest) name(part string) string { return "lock||" + l.prefix + "||" + part }
func (l *lockTest) fence() (block.LockFence, bool) {
	f, ok := l.store.(block.LockFence)
	return f, ok
}

func (l *lockTest) try(c block.Lock, name, owner string, ttl time.Duration) bool {
	l.Helper()
	ok, err := c.TryLock(l.ctx(), name, owner, ttl)
	if err != nil {
		l.Fatalf("TryLock(%s, %s): %v", show(name), show(owner), err)
	}
	return ok
}

func (l *lockTest) take(c block.Lock, name, owner string, ttl time.Duration) {
	l.Helper()
	if !l.try(c, name, owner, ttl) {
		l.Fatalf("TryLock(%s, %s) was refused, want it granted", show(name), show(owner))
	}
}

func (l *lockTest) refused(c block.Lock, name, owner string) {
	l.Helper()
	if l.try(c, name, owner, long) {
		l.Fatalf("TryLock(%s, %s) was granted although the name is taken", show(name), show(owner))
	}
}

func (l *lockTest) unlock(c block.Lock, name, owner string, want block.UnlockStatus) {
	l.Helper()
	got, err := c.Unlock(l.ctx(), name, owner)
	if err != nil || got != want {
		l.Fatalf("Unlock(%s, %s) = %d, %v; want %d", show(name), show(owner), got, err, want)
	}
}

// grant asks until the name is free, and returns when it was.
func (l *lockTest) grant(c block.Lock, name, owner string, ttl time.Duration) time.Time {
	l.Helper()
	waitFor(l, "the lock to be free", func() bool { return l.try(c, name, owner, ttl) })
	return time.Now()
}

func lockRoundTrip(l *lockTest) {
	if err := l.store.Ping(l.ctx()); err != nil {
		l.Fatalf("Ping: %v", err)
	}
	other, name := l.client(), l.name("n")
	l.unlock(l.store, name, "a", block.NoSuchLock)
	l.take(l.store, name, "a", long)
	l.refused(l.store, name, "a") // not even its owner takes it twice
	l.refused(l.store, name, "b")
	l.refused(other, name, "a")
	l.refused(other, name, "b")
	l.take(other, l.name("another"), "b", long)
	l.unlock(other, name, "b", block.LockOfAnother)
	l.refused(other, name, "b")
	l.unlock(other, name, "a", block.Unlocked) // an owner is who it says, through any client
	l.unlock(l.store, name, "a", block.NoSuchLock)
	l.take(other, name, "b", long)
	l.refused(l.store, name, "a")
	l.unlock(l.store, name, "a", block.LockOfAnother)
	l.unlock(other, name, "b", block.Unlocked)
	for i := range 5 { // as often as one likes
		owner := fmt.Sprint("o", i)
		l.take(l.store, name, owner, long)
		l.unlock(other, name, owner, block.Unlocked)
	}
}

func lockNames(l *lockTest) {
	names := append([]string{strings.Repeat("k", 512), strings.Repeat("ü/", 100)}, awkward...)
	for i, n := range names {
		l.take(l.store, l.name(n), awkward[i%len(awkward)], long)
	}
	for i, n := range names {
		owner := awkward[i%len(awkward)]
		l.refused(l.store, l.name(n), owner)
		l.unlock(l.store, l.name(n), owner+"x", block.LockOfAnother)
		l.unlock(l.store, l.name(n), strings.ToUpper(owner)+" ", block.LockOfAnother)
		l.unlock(l.store, l.name(n), owner, block.Unlocked)
		l.unlock(l.store, l.name(n), owner, block.NoSuchLock)
	}
}

func lockExpiry(l *lockTest) {
	other, name := l.client(), l.name("n")
	const ttl = 1500 * time.Millisecond
	asked := time.Now()
	l.take(l.store, name, "a", ttl)
	if lasted := l.grant(other, name, "b", long).Sub(asked); lasted < ttl {
		l.Errorf("a lock of %v was free again after %v", ttl, lasted)
	}
	l.refused(l.store, name, "a")
	// The next lock of a name has its own time, whatever the one before had.
	l.unlock(other, name, "b", block.Unlocked)
	l.take(l.store, name, "a", time.Second)
	l.unlock(l.store, name, "a", block.Unlocked)
	l.take(l.store, name, "c", long)
	time.Sleep(2200 * time.Millisecond) // time for what must not end
	l.refused(other, name, "b")
}

func lockLateOwner(l *lockTest) {
	name, gone := l.name("n"), l.name("gone")
	l.take(l.store, name, "a", time.Second)
	l.take(l.store, gone, "a", time.Second)
	l.grant(l.store, name, "b", long)
	l.unlock(l.store, name, "a", block.LockOfAnother)
	l.refused(l.store, name, "a")
	l.unlock(l.store, name, "b", block.Unlocked)
	waitFor(l, "the other lock to end", func() bool {
		st, err := l.store.Unlock(l.ctx(), gone, "nobody")
		if err != nil {
			l.Fatalf("Unlock: %v", err)
		}
		return st == block.NoSuchLock
	})
	l.unlock(l.store, gone, "a", block.NoSuchLock)
}

func lockOneWinner(l *lockTest) {
	clients := []block.Lock{l.store, l.client(), l.client()}
	for round := range 8 {
		name := l.name(fmt.Sprint("round", round%2)) // new ones, and ones given back
		var wg sync.WaitGroup
		var mu sync.Mutex
		var winners []string
		for i := range 12 {
			owner := fmt.Sprint("o", i)
			wg.Go(func() {
				ok, err := clients[i%len(clients)].TryLock(l.ctx(), name, owner, long)
				if err != nil {
					l.Errorf("TryLock: %v", err)
				}
				if ok {
					mu.Lock()
					defer mu.Unlock()
					winners = append(winners, owner)
				}
			})
		}
		wg.Wait()
		if len(winners) != 1 {
			l.Fatalf("round %d: %q won, want exactly one", round, winners)
		}
		l.unlock(l.store, name, winners[0], block.Unlocked)
	}
}

func lockExclusion(l *lockTest) {
	clients := []block.Lock{l.store, l.client()}
	name := l.name("n")
	var mu sync.Mutex
	var inside, most, done int // guarded by mu: a store may fail this test
	var wg sync.WaitGroup
	const workers, rounds = 4, 5
	for w := range workers {
		wg.Go(func() {
			c, owner := clients[w%len(clients)], fmt.Sprint("o", w)
			for range rounds {
				ok := false
				for end := time.Now().Add(patience); !ok && time.Now().Before(end); {
					var err error
					if ok, err = c.TryLock(l.ctx(), name, owner, long); err != nil {
						l.Errorf("TryLock: %v", err)
						return
					}
				}
				mu.Lock()
				inside++
				most = max(most, inside)
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				inside--
				done++
				mu.Unlock()
				if st, err := c.Unlock(l.ctx(), name, owner); err != nil || st != block.Unlocked {
					l.Errorf("Unlock by the owner: %d, %v", st, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if most != 1 || done != workers*rounds {
		l.Errorf("%d owners at once, want 1; %d turns, want %d", most, done, workers*rounds)
	}
}

func lockFence(l *lockTest) {
	f, ok := l.fence()
	if !ok {
		notOffered(l.T, "the store numbers no grants")
		return
	}
	name, last := l.name("n"), uint64(0)
	other, _ := l.client().(block.LockFence)
	take := func(f block.LockFence, owner string, ttl time.Duration) {
		l.Helper()
		token, err := f.TryLockFenced(l.ctx(), name, owner, ttl)
		if err != nil || token <= last {
			l.Fatalf("TryLockFenced = %d, %v; want more than %d", token, err, last)
		}
		last = token
	}
	for i := range 3 {
		owner := fmt.Sprint("o", i)
		take(f, owner, long)
		if token, err := other.TryLockFenced(l.ctx(), name, "x", long); err != nil || token != 0 {
			l.Fatalf("TryLockFenced of a taken name = %d, %v; want 0", token, err)
		}
		l.unlock(l.store, name, owner, block.Unlocked)
		l.take(l.store, name, "plain", long)
		l.refused(l.store, name, "x")
		l.unlock(l.store, name, "plain", block.Unlocked)
		f, other = other, f
	}
	take(f, "short", time.Second)
	waitFor(l, "the lock to end", func() bool {
		token, err := other.TryLockFenced(l.ctx(), name, "next", long)
		if err != nil || token != 0 && token <= last {
			l.Fatalf("TryLockFenced = %d, %v; want more than %d", token, err, last)
		}
		return token != 0
	})
}

func lockRenew(l *lockTest) {
	f, ok := l.fence()
	if !ok {
		notOffered(l.T, "the store renews no locks")
		return
	}
	name := l.name("n")
	renew := func(owner string, ttl time.Duration, want bool) {
		l.Helper()
		if got, err := f.Renew(l.ctx(), name, owner, ttl); err != nil || got != want {
			l.Fatalf("Renew by %s = %v, %v; want %v", owner, got, err, want)
		}
	}
	renew("a", long, false)
	l.unlock(l.store, name, "a", block.NoSuchLock) // a renewal of nothing makes no lock
	token, err := f.TryLockFenced(l.ctx(), name, "a", 2*time.Second)
	if err != nil || token == 0 {
		l.Fatalf("TryLockFenced = %d, %v", token, err)
	}
	renew("b", long, false)
	renew("a", long, true)
	time.Sleep(3200 * time.Millisecond) // time for what must not end
	l.refused(l.store, name, "b")
	l.refused(l.store, name, "a")
	asked := time.Now()
	renew("a", time.Second, true) // from now, so it can be shortened
	if lasted := l.grant(l.store, name, "b", long).Sub(asked); lasted < time.Second {
		l.Errorf("a lock renewed for 1s was free again after %v", lasted)
	}
	renew("a", long, false)
	l.refused(l.store, name, "a")
	l.unlock(l.store, name, "b", block.Unlocked)
	renew("b", long, false)
	next, err := f.TryLockFenced(l.ctx(), name, "c", long)
	if err != nil || next <= token {
		l.Errorf("the grant after a renewal has number %d, %v; want more than %d", next, err, token)
	}
}

func lockBadTTL(l *lockTest) {
	for _, ttl := range []time.Duration{0, -time.Second} {
		_, err := l.store.TryLock(l.ctx(), l.name("n"), "a", ttl)
		wantCode(l, fmt.Sprintf("TryLock for %v", ttl), err, fault.Invalid)
	}
	l.unlock(l.store, l.name("n"), "a", block.NoSuchLock)
}

func lockContext(l *lockTest) {
	name := l.name("n")
	l.take(l.store, name, "a", long)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	calls := map[string]func() error{
		"TryLock": func() error { _, err := l.store.TryLock(ended, l.name("m"), "a", long); return err },
		"Unlock":  func() error { _, err := l.store.Unlock(ended, name, "a"); return err },
	}
	if f, ok := l.fence(); ok {
		calls["TryLockFenced"] = func() error { _, err := f.TryLockFenced(ended, l.name("m"), "a", long); return err }
		calls["Renew"] = func() error { _, err := f.Renew(ended, name, "a", long); return err }
	}
	for what, call := range calls {
		start := time.Now()
		wantCode(l, what+" with an ended context", call(), fault.Canceled)
		if took := time.Since(start); took > 2*time.Second {
			l.Errorf("%s with an ended context took %v", what, took)
		}
	}
	l.unlock(l.store, l.name("m"), "a", block.NoSuchLock)
	l.unlock(l.store, name, "a", block.Unlocked)
}

func lockClose(l *lockTest) {
	other, name := l.client(), l.name("n")
	l.take(l.store, name, "a", long)
	for i := range 2 {
		if err := l.store.Close(l.ctx()); err != nil {
			l.Errorf("Close number %d: %v", i+1, err)
		}
	}
	_, err := l.store.TryLock(l.ctx(), l.name("m"), "a", long)
	wantCode(l, "TryLock after Close", err, fault.Unavailable)
	_, err = l.store.Unlock(l.ctx(), name, "a")
	wantCode(l, "Unlock after Close", err, fault.Unavailable)
	wantCode(l, "Ping after Close", l.store.Ping(l.ctx()), fault.Unavailable)
	// A lock is a name's, not a connection's: it outlives the client that asked for it.
	l.refused(other, name, "b")
	l.unlock(other, name, "a", block.Unlocked)
}
