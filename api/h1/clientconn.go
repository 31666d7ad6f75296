package h1

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// clientConn is a connection to the origin. One exchange owns it at a time.
type clientConn struct {
	client *Client
	nc     net.Conn
	rd     reader
	body   body
	peek   peeker
	reused bool
	heard  bool      // bytes of an answer came in this exchange
	since  time.Time // when it became idle
	abort  func()    // breaks off what is in progress; made once
	writer
}

func newClientConn(c *Client, nc net.Conn) *clientConn {
	cc := &clientConn{client: c, nc: nc}
	cc.rd.src = nc
	cc.writer.init(nc, 0)
	cc.peek.watch(nc)
	cc.abort = func() { _ = nc.SetDeadline(past) }
	return cc
}

func (cc *clientConn) close() { _ = cc.nc.Close() }

// stopper ends a watch. stop reports false when the watched context ended before.
type stopper interface{ stop() bool }

type stopFunc func() bool

// afterFuncer is what the context package itself looks for in foreign contexts.
type afterFuncer interface {
	AfterFunc(f func()) (stop func() bool)
}

func (f stopFunc) stop() bool { return f() }

// watch breaks the exchange off when ctx ends. The result is nil when ctx cannot end; when its
// stop reports false the connection is of no more use.
func (cc *clientConn) watch(ctx context.Context) stopper {
	if x, ok := ctx.(*exchangeContext); ok {
		return x.watch(cc.abort)
	}
	if x, ok := ctx.(afterFuncer); ok { // cheaper than through the context package
		return stopFunc(x.AfterFunc(cc.abort))
	}
	if ctx.Done() == nil {
		return nil
	}
	return stopFunc(context.AfterFunc(ctx, cc.abort))
}

// write sends pieces outside the answer's path.
func (cc *clientConn) write(a, b, z []byte) error {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.send(a, b, z)
}

// offered reports whether the origin may have got a part of this exchange's request. A part is
// enough to act on: many handlers begin when the head is there.
func (cc *clientConn) offered() bool {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.moved
}

// answer is the memory of a Response, reused after its Close.
type answer struct {
	head responseHead
	body *buffer
}

var answers = sync.Pool{New: func() any { return new(answer) }}

func (a *answer) release() {
	a.body.release()
	a.body = nil
	if cap(a.head.fields) > 128 {
		a.head.fields = nil
	}
	clear(a.head.fields)
	answers.Put(a)
}

// attempt is one try of a request on one connection.
func (c *Client) attempt(ctx context.Context, cc *clientConn, req *Request, head []byte) (*Response, error) {
	cc.rd.acquire()
	cc.heard, cc.moved = false, false // nobody else writes on it now
	r := &Response{mem: answers.Get().(*answer)}
	r.body = stream{resp: r, cc: cc, ctx: ctx, method: req.Method, watch: cc.watch(ctx)}
	wrote := r.body.send(req, head)
	// Also after a failed write: an origin that refuses a body answers, then closes.
	err := cc.readHead(&r.mem.head, req)
	if err == nil && r.mem.head.status == 101 {
		return r.switchOver()
	}
	if err == nil {
		r.open(req.Method)
		if err = r.takeWhole(); err == nil {
			return r, nil
		}
		err = r.body.cutOff(err)
	} else {
		err = r.body.noAnswer(err, wrote)
	}
	r.body.fail()
	r.mem.release()
	return nil, err
}

// readHead reads heads up to the final one, reporting interim ones.
func (cc *clientConn) readHead(h *responseHead, req *Request) error {
	limit := cc.client.MaxHeaderBytes
	if limit <= 0 {
		limit = defaultMaxHeader
	}
	for range maxInterim {
		size, err := cc.awaitHead(limit)
		if err != nil {
			return err
		}
		text := string(cc.rd.buf[cc.rd.r : cc.rd.r+size-2])
		cc.rd.r += size
		if r := h.parse(text); r != nil {
			return r
		}
		switch {
		case h.status >= 200, h.status == 101 && req.Upgrade:
			return nil
		case h.status == 101:
			return bad("protocol switched without being asked to")
		case h.status != 100 && req.Inform != nil:
			req.Inform(h.status, h.fields)
		}
	}
	return bad("too many interim answers")
}

