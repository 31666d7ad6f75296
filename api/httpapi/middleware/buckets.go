package middleware

import (
	"hash/maphash"
	"sync"
	"time"
)

// maxBuckets bounds the memory of one rate limit to about 4 MiB.
const maxBuckets = 64 << 10

// buckets counts what each client still may ask of each path. Nothing runs in the background:
// a bucket is one point in time, at which it would be full again (the generic cell rate
// algorithm).
//
// Clients choose paths, and may choose their names, so the number of buckets is bounded. When
// all are in use the one asked least recently is forgotten, which can only favour its client.
type buckets struct {
	every int64 // ns that one request costs
	burst int64 // ns that a full bucket holds
	start time.Time
	seed  maphash.Seed // keys are hashes that no client can predict

	mu    sync.Mutex // guards what follows
	index map[uint64]int32
	all   []bucket
	head  int32 // asked most recently; -1 without buckets
	tail  int32 // asked least recently
}

type bucket struct {
	key        uint64
	full       int64 // ns since start
	prev, next int32 // towards head, towards tail; -1 at the ends
}

// newBuckets makes buckets of perSecond requests, at least one, that refill at that rate.
func newBuckets(perSecond float64) *buckets {
	every := max(int64(float64(time.Second)/perSecond), 1)
	return &buckets{every: every, burst: max(int64(perSecond), 1) * every, start: time.Now(), seed: maphash.MakeSeed(),
		index: map[uint64]int32{}, head: -1, tail: -1}
}

// take takes one request out of the bucket of a client and path; it tells how many are left
// and whether there was one.
func (b *buckets) take(client, path string) (left int, ok bool) {
	var h maphash.Hash
	h.SetSeed(b.seed)
	h.WriteString(client)
	h.WriteByte(0) // no address holds one
	h.WriteString(path)
	return b.takeAt(h.Sum64(), int64(time.Since(b.start)))
}

func (b *buckets) takeAt(key uint64, now int64) (left int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.bucket(key, now)
	full := max(e.full, now) + b.every
	if full-now > b.burst {
		return 0, false
	}
	e.full = full
	return int((b.burst - (full - now)) / b.every), true
}

// bucket finds or makes a bucket and moves it to the head.
func (b *buckets) bucket(key uint64, now int64) *bucket {
	i, known := b.index[key]
	switch {
	case known:
		b.unlink(i)
	case b.tail >= 0 && (b.all[b.tail].full <= now || len(b.all) == maxBuckets):
		i = b.tail // full again, so forgetting it changes nothing; or there is no more room
		b.unlink(i)
		delete(b.index, b.all[i].key)
		b.all[i] = bucket{key: key}
		b.index[key] = i
	default:
		i = int32(len(b.all))
		b.all = append(b.all, bucket{key: key})
		b.index[key] = i
	}
	b.pushFront(i)
	return &b.all[i]
}

func (b *buckets) unlink(i int32) {
	e := &b.all[i]
	if e.prev >= 0 {
		b.all[e.prev].next = e.next
	} else {
		b.head = e.next
	}
	if e.next >= 0 {
		b.all[e.next].prev = e.prev
	} else {
		b.tail = e.prev
	}
}

func (b *buckets) pushFront(i int32) {
	e := &b.all[i]
	e.prev, e.next = -1, b.head
	if b.head >= 0 {
		b.all[b.head].prev = i
	} else {
		b.tail = i
	}
	b.head = i
}
