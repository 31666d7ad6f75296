package grpcapi_test

import (
	"context"
	"errors"
	"testing"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/state"
)

// stateService keeps what it was asked and answers as told.
type stateService struct {
	store   string
	key     string
	opts    state.ReadOptions
	keys    []string
	par     int
	items   []state.Item
	ops     []state.Operation
	item    block.StateItem
	results []state.Result
	query   string
	err     error
}

func (s *stateService) Check(string) error { return s.err }

func (s *stateService) Get(_ context.Context, store, key string, o state.ReadOptions) (block.StateItem, error) {
	s.store, s.key, s.opts = store, key, o
	return s.item, s.err
}

func (s *stateService) GetMany(_ context.Context, store string, keys []string, o state.ReadOptions, par int) ([]state.Result, error) {
	s.store, s.keys, s.opts, s.par = store, keys, o, par
	return s.results, s.err
}

func (s *stateService) Set(_ context.Context, store string, items []state.Item) error {
	s.store, s.items = store, items
	return s.err
}

func (s *stateService) Delete(_ context.Context, store string, item state.Item) error {
	s.store, s.items = store, []state.Item{item}
	return s.err
}

func (s *stateService) DeleteMany(_ context.Context, store string, items []state.Item) error {
	s.store, s.items = store, items
	return s.err
}

func (s *stateService) Transact(_ context.Context, store string, ops []state.Operation) error {
	s.store, s.ops = store, ops
	return s.err
}

func (s *stateService) Query(_ context.Context, store string, query []byte) (state.Found, error) {
	s.store, s.query = store, string(query)
	return state.Found{Results: s.results, Token: "5"}, s.err
}

var firstStrong = &commonv1.StateOptions{Concurrency: commonv1.StateOptions_CONCURRENCY_FIRST_WRITE, Consistency: commonv1.StateOptions_CONSISTENCY_STRONG}

func TestStateReads(t *testing.T) {
	expires := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	s := &stateService{item: block.StateItem{Exists: true, Value: []byte("v"), ETag: "7", Expires: expires}}
	k := newKit(t, grpcapi.Options{State: s})
	got, err := k.GetState(within(t), &runtimev1.GetStateRequest{StoreName: "s", Key: "k", Consistency: commonv1.StateOptions_CONSISTENCY_STRONG})
	if err != nil || !proto.Equal(got, &runtimev1.GetStateResponse{Data: []byte("v"), Etag: "7", Metadata: map[string]string{"ttlExpireTime": "2031-02-03T04:05:06Z"}}) {
		t.Errorf("got %v, %v", got, err)
	}
	if s.store != "s" || s.key != "k" || s.opts.Consistency != "strong" {
		t.Errorf("asked for %q %q %+v", s.store, s.key, s.opts)
	}
	s.item = block.StateItem{}
	if got, err := k.GetState(within(t), &runtimev1.GetStateRequest{StoreName: "s", Key: "k"}); err != nil || !proto.Equal(got, &runtimev1.GetStateResponse{}) {
		t.Errorf("a missing key: %v, %v", got, err)
	}
	s.results = []state.Result{{StateItem: block.StateItem{Key: "a", Exists: true, Value: []byte("1"), ETag: "e"}}, {StateItem: block.StateItem{Key: "b"}},
		{StateItem: block.StateItem{Key: "c"}, Err: errors.New("broken")}}
	many, err := k.GetBulkState(within(t), &runtimev1.GetBulkStateRequest{StoreName: "s", Keys: []string{"a", "b", "c"}, Parallelism: 3})
	want := &runtimev1.GetBulkStateResponse{Items: []*runtimev1.BulkStateItem{{Key: "a", Data: []byte("1"), Etag: "e"}, {Key: "b"}, {Key: "c", Error: "broken"}}}
	if err != nil || !proto.Equal(many, want) || s.par != 3 || len(s.keys) != 3 {
		t.Errorf("many: %v, %v, asked for %v in %d", many, err, s.keys, s.par)
	}
}

