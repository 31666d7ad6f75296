// Package breaker holds circuit breakers: they stop calls to what keeps failing, and let a few
// through after a while to see whether it works again.
//
// A Breaker counts as sony/gobreaker does, which Dapr uses, so a Dapr resiliency file means
// the same here; a failure rate over a sliding window is our own addition. A Group keeps one
// breaker per key. Which outcome is a failure, and what a refusal is called, is decided by the
// layers of package policy. Start reading at Breaker.
package breaker

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// defaultTimeout is gobreaker's, and with it Dapr's.
	defaultTimeout = 60 * time.Second
	// DefaultWindow and DefaultMinRequests are Hystrix's.
	DefaultWindow      = 10 * time.Second
	DefaultMinRequests = 20
	// shortestWindow leaves a millisecond to each bucket.
	shortestWindow = windowBuckets * time.Millisecond
)

// Config configures a Breaker. The zero value is Dapr's default breaker.
type Config struct {
	// MaxRequests is how many calls are let through while half-open, and how many must
	// succeed to close. 0 means 1.
	MaxRequests int
	// Interval is after how long the counts start anew while closed. 0 means never.
	Interval time.Duration
	// Timeout is how long the breaker stays open before it is half-open. 0 means 60s.
	Timeout time.Duration
	// Trip is the condition on the counts that opens. nil means consecutiveFailures > 5. The
	// expression false leaves the decision to FailureRate.
	Trip *Trip
	// FailureRate is the percentage of failures in the Window from which the breaker opens,
	// whatever Trip says. 0 turns it off.
	FailureRate int
	// Window is what FailureRate looks back on, in tenths. At least 10ms; 0 means 10s.
	Window time.Duration
	// MinRequests is how many results the Window must hold before FailureRate counts. 0 means
	// 20.
	MinRequests int
}

// Validate says, joined, what is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	check := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.MaxRequests < 0, "maxRequests: must not be negative, is %d", c.MaxRequests)
	check(c.Interval < 0, "interval: must not be negative, is %v", c.Interval)
	check(c.Timeout < 0, "timeout: must not be negative, is %v", c.Timeout)
	check(c.FailureRate < 0 || c.FailureRate > 100, "failureRate: must be from 0 to 100 percent, is %d", c.FailureRate)
	check(c.Window != 0 && c.Window < shortestWindow, "window: must be at least %v, is %v", shortestWindow, c.Window)
	check(c.MinRequests < 0, "minRequests: must not be negative, is %d", c.MinRequests)
	return errors.Join(errs...)
}

// State is where a breaker is in its cycle. The numbers are gobreaker's; append-only, they are
// metric values.
type State uint8

const (
	// Closed lets all calls through.
	Closed State = iota
	// HalfOpen lets MaxRequests calls through to see how they end.
	HalfOpen
	// Open lets none through.
	Open
)

// String is the state's name in logs and metrics.
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case HalfOpen:
		return "half-open"
	}
	return "open"
}

// Verdict is the answer to Allow.
type Verdict uint8

const (
	// Allowed means the call may be made; its ticket must come back once, by Done or Cancel.
	Allowed Verdict = iota
	// RefusedOpen means the breaker is open.
	RefusedOpen
	// RefusedHalfOpen means the breaker is half-open and has let enough calls through.
	RefusedHalfOpen
)

// String is the verdict's name in logs and metrics.
func (v Verdict) String() string {
	switch v {
	case Allowed:
		return "allowed"
	case RefusedOpen:
		return "refused_open"
	}
	return "refused_half_open"
}

// Ticket says in which generation a call was allowed. It is one word, made to be kept on the
// stack. The zero Ticket belongs to none and is ignored.
type Ticket struct{ in *generation }

// Breaker is one circuit breaker. It is safe for concurrent use and starts no goroutine: time
// passes when it is asked.
//
// Its life is a row of generations. One begins with every change of state and, while closed,
// after every Interval; its counts start at nothing, and results of calls allowed in an earlier
// one are ignored. While nothing fails, a call costs atomic steps only; the lock is for going
// from one generation to the next.
type Breaker struct {
	changed func(from, to State)
	start   time.Time // of the breaker; its times are nanoseconds since
	rules   atomic.Pointer[rules]
	current atomic.Pointer[generation]

	mu      sync.Mutex // guards storing rules and current, and what follows
	queue   []change
	telling bool // someone is calling changed
}

type change struct{ from, to State }

// rules are a Config in the form the hot path reads.
type rules struct {
	maxRequests int64
	interval    int64 // ns; 0: never
	timeout     int64 // ns
	trip        *Trip
	rate        int64 // percent; 0: off
	minRequests int64
	window      *window // nil without a rate
}

// newRules fills in the defaults. Negative figures count as 0.
func newRules(c Config) *rules {
	r := &rules{
		maxRequests: int64(max(c.MaxRequests, 1)),
		interval:    int64(max(c.Interval, 0)),
		timeout:     int64(defaultTimeout),
		trip:        c.Trip,
		rate:        int64(max(c.FailureRate, 0)),
		minRequests: DefaultMinRequests,
	}
	if c.Timeout > 0 {
		r.timeout = int64(c.Timeout)
	}
	if c.MinRequests > 0 {
		r.minRequests = int64(c.MinRequests)
	}
	if r.rate > 0 {
		length := DefaultWindow
		if c.Window > 0 {
			length = max(c.Window, shortestWindow)
		}
		r.window = newWindow(length)
	}
	return r
}

