package grpcapi_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/memory"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

// events is the messaging service over a broker in memory, running.
func events(t testing.TB) *pubsub.Service {
	t.Helper()
	broker, err := memory.NewPubSub(block.Env{Log: slog.New(slog.DiscardHandler), AppID: "app", Component: "p"}, memory.DefaultPubSubConfig())
	if err != nil {
		t.Fatal(err)
	}
	store := catalog.NewStore[block.PubSub](block.KindPubSub)
	store.Put(catalog.NewHandle[block.PubSub](catalog.Info{Name: "p"}, broker, &call.Target{Kind: call.Publish, Name: "p"}))
	s := pubsub.New(store, identity.Self{App: "app", Namespace: "default"}, pubsub.Options{})
	s.Resume()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Drain(ctx); err != nil {
			t.Errorf("drain: %v", err)
		}
		_ = store.Close(ctx)
	})
	return s
}

type (
	streamRequest  = runtimev1.SubscribeTopicEventsRequestAlpha1
	streamResponse = runtimev1.SubscribeTopicEventsResponseAlpha1
	stream         = runtimev1.Dapr_SubscribeTopicEventsAlpha1Client
)

func initial(pubsubName, topic string) *streamRequest {
	return &streamRequest{SubscribeTopicEventsRequestType: &runtimev1.SubscribeTopicEventsRequestAlpha1_InitialRequest{
		InitialRequest: &runtimev1.SubscribeTopicEventsRequestInitialAlpha1{PubsubName: pubsubName, Topic: topic}}}
}

func processed(id string, st runtimev1.TopicEventResponse_TopicEventResponseStatus) *streamRequest {
	return &streamRequest{SubscribeTopicEventsRequestType: &runtimev1.SubscribeTopicEventsRequestAlpha1_EventProcessed{
		EventProcessed: &runtimev1.SubscribeTopicEventsRequestProcessedAlpha1{Id: id, Status: &runtimev1.TopicEventResponse{Status: st}}}}
}

func openStream(t testing.TB, k *kit) stream {
	t.Helper()
	st, err := k.SubscribeTopicEventsAlpha1(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func send(t testing.TB, st stream, m *streamRequest) {
	t.Helper()
	if err := st.Send(m); err != nil {
		t.Fatal(err)
	}
}

func next(t testing.TB, st stream) *streamResponse {
	t.Helper()
	m, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func subscribed(t testing.TB, k *kit, topic string) stream {
	t.Helper()
	st := openStream(t, k)
	send(t, st, initial("p", topic))
	if next(t, st).GetInitialResponse() == nil {
		t.Fatal("the first answer is not the initial response")
	}
	return st
}

func publish(t testing.TB, k *kit, topic, data string) {
	t.Helper()
	if _, err := k.PublishEvent(within(t), &runtimev1.PublishEventRequest{PubsubName: "p", Topic: topic, Data: []byte(data), DataContentType: "text/plain"}); err != nil {
		t.Fatal(err)
	}
}

func TestStreamsOfEvents(t *testing.T) {
	k := newKit(t, grpcapi.Options{PubSub: events(t)})
	st := subscribed(t, k, "t")
	for _, data := range []string{"one", "two", "three"} {
		publish(t, k, "t", data)
	}
	got := map[string]string{} // data → id; many may be in flight, in any order of answers
	for range 3 {
		e := next(t, st).GetEventMessage()
		if e.GetTopic() != "t" || e.GetPubsubName() != "p" || e.GetPath() != "/" || e.GetSpecVersion() != "1.0" || e.GetDataContentType() != "text/plain" || e.GetSource() != "app" {
			t.Errorf("event %v", e)
		}
		got[string(e.GetData())] = e.GetId()
	}
	send(t, st, processed("nobody's", runtimev1.TopicEventResponse_SUCCESS)) // is ignored
	send(t, st, processed(got["two"], runtimev1.TopicEventResponse_RETRY))
	send(t, st, processed(got["three"], runtimev1.TopicEventResponse_DROP))
	send(t, st, processed(got["one"], runtimev1.TopicEventResponse_SUCCESS))
	if again := next(t, st).GetEventMessage(); string(again.GetData()) != "two" || again.GetId() != got["two"] {
		t.Errorf("then came %v, want the one to be retried", again)
	} else {
		send(t, st, processed(again.GetId(), runtimev1.TopicEventResponse_SUCCESS))
	}
	publish(t, k, "t", "four")
	if e := next(t, st).GetEventMessage(); string(e.GetData()) != "four" {
		t.Errorf("then came %q: something answered came again", e.GetData())
	}
}

func TestHowStreamsAreRefused(t *testing.T) {
	k := newKit(t, grpcapi.Options{PubSub: events(t)})
	tests := []struct {
		name string
		msgs []*streamRequest
		code codes.Code
		text string
	}{
		{"an answer first", []*streamRequest{processed("x", 0)}, codes.Unknown, "initial request is required"},
		{"nothing in it", []*streamRequest{{}}, codes.Unknown, "initial request is required"},
		{"no pubsub", []*streamRequest{initial("", "t")}, codes.Unknown, "pubsubName is required"},
		{"no topic", []*streamRequest{initial("p", "")}, codes.Unknown, "topic is required"},
		{"an unknown pubsub", []*streamRequest{initial("q", "t")}, codes.InvalidArgument, "pubsub q is not found"},
		{"a second beginning", []*streamRequest{initial("p", "t"), initial("p", "t")}, codes.Unknown, "duplicate initial request received"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := openStream(t, k)
			for i, m := range tt.msgs {
				send(t, st, m)
				if i < len(tt.msgs)-1 {
					next(t, st)
				}
			}
			_, err := st.Recv()
			if s := status.Convert(err); s.Code() != tt.code || s.Message() != tt.text {
				t.Errorf("got %v", err)
			}
			if tt.code == codes.InvalidArgument && info(t, err).Reason != "DAPR_PUBSUB_NOT_FOUND" {
				t.Errorf("details %v", info(t, err))
			}
		})
	}
}

func TestAStreamEndsWithItsClient(t *testing.T) {
	s := events(t)
	k := newKit(t, grpcapi.Options{PubSub: s})
	st := subscribed(t, k, "t")
	for deadline := time.Now().Add(5 * time.Second); len(s.List()) == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // the stream is told first, the list follows
	}
	if list := s.List(); len(list) != 1 || list[0].Source.String() != "STREAMING" {
		t.Errorf("subscriptions %+v", list)
	}
	publish(t, k, "t", "unanswered")
	first := next(t, st).GetEventMessage()
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); status.Code(err) != codes.Unknown || status.Convert(err).Message() != "EOF" {
		t.Errorf("a client that half-closes gets %v", err)
	}
	for deadline := time.Now().Add(5 * time.Second); len(s.List()) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("subscriptions %+v are left", s.List())
		}
	}
	second := subscribed(t, k, "t")
	if e := next(t, second).GetEventMessage(); e.GetId() != first.GetId() {
		t.Errorf("got %v; the unanswered event must come again", e)
	}
}

func TestADrainEndsStreams(t *testing.T) {
	s := events(t)
	k := newKit(t, grpcapi.Options{PubSub: s})
	st := subscribed(t, k, "t")
	if err := s.Drain(within(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err == nil {
		t.Error("the stream goes on")
	}
}
