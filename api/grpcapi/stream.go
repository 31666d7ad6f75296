package grpcapi

import (
	"context"
	"encoding/binary"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/runtime/call"
)

// serverStream is a call of a streaming method of our own. One goroutine may send and another
// receive.
type serverStream struct {
	r              *rpc
	ctx            context.Context
	received, sent atomic.Int64
	prefix         [prefixLen]byte
	out            []byte // of SendMsg
}

var _ grpc.ServerStream = (*serverStream)(nil)

// stream answers a streaming method of our own.
func (r *rpc) stream(m method) {
	ctx, err := r.admit(r.st.Context())
	ss := &serverStream{r: r}
	if r.span != nil {
		_ = r.SetHeader(r.span.Response())
	}
	if err == nil {
		ss.ctx = grpc.NewContextWithServerTransportStream(metadata.NewIncomingContext(ctx, r.md), r)
		_, err = guarded(func() (any, error) { return nil, m.stream.Handler(m.srv, ss) })
	}
	r.received, r.sent = ss.received.Load(), ss.sent.Load()
	if err != nil {
		r.fail(err)
		return
	}
	r.end(okStatus)
}

func (s *serverStream) Context() context.Context        { return s.ctx }
func (s *serverStream) SetHeader(md metadata.MD) error  { return s.r.SetHeader(md) }
func (s *serverStream) SendHeader(md metadata.MD) error { return s.r.SendHeader(md) }
func (s *serverStream) SetTrailer(md metadata.MD)       { _ = s.r.SetTrailer(md) }

// SendMsg sends one message.
func (s *serverStream) SendMsg(m any) error {
	b, err := appendProto(s.out[:0], m, s.r.s.o.MaxMessage)
	if err != nil {
		return err
	}
	if s.out = b; cap(b) > keepAnswer {
		s.out = nil
	}
	if err := s.r.sendHead(); err != nil {
		return streamStatus(err).Err()
	}
	if _, err := s.r.st.Write(b); err != nil {
		return streamStatus(err).Err()
	}
	s.sent.Add(int64(len(b) - prefixLen))
	return nil
}

// RecvMsg receives one message. io.EOF is the caller's orderly end.
func (s *serverStream) RecvMsg(m any) error {
	msg, err := readMessage(s.r.st, s.prefix[:], s.r.s.o.MaxMessage)
	if err != nil {
		return err
	}
	if msg, err = inflate(s.prefix[0], msg, s.r.s.o.MaxMessage, s.r.st.Header().Get(encodingKey)); err != nil {
		return err
	}
	s.received.Add(int64(len(msg)))
	return unmarshal(msg, m)
}

// readMessage reads one message into memory of its own, which grows with the bytes that come,
// not with the length that is claimed.
func readMessage(r io.Reader, prefix []byte, limit int) ([]byte, error) {
	if _, err := io.ReadFull(r, prefix); err != nil {
		return nil, messageError(err, true)
	}
	size := binary.BigEndian.Uint32(prefix[1:])
	if limit > 0 && uint64(size) > uint64(limit) {
		return nil, status.Error(codes.ResourceExhausted, tooLarge(uint64(size), limit).Error())
	}
	buf := make([]byte, 0, min(int(size), 64<<10))
	for len(buf) < int(size) {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := io.ReadFull(r, buf[len(buf):min(cap(buf), int(size))])
		buf = buf[:len(buf)+n]
		if err != nil {
			return nil, messageError(err, false)
		}
	}
	return buf, nil
}

// messageError is the error of a message that did not come; between two messages a body may
// end.
func messageError(err error, between bool) error {
	switch {
	case call.Ended(err) && between:
		return io.EOF
	case call.Ended(err), err == io.ErrUnexpectedEOF: //nolint:errorlint // io.ReadFull's own
		return status.Error(codes.Internal, io.ErrUnexpectedEOF.Error())
	}
	return streamStatus(err).Err()
}
