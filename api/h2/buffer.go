package h2

import (
	"io"
	"time"
)

// readBuffer holds any frame we accept and a burst of small ones; thousands of idle
// connections of that size do not matter.
const readBuffer = 32 << 10

// inbuf reads the connection in large pieces. Only the reader goroutine touches it.
type inbuf struct {
	src   io.Reader
	pause func() // called before each read: nothing more is at hand
	buf   []byte
	r, w  int       // unread bytes are buf[r:w]
	at    time.Time // of the last read
}

// need makes at least n bytes available to take; n is at most len(buf). The error is io.EOF
// only if nothing at all was left.
func (b *inbuf) need(n int) error {
	for b.w-b.r < n {
		if b.r == b.w {
			b.r, b.w = 0, 0
		} else if len(b.buf)-b.r < n || len(b.buf) == b.w {
			b.w = copy(b.buf, b.buf[b.r:b.w])
			b.r = 0
		}
		b.pause()
		got, err := b.src.Read(b.buf[b.w:])
		b.w += got
		b.at = time.Now()
		if err != nil && b.w-b.r < n {
			if err == io.EOF && b.w > b.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// take returns the next n bytes, made available by need. They are valid until the next need.
func (b *inbuf) take(n int) []byte {
	p := b.buf[b.r : b.r+n]
	b.r += n
	return p
}
