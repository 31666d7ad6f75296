package cache_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/memory"
	"github.com/mecha-project/mecha/runtime/cache"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
)

// shared is a store that several sidecars share, in front of which they have near caches.
type shared struct {
	block.Cache
	config block.CacheConfig

	loads  atomic.Int64  // keys read
	down   atomic.Bool   // nothing answers
	noFeed atomic.Bool   // the feed breaks
	cut    chan struct{} // closed to break the feed
	mu     sync.Mutex
}

func newShared(t testing.TB, change func(*block.CacheConfig)) *shared {
	t.Helper()
	store, err := memory.NewCache(block.Env{}, memory.DefaultCacheConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close(context.Background()) })
	s := &shared{Cache: store, config: block.DefaultCacheConfig(), cut: make(chan struct{})}
	s.config.Jitter = 0
	if change != nil {
		change(&s.config)
	}
	return s
}

func (s *shared) Config() block.CacheConfig { return s.config }

var errDown = fault.New("shared", fault.Unavailable, "the store is down")

func (s *shared) Load(ctx context.Context, keys []string) ([]block.CacheEntry, error) {
	s.loads.Add(int64(len(keys)))
	if s.down.Load() {
		return nil, errDown
	}
	return s.Cache.Load(ctx, keys)
}

func (s *shared) Store(ctx context.Context, ws []block.CacheWrite) ([]string, error) {
	if s.down.Load() {
		return nil, errDown
	}
	return s.Cache.Store(ctx, ws)
}

func (s *shared) Swap(ctx context.Context, w block.CacheWrite, over string) (string, bool, error) {
	if s.down.Load() {
		return "", false, errDown
	}
	return s.Cache.Swap(ctx, w, over)
}

func (s *shared) Keys(ctx context.Context, prefix string, each func([]string) error) error {
	return s.Cache.(block.CacheScan).Keys(ctx, prefix, each)
}

func (s *shared) StoreFenced(ctx context.Context, fence string, epoch uint64, ttl time.Duration, w block.CacheWrite) (string, error) {
	return s.Cache.(block.CacheFence).StoreFenced(ctx, fence, epoch, ttl, w)
}

// Follow is the store's, until the feed is cut.
func (s *shared) Follow(ctx context.Context, prefix string, started func(), changed func([]block.CacheChange)) error {
	if s.noFeed.Load() {
		return errDown
	}
	s.mu.Lock()
	cut := s.cut
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-cut:
			cancel()
		case <-ctx.Done():
		}
	}()
	return s.Cache.(block.CacheFeed).Follow(ctx, prefix, started, changed)
}

// breakFeed ends the feed of all sidecars, until mendFeed.
func (s *shared) breakFeed() {
	s.noFeed.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cut)
	s.cut = make(chan struct{})
}

