package grpcapi

import (
	"context"
	"strings"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/binding"
)

// Binding is the bindings service.
type Binding interface {
	Invoke(ctx context.Context, r binding.Request) (*block.BindingAnswer, error)
}

// InvokeBinding does an operation on an output binding.
func (s *Server) InvokeBinding(ctx context.Context, in *runtimev1.InvokeBindingRequest) (*runtimev1.InvokeBindingResponse, error) {
	answer, err := s.o.Binding.Invoke(ctx, binding.Request{Binding: in.GetName(), Operation: in.GetOperation(), Data: in.GetData(), Metadata: s.bindingMetadata(ctx, in.GetMetadata())})
	out := &runtimev1.InvokeBindingResponse{}
	if answer != nil {
		out.Data, out.Metadata = answer.Data, texts(answer.Metadata)
		head := make(metadata.MD, len(answer.Metadata))
		for name, value := range answer.Metadata {
			head.Set("metadata."+name, value)
		}
		_ = grpc.SetHeader(ctx, head) // nothing was sent before
	}
	if err != nil {
		return nil, apierr.Binding(in.GetName(), err).Status().Err()
	}
	return out, nil
}

// bindingMetadata are a request's metadata: its own, what the call brought along where it does not
// stand in their way, and the trace context over all.
func (s *Server) bindingMetadata(ctx context.Context, own map[string]string) map[string]string {
	md, _ := metadata.FromIncomingContext(ctx)
	out := make(map[string]string, len(own)+len(md)+2)
	for name, values := range md {
		switch {
		case len(values) == 0 || strings.HasSuffix(name, "-bin"): // bytes are no text
			continue
		case strings.HasPrefix(name, ":"):
			name = "dapr-" + name[1:]
		case strings.HasPrefix(name, "grpc-"):
			name = "dapr-" + name
		}
		out[name] = values[0]
	}
	for name, value := range own {
		out[name] = value
	}
	trace := s.trace(ctx)
	for name, value := range map[string]string{"traceparent": trace.Parent, "tracestate": trace.State} {
		if value != "" {
			out[name] = value
		}
	}
	return out
}

var _ binding.Sink = (*AppChannel)(nil)

// Inputs asks the app which input bindings it takes. One without the callback takes none.
func (c *AppChannel) Inputs(ctx context.Context) ([]string, error) {
	out, err := c.callback.ListInputBindings(c.outgoing(ctx, nil, "", ""), &emptypb.Empty{})
	switch {
	case err == nil:
		return out.GetBindings(), nil
	case status.Code(err) == codes.Unimplemented:
		return nil, nil
	}
	return nil, fault.Wrap("grpcapi.Inputs", faultOf(err), err)
}

// BindingEvent gives the app an event. Its metadata are in the message, not beside it.
func (c *AppChannel) BindingEvent(ctx context.Context, e *binding.Event) (binding.Reply, error) {
	start := time.Now()
	out, err := c.callback.OnBindingEvent(c.outgoing(ctx, nil, e.Trace.Parent, e.Trace.Bin),
		&runtimev1.BindingEventRequest{Name: e.Binding, Data: e.Data, Metadata: texts(e.Metadata)})
	c.observe("/dapr.proto.runtime.v1.AppCallback/OnBindingEvent", err, len(e.Data), len(out.GetData()), start)
	if err != nil {
		return binding.Reply{}, fault.Wrap("grpcapi.BindingEvent", faultOf(err), rpcAnswer{err})
	}
	return binding.Reply{Data: out.GetData(), To: out.GetTo(), Parallel: out.GetConcurrency() == runtimev1.BindingEventResponse_PARALLEL}, nil
}
