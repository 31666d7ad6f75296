package link

import (
	"time"

	"github.com/mecha-project/mecha/api/wire"
	"github.com/mecha-project/mecha/components/fault"
)

// opening is what an OPEN or REPLY frame brought. Its slices are the stream's to keep. A large
// body is in a pooled chunk instead of body: buffers that large are dear to allocate.
type opening struct {
	layout
	head, body, trailer []byte
	chunk               *wire.Chunk
}

// largeBody is where pooled chunks beat fresh memory: a call with 64 KiB each way costs 52
// CPU-µs with them and 75–90 without.
const largeBody = 16 << 10

func (s *Session) readOpening(h header) (m opening, perr *ProtocolError, err error) {
	fixed := h.kind.fixed()
	if err := s.in.need(fixed); err != nil {
		return m, nil, unexpected(err)
	}
	if m.layout, perr = parseLayout(h, s.in.take(fixed)); perr != nil {
		return m, perr, nil
	}
	head, body := m.layout.head, m.layout.body
	if body > largeBody {
		m.chunk = wire.NewChunk(body)
		m.chunk.W = body
		p := make([]byte, head+m.layout.trailer)
		m.head, m.trailer = p[:head:head], p[head:]
		if err := s.in.readFull(m.head); err != nil {
			return m, nil, err
		}
		if err := s.in.readFull(m.chunk.B[:body]); err != nil {
			return m, nil, err
		}
		return m, nil, s.in.readFull(m.trailer)
	}
	p := make([]byte, h.n-fixed)
	m.head, m.body, m.trailer = p[:head:head], p[head:head+body:head+body], p[head+body:]
	return m, nil, s.in.readFull(p)
}

// take makes what a complete first frame brought the stream's. Locked.
func (st *Stream) take(h header, m *opening) {
	st.head = m.head
	if m.headLen > len(m.head) {
		st.more, st.moreLeft = moreHead, m.headLen-len(m.head)
		return
	}
	st.headDone = true
	switch {
	case st.recvStopped:
		st.s.consume(int64(m.layout.body))
	case m.chunk != nil:
		st.q.Push(m.chunk)
		st.s.inbound.held += int64(m.layout.body)
	default:
		st.first = m.body
	}
	if h.flags&flagEnd != 0 {
		st.trailer = m.trailer
		st.recvEnded = true
	}
}

// readOpen handles a new stream of the peer.
func (s *Session) readOpen(h header) (*ProtocolError, error) {
	m, perr, err := s.readOpening(h)
	if perr != nil || err != nil {
		return perr, err
	}
	s.mu.Lock()
	s.received(h)
	body := m.layout.body
	if s.isOurs(h.id) || h.id <= s.lastPeer {
		return s.answer(violation(h, "id is not above %d or has the wrong parity", s.lastPeer)), nil
	}
	if perr := s.spend(h, body); perr != nil {
		return s.answer(perr), nil
	}
	if body > s.cfg.StreamWindow {
		return s.answer(violation(h, "%d body bytes exceed the stream's credit", body)), nil
	}
	if s.away.closed { // the peer learns from GOAWAY that it was never accepted
		s.consume(int64(body))
		return s.answer(nil), nil
	}
	s.lastPeer = h.id
	if code, why := s.refuses(&m); why != "" {
		s.count.refused++
		s.out.pending = appendReset(s.out.pending, h.id, true, code, why)
		s.count.framesOut++
		s.consume(int64(body))
		return s.answer(nil), nil
	}
	st := s.accept(h, &m)
	s.mu.Unlock()
	if st.headDone {
		s.dispatch(st)
	}
	return nil, nil
}

// refuses says why a new stream is not taken; an empty text means that it is. Locked.
func (s *Session) refuses(m *opening) (fault.Code, string) {
	switch {
	case s.cfg.Handler == nil:
		return fault.Unsupported, "this side accepts no calls on this session"
	case m.headLen > s.cfg.MaxHead:
		return fault.TooLarge, "the head is over the limit"
	case s.theirs >= s.cfg.MaxStreams:
		return fault.Exhausted, "too many streams are open; try later"
	case int(s.running.Load()) >= 2*s.cfg.MaxStreams: // streams opened and reset faster than handlers notice
		return fault.Exhausted, "too many handlers are running; try later"
	case s.inbound.held > s.cfg.MaxInflightBytes:
		return fault.Exhausted, "too many bytes are in flight; try later"
	}
	return fault.OK, ""
}

// maxTimeout is as good as none, and far from overflowing a time.
const maxTimeout = 10 * 365 * 24 * time.Hour

// accept makes the stream of an OPEN frame. Locked.
func (s *Session) accept(h header, m *opening) *Stream {
	st := &Stream{s: s, id: h.id, sendCredit: s.sendWindow, window: int64(s.cfg.StreamWindow)}
	st.recvAvail = st.window - int64(m.layout.body)
	if m.timeout > 0 {
		st.call.SetDeadline(time.Now().Add(min(time.Duration(m.timeout), maxTimeout)))
	}
	st.held = int64(len(m.head) + len(m.body) + len(m.trailer))
	s.inbound.held += st.held
	st.take(h, m)
	s.streams[h.id] = st
	s.theirs++
	s.count.accepted++
	s.watch(false)
	return st
}

// readReply handles the first frame of an answer.
func (s *Session) readReply(h header) (*ProtocolError, error) {
	m, perr, err := s.readOpening(h)
	if perr != nil || err != nil {
		return perr, err
	}
	s.mu.Lock()
	s.received(h)
	return s.answer(s.onReply(h, &m)), nil
}

func (s *Session) onReply(h header, m *opening) *ProtocolError {
	st, perr := s.lookup(h)
	if perr == nil {
		perr = s.spend(h, m.layout.body)
	}
	if perr != nil {
		return perr
	}
	if st == nil {
		s.consume(int64(m.layout.body))
		return nil
	}
	if !st.local || st.headDone || st.more != moreNone || st.recvEnded {
		return violation(h, "an answer was not expected")
	}
	if perr := st.spend(h, m.layout.body); perr != nil {
		return perr
	}
	if m.headLen > s.cfg.MaxHead || len(m.trailer) > s.cfg.MaxHead {
		s.consume(int64(m.layout.body))
		st.resetLocked(fault.New(opStream, fault.TooLarge, "link: the answer's head is over the limit of %d bytes", s.cfg.MaxHead).WithSent(fault.SentMaybe), false)
		return nil
	}
	st.take(h, m)
	if st.recvEnded {
		st.settle()
	}
	wake(st.rsig)
	return nil
}
