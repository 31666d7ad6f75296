// Package cache is the cache block: entries in the sidecar's memory (near) and in a shared store,
// kept true to each other as each namespace asks for, with leases so that one caller loads what
// many want, tags to invalidate by, and stale entries where the loader or the store fails.
//
// It leaves to the edges: the forms of requests. It leaves to the backends: keeping bytes, telling
// of changes. What a backend keeps is an envelope of this package (envelope.go), which is opaque
// to it.
//
// Reads look in memory first; that is not a call on the component, so a breaker that is open or a
// rate limit does not take near entries away, but a rule that denies the operation does. Whatever
// asks the shared store is one call under the component's policy.
//
// # How an entry ends
//
// It is fresh until its ttl has passed and stale until its stale_ttl has passed too. It is good
// only while the tags it was written with, and its namespace, have the numbers they had then
// (stamps.go).
//
// # Coherence
//
// With coherence invalidate a near entry is believed for maxAge at most, and only while the store's
// feed of changes is followed without a gap. When the feed breaks, near entries are asked for
// again; if the store cannot answer, they are served as stale where stale entries may be. A
// sidecar's own writes move the near cache before they are acknowledged.
//
// Start at Service; reads are in read.go, writes in write.go, leases in load.go, what follows the
// feed in feed.go.
//
// # Errors
//
//	NotReady, fault.NoComponents     no cache is configured
//	NotFound, fault.NoSuchComponent  another name
//	Invalid,  fault.EmptyName        no key
//	Invalid,  fault.IllegalKey       a key, namespace or tag contains "||" or is too long
//	Invalid,  fault.BadExpiry        a time that cannot be
//	Invalid,  BadOption              another option that cannot be
//	Invalid,  NotNumber              Increment of something else
//	NotFound, NoLease                Fill of a lease that is not this entry's, or not of this sidecar
//	Deadline, Waited                 another's load took longer than the caller would wait
//	Unavailable, LoadFailed          another's load failed
//	Conflict, fault.Fenced           a later epoch has written
//	Unsupported                      the store cannot do what is asked
package cache

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
)

// Reasons of this block's own.
const (
	BadOption  fault.Reason = "bad_option"
	NotNumber  fault.Reason = "not_a_number"
	NoLease    fault.Reason = "no_such_lease"
	Waited     fault.Reason = "load_too_slow"
	LoadFailed fault.Reason = "load_failed"
	BadPrefix  fault.Reason = "bad_key_prefix"
)

// separator stands between the parts of a stored key. Callers may not use it.
const separator = "||"

// Limits of what callers name.
const (
	maxKey       = 1024 // bytes
	maxNamespace = 128  // bytes
	maxSpaces    = 10_000
)

// Recorder counts operations. result is hit, stale, absent or miss of reads, ok or error of others.
type Recorder interface {
	Cache(component, operation, result string, took time.Duration)
}

// Service serves the cache block. It is safe for concurrent use. Close it.
type Service struct {
	stores *catalog.Store[block.Cache]
	self   identity.Self
	caller call.Caller
	log    *slog.Logger
	rec    Recorder

	life context.Context // of everything in the background
	end  context.CancelFunc
	work sync.WaitGroup

	watches    context.Context // of all watches
	endWatches context.CancelFunc

	mu     sync.Mutex
	over   bool                              // guarded by mu
	caches atomic.Pointer[map[string]*cache] // replaced under mu
}

// New makes the service. rec may be nil.
func New(stores *catalog.Store[block.Cache], self identity.Self, rec Recorder, log *slog.Logger) *Service {
	s := &Service{stores: stores, self: self, rec: rec, log: log, caller: call.Caller{App: self.App, Namespace: self.Namespace, Proven: true}}
	s.life, s.end = context.WithCancel(context.Background())
	s.watches, s.endWatches = context.WithCancel(s.life)
	s.caches.Store(&map[string]*cache{})
	return s
}