// sidecar is the service of one sidecar over a store.
func sidecar(t testing.TB, s block.Cache, raw map[string]string) *cache.Service {
	t.Helper()
	stores := catalog.NewStore[block.Cache](block.KindCache)
	config := s.Config()
	stores.Put(catalog.NewHandle[block.Cache](catalog.Info{Name: "cache", Type: "cache.test", Raw: raw, Cache: &config}, s, &call.Target{Kind: call.Cache, Name: "cache"}))
	svc := cache.New(stores, identity.Self{App: "shop", Namespace: "default"}, nil, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := svc.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return svc
}

// client makes calls on one namespace and fails the test on errors.
type client struct {
	t  testing.TB
	s  *cache.Service
	ns string
}

func (c client) get(key string) cache.Entry {
	c.t.Helper()
	e, err := c.s.Get(context.Background(), "cache", c.ns, key, false)
	if err != nil {
		c.t.Fatalf("Get %s: %v", key, err)
	}
	return e
}

// want reads a key and compares; "-" is a miss, "absent" the news that there is none.
func (c client) want(key, value string) cache.Entry {
	c.t.Helper()
	e := c.get(key)
	if got := show(e); got != value {
		c.t.Errorf("%s is %s, want %s", key, got, value)
	}
	return e
}

func show(e cache.Entry) string {
	out := string(e.Value)
	switch e.Status {
	case cache.Miss:
		out = "-"
	case cache.Absent:
		out = "absent"
	}
	if e.Stale {
		out += " (stale)"
	}
	return out
}

func (c client) set(key, value string, o cache.Options) string {
	c.t.Helper()
	v, err := c.s.Set(context.Background(), "cache", c.ns, key, []byte(value), o, nil)
	if err != nil {
		c.t.Fatalf("Set %s: %v", key, err)
	}
	return v
}

func (c client) remove(key string) {
	c.t.Helper()
	if err := c.s.Delete(context.Background(), "cache", c.ns, key); err != nil {
		c.t.Fatalf("Delete %s: %v", key, err)
	}
}

func (c client) invalidate(what cache.Invalidation) {
	c.t.Helper()
	if err := c.s.Invalidate(context.Background(), "cache", c.ns, what); err != nil {
		c.t.Fatalf("Invalidate %v: %v", what, err)
	}
}

func (c client) load(key string, o cache.Options) (cache.Entry, *cache.Lease) {
	c.t.Helper()
	e, l, err := c.s.GetOrLoad(context.Background(), "cache", c.ns, key, o, 0, 0)
	if err != nil {
		c.t.Fatalf("GetOrLoad %s: %v", key, err)
	}
	return e, l
}

func (c client) fill(key string, l *cache.Lease, with cache.Filling) bool {
	c.t.Helper()
	if l == nil {
		c.t.Fatalf("%s: there is no lease to fill", key)
		return false
	}
	ok, err := c.s.Fill(context.Background(), "cache", c.ns, key, l.ID, with)
	if err != nil {
		c.t.Fatalf("Fill %s: %v", key, err)
	}
	return ok
}

// settled waits until the feeds are followed and what was written has been told.
func settled() { synctest.Wait() }

// two are the same namespace of two sidecars over one store, in a bubble of time. The near caches
// follow the feed already.
func two(t *testing.T, change func(*block.CacheConfig), f func(t *testing.T, s *shared, a, b client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newShared(t, change)
		a, b := client{t, sidecar(t, s, nil), ""}, client{t, sidecar(t, s, nil), ""}
		a.get("warm")
		b.get("warm")
		settled()
		f(t, s, a, b)
	})
}

func TestSetGetDelete(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		a.want("k", "-")
		v := a.set("k", "1", cache.Options{})
		if e := a.want("k", "1"); e.Version != v || e.Found != cache.Shared {
			t.Errorf("own write: version %q, found in %d; want %q, the shared store", e.Version, e.Found, v)
		}
		if e := a.want("k", "1"); e.Found != cache.Near || e.Version != v {
			t.Errorf("the second read found it in %d", e.Found)
		}
		b.want("k", "1")
		b.set("k", "2", cache.Options{})
		b.want("k", "2")
		settled()
		a.want("k", "2")
		a.set("empty", "", cache.Options{})
		if e := a.get("empty"); e.Status != cache.Hit || e.Value == nil || len(e.Value) != 0 {
			t.Errorf("an empty value comes back as %+v", e)
		}
		a.remove("k")
		a.want("k", "-")
		settled()
		b.want("k", "-")
	})
}

// A near hit asks nobody; a change by another sidecar is seen once it was told.
func TestNear(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		a.set("k", "1", cache.Options{})
		settled()
		b.want("k", "1")
		before := s.loads.Load()
		for range 100 {
			if e := b.want("k", "1"); e.Found != cache.Near {
				t.Fatalf("found in %d, want near", e.Found)
			}
		}
		if n := s.loads.Load() - before; n != 0 {
			t.Errorf("100 near hits read %d keys", n)
		}
		time.Sleep(31 * time.Second) // maxAge
		if e := b.want("k", "1"); e.Found != cache.Shared {
			t.Error("a near entry was believed for longer than maxAge")
		}
		st, err := b.s.Stats("cache", "", true)
		if err != nil || st.NearHits != 100 || st.SharedHits != 2 || st.Misses != 1 || st.NearEntries != 1 || st.NearBytes == 0 || st.Staleness != 30*time.Second {
			t.Errorf("Stats: %+v, %v", st, err)
		}
	})
}

