package nats

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/nats/embedded"
)

// LogConfig says where a broker keeps its messages and how long.
type LogConfig struct {
	// Stream is the JetStream stream. Default: the component's name. Components with the same
	// stream on the same server share their topics.
	Stream string `yaml:"stream"`
	// MaxAge is how long messages stay, consumed or not. 0 means for ever. Applies when the
	// stream is created.
	MaxAge time.Duration `yaml:"maxAge"`
	// MaxBytes bounds the stream; beyond it the oldest messages go, consumed or not. -1 means
	// no bound. Applies when the stream is created.
	MaxBytes conf.ByteSize `yaml:"maxBytes"`
	// DedupWindow is how long message ids are remembered: a second message with the same topic
	// and id is accepted and dropped. Applies when the stream is created.
	DedupWindow time.Duration `yaml:"dedupWindow" unit:"s"`
	// Partitions is how many a topic gets that does not exist yet, 1 to 1024.
	Partitions int `yaml:"partitions"`
	// SessionTTL is after what silence a member of a group counts as dead and others take over its
	// partitions.
	SessionTTL time.Duration `yaml:"sessionTTL" unit:"s"`
	// AckWait is after what time messages of a consumer that died without a word come back. A
	// living one keeps its messages as long as its handlers take. Applies when a group is
	// created on a topic, and when it is next consumed.
	AckWait time.Duration `yaml:"ackWait" unit:"s"`
}

func defaultLog() LogConfig {
	return LogConfig{MaxAge: 7 * 24 * time.Hour, MaxBytes: conf.GiB, DedupWindow: 2 * time.Minute, Partitions: 32, SessionTTL: 6 * time.Second, AckWait: 30 * time.Second}
}

// Validate reports what cannot work.
func (c *LogConfig) Validate() error {
	errs := c.validateLog()
	if c.MaxAge != 0 && c.MaxAge < time.Second {
		errs = append(errs, conf.Bad("maxAge", "must be at least 1s, or 0 for no bound"))
	}
	if c.MaxBytes != conf.Unlimited && c.MaxBytes < 1 {
		errs = append(errs, conf.Bad("maxBytes", "must be at least 1, or -1 for no bound"))
	}
	if c.DedupWindow < 100*time.Millisecond || c.MaxAge != 0 && c.DedupWindow > c.MaxAge {
		errs = append(errs, conf.Bad("dedupWindow", "must be at least 100ms and at most maxAge"))
	}
	if c.AckWait < time.Second {
		errs = append(errs, conf.Bad("ackWait", "must be at least 1s"))
	}
	return errors.Join(errs...)
}

// EmbeddedPubSubConfig configures a broker on the embedded node.
type EmbeddedPubSubConfig struct {
	Node NodeConfig
	Log  LogConfig
}

// DefaultEmbeddedPubSubConfig returns the defaults.
func DefaultEmbeddedPubSubConfig() *EmbeddedPubSubConfig {
	return &EmbeddedPubSubConfig{Node: defaultNode(), Log: defaultLog()}
}

// PubSubConfig configures a broker on a NATS server.
type PubSubConfig struct {
	Conn ConnConfig
	Log  LogConfig
	// Replicas is how many servers of a cluster keep the stream, when it is created.
	Replicas int `yaml:"replicas"`
}

// DefaultPubSubConfig returns the defaults.
func DefaultPubSubConfig() *PubSubConfig { return &PubSubConfig{Log: defaultLog(), Replicas: 1} }

// Validate reports what cannot work.
func (c *PubSubConfig) Validate() error { return checkReplicas(c.Replicas) }

// NewEmbeddedPubSub opens a broker on the embedded node.
func NewEmbeddedPubSub(env block.Env, c *EmbeddedPubSubConfig) (block.PubSub, error) {
	return newPubSub(env, &c.Log, 1, embedded.MaxPayload-headersRoom, c.Node.dialer(env)), nil
}

// NewPubSub opens a broker on a NATS server.
func NewPubSub(env block.Env, c *PubSubConfig) (block.PubSub, error) {
	return newPubSub(env, &c.Log, c.Replicas, 0, c.Conn.dialer(env)), nil
}

var _ block.PubSub = (*pubsub)(nil)

// pubsub is one stream. A topic is a subject in it, a group on a topic a durable consumer.
// Messages stay until the stream's limits, whoever has read them: that is what lets a new
// group start at the oldest.
type pubsub struct {
	conn     *conn
	c        LogConfig
	replicas int
	stream   string
	prefix   string // of subjects, with the final dot

	made atomic.Bool // the stream is known to exist

	log       *logStreams
	maxRecord int // bytes; 0: the server decides

	consumers tally // running calls of Consume and LedgerWatch
}

// headerMsgID is the server's de-duplication header.
const headerMsgID = "Nats-Msg-Id"

func newPubSub(env block.Env, c *LogConfig, replicas, maxRecord int, dial dialer) *pubsub {
	name := c.Stream
	if name == "" {
		name = env.Component
	}
	name = objectName(name)
	return &pubsub{conn: newConn(dial, logger(env)), c: *c, replicas: replicas, stream: "MECHA_" + name, prefix: "mecha.pubsub." + name + ".",
		log: newLogStreams(name), maxRecord: maxRecord}
}

