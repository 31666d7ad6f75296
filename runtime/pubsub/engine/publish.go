package engine

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
)

// Publisher appends messages of one app to one topic. Its methods may be called by several goroutines;
// calls are then ordered as they come. Keys and partitions are kept in order by sending, under
// OrderKey or OrderPartition, at most one message of each at a time: a broker that refuses one
// message would else accept the next.
type Publisher struct {
	opts PublishOptions

	sending sync.Mutex // one Publish at a time, when order is kept

	mu     sync.Mutex
	failed map[string]error // guarded by mu; by key or partition: what failed and was not resumed
	turn   atomic.Uint32    // where messages without a key go
}

// NewPublisher makes a publisher. It is not bound to a component: each Publish names one.
func NewPublisher(o PublishOptions) *Publisher {
	p := &Publisher{opts: o, failed: map[string]error{}}
	p.turn.Store(rand.Uint32())
	return p
}

// maxFailed bounds the keys whose failure is remembered; beyond it every ordered message is refused.
const maxFailed = 1 << 16

// ResumeKey lets messages of a key, or of a partition written as a number, be published again after
// one of them failed. It reports whether one had.
func (p *Publisher) ResumeKey(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, had := p.failed[key]
	delete(p.failed, key)
	return had
}

// Publish makes one attempt to append entries, and returns a receipt for each, in order. With atomic it
// appends all or none; then the broker must be a block.LogAtomic. When no further attempt follows, the
// caller calls Settle: until then a failure holds back only what is behind it in the same attempt.
func (p *Publisher) Publish(ctx context.Context, e *Engine, entries []Entry, atomic bool) []Receipt {
	if p.opts.Ordering != OrderNone {
		p.sending.Lock()
		defer p.sending.Unlock()
	}
	a := &attempt{p: p, e: e, receipts: make([]Receipt, len(entries))}
	if err := a.place(ctx, entries); err != nil {
		return allFailed(a.receipts, err)
	}
	if atomic {
		return a.sendAtomic(ctx)
	}
	for wave := a.wave(); len(wave) > 0; wave = a.wave() {
		a.send(ctx, wave)
	}
	return a.receipts
}

// Settle notes which entries failed for good: under OrderKey or OrderPartition what follows them is refused
// until ResumeKey.
func (p *Publisher) Settle(entries []Entry, receipts []Receipt) {
	for i := range receipts {
		if receipts[i].Err == nil || fault.ReasonOf(receipts[i].Err) == fault.PrecedingFailed {
			continue
		}
		name, ordered := p.order(entries[i].Key, receipts[i].Partition)
		if !ordered {
			continue
		}
		p.mu.Lock()
		if p.failed[name] == nil && len(p.failed) < maxFailed {
			p.failed[name] = receipts[i].Err
		}
		p.mu.Unlock()
	}
}

// attempt is one Publish under way.
type attempt struct {
	p        *Publisher
	e        *Engine
	recs     []block.LogRecord
	receipts []Receipt
	bad      map[int]error    // entries that cannot be sent at all
	asked    map[int]bool     // entries whose partition was given
	failed   map[string]error // in this attempt
}

// unsent marks a receipt whose entry was not looked at yet.
const unsent = -1

// place makes records of entries: where each goes.
func (a *attempt) place(ctx context.Context, entries []Entry) error {
	layout, err := a.e.topics.get(ctx, a.p.opts.Topic, true)
	if err != nil {
		return err
	}
	a.recs = make([]block.LogRecord, len(entries))
	for i := range entries {
		in, r := &entries[i], &a.recs[i]
		r.Message, r.DeliverAt = in.Message, in.DeliverAt
		r.Topic = a.p.opts.Topic
		a.receipts[i].Partition = unsent
		if in.Partition != nil {
			r.Partition = *in.Partition
			if a.asked == nil {
				a.asked = map[int]bool{}
			}
			a.asked[i] = true
		} else {
			a.aim(r, layout)
		}
		if err := a.check(r, layout); err != nil {
			if a.bad == nil {
				a.bad = map[int]error{}
			}
			a.bad[i] = err
		}
	}
	return nil
}

// aim says where a record goes for which no partition was asked.
func (a *attempt) aim(r *block.LogRecord, layout group.Layout) {
	at := current(layout)
	switch {
	case r.Key != "":
		r.Partition = at.First + partitionOf(r.Key, at.Count)
	case r.ID != "": // the same one when it is sent again, or it would not be recognised
		r.Partition = at.First + partitionOf(r.ID, at.Count)
	default:
		r.Partition = at.First + int32(a.p.turn.Add(1)%uint32(at.Count))
	}
}

// check tells why a record cannot be published at all.
func (a *attempt) check(r *block.LogRecord, layout group.Layout) error {
	const op fault.Op = "pubsub.Publish"
	f := a.e.log.LogFeatures()
	if err := checkPart(op, r.Topic, layout, r.Partition); err != nil {
		return err
	}
	switch {
	case r.Partition < current(layout).First:
		return fault.New(op, fault.Invalid, "partition %d of topic %q is closed since its number of partitions changed; there are %s", r.Partition, r.Topic, describe(layout))
	case f.MaxRecord > 0 && len(r.Data) > f.MaxRecord:
		return fault.New(op, fault.TooLarge, "the message has %d bytes, the broker takes at most %d", len(r.Data), f.MaxRecord).WithSent(fault.SentNever)
	case !r.DeliverAt.IsZero() && !f.Delay:
		return fault.New(op, fault.Unsupported, "this broker cannot deliver later").WithSent(fault.SentNever)
	}
	return nil
}