func TestTimes(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		a.set("k", "1", cache.Options{TTL: 10 * time.Second, StaleTTL: 20 * time.Second})
		e := a.want("k", "1")
		if left := time.Until(e.Expires); left < 9*time.Second || left > 10*time.Second {
			t.Errorf("expires in %v, want 10s", left)
		}
		a.want("k", "1")
		time.Sleep(11 * time.Second)
		for _, c := range []client{a, b} {
			c.want("k", "-")
			e, err := c.s.Get(t.Context(), "cache", "", "k", true)
			if err != nil || show(e) != "1 (stale)" {
				t.Errorf("with stale: %s, %v", show(e), err)
			}
		}
		time.Sleep(20 * time.Second)
		if e, err := a.s.Get(t.Context(), "cache", "", "k", true); err != nil || e.Status != cache.Miss {
			t.Errorf("after the stale time: %s, %v", show(e), err)
		}
		// Touch, sliding.
		a.set("t", "1", cache.Options{TTL: 10 * time.Second})
		time.Sleep(6 * time.Second)
		if ok, err := b.s.Touch(t.Context(), "cache", "", "t", 10*time.Second); err != nil || !ok {
			t.Fatalf("Touch: %v, %v", ok, err)
		}
		if ok, err := b.s.Touch(t.Context(), "cache", "", "none", time.Second); err != nil || ok {
			t.Errorf("Touch of nothing: %v, %v", ok, err)
		}
		a.set("s", "1", cache.Options{TTL: 10 * time.Second, Sliding: true})
		settled()
		for range 5 {
			time.Sleep(6 * time.Second)
			a.want("s", "1")
			settled()
		}
		a.want("t", "-") // its new time has passed too
		time.Sleep(11 * time.Second)
		a.want("s", "-")
	})
}

func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := client{t, sidecar(t, newShared(t, nil), nil), ""}
		spread := 0.5
		var least, most time.Duration = time.Hour, 0
		for i := range 200 {
			key := fmt.Sprint(i)
			a.set(key, "1", cache.Options{TTL: 100 * time.Second, Jitter: &spread})
			left := time.Until(a.get(key).Expires)
			least, most = min(least, left), max(most, left)
		}
		if least < 49*time.Second || least > 60*time.Second || most > 151*time.Second || most < 140*time.Second {
			t.Errorf("entries end in %v to %v, want 50s to 150s", least, most)
		}
	})
}

func TestTagsAndNamespaces(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		a.set("p1", "1", cache.Options{Tags: []string{"shoes", "red"}})
		a.set("p2", "2", cache.Options{Tags: []string{"shoes"}})
		a.set("p3", "3", cache.Options{})
		other := client{t, a.s, "other"}
		other.set("p1", "o", cache.Options{Tags: []string{"shoes"}})
		settled()
		for range 2 { // the second time from memory
			for k, v := range map[string]string{"p1": "1", "p2": "2", "p3": "3"} {
				a.want(k, v)
				b.want(k, v)
			}
		}
		b.invalidate(cache.Invalidation{Tags: []string{"red", "unknown"}})
		b.want("p1", "-")
		settled()
		a.want("p1", "-")
		a.want("p2", "2")
		a.invalidate(cache.Invalidation{Tags: []string{"shoes"}})
		a.want("p2", "-")
		a.want("p3", "3")
		other.want("p1", "o") // tags are each namespace's
		settled()
		b.want("p2", "-")
		a.set("p2", "new", cache.Options{Tags: []string{"shoes"}})
		settled()
		b.want("p2", "new")
		b.invalidate(cache.Invalidation{Prefix: "p3"})
		settled()
		a.want("p3", "-")
		a.want("p2", "new")
		b.invalidate(cache.Invalidation{All: true})
		b.want("p2", "-")
		settled()
		a.want("p2", "-")
		other.want("p1", "o")
	})
}

// A store that forgets the numbers of tags forgets their entries, and brings none back.
func TestLostTag(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		a.set("k", "old", cache.Options{Tags: []string{"x"}})
		settled()
		if err := s.Cache.Drop(t.Context(), []string{"cache||shop||||#||x"}); err != nil {
			t.Fatal(err)
		}
		settled()
		a.want("k", "-")
		a.set("other", "1", cache.Options{Tags: []string{"x"}})
		settled()
		a.want("k", "-")
		b.want("k", "-")
	})
}

