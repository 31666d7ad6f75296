package h1

import (
	"context"
	"sync"
	"time"
)

// exchangeContext is an exchange's context. It exists because context.WithCancel costs
// several allocations per request, and a goroutine for every child of a foreign context: this
// one allocates its channel only when somebody asks for it and offers AfterFunc, which the
// context package uses in place of the goroutine.
type exchangeContext struct {
	base context.Context // values only

	mu    sync.Mutex
	done  chan struct{} // guarded by mu; nil until asked for
	err   error         // guarded by mu
	after *afterCancel  // guarded by mu; a list
	first afterCancel   // guarded by mu: room for the usual one entry, used once
}

type afterCancel struct {
	c          *exchangeContext
	f          func()
	prev, next *afterCancel
}

// closedChan is what Done returns when the end came before the question.
var closedChan = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (*exchangeContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c *exchangeContext) Value(key any) any         { return c.base.Value(key) }

func (c *exchangeContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		if c.err != nil {
			c.done = closedChan
		} else {
			c.done = make(chan struct{})
		}
	}
	return c.done
}

func (c *exchangeContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// AfterFunc is the hook of the context package: f runs in its own goroutine after the end.
func (c *exchangeContext) AfterFunc(f func()) (stop func() bool) { return c.register(f).stop }

// register is AfterFunc without the closure.
func (c *exchangeContext) register(f func()) *afterCancel {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &c.first
	if a.c != nil {
		a = new(afterCancel)
	}
	a.c = c
	if c.err != nil {
		go f()
		return a
	}
	a.f, a.next = f, c.after
	if a.next != nil {
		a.next.prev = a
	}
	c.after = a
	return a
}

// stop takes f off and reports whether it will not run.
func (a *afterCancel) stop() bool {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	if a.f == nil {
		return false
	}
	a.f = nil
	if a.next != nil {
		a.next.prev = a.prev
	}
	if a.prev != nil {
		a.prev.next = a.next
	} else {
		a.c.after = a.next
	}
	return true
}

// cancel ends the context. Later calls do nothing.
func (c *exchangeContext) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = context.Canceled
	if c.done != nil {
		close(c.done)
	}
	for a := c.after; a != nil; a = a.next {
		go a.f()
		a.f = nil
	}
	c.after = nil
}
