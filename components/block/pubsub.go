package block

import (
	"context"
	"time"
)

// PubSub is a message broker. What it can do is an ability, asked for with As: it is a Log, which is what
// the house wants of a broker, or a Queue.
type PubSub interface{ Component }

// Queue is offered by brokers that keep track of groups and of what they acknowledged themselves. Delivery
// is at least once: a message is gone for a group only after its Delivery was acknowledged. The house keeps
// order among what one consumer has in hand, and can promise no more.
type Queue interface {
	PubSub
	// Publish appends the messages in order. It returns nil when the broker has accepted
	// all, else one error or nil per message.
	Publish(ctx context.Context, msgs []Message) []error
	// Consume delivers messages of one topic to one group until ctx ends, then returns
	// ctx's error. Members of one group, in any process, share the messages; each group sees
	// all of them. A new group starts at the oldest message kept.
	//
	// deliver is called from one goroutine in the broker's order and must not block for
	// long; answers arrive later, from any goroutine, through Delivery.Ack and Nack. At most
	// opts.MaxInFlight deliveries are unanswered. Deliveries unanswered when Consume returns
	// go back to the group. A lost connection is repaired inside; Consume returns early only
	// when it cannot go on (then fault says why and whether trying again makes sense).
	Consume(ctx context.Context, opts ConsumeOptions, deliver func(Delivery)) error
}

// Message is one event on its way to or from a broker.
type Message struct {
	Topic    string
	Key      string // ordering key; empty means none
	Data     []byte
	Metadata map[string]string // carried to the subscriber where the broker can
	ID       string            // for de-duplication where the broker can; empty means none
	TTL      time.Duration     // zero means none; only brokers offering PubSubTTL get one
}

// ConsumeOptions say who consumes what.
type ConsumeOptions struct {
	Topic       string
	Group       string
	MaxInFlight int               // unanswered deliveries; at least 1
	Metadata    map[string]string // the subscription's own metadata
}

// Delivery is one message handed to a consumer. Exactly one of Ack or Nack is to be called,
// once; further calls are ignored.
type Delivery struct {
	Message
	// Attempt counts deliveries of this message to this group, from 1; 0 when unknown.
	Attempt int
	// Position is the broker's name for the message's place, for logs.
	Position string
	// Ack says the message is done for the group.
	Ack func()
	// Nack gives the message back; it comes again not before delay.
	Nack func(delay time.Duration)
}

// PubSubTTL is offered by brokers that drop messages older than Message.TTL themselves.
type PubSubTTL interface{ ExpiresMessages() }