func TestGetOrLoad(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		e, lease := a.load("k", cache.Options{TTL: 10 * time.Second, StaleTTL: time.Minute, Tags: []string{"x"}})
		if e.Status != cache.Miss || lease == nil {
			t.Fatalf("the first caller got %s, lease %v", show(e), lease)
		}
		// Callers of both sidecars wait for it.
		got := make(chan string, 20)
		for i := range 20 {
			c := []client{a, b}[i%2]
			go func() {
				e, l := c.load("k", cache.Options{})
				if l != nil {
					t.Error("another lease was given")
				}
				got <- show(e)
			}()
		}
		settled()
		if !a.fill("k", lease, cache.Filling{Value: []byte("v")}) {
			t.Fatal("the value was not kept")
		}
		for range 20 {
			if v := <-got; v != "v" {
				t.Errorf("a caller who waited got %s", v)
			}
		}
		a.want("k", "v")
		b.want("k", "v")
		if a.fill("k", lease, cache.Filling{Value: []byte("again")}) {
			t.Error("a lease was filled twice")
		}
		// Stale: one loads anew, the others are served.
		time.Sleep(11 * time.Second)
		e, lease = b.load("k", cache.Options{TTL: 10 * time.Second, StaleTTL: time.Minute})
		if show(e) != "v (stale)" || lease == nil {
			t.Fatalf("the first who met it stale got %s, lease %v", show(e), lease)
		}
		for _, c := range []client{a, b} {
			if e, l := c.load("k", cache.Options{}); show(e) != "v (stale)" || l != nil {
				t.Errorf("another caller got %s, lease %v", show(e), l)
			}
		}
		// It fails: what is stale goes on being served, and the next caller is asked.
		b.fill("k", lease, cache.Filling{Error: "the database is down"})
		settled()
		e, lease = a.load("k", cache.Options{TTL: 10 * time.Second})
		if show(e) != "v (stale)" || lease == nil {
			t.Fatalf("after a failure: %s, lease %v", show(e), lease)
		}
		if !a.fill("k", lease, cache.Filling{Value: []byte("v2")}) {
			t.Error("the new value was not kept")
		}
		a.want("k", "v2")
		settled()
		b.want("k", "v2")
	})
}

func TestLoadFails(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		_, lease := a.load("k", cache.Options{})
		failed := make(chan error, 1)
		go func() {
			_, _, err := a.s.GetOrLoad(t.Context(), "cache", "", "k", cache.Options{}, 0, 0)
			failed <- err
		}()
		settled()
		a.fill("k", lease, cache.Filling{Error: "no such product"})
		if err := <-failed; fault.ReasonOf(err) != cache.LoadFailed || !strings.Contains(err.Error(), "no such product") {
			t.Errorf("who waited got %v", err)
		}
		// It is known that there is none.
		_, lease = b.load("k", cache.Options{})
		if !b.fill("k", lease, cache.Filling{Absent: true}) {
			t.Fatal("the news were not kept")
		}
		for range 2 {
			a.want("k", "absent")
		}
		if e, l := b.load("k", cache.Options{}); e.Status != cache.Absent || l != nil {
			t.Errorf("known to be absent: %s, lease %v", show(e), l)
		}
		time.Sleep(11 * time.Second)
		if _, l := a.load("k", cache.Options{}); l == nil {
			t.Error("the news of absence are kept for longer than negativeTTL")
		}
	})
}

// What was written, removed or invalidated during a load is not undone by it.
func TestNoStaleSet(t *testing.T) {
	for name, during := range map[string]func(b client){
		"delete":    func(b client) { b.remove("k") },
		"set":       func(b client) { b.set("k", "newer", cache.Options{}) },
		"tag":       func(b client) { b.invalidate(cache.Invalidation{Tags: []string{"x"}}) },
		"namespace": func(b client) { b.invalidate(cache.Invalidation{All: true}) },
		"prefix":    func(b client) { b.invalidate(cache.Invalidation{Prefix: "k"}) },
	} {
		for _, same := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s by %v", name, map[bool]string{true: "the same", false: "another"}[same]), func(t *testing.T) {
				two(t, nil, func(t *testing.T, s *shared, a, b client) {
					if same {
						b = a
					}
					_, lease := a.load("k", cache.Options{Tags: []string{"x"}})
					during(b)
					a.fill("k", lease, cache.Filling{Value: []byte("old")})
					want := "-"
					if name == "set" {
						want = "newer"
					}
					b.want("k", want)
					settled() // before it a may not know of what b did
					a.want("k", want)
					b.want("k", want)
				})
			})
		}
	}
}

// A loader that dies costs its time, and then the next caller is asked.
func TestLeaseEnds(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		begin := time.Now()
		_, lease, err := a.s.GetOrLoad(t.Context(), "cache", "", "k", cache.Options{}, 5*time.Second, 0)
		if err != nil || lease == nil {
			t.Fatal(err)
		}
		for _, c := range []client{a, b} { // the second waits for the first's new lease too
			e, l, err := c.s.GetOrLoad(t.Context(), "cache", "", "k", cache.Options{}, 5*time.Second, 20*time.Second)
			if err != nil || l == nil || e.Status != cache.Miss {
				t.Fatalf("after the lease: %s, %v, %v", show(e), l, err)
			}
		}
		if took := time.Since(begin); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("two leases of 5s ended after %v", took)
		}
		if a.fill("k", lease, cache.Filling{Value: []byte("late")}) {
			t.Error("a lease that had ended was filled")
		}
		a.want("k", "-")
		// Who will not wait is told.
		_, _, err = a.s.GetOrLoad(t.Context(), "cache", "", "k", cache.Options{}, 0, time.Second)
		if fault.Of(err) != fault.Deadline || fault.ReasonOf(err) != cache.Waited {
			t.Errorf("a short wait: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err = b.s.GetOrLoad(ctx, "cache", "", "k", cache.Options{}, 0, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller who leaves: %v", err)
		}
	})
}

