package state

import (
	"context"
	"fmt"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
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
	tx, ok := h.Component.(block.StateTx)
	if !ok {
		return fault.New("state.Transact", fault.Unsupported, "state store %s doesn't support transactions", store).With(fault.NoTransactions)
	}
	if len(ops) == 0 {
		return nil
	}
	steps := make([]block.StateOp, len(ops))
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
			return err
		}
	}
	if limit := tx.MaxOps(); limit > 0 && len(ops) > limit {
		return fault.New("state.Transact", fault.Invalid, "state store %s", store).
			With(fault.TooManyOps).Because(&LimitError{Ops: len(ops), Max: limit})
	}
	start := time.Now()
	desc := call.Desc{Op: "transact", Resource: ops[0].Key, Safety: call.Unsafe}
	_, err = call.Do(ctx, h.Target, desc, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, tx.Transact(ctx, steps)
	})
	s.record(store, "transaction", start, err)
	return err
}
