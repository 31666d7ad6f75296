package grpcapi

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

const (
	calleeKey = "dapr-callee-app-id"
	appKey    = "dapr-app-id"
	tokenKey  = "dapr-api-token"
)

const opProxy fault.Op = "grpcapi.proxy"

// proxy carries a call of a service this sidecar does not have to the app named in the
// metadata. It serves all four kinds of calls: to a proxy they are one. Messages pass as they
// are, compressed ones too.
func (r *rpc) proxy() {
	ctx, err := r.admit(r.st.Context())
	if err != nil {
		r.fail(err)
		return
	}
	if r.span != nil {
		_ = r.SetHeader(r.span.Response())
	}
	if _, err := guarded(func() (any, error) { return nil, r.invoke(ctx) }); err != nil {
		r.fail(err)
	}
}

// invoke makes the call; its error is a status of the caller's.
func (r *rpc) invoke(ctx context.Context) error {
	fs := r.st.Header()
	target := fs.Get(calleeKey)
	if target == "" {
		target = fs.Get(appKey)
	}
	if target == "" {
		return status.Error(codes.Unknown, "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata")
	}
	req := &call.Request{Protocol: call.GRPC, Target: target, Path: r.method, Type: fs.Get("content-type")}
	p := &proxied{r: r}
	if err := p.takeBody(req); err != nil {
		return proxyStatus(err).Err()
	}
	req.Header = plainFields(fs, passedOn)
	req.Header.Del(appKey)
	req.Header.Del(tokenKey)
	if r.s.o.Tracing != nil {
		req.Header = r.s.o.Tracing.Request(ctx, req.Header)
	}
	err := r.s.o.Invoke.Invoke(ctx, req, p)
	if p.body != nil {
		_ = p.body.Close()
	}
	p.count()
	if err != nil && !p.answered {
		return proxyStatus(err).Err()
	}
	return nil
}

// passedOn names are the protocol's own and belong to the messages or their sender, not to a
// connection.
func passedOn(name string) bool {
	return name == userAgentKey || name == encodingKey || name == acceptEncoding
}

