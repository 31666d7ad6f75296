package h1

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

const (
	opDo   fault.Op = "h1.client.Do"
	opRead fault.Op = "h1.client.Read"
)

// Client calls one origin over connections that it keeps. Set the fields before the first Do;
// Dial is required. Safe for concurrent use.
type Client struct {
	// Dial opens a connection to the origin, with TLS done where there is any.
	Dial func(context.Context) (net.Conn, error)

	// Addr names the origin ("127.0.0.1:3000") in errors, and as Host of a Request that has
	// none.
	Addr string

	// MaxIdle bounds the connections kept for reuse; those beyond are closed after use.
	// Default 512. Connections in use are not bounded: what limits callers limits them.
	MaxIdle int

	// IdleTimeout is how long an unused connection is kept. Default 90 s.
	IdleTimeout time.Duration

	// MaxHeaderBytes bounds the status line and fields of an answer. Default 64 KiB. Over it:
	// fault.TooLarge.
	MaxHeaderBytes int

	pool pool
}

// Request is what Do sends. Do may be given the same one again, unless it has a Stream.
type Request struct {
	Method string      // empty means GET
	Target string      // path and query, escaped; empty means "/"
	Host   string      // empty means the client's Addr
	Fields call.Fields // Host, Expect, framing and hop-by-hop fields are dropped

	// Body is the whole body when Stream is nil. It must not change before Do has returned or,
	// when the Response is a stream, before that has ended or was closed. A request without a
	// body has a Content-Length of 0 if its method usually has one.
	Body []byte

	// Stream, if not nil, is the body: Length bytes, or chunked when Length is
	// call.Unknown, each chunk sent as soon as Read returns it. It is read by another goroutine,
	// and closed, if it is an io.Closer, when no more of it is wanted. A Stream that is not a
	// Closer may see one more Read after the Response was closed.
	Stream io.Reader
	Length int64

	// Trailer, if set, gives the fields sent after a chunked Stream. It is called after
	// Stream's end.
	Trailer func() call.Fields

	// Inform, if set, receives interim answers other than 100 and 101, before Do returns.
	// fields are valid during the call.
	Inform func(status int, fields call.Fields)

	// Upgrade asks to switch protocols: Fields names the protocol in Upgrade, and
	// Connection: Upgrade is added.
	Upgrade bool
}

// Defaults of Client.
const (
	defaultMaxIdle     = 512
	defaultIdleTimeout = 90 * time.Second
	defaultMaxHeader   = 64 << 10
	inlineBody         = 64 << 10 // a body up to this is written before the answer is read
	maxInterim         = 1000     // interim answers to one request
)

// Do sends a request and returns as soon as the head of its answer is there, even while the
// request is still being sent. ctx governs the exchange up to the end of the answer's body (up
// to Do's return for an upgrade): when it ends, the connection is broken and the error is
// fault.Canceled or fault.Deadline.
//
// Other errors: fault.Unavailable when the origin cannot be reached (SentNever) or the
// connection failed before a whole head came (SentMaybe), fault.TooLarge for an answer's head
// over its limit, fault.Invalid for a request that cannot be written as HTTP, and the Stream's
// own error, wrapped, when that failed.
//
// When a kept connection turns out to be closed before a byte of the answer came, Do tries
// once more on a new one, provided that the body can be sent again and either no byte of the
// request was written or its method is idempotent.
//
// Redirects are returned, not followed; no field is added beyond Host and the framing.
func (c *Client) Do(ctx context.Context, req *Request) (*Response, error) {
	out := borrow(1<<10 + min(len(req.Body), coalesce))
	defer out.release()
	var err error
	if out.b, err = c.appendRequest(out.b, req); err != nil {
		closeStream(req.Stream)
		return nil, err
	}
	cc, err := c.connect(ctx, false)
	if err != nil {
		closeStream(req.Stream)
		return nil, err
	}
	resp, err := c.attempt(ctx, cc, req, out.b)
	stale, ok := err.(*staleError) //nolint:errorlint // attempt returns it bare or not at all
	if !ok {
		return resp, err
	}
	if stale.written && !idempotent(req.Method) {
		return nil, stale.err
	}
	if cc, err = c.connect(ctx, true); err != nil {
		return nil, err
	}
	return c.attempt(ctx, cc, req, out.b)
}

// Close closes the idle connections and keeps no others. Exchanges in progress go on.
func (c *Client) Close() error {
	c.pool.close()
	return nil
}

// staleError is a failure on a kept connection before any byte of the answer, of a request
// that can be sent again.
type staleError struct {
	err     error
	written bool // at least a part of the request went out
}

func (e *staleError) Error() string { return e.err.Error() }

// idempotent lists the methods of RFC 9110 section 9.2.2.
func idempotent(method string) bool {
	switch method {
	case "", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE":
		return true
	}
	return false
}

