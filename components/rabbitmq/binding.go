package rabbitmq

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// BindingConfig configures a queue as a binding.
type BindingConfig struct {
	Conn ConnConfig
	// QueueName is the queue. It is declared with the settings below when it is missing; one that
	// exists must have the same.
	QueueName string `yaml:"queueName" required:"true"`
	// Durable keeps the queue and its messages when the server restarts.
	Durable bool `yaml:"durable"`
	// DeleteWhenUnused deletes the queue when its last reader leaves.
	DeleteWhenUnused bool `yaml:"deleteWhenUnused"`
	// Exclusive keeps other connections from the queue, and deletes it with this one.
	Exclusive bool `yaml:"exclusive"`
	// TTL is how long messages live in the queue. A bare number is seconds. Default: for ever.
	TTL time.Duration `yaml:"ttlInSeconds" alias:"ttl" unit:"s"`
	// MaxPriority makes the queue heed priorities from 0 to this number, at most 255. Default: it
	// does not.
	MaxPriority *uint `yaml:"maxPriority"`
	// PrefetchCount is how many messages the server sends ahead to this reader. 0 means 32.
	PrefetchCount int `yaml:"prefetchCount"`
	// ContentType is that of messages whose request names none.
	ContentType string `yaml:"contentType"`
}

// DefaultBindingConfig is the configuration with nothing set.
func DefaultBindingConfig() *BindingConfig {
	return &BindingConfig{Conn: defaultConn(), ContentType: "text/plain"}
}

const (
	// prefetch is the count for "no limit": without one the server would send the whole queue.
	prefetch = 32
	// maxTTL is what the server's timers can hold, in milliseconds.
	maxTTL = math.MaxUint32
)

// Validate reports every mistake.
func (c *BindingConfig) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if len(c.QueueName) > 255 {
		bad("queueName", "is longer than 255 bytes")
	}
	if c.TTL < 0 || c.TTL > 0 && c.TTL < time.Millisecond || c.TTL.Milliseconds() > maxTTL {
		bad("ttlInSeconds", "must be between 1ms and %d s", maxTTL/1000)
	}
	if c.PrefetchCount < 0 || c.PrefetchCount > math.MaxUint16 {
		bad("prefetchCount", "must be between 0 and 65535")
	}
	if len(c.ContentType) > 255 {
		bad("contentType", "is longer than 255 bytes")
	}
	return errors.Join(errs...)
}

var (
	_ block.Input  = (*binding)(nil)
	_ block.Output = (*binding)(nil)
)

// binding is one queue.
type binding struct {
	c   *BindingConfig
	log *slog.Logger

	// The first of reading and sending takes the first connection. The other takes the second: a
	// server short of memory stops reading from those that send, and acknowledgements must get
	// through. An exclusive queue has one connection.
	links [2]*link

	making chan struct{} // holds one while a publisher is made

	mu    sync.Mutex
	taken map[role]*link // guarded by mu
	out   *publisher     // guarded by mu; nil or unusable: there is none
	stale bool           // guarded by mu; the queue went missing
}

type role int

const (
	reading role = iota
	sending
)

// NewBinding prepares a queue. The first use, or Ping, connects.
func NewBinding(env block.Env, c *BindingConfig) (block.Component, error) {
	name := c.Conn.ClientName
	if name == "" {
		name = strings.Trim(env.AppID+"/"+env.Component, "/")
	}
	b := &binding{c: c, log: env.Log, taken: map[role]*link{}, making: make(chan struct{}, 1)}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	for i := range b.links {
		l, err := newLink(c.Conn, name)
		if err != nil {
			return nil, fault.New("rabbitmq.NewBinding", fault.Invalid, "queue %q", c.QueueName).Because(err)
		}
		b.links[i] = l
	}
	return b, nil
}

// link is the connection for a role.
func (b *binding) link(r role) *link {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken[r] == nil {
		b.taken[r] = b.links[0]
		if len(b.taken) > 1 && !b.c.Exclusive {
			b.taken[r] = b.links[1]
		}
	}
	return b.taken[r]
}

// declare makes sure of the queue.
func (b *binding) declare(ch *amqp.Channel) error {
	args := amqp.Table{}
	if b.c.TTL > 0 {
		args["x-message-ttl"] = b.c.TTL.Milliseconds()
	}
	if p := b.c.MaxPriority; p != nil {
		args["x-max-priority"] = int64(min(*p, 255))
	}
	_, err := ch.QueueDeclare(b.c.QueueName, b.c.Durable, b.c.DeleteWhenUnused, b.c.Exclusive, false, args)
	return err
}

// Ping connects, and declares the queue. A server that has not been there yet is no reason to hold up
// the sidecar: that is logged, and reading and sending connect when it is.
func (b *binding) Ping(ctx context.Context) error {
	err := b.ping(ctx)
	if absent(err) && !b.links[0].met.Load() && !b.links[1].met.Load() {
		b.log.Warn("the server is not there; reading and sending connect when it is", "queue", b.c.QueueName, "error", err)
		return nil
	}
	return err
}

