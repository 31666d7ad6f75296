package main

import (
	"context"
	"strings"
	"sync"

	proto "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/components/block"
)

type pubsubServer struct {
	proto.UnimplementedPubSubServer
	*component
}

func (s pubsubServer) Init(ctx context.Context, r *proto.PubSubInitRequest) (*proto.PubSubInitResponse, error) {
	return &proto.PubSubInitResponse{}, s.open(ctx, r.GetMetadata())
}

func (s pubsubServer) Features(context.Context, *proto.FeaturesRequest) (*proto.FeaturesResponse, error) {
	return &proto.FeaturesResponse{}, nil
}

func (s pubsubServer) Ping(context.Context, *proto.PingRequest) (*proto.PingResponse, error) {
	return &proto.PingResponse{}, nil
}

func (s pubsubServer) Publish(ctx context.Context, r *proto.PublishRequest) (*proto.PublishResponse, error) {
	in, err := s.of(ctx)
	if err != nil {
		return nil, err
	}
	if errs := in.pubsub.Publish(ctx, []block.Message{{Topic: r.GetTopic(), Data: r.GetData(), Metadata: r.GetMetadata()}}); errs != nil {
		return nil, told(errs[0])
	}
	return &proto.PublishResponse{}, nil
}

func (s pubsubServer) BulkPublish(ctx context.Context, r *proto.BulkPublishRequest) (*proto.BulkPublishResponse, error) {
	if !s.bulk {
		return nil, status.Error(codes.Unimplemented, "no bulk calls")
	}
	out := &proto.BulkPublishResponse{}
	for _, e := range r.GetEntries() {
		if strings.HasPrefix(string(e.GetEvent()), "refused") {
			out.FailedEntries = append(out.FailedEntries, &proto.BulkPublishResponseFailedEntry{EntryId: e.GetEntryId(), Error: "not this one"})
			continue
		}
		if _, err := s.Publish(ctx, &proto.PublishRequest{Topic: r.GetTopic(), Data: e.GetEvent(), Metadata: e.GetMetadata()}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s pubsubServer) PullMessages(stream proto.PubSub_PullMessagesServer) error {
	in, err := s.of(stream.Context())
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	topic := first.GetTopic()
	if topic.GetName() == "forbidden" {
		return status.Error(codes.PermissionDenied, "not for you")
	}
	group := topic.GetMetadata()["consumerID"]
	if group == "" {
		group = in.properties["consumerID"]
	}
	var mu sync.Mutex
	open := map[string]block.Delivery{}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		defer cancel()
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			mu.Lock()
			d, ok := open[r.GetAckMessageId()]
			delete(open, r.GetAckMessageId())
			mu.Unlock()
			switch {
			case !ok:
			case r.GetAckError() != nil:
				d.Nack(0)
			default:
				d.Ack()
			}
		}
	}()
	// The protocol has no window of its own: a component chooses one, so that members share.
	p := in.hub.Client()
	defer p.Close(context.Background())
	return told(p.Consume(ctx, block.ConsumeOptions{Topic: topic.GetName(), Group: group, MaxInFlight: 16}, func(d block.Delivery) {
		mu.Lock()
		open[d.Position] = d
		mu.Unlock()
		if stream.Send(&proto.PullMessagesResponse{Id: d.Position, TopicName: d.Topic, Data: d.Data, Metadata: d.Metadata}) != nil {
			cancel()
		}
	}))
}

type secretServer struct {
	proto.UnimplementedSecretStoreServer
	*component
}

func (s secretServer) Init(ctx context.Context, r *proto.SecretStoreInitRequest) (*proto.SecretStoreInitResponse, error) {
	return &proto.SecretStoreInitResponse{}, s.open(ctx, r.GetMetadata())
}

func (s secretServer) Features(context.Context, *proto.FeaturesRequest) (*proto.FeaturesResponse, error) {
	return &proto.FeaturesResponse{Features: []string{"MULTIPLE_KEY_VALUES_PER_SECRET"}}, nil
}

// Secrets are the properties, each with a value "value".
func (s secretServer) Get(ctx context.Context, r *proto.GetSecretRequest) (*proto.GetSecretResponse, error) {
	in, err := s.of(ctx)
	if err != nil {
		return nil, err
	}
	v, ok := in.properties[r.GetKey()]
	if !ok {
		return &proto.GetSecretResponse{}, nil
	}
	return &proto.GetSecretResponse{Data: map[string]string{"value": v, "asked": r.GetMetadata()["version"]}}, nil
}

func (s secretServer) BulkGet(ctx context.Context, _ *proto.BulkGetSecretRequest) (*proto.BulkGetSecretResponse, error) {
	in, err := s.of(ctx)
	if err != nil {
		return nil, err
	}
	out := &proto.BulkGetSecretResponse{Data: map[string]*proto.SecretResponse{}}
	for k, v := range in.properties {
		out.Data[k] = &proto.SecretResponse{Secrets: map[string]string{"value": v}}
	}
	return out, nil
}

type outputServer struct {
	proto.UnimplementedOutputBindingServer
	*component
}

func (s outputServer) Init(ctx context.Context, r *proto.OutputBindingInitRequest) (*proto.OutputBindingInitResponse, error) {
	return &proto.OutputBindingInitResponse{}, s.open(ctx, r.GetMetadata())
}

func (s outputServer) ListOperations(context.Context, *proto.ListOperationsRequest) (*proto.ListOperationsResponse, error) {
	return &proto.ListOperationsResponse{Operations: []string{"shout", "event"}}, nil
}

func (s outputServer) Invoke(ctx context.Context, r *proto.InvokeRequest) (*proto.InvokeResponse, error) {
	in, err := s.of(ctx)
	if err != nil {
		return nil, err
	}
	if r.GetOperation() == "event" {
		in.events <- string(r.GetData())
		return &proto.InvokeResponse{}, nil
	}
	return &proto.InvokeResponse{Data: []byte(strings.ToUpper(string(r.GetData()))), Metadata: r.GetMetadata()}, nil
}

type inputServer struct {
	proto.UnimplementedInputBindingServer
	*component
}

func (s inputServer) Init(ctx context.Context, r *proto.InputBindingInitRequest) (*proto.InputBindingInitResponse, error) {
	return &proto.InputBindingInitResponse{}, s.open(ctx, r.GetMetadata())
}

// Read sends events until each was handled: one that fails comes again.
func (s inputServer) Read(stream proto.InputBinding_ReadServer) error {
	in, err := s.of(stream.Context())
	if err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case e := <-in.events:
			for handled := false; !handled; {
				if err := stream.Send(&proto.ReadResponse{Data: []byte(e), MessageId: e}); err != nil {
					in.events <- e
					return err
				}
				r, err := stream.Recv()
				if err != nil {
					in.events <- e
					return err
				}
				handled = r.GetResponseError() == nil && r.GetMessageId() == e
			}
		}
	}
}
