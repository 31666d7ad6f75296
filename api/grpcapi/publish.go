package grpcapi

import (
	"context"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

// PubSub is the messaging service.
type PubSub interface {
	Publish(ctx context.Context, r pubsub.PublishRequest) error
	BulkPublish(ctx context.Context, r pubsub.BulkRequest) ([]pubsub.FailedEntry, error)
	OpenStream(o pubsub.StreamOptions) (*pubsub.Stream, error)
}

// PublishEvent publishes one message.
func (s *Server) PublishEvent(ctx context.Context, in *runtimev1.PublishEventRequest) (*emptypb.Empty, error) {
	err := s.o.PubSub.Publish(ctx, pubsub.PublishRequest{PubSub: in.GetPubsubName(), Topic: in.GetTopic(), Data: in.GetData(),
		ContentType: in.GetDataContentType(), Metadata: in.GetMetadata(), Trace: s.trace(ctx), StampRaw: true})
	if err != nil {
		return nil, apierr.Publish(in.GetPubsubName(), in.GetTopic(), s.o.AppID, in.GetMetadata(), err).Status().Err()
	}
	return &emptypb.Empty{}, nil
}

// BulkPublishEvent publishes several messages. A failure of some is the call's failure: as in
// Dapr the list of failed entries does not survive an error status.
func (s *Server) BulkPublishEvent(ctx context.Context, in *runtimev1.BulkPublishRequest) (*runtimev1.BulkPublishResponse, error) {
	entries := make([]pubsub.BulkEntry, len(in.GetEntries()))
	for i, e := range in.GetEntries() {
		entries[i] = pubsub.BulkEntry{ID: e.GetEntryId(), Event: e.GetEvent(), ContentType: e.GetContentType(), Metadata: e.GetMetadata()}
	}
	_, err := s.o.PubSub.BulkPublish(ctx, pubsub.BulkRequest{PubSub: in.GetPubsubName(), Topic: in.GetTopic(), Entries: entries,
		Metadata: in.GetMetadata(), Trace: s.trace(ctx)})
	if err != nil {
		return nil, apierr.Publish(in.GetPubsubName(), in.GetTopic(), s.o.AppID, in.GetMetadata(), err).Status().Err()
	}
	return &runtimev1.BulkPublishResponse{}, nil
}

// BulkPublishEventAlpha1 is BulkPublishEvent under its old name.
func (s *Server) BulkPublishEventAlpha1(ctx context.Context, in *runtimev1.BulkPublishRequest) (*runtimev1.BulkPublishResponse, error) {
	return s.BulkPublishEvent(ctx, in)
}

// trace is the call's trace context, as headers.
func (s *Server) trace(ctx context.Context) pubsub.Trace {
	if s.o.Tracing != nil {
		parent, state := s.o.Tracing.Headers(ctx)
		return pubsub.Trace{Parent: parent, State: state}
	}
	md, _ := metadata.FromIncomingContext(ctx)
	return pubsub.Trace{Parent: first(md, "traceparent"), State: first(md, "tracestate")}
}
