package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	proto "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/components/block"
)

type stateServer struct {
	proto.UnimplementedStateStoreServer
	*component
}

func (s stateServer) Init(ctx context.Context, r *proto.InitRequest) (*proto.InitResponse, error) {
	return &proto.InitResponse{}, s.open(ctx, r.GetMetadata())
}

func (s stateServer) Features(context.Context, *proto.FeaturesRequest) (*proto.FeaturesResponse, error) {
	return &proto.FeaturesResponse{Features: s.features}, nil
}

func (s stateServer) Ping(context.Context, *proto.PingRequest) (*proto.PingResponse, error) {
	return &proto.PingResponse{}, nil
}

func (s stateServer) Get(ctx context.Context, r *proto.GetRequest) (*proto.GetResponse, error) {
	in, err := s.of(ctx)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(r.GetKey(), "||properties") { // a test's way to see what Init was told
		return &proto.GetResponse{Data: []byte(strconv.Itoa(len(in.properties)) + in.properties["colour"]), Etag: &proto.Etag{Value: "1"}}, nil
	}
	it, err := in.state.Get(ctx, r.GetKey(), block.StateRead{})
	return &proto.GetResponse{Data: it.Value, Etag: tag(it), Metadata: meta(it)}, told(err)
}

func tag(it block.StateItem) *proto.Etag {
	if !it.Exists {
		return nil
	}
	return &proto.Etag{Value: it.ETag}
}

func meta(it block.StateItem) map[string]string {
	if it.Expires.IsZero() {
		return nil
	}
	return map[string]string{"ttlExpireTime": it.Expires.UTC().Format(time.RFC3339)}
}

func write(r *proto.SetRequest) block.StateWrite {
	ttl, _ := strconv.Atoi(r.GetMetadata()["ttlInSeconds"])
	return block.StateWrite{Key: r.GetKey(), Value: r.GetValue(), ETag: r.GetEtag().GetValue(), TTL: time.Duration(ttl) * time.Second,
		FirstWrite: r.GetOptions().GetConcurrency() == proto.StateOptions_CONCURRENCY_FIRST_WRITE}
}

func (s stateServer) Set(ctx context.Context, r *proto.SetRequest) (*proto.SetResponse, error) {
	in, err := s.of(ctx)
	if err != nil {
		return nil, err
	}
	return &proto.SetResponse{}, told(in.state.Set(ctx, write(r)))
}

func (s stateServer) Delete(ctx context.Context, r *proto.DeleteRequest) (*proto.DeleteResponse, error) {
	in, err := s.of(ctx)
	if err != nil {
		return nil, err
	}
	return &proto.DeleteResponse{}, told(in.state.Delete(ctx, block.StateDelete{Key: r.GetKey(), ETag: r.GetEtag().GetValue()}))
}

func (s stateServer) bulky() error {
	if s.bulk {
		return nil
	}
	return status.Error(codes.Unimplemented, "no bulk calls")
}

func (s stateServer) BulkGet(ctx context.Context, r *proto.BulkGetRequest) (*proto.BulkGetResponse, error) {
	in, err := s.of(ctx)
	if err == nil {
		err = s.bulky()
	}
	if err != nil {
		return nil, err
	}
	out := &proto.BulkGetResponse{}
	for n := len(r.GetItems()) - 1; n >= 0; n-- { // in no useful order, and only what is there
		it, err := in.state.Get(ctx, r.GetItems()[n].GetKey(), block.StateRead{})
		if err != nil {
			return nil, told(err)
		}
		if it.Exists {
			out.Items = append(out.Items, &proto.BulkStateItem{Key: it.Key, Data: it.Value, Etag: tag(it), Metadata: meta(it)})
		}
	}
	return out, nil
}

func (s stateServer) BulkSet(ctx context.Context, r *proto.BulkSetRequest) (*proto.BulkSetResponse, error) {
	if err := s.bulky(); err != nil {
		return nil, err
	}
	for _, it := range r.GetItems() {
		if _, err := s.Set(ctx, it); err != nil {
			return nil, err
		}
	}
	return &proto.BulkSetResponse{}, nil
}

func (s stateServer) BulkDelete(ctx context.Context, r *proto.BulkDeleteRequest) (*proto.BulkDeleteResponse, error) {
	if err := s.bulky(); err != nil {
		return nil, err
	}
	for _, it := range r.GetItems() {
		if _, err := s.Delete(ctx, it); err != nil {
			return nil, err
		}
	}
	return &proto.BulkDeleteResponse{}, nil
}

type txServer struct {
	proto.UnimplementedTransactionalStateStoreServer
	*component
}

func (s txServer) Transact(ctx context.Context, r *proto.TransactionalStateRequest) (*proto.TransactionalStateResponse, error) {
	in, err := s.of(ctx)
	if err != nil {
		return nil, err
	}
	var ops []block.StateOp
	for _, o := range r.GetOperations() {
		if d := o.GetDelete(); d != nil {
			ops = append(ops, block.StateOp{Delete: true, StateWrite: block.StateWrite{Key: d.GetKey(), ETag: d.GetEtag().GetValue()}})
		} else {
			ops = append(ops, block.StateOp{StateWrite: write(o.GetSet())})
		}
	}
	return &proto.TransactionalStateResponse{}, told(in.state.Transact(ctx, ops))
}

type maxServer struct {
	proto.UnimplementedTransactionalStoreMultiMaxSizeServer
	*component
}

func (s maxServer) MultiMaxSize(context.Context, *proto.MultiMaxSizeRequest) (*proto.MultiMaxSizeResponse, error) {
	return &proto.MultiMaxSizeResponse{MaxSize: s.maxOps}, nil
}
