package grpcapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// appConn is the way to the app's gRPC port: calls of generated stubs, one message each way,
// and raw ones of the proxy.
type appConn struct {
	wire      *h2.Client
	addr      string
	scheme    string
	limit     int // bytes of a message; 0: any
	userAgent string
}

var _ grpc.ClientConnInterface = (*appConn)(nil)

func newAppConn(o *ChannelOptions) *appConn {
	c := &appConn{addr: o.Address, scheme: "http", limit: max(o.MaxMessage, 0), userAgent: "grpc-go/" + grpc.Version}
	c.wire = &h2.Client{Addr: o.Address, MaxHeaderList: max(o.MaxHeader, 0), Dial: c.dial}
	if o.TLS {
		c.scheme = "https"
		c.wire.Dial = c.dialTLS
	}
	return c
}

func (c *appConn) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", c.addr)
}

func (c *appConn) dialTLS(ctx context.Context) (net.Conn, error) {
	nc, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	secure := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}) //nolint:gosec // see ChannelOptions.TLS
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	if p := secure.ConnectionState().NegotiatedProtocol; p != "" && p != "h2" {
		_ = nc.Close()
		return nil, fmt.Errorf("the app chose %q over TLS, not h2", p)
	}
	return secure, nil
}

// fieldSlices hold the header of a request while it is sent.
var fieldSlices = sync.Pool{New: func() any { fs := make(call.Fields, 0, 24); return &fs }}

// base begins a request's header.
func (c *appConn) base(ctx context.Context, fs call.Fields, ctype, userAgent string) call.Fields {
	if ctype == "" {
		ctype = grpcType
	}
	if userAgent == "" {
		userAgent = c.userAgent
	}
	fs = append(fs, call.Field{Name: "content-type", Value: ctype}, call.Field{Name: userAgentKey, Value: userAgent}, call.Field{Name: "te", Value: "trailers"})
	if deadline, ok := ctx.Deadline(); ok {
		fs = append(fs, call.Field{Name: timeoutKey, Value: formatTimeout(time.Until(deadline))})
	}
	return fs
}

// do sends a request whose fields are borrowed until it returns; a whole one is repeated if it
// provably reached nobody.
func (c *appConn) do(ctx context.Context, req *h2.Request) (*h2.Stream, error) {
	st, err := c.wire.Do(ctx, req)
	if err == nil {
		return st, nil
	}
	return nil, c.lost(err)
}

// lost is the error of a call that got no answer. A reset is an answer, of a kind.
func (c *appConn) lost(err error) error {
	if code, ok := h2.IsReset(err); ok && fault.SentOf(err) != fault.SentNever {
		return status.Error(codeOfReset(code), "stream terminated by RST_STREAM with error code: "+code.String())
	}
	dialled := strings.TrimPrefix(err.Error(), "dial ")
	if fault.Of(err) == fault.Unavailable && fault.SentOf(err) == fault.SentNever && dialled != err.Error() {
		return &lostError{fault.New(opChannel, fault.Unavailable, "dial app %s; is the app listening there, and is --app-protocol right?", dialled).
			With(fault.AppUnreachable).WithSent(fault.SentNever)}
	}
	return &lostError{fault.New(opChannel, fault.Of(err), "app %s", c.addr).WithSent(fault.SentOf(err)).Because(err)}
}

// lostError is a call the app did not answer, which has a status for those who ask for one.
type lostError struct{ cause *fault.Error }

func (e *lostError) Error() string { return e.cause.Error() }
func (e *lostError) Unwrap() error { return e.cause }

// GRPCStatus is what status.FromError looks for.
func (e *lostError) GRPCStatus() *status.Status { return proxyStatus(e.cause) }

