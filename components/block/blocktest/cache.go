package blocktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Cache checks the shared store of a cache. open prepares a store and returns a way to open
// components on it: each call is another client, as another sidecar would be. A store without a
// server is the same component each time. Keys are unique to the subtest; the suite closes what it
// opens.
func Cache(t *testing.T, open func(t *testing.T) func() block.Cache) {
	t.Helper()
	suite(t, block.KindCache)
	groups := []struct {
		name string
		run  func(*cacheTest)
	}{
		{"store, load, drop", cacheRoundTrip},
		{"keys and values of every shape", cacheShapes},
		{"entries end", cacheExpiry},
		{"swap", cacheSwap},
		{"one winner", cacheOneWinner},
		{"the feed", cacheFeed},
		{"the feed misses nothing", cacheFeedComplete},
		{"keys", cacheKeys},
		{"fences", cacheFence},
		{"bad input", cacheBad},
		{"an ended context", cacheContext},
		{"close", cacheClose},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			client := open(t)
			c := &cacheTest{T: t, prefix: "cache||" + unique() + "||", client: func() block.Cache {
				c := client()
				t.Cleanup(func() { closeQuietly(t, c) })
				return c
			}}
			c.store = c.client()
			g.run(c)
		})
	}
}

type cacheTest struct {
	*testing.T
	client func() block.Cache
	store  block.Cache
	prefix string
}

func (c *cacheTest) ctx() context.Context   { return patiently(c.T) }
func (c *cacheTest) key(part string) string { return c.prefix + part }

func (c *cacheTest) put(s block.Cache, key, value string) string {
	c.Helper()
	vs, err := s.Store(c.ctx(), []block.CacheWrite{{Key: c.key(key), Value: []byte(value), TTL: time.Hour}})
	if err != nil || len(vs) != 1 || vs[0] == "" {
		c.Fatalf("Store %s: versions %q, %v", show(key), vs, err)
	}
	return vs[0]
}

func (c *cacheTest) load(s block.Cache, keys ...string) []block.CacheEntry {
	c.Helper()
	for i := range keys {
		keys[i] = c.key(keys[i])
	}
	es, err := s.Load(c.ctx(), keys)
	if err != nil || len(es) != len(keys) {
		c.Fatalf("Load of %d keys: %d entries, %v", len(keys), len(es), err)
	}
	return es
}

// has compares an entry; "-" is none.
func (c *cacheTest) has(s block.Cache, key, want string) block.CacheEntry {
	c.Helper()
	e := c.load(s, key)[0]
	got := "-"
	if e.Version != "" {
		got = string(e.Value)
	}
	if got != want {
		c.Errorf("%s has %s, want %s", show(key), show(got), show(want))
	}
	return e
}

func (c *cacheTest) swap(s block.Cache, key, value, over string) (string, bool) {
	c.Helper()
	w := block.CacheWrite{Key: c.key(key), TTL: time.Hour}
	if value != "" {
		w.Value = []byte(value)
	}
	v, ok, err := s.Swap(c.ctx(), w, over)
	if err != nil || (ok && value != "" && v == "") || (!ok && v != "") {
		c.Fatalf("Swap %s over %q: version %q, %v, %v", show(key), over, v, ok, err)
	}
	return v, ok
}

