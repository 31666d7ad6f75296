package h2

import (
	"errors"
	"strconv"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// wholeMax is the largest body sent together with its header in one go.
const wholeMax = 64 << 10

// Respond sends a whole answer, in one write if it is small and the caller's windows allow.
// A nil trailer means none; no body and no trailer give a header that ends the stream, which
// gRPC calls "trailers-only". It returns when everything was handed on: the arguments may be
// reused.
func (st *Stream) Respond(status int, header call.Fields, body []byte, trailer call.Fields) error {
	c := st.c
	c.mu.Lock()
	if err := st.maySend(); err != nil {
		c.mu.Unlock()
		return err
	}
	if st.headSent {
		c.mu.Unlock()
		return errHeadSent
	}
	st.addStatus(status, header, len(body) == 0 && trailer == nil)
	whole := st.fits(len(body))
	if whole {
		st.addData(body, trailer == nil)
		if trailer != nil {
			st.addTrailer(trailer)
		}
	}
	flush := whole && c.claimFlush()
	c.mu.Unlock()
	c.flushIf(flush)
	if whole {
		return nil
	}
	if err := st.send(body, trailer == nil); err != nil || trailer == nil {
		return err
	}
	return st.CloseSend(trailer)
}

var errHeadSent = fault.New(opStream, fault.Internal, "the header was sent before")

// SendHeaders sends the header of an answer whose body follows.
func (st *Stream) SendHeaders(status int, header call.Fields) error {
	c := st.c
	c.mu.Lock()
	err := st.maySend()
	if err == nil && st.headSent {
		err = errHeadSent
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	st.addStatus(status, header, false)
	flush := c.claimFlush()
	c.mu.Unlock()
	c.flushIf(flush)
	return nil
}

// Write sends body bytes. It returns when all were handed on; it waits while the peer's
// windows are closed, until the stream's context ends.
func (st *Stream) Write(p []byte) (int, error) {
	if st.sending != nil {
		<-st.sending
	}
	if err := st.send(p, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseSend ends the sending direction, with a trailer if that is not nil. Ending it twice is
// fine.
func (st *Stream) CloseSend(trailer call.Fields) error {
	if st.sending != nil {
		<-st.sending
	}
	c := st.c
	c.mu.Lock()
	if st.sendEnded {
		c.mu.Unlock()
		return nil
	}
	if err := st.maySend(); err != nil {
		c.mu.Unlock()
		return err
	}
	if trailer != nil {
		st.addTrailer(trailer)
	} else {
		st.addData(nil, true)
	}
	flush := c.claimFlush()
	c.mu.Unlock()
	c.flushIf(flush)
	return nil
}

// maySend says why nothing can be sent. Locked.
func (st *Stream) maySend() error {
	if st.err != nil {
		return st.err
	}
	if st.sendEnded {
		return fault.New(opStream, fault.Internal, "the stream's sending side was ended before")
	}
	return nil
}

// fits reports whether n body bytes can be added without waiting. Locked.
func (st *Stream) fits(n int) bool {
	c := st.c
	return n == 0 || (n <= wholeMax && int64(n) <= st.sendAvail && int64(n) <= c.sendAvail &&
		c.out.line.first == nil && len(c.out.pending)+n <= softPending)
}

// send adds body as windows and room allow, in turns with other streams.
func (st *Stream) send(p []byte, end bool) error {
	c := st.c
	c.mu.Lock()
	for len(p) > 0 {
		if err := st.maySend(); err != nil {
			c.mu.Unlock()
			return err
		}
		n := st.grant(len(p))
		if n == 0 {
			if err := st.awaitTurn(); err != nil {
				c.mu.Unlock()
				return err
			}
			continue
		}
		st.addData(p[:n], end && n == len(p))
		p = p[n:]
		if len(c.out.pending) >= softPending && c.claimFlush() {
			c.mu.Unlock()
			c.flush()
			c.mu.Lock()
		}
	}
	if st.turn {
		st.turn = false
		c.wakeNext()
	}
	flush := c.claimFlush()
	c.mu.Unlock()
	c.flushIf(flush)
	return nil
}

// grant says how many of n bytes may be added now. Locked.
func (st *Stream) grant(n int) int {
	c := st.c
	if !st.turn && c.out.line.first != nil || len(c.out.pending) >= softPending {
		return 0
	}
	return max(0, int(min(int64(n), int64(c.peerFrame), st.sendAvail, c.sendAvail)))
}

// awaitTurn waits until it is worth asking for a grant again. Locked; the lock is given back
// while it waits.
func (st *Stream) awaitTurn() error {
	c := st.c
	if st.wsig == nil {
		st.wsig = make(chan struct{}, 1)
	}
	st.turn = false
	if st.sendAvail > 0 {
		c.out.line.push(st) // else the peer's credit for the stream wakes it
	}
	c.wakeNext()
	flush := c.claimFlush()
	c.mu.Unlock()
	c.flushIf(flush)
	err := waitFor(st.wsig, st.waiting())
	c.mu.Lock()
	c.out.line.remove(st)
	if err == nil {
		return nil
	}
	err = st.gaveUp(err)
	st.leaveLine()
	return err
}

// leaveLine gives a place or an unused turn up. Locked.
func (st *Stream) leaveLine() {
	st.c.out.line.remove(st)
	if st.turn {
		st.turn = false
		st.c.wakeNext()
	}
}

// addData adds DATA frames that windows allow. Locked.
func (st *Stream) addData(p []byte, end bool) {
	c := st.c
	if len(p) == 0 && (!end || st.sendEnded) {
		return
	}
	st.sendAvail -= int64(len(p))
	c.sendAvail -= int64(len(p))
	c.abuse.answered()
	for {
		n := min(len(p), c.peerFrame)
		var flags byte
		if end && n == len(p) {
			flags = flagEndStream
		}
		c.out.pending = append(appendFrame(c.out.pending, n, frameData, flags, st.id), p[:n]...)
		if p = p[n:]; len(p) == 0 {
			break
		}
	}
	if end {
		st.sendEnded = true
		st.settle()
	}
}

// addStatus adds the header of an answer. Locked.
func (st *Stream) addStatus(status int, header call.Fields, end bool) {
	c := st.c
	b := c.enc.begin(c.out.block[:0])
	if status == 200 {
		b = appendStatic(b, staticOK)
	} else {
		b = c.enc.pseudo(b, nameStatus, ":status", strconv.Itoa(status))
	}
	st.headSent = true
	st.addBlock(c.enc.fields(b, header), end)
}

// addTrailer adds a trailer, which ends the stream. Locked.
func (st *Stream) addTrailer(trailer call.Fields) {
	c := st.c
	st.headSent = true
	st.addBlock(c.enc.fields(c.enc.begin(c.out.block[:0]), trailer), true)
}

// addBlock adds a header block in as many frames as it takes. Locked.
func (st *Stream) addBlock(block []byte, end bool) {
	c := st.c
	c.abuse.answered()
	kind, flags := byte(frameHeaders), byte(0)
	if end {
		flags = flagEndStream
	}
	for rest := block; ; {
		n := min(len(rest), c.peerFrame)
		if n == len(rest) {
			flags |= flagEndHeaders
		}
		c.out.pending = append(appendFrame(c.out.pending, n, kind, flags, st.id), rest[:n]...)
		if rest = rest[n:]; len(rest) == 0 {
			break
		}
		kind, flags = frameContinuation, 0
	}
	if cap(block) <= maxFrame {
		c.out.block = block[:0]
	}
	if end {
		st.sendEnded = true
		st.settle()
	}
}

// resetByPeer is the error of a stream the peer reset.
func (c *conn) resetByPeer(code ErrCode) *fault.Error {
	cause := &StreamError{Code: code}
	if !c.cfg.client {
		return fault.New(opStream, fault.Canceled, "the caller gave up").Because(cause)
	}
	e := fault.New(opStream, fault.Unavailable, "call to %s", c.peerName()).WithSent(fault.SentMaybe).Because(cause)
	switch code {
	case RefusedStream:
		e.Sent = fault.SentNever
	case EnhanceYourCalm:
		e.Code = fault.Exhausted
	case Cancel:
		e.Code = fault.Canceled
	}
	return e
}

// IsReset tells whether err says that the peer reset the stream, and with which code.
func IsReset(err error) (ErrCode, bool) {
	var se *StreamError
	if errors.As(err, &se) {
		return se.Code, true
	}
	return 0, false
}
