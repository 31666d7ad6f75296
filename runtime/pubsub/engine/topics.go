package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
)

// How a topic is divided is an entry of the ledger, made by whoever uses the topic first. All sidecars
// follow it. Its number of partitions changes by a new generation of partitions (Resize):
//
//  1. The entry says that a generation is pending. Publishers that see it finish what they are
//     appending and hold back what comes.
//  2. After resizeGrace the ends of the old partitions are noted, the generation is current, and publishers go
//     on with it. Members of groups read the old partitions to these ends before they open the new ones, so no
//     message overtakes an earlier one of its key.
//
// What is appended to an old partition behind its end is nobody's: a publisher that was halted through all of
// this may do that. So a publisher reads the entry itself, not only what the watch told of it, once in
// confirmEvery while it publishes; and an append whose answer comes later than the grace allows since then is
// confirmed before it is acknowledged. Behind the end it is published again, to the new generation.

// topicRecord is the entry's value.
type topicRecord struct {
	Version     int                `json:"v"`
	Generations []group.Generation `json:"generations"`
	Pending     int32              `json:"pending,omitempty"` // partitions of the generation to come
	Ends        map[int32]uint64   `json:"ends,omitempty"`    // of partitions of generations before the last
}

const (
	topicVersion = 1
	// resizeGrace is how long publishers have to notice a resize. Their watch is told within
	// milliseconds; one that is cut off cannot append either.
	resizeGrace   = 2 * time.Second
	maxPartitions = 1024
	// confirmEvery is how old what a publisher knows of a topic may be when it begins to append, and
	// confirmLate when it acknowledges: both well within the grace.
	confirmEvery = resizeGrace / 2
	confirmLate  = resizeGrace * 9 / 10
)

// reservedPrefix begins topics that only the engine writes.
const reservedPrefix = "mecha.parked/"

// parkLog is the topic that takes the parked messages of a group.
func parkLog(groupName, topic string) string { return reservedPrefix + groupName + "/" + topic }

func topicKey(topic string) string { return block.LedgerKey("topic", topic) }

// topics follow how the topics of a component are divided.
type topics struct {
	log    block.Log
	ctx    context.Context // ends with the engine
	start  sync.Once
	run    *sync.WaitGroup
	synced chan struct{} // closed when the watch has told everything once

	mu      sync.Mutex
	all     map[string]*topic                  // guarded by mu
	follows map[int]func(string, group.Layout) // guarded by mu; told of changes
	nextID  int                                // guarded by mu
}

type topic struct {
	layout   group.Layout
	pending  bool
	ends     map[int32]uint64
	seen     time.Time // before the entry was last read, by us: it was no older then
	revision uint64
	changed  chan struct{} // closed and replaced at a change
}

func newTopics(ctx context.Context, log block.Log, run *sync.WaitGroup) *topics {
	return &topics{log: log, ctx: ctx, run: run, synced: make(chan struct{}), all: map[string]*topic{}, follows: map[int]func(string, group.Layout){}}
}

// follow starts the watch, and waits until it has told everything once.
func (t *topics) follow(ctx context.Context) error {
	t.start.Do(func() { t.run.Go(t.watch) })
	select {
	case <-t.synced:
		return nil
	default:
	}
	select {
	case <-t.synced:
		return nil
	case <-ctx.Done():
		return fault.Wrap("pubsub.topics", fault.Unavailable, ctx.Err())
	case <-t.ctx.Done():
		return errClosed("pubsub.topics")
	}
}

func (t *topics) watch() {
	pause := 100 * time.Millisecond
	for t.ctx.Err() == nil {
		began := time.Now()
		_ = t.log.LedgerWatch(t.ctx, block.LedgerPrefix("topic"), t.told) // why it ended shows in the calls that use it
		if time.Since(began) > 10*time.Second {
			pause = 100 * time.Millisecond
		}
		wait(t.ctx, pause)
		pause = min(2*pause, 5*time.Second)
	}
}

func (t *topics) told(entries []block.LedgerEntry, reset bool) {
	for i := range entries {
		t.note(&entries[i])
	}
	if reset {
		select {
		case <-t.synced:
		default:
			close(t.synced)
		}
	}
}

