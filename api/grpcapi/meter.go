package grpcapi

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/components/fault"
)

// meter follows the messages of a body that is passed on as it is: it counts them, refuses one
// that is over the limit, and knows whether the body ends where a message does. One goroutine
// feeds it; bytes may be asked for by any.
type meter struct {
	limit  int // bytes of a message; 0: any
	prefix [prefixLen]byte
	have   int // bytes of prefix seen
	need   int // bytes of the message to come
	bytes  atomic.Int64
}

// add takes the next piece of the body.
func (m *meter) add(p []byte) error {
	for len(p) > 0 {
		if m.need > 0 {
			n := min(m.need, len(p))
			m.need -= n
			p = p[n:]
			continue
		}
		n := copy(m.prefix[m.have:], p)
		m.have += n
		p = p[n:]
		if m.have < prefixLen {
			return nil
		}
		m.have = 0
		size := binary.BigEndian.Uint32(m.prefix[1:])
		if m.prefix[0] > 1 {
			return errBadMessage
		}
		if m.limit > 0 && uint64(size) > uint64(m.limit) {
			return tooLarge(uint64(size), m.limit)
		}
		m.need = int(size)
		m.bytes.Add(int64(size))
	}
	return nil
}

// whole reports that the body so far ends with a message.
func (m *meter) whole() bool { return m.have == 0 && m.need == 0 }

// end is the error of a body that ends here.
func (m *meter) end() error {
	if m.whole() {
		return io.EOF
	}
	return errBadMessage
}

// tooLarge speaks gRPC's usual words.
func tooLarge(size uint64, limit int) *fault.Error {
	return fault.New("grpcapi.message", fault.TooLarge, "grpc: received message larger than max (%d vs. %d)", size, limit)
}

// oneMessage takes the only message out of a whole body.
func oneMessage(body []byte, limit int, encoding string) ([]byte, error) {
	if len(body) < prefixLen {
		return nil, status.Error(codes.Internal, "cardinality violation: received no request message from non-client-streaming RPC")
	}
	size := binary.BigEndian.Uint32(body[1:])
	if limit > 0 && uint64(size) > uint64(limit) {
		return nil, status.Error(codes.ResourceExhausted, tooLarge(uint64(size), limit).Error())
	}
	switch rest := uint64(len(body) - prefixLen); {
	case uint64(size) > rest:
		return nil, status.Error(codes.Internal, io.ErrUnexpectedEOF.Error())
	case uint64(size) < rest:
		return nil, status.Error(codes.Internal, "cardinality violation: received multiple request messages for non-client-streaming RPC")
	}
	return inflate(body[0], body[prefixLen:], limit, encoding)
}

// inflate undoes a message's compression.
func inflate(flag byte, msg []byte, limit int, encoding string) ([]byte, error) {
	if flag == 0 {
		return msg, nil
	}
	if flag != 1 || encoding == "" || encoding == "identity" {
		return nil, status.Error(codes.Internal, "grpc: compressed flag set with identity or empty encoding")
	}
	if encoding != "gzip" {
		return nil, status.Error(codes.Unimplemented, fmt.Sprintf("grpc: Decompressor is not installed for grpc-encoding %q", encoding))
	}
	return gunzip(msg, limit)
}
