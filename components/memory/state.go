package memory

import (
	"bytes"
	"container/heap"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// StateConfig configures the store.
type StateConfig struct {
	// MaxBytes bounds keys and values together; a write beyond it is refused with
	// "exhausted". 0 means no bound. Default 1 GiB.
	MaxBytes conf.ByteSize `yaml:"maxBytes"`
}

// DefaultStateConfig returns the defaults.
func DefaultStateConfig() *StateConfig { return &StateConfig{MaxBytes: conf.GiB} }

// Validate reports what cannot work.
func (c *StateConfig) Validate() error {
	if c.MaxBytes < 0 {
		return conf.Bad("maxBytes", "must not be negative; 0 means no bound")
	}
	return nil
}

// Bookkeeping per item: map entry, struct and heap slot, roughly. Counted so that millions of
// tiny items cannot slip under the bound.
const itemOverhead = 160

var (
	_ block.State      = (*State)(nil)
	_ block.StateBatch = (*State)(nil)
	_ block.StateTx    = (*State)(nil)
	_ block.StateTTL   = (*State)(nil)
	_ block.StateScan  = (*State)(nil)
	_ block.StateWatch = (*State)(nil)
	_ block.StateFence = (*State)(nil)
)

// State is a map under one lock. One lock is enough: the longest section copies pointers, and
// it makes transactions trivially isolated.
type State struct {
	max int64

	mu       sync.RWMutex
	closed   bool                  // guarded by mu
	items    map[string]*item      // guarded by mu
	order    *keyOrder             // guarded by mu; the keys of items; nil until somebody scans
	fences   map[string]uint64     // guarded by mu
	watchers map[*watcher]struct{} // guarded by mu
	used     int64                 // guarded by mu
	version  uint64                // guarded by mu; the last version given out
	dying    expiries              // guarded by mu; items with an end, soonest first
	timer    *time.Timer           // guarded by mu; armed only while something can expire
	armed    time.Time             // guarded by mu; when timer fires; zero when it does not
}

// item is one version of one key. Its value never changes after it is stored, so readers may
// copy it outside the lock.
type item struct {
	key     string
	value   []byte
	version uint64
	expires time.Time // zero: never
	slot    int       // index in dying, -1 when not there
}

// NewState opens an empty store.
func NewState(_ block.Env, c *StateConfig) (block.State, error) {
	return &State{
		max:      c.MaxBytes.Int64(),
		items:    map[string]*item{},
		fences:   map[string]uint64{},
		watchers: map[*watcher]struct{}{},
		// Versions start at the clock, so that an etag kept by an app across a restart of this
		// process does not match another value by chance.
		version: uint64(time.Now().UnixNano()),
	}, nil
}

// Ping succeeds until Close.
func (s *State) Ping(ctx context.Context) error {
	const op fault.Op = "memory.state.Ping"
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.usable(op, ctx)
}

// Close drops everything.
func (s *State) Close(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.items, s.order, s.fences, s.dying, s.used = nil, nil, nil, nil, 0
	for w := range s.watchers {
		w.poke() // it finds the store closed
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	return nil
}

// ExpiresItems marks native expiry.
func (s *State) ExpiresItems() {}

// MaxOps is 0: a transaction may be as large as memory allows.
func (s *State) MaxOps() int { return 0 }

// Get reads one key.
func (s *State) Get(ctx context.Context, key string, _ block.StateRead) (block.StateItem, error) {
	const op fault.Op = "memory.state.Get"
	s.mu.RLock()
	if err := s.usable(op, ctx); err != nil {
		s.mu.RUnlock()
		return block.StateItem{}, err
	}
	it := s.live(key, time.Time{})
	s.mu.RUnlock()
	return it.export(key), nil
}

// GetMany reads several keys at one moment.
func (s *State) GetMany(ctx context.Context, keys []string, _ block.StateRead) ([]block.StateItem, error) {
	const op fault.Op = "memory.state.GetMany"
	found := make([]*item, len(keys))
	s.mu.RLock()
	if err := s.usable(op, ctx); err != nil {
		s.mu.RUnlock()
		return nil, err
	}
	now := time.Now()
	for i, k := range keys {
		found[i] = s.live(k, now)
	}
	s.mu.RUnlock()
	out := make([]block.StateItem, len(keys))
	for i, it := range found {
		out[i] = it.export(keys[i])
	}
	return out, nil
}

// Set writes one key.
func (s *State) Set(ctx context.Context, w block.StateWrite) error {
	const op fault.Op = "memory.state.Set"
	w.Value = bytes.Clone(w.Value)
	return s.apply(op, ctx, nil, []block.StateOp{{StateWrite: w}})
}

// Delete removes one key.
func (s *State) Delete(ctx context.Context, d block.StateDelete) error {
	const op fault.Op = "memory.state.Delete"
	return s.apply(op, ctx, nil, []block.StateOp{{Delete: true, StateWrite: block.StateWrite{Key: d.Key, ETag: d.ETag}}})
}

// SetMany writes each on its own.
func (s *State) SetMany(ctx context.Context, ws []block.StateWrite) []error {
	return each(len(ws), func(i int) error { return s.Set(ctx, ws[i]) })
}

// DeleteMany removes each on its own.
func (s *State) DeleteMany(ctx context.Context, ds []block.StateDelete) []error {
	return each(len(ds), func(i int) error { return s.Delete(ctx, ds[i]) })
}

func each(n int, do func(int) error) []error {
	var errs []error
	for i := range n {
		if err := do(i); err != nil {
			if errs == nil {
				errs = make([]error, n)
			}
			errs[i] = err
		}
	}
	return errs
}

// Transact applies all operations in order, or none.
func (s *State) Transact(ctx context.Context, ops []block.StateOp) error {
	const op fault.Op = "memory.state.Transact"
	return s.apply(op, ctx, nil, owned(ops))
}

// TransactFenced applies all operations and raises the fence, or does nothing. A fence is kept
// until Close and counts towards the bound.
func (s *State) TransactFenced(ctx context.Context, fence string, epoch uint64, ops []block.StateOp) error {
	const op fault.Op = "memory.state.TransactFenced"
	return s.apply(op, ctx, &raise{fence, epoch}, owned(ops))
}

// raise is what a transaction does to a fence.
type raise struct {
	fence string
	epoch uint64
}

// owned are operations whose values the caller does not have.
func owned(ops []block.StateOp) []block.StateOp {
	own := make([]block.StateOp, len(ops))
	for i, o := range ops {
		o.Value = bytes.Clone(o.Value)
		own[i] = o
	}
	return own
}

// apply checks and then performs ops, whose values it keeps, and the raise of a fence unless it
// is nil. Checks see the effect of earlier operations of the same list, as rows of a table would.
func (s *State) apply(op fault.Op, ctx context.Context, fence *raise, ops []block.StateOp) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(op, ctx); err != nil {
		return err
	}
	var room int64 // for a new fence
	if fence != nil {
		at, known := s.fences[fence.fence]
		if at > fence.epoch {
			return fault.New(op, fault.Conflict, "epoch %d has written with the fence %q, the request has epoch %d", at, fence.fence, fence.epoch).
				With(fault.Fenced).WithSent(fault.SentNever)
		}
		if !known {
			room = int64(len(fence.fence)) + itemOverhead
		}
	}
	now := time.Now()
	var undo []change
	var err error
	for i := range ops {
		if err = s.check(op, &ops[i], now); err != nil {
			break
		}
		undo = append(undo, s.perform(&ops[i], now))
	}
	if err == nil && s.max > 0 && s.used+room > s.max && (room > 0 || grows(ops)) {
		err = fault.New(op, fault.Exhausted, "the in-memory store holds its maximum of %d bytes; delete keys or raise maxBytes", s.max)
	}
	if err != nil {
		for i := len(undo) - 1; i >= 0; i-- {
			s.replace(undo[i].key, undo[i].was)
		}
	} else {
		s.tell(undo)
		if fence != nil {
			s.fences[fence.fence] = fence.epoch
			s.used += room
		}
	}
	s.arm()
	return err
}

// grows tells whether ops can need room: removals are welcome in a full store.
func grows(ops []block.StateOp) bool {
	for i := range ops {
		if !ops[i].Delete {
			return true
		}
	}
	return false
}

// change remembers what one operation replaced; nil means the key was missing.
type change struct {
	key string
	was *item
}

func (s *State) check(op fault.Op, o *block.StateOp, now time.Time) error {
	it := s.live(o.Key, now)
	switch {
	case o.ETag != "":
		if it == nil {
			return fault.New(op, fault.Conflict, "key %q has etag %q in the request and does not exist", o.Key, o.ETag)
		}
		if it.etag() != o.ETag {
			return fault.New(op, fault.Conflict, "key %q has etag %q, the request says %q; read it again", o.Key, it.etag(), o.ETag)
		}
	case o.FirstWrite && !o.Delete && it != nil:
		return fault.New(op, fault.Conflict, "key %q exists already and the request is a first write", o.Key)
	}
	return nil
}

func (s *State) perform(o *block.StateOp, now time.Time) change {
	if o.Delete {
		return change{o.Key, s.replace(o.Key, nil)}
	}
	s.version++
	it := &item{key: o.Key, value: o.Value, version: s.version, slot: -1}
	if o.TTL > 0 {
		it.expires = now.Add(o.TTL)
	}
	return change{o.Key, s.replace(o.Key, it)}
}

// replace puts it (nil: nothing) in the place of what key holds, and returns that.
func (s *State) replace(key string, it *item) *item {
	was := s.items[key]
	if was != nil {
		s.used -= was.size()
		if was.slot >= 0 {
			heap.Remove(&s.dying, was.slot)
		}
	}
	if s.order != nil && (was == nil) != (it == nil) {
		if it != nil {
			s.order.add(key)
		} else {
			s.order.remove(key)
		}
	}
	if it == nil {
		delete(s.items, key)
		return was
	}
	s.items[key] = it
	s.used += it.size()
	if !it.expires.IsZero() {
		heap.Push(&s.dying, it)
	}
	return was
}

// live finds an item that has not expired at now; a zero now means the clock is read only if
// it matters.
func (s *State) live(key string, now time.Time) *item {
	it := s.items[key]
	if it == nil || it.expires.IsZero() {
		return it
	}
	if now.IsZero() {
		now = time.Now()
	}
	if !now.Before(it.expires) {
		return nil
	}
	return it
}

// usable reports an ended context or a closed store; mu is held for reading at least.
func (s *State) usable(op fault.Op, ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	if s.closed {
		return fault.New(op, fault.Unavailable, "the in-memory store is closed").WithSent(fault.SentNever)
	}
	return nil
}

// arm sets the timer to the next expiry. Without any, no timer exists and the process sleeps.
func (s *State) arm() {
	if len(s.dying) == 0 {
		if !s.armed.IsZero() {
			s.timer.Stop()
			s.armed = time.Time{}
		}
		return
	}
	next := s.dying[0].expires
	if !s.armed.IsZero() && !next.Before(s.armed) {
		return // fires early enough, and arms itself again
	}
	s.armed = next
	if s.timer == nil {
		s.timer = time.AfterFunc(time.Until(next), s.sweep)
	} else {
		s.timer.Reset(time.Until(next))
	}
}

// sweep drops what has expired. Reads do not wait for it: live looks at the clock.
func (s *State) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = time.Time{}
	if s.closed {
		return
	}
	now := time.Now()
	var gone []change
	for len(s.dying) > 0 && !now.Before(s.dying[0].expires) {
		key := s.dying[0].key
		gone = append(gone, change{key, s.replace(key, nil)})
	}
	s.tell(gone)
	s.arm()
}

func (it *item) size() int64 { return int64(len(it.key)+len(it.value)) + itemOverhead }

func (it *item) etag() string { return strconv.FormatUint(it.version, 36) }

// export copies the item for a caller; a nil item is a missing one.
func (it *item) export(key string) block.StateItem {
	if it == nil {
		return block.StateItem{Key: key}
	}
	return block.StateItem{Key: key, Exists: true, Value: bytes.Clone(it.value), ETag: it.etag(), Expires: it.expires}
}

// expiries is a heap of items by their end.
type expiries []*item

func (h expiries) Len() int           { return len(h) }
func (h expiries) Less(i, j int) bool { return h[i].expires.Before(h[j].expires) }
func (h expiries) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].slot, h[j].slot = i, j
}

// Push appends x, as container/heap asks.
func (h *expiries) Push(x any) {
	it, ok := x.(*item)
	if !ok {
		panic(fmt.Sprintf("memory: %T in the expiry heap", x))
	}
	it.slot = len(*h)
	*h = append(*h, it)
}

// Pop removes the last element, as container/heap asks.
func (h *expiries) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	it.slot = -1
	return it
}
