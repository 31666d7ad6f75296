package sqlstate

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"github.com/google/uuid"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// manyRows and manyBytes bound one statement that writes several rows.
const (
	manyRows  = 100
	manyBytes = 1 << 20
)

// Set writes one key.
func (s *Store) Set(ctx context.Context, w block.StateWrite) error {
	return s.one(ctx, s.op("Set"), block.StateOp{StateWrite: w})
}

// Delete removes one key.
func (s *Store) Delete(ctx context.Context, d block.StateDelete) error {
	return s.one(ctx, s.op("Delete"), Removal(d))
}

func (s *Store) one(ctx context.Context, op fault.Op, o block.StateOp) error {
	if err := CheckKey(op, o.Key); err != nil {
		return err
	}
	return s.do(ctx, op, true, func(ctx context.Context, _ *sql.DB) error { return s.apply(ctx, op, nil, &o) })
}

// apply performs one operation, in a transaction unless tx is nil.
func (s *Store) apply(ctx context.Context, op fault.Op, tx *sql.Tx, o *block.StateOp) error {
	var n int64
	var err error
	exec := func(st *sql.Stmt, args ...any) {
		if tx != nil {
			st = tx.StmtContext(ctx, st)
		}
		n, err = affected(st.ExecContext(ctx, args...))
	}
	switch {
	case o.Delete && o.ETag != "":
		exec(s.stmts.delIf, s.keyed(o, nil, o.ETag)...)
	case o.Delete:
		exec(s.stmts.del, s.keyed(o, nil)...)
	case o.ETag != "":
		text, binary := s.d.Encode(o.Value)
		exec(s.stmts.update, s.keyed(o, []any{text, binary, uuid.NewString(), s.d.End(o.TTL)}, o.ETag)...)
	case o.FirstWrite:
		exec(s.stmts.first, s.row(o)...)
	default:
		exec(s.stmts.put, s.row(o)...)
	}
	if err == nil && n == 0 && Guarded(o) {
		return Refused(op, o)
	}
	return err
}

// keyed are the arguments of a statement about one key: those before it, the key, those after.
func (s *Store) keyed(o *block.StateOp, before []any, after ...any) []any {
	args := append(before, o.Key)
	if s.d.KeyTwice {
		args = append(args, o.Key)
	}
	return append(args, after...)
}

func affected(r sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// Transact applies all operations or none.
func (s *Store) Transact(ctx context.Context, ops []block.StateOp) error {
	op := s.op("Transact")
	for i := range ops {
		if err := CheckKey(op, ops[i].Key); err != nil {
			return err
		}
	}
	if len(ops) == 1 {
		return s.one(ctx, op, ops[0])
	}
	order := Order(ops)
	return s.do(ctx, op, true, func(ctx context.Context, db *sql.DB) error {
		return s.inTx(ctx, db, func(tx *sql.Tx) error {
			for _, i := range order {
				if err := s.apply(ctx, op, tx, &ops[i]); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// inTx runs a transaction: all of run or nothing.
func (s *Store) inTx(ctx context.Context, db *sql.DB, run func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := run(tx); err != nil {
		_ = tx.Rollback() // a connection that cannot even do this is given up, which does it, too
		return err
	}
	return tx.Commit()
}

// SetMany writes several keys in one transaction, plain writes with several rows a statement.
// A refused write does not hinder the others.
func (s *Store) SetMany(ctx context.Context, ws []block.StateWrite) []error {
	return s.many(ctx, s.op("SetMany"), Writes(ws))
}

// DeleteMany removes several keys in one transaction. A refused removal does not hinder the
// others.
func (s *Store) DeleteMany(ctx context.Context, ds []block.StateDelete) []error {
	return s.many(ctx, s.op("DeleteMany"), Removals(ds))
}

func (s *Store) many(ctx context.Context, op fault.Op, ops []block.StateOp) []error {
	errs := make([]error, len(ops))
	var order []int // of those that can be asked for at all
	for _, i := range Order(ops) {
		if errs[i] = CheckKey(op, ops[i].Key); errs[i] == nil {
			order = append(order, i)
		}
	}
	if len(order) == 0 {
		return Some(errs)
	}
	err := s.do(ctx, op, true, func(ctx context.Context, db *sql.DB) error {
		return s.inTx(ctx, db, func(tx *sql.Tx) error { return s.portions(ctx, op, tx, ops, order, errs) })
	})
	if err != nil {
		for _, i := range order {
			errs[i] = err
		}
	}
	return Some(errs)
}

// portions performs operations in order, neighbours that can go together in one statement.
// What is refused is noted in errs; any other error ends the transaction.
func (s *Store) portions(ctx context.Context, op fault.Op, tx *sql.Tx, ops []block.StateOp, order []int, errs []error) error {
	for len(order) > 0 {
		n := together(ops, order)
		if n > 1 {
			if err := s.putMany(ctx, tx, ops, order[:n]); err != nil {
				return err
			}
			order = order[n:]
			continue
		}
		i := order[0]
		order = order[1:]
		err := s.apply(ctx, op, tx, &ops[i])
		if known, ok := errors.AsType[*fault.Error](err); ok && known.Code == fault.Conflict {
			errs[i], err = known, nil
		} else {
			errs[i] = nil // of an attempt before
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// together counts the plain writes of different keys at the beginning of order.
func together(ops []block.StateOp, order []int) int {
	bytes := 0
	for n, i := range order {
		o := &ops[i]
		bytes += len(o.Key) + len(o.Value)
		if o.Delete || Guarded(o) || n == manyRows || bytes > manyBytes || n > 0 && ops[order[n-1]].Key == o.Key {
			return n
		}
	}
	return len(order)
}

func (s *Store) putMany(ctx context.Context, tx *sql.Tx, ops []block.StateOp, order []int) error {
	args := make([]any, 0, 5*len(order))
	for _, i := range order {
		args = append(args, s.row(&ops[i])...)
	}
	rows := strings.Repeat(","+s.d.Row, len(order))[1:]
	_, err := tx.ExecContext(ctx, s.d.Put+rows+s.d.PutEnd, args...)
	return err
}
