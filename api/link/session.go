package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// Session is one connection carrying many streams. All methods are safe for concurrent use.
//
// A session ends once: by Close, after Drain, when the connection fails, when the peer breaks
// the protocol or stays silent. Done tells; streams then in flight fail with
// fault.Unavailable and say whether the peer can have seen them.
type Session struct {
	conn    net.Conn
	cfg     Config
	dialled bool // we sent HELLO; our stream ids are odd
	version uint16

	peerGreeting []byte
	// What the peer accepts; fixed after the handshake.
	sendFrame, sendHead, sendStreams int
	sendWindow                       int64 // initial credit of a stream

	in      inbuf        // reader goroutine only
	rtt     atomic.Int64 // ns; zero until measured
	work    chan *Stream // hands streams to parked workers; closed by the reader
	parked  atomic.Int32 // workers waiting on work
	running atomic.Int32 // handlers that have not returned
	io      sync.WaitGroup
	calls   sync.WaitGroup
	done    chan struct{} // closed when the session is over

	mu       sync.Mutex // guards everything below and the shared fields of streams
	streams  map[uint64]*Stream
	nextID   uint64 // of the next stream we open
	lastPeer uint64 // highest id the peer opened
	ours     int    // streams we opened
	theirs   int    // streams the peer opened
	cause    error  // why the session is over; nil while it lives

	away       goaway // what we told the peer, and what it told us
	out        outbox
	inbound    inflow
	sendCredit int64 // body bytes the peer still accepts on this session
	alive      liveness
	count      counters
}

// goaway is the state of leaving, in both directions.
type goaway struct {
	draining bool          // we open no more streams
	closed   bool          // we accept no more streams
	empty    chan struct{} // closed when draining and no stream is left
	peer     bool          // the peer accepts no more
	peerLast uint64        // goawayAll while it only announced
	peerText string
}

// counters are totals since the session began.
type counters struct {
	framesIn, bytesIn, framesOut uint64
	opened, accepted, refused    uint64
}

// Stats is a snapshot of a session. Totals count from its start.
type Stats struct {
	Streams             int           // open now, both directions
	Handlers            int           // handlers running now
	Opened, Accepted    uint64        // streams opened by us, and by the peer
	Refused             uint64        // streams of the peer refused for a limit
	FramesIn, FramesOut uint64        // after the handshake
	BytesIn, BytesOut   uint64        // with frame headers, without what is below the framing
	Pending             int           // bytes encoded and not yet given to the connection
	Inflight            int64         // bytes of heads and bodies received and not yet consumed
	RTT                 time.Duration // smoothed round trip; zero until measured
	ProtocolError       bool          // the session ended because the peer broke the rules
}

const opSession fault.Op = "link.session"

// NewClient starts a session on a connection we dialled. It performs the handshake, at most
// HandshakeTimeout long, and owns conn from the call on: on error conn is closed.
func NewClient(conn net.Conn, cfg Config) (*Session, error) {
	return start(conn, cfg, true)
}

// NewServer starts a session on a connection we accepted; otherwise like NewClient. A peer
// refused by Check or by its version is told why before the connection is closed.
func NewServer(conn net.Conn, cfg Config) (*Session, error) {
	return start(conn, cfg, false)
}

func start(conn net.Conn, cfg Config, dialled bool) (*Session, error) {
	cfg, err := cfg.filled()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	s := &Session{
		conn: conn, cfg: cfg, dialled: dialled, nextID: 2,
		work: make(chan *Stream), done: make(chan struct{}), streams: make(map[uint64]*Stream),
	}
	if dialled {
		s.nextID = 1
	}
	s.in = inbuf{src: conn, buf: make([]byte, max(readBuffer, len(cfg.Prefix)))}
	s.in.w = copy(s.in.buf, cfg.Prefix)
	s.away.empty = make(chan struct{})
	s.inbound.init(&cfg)
	s.out.init(conn)
	if err := s.handshake(); err != nil {
		_ = conn.Close()
		return nil, err
	}
	s.io.Add(1)
	go s.read()
	return s, nil
}

