package redis

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

var (
	_ block.Lock      = (*lock)(nil)
	_ block.LockFence = (*lock)(nil)
)

// LockConfig configures Redis as a lock store.
type LockConfig struct {
	Conn ConnConfig
}

// DefaultLockConfig returns the defaults.
func DefaultLockConfig() *LockConfig { return &LockConfig{Conn: defaultConn()} }

// Validate reports what cannot work.
func (c *LockConfig) Validate() error { return refuseCluster(&c.Conn, "lock.redis") }

func refuseCluster(c *ConnConfig, component string) error {
	if c.Type == typeCluster {
		return conf.Bad("redisType", "%s is not offered on a cluster; use node", component)
	}
	return nil
}

// NewLock opens a lock store.
func NewLock(_ block.Env, c *LockConfig) (block.Lock, error) {
	n, err := newConn(c.Conn)
	if err != nil {
		return nil, err
	}
	return &lock{conn: n}, nil
}

// lock keeps locks in Dapr's format: the name is a key that ends by itself, the value its owner.
// Nothing is ever repeated by the client library: a repeated attempt would be refused by its own
// success.
type lock struct{ conn *conn }

// fenceKey counts the grants of all names: one key, so that names leave nothing behind.
const fenceKey = "mecha||lock-fence"

// takeFenced takes a free name and numbers the grant. The number is the server's time in
// microseconds unless the last number is as high: what a server loses when it dies is the
// counter's last second, and the clock goes on.
//
//	KEYS    the name, fenceKey
//	ARGV    the owner, milliseconds
//	answer  the number as text, or 0
var takeFenced = newScript(`if redis.call('EXISTS', KEYS[1]) == 1 then return '0' end
local now = redis.call('TIME')
local token = tonumber(now[1]) * 1000000 + tonumber(now[2])
local last = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
if last >= token then token = last + 1 end
token = string.format('%.0f', token)
redis.call('SET', KEYS[2], token)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return token`)

// giveBack deletes the name if the owner has it.
//
//	KEYS, ARGV  the name, the owner
//	answer      block.UnlockStatus
var giveBack = newScript(`local owner = redis.call('GET', KEYS[1])
if not owner then return 1 end
if owner ~= ARGV[1] then return 2 end
redis.call('DEL', KEYS[1])
return 0`)

// renew gives the name another time if the owner has it.
//
//	KEYS    the name
//	ARGV    the owner, milliseconds
//	answer  1, or 0
var renew = newScript(`if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])`)

// Ping checks that the server answers.
func (l *lock) Ping(ctx context.Context) error { return l.conn.ping(ctx, "redis.lock.Ping") }

// Close ends the connections. Locks stay.
func (l *lock) Close(ctx context.Context) error { return l.conn.close(ctx, "redis.lock.Close") }

// TryLock takes a free name, as Dapr does.
func (l *lock) TryLock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	const op fault.Op = "redis.lock.TryLock"
	ms, err := lockTime(op, ttl)
	if err != nil {
		return false, err
	}
	cmd := newCommand(false, 1, "set", strings.Clone(name), strings.Clone(owner), "nx", "px", ms)
	if err := l.conn.one(ctx, op, cmd); err != nil {
		return false, err
	}
	return !errors.Is(cmd.Err(), goredis.Nil), nil // the answer to a name that is taken
}

// TryLockFenced takes a free name and numbers the grant.
func (l *lock) TryLockFenced(ctx context.Context, name, owner string, ttl time.Duration) (uint64, error) {
	const op fault.Op = "redis.lock.TryLockFenced"
	ms, err := lockTime(op, ttl)
	if err != nil {
		return 0, err
	}
	text, err := l.run(ctx, op, takeFenced, 2, strings.Clone(name), fenceKey, strings.Clone(owner), ms)
	if err != nil {
		return 0, err
	}
	token, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, unexpected(op, text)
	}
	return token, nil
}

// Unlock gives a name back.
func (l *lock) Unlock(ctx context.Context, name, owner string) (block.UnlockStatus, error) {
	const op fault.Op = "redis.lock.Unlock"
	text, err := l.run(ctx, op, giveBack, 1, strings.Clone(name), strings.Clone(owner))
	if err != nil {
		return block.UnlockFailed, err
	}
	switch text {
	case "0":
		return block.Unlocked, nil
	case "1":
		return block.NoSuchLock, nil
	case "2":
		return block.LockOfAnother, nil
	}
	return block.UnlockFailed, unexpected(op, text)
}

// Renew makes a lock last from now.
func (l *lock) Renew(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	const op fault.Op = "redis.lock.Renew"
	ms, err := lockTime(op, ttl)
	if err != nil {
		return false, err
	}
	text, err := l.run(ctx, op, renew, 1, strings.Clone(name), strings.Clone(owner), ms)
	return text == "1", err
}

// run performs a script and gives its answer as text.
func (l *lock) run(ctx context.Context, op fault.Op, sc *script, keys int, args ...any) (string, error) {
	cmd := newCommand(false, 3, "evalsha", sc.digest, append([]any{keys}, args...)...)
	if err := l.conn.run(ctx, op, sc, cmd); err != nil {
		return "", err
	}
	if err := l.conn.failure(ctx, op, cmd); err != nil {
		return "", err
	}
	switch v := cmd.Val().(type) {
	case int64:
		return strconv.FormatInt(v, 10), nil
	case string:
		return v, nil
	}
	return "", unexpected(op, cmd.Val())
}

func unexpected(op fault.Op, answer any) error {
	return fault.New(op, fault.Internal, "the script for locks answers %.100v", answer).WithSent(fault.SentMaybe)
}

// lockTime is a time in milliseconds, rounded up: a lock never ends early.
func lockTime(op fault.Op, ttl time.Duration) (int64, error) {
	if ttl <= 0 {
		return 0, fault.New(op, fault.Invalid, "a lock for %v cannot be; give it a time above 0", ttl).WithSent(fault.SentNever)
	}
	return int64((ttl-1)/time.Millisecond) + 1, nil
}