// Ping checks that the server answers and the streams exist or can be made.
func (b *pubsub) Ping(ctx context.Context) error {
	const op fault.Op = "nats.pubsub.Ping"
	p, err := b.conn.acquire(ctx, op)
	if err != nil {
		return err
	}
	if err := b.create(ctx, op, p); err != nil {
		return err
	}
	_, err = b.streams(ctx, op, p)
	return err
}

// Close ends running Consume calls, which give back what is unanswered, then the connection.
func (b *pubsub) Close(ctx context.Context) error {
	const op fault.Op = "nats.pubsub.Close"
	select {
	case <-b.consumers.close():
	case <-ctx.Done():
	}
	return b.conn.closeWithin(ctx, op)
}

// Publish appends the messages in order, pipelined.
func (b *pubsub) Publish(ctx context.Context, msgs []block.Message) []error {
	const op fault.Op = "nats.pubsub.Publish"
	errs := make([]error, len(msgs))
	out := make([]*natsgo.Msg, 0, len(msgs))
	place := make([]int, 0, len(msgs)) // of out in msgs
	for i := range msgs {
		m, err := b.message(op, &msgs[i])
		if err != nil {
			errs[i] = err
			continue
		}
		out, place = append(out, m), append(place, i)
	}
	answers, lost := b.ask(ctx, op, out)
	for j, i := range place {
		if answers == nil || answers[j] == nil {
			errs[i] = lost
			continue
		}
		refused, err := parseAck(op, answers[j])
		if refused != nil {
			err = refusal(op, "topic "+msgs[i].Topic, refused)
		}
		errs[i] = err
	}
	return anyError(errs)
}

// ask sends once the stream exists. If it was removed meanwhile, nobody listens: then the
// stream is made anew and everything from the first unanswered message on is sent again, which
// keeps the order.
func (b *pubsub) ask(ctx context.Context, op fault.Op, msgs []*natsgo.Msg) ([]*natsgo.Msg, error) {
	if len(msgs) == 0 {
		return nil, nil
	}
	p, err := b.conn.acquire(ctx, op)
	if err == nil && !b.made.Load() {
		err = b.create(ctx, op, p)
	}
	if err != nil {
		return nil, err
	}
	answers, err := p.ask(ctx, op, msgs...)
	first := firstNobody(answers)
	if first < 0 {
		return answers, err
	}
	clear(answers[first:])
	if err == nil {
		err = b.create(ctx, op, p)
	}
	if err != nil {
		return answers, err
	}
	again, err := p.ask(ctx, op, msgs[first:]...)
	if firstNobody(again) >= 0 {
		return answers, fault.New(op, fault.Unavailable, "stream %s does not answer", b.stream).WithSent(fault.SentNever)
	}
	copy(answers[first:], again)
	return answers, err
}

func firstNobody(answers []*natsgo.Msg) int {
	for i, m := range answers {
		if m != nil && nobody(m) {
			return i
		}
	}
	return -1
}

func (b *pubsub) message(op fault.Op, m *block.Message) (*natsgo.Msg, error) {
	topic, err := topicToken(op, m.Topic)
	if err != nil {
		return nil, err
	}
	out := &natsgo.Msg{Subject: b.prefix + topic, Data: m.Data}
	if len(m.Metadata) == 0 && m.Key == "" && m.ID == "" {
		return out, nil
	}
	out.Header = make(natsgo.Header, len(m.Metadata)+3)
	setMetadata(out.Header, m.Metadata)
	if m.Key != "" {
		out.Header[headerKey] = []string{headerText(m.Key, false)}
	}
	if m.ID != "" {
		// The server compares ids over the whole stream; the same id on another topic (a dead
		// letter) is another message.
		out.Header[headerMsgID] = []string{shortHash(m.Topic, m.ID)}
		out.Header[headerID] = []string{headerText(m.ID, false)}
	}
	return out, nil
}

// create makes the stream unless it exists. An existing one stays as it is.
func (b *pubsub) create(ctx context.Context, op fault.Op, p *period) error {
	want := jetstream.StreamConfig{
		Name: b.stream, Description: "messages of Mecha", Subjects: []string{b.prefix + "*"},
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, MaxAge: b.c.MaxAge, MaxBytes: b.c.MaxBytes.Int64(),
		Duplicates: b.c.DedupWindow, Storage: jetstream.FileStorage, Replicas: b.replicas,
		AllowDirect: true,
	}
	if _, err := makeStream(ctx, p, want, func(*jetstream.StreamConfig) bool { return true }); err != nil {
		return adminError(op, "stream "+b.stream, err)
	}
	b.made.Store(true)
	return nil
}

// Consume delivers the messages of a topic to a member of a group until ctx ends.
func (b *pubsub) Consume(ctx context.Context, opts block.ConsumeOptions, deliver func(block.Delivery)) error {
	const op fault.Op = "nats.pubsub.Consume"
	if opts.MaxInFlight < 1 {
		return fault.New(op, fault.Invalid, "MaxInFlight is %d, want at least 1", opts.MaxInFlight)
	}
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	topic, err := topicToken(op, opts.Topic)
	if err != nil {
		return err
	}
	closing, done, ok := b.consumers.enter()
	if !ok {
		return closedError(op)
	}
	defer done()
	c := newConsumer(b, op, topic, opts, deliver)
	return c.run(ctx, closing)
}
