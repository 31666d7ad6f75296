package h2

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Client calls one server over as few connections as its limits allow: normally one, dialled
// at the first call, shared by all, and dialled again when it is lost. Its fields must not
// change once it is used. Methods are safe for concurrent use.
type Client struct {
	// Dial connects. It may bring TLS (with ALPN "h2"). Its context ends after DialTimeout or
	// when the client is closed, not with the call that happened to need a connection.
	Dial func(ctx context.Context) (net.Conn, error)
	Addr string // of the server, for errors

	DialTimeout   time.Duration // until the server's SETTINGS came; 0: 10 s
	MaxHeaderList int           // bytes of an answer's header; 0: DefaultMaxHeaderList
	Window        int           // bytes a stream may have unread; 0: DefaultWindow
	ConnWindow    int           // bytes a connection may have on the way; 0: DefaultConnWindow
	MaxConns      int           // when the server limits streams of a connection; 0: 64
	IdleTimeout   time.Duration // without streams, then a connection is closed; 0: DefaultIdleTimeout, below: never
	WriteTimeout  time.Duration // for the network to take a piece of a request; 0: DefaultWriteTimeout
	Log           *slog.Logger  // nil: slog.Default

	once    sync.Once
	cfg     config
	ctx     context.Context
	cancel  context.CancelFunc
	current atomic.Pointer[conn] // tried first

	mu     sync.Mutex
	conns  []*conn       // guarded by mu: those that may take streams
	all    map[*conn]int // guarded by mu: every one not over, value unused
	dial   *dialing      // guarded by mu: in progress
	failed error         // guarded by mu: why the last dial failed
	retry  time.Time     // guarded by mu: until then failed is the answer
	closed bool          // guarded by mu
	work   sync.WaitGroup
}

// dialing is one attempt that any number of calls wait for.
type dialing struct {
	done chan struct{}
	err  error // set before done is closed
}

// Request is what Open sends. Everything may be reused when Open, or Do, returned; but Body only
// when the stream is closed.
type Request struct {
	Method    string // "" is POST
	Scheme    string // "" is http
	Authority string
	Path      string
	Fields    call.Fields
	Body      []byte // sent with the header
	End       bool   // Body is all: no trailer, nothing follows
}

const (
	opOpen       fault.Op = "h2.Open"
	dialTimeout           = 10 * time.Second
	defaultConns          = 64
	// dialPause keeps a server that is down from being dialled by every call.
	dialPause = 50 * time.Millisecond
	// maxDials is how many connections a call waits for: others may have used up the first.
	maxDials = 20
)

func (cl *Client) init() {
	cl.ctx, cl.cancel = context.WithCancel(context.Background())
	cl.all = map[*conn]int{}
	cl.cfg = config{client: true,
		maxHeaderList: or(cl.MaxHeaderList, DefaultMaxHeaderList), window: int64(or(cl.Window, DefaultWindow)),
		connWindow: max(int64(or(cl.ConnWindow, DefaultConnWindow)), initialFlow), held: DefaultHeld,
		writeTimeout: or(cl.WriteTimeout, DefaultWriteTimeout), idle: or(cl.IdleTimeout, DefaultIdleTimeout),
		left: cl.drop, log: cl.Log,
	}
	if cl.cfg.log == nil {
		cl.cfg.log = slog.Default()
	}
}

// Open sends a request's beginning, or all of it, in one write if it is small, and returns
// without waiting for the answer. ctx limits the stream's whole life: when it ends, calls that wait return
// fault.Deadline or fault.Canceled and the server is told. The stream must be closed.
//
// Errors are fault.Unavailable with fault.SentNever when no connection could be had.
func (cl *Client) Open(ctx context.Context, req *Request) (*Stream, error) {
	cl.once.Do(cl.init)
	if c := cl.current.Load(); c != nil {
		st, err := c.open(ctx, req)
		if !errors.Is(err, errNotNow) {
			return st, err
		}
	}
	return cl.openSlowly(ctx, req)
}

