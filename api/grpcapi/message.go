package grpcapi

import (
	"encoding/binary"
	"io"

	"google.golang.org/grpc/mem"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// A proxied call's body is a sequence of messages, each with the five-byte prefix that gRPC
// itself uses: a zero flag byte (messages travel uncompressed) and the length, big-endian.
const prefixLen = 5

// appendMessage adds one message to a body.
func appendMessage(b []byte, m mem.BufferSlice) []byte {
	b = append(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(m.Len()))
	for _, buf := range m {
		b = append(b, buf.ReadOnlyData()...)
	}
	return b
}

// cutMessage takes the first message off a whole body.
func cutMessage(body []byte) (msg, rest []byte, err error) {
	if len(body) < prefixLen {
		return nil, nil, errBadMessage
	}
	n := int(binary.BigEndian.Uint32(body[1:]))
	if body[0] != 0 || n > len(body)-prefixLen {
		return nil, nil, errBadMessage
	}
	end := prefixLen + n
	return body[prefixLen:end:end], body[end:], nil
}

var errBadMessage = fault.New("grpcapi.message", fault.Internal, "the proxied call's body is not a sequence of gRPC messages")

// messages reads messages from a streamed body.
type messages struct {
	r      io.Reader
	prefix [prefixLen]byte
	limit  int
}

// next returns the next message, in memory of its own. io.EOF means an orderly end.
func (m *messages) next() ([]byte, error) {
	if _, err := io.ReadFull(m.r, m.prefix[:]); err != nil {
		if cutShort(err) {
			return nil, errBadMessage
		}
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(m.prefix[1:]))
	if m.prefix[0] != 0 {
		return nil, errBadMessage
	}
	if m.limit > 0 && n > m.limit {
		return nil, fault.New("grpcapi.message", fault.TooLarge, "a message of %d bytes is over the limit of %d", n, m.limit)
	}
	// Grow with the bytes that come, not with the length that is claimed.
	buf := make([]byte, 0, min(n, 64<<10))
	for len(buf) < n {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		k := min(cap(buf), n)
		got, err := io.ReadFull(m.r, buf[len(buf):k])
		buf = buf[:len(buf)+got]
		if err != nil {
			if call.Ended(err) || cutShort(err) {
				err = errBadMessage
			}
			return nil, err
		}
	}
	return buf, nil
}

// cutShort reports io.ReadFull's own word for an orderly end at the wrong place; an error
// that wraps it tells of a broken connection.
func cutShort(err error) bool { return err == io.ErrUnexpectedEOF } //nolint:errorlint // see above

// frameOf wraps bytes for the pass-through codec.
func frameOf(msg []byte) *frame { return &frame{data: mem.BufferSlice{mem.SliceBuffer(msg)}} }
