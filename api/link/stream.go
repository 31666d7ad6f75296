package link

import (
	"context"
	"errors"
	"time"

	"github.com/mecha-project/mecha/api/wire"
	"github.com/mecha-project/mecha/components/fault"
)

// Stream is one call. Its two directions are independent: an answer may begin, and end, before
// the request has.
//
// The side that opened it uses Write, CloseWrite and RecvHead, Read, Trailer. The side whose
// Handler got it uses Head, First, Read, Trailer and SendHead, Write, CloseWrite. One
// goroutine may read while another writes; within each direction calls must not overlap.
// Reset may be called from anywhere at any time.
//
// An opened stream holds memory and credit of its session until its answer is read to the end
// or Reset is called; Reset after the end does nothing, so deferring it is the way to be sure.
type Stream struct {
	s     *Session
	id    uint64
	local bool            // we opened it
	ctx   context.Context // of Open; nil on a handler's stream, which has call
	call  wire.Context

	// Owned by the reading goroutine.
	cur  *wire.Chunk // being read
	rest []byte      // of first, being read

	// Guarded by s.mu.
	err  *fault.Error // why it failed; nil after an orderly end
	mark uint64       // outbox position of the frame that completed our head

	headSent    bool // the first frame of our direction is on its way, and the head complete
	sendEnded   bool // END is on its way
	sendStopped bool // the peer reads no more
	sendCredit  int64
	turn        bool  // we were woken to add a frame
	line        *line // where we wait for a turn
	prev, next  *Stream
	wsig        chan struct{} // wakes the writer

	head, first, trailer []byte
	headDone             bool // the peer's head is complete
	headTaken            bool // and was handed out, with first
	more                 morePart
	moreLeft             int   // bytes still missing of it
	held                 int64 // bytes of a request's first frames counted as in flight
	recvEnded            bool  // the peer's END arrived
	recvStopped          bool  // we read no more
	q                    wire.Queue
	recvAvail            int64 // bytes the peer may still send
	window               int64 // bytes it may have unread; grows
	consumed             int64 // read and not yet given back as credit
	credited             time.Time
	rsig                 chan struct{} // wakes the reader
}

// morePart says which part MORE frames continue.
type morePart uint8

const (
	moreNone morePart = iota
	moreHead
	moreTrailer
)

// ErrStopped is what writes return once the peer reads no more of a direction. The call has not
// failed: the peer has decided without the rest, and its answer stands.
var ErrStopped = errors.New("link: the peer reads no more of this stream; its answer stands")

const opStream fault.Op = "link.stream"

// ID is the stream's number in its session, for logs.
func (st *Stream) ID() uint64 { return st.id }

// Session is the session the stream belongs to.
func (st *Stream) Session() *Session { return st.s }

// Context is cancelled when the caller resets the stream, its timeout ends, the session is
// over, or the handler has returned. On the opener's side it is Open's context.
func (st *Stream) Context() context.Context {
	if st.local {
		return st.ctx
	}
	return &st.call
}

// Reset ends the stream in both directions and tells the peer the code and the text, which is
// cut to 1 KiB. What was not read is dropped. Further use fails with the same code. It does
// nothing if both directions have ended, beyond freeing what was not read.
func (st *Stream) Reset(code fault.Code, text string) { st.reset(code, text, false) }

// Refuse is Reset with the promise that nothing was done: the caller gets fault.SentNever and
// may repeat the call anywhere. For handlers, before they act.
func (st *Stream) Refuse(code fault.Code, text string) { st.reset(code, text, true) }

func (st *Stream) reset(code fault.Code, text string, refused bool) {
	s := st.s
	s.mu.Lock()
	st.resetLocked(fault.New(opStream, code, "%s", text).WithSent(fault.SentMaybe), refused)
	flush := s.claimFlush()
	s.mu.Unlock()
	s.flushIf(flush)
}

func (st *Stream) resetLocked(e *fault.Error, refused bool) {
	s := st.s
	if s.streams[st.id] == st && s.cause == nil {
		s.out.pending = appendReset(s.out.pending, st.id, refused, e.Code, e.Msg)
		s.count.framesOut++
		s.remove(st)
	}
	st.fail(e)
	st.dropUnread()
}

// fail ends the stream with an error, locked; the caller removes it from the session. A stream
// whose answer is complete can still be read.
func (st *Stream) fail(e *fault.Error) {
	if st.err == nil {
		st.err = e
	}
	if !st.recvEnded {
		st.dropUnread()
	}
	if !st.local {
		st.call.Cancel(context.Canceled)
		if !st.headDone { // no handler runs that would do it
			st.s.inbound.held -= st.held
			st.held = 0
		}
	}
	st.leaveLine()
	wake(st.rsig)
	wake(st.wsig)
}

// settle removes the stream when both directions are over. Locked.
func (st *Stream) settle() {
	if (st.sendEnded || st.sendStopped) && (st.recvEnded || st.recvStopped) {
		st.s.remove(st)
	}
}

// dropUnread gives unread bytes back to the session. Locked.
func (st *Stream) dropUnread() {
	n := int64(st.q.Drop())
	st.s.inbound.held -= n
	if !st.headTaken {
		n += int64(len(st.first))
		st.headTaken, st.first = true, nil
	}
	st.s.consume(n)
}

// leaveLine gives up a place or a turn. Locked.
func (st *Stream) leaveLine() {
	if st.line != nil {
		st.line.remove(st)
	}
	if st.turn {
		st.turn = false
		st.s.wakeNext()
	}
}

// expiry is the channel that ends waits on this stream early; nil if only the stream's own
// end does.
func (st *Stream) expiry() <-chan struct{} {
	if st.local {
		return st.ctx.Done()
	}
	if _, limited := st.call.Deadline(); !limited {
		return nil
	}
	return st.call.Done()
}

// expired turns the end of ctx into an error, unless the stream has failed already: a handler's
// context ends with its stream. A stream we opened is reset: nobody is left to use the answer.
func (st *Stream) expired(ctx context.Context) error {
	s := st.s
	s.mu.Lock()
	e := st.err
	if e == nil {
		err := ctx.Err()
		e = fault.New(opStream, fault.Of(err), "link: call to %s given up", s.peerName()).Because(err).WithSent(fault.SentMaybe)
		if st.local {
			st.resetLocked(e, false)
		}
	}
	flush := s.claimFlush()
	s.mu.Unlock()
	s.flushIf(flush)
	return e
}

// CloseRead says that the rest of the peer's bytes, trailer included, is not wanted: its writes
// return ErrStopped, our reads io.EOF. It is no failure of the call.
func (st *Stream) CloseRead() {
	s := st.s
	s.mu.Lock()
	if s.streams[st.id] == st && !st.recvEnded && !st.recvStopped {
		st.stopLocked()
	}
	flush := s.claimFlush()
	s.mu.Unlock()
	s.flushIf(flush)
}

func (st *Stream) stopLocked() {
	s := st.s
	s.out.pending = appendStop(s.out.pending, st.id)
	s.count.framesOut++
	st.recvStopped = true
	n := int64(st.q.Drop())
	s.inbound.held -= n
	s.consume(n)
	wake(st.rsig)
	st.settle()
}
