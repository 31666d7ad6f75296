package pubsub

import (
	"context"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// What the native API asks for goes to the engine as it is; here is decided who may use which topic, under
// which name the broker has it, and which policy governs it. Messages are the app's bytes: no envelope.

// Ending is closed by EndStreams.
func (s *Service) Ending() <-chan struct{} { return s.ending }

// EndStreams ends the streams of publishers, which would keep the edges from draining. It is called once.
func (s *Service) EndStreams() { close(s.ending) }

// topicOf is what a component's broker calls a topic, for publishing or subscribing.
func (s *Service) topicOf(op fault.Op, component, topic string, publish bool) (*catalog.Handle[block.PubSub], *rules, error) {
	h, err := s.lookup(component, topic)
	if err != nil {
		return nil, nil, err
	}
	rules := s.rulesOf(h)
	if publish {
		return h, rules, s.checkPublish(rules, topic)
	}
	if !rules.maySubscribe(s.self.App, topic) {
		return nil, nil, forbidden(op, "subscription to topic '%s' on pubsub '%s' is not allowed", topic, component)
	}
	return h, rules, nil
}

// onLog runs fn on the engine of a component, as one call.
func onLog[R any](ctx context.Context, s *Service, h *catalog.Handle[block.PubSub], d call.Desc, fn func(context.Context, *engine.Engine) (R, error)) (R, error) {
	return catalog.Do(ctx, h, d, func(ctx context.Context, broker block.PubSub) (R, error) {
		log, ok := block.As[block.Log](broker)
		if !ok {
			var none R
			return none, fault.New("pubsub.native", fault.Unsupported, "pub/sub component %s has no partitions: it keeps groups and acknowledgements itself; use Dapr's API with it", h.Name)
		}
		return fn(ctx, s.engine(log))
	}, nil)
}

// admin describes a call of the administrative methods.
func (s *Service) admin(op, topic string) call.Desc {
	d := s.desc(op, topic, "")
	d.Safety = call.Idempotent
	return d
}

// about runs an administrative method on a topic the app may subscribe to.
func about[R any](ctx context.Context, s *Service, op, component, topic string, fn func(ctx context.Context, e *engine.Engine, topic string) (R, error)) (R, error) {
	h, rules, err := s.topicOf(fault.Op("pubsub."+op), component, topic, false)
	if err != nil {
		var none R
		return none, err
	}
	return onLog(ctx, s, h, s.admin(op, topic), func(ctx context.Context, e *engine.Engine) (R, error) {
		return fn(ctx, e, rules.prefix+topic)
	})
}

// groupOf is the app's own group unless another is named.
func (s *Service) groupOf(component, group string) string {
	if group != "" {
		return group
	}
	if h, err := s.stores.Lookup(component); err == nil {
		if g := s.rulesOf(h).group; g != "" {
			return g
		}
	}
	return s.self.App
}

// DescribeTopic tells how a topic is divided and what it holds.
func (s *Service) DescribeTopic(ctx context.Context, component, topic string) (engine.TopicInfo, error) {
	return about(ctx, s, "DescribeTopic", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (engine.TopicInfo, error) {
		return e.DescribeTopic(ctx, topic)
	})
}

// DescribeGroup tells who is in a group and how far it is with a topic.
func (s *Service) DescribeGroup(ctx context.Context, component, group, topic string) (engine.GroupInfo, error) {
	return about(ctx, s, "DescribeGroup", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (engine.GroupInfo, error) {
		return e.DescribeGroup(ctx, s.groupOf(component, group), topic)
	})
}

// ResetGroup moves a group's progress with a topic.
func (s *Service) ResetGroup(ctx context.Context, component, group, topic string, partitions []int32, to engine.Place) error {
	_, err := about(ctx, s, "ResetGroup", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (struct{}, error) {
		return struct{}{}, e.ResetGroup(ctx, s.groupOf(component, group), topic, partitions, to)
	})
	return err
}

// ListParked lists the keys a group has set aside.
func (s *Service) ListParked(ctx context.Context, component, group, topic, token string, size int) (keys []engine.Parked, next string, err error) {
	keys, err = about(ctx, s, "ListParked", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (keys []engine.Parked, err error) {
		keys, next, err = e.ListParked(ctx, s.groupOf(component, group), topic, token, size)
		return keys, err
	})
	return keys, next, err
}

// Unpark has a key's parked messages delivered again, or drops them.
func (s *Service) Unpark(ctx context.Context, component, group, topic string, partition int32, key string, drop bool) (int, error) {
	return about(ctx, s, "Unpark", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (int, error) {
		return e.Unpark(ctx, s.groupOf(component, group), topic, partition, key, drop)
	})
}

// ResizeTopic gives a topic another number of partitions.
func (s *Service) ResizeTopic(ctx context.Context, component, topic string, partitions int) (engine.TopicInfo, error) {
	return about(ctx, s, "ResizeTopic", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (engine.TopicInfo, error) {
		return e.ResizeTopic(ctx, topic, partitions)
	})
}