func (cc *clientConn) awaitHead(limit int) (int, error) {
	for scanned := 0; ; {
		if cc.rd.size() > 0 {
			cc.heard = true
			size, err := cc.rd.scanHead(scanned, limit)
			if err != nil || size > 0 {
				return size, err
			}
			scanned = cc.rd.size()
		}
		if err := cc.rd.fillMore(limit); err != nil {
			if err == io.EOF && scanned > 0 {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
	}
}

// recycle ends the exchange's hold on the connection. keep says that the answer's side allows
// another exchange.
func (cc *clientConn) recycle(keep bool, up *upload) {
	switch {
	case up != nil:
		up.answered(keep)
	case keep:
		cc.client.pool.put(cc)
	default:
		cc.close()
	}
}

// upload sends a request body while the answer is read.
type upload struct {
	cc      *clientConn
	src     io.Reader // nil: data
	data    []byte
	length  int64
	trailer func() call.Fields
	head    *buffer

	unwanted atomic.Bool // the exchange is over: send no more than what is at hand
	once     sync.Once   // closes src
	done     chan struct{}

	mu     sync.Mutex
	ended  bool  // guarded by mu: run is over
	over   bool  // guarded by mu: the answer is over; whoever is last decides about cc
	keep   bool  // guarded by mu: the answer's side allows reuse
	srcErr error // guarded by mu: src failed
	err    error // guarded by mu: the body did not go out whole
}

const (
	uploadGrace  = 100 * time.Millisecond // for a request's last bytes, after its answer's
	uploadPause  = 5 * time.Millisecond   // of it, spent waiting: mostly the writer is just behind the reader
	chunkMargin  = len("10000\r\n")       // before the data of a chunk, at most
	uploadBuffer = 64 << 10
)

var errUnwanted = errors.New("the answer ended before the request body")

func (u *upload) run() {
	defer close(u.done)
	srcErr, err := u.copy()
	u.closeSrc()
	if srcErr != nil {
		err = srcErr
	}
	u.mu.Lock()
	u.ended, u.srcErr, u.err = true, srcErr, err
	over, keep := u.over, u.keep && err == nil
	u.mu.Unlock()
	if srcErr != nil {
		// The origin must not take what it has for the whole, and the reader of the answer
		// must not wait for one.
		resetConn(u.cc.nc)
	}
	if over {
		u.cc.recycle(keep, nil)
	}
}

func (u *upload) closeSrc() { u.once.Do(func() { closeStream(u.src) }) }

// answered is told that the answer is over.
func (u *upload) answered(keep bool) {
	if u.src == nil {
		u.awaitData(keep)
		return
	}
	if keep {
		u.await(uploadPause)
	}
	u.mu.Lock()
	if u.ended {
		keep = keep && u.err == nil
		u.mu.Unlock()
		u.cc.recycle(keep, nil)
		return
	}
	u.over, u.keep = true, keep
	u.mu.Unlock()
	u.unwanted.Store(true)
	if !keep {
		u.giveUp()
		return
	}
	time.AfterFunc(uploadGrace, u.giveUp)
}

// awaitData waits for the end of a body in memory, which the caller may reuse afterwards.
func (u *upload) awaitData(keep bool) {
	if !keep || !u.await(uploadGrace) {
		u.cc.close()
		<-u.done
		return
	}
	u.cc.recycle(u.failure() == nil, nil)
}

// await waits for the end of run, for at most d.
func (u *upload) await(d time.Duration) bool {
	select {
	case <-u.done:
		return true
	default:
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-u.done:
		return true
	case <-timer.C:
		return false
	}
}

func (u *upload) failure() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

// giveUp breaks the upload off if it still runs.
func (u *upload) giveUp() {
	u.mu.Lock()
	ended := u.ended
	u.mu.Unlock()
	if ended {
		return
	}
	u.unwanted.Store(true)
	u.cc.close()
	u.closeSrc()
}

// copy sends the body. srcErr is the source's failure, err any other.
func (u *upload) copy() (srcErr, err error) {
	switch {
	case u.src == nil:
		defer u.head.release()
		return nil, u.cc.write(u.head.b, u.data, nil)
	case u.length < 0:
		return u.copyChunked()
	}
	return u.copyFixed()
}

func (u *upload) copyFixed() (srcErr, err error) {
	held := borrow(uploadBuffer)
	defer held.release()
	p := held.b[:cap(held.b)]
	for sent := int64(0); sent < u.length; {
		n, rerr := u.src.Read(p[:min(int64(len(p)), u.length-sent)])
		sent += int64(n)
		if n > 0 {
			if err := u.cc.write(p[:n], nil, nil); err != nil {
				return nil, err
			}
		}
		switch {
		case sent == u.length:
		case rerr == io.EOF:
			return fault.New(opDo, fault.Invalid, "the request body ended after %d of %d bytes", sent, u.length), nil
		case u.unwanted.Load():
			return nil, errUnwanted
		case rerr != nil:
			return rerr, nil
		}
	}
	return nil, nil
}

// copyChunked sends each Read's bytes as one chunk in one write.
func (u *upload) copyChunked() (srcErr, err error) {
	held := borrow(uploadBuffer)
	defer held.release()
	p := held.b[:cap(held.b)]
	for {
		n, rerr := u.src.Read(p[chunkMargin : len(p)-2])
		if u.unwanted.Load() && rerr != io.EOF {
			return nil, errUnwanted
		}
		if rerr != nil && rerr != io.EOF && n == 0 {
			return rerr, nil
		}
		b := frameChunk(p, n)
		if rerr == io.EOF {
			b = append(bytes.Clone(b), "0\r\n"...)
			if u.trailer != nil {
				b = appendFields(b, u.trailer(), inRequest|inResponse)
			}
			b = append(b, '\r', '\n')
		}
		if len(b) > 0 {
			if err := u.cc.write(b, nil, nil); err != nil {
				return nil, err
			}
		}
		if rerr == io.EOF {
			return nil, nil
		}
		if rerr != nil {
			return rerr, nil
		}
	}
}

// frameChunk puts the framing around the n bytes at p[chunkMargin:] and returns the chunk.
func frameChunk(p []byte, n int) []byte {
	if n == 0 {
		return nil
	}
	at := chunkMargin - 2
	p[at], p[at+1] = '\r', '\n'
	for size := n; size > 0; size >>= 4 {
		at--
		p[at] = "0123456789abcdef"[size&15]
	}
	end := chunkMargin + n
	p[end], p[end+1] = '\r', '\n'
	return p[at : end+2]
}
