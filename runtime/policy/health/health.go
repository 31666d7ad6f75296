// Package health is active health checking for the hosts of one cluster: it asks each host from time
// to time whether it is well, and tells when the answer has changed for good.
//
// What a check does is handed in as a Probe, and what follows from it (leaving a failing host out,
// returning one that outlier detection ejected) is up to set and note. Start reading at Checker, then
// schedule.go.
//
// A host is innocent until UnhealthyThreshold checks in a row have failed: between its appearance and
// then, calls tell more about it than a check would, and passive detection listens to them.
package health

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Probe checks one host and returns nil if it is well. ctx ends at the timeout. A panic counts as a
// failed check. Probes of different hosts run at once, those of one host never do.
type Probe func(ctx context.Context, id string) error

// Errors of checks that the probe did not answer itself.
var (
	// ErrHangs is a probe that ignores the end of its context.
	ErrHangs = errors.New("health check did not end in time")
	// ErrStillHangs is a check that was not made because such a probe has not ended yet.
	ErrStillHangs = errors.New("health check not made: the one before has not ended")
)

// Event is the outcome of one check.
type Event struct {
	Host    string
	Failing bool          // where the host stands after the check
	Changed bool          // the check changed that, and set was called
	Err     error         // nil for a check that passed
	Took    time.Duration // 0 with ErrStillHangs
}

// maxAtOnce bounds the checks under way. It is far above what a cluster in good health needs (a
// thousand hosts that answer in 10 ms take two thirds of a second) and low enough that a cluster in
// bad health costs a sidecar few sockets.
const maxAtOnce = 16

// Checker checks the hosts of one cluster. Its methods are safe for concurrent use.
type Checker struct {
	// Used's own line: the callers of a busy cluster read it all the time.
	used    atomic.Bool // a call used the cluster since the loop last looked
	resting atomic.Bool // some host is checked at the idle interval, so a use is news
	_       [128 - 8]byte

	probe Probe
	set   func(id string, failing bool)
	note  func(Event)

	cancel context.CancelFunc // ends the loop and the context of every probe
	wake   chan struct{}      // holds a token when the loop has something to look at
	ended  chan struct{}      // closed when the loop is over
	over   chan struct{}      // closed when the last probe is over too

	mu      sync.Mutex // guards what follows, and every host
	cfg     Config     // filled
	hosts   map[string]*host
	added   int       // hosts ever
	due     schedule  // hosts waiting for a time
	waiting []*host   // hosts due for a check while maxAtOnce are under way
	flying  int       // checks under way and in time
	probes  int       // goroutines of probes, those that hang included
	uses    int       // looks that found the cluster used
	landed  []landing // not looked at yet
	news    []news    // not told yet
	closed  bool
	random  *rand.Rand
}

// New makes a checker without hosts. It calls set when a host starts or ceases to fail, and note,
// which may be nil, after every check and after set. Both are called from the checker's goroutine, one
// at a time, without locks held; while they run no check starts. They may call the checker, except
// Close. cfg should have passed Validate.
func New(cfg Config, probe Probe, set func(id string, failing bool), note func(Event)) *Checker {
	c := &Checker{probe: probe, set: set, note: note, cfg: cfg.filled(), hosts: map[string]*host{},
		random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		wake:   make(chan struct{}, 1), ended: make(chan struct{}), over: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	go c.run(ctx)
	return c
}

// Keep tells which hosts the cluster has. The first check of a new one runs at once. One that is gone
// is not checked any more; if it was failing, set is told that it no longer is, so that nothing
// remembers it as failing. A host that comes back starts anew.
func (c *Checker) Keep(ids []string) {
	named := make(map[string]bool, len(ids))
	c.mu.Lock()
	now := time.Now()
	for _, id := range ids {
		named[id] = true
		c.add(id, now)
	}
	for id, h := range c.hosts {
		if !named[id] {
			c.drop(h)
		}
	}
	c.mu.Unlock()
	c.poke()
}

// Used tells that a call uses the cluster. It is called for every call: one or two atomic loads, and
// a store or more only when it is the first since a check.
func (c *Checker) Used() {
	if c.used.Load() {
		return
	}
	// The loop sets resting before it reads used, so one of the two sees the other.
	c.used.Store(true)
	if c.resting.Load() && c.resting.CompareAndSwap(true, false) {
		c.poke()
	}
}

// Reconfigure replaces the configuration. Hosts keep their standing and what they passed and failed in
// a row; checks under way keep their timeout; the next ones are planned anew.
func (c *Checker) Reconfigure(cfg Config) {
	c.mu.Lock()
	c.cfg = cfg.filled()
	now := time.Now()
	for _, h := range c.due {
		if h.phase == planned && !h.started.IsZero() {
			h.due = c.next(h, now)
		}
	}
	heap.Init(&c.due)
	c.mu.Unlock()
	c.poke()
}

// HostInfo explains the standing of one host.
type HostInfo struct {
	ID      string
	Failing bool
	Passed  int           // checks passed in a row
	Failed  int           // checks failed in a row
	Hangs   bool          // a probe of the host ignores the end of its context
	Err     error         // of the last check; nil if it passed or there was none
	Took    time.Duration // of the last check
	Checked time.Time     // start of the last check, or of the one under way; zero if there was none
	Next    time.Time     // start of the next check; zero if one is under way or waits for others
}

// Snapshot lists the hosts, by id.
func (c *Checker) Snapshot() []HostInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	infos := make([]HostInfo, 0, len(c.hosts))
	for _, h := range c.hosts {
		if h.gone {
			continue
		}
		i := HostInfo{ID: h.id, Failing: h.failing, Passed: h.passed, Failed: h.failed, Hangs: h.hangs,
			Err: h.err, Took: h.took, Checked: h.started}
		if h.phase == planned {
			i.Next = h.due
		}
		infos = append(infos, i)
	}
	slices.SortFunc(infos, func(a, b HostInfo) int { return cmp.Compare(a.ID, b.ID) })
	return infos
}

// Close ends the context of the probes under way and waits until they and the checker's goroutine are
// over; set and note are not called after it. A probe that ignores its context is waited for as long
// as Timeout and then left behind. Close is safe to call twice, and must not be called from set or
// note.
func (c *Checker) Close() {
	c.cancel()
	<-c.ended
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		c.leave()
	}
	patience := time.NewTimer(c.cfg.Timeout)
	c.mu.Unlock()
	defer patience.Stop()
	select {
	case <-c.over:
	case <-patience.C:
	}
}

// leave closes over when nobody is left. c.mu is held.
func (c *Checker) leave() {
	if c.closed && c.probes == 0 {
		close(c.over)
	}
}

// poke has the loop look at the state once more.
func (c *Checker) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run is the checker's goroutine. It sleeps until something is due or somebody pokes it.
func (c *Checker) run(ctx context.Context) {
	defer close(c.ended)
	timer := time.NewTimer(time.Hour)
	timer.Stop() // there are no hosts yet
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
		next := c.step(ctx, time.Now())
		c.tell(ctx)
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

// news is one thing to tell: the outcome of a check, or, with gone, that a failing host left.
type news struct {
	Event
	gone bool
}

// tell hands out the news. Only the loop calls it, hence the order.
func (c *Checker) tell(ctx context.Context) {
	for {
		c.mu.Lock()
		batch := c.news
		c.news = nil
		c.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		for _, n := range batch {
			if ctx.Err() != nil {
				return // Close has begun, and may be why a check failed
			}
			if n.gone || n.Changed {
				c.set(n.Host, n.Failing)
			}
			if !n.gone && c.note != nil {
				c.note(n.Event)
			}
		}
	}
}
