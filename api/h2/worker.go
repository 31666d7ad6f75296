package h2

import (
	"context"
	"fmt"
	"runtime/debug"
)

// maxParked is how many workers of a connection wait for the next stream. A worker keeps the
// stack its handlers grew, which costs a unary call less than a goroutine each.
const maxParked = 64

// dispatch runs the handler of a request. Only the reader calls it.
func (c *conn) dispatch(st *Stream) {
	st.started = true
	select {
	case c.work <- st:
	default:
		c.calls.Add(1)
		go c.serve(st)
	}
}

// serve is a worker: it runs handlers one after another and ends with the connection, or when
// enough others wait, or when told nil because nothing happens.
func (c *conn) serve(st *Stream) {
	defer c.calls.Done()
	for st != nil {
		st.run()
		if c.parked.Add(1) > maxParked {
			c.parked.Add(-1)
			return
		}
		select {
		case st = <-c.work:
		case <-c.done:
			st = nil
		}
		c.parked.Add(-1)
	}
}

// releaseWorkers lets parked workers end.
func (c *conn) releaseWorkers() {
	for range maxParked {
		select {
		case c.work <- nil:
		default:
			return
		}
	}
}

// run calls the handler and ends what it left open. It is a worker's whole job.
func (st *Stream) run() {
	c := st.c
	defer func() {
		if p := recover(); p != nil {
			c.cfg.log.Error("an HTTP/2 handler panicked", "peer", c.peerName(), "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			st.Reset(InternalError)
		}
		st.finished()
	}()
	if st.oversize {
		c.cfg.tooLarge(st)
		return
	}
	c.cfg.handler(st)
}

// finished ends a handler's stream: no answer is an error, an unread request is stopped.
func (st *Stream) finished() {
	c := st.c
	c.mu.Lock()
	c.handlers--
	if c.streams[st.id] == st {
		if !st.sendEnded {
			st.resetLocked(InternalError, errAbandoned)
		} else if !st.recvEnded {
			st.resetLocked(NoError, errAbandoned)
		}
	}
	st.dropUnread()
	st.freeFirst()
	flush := c.claimFlush()
	c.mu.Unlock()
	st.call.Cancel(context.Canceled)
	c.flushIf(flush)
}
