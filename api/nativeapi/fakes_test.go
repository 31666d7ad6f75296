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