// While a lease is held the entry is still read by others.
func TestReadDuringLoad(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		a.set("k", "1", cache.Options{TTL: 10 * time.Second, StaleTTL: time.Minute})
		time.Sleep(11 * time.Second)
		_, lease := a.load("k", cache.Options{})
		if lease == nil {
			t.Fatal("no lease")
		}
		for _, c := range []client{a, b} {
			if e, err := c.s.Get(t.Context(), "cache", "", "k", true); err != nil || show(e) != "1 (stale)" {
				t.Errorf("Get: %s, %v", show(e), err)
			}
			c.want("k", "-")
		}
	})
}

// The nearer the end and the dearer the load, the likelier an early one; one at a time.
func TestEarlyRefresh(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		_, lease := a.load("k", cache.Options{TTL: 100 * time.Second})
		time.Sleep(5 * time.Second) // the load
		a.fill("k", lease, cache.Filling{Value: []byte("v")})
		if st, err := a.s.Stats("cache", "", true); err != nil || st.Loads != 1 || st.LoadTime != 5*time.Second {
			t.Errorf("a load of 5s: %+v, %v", st, err)
		}
		for range 200 {
			if _, l := a.load("k", cache.Options{}); l != nil {
				t.Fatal("a load at once")
			}
		}
		time.Sleep(99 * time.Second)
		leases := 0
		for i := range 200 {
			e, l := []client{a, b}[i%2].load("k", cache.Options{})
			if show(e) != "v" {
				t.Fatalf("the entry is %s", show(e))
			}
			if l != nil {
				leases++
			}
		}
		if leases != 1 {
			t.Errorf("%d early leases, want 1", leases)
		}
	})
}

func TestCompareAndSet(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		cas := func(c client, value, over string) (string, bool) {
			v, ok, err := c.s.CompareAndSet(t.Context(), "cache", "", "k", []byte(value), over, cache.Options{})
			if err != nil {
				t.Fatal(err)
			}
			return v, ok
		}
		v, ok := cas(a, "1", "")
		if !ok || v == "" {
			t.Fatal("not made")
		}
		if _, ok := cas(b, "2", ""); ok {
			t.Error("made twice")
		}
		if e := a.want("k", "1"); e.Version != v {
			t.Errorf("version %q, want %q", e.Version, v)
		}
		if _, ok := cas(b, "2", "nonsense"); ok {
			t.Error("swapped over a version there is not")
		}
		v2, ok := cas(b, "2", v)
		if !ok || v2 == v {
			t.Error("not swapped")
		}
		if _, ok := cas(a, "3", v); ok {
			t.Error("swapped over an old version")
		}
		settled()
		a.want("k", "2")
		a.invalidate(cache.Invalidation{All: true})
		if _, ok := cas(a, "4", v2); ok {
			t.Error("swapped over what was invalidated")
		}
		if _, ok := cas(a, "4", ""); !ok {
			t.Error("not made over what was invalidated")
		}
		a.want("k", "4")
	})
}

func TestIncrement(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		add := func(c client, delta, initial int64) (int64, error) {
			return c.s.Increment(t.Context(), "cache", "", "n", delta, initial, time.Minute)
		}
		if n, err := add(a, 5, 100); err != nil || n != 105 {
			t.Fatalf("Increment: %d, %v", n, err)
		}
		a.want("n", "105")
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				if _, err := add([]client{a, b}[i%2], 1, 0); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		settled()
		a.want("n", "145")
		if n, err := add(b, -146, 0); err != nil || n != -1 {
			t.Errorf("Increment by less: %d, %v", n, err)
		}
		a.set("n", "words", cache.Options{})
		if _, err := add(a, 1, 0); fault.ReasonOf(err) != cache.NotNumber {
			t.Errorf("Increment of words: %v", err)
		}
		a.set("n", "9223372036854775807", cache.Options{})
		if _, err := add(b, 1, 0); fault.ReasonOf(err) != cache.NotNumber {
			t.Errorf("Increment past 64 bits: %v", err)
		}
		// A number keeps the time it was made with.
		a.remove("n")
		_, _ = add(a, 1, 0)
		time.Sleep(40 * time.Second)
		_, _ = add(a, 1, 0)
		time.Sleep(21 * time.Second)
		if n, err := add(a, 1, 0); err != nil || n != 1 {
			t.Errorf("after its time: %d, %v", n, err)
		}
	})
}

