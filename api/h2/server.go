package h2

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// Defaults of Server and Client.
const (
	DefaultMaxHeaderList = 16 << 10        // bytes, counted as SETTINGS_MAX_HEADER_LIST_SIZE does
	DefaultMaxStreams    = 1000            // of a connection
	DefaultWindow        = 256 << 10       // bytes a stream may have unread
	DefaultConnWindow    = 1 << 20         // bytes a connection may have on the way
	DefaultHeld          = 16 << 20        // unread bytes of a connection's streams together
	DefaultIdleTimeout   = 3 * time.Minute // without streams
	DefaultWriteTimeout  = 30 * time.Second
)

// Keepalive says how a server and its clients make sure that the other lives. The zero value
// is what gRPC clients of a sidecar expect; a negative duration turns a part off.
type Keepalive struct {
	// MinClientPing is how far apart a client's pings must be, with or without streams: 8 s. A
	// client that pings more often is left with ENHANCE_YOUR_CALM and "too_many_pings". Pings in
	// answer to a header or body are free.
	MinClientPing time.Duration
	// After is how long a client may be silent while streams are open before it is pinged: 10 s.
	After time.Duration
	// Timeout is how long it may take to answer: 5 s.
	Timeout time.Duration
}

// Server answers HTTP/2 connections. Its fields must not change once it serves. Methods are
// safe for concurrent use.
type Server struct {
	// Handler answers a stream: with Respond, or SendHeaders, Write and CloseSend. One that
	// returns without ending its answer resets the stream. It runs on a goroutine of its own;
	// a panic is its stream's failure only.
	Handler func(*Stream)
	// TooLarge answers a request whose header is over MaxHeaderList and was cut there. Nil
	// answers with status 431.
	TooLarge func(*Stream)

	MaxHeaderList int           // bytes; 0: DefaultMaxHeaderList
	MaxStreams    int           // open on a connection, or still handled; more are refused; 0: DefaultMaxStreams
	Window        int           // bytes a stream may have unread; 0: DefaultWindow
	ConnWindow    int           // bytes a connection may have on the way; 0: DefaultConnWindow
	IdleTimeout   time.Duration // without streams, then the client is left in order; 0: DefaultIdleTimeout, below: never
	WriteTimeout  time.Duration // for the network to take a piece of an answer; 0: DefaultWriteTimeout
	Keepalive     Keepalive
	Log           *slog.Logger // nil: slog.Default

	once sync.Once
	cfg  config

	mu        sync.Mutex
	conns     map[*conn]struct{}        // guarded by mu
	listeners map[net.Listener]struct{} // guarded by mu
	closing   bool                      // guarded by mu: no new connections
	serving   sync.WaitGroup            // of ServeConn
}

func (s *Server) init() {
	s.conns, s.listeners = map[*conn]struct{}{}, map[net.Listener]struct{}{}
	s.cfg = config{
		maxHeaderList: or(s.MaxHeaderList, DefaultMaxHeaderList), maxStreams: or(s.MaxStreams, DefaultMaxStreams),
		window: int64(or(s.Window, DefaultWindow)), connWindow: max(int64(or(s.ConnWindow, DefaultConnWindow)), initialFlow), held: DefaultHeld,
		writeTimeout: or(s.WriteTimeout, DefaultWriteTimeout), idle: or(s.IdleTimeout, DefaultIdleTimeout),
		pingAfter: or(s.Keepalive.After, 10*time.Second), pingTimeout: or(s.Keepalive.Timeout, 5*time.Second),
		minPing: or(s.Keepalive.MinClientPing, 8*time.Second),
		handler: s.Handler, tooLarge: s.TooLarge, log: s.Log,
	}
	if s.cfg.tooLarge == nil {
		s.cfg.tooLarge = func(st *Stream) { _ = st.Respond(431, nil, nil, nil) }
	}
	if s.cfg.log == nil {
		s.cfg.log = slog.Default()
	}
}

func or[T int | time.Duration](v, preset T) T {
	if v == 0 {
		return preset
	}
	return v
}

const opServer fault.Op = "h2.Serve"

// Serve accepts connections on l until Drain, Close or the end of ctx, then returns nil. It
// closes l; connections live on.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.once.Do(s.init)
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		_ = l.Close()
		return nil
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer func() {
		stop()
		_ = l.Close()
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for {
		nc, err := l.Accept()
		if err == nil {
			if c := s.admit(nc, nil); c != nil {
				go s.run(c)
			}
			continue
		}
		if s.isClosing() || ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		var temporary interface{ Temporary() bool }
		if !errors.As(err, &temporary) || !temporary.Temporary() {
			return fault.Wrap(opServer, fault.Unavailable, err)
		}
		time.Sleep(20 * time.Millisecond) // out of descriptors: leave room to recover
	}
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// ServeConn serves one connection and returns when it is over and its handlers have returned.
// prefix was read from it before, beginning with the preface. It owns nc.
func (s *Server) ServeConn(nc net.Conn, prefix []byte) {
	s.once.Do(s.init)
	if c := s.admit(nc, prefix); c != nil {
		s.run(c)
	}
}

// admit takes a connection over; nil if the server is closing.
func (s *Server) admit(nc net.Conn, prefix []byte) *conn {
	c := newConn(nc, &s.cfg)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		_ = nc.Close()
		return nil
	}
	s.conns[c] = struct{}{}
	s.serving.Add(1)
	c.start(prefix)
	return c
}

// run returns when a connection is over and its handlers have returned.
func (s *Server) run(c *conn) {
	defer s.serving.Done()
	c.wait()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// stop closes listeners and returns the connections there are.
func (s *Server) stop() []*conn {
	s.once.Do(s.init)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	for l := range s.listeners {
		_ = l.Close()
	}
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

// Drain stops accepting, tells clients to leave, and lets streams run to their end. If ctx
// ends first it breaks them, waits for handlers to return and returns fault.Deadline or
// fault.Canceled.
func (s *Server) Drain(ctx context.Context) error {
	all := s.stop()
	for _, c := range all {
		c.announce()
	}
	var cut error
	for _, c := range all {
		select {
		case <-c.done:
		case <-ctx.Done():
			cut = fault.Wrap("h2.Drain", fault.Deadline, ctx.Err())
			c.end(net.ErrClosed)
		}
	}
	for _, c := range all {
		c.wait()
	}
	s.serving.Wait()
	return cut
}

// Close ends everything at once and waits for handlers to return; their contexts are cancelled.
func (s *Server) Close() error {
	for _, c := range s.stop() {
		c.end(net.ErrClosed)
	}
	s.serving.Wait()
	return nil
}
