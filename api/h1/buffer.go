package h1

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// buffer is a byte slice borrowed from a pool of its size class.
type buffer struct{ b []byte }

// Size classes are powers of four: few pools, at most fourfold waste, and only for the time
// of one exchange. Larger requests than the last class are left to the garbage collector.
var (
	classSizes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20}
	classPools [len(classSizes)]sync.Pool
)

// borrow returns a buffer with len 0 and room for at least n bytes.
func borrow(n int) *buffer {
	for i, size := range classSizes {
		if n > size {
			continue
		}
		if p, ok := classPools[i].Get().(*buffer); ok {
			p.b = p.b[:0]
			return p
		}
		return &buffer{b: make([]byte, 0, size)}
	}
	return &buffer{b: make([]byte, 0, n)}
}

// release gives the buffer back; nil is fine. The caller must not touch it afterwards.
func (p *buffer) release() {
	if p == nil {
		return
	}
	for i := len(classSizes) - 1; i >= 0; i-- {
		if cap(p.b) < classSizes[i] {
			continue
		}
		// A buffer far beyond its class would pin memory under a small name.
		if cap(p.b) <= 2*classSizes[i] {
			classPools[i].Put(p)
		}
		return
	}
}

// readBuffer is what a connection holds while it waits for a message. Most heads, and small
// bodies with them, arrive in one read of this size.
const readBuffer = 4 << 10

var (
	errHeadTooLarge = errors.New("head over its limit")
	errBareLF       = errors.New("line ends with LF alone; CR LF is required")
	errBufferFull   = errors.New("line over its limit")
	crlfcrlf        = []byte("\r\n\r\n")
)

// reader is a buffered view of a connection's incoming bytes. Unlike bufio.Reader it lets a
// head be scanned in place, grows for large heads only, and gives its memory back when idle.
type reader struct {
	src  io.Reader
	mem  *buffer
	buf  []byte // mem's whole capacity
	r, w int    // unread bytes are buf[r:w]
}

func (b *reader) unread() []byte { return b.buf[b.r:b.w] }
func (b *reader) size() int      { return b.w - b.r }

// acquire makes sure there is memory to read into, and only the usual amount when nothing
// is waiting to be read.
func (b *reader) acquire() {
	if b.mem != nil && (b.r != b.w || len(b.buf) <= 2*readBuffer) {
		return
	}
	b.mem.release()
	b.mem = borrow(readBuffer)
	b.buf = b.mem.b[:cap(b.mem.b)]
	b.r, b.w = 0, 0
}

// drop gives the memory back. Unread bytes are lost.
func (b *reader) drop() {
	b.mem.release()
	b.mem, b.buf, b.r, b.w = nil, nil, 0, 0
}

// fill reads once from the source. It returns errBufferFull when there is no room, and an
// error of the source only when it brought no bytes.
func (b *reader) fill() error {
	if b.r == b.w {
		b.r, b.w = 0, 0
	} else if b.w == len(b.buf) && b.r > 0 {
		b.w = copy(b.buf, b.buf[b.r:b.w])
		b.r = 0
	}
	if b.w == len(b.buf) {
		return errBufferFull
	}
	n, err := b.src.Read(b.buf[b.w:])
	b.w += n
	switch {
	case n > 0:
		return nil
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

// fillMore is fill that grows the buffer, up to room for limit unread bytes.
func (b *reader) fillMore(limit int) error {
	if b.r > 0 || b.w < len(b.buf) || len(b.buf) >= limit {
		return b.fill()
	}
	next := borrow(min(4*len(b.buf), max(limit, 1)))
	if cap(next.b) <= len(b.buf) {
		next = &buffer{b: make([]byte, 0, limit)}
	}
	buf := next.b[:cap(next.b)]
	b.w = copy(buf, b.buf[b.r:b.w])
	b.r = 0
	b.mem.release()
	b.mem, b.buf = next, buf
	return b.fill()
}

// scanHead looks for the empty line that ends a head. It returns the head's size including
// that line, or 0 when more bytes are needed. scanned bytes were looked at before.
func (b *reader) scanHead(scanned, limit int) (int, error) {
	p := b.unread()
	from := max(0, scanned-len(crlfcrlf)+1)
	if i := bytes.Index(p[from:], crlfcrlf); i >= 0 {
		if end := from + i + len(crlfcrlf); end <= limit {
			return end, nil
		}
		return 0, errHeadTooLarge
	}
	if len(p) >= limit {
		return 0, errHeadTooLarge
	}
	// Answer a sender of bare LF at once instead of waiting for an end that never comes.
	for rest := p[from:]; ; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			return 0, nil
		}
		if at := len(p) - len(rest) + i; at == 0 || p[at-1] != '\r' {
			return 0, errBareLF
		}
		rest = rest[i+1:]
	}
}

// line returns the next line without its CR LF, consuming it, or ok=false when more bytes
// are needed. The line is valid until the next fill.
func (b *reader) line(limit int) (line []byte, ok bool, err error) {
	p := b.unread()
	i := bytes.IndexByte(p, '\n')
	switch {
	case i < 0 && len(p) > limit, i > limit:
		return nil, false, errBufferFull
	case i < 0:
		return nil, false, nil
	case i == 0 || p[i-1] != '\r':
		return nil, false, errBareLF
	}
	b.r += i + 1
	return p[:i-1], true, nil
}

// read moves buffered bytes to p, or reads from the source once: directly when p is large.
func (b *reader) read(p []byte) (int, error) {
	if b.r == b.w {
		if len(p) >= len(b.buf) {
			return b.src.Read(p)
		}
		if err := b.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.buf[b.r:b.w])
	b.r += n
	return n, nil
}
