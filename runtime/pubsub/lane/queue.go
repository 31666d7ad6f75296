package lane

import (
	"container/heap"
	"slices"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// state is where an unresolved entry is.
type state uint8

const (
	waiting  state = iota // in the window, behind its key, urgent or held
	atApp                 // delivered
	setAside              // being copied out
	done
)

// entry is one unresolved record.
type entry struct {
	rec      block.LogRecord
	state    state
	attempts int
	remedy   Remedy // what its copy is for, while it is set aside
	reason   string
	flying   bool      // its copy is being made
	given    bool      // it was at the app since this owner has it
	holds    bool      // its key waits for it
	replayed bool      // it comes from the park log
	parkedAt uint64    // its position there
	since    time.Time // when it was delivered
	due      time.Time // when it is delivered again, or has been at the app too long

	next, prev *entry // in the one queue it is in
}

// overhead is what an entry costs besides its bytes, roughly.
const overhead = 320

// payload is what it counts for at the app.
func (e *entry) payload() int { return len(e.rec.Data) + len(e.rec.Key) }

// size is what it counts for in memory.
func (e *entry) size() int { return e.payload() + overhead }

// window is the records from the first unresolved one to the last one offered, in order. A
// resolved one takes a slot without an entry.
type window struct {
	slots []slot // those before head are used up
	head  int
	next  uint64 // position from which on nothing was offered
}

type slot struct {
	position uint64
	entry    *entry // nil when resolved
}

func (w *window) len() int { return len(w.slots) - w.head }

func (w *window) at(i int) *entry { return w.slots[w.head+i].entry }

func (w *window) push(position uint64, e *entry) {
	if w.head > 64 && w.head > len(w.slots)/2 { // shift instead of growing
		n := copy(w.slots, w.slots[w.head:])
		clear(w.slots[n:])
		w.slots, w.head = w.slots[:n], 0
	}
	w.slots = append(w.slots, slot{position, e})
	w.next = position + 1
}

// advance drops resolved records from the front; cursor keeps pointing where it did.
func (w *window) advance(cursor *int) {
	for w.head < len(w.slots) && w.slots[w.head].entry == nil {
		w.head++
		*cursor = max(0, *cursor-1)
	}
	if w.head == len(w.slots) {
		w.slots, w.head = w.slots[:0], 0
		if cap(w.slots) > 4096 {
			w.slots = nil // of a window that was full once
		}
	}
}

func (w *window) watermark() uint64 {
	if w.len() == 0 {
		return w.next
	}
	return w.slots[w.head].position
}

// search is the index in slots of the first record at or behind a position.
func (w *window) search(position uint64) int {
	live := w.slots[w.head:]
	if len(live) == 0 || position <= live[0].position {
		return w.head
	}
	// Where positions have no gaps, there is one slot for each.
	if i := position - live[0].position; i < uint64(len(live)) && live[i].position == position {
		return w.head + int(i) //nolint:gosec // below len
	}
	i, _ := slices.BinarySearchFunc(live, position, func(s slot, p uint64) int {
		switch {
		case s.position < p:
			return -1
		case s.position > p:
			return 1
		}
		return 0
	})
	return w.head + i
}

func (w *window) find(position uint64) *entry {
	if i := w.search(position); i < len(w.slots) && w.slots[i].position == position {
		return w.slots[i].entry
	}
	return nil
}

func (w *window) resolve(position uint64) {
	if i := w.search(position); i < len(w.slots) && w.slots[i].position == position {
		w.slots[i].entry = nil
	}
}

// each visits the unresolved records from one position to another, both included.
func (w *window) each(from, to uint64, visit func(*entry)) {
	for i := w.search(from); i < len(w.slots) && w.slots[i].position <= to; i++ {
		if e := w.slots[i].entry; e != nil {
			visit(e)
		}
	}
}

// resolved calls visit for each run of resolved records behind the watermark.
func (w *window) resolved(visit func(from, to uint64) (more bool)) {
	live := w.slots[w.head:]
	for i := 0; i < len(live); i++ {
		if live[i].entry != nil {
			continue
		}
		from := live[i].position
		for i+1 < len(live) && live[i+1].entry == nil {
			i++
		}
		if !visit(from, live[i].position) {
			return
		}
	}
}

// fifo is a queue of entries.
type fifo struct {
	head, tail *entry
	n          int
}

func (q *fifo) push(e *entry) {
	e.next = nil
	if q.tail == nil {
		q.head = e
	} else {
		q.tail.next = e
	}
	q.tail = e
	q.n++
}

func (q *fifo) pushFront(e *entry) {
	e.next = q.head
	q.head = e
	if q.tail == nil {
		q.tail = e
	}
	q.n++
}

// insert puts e before the first entry with a higher position.
func (q *fifo) insert(e *entry) {
	if q.head == nil || q.head.rec.Position > e.rec.Position {
		q.pushFront(e)
		return
	}
	at := q.head
	for at.next != nil && at.next.rec.Position < e.rec.Position {
		at = at.next
	}
	e.next, at.next = at.next, e
	if e.next == nil {
		q.tail = e
	}
	q.n++
}

func (q *fifo) pop() *entry {
	e := q.head
	if e == nil {
		return nil
	}
	q.head = e.next
	if q.head == nil {
		q.tail = nil
	}
	e.next = nil
	q.n--
	return e
}

// list is a ring in the order of due, which is nearly always the order of insertion.
type list struct {
	root entry
	n    int
}

func (l *list) init() { l.root.next, l.root.prev = &l.root, &l.root }

func (l *list) insert(e *entry) {
	after := l.root.prev
	for after != &l.root && e.due.Before(after.due) {
		after = after.prev
	}
	e.prev, e.next = after, after.next
	e.prev.next, e.next.prev = e, e
	l.n++
}

func (l *list) remove(e *entry) {
	e.prev.next, e.next.prev = e.next, e.prev
	e.next, e.prev = nil, nil
	l.n--
}

func (l *list) first() *entry { return l.after(&l.root) }

func (l *list) after(e *entry) *entry {
	if e.next == &l.root {
		return nil
	}
	return e.next
}

// timers are entries by due, soonest first, then by position.
type timers []*entry

func (h *timers) len() int { return len(*h) }

func (h *timers) top() *entry {
	if len(*h) == 0 {
		return nil
	}
	return (*h)[0]
}

func (h *timers) push(e *entry) { heap.Push((*byDue)(h), e) }

func (h *timers) pop() *entry {
	e, _ := heap.Pop((*byDue)(h)).(*entry)
	return e
}

type byDue []*entry

func (h byDue) Len() int      { return len(h) }
func (h byDue) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h byDue) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].rec.Position < h[j].rec.Position
	}
	return h[i].due.Before(h[j].due)
}

// Push appends x, as container/heap asks.
func (h *byDue) Push(x any) {
	e, _ := x.(*entry)
	*h = append(*h, e)
}

// Pop removes the last element, as container/heap asks.
func (h *byDue) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}
