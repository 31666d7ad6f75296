package sqlstate

import (
	"context"
	"database/sql"

	"github.com/mecha-project/mecha/components/block"
)

// TransactFenced applies all operations and raises the fence, or does nothing. The fence is a row
// of a table of its own. It is written before everything else, also when its epoch stays the
// same: so its lock orders the transactions, and every later one sees the epoch.
func (s *Store) TransactFenced(ctx context.Context, fence string, epoch uint64, ops []block.StateOp) error {
	op := s.op("TransactFenced")
	if err := CheckKey(op, fence); err != nil {
		return err
	}
	for i := range ops {
		if err := CheckKey(op, ops[i].Key); err != nil {
			return err
		}
	}
	order := Order(ops)
	return s.do(ctx, op, true, func(ctx context.Context, db *sql.DB) error {
		if err := s.fences.Pass(ctx, func(ctx context.Context) error { return s.prepareFences(ctx, db) }); err != nil {
			return err
		}
		return s.inTx(ctx, db, func(tx *sql.Tx) error {
			n, err := affected(tx.StmtContext(ctx, s.fence).ExecContext(ctx, fence, Digits(epoch)))
			if err == nil && n == 0 {
				err = Fenced(op, fence, epoch)
			}
			for _, i := range order {
				if err != nil {
					break
				}
				err = s.apply(ctx, op, tx, &ops[i])
			}
			return err
		})
	})
}

func (s *Store) prepareFences(ctx context.Context, db *sql.DB) error {
	if err := s.d.SetupFences(ctx, db); err != nil {
		return err
	}
	st, err := db.PrepareContext(ctx, s.d.Fence)
	s.fence = st
	return err
}
