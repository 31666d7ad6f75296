package redis

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var _ block.Configuration = (*configuration)(nil)

// ConfigurationConfig configures Redis as a configuration store.
type ConfigurationConfig struct {
	Conn ConnConfig
}

// DefaultConfigurationConfig returns the defaults.
func DefaultConfigurationConfig() *ConfigurationConfig {
	c := defaultConn()
	c.MinRetryInterval, c.MaxRetryInterval = 8*time.Millisecond, 2*time.Second
	return &ConfigurationConfig{Conn: c}
}

// Validate reports what cannot work.
func (c *ConfigurationConfig) Validate() error {
	return refuseCluster(&c.Conn, "configuration.redis")
}

// NewConfiguration opens a configuration store.
func NewConfiguration(env block.Env, c *ConfigurationConfig) (block.Configuration, error) {
	n, err := newConn(c.Conn)
	if err != nil {
		return nil, err
	}
	s := &configuration{conn: n, log: env.Log, recheck: recheck}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// configuration reads keys that hold strings, as operators write them: "value", or
// "value||version". Keys that hold something else are no items.
type configuration struct {
	conn    *conn
	log     *slog.Logger
	recheck time.Duration
	life    context.Context // ends at Close
	end     context.CancelFunc
}

// Ping checks that the server answers.
func (s *configuration) Ping(ctx context.Context) error {
	return s.conn.ping(ctx, "redis.configuration.Ping")
}

// Close ends subscriptions and connections.
func (s *configuration) Close(ctx context.Context) error {
	s.end()
	return s.conn.close(ctx, "redis.configuration.Close")
}

// Get reads items; no keys means all.
func (s *configuration) Get(ctx context.Context, keys []string, _ map[string]string) (map[string]block.ConfigItem, error) {
	const op fault.Op = "redis.configuration.Get"
	out := map[string]block.ConfigItem{}
	note := func(key, stored string) { out[key] = parseItem(stored) }
	var err error
	if len(keys) == 0 {
		_, err = s.all(ctx, op, note)
	} else {
		err = s.read(ctx, op, keys, note)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// parseItem takes what is stored apart; what follows a second "||" is nobody's.
func parseItem(stored string) block.ConfigItem {
	value, rest, _ := strings.Cut(stored, "||")
	version, _, _ := strings.Cut(rest, "||")
	return block.ConfigItem{Value: value, Version: version}
}

// page is how many keys are asked for at once.
const page = 500

// read tells note what keys hold, of those that hold something.
func (s *configuration) read(ctx context.Context, op fault.Op, keys []string, note func(key, stored string)) error {
	for len(keys) > 0 {
		n := min(len(keys), page)
		if err := s.readPage(ctx, op, keys[:n], note); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

func (s *configuration) readPage(ctx context.Context, op fault.Op, keys []string, note func(key, stored string)) error {
	// MGET gives nothing for what is no string, and nothing at all for no keys.
	more := make([]any, len(keys)-1)
	for i, k := range keys[1:] {
		more[i] = strings.Clone(k)
	}
	cmd := newCommand(s.conn.repeat(), 1, "mget", strings.Clone(keys[0]), more...)
	if err := s.conn.one(ctx, op, cmd); err != nil {
		return err
	}
	values, ok := cmd.Val().([]any)
	if !ok || len(values) != len(keys) {
		return fault.New(op, fault.Internal, "%s answers %.100v to a read of %d keys", s.conn.where(), cmd.Val(), len(keys))
	}
	for i, v := range values {
		if stored, is := v.(string); is {
			note(keys[i], stored)
		}
	}
	return nil
}

// all tells note every item, of a key perhaps twice, and counts the keys of the database. The
// server is not kept from other work.
func (s *configuration) all(ctx context.Context, op fault.Op, note func(key, stored string)) (size int, err error) {
	for cursor := "0"; ; {
		cmd := newCommand(s.conn.repeat(), 0, "scan", cursor, "count", page)
		if err := s.conn.one(ctx, op, cmd); err != nil {
			return 0, err
		}
		answer, ok := cmd.Val().([]any)
		if !ok || len(answer) != 2 {
			return 0, fault.New(op, fault.Internal, "%s answers %.100v to a scan of its keys", s.conn.where(), cmd.Val())
		}
		listed, _ := answer[1].([]any)
		var keys []string
		for _, k := range listed {
			if key, is := k.(string); is {
				keys = append(keys, key)
			}
		}
		size += len(keys)
		if err := s.read(ctx, op, keys, note); err != nil {
			return 0, err
		}
		if cursor, _ = answer[0].(string); cursor == "0" || cursor == "" {
			return size, nil
		}
	}
}
