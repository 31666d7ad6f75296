package peerapi

import "sync"

// pooledBody is the largest body gathered into reused memory. It is also the largest that the
// app channel writes before it returns, so that nothing reads the memory after the call.
const pooledBody = 64 << 10

// maxWhole bounds a body that is gathered in memory because its sender had it whole.
const maxWhole = 64 << 20

func wholeLimit(announced int64) int { return int(min(max(announced, 0), maxWhole)) }

// memory is what one body is gathered in.
type memory struct{ b []byte }

var memories = sync.Pool{New: func() any { return &memory{b: make([]byte, 0, pooledBody)} }}

// takeMemory lends room for a body of the announced length; nil means that it is not worth it.
func takeMemory(announced int64) *memory {
	if announced <= 0 || announced > pooledBody {
		return nil
	}
	return memories.Get().(*memory)
}

// start is the lent room holding the body's first bytes.
func (m *memory) start(first []byte) []byte {
	if m == nil {
		return first
	}
	return append(m.b[:0], first...)
}

// Close gives the memory back. It implements io.Closer for call.Response.Held.
func (m *memory) Close() error {
	if m != nil {
		memories.Put(m)
	}
	return nil
}