// Close ends what runs in the background and empties the near caches.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	s.over = true
	all := *s.caches.Load()
	s.caches.Store(&map[string]*cache{})
	s.mu.Unlock()
	s.end()
	for _, c := range all {
		c.close()
	}
	done := make(chan struct{})
	go func() { s.work.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fault.Wrap("cache.Close", fault.Deadline, ctx.Err())
	}
}

// background runs f beside the callers; it reports false when the service is closing.
func (s *Service) background(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	s.work.Go(f)
	return true
}

// cache is a component with what this sidecar keeps of it. A component that is replaced gets a new
// one.
type cache struct {
	s      *Service
	h      *catalog.Handle[block.Cache]
	name   string
	conf   block.CacheConfig
	prefix string // what stands before <namespace>||<key>
	near   *near  // of all namespaces without one of their own
	cells  *otter.Cache[string, *cell]
	life   context.Context
	end    context.CancelFunc

	epoch   atomic.Uint64 // of the feed; 0 while it is not followed
	epochs  atomic.Uint64 // given out
	feeding sync.Once

	mu       sync.Mutex
	spaces   atomic.Pointer[map[string]*space] // replaced under mu
	flights  map[string]*flight                // guarded by mu; by <namespace>||<key>
	leases   map[string]*flight                // guarded by mu; by lease id
	waiting  map[string][]chan struct{}        // guarded by mu; who waits for a change of a key
	watchers map[*watcher]struct{}             // guarded by mu
	counters [256]chan struct{}                // one caller at a time increments what shares a slot
	touching chan struct{}                     // slots of background renewals
}

// space is a namespace of a cache.
type space struct {
	c     *cache
	name  string
	conf  block.CacheConfig
	near  *near
	own   bool  // near is this namespace's alone
	gen   *cell // the number of the namespace
	stats counts
}

// open finds a cache by name. One of a component that was replaced is closed.
func (s *Service) open(name string) (*cache, error) {
	h, err := s.stores.Lookup(name)
	if err != nil {
		return nil, err
	}
	if c := (*s.caches.Load())[name]; c != nil && c.h == h {
		return c, nil
	}
	return s.make(name)
}

func (s *Service) make(name string) (*cache, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, err := s.stores.Lookup(name)
	if err != nil {
		return nil, err
	}
	old := (*s.caches.Load())[name]
	if old != nil && old.h == h {
		return old, nil
	}
	if s.over {
		return nil, fault.New("cache.open", fault.NotReady, "the sidecar is stopping").WithSent(fault.SentNever)
	}
	prefix, err := s.prefix(h.Info)
	if err != nil {
		return nil, err
	}
	c := &cache{s: s, h: h, name: h.Name, conf: block.DefaultCacheConfig(), prefix: prefix, cells: newCells(), flights: map[string]*flight{},
		leases: map[string]*flight{}, waiting: map[string][]chan struct{}{}, watchers: map[*watcher]struct{}{}, touching: make(chan struct{}, 32)}
	if h.Cache != nil {
		c.conf = *h.Cache
	}
	for i := range c.counters {
		c.counters[i] = make(chan struct{}, 1)
	}
	c.near = newNear(uint64(max(c.conf.NearBytes, 0)))
	c.life, c.end = context.WithCancel(s.life)
	c.spaces.Store(&map[string]*space{})
	next := make(map[string]*cache, 1)
	for k, v := range *s.caches.Load() {
		next[k] = v
	}
	next[c.name] = c
	s.caches.Store(&next)
	if old != nil {
		go old.close() // it may wait for a caller that waits for us
	}
	s.work.Go(func() { // so that whoever closes the component need not wait for its feed
		select {
		case <-h.Gone():
			c.end()
		case <-c.life.Done():
		}
	})
	return c, nil
}