func cacheRoundTrip(c *cacheTest) {
	if err := c.store.Ping(c.ctx()); err != nil {
		c.Fatalf("Ping: %v", err)
	}
	if c.store.Config().DefaultTTL <= 0 {
		c.Errorf("Config: %+v", c.store.Config())
	}
	other := c.client()
	c.has(c.store, "k", "-")
	v1 := c.put(c.store, "k", "one")
	if e := c.has(other, "k", "one"); e.Version != v1 {
		c.Errorf("another client sees version %q, want %q", e.Version, v1)
	}
	v2 := c.put(other, "k", "one") // the same value is another write
	if v1 == v2 {
		c.Error("two writes have one version")
	}
	if e := c.has(c.store, "k", "one"); e.Version != v2 {
		c.Errorf("version %q, want %q", e.Version, v2)
	}
	if err := c.store.Drop(c.ctx(), []string{c.key("k"), c.key("never")}); err != nil {
		c.Errorf("Drop: %v", err)
	}
	c.has(other, "k", "-")
	if v := c.put(c.store, "k", "again"); v == v1 || v == v2 {
		c.Error("a version comes back after the entry was removed")
	}
	// Several at once, in order, one twice.
	vs, err := c.store.Store(c.ctx(), []block.CacheWrite{{Key: c.key("a"), Value: []byte("1"), TTL: time.Hour}, {Key: c.key("b"), Value: []byte("2"), TTL: time.Hour}})
	if err != nil || len(vs) != 2 {
		c.Fatalf("Store of two: %v, %v", vs, err)
	}
	es := c.load(other, "b", "none", "a", "b")
	if string(es[0].Value) != "2" || es[1].Version != "" || es[1].Value != nil || string(es[2].Value) != "1" || es[2].Version != vs[0] || es[3].Version != vs[1] {
		c.Errorf("Load of four: %q", es)
	}
	if es, err := c.store.Load(c.ctx(), nil); err != nil || len(es) != 0 {
		c.Errorf("Load of nothing: %v, %v", es, err)
	}
	if err := c.store.Drop(c.ctx(), nil); err != nil {
		c.Errorf("Drop of nothing: %v", err)
	}
}

func cacheShapes(c *cacheTest) {
	for _, k := range []string{"plain", "with space", "a.b*c>d?e[f]", "ключ 鍵", "\x01\xff", strings.Repeat("long", 200), "||#||tag", "a/b:c"} {
		c.put(c.store, k, "v "+k)
		c.has(c.store, k, "v "+k)
	}
	for name, v := range map[string][]byte{"empty": {}, "binary": noise(300), "zeros": make([]byte, 100), "large": noise(700_000)} {
		vs, err := c.store.Store(c.ctx(), []block.CacheWrite{{Key: c.key(name), Value: v, TTL: time.Hour}})
		if err != nil {
			c.Errorf("Store of a value that is %s: %v", name, err)
			continue
		}
		if e := c.load(c.store, name)[0]; !bytes.Equal(e.Value, v) || e.Version != vs[0] {
			c.Errorf("a value that is %s came back as %d bytes, version %q", name, len(e.Value), e.Version)
		}
	}
	// What comes back is the caller's.
	c.put(c.store, "mine", "abc")
	c.load(c.store, "mine")[0].Value[0] = 'X'
	c.has(c.store, "mine", "abc")
}

func cacheExpiry(c *cacheTest) {
	const ttl = 1500 * time.Millisecond
	at := time.Now()
	if _, err := c.store.Store(c.ctx(), []block.CacheWrite{{Key: c.key("k"), Value: []byte("v"), TTL: ttl}}); err != nil {
		c.Fatal(err)
	}
	v, ok := c.swap(c.store, "s", "v", "")
	if !ok {
		c.Fatal("not made")
	}
	if _, ok, err := c.store.Swap(c.ctx(), block.CacheWrite{Key: c.key("s"), Value: []byte("short"), TTL: ttl}, v); err != nil || !ok {
		c.Fatalf("Swap: %v, %v", ok, err)
	}
	for _, key := range []string{"k", "s"} {
		waitFor(c, "the entry to end", func() bool { return c.load(c.store, key)[0].Version == "" })
		if took := time.Since(at); took < ttl {
			c.Errorf("%s ended after %v, want %v or more", key, took, ttl)
		}
	}
	if _, ok := c.swap(c.store, "k", "new", ""); !ok {
		c.Error("an entry that has ended is in the way")
	}
	c.has(c.store, "k", "new")
}

