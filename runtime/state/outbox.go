package state

import (
	"context"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Outbox publishes the events of transactions on stores that have one; see package outbox.
type Outbox interface {
	// Prepare publishes the events of ops ahead of their transaction. It gives the operations to
	// store and the keys of the markers to store with them, and what to call when the transaction
	// certainly did not commit.
	Prepare(ctx context.Context, info catalog.Info, ops []Operation) (kept []Operation, markers []string, failed func(), err error)
}

// WithOutbox gives the service an outbox, for use at construction.
func (s *Service) WithOutbox(o Outbox) *Service {
	s.outbox = o
	return s
}

// marker is what a transaction writes for each event of its outbox. Its key has no prefix, as in
// Dapr.
func marker(key string) block.StateOp {
	return block.StateOp{StateWrite: block.StateWrite{Key: key, Value: []byte("0")}}
}

// Marked tells whether a transaction with the marker is committed.
func (s *Service) Marked(ctx context.Context, store, key string) (bool, error) {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return false, err
	}
	item, err := catalog.Read(ctx, h, s.desc("get", key, call.Safe), question{key, block.StateRead{Strong: true}}, &reading)
	return item.Exists, err
}

// Unmark removes a marker.
func (s *Service) Unmark(ctx context.Context, store, key string) error {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return err
	}
	_, err = catalog.Do(ctx, h, s.desc("delete", key, call.Idempotent), func(ctx context.Context, store block.State) (struct{}, error) {
		return struct{}{}, store.Delete(ctx, block.StateDelete{Key: key})
	}, nil)
	return err
}