func (c *cache) close() {
	c.end()
	c.mu.Lock()
	flights := make([]*flight, 0, len(c.flights))
	for _, f := range c.flights {
		flights = append(flights, f)
	}
	spaces := *c.spaces.Load()
	c.mu.Unlock()
	for _, f := range flights {
		f.finish(outcome{retry: true})
	}
	for _, sp := range spaces {
		if sp.own {
			sp.near.close()
		}
	}
	c.near.close()
	c.cells.StopAllGoroutines()
}

// CheckPrefix judges a cache's keyPrefix setting. The host calls it when it opens a cache, so that a
// bad one is reported at start.
func CheckPrefix(info catalog.Info) error {
	_, err := (identity.Self{}).KeyPrefix(info.Raw["keyprefix"], info.Name)
	if err != nil {
		return fault.New("cache.open", fault.Invalid, "%s", err.Error()).With(BadPrefix)
	}
	return nil
}

// prefix is what stands before the app's keys.
func (s *Service) prefix(info catalog.Info) (string, error) {
	own, err := s.self.KeyPrefix(info.Raw["keyprefix"], info.Name)
	if err != nil {
		return "", CheckPrefix(info)
	}
	if own != "" {
		own += separator
	}
	return "cache" + separator + own, nil
}

// space finds a namespace of a cache.
func (s *Service) space(cacheName, namespace string) (*space, error) {
	c, err := s.open(cacheName)
	if err != nil {
		return nil, err
	}
	if sp := (*c.spaces.Load())[namespace]; sp != nil {
		return sp, nil
	}
	return c.newSpace(namespace)
}

