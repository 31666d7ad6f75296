package memory

import (
	"context"
	"hash/maphash"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// CacheConfig configures a cache in memory. Its own store is as near as entries can be, so there
// is no near cache in front of it.
type CacheConfig struct {
	// MaxBytes bounds the cache: keys, values and about 200 bytes of bookkeeping for each entry.
	MaxBytes conf.ByteSize `yaml:"maxBytes"`
	// DefaultTTL is how long entries are fresh that are written without a ttl.
	DefaultTTL time.Duration `yaml:"defaultTTL" unit:"s"`
	// NegativeTTL is how long the news are kept that there is no value; 0 means not at all.
	NegativeTTL time.Duration `yaml:"negativeTTL" unit:"s"`
	// Jitter spreads ends: each ttl is changed at random by up to this part of it, 0 to 1.
	Jitter float64 `yaml:"jitter"`
}

// DefaultCacheConfig returns the defaults.
func DefaultCacheConfig() *CacheConfig {
	d := block.DefaultCacheConfig()
	return &CacheConfig{MaxBytes: 16 << 20, DefaultTTL: d.DefaultTTL, NegativeTTL: d.NegativeTTL, Jitter: d.Jitter}
}

// Validate reports what cannot work.
func (c *CacheConfig) Validate() error {
	if c.MaxBytes < 64<<10 {
		return conf.Bad("maxBytes", "%d bytes are too few; use at least 64Ki", int64(c.MaxBytes))
	}
	of := c.common()
	return of.Validate()
}

func (c *CacheConfig) common() block.CacheConfig {
	out := block.DefaultCacheConfig()
	out.Coherence, out.NearBytes = block.CoherenceStrong, 0
	out.DefaultTTL, out.NegativeTTL, out.Jitter = c.DefaultTTL, c.NegativeTTL, c.Jitter
	return out
}

var (
	_ block.Cache      = (*cache)(nil)
	_ block.CacheFeed  = (*cache)(nil)
	_ block.CacheScan  = (*cache)(nil)
	_ block.CacheFence = (*cache)(nil)
)

// cache keeps entries of this process. The library drops what is used least when there is no more
// room; what has ended is dropped when it is met.
type cache struct {
	config  block.CacheConfig
	max     uint64
	entries *otter.Cache[string, cached]
	seed    maphash.Seed
	writing [64]sync.Mutex // a key's writes are one after the other
	fencing sync.Mutex     // held by who takes two of them
	version atomic.Uint64
	closed  atomic.Bool

	mu        sync.Mutex
	followers map[*follower]struct{} // guarded by mu
}

type cached struct {
	value   []byte
	version uint64
	until   int64 // ms
}

const cacheEntryCost = 200

func weighCached(key string, c cached) uint32 {
	return uint32(len(key) + len(c.value) + cacheEntryCost)
}

// NewCache opens a cache that is alone in this process.
func NewCache(_ block.Env, c *CacheConfig) (block.Cache, error) {
	return &cache{seed: maphash.MakeSeed(), config: c.common(), max: uint64(c.MaxBytes), followers: map[*follower]struct{}{},
		entries: otter.Must(&otter.Options[string, cached]{MaximumWeight: uint64(c.MaxBytes), Weigher: weighCached})}, nil
}

// Config is how the service is to use it.
func (c *cache) Config() block.CacheConfig { return c.config }

// Ping succeeds until Close.
func (c *cache) Ping(ctx context.Context) error { return c.usable(ctx, "memory.cache.Ping") }

// Close ends the component and those who follow it.
func (c *cache) Close(context.Context) error {
	if c.closed.Swap(true) {
		return nil
	}
	c.entries.InvalidateAll()
	c.entries.StopAllGoroutines()
	c.mu.Lock()
	defer c.mu.Unlock()
	for f := range c.followers {
		close(f.end)
	}
	c.followers = nil
	return nil
}

func (c *cache) usable(ctx context.Context, op fault.Op) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	if c.closed.Load() {
		return fault.New(op, fault.Unavailable, "the component is closed").WithSent(fault.SentNever)
	}
	return nil
}

func (c *cache) get(key string) (cached, bool) {
	e, ok := c.entries.GetIfPresent(key)
	if ok && time.Now().UnixMilli() >= e.until {
		return cached{}, false
	}
	return e, ok
}

// lock makes the caller the only writer of a key.
func (c *cache) lock(key string) *sync.Mutex {
	mu := c.lockOf(key)
	mu.Lock()
	return mu
}

func (c *cache) lockOf(key string) *sync.Mutex {
	return &c.writing[maphash.String(c.seed, key)%uint64(len(c.writing))]
}

// both are the locks of two keys. Only one caller may hold two.
func (c *cache) both(a, b string) []*sync.Mutex {
	first, second := c.lockOf(a), c.lockOf(b)
	if first == second {
		return []*sync.Mutex{first}
	}
	return []*sync.Mutex{first, second}
}

// Load reads entries.
func (c *cache) Load(ctx context.Context, keys []string) ([]block.CacheEntry, error) {
	if err := c.usable(ctx, "memory.cache.Load"); err != nil {
		return nil, err
	}
	out := make([]block.CacheEntry, len(keys))
	for i, key := range keys {
		if e, ok := c.get(key); ok {
			out[i] = block.CacheEntry{Value: append(make([]byte, 0, len(e.value)), e.value...), Version: strconv.FormatUint(e.version, 36)}
		}
	}
	return out, nil
}

// Store writes entries.
func (c *cache) Store(ctx context.Context, ws []block.CacheWrite) ([]string, error) {
	if err := c.usable(ctx, "memory.cache.Store"); err != nil {
		return nil, err
	}
	versions := make([]string, len(ws))
	for i, w := range ws {
		mu := c.lock(w.Key)
		version, err := c.put(w)
		mu.Unlock()
		if err != nil {
			return nil, err
		}
		versions[i] = version
	}
	return versions, nil
}

