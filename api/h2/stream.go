package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/mecha-project/mecha/api/wire"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Stream is one request and its answer, on either side.
//
// A server's handler gets one; it and everything it gave out must not be used after the
// handler returned, strings apart. A client gets one from Open and must Close it. One goroutine may
// read and another write at the same time; Close, Reset and Context may be called by any.
//
// Errors are *fault.Error. When the peer reset the stream, errors.As finds a *StreamError.
type Stream struct {
	c  *conn
	id uint32

	// Of the request, on a server; fixed before the handler starts.
	method, path, scheme, authority string
	header                          call.Fields
	oversize                        bool // the header was over the limit
	started                         bool // reader only: the handler was
	born                            time.Time
	call                            wire.Context

	ctx     context.Context // the caller's, on a client
	sending chan struct{}   // closed when Open's body was sent; nil if that was at once

	// Guarded by conn.mu.
	status    int         // of the answer, on a client; 0 until it came
	trailer   call.Fields // the peer's, once recvEnded
	q         wire.Queue  // received and unread
	first     *wire.Chunk // lent out by First
	recvAvail int64       // the peer's view of the stream's window
	owed      int64       // bytes read and not yet given back to the peer
	length    int64       // what is left of content-length; -1: none was announced
	sendAvail int64
	recvEnded bool   // END_STREAM came
	unwanted  bool   // CloseRead was called
	sendEnded bool   // END_STREAM was added
	headSent  bool   // final header was
	err       error  // why the stream failed; it is forgotten then
	mark      uint64 // position of the end of the request's header in all bytes sent
	reading   bool   // somebody waits on rsig
	isTouched bool   // among conn.touched
	rsig      chan struct{}
	wsig      chan struct{}
	turn      bool // it may add a frame, whoever else waits
	queued    bool // in conn.out.line
	prev      *Stream
	next      *Stream

	inline [12]call.Field // header, unless it is long
}

const opStream fault.Op = "h2.stream"

var (
	errAbandoned = errors.New("the handler returned without ending its answer")
	errReset     = errors.New("the stream was reset here")
)

// Method is the request's method.
func (st *Stream) Method() string { return st.method }

// Path is the request's :path, query included, as the caller sent it. It is not empty.
func (st *Stream) Path() string { return st.path }

// Scheme is the request's :scheme.
func (st *Stream) Scheme() string { return st.scheme }

// Authority is the request's :authority, or its host header, or "".
func (st *Stream) Authority() string {
	if st.authority == "" {
		return st.header.Get("host")
	}
	return st.authority
}

// Header is the request's header on a server, the answer's on a client once RecvHeaders
// returned. Names are lower-case; pseudo headers are not among them.
func (st *Stream) Header() call.Fields { return st.header }

// RemoteAddr is the peer's address.
func (st *Stream) RemoteAddr() net.Addr { return st.c.nc.RemoteAddr() }

// NetConn is the connection below, for its addresses and TLS state only.
func (st *Stream) NetConn() net.Conn { return st.c.nc }

// Context ends when the caller resets the stream or its connection is lost, at SetDeadline's
// time, and when the handler returned. On a client it is what Open was given.
func (st *Stream) Context() context.Context {
	if st.ctx != nil {
		return st.ctx
	}
	return &st.call
}

// SetDeadline ends a server's context at t, and with it reads and writes that wait. The stream
// itself is left to the handler, which may still tell the caller why. To be called by the
// handler before others use the stream.
func (st *Stream) SetDeadline(t time.Time) { st.call.SetDeadline(t) }

// First takes what has been received of the body, without waiting, and tells whether that was
// the rest of it. data is valid until the next First, Read or end of the stream.
func (st *Stream) First() (data []byte, ended bool) {
	c := st.c
	c.mu.Lock()
	st.freeFirst()
	if st.err != nil && !st.recvEnded {
		c.mu.Unlock()
		return nil, false
	}
	st.first = st.q.PopAll()
	if st.first != nil {
		data = st.first.Bytes()
	}
	ended = st.recvEnded
	st.consumed(len(data))
	flush := c.claimFlush()
	c.mu.Unlock()
	c.flushIf(flush)
	return data, ended
}

func (st *Stream) freeFirst() {
	if st.first != nil {
		st.first.Free()
		st.first = nil
	}
}

// Read reads the body as it comes. io.EOF is the peer's orderly end; Trailer is valid then.
func (st *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c := st.c
	c.mu.Lock()
	st.freeFirst()
	for {
		switch {
		case st.unwanted:
			c.mu.Unlock()
			return 0, errUnwanted
		case st.err != nil && !st.recvEnded:
			err := st.err
			c.mu.Unlock()
			return 0, err
		case st.q.Size() > 0:
			n := st.q.Read(p)
			st.consumed(n)
			flush := c.claimFlush()
			c.mu.Unlock()
			c.flushIf(flush)
			return n, nil
		case st.recvEnded:
			c.mu.Unlock()
			return 0, io.EOF
		}
		if err := st.awaitRead(st.waiting()); err != nil {
			c.mu.Unlock()
			return 0, err
		}
	}
}

var errUnwanted = fault.New(opStream, fault.Canceled, "reading was given up here")

// CloseRead says that nobody wants the rest of the body: a Read in progress and later ones
// fail, and what comes is thrown away, with no window for more. Sending goes on.
func (st *Stream) CloseRead() {
	c := st.c
	c.mu.Lock()
	st.unwanted = true
	st.dropUnread()
	wake(st.rsig)
	flush := c.claimFlush()
	c.mu.Unlock()
	c.flushIf(flush)
}

