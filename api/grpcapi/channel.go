package grpcapi

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/call"
)

// ChannelOptions say how to reach a gRPC app.
type ChannelOptions struct {
	Address    string // host:port
	TLS        bool   // grpcs; the app's certificate is not verified, as in Dapr
	MaxMessage int    // bytes of a message; 0 means no limit
	MaxHeader  int    // bytes of the header list
	Token      string // APP_API_TOKEN, sent with events; other calls bring it along
	Observe    ClientObserver
}

// ClientObserver measures calls into the app.
type ClientObserver interface {
	GRPCCalled(method string, code codes.Code, sent, received int64, took time.Duration)
	// GRPCProbed is told of answered health probes.
	GRPCProbed(code codes.Code, took time.Duration)
}

// AppChannel calls an app over gRPC. It implements app.Channel.
type AppChannel struct {
	o        ChannelOptions
	conn     *grpc.ClientConn
	codec    encoding.CodecV2
	callback runtimev1.AppCallbackClient
	health   runtimev1.AppCallbackHealthCheckClient
	alpha    runtimev1.AppCallbackAlphaClient
}

var _ app.Channel = (*AppChannel)(nil)

// NewAppChannel makes a channel. It connects on first use.
func NewAppChannel(o ChannelOptions) (*AppChannel, error) {
	creds := insecure.NewCredentials()
	if o.TLS {
		creds = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	}
	limit := o.MaxMessage
	if limit <= 0 {
		limit = 1<<31 - 1
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(limit), grpc.MaxCallSendMsgSize(limit)),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithNoProxy(),
		grpc.WithIdleTimeout(0),
	}
	if o.MaxHeader > 0 {
		opts = append(opts, grpc.WithMaxHeaderListSize(uint32(o.MaxHeader)))
	}
	conn, err := grpc.NewClient("passthrough:///"+o.Address, opts...)
	if err != nil {
		return nil, fault.Wrap("grpcapi.channel", fault.Invalid, err)
	}
	return &AppChannel{o: o, conn: conn, codec: newRawCodec(), callback: runtimev1.NewAppCallbackClient(conn),
		health: runtimev1.NewAppCallbackHealthCheckClient(conn), alpha: runtimev1.NewAppCallbackAlphaClient(conn)}, nil
}

// Close closes the connection; calls in flight fail.
func (c *AppChannel) Close() error { return c.conn.Close() }

// Probe asks AppCallbackHealthCheck; any OK is healthy.
func (c *AppChannel) Probe(ctx context.Context) error {
	start := time.Now()
	_, err := c.health.HealthCheck(ctx, &emptypb.Empty{})
	if c.o.Observe != nil {
		c.o.Observe.GRPCProbed(status.Code(err), time.Since(start))
	}
	if err == nil {
		return nil
	}
	if st := status.Convert(err); st.Code() != codes.Unavailable && st.Code() != codes.DeadlineExceeded {
		return &app.StatusError{Text: "status code: " + st.Code().String()}
	}
	return err
}

// Invoke calls the app: a proxied call as it is, any other through AppCallback.OnInvoke.
func (c *AppChannel) Invoke(ctx context.Context, req *call.Request) (*call.Response, error) {
	if req.Protocol == call.GRPC {
		return c.proxy(ctx, req)
	}
	return c.onInvoke(ctx, req)
}

const opChannel fault.Op = "grpcapi.channel"

// unreached turns a gRPC error of the connection into a fault; nil when the app answered.
func (c *AppChannel) unreached(err error, p *peer.Peer) error {
	if p != nil && p.Addr != nil && status.Code(err) != codes.Unavailable {
		return nil
	}
	if p == nil || p.Addr == nil {
		return fault.New(opChannel, fault.Unavailable, "dial app %s: %s; is the app listening there, and is --app-protocol right?", c.o.Address, status.Convert(err).Message()).
			With(fault.AppUnreachable).WithSent(fault.SentNever)
	}
	return nil
}

