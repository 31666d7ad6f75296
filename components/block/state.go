package block

import (
	"context"
	"time"
)

// State is a store of small values by key. Keys arrive already scoped (prefixed) by the
// service. All stores mean the same by the same call; where products differ the meaning is
// that of a SQL table with one row per key.
type State interface {
	Component
	// Get reads one key. A missing or expired key is not an error: Exists is false.
	Get(ctx context.Context, key string, opts StateRead) (StateItem, error)
	// Set writes one key. A version mismatch is fault.Conflict, an etag this store cannot
	// have issued fault.BadEtag. A TTL on a store without expiry is fault.Unsupported.
	Set(ctx context.Context, w StateWrite) error
	// Delete removes one key. A missing key is success, unless an ETag was given: then it
	// is fault.Conflict.
	Delete(ctx context.Context, d StateDelete) error
}

// StateRead are options of a read.
type StateRead struct {
	// Strong asks for a read that sees every acknowledged write.
	Strong bool
}

// StateItem is one stored value.
type StateItem struct {
	Key    string
	Exists bool
	Value  []byte
	// ETag is the opaque version. It is never empty when Exists.
	ETag string
	// Expires is when the item ends; zero means never, or unknown to the store.
	Expires time.Time
	// Err, in an answer of GetMany only, is why this item alone cannot be read; then nothing else
	// but Key is set.
	Err error
}

// StateWrite is one write.
type StateWrite struct {
	Key   string
	Value []byte
	// JSON says that the value is JSON text, to a store that can look into it. Such a store may
	// give it back in another spelling of the same.
	JSON bool
	// ETag, when not empty, makes the write conditional on the stored version; a missing key
	// does not match.
	ETag string
	// FirstWrite without an ETag writes only if the key does not exist (an expired key does
	// not); otherwise fault.Conflict.
	FirstWrite bool
	// Strong asks for acknowledgement only when as many copies as the store can count on
	// have it.
	Strong bool
	// TTL is the time to live from now. Zero means no expiry and clears an earlier one.
	TTL time.Duration
}

// StateDelete is one removal. ETag is as in StateWrite.
type StateDelete struct {
	Key  string
	ETag string
}

// StateOp is one step of a transaction: a write, or a removal when Delete is set (then only
// Key and ETag of the write count).
type StateOp struct {
	Delete bool
	StateWrite
}

// StateBatch is offered by stores that read or write several keys in one exchange. Batches
// are not atomic.
type StateBatch interface {
	// GetMany returns one item per key, in the order of keys. The error is about all of them; an
	// item that alone cannot be read says so in its Err.
	GetMany(ctx context.Context, keys []string, opts StateRead) ([]StateItem, error)
	// SetMany returns nil when all were written, else one error or nil per write.
	SetMany(ctx context.Context, ws []StateWrite) []error
	// DeleteMany returns nil when all were removed, else one error or nil per removal.
	DeleteMany(ctx context.Context, ds []StateDelete) []error
}

// StateTx is offered by stores with all-or-nothing transactions.
type StateTx interface {
	// Transact applies all operations or none. A failed etag is fault.Conflict.
	Transact(ctx context.Context, ops []StateOp) error
	// MaxOps is the largest number of operations in one transaction; 0 means no limit.
	MaxOps() int
}

// StateTTL is offered by stores that expire items by themselves.
type StateTTL interface{ ExpiresItems() }