func TestStateWrites(t *testing.T) {
	s := &stateService{}
	k := newKit(t, grpcapi.Options{State: s})
	item := &commonv1.StateItem{Key: "k", Value: []byte("v"), Etag: &commonv1.Etag{Value: "7"}, Metadata: map[string]string{"ttlInSeconds": "5"}, Options: firstStrong}
	want := state.Item{Key: "k", Value: []byte("v"), ETag: "7", Metadata: map[string]string{"ttlInSeconds": "5"}, Concurrency: "first-write", Consistency: "strong"}
	if _, err := k.SaveState(within(t), &runtimev1.SaveStateRequest{StoreName: "s", States: []*commonv1.StateItem{item, {Key: "bare"}}}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]state.Item{want, {Key: "bare"}}, s.items); d != "" {
		t.Errorf("save (-want +got):\n%s", d)
	}
	if _, err := k.DeleteBulkState(within(t), &runtimev1.DeleteBulkStateRequest{StoreName: "s", States: []*commonv1.StateItem{item}}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]state.Item{want}, s.items); d != "" {
		t.Errorf("delete many (-want +got):\n%s", d)
	}
	if _, err := k.DeleteState(within(t), &runtimev1.DeleteStateRequest{StoreName: "s", Key: "k", Etag: &commonv1.Etag{Value: "7"}, Options: firstStrong}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]state.Item{{Key: "k", ETag: "7", Concurrency: "first-write", Consistency: "strong"}}, s.items); d != "" {
		t.Errorf("delete (-want +got):\n%s", d)
	}
	if _, err := k.ExecuteStateTransaction(within(t), &runtimev1.ExecuteStateTransactionRequest{StoreName: "s",
		Operations: []*runtimev1.TransactionalStateOperation{{OperationType: "upsert", Request: item}, {OperationType: "delete", Request: &commonv1.StateItem{Key: "d"}}}}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]state.Operation{{Operation: "upsert", Item: want}, {Operation: "delete", Item: state.Item{Key: "d"}}}, s.ops); d != "" {
		t.Errorf("transaction (-want +got):\n%s", d)
	}
}

func TestStateFailures(t *testing.T) {
	tests := []struct {
		err  error
		code codes.Code
		info string
	}{
		{fault.New("op", fault.NotFound, "x").With(fault.NoSuchComponent), codes.InvalidArgument, "DAPR_STATE_NOT_FOUND"},
		{fault.New("op", fault.NotReady, "x").With(fault.NoComponents), codes.FailedPrecondition, "DAPR_STATE_NOT_CONFIGURED"},
		{fault.New("op", fault.Conflict, "x"), codes.Aborted, "ERR_STATE_SAVE"},
		{fault.New("op", fault.BadEtag, "x"), codes.InvalidArgument, "ERR_STATE_SAVE"},
		{fault.New("op", fault.Invalid, "bare text").With(state.BadValue), codes.Unknown, ""},
		{errors.New("x"), codes.Internal, "ERR_STATE_SAVE"},
	}
	for _, tt := range tests {
		k := newKit(t, grpcapi.Options{State: &stateService{err: tt.err}})
		_, err := k.SaveState(within(t), &runtimev1.SaveStateRequest{StoreName: "s"})
		got := ""
		if i := info(t, err); i != nil {
			got = i.Reason
		}
		if status.Code(err) != tt.code || got != tt.info {
			t.Errorf("%v: got %v, %q; want %v, %q", tt.err, err, got, tt.code, tt.info)
		}
	}
	k := newKit(t, grpcapi.Options{State: &stateService{err: fault.New("op", fault.Unsupported, "x").With(fault.NoQuery)}})
	if _, err := k.QueryStateAlpha1(within(t), &runtimev1.QueryStateRequest{StoreName: "s"}); status.Code(err) != codes.Internal || info(t, err).Reason != "DAPR_STATE_QUERYING_NOT_SUPPORTED" {
		t.Errorf("a query: %v", err)
	}
}

