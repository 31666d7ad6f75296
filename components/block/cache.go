package block

import (
	"context"
	"time"
)

// Cache is a store of entries that may vanish at any time, shared by sidecars. It keeps bytes and
// knows nothing of what the cache service puts into them: freshness, tags, leases. Keys arrive
// already scoped.
type Cache interface {
	Component
	// Load reads entries, one per key, in the order of keys. One that is not there, or has ended,
	// has no Version.
	Load(ctx context.Context, keys []string) ([]CacheEntry, error)
	// Store writes entries, whatever was there, and gives their versions in the same order. They
	// are not written at once; on an error some may be.
	Store(ctx context.Context, writes []CacheWrite) (versions []string, err error)
	// Swap writes an entry only over the version given; the empty version means only if there is
	// none. A nil Value removes it (then the new version is empty). It reports whether it did.
	Swap(ctx context.Context, w CacheWrite, over string) (version string, done bool, err error)
	// Drop removes entries; those that are not there are no error.
	Drop(ctx context.Context, keys []string) error
	// Config is how the cache service is to use this store. It does not change.
	Config() CacheConfig
}

// CacheEntry is one entry as a store has it.
type CacheEntry struct {
	// Value is nil when there is no entry.
	Value []byte
	// Version is opaque, different for each write of a key, and empty when there is no entry.
	Version string
}

// CacheWrite is one entry to write.
type CacheWrite struct {
	Key   string
	Value []byte
	// TTL is how long the store keeps it: positive, at least for that long unless it needs the
	// room.
	TTL time.Duration
}

// CacheFeed is offered by stores that tell which keys change, whoever changes them.
type CacheFeed interface {
	// Follow tells of changes to keys that begin with prefix until ctx ends, and then returns
	// ctx's error. started is called once, as soon as no later change can be missed; then changed
	// for every change, from one goroutine. A change that is told is visible to Load by then. The
	// slice belongs to the caller. When changes may have been missed Follow returns
	// fault.Unavailable.
	Follow(ctx context.Context, prefix string, started func(), changed func([]CacheChange)) error
}

// CacheChange is a key that was written or is gone. Key may be empty: any key may have changed.
type CacheChange struct {
	Key string
	// Version is that of the write, if the store tells it.
	Version string
}

// CacheScan is offered by stores that can go through their keys.
type CacheScan interface {
	// Keys calls each with keys that begin with prefix, in several parts. A key that exists
	// throughout is given at least once. An error of each ends it and is returned.
	Keys(ctx context.Context, prefix string, each func(keys []string) error) error
}

// CacheFence is offered by stores that can make a write depend on a number, and raise it, in one
// atomic step; see StateFence.
type CacheFence interface {
	// StoreFenced is Store of one entry under a fence, which lives for at least ttl after its last
	// use. A number that is greater than epoch is fault.Conflict with fault.Fenced.
	StoreFenced(ctx context.Context, fence string, epoch uint64, ttl time.Duration, w CacheWrite) (version string, err error)
}

// Coherence is how near entries are kept true to the shared store.
type Coherence string

// The levels of coherence.
const (
	// CoherenceLocal keeps near entries for their time to live, whatever happens to the shared
	// ones.
	CoherenceLocal Coherence = "local"
	// CoherenceInvalidate drops near entries when the shared store tells of a change, and asks it
	// again after maxAge whatever it told.
	CoherenceInvalidate Coherence = "invalidate"
	// CoherenceStrong has no near entries: each read asks the shared store.
	CoherenceStrong Coherence = "strong"
)