func (c *AppChannel) onInvoke(ctx context.Context, req *call.Request) (*call.Response, error) {
	data, err := wholeBody(req, c.o.MaxMessage)
	if err != nil {
		return nil, err
	}
	in := &commonv1.InvokeRequest{Method: req.Path, ContentType: req.Type,
		Data:          &anypb.Any{Value: data, TypeUrl: req.TypeURL},
		HttpExtension: &commonv1.HTTPExtension{Verb: verbOf(req.Verb), Querystring: req.Query}}
	var md metadata.MD
	if req.Protocol == call.HTTP {
		md = prefixed(req.Header, metadata.MD{})
	} else {
		md = metadataOf(req.Header)
	}
	var header, trailer metadata.MD
	var p peer.Peer
	start := time.Now()
	out, err := c.callback.OnInvoke(metadata.NewOutgoingContext(ctx, md), in, grpc.Header(&header), grpc.Trailer(&trailer), grpc.Peer(&p))
	c.observe("/dapr.proto.runtime.v1.AppCallback/OnInvoke", err, len(data), len(out.GetData().GetValue()), start)
	resp := &call.Response{FromGRPC: true, Status: 200, Header: fieldsOf(header, nil)}
	if len(trailer) > 0 {
		fs := fieldsOf(trailer, nil)
		resp.Trailer = func() call.Fields { return fs }
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, fault.Wrap(opChannel, fault.Canceled, ctx.Err())
		}
		if lost := c.unreached(err, &p); lost != nil {
			return nil, lost
		}
		raw, merr := proto.Marshal(status.Convert(err).Proto())
		if merr != nil {
			return nil, fault.Wrap(opChannel, fault.Internal, merr)
		}
		resp.GRPCStatus = raw
		return resp, nil
	}
	resp.Type, resp.TypeURL = out.GetContentType(), out.GetData().GetTypeUrl()
	resp.Data = out.GetData().GetValue()
	resp.Length = int64(len(resp.Data))
	return resp, nil
}

func (c *AppChannel) observe(method string, err error, sent, received int, start time.Time) {
	if c.o.Observe != nil {
		c.o.Observe.GRPCCalled(method, status.Code(err), int64(sent), int64(received), time.Since(start))
	}
}

// wholeBody reads a streamed body, for apps that take only whole messages.
func wholeBody(req *call.Request, limit int) ([]byte, error) {
	if req.Stream == nil {
		return req.Data, nil
	}
	defer req.Stream.Close()
	r := io.Reader(req.Stream)
	if limit > 0 {
		r = io.LimitReader(req.Stream, int64(limit)+1)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if limit > 0 && len(data) > limit {
		return nil, fault.New(opChannel, fault.TooLarge, "the request body is over the limit of %d bytes of a gRPC app's message (--max-body-size)", limit)
	}
	return data, nil
}

func verbOf(v string) commonv1.HTTPExtension_Verb {
	return commonv1.HTTPExtension_Verb(commonv1.HTTPExtension_Verb_value[strings.ToUpper(v)])
}

// proxy sends a proxied call on, byte for byte.
func (c *AppChannel) proxy(ctx context.Context, req *call.Request) (*call.Response, error) {
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(ctx, metadataOf(req.Header)))
	only, single := singleMessage(req)
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: !single}
	opts := make([]grpc.CallOption, 0, 2)
	opts = append(opts, grpc.ForceCodecV2(c.codec))
	if sub := subtype(req.Type); sub != "" {
		opts = append(opts, grpc.CallContentSubtype(sub))
	}
	start := time.Now()
	cs, err := c.conn.NewStream(ctx, desc, req.Path, opts...)
	if err != nil {
		gone := ctx.Err() != nil // asked before we end it ourselves
		cancel()
		c.observe(req.Path, err, 0, 0, start)
		if lost := c.unreached(err, nil); lost != nil && !gone {
			return nil, lost
		}
		return nil, fault.Wrap(opChannel, faultOf(err), err)
	}
	var measured *measuredCall
	if c.o.Observe != nil {
		measured = &measuredCall{ClientStream: cs, observe: c.o.Observe, method: req.Path, start: start}
		cs = measured
	}
	if single {
		err = cs.SendMsg(frameOf(only)) // ends the request too: the stream is declared unary
	} else {
		err = c.upload(cs, req, cancel)
	}
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: the answer tells why
		cancel()
		return nil, fault.Wrap(opChannel, faultOf(err), err)
	}
	header, err := cs.Header()
	if err != nil {
		cancel()
		if measured != nil {
			measured.end(status.Code(err))
		}
		if lost := c.unreached(err, peerOf(cs)); lost != nil {
			return nil, lost
		}
		fs := statusTrailer(nil, status.Convert(err))
		return &call.Response{Status: 200, Data: []byte{}, Trailer: func() call.Fields { return fs }}, nil
	}
	resp := &call.Response{Status: 200, Header: fieldsOf(header, nil)}
	body := &reply{pump: startPump(cs, nil), cs: cs, cancel: cancel}
	if body.pump.over() {
		var end error
		resp.Data, end = body.pump.rest()
		resp.Length = int64(len(resp.Data))
		fs := endOf(cs, end)
		resp.Trailer = func() call.Fields { return fs }
		cancel()
		return resp, nil
	}
	resp.Stream, resp.Length, resp.Trailer = body, call.Unknown, body.trailer
	return resp, nil
}