func cacheSwap(c *cacheTest) {
	other := c.client()
	v1, ok := c.swap(c.store, "k", "1", "")
	if !ok {
		c.Fatal("not made where there was none")
	}
	if _, ok := c.swap(other, "k", "2", ""); ok {
		c.Error("made where there was one")
	}
	if _, ok := c.swap(other, "k", "2", "zz"); ok {
		c.Error("swapped over nonsense")
	}
	v2, ok := c.swap(other, "k", "2", v1)
	if !ok || v2 == v1 {
		c.Fatalf("not swapped over %q: %q, %v", v1, v2, ok)
	}
	if e := c.has(c.store, "k", "2"); e.Version != v2 {
		c.Errorf("version %q, want %q", e.Version, v2)
	}
	if _, ok := c.swap(c.store, "k", "3", v1); ok {
		c.Error("swapped over an old version")
	}
	if _, ok := c.swap(c.store, "k", "", v1); ok {
		c.Error("removed over an old version")
	}
	if _, ok := c.swap(c.store, "k", "", v2); !ok {
		c.Error("not removed")
	}
	c.has(other, "k", "-")
	if _, ok := c.swap(c.store, "k", "4", v2); ok {
		c.Error("swapped over what was removed")
	}
	if _, ok := c.swap(c.store, "never", "4", v2); ok {
		c.Error("swapped over what never was")
	}
	// A write by others counts.
	v3, _ := c.swap(c.store, "k", "3", "")
	c.put(other, "k", "theirs")
	if _, ok := c.swap(c.store, "k", "mine", v3); ok {
		c.Error("swapped over another's write")
	}
	// An empty value is a value.
	v, ok, err := c.store.Swap(c.ctx(), block.CacheWrite{Key: c.key("empty"), Value: []byte{}, TTL: time.Hour}, "")
	if err != nil || !ok || v == "" {
		c.Fatalf("Swap of an empty value: %q, %v, %v", v, ok, err)
	}
	if e := c.load(other, "empty")[0]; e.Version != v {
		c.Errorf("an empty value has version %q, want %q", e.Version, v)
	}
}

func cacheOneWinner(c *cacheTest) {
	clients := []block.Cache{c.store, c.client(), c.client()}
	over := ""
	for round := range 10 {
		wins := make(chan string, 30)
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				v, ok, err := clients[i%3].Swap(c.ctx(), block.CacheWrite{Key: c.key("k"), Value: fmt.Append(nil, round, i), TTL: time.Hour}, over)
				if err != nil {
					c.Errorf("Swap: %v", err)
				}
				if ok {
					wins <- v
				}
			})
		}
		wg.Wait()
		if len(wins) != 1 {
			c.Fatalf("round %d has %d winners", round, len(wins))
		}
		over = <-wins
	}
	if e := c.load(c.store, "k")[0]; e.Version != over {
		c.Errorf("version %q, want the last winner's %q", e.Version, over)
	}
}

// ear collects what a feed tells.
type ear struct {
	mu       sync.Mutex
	versions map[string][]string
	any      int
}

func (e *ear) hear(changes []block.CacheChange) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ch := range changes {
		if ch.Key == "" {
			e.any++
		}
		e.versions[ch.Key] = append(e.versions[ch.Key], ch.Version)
	}
}

func (e *ear) count(key string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.versions[key])
}

// follow follows a prefix until the end of the test; nil when that is not offered.
func (c *cacheTest) follow(s block.Cache, prefix string) *ear {
	c.Helper()
	f, ok := s.(block.CacheFeed)
	if !ok {
		return nil // not offered
	}
	e := &ear{versions: map[string][]string{}}
	started, over := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		n := 0
		over <- f.Follow(ctx, prefix, func() {
			if n++; n == 1 {
				close(started)
			} else {
				c.Error("started was called twice")
			}
		}, e.hear)
	}()
	select {
	case <-started:
	case err := <-over:
		cancel()
		c.Fatalf("Follow ended with %v", err)
	case <-time.After(patience):
		c.Fatal("the feed does not start")
	}
	c.Cleanup(func() {
		cancel()
		select {
		case err := <-over:
			if !errors.Is(err, context.Canceled) {
				c.Errorf("Follow ended with %v, want its context's error", err)
			}
		case <-time.After(patience):
			c.Error("Follow does not end with its context")
		}
	})
	return e
}

