package group

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// memory is a ledger in memory. Members reach it through wires, which can be slow, lose
// answers or be cut.
type memory struct {
	mu       sync.Mutex
	entries  map[string]block.LedgerEntry
	rev      uint64
	watchers map[*watcher]bool
	writes   int // accepted

	t     *testing.T
	check bool // of what must never be written
}

type watcher struct {
	prefix string
	queue  []block.LedgerEntry
	bell   chan struct{}
	reset  bool // the connection was lost and is back
}

func newMemory() *memory {
	return &memory{entries: map[string]block.LedgerEntry{}, watchers: map[*watcher]bool{}}
}

func (l *memory) get(key string) block.LedgerEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.entries[key]
	if !ok {
		return block.LedgerEntry{Key: key}
	}
	return e
}

func (l *memory) put(w block.LedgerWrite) block.LedgerResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries[w.Key].Revision != w.Revision {
		return block.LedgerResult{Err: fault.New("memory.Put", fault.Conflict, "%s has revision %d", w.Key, l.entries[w.Key].Revision)}
	}
	if l.check {
		l.judge(w)
	}
	l.rev++
	l.writes++
	e := block.LedgerEntry{Key: w.Key, Value: slices.Clone(w.Value), Revision: l.rev, Removed: w.Remove}
	if w.Remove {
		delete(l.entries, w.Key)
		e.Value = nil
	} else {
		l.entries[w.Key] = e
	}
	for x := range l.watchers {
		if strings.HasPrefix(w.Key, x.prefix) {
			x.queue = append(x.queue, e)
			x.ring()
		}
	}
	return block.LedgerResult{Revision: l.rev}
}

// judge looks at a write that is about to be accepted: epochs grow with every owner, and the
// progress is never of an earlier owner than before.
func (l *memory) judge(w block.LedgerWrite) {
	parts := block.LedgerParts(w.Key)
	old := l.entries[w.Key]
	switch {
	case parts[0] == spaceProgress:
		if w.Remove {
			l.t.Errorf("%s is removed", w.Key)
		}
		epoch, _, err := parseProgress(w.Value)
		was := uint64(0)
		if old.Revision != 0 {
			was, _, _ = parseProgress(old.Value)
		}
		if err != nil || epoch < was {
			l.t.Errorf("%s goes from epoch %d to %d (%v)", w.Key, was, epoch, err)
		}
	case parts[2] == kindOwner:
		if w.Remove {
			l.t.Errorf("%s is removed", w.Key)
		}
		now, err := parseOwner(w.Value)
		var was ownerRecord
		if old.Revision != 0 {
			was, _ = parseOwner(old.Value)
		}
		same := now.Seat == "" || now.Seat == was.Seat && now.Incarnation == was.Incarnation
		if err != nil || now.Epoch < was.Epoch || now.Epoch == was.Epoch && !same {
			l.t.Errorf("%s goes from %+v to %+v (%v)", w.Key, was, now, err)
		}
	}
}

func (x *watcher) ring() {
	select {
	case x.bell <- struct{}{}:
	default:
	}
}

// wire is one member's way to the ledger.
type wire struct {
	*memory
	mu      sync.Mutex
	latency time.Duration
	up      chan struct{}                  // nothing gets through until it is closed; nil: all does
	lose    func(w block.LedgerWrite) bool // the answer of such a write is lost
	calls   int
	w       *watcher
}

func (l *memory) wire() *wire { return &wire{memory: l, latency: time.Millisecond} }

var errWire = errors.New("the wire is cut")

func (c *wire) pass(ctx context.Context) error {
	c.mu.Lock()
	d, up := c.latency, c.up
	c.calls++
	c.mu.Unlock()
	if up != nil {
		select {
		case <-ctx.Done():
			return fault.New("wire", fault.Unavailable, "cut").WithSent(fault.SentMaybe).Because(errWire)
		case <-up:
		}
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *wire) LedgerGet(ctx context.Context, key string) (block.LedgerEntry, error) {
	if err := c.pass(ctx); err != nil {
		return block.LedgerEntry{}, err
	}
	return c.get(key), nil
}

func (c *wire) LedgerPut(ctx context.Context, writes []block.LedgerWrite) []block.LedgerResult {
	out := make([]block.LedgerResult, len(writes))
	err := c.pass(ctx)
	for i, w := range writes {
		if err != nil {
			out[i].Err = err
			continue
		}
		c.mu.Lock()
		lose := c.lose != nil && c.lose(w)
		c.mu.Unlock()
		out[i] = c.put(w)
		if lose {
			out[i] = block.LedgerResult{Err: fault.New("wire", fault.Unavailable, "no answer").WithSent(fault.SentMaybe)}
		}
	}
	return out
}

func (c *wire) LedgerWatch(ctx context.Context, prefix string, tell func([]block.LedgerEntry, bool)) error {
	if err := c.pass(ctx); err != nil {
		return err
	}
	x := &watcher{prefix: prefix, bell: make(chan struct{}, 1), reset: true}
	x.ring()
	c.mu.Lock()
	c.w = x
	c.mu.Unlock()
	defer func() {
		c.memory.mu.Lock()
		delete(c.memory.watchers, x)
		c.memory.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-x.bell:
		}
		for {
			if err := c.pass(ctx); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				continue
			}
			break
		}
		c.memory.mu.Lock()
		news, reset := x.queue, x.reset
		x.queue, x.reset = nil, false
		if reset {
			news = nil
			c.memory.watchers[x] = true
			for _, k := range slices.Sorted(maps.Keys(c.entries)) {
				if strings.HasPrefix(k, prefix) {
					news = append(news, c.entries[k])
				}
			}
		}
		c.memory.mu.Unlock()
		if len(news) > 0 || reset {
			tell(news, reset)
		}
	}
}

// cut stops everything, or lets it go on: then the watch starts anew.
func (c *wire) cut(down bool) {
	c.mu.Lock()
	if down && c.up == nil {
		c.up = make(chan struct{})
	} else if !down && c.up != nil {
		close(c.up)
		c.up = nil
	}
	x := c.w
	c.mu.Unlock()
	if x != nil && down {
		c.memory.mu.Lock()
		delete(c.watchers, x)
		x.reset = true
		c.memory.mu.Unlock()
		x.ring()
	}
}

// forgetWatch makes the watch begin anew.
func (c *wire) forgetWatch() {
	c.mu.Lock()
	x := c.w
	c.mu.Unlock()
	c.memory.mu.Lock()
	x.reset = true
	c.memory.mu.Unlock()
	x.ring()
}

// count is how often the wire was used, and what the ledger accepted from anybody.
func (c *wire) count() (calls, writes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.memory.mu.Lock()
	defer c.memory.mu.Unlock()
	return c.calls, c.writes
}
