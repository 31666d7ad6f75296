package redis

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
)

// StateConfig configures Redis as a state store.
type StateConfig struct {
	Conn ConnConfig
	// TTL is the time to live of items written without one, also by "-1". 0 and -1 mean for ever.
	TTL time.Duration `yaml:"ttlInSeconds" unit:"s"`
	// QueryIndexes has no effect: queries are not offered.
	QueryIndexes string `yaml:"queryIndexes"`
}

// DefaultStateConfig returns the defaults.
func DefaultStateConfig() *StateConfig { return &StateConfig{Conn: defaultConn()} }

// Validate reports what cannot work.
func (c *StateConfig) Validate() error {
	if c.TTL < 0 && c.TTL != -time.Second {
		return conf.Bad("ttlInSeconds", "must be -1 or more")
	}
	return nil
}

// NewState opens a state store.
func NewState(_ block.Env, c *StateConfig) (block.State, error) {
	n, err := newConn(c.Conn)
	if err != nil {
		return nil, err
	}
	s := &state{conn: n, ttl: max(c.TTL, 0), recheck: recheck, silence: recheck}
	s.alive, s.end = context.WithCancel(context.Background())
	return s, nil
}