// When the feed breaks near entries are asked for; when the store is down too, they are served as
// stale to who takes that.
func TestFeedAndStoreDown(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		a.set("k", "1", cache.Options{})
		settled()
		b.want("k", "1")
		s.breakFeed()
		settled()
		a.set("k", "2", cache.Options{}) // of which b is not told
		b.want("k", "2")
		before := s.loads.Load()
		b.want("k", "2")
		if s.loads.Load() == before {
			t.Error("a near entry was believed without the feed")
		}
		s.down.Store(true)
		if _, err := b.s.Get(t.Context(), "cache", "", "k", false); fault.Of(err) != fault.Unavailable {
			t.Errorf("the store is down: %v", err)
		}
		s.noFeed.Store(false)
		s.down.Store(false)
		time.Sleep(6 * time.Second) // the longest pause
		settled()
		b.want("k", "2")
		if e := b.want("k", "2"); e.Found != cache.Near {
			t.Error("the near cache is not used after the feed is back")
		}
		s.breakFeed()
		s.down.Store(true)
		settled()
		e, err := b.s.Get(t.Context(), "cache", "", "k", true)
		if err != nil || show(e) != "2 (stale)" {
			t.Errorf("everything is down: %s, %v", show(e), err)
		}
		e, l, err := b.s.GetOrLoad(t.Context(), "cache", "", "k", cache.Options{}, 0, 0)
		if err != nil || show(e) != "2 (stale)" || l != nil {
			t.Errorf("everything is down: %s, %v, %v", show(e), l, err)
		}
	})
}

func TestCoherence(t *testing.T) {
	two(t, func(c *block.CacheConfig) {
		c.Coherence = block.CoherenceStrong
		if err := c.Namespaces.UnmarshalText([]byte(`{"local": {"coherence": "local", "defaultTTL": "20s"}, "small": {"nearBytes": 2000, "coherence": "invalidate"}}`)); err != nil {
			t.Fatal(err)
		}
	}, func(t *testing.T, s *shared, a, b client) {
		a.set("k", "1", cache.Options{})
		for range 3 {
			if e := b.want("k", "1"); e.Found != cache.Shared {
				t.Errorf("strong: found in %d", e.Found)
			}
		}
		la, lb := client{t, a.s, "local"}, client{t, b.s, "local"}
		la.set("k", "1", cache.Options{})
		if e := la.want("k", "1"); e.Found != cache.Near {
			t.Error("local: an own write is not near")
		}
		lb.want("k", "1")
		la.set("k", "2", cache.Options{})
		la.want("k", "2")
		settled()
		lb.want("k", "1") // for its time
		time.Sleep(21 * time.Second)
		lb.want("k", "-")
		// A namespace's own near cache keeps its bound.
		small := client{t, a.s, "small"}
		for i := range 100 {
			small.set(fmt.Sprint(i), "v", cache.Options{})
			settled()
			small.get(fmt.Sprint(i))
		}
		settled()
		st, err := a.s.Stats("cache", "small", false)
		if err != nil || st.NearBytes > 2000 || st.Evictions == 0 {
			t.Errorf("a near cache of 2000 bytes: %+v, %v", st, err)
		}
	})
}

func TestNearOnly(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		o := cache.Options{Tier: cache.Near, TTL: 10 * time.Second, Tags: []string{"x"}}
		a.set("k", "mine", o)
		if e := a.want("k", "mine"); e.Found != cache.Near {
			t.Errorf("found in %d", e.Found)
		}
		b.want("k", "-")
		if ok, err := a.s.Touch(t.Context(), "cache", "", "k", 30*time.Second); err != nil || !ok {
			t.Errorf("Touch: %v, %v", ok, err)
		}
		time.Sleep(20 * time.Second)
		a.want("k", "mine")
		b.invalidate(cache.Invalidation{Tags: []string{"x"}}) // tells the others only of tags they know
		a.invalidate(cache.Invalidation{Tags: []string{"x"}})
		a.want("k", "-")
		_, lease := a.load("l", o)
		if !a.fill("l", lease, cache.Filling{Value: []byte("v")}) {
			t.Error("not kept")
		}
		a.want("l", "v")
		b.want("l", "-")
		_, lease = a.load("m", o)
		a.remove("m")
		if a.fill("m", lease, cache.Filling{Value: []byte("old")}) {
			t.Error("a load was kept that was overtaken")
		}
		a.set("far", "v", cache.Options{Tier: cache.Shared})
		for range 2 {
			if e := a.want("far", "v"); e.Found != cache.Shared {
				t.Errorf("tier shared: found in %d", e.Found)
			}
		}
	})
}

