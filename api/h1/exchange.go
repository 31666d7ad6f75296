package h1

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

const opBody fault.Op = "h1.exchange.Body"

// Exchange is one request and its answer. It is reused: it must not be used after the handler
// has returned (its Context may be).
//
// The request's methods other than the body's are plain reads. The body may be read by one
// goroutine while another writes the answer; when the handler returns, a read still in
// progress is interrupted. The answer's methods may be called from any goroutine, one at a
// time; exactly one of these sequences makes an answer:
//
//   - Respond
//   - Start, then Write, Flush and Copy as often as needed, then End
//   - Upgrade or Hijack
//   - Abort
//
// Inform may precede the first two.
type Exchange struct {
	c         *conn
	held      *buffer     // what ReadBody returned
	expecting atomic.Bool // the client waits for 100 Continue
	dropped   bool        // the answer went out, the rest of the body is of no interest; guarded by c.bodyMu

	reply // guarded by c.mu
}

func (ex *Exchange) begin() {
	ex.expecting.Store(ex.c.head.expect && !ex.c.body.done)
	ex.dropped = false
	ex.reply = reply{}
}

// finish gives back what the exchange borrowed.
func (ex *Exchange) finish() {
	ex.held.release()
	ex.held = nil
	ex.c.mu.Lock()
	ex.out.release()
	ex.out = nil
	ex.c.mu.Unlock()
}

// Method is the request's method as received, any token.
func (ex *Exchange) Method() string { return ex.c.head.method }

// Target is the request target as received: a path with query, an absolute URL, host:port
// (CONNECT) or "*" (OPTIONS).
func (ex *Exchange) Target() string { return ex.c.head.target }

// Path is the target's path, still percent-encoded and never empty ("/" when the target has
// none), without query; "*" for that target and "" for CONNECT. Escapes in it are well-formed.
func (ex *Exchange) Path() string { return ex.c.head.path }

// Query is what follows the target's first '?', still encoded.
func (ex *Exchange) Query() string { return ex.c.head.query }

// Minor is 1 for HTTP/1.1 and 0 for HTTP/1.0.
func (ex *Exchange) Minor() int { return ex.c.head.minor }

// Host is the target's authority if it names one, else the Host field. It is empty only in
// HTTP/1.0, or when the field is.
func (ex *Exchange) Host() string { return ex.c.head.host }

// Header is every field as received, names untouched, values trimmed; hop-by-hop fields
// included (EndToEnd removes them). The slice is valid until the handler returns and may be
// changed; the strings may be kept.
func (ex *Exchange) Header() call.Fields { return ex.c.head.fields }

// Upgrades is the protocol that the client offers to switch to, or "".
func (ex *Exchange) Upgrades() string {
	if ex.c.head.upgrades && ex.c.head.minor >= 1 {
		return ex.c.head.upgrade
	}
	return ""
}

// ContentLength is the size of the request body in bytes, 0 without one, call.Unknown for a
// chunked one.
func (ex *Exchange) ContentLength() int64 {
	if ex.c.head.chunked {
		return call.Unknown
	}
	return max(0, ex.c.head.length)
}

// RemoteAddr is the address of the other end of the connection.
func (ex *Exchange) RemoteAddr() net.Addr { return ex.c.nc.RemoteAddr() }

// LocalAddr is the address of this end.
func (ex *Exchange) LocalAddr() net.Addr { return ex.c.nc.LocalAddr() }

// NetConn is the connection, for peer credentials and the like; reading, writing or closing
// it breaks the exchange.
func (ex *Exchange) NetConn() net.Conn { return ex.c.nc }

// Context ends when the caller goes away (also by closing its sending side), when the
// connection breaks, when the server is closed, and when the handler returns. A vanished
// caller is noticed within about 150 ms, within half a second once an exchange lasts longer
// than 10 s, and on systems that cannot look at a connection, or while unread bytes
// hide the end, by the next read or write. It has no deadline.
func (ex *Exchange) Context() context.Context {
	c := ex.c
	if ctx := c.ctx.Load(); ctx != nil {
		return ctx
	}
	ctx := &exchangeContext{base: c.base}
	if !c.ctx.CompareAndSwap(nil, ctx) {
		return c.ctx.Load()
	}
	if c.lost.Load() { // the caller left between the two
		ctx.end()
	}
	return ctx
}

// Body is the request body as a stream; every call returns a reader of the same stream. Read
// returns what has arrived, and asks a client that waits for 100 Continue to go on. Errors:
// fault.Canceled (wrapping io.ErrUnexpectedEOF when the caller left) and fault.Invalid
// (malformed chunks). Close makes a Read in progress, and every later one, fail; Respond
// and the handler's return do so too. The reader also has a Trailer method, which is
// RequestTrailer while the exchange lasts and gives nil afterwards.
func (ex *Exchange) Body() io.ReadCloser {
	return &requestBody{c: ex.c, gen: ex.c.gen.Load()}
}

// RequestTrailer is the trailing fields of a chunked request, valid after Body gave io.EOF.
func (ex *Exchange) RequestTrailer() call.Fields {
	ex.c.bodyMu.Lock()
	defer ex.c.bodyMu.Unlock()
	return ex.c.body.trailer
}

