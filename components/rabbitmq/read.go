package rabbitmq

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/url"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Pauses double with each failure in a row: between attempts to connect up to reconnectWait, before
// a message goes back to the queue up to mostReturn.
const (
	firstConnect = 100 * time.Millisecond
	firstReturn  = 10 * time.Millisecond
	mostReturn   = 5 * time.Second
)

// backoff is the pause after failure n (from 1), a fifth either way at random.
func backoff(n int, first, most time.Duration) time.Duration {
	d := most
	if n < 20 {
		d = min(first<<max(n-1, 0), most)
	}
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Read delivers the queue's messages, one after another. A message is acknowledged when the app has
// handled it; one that it has not goes back to the queue. It returns early when the server refuses
// what connecting again cannot mend.
func (b *binding) Read(ctx context.Context, deliver func(context.Context, block.BindingEvent) ([]byte, error)) error {
	const op fault.Op = "rabbitmq.Read"
	l := b.link(reading)
	if err := ctx.Err(); err != nil {
		return ended(op, l.where(), err, fault.SentNever)
	}
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.life, cancel)()
	for failures := 1; ; failures++ {
		began := time.Now()
		err := b.consume(work, l, op, deliver)
		switch {
		case ctx.Err() != nil:
			return ended(op, l.where(), ctx.Err(), fault.SentNever)
		case l.life.Err() != nil:
			return l.shut(op)
		case lasting(err):
			return err
		}
		if time.Since(began) > b.c.Conn.ReconnectWait {
			failures = 1 // it was well for a while
		}
		pause := backoff(failures, firstConnect, b.c.Conn.ReconnectWait)
		b.log.Warn("reading from the queue broke off and is taken up again", "queue", b.c.QueueName, "error", err, "after", pause)
		sleep(work, pause)
	}
}

// consume reads on one channel until it, or ctx, ends.
func (b *binding) consume(ctx context.Context, l *link, op fault.Op, deliver func(context.Context, block.BindingEvent) ([]byte, error)) error {
	s, err := l.get(ctx, op)
	if err != nil {
		return err
	}
	var messages <-chan amqp.Delivery
	var closes chan *amqp.Error
	ch, err := l.channel(ctx, op, s, func(ch *amqp.Channel) (err error) {
		count := b.c.PrefetchCount
		if count == 0 {
			count = prefetch
		}
		closes = ch.NotifyClose(make(chan *amqp.Error, 1))
		if err = ch.Qos(count, 0, false); err != nil {
			return err
		}
		if err = b.declare(ch); err != nil {
			return err
		}
		messages, err = ch.Consume(b.c.QueueName, "mecha", false, false, false, false, nil)
		return err
	})
	if err != nil {
		return err
	}
	defer l.drop(ch) // what was not acknowledged goes back to the queue
	for failures := 0; ; {
		var m amqp.Delivery
		var ok bool
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m, ok = <-messages:
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !ok:
			return b.stopped(l, op, s, ch, closes)
		}
		if err := b.handle(ctx, m, &failures, deliver); err != nil {
			return l.broken(op, s, err, fault.SentMaybe)
		}
	}
}

// stopped says why no more messages come.
func (b *binding) stopped(l *link, op fault.Op, s *session, ch *amqp.Channel, closes <-chan *amqp.Error) error {
	if !ch.IsClosed() {
		return fault.New(op, fault.Unavailable, "%s: queue %q was deleted", l.where(), b.c.QueueName)
	}
	select {
	case e, ok := <-closes:
		if ok && e.Server {
			return l.answered(op, e, fault.SentMaybe)
		}
	default:
	}
	return l.broken(op, s, amqp.ErrClosed, fault.SentMaybe)
}

// handle sees one message through. Its error is that the server could not be told; then the message
// comes again. failures counts those that the app did not handle in a row.
func (b *binding) handle(ctx context.Context, m amqp.Delivery, failures *int, deliver func(context.Context, block.BindingEvent) ([]byte, error)) error {
	_, err := deliver(ctx, event(&m))
	if err == nil {
		*failures = 0
		return m.Ack(false)
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // it goes back with the channel
	}
	// The server would send it again at once, and so on, as fast as it can.
	*failures++
	sleep(ctx, backoff(*failures, firstReturn, mostReturn))
	return m.Nack(false, true)
}

// event is what the app sees of a message: its headers that are text, escaped as in Dapr.
func event(m *amqp.Delivery) block.BindingEvent {
	e := block.BindingEvent{Data: m.Body, Metadata: make(map[string]string, len(m.Headers))}
	for name, value := range m.Headers {
		if text, ok := value.(string); ok {
			e.Metadata[url.QueryEscape(name)] = url.QueryEscape(text)
		}
	}
	return e
}
