package grpcapi

import (
	"context"
	"errors"
	"strings"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

// SubscribeTopicEventsAlpha1 delivers events on a stream the app opened.
func (s *Server) SubscribeTopicEventsAlpha1(ss runtimev1.Dapr_SubscribeTopicEventsAlpha1Server) error {
	m, err := ss.Recv()
	if err != nil {
		return err
	}
	in := m.GetInitialRequest()
	if in == nil {
		return status.Error(codes.Unknown, "initial request is required")
	}
	stream, err := s.o.PubSub.OpenStream(pubsub.StreamOptions{PubSub: in.GetPubsubName(), Topic: in.GetTopic(),
		DeadLetterTopic: in.GetDeadLetterTopic(), Metadata: in.GetMetadata()})
	if err != nil {
		if fault.ReasonOf(err) == fault.NoSuchComponent {
			return apierr.Publish(in.GetPubsubName(), in.GetTopic(), s.o.AppID, in.GetMetadata(), err).Status().Err()
		}
		return status.Error(codes.Unknown, err.Error())
	}
	if err := ss.Send(initialResponse()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	go readAnswers(ss, stream, cancel)
	err = stream.Run(ctx, func(e *pubsub.Event) error {
		out, err := topicEvent(e)
		if err != nil {
			return err
		}
		return ss.Send(&runtimev1.SubscribeTopicEventsResponseAlpha1{
			SubscribeTopicEventsResponseType: &runtimev1.SubscribeTopicEventsResponseAlpha1_EventMessage{EventMessage: out}})
	})
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return status.Error(codes.Unknown, cause.Error())
	}
	return err
}

func initialResponse() *runtimev1.SubscribeTopicEventsResponseAlpha1 {
	return &runtimev1.SubscribeTopicEventsResponseAlpha1{SubscribeTopicEventsResponseType: &runtimev1.SubscribeTopicEventsResponseAlpha1_InitialResponse{
		InitialResponse: &runtimev1.SubscribeTopicEventsResponseInitialAlpha1{}}}
}

// readAnswers takes the client's verdicts until it leaves. It ends with the stream.
func readAnswers(ss runtimev1.Dapr_SubscribeTopicEventsAlpha1Server, stream *pubsub.Stream, cancel context.CancelCauseFunc) {
	for {
		m, err := ss.Recv()
		if err != nil {
			cancel(err) // io.EOF too: a client that half-closes has ended its subscription
			return
		}
		if m.GetInitialRequest() != nil {
			cancel(errors.New("duplicate initial request received"))
			return
		}
		if p := m.GetEventProcessed(); p != nil {
			stream.Answer(p.GetId(), answerOf(p.GetStatus().GetStatus()))
		}
	}
}

func answerOf(st runtimev1.TopicEventResponse_TopicEventResponseStatus) pubsub.Answer {
	switch st {
	case runtimev1.TopicEventResponse_SUCCESS:
		return pubsub.Success
	case runtimev1.TopicEventResponse_DROP:
		return pubsub.Drop
	}
	return pubsub.Retry
}

// topicEvent is the gRPC form of an event.
func topicEvent(e *pubsub.Event) (*runtimev1.TopicEventRequest, error) {
	ext, err := structpb.NewStruct(e.Extensions)
	if err != nil {
		return nil, fault.Wrap("grpcapi.topicEvent", fault.Internal, err)
	}
	return &runtimev1.TopicEventRequest{Id: e.ID, Source: e.Source, Type: e.Type, SpecVersion: e.SpecVersion, DataContentType: e.DataContentType,
		Data: e.Data, Topic: e.Topic, PubsubName: e.PubSub, Path: e.Path, Extensions: ext}, nil
}

// Deliver gives an event to the app. It implements pubsub.EventSink with DeliverBulk.
func (c *AppChannel) Deliver(ctx context.Context, e *pubsub.Event) (pubsub.Answer, error) {
	in, err := topicEvent(e)
	if err != nil {
		return pubsub.Retry, err
	}
	start := time.Now()
	out, err := c.callback.OnTopicEvent(c.outgoing(ctx, e.Metadata, e.TraceParent, e.TraceBin), in)
	c.observe("/dapr.proto.runtime.v1.AppCallback/OnTopicEvent", err, len(e.Data), 0, start)
	if err == nil {
		return answerOf(out.GetStatus()), nil
	}
	if status.Code(err) == codes.Unimplemented {
		return pubsub.Success, nil
	}
	return pubsub.Retry, fault.Wrap("grpcapi.Deliver", faultOf(err), rpcAnswer{err})
}

// rpcAnswer shows the status of a delivery to policies.
type rpcAnswer struct{ error }

func (a rpcAnswer) Unwrap() error { return a.error }

// CallStatus implements call.Answered.
func (a rpcAnswer) CallStatus() call.Status { return call.GRPCStatus(uint32(status.Code(a.error))) }

// outgoing is the context of a delivery: broker metadata, trace and the app's token.
func (c *AppChannel) outgoing(ctx context.Context, meta map[string]string, traceParent, traceBin string) context.Context {
	md := make(metadata.MD, len(meta)+2)
	for k, v := range meta {
		if k = strings.ToLower(k); !strings.HasPrefix(k, "grpc-") && !managed(k) && carriable(k, v) {
			md[k] = []string{v}
		}
	}
	if traceParent != "" {
		md.Set("traceparent", traceParent)
	}
	if traceBin != "" {
		md.Set("grpc-trace-bin", traceBin)
	}
	if c.o.Token != "" {
		md.Set(tokenKey, c.o.Token)
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// DeliverBulk gives a batch to the app.
func (c *AppChannel) DeliverBulk(ctx context.Context, b *pubsub.Batch) ([]pubsub.Answer, error) {
	in := &runtimev1.TopicEventBulkRequest{Id: b.ID, Type: b.Type, Topic: b.Topic, PubsubName: b.PubSub, Path: b.Path, Metadata: b.Metadata}
	for i := range b.Entries {
		entry, err := bulkEntry(&b.Entries[i])
		if err != nil {
			return nil, err
		}
		in.Entries = append(in.Entries, entry)
	}
	ctx = c.outgoing(ctx, b.Metadata, "", "")
	out, err := c.callback.OnBulkTopicEvent(ctx, in)
	if status.Code(err) == codes.Unimplemented {
		//lint:ignore SA1019 apps built before the call had its final name have only this one
		out, err = c.alpha.OnBulkTopicEventAlpha1(ctx, in)
	}
	answers := make([]pubsub.Answer, len(b.Entries))
	if status.Code(err) == codes.Unimplemented {
		return answers, nil // all acknowledged
	}
	if err != nil {
		return nil, fault.Wrap("grpcapi.DeliverBulk", faultOf(err), rpcAnswer{err})
	}
	said := make(map[string]pubsub.Answer, len(out.GetStatuses()))
	for _, st := range out.GetStatuses() {
		said[st.GetEntryId()] = answerOf(st.GetStatus())
	}
	for i := range b.Entries {
		a, ok := said[b.Entries[i].EntryID]
		if !ok {
			a = pubsub.Retry
		}
		answers[i] = a
	}
	return answers, nil
}

func bulkEntry(e *pubsub.BatchEntry) (*runtimev1.TopicEventBulkRequestEntry, error) {
	out := &runtimev1.TopicEventBulkRequestEntry{EntryId: e.EntryID, ContentType: e.ContentType, Metadata: e.Metadata}
	if e.Event == nil {
		out.Event = &runtimev1.TopicEventBulkRequestEntry_Bytes{Bytes: e.Bytes}
		return out, nil
	}
	ext, err := structpb.NewStruct(e.Event.Extensions)
	if err != nil {
		return nil, fault.Wrap("grpcapi.DeliverBulk", fault.Internal, err)
	}
	out.Event = &runtimev1.TopicEventBulkRequestEntry_CloudEvent{CloudEvent: &runtimev1.TopicEventCERequest{
		Id: e.Event.ID, Source: e.Event.Source, Type: e.Event.Type, SpecVersion: e.Event.SpecVersion,
		DataContentType: e.Event.DataContentType, Data: e.Event.Data, Extensions: ext}}
	return out, nil
}

// Subscriptions asks the app which topics it wants. An app without the callback wants none.
func (c *AppChannel) Subscriptions(ctx context.Context) ([]pubsub.Subscription, error) {
	out, err := c.callback.ListTopicSubscriptions(c.outgoing(ctx, nil, "", ""), &emptypb.Empty{})
	if status.Code(err) == codes.Unimplemented {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap("grpcapi.Subscriptions", faultOf(err), err)
	}
	return subscriptionsOf(out), nil
}

func subscriptionsOf(out *runtimev1.ListTopicSubscriptionsResponse) []pubsub.Subscription {
	var subs []pubsub.Subscription
	for _, t := range out.GetSubscriptions() {
		sub := pubsub.Subscription{PubSub: t.GetPubsubName(), Topic: t.GetTopic(), DeadLetterTopic: t.GetDeadLetterTopic(),
			Metadata: t.GetMetadata(), Source: pubsub.Programmatic}
		for _, r := range t.GetRoutes().GetRules() {
			sub.Rules = append(sub.Rules, pubsub.Rule{Match: r.GetMatch(), Path: r.GetPath()})
		}
		// Without any route the event is delivered with an empty path; with rules alone, an
		// event that none matches is dropped.
		if d := t.GetRoutes().GetDefault(); d != "" || len(sub.Rules) == 0 {
			sub.Rules = append(sub.Rules, pubsub.Rule{Path: d})
		}
		if b := t.GetBulkSubscribe(); b != nil {
			sub.Bulk = pubsub.BulkSubscribe{Enabled: b.GetEnabled(), MaxMessages: int(b.GetMaxMessagesCount()), MaxAwait: millis(b.GetMaxAwaitDurationMs())}
		}
		subs = append(subs, sub)
	}
	return subs
}

func millis(n int32) time.Duration { return time.Duration(n) * time.Millisecond }
