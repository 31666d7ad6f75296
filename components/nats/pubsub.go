package nats

import (
	"context"
	"errors"
	"time"

	natsgo "github.com/nats-io/nats.go"

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
}

func defaultLog() LogConfig {
	return LogConfig{MaxAge: 7 * 24 * time.Hour, MaxBytes: conf.GiB, DedupWindow: 2 * time.Minute, Partitions: 32, SessionTTL: 6 * time.Second}
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

// pubsub is a log, see log.go.
type pubsub struct {
	conn      *conn
	c         LogConfig
	replicas  int
	log       *logStreams
	maxRecord int // bytes; 0: the server decides

	watches tally // running calls of LedgerWatch
}

// Closed implements block.Log.
func (b *pubsub) Closed() <-chan struct{} { return b.conn.life.Done() }

// headerMsgID is the server's de-duplication header.
const headerMsgID = "Nats-Msg-Id"

func newPubSub(env block.Env, c *LogConfig, replicas, maxRecord int, dial dialer) *pubsub {
	name := c.Stream
	if name == "" {
		name = env.Component
	}
	name = objectName(name)
	return &pubsub{conn: newConn(dial, logger(env)), c: *c, replicas: replicas, log: newLogStreams(name), maxRecord: maxRecord}
}

// Ping checks that the server answers and the streams exist or can be made.
func (b *pubsub) Ping(ctx context.Context) error {
	const op fault.Op = "nats.pubsub.Ping"
	p, err := b.conn.acquire(ctx, op)
	if err != nil {
		return err
	}
	_, err = b.streams(ctx, op, p)
	return err
}

// Close ends watches and readers, then the connection.
func (b *pubsub) Close(ctx context.Context) error {
	const op fault.Op = "nats.pubsub.Close"
	select {
	case <-b.watches.close():
	case <-ctx.Done():
	}
	return b.conn.closeWithin(ctx, op)
}

func firstNobody(answers []*natsgo.Msg) int {
	for i, m := range answers {
		if m != nil && nobody(m) {
			return i
		}
	}
	return -1
}
