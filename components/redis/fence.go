package redis

import (
	"context"
	"strconv"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var _ block.StateFence = (*state)(nil)

// fencePrefix is put before the key of a fence. It is a hash with the one field fence, the number
// in decimal. In a cluster the key's part in braces, if it has one, goes on choosing its slot.
const fencePrefix = "mecha||fence||"

// fence is what a transaction depends on.
type fence struct{ key, epoch string }

// TransactFenced applies all operations or none in the script that looks at the fence and sets it.
func (s *state) TransactFenced(ctx context.Context, key string, epoch uint64, ops []block.StateOp) error {
	const op fault.Op = "redis.state.TransactFenced"
	plain, err := resolve(op, ops)
	if err != nil {
		return err
	}
	f := &fence{key: fencePrefix + key, epoch: strconv.FormatUint(epoch, 10)}
	cmd, strong, err := s.writing(op, plain, f)
	if err != nil {
		return err
	}
	if err := s.carry(ctx, op, writeFenced, cmd, strong, f.key); err != nil {
		return err
	}
	if goredis.HasErrorPrefix(cmd.Err(), "CROSSSLOT") {
		return fault.New(op, fault.Unsupported, "in a cluster the fence and the keys of its transaction must share a hash slot: give them a common part in braces, like {order-1}").WithSent(fault.SentNever)
	}
	if n, bad := cmd.Int(); bad == nil && n == -1 {
		return fault.New(op, fault.Conflict, "fence %q has a greater number than %d, so this one may not write any more", key, epoch).With(fault.Fenced).WithSent(fault.SentNever)
	}
	return s.settle(ctx, op, cmd, plain)
}
