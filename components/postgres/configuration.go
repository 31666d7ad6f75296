package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlstate"
)

var _ block.Configuration = (*configuration)(nil)

// ConfigurationConfig configures PostgreSQL as a configuration store.
type ConfigurationConfig struct {
	Conn ConnConfig
	// Table is the table of items, "table" or "schema.table", with the columns key, value, version
	// and metadata (json). It must exist.
	Table string `yaml:"table" required:"true"`
	// NotifyChannel is the channel that a trigger of yours notifies of changes. Without it a
	// subscription must name one, in its metadata pgNotifyChannel.
	NotifyChannel string `yaml:"notifyChannel"`
}

// DefaultConfigurationConfig is the configuration with nothing set.
func DefaultConfigurationConfig() *ConfigurationConfig {
	return &ConfigurationConfig{Conn: defaultConn()}
}

// Validate reports every mistake.
func (c *ConfigurationConfig) Validate() error {
	var errs []error
	if c.Table != "" { // its absence is reported by the decoder
		errs = append(errs, sqlstate.CheckQualified("table", c.Table))
	}
	if c.NotifyChannel != "" && !channelName.MatchString(c.NotifyChannel) {
		errs = append(errs, conf.Bad("notifyChannel", "%q is not a channel; use lower-case letters, digits and _, at most 63", c.NotifyChannel))
	}
	return errors.Join(errs...)
}

var channelName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// NewConfiguration opens a configuration store. It does no I/O: the first use does.
func NewConfiguration(env block.Env, c *ConfigurationConfig) (block.Configuration, error) {
	const op fault.Op = "postgres.NewConfiguration"
	if err := errors.Join(c.Conn.Validate(), c.Validate(), sqlstate.CheckQualified("table", c.Table)); err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	p, err := c.Conn.pool()
	if err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	s := &configuration{table: c.Table, channel: c.NotifyChannel, log: env.Log, recheck: recheck}
	s.open(p, c.Conn.Timeout)
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// configuration reads a table that operators write. Of several rows with one key the one with
// the highest version counts.
type configuration struct {
	server
	table   string
	channel string // may be empty
	log     *slog.Logger
	recheck time.Duration
	life    context.Context // ends at Close
	end     context.CancelFunc
}

// Ping checks that the server answers and the table is there.
func (s *configuration) Ping(ctx context.Context) error {
	return s.ask(ctx, "postgres.configuration.Ping", func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, "SELECT key, value, version, metadata FROM "+s.table+" LIMIT 0")
		return err
	})
}

// Close ends subscriptions and closes all connections.
func (s *configuration) Close(ctx context.Context) error {
	s.end()
	return s.close(ctx, "postgres.configuration.Close")
}

// ask runs a statement about the table.
func (s *configuration) ask(ctx context.Context, op fault.Op, run func(context.Context, *pgx.Conn) error) error {
	return s.do(ctx, op, nil, func(ctx context.Context, c *pgx.Conn) error {
		err := run(ctx, c)
		switch sqlState(err) {
		case "42P01":
			return fault.New(op, fault.Unavailable, "postgreSQL configuration table '%s' does not exist; create it, with the columns key, value, version and metadata", s.table).
				Because(err).WithSent(fault.SentNever)
		case "42703":
			return fault.New(op, fault.Unsupported, "table %s lacks one of the columns key, value, version and metadata", s.table).Because(err).WithSent(fault.SentNever)
		}
		return err
	})
}

// Get reads items; no keys means all.
func (s *configuration) Get(ctx context.Context, keys []string, _ map[string]string) (map[string]block.ConfigItem, error) {
	rows, err := s.read(ctx, "postgres.configuration.Get", keys)
	if err != nil {
		return nil, err
	}
	out := make(map[string]block.ConfigItem, len(rows))
	for k, r := range rows {
		out[k] = r.item()
	}
	return out, nil
}

// row is the row of a key that counts.
type row struct{ value, version, metadata string }

func (r row) item() block.ConfigItem {
	return block.ConfigItem{Value: r.value, Version: r.version, Metadata: parseMetadata(r.metadata)}
}

// parseMetadata reads a JSON object. What is no string in it stays JSON; what is no object is
// left out.
func parseMetadata(text string) map[string]string {
	var fields map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &fields) != nil || fields == nil {
		return nil
	}
	out := make(map[string]string, len(fields))
	for k, raw := range fields {
		var s string
		if json.Unmarshal(raw, &s) != nil {
			s = string(raw)
		}
		out[k] = s
	}
	return out
}

// read reads the rows of keys, or of all keys if there are none.
func (s *configuration) read(ctx context.Context, op fault.Op, keys []string) (map[string]row, error) {
	out := map[string]row{}
	query, args := s.query(keys)
	err := s.ask(ctx, op, func(ctx context.Context, c *pgx.Conn) error {
		clear(out)
		rows, err := c.Query(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var key string
			var r row
			if err := rows.Scan(&key, &r.value, &r.version, &r.metadata); err != nil {
				return err
			}
			out[key] = r
		}
		return rows.Err()
	})
	return out, err
}

func (s *configuration) query(keys []string) (query string, args []any) {
	where := ""
	if len(keys) > 0 {
		where = " WHERE key = ANY($1)"
		args = []any{possible(keys)}
	}
	return `SELECT DISTINCT ON (key) key::text, coalesce(value::text, ''), coalesce(version::text, ''), coalesce(metadata::text, '')
		FROM ` + s.table + where + `
		ORDER BY key, CASE WHEN version::text ~ '^[0-9]+$' THEN version::text::numeric END DESC NULLS LAST, version::text DESC`, args
}

// possible leaves out keys that the database cannot hold: they are not there.
func possible(keys []string) []string {
	out := make([]string, 0, len(keys))
	for _, k := range keys {
		if utf8.ValidString(k) && strings.IndexByte(k, 0) < 0 {
			out = append(out, k)
		}
	}
	return out
}
