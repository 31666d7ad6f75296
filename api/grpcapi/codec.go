package grpcapi

import (
	"fmt"
	"strings"

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
type passthrough struct {
	proto encoding.CodecV2
	name  string
}

// newCodec is the codec of our own API.
func newCodec() encoding.CodecV2 {
	return passthrough{proto: encoding.GetCodecV2("proto"), name: "proto"}
}

// newRawCodec is the codec of proxied calls. It has no name, because a name becomes part of
// the content type, and that is the caller's.
func newRawCodec() encoding.CodecV2 {
	return passthrough{proto: encoding.GetCodecV2("proto")}
}

// subtype is what a gRPC content type says behind "application/grpc+": the encoding of the
// messages. Empty is the default, protobuf.
func subtype(contentType string) string {
	const prefix = "application/grpc+"
	if len(contentType) <= len(prefix) || !strings.EqualFold(contentType[:len(prefix)], prefix) {
		return ""
	}
	sub, _, _ := strings.Cut(contentType[len(prefix):], ";")
	return strings.ToLower(sub)
}

func (c passthrough) Name() string { return c.name }

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
