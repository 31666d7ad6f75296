package memory

import (
	"context"
	"slices"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// What a log in memory does is in logtopic.go (where records are kept), logreader.go (how they are
// read), logdue.go (what happens at its time) and ledger.go.

// entryMax bounds the value of an entry of the ledger.
const entryMax = 1 << 20

var (
	_ block.Log       = (*PubSub)(nil)
	_ block.LogAtomic = (*PubSub)(nil)
	_ block.LogKeeper = (*PubSub)(nil)
)

// LogFeatures are what the configuration says.
func (p *PubSub) LogFeatures() block.LogFeatures {
	l := &p.hub.limits
	return block.LogFeatures{Partitions: l.Partitions, Dedup: idsKept, Delay: true, TTL: true, Atomic: true,
		MaxRecord: l.maxRecord(), MaxEntry: entryMax, SessionTTL: l.SessionTTL}
}

// Append adds records. A full topic refuses them with fault.Exhausted.
func (p *PubSub) Append(ctx context.Context, recs []block.LogRecord) []block.AppendResult {
	const op fault.Op = "memory.pubsub.Append"
	results := make([]block.AppendResult, len(recs))
	if err := p.usable(op, ctx); err != nil {
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	for from, to := 0, 0; from < len(recs); from = to {
		for to = from + 1; to < len(recs) && recs[to].Topic == recs[from].Topic; to++ {
		}
		p.hub.logs.topic(recs[from].Topic).append(op, recs[from:to], results[from:to])
	}
	return results
}

// AppendAtomic adds all records, of however many topics, or none.
func (p *PubSub) AppendAtomic(ctx context.Context, recs []block.LogRecord) ([]block.AppendResult, error) {
	const op fault.Op = "memory.pubsub.AppendAtomic"
	if err := p.usable(op, ctx); err != nil {
		return nil, err
	}
	return p.hub.logs.appendAtomic(op, recs)
}

// OpenReader starts reading a partition.
func (p *PubSub) OpenReader(ctx context.Context, topic string, partition int32, from uint64, _ block.ReadOptions) (block.LogReader, error) {
	const op fault.Op = "memory.pubsub.OpenReader"
	if err := p.usable(op, ctx); err != nil {
		return nil, err
	}
	if partition < 0 {
		return nil, badPartition(op, partition)
	}
	t := p.hub.logs.topic(topic)
	return &logReader{client: p, topic: t, part: t.partition(partition), next: from,
		wake: make(chan struct{}, 1), closed: make(chan struct{})}, nil
}

// Bounds tells what partitions hold.
func (p *PubSub) Bounds(ctx context.Context, topic string, partitions []int32) ([]block.LogBounds, error) {
	const op fault.Op = "memory.pubsub.Bounds"
	if err := p.usable(op, ctx); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(partitions, func(n int32) bool { return n < 0 }); i >= 0 {
		return nil, badPartition(op, partitions[i])
	}
	out := make([]block.LogBounds, len(partitions))
	t := p.hub.logs.known(topic)
	for i, n := range partitions {
		out[i] = t.bounds(n)
	}
	return out, nil
}

// PositionAt finds the first record of a time or later.
func (p *PubSub) PositionAt(ctx context.Context, topic string, partition int32, at time.Time) (uint64, error) {
	const op fault.Op = "memory.pubsub.PositionAt"
	if err := p.usable(op, ctx); err != nil {
		return 0, err
	}
	if partition < 0 {
		return 0, badPartition(op, partition)
	}
	return p.hub.logs.known(topic).positionAt(partition, at), nil
}

// Consumed lets records go that every group named so far is done with.
func (p *PubSub) Consumed(topic, group string, partition int32, upTo uint64) {
	const op fault.Op = "memory.pubsub.Consumed"
	if partition < 0 || p.usable(op, context.Background()) != nil {
		return
	}
	p.hub.logs.topic(topic).consumed(group, partition, upTo)
}

// LedgerGet reads an entry.
func (p *PubSub) LedgerGet(ctx context.Context, key string) (block.LedgerEntry, error) {
	if err := p.usable("memory.pubsub.LedgerGet", ctx); err != nil {
		return block.LedgerEntry{}, err
	}
	return p.hub.ledger.get(key), nil
}

// LedgerPut makes writes, one after the other.
func (p *PubSub) LedgerPut(ctx context.Context, writes []block.LedgerWrite) []block.LedgerResult {
	const op fault.Op = "memory.pubsub.LedgerPut"
	if err := p.usable(op, ctx); err != nil {
		results := make([]block.LedgerResult, len(writes))
		for i := range results {
			results[i].Err = err
		}
		return results
	}
	return p.hub.ledger.put(op, writes)
}

// LedgerWatch tells of changes. What waits for a slow callee is bounded: one that lets ever more
// removals wait gets all there is anew.
func (p *PubSub) LedgerWatch(ctx context.Context, prefix string, tell func([]block.LedgerEntry, bool)) error {
	const op fault.Op = "memory.pubsub.LedgerWatch"
	if err := p.usable(op, ctx); err != nil {
		return err
	}
	w := p.hub.ledger.watch(prefix)
	defer p.hub.ledger.unwatch(w)
	for {
		select {
		case <-ctx.Done():
		case <-p.closed:
		case <-w.wake:
		}
		if err := p.usable(op, ctx); err != nil {
			return err
		}
		if entries, reset := p.hub.ledger.take(w); reset || len(entries) > 0 {
			tell(entries, reset)
		}
	}
}

func badPartition(op fault.Op, n int32) error {
	return fault.New(op, fault.Invalid, "partition %d: partitions are numbered from 0", n)
}