// note takes in what an entry says.
func (t *topics) note(e *block.LedgerEntry) {
	parts := block.LedgerParts(e.Key)
	if e.Removed || len(parts) != 2 {
		return
	}
	var r topicRecord
	if json.Unmarshal(e.Value, &r) != nil || r.Version > topicVersion || len(r.Generations) == 0 {
		return // written by a later version: what is known stays
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.all[parts[1]]
	if now == nil {
		now = &topic{changed: make(chan struct{})}
		t.all[parts[1]] = now
	}
	if e.Revision <= now.revision {
		return
	}
	now.layout, now.pending, now.ends, now.revision = group.Layout{Generations: r.Generations}, r.Pending > 0, r.Ends, e.Revision
	close(now.changed)
	now.changed = make(chan struct{})
	for _, f := range t.follows {
		f(parts[1], now.layout)
	}
}

// onChange has f told of every layout, those known at once. f must not block nor call topics.
func (t *topics) onChange(f func(string, group.Layout)) (stop func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := t.nextID
	t.nextID++
	t.follows[id] = f
	for name, at := range t.all {
		f(name, at.layout)
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.follows, id)
	}
}

// get is a topic's layout; the topic is made if it does not exist. With writing it waits while the topic
// is being resized.
func (t *topics) get(ctx context.Context, name string, writing bool) (group.Layout, error) {
	if err := t.follow(ctx); err != nil {
		return group.Layout{}, err
	}
	for {
		t.mu.Lock()
		at := t.all[name]
		if at == nil {
			t.mu.Unlock()
			if err := t.make(ctx, name); err != nil {
				return group.Layout{}, err
			}
			continue
		}
		layout, pending, changed, old := at.layout, at.pending, at.changed, time.Since(at.seen) > confirmEvery
		t.mu.Unlock()
		switch {
		case !writing, !pending && !old:
			return layout, nil
		case !pending:
			if err := t.confirm(ctx, name); err != nil {
				return group.Layout{}, err
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return group.Layout{}, fault.Wrap("pubsub.topics", fault.Unavailable, ctx.Err())
		}
	}
}

// confirm reads a topic's entry.
func (t *topics) confirm(ctx context.Context, name string) error {
	began := time.Now()
	e, err := t.log.LedgerGet(ctx, topicKey(name))
	if err != nil {
		return err
	}
	t.note(&e)
	t.mu.Lock()
	defer t.mu.Unlock()
	if at := t.all[name]; at != nil && began.After(at.seen) {
		at.seen = began
	}
	return nil
}

// landed tells which of the records, just appended, are behind the end of their partition, because the topic was
// resized meanwhile. They are nobody's.
func (t *topics) landed(ctx context.Context, name string, recs []block.LogRecord, results []block.AppendResult) (behind []bool, err error) {
	t.mu.Lock()
	at := t.all[name]
	late := at == nil || time.Since(at.seen) > confirmLate
	t.mu.Unlock()
	if late {
		if err := t.confirm(ctx, name); err != nil {
			return nil, err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if at = t.all[name]; at == nil || len(at.ends) == 0 {
		return nil, nil
	}
	for i := range recs {
		end, closed := at.ends[recs[i].Partition]
		if !closed || i >= len(results) || results[i].Err != nil || results[i].Position != 0 && results[i].Position < end {
			continue
		}
		if behind == nil {
			behind = make([]bool, len(recs))
		}
		behind[i] = true
	}
	return behind, nil
}

// end is where a partition ends that is not written to any more.
func (t *topics) end(p Part) (uint64, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at := t.all[p.Topic]; at != nil {
		end, closed := at.ends[p.ID]
		return end, closed
	}
	return 0, false
}

// known is a topic's layout if the topic exists.
func (t *topics) known(ctx context.Context, name string) (l group.Layout, exists bool, err error) {
	if err := t.follow(ctx); err != nil {
		return l, false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if at := t.all[name]; at != nil {
		return at.layout, true, nil
	}
	return l, false, nil
}

func (t *topics) make(ctx context.Context, name string) error {
	const op fault.Op = "pubsub.topics"
	if strings.HasPrefix(name, reservedPrefix) {
		return fault.New(op, fault.Invalid, "topic %q: names that begin with %s are for parked messages", name, reservedPrefix).With(fault.NoTopic)
	}
	value, err := json.Marshal(topicRecord{Version: topicVersion, Generations: []group.Generation{{Count: int32(max(1, t.log.LogFeatures().Partitions))}}})
	if err != nil {
		return fault.Wrap(op, fault.Internal, err)
	}
	e := block.LedgerEntry{Key: topicKey(name), Value: value}
	r := t.log.LedgerPut(ctx, []block.LedgerWrite{{Key: e.Key, Value: value}})[0]
	switch {
	case r.Err == nil:
		e.Revision = r.Revision
	case fault.Of(r.Err) == fault.Conflict: // somebody was faster
		if e, err = t.log.LedgerGet(ctx, e.Key); err != nil {
			return err
		}
	default:
		return r.Err
	}
	t.note(&e)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all[name] == nil {
		return fault.New(op, fault.Unsupported, "topic %q was made by a later version of this program", name)
	}
	return nil
}

// resize gives a topic a new generation of n partitions.
func (t *topics) resize(ctx context.Context, name string, n int32) (group.Layout, error) {
	const op fault.Op = "pubsub.ResizeTopic"
	if n < 1 || n > maxPartitions {
		return group.Layout{}, fault.New(op, fault.Invalid, "%d partitions: a topic has 1 to %d", n, maxPartitions).With(BadPartitions)
	}
	if _, err := t.get(ctx, name, false); err != nil {
		return group.Layout{}, err
	}
	for {
		e, err := t.log.LedgerGet(ctx, topicKey(name))
		if err != nil {
			return group.Layout{}, err
		}
		var r topicRecord
		if err := json.Unmarshal(e.Value, &r); err != nil || len(r.Generations) == 0 {
			return group.Layout{}, fault.New(op, fault.Internal, "the record of topic %q cannot be read", name).Because(err)
		}
		last := r.Generations[len(r.Generations)-1]
		switch {
		case r.Pending == 0 && last.Count == n:
			t.note(&e)
			return group.Layout{Generations: r.Generations}, nil
		case r.Pending == 0:
			r.Pending = n
		default: // ours, or one that its maker did not finish
			if !wait(ctx, resizeGrace) {
				return group.Layout{}, fault.Wrap(op, fault.Deadline, ctx.Err())
			}
			ids := make([]int32, last.Count)
			for i := range ids {
				ids[i] = last.First + int32(i)
			}
			bounds, err := t.log.Bounds(ctx, name, ids)
			if err != nil {
				return group.Layout{}, err
			}
			if r.Ends == nil {
				r.Ends = map[int32]uint64{}
			}
			for i, id := range ids {
				r.Ends[id] = bounds[i].Next
			}
			r.Generations = append(r.Generations, group.Generation{First: last.First + last.Count, Count: r.Pending})
			r.Pending = 0
		}
		value, err := json.Marshal(r)
		if err != nil {
			return group.Layout{}, fault.Wrap(op, fault.Internal, err)
		}
		put := t.log.LedgerPut(ctx, []block.LedgerWrite{{Key: e.Key, Value: value, Revision: e.Revision}})[0]
		if put.Err != nil && fault.Of(put.Err) != fault.Conflict {
			return group.Layout{}, put.Err
		}
	}
}

// wait is false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func errClosed(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "the component is closed").WithSent(fault.SentNever)
}

// current is the generation that is written to.
func current(l group.Layout) group.Generation { return l.Generations[len(l.Generations)-1] }

// parts are all partitions of a layout.
func parts(l group.Layout) []int32 {
	var out []int32
	for _, g := range l.Generations {
		for i := range g.Count {
			out = append(out, g.First+i)
		}
	}
	return out
}

// checkPart tells whether a topic has a partition.
func checkPart(op fault.Op, topic string, l group.Layout, id int32) error {
	for _, g := range l.Generations {
		if id >= g.First && id < g.First+g.Count {
			return nil
		}
	}
	return fault.New(op, fault.Invalid, "topic %q has no partition %d: it has %s", topic, id, describe(l)).With(NoSuchPartition)
}

func describe(l group.Layout) string {
	g := current(l)
	return fmt.Sprintf("%d, numbered from %d", g.Count, g.First)
}

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
			if b := bounds[i]; closed && (o.committed >= end || b.First >= b.Next && o.lane.Idle()) {
				o.drained = true
				c.seat.Drained(o.part)
			}
		}
		c.mu.Unlock()
	}
	return left
}
