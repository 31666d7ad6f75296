package wire

import "sync"

// Chunk holds the received body bytes B[R:W].
type Chunk struct {
	B    []byte
	R, W int
	next *Chunk
}

// Sizes of pooled chunks: memory is at most twice the bytes a peer sent, or one small chunk per
// stream.
var chunkSizes = [...]int{SmallChunk, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10}

// SmallChunk is the size in bytes of the smallest pooled chunk.
const SmallChunk = 2 << 10

// chunkPools recycles chunks; it holds no state, so sharing it between connections is harmless.
var chunkPools [len(chunkSizes)]sync.Pool

// NewChunk is an empty chunk with room for n bytes or more.
func NewChunk(n int) *Chunk {
	for i, size := range chunkSizes {
		if n <= size {
			if c, ok := chunkPools[i].Get().(*Chunk); ok {
				return c
			}
			return &Chunk{B: make([]byte, size)}
		}
	}
	return &Chunk{B: make([]byte, n)}
}

// Free gives c back; nobody may use it or its bytes afterwards.
func (c *Chunk) Free() {
	for i, size := range chunkSizes {
		if len(c.B) == size {
			c.R, c.W, c.next = 0, 0, nil
			chunkPools[i].Put(c)
			return
		}
	}
}

// Bytes are those not read yet.
func (c *Chunk) Bytes() []byte { return c.B[c.R:c.W] }

// Queue is a list of chunks. The zero value is empty. It has no lock of its own.
type Queue struct {
	head, tail *Chunk
	size       int
}

// Size is how many bytes wait.
func (q *Queue) Size() int { return q.size }

// Empty reports whether no chunk waits, not even one without bytes.
func (q *Queue) Empty() bool { return q.head == nil }

// Push takes c over.
func (q *Queue) Push(c *Chunk) {
	if q.tail == nil {
		q.head = c
	} else {
		q.tail.next = c
	}
	q.tail = c
	q.size += c.W - c.R
}

// Pack copies p into the last chunk if all of it fits there, so that a dribble of tiny frames
// does not cost a chunk each.
func (q *Queue) Pack(p []byte) bool {
	t := q.tail
	if t == nil || len(t.B)-t.W < len(p) {
		return false
	}
	q.fill(p)
	return true
}

// Add copies p to the end: into the last chunk while it fits there, the rest into a new one.
func (q *Queue) Add(p []byte) {
	if p = p[q.fill(p):]; len(p) > 0 {
		c := NewChunk(len(p))
		c.W = copy(c.B, p)
		q.Push(c)
	}
}

// fill copies what fits into the last chunk.
func (q *Queue) fill(p []byte) int {
	t := q.tail
	if t == nil {
		return 0
	}
	n := copy(t.B[t.W:], p)
	t.W += n
	q.size += n
	return n
}

// Read moves bytes into p.
func (q *Queue) Read(p []byte) int {
	total := 0
	for len(p) > 0 && q.head != nil {
		c := q.head
		n := copy(p, c.Bytes())
		c.R += n
		p = p[n:]
		total += n
		q.size -= n
		if c.R == c.W {
			q.Pop().Free()
		}
	}
	return total
}

// Pop removes the first chunk, or returns nil.
func (q *Queue) Pop() *Chunk {
	c := q.head
	if c == nil {
		return nil
	}
	if q.head = c.next; q.head == nil {
		q.tail = nil
	}
	c.next = nil
	q.size -= c.W - c.R
	return c
}

// PopAll removes everything as one chunk; nil if empty.
func (q *Queue) PopAll() *Chunk {
	if q.head == q.tail {
		return q.Pop()
	}
	all := NewChunk(q.size)
	all.W = q.Read(all.B[:q.size])
	return all
}

// Drop empties the queue and returns how many bytes it held.
func (q *Queue) Drop() int {
	n := q.size
	for c := q.Pop(); c != nil; c = q.Pop() {
		c.Free()
	}
	return n
}