// put writes an entry; its lock is held.
func (c *cache) put(w block.CacheWrite) (string, error) {
	if w.TTL <= 0 {
		return "", fault.New("memory.cache.Store", fault.Invalid, "the time to live is %v; it must be positive", w.TTL).With(fault.BadExpiry)
	}
	e := cached{value: append(make([]byte, 0, len(w.Value)), w.Value...), version: c.version.Add(1), until: time.Now().Add(w.TTL + time.Millisecond).UnixMilli()}
	if uint64(weighCached(w.Key, e)) > c.max {
		return "", fault.New("memory.cache.Store", fault.TooLarge, "the entry has %d bytes, and the cache keeps %d in all (maxBytes)", len(w.Value), c.max)
	}
	c.entries.Set(strings.Clone(w.Key), e)
	version := strconv.FormatUint(e.version, 36)
	c.tell(block.CacheChange{Key: w.Key, Version: version})
	return version, nil
}

// Swap writes an entry over a version.
func (c *cache) Swap(ctx context.Context, w block.CacheWrite, over string) (string, bool, error) {
	if err := c.usable(ctx, "memory.cache.Swap"); err != nil {
		return "", false, err
	}
	defer c.lock(w.Key).Unlock()
	is := ""
	if e, ok := c.get(w.Key); ok {
		is = strconv.FormatUint(e.version, 36)
	}
	switch {
	case is != over:
		return "", false, nil
	case w.Value == nil:
		c.entries.Invalidate(w.Key)
		c.tell(block.CacheChange{Key: w.Key})
		return "", true, nil
	}
	version, err := c.put(w)
	return version, err == nil, err
}

// Drop removes entries.
func (c *cache) Drop(ctx context.Context, keys []string) error {
	if err := c.usable(ctx, "memory.cache.Drop"); err != nil {
		return err
	}
	for _, key := range keys {
		mu := c.lock(key)
		c.entries.Invalidate(key)
		c.tell(block.CacheChange{Key: key})
		mu.Unlock()
	}
	return nil
}

// StoreFenced writes an entry under a fence.
func (c *cache) StoreFenced(ctx context.Context, fence string, epoch uint64, ttl time.Duration, w block.CacheWrite) (string, error) {
	if err := c.usable(ctx, "memory.cache.StoreFenced"); err != nil {
		return "", err
	}
	c.fencing.Lock() // before the locks of keys
	defer c.fencing.Unlock()
	for _, mu := range c.both(fence, w.Key) {
		mu.Lock()
		defer mu.Unlock()
	}
	if e, ok := c.get(fence); ok {
		if n, err := strconv.ParseUint(string(e.value), 10, 64); err == nil && n > epoch {
			return "", fault.New("memory.cache.StoreFenced", fault.Conflict, "epoch %d has written already", n).With(fault.Fenced)
		}
	}
	if _, err := c.put(block.CacheWrite{Key: fence, Value: strconv.AppendUint(nil, epoch, 10), TTL: ttl}); err != nil {
		return "", err
	}
	return c.put(w)
}

// Keys goes through the keys.
func (c *cache) Keys(ctx context.Context, prefix string, each func([]string) error) error {
	if err := c.usable(ctx, "memory.cache.Keys"); err != nil {
		return err
	}
	var part []string
	now := time.Now().UnixMilli()
	for key, e := range c.entries.All() {
		if now >= e.until || !strings.HasPrefix(key, prefix) {
			continue
		}
		if part = append(part, key); len(part) < 1000 {
			continue
		}
		if err := each(part); err != nil {
			return err
		}
		part = nil
		if err := c.usable(ctx, "memory.cache.Keys"); err != nil {
			return err
		}
	}
	if len(part) == 0 {
		return nil
	}
	return each(part)
}

// follower is one who is told of changes.
type follower struct {
	prefix string
	news   chan block.CacheChange
	lost   chan struct{} // closed when news did not fit
	end    chan struct{} // closed with the component
	missed bool          // guarded by the cache's mu
}

// tell tells of a change; the key's lock is held, so that changes of a key come in order.
func (c *cache) tell(ch block.CacheChange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for f := range c.followers {
		if f.missed || !strings.HasPrefix(ch.Key, f.prefix) {
			continue
		}
		select {
		case f.news <- ch:
		default: // it is too slow: it is to begin again
			f.missed = true
			close(f.lost)
		}
	}
}

// Follow tells of changes.
func (c *cache) Follow(ctx context.Context, prefix string, started func(), changed func([]block.CacheChange)) error {
	const op fault.Op = "memory.cache.Follow"
	if err := c.usable(ctx, op); err != nil {
		return err
	}
	f := &follower{prefix: prefix, news: make(chan block.CacheChange, 4096), lost: make(chan struct{}), end: make(chan struct{})}
	c.mu.Lock()
	if c.followers == nil {
		c.mu.Unlock()
		return c.usable(ctx, op)
	}
	c.followers[f] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.followers, f)
	}()
	started()
	for {
		select {
		case ch := <-f.news:
			batch := []block.CacheChange{ch}
			for more := true; more && len(batch) < 256; {
				select {
				case ch = <-f.news:
					batch = append(batch, ch)
				default:
					more = false
				}
			}
			changed(batch)
		case <-f.lost:
			return fault.New(op, fault.Unavailable, "changes came faster than they were taken")
		case <-f.end:
			return c.usable(ctx, op)
		case <-ctx.Done():
			return fault.Wrap(op, fault.Canceled, ctx.Err())
		}
	}
}
