package link

import (
	"time"

	"github.com/mecha-project/mecha/api/wire"
	"github.com/mecha-project/mecha/components/fault"
)

// readTail handles END and MORE frames, whose bytes the stream keeps.
func (s *Session) readTail(h header) (*ProtocolError, error) {
	p := make([]byte, h.n)
	if err := s.in.readFull(p); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.received(h)
	st, perr := s.lookup(h)
	if perr != nil {
		return s.answer(perr), nil
	}
	if h.kind == kindEnd {
		return s.answer(s.onEnd(h, st, p)), nil
	}
	dispatch, perr := s.onMore(h, st, p)
	s.answer(nil)
	if dispatch && perr == nil {
		s.dispatch(st)
	}
	return perr, nil
}

func (s *Session) onEnd(h header, st *Stream, p []byte) *ProtocolError {
	body, trailer, trailerLen, perr := parseEnd(h, p)
	if perr == nil {
		perr = s.spend(h, len(body))
	}
	if perr != nil {
		return perr
	}
	if st == nil {
		s.consume(int64(len(body)))
		return nil
	}
	if perr := st.expectsBody(h); perr != nil {
		return perr
	}
	if perr := st.spend(h, len(body)); perr != nil {
		return perr
	}
	if trailerLen > s.cfg.MaxHead {
		s.consume(int64(len(body)))
		st.resetLocked(fault.New(opStream, fault.TooLarge, "link: the trailer is over the limit of %d bytes", s.cfg.MaxHead).WithSent(fault.SentMaybe), false)
		return nil
	}
	switch {
	case len(body) == 0:
	case st.recvStopped:
		s.consume(int64(len(body)))
	default:
		st.q.Push(&wire.Chunk{B: body, W: len(body)}) // p is ours: no need to copy it
		s.inbound.held += int64(len(body))
	}
	st.trailer = trailer
	if trailerLen > len(trailer) {
		st.more, st.moreLeft = moreTrailer, trailerLen-len(trailer)
		wake(st.rsig)
		return nil
	}
	st.recvEnded = true
	st.settle()
	wake(st.rsig)
	return nil
}

// expectsBody checks that body frames are in order now. Locked.
func (st *Stream) expectsBody(h header) *ProtocolError {
	switch {
	case st.more != moreNone:
		return violation(h, "a head or trailer is incomplete")
	case !st.headDone:
		return violation(h, "body before the head")
	case st.recvEnded:
		return violation(h, "body after the end")
	}
	return nil
}

// onMore reports whether a request's head became complete.
func (s *Session) onMore(h header, st *Stream, p []byte) (dispatch bool, perr *ProtocolError) {
	if st == nil {
		return false, nil
	}
	if st.more == moreNone || len(p) > st.moreLeft {
		return false, violation(h, "nothing is incomplete, or less than %d bytes", len(p))
	}
	if !st.local { // a handler's stream counts what it holds
		st.held += int64(len(p))
		s.inbound.held += int64(len(p))
		if s.inbound.held > s.cfg.MaxInflightBytes {
			st.resetLocked(fault.New(opStream, fault.Exhausted, "too many bytes are in flight; try later"), st.more == moreHead)
			return false, nil
		}
	}
	st.moreLeft -= len(p)
	if st.more == moreTrailer {
		st.trailer = append(st.trailer, p...)
	} else {
		st.head = append(st.head, p...)
	}
	if st.moreLeft > 0 {
		return false, nil
	}
	if st.more == moreTrailer {
		st.recvEnded = true
		st.settle()
	} else {
		st.headDone = true
		dispatch = !st.local
	}
	st.more = moreNone
	wake(st.rsig)
	return dispatch, nil
}

// readData moves body bytes into the stream's queue. Small ones are packed behind what is
// there; large ones are read straight into their chunk.
func (s *Session) readData(h header) (*ProtocolError, error) {
	var c *wire.Chunk
	var small []byte
	if h.n <= wire.SmallChunk/2 && s.in.w-s.in.r >= h.n {
		small = s.in.take(h.n)
	} else {
		c = wire.NewChunk(h.n)
		if err := s.in.readFull(c.B[:h.n]); err != nil {
			return nil, err
		}
		c.W = h.n
	}
	s.mu.Lock()
	s.received(h)
	st, perr := s.lookup(h)
	if perr == nil {
		perr = s.spend(h, h.n)
	}
	if perr == nil && st != nil {
		if perr = st.expectsBody(h); perr == nil {
			perr = st.spend(h, h.n)
		}
	}
	if perr != nil {
		return s.answer(perr), nil
	}
	if st == nil || st.recvStopped {
		s.consume(int64(h.n))
		s.answer(nil)
		if c != nil {
			c.Free()
		}
		return nil, nil
	}
	if st.credited.IsZero() {
		st.credited = time.Now()
	}
	if small == nil || !st.q.Pack(small) {
		if c == nil {
			c = wire.NewChunk(h.n)
			c.W = copy(c.B, small)
		}
		st.q.Push(c)
	}
	s.inbound.held += int64(h.n)
	wake(st.rsig)
	s.mu.Unlock()
	return nil, nil
}
