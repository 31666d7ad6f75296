package link

import (
	"context"
	"sync"
	"time"
)

// callContext is the context of a handler. It costs nothing until somebody asks for its Done
// channel: only then a channel is made and, if the caller set a timeout, a timer started. It
// offers AfterFunc, so contexts derived from it need no goroutine.
type callContext struct {
	deadline time.Time // zero means none; fixed before the handler starts

	mu    sync.Mutex
	done  chan struct{}
	err   error
	timer *time.Timer
	first *afterFunc              // the usual case is one
	after map[*afterFunc]struct{} // the others
}

// afterFunc is a function to run when its context ends.
type afterFunc struct {
	c *callContext
	f func()
}

// stop takes the function back; it reports whether it had not begun.
func (a *afterFunc) stop() bool {
	c := a.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == a {
		c.first = nil
		return true
	}
	_, waiting := c.after[a]
	delete(c.after, a)
	return waiting
}

var _ context.Context = (*callContext)(nil)

// Deadline is when the caller's timeout ends.
func (c *callContext) Deadline() (time.Time, bool) { return c.deadline, !c.deadline.IsZero() }

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
	a := &afterFunc{c, f}
	switch {
	case c.first == nil:
		c.first = a
	case c.after == nil:
		c.after = map[*afterFunc]struct{}{a: {}}
	default:
		c.after[a] = struct{}{}
	}
	c.arm()
	return a.stop
}

// arm starts the timer if there is something to time and none runs.
func (c *callContext) arm() {
	if c.err == nil && c.timer == nil && !c.deadline.IsZero() {
		c.timer = time.AfterFunc(time.Until(c.deadline), func() { c.cancel(context.DeadlineExceeded) })
	}
}

// cancel ends the context, once. It may be called with the session's lock held and takes no
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
	if c.first != nil {
		go c.first.f()
	}
	for a := range c.after {
		go a.f()
	}
	c.first, c.after = nil, nil
}