func cacheFeed(c *cacheTest) {
	other := c.client() // closed behind the feeds, as it may be the one that is followed
	e := c.follow(c.store, c.prefix)
	if e == nil {
		notOffered(c.T, "the store tells of no changes")
		return
	}
	narrow := c.follow(c.store, c.key("p"))
	told := func(key string, n int, what string) {
		c.Helper()
		waitFor(c, "news of "+what, func() bool { return e.count(c.key(key)) >= n })
	}
	c.put(other, "k", "1")
	told("k", 1, "a write")
	v, _ := c.swap(other, "k", "2", c.load(other, "k")[0].Version)
	told("k", 2, "a swap")
	if v == "" {
		c.Error("not swapped")
	}
	if err := other.Drop(c.ctx(), []string{c.key("k")}); err != nil {
		c.Fatal(err)
	}
	told("k", 3, "a removal")
	v, _ = c.swap(other, "s", "1", "")
	told("s", 1, "a first swap")
	c.swap(other, "s", "", v)
	told("s", 2, "a removal by swap")
	c.put(other, "p1", "1")
	waitFor(c, "news by prefix", func() bool { return narrow.count(c.key("p1")) == 1 })
	if n := narrow.count(c.key("k")); n != 0 {
		c.Errorf("news of another prefix: %d", n)
	}
	c.put(other, "odd *?[]\\.> key", "1")
	told("odd *?[]\\.> key", 1, "an odd key")
}

// A change that is told is visible, and after the last news of a key nothing is newer.
func cacheFeedComplete(c *cacheTest) {
	writers := []block.Cache{c.client(), c.client()} // closed behind the feed
	e := c.follow(c.store, c.prefix)
	if e == nil {
		notOffered(c.T, "the store tells of no changes")
		return
	}
	var wg sync.WaitGroup
	const keys, writes = 5, 100
	for w, s := range writers {
		wg.Go(func() {
			for i := range writes {
				c.put(s, fmt.Sprint("k", i%keys), fmt.Sprint(w, "-", i))
			}
		})
	}
	wg.Wait()
	c.put(c.store, "last", "1")
	waitFor(c, "the last news", func() bool { return e.count(c.key("last")) == 1 })
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range keys {
		key := fmt.Sprint("k", i)
		told := e.versions[c.key(key)]
		if len(told) == 0 {
			c.Errorf("no news of %s", key)
			continue
		}
		if last := told[len(told)-1]; last != "" && last != c.load(c.store, key)[0].Version {
			c.Errorf("the last news of %s are not of its last write", key)
		}
	}
	if e.any > 0 {
		c.Errorf("%d times any key may have changed", e.any)
	}
}

func cacheKeys(c *cacheTest) {
	scan, ok := c.store.(block.CacheScan)
	if !ok {
		notOffered(c.T, "the store does not list its keys")
		return
	}
	want := []string{}
	var ws []block.CacheWrite
	for i := range 1500 {
		key := c.key(fmt.Sprintf("p*[%d]", i))
		want = append(want, key)
		ws = append(ws, block.CacheWrite{Key: key, Value: []byte("v"), TTL: time.Hour})
	}
	ws = append(ws, block.CacheWrite{Key: c.key("pX[1]"), Value: []byte("v"), TTL: time.Hour}, block.CacheWrite{Key: c.key("q"), Value: []byte("v"), TTL: time.Hour})
	if _, err := c.store.Store(c.ctx(), ws); err != nil {
		c.Fatal(err)
	}
	var got []string
	most := 0
	if err := scan.Keys(c.ctx(), c.key("p*["), func(keys []string) error {
		most = max(most, len(keys))
		got = append(got, keys...)
		return nil
	}); err != nil {
		c.Fatal(err)
	}
	slices.Sort(want)
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		c.Errorf("%d keys, want %d", len(got), len(want))
	}
	if most == len(want) {
		c.Error("all keys came at once")
	}
	stop := errors.New("enough")
	if err := scan.Keys(c.ctx(), c.prefix, func([]string) error { return stop }); !errors.Is(err, stop) {
		c.Errorf("an error of each: %v", err)
	}
	if err := scan.Keys(c.ctx(), c.key("none"), func([]string) error { return stop }); err != nil {
		c.Errorf("no keys: %v", err)
	}
}

