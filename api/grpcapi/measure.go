package grpcapi

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// sizeOf is a message's size in bytes as it travels, without gRPC's framing.
func sizeOf(m any) int64 {
	switch m := m.(type) {
	case *frame:
		return int64(m.data.Len())
	case proto.Message:
		return int64(proto.Size(m))
	}
	return 0
}

// serverStream is a stream of our API with its own context, which counts message bytes.
type serverStream struct {
	grpc.ServerStream
	ctx            context.Context
	received, sent atomic.Int64
}

func (s *serverStream) Context() context.Context { return s.ctx }

func (s *serverStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		s.received.Add(sizeOf(m))
	}
	return err
}

func (s *serverStream) SendMsg(m any) error {
	n := sizeOf(m) // now: a frame's memory is given away
	err := s.ServerStream.SendMsg(m)
	if err == nil {
		s.sent.Add(n)
	}
	return err
}

// measuredCall is a proxied call to the app, which is observed when it ends: when there is
// nothing more to receive.
type measuredCall struct {
	grpc.ClientStream
	observe        ClientObserver
	method         string
	start          time.Time
	sent, received atomic.Int64
	ended          atomic.Bool
}

func (m *measuredCall) SendMsg(v any) error {
	n := sizeOf(v)
	err := m.ClientStream.SendMsg(v)
	if err == nil {
		m.sent.Add(n)
	}
	return err
}

func (m *measuredCall) RecvMsg(v any) error {
	err := m.ClientStream.RecvMsg(v)
	switch {
	case err == nil:
		m.received.Add(sizeOf(v))
	case errors.Is(err, io.EOF):
		m.end(codes.OK)
	default:
		m.end(status.Code(err))
	}
	return err
}

func (m *measuredCall) end(code codes.Code) {
	if m.ended.CompareAndSwap(false, true) {
		m.observe.GRPCCalled(m.method, code, m.sent.Load(), m.received.Load(), time.Since(m.start))
	}
}
