package grpcapi

import (
	"context"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/state"
)

// State is the state service.
type State interface {
	Check(store string) error
	Get(ctx context.Context, store, key string, opts state.ReadOptions) (block.StateItem, error)
	GetMany(ctx context.Context, store string, keys []string, opts state.ReadOptions, parallelism int) ([]state.Result, error)
	Set(ctx context.Context, store string, items []state.Item) error
	Delete(ctx context.Context, store string, item state.Item) error
	DeleteMany(ctx context.Context, store string, items []state.Item) error
	Transact(ctx context.Context, store string, ops []state.Operation) error
	Query(ctx context.Context, store string, query []byte) (state.Found, error)
}

func (s *Server) stateFailure(op apierr.StateOp, store string, err error) error {
	if fault.ReasonOf(err) == state.BadValue {
		return status.Error(codes.Unknown, err.Error()) // the parser's bare text, as in Dapr
	}
	e := apierr.State(op, store, s.o.AppID, err)
	if fault.ReasonOf(err) == fault.NoComponents {
		e.Metadata = nil
	}
	return e.Status().Err()
}

func consistency(c commonv1.StateOptions_StateConsistency) string {
	switch c {
	case commonv1.StateOptions_CONSISTENCY_STRONG:
		return "strong"
	case commonv1.StateOptions_CONSISTENCY_EVENTUAL:
		return "eventual"
	}
	return ""
}

func concurrency(c commonv1.StateOptions_StateConcurrency) string {
	switch c {
	case commonv1.StateOptions_CONCURRENCY_FIRST_WRITE:
		return "first-write"
	case commonv1.StateOptions_CONCURRENCY_LAST_WRITE:
		return "last-write"
	}
	return ""
}

func stateItem(in *commonv1.StateItem) state.Item {
	return state.Item{Key: in.GetKey(), Value: in.GetValue(), ETag: in.GetEtag().GetValue(), Metadata: in.GetMetadata(),
		Concurrency: concurrency(in.GetOptions().GetConcurrency()), Consistency: consistency(in.GetOptions().GetConsistency())}
}

func stateItems(in []*commonv1.StateItem) []state.Item {
	out := make([]state.Item, len(in))
	for i := range in {
		out[i] = stateItem(in[i])
	}
	return out
}

// GetState reads one key; a missing one has neither data nor etag.
func (s *Server) GetState(ctx context.Context, in *runtimev1.GetStateRequest) (*runtimev1.GetStateResponse, error) {
	item, err := s.o.State.Get(ctx, in.GetStoreName(), in.GetKey(), state.ReadOptions{Consistency: consistency(in.GetConsistency())})
	if err != nil {
		return nil, s.stateFailure(apierr.StateGet, in.GetStoreName(), err)
	}
	return &runtimev1.GetStateResponse{Data: item.Value, Etag: item.ETag, Metadata: state.ItemMetadata(item)}, nil
}

// GetBulkState reads several keys.
func (s *Server) GetBulkState(ctx context.Context, in *runtimev1.GetBulkStateRequest) (*runtimev1.GetBulkStateResponse, error) {
	results, err := s.o.State.GetMany(ctx, in.GetStoreName(), in.GetKeys(), state.ReadOptions{}, int(in.GetParallelism()))
	if err != nil {
		return nil, s.stateFailure(apierr.StateBulkGet, in.GetStoreName(), err)
	}
	out := &runtimev1.GetBulkStateResponse{Items: make([]*runtimev1.BulkStateItem, len(results))}
	for i := range results {
		r := &results[i]
		item := &runtimev1.BulkStateItem{Key: r.Key}
		if r.Err != nil {
			item.Error = r.Err.Error()
		} else {
			item.Data, item.Etag, item.Metadata = r.Value, r.ETag, state.ItemMetadata(r.StateItem)
		}
		out.Items[i] = item
	}
	return out, nil
}

// SaveState writes items.
func (s *Server) SaveState(ctx context.Context, in *runtimev1.SaveStateRequest) (*emptypb.Empty, error) {
	if err := s.o.State.Set(ctx, in.GetStoreName(), stateItems(in.GetStates())); err != nil {
		return nil, s.stateFailure(apierr.StateSave, in.GetStoreName(), err)
	}
	return &emptypb.Empty{}, nil
}

// DeleteState removes one key.
func (s *Server) DeleteState(ctx context.Context, in *runtimev1.DeleteStateRequest) (*emptypb.Empty, error) {
	err := s.o.State.Delete(ctx, in.GetStoreName(), state.Item{Key: in.GetKey(), ETag: in.GetEtag().GetValue(), Metadata: in.GetMetadata(),
		Concurrency: concurrency(in.GetOptions().GetConcurrency()), Consistency: consistency(in.GetOptions().GetConsistency())})
	if err != nil {
		return nil, s.stateFailure(apierr.StateDelete, in.GetStoreName(), err)
	}
	return &emptypb.Empty{}, nil
}

// DeleteBulkState removes several keys.
func (s *Server) DeleteBulkState(ctx context.Context, in *runtimev1.DeleteBulkStateRequest) (*emptypb.Empty, error) {
	if err := s.o.State.DeleteMany(ctx, in.GetStoreName(), stateItems(in.GetStates())); err != nil {
		return nil, s.stateFailure(apierr.StateBulkDelete, in.GetStoreName(), err)
	}
	return &emptypb.Empty{}, nil
}

// ExecuteStateTransaction applies all operations or none.
func (s *Server) ExecuteStateTransaction(ctx context.Context, in *runtimev1.ExecuteStateTransactionRequest) (*emptypb.Empty, error) {
	ops := make([]state.Operation, len(in.GetOperations()))
	for i, op := range in.GetOperations() {
		ops[i] = state.Operation{Operation: op.GetOperationType(), Item: stateItem(op.GetRequest())}
	}
	if err := s.o.State.Transact(ctx, in.GetStoreName(), ops); err != nil {
		return nil, s.stateFailure(apierr.StateTransaction, in.GetStoreName(), err)
	}
	return &emptypb.Empty{}, nil
}

// QueryStateAlpha1 finds items by what is in their values, on stores that can.
func (s *Server) QueryStateAlpha1(ctx context.Context, in *runtimev1.QueryStateRequest) (*runtimev1.QueryStateResponse, error) {
	found, err := s.o.State.Query(ctx, in.GetStoreName(), []byte(in.GetQuery()))
	if err != nil {
		return nil, s.stateFailure(apierr.StateQuery, in.GetStoreName(), err)
	}
	out := &runtimev1.QueryStateResponse{Token: found.Token, Results: make([]*runtimev1.QueryStateItem, len(found.Results))}
	for i := range found.Results {
		r := &found.Results[i]
		item := &runtimev1.QueryStateItem{Key: r.Key}
		if r.Err != nil {
			item.Error = r.Err.Error()
		} else {
			item.Data, item.Etag = r.Value, r.ETag
		}
		out.Results[i] = item
	}
	return out, nil
}
