//go:build unix

package conformance_test

import (
	"context"
	"errors"
	"sync"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// life tells whether a client was closed; calls of a closed one fail as the contracts say.
type life struct {
	once  sync.Once
	ended chan struct{}
}

func newLife() *life { return &life{ended: make(chan struct{})} }

// close runs release the first time.
func (l *life) close(release func()) error {
	l.once.Do(func() {
		close(l.ended)
		release()
	})
	return nil
}

// judge turns an error of a call into what the contracts ask for: that of the context that ended,
// or of a closed client, comes before what the wire says.
func (l *life) judge(ctx context.Context, op fault.Op, err error) error {
	select {
	case <-l.ended:
		return fault.New(op, fault.Unavailable, "the client is closed")
	default:
	}
	if err != nil && ctx.Err() != nil {
		return fault.Wrap(op, fault.Canceled, ctx.Err())
	}
	return err
}

// conflicting tells whether one of the operations of a refused transaction asks for a version that
// is not there. The wire answers every failed transaction alike, as Dapr's does: a client that
// wants to know why reads the keys again. Versions do not come back, so what did not hold then does
// not hold now.
func conflicting(ctx context.Context, s block.State, ops []block.StateOp) (bool, error) {
	const unknown = "written by this transaction" // nobody can know the version it gets
	now := map[string]string{}                    // versions as the operations find them; "" is missing
	for _, op := range ops {
		if _, ok := now[op.Key]; !ok {
			item, err := s.Get(ctx, op.Key, block.StateRead{Strong: true})
			if err != nil {
				return false, err
			}
			now[op.Key] = item.ETag
		}
		if op.ETag != "" && op.ETag != now[op.Key] || op.ETag == "" && op.FirstWrite && !op.Delete && now[op.Key] != "" {
			return true, nil
		}
		now[op.Key] = unknown
		if op.Delete {
			now[op.Key] = ""
		}
	}
	return false, nil
}

// refused is the error of a transaction that the wire reports as failed.
func refused(ctx context.Context, s block.State, op fault.Op, ops []block.StateOp, err error) error {
	conflict, later := conflicting(ctx, s, ops)
	switch {
	case later != nil:
		return errors.Join(err, later)
	case conflict:
		return fault.Wrap(op, fault.Conflict, err)
	}
	return err
}
