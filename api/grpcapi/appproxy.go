package grpcapi

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// proxy sends a proxied call on, byte for byte.
func (c *AppChannel) proxy(ctx context.Context, req *call.Request) (*call.Response, error) {
	fields := fieldSlices.Get().(*call.Fields)
	defer func() {
		clear(*fields)
		fieldSlices.Put(fields)
	}()
	fs := c.conn.base(ctx, (*fields)[:0], req.Type, req.Header.Get(userAgentKey))
	fs = wireFields(fs, req.Header, ofMessages)
	*fields = fs
	p := &proxyCall{c: c, method: req.Path}
	if c.o.Observe != nil {
		p.start = time.Now()
	}
	out := &h2.Request{Scheme: c.conn.scheme, Authority: c.conn.addr, Path: req.Path, Fields: fs}
	var err error
	if req.Stream == nil {
		if err := p.sent.add(req.Data); err != nil || !p.sent.whole() {
			return nil, errBadMessage
		}
		out.Body, out.End = req.Data, true
		p.st, err = c.conn.do(ctx, out)
	} else {
		p.st, err = p.stream(ctx, out, req)
	}
	if err != nil {
		return p.unanswered(err)
	}
	return p.answer()
}

// ofMessages names are the protocol's own and say how messages are encoded.
func ofMessages(name string) bool { return name == encodingKey || name == acceptEncoding }

// proxyCall is one proxied call to the app, until its answer is closed. It is the body of a
// streamed answer: whatever status the app ends with, the body ends in order, for the status is
// the trailer's.
type proxyCall struct {
	c      *AppChannel
	st     *h2.Stream
	method string
	start  time.Time
	up     *appUpload // nil if the request was whole
	sent   meter
	got    meter
	first  []byte
	tail   call.Fields
	ended  bool
	once   sync.Once
}

// unanswered is the end of a call without an answer: the app's reset, or a fault.
func (p *proxyCall) unanswered(err error) (*call.Response, error) {
	s := status.Convert(err)
	p.observe(s.Code())
	if _, lost := err.(*lostError); lost { //nolint:errorlint // made by appConn.lost and not wrapped
		return nil, err
	}
	fs := statusTrailer(nil, s)
	return &call.Response{Status: 200, Data: []byte{}, Trailer: func() call.Fields { return fs }}, nil
}

// stream opens a call whose request comes piece by piece, and waits for the answer's header.
func (p *proxyCall) stream(ctx context.Context, out *h2.Request, req *call.Request) (*h2.Stream, error) {
	st, err := p.c.conn.wire.Open(ctx, out)
	if err != nil {
		_ = req.Stream.Close()
		return nil, p.c.conn.lost(err)
	}
	p.sent.limit = p.c.conn.limit
	p.up = startAppUpload(st, req.Stream, &p.sent)
	if _, _, _, err := st.RecvHeaders(ctx); err != nil {
		st.Close()
		p.up.stop()
		if own := p.up.failed(); own != nil {
			return nil, &lostError{own}
		}
		return nil, p.c.conn.lost(err)
	}
	return st, nil
}

// answer makes the app's answer the call's: whole if it is all there.
func (p *proxyCall) answer() (*call.Response, error) {
	if err := answered(p.st); err != nil {
		_ = p.Close()
		return p.unanswered(err)
	}
	p.got.limit = p.c.conn.limit
	data, ended := p.st.First()
	resp := &call.Response{Status: 200, Held: p}
	if err := p.got.add(data); err != nil {
		p.end(err)
		data, ended = nil, true
	} else if ended {
		p.end(io.EOF)
	}
	if _, only := codeOf(p.st.Header()); !only || len(p.st.Trailer()) > 0 { // else it was the trailer
		resp.Header = plainFields(p.st.Header(), func(name string) bool { return name == encodingKey })
	}
	if ended {
		if resp.Data = data; data == nil {
			resp.Data = []byte{}
		}
		resp.Length = int64(len(data))
		resp.Trailer = p.trailer
		return resp, nil
	}
	p.first = data
	resp.Held = nil
	resp.Stream, resp.Length, resp.Trailer = p, call.Unknown, p.trailer
	return resp, nil
}

// Read implements io.Reader.
func (p *proxyCall) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	if p.ended {
		return 0, io.EOF
	}
	n, err := p.st.Read(b)
	if n > 0 {
		if bad := p.got.add(b[:n]); bad != nil {
			n, err = 0, bad
		}
	}
	if err != nil {
		p.end(err)
		err = io.EOF
	}
	return n, err
}

// end notes how the answer ends and what its trailer is.
func (p *proxyCall) end(err error) {
	p.ended = true
	var s *status.Status
	if call.Ended(err) && !p.got.whole() {
		err = errBadMessage
	}
	if p.up != nil && !call.Ended(err) {
		if own := p.up.failed(); own != nil {
			err = own
		}
	}
	s = ending(p.st, err)
	var fs call.Fields
	if call.Ended(err) {
		if fs = p.st.Trailer(); len(fs) == 0 { // all was in the header: metadata there are the trailer's
			fs = append(call.Fields(nil), p.st.Header()...)
		}
		fs = plainFields(fs, func(string) bool { return false })
	} else {
		p.st.Close()
	}
	p.tail = appendStatus(fs, s)
	p.observe(s.Code())
}

func (p *proxyCall) trailer() call.Fields { return p.tail }

// Close implements io.Closer, for streamed answers and what whole ones borrow.
func (p *proxyCall) Close() error {
	p.once.Do(func() {
		if p.up != nil {
			p.up.stop()
		}
		p.st.Close()
		p.observe(codes.Canceled) // unless it ended before
	})
	return nil
}

func (p *proxyCall) observe(code codes.Code) {
	if p.c.o.Observe == nil || p.start.IsZero() {
		return
	}
	p.c.o.Observe.GRPCCalled(p.method, code, p.sent.bytes.Load(), p.got.bytes.Load(), time.Since(p.start))
	p.start = time.Time{}
}

// appUpload sends a streamed request beside the answer.
type appUpload struct {
	src  io.ReadCloser
	done chan struct{}
	err  *fault.Error // guarded by done
	over atomic.Bool  // we stopped it: what the source says from now on is no reason
}

func startAppUpload(st *h2.Stream, src io.ReadCloser, m *meter) *appUpload {
	u := &appUpload{src: src, done: make(chan struct{})}
	go func() {
		defer close(u.done)
		defer src.Close()
		err := passOn(st, src, m)
		if err == nil {
			_ = st.CloseSend(nil)
			return
		}
		var wrote *writeError
		if errors.As(err, &wrote) {
			return // the answer tells why
		}
		if !u.over.Load() {
			u.err = fault.New(opChannel, fault.Of(err), "the request broke off").WithSent(fault.SentMaybe).Because(err)
		}
		st.Reset(h2.Cancel) // the app must see that
	}()
	return u
}

// stop ends the upload: the answer is complete, so the rest of the request is not wanted.
func (u *appUpload) stop() {
	u.over.Store(true)
	_ = u.src.Close()
	<-u.done
}

// failed is the request's own failure, if it is over and had one.
func (u *appUpload) failed() *fault.Error {
	select {
	case <-u.done:
		return u.err
	default:
		return nil
	}
}
