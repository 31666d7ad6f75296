package main

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

// The gRPC app and client carry bytes without protobuf: what is measured is the way, not the
// marshalling at its ends.

// echoMethod is the one method of the gRPC app.
const echoMethod = "/mecha.bench.Echo/Echo"

// carried is a message that is kept as it came; size is a message of which only the length
// matters.
type (
	carried struct{ data mem.BufferSlice }
	size    int
)

// rawCodec takes messages as they are.
type rawCodec struct{}

// Name is empty so that the content type is plain application/grpc, as generated clients send.
func (rawCodec) Name() string { return "" }

// Marshal gives the transport the bytes themselves.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case []byte:
		return mem.BufferSlice{mem.SliceBuffer(m)}, nil
	case *carried:
		return m.data, nil // with the reference taken in Unmarshal
	}
	return nil, fmt.Errorf("rawCodec cannot send a %T", v)
}

// Unmarshal keeps or counts the bytes.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *carried:
		data.Ref()
		m.data = data
	case *size:
		*m = size(data.Len())
	default:
		return fmt.Errorf("rawCodec cannot receive a %T", v)
	}
	return nil
}

// serveGRPC serves the echo method until the process ends.
func serveGRPC(l net.Listener) {
	s := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}))
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "mecha.bench.Echo",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo",
			Handler: func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				m := &carried{}
				return m, dec(m)
			}}},
	}, nil)
	_ = s.Serve(l)
}
