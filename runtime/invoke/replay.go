package invoke

import (
	"bytes"
	"io"
	"sync"
)

// maxReplay bounds the part of a body that is kept for another attempt. A body that grows
// beyond it goes through, but only once.
const maxReplay = 1 << 20

// maxPiece bounds one read of the source.
const maxPiece = 32 << 10

// replay is a streamed body that attempts can read one after the other: what was read is kept,
// and an attempt that comes later begins with that.
//
// The source is read in a goroutine of its own, a piece at a time and only when an attempt
// wants more. So an attempt that is over can be left at once, although the caller may be slow
// to send the rest, or wait for an answer first: what it asked for is the next one's.
type replay struct {
	mu      sync.Mutex // guards what follows
	change  *sync.Cond // something was read, or a view closed
	from    io.ReadCloser
	piece   []byte // where the source is read into
	buf     []byte // all that was read; once dropped, what view has not read of it
	dropped bool   // more than maxReplay came: the beginning is gone, and with it every further attempt
	err     error  // the source's, behind buf
	reading bool
	view    *view // the attempt that reads
}

func newReplay(from io.ReadCloser) *replay {
	r := &replay{from: from}
	r.change = sync.NewCond(&r.mu)
	return r
}

// lost tells whether there can be no further attempt.
func (r *replay) lost() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropped
}

// again is the body for another attempt, from its beginning. It ends the one before.
func (r *replay) again() io.ReadCloser {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.view != nil {
		r.view.closed = true
	}
	r.view = &view{r: r}
	r.change.Broadcast()
	return r.view
}

// done ends the use of the source. Closing it wakes a read in progress.
func (r *replay) done() {
	if r == nil {
		return
	}
	_ = r.from.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.view != nil {
		r.view.closed = true
	}
	for r.reading { // the source is not ours any more after this
		r.change.Wait()
	}
	r.change.Broadcast()
}

// more starts to read another piece; mu is held.
func (r *replay) more() {
	if r.reading {
		return
	}
	if r.reading = true; r.piece == nil {
		r.piece = make([]byte, maxPiece)
	}
	go func() {
		n, err := r.from.Read(r.piece)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.reading = false
		r.buf = append(r.buf, r.piece[:n]...)
		if err != nil {
			r.err = err
		}
		r.change.Broadcast()
	}()
}

// view is the body of one attempt.
type view struct {
	r      *replay
	at     int // in buf
	closed bool
}

// Read implements io.Reader.
func (v *view) Read(p []byte) (int, error) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for !v.closed {
		if !r.dropped && len(r.buf) > maxReplay {
			r.dropped, r.buf, v.at = true, bytes.Clone(r.buf[v.at:]), 0
		}
		if v.at < len(r.buf) {
			n := copy(p, r.buf[v.at:])
			if v.at += n; r.dropped && v.at == len(r.buf) {
				r.buf, v.at = r.buf[:0], 0
			}
			return n, nil
		}
		if r.err != nil {
			return 0, r.err
		}
		r.more()
		r.change.Wait()
	}
	return 0, io.ErrClosedPipe
}

// Close implements io.Closer. It does not close the source, which another attempt may need.
func (v *view) Close() error {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	v.closed = true
	v.r.change.Broadcast()
	return nil
}