// waiting is the context that limits waits of the stream; nil if nothing does that would not
// wake them anyway.
func (st *Stream) waiting() context.Context {
	if st.ctx != nil {
		if st.ctx.Done() == nil {
			return nil
		}
		return st.ctx
	}
	if _, limited := st.call.Deadline(); limited {
		return &st.call
	}
	return nil
}

// awaitRead waits until the reader has something for the stream, or ctx ends. Locked; the lock
// is given back while it waits.
func (st *Stream) awaitRead(ctx context.Context) error {
	c := st.c
	if st.rsig == nil {
		st.rsig = make(chan struct{}, 1) // not pooled: testing/synctest ties a channel to its bubble
	}
	st.reading = true
	sig := st.rsig
	c.mu.Unlock()
	err := waitFor(sig, ctx)
	c.mu.Lock()
	st.reading = false
	if err == nil {
		return nil
	}
	return st.gaveUp(err)
}

func waitFor(sig chan struct{}, ctx context.Context) error {
	if ctx == nil {
		<-sig
		return nil
	}
	select {
	case <-sig:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// gaveUp is the error of a wait whose context ended. A client's stream is reset with it; a
// server's is left to its handler, which may still tell the caller why. Locked; the lock is
// given back while a reset is written.
func (st *Stream) gaveUp(cause error) error {
	c := st.c
	if st.err != nil {
		return st.err // it failed meanwhile
	}
	e := fault.Wrap(opStream, fault.Canceled, cause)
	if st.ctx == nil {
		return e
	}
	var fe *fault.Error
	if errors.As(e, &fe) {
		fe.Sent = st.sent()
	}
	if c.streams[st.id] == st {
		st.resetLocked(Cancel, e)
	} else {
		st.err = e
	}
	if c.claimFlush() {
		c.mu.Unlock()
		c.flush()
		c.mu.Lock()
	}
	return e
}

// Trailer is the peer's trailer, valid once its end was seen by First or Read.
func (st *Stream) Trailer() call.Fields {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if !st.recvEnded {
		return nil
	}
	return st.trailer
}

// Reset ends the stream at once, both directions, with a code for the peer. A stream that is
// over is left alone.
func (st *Stream) Reset(code ErrCode) {
	c := st.c
	c.mu.Lock()
	if c.streams[st.id] == st {
		st.resetLocked(code, errReset)
	}
	flush := c.claimFlush()
	c.mu.Unlock()
	c.flushIf(flush)
}

// Close gives a client's stream up: if it is not over the server is told to cancel. What it
// lent out is not valid afterwards. Closing twice is fine.
func (st *Stream) Close() {
	c := st.c
	c.mu.Lock()
	flush := false
	if c.streams[st.id] == st {
		st.resetLocked(Cancel, errReset)
		flush = c.claimFlush()
	}
	st.dropUnread()
	st.freeFirst()
	c.mu.Unlock()
	c.flushIf(flush)
	if st.sending != nil {
		<-st.sending // soon: the stream is over
	}
}

// resetLocked adds a RST_STREAM and fails the stream. Locked.
func (st *Stream) resetLocked(code ErrCode, cause error) {
	c := st.c
	c.out.pending = appendReset(c.out.pending, st.id, code)
	c.abuse.forgot(st.id)
	var fe *fault.Error
	if !errors.As(cause, &fe) {
		cause = fault.New(opStream, fault.Canceled, "the stream is over").Because(cause)
	}
	c.remove(st)
	st.fail(cause)
}

// fail makes the stream be over; what waits is woken. Locked. The caller forgets it.
func (st *Stream) fail(err error) {
	if st.err != nil {
		return
	}
	st.err = err
	if !st.recvEnded {
		st.dropUnread()
	}
	st.leaveLine()
	wake(st.rsig)
	wake(st.wsig)
	if st.ctx == nil {
		st.call.Cancel(context.Canceled)
	}
}

// sent tells how far the request got. Locked.
func (st *Stream) sent() fault.Sent {
	if st.ctx != nil && st.mark > st.c.out.handed {
		return fault.SentNever
	}
	return fault.SentMaybe
}

// settle forgets a stream whose two directions have ended. Locked.
func (st *Stream) settle() {
	if st.recvEnded && st.sendEnded {
		st.c.remove(st)
		if st.ctx == nil {
			st.c.abuse.completed()
		}
	}
}

// consumed gives credit back for n body bytes read. Locked.
func (st *Stream) consumed(n int) {
	if n == 0 {
		return
	}
	c := st.c
	c.held -= int64(n)
	if !st.recvEnded && st.err == nil {
		st.owed += int64(n)
		if st.owed >= c.cfg.window/2 {
			c.out.pending = appendWindow(c.out.pending, st.id, st.owed)
			st.recvAvail += st.owed
			st.owed = 0
		}
	}
	c.regrant()
}

// dropUnread throws received bytes away. Locked.
func (st *Stream) dropUnread() {
	if n := st.q.Drop(); n > 0 {
		st.c.held -= int64(n)
		st.c.regrant()
	}
}

// regrant opens the connection's window again. Its size does not depend on what streams read,
// so that a slow one stops nobody, until the memory for unread bytes is used up. Locked.
func (c *conn) regrant() {
	n := min(c.cfg.connWindow, c.cfg.held-c.held) - c.recvAvail
	if n >= c.cfg.connWindow/2 || (n >= maxFrame && c.recvAvail < maxFrame) {
		c.recvAvail += n
		c.out.pending = appendWindow(c.out.pending, 0, n)
	}
}
