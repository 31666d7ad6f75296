package pluggable

import (
	"context"
	"maps"
	"strconv"
	"sync/atomic"
	"time"

	proto "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/grpc"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

const (
	metaConsumer = "consumerID"   // the group, told at Init
	metaKey      = "partitionKey" // a message's ordering key
)

// pubsub is a broker behind a socket.
type pubsub struct {
	*instance
	group  string
	single atomic.Bool // the component has no BulkPublish
}

var _ block.PubSub = (*pubsub)(nil)

func openPubSub(env block.Env, socket string, c *Config) block.PubSub {
	p := &pubsub{instance: newInstance(env, socket, c), group: c.property(metaConsumer)}
	if p.group == "" {
		p.group = env.AppID
		p.properties = maps.Clone(p.properties)
		if p.properties == nil {
			p.properties = map[string]string{}
		}
		p.properties[metaConsumer] = p.group
	}
	p.ping = func(ctx context.Context, s *session, opts ...grpc.CallOption) error {
		_, err := proto.NewPubSubClient(s.cc).Ping(ctx, &proto.PingRequest{}, opts...)
		return err
	}
	p.init = func(ctx context.Context, s *session, meta *proto.MetadataRequest) error {
		client := proto.NewPubSubClient(s.cc)
		if _, err := client.Init(ctx, &proto.PubSubInitRequest{Metadata: meta}); err != nil {
			return err
		}
		answer, err := client.Features(ctx, &proto.FeaturesRequest{})
		s.features = answer.GetFeatures()
		return err
	}
	return p
}

// Publish implements block.PubSub.
func (p *pubsub) Publish(ctx context.Context, msgs []block.Message) []error {
	errs := make([]error, len(msgs))
	failed := false
	for start := 0; start < len(msgs); { // runs of one topic
		end := start + 1
		for end < len(msgs) && msgs[end].Topic == msgs[start].Topic {
			end++
		}
		p.publish(ctx, msgs[start:end], errs[start:end])
		start = end
	}
	for _, err := range errs {
		failed = failed || err != nil
	}
	if !failed {
		return nil
	}
	return errs
}

// publish sends messages of one topic, in one call if there are several and the component can.
func (p *pubsub) publish(ctx context.Context, msgs []block.Message, errs []error) {
	const op fault.Op = "pluggable.pubsub.Publish"
	if len(msgs) > 1 && !p.single.Load() {
		if p.bulk(ctx, op, msgs, errs) {
			return
		}
		p.single.Store(true)
	}
	for i := range msgs {
		m := &msgs[i]
		errs[i] = p.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
			_, err := proto.NewPubSubClient(now.cc).Publish(ctx, &proto.PublishRequest{PubsubName: p.name, Topic: m.Topic, Data: m.Data, Metadata: withKey(m)}, o...)
			return err
		})
	}
}

// bulk is false when the component has no bulk call.
func (p *pubsub) bulk(ctx context.Context, op fault.Op, msgs []block.Message, errs []error) bool {
	r := &proto.BulkPublishRequest{PubsubName: p.name, Topic: msgs[0].Topic}
	for i := range msgs {
		r.Entries = append(r.Entries, &proto.BulkMessageEntry{EntryId: strconv.Itoa(i), Event: msgs[i].Data, Metadata: withKey(&msgs[i])})
	}
	err := p.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
		a, err := proto.NewPubSubClient(now.cc).BulkPublish(ctx, r, o...)
		for _, f := range a.GetFailedEntries() {
			if i, bad := strconv.Atoi(f.GetEntryId()); bad == nil && i >= 0 && i < len(errs) {
				errs[i] = fault.New(op, fault.Internal, "the component did not take the message: %s", f.GetError()).WithSent(fault.SentMaybe)
			}
		}
		return err
	})
	if fault.Of(err) == fault.Unsupported {
		return false
	}
	if err != nil {
		for i := range errs {
			errs[i] = err
		}
	}
	return true
}

// withKey is a message's metadata with its ordering key.
func withKey(m *block.Message) map[string]string {
	if m.Key == "" || m.Metadata[metaKey] != "" {
		return m.Metadata
	}
	meta := maps.Clone(m.Metadata)
	if meta == nil {
		meta = map[string]string{}
	}
	meta[metaKey] = m.Key
	return meta
}

// Consume implements block.PubSub.
func (p *pubsub) Consume(ctx context.Context, opts block.ConsumeOptions, deliver func(block.Delivery)) error {
	const op fault.Op = "pluggable.pubsub.Consume"
	if opts.MaxInFlight < 1 {
		return fault.New(op, fault.Invalid, "MaxInFlight is %d, at least 1 is needed", opts.MaxInFlight)
	}
	topic := &proto.Topic{Name: opts.Topic, Metadata: opts.Metadata}
	if opts.Group != "" && opts.Group != p.group { // Init has told another
		topic.Metadata = maps.Clone(opts.Metadata)
		if topic.Metadata == nil {
			topic.Metadata = map[string]string{}
		}
		topic.Metadata[metaConsumer] = opts.Group
	}
	f := &following[proto.PullMessagesRequest, proto.PullMessagesResponse]{instance: p.instance, op: op,
		first: &proto.PullMessagesRequest{Topic: topic},
		slots: make(chan struct{}, opts.MaxInFlight),
		open: func(ctx context.Context, s *session) (grpc.BidiStreamingClient[proto.PullMessagesRequest, proto.PullMessagesResponse], error) {
			return proto.NewPubSubClient(s.cc).PullMessages(ctx)
		},
		handle: func(m *proto.PullMessagesResponse, answer func(*proto.PullMessagesRequest)) {
			deliver(delivery(opts.Topic, m, answer))
		}}
	return f.run(ctx)
}

// delivery is a message with its answers. The protocol has no delay, so a message that is to come
// later keeps its place until then.
func delivery(topic string, m *proto.PullMessagesResponse, answer func(*proto.PullMessagesRequest)) block.Delivery {
	id, key := m.GetId(), m.GetMetadata()[metaKey]
	delete(m.GetMetadata(), metaKey) // the key travels there; it is no metadata of the publisher's
	refuse := func() {
		answer(&proto.PullMessagesRequest{AckMessageId: id, AckError: &proto.AckMessageError{Message: "not handled"}})
	}
	var answered atomic.Bool
	d := block.Delivery{Position: id,
		Message: block.Message{Topic: topic, Key: key, Data: m.GetData(), Metadata: m.GetMetadata()}}
	d.Ack = func() {
		if !answered.Swap(true) {
			answer(&proto.PullMessagesRequest{AckMessageId: id})
		}
	}
	d.Nack = func(delay time.Duration) {
		switch {
		case answered.Swap(true):
		case delay <= 0:
			refuse()
		default:
			time.AfterFunc(delay, refuse)
		}
	}
	return d
}