// openSlowly looks for a connection with room, or dials.
func (cl *Client) openSlowly(ctx context.Context, req *Request) (*Stream, error) {
	for dials := 0; ; dials++ {
		if err := ctx.Err(); err != nil {
			return nil, notSent(err)
		}
		for _, c := range cl.usable() {
			st, err := c.open(ctx, req)
			if !errors.Is(err, errNotNow) {
				cl.current.Store(c)
				return st, err
			}
		}
		if dials >= maxDials {
			return nil, fault.New(opOpen, fault.Unavailable, "%s takes connections and no streams on them", cl.Addr).WithSent(fault.SentNever)
		}
		d, err := cl.join()
		if err != nil {
			return nil, err
		}
		select {
		case <-d.done:
			if d.err != nil {
				return nil, d.err
			}
		case <-ctx.Done():
			return nil, notSent(ctx.Err())
		}
	}
}

func notSent(err error) error {
	var fe *fault.Error
	if errors.As(fault.Wrap(opOpen, fault.Canceled, err), &fe) {
		return fe.WithSent(fault.SentNever)
	}
	return err
}

func (cl *Client) usable() []*conn {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return append([]*conn(nil), cl.conns...)
}

// join returns the dialling in progress, or starts one.
func (cl *Client) join() (*dialing, error) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	switch {
	case cl.closed:
		return nil, fault.New(opOpen, fault.Unavailable, "the client of %s is closed", cl.Addr).WithSent(fault.SentNever)
	case cl.dial != nil:
		return cl.dial, nil
	case cl.failed != nil && time.Now().Before(cl.retry):
		return nil, cl.failed
	case len(cl.conns) >= or(cl.MaxConns, defaultConns):
		return nil, fault.New(opOpen, fault.Exhausted, "%s: %d connections have as many streams as the server allows", cl.Addr, len(cl.conns)).WithSent(fault.SentNever)
	}
	d := &dialing{done: make(chan struct{})}
	cl.dial = d
	cl.work.Add(1)
	go cl.connect(d)
	return d, nil
}

// connect dials and waits for the server's settings: only then it is known to speak HTTP/2.
func (cl *Client) connect(d *dialing) {
	defer cl.work.Done()
	ctx, cancel := context.WithTimeout(cl.ctx, or(cl.DialTimeout, dialTimeout))
	defer cancel()
	c, err := cl.handshake(ctx)
	cl.mu.Lock()
	if err == nil && cl.closed {
		err = cl.dialError(net.ErrClosed)
		defer c.end(net.ErrClosed) // waited for by Close, through all
	}
	if err == nil && c.usable() {
		cl.conns = append(cl.conns, c)
	}
	if err == nil {
		cl.current.CompareAndSwap(nil, c)
	}
	cl.failed, d.err, cl.dial = err, err, nil
	cl.retry = time.Now().Add(dialPause)
	cl.mu.Unlock()
	close(d.done)
}

func (cl *Client) handshake(ctx context.Context) (*conn, error) {
	nc, err := cl.Dial(ctx)
	if err != nil {
		return nil, cl.dialError(err)
	}
	c := newConn(nc, &cl.cfg)
	cl.mu.Lock()
	cl.all[c] = 0
	cl.mu.Unlock()
	cl.work.Add(1)
	c.start(nil)
	go func() {
		defer cl.work.Done()
		c.wait()
		cl.mu.Lock()
		delete(cl.all, c)
		cl.mu.Unlock()
	}()
	select {
	case <-c.ready:
		return c, nil
	case <-ctx.Done():
		c.end(ctx.Err())
	case <-c.done:
	}
	c.mu.Lock()
	cause := c.cause
	c.mu.Unlock()
	return nil, fault.New(opOpen, fault.Unavailable, "dial %s: it does not speak HTTP/2", cl.Addr).WithSent(fault.SentNever).Because(cause)
}

// dialError says what was dialled and why it failed, without the address twice.
func (cl *Client) dialError(err error) error {
	cause := err
	var op *net.OpError
	if errors.As(err, &op) {
		cause = op.Err
	}
	var sys *os.SyscallError
	if errors.As(cause, &sys) {
		cause = sys.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		cause = errSlowDial // no deadline of a call
	}
	if errors.Is(err, context.Canceled) {
		cause = net.ErrClosed
	}
	return fault.New(opOpen, fault.Unavailable, "dial %s", cl.Addr).Because(cause).WithSent(fault.SentNever)
}

var errSlowDial = errors.New("no connection within the time for one")

// drop forgets a connection that takes no more streams; those it has run to their end.
func (cl *Client) drop(c *conn) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for i, other := range cl.conns {
		if other == c {
			cl.conns = append(cl.conns[:i:i], cl.conns[i+1:]...)
			break
		}
	}
	cl.current.CompareAndSwap(c, nil)
}

