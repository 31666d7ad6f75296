package nats

import (
	"container/heap"
	"context"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// The server drops expired items without a word. It can be made to leave markers, but puts these
// behind what was written meanwhile (seen with 2.15: a write in the moment of the end is lost). So a
// watch knows by itself when items end: of those there are when it begins, and of those it is told.

// end is when a message of a key ends.
type end struct {
	key string
	seq uint64
	at  time.Time
}

// ends are what ends next.
type ends struct {
	last  map[string]uint64 // by key, the message that ends
	queue endQueue          // may have earlier messages of keys
	heard map[string]uint64 // while items are listed: what was heard meanwhile
}

type endQueue []end

func (q endQueue) Len() int           { return len(q) }
func (q endQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q endQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *endQueue) Push(x any)        { *q = append(*q, x.(end)) }
func (q *endQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

// note takes the newest message of a key.
func (e *ends) note(key string, v *version) {
	if e.heard != nil {
		e.heard[key] = v.seq
	}
	if !v.live() || v.expires.IsZero() {
		delete(e.last, key)
		return
	}
	if e.last == nil {
		e.last = map[string]uint64{}
	}
	e.last[key] = v.seq
	heap.Push(&e.queue, end{key, v.seq, v.expires})
	if len(e.queue) > 2*len(e.last)+1024 {
		e.compact()
	}
}

// compact drops what is out of date.
func (e *ends) compact() {
	kept := e.queue[:0]
	for _, x := range e.queue {
		if e.last[x.key] == x.seq {
			kept = append(kept, x)
		}
	}
	e.queue = kept
	heap.Init(&e.queue)
}

// due takes the next key that has ended, and says how long it is until there may be another.
func (e *ends) due() (key string, is bool, wait time.Duration) {
	for len(e.queue) > 0 {
		x := e.queue[0]
		if e.last[x.key] != x.seq {
			heap.Pop(&e.queue)
			continue
		}
		if wait := time.Until(x.at); wait > 0 {
			return "", false, wait
		}
		heap.Pop(&e.queue)
		delete(e.last, x.key)
		return x.key, true, 0
	}
	return "", false, time.Hour
}

// expire lets what has ended wait to be told, and says how long it is until there may be more.
func (w *watch) expire() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		key, is, wait := w.ends.due()
		if !is {
			return wait
		}
		w.add(block.StateItem{Key: key})
		w.signal()
	}
}

// list notes when the items end that there are. Those that are written meanwhile are heard of.
func (w *watch) list(ctx context.Context) error {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ends.heard = nil
	}()
	for token := ""; ; {
		items, next, err := w.s.Scan(ctx, w.prefix, token, scanMost, true)
		if err != nil {
			return err
		}
		for _, it := range items {
			if it.Expires.IsZero() {
				continue
			}
			v, err := parseETag(opWatch, it.ETag)
			if err != nil {
				return err
			}
			w.mu.Lock()
			if w.ends.heard[it.Key] < v.seq {
				w.ends.note(it.Key, &v)
			}
			w.mu.Unlock()
		}
		if token = next; token == "" {
			return nil
		}
	}
}
