package grpcapi

import (
	"context"
	"io"
	"net/http"
	"strconv"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// InvokeService calls a method of another app, whatever protocol that app speaks.
func (s *Server) InvokeService(ctx context.Context, in *runtimev1.InvokeServiceRequest) (*commonv1.InvokeResponse, error) {
	msg := in.GetMessage()
	if in.GetId() == "" {
		return nil, apierr.DirectInvoke.Because("failed to invoke, id: , err: app id is empty").Status().Err()
	}
	if msg == nil {
		return nil, invokeFailure(in.GetId(), fault.New("grpcapi.InvokeService", fault.Invalid, "the request has no message"))
	}
	method, err := call.CleanPath(msg.GetMethod())
	if err != nil {
		return nil, invokeFailure(in.GetId(), err)
	}
	md, _ := metadata.FromIncomingContext(ctx)
	req := &call.Request{Protocol: call.Unary, Target: in.GetId(), Path: method,
		Query: msg.GetHttpExtension().GetQuerystring(), TypeURL: msg.GetData().GetTypeUrl(),
		Data: msg.GetData().GetValue(), Header: invokeFields(md)}
	req.Length = int64(len(req.Data))
	if s.o.Tracing != nil {
		req.Header = s.o.Tracing.Request(ctx, req.Header)
	}
	if ext := msg.GetHttpExtension(); ext != nil {
		req.Verb = ext.GetVerb().String()
	}
	req.Type = msg.GetContentType()
	if req.TypeURL != "" {
		req.Type = "application/x-protobuf"
	}
	out := &unaryAnswer{ctx: ctx, limit: s.o.MaxMessage}
	if err := s.o.Invoke.Invoke(ctx, req, out); err != nil {
		return nil, invokeFailure(in.GetId(), err)
	}
	return out.resp, out.err
}

func invokeFailure(id string, err error) error {
	return apierr.Invoke(id, err).Status().Err()
}

// invokeFields keeps all metadata, the authority included: each kind of app shows it in its
// own way.
func invokeFields(md metadata.MD) call.Fields {
	fs := make(call.Fields, 0, len(md)+6)
	for name, values := range md {
		if name == tokenKey || name == "content-type" {
			continue
		}
		for _, v := range values {
			fs = append(fs, call.Field{Name: name, Value: v})
		}
	}
	return fs
}

// unaryAnswer turns an app's answer into InvokeService's.
type unaryAnswer struct {
	ctx   context.Context
	limit int
	resp  *commonv1.InvokeResponse
	err   error
}

// Respond implements call.Responder.
func (u *unaryAnswer) Respond(_ context.Context, resp *call.Response) error {
	data := resp.Data
	if resp.Stream != nil {
		var err error
		if data, err = readLimited(resp.Stream, u.limit); err != nil {
			return err
		}
	}
	if resp.FromGRPC {
		return u.fromGRPC(resp, data)
	}
	md := prefixed(resp.Header, metadata.MD{})
	md.Set("dapr-http-status", strconv.Itoa(resp.Status))
	_ = grpc.SetHeader(u.ctx, md)
	if resp.Status < 200 || resp.Status > 299 {
		u.err = apierr.FromHTTPApp(resp.Status, http.StatusText(resp.Status), data).Err()
		return nil
	}
	u.answer(resp, data)
	return nil
}

func (u *unaryAnswer) fromGRPC(resp *call.Response, data []byte) error {
	_ = grpc.SetHeader(u.ctx, metadataOf(resp.Header))
	if resp.Trailer != nil {
		_ = grpc.SetTrailer(u.ctx, metadataOf(resp.Trailer()))
	}
	if resp.GRPCStatus == nil {
		u.answer(resp, data)
		return nil
	}
	var p spb.Status
	if err := proto.Unmarshal(resp.GRPCStatus, &p); err != nil {
		return fault.Wrap("grpcapi.InvokeService", fault.Internal, err)
	}
	u.err = status.FromProto(&p).Err()
	return nil
}

// answer copies the data: the response's memory is borrowed.
func (u *unaryAnswer) answer(resp *call.Response, data []byte) {
	u.resp = &commonv1.InvokeResponse{ContentType: resp.Type, Data: &anypb.Any{TypeUrl: resp.TypeURL, Value: append([]byte{}, data...)}}
}

func readLimited(r io.Reader, limit int) ([]byte, error) {
	if limit <= 0 {
		return io.ReadAll(r)
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = fault.New("grpcapi.InvokeService", fault.TooLarge, "the app's answer is over the limit of %d bytes (--max-body-size)", limit)
	}
	return b, err
}