func cacheFence(c *cacheTest) {
	f, ok := c.store.(block.CacheFence)
	if !ok {
		notOffered(c.T, "the store has no fences")
		return
	}
	write := func(epoch uint64, value string) error {
		v, err := f.StoreFenced(c.ctx(), c.key("fence"), epoch, time.Hour, block.CacheWrite{Key: c.key("k"), Value: []byte(value), TTL: time.Hour})
		if err == nil && c.load(c.store, "k")[0].Version != v {
			c.Errorf("epoch %d: version %q is not the entry's", epoch, v)
		}
		return err
	}
	last := ""
	for _, tt := range []struct {
		epoch uint64
		fine  bool
	}{{9, true}, {9, true}, {10, true}, {9, false}, {1 << 60, true}, {1<<60 - 1, false}, {1<<60 + 1, true}, {1 << 60, false}, {1<<64 - 1, true}, {1<<64 - 2, false}} {
		value := fmt.Sprint(tt.epoch)
		err := write(tt.epoch, value)
		switch {
		case tt.fine && err != nil:
			c.Errorf("epoch %d: %v", tt.epoch, err)
		case tt.fine:
			last = value
		case fault.Of(err) != fault.Conflict || fault.ReasonOf(err) != fault.Fenced:
			c.Errorf("epoch %d: %v, want it refused", tt.epoch, err)
		}
		c.has(c.store, "k", last)
	}
}

func cacheBad(c *cacheTest) {
	for _, ttl := range []time.Duration{0, -time.Second} {
		w := block.CacheWrite{Key: c.key("k"), Value: []byte("v"), TTL: ttl}
		if _, err := c.store.Store(c.ctx(), []block.CacheWrite{w}); fault.Of(err) != fault.Invalid {
			c.Errorf("Store for %v: %v", ttl, err)
		}
		if _, _, err := c.store.Swap(c.ctx(), w, ""); fault.Of(err) != fault.Invalid {
			c.Errorf("Swap for %v: %v", ttl, err)
		}
	}
	c.has(c.store, "k", "-")
}

func cacheContext(c *cacheTest) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w := block.CacheWrite{Key: c.key("k"), Value: []byte("v"), TTL: time.Hour}
	for name, f := range map[string]func() error{
		"Load":  func() error { _, err := c.store.Load(ctx, []string{w.Key}); return err },
		"Store": func() error { _, err := c.store.Store(ctx, []block.CacheWrite{w}); return err },
		"Swap":  func() error { _, _, err := c.store.Swap(ctx, w, ""); return err },
		"Drop":  func() error { return c.store.Drop(ctx, []string{w.Key}) },
	} {
		if err := f(); !errors.Is(err, context.Canceled) {
			c.Errorf("%s: %v, want the context's error", name, err)
		}
	}
	c.has(c.store, "k", "-")
}

func cacheClose(c *cacheTest) {
	ended := make(chan error, 1)
	if f, ok := c.store.(block.CacheFeed); ok {
		started := make(chan struct{})
		go func() {
			ended <- f.Follow(c.ctx(), c.prefix, func() { close(started) }, func([]block.CacheChange) {})
		}()
		select {
		case <-started:
		case err := <-ended:
			ended <- err
		}
	} else {
		ended <- fault.New("cache", fault.Unavailable, "there is no feed")
	}
	for range 2 {
		closeQuietly(c.T, c.store)
	}
	select {
	case err := <-ended:
		if code := fault.Of(err); code != fault.Unavailable && code != fault.Unsupported {
			c.Errorf("the feed ended with %v", err)
		}
	case <-time.After(patience):
		c.Error("the feed does not end with the component")
	}
	if _, err := c.store.Load(c.ctx(), []string{c.key("k")}); fault.Of(err) != fault.Unavailable {
		c.Errorf("Load after Close: %v", err)
	}
}
