package nats

import (
	"context"
	"strconv"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var (
	_ block.Lock      = (*lock)(nil)
	_ block.LockFence = (*lock)(nil)
)

// EmbeddedLockConfig configures locks in the embedded node.
type EmbeddedLockConfig struct {
	Node  NodeConfig
	Store StoreConfig
}

// DefaultEmbeddedLockConfig returns the defaults.
func DefaultEmbeddedLockConfig() *EmbeddedLockConfig {
	return &EmbeddedLockConfig{Node: defaultNode()}
}

// LockConfig configures locks in a NATS server.
type LockConfig struct {
	Conn  ConnConfig
	Store StoreConfig
	// Replicas is how many servers of a cluster keep the bucket, when it is created.
	Replicas int `yaml:"replicas"`
}

// DefaultLockConfig returns the defaults.
func DefaultLockConfig() *LockConfig { return &LockConfig{Replicas: 1} }

// Validate reports what cannot work.
func (c *LockConfig) Validate() error { return checkReplicas(c.Replicas) }

// NewEmbeddedLock opens a lock store in the embedded node.
func NewEmbeddedLock(env block.Env, c *EmbeddedLockConfig) (block.Lock, error) {
	return &lock{newBucket(env, &c.Store, 1, c.Node.dialer(env), "locks of Mecha")}, nil
}

// NewLock opens a lock store in a NATS server.
func NewLock(env block.Env, c *LockConfig) (block.Lock, error) {
	return &lock{newBucket(env, &c.Store, c.Replicas, c.Conn.dialer(env), "locks of Mecha")}, nil
}

// lock is a bucket with the owner as the value of each taken name. A grant is a write on
// condition that the name's last message is the one that was seen, so the server decides who
// wins; its sequence is the fencing token.
//
// Only the server's clock tells when a lock has ended: the message is there or it is not. A
// client that judged by its own clock could take what another still relies on.
type lock struct{ s *state }

// Ping checks that the server answers and the bucket exists or can be made.
func (l *lock) Ping(ctx context.Context) error {
	const op fault.Op = "nats.lock.Ping"
	a, err := l.s.able(ctx, op)
	if err != nil {
		return err
	}
	if !a.ttl {
		return l.noExpiry(op)
	}
	return l.s.Ping(ctx)
}

func (l *lock) noExpiry(op fault.Op) error {
	return fault.New(op, fault.Unsupported, "bucket %s does not expire items, so locks would never end; it needs a server of version 2.11 or later", l.s.stream)
}

// Close gives the connection back. What is locked stays locked.
func (l *lock) Close(ctx context.Context) error { return l.s.conn.closeWithin(ctx, "nats.lock.Close") }

// TryLock takes a free name.
func (l *lock) TryLock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	token, err := l.take(ctx, "nats.lock.TryLock", name, owner, ttl)
	return token != 0, err
}

// TryLockFenced takes a free name; the number of the grant is its sequence in the stream.
func (l *lock) TryLockFenced(ctx context.Context, name, owner string, ttl time.Duration) (uint64, error) {
	return l.take(ctx, "nats.lock.TryLockFenced", name, owner, ttl)
}

// take hopes for a name nobody had: most have none. Refused, it looks at what is there; a
// marker of a lock given back can be overwritten, by one of those who see it.
func (l *lock) take(ctx context.Context, op fault.Op, name, owner string, ttl time.Duration) (uint64, error) {
	for on := uint64(0); ; {
		token, err := l.write(ctx, op, name, owner, ttl, on)
		if token != 0 || err != nil {
			return token, err
		}
		v, err := l.look(ctx, op, name)
		if err != nil || v.live() {
			return 0, err
		}
		if on != 0 && v.seq == on {
			return 0, fault.New(op, fault.Internal, "the server refuses to overwrite what it says is the last of lock %q", name)
		}
		on = v.seq
	}
}

// write stores the owner if the last message of the name is still the one with sequence on (0:
// none). It returns 0 when it is not.
func (l *lock) write(ctx context.Context, op fault.Op, name, owner string, ttl time.Duration, on uint64) (uint64, error) {
	subject, err := appendKey([]byte(l.s.prefix), op, name)
	if err != nil {
		return 0, err
	}
	if ttl <= 0 {
		return 0, fault.New(op, fault.Invalid, "a lock for %v cannot be; give it a time above 0", ttl)
	}
	a, err := l.s.able(ctx, op)
	if err != nil {
		return 0, err
	}
	if !a.ttl {
		return 0, l.noExpiry(op)
	}
	m := natsgo.NewMsg(string(subject))
	m.Data = []byte(owner)
	seconds := int64((ttl + time.Second - 1) / time.Second) // the server counts whole ones
	m.Header[headerTTL] = []string{strconv.FormatInt(seconds, 10) + "s"}
	return l.put(ctx, op, name, m, on)
}

// put sends a conditional write; 0 means that the condition did not hold.
func (l *lock) put(ctx context.Context, op fault.Op, name string, m *natsgo.Msg, on uint64) (uint64, error) {
	m.Header[headerExpected] = []string{strconv.FormatUint(on, 10)}
	seq, err := l.s.publish(ctx, op, "lock "+strconv.Quote(name), m)
	if fault.Of(err) == fault.Conflict {
		return 0, nil
	}
	return seq, err
}

// look reads what the server holds for a name.
func (l *lock) look(ctx context.Context, op fault.Op, name string) (version, error) {
	vs, err := l.s.versions(ctx, op, []string{name}, true)
	if err != nil {
		return version{}, err
	}
	return vs[0], nil
}

// Unlock gives a name back. It leaves a marker, as a removed key of a store does.
func (l *lock) Unlock(ctx context.Context, name, owner string) (block.UnlockStatus, error) {
	const op fault.Op = "nats.lock.Unlock"
	for {
		v, err := l.look(ctx, op, name)
		switch {
		case err != nil:
			return block.UnlockFailed, err
		case !v.live():
			return block.NoSuchLock, nil
		case string(v.value) != owner:
			return block.LockOfAnother, nil
		}
		subject, err := appendKey([]byte(l.s.prefix), op, name)
		if err != nil {
			return block.UnlockFailed, err
		}
		m := natsgo.NewMsg(string(subject))
		m.Header[headerOp], m.Header[headerTTL] = []string{opDelete}, []string{markerLife}
		if seq, err := l.put(ctx, op, name, m, v.seq); seq != 0 || err != nil {
			return block.Unlocked, err
		}
		// Somebody was faster, or the lock has ended between the two: look again.
	}
}

// Renew writes the owner anew, with another time to live.
func (l *lock) Renew(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	const op fault.Op = "nats.lock.Renew"
	for {
		v, err := l.look(ctx, op, name)
		if err != nil || !v.live() || string(v.value) != owner {
			return false, err
		}
		if seq, err := l.write(ctx, op, name, owner, ttl, v.seq); seq != 0 || err != nil {
			return seq != 0, err
		}
	}
}
