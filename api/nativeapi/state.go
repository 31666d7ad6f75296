package nativeapi

import (
	"context"
	"strconv"

	"google.golang.org/grpc"

	"github.com/mecha-project/mecha/api/apierr"
	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/state"
)

// State is the state service.
type State interface {
	Scan(ctx context.Context, store string, q state.Scan) (items []block.StateItem, next string, err error)
	Watch(ctx context.Context, store, prefix string, started func() error, changed func([]block.StateItem) error) error
	Transact(ctx context.Context, store string, ops []state.Operation) error
	Write(ctx context.Context, store string, ops []state.Operation, e state.Epoch) error
}

type stateServer struct {
	mechav1.UnimplementedStateServer
	s State
}

// Scan gives one page of items.
func (s *stateServer) Scan(ctx context.Context, in *mechav1.ScanRequest) (*mechav1.ScanResponse, error) {
	items, next, err := s.s.Scan(ctx, in.GetStoreName(), state.Scan{Prefix: in.GetPrefix(), Token: in.GetPageToken(),
		Size: int(in.GetPageSize()), KeysOnly: in.GetKeysOnly()})
	if err != nil {
		return nil, apierr.Native(err)
	}
	out := &mechav1.ScanResponse{Items: make([]*mechav1.StateItem, len(items)), NextPageToken: next}
	for i, it := range items {
		if in.GetKeysOnly() {
			it.Value = nil
		}
		out.Items[i] = stateItem(it)
	}
	return out, nil
}

func stateItem(it block.StateItem) *mechav1.StateItem {
	out := &mechav1.StateItem{Key: it.Key, Value: it.Value, Etag: it.ETag, Expires: moment(it.Expires)}
	if it.Err != nil {
		out.Error = it.Err.Error()
	}
	return out
}

// Watch tells of changes until the caller ends it.
func (s *stateServer) Watch(in *mechav1.WatchRequest, out grpc.ServerStreamingServer[mechav1.WatchResponse]) error {
	err := s.s.Watch(out.Context(), in.GetStoreName(), in.GetPrefix(), func() error {
		return out.Send(&mechav1.WatchResponse{Started: true})
	}, func(items []block.StateItem) error {
		changes := make([]*mechav1.StateChange, len(items))
		for i, it := range items {
			changes[i] = &mechav1.StateChange{Item: stateItem(it), Removed: !it.Exists && it.Err == nil}
		}
		return out.Send(&mechav1.WatchResponse{Changes: changes})
	})
	if err != nil {
		return apierr.Native(err)
	}
	return nil
}

// Write applies all operations or none.
func (s *stateServer) Write(ctx context.Context, in *mechav1.WriteRequest) (*mechav1.WriteResponse, error) {
	ops := make([]state.Operation, len(in.GetOperations()))
	for i, op := range in.GetOperations() {
		var err error
		if ops[i], err = operation(i, op); err != nil {
			return nil, apierr.Native(err)
		}
	}
	var err error
	if e := in.GetIfEpoch(); e != nil {
		err = s.s.Write(ctx, in.GetStoreName(), ops, epoch(e))
	} else {
		err = s.s.Transact(ctx, in.GetStoreName(), ops)
	}
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.WriteResponse{}, nil
}

func epoch(e *mechav1.Epoch) state.Epoch {
	return state.Epoch{Topic: e.GetTopic(), Partition: e.GetPartition(), Number: e.GetEpoch()}
}

func operation(i int, op *mechav1.StateOperation) (state.Operation, error) {
	const name fault.Op = "nativeapi.Write"
	switch op := op.GetOperation().(type) {
	case *mechav1.StateOperation_Set:
		set := op.Set
		out := state.Operation{Operation: "upsert", Item: state.Item{Key: set.GetKey(), Value: set.GetValue(), ETag: set.GetEtag()}}
		if set.GetKey() == "" {
			return out, fault.New(name, fault.Invalid, "operations[%d].set has no key", i).With(fault.EmptyName)
		}
		if set.GetIfAbsent() {
			if set.GetEtag() != "" {
				return out, fault.New(name, fault.Invalid, "operations[%d].set has both etag and if_absent, which cannot both hold", i).With(state.BadOption)
			}
			out.Concurrency = "first-write"
		}
		if set.GetTtlSeconds() > 0 {
			out.Metadata = map[string]string{"ttlInSeconds": strconv.FormatUint(uint64(set.GetTtlSeconds()), 10)}
		}
		return out, nil
	case *mechav1.StateOperation_Remove:
		if op.Remove.GetKey() == "" {
			return state.Operation{}, fault.New(name, fault.Invalid, "operations[%d].remove has no key", i).With(fault.EmptyName)
		}
		return state.Operation{Operation: "delete", Item: state.Item{Key: op.Remove.GetKey(), ETag: op.Remove.GetEtag()}}, nil
	}
	return state.Operation{}, fault.New(name, fault.Invalid, "operations[%d] is neither set nor remove", i).With(fault.BadOperation)
}
