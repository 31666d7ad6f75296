package telemetry

import (
	"hash/maphash"
	"math/bits"
	"strings"
	"sync"
	"sync/atomic"
)

// key names one entry of a table by what the recording call knows: up to four strings and a
// number. It is looked up before any label text is put together, so that a record of a known
// series builds nothing. The strings of a key that is only looked up may live in a buffer the
// caller reuses; keys that are kept are cloned.
type key struct {
	a, b, c, d string
	n          int
}

func (k key) clone() key {
	return key{strings.Clone(k.a), strings.Clone(k.b), strings.Clone(k.c), strings.Clone(k.d), k.n}
}

// hash mixes the parts of k. Most keys leave some strings empty, which is why this beats
// hashing the whole struct. The seed keeps callers from choosing collisions.
func (k *key) hash(seed maphash.Seed) uint64 {
	h := uint64(k.n) * hashPrime
	for _, s := range [...]string{k.a, k.b, k.c, k.d} {
		h = bits.RotateLeft64(h, 23) * hashPrime
		if s != "" {
			h ^= maphash.String(seed, s)
		}
	}
	return h ^ h>>32
}

// hashPrime spreads a number over 64 bits (2^64 divided by the golden ratio).
const hashPrime = 0x9E3779B97F4A7C15

// entry is what a table finds: the series one recording call writes. Unused fields are nil.
type entry struct {
	latency *series
	count   *series // nil when the latency histogram's own count serves
	more    [2]*series
}

// table maps keys to entries. Lookups take no lock and allocate nothing; entries are only ever
// added. The zero value is empty; seed must be set.
type table struct {
	seed maphash.Seed
	live atomic.Pointer[buckets]
	mu   sync.Mutex // guards changes to live
	n    int        // entries; guarded by mu
}

// buckets is one generation of the table: chains of nodes, as many as a power of two.
type buckets []atomic.Pointer[node]

type node struct {
	hash uint64
	key  key
	next *node // never changes once the node is reachable
	entry
}

// find returns the entry of k, or nil.
func (t *table) find(k key) *entry {
	live := t.live.Load()
	if live == nil {
		return nil
	}
	h := k.hash(t.seed)
	for n := (*live)[h&uint64(len(*live)-1)].Load(); n != nil; n = n.next {
		if n.hash == h && n.key == k {
			return &n.entry
		}
	}
	return nil
}

// put adds e under a copy of k and returns the stored entry. The caller holds mu and found no k.
func (t *table) put(k key, e entry) *entry {
	live := t.live.Load()
	if live == nil || t.n >= 2*len(*live) {
		live = t.grow(live)
	}
	h := k.hash(t.seed)
	slot := &(*live)[h&uint64(len(*live)-1)]
	n := &node{hash: h, key: k.clone(), next: slot.Load(), entry: e}
	slot.Store(n)
	t.n++
	return &n.entry
}

// grow publishes a generation twice as large. Readers of the old one keep finding what was in
// it; the entries themselves point to the same series.
func (t *table) grow(old *buckets) *buckets {
	size := 8
	if old != nil {
		size = 2 * len(*old)
	}
	next := make(buckets, size)
	if old != nil {
		for i := range *old {
			for n := (*old)[i].Load(); n != nil; n = n.next {
				slot := &next[n.hash&uint64(size-1)]
				slot.Store(&node{hash: n.hash, key: n.key, next: slot.Load(), entry: n.entry})
			}
		}
	}
	t.live.Store(&next)
	return &next
}