// Close ends all connections at once and waits for their goroutines. Streams in flight fail.
func (cl *Client) Close() error {
	cl.once.Do(cl.init)
	cl.cancel()
	cl.mu.Lock()
	cl.closed = true
	all := make([]*conn, 0, len(cl.all))
	for c := range cl.all {
		all = append(all, c)
	}
	cl.mu.Unlock()
	for _, c := range all {
		c.end(net.ErrClosed)
	}
	cl.work.Wait()
	return nil
}

// errNotNow says that a connection takes no stream now and another may.
var errNotNow = errors.New("no room on this connection")

// open adds a stream.
func (c *conn) open(ctx context.Context, req *Request) (*Stream, error) {
	c.mu.Lock()
	if c.cause != nil || c.away.announced || c.away.peer || !c.settled || len(c.streams) >= c.peerStreams || c.nextID > maxID-2 {
		spent := c.nextID > maxID-2
		c.mu.Unlock()
		if spent {
			c.closeDoor()
			c.tellLeft()
		}
		return nil, errNotNow
	}
	st := &Stream{c: c, id: c.nextID, ctx: ctx, method: req.Method, recvAvail: c.cfg.window, length: -1, sendAvail: c.peerWindow}
	c.nextID += 2
	c.opened++
	c.streams[st.id] = st
	c.watch()
	st.addRequest(req, req.End && len(req.Body) == 0)
	switch n := len(req.Body); {
	case n == 0:
	case st.fits(n):
		st.addData(req.Body, req.End)
	default:
		st.sending = make(chan struct{})
		c.calls.Add(1)
		go st.sendBehind(req.Body, req.End)
	}
	flush := c.claimFlush()
	c.mu.Unlock()
	c.flushIf(flush)
	return st, nil
}

// sendBehind sends a body that windows do not take at once beside the answer: a server may
// answer before it has read all, and stop reading while its answer is not taken. A failure
// shows at the answer.
func (st *Stream) sendBehind(body []byte, end bool) {
	defer st.c.calls.Done()
	defer close(st.sending)
	_ = st.send(body, end)
}

// addRequest adds the header of a request. Locked.
func (st *Stream) addRequest(req *Request, end bool) {
	c := st.c
	e := &c.enc
	b := e.begin(c.out.block[:0])
	switch req.Method {
	case "", "POST":
		b = appendStatic(b, staticPost)
	case "GET":
		b = appendStatic(b, staticGet)
	default:
		b = e.pseudo(b, nameMethod, ":method", req.Method)
	}
	switch req.Scheme {
	case "", "http":
		b = appendStatic(b, staticHTTP)
	case "https":
		b = appendStatic(b, staticHTTPS)
	default:
		b = e.pseudo(b, nameScheme, ":scheme", req.Scheme)
	}
	b = e.pseudo(b, namePath, ":path", req.Path)
	if req.Authority != "" {
		b = e.pseudo(b, nameAuth, ":authority", req.Authority)
	}
	st.headSent = true
	st.addBlock(e.fields(b, req.Fields), end)
	st.mark = c.out.end()
}

// RecvHeaders waits for the answer's header and returns its status and fields; ended tells
// that the answer has neither body nor trailer, or that all of it has come.
func (st *Stream) RecvHeaders(ctx context.Context) (status int, header call.Fields, ended bool, err error) {
	c := st.c
	if ctx.Done() == nil {
		ctx = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for st.status == 0 {
		if st.err != nil {
			return 0, nil, false, st.err
		}
		if err := st.awaitRead(ctx); err != nil && st.status == 0 {
			return 0, nil, false, err
		}
	}
	return st.status, st.header, st.recvEnded, nil // a failure meanwhile shows when the body is read
}

// Do is Open and the wait for the answer's header. A whole request that provably never reached
// a handler (the server left, or refused it) is sent once more.
func (cl *Client) Do(ctx context.Context, req *Request) (*Stream, error) {
	for again := false; ; again = true {
		st, err := cl.Open(ctx, req)
		if err != nil {
			return nil, err
		}
		_, _, _, err = st.RecvHeaders(ctx)
		if err == nil {
			return st, nil
		}
		st.Close()
		if again || !req.End || fault.SentOf(err) != fault.SentNever || ctx.Err() != nil {
			return nil, err
		}
	}
}

// Status is the answer's status once RecvHeaders or Do returned; else 0.
func (st *Stream) Status() int {
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	return st.status
}