// appendRequest writes the head, and the body behind it when it is small.
func (c *Client) appendRequest(b []byte, req *Request) ([]byte, error) {
	method, target, host := req.Method, req.Target, req.Host
	if method == "" {
		method = "GET"
	}
	if target == "" {
		target = "/"
	}
	if host == "" {
		host = c.Addr
	}
	switch {
	case !validToken(method):
		return b, fault.New(opDo, fault.Invalid, "method %q is not a token", method).WithSent(fault.SentNever)
	case strings.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return b, fault.New(opDo, fault.Invalid, "target %q has a space or control character; escape it", target).WithSent(fault.SentNever)
	case !validHost(host):
		return b, fault.New(opDo, fault.Invalid, "host %q has a character that no host has", host).WithSent(fault.SentNever)
	}
	b = append(b, method...)
	b = append(b, ' ')
	b = append(b, target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, host...)
	b = append(b, '\r', '\n')
	if req.Upgrade {
		b = appendFields(b, req.Fields, inRequest|withUpgrade)
		b = append(b, "Connection: Upgrade\r\n"...)
	} else {
		b = appendFields(b, req.Fields, inRequest)
	}
	switch {
	case req.Stream != nil && req.Length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case req.Stream != nil:
		b = appendLength(b, req.Length)
	case len(req.Body) > 0 || method == "POST" || method == "PUT" || method == "PATCH":
		b = appendLength(b, int64(len(req.Body)))
	}
	b = append(b, '\r', '\n')
	if req.Stream == nil && len(req.Body) <= coalesce {
		b = append(b, req.Body...)
	}
	return b, nil
}

// connect takes a kept connection that is alive, or dials.
func (c *Client) connect(ctx context.Context, fresh bool) (*clientConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, neverSent(ctx, err)
	}
	if !fresh {
		if cc := c.pool.take(); cc != nil {
			return cc, nil
		}
	}
	nc, err := c.Dial(ctx)
	if err != nil {
		return nil, c.dialError(ctx, err)
	}
	return newClientConn(c, nc), nil
}

func neverSent(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	var e *fault.Error
	if errors.As(fault.Wrap(opDo, fault.Unavailable, err), &e) {
		return e.WithSent(fault.SentNever)
	}
	return err
}

// dialError says what was dialled and why it failed, without the address twice.
func (c *Client) dialError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return neverSent(ctx, err)
	}
	cause := err
	var errno syscall.Errno
	if errors.As(err, &errno) {
		cause = errno
	}
	return fault.New(opDo, fault.Unavailable, "dial %s", c.Addr).Because(cause).WithSent(fault.SentNever)
}

func closeStream(r io.Reader) {
	if cl, ok := r.(io.Closer); ok {
		_ = cl.Close()
	}
}

// pool keeps idle connections, the most recently used on top: a quiet time then leaves the
// rest untouched until they expire.
type pool struct {
	mu     sync.Mutex
	idle   []*clientConn // guarded by mu; by time of return
	timer  *time.Timer   // guarded by mu; nil until first used
	armed  bool          // guarded by mu: the timer will fire
	closed bool          // guarded by mu
}

// take returns a connection that looks alive, or nil.
func (p *pool) take() *clientConn {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		cc := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		// Bytes that nobody asked for are as bad as an end: they would answer the next request.
		if cc.peek.peeked() == quiet {
			return cc
		}
		cc.close()
	}
}

// put keeps cc for later, or closes it.
func (p *pool) put(cc *clientConn) {
	c := cc.client
	cc.rd.drop()
	cc.reused = true
	limit, timeout := c.MaxIdle, orDuration(c.IdleTimeout, defaultIdleTimeout)
	if limit <= 0 {
		limit = defaultMaxIdle
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= limit {
		cc.close()
		return
	}
	cc.since = time.Now()
	p.idle = append(p.idle, cc)
	if p.armed {
		return
	}
	p.armed = true
	if p.timer == nil {
		p.timer = time.AfterFunc(timeout, func() { p.expire(timeout) })
	} else {
		p.timer.Reset(timeout)
	}
}

// expire closes what has been idle for long and sets the timer for the next one. With
// nothing idle there is no timer.
func (p *pool) expire(timeout time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	limit, n := time.Now().Add(-timeout), 0
	for n < len(p.idle) && !p.idle[n].since.After(limit) {
		p.idle[n].close()
		n++
	}
	p.idle = append(p.idle[:0], p.idle[n:]...)
	clear(p.idle[len(p.idle):cap(p.idle)])
	if p.armed = len(p.idle) > 0; p.armed {
		p.timer.Reset(time.Until(p.idle[0].since.Add(timeout)))
	}
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, cc := range p.idle {
		cc.close()
	}
	p.idle = nil
	if p.timer != nil {
		p.timer.Stop()
		p.armed = false
	}
}
