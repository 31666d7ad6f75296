package mqtt

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// BindingConfig configures a topic as a binding.
type BindingConfig struct {
	Conn ConnConfig
	// Topic is what is read, where `+` stands for one level and `#` for all that follow, and where
	// messages go whose request names no other.
	Topic string `yaml:"topic" required:"true"`
	// Retain makes the broker keep the last message of a topic for those who subscribe later.
	Retain bool `yaml:"retain"`
	// BackOffMaxRetries is how often an event that the app did not take is brought again, each time
	// after 5 seconds; -1 means without end. After that it comes again every minute.
	BackOffMaxRetries int `yaml:"backOffMaxRetries"`
	// QoS has no effect, as in Dapr: it is 1.
	QoS int `yaml:"qos"`
}

// DefaultBindingConfig is the configuration with nothing set.
func DefaultBindingConfig() *BindingConfig { return &BindingConfig{QoS: 1} }

// Validate reports every mistake.
func (c *BindingConfig) Validate() error {
	var errs []error
	if err := text("topic", c.Topic); err != nil {
		errs = append(errs, err)
	}
	if err := filter(c.Topic); err != nil {
		errs = append(errs, conf.Bad("topic", "%v", err))
	}
	if c.BackOffMaxRetries < -1 {
		errs = append(errs, conf.Bad("backOffMaxRetries", "must be -1 or more"))
	}
	if c.QoS < 0 || c.QoS > 2 {
		errs = append(errs, conf.Bad("qos", "must be 0, 1 or 2"))
	}
	return errors.Join(errs...)
}

// filter judges what may be subscribed to.
func filter(topic string) error {
	levels := strings.Split(topic, "/")
	for i, l := range levels {
		switch {
		case strings.Contains(l, "+") && l != "+":
			return errors.New("+ stands for a whole level, as in a/+/c")
		case strings.Contains(l, "#") && (l != "#" || i != len(levels)-1):
			return errors.New("# stands for all levels that follow, as in a/#")
		}
	}
	return nil
}

var (
	_ block.Input  = (*binding)(nil)
	_ block.Output = (*binding)(nil)
)

// binding is one topic.
type binding struct {
	c      *BindingConfig
	log    *slog.Logger
	out    *link
	reader client // but for take

	retry, park time.Duration // pauses before an event comes again
}

// NewBinding prepares a topic. The first use, or Ping, connects.
func NewBinding(env block.Env, c *BindingConfig) (block.Component, error) {
	at, err := c.Conn.address()
	var secure *tls.Config
	if err == nil {
		secure, err = c.Conn.tlsConfig(&at)
	}
	if err != nil {
		return nil, fault.New("mqtt.NewBinding", fault.Invalid, "topic %q", c.Topic).Because(err)
	}
	b := &binding{c: c, log: env.Log, retry: retryPause, park: parkPause}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if c.QoS != 1 {
		b.log.Warn("the setting qos has no effect, it is 1", "qos", c.QoS)
	}
	id := c.Conn.ConsumerID
	if id == "" {
		id = strings.Trim(env.AppID+"-"+env.Component, "-")
	}
	dial := func(ctx context.Context) (net.Conn, error) { return at.dial(ctx, secure) }
	b.reader = client{at: &at, dial: dial, id: id + "-consumer", clean: c.Conn.CleanSession}
	// The one that sends has nothing that a broker should remember.
	b.out = newLink(&client{at: &at, dial: dial, id: id + "-producer", clean: true})
	return b, nil
}

// Ping connects. A broker that has not been there yet is no reason to hold up the sidecar: that is
// logged, and reading and sending connect when it is.
func (b *binding) Ping(ctx context.Context) error {
	_, err := b.out.get(ctx, "mqtt.Ping")
	if absent(err) && !b.out.met.Load() {
		b.log.Warn("the broker is not there; reading and sending connect when it is", "topic", b.c.Topic, "error", err)
		return nil
	}
	return err
}

// Close ends reading and sending.
func (b *binding) Close(context.Context) error {
	b.out.close() // a broker that does not answer is given a second
	return nil
}

// Operations are what Invoke takes.
func (b *binding) Operations() []string { return []string{"create"} }

// Invoke publishes a message with QoS 1. It returns when the broker has it.
func (b *binding) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	const op fault.Op = "mqtt.Invoke"
	if err := ctx.Err(); err != nil {
		return nil, over(op, "mqtt broker at "+b.out.client.at.target, err, fault.SentNever)
	}
	if r.Operation != "create" {
		return nil, fault.New(op, fault.Unsupported, "invalid operation: %s; known is create", r.Operation).With(fault.BadOperation)
	}
	topic := r.Metadata["topic"]
	if topic == "" {
		topic = b.c.Topic
	}
	// A broker ends the connection over these.
	if text("", topic) != nil || strings.ContainsAny(topic, "+#") {
		return nil, fault.New(op, fault.Invalid, "topic %.100q: a message goes to one topic, without + and #, of at most 60000 bytes; name it in the request's metadata", topic).
			With(fault.BadMetadata).WithSent(fault.SentNever)
	}
	if len(r.Data) > maxPacket-len(topic)-16 {
		return nil, fault.New(op, fault.TooLarge, "the message has %d bytes; at most %d MiB can be sent", len(r.Data), maxPacket>>20).WithSent(fault.SentNever)
	}
	s, err := b.out.get(ctx, op)
	if err != nil {
		return nil, err
	}
	// The copy is for a caller who gives up while the message is written.
	return nil, s.publish(ctx, op, topic, b.c.Retain, bytes.Clone(r.Data))
}
