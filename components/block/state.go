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
	// Err, of an item among others (GetMany, Scan, Watch), is why this one cannot be read; then
	// nothing else but Key is set.
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

// StateScan is offered by stores that can go through their keys.
type StateScan interface {
	// Scan gives up to limit items, of which at least 1 is asked for, whose keys begin with prefix,
	// from the page that token names; an empty token is the first page. next is empty at the end; a
	// page may be short, or empty, before it. An item that exists throughout the scan is given at
	// least once, and twice only in different pages; expired items are left out. A token that is
	// not this store's is fault.Invalid with fault.BadToken; one of a scan made before the store
	// was restarted may be. With keysOnly values may be left out.
	Scan(ctx context.Context, prefix, token string, limit int, keysOnly bool) (items []StateItem, next string, err error)
}

// StateWatch is offered by stores that tell of changes.
type StateWatch interface {
	// Watch tells of every change to keys that begin with prefix until ctx ends, and then returns
	// ctx's error. It calls changed from one goroutine, in the order of a key's changes; changes
	// that follow each other closely may come as the last of them. Items that were removed, or
	// expired (as late as the store notices), come with Exists false. The slice belongs to the
	// callee; changed may block.
	//
	// started is called once, as soon as no later change can be missed. When changes may have been
	// missed (a connection was lost for longer than the store remembers) Watch returns
	// fault.Unavailable: the caller reads all again.
	Watch(ctx context.Context, prefix string, started func(), changed func([]StateItem)) error
}

// StateFence is offered by stores that can make a transaction depend on a number, and raise it, in
// one atomic step. So a former owner, who has a lower number, cannot write any more.
type StateFence interface {
	// TransactFenced applies all operations, as Transact does, and sets the number kept under the
	// key fence to epoch, if that number is not greater than epoch. A fence never seen counts as
	// 0. When the number is greater nothing happens: fault.Conflict with fault.Fenced. The fence's
	// key is in the same space as keys of items, arrives already scoped, is nobody's item, and
	// does not expire. An empty ops raises the number alone. Where keys are spread over servers
	// that cannot act as one, it is fault.Unsupported. Every epoch up to 2^63-1 is taken; a store
	// that cannot keep larger ones refuses them with fault.Invalid. The fence may count as one of
	// MaxOps.
	TransactFenced(ctx context.Context, fence string, epoch uint64, ops []StateOp) error
}
