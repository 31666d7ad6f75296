package memory

import (
	"context"
	"strings"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// watcher is a running Watch. What its callee has not heard waits here, at most once per key.
type watcher struct {
	prefix string
	wake   chan struct{} // one slot: something waits, or the store is closed

	waiting map[string]*item // guarded by State.mu; nil for a removal
	queue   []string         // guarded by State.mu; the keys of waiting, first come first
	lost    bool             // guarded by State.mu; more happened than can wait
}

// removalsMax bounds what waits for one callee beyond the store's own items: keys that are gone.
const removalsMax = 1 << 16

// togetherMax bounds the items of one call.
const togetherMax = 256

func (w *watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// tell puts changes before the watchers; mu is held for writing.
func (s *State) tell(changes []change) {
	if len(s.watchers) == 0 {
		return
	}
	for _, c := range changes {
		now := s.items[c.key]
		if now == nil && c.was == nil {
			continue // a removal of nothing
		}
		for w := range s.watchers {
			if w.lost || !strings.HasPrefix(c.key, w.prefix) {
				continue
			}
			if _, there := w.waiting[c.key]; !there {
				w.queue = append(w.queue, c.key)
			}
			w.waiting[c.key] = now
			if len(w.queue) > len(s.items)+removalsMax {
				w.lost, w.waiting, w.queue = true, nil, nil
			}
			w.poke()
		}
	}
}

// Watch tells of changes. Those that wait for a slow callee take the place of earlier ones of the
// same key; one that is slow beyond all measure gets fault.Unavailable.
func (s *State) Watch(ctx context.Context, prefix string, started func(), changed func([]block.StateItem)) error {
	const op fault.Op = "memory.state.Watch"
	w := &watcher{prefix: prefix, wake: make(chan struct{}, 1), waiting: map[string]*item{}}
	s.mu.Lock()
	if err := s.usable(op, ctx); err != nil {
		s.mu.Unlock()
		return err
	}
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	started()
	for {
		select {
		case <-ctx.Done():
		case <-w.wake:
		}
		for {
			items, err := s.take(op, ctx, w)
			if err != nil {
				return err
			}
			if len(items) == 0 {
				break
			}
			changed(items)
		}
	}
}

// take gives the next items for the callee.
func (s *State) take(op fault.Op, ctx context.Context, w *watcher) ([]block.StateItem, error) {
	s.mu.Lock()
	if err := s.usable(op, ctx); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	if w.lost {
		s.mu.Unlock()
		return nil, fault.New(op, fault.Unavailable, "the watch of %q was slower than the changes; read all again", w.prefix)
	}
	n, size := 0, 0
	for n < len(w.queue) && n < togetherMax && size < block.PageBytes {
		if it := w.waiting[w.queue[n]]; it != nil {
			size += len(it.value)
		}
		n++
	}
	keys := w.queue[:n:n]
	found := make([]*item, n)
	for i, k := range keys {
		found[i] = w.waiting[k]
		delete(w.waiting, k)
	}
	if w.queue = w.queue[n:]; len(w.queue) == 0 {
		w.queue = nil
		// A map keeps the room it once took.
		w.waiting = map[string]*item{}
	}
	s.mu.Unlock()
	items := make([]block.StateItem, n)
	for i, it := range found {
		items[i] = it.export(keys[i])
	}
	return items, nil
}