func (s *Session) handshake() error {
	if err := s.conn.SetDeadline(time.Now().Add(s.cfg.HandshakeTimeout)); err != nil {
		return s.handshakeFailed(err)
	}
	greet := s.greetClient
	if s.dialled {
		greet = s.greetServer
	}
	if err := greet(); err != nil {
		return err
	}
	if err := s.conn.SetDeadline(time.Time{}); err != nil {
		return s.handshakeFailed(err)
	}
	return nil
}

// PeerGreeting is what the peer put in its Config.Greeting. The caller must not change it.
func (s *Session) PeerGreeting() []byte { return s.peerGreeting }

// Version is the framing version both sides agreed on.
func (s *Session) Version() int { return int(s.version) }

// Conn is the connection below, for its addresses and its TLS state only.
func (s *Session) Conn() net.Conn { return s.conn }

// Done is closed when the session is over; Err then says why.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is nil while the session lives. Afterwards it is fault.Unavailable with the cause:
// io.EOF if the peer left in order, net.ErrClosed after Close or Drain, a *ProtocolError, or
// the connection's error.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == nil {
		return nil
	}
	return s.lost(fault.SentUnknown)
}

// Usable reports whether Open may succeed: the session lives and neither side is leaving.
func (s *Session) Usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause == nil && !s.away.draining && !s.away.peer
}

// Stats returns the session's figures.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	var perr *ProtocolError
	return Stats{
		Streams: len(s.streams), Handlers: int(s.running.Load()),
		Opened: s.count.opened, Accepted: s.count.accepted, Refused: s.count.refused,
		FramesIn: s.count.framesIn, FramesOut: s.count.framesOut, BytesIn: s.count.bytesIn, BytesOut: s.out.handed,
		Pending: len(s.out.pending), Inflight: s.inbound.held, RTT: time.Duration(s.rtt.Load()),
		ProtocolError: errors.As(s.cause, &perr),
	}
}

// Close ends the session at once: streams in flight fail on both sides. It waits for the
// session's own goroutines, not for handlers, whose contexts are cancelled; Wait does that.
func (s *Session) Close() error {
	s.end(net.ErrClosed)
	s.io.Wait()
	return nil
}

// Wait blocks until the session is over and every goroutine it started has ended, handlers included.
func (s *Session) Wait() {
	<-s.done
	s.io.Wait()
	s.calls.Wait()
}

// Drain leaves in order: the peer is told to open no more streams, streams in flight run to
// their end, then the session closes. If ctx ends first the rest is cut off and the error is
// fault.Deadline or fault.Canceled. Draining a session that is over returns nil.
func (s *Session) Drain(ctx context.Context) error {
	s.announce()
	// The peer's pong follows every stream it opened before it read the announcement; a peer
	// that does not answer soon loses that courtesy.
	wait, cancel := context.WithTimeout(ctx, time.Second)
	_, _ = s.Ping(wait)
	cancel()

	s.mu.Lock()
	if s.cause == nil && !s.away.closed {
		s.away.closed = true
		s.out.pending = appendGoaway(s.out.pending, s.lastPeer, fault.OK, "draining")
		s.count.framesOut++
		s.leaveIfEmpty()
	}
	flush := s.claimFlush()
	s.mu.Unlock()
	s.flushIf(flush)

	select {
	case <-s.away.empty:
		s.finish()
		<-s.done
		s.io.Wait()
		return nil
	case <-s.done:
		s.io.Wait()
		return nil
	case <-ctx.Done():
		s.end(fmt.Errorf("drain was cut off: %w", net.ErrClosed))
		s.io.Wait()
		return fault.Wrap("link.drain", fault.Deadline, fmt.Errorf("link: streams to %s were still open when the time to drain was over: %w", s.peerName(), ctx.Err()))
	}
}

// announce is the first half of leaving: nothing is refused yet.
func (s *Session) announce() {
	s.mu.Lock()
	if s.cause == nil && !s.away.draining {
		s.away.draining = true
		s.out.pending = appendGoaway(s.out.pending, goawayAll, fault.OK, "draining")
		s.count.framesOut++
	}
	flush := s.claimFlush()
	s.mu.Unlock()
	s.flushIf(flush)
}

// finish closes a session without streams once everything pending is written.
func (s *Session) finish() {
	s.mu.Lock()
	s.out.finishing = true
	mine := !s.out.flushing && s.cause == nil
	if mine {
		s.out.flushing = true
	}
	s.mu.Unlock()
	s.flushIf(mine)
}

