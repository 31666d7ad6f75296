package h2

import (
	"fmt"
	"time"
)

// liveness looks after an idle or silent peer. Guarded by conn.mu.
//
// There is one timer. While streams are open it fires every pingAfter (on a connection without
// pings every idle time); without streams it fires once more and then when the connection has
// been idle long enough to be left. So an idle connection has no periodic wake-up.
type liveness struct {
	timer  *time.Timer
	slow   bool      // it waits for the end of the idle time
	due    time.Time // when it should fire
	seen   uint64    // reads when it last fired
	opened uint64    // streams ever, when it last fired
	since  time.Time // when the connection was first found idle; zero if it is not
	asked  bool      // a sign of life is awaited
	token  uint64    // of the last ping
}

func (l *liveness) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
}

// nextToken numbers our pings. Locked.
func (c *conn) nextToken() uint64 {
	c.alive.token++
	return c.alive.token
}

// watchIdle starts looking after a connection without streams. Locked.
func (c *conn) watchIdle() {
	c.alive.since = time.Now()
	if c.cfg.idle > 0 {
		c.alive.slow = true
		c.schedule(c.cfg.idle)
	}
}

// watch is called whenever a stream begins. Locked.
func (c *conn) watch() {
	l := &c.alive
	if c.cfg.pingAfter <= 0 || (l.timer != nil && !l.slow) {
		return
	}
	l.slow, l.asked, l.seen = false, false, c.reads.Load()
	c.schedule(c.cfg.pingAfter)
}

func (c *conn) schedule(wait time.Duration) {
	l := &c.alive
	l.due = time.Now().Add(wait)
	if l.timer == nil {
		l.timer = time.AfterFunc(wait, c.lookAfter)
		return
	}
	l.timer.Reset(wait)
}

// lookAfter runs when the timer fires.
func (c *conn) lookAfter() {
	c.mu.Lock()
	if c.cause != nil {
		c.mu.Unlock()
		return
	}
	lost, idle := false, len(c.streams) == 0 && c.handlers == 0
	if idle {
		c.lookIdle()
	} else {
		lost = c.lookBusy()
	}
	c.alive.opened = c.opened
	flush := c.claimFlush()
	c.mu.Unlock()
	if idle {
		c.releaseWorkers()
	}
	if lost {
		c.end(fmt.Errorf("no sign of life for %s after a ping; the peer hangs or the network is gone", c.cfg.pingTimeout))
		return
	}
	c.flushIf(flush)
}

// lookIdle waits for the end of the idle time, and leaves then. Locked.
func (c *conn) lookIdle() {
	l := &c.alive
	l.asked = false
	now := time.Now()
	if l.since.IsZero() || l.opened != c.opened {
		l.since = now
	}
	if len(c.out.pending) == 0 {
		c.out.pending = nil // an idle connection keeps no large buffers
	}
	c.out.spare, c.out.block = nil, nil
	left := c.cfg.idle - now.Sub(l.since)
	switch {
	case c.cfg.idle <= 0:
		l.slow = true // no more to do until a stream begins
	case left > 0:
		l.slow = true
		c.schedule(left)
	default:
		c.closeDoorLocked()
		if c.cfg.left != nil {
			go c.tellLeft() // it takes other locks
		}
	}
}

// lookBusy pings a silent peer; true means it did not answer. Locked.
func (c *conn) lookBusy() bool {
	l := &c.alive
	l.since = time.Time{}
	if c.cfg.pingAfter <= 0 {
		c.schedule(c.cfg.idle)
		return false
	}
	reads := c.reads.Load()
	switch {
	case reads != l.seen:
		l.seen, l.asked = reads, false
		c.schedule(c.cfg.pingAfter)
	case !l.asked, time.Since(l.due) > c.cfg.pingTimeout/2: // late by far: we were stopped, not the peer
		l.asked = true
		c.out.pending = appendPing(c.out.pending, 0, c.nextToken())
		c.schedule(c.cfg.pingTimeout)
	default:
		return true
	}
	return false
}
