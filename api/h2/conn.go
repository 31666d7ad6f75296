package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/api/wire"
	"github.com/mecha-project/mecha/components/fault"
)

// config is what both sides of a connection are made with; all fields are set.
type config struct {
	client        bool
	maxHeaderList int
	maxStreams    int           // the peer may open; 0 for a client
	window        int64         // received body bytes a stream may have unread
	connWindow    int64         // body bytes on the way at once, over all streams
	held          int64         // unread body bytes over all streams before the connection's window shrinks
	writeTimeout  time.Duration // for a piece of bytes to be taken by the network
	idle          time.Duration // without streams before the connection is left; 0: never
	pingAfter     time.Duration // silence with streams open before a ping; 0: no pings
	pingTimeout   time.Duration
	minPing       time.Duration // between a peer's pings; 0: any
	handler       func(*Stream)
	tooLarge      func(*Stream)
	left          func(*conn) // the connection takes no more streams; called once, without locks
	log           *slog.Logger
}

// conn is one connection, either side. Its life: start, reader and streams, then end, once,
// with a cause. All methods but the reader's are safe for concurrent use.
type conn struct {
	nc  net.Conn
	cfg *config

	// Of the reader goroutine.
	in      inbuf
	head    headIn
	fresh   []*Stream // requests whose handler was not started yet
	touched []*Stream // streams whose reader is to be woken before the next read
	replied bool      // the reader added frames

	reads   atomic.Uint64 // of the socket: a sign of life
	work    chan *Stream  // hands streams to parked workers
	parked  atomic.Int32  // workers waiting on work
	io      sync.WaitGroup
	calls   sync.WaitGroup
	done    chan struct{} // closed when the connection is over
	ready   chan struct{} // closed when the peer's settings are known
	leaving sync.Once     // cfg.left

	mu       sync.Mutex // guards everything below and the shared fields of streams
	streams  map[uint32]*Stream
	handlers int    // running, or waiting to; those of dead streams included
	nextID   uint32 // of the next stream we open
	lastPeer uint32 // highest id the peer opened
	opened   uint64 // streams ever, for the idle timer
	cause    error  // why the connection is over; nil while it lives
	away     goaway
	out      outbox
	enc      encoder
	abuse    abuse

	// Flow control. sendAvail may not go below zero, a stream's may.
	sendAvail int64
	recvAvail int64 // the peer's view of our window
	held      int64 // received and unread

	// What the peer said in SETTINGS.
	peerWindow  int64 // initial window of a stream
	peerFrame   int   // largest frame it takes
	peerStreams int   // streams we may have open
	settled     bool  // its first SETTINGS came

	alive liveness
}

// goaway is the state of leaving, in both directions.
type goaway struct {
	announced bool // we said that we will leave
	closed    bool // we accept no more streams
	last      uint32
	token     uint64 // of the ping whose answer lets us close; 0 if none is awaited
	peer      bool   // the peer accepts no more
	peerLast  uint32
	peerErr   *ConnError // why, if not in order
}

const opConn fault.Op = "h2.conn"

func newConn(nc net.Conn, cfg *config) *conn {
	c := &conn{
		nc: nc, cfg: cfg, nextID: 1, streams: make(map[uint32]*Stream),
		work: make(chan *Stream), done: make(chan struct{}), ready: make(chan struct{}),
		sendAvail: initialFlow, recvAvail: cfg.connWindow, peerWindow: initialFlow, peerFrame: maxFrame, peerStreams: maxID,
	}
	c.in = inbuf{src: nc, pause: c.pause, buf: make([]byte, readBuffer)}
	c.head.init(cfg.client, cfg.maxHeaderList)
	c.enc.init()
	c.out.write = wire.Nonblocking(nc)
	return c
}

// start sends what a connection begins with and lets the reader run. prefix was read from the
// connection before.
func (c *conn) start(prefix []byte) {
	if len(prefix) > len(c.in.buf) {
		c.in.buf = make([]byte, len(prefix)+readBuffer)
	}
	c.in.w = copy(c.in.buf, prefix)
	c.mu.Lock()
	c.greet()
	c.watchIdle()
	c.io.Add(1)
	c.mu.Unlock()
	c.replied = true // the greeting leaves at the reader's first pause
	go c.read()
}

// greet adds preface and settings. Locked.
func (c *conn) greet() {
	b := c.out.pending
	settings := []setting{{settingInitialWindow, uint32(c.cfg.window)}, {settingMaxHeaderList, uint32(c.cfg.maxHeaderList)}}
	if c.cfg.client {
		b = append(b, preface...)
		settings = append(settings, setting{settingPush, 0})
	} else {
		settings = append(settings, setting{settingMaxStreams, uint32(c.cfg.maxStreams)})
	}
	b = appendSettings(b, settings...)
	if extra := c.cfg.connWindow - initialFlow; extra > 0 {
		b = appendWindow(b, 0, extra)
	}
	c.out.pending = b
}

// usable reports whether a new stream may succeed.
func (c *conn) usable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause == nil && !c.away.announced && !c.away.peer
}

// end makes the connection be over, once. It does not wait for goroutines.
func (c *conn) end(cause error) {
	c.mu.Lock()
	if c.cause != nil {
		c.mu.Unlock()
		return
	}
	inFlight, spoke := len(c.streams), c.settled
	if c.out.finishing || (c.away.closed && inFlight == 0) {
		cause = net.ErrClosed // it was leaving and had nothing left to do
	}
	var ours *ConnError
	if c.away.peerErr != nil && !errors.Is(cause, net.ErrClosed) && !errors.As(cause, &ours) {
		cause = c.away.peerErr // it said why before it hung up
	}
	c.cause = cause
	c.alive.stop()
	for _, st := range c.streams {
		st.fail(c.lost(st.sent()))
	}
	clear(c.streams)
	c.out.abandon()
	close(c.done)
	c.mu.Unlock()
	_ = c.nc.Close()
	c.tellLeft()
	c.report(cause, inFlight, spoke)
}

