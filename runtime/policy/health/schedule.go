package health

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// phase is what a host waits for.
type phase uint8

const (
	planned phase = iota // its time: in Checker.due
	queued               // room: in Checker.waiting
	flying               // its probe: in Checker.due for the time the probe must have ended
	parked               // nothing; gone, with a probe that hangs
)

// grace is what a probe gets to notice that its context has ended before it counts as hanging: enough
// to come back on a busy machine, little against any sensible timeout.
const grace = 50 * time.Millisecond

// host is one host and its schedule. Checker.mu guards it.
type host struct {
	id    string
	order int // of appearance
	phase phase
	gone  bool // dropped while its probe runs; forgotten when that ends, unless it is added again
	hangs bool // its probe is overdue and was counted as failed

	failing        bool
	passed, failed int // in a row; one of them is 0
	err            error
	took           time.Duration
	started        time.Time // start of the last check; zero before the first
	idle           bool      // no call used the cluster since the check before
	uses           int       // Checker.uses at the start of the last check

	due   time.Time
	index int // in Checker.due
}

// landing is a probe that ended.
type landing struct {
	host *host
	err  error
	at   time.Time
}

// add makes a host, or takes up one that was dropped while its probe runs: that probe then is its
// first check. c.mu is held, as in all below.
func (c *Checker) add(id string, now time.Time) {
	h := c.hosts[id]
	switch {
	case h == nil:
		c.added++
		h = &host{id: id, order: c.added, due: now}
		c.hosts[id] = h
		heap.Push(&c.due, h)
	case h.gone:
		h.gone, h.failing, h.passed, h.failed, h.err, h.took = false, false, 0, 0, nil, 0
		if h.phase == parked {
			h.phase, h.due = planned, now
			heap.Push(&c.due, h)
		}
	}
}

// drop forgets a host, or leaves that to the end of its probe: so much is kept of it that hosts which
// come and go cannot pile up probes that hang.
func (c *Checker) drop(h *host) {
	if h.gone {
		return
	}
	h.gone = true
	if h.failing {
		c.news = append(c.news, news{Event: Event{Host: h.id}, gone: true})
	}
	if h.phase == planned {
		c.park(h)
	}
}

// park takes a host that is gone off the schedule and forgets it unless its probe hangs.
func (c *Checker) park(h *host) {
	heap.Remove(&c.due, h.index)
	h.phase = parked
	if !h.hangs {
		delete(c.hosts, h.id)
	}
}

// step does all there is to do now and tells when there will be more; zero is never.
func (c *Checker) step(ctx context.Context, now time.Time) (next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noticeUse(now)
	for _, l := range c.landed {
		c.land(l, now)
	}
	c.landed = nil
	for len(c.due) > 0 && !c.due[0].due.After(now) {
		c.fire(c.due[0], now)
	}
	for c.flying < maxAtOnce && len(c.waiting) > 0 {
		h := c.waiting[0]
		c.waiting = c.waiting[1:]
		c.start(ctx, h, now)
	}
	// In this order, see Used: a call meanwhile is noticed here, or finds resting set and pokes.
	c.resting.Store(slices.ContainsFunc(c.due, (*host).restful))
	c.noticeUse(now)
	if len(c.due) > 0 {
		next = c.due[0].due
	}
	return next
}

// restful tells whether the next check is planned for the idle interval.
func (h *host) restful() bool { return h.phase == planned && h.idle }

// noticeUse takes note of calls since the last look: the next checks are brought forward to where the
// normal interval has them.
func (c *Checker) noticeUse(now time.Time) {
	if !c.used.Swap(false) {
		return
	}
	c.uses++
	for _, h := range c.due {
		if h.restful() {
			h.idle = false
			h.due = c.next(h, now)
		}
	}
	heap.Init(&c.due)
}

