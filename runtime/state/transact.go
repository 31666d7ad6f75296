package state

import (
	"context"
	"fmt"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Operation is one step of a transaction: an item with "upsert" or "delete".
type Operation struct {
	Operation string
	Item
}

// LimitError is the cause of a fault.TooManyOps error, for edges that report the figures.
type LimitError struct{ Ops, Max int }

func (e *LimitError) Error() string {
	return fmt.Sprintf("the transaction contains %d operations, which is more than what the state store supports: %d", e.Ops, e.Max)
}

// Transact applies all operations or none. An empty key is allowed here (and only here), as
// Dapr allows it. Edges merge request metadata into each item's; metadata of the transaction
// as a whole has no effect on any store.
func (s *Service) Transact(ctx context.Context, store string, ops []Operation) error {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return err
	}
	if !catalog.Able[block.StateTx](h) {
		return fault.New("state.Transact", fault.Unsupported, "state store %s doesn't support transactions", store).With(fault.NoTransactions)
	}
	if len(ops) == 0 {
		return nil
	}
	return s.transact(ctx, h, ops, nil)
}

// transact does it, under a fence if there is one.
func (s *Service) transact(ctx context.Context, h *catalog.Handle[block.State], ops []Operation, under *fence) error {
	store := h.Name
	ops, markers, failed, err := s.prepare(ctx, h.Info, ops)
	if err != nil {
		return err
	}
	if len(ops) == 0 && under == nil {
		return nil // there were only projections, of nothing
	}
	steps := make([]block.StateOp, len(ops), len(ops)+len(markers))
	for i := range ops {
		op := &ops[i]
		switch op.Operation {
		case "upsert":
			steps[i].StateWrite, err = s.write(h.Info, &op.Item)
		case "delete":
			var d block.StateDelete
			d, err = s.removal(h.Info, op.Item)
			steps[i] = block.StateOp{Delete: true, StateWrite: block.StateWrite{Key: d.Key, ETag: d.ETag}}
		default:
			err = fault.New("state.Transact", fault.Invalid, "operation type %s not supported", op.Operation).With(fault.BadOperation)
		}
		if err != nil {
			failed()
			return err
		}
	}
	for _, key := range markers {
		steps = append(steps, marker(key))
	}
	start := time.Now()
	desc := s.desc("transact", "", call.Unsafe)
	if len(ops) > 0 {
		desc.Resource, desc.Key = ops[0].Key, ops[0].Key
	} else {
		desc.Resource, desc.Key = under.key, under.key
	}
	if parts := catalog.Parts(h, desc, len(ops), func(i int) string { return ops[i].Key }); len(parts) > 1 {
		failed()
		return fault.New("state.Transact", fault.Invalid, "state store %s is split by key over several stores, and keys %q and %q belong to different ones; a transaction cannot span them",
			store, ops[parts[0][0]].Key, ops[parts[1][0]].Key)
	}
	shadow := func() func(context.Context, block.State) error { return shadowSteps(steps) }
	_, err = catalog.Do(ctx, h, desc, func(ctx context.Context, comp block.State) (struct{}, error) {
		tx, ok := block.As[block.StateTx](comp)
		if !ok {
			return struct{}{}, fault.New("state.Transact", fault.Unsupported, "the state store behind %s doesn't support transactions", store).With(fault.NoTransactions)
		}
		if limit := tx.MaxOps(); limit > 0 && len(steps) > limit {
			return struct{}{}, fault.New("state.Transact", fault.Invalid, "state store %s", store).
				With(fault.TooManyOps).Because(&LimitError{Ops: len(steps), Max: limit})
		}
		if under != nil {
			return struct{}{}, under.transact(ctx, store, comp, steps)
		}
		return struct{}{}, tx.Transact(ctx, steps)
	}, shadow)
	if err != nil && !maybeDone(err) {
		failed()
	}
	if fault.ReasonOf(err) == fault.TooManyOps {
		return err // refused before the store: not counted
	}
	s.record(store, "transaction", start, err)
	return err
}

// prepare asks the outbox, if there is one.
func (s *Service) prepare(ctx context.Context, info catalog.Info, ops []Operation) (kept []Operation, markers []string, failed func(), err error) {
	if s.outbox == nil {
		return ops, nil, func() {}, nil
	}
	return s.outbox.Prepare(ctx, info, ops)
}

// maybeDone tells whether a transaction that failed may have been committed all the same.
func maybeDone(err error) bool {
	switch fault.Of(err) {
	case fault.Conflict, fault.BadEtag, fault.Invalid, fault.Unsupported, fault.TooLarge, fault.Denied:
		return false
	}
	return fault.SentOf(err) != fault.SentNever
}

// shadowSteps copies a transaction for a mirror, whose versions are its own. A store without
// transactions gets the steps one by one.
func shadowSteps(steps []block.StateOp) func(context.Context, block.State) error {
	copies := make([]block.StateOp, len(steps))
	for i, st := range steps {
		copies[i] = block.StateOp{Delete: st.Delete, StateWrite: setting.shadow(st.StateWrite)}
	}
	return func(ctx context.Context, store block.State) error {
		if tx, ok := block.As[block.StateTx](store); ok {
			return tx.Transact(ctx, copies)
		}
		for _, op := range copies {
			var err error
			if op.Delete {
				err = store.Delete(ctx, block.StateDelete{Key: op.Key})
			} else {
				err = store.Set(ctx, op.StateWrite)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}
