package wire

import (
	"context"
	"sync"
	"time"
)

// Context is the context of a handler. It costs nothing until somebody asks for its Done
// channel: only then a channel is made and, if the caller set a timeout, a timer started. It
// offers AfterFunc, so contexts derived from it need no goroutine.
type Context struct {
	mu       sync.Mutex
	deadline time.Time // zero means none
	done     chan struct{}
	err      error
	timer    *time.Timer
	first    *afterFunc              // the usual case is one
	after    map[*afterFunc]struct{} // the others
}

// afterFunc is a function to run when its context ends.
type afterFunc struct {
	c *Context
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

var _ context.Context = (*Context)(nil)

// Deadline is what SetDeadline set.
func (c *Context) Deadline() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline, !c.deadline.IsZero()
}

// SetDeadline says when the time ends; zero means never. A timer that runs is started anew.
func (c *Context) SetDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if c.done != nil || c.first != nil || c.after != nil {
		c.arm()
	}
}

// Value knows nothing.
func (c *Context) Value(any) any { return nil }

// Err tells whether the deadline is over even if no timer runs.
func (c *Context) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && !c.deadline.IsZero() && !time.Now().Before(c.deadline) {
		c.cancelLocked(context.DeadlineExceeded)
	}
	return c.err
}

// Done starts the timer on its first call.
func (c *Context) Done() <-chan struct{} {
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
func (c *Context) AfterFunc(f func()) (stop func() bool) {
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
func (c *Context) arm() {
	if c.err == nil && c.timer == nil && !c.deadline.IsZero() {
		c.timer = time.AfterFunc(time.Until(c.deadline), func() { c.Cancel(context.DeadlineExceeded) })
	}
}

// Cancel ends the context, once. It may be called with a connection's lock held and takes no
// other lock than its own.
func (c *Context) Cancel(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancelLocked(err)
}

func (c *Context) cancelLocked(err error) {
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
