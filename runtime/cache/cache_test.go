package cache_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
		settled() // the news of the own write would take the entry out of memory again
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
		b.invalidate(cache.Invalidation{Tags: []string{"x"}})
		a.invalidate(cache.Invalidation{Tags: []string{"x"}})
		a.want("k", "-")
		settled() // the news of both reach what is kept under the tag from now on
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
