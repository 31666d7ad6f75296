package grpcapi

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

const (
	calleeKey = "dapr-callee-app-id"
	appKey    = "dapr-app-id"
	tokenKey  = "dapr-api-token"
)

// proxy carries a call of a service this sidecar does not have to the app named in the
// metadata. It serves all four kinds of streams: to a proxy they are one.
func (s *Server) proxy(_ any, ss grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(ss.Context())
	target := first(md, calleeKey)
	if target == "" {
		target = first(md, appKey)
	}
	if target == "" {
		return status.Error(codes.Unknown, "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata")
	}
	method, _ := grpc.MethodFromServerStream(ss)
	req := &call.Request{Protocol: call.GRPC, Target: target, Path: method, Type: first(md, "content-type"),
		Header: fieldsOf(md, func(name string) bool { return name != appKey && name != tokenKey })}
	if s.o.Tracing != nil {
		req.Header = s.o.Tracing.Request(ss.Context(), req.Header)
	}
	p := &proxied{ss: ss}
	if err := p.takeBody(req); err != nil {
		return err
	}
	err := s.o.Invoke.Invoke(ss.Context(), req, p)
	if err != nil && p.end == nil {
		return proxyFailure(err)
	}
	if p.end == nil || p.end.Code() == codes.OK {
		return nil
	}
	return p.end.Err()
}

func first(md metadata.MD, name string) string {
	if v := md[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// proxied is one proxied call.
type proxied struct {
	ss  grpc.ServerStream
	end *status.Status
}

// takeBody reads the request's beginning. Most calls are one message and its end, and then the
// whole body travels in one piece; others are streamed.
func (p *proxied) takeBody(req *call.Request) error {
	var f frame
	err := p.ss.RecvMsg(&f)
	if errors.Is(err, io.EOF) {
		req.Data = []byte{}
		return nil
	}
	if err != nil {
		return err
	}
	data := appendMessage(make([]byte, 0, prefixLen+f.data.Len()), f.data)
	f.free()
	in := startPump(p.ss, data)
	if in.ended() {
		req.Data, req.Length = data, int64(len(data))
		return nil
	}
	req.Stream, req.Length = in, call.Unknown
	return nil
}

// Respond implements call.Responder: headers, messages as they come, trailers and status.
func (p *proxied) Respond(_ context.Context, resp *call.Response) error {
	if err := p.ss.SetHeader(metadataOf(resp.Header)); err != nil {
		return fault.Wrap("grpcapi.proxy", fault.Canceled, err)
	}
	if resp.Stream == nil {
		return p.respondWhole(resp)
	}
	if err := p.ss.SendHeader(nil); err != nil {
		return fault.Wrap("grpcapi.proxy", fault.Canceled, err)
	}
	in := &messages{r: resp.Stream}
	for {
		msg, err := in.next()
		if call.Ended(err) {
			break
		}
		if err != nil {
			p.end = proxyStatus(err)
			return err
		}
		if err := p.ss.SendMsg(frameOf(msg)); err != nil {
			return fault.Wrap("grpcapi.proxy", fault.Canceled, err)
		}
	}
	p.finish(resp)
	return nil
}

func (p *proxied) respondWhole(resp *call.Response) error {
	for body := resp.Data; len(body) > 0; {
		msg, rest, err := cutMessage(body)
		if err != nil {
			return err
		}
		// grpc-go may hold the message beyond this call, and Data is borrowed.
		if err := p.ss.SendMsg(frameOf(append([]byte(nil), msg...))); err != nil {
			return fault.Wrap("grpcapi.proxy", fault.Canceled, err)
		}
		body = rest
	}
	p.finish(resp)
	return nil
}

func (p *proxied) finish(resp *call.Response) {
	var fs call.Fields
	if resp.Trailer != nil {
		fs = resp.Trailer()
	}
	md, st := trailerOf(fs)
	p.ss.SetTrailer(md)
	p.end = st
}

// proxyFailure is the status of a call that never got an answer.
func proxyFailure(err error) error { return proxyStatus(err).Err() }

func proxyStatus(err error) *status.Status {
	code := codes.Unknown
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
