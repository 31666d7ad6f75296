package grpcapi_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/call"
)

// bindingService keeps what it was asked and answers as told.
type bindingService struct {
	asked  binding.Request
	answer *block.BindingAnswer
	err    error
}

func (b *bindingService) Invoke(_ context.Context, r binding.Request) (*block.BindingAnswer, error) {
	b.asked = r
	return b.answer, b.err
}

func TestInvokeBinding(t *testing.T) {
	b := &bindingService{}
	k := newKit(t, grpcapi.Options{Binding: b})
	ctx := metadata.NewOutgoingContext(within(t), metadata.Pairs("x-own", "1", "x-own", "2", "k", "theirs", "x-bin", "\x00", "dapr-api-token", "s3cret",
		"traceparent", "tp", "tracestate", "ts"))
	in := &runtimev1.InvokeBindingRequest{Name: "b", Operation: "create", Data: []byte("\x00\xff"), Metadata: map[string]string{"k": "v", "traceparent": "forged"}}
	out, err := k.InvokeBinding(ctx, in)
	if err != nil || out.GetData() != nil || len(out.GetMetadata()) != 0 {
		t.Errorf("nothing: %v, %v", out, err)
	}
	if b.asked.Binding != "b" || b.asked.Operation != "create" || string(b.asked.Data) != "\x00\xff" {
		t.Errorf("asked %+v", b.asked)
	}
	got := b.asked.Metadata
	if got["user-agent"] == "" || got["dapr-authority"] == "" {
		t.Errorf("metadata %v, want those of the call too", got)
	}
	for _, name := range []string{"user-agent", "dapr-authority", "content-type", "dapr-grpc-accept-encoding"} {
		delete(got, name)
	}
	// The token is taken away only where one is asked for.
	delete(got, "dapr-api-token")
	if d := cmp.Diff(map[string]string{"x-own": "1", "k": "v", "traceparent": "tp", "tracestate": "ts"}, got); d != "" {
		t.Errorf("metadata (-want +got):\n%s", d)
	}

	b.answer = &block.BindingAnswer{Data: []byte("raw\xff"), Metadata: map[string]string{"statusCode": "200", "odd": "x\xffy", "lines": "a\nb"}}
	var head metadata.MD
	out, err = k.InvokeBinding(within(t), in, grpc.Header(&head))
	want := &runtimev1.InvokeBindingResponse{Data: []byte("raw\xff"), Metadata: map[string]string{"statusCode": "200", "odd": "x\uFFFDy", "lines": "a\nb"}}
	if d := cmp.Diff(want, out, protocmp.Transform()); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if fmt.Sprint(head.Get("metadata.statuscode")) != "[200]" || len(head.Get("metadata.lines")) != 0 {
		t.Errorf("headers %v", head)
	}

	b.err = fault.New("op", fault.NotFound, "received status code 404")
	head = nil
	_, err = k.InvokeBinding(within(t), in, grpc.Header(&head))
	st := status.Convert(err)
	if st.Code() != codes.Internal || st.Message() != "error invoking output binding b: received status code 404" || len(st.Details()) != 1 {
		t.Fatalf("%v with %v", err, st.Details())
	}
	if info, ok := st.Details()[0].(*errdetails.ErrorInfo); !ok || info.GetReason() != "ERR_INVOKE_OUTPUT_BINDING" || info.GetDomain() != "dapr.io" {
		t.Errorf("details %v", st.Details())
	}
	if fmt.Sprint(head.Get("metadata.statuscode")) != "[200]" {
		t.Errorf("headers of a failure %v", head)
	}
	b.err = fault.New("op", fault.Exhausted, "too many").With(fault.PolicyRejected).WithRule("p/limit")
	if _, err := k.InvokeBinding(within(t), in); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("refused by policy: %v", err)
	}
}

func TestInputBindings(t *testing.T) {
	a := &grpcApp{}
	c := channel(t, a, grpcapi.ChannelOptions{Token: "s3cret"})
	if got, err := c.Inputs(within(t)); err != nil || len(got) != 0 {
		t.Errorf("without the callback: %q, %v", got, err)
	}
	a.inputs = func() (*runtimev1.ListInputBindingsResponse, error) {
		return &runtimev1.ListInputBindingsResponse{Bindings: []string{"a", "b"}}, nil
	}
	got, err := c.Inputs(within(t))
	if d := cmp.Diff([]string{"a", "b"}, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	a.inputs = func() (*runtimev1.ListInputBindingsResponse, error) {
		return nil, status.Error(codes.Unavailable, "starting")
	}
	if _, err := c.Inputs(within(t)); fault.Of(err) != fault.Unavailable {
		t.Errorf("an app that cannot say: %v", err)
	}
}

func TestBindingEvents(t *testing.T) {
	a := &grpcApp{}
	c := channel(t, a, grpcapi.ChannelOptions{Token: "s3cret"})
	e := &binding.Event{Binding: "b", Data: []byte("\x00data"), Metadata: map[string]string{"readTimeUTC": "now", "odd": "\xff"}, Trace: binding.Trace{Parent: "tp", Bin: "\x01"}}
	_, err := c.BindingEvent(within(t), e)
	var answered call.Answered
	if fault.Of(err) != fault.Unavailable || !asAnswered(err, &answered) || answered.CallStatus() != call.GRPCStatus(uint32(codes.Unimplemented)) {
		t.Errorf("without the callback: %v", err)
	}
	var in *runtimev1.BindingEventRequest
	var md metadata.MD
	out := &runtimev1.BindingEventResponse{}
	a.event = func(ctx context.Context, r *runtimev1.BindingEventRequest) (*runtimev1.BindingEventResponse, error) {
		in = r
		md, _ = metadata.FromIncomingContext(ctx)
		return out, nil
	}
	reply, err := c.BindingEvent(within(t), e)
	if err != nil || reply.Data != nil || reply.To != nil || reply.Parallel {
		t.Errorf("an empty reply: %+v, %v", reply, err)
	}
	want := &runtimev1.BindingEventRequest{Name: "b", Data: []byte("\x00data"), Metadata: map[string]string{"readTimeUTC": "now", "odd": "\uFFFD"}}
	if d := cmp.Diff(want, in, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if first := func(name string) string { return fmt.Sprint(md.Get(name)) }; first("traceparent") != "[tp]" || first("grpc-trace-bin") != "[\x01]" || first("dapr-api-token") != "[s3cret]" || first("readtimeutc") != "[]" {
		t.Errorf("metadata %v", md)
	}
	out = &runtimev1.BindingEventResponse{Data: []byte("{}"), To: []string{"x"}, Concurrency: runtimev1.BindingEventResponse_PARALLEL, StoreName: "ignored"}
	reply, err = c.BindingEvent(within(t), e)
	if d := cmp.Diff(binding.Reply{Data: []byte("{}"), To: []string{"x"}, Parallel: true}, reply); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

func asAnswered(err error, into *call.Answered) bool { return errors.As(err, into) }
