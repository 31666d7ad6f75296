package memory

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// LockConfig configures locks in memory. There is nothing to choose.
type LockConfig struct{}

// DefaultLockConfig returns the defaults.
func DefaultLockConfig() *LockConfig { return &LockConfig{} }

// NewLock opens a lock store that is alone in this process.
func NewLock(_ block.Env, _ *LockConfig) (block.Lock, error) { return NewLocks().Lock(), nil }

// Locks are the names that are taken. Several components may share them.
type Locks struct {
	mu    sync.Mutex
	held  map[string]holding // guarded by mu; those that have ended are here until the next sweep
	last  uint64             // guarded by mu; number of the last grant
	swept int                // guarded by mu; how many there were after the last sweep
}

// holding is one taken name.
type holding struct {
	owner string
	until time.Time
}

// NewLocks makes an empty set of locks.
func NewLocks() *Locks { return &Locks{held: map[string]holding{}} }

// Lock is a component over these locks.
func (s *Locks) Lock() block.Lock { return &lock{locks: s} }

var (
	_ block.Lock      = (*lock)(nil)
	_ block.LockFence = (*lock)(nil)
)

type lock struct {
	locks  *Locks
	closed atomic.Bool
}

// Ping succeeds until Close.
func (l *lock) Ping(ctx context.Context) error { return l.usable(ctx, "memory.lock.Ping") }

// Close ends the component. What is locked stays locked, for others over the same locks.
func (l *lock) Close(context.Context) error {
	l.closed.Store(true)
	return nil
}

func (l *lock) usable(ctx context.Context, op fault.Op) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	if l.closed.Load() {
		return fault.New(op, fault.Unavailable, "the in-memory lock store is closed").WithSent(fault.SentNever)
	}
	return nil
}

// TryLock takes a free name.
func (l *lock) TryLock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	token, err := l.take(ctx, "memory.lock.TryLock", name, owner, ttl)
	return token != 0, err
}

// TryLockFenced takes a free name and numbers the grant.
func (l *lock) TryLockFenced(ctx context.Context, name, owner string, ttl time.Duration) (uint64, error) {
	return l.take(ctx, "memory.lock.TryLockFenced", name, owner, ttl)
}

func (l *lock) take(ctx context.Context, op fault.Op, name, owner string, ttl time.Duration) (uint64, error) {
	if err := l.usable(ctx, op); err != nil {
		return 0, err
	}
	if ttl <= 0 {
		return 0, fault.New(op, fault.Invalid, "a lock for %v cannot be; give it a time above 0", ttl)
	}
	s := l.locks
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if _, taken := s.holder(name, now); taken {
		return 0, nil
	}
	s.sweep(now)
	s.held[name] = holding{owner: owner, until: now.Add(ttl)}
	s.last++
	return s.last, nil
}

// holder tells who has a name; mu is held.
func (s *Locks) holder(name string, now time.Time) (holding, bool) {
	h, ok := s.held[name]
	return h, ok && now.Before(h.until)
}

// sweep forgets locks that have ended, each time twice as many are there as the last sweep left:
// names are not looked at more than a few times each, and no timer is needed. mu is held.
func (s *Locks) sweep(now time.Time) {
	if len(s.held) < 2*s.swept+64 {
		return
	}
	for name := range s.held {
		if _, taken := s.holder(name, now); !taken {
			delete(s.held, name)
		}
	}
	s.swept = len(s.held)
}

// Unlock gives a name back.
func (l *lock) Unlock(ctx context.Context, name, owner string) (block.UnlockStatus, error) {
	if err := l.usable(ctx, "memory.lock.Unlock"); err != nil {
		return block.UnlockFailed, err
	}
	s := l.locks
	s.mu.Lock()
	defer s.mu.Unlock()
	h, taken := s.holder(name, time.Now())
	switch {
	case !taken:
		return block.NoSuchLock, nil
	case h.owner != owner:
		return block.LockOfAnother, nil
	}
	delete(s.held, name)
	return block.Unlocked, nil
}

// Renew makes a lock last from now.
func (l *lock) Renew(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	const op fault.Op = "memory.lock.Renew"
	if err := l.usable(ctx, op); err != nil {
		return false, err
	}
	if ttl <= 0 {
		return false, fault.New(op, fault.Invalid, "a lock for %v cannot be; give it a time above 0", ttl)
	}
	s := l.locks
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	h, taken := s.holder(name, now)
	if !taken || h.owner != owner {
		return false, nil
	}
	s.held[name] = holding{owner: owner, until: now.Add(ttl)}
	return true, nil
}
