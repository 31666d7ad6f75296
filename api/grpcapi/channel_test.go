package grpcapi_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

// grpcApp is an app with Dapr's callbacks. A nil function is not implemented.
type grpcApp struct {
	runtimev1.UnimplementedAppCallbackServer
	runtimev1.UnimplementedAppCallbackHealthCheckServer
	runtimev1.UnimplementedAppCallbackAlphaServer
	invoke func(ctx context.Context, in *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error)
	topic  func(ctx context.Context, in *runtimev1.TopicEventRequest) (*runtimev1.TopicEventResponse, error)
	bulk   func(ctx context.Context, in *runtimev1.TopicEventBulkRequest) (*runtimev1.TopicEventBulkResponse, error)
	alpha  func(ctx context.Context, in *runtimev1.TopicEventBulkRequest) (*runtimev1.TopicEventBulkResponse, error)
	subs   func() (*runtimev1.ListTopicSubscriptionsResponse, error)
	inputs func() (*runtimev1.ListInputBindingsResponse, error)
	event  func(ctx context.Context, in *runtimev1.BindingEventRequest) (*runtimev1.BindingEventResponse, error)
	health error
	stream grpc.StreamHandler // any other method
}

var missing = status.Error(codes.Unimplemented, "not implemented")

func (a *grpcApp) OnInvoke(ctx context.Context, in *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error) {
	return a.invoke(ctx, in)
}

func (a *grpcApp) OnTopicEvent(ctx context.Context, in *runtimev1.TopicEventRequest) (*runtimev1.TopicEventResponse, error) {
	if a.topic == nil {
		return nil, missing
	}
	return a.topic(ctx, in)
}

func (a *grpcApp) OnBulkTopicEvent(ctx context.Context, in *runtimev1.TopicEventBulkRequest) (*runtimev1.TopicEventBulkResponse, error) {
	if a.bulk == nil {
		return nil, missing
	}
	return a.bulk(ctx, in)
}

func (a *grpcApp) OnBulkTopicEventAlpha1(ctx context.Context, in *runtimev1.TopicEventBulkRequest) (*runtimev1.TopicEventBulkResponse, error) {
	if a.alpha == nil {
		return nil, missing
	}
	return a.alpha(ctx, in)
}

func (a *grpcApp) ListTopicSubscriptions(context.Context, *emptypb.Empty) (*runtimev1.ListTopicSubscriptionsResponse, error) {
	if a.subs == nil {
		return nil, missing
	}
	return a.subs()
}

func (a *grpcApp) ListInputBindings(context.Context, *emptypb.Empty) (*runtimev1.ListInputBindingsResponse, error) {
	if a.inputs == nil {
		return nil, missing
	}
	return a.inputs()
}

func (a *grpcApp) OnBindingEvent(ctx context.Context, in *runtimev1.BindingEventRequest) (*runtimev1.BindingEventResponse, error) {
	if a.event == nil {
		return nil, missing
	}
	return a.event(ctx, in)
}

func (a *grpcApp) HealthCheck(context.Context, *emptypb.Empty) (*runtimev1.HealthCheckResponse, error) {
	return &runtimev1.HealthCheckResponse{}, a.health
}

// channel starts the app and the way to it.
func channel(t testing.TB, a *grpcApp, o grpcapi.ChannelOptions) *grpcapi.AppChannel {
	t.Helper()
	opts := []grpc.ServerOption{grpc.ForceServerCodecV2(grpcapi.NewCodec())}
	if a.stream != nil {
		opts = append(opts, grpc.UnknownServiceHandler(a.stream))
	}
	s := grpc.NewServer(opts...)
	runtimev1.RegisterAppCallbackServer(s, a)
	runtimev1.RegisterAppCallbackHealthCheckServer(s, a)
	runtimev1.RegisterAppCallbackAlphaServer(s, a)
	l := listen(t)
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(l) })
	o.Address = l.Addr().String()
	c, err := grpcapi.NewAppChannel(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		s.Stop()
		served.Wait()
	})
	return c
}

