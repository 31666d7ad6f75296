package h2

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
)

// Bounds of bytes encoded and not yet given to the network.
const (
	softPending = 128 << 10 // body waits above it
	lastPending = 4 << 20   // above it the connection ends: the peer makes us answer and does not read

	keepBuffer   = 256 << 10 // largest buffer kept for the next batch
	inlineRounds = 2         // batches a caller writes before a goroutine takes over
	writePiece   = 64 << 10  // bytes that must go within writeTimeout
)

// outbox collects frames and gets them onto the connection.
//
// There is no writer goroutine: whoever adds a frame and finds nobody flushing writes what is
// there, without blocking. Others add theirs meanwhile and go on, so that under load one
// write carries many frames. Only when the network is full, or the connection is not a plain
// socket, a goroutine takes over and waits: so no caller ever blocks on the network beyond
// its context. All fields but write are guarded by conn.mu.
type outbox struct {
	// write gives as much of p to the network as it takes at once. Nil if the connection
	// cannot be asked that way; then a goroutine flushes always.
	write func(p []byte) (int, error)

	pending   []byte
	spare     []byte // the buffer pending becomes next
	block     []byte // scratch for header blocks
	flushing  bool   // somebody has the right, and the duty, to flush
	finishing bool   // hang up when pending is empty
	hung      bool   // it was done
	crowded   bool   // there were several streams when the right was taken; the holder reads it
	handed    uint64 // bytes ever taken out of pending
	line      line   // streams with body whose turn has not come, first come first served
}

// end is the position behind everything ever added.
func (o *outbox) end() uint64 { return o.handed + uint64(len(o.pending)) }

func (o *outbox) abandon() { o.pending, o.spare, o.block = nil, nil, nil }

// claimFlush takes the right to flush if there is something to flush and nobody has it.
// Locked. If it returns true the caller must unlock and call flush.
func (c *conn) claimFlush() bool {
	if c.out.flushing || len(c.out.pending) == 0 || c.cause != nil {
		return false
	}
	c.out.flushing = true
	c.out.crowded = len(c.streams) > 1
	return true
}

func (c *conn) flushIf(mine bool) {
	if mine {
		c.flush()
	}
}

// flush writes what is pending, for the holder of the right to flush. It never blocks on the
// network.
func (c *conn) flush() {
	if c.out.write == nil {
		c.flushBehind(nil)
		return
	}
	c.letOthersAdd()
	c.flushNow()
}

// letOthersAdd makes callers that are ready to run add their frames before the write: one system
// call instead of many. Only the holder of the right to flush calls it.
func (c *conn) letOthersAdd() {
	if c.out.crowded {
		runtime.Gosched()
	}
}

func (c *conn) flushNow() {
	var batch []byte
	for round := 0; ; round++ {
		batch = c.nextBatch(batch)
		switch {
		case batch == nil:
			return
		case round >= inlineRounds:
			c.flushBehind(batch)
			return
		}
		n, err := c.out.write(batch)
		if err != nil {
			c.end(err)
			return
		}
		if n < len(batch) {
			c.flushBehind(batch[n:])
			return
		}
	}
}

// nextBatch recycles the batch just written and takes what is pending. Nil means there is
// nothing, and the right to flush is given back.
func (c *conn) nextBatch(written []byte) []byte {
	c.mu.Lock()
	o := &c.out
	if written != nil && cap(written) <= keepBuffer {
		o.spare = written[:0]
	}
	if len(o.pending) == 0 || c.cause != nil {
		o.flushing = false
		hang := o.finishing && c.cause == nil
		c.mu.Unlock()
		if hang {
			c.hangUp()
		}
		return nil
	}
	batch := o.pending
	o.pending, o.spare = o.spare, nil
	o.handed += uint64(len(batch))
	c.wakeNext()
	c.mu.Unlock()
	return batch
}

// flushBehind passes the right to flush, and the rest of a batch, to a goroutine that may wait.
func (c *conn) flushBehind(rest []byte) {
	c.mu.Lock()
	if c.cause != nil {
		c.mu.Unlock()
		return
	}
	c.io.Add(1)
	c.mu.Unlock()
	go c.flushWaiting(rest)
}

func (c *conn) flushWaiting(batch []byte) {
	defer c.io.Done()
	if batch == nil {
		c.letOthersAdd()
		batch = c.nextBatch(nil)
	}
	for batch != nil {
		if err := c.writeAll(batch); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = fmt.Errorf("the peer took no bytes for %s; it hangs or the network is gone: %w", c.cfg.writeTimeout, err)
			}
			c.end(err)
			return
		}
		batch = c.nextBatch(batch)
	}
}

func (c *conn) writeAll(p []byte) error {
	for len(p) > 0 {
		if err := c.nc.SetWriteDeadline(time.Now().Add(c.cfg.writeTimeout)); err != nil {
			return err
		}
		n, err := c.nc.Write(p[:min(len(p), writePiece)])
		if err != nil {
			return err
		}
		p = p[n:]
	}
	if c.out.write != nil {
		return c.nc.SetWriteDeadline(time.Time{}) // writes that do not wait would trip over it later
	}
	return nil
}

// flushOnce is a last attempt before the connection ends; the right to flush stays taken.
func (c *conn) flushOnce() {
	batch := c.nextBatch(nil)
	if batch == nil {
		return
	}
	if c.out.write != nil {
		_, _ = c.out.write(batch)
		return
	}
	const briefly = 100 * time.Millisecond
	_ = c.nc.SetWriteDeadline(time.Now().Add(briefly))
	_, _ = c.nc.Write(batch)
}

// wakeNext gives a turn to the stream that has waited longest, if there is room. Locked.
// Whoever got a turn and did not use it calls it again, so that no turn is lost.
func (c *conn) wakeNext() {
	st := c.out.line.first
	if st == nil || c.sendAvail <= 0 || len(c.out.pending) >= softPending {
		return
	}
	c.out.line.remove(st)
	st.turn = true
	wake(st.wsig)
}

// wake lets the one goroutine waiting on sig look again. A token left behind is harmless:
// waiters always check what they wait for.
func wake(sig chan struct{}) {
	if sig == nil {
		return
	}
	select {
	case sig <- struct{}{}:
	default:
	}
}

// line is a queue of streams. Guarded by conn.mu.
type line struct{ first, last *Stream }

func (l *line) push(st *Stream) {
	st.queued, st.prev, st.next = true, l.last, nil
	if l.last == nil {
		l.first = st
	} else {
		l.last.next = st
	}
	l.last = st
}

func (l *line) remove(st *Stream) {
	if !st.queued {
		return
	}
	if st.prev == nil {
		l.first = st.next
	} else {
		st.prev.next = st.next
	}
	if st.next == nil {
		l.last = st.prev
	} else {
		st.next.prev = st.prev
	}
	st.queued, st.prev, st.next = false, nil, nil
}
