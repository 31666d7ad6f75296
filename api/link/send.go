package link

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

const opOpen fault.Op = "link.open"

// Open starts a stream with a head and the beginning of its body. With end set, first is the
// whole body; head and body that fit one frame then cost one frame. Open copies both.
//
// ctx governs the whole stream, not only Open: when it ends, blocked calls return and the
// stream is reset; its deadline travels to the peer. Open itself waits only if the connection
// is congested or first needs more credit than there is: a first larger than the peer's
// StreamWindow waits for a handler that reads it, so send large bodies with Write, beside
// reading the answer.
//
// Errors carry fault.SentNever if the peer cannot have seen the call: fault.Unavailable on a
// session that is over or leaving, fault.Exhausted at the peer's limit of streams,
// fault.TooLarge for a head over its limit.
func (s *Session) Open(ctx context.Context, head, first []byte, end bool) (*Stream, error) {
	timeout, err := remaining(ctx)
	if err != nil {
		return nil, err
	}
	if len(head) > s.sendHead {
		return nil, fault.New(opOpen, fault.TooLarge, "link: head of %d bytes is over the peer's limit of %d", len(head), s.sendHead).WithSent(fault.SentNever)
	}
	st := &Stream{s: s, local: true, ctx: ctx, rsig: make(chan struct{}, 1), sendCredit: s.sendWindow,
		recvAvail: int64(s.cfg.StreamWindow), window: int64(s.cfg.StreamWindow)}
	m := meta{timeout: timeout, headLen: len(head), head: head}

	s.mu.Lock()
	if err := st.enter(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	whole := st.fits(openFixed, &m, first, end, nil)
	if !whole {
		m.head = head[:min(len(head), s.sendFrame-openFixed)]
	}
	st.mark = s.out.end()
	s.out.pending = appendOpen(s.out.pending, st.id, &m)
	s.count.framesOut++
	if whole {
		st.headSent, st.sendEnded = true, end
		flush := s.claimFlush()
		s.mu.Unlock()
		s.flushIf(flush)
		return st, nil
	}
	if err := st.sendParts(head[len(m.head):], first, end, nil); err != nil && err != ErrStopped {
		return nil, err
	}
	return st, nil
}

// remaining is the time ctx leaves, as it travels; zero means no limit.
func remaining(ctx context.Context) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, fault.New(opOpen, fault.Of(err), "link: not sent").Because(err).WithSent(fault.SentNever)
	}
	d, ok := ctx.Deadline()
	if !ok {
		return 0, nil
	}
	left := time.Until(d)
	if left <= 0 {
		return 0, fault.New(opOpen, fault.Deadline, "link: not sent").Because(context.DeadlineExceeded).WithSent(fault.SentNever)
	}
	return uint64(left), nil
}

// enter makes the stream one of the session's. Locked; it may unlock while it waits for the
// connection to take what is pending.
func (st *Stream) enter() error {
	s := st.s
	for {
		switch {
		case s.cause != nil:
			return s.lost(fault.SentNever)
		case s.away.draining:
			return fault.New(opOpen, fault.Unavailable, "link: this side is leaving the session with %s", s.peerName()).WithSent(fault.SentNever)
		case s.away.peer:
			return fault.New(opOpen, fault.Unavailable, "link: %s is leaving: %s", s.peerName(), s.away.peerText).WithSent(fault.SentNever)
		case s.ours >= s.sendStreams:
			return fault.New(opOpen, fault.Exhausted, "link: %d streams to %s are open, the most it allows", s.ours, s.peerName()).WithSent(fault.SentNever)
		}
		if s.out.room(0) {
			break
		}
		if err := st.wait(&s.out.metaLine); err != nil {
			return fault.New(opOpen, fault.Of(err), "link: the connection to %s is congested", s.peerName()).Because(err).WithSent(fault.SentNever)
		}
	}
	st.leaveLine()
	st.id = s.nextID
	s.nextID += 2
	s.streams[st.id] = st
	s.ours++
	s.count.opened++
	s.watch(true)
	return nil
}

