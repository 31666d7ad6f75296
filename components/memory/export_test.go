package memory

import (
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// Held is how many locks are in memory, ended or not.
func Held(s *Locks) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

// KeyOrder is the order of keys of a scan.
type KeyOrder struct{ o *keyOrder }

// NewKeyOrder puts keys in order.
func NewKeyOrder(keys []string) KeyOrder { return KeyOrder{newKeyOrder(keys)} }

// Add puts in a key that is not there.
func (k KeyOrder) Add(key string) { k.o.add(key) }

// Remove takes one out.
func (k KeyOrder) Remove(key string) { k.o.remove(key) }

// From lists the keys from prefix on, or behind last.
func (k KeyOrder) From(prefix, last string, begun bool) (out []string) {
	k.o.from(prefix, last, begun, func(key string) bool { out = append(out, key); return true })
	return out
}

// LogKept is what a topic keeps, by its own account: records and bytes, also of those delayed, slots
// of its partitions, what waits for its time, readers that wait, and IDs.
type LogKept struct {
	Records, Slots, Due, Waiting, IDs int
	Bytes                             int64
	Timer                             bool
}

// Kept looks at a topic.
func Kept(p *PubSub, name string) (k LogKept) {
	t := p.hub.logs.topic(name)
	t.mu.Lock()
	defer t.mu.Unlock()
	k = LogKept{Records: t.count, Due: len(t.due), IDs: len(t.ids), Bytes: t.bytes, Timer: t.armed != 0}
	for _, part := range t.parts {
		k.Slots += cap(part.slots)
		k.Waiting += len(part.waiting)
	}
	return k
}

// Wait puts a reader where one stands that found nothing.
func Wait(r block.LogReader) bool { return !r.(*logReader).pick(1, 1) }

// SetClock has a partition believe that its newest record came at a time.
func SetClock(p *PubSub, name string, partition int32, at time.Time) {
	part := p.hub.logs.topic(name).partition(partition)
	part.last = at.UnixNano()
}

// Poked tells whether something has called a reader that waits.
func Poked(r block.LogReader) bool { return len(r.(*logReader).wake) > 0 }
