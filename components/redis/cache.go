package redis

import (
	"context"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

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

// CacheConfig configures Redis as the shared store of a cache.
type CacheConfig struct {
	Conn  ConnConfig
	Cache block.CacheConfig
}

// DefaultCacheConfig returns the defaults.
func DefaultCacheConfig() *CacheConfig {
	return &CacheConfig{Conn: defaultConn(), Cache: block.DefaultCacheConfig()}
}

// Validate reports what cannot work.
func (c *CacheConfig) Validate() error {
	if c.Conn.Type != typeCluster {
		return nil
	}
	const why = "is not offered on a cluster, whose servers each tell of their own keys; use strong or local"
	if c.Cache.Coherence == block.CoherenceInvalidate {
		return conf.Bad("coherence", "invalidate %s", why)
	}
	for name := range c.Cache.Namespaces {
		if c.Cache.Of(name).Coherence == block.CoherenceInvalidate {
			return conf.Bad("namespaces", "namespace %q: invalidate %s", name, why)
		}
	}
	return nil
}

// NewCache opens a cache.
func NewCache(_ block.Env, c *CacheConfig) (block.Cache, error) {
	n, err := newConn(c.Conn)
	if err != nil {
		return nil, err
	}
	s := &cache{conn: n, config: c.Cache, silence: cacheSilence}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// cache keeps entries as strings that end by themselves: eight random bytes, which are the version,
// and the value.
type cache struct {
	conn    *conn
	config  block.CacheConfig
	silence time.Duration
	life    context.Context // ends at Close
	end     context.CancelFunc
}

const versionBytes = 8

// cacheSilence is how long the feed may be silent before the server is asked for a sign of life. A
// connection that died without a word is noticed after twice that, which is within the time a near
// entry is believed at all.
const cacheSilence = 10 * time.Second

// swapEntry writes or removes an entry if its version is the one given.
//
//	KEYS    the key
//	ARGV    the version, or nothing for no entry; what to write, or nothing; milliseconds
//	answer  1, or 0
var swapEntry = newScript(`local now = redis.call('GET', KEYS[1])
if ARGV[1] == '' then
  if now then return 0 end
elseif not now or string.sub(now, 1, 8) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1`)

// storeFenced writes an entry unless the fence is higher than the epoch. Numbers are compared as
// text of their digits: the script's own numbers are exact up to 2^53 only.
//
//	KEYS    the key, the fence
//	ARGV    what to write, milliseconds; the epoch, milliseconds of the fence
//	answer  1, or 0
var storeFenced = newScript(`local now = redis.call('GET', KEYS[2])
if now and (#now > #ARGV[3] or (#now == #ARGV[3] and now > ARGV[3])) then return 0 end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`)

// Config is how the service is to use it.
func (s *cache) Config() block.CacheConfig { return s.config }

// Ping checks that the server answers.
func (s *cache) Ping(ctx context.Context) error { return s.conn.ping(ctx, "redis.cache.Ping") }

// Close ends feeds and connections.
func (s *cache) Close(ctx context.Context) error {
	s.end()
	return s.conn.close(ctx, "redis.cache.Close")
}

// Load reads entries, in one exchange. They are not read at one moment.
func (s *cache) Load(ctx context.Context, keys []string) ([]block.CacheEntry, error) {
	const op fault.Op = "redis.cache.Load"
	if len(keys) == 0 {
		return nil, ctx.Err()
	}
	cmds := make([]*command, len(keys))
	for i, k := range keys {
		cmds[i] = newCommand(true, 1, "get", strings.Clone(k))
	}
	if err := s.conn.send(ctx, op, cmds); err != nil {
		return nil, err
	}
	out := make([]block.CacheEntry, len(keys))
	for i, c := range cmds {
		if errors.Is(c.Err(), goredis.Nil) {
			continue
		}
		if err := s.conn.failure(ctx, op, c); err != nil {
			return nil, err
		}
		stored, ok := c.Val().(string)
		if !ok || len(stored) < versionBytes {
			continue // somebody else's; it has no version, and is overwritten
		}
		s.conn.replied(len(stored))
		out[i] = block.CacheEntry{Value: []byte(stored[versionBytes:]), Version: hex.EncodeToString([]byte(stored[:versionBytes]))}
	}
	return out, nil
}

// sealed is an entry as it is stored, and its version.
func sealed(value []byte) (stored []byte, version string) {
	stored = make([]byte, versionBytes, versionBytes+len(value))
	n := rand.Uint64()
	for i := range versionBytes {
		stored[i] = byte(n >> (8 * i))
	}
	return append(stored, value...), hex.EncodeToString(stored)
}

// millis is a time to live as Redis takes it, rounded up.
func millis(op fault.Op, ttl time.Duration) (int64, error) {
	if ttl <= 0 {
		return 0, fault.New(op, fault.Invalid, "the time to live is %v; it must be positive", ttl).With(fault.BadExpiry).WithSent(fault.SentNever)
	}
	return int64((ttl-1)/time.Millisecond) + 1, nil
}

// Store writes entries, in one exchange.
func (s *cache) Store(ctx context.Context, ws []block.CacheWrite) ([]string, error) {
	const op fault.Op = "redis.cache.Store"
	if len(ws) == 0 {
		return nil, ctx.Err()
	}
	cmds := make([]*command, len(ws))
	versions := make([]string, len(ws))
	for i, w := range ws {
		ms, err := millis(op, w.TTL)
		if err != nil {
			return nil, err
		}
		var stored []byte
		stored, versions[i] = sealed(w.Value)
		cmds[i] = newCommand(s.conn.repeat(), 1, "set", strings.Clone(w.Key), stored, "px", ms)
	}
	if err := s.conn.exchangeAll(ctx, op, cmds); err != nil {
		return nil, err
	}
	return versions, nil
}

// exchangeAll performs commands that are no scripts, in one exchange, and gives the first error.
func (n *conn) exchangeAll(ctx context.Context, op fault.Op, cmds []*command) error {
	err := n.apart(ctx, op, cmds)
	for i := 0; err == nil && i < len(cmds); i++ {
		err = n.failure(ctx, op, cmds[i])
	}
	return err
}

// Swap writes an entry over a version.
func (s *cache) Swap(ctx context.Context, w block.CacheWrite, over string) (string, bool, error) {
	const op fault.Op = "redis.cache.Swap"
	was, err := hex.DecodeString(over)
	if err != nil || (len(was) != 0 && len(was) != versionBytes) {
		return "", false, ctx.Err() // no version of ours
	}
	stored, version, ms := []byte{}, "", int64(0)
	if w.Value != nil {
		if ms, err = millis(op, w.TTL); err != nil {
			return "", false, err
		}
		stored, version = sealed(w.Value)
	}
	done, err := s.script(ctx, op, swapEntry, 1, strings.Clone(w.Key), was, stored, ms)
	if err != nil || !done {
		return "", false, err
	}
	return version, true, nil
}

// StoreFenced writes an entry under a fence.
func (s *cache) StoreFenced(ctx context.Context, fence string, epoch uint64, ttl time.Duration, w block.CacheWrite) (string, error) {
	const op fault.Op = "redis.cache.StoreFenced"
	if s.conn.config.Type == typeCluster {
		return "", fault.New(op, fault.Unsupported, "a cluster keeps the entry and the number of the epoch on different servers, which cannot act as one").With(fault.NoFence)
	}
	ms, err := millis(op, w.TTL)
	if err != nil {
		return "", err
	}
	lives, err := millis(op, ttl)
	if err != nil {
		return "", err
	}
	stored, version := sealed(w.Value)
	done, err := s.script(ctx, op, storeFenced, 2, strings.Clone(w.Key), strings.Clone(fence), stored, ms, strconv.FormatUint(epoch, 10), lives)
	switch {
	case err != nil:
		return "", err
	case !done:
		return "", fault.New(op, fault.Conflict, "a later epoch than %d has written", epoch).With(fault.Fenced)
	}
	return version, nil
}

// script performs one that answers 1 or 0.
func (s *cache) script(ctx context.Context, op fault.Op, sc *script, keys int, args ...any) (bool, error) {
	cmd := newCommand(false, 3, "evalsha", sc.digest, append([]any{keys}, args...)...)
	if err := s.conn.run(ctx, op, sc, cmd); err != nil {
		return false, err
	}
	if err := s.conn.failure(ctx, op, cmd); err != nil {
		return false, err
	}
	n, ok := cmd.Val().(int64)
	if !ok {
		return false, fault.New(op, fault.Internal, "the script for caches answers %.100v", cmd.Val()).WithSent(fault.SentMaybe)
	}
	return n == 1, nil
}

// Drop removes entries; their memory is freed in the background.
func (s *cache) Drop(ctx context.Context, keys []string) error {
	const op fault.Op = "redis.cache.Drop"
	if len(keys) == 0 {
		return ctx.Err()
	}
	cmds := make([]*command, len(keys)) // one each: in a cluster they are on different servers
	for i, k := range keys {
		cmds[i] = newCommand(s.conn.repeat(), 1, "unlink", strings.Clone(k))
	}
	return s.conn.exchangeAll(ctx, op, cmds)
}

// Keys goes through the keys that begin with prefix.
func (s *cache) Keys(ctx context.Context, prefix string, each func([]string) error) error {
	const op fault.Op = "redis.cache.Keys"
	if s.conn.config.Type == typeCluster {
		return fault.New(op, fault.Unsupported, "going through the keys of a cluster is not offered").With(fault.NoScan)
	}
	for cursor := "0"; ; {
		cmd := newCommand(true, 0, "scan", cursor, "match", globEscape.Replace(prefix)+"*", "count", page)
		if err := s.conn.one(ctx, op, cmd); err != nil {
			return err
		}
		answer, ok := cmd.Val().([]any)
		if !ok || len(answer) != 2 {
			return fault.New(op, fault.Internal, "%s answers %.100v to a scan of its keys", s.conn.where(), cmd.Val())
		}
		listed, _ := answer[1].([]any)
		keys := make([]string, 0, len(listed))
		for _, k := range listed {
			if key, is := k.(string); is {
				keys = append(keys, key)
			}
		}
		if len(keys) > 0 {
			if err := each(keys); err != nil {
				return err
			}
		}
		if cursor, _ = answer[0].(string); cursor == "0" || cursor == "" {
			return nil
		}
	}
}

// globEscape takes the meaning from what means something in a pattern of SCAN.
var globEscape = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)

// invalidations is the channel on which a connection of the old protocol is told what changed.
const invalidations = "__redis__:invalidate"

// Follow has the server tell of every change to keys with the prefix, over a connection of its own
// (client tracking in broadcast mode).
func (s *cache) Follow(ctx context.Context, prefix string, started func(), changed func([]block.CacheChange)) error {
	const op fault.Op = "redis.cache.Follow"
	if s.conn.config.Type == typeCluster {
		return fault.New(op, fault.Unsupported, "the servers of a cluster each tell of their own keys; use coherence strong or local")
	}
	if _, err := s.conn.use(op); err != nil {
		return err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	client := s.conn.dial(func(ctx context.Context, c *goredis.Conn) error {
		id, err := c.ClientID(ctx).Result()
		if err == nil { // what is told comes back over this very connection
			err = c.Do(ctx, "client", "tracking", "on", "redirect", id, "bcast", "prefix", prefix).Err()
		}
		return err
	})
	defer client.Close()
	err := s.follow(inner, client, started, changed)
	switch {
	case ctx.Err() != nil:
		return ended(op, s.conn.where(), ctx.Err(), true)
	case s.life.Err() != nil:
		return fault.New(op, fault.Unavailable, "%s: the component is closed", s.conn.where())
	}
	return s.conn.explain(ctx, op, err, true)
}

func (s *cache) follow(ctx context.Context, client goredis.UniversalClient, started func(), changed func([]block.CacheChange)) error {
	ps := client.Subscribe(ctx)
	defer ps.Close()
	defer context.AfterFunc(ctx, func() { _ = ps.Close() })() // the library does not look at ctx while it waits
	if err := ps.Subscribe(ctx, invalidations); err != nil {
		return err
	}
	asked := false // a sign of life
	for {
		m, err := ps.ReceiveTimeout(ctx, s.silence)
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() && !asked {
			asked, m = true, nil
			err = ps.Ping(ctx)
		}
		if err != nil {
			return err // also of a database that was emptied, of which it is told by no keys
		}
		switch m := m.(type) {
		case *goredis.Subscription:
			started()
		case *goredis.Message:
			asked = false
			keys := m.PayloadSlice
			if len(keys) == 0 {
				return errors.New("the server tells that all keys may have changed")
			}
			changes := make([]block.CacheChange, len(keys))
			for i, k := range keys {
				changes[i].Key = k
			}
			changed(changes)
		case *goredis.Pong:
			asked = false
		}
	}
}
