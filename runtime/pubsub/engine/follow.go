package engine

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mecha-project/mecha/runtime/pubsub/group"
)

// followLayouts tells the group how the consumer's topics are divided, from now on until stop.
func (c *Consumer) followLayouts(s *group.Seat) (stop func()) {
	known := map[string]group.Layout{}
	var mu sync.Mutex
	unhook := c.e.topics.onChange(func(name string, l group.Layout) {
		if !slices.Contains(c.opts.Topics, name) {
			return
		}
		mu.Lock()
		known[name] = l
		mu.Unlock()
		signal(c.layout)
	})
	ctx, cancel := context.WithCancel(c.life)
	c.work.Go(func() {
		var look <-chan time.Time // while a partition of an old generation is not drained
		for {
			select {
			case <-c.layout:
			case <-look:
			case <-ctx.Done():
				return
			}
			mu.Lock()
			now := maps.Clone(known)
			mu.Unlock()
			for name, l := range now {
				s.SetLayout(name, l)
			}
			look = nil
			if c.drainOld(ctx, now) {
				look = time.After(drainEvery)
			}
		}
	})
	return func() {
		unhook()
		cancel()
	}
}

// drainEvery is how often partitions of an old generation are looked at until they are read to their ends.
const drainEvery = 200 * time.Millisecond

// drainOld tells the group which partitions of old generations are read and resolved to their ends. left is
// true while some are not.
func (c *Consumer) drainOld(ctx context.Context, layouts map[string]group.Layout) (left bool) {
	for topic, l := range layouts {
		first := current(l).First
		if first == 0 {
			continue
		}
		var ids []int32
		c.mu.Lock()
		for p := range c.owned {
			if p.Topic == topic && p.ID < first && !c.owned[p].drained {
				ids = append(ids, p.ID)
			}
		}
		c.mu.Unlock()
		if len(ids) == 0 {
			continue
		}
		left = true
		bounds, err := c.e.log.Bounds(ctx, topic, ids)
		if err != nil {
			continue
		}
		c.mu.Lock()
		for i, id := range ids {
			o := c.owned[Part{Topic: topic, ID: id}]
			if o == nil || o.lane == nil || o.phase == gone {
				continue
			}
			end, closed := c.e.topics.end(o.part)
			// Nothing is left before the end; what is behind it is nobody's. Records may have expired unread.
			b := bounds[i]
			if closed && (o.committed >= end || o.committed >= b.Next || o.lane.Idle() && (b.First >= b.Next || b.First >= end)) {
				o.drained = true
				c.seat.Drained(o.part)
			}
		}
		c.mu.Unlock()
	}
	return left
}
