package group

import (
	"context"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

const opAsk fault.Op = "group.Ask"

// Ask leaves a command for whoever owns a partition, now or next, and returns its revision. A
// partition has one command entry: merge is given the one that nobody has carried out yet, or nil,
// and returns what is to be there instead. An error of merge is returned as it is. Of an error of
// the ledger that carries fault.SentMaybe the outcome is unknown.
//
// A command is told to the owner as Events.Command until it calls Seat.Done. It may be told more
// than once, also to two owners one after the other.
func Ask(ctx context.Context, ledger block.Ledger, group string, p Part, merge func(pending []byte) ([]byte, error)) (uint64, error) {
	key := commandKey(group, p)
	for {
		e, err := ledger.LedgerGet(ctx, key)
		if err != nil {
			return 0, fault.Wrap(opAsk, fault.Unavailable, err)
		}
		body, err := merge(e.Value)
		if err != nil {
			return 0, err
		}
		results := ledger.LedgerPut(ctx, []block.LedgerWrite{{Key: key, Value: body, Revision: e.Revision}})
		if len(results) != 1 {
			return 0, fault.New(opAsk, fault.Internal, "the ledger gave %d results for one write", len(results))
		}
		if err := results[0].Err; fault.Of(err) == fault.Conflict {
			continue // somebody else asked, or the owner is done: look again
		} else if err != nil {
			return 0, fault.Wrap(opAsk, fault.Unavailable, err)
		}
		return results[0].Revision, nil
	}
}
