package lock

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Pauses between attempts at a resource that is taken.
const (
	firstPause = 25 * time.Millisecond
	lastPause  = time.Second
)

// Acquire takes a resource for ttl (at least a second), at once or within wait, and gives the
// grant's fencing token; 0 means that somebody else has it still.
//
// Waiting is asking again, at growing intervals up to a second: those who wait are not served in
// their order.
func (s *Service) Acquire(ctx context.Context, store, resource, owner string, ttl, wait time.Duration) (token uint64, err error) {
	const op fault.Op = "lock.Acquire"
	h, name, err := s.fenced(op, store, resource, owner)
	if err != nil {
		return 0, err
	}
	if err := checkTTL(op, store, ttl); err != nil {
		return 0, err
	}
	if wait < 0 {
		return 0, fault.New(op, fault.Invalid, "wait is %v: a time to wait is not negative", wait).With(fault.BadExpiry)
	}
	until := time.Now().Add(wait)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		token, err = catalog.Do(ctx, h, s.desc("tryLock", resource), func(ctx context.Context, l block.Lock) (uint64, error) {
			f, ok := l.(block.LockFence)
			if !ok {
				return 0, noFence(op, store)
			}
			return f.TryLockFenced(ctx, name, owner, ttl)
		}, nil)
		left := time.Until(until)
		if err != nil || token != 0 || left <= 0 {
			return token, err
		}
		// Spread, so that those who wait together do not ask together.
		timer := time.NewTimer(min(left, pause/2+rand.N(pause)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return 0, fault.Wrap(op, fault.Canceled, ctx.Err())
		}
	}
}

// Renew makes a lock last for ttl (at least a second) from now. It reports false when owner no
// longer has it.
func (s *Service) Renew(ctx context.Context, store, resource, owner string, ttl time.Duration) (bool, error) {
	const op fault.Op = "lock.Renew"
	h, name, err := s.fenced(op, store, resource, owner)
	if err != nil {
		return false, err
	}
	if err := checkTTL(op, store, ttl); err != nil {
		return false, err
	}
	return catalog.Do(ctx, h, s.desc("renew", resource), func(ctx context.Context, l block.Lock) (bool, error) {
		f, ok := l.(block.LockFence)
		if !ok {
			return false, noFence(op, store)
		}
		return f.Renew(ctx, name, owner, ttl)
	}, nil)
}

// fenced finds a store that renews and numbers its grants, and the stored name of a resource.
func (s *Service) fenced(op fault.Op, store, resource, owner string) (*catalog.Handle[block.Lock], string, error) {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return nil, "", err
	}
	if err := check(op, store, resource, owner); err != nil {
		return nil, "", err
	}
	if !catalog.Able[block.LockFence](h) {
		return nil, "", noFence(op, store)
	}
	name, err := s.scope(h.Info, resource)
	return h, name, err
}

func checkTTL(op fault.Op, store string, ttl time.Duration) error {
	if ttl < time.Second {
		return fault.New(op, fault.Invalid, "ttl is %v in lock store %s: a lock lasts at least 1s", ttl, store).With(fault.BadExpiry)
	}
	return nil
}

func noFence(op fault.Op, store string) error {
	return fault.New(op, fault.Unsupported, "lock store %s neither renews locks nor numbers its grants", store).With(fault.NoFence)
}
