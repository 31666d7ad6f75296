package pluggable

import (
	"context"
	"slices"

	proto "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/grpc"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// binding is what both directions have in common. output and input are offered one by one or
// together, as the socket does.
type binding struct {
	*instance
	in, out bool
}

type (
	output struct{ *binding }
	input  struct{ *binding }
	both   struct {
		*binding
		output
		input
	}
)

var (
	_ block.Output = output{}
	_ block.Input  = input{}
	_ block.Output = both{}
	_ block.Input  = both{}
)

func openBinding(env block.Env, socket string, c *Config, in, out bool) block.Component {
	b := &binding{newInstance(env, socket, c), in, out}
	b.ping, b.init = b.askPing, b.introduce
	switch {
	case in && out:
		return both{b, output{b}, input{b}}
	case in:
		return input{b}
	}
	return output{b}
}

func (b *binding) askPing(ctx context.Context, s *session, opts ...grpc.CallOption) error {
	if b.out {
		_, err := proto.NewOutputBindingClient(s.cc).Ping(ctx, &proto.PingRequest{}, opts...)
		return err
	}
	_, err := proto.NewInputBindingClient(s.cc).Ping(ctx, &proto.PingRequest{}, opts...)
	return err
}

func (b *binding) introduce(ctx context.Context, s *session, meta *proto.MetadataRequest) error {
	if b.in {
		if _, err := proto.NewInputBindingClient(s.cc).Init(ctx, &proto.InputBindingInitRequest{Metadata: meta}); err != nil {
			return err
		}
		s.features = append(s.features, "INPUT_BINDING")
	}
	if !b.out {
		return nil
	}
	client := proto.NewOutputBindingClient(s.cc)
	if _, err := client.Init(ctx, &proto.OutputBindingInitRequest{Metadata: meta}); err != nil {
		return err
	}
	s.features = append(s.features, "OUTPUT_BINDING")
	answer, err := client.ListOperations(ctx, &proto.ListOperationsRequest{})
	s.operations = answer.GetOperations()
	return err
}

// Operations implements block.Output; none before the component has answered.
func (b output) Operations() []string {
	if s := b.now.Load(); s != nil {
		return slices.Clone(s.operations)
	}
	return nil
}

// Invoke implements block.Output.
func (b output) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	const op fault.Op = "pluggable.binding.Invoke"
	var out *block.BindingAnswer
	err := b.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
		if !slices.Contains(now.operations, r.Operation) {
			return fault.New(op, fault.Unsupported, "the component has no operation %q", r.Operation).WithSent(fault.SentNever)
		}
		a, err := proto.NewOutputBindingClient(now.cc).Invoke(ctx, &proto.InvokeRequest{Operation: r.Operation, Data: r.Data, Metadata: r.Metadata}, o...)
		if err == nil && (len(a.GetData()) > 0 || len(a.GetMetadata()) > 0) {
			out = &block.BindingAnswer{Data: a.GetData(), Metadata: a.GetMetadata()}
		}
		return err
	})
	return out, err
}

// Read implements block.Input. Events come one after another, in the component's order.
func (b input) Read(ctx context.Context, deliver func(context.Context, block.BindingEvent) ([]byte, error)) error {
	f := &following[proto.ReadRequest, proto.ReadResponse]{instance: b.instance, op: "pluggable.binding.Read",
		slots: make(chan struct{}, 1),
		open: func(ctx context.Context, s *session) (grpc.BidiStreamingClient[proto.ReadRequest, proto.ReadResponse], error) {
			return proto.NewInputBindingClient(s.cc).Read(ctx)
		},
		handle: func(m *proto.ReadResponse, answer func(*proto.ReadRequest)) {
			data, err := deliver(ctx, block.BindingEvent{Data: m.GetData(), Metadata: m.GetMetadata()})
			r := &proto.ReadRequest{MessageId: m.GetMessageId(), ResponseData: data}
			switch {
			case err != nil && ctx.Err() != nil: // cut short by us; silence gives the event back
				r = nil
			case err != nil:
				r.ResponseError = &proto.AckResponseError{Message: err.Error()}
			}
			answer(r)
		}}
	return f.run(ctx)
}