func TestInvokingAGRPCApp(t *testing.T) {
	var got *commonv1.InvokeRequest
	var md metadata.MD
	a := &grpcApp{invoke: func(ctx context.Context, in *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error) {
		got = in
		md, _ = metadata.FromIncomingContext(ctx)
		_ = grpc.SetHeader(ctx, metadata.Pairs("x-h", "1"))
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-t", "2"))
		return &commonv1.InvokeResponse{ContentType: "a/b", Data: &anypb.Any{TypeUrl: "t/y", Value: []byte("out")}}, nil
	}}
	c := channel(t, a, grpcapi.ChannelOptions{})
	resp, err := c.Invoke(within(t), &call.Request{Protocol: call.HTTP, Verb: "patch", Path: "a/b", Query: "q=1", Type: "text/x", Data: []byte("in"),
		Header: fields("Accept", "x", "X-Mine", "1", "X-é", "2", "Content-Length", "2", "X-Umlaut", "ü")})
	if err != nil {
		t.Fatal(err)
	}
	want := &commonv1.InvokeRequest{Method: "a/b", ContentType: "text/x", Data: &anypb.Any{Value: []byte("in")},
		HttpExtension: &commonv1.HTTPExtension{Verb: commonv1.HTTPExtension_PATCH, Querystring: "q=1"}}
	if !proto.Equal(got, want) {
		t.Errorf("asked for %v", got)
	}
	if md.Get("dapr-accept")[0] != "x" || md.Get("x-mine")[0] != "1" || len(md.Get("x-umlaut")) != 0 {
		t.Errorf("metadata %v", md)
	}
	if !resp.FromGRPC || resp.GRPCStatus != nil || resp.Type != "a/b" || resp.TypeURL != "t/y" || string(resp.Data) != "out" || resp.Header.Get("x-h") != "1" || resp.Trailer().Get("x-t") != "2" {
		t.Errorf("answer %+v", resp)
	}
	a.invoke = func(context.Context, *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error) {
		return nil, status.Error(codes.NotFound, "no such order")
	}
	for name, code := range map[string]codes.Code{"a failure": codes.NotFound, "a failure that looks like a lost connection": codes.Unavailable} {
		a.invoke = func(context.Context, *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error) {
			return nil, status.Error(code, "the app's words")
		}
		resp, err := c.Invoke(within(t), &call.Request{Verb: "GET"})
		if err != nil || resp.GRPCStatus == nil {
			t.Errorf("%s: %+v, %v; the app has answered", name, resp, err)
		}
	}
}

func TestAStreamedBodyForAGRPCApp(t *testing.T) {
	var got string
	c := channel(t, &grpcApp{invoke: func(_ context.Context, in *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error) {
		got = string(in.GetData().GetValue())
		return &commonv1.InvokeResponse{}, nil
	}}, grpcapi.ChannelOptions{MaxMessage: 1024})
	req := func(s string) *call.Request {
		return &call.Request{Verb: "PUT", Stream: io.NopCloser(strings.NewReader(s)), Length: call.Unknown}
	}
	if _, err := c.Invoke(within(t), req("piece by piece")); err != nil || got != "piece by piece" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.Invoke(within(t), req(strings.Repeat("x", 2000))); fault.Of(err) != fault.TooLarge {
		t.Errorf("over the limit: %v", err)
	}
}

func TestNoAppThere(t *testing.T) {
	l := listen(t)
	addr := l.Addr().String()
	l.Close()
	c, err := grpcapi.NewAppChannel(grpcapi.ChannelOptions{Address: addr})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, req := range map[string]*call.Request{"invoke": {Verb: "GET"}, "proxied": {Protocol: call.GRPC, Path: "/a.B/C", Data: grpcapi.AppendMessage(nil, []byte("x"))}} {
		_, err := c.Invoke(within(t), req)
		if fault.Of(err) != fault.Unavailable || fault.ReasonOf(err) != fault.AppUnreachable || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v (%v %q sent %v)", name, err, fault.Of(err), fault.ReasonOf(err), fault.SentOf(err))
		}
	}
	var answered *app.StatusError
	if err := c.Probe(within(t)); err == nil || errors.As(err, &answered) {
		t.Errorf("probe: %v; nobody answered it", err)
	}
}

