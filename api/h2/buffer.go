package h2

import (
	"io"
	"sync"
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

// chunk holds received body bytes b[r:w] in a queue of its stream.
type chunk struct {
	b    []byte
	r, w int
	next *chunk
}

// Sizes of pooled chunks: memory is at most twice the bytes a peer sent, or one small chunk per
// stream.
var chunkSizes = [...]int{2 << 10, 4 << 10, 8 << 10, 16 << 10, 64 << 10}

// chunkPools recycles chunks; it holds no state, so sharing it between connections is harmless.
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
	size       int
}

// add copies p to the end: into the last chunk while it fits there, so that a dribble of tiny
// frames does not cost a chunk each.
func (q *queue) add(p []byte) {
	q.size += len(p)
	if t := q.tail; t != nil {
		n := copy(t.b[t.w:], p)
		t.w += n
		p = p[n:]
	}
	if len(p) == 0 {
		return
	}
	c := newChunk(len(p))
	c.w = copy(c.b, p)
	if q.tail == nil {
		q.head = c
	} else {
		q.tail.next = c
	}
	q.tail = c
}

// read moves bytes into p.
func (q *queue) read(p []byte) int {
	total := 0
	for len(p) > 0 && q.head != nil {
		c := q.head
		n := copy(p, c.b[c.r:c.w])
		c.r += n
		p = p[n:]
		total += n
		if c.r == c.w {
			q.pop().free()
		}
	}
	q.size -= total
	return total
}

// pop removes the first chunk; there must be one. The caller accounts for size.
func (q *queue) pop() *chunk {
	c := q.head
	if q.head = c.next; q.head == nil {
		q.tail = nil
	}
	c.next = nil
	return c
}

// takeAll removes everything as one chunk; nil if empty.
func (q *queue) takeAll() *chunk {
	if q.head == nil {
		return nil
	}
	if q.head == q.tail {
		q.size = 0
		return q.pop()
	}
	all := newChunk(q.size)
	all.w = q.read(all.b[:q.size])
	return all
}

// drop empties the queue and returns how many bytes it held.
func (q *queue) drop() int {
	n := q.size
	for q.head != nil {
		q.pop().free()
	}
	q.size = 0
	return n
}