// tellLeft says, once, that the connection takes no more streams.
func (c *conn) tellLeft() {
	if c.cfg.left != nil {
		c.leaving.Do(func() { c.cfg.left(c) })
	}
}

// report logs what an operator would want to know: orderly ends are not among it, nor strangers
// that never spoke HTTP/2.
func (c *conn) report(cause error, inFlight int, spoke bool) {
	if errors.Is(cause, net.ErrClosed) || (cause == io.EOF && inFlight == 0) {
		return
	}
	var ce *ConnError
	level := slog.LevelDebug
	if errors.As(cause, &ce) && spoke {
		level = slog.LevelWarn
	}
	c.cfg.log.Log(context.Background(), level, "HTTP/2 connection lost", "peer", c.peerName(), "err", cause.Error(), "streams", inFlight)
}

// breach ends the connection because the peer broke the rules, and tells it so if the network
// takes that at once. Only the reader calls it.
func (c *conn) breach(ce *ConnError) {
	c.mu.Lock()
	if c.cause == nil {
		c.out.pending = appendGoaway(c.out.pending, c.lastPeer, ce.Code, ce.Text)
	}
	c.mu.Unlock()
	for range 20 { // somebody else may be writing just now
		c.mu.Lock()
		mine, written := c.claimFlush(), len(c.out.pending) == 0
		c.mu.Unlock()
		if mine {
			c.flushOnce()
		}
		if mine || written {
			break
		}
		time.Sleep(time.Millisecond)
	}
	c.end(ce)
}

// lost is the error of a stream whose connection is over. Locked.
func (c *conn) lost(sent fault.Sent) *fault.Error {
	cause := c.cause
	switch {
	case cause == io.EOF:
		cause = errPeerClosed
	case errors.Is(cause, net.ErrClosed):
		cause = errClosed
	}
	if !c.cfg.client {
		return fault.New(opConn, fault.Canceled, "the caller's connection is gone").Because(cause)
	}
	return fault.New(opConn, fault.Unavailable, "the connection to %s is gone", c.peerName()).WithSent(sent).Because(cause)
}

var (
	errPeerClosed = fmt.Errorf("the peer closed it: %w", io.EOF)
	errClosed     = fmt.Errorf("it was closed here: %w", net.ErrClosed)
)

func (c *conn) peerName() string {
	if a := c.nc.RemoteAddr(); a != nil && a.String() != "" {
		return a.String()
	}
	return "peer"
}

// wait blocks until the connection is over and every goroutine it started has ended.
func (c *conn) wait() {
	<-c.done
	c.io.Wait()
	c.calls.Wait()
}

// announce begins to leave in order: the peer is told to open no more streams, and accepted
// until the answer to a ping shows that it knows. Streams run to their end; then the
// connection closes.
func (c *conn) announce() {
	c.mu.Lock()
	flush := false
	if c.cause == nil && !c.away.announced {
		c.away.announced = true
		c.out.pending = appendGoaway(c.out.pending, maxID, NoError, "")
		c.away.token = c.nextToken()
		c.out.pending = appendPing(c.out.pending, 0, c.away.token)
		flush = c.claimFlush()
		const patience = time.Second // a peer that does not answer loses that courtesy
		time.AfterFunc(patience, c.closeDoor)
	}
	c.mu.Unlock()
	c.flushIf(flush)
}

// closeDoor is the second half of leaving.
func (c *conn) closeDoor() {
	c.mu.Lock()
	c.closeDoorLocked()
	flush := c.claimFlush()
	c.mu.Unlock()
	c.flushIf(flush)
}

func (c *conn) closeDoorLocked() {
	if c.cause != nil || c.away.closed {
		return
	}
	c.away.announced, c.away.closed, c.away.last, c.away.token = true, true, c.lastPeer, 0
	c.out.pending = appendGoaway(c.out.pending, c.lastPeer, NoError, "")
	c.leaveIfEmpty()
}

// leaveIfEmpty goes on with leaving when no stream is left. Locked; the connection lives.
func (c *conn) leaveIfEmpty() {
	if len(c.streams) > 0 || c.out.finishing || !(c.away.closed || c.away.peer) {
		return
	}
	c.out.finishing = true
	c.io.Add(1)
	go func() { // the caller holds the lock and may be the reader
		defer c.io.Done()
		c.finish()
	}()
}

// finish closes a connection without streams once everything pending is written.
func (c *conn) finish() {
	c.mu.Lock()
	mine := !c.out.flushing && c.cause == nil
	if mine {
		c.out.flushing = true
	}
	c.mu.Unlock()
	c.flushIf(mine)
}

// hangUp is finish's last step: half-close and let the peer hang up, because closing with
// unread bytes resets the connection and may destroy what we wrote last.
func (c *conn) hangUp() {
	c.mu.Lock()
	again := c.out.hung
	c.out.hung = true
	c.mu.Unlock()
	if again {
		return
	}
	c.tellLeft()
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		c.end(net.ErrClosed)
		return
	}
	const patience = time.Second
	_ = c.nc.SetReadDeadline(time.Now().Add(patience)) // the reader ends at the latest then
}

// remove forgets a stream. Locked.
func (c *conn) remove(st *Stream) {
	if c.streams[st.id] != st {
		return
	}
	delete(c.streams, st.id)
	c.leaveIfEmpty()
}
