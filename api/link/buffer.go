package link

import (
	"io"
	"sync"
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

// chunk holds received body bytes b[r:w] in a queue of its stream.
type chunk struct {
	b    []byte
	r, w int
	next *chunk
}

// Sizes of pooled chunks: memory is at most twice the bytes a peer sent, or one small chunk per
// stream.
var chunkSizes = [...]int{2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10}

// chunkPools recycles chunks; it holds no state, so sharing it between sessions is harmless.
var chunkPools [len(chunkSizes)]sync.Pool

func newChunk(n int) *chunk {
	for i, size := range chunkSizes {
		if n <= size {
			if c, ok := chunkPools[i].Get().(*chunk); ok {
				return c
			}
			return &chunk{b: make([]byte, size)}
		}
	}
	return &chunk{b: make([]byte, n)}
}

func (c *chunk) free() {
	for i, size := range chunkSizes {
		if len(c.b) == size {
			c.r, c.w, c.next = 0, 0, nil
			chunkPools[i].Put(c)
			return
		}
	}
}

// queue is a list of chunks. The zero value is empty. It has no lock of its own.
type queue struct {
	head, tail *chunk
	size       int64
}

// push takes c over.
func (q *queue) push(c *chunk) {
	if q.tail == nil {
		q.head = c
	} else {
		q.tail.next = c
	}
	q.tail = c
	q.size += int64(c.w - c.r)
}

// pack copies p into the last chunk if it fits there, so that a dribble of tiny frames does
// not cost a chunk each.
func (q *queue) pack(p []byte) bool {
	t := q.tail
	if t == nil || len(t.b)-t.w < len(p) {
		return false
	}
	t.w += copy(t.b[t.w:], p)
	q.size += int64(len(p))
	return true
}

// pop removes the first chunk, or returns nil.
func (q *queue) pop() *chunk {
	c := q.head
	if c == nil {
		return nil
	}
	q.head = c.next
	if q.head == nil {
		q.tail = nil
	}
	c.next = nil
	q.size -= int64(c.w - c.r)
	return c
}

// drop empties the queue and returns how many bytes it held.
func (q *queue) drop() int64 {
	n := q.size
	for c := q.pop(); c != nil; c = q.pop() {
		c.free()
	}
	return n
}
