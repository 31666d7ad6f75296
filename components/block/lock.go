package block

import (
	"context"
	"time"
)

// Lock grants names to one owner at a time. A lock ends by itself after its time, so an owner
// must not rely on it longer, nor on clocks of others; what it guards is safe only behind the
// fencing token (LockFence).
type Lock interface {
	Component
	// TryLock takes a free name for owner, for ttl from now, and reports whether it did. It does
	// not wait. A name that is taken, by this owner too, is not an error. The name arrives
	// already scoped. A lock may end later than asked for, by a store that counts in its own
	// steps, and never earlier. A ttl that is not positive is fault.Invalid.
	TryLock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
	// Unlock gives a name back if owner has it.
	Unlock(ctx context.Context, name, owner string) (UnlockStatus, error)
}

// UnlockStatus is the outcome of an Unlock.
type UnlockStatus uint8

// The outcomes. The numbers are Dapr's, on both wires.
const (
	Unlocked      UnlockStatus = 0
	NoSuchLock    UnlockStatus = 1
	LockOfAnother UnlockStatus = 2
	UnlockFailed  UnlockStatus = 3 // an error; services set it, backends return the error
)

// LockFence is offered by stores that can renew a lock and number its grants.
type LockFence interface {
	// TryLockFenced is TryLock, and gives the grant's number: greater than that of every earlier
	// grant of the name, as long as the store keeps its data. Zero when it was not granted.
	TryLockFenced(ctx context.Context, name, owner string, ttl time.Duration) (token uint64, err error)
	// Renew makes an owner's lock last for ttl from now. It reports false when owner no longer
	// has it.
	Renew(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
}