func TestFence(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		write := func(c client, value string, epoch uint64) error {
			_, err := c.s.Set(t.Context(), "cache", "", "k", []byte(value), cache.Options{}, &cache.Epoch{Topic: "orders", Partition: 3, Number: epoch})
			return err
		}
		for i, tt := range []struct {
			c     client
			epoch uint64
			fine  bool
		}{{a, 1, true}, {a, 1, true}, {b, 3, true}, {a, 2, false}, {a, 1, false}, {b, 3, true}} {
			err := write(tt.c, fmt.Sprint(i), tt.epoch)
			if (err == nil) != tt.fine || (err != nil && fault.ReasonOf(err) != fault.Fenced) {
				t.Errorf("write %d under epoch %d: %v", i, tt.epoch, err)
			}
		}
		settled()
		a.want("k", "5")
		if err := write(a, "x", 0); fault.Of(err) != fault.Invalid {
			t.Errorf("epoch 0: %v", err)
		}
	})
}

func TestMulti(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		vs, err := a.s.SetMulti(t.Context(), "cache", "", []cache.Item{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte("2")}}, cache.Options{Tags: []string{"x"}})
		if err != nil || len(vs) != 2 || vs[0] == "" {
			t.Fatalf("SetMulti: %v, %v", vs, err)
		}
		settled()
		b.want("a", "1")
		es, err := b.s.GetMulti(t.Context(), "cache", "", []string{"b", "none", "a"}, false)
		if err != nil || len(es) != 3 || show(es[0]) != "2" || show(es[1]) != "-" || show(es[2]) != "1" || es[2].Found != cache.Near || es[0].Version != vs[1] {
			t.Errorf("GetMulti: %+v, %v", es, err)
		}
		if es, err := b.s.GetMulti(t.Context(), "cache", "", nil, false); err != nil || len(es) != 0 {
			t.Errorf("GetMulti of nothing: %v, %v", es, err)
		}
	})
}

func TestWatch(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		ctx, cancel := context.WithCancel(t.Context())
		news := make(chan string, 100)
		ended := make(chan error, 1)
		go func() {
			ended <- a.s.Watch(ctx, "cache", "", "p", func(keys []string, all bool) error {
				news <- fmt.Sprint(keys, all)
				return nil
			})
		}()
		if n := <-news; n != "[] true" {
			t.Fatalf("the first news are %s", n)
		}
		b.set("p1", "1", cache.Options{})
		settled()
		b.set("q1", "1", cache.Options{})
		b.remove("p1")
		settled()
		seen := ""
		for len(news) > 0 {
			seen += <-news
		}
		if !strings.Contains(seen, "p1") || strings.Contains(seen, "q1") {
			t.Errorf("news: %s", seen)
		}
		b.invalidate(cache.Invalidation{All: true})
		if n := <-news; n != "[] true" {
			t.Errorf("news of everything: %s", n)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	})
}

