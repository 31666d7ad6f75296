package state

import (
	"context"
	"strconv"
	"strings"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Epoch is one owner's turn at a partition of a topic. Turns are numbered upwards, from 1.
type Epoch struct {
	Topic     string
	Partition uint32
	Number    uint64
}

// fence is where a store keeps the highest epoch that has written.
type fence struct {
	key   string
	epoch uint64
}

// Write is Transact under an epoch: the store applies all operations, and records the epoch, only
// if no later epoch of the partition has written to it. Then it is fault.Conflict with
// fault.Fenced, and the caller must stop: somebody else owns the partition. Without operations it
// records the epoch, which shuts earlier owners out.
func (s *Service) Write(ctx context.Context, store string, ops []Operation, e Epoch) error {
	const op fault.Op = "state.Write"
	h, err := s.stores.Lookup(store)
	if err != nil {
		return err
	}
	switch {
	case e.Topic == "":
		err = fault.New(op, fault.Invalid, "if_epoch names no topic").With(BadEpoch)
	case strings.Contains(e.Topic, separator):
		err = fault.New(op, fault.Invalid, "if_epoch: topic '%s' can't contain '%s'", e.Topic, separator).With(BadEpoch)
	case e.Number == 0:
		err = fault.New(op, fault.Invalid, "if_epoch: the epoch of topic %q is 0; epochs begin at 1", e.Topic).With(BadEpoch)
	case !catalog.Able[block.StateFence](h):
		err = noFence(store)
	}
	if err != nil {
		return err
	}
	key, err := s.fenceKey(h.Info, e)
	if err != nil {
		return err
	}
	return s.transact(ctx, h, ops, &fence{key: key, epoch: e.Number})
}

// fenceKey is <prefix>||fence||<topic>||<partition>. No item has such a key, as apps may not use
// the separator.
func (s *Service) fenceKey(info catalog.Info, e Epoch) (string, error) {
	before, err := s.prefix(info)
	if err != nil {
		return "", err
	}
	if before != "" {
		before += separator
	}
	return before + "fence" + separator + e.Topic + separator + strconv.FormatUint(uint64(e.Partition), 10), nil
}

func (f *fence) transact(ctx context.Context, store string, comp block.State, steps []block.StateOp) error {
	fenced, ok := block.As[block.StateFence](comp)
	if !ok {
		return noFence(store)
	}
	err := fenced.TransactFenced(ctx, f.key, f.epoch, steps)
	if fault.ReasonOf(err) == fault.Fenced {
		return fault.New("state.Write", fault.Conflict, "a later epoch than %d has written to state store %s: this owner's turn at the partition is over", f.epoch, store).With(fault.Fenced)
	}
	return err
}

func noFence(store string) error {
	return fault.New("state.Write", fault.Unsupported, "state store %s cannot check and raise an epoch together with a write", store).With(fault.NoFence)
}
