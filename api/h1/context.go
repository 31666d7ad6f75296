package h1

import (
	"context"
	"sync"
	"time"
)

// exchangeContext is an exchange's context. Most exchanges need no more of it than that the
// client of this package can watch it, which costs nothing here. A real cancellable context
// is made when somebody asks for Done; the context package then finds it through Value and
// attaches children to it, where a foreign context would cost a goroutine for each.
type exchangeContext struct {
	base context.Context // values; never ends

	mu     sync.Mutex
	inner  context.Context    // guarded by mu; nil until asked for
	cancel context.CancelFunc // guarded by mu; inner's
	err    error              // guarded by mu
	after  *watcher           // guarded by mu; a list
	first  watcher            // guarded by mu: room for the usual one entry, used once
}

// watcher is a function that runs in its own goroutine when the context ends.
type watcher struct {
	c          *exchangeContext
	f          func()
	prev, next *watcher
}

func (*exchangeContext) Deadline() (time.Time, bool) { return time.Time{}, false }

func (c *exchangeContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		c.inner, c.cancel = context.WithCancel(c.base)
		if c.err != nil {
			c.cancel()
		}
	}
	return c.inner.Done()
}

func (c *exchangeContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *exchangeContext) Value(key any) any {
	c.mu.Lock()
	from := c.inner
	c.mu.Unlock()
	if from == nil {
		from = c.base
	}
	return from.Value(key)
}

// watch has f run when the context ends, unless it is stopped before.
func (c *exchangeContext) watch(f func()) *watcher {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &c.first
	if w.c != nil {
		w = new(watcher)
	}
	w.c = c
	if c.err != nil {
		go f()
		return w
	}
	w.f, w.next = f, c.after
	if w.next != nil {
		w.next.prev = w
	}
	c.after = w
	return w
}

// AfterFunc runs f in its own goroutine when the context ends. Who watches it this way needs no
// real cancellable context.
func (c *exchangeContext) AfterFunc(f func()) (stop func() bool) { return c.watch(f).stop }

// stop takes f off and reports whether it will not run.
func (w *watcher) stop() bool {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if w.f == nil {
		return false
	}
	w.f = nil
	if w.next != nil {
		w.next.prev = w.prev
	}
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		w.c.after = w.next
	}
	return true
}

// end ends the context. Later calls do nothing.
func (c *exchangeContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = context.Canceled
	if c.cancel != nil {
		c.cancel()
	}
	for w := c.after; w != nil; w = w.next {
		go w.f()
		w.f = nil
	}
	c.after = nil
}
