// Package lock is the deciding half of the lock block: it checks requests in Dapr's order,
// scopes names to the app, and runs every store operation as one call under the store's policy.
//
// It leaves to the edges: parsing bodies, choosing status codes. It leaves to the backends:
// deciding who wins. Start at Service; names and their prefixes are in names.go, what Dapr's
// locks lack in native.go.
//
// # Errors
//
// Every error is a *fault.Error. Where the code alone does not say which answer a wire owes, the
// reason does:
//
//	NotReady, fault.NoComponents     no lock store is configured; told before all else
//	Invalid,  fault.EmptyName        no resource, or no owner
//	Invalid,  fault.BadExpiry        a time that is not positive
//	NotFound, fault.NoSuchComponent  another name
//	Invalid,  fault.IllegalKey       the resource contains "||", or cannot be held by the store
//	Invalid,  BadPrefix              the store's keyPrefix cannot be used
//	Unsupported, fault.NoFence       the store neither renews locks nor numbers its grants
package lock

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
)

// BadPrefix is the reason of errors about a store's keyPrefix.
const BadPrefix fault.Reason = "bad_key_prefix"

// Service serves the lock block. It is safe for concurrent use.
type Service struct {
	stores *catalog.Store[block.Lock]
	self   identity.Self
	caller call.Caller
}

// New makes the service.
func New(stores *catalog.Store[block.Lock], self identity.Self) *Service {
	return &Service{stores: stores, self: self, caller: call.Caller{App: self.App, Namespace: self.Namespace, Proven: true}}
}

// TryLock takes a free resource for owner, for whole seconds, and reports whether it did.
func (s *Service) TryLock(ctx context.Context, store, resource, owner string, seconds int32) (bool, error) {
	const op fault.Op = "lock.TryLock"
	h, unknown := s.stores.Lookup(store)
	if fault.ReasonOf(unknown) == fault.NoComponents {
		return false, unknown
	}
	if err := check(op, store, resource, owner); err != nil {
		return false, err
	}
	if seconds <= 0 {
		return false, fault.New(op, fault.Invalid, "ExpiryInSeconds is not positive in lock store %s", store).With(fault.BadExpiry)
	}
	if unknown != nil {
		return false, unknown
	}
	name, err := s.scope(h.Info, resource)
	if err != nil {
		return false, err
	}
	return catalog.Do(ctx, h, s.desc("tryLock", resource), func(ctx context.Context, l block.Lock) (bool, error) {
		return l.TryLock(ctx, name, owner, time.Duration(seconds)*time.Second)
	}, nil)
}

// Unlock gives a resource back if owner has it. With an error the status is block.UnlockFailed.
func (s *Service) Unlock(ctx context.Context, store, resource, owner string) (block.UnlockStatus, error) {
	const op fault.Op = "lock.Unlock"
	h, unknown := s.stores.Lookup(store)
	if fault.ReasonOf(unknown) == fault.NoComponents {
		return block.UnlockFailed, unknown
	}
	if err := check(op, store, resource, owner); err != nil {
		return block.UnlockFailed, err
	}
	if unknown != nil {
		return block.UnlockFailed, unknown
	}
	name, err := s.scope(h.Info, resource)
	if err != nil {
		return block.UnlockFailed, err
	}
	status, err := catalog.Do(ctx, h, s.desc("unlock", resource), func(ctx context.Context, l block.Lock) (block.UnlockStatus, error) {
		return l.Unlock(ctx, name, owner)
	}, nil)
	if err != nil {
		status = block.UnlockFailed
	}
	return status, err
}

func check(op fault.Op, store, resource, owner string) error {
	switch {
	case resource == "":
		return fault.New(op, fault.Invalid, "ResourceId is empty in lock store %s", store).With(fault.EmptyName)
	case owner == "":
		return fault.New(op, fault.Invalid, "LockOwner is empty in lock store %s", store).With(fault.EmptyName)
	}
	return nil
}

// desc describes an operation on a resource. Its repetition after a failure nobody can judge may
// find its own work done: a lock that is taken, or one that is gone.
func (s *Service) desc(op, resource string) call.Desc {
	return call.Desc{Op: op, Resource: resource, Key: resource, Safety: call.Conditional, Caller: s.caller}
}