// answered checks that an answer is gRPC's. Its header is taken off the wire.
func answered(st *h2.Stream) error {
	fs := st.Header()
	if code := st.Status(); code != 200 {
		if _, ok := codeOf(fs); !ok {
			return status.Errorf(codeOfHTTP(code), "unexpected HTTP status code received from server: %d", code)
		}
	}
	if ctype := fs.Get("content-type"); !isGRPC(ctype) {
		if _, ok := codeOf(fs); !ok {
			return status.Errorf(codes.Unknown, "unexpected content-type %q of the app's answer", ctype)
		}
	}
	return nil
}

// ending is the status an answer ends with, off the wire. err is why its body ended.
func ending(st *h2.Stream, err error) *status.Status {
	if err != nil && !call.Ended(err) {
		if code, ok := h2.IsReset(err); ok {
			return status.New(codeOfReset(code), "stream terminated by RST_STREAM with error code: "+code.String())
		}
		return proxyStatus(err)
	}
	if s, ok := wireStatus(st.Trailer()); ok {
		return s
	}
	if s, ok := wireStatus(st.Header()); ok { // no body, no trailer: all is in the header
		return s
	}
	return status.New(codes.Internal, "server closed the stream without sending trailers")
}

// Invoke implements grpc.ClientConnInterface. It knows the options Header, Trailer.
func (c *appConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	buf := buffers.Get().(*[]byte)
	fields := fieldSlices.Get().(*call.Fields)
	defer func() {
		if cap(*buf) <= keepAnswer {
			buffers.Put(buf)
		}
		clear(*fields)
		fieldSlices.Put(fields)
	}()
	body, err := appendProto((*buf)[:0], args, c.limit)
	if err != nil {
		return err
	}
	*buf = body
	fs := c.base(ctx, (*fields)[:0], "", "")
	if md, ok := metadata.FromOutgoingContext(ctx); ok {
		fs = wireMetadata(fs, md)
	}
	*fields = fs
	st, err := c.do(ctx, &h2.Request{Scheme: c.scheme, Authority: c.addr, Path: method, Fields: fs, Body: body, End: true})
	if err != nil {
		return err
	}
	defer st.Close()
	return c.finish(st, reply, opts)
}

// finish reads a unary answer.
func (c *appConn) finish(st *h2.Stream, reply any, opts []grpc.CallOption) error {
	if err := answered(st); err != nil {
		return err
	}
	body, ended := st.First()
	var broke error
	if !ended {
		body, broke = readBody(st, body, c.limit)
	}
	s := ending(st, broke)
	var lost *lostError
	if broke != nil {
		if err := c.lost(broke); errors.As(err, &lost) {
			return lost
		}
	}
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.HeaderCallOption:
			*o.HeaderAddr = decodedMetadata(st.Header())
		case grpc.TrailerCallOption:
			*o.TrailerAddr = decodedMetadata(st.Trailer())
		}
	}
	if s.Code() != codes.OK {
		return s.Err()
	}
	msg, err := oneMessage(body, c.limit, st.Header().Get(encodingKey))
	if err != nil {
		return err
	}
	return unmarshal(msg, reply)
}

// readBody reads the rest of a body behind its beginning, up to one message of the limit.
func readBody(r io.Reader, first []byte, limit int) ([]byte, error) {
	body := append(make([]byte, 0, max(2*len(first), 16<<10)), first...)
	for limit == 0 || len(body) <= limit+prefixLen {
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
		n, err := r.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if call.Ended(err) {
			return body, nil
		}
		if err != nil {
			return body, err
		}
	}
	return body, tooLarge(uint64(len(body)-prefixLen), limit)
}

// decodedMetadata is the metadata of a header or trailer.
func decodedMetadata(fs call.Fields) metadata.MD {
	md := metadata.MD{}
	for i := range fs {
		if name := fs[i].Name; !managed(name) {
			eachValue(name, fs[i].Value, func(v string) { md[name] = append(md[name], v) })
		}
	}
	return md
}

// NewStream implements grpc.ClientConnInterface. No callback of Dapr's streams.
func (c *appConn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "grpcapi: callbacks of the app do not stream")
}
