package crypto

import (
	"bufio"
	"io"
	"sync"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Stream is a document on its way: what was encrypted, or decrypted, in pieces of at most some
// 64 KiB. It reads its source as far as the next piece takes, so a document of any size takes the
// same memory. It is for one goroutine.
type Stream struct {
	op     fault.Op
	first  []byte    // to be given before any segment; nil once it was
	src    io.Reader // the plaintext, or the segments
	head   *bufio.Reader
	sealer *sealer
	unit   int // bytes of a full segment at the source
	buf    *[bufferSize]byte
	over   byte // the first byte of the next segment, if ahead is set
	ahead  bool
	ended  bool  // the source has
	err    error // what Next answers from now on
}

// bufferSize is a segment with its tag, and a byte more, by which one sees that it is not the last.
const bufferSize = segmentSize + tagSize + 1

var (
	buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, maxManifest+1) }}
)

// newReader is a buffer to read a header through; Close, or free, takes it back.
func newReader(src io.Reader) *bufio.Reader {
	r := readers.Get().(*bufio.Reader)
	r.Reset(src)
	return r
}

func free(r *bufio.Reader) {
	r.Reset(nil)
	readers.Put(r)
}

// Next gives the next piece, which is valid until the next call. io.EOF is the end of the document,
// and the only proof that it is whole. Pieces that came before an error are right all the same: each
// is checked before it is given.
func (s *Stream) Next() ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	if s.first != nil {
		out := s.first
		s.first = nil
		return out, nil
	}
	out, err := s.segment()
	if err != nil {
		s.err = err
	}
	return out, err
}

// Close gives the stream's memory back. It may be called twice; Next must not be called after it.
func (s *Stream) Close() {
	if s.buf != nil {
		clear(s.buf[:]) // a plaintext must not be found by whoever gets the memory next
		buffers.Put(s.buf)
	}
	if s.head != nil {
		free(s.head)
	}
	*s = Stream{err: fault.New(s.op, fault.Internal, "the stream is closed")}
}

// segment reads and works on one segment.
func (s *Stream) segment() ([]byte, error) {
	if s.buf == nil {
		s.buf = buffers.Get().(*[bufferSize]byte)
	}
	n := 0
	if s.ahead {
		s.buf[0], n = s.over, 1
	}
	n, last, err := s.fill(n)
	if err != nil {
		return nil, err
	}
	if n == 0 && s.sealer.next == 0 { // an empty document is its header
		return nil, io.EOF
	}
	if !last { // one byte too many was read, to see that there is more
		n--
		s.over, s.ahead = s.buf[n], true
	}
	var out []byte
	if s.op == opEncrypt {
		out, err = s.sealer.seal(s.buf[:n], last)
	} else {
		out, err = s.sealer.open(s.buf[:n], last)
	}
	if err != nil {
		return nil, err
	}
	if last {
		s.err = io.EOF
	}
	return out, nil
}

// fill reads until there are n bytes of a full segment and one more, or the source ends in an orderly
// way. A source that breaks off is an error: what came of it is not a document.
func (s *Stream) fill(n int) (have int, last bool, err error) {
	for idle := 0; n <= s.unit && !s.ended; {
		k, err := s.src.Read(s.buf[n : s.unit+1])
		n += k
		switch {
		case call.Ended(err):
			s.ended = true
		case err != nil:
			return n, false, fault.Wrap(s.op, fault.Of(err), err)
		case k > 0:
			idle = 0
		default:
			if idle++; idle > 100 {
				return n, false, fault.Wrap(s.op, fault.Internal, io.ErrNoProgress)
			}
		}
	}
	return n, n <= s.unit, nil
}