func peerOf(cs grpc.ClientStream) *peer.Peer {
	p, _ := peer.FromContext(cs.Context())
	return p
}

func faultOf(err error) fault.Code {
	switch status.Code(err) {
	case codes.Canceled:
		return fault.Canceled
	case codes.DeadlineExceeded:
		return fault.Deadline
	case codes.ResourceExhausted:
		return fault.TooLarge
	}
	return fault.Unavailable
}

// singleMessage reports a request that is one whole message: then its end travels with it.
func singleMessage(req *call.Request) ([]byte, bool) {
	if req.Stream != nil {
		return nil, false
	}
	msg, rest, err := cutMessage(req.Data)
	if err != nil || len(rest) > 0 {
		return nil, false
	}
	// grpc-go writes from another goroutine, maybe after the call; Data is borrowed.
	return append([]byte(nil), msg...), true
}

// upload sends the messages of a request that is not a single one: those at hand now, a
// stream's beside the answer.
func (c *AppChannel) upload(cs grpc.ClientStream, req *call.Request, cancel context.CancelFunc) error {
	if req.Stream == nil {
		for body := req.Data; len(body) > 0; {
			msg, rest, err := cutMessage(body)
			if err != nil {
				return err
			}
			if err := cs.SendMsg(frameOf(append([]byte(nil), msg...))); err != nil {
				return err
			}
			body = rest
		}
		return cs.CloseSend()
	}
	go func() {
		defer req.Stream.Close()
		in := &messages{r: req.Stream, limit: c.o.MaxMessage}
		for {
			msg, err := in.next()
			if call.Ended(err) {
				_ = cs.CloseSend()
				return
			}
			if err != nil {
				cancel() // the caller broke off; the app must see that
				return
			}
			if cs.SendMsg(frameOf(msg)) != nil {
				return // the answer tells why
			}
		}
	}()
	return nil
}

// reply is the streamed body of a proxied answer. Whatever status the app ends with, the body
// ends in order: the status is the trailer's.
type reply struct {
	*pump
	cs     grpc.ClientStream
	cancel context.CancelFunc
	end    error
}

func (r *reply) Read(p []byte) (int, error) {
	n, err := r.pump.Read(p)
	if err != nil && !errors.Is(err, errClosed) {
		r.end = err
		r.cancel()
		return n, io.EOF
	}
	return n, err
}

func (r *reply) trailer() call.Fields { return endOf(r.cs, r.end) }

func (r *reply) Close() error {
	r.cancel()
	return r.pump.Close()
}

// endOf is the trailer of a proxied answer.
func endOf(cs grpc.ClientStream, end error) call.Fields {
	if errors.Is(end, io.EOF) {
		end = nil
	}
	return statusTrailer(cs.Trailer(), status.Convert(end))
}
