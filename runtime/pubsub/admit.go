package pubsub

import "context"

// Gate admits a delivery that does not go through App.Invoke: it waits for one of the app's slots
// and refuses an app that is not healthy. leave gives the slot back. app.App is one.
type Gate interface {
	Enter(ctx context.Context) (leave func(), err error)
}

// Admitted is sink behind gate, so that --app-max-concurrency and the health check hold for
// deliveries in the app's own protocol as they do for calls.
func Admitted(gate Gate, sink EventSink) EventSink {
	if sink == nil {
		return nil
	}
	return admitted{gate: gate, sink: sink}
}

type admitted struct {
	gate Gate
	sink EventSink
}

// Deliver implements EventSink.
func (a admitted) Deliver(ctx context.Context, e *Event) (Answer, error) {
	leave, err := a.gate.Enter(ctx)
	if err != nil {
		return Retry, err
	}
	defer leave()
	return a.sink.Deliver(ctx, e)
}

// DeliverBulk implements EventSink.
func (a admitted) DeliverBulk(ctx context.Context, b *Batch) ([]Answer, error) {
	leave, err := a.gate.Enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return a.sink.DeliverBulk(ctx, b)
}