// fire acts on a host whose time has come.
func (c *Checker) fire(h *host, now time.Time) {
	switch {
	case h.phase == flying: // and not back: its place goes to others
		c.flying--
		h.hangs = true
		c.conclude(h, ErrHangs, now.Sub(h.started), now)
	case h.hangs:
		c.begin(h, now)
		c.conclude(h, ErrStillHangs, 0, now)
	default:
		heap.Remove(&c.due, h.index)
		h.phase = queued
		c.waiting = append(c.waiting, h)
	}
}

// begin notes that a check starts.
func (c *Checker) begin(h *host, now time.Time) {
	h.idle = c.uses == h.uses
	h.uses = c.uses
	h.started = now
}

// start sends a probe to a host that waited for room.
func (c *Checker) start(ctx context.Context, h *host, now time.Time) {
	if h.gone {
		delete(c.hosts, h.id)
		return
	}
	c.begin(h, now)
	h.phase, h.due = flying, now.Add(c.cfg.Timeout+grace)
	heap.Push(&c.due, h)
	c.flying++
	c.probes++
	go c.check(ctx, h, c.cfg.Timeout)
}

// errNoAnswer stands if the probe ends its goroutine instead of returning.
var errNoAnswer = errors.New("health check ended without an answer")

// check runs one probe in a goroutine of its own.
func (c *Checker) check(ctx context.Context, h *host, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := errNoAnswer
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("health check panicked: %v", p)
		}
		c.mu.Lock()
		c.landed = append(c.landed, landing{h, err, time.Now()})
		c.probes--
		c.leave()
		c.mu.Unlock()
		c.poke()
	}()
	if err = c.probe(ctx, h.id); err == nil {
		err = ctx.Err() // well, but too late
	}
}

// land takes the answer of a probe. That of one that hung was given already.
func (c *Checker) land(l landing, now time.Time) {
	h := l.host
	if !h.hangs {
		c.flying--
		c.conclude(h, l.err, l.at.Sub(h.started), now)
		return
	}
	h.hangs = false
	if h.gone {
		delete(c.hosts, h.id)
	}
}

// conclude counts the outcome of a check and plans the next. For a host that is gone there is none.
func (c *Checker) conclude(h *host, err error, took time.Duration, now time.Time) {
	if h.gone {
		c.park(h)
		return
	}
	c.count(h, err, took)
	h.phase = planned
	h.idle = h.idle && c.uses == h.uses // else calls came while the probe was under way
	h.due = c.next(h, now)
	heap.Fix(&c.due, h.index)
}

// count moves a host between healthy and failing, and has the outcome told.
func (c *Checker) count(h *host, err error, took time.Duration) {
	h.err, h.took = err, took
	if err == nil {
		h.passed, h.failed = h.passed+1, 0
	} else {
		h.passed, h.failed = 0, h.failed+1
	}
	was := h.failing
	switch {
	case h.failing && h.passed >= c.cfg.HealthyThreshold:
		h.failing = false
	case !h.failing && h.failed >= c.cfg.UnhealthyThreshold:
		h.failing = true
	}
	c.news = append(c.news, news{Event: Event{Host: h.id, Failing: h.failing, Changed: h.failing != was, Err: err, Took: took}})
}

// next is when a host is checked again: an interval and some chance after the last check started.
func (c *Checker) next(h *host, now time.Time) time.Time {
	wait := c.cfg.Interval
	if h.idle {
		wait = c.cfg.IdleInterval
	}
	wait += time.Duration(c.random.Int64N(int64(wait)/100*int64(c.cfg.Jitter) + 1))
	if at := h.started.Add(wait); at.After(now) {
		return at
	}
	return now
}

// schedule is a heap of hosts by time, then by age.
type schedule []*host

func (s schedule) Len() int { return len(s) }

func (s schedule) Less(i, j int) bool {
	if !s[i].due.Equal(s[j].due) {
		return s[i].due.Before(s[j].due)
	}
	return s[i].order < s[j].order
}

func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

func (s *schedule) Push(x any) {
	h := x.(*host)
	h.index = len(*s)
	*s = append(*s, h)
}

func (s *schedule) Pop() any {
	last := len(*s) - 1
	h := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	return h
}
