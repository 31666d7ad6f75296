package link

import (
	"encoding/binary"
	"errors"
	"io"
	"net"

	"github.com/mecha-project/mecha/components/fault"
)

// read is the session's reader goroutine: it drains the connection whatever streams do, and
// never blocks on anything else.
func (s *Session) read() {
	defer s.io.Done()
	defer close(s.work)
	for {
		perr, err := s.readFrame()
		if perr != nil {
			s.breach(perr)
			return
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
				err = net.ErrClosed // ended by ourselves
			}
			s.end(err)
			return
		}
	}
}

func (s *Session) readFrame() (*ProtocolError, error) {
	if err := s.in.need(headerSize); err != nil {
		return nil, err
	}
	h, perr := parseHeader(s.in.take(headerSize), s.cfg.MaxFrame)
	if perr != nil {
		return perr, nil
	}
	switch h.kind {
	case kindOpen:
		return s.readOpen(h)
	case kindReply:
		return s.readReply(h)
	case kindEnd, kindMore:
		return s.readTail(h)
	case kindData:
		return s.readData(h)
	case kindReset, kindStop, kindCredit, kindPing, kindPong, kindGoaway:
		if err := s.in.need(h.n); err != nil {
			return nil, unexpected(err)
		}
		return s.control(h, s.in.take(h.n)), nil
	}
	s.mu.Lock()
	s.received(h)
	s.mu.Unlock()
	return nil, s.in.discard(h.n)
}

// received counts a frame. Locked.
func (s *Session) received(h header) {
	s.count.framesIn++
	s.count.bytesIn += uint64(headerSize + h.n)
}

// answer unlocks after a frame was handled and gets what the reader added onto the wire
// without waiting for it.
func (s *Session) answer(perr *ProtocolError) *ProtocolError {
	overflow := len(s.out.pending) > lastPending
	flush := s.claimFlush()
	s.mu.Unlock()
	if overflow {
		s.end(errors.New("the peer asks for answers and does not read them"))
		return perr
	}
	if flush {
		s.flushBehind(nil)
	}
	return perr
}

// spend takes received body bytes off the session's credit. Locked.
func (s *Session) spend(h header, n int) *ProtocolError {
	if int64(n) > s.inbound.avail {
		return violation(h, "%d body bytes exceed the session's credit of %d", n, s.inbound.avail)
	}
	s.inbound.avail -= int64(n)
	return nil
}

// spend takes received body bytes off the stream's credit. Locked.
func (st *Stream) spend(h header, n int) *ProtocolError {
	if int64(n) > st.recvAvail {
		return violation(h, "%d body bytes exceed the stream's credit of %d", n, st.recvAvail)
	}
	st.recvAvail -= int64(n)
	return nil
}

// lookup finds a frame's stream. Nil without an error means the stream is over, and the frame
// was on its way: it is dropped. Locked.
func (s *Session) lookup(h header) (*Stream, *ProtocolError) {
	if st := s.streams[h.id]; st != nil {
		return st, nil
	}
	if s.isOurs(h.id) {
		if h.id >= s.nextID {
			return nil, violation(h, "the stream was never opened")
		}
		return nil, nil
	}
	if h.id > s.lastPeer {
		return nil, violation(h, "the stream was never opened")
	}
	return nil, nil
}

func (s *Session) isOurs(id uint64) bool { return (id&1 == 1) == s.dialled }

// control handles the small frames. p is valid only during the call.
func (s *Session) control(h header, p []byte) *ProtocolError {
	le := binary.LittleEndian
	s.mu.Lock()
	s.received(h)
	var perr *ProtocolError
	switch h.kind {
	case kindPing:
		s.out.pending = appendPing(s.out.pending, kindPong, le.Uint64(p))
		s.count.framesOut++
	case kindPong:
		s.ponged(le.Uint64(p))
	case kindCredit:
		perr = s.onCredit(h, int64(le.Uint32(p)))
	case kindGoaway:
		perr = s.onGoaway(h, le.Uint64(p), le.Uint32(p[8:]), string(p[goawayFixed:]))
	case kindReset, kindStop:
		var st *Stream
		if st, perr = s.lookup(h); st == nil {
			break
		}
		if h.kind == kindStop {
			st.sendStopped = true
			st.leaveLine()
			wake(st.wsig)
			st.settle()
			break
		}
		s.onReset(st, wireCode(le.Uint32(p)), h.flags&flagRefused != 0, string(p[resetFixed:]))
	}
	return s.answer(perr)
}

func (s *Session) onReset(st *Stream, code fault.Code, refused bool, text string) {
	sent := fault.SentMaybe
	if refused {
		sent = fault.SentNever
	}
	s.remove(st)
	st.fail(fault.New(opStream, code, "link: %s ended the call: %s", s.peerName(), text).WithSent(sent))
}

func (s *Session) onCredit(h header, n int64) *ProtocolError {
	if n == 0 {
		return violation(h, "an increment of zero")
	}
	if h.id == 0 {
		if s.sendCredit += n; s.sendCredit > maxCredit {
			return violation(h, "credit of %d is over the limit", s.sendCredit)
		}
		s.wakeNext()
		return nil
	}
	st, perr := s.lookup(h)
	if perr != nil || st == nil {
		return perr
	}
	if st.sendCredit += n; st.sendCredit > maxCredit {
		return violation(h, "credit of %d is over the limit", st.sendCredit)
	}
	wake(st.wsig)
	return nil
}

// onGoaway notes that the peer leaves. Streams it will never accept fail as never sent.
func (s *Session) onGoaway(h header, last uint64, code uint32, text string) *ProtocolError {
	g := &s.away
	if g.peer && last > g.peerLast {
		return violation(h, "last id grew from %d to %d", g.peerLast, last)
	}
	g.peer, g.peerLast, g.peerText = true, last, text
	for id, st := range s.streams {
		if st.local && id > last {
			s.remove(st)
			st.fail(fault.New(opStream, fault.Unavailable, "link: %s left before it took the call: %s", s.peerName(), text).WithSent(fault.SentNever))
		}
	}
	if code != 0 {
		s.cfg.Log.Warn("link peer ends the session", "target", s.peerName(), "code", wireCode(code).String(), "err", text)
	}
	s.leaveIfEmpty()
	return nil
}
