package link

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// inflow is what the session has received and not consumed. Guarded by Session.mu.
type inflow struct {
	window   int64 // bytes the peer may have unread on all streams
	avail    int64 // of which it may still send
	consumed int64 // read and not yet given back as credit
	held     int64 // bytes held in memory: queues, and first frames of running handlers
}

func (f *inflow) init(cfg *Config) {
	f.window = int64(cfg.SessionWindow)
	f.avail = f.window
}

// consume gives n bytes back to the session's credit, in batches of half a window. Locked.
func (s *Session) consume(n int64) {
	f := &s.inbound
	f.consumed += n
	if f.consumed < (f.window+1)/2 || s.cause != nil {
		return
	}
	s.out.pending = appendCredit(s.out.pending, 0, f.consumed)
	s.count.framesOut++
	f.avail += f.consumed
	f.consumed = 0
}

// consume gives n bytes back to the stream and the session. When the reader empties the window
// within two round trips, the window is what limits the sender, so it is doubled. Locked.
func (st *Stream) consume(n int64) {
	s := st.s
	s.consume(n)
	if st.recvEnded || st.recvStopped || st.err != nil {
		return
	}
	st.consumed += n
	if st.consumed < (st.window+1)/2 {
		return
	}
	now := time.Now()
	grant := st.consumed
	rtt := time.Duration(s.rtt.Load())
	limit := int64(s.cfg.MaxStreamWindow)
	if !st.credited.IsZero() && now.Sub(st.credited) < 2*rtt && st.window < limit && s.inbound.held < s.cfg.MaxInflightBytes/2 {
		grow := min(st.window, limit-st.window)
		st.window += grow
		grant += grow
	}
	st.credited = now
	st.consumed = 0
	st.recvAvail += grant
	s.out.pending = appendCredit(s.out.pending, st.id, grant)
	s.count.framesOut++
	s.sample(now)
}

// Head is the request's head. It belongs to the caller.
func (st *Stream) Head() []byte { return st.head }

// First returns the body bytes that came with the head, which belong to the caller, and whether
// they are the whole body. Without a call of First, Read returns them. It does not block.
func (st *Stream) First() (body []byte, final bool) {
	s := st.s
	s.mu.Lock()
	body = st.takeFirst()
	final = st.recvEnded && st.q.Empty()
	flush := s.claimFlush()
	s.mu.Unlock()
	s.flushIf(flush)
	return body, final
}

// takeFirst hands out the first bytes and their credit. Locked.
func (st *Stream) takeFirst() []byte {
	if st.headTaken {
		return nil
	}
	st.headTaken = true
	body := st.first
	st.first = nil
	if len(body) > 0 {
		st.consume(int64(len(body)))
	}
	return body
}

// RecvHead waits for the answer's head. It returns the body bytes that came with it and
// whether they are all; then Trailer is valid. The slices belong to the caller. When ctx ends
// first, the stream is reset.
func (st *Stream) RecvHead(ctx context.Context) (head, first []byte, final bool, err error) {
	s := st.s
	for {
		s.mu.Lock()
		if st.headDone {
			first = st.takeFirst()
			final = st.recvEnded && st.q.Empty()
			flush := s.claimFlush()
			s.mu.Unlock()
			s.flushIf(flush)
			return st.head, first, final, nil
		}
		if st.err != nil {
			err = st.err
			s.mu.Unlock()
			return nil, nil, false, err
		}
		s.mu.Unlock()
		if err := st.awaitRead(ctx); err != nil {
			return nil, nil, false, err
		}
	}
}

// awaitRead blocks until the reading side may have something new.
func (st *Stream) awaitRead(ctx context.Context) error {
	own := st.expiry()
	var given <-chan struct{}
	if ctx != nil && ctx != st.ctx {
		given = ctx.Done()
	}
	if own == nil && given == nil {
		<-st.rsig
		return nil
	}
	select {
	case <-st.rsig:
		return nil
	case <-own:
		return st.expired(st.Context())
	case <-given:
		return st.expired(ctx)
	}
}

// Read reads body bytes as they arrive, io.EOF at the end. After RecvHead or First it goes on
// behind what they returned.
func (st *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := st.peek()
	if err != nil {
		return 0, err
	}
	n := copy(p, b)
	st.advance(n)
	return n, nil
}

// WriteTo writes the rest of the body to w without an extra copy; io.Copy uses it.
func (st *Stream) WriteTo(w io.Writer) (total int64, err error) {
	for {
		b, err := st.peek()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(b)
		st.advance(n)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// ReadRest appends the rest of the body to b and returns it. Unlike io.ReadAll it allocates once
// for all that has arrived already, and moves bytes once. More than most bytes, counting those
// in b, are fault.TooLarge; what was not read stays unread then.
func (st *Stream) ReadRest(b []byte, most int) ([]byte, error) {
	for {
		p, err := st.peek()
		switch {
		case err == io.EOF:
			return b, nil
		case err != nil:
			return b, err
		case len(b)+len(p) > most:
			return b, fault.New(opStream, fault.TooLarge, "link: the body is over the limit of %d bytes", most)
		}
		if cap(b)-len(b) < len(p) {
			st.s.mu.Lock()
			more := st.q.Size()
			st.s.mu.Unlock()
			b = slices.Grow(b, min(len(p)+more, most-len(b)))
		}
		b = append(b, p...)
		st.advance(len(p))
	}
}

// peek returns bytes that are there, waiting for some.
func (st *Stream) peek() ([]byte, error) {
	if len(st.rest) > 0 {
		return st.rest, nil
	}
	if st.cur != nil {
		return st.cur.Bytes(), nil
	}
	s := st.s
	for {
		s.mu.Lock()
		if st.rsig == nil {
			st.rsig = make(chan struct{}, 1)
		}
		ok, err := st.pull()
		flush := s.claimFlush()
		s.mu.Unlock()
		s.flushIf(flush)
		switch {
		case err != nil:
			return nil, err
		case ok && st.cur == nil:
			return st.rest, nil
		case ok:
			return st.cur.Bytes(), nil
		}
		//lint:ignore SA1012 nil says that only the stream itself ends the wait
		if err := st.awaitRead(nil); err != nil {
			return nil, err
		}
	}
}

// pull takes the next bytes out of what arrived, or says how it ended. Locked.
func (st *Stream) pull() (bool, error) {
	if st.local && !st.headTaken && st.err == nil {
		return false, fault.New(opStream, fault.Internal, "link: Read before RecvHead")
	}
	if body := st.takeFirst(); len(body) > 0 {
		st.rest = body
		return true, nil
	}
	if c := st.q.Pop(); c != nil {
		n := int64(len(c.Bytes()))
		st.s.inbound.held -= n
		st.consume(n)
		st.cur = c
		return true, nil
	}
	switch {
	case st.recvEnded, st.recvStopped:
		return false, io.EOF
	case st.err != nil:
		return false, st.err
	}
	return false, nil
}

// advance consumes n bytes of what peek returned.
func (st *Stream) advance(n int) {
	if len(st.rest) > 0 {
		st.rest = st.rest[n:]
		return
	}
	st.cur.R += n
	if st.cur.R == st.cur.W {
		st.cur.Free()
		st.cur = nil
	}
}

// Trailer is what the peer ended its direction with. It is nil until Read has returned io.EOF,
// or RecvHead or First said that the body was complete.
func (st *Stream) Trailer() []byte {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if !st.recvEnded {
		return nil
	}
	return st.trailer
}
