package kafka

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// BindingConfig configures Kafka as a binding.
type BindingConfig struct {
	Conn ConnConfig
	// Topics are those whose records come to the app. Empty means that none do.
	Topics []string `yaml:"topics"`
	// PublishTopic is where the operation create appends. Empty means that there is none.
	PublishTopic string `yaml:"publishTopic"`
	Headers      HeaderConfig
	Producer     ProducerConfig
	Consumer     ConsumerConfig
}

// DefaultBindingConfig returns the defaults.
func DefaultBindingConfig() *BindingConfig {
	return &BindingConfig{Conn: defaultConn(), Producer: defaultProducer(), Consumer: defaultConsumer()}
}

// Validate reports what cannot work.
func (c *BindingConfig) Validate() error {
	var errs []error
	if len(c.Topics) == 0 && c.PublishTopic == "" {
		errs = append(errs, conf.Bad("topics", "neither topics nor publishTopic is given; want topics to read, a topic to append to, or both"))
	}
	for _, t := range c.Topics {
		if err := checkTopic(t); err != nil {
			errs = append(errs, conf.Bad("topics", "%v", err))
		}
	}
	if c.PublishTopic != "" {
		if err := checkTopic(c.PublishTopic); err != nil {
			errs = append(errs, conf.Bad("publishTopic", "%v", err))
		}
	}
	return errors.Join(errs...)
}

// NewBinding makes the component: an output, an input or both, by the topics that are configured.
// It connects at first use.
func NewBinding(env block.Env, c *BindingConfig) (block.Component, error) {
	n, err := newConn(env, c.Conn)
	if err != nil {
		return nil, err
	}
	h, err := c.Headers.compile()
	if err != nil {
		return nil, fault.Wrap("kafka.NewBinding", fault.Invalid, err)
	}
	b := &binding{producer: newProducer(n, c.Producer), headers: h}
	in := &input{binding: b, consumer: &c.Consumer, topics: c.Topics, group: c.Consumer.group(env)}
	out := &output{binding: b, topic: c.PublishTopic}
	if len(c.Topics) > 0 {
		c.Consumer.warn(n.log)
		if in.group == "" {
			return nil, fault.New("kafka.NewBinding", fault.Invalid, "consumerGroup is required, for the app has no id")
		}
	}
	switch {
	case len(c.Topics) == 0:
		return out, nil
	case c.PublishTopic == "":
		return in, nil
	}
	return &both{input: in, output: out}, nil
}

// binding is what both directions share.
type binding struct {
	producer *producer
	headers  *headers
	met      atomic.Bool // a broker has answered a Ping
}

// firstPatience is how long the first Ping waits for a broker.
const firstPatience = time.Second

// Ping asks a broker for a sign of life. Until one has given it, brokers that cannot be reached are
// no error: a sidecar is to start before them, and the component connects when they come. Brokers
// that refuse to let it in are one.
func (b *binding) Ping(ctx context.Context) error {
	const op fault.Op = "kafka.Ping"
	if b.met.Load() {
		return b.producer.ping(ctx, op)
	}
	if _, err := b.producer.use(ctx, op); err != nil {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, firstPatience)
	defer cancel()
	err := b.producer.ping(soon, op)
	switch code := fault.Of(err); {
	case err == nil:
		b.met.Store(true)
	case ctx.Err() == nil && (code == fault.Unavailable || code == fault.Deadline):
		b.producer.log.Warn("Kafka cannot be reached yet; the component connects when it can", "brokers", b.producer.addrs, "error", err)
		return nil
	}
	return err
}

// Close ends the clients. Appends under way fail, and reading ends as it does with its context.
func (b *binding) Close(context.Context) error {
	b.producer.close()
	return nil
}

var (
	_ block.Output = (*output)(nil)
	_ block.Input  = (*input)(nil)
	_ block.Output = (*both)(nil)
	_ block.Input  = (*both)(nil)
)

type output struct {
	*binding
	topic string
}

// create appends the data.
const create = "create"

// Operations is create alone.
func (o *output) Operations() []string { return []string{create} }

// Invoke appends the data as one record and returns when all in-sync replicas have it.
func (o *output) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	const op fault.Op = "kafka.Invoke"
	if r.Operation != create {
		return nil, fault.New(op, fault.Unsupported, "invalid operation: %s; known is %s", r.Operation, create)
	}
	record, err := newRecord(op, o.topic, r.Data, r.Metadata, o.headers)
	if err != nil {
		return nil, err
	}
	return nil, o.producer.append(ctx, op, record)
}

type input struct {
	*binding
	consumer *ConsumerConfig
	topics   []string
	group    string
}

// Read brings records to the app as a member of the group, those of a partition one after the other
// and each until the app has handled it. What was handled is committed.
func (i *input) Read(ctx context.Context, deliver func(context.Context, block.BindingEvent) ([]byte, error)) error {
	const op fault.Op = "kafka.Read"
	if _, err := i.producer.use(ctx, op); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	closed := make(chan struct{})
	var watch sync.WaitGroup
	defer watch.Wait()
	defer close(closed)
	watch.Go(func() {
		select {
		case <-i.producer.over:
			cancel(i.producer.gone(op))
		case <-closed:
		}
	})
	err := i.producer.consume(ctx, op, i.consumer, i.group, i.topics, func(ctx context.Context, r *kgo.Record) error {
		value := r.Value
		if value == nil {
			value = []byte{}
		}
		_, err := deliver(ctx, block.BindingEvent{Data: value, Metadata: metadataOf(r, i.headers)})
		return err
	})
	if over := (*fault.Error)(nil); errors.As(context.Cause(ctx), &over) {
		return over
	}
	return err
}

// both is an output and an input; they share the binding.
type both struct {
	*input
	output *output
}

// Operations is create alone.
func (b *both) Operations() []string { return b.output.Operations() }

// Invoke appends a record.
func (b *both) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	return b.output.Invoke(ctx, r)
}
