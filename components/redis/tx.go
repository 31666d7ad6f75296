package redis

import (
	"context"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// MaxOps is 0: there is no limit, but a transaction keeps the server from anything else.
func (s *state) MaxOps() int { return 0 }

// Transact applies all operations or none, in one script.
func (s *state) Transact(ctx context.Context, ops []block.StateOp) error {
	const op fault.Op = "redis.state.Transact"
	if len(ops) == 0 {
		return nil
	}
	plain, err := resolve(op, ops)
	if err != nil {
		return err
	}
	return s.apply(ctx, op, plain)
}

// resolve judges conditions on keys that an earlier operation of the transaction has changed. The
// script checks conditions before it changes anything; what such an operation would find is known
// here: a version nobody can have read, or nothing.
func resolve(op fault.Op, ops []block.StateOp) ([]block.StateOp, error) {
	exists := make(map[string]bool, len(ops)) // keys changed so far, and whether they exist then
	out := ops
	for i := range ops {
		o := &ops[i]
		there, changed := exists[o.Key]
		first := o.FirstWrite && o.ETag == "" && !o.Delete
		switch {
		case changed && o.ETag != "":
			return nil, fault.New(op, fault.Conflict, "operation %d gives an etag for key %q, which an earlier operation of the transaction has changed", i, o.Key).WithSent(fault.SentNever)
		case changed && there && first:
			return nil, fault.New(op, fault.Conflict, "operation %d is a first write of key %q, which an earlier operation of the transaction has written", i, o.Key).WithSent(fault.SentNever)
		case changed && first:
			if &out[0] == &ops[0] {
				out = append([]block.StateOp(nil), ops...)
			}
			out[i].FirstWrite = false // known to hold
		}
		exists[o.Key] = !o.Delete
	}
	return out, nil
}
