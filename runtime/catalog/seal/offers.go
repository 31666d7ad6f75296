package seal

import (
	"context"
	"slices"

	"github.com/mecha-project/mecha/components/block"
)

// sealedBatch, sealedTx and sealedLate are the optional abilities of a store, over its values
// encrypted.
type (
	sealedBatch struct {
		inner block.StateBatch
		s     *sealed
	}
	sealedTx struct {
		inner block.StateTx
		s     *sealed
	}
	sealedLate struct{ inner block.Late }
)

// GetMany reads and opens several values. One that cannot be opened has the reason in its item.
func (b *sealedBatch) GetMany(ctx context.Context, keys []string, opts block.StateRead) ([]block.StateItem, error) {
	items, err := b.inner.GetMany(ctx, keys, opts)
	for i := range items {
		if bad := b.s.keys.open("seal.GetMany", &items[i]); bad != nil {
			items[i].Err = bad
		}
	}
	return items, err
}

// SetMany seals and writes several values.
func (b *sealedBatch) SetMany(ctx context.Context, ws []block.StateWrite) []error {
	ws = slices.Clone(ws) // the caller's may be repeated
	for i := range ws {
		ws[i] = b.s.write(ws[i])
	}
	return b.inner.SetMany(ctx, ws)
}

// DeleteMany removes several keys.
func (b *sealedBatch) DeleteMany(ctx context.Context, ds []block.StateDelete) []error {
	return b.inner.DeleteMany(ctx, ds)
}

// Transact seals what a transaction writes.
func (t *sealedTx) Transact(ctx context.Context, ops []block.StateOp) error {
	ops = slices.Clone(ops)
	for i := range ops {
		if !ops[i].Delete {
			ops[i].StateWrite = t.s.write(ops[i].StateWrite)
		}
	}
	store := t.inner
	return store.Transact(ctx, ops)
}

// MaxOps is the store's.
func (t *sealedTx) MaxOps() int { return t.inner.MaxOps() }

// Features are the store's, without queries.
func (l *sealedLate) Features() []string {
	return slices.DeleteFunc(l.inner.Features(), func(f string) bool { return f == "QUERY_API" })
}

// offers gives a store the optional abilities of the one it encrypts, and no others: a service
// asks for them by interface.
func offers(s *sealed) block.State {
	batch, hasBatch := s.inner.(block.StateBatch)
	tx, hasTx := s.inner.(block.StateTx)
	ttl, hasTTL := s.inner.(block.StateTTL)
	late, hasLate := s.inner.(block.Late)
	b, t, l := &sealedBatch{batch, s}, &sealedTx{tx, s}, &sealedLate{late}
	type ability struct{ batch, tx, ttl, late bool }
	switch (ability{hasBatch, hasTx, hasTTL, hasLate}) {
	case ability{batch: true}:
		return struct {
			*sealed
			*sealedBatch
		}{s, b}
	case ability{tx: true}:
		return struct {
			*sealed
			*sealedTx
		}{s, t}
	case ability{ttl: true}:
		return struct {
			*sealed
			block.StateTTL
		}{s, ttl}
	case ability{late: true}:
		return struct {
			*sealed
			*sealedLate
		}{s, l}
	case ability{batch: true, tx: true}:
		return struct {
			*sealed
			*sealedBatch
			*sealedTx
		}{s, b, t}
	case ability{batch: true, ttl: true}:
		return struct {
			*sealed
			*sealedBatch
			block.StateTTL
		}{s, b, ttl}
	case ability{batch: true, late: true}:
		return struct {
			*sealed
			*sealedBatch
			*sealedLate
		}{s, b, l}
	case ability{tx: true, ttl: true}:
		return struct {
			*sealed
			*sealedTx
			block.StateTTL
		}{s, t, ttl}
	case ability{tx: true, late: true}:
		return struct {
			*sealed
			*sealedTx
			*sealedLate
		}{s, t, l}
	case ability{ttl: true, late: true}:
		return struct {
			*sealed
			block.StateTTL
			*sealedLate
		}{s, ttl, l}
	case ability{batch: true, tx: true, ttl: true}:
		return struct {
			*sealed
			*sealedBatch
			*sealedTx
			block.StateTTL
		}{s, b, t, ttl}
	case ability{batch: true, tx: true, late: true}:
		return struct {
			*sealed
			*sealedBatch
			*sealedTx
			*sealedLate
		}{s, b, t, l}
	case ability{batch: true, ttl: true, late: true}:
		return struct {
			*sealed
			*sealedBatch
			block.StateTTL
			*sealedLate
		}{s, b, ttl, l}
	case ability{tx: true, ttl: true, late: true}:
		return struct {
			*sealed
			*sealedTx
			block.StateTTL
			*sealedLate
		}{s, t, ttl, l}
	case ability{true, true, true, true}:
		return struct {
			*sealed
			*sealedBatch
			*sealedTx
			block.StateTTL
			*sealedLate
		}{s, b, t, ttl, l}
	}
	return s
}