func (b *binding) ping(ctx context.Context) error {
	const op fault.Op = "rabbitmq.Ping"
	l := b.links[0]
	s, err := l.get(ctx, op)
	if err != nil {
		return err
	}
	ch, err := l.channel(ctx, op, s, b.declare)
	if err != nil {
		return err
	}
	l.drop(ch)
	return nil
}

// Close ends reading and sending. Messages that the app has not handled go back to the queue.
func (b *binding) Close(context.Context) error {
	var both sync.WaitGroup
	for _, l := range b.links {
		both.Go(l.close)
	}
	both.Wait() // a server that does not answer is given a second
	return nil
}

// Operations are what Invoke takes.
func (b *binding) Operations() []string { return []string{"create"} }

// Invoke sends a message to the queue. It returns when the server has it: a durable queue of one
// that restarts still does.
func (b *binding) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	const op fault.Op = "rabbitmq.Invoke"
	if err := ctx.Err(); err != nil {
		return nil, ended(op, b.links[0].where(), err, fault.SentNever)
	}
	if r.Operation != "create" {
		return nil, fault.New(op, fault.Unsupported, "invalid operation: %s; known is create", r.Operation).With(fault.BadOperation)
	}
	m, err := b.message(op, &r)
	if err != nil {
		return nil, err
	}
	for range 2 {
		p, err := b.publisher(ctx, op)
		if err != nil {
			return nil, err
		}
		err = p.publish(ctx, op, "", b.c.QueueName, m, b.restore)
		if !errors.Is(err, errReturned) {
			return nil, err
		}
		// Somebody deleted the queue, or its last reader left. The message is nowhere, so it can
		// be sent again.
		b.mu.Lock()
		b.stale = true
		b.mu.Unlock()
	}
	return nil, fault.New(op, fault.Unavailable, "%s: queue %q is deleted again and again", b.links[0].where(), b.c.QueueName).WithSent(fault.SentNever)
}

// restore declares the queue again if it went missing. It is called by one at a time.
func (b *binding) restore(ch *amqp.Channel) error {
	b.mu.Lock()
	stale := b.stale
	b.stale = false
	b.mu.Unlock()
	if !stale {
		return nil
	}
	return b.declare(ch)
}

// publisher is the one in use, made if need be.
func (b *binding) publisher(ctx context.Context, op fault.Op) (*publisher, error) {
	ready := func() *publisher {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.out != nil && b.out.usable() {
			return b.out
		}
		return nil
	}
	if p := ready(); p != nil {
		return p, nil
	}
	l := b.link(sending)
	select {
	case b.making <- struct{}{}:
		defer func() { <-b.making }()
	case <-ctx.Done():
		return nil, ended(op, l.where(), ctx.Err(), fault.SentNever)
	}
	if p := ready(); p != nil {
		return p, nil
	}
	p, err := l.publisher(ctx, op, b.declare)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.out, b.stale = p, false
	b.mu.Unlock()
	return p, nil
}

// message translates a request. All of its metadata become headers too, as in Dapr.
func (b *binding) message(op fault.Op, r *block.BindingRequest) (amqp.Publishing, error) {
	m := amqp.Publishing{DeliveryMode: amqp.Persistent, ContentType: b.c.ContentType, Body: r.Data, Headers: make(amqp.Table, len(r.Metadata))}
	wrong := func(name, format string, args ...any) (amqp.Publishing, error) {
		return amqp.Publishing{}, fault.New(op, fault.Invalid, "metadata "+name+": "+format, args...).With(fault.BadMetadata).WithSent(fault.SentNever)
	}
	size := 0
	for name, value := range r.Metadata {
		if len(name) > 255 {
			return wrong("name", "%q… is longer than 255 bytes", strings.ToValidUTF8(name[:40], ""))
		}
		m.Headers[name] = value
		size += len(name) + len(value) + 6
		if value == "" {
			continue
		}
		switch strings.ToLower(name) {
		case "contenttype":
			if len(value) > 255 {
				return wrong("contentType", "is longer than 255 bytes")
			}
			m.ContentType = value
		case "priority":
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				return wrong("priority", "%q is not a whole number", value)
			}
			m.Priority = uint8(min(max(n, 0), 255))
		case "ttlinseconds", "ttl":
			d, err := conf.ParseDuration(value, time.Second)
			if err != nil || d < time.Millisecond || d.Milliseconds() > maxTTL {
				return wrong(name, "%q is not a time to live; write a number of seconds from 1 to %d", value, maxTTL/1000)
			}
			m.Expiration = strconv.FormatInt(d.Milliseconds(), 10)
		}
	}
	if size > frameSize/2 { // all metadata travel in one frame
		return amqp.Publishing{}, fault.New(op, fault.TooLarge, "the metadata are %d bytes long; at most %d can be sent", size, frameSize/2).WithSent(fault.SentNever)
	}
	m.Body = slices.Clone(r.Data) // it may still be on its way when a caller who gave up has left
	return m, nil
}
