package h2

import (
	"context"
	"sync"
	"time"
)

// callContext is the context of a handler. It costs nothing until somebody asks for its Done
// channel: only then a channel is made and, if there is a deadline, a timer started. It
// offers AfterFunc, so contexts derived from it need no goroutine.
type callContext struct {
	mu       sync.Mutex
	deadline time.Time // guarded by mu; zero means none
	done     chan struct{}
	err      error
	timer    *time.Timer
	after    map[*afterFunc]struct{}
}

type afterFunc struct{ f func() }

var _ context.Context = (*callContext)(nil)

// Deadline is what SetDeadline set.
func (c *callContext) Deadline() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline, !c.deadline.IsZero()
}

// Value knows nothing.
func (c *callContext) Value(any) any { return nil }

// Err tells whether the deadline is over even if no timer runs.
func (c *callContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && !c.deadline.IsZero() && !time.Now().Before(c.deadline) {
		c.cancelLocked(context.DeadlineExceeded)
	}
	return c.err
}

// Done starts the timer on its first call.
func (c *callContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
	}
	c.arm()
	return c.done
}

// AfterFunc is what the context package looks for to hook up derived contexts.
func (c *callContext) AfterFunc(f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go f()
		return func() bool { return false }
	}
	a := &afterFunc{f}
	if c.after == nil {
		c.after = make(map[*afterFunc]struct{})
	}
	c.after[a] = struct{}{}
	c.arm()
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, waiting := c.after[a]
		delete(c.after, a)
		return waiting
	}
}

func (c *callContext) setDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if c.done != nil || c.after != nil {
		c.arm()
	}
}

// arm starts the timer if there is something to time and none runs.
func (c *callContext) arm() {
	if c.err == nil && c.timer == nil && !c.deadline.IsZero() {
		c.timer = time.AfterFunc(time.Until(c.deadline), func() { c.cancel(context.DeadlineExceeded) })
	}
}

// cancel ends the context, once. It may be called with the connection's lock held and takes no
// other lock than its own.
func (c *callContext) cancel(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancelLocked(err)
}

func (c *callContext) cancelLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	if c.done != nil {
		close(c.done)
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	for a := range c.after {
		go a.f()
	}
	c.after = nil
}
