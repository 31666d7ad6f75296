package grpcapi

import (
	"encoding/binary"
	"io"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that the test's falls back to
	"google.golang.org/grpc/mem"
)

// Parts that are tested by themselves.
var (
	ErrBadMessage   = errBadMessage
	FieldsOf        = fieldsOf
	MetadataOf      = metadataOf
	Prefixed        = prefixed
	StatusTrailer   = statusTrailer
	StatusFields    = statusFields
	WireStatus      = wireStatus
	PlainFields     = plainFields
	WireFields      = wireFields
	ProxyStatus     = proxyStatus
	ParseTimeout    = parseTimeout
	FormatTimeout   = formatTimeout
	EscapeMessage   = escapeMessage
	UnescapeMessage = unescapeMessage
	IsGRPC          = isGRPC
	Groups          = groups
)

// AppendMessage frames one message given in parts.
func AppendMessage(b []byte, parts ...[]byte) []byte {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	b = binary.BigEndian.AppendUint32(append(b, 0), uint32(size))
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// Measure feeds a body to a meter in pieces and returns the message bytes counted and the error
// of its end.
func Measure(body []byte, piece, limit int) (int64, error) {
	m := meter{limit: limit}
	for len(body) > 0 {
		n := min(piece, len(body))
		if err := m.add(body[:n]); err != nil {
			return m.bytes.Load(), err
		}
		body = body[n:]
	}
	return m.bytes.Load(), m.end()
}

// ReadMessages reads all messages of a stream.
func ReadMessages(r io.Reader, limit int) (out [][]byte, err error) {
	var prefix [prefixLen]byte
	for {
		msg, err := readMessage(r, prefix[:], limit)
		if err != nil {
			return out, err
		}
		out = append(out, msg)
	}
}

// Frame is a message that the codec leaves alone.
type Frame struct{ data []byte }

// FrameOf wraps bytes.
func FrameOf(b []byte) *Frame { return &Frame{b} }

// Bytes is the message's content.
func (f *Frame) Bytes() []byte { return f.data }

// NewCodec is a codec of grpc-go for both kinds of messages: frames and generated ones.
func NewCodec() encoding.CodecV2 { return codec{encoding.GetCodecV2("proto")} }

type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*Frame); ok {
		return mem.BufferSlice{mem.SliceBuffer(f.data)}, nil
	}
	return c.CodecV2.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*Frame); ok {
		f.data = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
