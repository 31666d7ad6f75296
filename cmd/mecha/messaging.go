package main

import (
	"context"

	"github.com/mecha-project/mecha/api/nativeapi"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// messaging is the pub/sub service as the native API wants it: what it opens are interfaces there.
type messaging struct{ *pubsub.Service }

// OpenPublisher implements nativeapi.Messaging.
func (m messaging) OpenPublisher(ctx context.Context, component string, o engine.PublishOptions) (nativeapi.Publisher, engine.PublishInfo, error) {
	return m.Service.OpenPublisher(ctx, component, o)
}

// OpenConsumer implements nativeapi.Messaging.
func (m messaging) OpenConsumer(ctx context.Context, component string, o engine.ConsumeOptions, tell func(engine.Event)) (nativeapi.Consumer, engine.ConsumeInfo, error) {
	return m.Service.OpenConsumer(ctx, component, o, tell)
}

// consumedPartitions is how the sidecar stands with what it consumes; nothing before it is up.
func consumedPartitions(s *pubsub.Service) []telemetry.Partition {
	if s == nil {
		return nil
	}
	var out []telemetry.Partition
	for _, p := range s.Partitions() {
		out = append(out, telemetry.Partition{Component: p.Component, Group: p.Group, Topic: p.Topic, ID: p.ID, Lag: p.Lag, InFlight: p.InFlight,
			Oldest: p.Oldest, ParkedKeys: p.ParkedKeys, Blocked: p.Blocked})
	}
	return out
}
