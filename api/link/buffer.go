package link

import (
	"io"
)

// inbuf reads the connection in large pieces. Only the reader goroutine touches it.
type inbuf struct {
	src  io.Reader
	buf  []byte
	r, w int // unread bytes are buf[r:w]
}

// readBuffer is large enough that a burst of small frames costs one read, and small enough
// that thousands of idle sessions do not matter.
const readBuffer = 32 << 10

// need makes at least n bytes available to take; n is at most len(buf). The error is io.EOF
// only if nothing at all was left.
func (b *inbuf) need(n int) error {
	if b.w-b.r >= n {
		return nil
	}
	if b.r > 0 {
		b.w = copy(b.buf, b.buf[b.r:b.w])
		b.r = 0
	}
	got, err := io.ReadAtLeast(b.src, b.buf[b.w:], n-b.w)
	if b.w > 0 && err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	b.w += got
	return err
}

// take returns the next n bytes, made available by need. They are valid until the next call.
func (b *inbuf) take(n int) []byte {
	p := b.buf[b.r : b.r+n]
	b.r += n
	return p
}

// readFull fills p, from the buffer first and then straight from the connection.
func (b *inbuf) readFull(p []byte) error {
	n := copy(p, b.buf[b.r:b.w])
	b.r += n
	if n == len(p) {
		return nil
	}
	return unexpected(readRest(b.src, p[n:]))
}

func readRest(src io.Reader, p []byte) error {
	_, err := io.ReadFull(src, p)
	return err
}

func (b *inbuf) discard(n int) error {
	for n > 0 {
		k := min(n, len(b.buf))
		if err := b.need(k); err != nil {
			return unexpected(err)
		}
		b.take(k)
		n -= k
	}
	return nil
}

// unexpected is for reads inside a frame, where an end of the connection is never clean.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
