package rabbitmq

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strconv"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/mecha-project/mecha/components/fault"
)

// publisher sends messages on a channel of its own and waits until the server has confirmed each. It
// lives as long as the channel. It is safe for concurrent use.
type publisher struct {
	l      *link
	s      *session
	ch     *amqp.Channel
	prefix string           // of message ids
	turn   chan struct{}    // holds one while a message is written
	slots  chan struct{}    // holds one for each message that is not settled
	closes chan *amqp.Error // the server's reason, once

	mu      sync.Mutex
	number  uint64              // guarded by mu
	returns chan amqp.Return    // received from under mu
	back    map[string]struct{} // guarded by mu; ids of messages that came back
	why     *amqp.Error         // guarded by mu
}

// maxUnsettled is how many messages one component may have on their way. Those beyond wait. It is
// also the room for messages that come back, which the library would otherwise throw away.
const maxUnsettled = 1024

// errReturned is a message that no queue took.
var errReturned = errors.New("no queue takes the message")

// publisher opens one; prepare declares what messages are sent to.
func (l *link) publisher(ctx context.Context, op fault.Op, prepare func(*amqp.Channel) error) (*publisher, error) {
	s, err := l.get(ctx, op)
	if err != nil {
		return nil, err
	}
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return nil, fault.Wrap(op, fault.Internal, err)
	}
	p := &publisher{l: l, s: s, prefix: hex.EncodeToString(id) + "-", turn: make(chan struct{}, 1), slots: make(chan struct{}, maxUnsettled),
		back: map[string]struct{}{}}
	p.ch, err = l.channel(ctx, op, s, func(ch *amqp.Channel) error {
		p.returns, p.closes = ch.NotifyReturn(make(chan amqp.Return, maxUnsettled)), ch.NotifyClose(make(chan *amqp.Error, 1))
		if err := ch.Confirm(false); err != nil {
			return err
		}
		return prepare(ch)
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// usable tells whether messages can be sent.
func (p *publisher) usable() bool { return !p.ch.IsClosed() }

// publish sends one message and waits for the server's word. before is called with the channel when
// it is the message's turn to be written. errReturned means that certainly no queue has the message.
func (p *publisher) publish(ctx context.Context, op fault.Op, exchange, key string, m amqp.Publishing, before func(*amqp.Channel) error) error {
	if why := p.s.blocked.Load(); why != nil {
		return fault.New(op, fault.Exhausted, "%s takes no messages now: %s", p.l.where(), *why).WithSent(fault.SentNever)
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return ended(op, p.l.where(), ctx.Err(), fault.SentNever)
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		<-p.slots
		return ended(op, p.l.where(), ctx.Err(), fault.SentNever)
	}
	// The library's calls know no context: they are made beside.
	settled := make(chan error, 1)
	if !p.l.spawn(func() {
		defer func() { <-p.slots }()
		settled <- p.send(op, exchange, key, m, before)
	}) {
		<-p.turn
		<-p.slots
		return p.l.shut(op)
	}
	select {
	case err := <-settled:
		return err
	case <-ctx.Done():
		return ended(op, p.l.where(), ctx.Err(), fault.SentMaybe)
	}
}

// send writes a message, passes the turn on and waits.
func (p *publisher) send(op fault.Op, exchange, key string, m amqp.Publishing, before func(*amqp.Channel) error) error {
	m.MessageId = p.next()
	dc, err := p.write(exchange, key, m, before)
	<-p.turn
	if err != nil {
		sent := fault.SentMaybe
		if errors.Is(err, amqp.ErrClosed) {
			sent = fault.SentNever
		}
		return p.failed(op, err, sent)
	}
	<-dc.Done() // the channel's end settles it too
	switch {
	case p.returned(m.MessageId):
		return errReturned
	case dc.Acked():
		return nil
	case p.ch.IsClosed():
		return p.failed(op, amqp.ErrClosed, fault.SentMaybe)
	}
	return fault.New(op, fault.Exhausted, "%s does not accept the message; is the queue full?", p.l.where()).WithSent(fault.SentMaybe)
}

func (p *publisher) write(exchange, key string, m amqp.Publishing, before func(*amqp.Channel) error) (*amqp.DeferredConfirmation, error) {
	if err := before(p.ch); err != nil {
		return nil, errors.Join(amqp.ErrClosed, err) // an error closes the channel, so nothing was sent
	}
	return p.ch.PublishWithDeferredConfirm(exchange, key, true, false, m)
}

// next is the id of the next message. Receivers may tell repeated messages by it.
func (p *publisher) next() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.number++
	return p.prefix + strconv.FormatUint(p.number, 10)
}

// returned tells whether a message came back, which the server says before it confirms it.
func (p *publisher) returned(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		select {
		case r, ok := <-p.returns:
			if ok {
				p.back[r.MessageId] = struct{}{}
				continue
			}
		default:
		}
		_, came := p.back[id]
		delete(p.back, id)
		return came
	}
}

// failed is the error of a message that could not be sent, or lost its channel.
func (p *publisher) failed(op fault.Op, err error, sent fault.Sent) error {
	p.mu.Lock()
	select {
	case e, ok := <-p.closes:
		if ok && p.why == nil {
			p.why = e
		}
	default:
	}
	why := p.why
	p.mu.Unlock()
	if why != nil && why.Server {
		return p.l.answered(op, why, sent)
	}
	return p.l.broken(op, p.s, err, sent)
}