func TestProbe(t *testing.T) {
	a := &grpcApp{}
	c := channel(t, a, grpcapi.ChannelOptions{})
	if err := c.Probe(within(t)); err != nil {
		t.Errorf("healthy: %v", err)
	}
	a.health = status.Error(codes.FailedPrecondition, "warming up")
	var answered *app.StatusError
	if err := c.Probe(within(t)); !errors.As(err, &answered) || !strings.Contains(err.Error(), "FailedPrecondition") {
		t.Errorf("unhealthy: %v", err)
	}
}

// echo repeats each message in capitals, then ends as the metadata say.
func echo(_ any, ss grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(ss.Context())
	_ = ss.SetHeader(metadata.Pairs("x-h", "1"))
	ss.SetTrailer(metadata.Pairs("x-t", "2"))
	if len(md.Get("fail-early")) > 0 {
		return status.Error(codes.FailedPrecondition, "early")
	}
	for {
		var f grpcapi.Frame
		err := ss.RecvMsg(&f)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := ss.SendMsg(grpcapi.FrameOf([]byte(strings.ToUpper(string(f.Bytes()))))); err != nil {
			return err
		}
	}
	if len(md.Get("fail-late")) > 0 {
		return status.Error(codes.Aborted, "late")
	}
	return nil
}

func TestProxyingToTheApp(t *testing.T) {
	c := channel(t, &grpcApp{stream: echo}, grpcapi.ChannelOptions{})
	msgs := func(ss ...string) (b []byte) {
		for _, s := range ss {
			b = grpcapi.AppendMessage(b, []byte(s))
		}
		return b
	}
	tests := []struct {
		name string
		req  call.Request
		body []byte
		end  string
	}{
		{"one message", call.Request{Data: msgs("one")}, msgs("ONE"), "0"},
		{"no message", call.Request{Data: []byte{}}, nil, "0"},
		{"several at once", call.Request{Data: msgs("a", "b", "")}, msgs("A", "B", ""), "0"},
		{"a stream", call.Request{Stream: io.NopCloser(strings.NewReader(string(msgs("a", "b")))), Length: call.Unknown}, msgs("A", "B"), "0"},
		{"failing at once", call.Request{Data: msgs("a"), Header: fields("fail-early", "1")}, nil, "9"},
		{"failing at the end", call.Request{Data: msgs("a"), Header: fields("fail-late", "1")}, msgs("A"), "10"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.req.Protocol, tt.req.Path, tt.req.Type = call.GRPC, "/a.B/C", "application/grpc"
			resp, err := c.Invoke(within(t), &tt.req)
			if err != nil {
				t.Fatal(err)
			}
			body := resp.Data
			if resp.Stream != nil {
				if body, err = io.ReadAll(resp.Stream); err != nil {
					t.Fatal(err)
				}
			}
			if string(body) != string(tt.body) {
				t.Errorf("body %q, want %q", body, tt.body)
			}
			tr := resp.Trailer()
			if tr.Get("grpc-status") != tt.end || tr.Get("x-t") != "2" {
				t.Errorf("trailer %v, want status %s", tr, tt.end)
			}
			if tt.name != "failing at once" && resp.Header.Get("x-h") != "1" {
				t.Errorf("header %v", resp.Header)
			}
			resp.Close()
		})
	}
}

func TestABrokenUploadReachesTheApp(t *testing.T) {
	ended := make(chan error, 1)
	c := channel(t, &grpcApp{stream: func(_ any, ss grpc.ServerStream) error {
		for {
			var f grpcapi.Frame
			if err := ss.RecvMsg(&f); err != nil {
				ended <- err
				return err
			}
		}
	}}, grpcapi.ChannelOptions{})
	body := io.NopCloser(io.MultiReader(strings.NewReader("\x00\x00\x00\x00\x01a"), errReader{errors.New("the caller broke off")}))
	resp, err := c.Invoke(within(t), &call.Request{Protocol: call.GRPC, Path: "/a.B/C", Stream: body, Length: call.Unknown})
	if err == nil {
		resp.Close()
	}
	if err := <-ended; errors.Is(err, io.EOF) {
		t.Error("a request that broke off looks complete to the app")
	}
}