func first(md map[string][]string, name string) string {
	if v := md[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// proxied is one proxied call.
type proxied struct {
	r        *rpc
	body     *requestBody // nil if the request came whole
	answered bool         // the caller has a status, or is about to
}

// takeBody reads what there is of the request: all of a unary one, in one piece.
func (p *proxied) takeBody(req *call.Request) error {
	data, ended := p.r.st.First()
	m := meter{limit: p.r.s.o.MaxMessage}
	if err := m.add(data); err != nil {
		return err
	}
	p.r.received = m.bytes.Load()
	if ended {
		if !m.whole() {
			return errBadMessage
		}
		req.Data, req.Length = data, int64(len(data))
		if data == nil {
			req.Data = []byte{}
		}
		return nil
	}
	p.body = &requestBody{first: data, st: p.r.st}
	p.body.meter.limit, p.body.meter.have, p.body.meter.need, p.body.meter.prefix = m.limit, m.have, m.need, m.prefix
	p.body.meter.bytes.Store(p.r.received)
	req.Stream, req.Length = p.body, call.Unknown
	return nil
}

// requestBody is a streamed request: what came with the header, then the stream.
type requestBody struct {
	first []byte
	st    *h2.Stream
	meter meter
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	if len(b.first) > 0 {
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	n, err := b.st.Read(p)
	if n > 0 {
		if bad := b.meter.add(p[:n]); bad != nil {
			return 0, bad
		}
	}
	if call.Ended(err) {
		err = b.meter.end()
	}
	return n, err
}

// Close wakes a Read in progress; the rest is not wanted.
func (b *requestBody) Close() error {
	b.st.CloseRead()
	return nil
}

// count takes over how much of a streamed request has come; whoever ends the call observes it.
func (p *proxied) count() {
	if p.body != nil {
		p.r.received = p.body.meter.bytes.Load()
	}
}

// Respond implements call.Responder: header, messages as they come, trailer and status.
func (p *proxied) Respond(_ context.Context, resp *call.Response) error {
	r := p.r
	r.mu.Lock()
	r.header = wireFields(r.header, resp.Header, passedBack)
	r.mu.Unlock()
	if resp.Stream != nil {
		return p.respondStream(resp)
	}
	m := meter{}
	if err := m.add(resp.Data); err != nil || !m.whole() {
		return errBadMessage
	}
	r.sent = m.bytes.Load()
	p.count()
	p.answered = true
	if len(resp.Data) == 0 {
		p.finish(resp)
		return nil
	}
	st := p.tail(resp)
	r.done(st)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.headSent = true
	return gone(r.st.Respond(200, r.header, resp.Data, r.trailer))
}

// passedBack names are the protocol's own and belong to the answer's messages.
func passedBack(name string) bool { return name == encodingKey }

func gone(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(opProxy, fault.Canceled, err)
}

// pieces are buffers for bodies that are passed on.
var pieces = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

func (p *proxied) respondStream(resp *call.Response) error {
	r := p.r
	if err := r.sendHead(); err != nil {
		return gone(err)
	}
	p.answered = true
	var m meter
	err := passOn(r.st, resp.Stream, &m)
	r.sent = m.bytes.Load()
	p.count()
	var wrote *writeError
	switch {
	case errors.As(err, &wrote):
		return gone(wrote.error)
	case err != nil:
		r.end(proxyStatus(err))
		return err
	}
	p.finish(resp)
	return nil
}

// writeError is a failure of the side that passOn writes to.
type writeError struct{ error }

func (e *writeError) Unwrap() error { return e.error }

// passOn copies a body of messages as it comes; nil is its orderly end.
func passOn(to io.Writer, from io.Reader, m *meter) error {
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	for {
		n, err := from.Read(*buf)
		if n > 0 {
			if bad := m.add((*buf)[:n]); bad != nil {
				return bad
			}
			if _, werr := to.Write((*buf)[:n]); werr != nil {
				return &writeError{werr}
			}
		}
		if call.Ended(err) {
			if !m.whole() {
				return errBadMessage
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// finish sends the app's trailers and status.
func (p *proxied) finish(resp *call.Response) {
	code := p.tail(resp)
	r := p.r
	r.done(code)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.headSent:
		_ = r.st.CloseSend(r.trailer)
	case len(r.header) == 1:
		_ = r.st.Respond(200, append(r.header, r.trailer...), nil, nil)
	default:
		_ = r.st.Respond(200, r.header, nil, r.trailer)
	}
	r.headSent = true
}

// tail makes the app's trailer the call's, in wire form, and tells the status in it.
func (p *proxied) tail(resp *call.Response) codes.Code {
	var fs call.Fields
	if resp.Trailer != nil {
		fs = resp.Trailer()
	}
	r := p.r
	r.mu.Lock()
	defer r.mu.Unlock()
	code, ok := codeOf(fs)
	if !ok {
		r.trailer = statusFields(r.trailer, status.New(codes.Unknown, "the proxied call ended without a status"))
		return codes.Unknown
	}
	r.trailer = wireFields(r.trailer, fs, nil)
	r.trailer = append(r.trailer, call.Field{Name: trailerStatus, Value: codeText(code)})
	if msg := fs.Get(trailerMessage); msg != "" {
		r.trailer = append(r.trailer, call.Field{Name: trailerMessage, Value: escapeMessage(msg)})
	}
	if raw := fs.Get(trailerDetails); raw != "" {
		r.trailer = append(r.trailer, call.Field{Name: trailerDetails, Value: wireValue(trailerDetails, raw)})
	}
	return code
}

// proxyStatus is the status of a call that never got an answer.
func proxyStatus(err error) *status.Status {
	if e := apierr.Rejected(err); e != nil {
		return e.Status()
	}
	code := codes.Unknown
	if fault.ReasonOf(err) == fault.BreakerOpen {
		return status.New(code, err.Error()) // as Dapr has it
	}
	switch fault.Of(err) {
	case fault.Invalid:
		code = codes.Unknown
	case fault.Denied:
		code = codes.PermissionDenied
	case fault.Unauthenticated:
		code = codes.Unauthenticated
	case fault.Exhausted, fault.TooLarge:
		code = codes.ResourceExhausted
	case fault.Unavailable:
		code = codes.Unavailable
	case fault.Deadline:
		code = codes.DeadlineExceeded
	case fault.Canceled:
		code = codes.Canceled
	case fault.NotReady:
		code = codes.Internal
		if fault.ReasonOf(err) == fault.NoApp {
			code = codes.Unavailable
		}
	case fault.Internal:
		code = codes.Internal
	}
	return status.New(code, err.Error())
}
