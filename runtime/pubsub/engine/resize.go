package engine

import (
	"context"
	"encoding/json"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
)

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
