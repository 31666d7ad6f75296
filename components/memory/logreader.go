package memory

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// logReader reads one partition. It is a place in it, and nothing runs for it.
type logReader struct {
	client *PubSub
	topic  *logTopic
	part   *logPart
	wake   chan struct{} // one slot: there may be something
	waits  bool          // guarded by topic.mu; it stands in part.waiting
	closed chan struct{}
	once   sync.Once

	next   uint64 // the position it has come to
	picked []*logEntry
	out    []block.LogRecord
}

func (r *logReader) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Close ends the reader. Of one that nobody waits with nothing is left in its topic.
func (r *logReader) Close() { r.once.Do(func() { close(r.closed) }) }

// forget takes the reader out of those that wait.
func (r *logReader) forget() {
	r.topic.mu.Lock()
	defer r.topic.mu.Unlock()
	if r.waits {
		r.waits = false
		r.part.waiting = slices.DeleteFunc(r.part.waiting, func(other *logReader) bool { return other == r })
	}
}

func (r *logReader) usable(op fault.Op, ctx context.Context) error {
	if err := r.client.usable(op, ctx); err != nil {
		return err
	}
	select {
	case <-r.closed:
		return fault.New(op, fault.Unavailable, "the reader of topic %q, partition %d, is closed", r.topic.name, r.part.id)
	default:
		return nil
	}
}

// Next returns what there is, or waits.
func (r *logReader) Next(ctx context.Context, most, size int) ([]block.LogRecord, error) {
	const op fault.Op = "memory.pubsub.Next"
	clear(r.out) // they are the caller's, and may be large
	for {
		if err := r.usable(op, ctx); err != nil {
			r.forget()
			return nil, err
		}
		if r.pick(max(most, 1), max(size, 1)) {
			return r.copy(), nil
		}
		select {
		case <-ctx.Done():
		case <-r.closed:
		case <-r.client.closed:
		case <-r.wake:
		}
	}
}

// pick notes the next records, or that the reader waits for one.
func (r *logReader) pick(most, size int) bool {
	t, p := r.topic, r.part
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.due) > 0 {
		t.settle(time.Now())
	}
	for i := p.find(r.next); i < len(p.slots) && len(r.picked) < most; i++ {
		e := p.slots[i].entry
		if e == nil {
			continue
		}
		if size -= len(e.data); size < 0 && len(r.picked) > 0 {
			break
		}
		r.picked = append(r.picked, e)
		r.next = e.position + 1
	}
	if len(r.picked) > 0 {
		return true
	}
	if !r.waits {
		r.waits = true
		p.waiting = append(p.waiting, r)
	}
	return false
}

// copy makes the caller's own records of those picked.
func (r *logReader) copy() []block.LogRecord {
	r.out = r.out[:0]
	for i, e := range r.picked {
		r.out = append(r.out, block.LogRecord{
			Message:   block.Message{Topic: r.topic.name, Key: e.key, Data: bytes.Clone(e.data), Metadata: maps.Clone(e.meta), ID: e.id, TTL: e.ttl},
			Partition: r.part.id, Position: e.position, Time: time.Unix(0, e.time),
		})
		r.picked[i] = nil
	}
	r.picked = r.picked[:0]
	return r.out
}