func TestStateQuery(t *testing.T) {
	s := &stateService{results: []state.Result{{StateItem: block.StateItem{Key: "a", Exists: true, Value: []byte(`{"a": 1}`), ETag: "7"}}, {StateItem: block.StateItem{Key: "b"}, Err: errors.New("damaged")}}}
	k := newKit(t, grpcapi.Options{State: s})
	got, err := k.QueryStateAlpha1(within(t), &runtimev1.QueryStateRequest{StoreName: "s", Query: `{"filter": {}}`})
	want := &runtimev1.QueryStateResponse{Token: "5", Results: []*runtimev1.QueryStateItem{{Key: "a", Data: []byte(`{"a": 1}`), Etag: "7"}, {Key: "b", Error: "damaged"}}}
	if err != nil || !proto.Equal(got, want) || s.query != `{"filter": {}}` || s.store != "s" {
		t.Errorf("%v, %v; want %v; asked %q", got, err, want, s.query)
	}
	s.err = fault.New("op", fault.Invalid, "failed to parse the query: x").With(state.BadQuery)
	if _, err := k.QueryStateAlpha1(within(t), &runtimev1.QueryStateRequest{StoreName: "s"}); status.Code(err) != codes.Internal || info(t, err).Reason != "DAPR_STATE_QUERY_FAILED" {
		t.Errorf("a bad query: %v", err)
	}
}

// publisher keeps what it was asked.
type publisher struct {
	one  pubsub.PublishRequest
	many pubsub.BulkRequest
	err  error
}

func (p *publisher) Publish(_ context.Context, r pubsub.PublishRequest) error {
	p.one = r
	return p.err
}

func (p *publisher) BulkPublish(_ context.Context, r pubsub.BulkRequest) ([]pubsub.FailedEntry, error) {
	p.many = r
	return nil, p.err
}

func (p *publisher) OpenStream(pubsub.StreamOptions) (*pubsub.Stream, error) { return nil, p.err }

func TestPublishing(t *testing.T) {
	p := &publisher{}
	k := newKit(t, grpcapi.Options{PubSub: p})
	ctx := metadata.AppendToOutgoingContext(within(t), "traceparent", "tp", "tracestate", "ts")
	if _, err := k.PublishEvent(ctx, &runtimev1.PublishEventRequest{PubsubName: "p", Topic: "t", Data: []byte("d"), DataContentType: "a/b", Metadata: map[string]string{"k": "v"}}); err != nil {
		t.Fatal(err)
	}
	trace := pubsub.Trace{Parent: "tp", State: "ts"}
	if d := cmp.Diff(pubsub.PublishRequest{PubSub: "p", Topic: "t", Data: []byte("d"), ContentType: "a/b", Metadata: map[string]string{"k": "v"}, Trace: trace, StampRaw: true}, p.one); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	bulk := &runtimev1.BulkPublishRequest{PubsubName: "p", Topic: "t", Metadata: map[string]string{"k": "v"},
		Entries: []*runtimev1.BulkPublishRequestEntry{{EntryId: "1", Event: []byte("d"), ContentType: "a/b", Metadata: map[string]string{"m": "n"}}}}
	if _, err := k.BulkPublishEvent(ctx, bulk); err != nil {
		t.Fatal(err)
	}
	if p.many.PubSub != "p" || p.many.Topic != "t" || p.many.Metadata["k"] != "v" || len(p.many.Entries) != 1 {
		t.Errorf("asked for %+v", p.many)
	} else if e := p.many.Entries[0]; e.ID != "1" || string(e.Event) != "d" || e.ContentType != "a/b" || e.Metadata["m"] != "n" {
		t.Errorf("entry %+v", e)
	}
	p.err = fault.New("op", fault.Denied, "not this topic").With(fault.ForbiddenTopic)
	_, one := k.PublishEvent(ctx, &runtimev1.PublishEventRequest{PubsubName: "p", Topic: "t"})
	_, many := k.BulkPublishEvent(ctx, bulk)
	//lint:ignore SA1019 the old name is served too
	_, old := k.BulkPublishEventAlpha1(ctx, bulk)
	for what, err := range map[string]error{"one": one, "many": many, "many by the old name": old} {
		if i := info(t, err); status.Code(err) != codes.PermissionDenied || i == nil || i.Reason != "DAPR_PUBSUB_FORBIDDEN" || i.Metadata["topic"] != "t" {
			t.Errorf("%s: %v, %v", what, err, i)
		}
	}
}
