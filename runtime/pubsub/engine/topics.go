package engine

import (
	"context"
	"encoding/json"
	"fmt"
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

// reserved refuses a topic that only the engine writes.
func reserved(op fault.Op, topic string) *fault.Error {
	return fault.New(op, fault.Denied, "topic %q: names that begin with %s are for parked messages; use another", topic, reservedPrefix).
		With(fault.ForbiddenTopic).WithSent(fault.SentNever)
}

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
		return reserved(op, name)
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
