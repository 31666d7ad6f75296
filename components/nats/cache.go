package nats

import (
	"context"
	"strconv"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

var (
	_ block.Cache      = (*cache)(nil)
	_ block.CacheFeed  = (*cache)(nil)
	_ block.CacheScan  = (*cache)(nil)
	_ block.CacheFence = (*cache)(nil)
)

// CacheStoreConfig says where a cache keeps its shared entries.
type CacheStoreConfig struct {
	Store StoreConfig
	// MaxBytes bounds the bucket, when it is created: what was written longest ago makes room.
	MaxBytes conf.ByteSize `yaml:"maxBytes"`
	Cache    block.CacheConfig
}

// Validate reports what cannot work.
func (c *CacheStoreConfig) Validate() error {
	if c.MaxBytes < 1<<20 {
		return conf.Bad("maxBytes", "%d bytes are too few; use at least 1Mi", int64(c.MaxBytes))
	}
	return nil
}

func defaultCacheStore() CacheStoreConfig {
	return CacheStoreConfig{MaxBytes: 256 << 20, Cache: block.DefaultCacheConfig()}
}

// EmbeddedCacheConfig configures a cache in the embedded node.
type EmbeddedCacheConfig struct {
	Node  NodeConfig
	Store CacheStoreConfig
}

// DefaultEmbeddedCacheConfig returns the defaults.
func DefaultEmbeddedCacheConfig() *EmbeddedCacheConfig {
	return &EmbeddedCacheConfig{Node: defaultNode(), Store: defaultCacheStore()}
}

// CacheConfig configures a cache in a NATS server.
type CacheConfig struct {
	Conn  ConnConfig
	Store CacheStoreConfig
	// Replicas is how many servers of a cluster keep the bucket, when it is created.
	Replicas int `yaml:"replicas"`
}

// DefaultCacheConfig returns the defaults.
func DefaultCacheConfig() *CacheConfig {
	return &CacheConfig{Store: defaultCacheStore(), Replicas: 1}
}

// Validate reports what cannot work.
func (c *CacheConfig) Validate() error { return checkReplicas(c.Replicas) }

// NewEmbeddedCache opens a cache in the embedded node.
func NewEmbeddedCache(env block.Env, c *EmbeddedCacheConfig) (block.Cache, error) {
	return newCache(env, &c.Store, 1, c.Node.dialer(env)), nil
}

// NewCache opens a cache in a NATS server.
func NewCache(env block.Env, c *CacheConfig) (block.Cache, error) {
	return newCache(env, &c.Store, c.Replicas, c.Conn.dialer(env)), nil
}

func newCache(env block.Env, c *CacheStoreConfig, replicas int, dial dialer) *cache {
	s := newBucket(env, &c.Store, replicas, dial, "cache of Mecha")
	s.maxBytes = int64(c.MaxBytes)
	return &cache{s: s, config: c.Cache}
}

// cache is a bucket of bounded size whose oldest entries make room. The version of an entry is its
// sequence; one that was removed leaves a marker, so that who follows the bucket hears of it.
//
// The server counts lives in whole seconds. Until it drops an entry, its header tells when it ended.
type cache struct {
	s      *state
	config block.CacheConfig
}

// Config is how the service is to use it.
func (c *cache) Config() block.CacheConfig { return c.config }

// Ping checks that the server answers and the bucket exists or can be made.
func (c *cache) Ping(ctx context.Context) error { return c.s.Ping(ctx) }

// Close gives the connection back and ends feeds.
func (c *cache) Close(ctx context.Context) error {
	return c.s.conn.closeWithin(ctx, "nats.cache.Close")
}

// Load reads entries, pipelined. They are not read at one moment.
func (c *cache) Load(ctx context.Context, keys []string) ([]block.CacheEntry, error) {
	const op fault.Op = "nats.cache.Load"
	if len(keys) == 0 {
		return nil, ctx.Err()
	}
	vs, err := c.s.versions(ctx, op, keys, true) // what the feed has told must be seen
	if err != nil {
		return nil, err
	}
	out := make([]block.CacheEntry, len(keys))
	for i := range vs {
		if vs[i].live() {
			out[i] = block.CacheEntry{Value: vs[i].value, Version: cacheVersion(vs[i].seq)}
			if out[i].Value == nil {
				out[i].Value = []byte{}
			}
		}
	}
	return out, nil
}

func cacheVersion(seq uint64) string { return strconv.FormatUint(seq, 36) }

// message makes the message of a write.
func (c *cache) message(op fault.Op, w *block.CacheWrite) (*natsgo.Msg, error) {
	subject, err := appendKey([]byte(c.s.prefix), op, w.Key)
	if err != nil {
		return nil, err
	}
	if w.TTL <= 0 {
		return nil, fault.New(op, fault.Invalid, "the time to live is %v; it must be positive", w.TTL).With(fault.BadExpiry).WithSent(fault.SentNever)
	}
	m := natsgo.NewMsg(string(subject))
	m.Data = w.Value
	seconds := int64((w.TTL + time.Second - 1) / time.Second)
	m.Header[headerTTL] = []string{strconv.FormatInt(seconds, 10) + "s"}
	m.Header[headerExpiry] = []string{strconv.FormatInt(time.Now().Add(w.TTL+time.Millisecond).UnixMilli(), 10)}
	return m, nil
}

// marker makes the message of a removal.
func (c *cache) marker(op fault.Op, key string) (*natsgo.Msg, error) {
	subject, err := appendKey([]byte(c.s.prefix), op, key)
	if err != nil {
		return nil, err
	}
	m := natsgo.NewMsg(string(subject))
	m.Header[headerOp], m.Header[headerTTL] = []string{opDelete}, []string{markerLife}
	return m, nil
}

// Store writes entries, pipelined.
func (c *cache) Store(ctx context.Context, ws []block.CacheWrite) ([]string, error) {
	const op fault.Op = "nats.cache.Store"
	if len(ws) == 0 {
		return nil, ctx.Err()
	}
	if err := c.expires(ctx, op); err != nil {
		return nil, err
	}
	msgs := make([]*natsgo.Msg, len(ws))
	for i := range ws {
		var err error
		if msgs[i], err = c.message(op, &ws[i]); err != nil {
			return nil, err
		}
	}
	return c.send(ctx, op, msgs)
}

// send performs writes and gives their versions.
func (c *cache) send(ctx context.Context, op fault.Op, msgs []*natsgo.Msg) ([]string, error) {
	answers, err := c.s.ask(ctx, op, msgs...)
	if err != nil {
		return nil, err
	}
	versions := make([]string, len(msgs))
	for i, m := range answers {
		seq, err := c.s.acknowledged(op, "an entry", m)
		if err != nil {
			return nil, err
		}
		versions[i] = cacheVersion(seq)
	}
	return versions, nil
}

// expires makes sure that the bucket drops what has ended.
func (c *cache) expires(ctx context.Context, op fault.Op) error {
	a, err := c.s.able(ctx, op)
	if err == nil && !a.ttl {
		err = fault.New(op, fault.Unsupported, "bucket %s does not expire items; it needs a server of version 2.11 or later", c.s.stream)
	}
	return err
}

// Swap writes an entry over a version.
func (c *cache) Swap(ctx context.Context, w block.CacheWrite, over string) (string, bool, error) {
	const op fault.Op = "nats.cache.Swap"
	m, err := c.marker(op, w.Key)
	if w.Value != nil {
		m, err = c.message(op, &w)
	}
	if err == nil {
		err = c.expires(ctx, op)
	}
	if err != nil {
		return "", false, err
	}
	on := uint64(0)
	if over != "" {
		if on, err = strconv.ParseUint(over, 36, 64); err != nil || on == 0 {
			return "", false, nil // no version of ours
		}
		// A version that has ended is not swapped over, though the server has not dropped it yet.
		if vs, err := c.s.versions(ctx, op, []string{w.Key}, true); err != nil || vs[0].seq != on || !vs[0].live() {
			return "", false, err
		}
	}
	for {
		m.Header[headerExpected] = []string{strconv.FormatUint(on, 10)}
		seq, err := c.s.publish(ctx, op, "an entry", m)
		switch {
		case err == nil && w.Value == nil:
			return "", true, nil
		case err == nil:
			return cacheVersion(seq), true, nil
		case fault.Of(err) != fault.Conflict || over != "":
			if fault.Of(err) == fault.Conflict {
				err = nil
			}
			return "", false, err
		}
		// There is something: a marker or what has ended is as good as nothing.
		vs, err := c.s.versions(ctx, op, []string{w.Key}, true)
		if err != nil || vs[0].live() || vs[0].seq == on {
			return "", false, err
		}
		on = vs[0].seq
	}
}

// StoreFenced writes an entry and raises the fence in one transaction.
func (c *cache) StoreFenced(ctx context.Context, fence string, epoch uint64, ttl time.Duration, w block.CacheWrite) (string, error) {
	const op fault.Op = "nats.cache.StoreFenced"
	if w.TTL <= 0 {
		return "", fault.New(op, fault.Invalid, "the time to live is %v; it must be positive", w.TTL).With(fault.BadExpiry).WithSent(fault.SentNever)
	}
	err := c.s.TransactFenced(ctx, fence, epoch, []block.StateOp{{StateWrite: block.StateWrite{Key: w.Key, Value: w.Value, TTL: w.TTL}}})
	if err != nil {
		return "", err
	}
	vs, err := c.s.versions(ctx, op, []string{w.Key}, true)
	if err != nil {
		return "", err
	}
	return cacheVersion(vs[0].seq), nil
}

// Drop removes entries, pipelined.
func (c *cache) Drop(ctx context.Context, keys []string) error {
	const op fault.Op = "nats.cache.Drop"
	if len(keys) == 0 {
		return ctx.Err()
	}
	msgs := make([]*natsgo.Msg, len(keys))
	for i, k := range keys {
		var err error
		if msgs[i], err = c.marker(op, k); err != nil {
			return err
		}
	}
	_, err := c.send(ctx, op, msgs)
	return err
}

// Keys goes through the keys.
func (c *cache) Keys(ctx context.Context, prefix string, each func([]string) error) error {
	for token := ""; ; {
		items, next, err := c.s.Scan(ctx, prefix, token, 500, true)
		if err != nil {
			return err
		}
		keys := make([]string, len(items))
		for i, it := range items {
			keys[i] = strings.Clone(it.Key)
		}
		if len(keys) > 0 {
			if err := each(keys); err != nil {
				return err
			}
		}
		if token = next; token == "" {
			return nil
		}
	}
}

// Follow watches the bucket. Unlike a watch of state it ends with the connection: near entries are
// not to be believed while nobody can tell of changes.
func (c *cache) Follow(ctx context.Context, prefix string, started func(), changed func([]block.CacheChange)) error {
	const op fault.Op = "nats.cache.Follow"
	p, err := c.s.conn.acquire(ctx, op)
	if err != nil {
		return err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.over:
			cancel()
		case <-inner.Done():
		}
	}()
	// Entries say themselves when they end.
	err = c.s.watch(inner, prefix, started, func(items []block.StateItem) {
		changes := make([]block.CacheChange, len(items))
		for i, it := range items {
			changes[i].Key = it.Key
			if it.Exists {
				changes[i].Version, _, _ = strings.Cut(it.ETag, ".") // its first part is the sequence
			}
		}
		changed(changes)
	}, true)
	switch {
	case ctx.Err() != nil:
		return fault.Wrap(op, fault.Canceled, ctx.Err())
	case inner.Err() != nil:
		return fault.New(op, fault.Unavailable, "the connection was lost")
	}
	return err
}

// bounded makes a bucket keep its size by dropping what was written longest ago.
func bounded(c *jetstream.StreamConfig, bytes int64) {
	if bytes > 0 {
		c.MaxBytes, c.Discard = bytes, jetstream.DiscardOld
	}
}