func TestDelivery(t *testing.T) {
	var got *runtimev1.TopicEventRequest
	var md metadata.MD
	answer, fail := runtimev1.TopicEventResponse_SUCCESS, error(nil)
	a := &grpcApp{topic: func(ctx context.Context, in *runtimev1.TopicEventRequest) (*runtimev1.TopicEventResponse, error) {
		got = in
		md, _ = metadata.FromIncomingContext(ctx)
		return &runtimev1.TopicEventResponse{Status: answer}, fail
	}}
	c := channel(t, a, grpcapi.ChannelOptions{Token: "app-token"})
	event := &pubsub.Event{ID: "1", Source: "s", Type: "t", SpecVersion: "1.0", DataContentType: "a/b", PubSub: "p", Topic: "t", Path: "/x", Data: []byte("d"),
		Extensions: map[string]any{"n": float64(1)}, Metadata: map[string]string{"Offset": "7", "bad key": "x", "grpc-status": "x", "umlaut": "ü"}, TraceParent: "tp", TraceBin: "\x00\x01"}
	if ans, err := c.Deliver(within(t), event); err != nil || ans != pubsub.Success {
		t.Fatalf("%v, %v", ans, err)
	}
	if got.GetId() != "1" || got.GetSource() != "s" || got.GetPath() != "/x" || string(got.GetData()) != "d" || got.GetExtensions().AsMap()["n"] != float64(1) || got.GetPubsubName() != "p" {
		t.Errorf("the app got %v", got)
	}
	for name, want := range map[string]string{"offset": "7", "dapr-api-token": "app-token", "traceparent": "tp", "grpc-trace-bin": "\x00\x01"} {
		if v := md.Get(name); len(v) != 1 || v[0] != want {
			t.Errorf("metadata %s: %q", name, v)
		}
	}
	tests := []struct {
		name   string
		status runtimev1.TopicEventResponse_TopicEventResponseStatus
		err    error
		want   pubsub.Answer
		fails  bool
	}{
		{"success", runtimev1.TopicEventResponse_SUCCESS, nil, pubsub.Success, false},
		{"retry", runtimev1.TopicEventResponse_RETRY, nil, pubsub.Retry, false},
		{"drop", runtimev1.TopicEventResponse_DROP, nil, pubsub.Drop, false},
		{"an unknown answer", 99, nil, pubsub.Retry, false},
		{"a failure", 0, status.Error(codes.NotFound, "x"), pubsub.Retry, true},
		{"no such callback", 0, missing, pubsub.Success, false},
	}
	for _, tt := range tests {
		answer, fail = tt.status, tt.err
		if ans, err := c.Deliver(within(t), event); ans != tt.want || (err != nil) != tt.fails {
			t.Errorf("%s: %v, %v; want %v", tt.name, ans, err, tt.want)
		}
	}
}