// order is the name under which a message is kept in order; ok is false when it is free.
func (p *Publisher) order(key string, partition int32) (name string, ok bool) {
	switch p.opts.Ordering {
	case OrderKey:
		return key, key != ""
	case OrderPartition:
		return partName(partition), true
	}
	return "", false
}

// wave picks the entries that may be sent now: all that are free, and of each key the first that is left.
// Those behind one that failed are answered.
func (a *attempt) wave() []int {
	wave := make([]int, 0, len(a.recs))
	var busy map[string]bool
	for i := range a.recs {
		if a.receipts[i].Partition != unsent {
			continue
		}
		name, ordered := a.p.order(a.recs[i].Key, a.recs[i].Partition)
		if ordered {
			if err := a.preceding(name); err != nil {
				a.receipts[i] = Receipt{Partition: a.recs[i].Partition, Err: err}
				continue
			}
			if busy[name] {
				continue
			}
			if busy == nil {
				busy = make(map[string]bool, len(a.recs)-i)
			}
			busy[name] = true
		}
		if err := a.bad[i]; err != nil { // its turn has come: what follows it is behind it
			a.fail(i, err)
			continue
		}
		wave = append(wave, i)
	}
	return wave
}

func (a *attempt) preceding(name string) error {
	p := a.p
	cause := a.failed[name]
	p.mu.Lock()
	if cause == nil {
		cause = p.failed[name]
	}
	full := len(p.failed) >= maxFailed
	p.mu.Unlock()
	if cause == nil && !full {
		return nil
	}
	e := fault.New("pubsub.Publish", fault.Conflict, "an earlier message of %q could not be published; resume the key to go on without it", name)
	if cause == nil {
		e = fault.New("pubsub.Publish", fault.Conflict, "messages of %d keys could not be published; resume them to go on", maxFailed)
	}
	return e.With(fault.PrecedingFailed).WithSent(fault.SentNever).Because(cause)
}

func (a *attempt) fail(i int, err error) {
	a.receipts[i] = Receipt{Partition: a.recs[i].Partition, Err: err}
	if name, ordered := a.p.order(a.recs[i].Key, a.recs[i].Partition); ordered && a.failed[name] == nil {
		if a.failed == nil {
			a.failed = map[string]error{}
		}
		a.failed[name] = err
	}
}

// send appends some of the records and writes their receipts.
func (a *attempt) send(ctx context.Context, wave []int) {
	batch := a.recs
	if len(wave) < len(a.recs) {
		batch = make([]block.LogRecord, len(wave))
		for j, i := range wave {
			batch[j] = a.recs[i]
		}
	}
	results := a.e.log.Append(ctx, batch)
	behind, err := a.e.topics.landed(ctx, a.p.opts.Topic, batch, results)
	if err != nil {
		for j := range results {
			if results[j].Err == nil { // it is in, but may be where nobody reads it
				results[j].Err = err
			}
		}
	}
	again := false
	for j, i := range wave {
		if behind != nil && behind[j] {
			again = true // unsent, as if it never had been
			continue
		}
		switch {
		case len(results) != len(wave):
			a.fail(i, fault.New("pubsub.Publish", fault.Internal, "the broker answered %d results to %d messages", len(results), len(wave)).WithSent(fault.SentMaybe))
		case results[j].Err != nil:
			a.fail(i, results[j].Err)
		default:
			a.receipts[i] = Receipt{Partition: a.recs[i].Partition, Position: results[j].Position, Duplicate: results[j].Duplicate}
		}
	}
	if again {
		a.move(ctx, behind, wave)
	}
}

// move finds new places for records that are behind the end of their partition.
func (a *attempt) move(ctx context.Context, behind []bool, wave []int) {
	layout, err := a.e.topics.get(ctx, a.p.opts.Topic, true)
	for j, i := range wave {
		if !behind[j] {
			continue
		}
		r := &a.recs[i]
		switch {
		case err != nil:
			a.fail(i, err)
		case a.asked[i]:
			a.fail(i, a.check(r, layout)) // the partition it was meant for is closed
		default:
			a.aim(r, layout)
		}
	}
}

func (a *attempt) sendAtomic(ctx context.Context) []Receipt {
	for i := range a.receipts { // one that cannot be published is enough
		err := a.bad[i]
		if name, ordered := a.p.order(a.recs[i].Key, a.recs[i].Partition); ordered && err == nil {
			err = a.preceding(name)
		}
		if err != nil {
			return allFailed(a.receipts, err)
		}
	}
	able, ok := block.As[block.LogAtomic](a.e.log)
	if !ok || !a.e.log.LogFeatures().Atomic {
		return allFailed(a.receipts, fault.New("pubsub.Publish", fault.Unsupported, "this broker cannot append a batch as a whole").WithSent(fault.SentNever))
	}
	results, err := able.AppendAtomic(ctx, a.recs)
	if err == nil {
		var behind []bool
		behind, err = a.e.topics.landed(ctx, a.p.opts.Topic, a.recs, results)
		if behind != nil {
			err = fault.New("pubsub.Publish", fault.Unavailable, "the number of partitions of topic %q changed meanwhile; send the batch again", a.p.opts.Topic)
		}
	}
	if err != nil {
		return allFailed(a.receipts, err)
	}
	for i := range a.recs {
		a.receipts[i] = Receipt{Partition: a.recs[i].Partition, Position: results[i].Position, Duplicate: results[i].Duplicate}
	}
	return a.receipts
}

func allFailed(receipts []Receipt, err error) []Receipt {
	for i := range receipts {
		receipts[i] = Receipt{Partition: receipts[i].Partition, Err: err}
	}
	return receipts
}
