package grpcapi

import (
	"context"
	"io"

	"google.golang.org/grpc/mem"
)

// Parts that are tested by themselves.
var (
	CutMessage    = cutMessage
	ErrBadMessage = errBadMessage
	FieldsOf      = fieldsOf
	MetadataOf    = metadataOf
	Prefixed      = prefixed
	StatusTrailer = statusTrailer
	TrailerOf     = trailerOf
	ProxyStatus   = proxyStatus
	Groups        = groups
	NewCodec      = newCodec
)

// AppendMessage frames one message given in parts.
func AppendMessage(b []byte, parts ...[]byte) []byte {
	var m mem.BufferSlice
	for _, p := range parts {
		m = append(m, mem.SliceBuffer(p))
	}
	return appendMessage(b, m)
}

// ReadMessages reads all messages of a stream.
func ReadMessages(r io.Reader, limit int) (out [][]byte, err error) {
	m := messages{r: r, limit: limit}
	for {
		msg, err := m.next()
		if err != nil {
			return out, err
		}
		out = append(out, msg)
	}
}

// Pump is a pump over messages that recv gives.
func Pump(ctx context.Context, recv func() ([]byte, error), first []byte) (r io.ReadCloser, ended func() bool) {
	p := startPump(fakeSource{ctx, recv}, first)
	return p, p.ended
}

type fakeSource struct {
	ctx  context.Context
	recv func() ([]byte, error)
}

func (s fakeSource) Context() context.Context { return s.ctx }

func (s fakeSource) RecvMsg(m any) error {
	b, err := s.recv()
	if err != nil {
		return err
	}
	m.(*frame).data = mem.BufferSlice{mem.SliceBuffer(b)}
	return nil
}

// Frame is a message that the codec leaves alone.
type Frame = frame

// FrameOf and Bytes convert.
func FrameOf(b []byte) *Frame { return frameOf(b) }

// Bytes is the message's content.
func (f *frame) Bytes() []byte { return f.data.Materialize() }