func (c *cache) newSpace(namespace string) (*space, error) {
	const op fault.Op = "cache.space"
	if len(namespace) > maxNamespace || strings.Contains(namespace, separator) {
		return nil, fault.New(op, fault.Invalid, "namespace %.200q: at most %d bytes without %q", namespace, maxNamespace, separator).With(fault.IllegalKey)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all := *c.spaces.Load()
	if sp := all[namespace]; sp != nil {
		return sp, nil
	}
	if len(all) >= maxSpaces {
		return nil, fault.New(op, fault.Exhausted, "cache %s has %d namespaces in use, the most there can be; put what varies into keys", c.name, maxSpaces)
	}
	namespace = strings.Clone(namespace)
	sp := &space{c: c, name: namespace, conf: c.conf.Of(namespace), near: c.near, gen: new(cell)}
	if c.conf.OwnNear(namespace) {
		sp.near, sp.own = newNear(uint64(max(sp.conf.NearBytes, 0))), true
	}
	if sp.conf.Coherence == block.CoherenceStrong {
		if sp.own {
			sp.near.close()
		}
		sp.near, sp.own = nil, false
	}
	if sp.near != nil && sp.conf.Coherence == block.CoherenceInvalidate {
		c.feed()
	}
	next := make(map[string]*space, len(all)+1)
	for k, v := range all {
		next[k] = v
	}
	next[namespace] = sp
	c.spaces.Store(&next)
	return sp, nil
}

// nearKey is a key in memory; the stored key is the cache's prefix and this.
func (sp *space) nearKey(key string) string { return sp.name + separator + key }

func checkKey(key string) error {
	switch {
	case key == "":
		return fault.New("cache.key", fault.Invalid, "the key is empty").With(fault.EmptyName)
	case len(key) > maxKey:
		return fault.New("cache.key", fault.Invalid, "the key has %d bytes; at most %d are allowed", len(key), maxKey).With(fault.IllegalKey)
	case strings.Contains(key, separator):
		return fault.New("cache.key", fault.Invalid, "key '%s' can't contain '%s'", key, separator).With(fault.IllegalKey)
	}
	return nil
}

// desc describes an operation on a key of a namespace.
func (sp *space) desc(op, key string, safety call.Safety) call.Desc {
	resource := key
	if sp.name != "" {
		resource = sp.name + "/" + key
	}
	return call.Desc{Op: op, Resource: resource, Key: key, Safety: safety, Caller: sp.c.s.caller}
}

// allowed judges an operation that the near cache answers: limits and breakers are for the shared
// store, but what is denied is denied.
func (sp *space) allowed(ctx context.Context, op, key string) error {
	if sp.c.h.Target.Chain() == nil {
		return nil
	}
	c, err := call.Begin(ctx, sp.c.h.Target, sp.desc(op, key, call.Safe))
	if err == nil {
		err = c.End(nil)
	}
	if fault.Of(err) == fault.Denied {
		return err
	}
	return nil
}

// The operations on the shared store, each one call under the component's policy. Keys are without
// the cache's prefix.

func (c *cache) load(ctx context.Context, sp *space, keys []string) ([]block.CacheEntry, error) {
	return catalog.Read(ctx, c.h, sp.desc("get", c.own(keys[0]), call.Safe), c.stored(keys), &loading)
}

var loading = catalog.Reading[block.Cache, []string, []block.CacheEntry]{
	Fn: func(ctx context.Context, store block.Cache, keys []string) ([]block.CacheEntry, error) {
		return store.Load(ctx, keys)
	},
	Keep: func(keys []string) []string { return keys }, // made for this call
}

func (c *cache) store(ctx context.Context, sp *space, ws []block.CacheWrite) ([]string, error) {
	return catalog.Do(ctx, c.h, sp.desc("set", c.own(ws[0].Key), call.Idempotent), func(ctx context.Context, store block.Cache) ([]string, error) {
		return store.Store(ctx, c.writes(ws))
	}, nil)
}

func (c *cache) storeFenced(ctx context.Context, sp *space, fence string, epoch uint64, w block.CacheWrite) (string, error) {
	return catalog.Do(ctx, c.h, sp.desc("set", c.own(w.Key), call.Idempotent), func(ctx context.Context, store block.Cache) (string, error) {
		f, ok := store.(block.CacheFence)
		if !ok {
			return "", fault.New("cache.Set", fault.Unsupported, "cache %s cannot check and raise an epoch together with a write", c.name).With(fault.NoFence)
		}
		return f.StoreFenced(ctx, c.prefix+fence, epoch, minStampTTL, c.writes([]block.CacheWrite{w})[0])
	}, nil)
}

func (c *cache) swap(ctx context.Context, sp *space, w block.CacheWrite, over string) (version string, done bool, err error) {
	type result struct {
		version string
		done    bool
	}
	r, err := catalog.Do(ctx, c.h, sp.desc("swap", c.own(w.Key), call.Conditional), func(ctx context.Context, store block.Cache) (r result, err error) {
		r.version, r.done, err = store.Swap(ctx, c.writes([]block.CacheWrite{w})[0], over)
		return r, err
	}, nil)
	return r.version, r.done, err
}

func (c *cache) remove(ctx context.Context, sp *space, keys []string) error {
	_, err := catalog.Do(ctx, c.h, sp.desc("delete", c.own(keys[0]), call.Idempotent), func(ctx context.Context, store block.Cache) (struct{}, error) {
		return struct{}{}, store.Drop(ctx, c.stored(keys))
	}, nil)
	return err
}

func (c *cache) stored(keys []string) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = c.prefix + k
	}
	return out
}

func (c *cache) writes(ws []block.CacheWrite) []block.CacheWrite {
	out := make([]block.CacheWrite, len(ws))
	for i, w := range ws {
		w.Key = c.prefix + w.Key
		out[i] = w
	}
	return out
}

// own is the caller's part of a key.
func (c *cache) own(nearKey string) string {
	_, key, _ := strings.Cut(nearKey, separator)
	return key
}

func nowMS() int64 { return time.Now().UnixMilli() }

func (sp *space) record(op, result string, start time.Time) {
	if r := sp.c.s.rec; r != nil {
		r.Cache(sp.c.name, op, result, time.Since(start))
	}
}

// ended is the word for how an operation ended.
func ended(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