func TestBadInput(t *testing.T) {
	s := client{t, sidecar(t, newShared(t, nil), nil), ""}
	long := strings.Repeat("x", 2000)
	half, two := 0.5, 2.0
	for name, tt := range map[string]struct {
		cache, ns, key string
		o              cache.Options
		code           fault.Code
		reason         fault.Reason
	}{
		"no such cache":     {cache: "other", key: "k", code: fault.NotFound, reason: fault.NoSuchComponent},
		"no key":            {code: fault.Invalid, reason: fault.EmptyName},
		"separator":         {key: "a||b", code: fault.Invalid, reason: fault.IllegalKey},
		"long key":          {key: long, code: fault.Invalid, reason: fault.IllegalKey},
		"long namespace":    {ns: long, key: "k", code: fault.Invalid, reason: fault.IllegalKey},
		"separator in ns":   {ns: "a||b", key: "k", code: fault.Invalid, reason: fault.IllegalKey},
		"negative ttl":      {key: "k", o: cache.Options{TTL: -1}, code: fault.Invalid, reason: fault.BadExpiry},
		"endless ttl":       {key: "k", o: cache.Options{TTL: 1<<63 - 1}, code: fault.Invalid, reason: fault.BadExpiry},
		"negative stale":    {key: "k", o: cache.Options{StaleTTL: -1}, code: fault.Invalid, reason: fault.BadExpiry},
		"jitter":            {key: "k", o: cache.Options{Jitter: &two}, code: fault.Invalid, reason: cache.BadOption},
		"many tags":         {key: "k", o: cache.Options{Tags: make([]string, 17)}, code: fault.Invalid, reason: cache.BadOption},
		"an empty tag":      {key: "k", o: cache.Options{Tags: []string{""}}, code: fault.Invalid, reason: fault.IllegalKey},
		"separator in tag":  {key: "k", o: cache.Options{Tags: []string{"a||b"}}, code: fault.Invalid, reason: fault.IllegalKey},
		"all that is right": {key: "k", o: cache.Options{Jitter: &half, TTL: time.Second, Tags: []string{"ok"}}},
	} {
		t.Run(name, func(t *testing.T) {
			store := "cache"
			if tt.cache != "" {
				store = tt.cache
			}
			_, err := s.s.Set(t.Context(), store, tt.ns, tt.key, []byte("v"), tt.o, nil)
			if fault.Of(err) != tt.code || fault.ReasonOf(err) != tt.reason {
				t.Errorf("Set: %v (%v, %v), want %v, %v", err, fault.Of(err), fault.ReasonOf(err), tt.code, tt.reason)
			}
		})
	}
	if err := s.s.Invalidate(t.Context(), "cache", "", cache.Invalidation{}); fault.Of(err) != fault.Invalid {
		t.Errorf("Invalidate of nothing: %v", err)
	}
	if _, err := s.s.Fill(t.Context(), "cache", "", "k", "", cache.Filling{}); fault.ReasonOf(err) != cache.NoLease {
		t.Errorf("Fill without a lease: %v", err)
	}
	if ok, err := s.s.Fill(t.Context(), "cache", "", "k", "nonsense", cache.Filling{}); err != nil || ok {
		t.Errorf("Fill of nonsense: %v, %v", ok, err)
	}
}

// Whatever writers, loaders and invalidations do at once, in the end the cache says what the
// database says: no load brings an old value back.
func TestEndsTrue(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			s := newShared(t, nil)
			sidecars := []*cache.Service{sidecar(t, s, nil), sidecar(t, s, nil), sidecar(t, s, nil)}
			var mu sync.Mutex
			database := map[string]int{}
			read := func(key string) int { mu.Lock(); defer mu.Unlock(); return database[key] }
			var wg sync.WaitGroup
			for w := range 9 {
				svc := sidecars[w%3]
				own := rand.New(rand.NewPCG(seed, rnd.Uint64()))
				wg.Go(func() {
					for range 40 {
						key := fmt.Sprint("k", own.IntN(2))
						o := cache.Options{TTL: time.Duration(1+own.IntN(20)) * time.Millisecond * 10, StaleTTL: 50 * time.Millisecond, Tags: []string{"t" + key}}
						switch own.IntN(4) {
						case 0: // write: first the database, then the cache
							mu.Lock()
							database[key]++
							mu.Unlock()
							time.Sleep(time.Duration(own.IntN(3)) * time.Millisecond)
							var err error
							switch own.IntN(3) {
							case 0:
								err = svc.Delete(t.Context(), "cache", "", key)
							case 1:
								err = svc.Invalidate(t.Context(), "cache", "", cache.Invalidation{Tags: []string{"t" + key}})
							default:
								err = svc.Invalidate(t.Context(), "cache", "", cache.Invalidation{All: true})
							}
							if err != nil {
								t.Error(err)
							}
						default:
							_, l, err := svc.GetOrLoad(t.Context(), "cache", "", key, o, 100*time.Millisecond, time.Second)
							if err != nil {
								t.Error(err)
							}
							if l == nil {
								continue
							}
							v := read(key)
							time.Sleep(time.Duration(own.IntN(10)) * time.Millisecond)
							if own.IntN(10) == 0 {
								continue // the loader dies
							}
							if _, err := svc.Fill(t.Context(), "cache", "", key, l.ID, cache.Filling{Value: fmt.Append(nil, v)}); err != nil {
								t.Error(err)
							}
						}
					}
				})
			}
			wg.Wait()
			settled()
			for i, svc := range sidecars {
				for key := range database {
					c := client{t, svc, ""}
					if e := c.get(key); e.Status == cache.Hit && string(e.Value) != fmt.Sprint(database[key]) {
						t.Errorf("seed %d: sidecar %d has %s = %s, the database %d", seed, i, key, e.Value, database[key])
					}
				}
			}
		})
	}
}
