package grpcapi

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
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
	conn     *appConn
	callback runtimev1.AppCallbackClient
	health   runtimev1.AppCallbackHealthCheckClient
	alpha    runtimev1.AppCallbackAlphaClient
}

var _ app.Channel = (*AppChannel)(nil)

// NewAppChannel makes a channel. It connects on first use.
func NewAppChannel(o ChannelOptions) (*AppChannel, error) {
	conn := newAppConn(&o)
	return &AppChannel{o: o, conn: conn, callback: runtimev1.NewAppCallbackClient(conn),
		health: runtimev1.NewAppCallbackHealthCheckClient(conn), alpha: runtimev1.NewAppCallbackAlphaClient(conn)}, nil
}

// Close closes the connection; calls in flight fail.
func (c *AppChannel) Close() error { return c.conn.wire.Close() }

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
	start := time.Now()
	out, err := c.callback.OnInvoke(metadata.NewOutgoingContext(ctx, md), in, grpc.Header(&header), grpc.Trailer(&trailer))
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
		var lost *lostError
		if errors.As(err, &lost) {
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

// faultOf is the code of a callback's failure.
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
