package h1

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

const (
	opServe    fault.Op = "h1.server.Serve"
	opShutdown fault.Op = "h1.server.Shutdown"
)

// Server answers HTTP/1.0 and HTTP/1.1 on any number of listeners. Set the fields before the
// first Serve; the zero value of each, save Handler, is a sensible choice. A Server does not
// live again after Shutdown or Close.
type Server struct {
	// Handler answers one exchange, on the connection's own goroutine. A panic in it is
	// logged and costs that connection only.
	Handler func(*Exchange)

	// ReadHeaderTimeout bounds the time from a request's first byte (on a new connection:
	// from accepting it) to the end of its head. Default 10 s. Over it: 408 and close.
	ReadHeaderTimeout time.Duration

	// IdleTimeout is how long a connection may wait for its next request; it is kept to
	// within an eighth. Default 3 min, longer than the usual clients keep theirs, so that they
	// close first.
	IdleTimeout time.Duration

	// WriteTimeout is how long a write may make no progress at all before the connection is
	// given up; it is kept to within a half. A slow reader is never cut off while it reads,
	// except under TLS, where a write cannot be resumed and each 64 KiB have this long.
	// Default 30 s.
	WriteTimeout time.Duration

	// MaxHeaderBytes bounds request line and fields together. Default 64 KiB. Over it: 431,
	// a text body, and close.
	MaxHeaderBytes int

	// MaxConns bounds the connections held at once, over all listeners. Zero means no bound.
	// Over it: 503 and close.
	MaxConns int

	// H2, if set, is given a connection that opens with the HTTP/2 preface, with those bytes
	// still to be read, and owns it until it returns; the connection is then closed.
	// Shutdown waits for it and does not otherwise end it.
	H2 func(net.Conn)

	// Log hears of panics in Handler and failures of Accept. Default: nothing is logged.
	Log *slog.Logger

	once  sync.Once
	sweep sweeper
	date  dateLine
	drain atomic.Bool // Shutdown or Close began

	mu        sync.Mutex
	conns     map[*conn]struct{}        // guarded by mu
	listeners map[net.Listener]struct{} // guarded by mu
	empty     chan struct{}             // guarded by mu: closed when draining and no conns are left; nil until asked for
}

func (s *Server) prepare() {
	s.once.Do(func() {
		s.ReadHeaderTimeout = orDuration(s.ReadHeaderTimeout, 10*time.Second)
		s.IdleTimeout = orDuration(s.IdleTimeout, 3*time.Minute)
		s.WriteTimeout = orDuration(s.WriteTimeout, 30*time.Second)
		if s.MaxHeaderBytes <= 0 {
			s.MaxHeaderBytes = 64 << 10
		}
		if s.Log == nil {
			s.Log = slog.New(slog.DiscardHandler)
		}
		s.conns = map[*conn]struct{}{}
		s.listeners = map[net.Listener]struct{}{}
		s.sweep.timer = time.AfterFunc(time.Hour, func() { s.sweep.run(s) })
		s.sweep.timer.Stop()
	})
}

func orDuration(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

// Serve accepts connections from ln until Shutdown, Close or the end of ctx (which acts like
// Close), and returns nil after the last of its connections has ended. A listener that fails
// for good ends it with fault.Unavailable. ctx lends its values to every Exchange's context.
// Serve closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	s.prepare()
	if !s.open(ln) {
		_ = ln.Close()
		return nil
	}
	defer s.shut(ln)
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	// Close ends every exchange's context; hanging them all on ctx would do it twice.
	base := context.WithoutCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()

	for pause := time.Duration(0); ; {
		nc, err := ln.Accept()
		if err == nil {
			pause = 0
			if c := s.admit(base, nc); c != nil {
				running.Go(c.serve)
			}
			continue
		}
		if s.drain.Load() || ctx.Err() != nil {
			return nil
		}
		var ne net.Error
		//lint:ignore SA1019 it is what tells a lack of descriptors from a dead listener
		if !errors.As(err, &ne) || !ne.Temporary() {
			_ = s.Close()
			return fault.Wrap(opServe, fault.Unavailable, err)
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.Log.Warn("accept failed, trying again", "err", err, "pause", pause)
		time.Sleep(pause)
	}
}

func (s *Server) open(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drain.Load() {
		return false
	}
	s.listeners[ln] = struct{}{}
	return true
}

func (s *Server) shut(ln net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
	_ = ln.Close()
}

// admit makes a connection of nc, or turns it away and returns nil.
func (s *Server) admit(base context.Context, nc net.Conn) *conn {
	c := newConn(base, s, nc)
	s.mu.Lock()
	full := s.MaxConns > 0 && len(s.conns) >= s.MaxConns
	if !full && !s.drain.Load() {
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		return c
	}
	s.mu.Unlock()
	if full {
		// A fresh socket takes this much without blocking; the deadline is for the odd one.
		_ = nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = nc.Write(s.appendRefusal(nil, &refusal{503, "too many connections"}))
	}
	_ = nc.Close()
	return nil
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if len(s.conns) == 0 && s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
}

// Shutdown stops accepting, closes idle connections and waits until running exchanges have
// ended; their answers carry Connection: close. When ctx ends first it returns that error
// (fault.Deadline or fault.Canceled) and leaves the rest to Close. Safe to call twice.
func (s *Server) Shutdown(ctx context.Context) error {
	s.prepare()
	s.drain.Store(true)
	s.mu.Lock()
	for ln := range s.listeners {
		_ = ln.Close()
	}
	for c := range s.conns {
		c.closeIdle()
	}
	if len(s.conns) == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.empty == nil {
		s.empty = make(chan struct{})
	}
	empty := s.empty
	s.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return fault.Wrap(opShutdown, fault.Deadline, ctx.Err())
	}
}

// Close stops accepting and breaks every connection; contexts of running exchanges are
// cancelled. It does not wait: Serve does. Safe to call twice.
func (s *Server) Close() error {
	s.prepare()
	s.drain.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for ln := range s.listeners {
		_ = ln.Close()
	}
	for c := range s.conns {
		c.breakOff()
	}
	return nil
}

// appendRefusal writes a whole answer to a request that never became an exchange.
func (s *Server) appendRefusal(b []byte, r *refusal) []byte {
	b = appendStatusLine(b, r.status)
	text := string(b[len("HTTP/1.1 ") : len(b)-len("\r\n")])
	if r.reason != "" {
		text += ": " + r.reason
	}
	b = append(b, "Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"...)
	b = s.date.append(b)
	b = appendLength(b, int64(len(text)))
	b = append(b, '\r', '\n')
	return append(b, text...)
}