// New is a closed breaker. changed is told of every change of state, by the call that causes
// it, without locks held, one at a time and in order; it must be quick and may use the breaker.
// It may be nil. Whoever reads configurations from outside calls Validate first; New takes the
// default for figures out of range.
func New(c Config, changed func(from, to State)) *Breaker {
	b := &Breaker{changed: changed, start: time.Now()}
	b.rules.Store(newRules(c))
	b.current.Store(&generation{state: Closed})
	return b
}

// Allow asks whether a call may be made now. If so, the ticket must be given to Done or Cancel
// exactly once: a half-open breaker whose calls never end stays half-open.
func (b *Breaker) Allow() (Ticket, Verdict) {
	g, _ := b.now()
	switch g.state {
	case Closed:
		g.requests.Add(1)
		return Ticket{g}, Allowed
	case HalfOpen:
		if g.admit(b.rules.Load().maxRequests) {
			return Ticket{g}, Allowed
		}
		return Ticket{}, RefusedHalfOpen
	}
	return Ticket{}, RefusedOpen
}

// Done reports how an allowed call ended. Only a failure opens: even when a success brings the
// window to MinRequests, the next failure decides.
func (b *Breaker) Done(t Ticket, ok bool) {
	g, now := b.now()
	if g != t.in {
		return
	}
	switch {
	case g.state == HalfOpen && ok:
		b.probed(g)
	case g.state == HalfOpen:
		b.replace(g, Open)
	default:
		b.count(g, ok, now)
	}
}

// probed counts a success while half-open.
func (b *Breaker) probed(g *generation) {
	g.succeeded()
	// The rules are read after counting, as Reconfigure looks at the count after setting them:
	// one of the two sees that it is enough.
	if g.successes.Load() >= b.rules.Load().maxRequests {
		b.replace(g, Closed)
	}
}

// count takes down a result while closed. now is 0 if nobody has looked at the clock yet.
func (b *Breaker) count(g *generation, ok bool, now int64) {
	r := b.rules.Load()
	if r.window != nil {
		if now == 0 {
			now = int64(time.Since(b.start))
		}
		r.window.add(now, ok)
	}
	if ok {
		g.succeeded()
		return
	}
	if r.trip.met(g.failed()) || r.window != nil && r.window.exceeds(now, r.rate, r.minRequests) {
		b.replace(g, Open)
	}
}

// Cancel takes an allowed call back: it was never made, or its end says nothing about the
// other side. It does not count as a request, and while half-open another call may go in its
// place.
func (b *Breaker) Cancel(t Ticket) {
	if g, _ := b.now(); g == t.in {
		g.requests.Add(-1)
	}
}

// State is the state now. An open breaker whose Timeout is over becomes half-open by being
// asked.
func (b *Breaker) State() State {
	g, _ := b.now()
	return g.state
}

// Counts are the counts of the generation now; all are zero while open. During calls they may
// not fit together exactly.
func (b *Breaker) Counts() Counts {
	g, _ := b.now()
	return g.counts(g.streak.Load())
}

// Reconfigure changes the rules and keeps the state, the counts and the calls under way. How
// long the state has lasted is measured against the new Interval and Timeout at the next call;
// a new Trip and FailureRate count from the next failure. A new Window starts empty.
func (b *Breaker) Reconfigure(c Config) {
	next := newRules(c)
	b.mu.Lock()
	was := b.rules.Load()
	if next.window != nil && was.window != nil && next.window.width == was.window.width {
		next.window = was.window
	}
	b.rules.Store(next)
	b.mu.Unlock()
	// With a lower MaxRequests enough calls may have succeeded already, and then no further
	// one would be let through to close the breaker.
	g := b.current.Load()
	if g.state == HalfOpen && g.successes.Load() >= next.maxRequests {
		b.replace(g, Closed)
	}
}

// now is the generation after the passing of time was seen to, and the time if that needed it,
// otherwise 0: reading the clock is a third of what a call costs.
func (b *Breaker) now() (g *generation, now int64) {
	g = b.current.Load()
	r := b.rules.Load()
	switch {
	case g.state == Open:
		now = int64(time.Since(b.start))
		if now-g.since > r.timeout {
			g = b.replace(g, HalfOpen)
		}
	case g.state == Closed && r.interval > 0:
		now = int64(time.Since(b.start))
		if now-g.since > r.interval {
			g = b.replace(g, Closed)
		}
	}
	return g, now
}

// replace begins a new generation after from, unless another call did, and gives the one that
// is current then.
func (b *Breaker) replace(from *generation, to State) *generation {
	b.mu.Lock()
	if b.current.Load() != from {
		b.mu.Unlock()
		return b.current.Load()
	}
	if w := b.rules.Load().window; w != nil && to == Closed && from.state != Closed {
		w.clear() // what failed before the breaker opened says nothing about now
	}
	b.current.Store(&generation{state: to, since: int64(time.Since(b.start))})
	if b.changed != nil && from.state != to {
		b.queue = append(b.queue, change{from.state, to})
	}
	b.mu.Unlock()
	b.tell()
	return b.current.Load()
}

// tell reports queued changes, unless another call is at it and will report ours too.
func (b *Breaker) tell() {
	for {
		b.mu.Lock()
		if b.telling || len(b.queue) == 0 {
			b.mu.Unlock()
			return
		}
		c := b.queue[0]
		b.queue = b.queue[1:]
		b.telling = true
		b.mu.Unlock()
		b.tellOne(c)
	}
}

func (b *Breaker) tellOne(c change) {
	defer func() { // even if changed panics
		b.mu.Lock()
		b.telling = false
		b.mu.Unlock()
	}()
	b.changed(c.from, c.to)
}
