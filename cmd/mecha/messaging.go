package main

import (
	"context"

	"github.com/mecha-project/mecha/api/nativeapi"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
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
