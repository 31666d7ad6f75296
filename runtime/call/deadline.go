package call

import (
	"context"
	"sync"
	"time"
)

// deadline is the context of an attempt with a time limit. It is one object for the call's
// limit and the attempt's, and has neither channel nor timer until somebody asks for Done: most
// operations on a store in memory never do, and context.WithTimeout alone costs 450 ns.
//
// It can do what context.WithTimeout cannot: the limit may be lifted, so that the answer can be
// read in peace, while the context can still be cancelled.
type deadline struct {
	context.Context // the call's
	// hidden limits are not shown by Deadline. An invocation's limit ends with the head of the
	// answer, and whoever is told of a deadline passes it on as one for the whole exchange.
	hidden bool

	mu    sync.Mutex // guards what follows
	at    time.Time  // zero: no limit any more
	done  chan struct{}
	err   error
	late  bool // the limit ended it
	timer *time.Timer
	unred func() bool // stops watching the parent
	after map[*func()]struct{}
}

func newDeadline(parent context.Context, at time.Time, hidden bool) *deadline {
	return &deadline{Context: parent, at: at, hidden: hidden}
}

// Deadline implements context.Context.
func (d *deadline) Deadline() (time.Time, bool) {
	at, ok := d.Context.Deadline()
	if d.hidden {
		return at, ok
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.at.IsZero() && (!ok || d.at.Before(at)) {
		return d.at, true
	}
	return at, ok
}

// Done implements context.Context.
func (d *deadline) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done == nil {
		d.done = make(chan struct{})
		if d.err != nil {
			close(d.done)
		}
		d.watch()
	}
	return d.done
}

// watch makes the context end by itself; mu is held.
func (d *deadline) watch() {
	if d.err != nil {
		return
	}
	if d.timer == nil && !d.at.IsZero() {
		d.timer = time.AfterFunc(time.Until(d.at), d.tick)
	}
	if d.unred == nil {
		d.unred = afterFunc(d.Context, func() { d.cancel(d.Context.Err()) })
	}
}

// afterFunc asks the context itself if it can be asked: the package would first make it a
// channel, which an HTTP exchange's does not have until somebody wants one.
func afterFunc(ctx context.Context, f func()) (stop func() bool) {
	if x, ok := ctx.(interface {
		AfterFunc(func()) (stop func() bool)
	}); ok {
		return x.AfterFunc(f)
	}
	return context.AfterFunc(ctx, f)
}

// tick is the timer's: the limit may have been moved or lifted meanwhile.
func (d *deadline) tick() {
	d.mu.Lock()
	if d.at.IsZero() || d.err != nil {
		d.mu.Unlock()
		return
	}
	if left := time.Until(d.at); left > 0 {
		d.timer.Reset(left)
		d.mu.Unlock()
		return
	}
	d.end(context.DeadlineExceeded, true)
}

// Err implements context.Context.
func (d *deadline) Err() error {
	d.mu.Lock()
	if d.err == nil {
		if err := d.Context.Err(); err != nil {
			d.end(err, false)
			return err
		}
		if !d.at.IsZero() && !time.Now().Before(d.at) {
			d.end(context.DeadlineExceeded, true)
			return context.DeadlineExceeded
		}
	}
	defer d.mu.Unlock()
	return d.err
}

// AfterFunc runs f in its own goroutine when the context ends. The context package looks for
// it, so that contexts below need no goroutine to watch this one.
func (d *deadline) AfterFunc(f func()) (stop func() bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		go f()
		return func() bool { return false }
	}
	if d.after == nil {
		d.after = map[*func()]struct{}{}
	}
	d.after[&f] = struct{}{}
	d.watch()
	return func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		_, waiting := d.after[&f]
		delete(d.after, &f)
		return waiting
	}
}

// tighten moves the limit, never to later.
func (d *deadline) tighten(at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at.IsZero() || at.Before(d.at) {
		d.at = at
		if d.timer != nil {
			d.timer.Reset(time.Until(at))
		}
	}
}

// lift takes the limit away.
func (d *deadline) lift() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = time.Time{}
	if d.timer != nil {
		d.timer.Stop()
	}
}

// expired tells whether the limit ended the context.
func (d *deadline) expired() bool {
	_ = d.Err()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.late
}

func (d *deadline) cancel(err error) {
	d.mu.Lock()
	if d.err != nil {
		d.mu.Unlock()
		return
	}
	d.end(err, false)
}

// end ends the context and unlocks mu, which is held.
func (d *deadline) end(err error, late bool) {
	d.err, d.late = err, late
	if d.done != nil {
		close(d.done)
	}
	if d.timer != nil {
		d.timer.Stop()
	}
	unred, after := d.unred, d.after
	d.unred, d.after = nil, nil
	d.mu.Unlock()
	if unred != nil {
		unred()
	}
	for f := range after {
		go (*f)()
	}
}
