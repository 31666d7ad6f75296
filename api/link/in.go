package link

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime/debug"
	"time"

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
	case kindReply, kindEnd, kindMore:
		return s.readMessage(h)
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

// readOpen handles a new stream of the peer.
func (s *Session) readOpen(h header) (*ProtocolError, error) {
	p := make([]byte, h.n)
	if err := s.in.readFull(p); err != nil {
		return nil, err
	}
	m, perr := parseMeta(h, p)
	if perr != nil {
		return perr, nil
	}
	s.mu.Lock()
	s.received(h)
	if s.isOurs(h.id) || h.id <= s.lastPeer {
		return s.answer(violation(h, "id is not above %d or has the wrong parity", s.lastPeer)), nil
	}
	if perr := s.spend(h, len(m.body)); perr != nil {
		return s.answer(perr), nil
	}
	if int64(len(m.body)) > int64(s.cfg.StreamWindow) {
		return s.answer(violation(h, "%d body bytes exceed the stream's credit", len(m.body))), nil
	}
	if s.away.closed { // the peer learns from GOAWAY that it was never accepted
		s.consume(int64(len(m.body)))
		return s.answer(nil), nil
	}
	s.lastPeer = h.id
	if code, why := s.refuses(&m); why != "" {
		s.count.refused++
		s.out.pending = appendReset(s.out.pending, h.id, true, code, why)
		s.count.framesOut++
		s.consume(int64(len(m.body)))
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
func (s *Session) refuses(m *parts) (fault.Code, string) {
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
func (s *Session) accept(h header, m *parts) *Stream {
	st := &Stream{s: s, id: h.id, sendCredit: s.sendWindow, window: int64(s.cfg.StreamWindow), first: m.body}
	st.recvAvail = st.window - int64(len(m.body))
	if m.timeout > 0 {
		st.call.deadline = time.Now().Add(min(time.Duration(m.timeout), maxTimeout))
	}
	if m.headLen > len(m.head) {
		st.more, st.moreLeft = moreHead, m.headLen-len(m.head)
	} else {
		st.headDone = true
	}
	st.head = m.head
	if h.flags&flagEnd != 0 {
		st.recvEnded, st.trailer = true, m.trailer
	}
	st.held = int64(len(m.head) + len(m.body) + len(m.trailer))
	s.inbound.held += st.held
	s.streams[h.id] = st
	s.theirs++
	s.count.accepted++
	s.watch(false)
	return st
}

// readMessage handles frames whose bytes the stream keeps: REPLY, END and MORE.
func (s *Session) readMessage(h header) (*ProtocolError, error) {
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
	var dispatch bool
	switch h.kind {
	case kindReply:
		perr = s.onReply(h, st, p)
	case kindEnd:
		perr = s.onEnd(h, st, p)
	case kindMore:
		dispatch, perr = s.onMore(h, st, p)
	}
	s.answer(nil)
	if dispatch && perr == nil {
		s.dispatch(st)
	}
	return perr, nil
}

func (s *Session) onReply(h header, st *Stream, p []byte) *ProtocolError {
	m, perr := parseMeta(h, p)
	if perr == nil {
		perr = s.spend(h, len(m.body))
	}
	if perr != nil {
		return perr
	}
	if st == nil {
		s.consume(int64(len(m.body)))
		return nil
	}
	if !st.local || st.headDone || st.more != moreNone || st.recvEnded {
		return violation(h, "an answer was not expected")
	}
	if perr := st.spend(h, len(m.body)); perr != nil {
		return perr
	}
	if m.headLen > s.cfg.MaxHead || len(m.trailer) > s.cfg.MaxHead {
		st.resetLocked(fault.New(opStream, fault.TooLarge, "link: the answer's head is over the limit of %d bytes", s.cfg.MaxHead).WithSent(fault.SentMaybe), false)
		return nil
	}
	st.head = m.head
	if m.headLen > len(m.head) {
		st.more, st.moreLeft = moreHead, m.headLen-len(m.head)
		return nil
	}
	st.headDone = true
	st.first = m.body
	if st.recvStopped {
		st.first = nil
		s.consume(int64(len(m.body)))
	}
	if h.flags&flagEnd != 0 {
		st.trailer = m.trailer
		st.recvEnded = true
		st.settle()
	}
	wake(st.rsig)
	return nil
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
		st.resetLocked(fault.New(opStream, fault.TooLarge, "link: the trailer is over the limit of %d bytes", s.cfg.MaxHead).WithSent(fault.SentMaybe), false)
		return nil
	}
	switch {
	case len(body) == 0:
	case st.recvStopped:
		s.consume(int64(len(body)))
	default:
		st.q.push(&chunk{b: body, w: len(body)}) // p is ours: no need to copy it
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
	var c *chunk
	var small []byte
	if h.n <= chunkSizes[0]/2 && s.in.w-s.in.r >= h.n {
		small = s.in.take(h.n)
	} else {
		c = newChunk(h.n)
		if err := s.in.readFull(c.b[:h.n]); err != nil {
			return nil, err
		}
		c.w = h.n
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
			c.free()
		}
		return nil, nil
	}
	if st.credited.IsZero() {
		st.credited = time.Now()
	}
	if small == nil || !st.q.pack(small) {
		if c == nil {
			c = newChunk(h.n)
			c.w = copy(c.b, small)
		}
		st.q.push(c)
	}
	s.inbound.held += int64(h.n)
	wake(st.rsig)
	s.mu.Unlock()
	return nil, nil
}

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

// maxParked is how many workers wait for the next stream. Parked workers keep grown stacks
// and spare the scheduler a new goroutine per call.
const maxParked = 16

// dispatch runs the handler of a stream whose head is complete. Only the reader calls it.
func (s *Session) dispatch(st *Stream) {
	s.running.Add(1)
	select {
	case s.work <- st:
	default:
		s.calls.Add(1)
		go s.serve(st)
	}
}

// serve is a worker: it runs handlers one after another and ends with the session, or when
// enough others wait.
func (s *Session) serve(st *Stream) {
	defer s.calls.Done()
	for {
		st.run()
		if s.parked.Add(1) > maxParked {
			s.parked.Add(-1)
			return
		}
		var ok bool
		st, ok = <-s.work
		s.parked.Add(-1)
		if !ok {
			return
		}
	}
}

func stack() string { return string(debug.Stack()) }
