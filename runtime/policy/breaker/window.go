package breaker

import (
	"sync/atomic"
	"time"
)

// windowBuckets is into how many pieces the window is cut. The oldest piece is dropped as a
// whole, so the rate is over nine to ten tenths of the window.
const windowBuckets = 10

// window counts results of the recent past. Adding is lock-free and allocates once per bucket.
type window struct {
	width int64 // of a bucket, ns
	slots [windowBuckets]atomic.Pointer[bucket]
}

// bucket is one piece of the window. It is replaced, never reset, so a result that comes late
// cannot fall into a newer piece.
type bucket struct {
	tick     int64
	results  atomic.Int64
	failures atomic.Int64
	_        [104]byte // a line of its own: every call of a target writes it
}

func newWindow(length time.Duration) *window {
	return &window{width: int64(length) / windowBuckets}
}

func (w *window) add(now int64, ok bool) {
	b := w.at(now / w.width)
	b.results.Add(1) // first, so that there are never more failures than results
	if !ok {
		b.failures.Add(1)
	}
}

// at is the bucket of a tick, put in the place of the one that has been there before.
func (w *window) at(tick int64) *bucket {
	slot := &w.slots[tick%windowBuckets]
	for {
		b := slot.Load()
		if b != nil && b.tick >= tick {
			return b
		}
		next := &bucket{tick: tick}
		if slot.CompareAndSwap(b, next) {
			return next
		}
	}
}

// exceeds tells whether there are enough results and percent of them or more are failures.
func (w *window) exceeds(now, percent, enough int64) bool {
	var results, failures int64
	tick := now / w.width
	for i := range w.slots {
		if b := w.slots[i].Load(); b != nil && tick-b.tick < windowBuckets {
			failures += b.failures.Load()
			results += b.results.Load()
		}
	}
	return results >= enough && failures*100 >= results*percent
}

func (w *window) clear() {
	for i := range w.slots {
		w.slots[i].Store(nil)
	}
}