// ReadBody reads the whole body into memory that is valid until the handler returns. It is
// called once, instead of Body. A body over limit bytes gives fault.TooLarge, at once when
// its length was announced; other errors are those of Body.
func (ex *Exchange) ReadBody(limit int64) ([]byte, error) {
	c := ex.c
	n := ex.ContentLength()
	if n > limit {
		return nil, tooLarge(limit)
	}
	c.bodyMu.Lock()
	defer c.bodyMu.Unlock()
	if !ex.dropped && n >= 0 && c.body.left == n && int64(c.rd.size()) >= n {
		// All here already: lend the connection's own buffer, which nothing fills before
		// the next request.
		p := c.rd.buf[c.rd.r : c.rd.r+int(n) : c.rd.r+int(n)]
		c.rd.r += int(n)
		c.body.left, c.body.done = 0, true
		ex.expecting.Store(false)
		return p, nil
	}
	if err := c.prepareRead(c.gen.Load(), nil); err != nil {
		return nil, err
	}
	// Memory follows the bytes that really come, not the length that is claimed.
	ex.held = borrow(int(min(max(n, 4<<10), 64<<10)))
	p := ex.held.b
	for !c.body.done {
		if len(p) == cap(p) {
			p = ex.growHeld(p)
		}
		room := p[len(p):cap(p)]
		m, err := c.body.read(room)
		p = p[:len(p)+m]
		if int64(len(p)) > limit {
			return nil, tooLarge(limit)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, c.bodyError(err)
		}
	}
	return p, nil
}

func (ex *Exchange) growHeld(p []byte) []byte {
	next := borrow(2 * cap(p))
	next.b = append(next.b, p...)
	ex.held.release()
	ex.held = next
	return next.b
}

func tooLarge(limit int64) error {
	return fault.New(opBody, fault.TooLarge, "the request body is over the limit of %d bytes", limit)
}

// requestBody is a handle on one exchange's body. It outlives the exchange harmlessly.
type requestBody struct {
	c      *conn
	gen    uint64
	closed atomic.Bool
}

var errBodyClosed = errors.New("the request body was closed, or its exchange was answered")

func (r *requestBody) Read(p []byte) (int, error) {
	c := r.c
	c.bodyMu.Lock()
	defer c.bodyMu.Unlock()
	if err := c.prepareRead(r.gen, &r.closed); err != nil {
		return 0, err
	}
	n, err := c.body.read(p)
	if err != nil && err != io.EOF {
		if stale := r.stale(); stale != nil {
			return n, stale
		}
		return n, c.bodyError(err)
	}
	return n, err
}

// Trailer is Exchange.RequestTrailer for those who may outlive the exchange: nil after its end.
func (r *requestBody) Trailer() call.Fields {
	r.c.bodyMu.Lock()
	defer r.c.bodyMu.Unlock()
	if r.c.gen.Load() != r.gen {
		return nil
	}
	return r.c.body.trailer
}

// Close interrupts a Read in progress and makes later ones fail.
func (r *requestBody) Close() error {
	r.closed.Store(true)
	if r.c.bodyMu.TryLock() {
		r.c.bodyMu.Unlock()
		return nil
	}
	r.c.kickMu.Lock()
	defer r.c.kickMu.Unlock()
	if r.c.gen.Load() == r.gen {
		r.c.kicked = true
		_ = r.c.nc.SetReadDeadline(past)
	}
	return nil
}

func (r *requestBody) stale() error {
	if r.closed.Load() || r.c.gen.Load() != r.gen {
		return fault.Wrap(opBody, fault.Canceled, errBodyClosed)
	}
	return nil
}

// prepareRead makes the connection ready for a read of the body that may block. bodyMu is
// held.
func (c *conn) prepareRead(gen uint64, closed *atomic.Bool) error {
	if c.gen.Load() != gen || closed != nil && closed.Load() || c.ex.dropped {
		return fault.Wrap(opBody, fault.Canceled, errBodyClosed)
	}
	if c.body.done || c.body.err != nil {
		return nil
	}
	if c.ex.expecting.Load() {
		if err := c.sendContinue(); err != nil {
			return err
		}
	}
	// A body may take as long as it likes; what is left of the idle deadline must not cut it.
	if c.deadline != 0 {
		c.setReadDeadline(time.Time{})
		// Whoever wants the reader out sets its mark before the deadline that we just removed.
		if c.gen.Load() != gen || closed != nil && closed.Load() {
			c.deadline = -1
			return fault.Wrap(opBody, fault.Canceled, errBodyClosed)
		}
	}
	return nil
}

// dropBody ends the reading of the body, for its answer is complete, and reports whether the
// connection will stand at the next request without much ado. c.mu is held.
func (c *conn) dropBody() bool {
	if !c.bodyMu.TryLock() { // somebody waits for more of it, until the handler returns
		return !c.head.chunked && c.head.length <= drainLimit
	}
	defer c.bodyMu.Unlock()
	b := &c.body
	if b.done {
		return true
	}
	c.ex.dropped = true
	b.skim()
	if b.done {
		c.ex.expecting.Store(false)
	}
	return b.done || b.kind == bodyFixed && b.left <= drainLimit
}

func (c *conn) sendContinue() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ex.state != replyNone {
		return fault.New(opBody, fault.Canceled, "the answer began before the client was asked for the request body, so it will not send it")
	}
	c.ex.expecting.Store(false)
	if err := c.send([]byte("HTTP/1.1 100 Continue\r\n\r\n"), nil, nil); err != nil {
		c.callerGone()
		return fault.Wrap(opBody, fault.Canceled, err)
	}
	return nil
}

// bodyError gives an error of the body its code; a broken connection ends the context too.
func (c *conn) bodyError(err error) error {
	if errors.Is(err, errMalformed) {
		return fault.New(opBody, fault.Invalid, "request body after %d bytes", c.body.n).Because(err)
	}
	c.callerGone()
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.Join(err, io.ErrUnexpectedEOF)
	}
	return fault.New(opBody, fault.Canceled, "the caller left after %d bytes of the request body", c.body.n).Because(err)
}