// fits decides whether head, body and trailer go into one frame now, and if so completes m and
// takes the credit. Locked.
func (st *Stream) fits(fixed int, m *meta, body []byte, end bool, trailer []byte) bool {
	s := st.s
	n := int64(len(body))
	total := fixed + len(m.head) + len(body) + len(trailer)
	if total > s.sendFrame || n > st.sendCredit || n > s.sendCredit || (n > 0 && !s.out.room(total)) || st.bodyWaits(total) {
		return false
	}
	m.body, m.trailer, m.end = body, trailer, end
	st.sendCredit -= n
	s.sendCredit -= n
	return true
}

// bodyWaits reports whether others came first for a frame of this size.
func (st *Stream) bodyWaits(n int) bool {
	return n >= bulkFrame && st.s.out.bodyLine.first != nil && !st.turn
}

// SendHead begins the answer, once: head, and the beginning of the body. With final set, first
// is all of the body and the answer ends with trailer; what fits one frame costs one frame.
// The slices are copied. ErrStopped means that the peer wants no body.
func (st *Stream) SendHead(head, first []byte, final bool, trailer []byte) error {
	s := st.s
	if len(head) > s.sendHead || len(trailer) > s.sendHead {
		return st.tooLarge(max(len(head), len(trailer)))
	}
	m := meta{headLen: len(head), head: head}
	s.mu.Lock()
	if err := st.startReply(); err != nil {
		s.mu.Unlock()
		return err
	}
	if !final {
		trailer = nil
	}
	whole := st.fits(replyFixed, &m, first, final, trailer)
	if !whole {
		m.head = head[:min(len(head), s.sendFrame-replyFixed)]
	}
	s.out.pending = appendReply(s.out.pending, st.id, &m)
	s.count.framesOut++
	if whole {
		st.headSent = true
		if final {
			st.sendEnded = true
			st.settle()
		}
		flush := s.claimFlush()
		s.mu.Unlock()
		s.flushIf(flush)
		return nil
	}
	return st.sendParts(head[len(m.head):], first, final, trailer)
}

// sendParts adds what did not fit the first frame: the rest of the head, then the body. It is
// called locked and returns unlocked.
func (st *Stream) sendParts(head, body []byte, end bool, trailer []byte) error {
	s := st.s
	err := st.sendMore(head)
	if err == nil {
		st.headSent = true
		_, err = st.sendLocked(body, end, trailer)
	}
	flush := s.claimFlush()
	s.mu.Unlock()
	s.flushIf(flush)
	return err
}

// startReply waits until the head of an answer may be added. Locked.
func (st *Stream) startReply() error {
	for {
		switch {
		case st.err != nil:
			return st.err
		case st.local || st.headSent:
			return fault.New(opStream, fault.Internal, "link: SendHead is for handlers, once")
		case st.s.out.room(0):
			st.leaveLine()
			return nil
		}
		if err := st.wait(&st.s.out.metaLine); err != nil {
			return err
		}
	}
}

func (st *Stream) tooLarge(n int) error {
	return fault.New(opStream, fault.TooLarge, "link: head or trailer of %d bytes is over the peer's limit of %d", n, st.s.sendHead)
}

// Write sends body bytes and returns when all are copied out of p, which may take as long as
// the peer takes to grant credit. It returns ErrStopped if the peer reads no more, and the
// stream's error if it failed.
func (st *Stream) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return st.send(p, false, nil)
}

// WriteFinal is Write of the last bytes and CloseWrite, in one frame if they fit.
func (st *Stream) WriteFinal(p, trailer []byte) error {
	_, err := st.send(p, true, trailer)
	return err
}

// CloseWrite ends our direction with a trailer, which may be nil. A second call does nothing.
func (st *Stream) CloseWrite(trailer []byte) error {
	_, err := st.send(nil, true, trailer)
	return err
}

// send adds frames for body p, and the end with its trailer, and gets them on their way.
func (st *Stream) send(p []byte, end bool, trailer []byte) (sent int, err error) {
	s := st.s
	if len(trailer) > s.sendHead {
		return 0, st.tooLarge(len(trailer))
	}
	s.mu.Lock()
	sent, err = st.sendLocked(p, end, trailer)
	flush := s.claimFlush()
	s.mu.Unlock()
	s.flushIf(flush)
	return sent, err
}

