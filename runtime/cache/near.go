package cache

import (
	"hash/maphash"
	"math"
	"sync/atomic"

	"github.com/maypok86/otter/v2"
)

// entryCost is what a near entry takes beside its key and value.
const entryCost = 200

// near is the cache in the sidecar's memory. Keys are <namespace>||<key>.
//
// It does not know when entries end: that is looked at when they are read, and what has ended
// makes room first, because nobody reads it.
type near struct {
	entries *otter.Cache[string, *nearEntry]
	max     uint64
	evicted atomic.Uint64
	seed    maphash.Seed
	// moves count writes and invalidations of the keys that share a slot. A value that was read
	// from the shared store is kept only if its slot did not move meanwhile.
	moves [1024]atomic.Uint64
}

// nearEntry is an entry in memory. It does not change.
type nearEntry struct {
	env     *envelope
	version string
	believe int64  // until then it need not be asked for
	epoch   uint64 // of the feed when it was read; 0: no feed was needed
	only    bool   // it is kept here only
	marks   []mark
}

// mark is where a tag's cell stood when the entry was read.
type mark struct {
	cell *cell
	at   uint64
}

// standing tells whether none of the entry's tags was invalidated since.
func (e *nearEntry) standing() bool {
	for i := range e.marks {
		if e.marks[i].cell.moves.Load() != e.marks[i].at {
			return false
		}
	}
	return true
}

func weigh(key string, e *nearEntry) uint32 {
	return uint32(min(len(key)+len(e.env.value)+entryCost, math.MaxUint32))
}

// newNear makes a cache of at most max bytes; nil when that is none.
func newNear(max uint64) *near {
	if max == 0 {
		return nil
	}
	n := &near{max: max, seed: maphash.MakeSeed()}
	n.entries = otter.Must(&otter.Options[string, *nearEntry]{MaximumWeight: max, Weigher: weigh,
		OnAtomicDeletion: func(e otter.DeletionEvent[string, *nearEntry]) {
			if e.Cause == otter.CauseOverflow {
				n.evicted.Add(1)
			}
		}})
	return n
}

func (n *near) slot(key string) *atomic.Uint64 {
	return &n.moves[maphash.String(n.seed, key)%uint64(len(n.moves))]
}

func (n *near) get(key string) *nearEntry {
	if n == nil {
		return nil
	}
	e, _ := n.entries.GetIfPresent(key)
	return e
}

// moved is where the key's slot stands, to be given to put.
func (n *near) moved(key string) uint64 {
	if n == nil {
		return 0
	}
	return n.slot(key).Load()
}

// put keeps an entry unless its slot has moved on from since.
func (n *near) put(key string, e *nearEntry, since uint64) {
	if n == nil || uint64(weigh(key, e)) > n.max/8 || n.slot(key).Load() != since {
		return
	}
	n.entries.Set(key, e) // what it replaces is told of as deleted
	// Whoever moved the slot since may have looked for the entry before it was there.
	if n.slot(key).Load() != since {
		n.entries.Invalidate(key)
	}
}

// drop removes an entry, and keeps what is on its way from being put.
func (n *near) drop(key string) {
	if n == nil {
		return
	}
	n.slot(key).Add(1)
	n.entries.Invalidate(key)
}

func (n *near) close() {
	if n != nil {
		n.entries.InvalidateAll()
		n.entries.StopAllGoroutines()
	}
}
