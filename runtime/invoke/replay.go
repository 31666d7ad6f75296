package invoke

import (
	"io"
	"sync"

	"github.com/mecha-project/mecha/runtime/call"
)

// maxReplay bounds the part of a body that is kept for another attempt. A body that grows
// beyond it goes through, but only once.
const maxReplay = 1 << 20

// replay is a streamed body that attempts can read one after the other: what was read is kept,
// and an attempt that comes later begins with that. At most one goroutine reads the source; an
// attempt that is over leaves its read to the next.
type replay struct {
	mu      sync.Mutex // guards what follows
	change  *sync.Cond // something was read, or a view closed
	from    io.ReadCloser
	buf     []byte
	dropped bool // more than maxReplay came: buf is gone, and with it every further attempt
	err     error
	reading bool
	view    *view // the attempt that may read beyond buf once it was dropped
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

// done ends the use of the source.
func (r *replay) done() {
	if r != nil {
		_ = r.from.Close()
	}
}

// view is the body of one attempt.
type view struct {
	r      *replay
	at     int
	closed bool
}

// Read implements io.Reader.
func (v *view) Read(p []byte) (int, error) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		switch {
		case v.closed:
			return 0, io.ErrClosedPipe
		case v.at < len(r.buf):
			n := copy(p, r.buf[v.at:])
			v.at += n
			return n, nil
		case r.err != nil:
			return 0, r.err
		case r.reading:
			r.change.Wait()
			continue
		}
		if n, err, mine := v.fill(p); mine {
			return n, err
		}
	}
}

// fill reads more from the source; mu is held, but not while it reads. mine is false when the
// attempt was overtaken meanwhile, or should look into buf again.
func (v *view) fill(p []byte) (n int, err error, mine bool) { //nolint:revive // as io.Reader has them
	r := v.r
	r.reading = true
	r.mu.Unlock()
	n, err = r.from.Read(p)
	r.mu.Lock()
	r.reading = false
	r.change.Broadcast()
	if err != nil {
		r.err = err
	}
	if r.dropped {
		return n, err, true // nobody else reads any more
	}
	if len(r.buf)+n > maxReplay {
		r.dropped, r.buf, v.at = true, nil, 0
		if v.closed { // the attempt after this one began with bytes that are gone
			r.err = io.ErrUnexpectedEOF
			return 0, io.ErrClosedPipe, true
		}
		return n, err, true
	}
	r.buf = append(r.buf, p[:n]...)
	if v.closed || v.at != len(r.buf)-n {
		return 0, nil, false
	}
	v.at += n
	if n == 0 && err == nil {
		return 0, nil, false
	}
	return n, endOfBody(err), true
}

// endOfBody passes an orderly end on as it is.
func endOfBody(err error) error {
	if call.Ended(err) {
		return io.EOF
	}
	return err
}

// Close implements io.Closer. It does not close the source, which another attempt may need.
func (v *view) Close() error {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	v.closed = true
	v.r.change.Broadcast()
	return nil
}