// sendLocked adds frames as credit and room allow. Locked; it unlocks while it waits.
func (st *Stream) sendLocked(p []byte, end bool, trailer []byte) (sent int, err error) {
	s := st.s
	for (sent < len(p) || end) && !(st.sendEnded && sent == len(p)) {
		if err = st.writable(); err != nil {
			break
		}
		var n int
		var last bool
		if n, last, err = st.nextFrame(p[sent:], end, trailer); err != nil {
			break
		}
		sent += n
		if last {
			err = st.sendEnd(p[sent-n:sent], trailer)
			break
		}
		if n > 0 {
			s.out.pending = appendData(s.out.pending, st.id, p[sent-n:sent])
			s.count.framesOut++
			st.leaveLine()
		}
	}
	st.leaveLine()
	return sent, err
}

// writable is nil while our direction may take frames. Locked.
func (st *Stream) writable() error {
	switch {
	case st.sendStopped:
		return ErrStopped
	case st.err != nil:
		return st.err
	case !st.headSent:
		return fault.New(opStream, fault.Internal, "link: body before the head was sent")
	case st.sendEnded:
		return fault.New(opStream, fault.Internal, "link: write after the end")
	}
	return nil
}

// nextFrame waits until a frame may be added and says how much of p goes into it, with the
// credit taken, and whether it is the last. n is zero after a wait: then look again. Locked.
func (st *Stream) nextFrame(p []byte, end bool, trailer []byte) (n int, last bool, err error) {
	s := st.s
	n = int(min(int64(len(p)), st.sendCredit, s.sendCredit, int64(s.sendFrame)))
	if len(p) > 0 && n == 0 {
		if st.sendCredit == 0 {
			st.leaveLine() // a turn is of no use now
			return 0, false, st.wait(nil)
		}
		return 0, false, st.wait(&s.out.bodyLine)
	}
	size := n
	if end && n == len(p) && endFixed+n+min(len(trailer), s.sendFrame) <= s.sendFrame {
		last = true
		size += len(trailer)
	} else if end && len(p) == 0 {
		last = true // with a part of the trailer
		size = s.sendFrame
	}
	if !s.out.room(size) || st.bodyWaits(size) {
		return 0, false, st.wait(&s.out.bodyLine)
	}
	st.sendCredit -= int64(n)
	s.sendCredit -= int64(n)
	return n, last, nil
}

// sendEnd adds the END frame, whose trailer may need more frames. Locked.
func (st *Stream) sendEnd(body, trailer []byte) error {
	s := st.s
	part := trailer[:min(len(trailer), s.sendFrame-endFixed-len(body))]
	s.out.pending = appendEnd(s.out.pending, st.id, body, len(trailer), part)
	s.count.framesOut++
	st.leaveLine()
	if err := st.sendMore(trailer[len(part):]); err != nil {
		return err
	}
	st.sendEnded = true
	st.settle()
	return nil
}

// sendMore adds MORE frames, taking turns with other streams. Locked.
func (st *Stream) sendMore(rest []byte) error {
	s := st.s
	for len(rest) > 0 {
		if st.err != nil {
			return st.err
		}
		n := min(len(rest), s.sendFrame)
		if !s.out.room(n) || (s.out.metaLine.first != nil && !st.turn) {
			if err := st.wait(&s.out.metaLine); err != nil {
				return err
			}
			continue
		}
		st.mark = s.out.end()
		s.out.pending = appendMore(s.out.pending, st.id, rest[:n])
		s.count.framesOut++
		rest = rest[n:]
		st.leaveLine()
	}
	return nil
}

// wait lets the session move on until something about this stream may have changed: a turn
// from l, credit (l is nil), an end. It is called and returns locked. The error is that of an
// expired context; everything else is for the caller to look at.
func (st *Stream) wait(l *line) error {
	s := st.s
	if s.claimFlush() {
		s.mu.Unlock()
		s.flush()
		s.mu.Lock()
		return nil
	}
	if st.turn && l != nil {
		st.turn = false // it had no room for us after all: queue again
	}
	if l != nil && st.line == nil {
		l.push(st)
	}
	if st.wsig == nil {
		st.wsig = make(chan struct{}, 1)
	}
	s.mu.Unlock()
	var err error
	expiry := st.expiry()
	select {
	case <-st.wsig:
	case <-expiry:
		if st.id == 0 {
			err = st.Context().Err() // not opened yet: there is nothing to reset
		} else {
			err = st.expired(st.Context())
		}
	}
	s.mu.Lock()
	if st.line != nil {
		st.line.remove(st)
	}
	if err != nil {
		st.leaveLine()
	}
	return err
}
