package h1

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// preface opens every HTTP/2 connection (RFC 9113 section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	drainLimit = 256 << 10 // bytes of an unread request body worth reading to keep a connection
	drainTime  = 500 * time.Millisecond
	lingerTime = 500 * time.Millisecond // for the answer to be read before unread bytes reset it away
	lingerMax  = 16 << 20               // four bodies of the default limit: clients that write it all before they read
)

// States of a server connection.
const (
	connIdle   int32 = iota // waiting for a request's first byte; Shutdown may close it
	connActive              // from that byte to the end of the answer
	connShut                // closed while idle
)

// conn is one server connection. Its goroutine (serve) owns everything that is not
// documented as shared.
type conn struct {
	srv  *Server
	base context.Context
	nc   net.Conn
	rd   reader
	head requestHead
	ex   Exchange

	state atomic.Int32 // shared with Shutdown
	began atomic.Int64 // shared with the sweeper: when the exchange began, ns; 0 outside
	lost  atomic.Bool  // shared: the caller has gone
	ctx   atomic.Pointer[exchangeContext]
	peek  peeker // the sweeper's
	keep  bool   // another request may follow
	taken bool   // hijacked, or handed to H2

	deadline int64 // read deadline in force, ns; 0 none, -1 unknown. Guarded by bodyMu during an exchange

	bodyMu sync.Mutex // guards body, deadline and rd during an exchange
	body   body
	gen    atomic.Uint64 // exchange number; a request body of another number is stale

	kickMu sync.Mutex // orders a kick of the body's reader before the end of its exchange
	kicked bool       // guarded by kickMu: the read deadline may be past

	writer
}

func newConn(base context.Context, s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, base: base, nc: nc}
	c.peek.watch(nc)
	c.rd.src = nc
	c.ex.c = c
	c.writer.init(nc, s.WriteTimeout)
	return c
}

// serve runs the connection's life.
func (c *conn) serve() {
	defer c.end()
	for first := true; ; first = false {
		size, ok := c.awaitHead(first)
		if !ok || !c.exchange(size) {
			return
		}
	}
}

func (c *conn) end() {
	if !c.taken {
		_ = c.nc.Close()
	}
	c.rd.drop()
	c.srv.forget(c)
}

// closeIdle closes the connection if no request is in progress.
func (c *conn) closeIdle() {
	if c.state.CompareAndSwap(connIdle, connShut) {
		_ = c.nc.Close()
	}
}

// breakOff ends the connection whatever it does.
func (c *conn) breakOff() {
	c.callerGone()
	_ = c.nc.Close()
}

// callerGone cancels the exchange's context. Safe from any goroutine.
func (c *conn) callerGone() {
	c.lost.Store(true)
	if ctx := c.ctx.Load(); ctx != nil {
		ctx.end()
	}
}

// look is the sweeper's check of a long exchange.
func (c *conn) look() {
	if c.peek.peeked() == gone && c.began.Load() != 0 {
		c.callerGone()
	}
}

// awaitHead reads until a whole head is buffered and returns its size.
func (c *conn) awaitHead(first bool) (size int, ok bool) {
	if c.rd.size() == 0 && !c.awaitFirstByte(first) {
		return 0, false
	}
	timed := first
	for scanned := 0; ; {
		if first && c.srv.H2 != nil && c.speaksH2() {
			if c.rd.size() >= len(preface) {
				c.handOver()
				return 0, false
			}
		} else {
			if scanned == 0 {
				c.skipBlank()
			}
			size, err := c.rd.scanHead(scanned, c.srv.MaxHeaderBytes)
			if err != nil {
				c.refuseHead(err)
				return 0, false
			}
			if size > 0 {
				return size, true
			}
			scanned = c.rd.size()
		}
		if !timed {
			timed = true
			c.setReadDeadline(time.Now().Add(c.srv.ReadHeaderTimeout))
		}
		if err := c.rd.fillMore(c.srv.MaxHeaderBytes); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.refuse(&refusal{408, "the request head did not arrive in time"})
			}
			return 0, false
		}
	}
}

// awaitFirstByte parks the connection until a request begins.
func (c *conn) awaitFirstByte(first bool) bool {
	c.rd.acquire()
	if first {
		c.setReadDeadline(time.Now().Add(c.srv.ReadHeaderTimeout))
	} else {
		c.armIdle()
		c.state.Store(connIdle)
	}
	if c.srv.drain.Load() { // Shutdown may have looked before the state was idle
		return false
	}
	return c.rd.fill() == nil && c.state.CompareAndSwap(connIdle, connActive)
}

// armIdle makes the read deadline lie between one and 9/8 idle times ahead. Moving it on
// every request would cost more than parsing the request does.
func (c *conn) armIdle() {
	now, idle := time.Now(), c.srv.IdleTimeout
	if ahead := c.deadline - now.UnixNano(); c.deadline <= 0 || ahead < int64(idle) || ahead > int64(idle+idle/8) {
		c.setReadDeadline(now.Add(idle + idle/8))
	}
}

func (c *conn) setReadDeadline(t time.Time) {
	c.deadline = 0
	if !t.IsZero() {
		c.deadline = t.UnixNano()
	}
	_ = c.nc.SetReadDeadline(t)
}

// skipBlank drops one empty line before a request, which old clients send after a body.
func (c *conn) skipBlank() {
	if bytes.HasPrefix(c.rd.unread(), crlfcrlf[:2]) {
		c.rd.r += 2
	}
}