func TestDeliveryOfBatches(t *testing.T) {
	batch := &pubsub.Batch{ID: "b", Type: "com.dapr.event.sent.bulk", PubSub: "p", Topic: "t", Path: "/x", Metadata: map[string]string{"pubsubName": "p"},
		Entries: []pubsub.BatchEntry{{EntryID: "1", Event: &pubsub.Event{ID: "e1", Data: []byte("d")}, ContentType: "application/cloudevents+json"},
			{EntryID: "2", Bytes: []byte("raw"), ContentType: "application/octet-stream"}, {EntryID: "3"}, {EntryID: "4"}}}
	var got *runtimev1.TopicEventBulkRequest
	reply := func(_ context.Context, in *runtimev1.TopicEventBulkRequest) (*runtimev1.TopicEventBulkResponse, error) {
		got = in
		return &runtimev1.TopicEventBulkResponse{Statuses: []*runtimev1.TopicEventBulkResponseEntry{{EntryId: "2", Status: runtimev1.TopicEventResponse_DROP},
			{EntryId: "1", Status: runtimev1.TopicEventResponse_SUCCESS}, {EntryId: "4", Status: runtimev1.TopicEventResponse_RETRY}, {EntryId: "nobody's"}}}, nil
	}
	want := []pubsub.Answer{pubsub.Success, pubsub.Drop, pubsub.Retry, pubsub.Retry} // 3 was not mentioned
	for name, a := range map[string]*grpcApp{"by its name": {bulk: reply}, "by its old name": {alpha: reply}} {
		ans, err := channel(t, a, grpcapi.ChannelOptions{}).DeliverBulk(within(t), batch)
		if d := cmp.Diff(want, ans); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, d)
		}
		if e := got.GetEntries(); len(e) != 4 || e[0].GetCloudEvent().GetId() != "e1" || string(e[1].GetBytes()) != "raw" || got.GetPath() != "/x" {
			t.Errorf("%s: the app got %v", name, got)
		}
	}
	all, err := channel(t, &grpcApp{}, grpcapi.ChannelOptions{}).DeliverBulk(within(t), batch)
	if d := cmp.Diff([]pubsub.Answer{pubsub.Success, pubsub.Success, pubsub.Success, pubsub.Success}, all); d != "" || err != nil {
		t.Errorf("no such callback: %v\n%s", err, d)
	}
	failing := &grpcApp{bulk: func(context.Context, *runtimev1.TopicEventBulkRequest) (*runtimev1.TopicEventBulkResponse, error) {
		return nil, status.Error(codes.Internal, "x")
	}}
	if _, err := channel(t, failing, grpcapi.ChannelOptions{}).DeliverBulk(within(t), batch); err == nil {
		t.Error("a failure looks like an answer")
	}
}

func TestSubscriptionsOfAnApp(t *testing.T) {
	a := &grpcApp{subs: func() (*runtimev1.ListTopicSubscriptionsResponse, error) {
		return &runtimev1.ListTopicSubscriptionsResponse{Subscriptions: []*commonSub{
			{PubsubName: "p", Topic: "plain", Metadata: map[string]string{"k": "v"}, DeadLetterTopic: "d"},
			{PubsubName: "p", Topic: "routed", Routes: &runtimev1.TopicRoutes{Rules: []*runtimev1.TopicRule{{Match: "m", Path: "/m"}}, Default: "/d"}},
			{PubsubName: "p", Topic: "rules", Routes: &runtimev1.TopicRoutes{Rules: []*runtimev1.TopicRule{{Match: "m", Path: "/m"}}},
				BulkSubscribe: &runtimev1.BulkSubscribeConfig{Enabled: true, MaxMessagesCount: 5, MaxAwaitDurationMs: 20}}}}, nil
	}}
	got, err := channel(t, a, grpcapi.ChannelOptions{}).Subscriptions(within(t))
	want := []pubsub.Subscription{
		{PubSub: "p", Topic: "plain", Metadata: map[string]string{"k": "v"}, DeadLetterTopic: "d", Rules: []pubsub.Rule{{}}, Source: pubsub.Programmatic},
		{PubSub: "p", Topic: "routed", Rules: []pubsub.Rule{{Match: "m", Path: "/m"}, {Path: "/d"}}, Source: pubsub.Programmatic},
		{PubSub: "p", Topic: "rules", Rules: []pubsub.Rule{{Match: "m", Path: "/m"}}, Bulk: pubsub.BulkSubscribe{Enabled: true, MaxMessages: 5, MaxAwait: 20e6}, Source: pubsub.Programmatic}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if subs, err := channel(t, &grpcApp{}, grpcapi.ChannelOptions{}).Subscriptions(within(t)); subs != nil || err != nil {
		t.Errorf("no such callback: %v, %v", subs, err)
	}
	failing := &grpcApp{subs: func() (*runtimev1.ListTopicSubscriptionsResponse, error) {
		return nil, status.Error(codes.Internal, "x")
	}}
	if _, err := channel(t, failing, grpcapi.ChannelOptions{}).Subscriptions(within(t)); err == nil {
		t.Error("a failure looks like an empty list")
	}
}

type commonSub = runtimev1.TopicSubscription
