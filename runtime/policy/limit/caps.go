package limit

import (
	"context"
	"sync"
	"sync/atomic"
)

// Config configures Caps. In each field 0 means no cap, and so does a value of 1<<31 or more,
// which control planes send for "unlimited". A negative value allows none.
type Config struct {
	// MaxRequests is how many may hold a slot at once.
	MaxRequests int
	// MaxPending is how many may wait for a slot.
	MaxPending int
	// MaxRetries is how many retries may be under way at once.
	MaxRetries int
}

// uncapped is a number of slots that is never reached.
const uncapped = 1<<31 - 1

func slots(n int) int64 {
	switch {
	case n < 0:
		return 0
	case n == 0 || n > uncapped:
		return uncapped
	}
	return int64(n)
}

// Verdict is the answer to Acquire.
type Verdict uint8

const (
	// Acquired means the caller holds a slot and must Release it once.
	Acquired Verdict = iota
	// RefusedFull means all slots and all places to wait are taken.
	RefusedFull
	// Ended means the context ended while waiting. The caller holds nothing.
	Ended
)

// String is the verdict's name in logs and metrics.
func (v Verdict) String() string {
	switch v {
	case Acquired:
		return "acquired"
	case RefusedFull:
		return "refused_full"
	}
	return "ended"
}

// Caps bounds how much is under way at once: requests, requests waiting for their turn, and
// retries. Waiters are served first come, first served; a newcomer never overtakes one.
type Caps struct {
	maxRequests atomic.Int64
	maxPending  atomic.Int64
	maxRetries  atomic.Int64
	_           [104]byte // what is only read stays apart from what every call writes

	// load is the requests under way, and from bit 32 on the requests waiting. One word, so
	// that "is there a free slot, and does nobody wait for it" is one question. The upper half
	// changes with mu held only.
	load    atomic.Uint64
	_       [120]byte
	retries atomic.Int64
	_       [120]byte

	mu   sync.Mutex // guards the queue: as many waiters as load says
	head *waiter    // came first
	tail *waiter
}

const onePending = 1 << 32

func inflight(load uint64) int64 { return int64(load & (onePending - 1)) }
func pending(load uint64) int64  { return int64(load / onePending) }

// waiter stands in the queue. granted is closed, with mu held, when it leaves the queue with a
// slot.
type waiter struct {
	granted    chan struct{}
	prev, next *waiter
	queued     bool
}

// NewCaps has all slots free.
func NewCaps(c Config) *Caps {
	k := &Caps{}
	k.setMax(c)
	return k
}

func (c *Caps) setMax(to Config) {
	c.maxRequests.Store(slots(to.MaxRequests))
	c.maxPending.Store(slots(to.MaxPending))
	c.maxRetries.Store(slots(to.MaxRetries))
}

// Acquire takes a slot at once, or waits in line for one until ctx ends. A free slot is taken
// without looking at ctx, with one atomic step and no allocation.
func (c *Caps) Acquire(ctx context.Context) Verdict {
	if c.take() {
		return Acquired
	}
	w, v := c.enqueue()
	if w == nil {
		return v
	}
	select {
	case <-w.granted:
		return Acquired
	case <-ctx.Done():
	}
	if !c.leave(w) {
		// The slot came at the same moment. The caller is going, so the next one gets it.
		c.Release()
	}
	return Ended
}

// TryAcquire takes a slot if one is free and nobody waits for it. It never waits itself.
func (c *Caps) TryAcquire() bool { return c.take() }

// take takes a slot if one is free and nobody waits.
func (c *Caps) take() bool {
	for {
		load := c.load.Load()
		// Waiters make the load larger than any number of slots.
		if int64(load) >= c.maxRequests.Load() {
			return false
		}
		if c.load.CompareAndSwap(load, load+1) {
			return true
		}
	}
}

// enqueue puts a new waiter at the end of the line. Without one, the verdict is final.
func (c *Caps) enqueue() (*waiter, Verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.take() {
			return nil, Acquired // a slot became free on the way here
		}
		load := c.load.Load()
		if pending(load) == 0 && inflight(load) < c.maxRequests.Load() {
			continue // and another one just now
		}
		if pending(load) >= c.maxPending.Load() {
			return nil, RefusedFull
		}
		// All slots are taken at the moment the waiter is counted, so whoever releases one
		// sees that there is a waiter.
		if c.load.CompareAndSwap(load, load+onePending) {
			break
		}
	}
	w := &waiter{granted: make(chan struct{}), prev: c.tail, queued: true}
	if c.tail != nil {
		c.tail.next = w
	} else {
		c.head = w
	}
	c.tail = w
	return w, Acquired
}

// leave takes a waiter out of the line. It is false if the waiter has a slot already.
func (c *Caps) leave(w *waiter) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !w.queued {
		return false
	}
	c.unlink(w)
	c.load.Add(^uint64(onePending - 1))
	return true
}

// Release gives a slot back: to the first in line, if there is one. It must be called exactly
// once for each Acquired.
func (c *Caps) Release() {
	for {
		load := c.load.Load()
		if pending(load) > 0 {
			break
		}
		if c.load.CompareAndSwap(load, load-1) {
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.load.Add(^uint64(0))
	c.grant()
}

// grant hands free slots to waiters, first come, first served. It is called with mu held.
func (c *Caps) grant() {
	for {
		load := c.load.Load()
		if pending(load) == 0 || inflight(load) >= c.maxRequests.Load() {
			return
		}
		if !c.load.CompareAndSwap(load, load-onePending+1) {
			continue
		}
		w := c.head
		c.unlink(w)
		close(w.granted)
	}
}

// unlink takes w out of the queue. It is called with mu held.
func (c *Caps) unlink(w *waiter) {
	w.queued = false
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		c.head = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		c.tail = w.prev
	}
}

// AcquireRetry takes a place for a retry if one is free. It never waits: a retry that has to
// wait is not worth making.
func (c *Caps) AcquireRetry() bool {
	for {
		n := c.retries.Load()
		if n >= c.maxRetries.Load() {
			return false
		}
		if c.retries.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// ReleaseRetry gives the place back. It must be called exactly once for each AcquireRetry that
// was granted.
func (c *Caps) ReleaseRetry() { c.retries.Add(-1) }

// Inflight is how many slots are taken.
func (c *Caps) Inflight() int { return int(inflight(c.load.Load())) }

// Pending is how many wait for a slot.
func (c *Caps) Pending() int { return int(pending(c.load.Load())) }

// Reconfigure changes the caps. Who has a slot or waits for one keeps it, even if there are
// now too many of them; newly free slots go to the first in line.
func (c *Caps) Reconfigure(to Config) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setMax(to)
	c.grant()
}