// speaksH2 reports whether what has arrived is the HTTP/2 preface or a beginning of it.
func (c *conn) speaksH2() bool {
	p := c.rd.unread()
	n := min(len(p), len(preface))
	return string(p[:n]) == preface[:n]
}

func (c *conn) handOver() {
	c.setReadDeadline(time.Time{})
	c.taken = true
	c.srv.H2(&replayConn{Conn: c.nc, pre: bytes.Clone(c.rd.unread())})
	_ = c.nc.Close()
}

func (c *conn) refuseHead(err error) {
	if errors.Is(err, errHeadTooLarge) {
		c.refuse(&refusal{status: 431})
		return
	}
	c.refuse(bad(err.Error()))
}

// refuse answers a request that cannot be parsed; the connection ends with it.
func (c *conn) refuse(r *refusal) {
	c.mu.Lock()
	err := c.send(c.srv.appendRefusal(nil, r), nil, nil)
	c.mu.Unlock()
	if err == nil {
		c.linger()
	}
}

// linger lets the other side read our last words: closing with unread bytes in the queue
// resets the connection, and a reset may overtake the answer.
func (c *conn) linger() {
	if h, ok := c.nc.(interface{ CloseWrite() error }); !ok || h.CloseWrite() != nil {
		return
	}
	c.setReadDeadline(time.Now().Add(lingerTime))
	c.rd.r, c.rd.w = 0, 0
	for n := 0; n < lingerMax; {
		m, err := c.nc.Read(c.rd.buf)
		n += m
		if err != nil {
			return
		}
	}
}

// exchange handles the request whose head is the next size bytes. It reports whether the
// connection lives on.
func (c *conn) exchange(size int) bool {
	// The one conversion: every string of the request is a part of this one.
	text := string(c.rd.buf[c.rd.r : c.rd.r+size-2])
	c.rd.r += size
	if r := c.head.parse(text); r != nil {
		c.refuse(r)
		return false
	}
	h := &c.head
	switch {
	case h.chunked:
		c.body.reset(&c.rd, bodyChunked, 0)
	default:
		c.body.reset(&c.rd, bodyFixed, max(0, h.length))
	}
	c.keep = !h.closes && (h.minor == 1 || h.keeps)
	c.ex.begin()

	// A request already waiting behind this one means that the caller may have half-closed
	// after writing everything; that is not leaving, and the queue cannot tell.
	pipelined := !h.chunked && int64(c.rd.size()) > max(0, h.length)
	if !pipelined {
		c.began.Store(time.Now().UnixNano())
	}
	c.srv.sweep.begin()
	c.handle()
	if c.began.Store(0); !c.taken {
		c.srv.sweep.end()
	}
	alive := c.settle()
	if ctx := c.ctx.Swap(nil); ctx != nil {
		ctx.end()
	}
	c.ex.finish()
	if cap(h.fields) > 128 {
		h.fields = nil
	}
	return alive
}

// handle runs the handler and survives its panic.
func (c *conn) handle() {
	defer func() {
		if p := recover(); p != nil {
			c.srv.Log.Error("handler panicked", "panic", p, "method", c.head.method, "stack", string(debug.Stack()))
			if c.ex.untouched() {
				c.keep = false
				_ = c.ex.Respond(500, nil, nil)
			}
		}
	}()
	c.srv.Handler(&c.ex)
}

// settle makes sure the exchange ended properly and decides whether the connection can carry
// another one.
func (c *conn) settle() bool {
	c.seizeBody()
	defer c.bodyMu.Unlock()
	if c.taken {
		return false
	}
	if c.ex.untouched() {
		_ = c.ex.Respond(500, nil, []byte("the handler gave no answer\n"))
	}
	switch {
	case c.lost.Load() && c.ex.complete():
		return false
	case !c.ex.complete():
		c.ex.truncate()
		return false
	}
	if c.finishBody() {
		return c.keep
	}
	c.linger()
	return false
}

// seizeBody takes the request body away from whoever may still be reading it.
func (c *conn) seizeBody() {
	c.kickMu.Lock()
	c.gen.Add(1)
	if c.kicked {
		c.keep, c.kicked = false, false
	}
	c.kickMu.Unlock()
	if c.bodyMu.TryLock() {
		return
	}
	_ = c.nc.SetReadDeadline(past)
	c.bodyMu.Lock()
	c.deadline = -1
	if errors.Is(c.body.err, os.ErrDeadlineExceeded) {
		c.body.err = nil // our own doing: nothing was lost, the rest may be read
	}
}

// finishBody reads the rest of the request body when that is cheap, and reports whether the
// connection now stands at the next request. bodyMu is held.
func (c *conn) finishBody() bool {
	b := &c.body
	switch {
	case b.done:
		return true
	case b.err != nil, c.ex.expecting.Load(), b.kind == bodyFixed && b.left > drainLimit, !c.keep:
		return false
	}
	c.setReadDeadline(time.Now().Add(drainTime))
	scratch := borrow(16 << 10)
	defer scratch.release()
	p := scratch.b[:cap(scratch.b)]
	for n := 0; n < drainLimit; {
		m, err := b.read(p)
		n += m
		if err == io.EOF {
			return true
		}
		if err != nil {
			return false
		}
	}
	return b.done
}
