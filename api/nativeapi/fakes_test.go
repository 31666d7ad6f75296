package nativeapi_test

import (
	"context"

	"github.com/mecha-project/mecha/api/nativeapi"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
	"github.com/mecha-project/mecha/test/fakeengine"
)

// countedPublish tells of every batch that the edge hands over.
type countedPublish struct {
	*fakeengine.Engine
	took func()
}

func (c countedPublish) OpenPublisher(ctx context.Context, component string, o engine.PublishOptions) (nativeapi.Publisher, engine.PublishInfo, error) {
	p, info, err := c.Engine.OpenPublisher(ctx, component, o)
	return counted{p, c.took}, info, err
}

type counted struct {
	nativeapi.Publisher
	took func()
}

func (c counted) Publish(ctx context.Context, b engine.Batch, done func([]engine.Receipt)) {
	c.took()
	c.Publisher.Publish(ctx, b, done)
}

// credits tells of every grant.
type credits struct {
	*fakeengine.Engine
	got chan [2]int
}

func (c credits) OpenConsumer(ctx context.Context, component string, o engine.ConsumeOptions, tell func(engine.Event)) (nativeapi.Consumer, engine.ConsumeInfo, error) {
	con, info, err := c.Engine.OpenConsumer(ctx, component, o, tell)
	return credited{con, c.got}, info, err
}

type credited struct {
	nativeapi.Consumer
	got chan [2]int
}

func (c credited) Credit(messages, bytes int, _ *engine.Part) error {
	c.got <- [2]int{messages, bytes}
	return nil
}