// hangUp is finish's last step: half-close and let the peer hang up, because closing with
// unread bytes resets the connection and may destroy what we wrote last.
func (s *Session) hangUp() {
	s.mu.Lock()
	again := s.out.hung
	s.out.hung = true
	s.mu.Unlock()
	if again {
		return
	}
	half, ok := s.conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		s.end(net.ErrClosed)
		return
	}
	const patience = time.Second
	_ = s.conn.SetReadDeadline(time.Now().Add(patience)) // the reader ends at the latest then
}

// end makes the session be over, once. It does not wait for goroutines.
func (s *Session) end(cause error) {
	s.mu.Lock()
	if s.cause != nil {
		s.mu.Unlock()
		return
	}
	inFlight := len(s.streams)
	if s.out.finishing || (s.away.closed && inFlight == 0) {
		cause = net.ErrClosed // whatever ended it, it was leaving and had nothing left to do
	}
	s.cause = cause
	s.alive.stop()
	maybe, never := s.lost(fault.SentMaybe), s.lost(fault.SentNever)
	for _, st := range s.streams {
		if st.local && st.mark >= s.out.handed {
			st.fail(never)
		} else {
			st.fail(maybe)
		}
	}
	clear(s.streams)
	s.ours, s.theirs = 0, 0
	for st := s.out.metaLine.first; st != nil; st = st.next {
		wake(st.wsig) // not opened yet, so not among the streams
	}
	s.out.abandon()
	s.alive.abandon()
	close(s.done)
	s.mu.Unlock()
	_ = s.conn.Close()
	s.report(cause, inFlight)
}

// report logs the end of a session that broke; orderly ends are the edges' business.
func (s *Session) report(cause error, inFlight int) {
	if errors.Is(cause, net.ErrClosed) || (cause == io.EOF && inFlight == 0) {
		return
	}
	s.cfg.Log.Warn("link session lost", "target", s.peerName(), "err", cause.Error(), "streams", inFlight)
}

// breach ends the session because the peer broke the rules, and tells it so if the connection
// takes it at once. Only the reader calls it.
func (s *Session) breach(perr *ProtocolError) {
	s.mu.Lock()
	flush := false
	if s.cause == nil {
		s.out.pending = appendGoaway(s.out.pending, s.lastPeer, fault.Invalid, perr.Error())
		s.count.framesOut++
		flush = s.claimFlush()
	}
	s.mu.Unlock()
	if flush {
		s.flushOnce()
	}
	s.end(perr)
}

// lost is the error of a stream or an Open on a session that is over. The caller holds mu.
func (s *Session) lost(sent fault.Sent) *fault.Error {
	e := fault.New(opSession, fault.Unavailable, "link: session with %s is over", s.peerName()).WithSent(sent)
	if s.cause == io.EOF {
		return e.Because(errPeerClosed)
	}
	return e.Because(s.cause)
}

// errPeerClosed says in words what io.EOF means here. It does not wrap io.EOF: a reader of a
// body would take the loss of the connection for the body's end.
var errPeerClosed = fmt.Errorf("the peer closed the connection: %w", io.ErrUnexpectedEOF)

func (s *Session) peerName() string {
	if a := s.conn.RemoteAddr(); a != nil && a.String() != "" {
		return a.String()
	}
	return "peer"
}

// remove forgets a stream, locked.
func (s *Session) remove(st *Stream) {
	if s.streams[st.id] != st {
		return
	}
	delete(s.streams, st.id)
	if st.local {
		s.ours--
	} else {
		s.theirs--
	}
	s.leaveIfEmpty()
}

// leaveIfEmpty goes on with leaving when no stream is left: Drain waits for it if we leave, a
// goroutine hangs up if the peer does. Locked; the session lives.
func (s *Session) leaveIfEmpty() {
	if len(s.streams) > 0 {
		return
	}
	if s.away.closed {
		select {
		case <-s.away.empty:
		default:
			close(s.away.empty)
		}
	} else if s.away.peer && s.away.peerLast != goawayAll && !s.out.finishing {
		s.out.finishing = true
		s.io.Add(1)
		go func() { // the caller holds the lock and may be the reader
			defer s.io.Done()
			s.finish()
		}()
	}
}
