package grpcapi

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that passthrough falls back to
	"google.golang.org/grpc/mem"
)

// frame is one message as bytes, passed through undecoded.
type frame struct{ data mem.BufferSlice }

// free releases the message's buffers.
func (f *frame) free() {
	if f.data != nil {
		f.data.Free()
		f.data = nil
	}
}

// passthrough is the "proto" codec that leaves frames alone.
type passthrough struct{ proto encoding.CodecV2 }

func newCodec() encoding.CodecV2 {
	return passthrough{proto: encoding.GetCodecV2("proto")}
}

func (c passthrough) Name() string { return "proto" }

func (c passthrough) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return f.data, nil
	}
	b, err := c.proto.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("grpcapi: %w", err)
	}
	return b, nil
}

func (c passthrough) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		data.Ref() // the caller frees its own reference
		f.data = data
		return nil
	}
	return c.proto.Unmarshal(data, v)
}
