package seal

import (
	"context"
	"slices"

	"github.com/mecha-project/mecha/components/block"
)

// What follows are the optional abilities of a store over its values encrypted. Which of them it has
// is asked with block.As, which asks the store behind too. Queries are not among them.
var (
	_ block.StandsFor  = (*sealed)(nil)
	_ block.StateBatch = (*sealed)(nil)
	_ block.StateTx    = (*sealed)(nil)
	_ block.StateTTL   = (*sealed)(nil)
	_ block.StateScan  = (*sealed)(nil)
	_ block.StateWatch = (*sealed)(nil)
	_ block.StateFence = (*sealed)(nil)
	_ block.Late       = (*sealed)(nil)
)

// Other is the store that keeps the values.
func (s *sealed) Other() block.Component { return s.inner }

// ExpiresItems marks native expiry.
func (s *sealed) ExpiresItems() {}

// GetMany reads and opens several values. One that cannot be opened has the reason in its item.
func (s *sealed) GetMany(ctx context.Context, keys []string, opts block.StateRead) ([]block.StateItem, error) {
	items, err := s.inner.(block.StateBatch).GetMany(ctx, keys, opts)
	s.openAll(items)
	return items, err
}

func (s *sealed) openAll(items []block.StateItem) {
	for i := range items {
		if bad := s.keys.open("seal.open", &items[i]); bad != nil {
			items[i].Err = bad
		}
	}
}

// SetMany seals and writes several values.
func (s *sealed) SetMany(ctx context.Context, ws []block.StateWrite) []error {
	ws = slices.Clone(ws) // the caller's may be repeated
	for i := range ws {
		ws[i] = s.write(ws[i])
	}
	return s.inner.(block.StateBatch).SetMany(ctx, ws)
}

// DeleteMany removes several keys.
func (s *sealed) DeleteMany(ctx context.Context, ds []block.StateDelete) []error {
	return s.inner.(block.StateBatch).DeleteMany(ctx, ds)
}

// Transact seals what a transaction writes.
func (s *sealed) Transact(ctx context.Context, ops []block.StateOp) error {
	store := s.inner.(block.StateTx)
	return store.Transact(ctx, s.ops(ops))
}

func (s *sealed) ops(ops []block.StateOp) []block.StateOp {
	ops = slices.Clone(ops)
	for i := range ops {
		if !ops[i].Delete {
			ops[i].StateWrite = s.write(ops[i].StateWrite)
		}
	}
	return ops
}

// MaxOps is the store's.
func (s *sealed) MaxOps() int { return s.inner.(block.StateTx).MaxOps() }

// TransactFenced seals what a transaction writes. Fences are numbers and stay as they are.
func (s *sealed) TransactFenced(ctx context.Context, fence string, epoch uint64, ops []block.StateOp) error {
	return s.inner.(block.StateFence).TransactFenced(ctx, fence, epoch, s.ops(ops))
}

// Scan opens the values of a page. One that cannot be opened has the reason in its item.
func (s *sealed) Scan(ctx context.Context, prefix, token string, limit int, keysOnly bool) ([]block.StateItem, string, error) {
	items, next, err := s.inner.(block.StateScan).Scan(ctx, prefix, token, limit, keysOnly)
	if !keysOnly { // else there may be no values
		s.openAll(items)
	}
	return items, next, err
}

// Watch opens the values of changes. One that cannot be opened has the reason in its item.
func (s *sealed) Watch(ctx context.Context, prefix string, started func(), changed func([]block.StateItem)) error {
	return s.inner.(block.StateWatch).Watch(ctx, prefix, started, func(items []block.StateItem) {
		s.openAll(items)
		changed(items)
	})
}

// Features are the store's, without queries.
func (s *sealed) Features() []string {
	return slices.DeleteFunc(s.inner.(block.Late).Features(), func(f string) bool { return f == "QUERY_API" })
}
