package memory

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// PubSubConfig configures the broker. All limits hold per topic.
type PubSubConfig struct {
	// MaxMessages bounds the messages a topic keeps for groups that have not consumed them.
	// Publishing beyond it is refused with "exhausted". Default 65536.
	MaxMessages int `yaml:"maxMessages"`
	// MaxBytes bounds their size together. Default 64Mi.
	MaxBytes conf.ByteSize `yaml:"maxBytes"`
	// History is how many of the last messages stay although every group is done with them,
	// so that a group which starts late sees them. Default 1024.
	History int `yaml:"history"`
	// Partitions is how many partitions a topic gets that nobody has used yet: 1 to 1024. More let
	// more members of a group work at once. Default 32.
	Partitions int `yaml:"partitions"`
	// SessionTTL is after what silence a member of a group counts as dead and its partitions go to
	// others. At least 1 s; default 6 s.
	SessionTTL time.Duration `yaml:"sessionTTL" unit:"s"`
}

// DefaultPubSubConfig returns the defaults.
func DefaultPubSubConfig() *PubSubConfig {
	return &PubSubConfig{MaxMessages: 1 << 16, MaxBytes: 64 * conf.MiB, History: 1024, Partitions: 32, SessionTTL: 6 * time.Second}
}

// Validate reports what cannot work.
func (c *PubSubConfig) Validate() error {
	var errs []error
	if c.MaxMessages < 1 {
		errs = append(errs, conf.Bad("maxMessages", "must be at least 1"))
	}
	if c.MaxBytes < 1 {
		errs = append(errs, conf.Bad("maxBytes", "must be at least 1"))
	}
	if c.History < 0 {
		errs = append(errs, conf.Bad("history", "must not be negative"))
	}
	if c.Partitions < 1 || c.Partitions > 1024 {
		errs = append(errs, conf.Bad("partitions", "must be 1 to 1024"))
	}
	if c.SessionTTL < time.Second {
		errs = append(errs, conf.Bad("sessionTTL", "must be at least 1s"))
	}
	return errors.Join(errs...)
}

var _ block.PubSub = (*PubSub)(nil)

// PubSub is one component's access to a Hub.
type PubSub struct {
	hub    *Hub
	closed chan struct{}
	once   sync.Once
}

// NewPubSub opens a broker of its own.
func NewPubSub(_ block.Env, c *PubSubConfig) (block.PubSub, error) {
	return NewHub(c).PubSub(), nil
}

// PubSub opens a component on the hub. Closing it leaves the hub and its messages alone.
func (h *Hub) PubSub() *PubSub {
	h.logs.joined()
	return &PubSub{hub: h, closed: make(chan struct{})}
}

// Closed implements block.Log.
func (p *PubSub) Closed() <-chan struct{} { return p.closed }

// Ping succeeds until Close.
func (p *PubSub) Ping(ctx context.Context) error { return p.usable("memory.pubsub.Ping", ctx) }

// Close ends readers and watches. It does not wait for them.
func (p *PubSub) Close(context.Context) error {
	p.once.Do(func() {
		close(p.closed)
		p.hub.logs.left()
	})
	return nil
}

func (p *PubSub) usable(op fault.Op, ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	select {
	case <-p.closed:
		return fault.New(op, fault.Unavailable, "the in-memory broker is closed").WithSent(fault.SentNever)
	default:
		return nil
	}
}
