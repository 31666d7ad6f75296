package postgres

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlstate"
)

var (
	_ block.State      = (*state)(nil)
	_ block.StateBatch = (*state)(nil)
	_ block.StateTx    = (*state)(nil)
	_ block.StateTTL   = (*state)(nil)
)

// state is a table with a row per key.
type state struct {
	layout  *layout
	pool    *pool
	timeout time.Duration
	every   time.Duration // between cleanings
	where   string        // the database, for messages
	gate    sqlstate.Gate // open once the tables are there
	cleaner sqlstate.Cleaner
	closed  atomic.Bool
}

// ExpiresItems marks expiry.
func (s *state) ExpiresItems() {}

// MaxOps is 0: the database sets no limit.
func (s *state) MaxOps() int { return 0 }

// Ping checks that the server answers and the tables are there or can be made.
func (s *state) Ping(ctx context.Context) error {
	return s.do(ctx, "postgres.state.Ping", func(ctx context.Context, c *pgx.Conn) error { return c.Ping(ctx) })
}

// Close ends the cleaning and closes all connections.
func (s *state) Close(ctx context.Context) error {
	if s.closed.Swap(true) {
		return nil
	}
	s.cleaner.Stop(ctx)
	if err := s.pool.close(ctx); err != nil {
		return sqlstate.Ended("postgres.state.Close", err, fault.SentUnknown)
	}
	return nil
}

// do runs one operation on a connection, within timeout, with the tables made, and puts its
// failure into the house's words.
func (s *state) do(ctx context.Context, op fault.Op, run func(context.Context, *pgx.Conn) error) error {
	if err := ctx.Err(); err != nil {
		return sqlstate.Ended(op, err, fault.SentNever)
	}
	if s.closed.Load() {
		return sqlstate.Closed(op)
	}
	limited, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	c, err := s.pool.get(limited)
	if err != nil {
		return s.failed(ctx, limited, op, err, fault.SentNever)
	}
	defer s.pool.put(c)
	if err := s.gate.Pass(limited, func(ctx context.Context) error { return s.layout.setup(ctx, c.Conn) }); err != nil {
		return s.failed(ctx, limited, op, err, fault.SentNever)
	}
	s.cleaner.Start()
	err = run(limited, c.Conn)
	if sqlState(err) == "42P01" {
		s.gate.Shut() // somebody dropped the table; the next call makes it anew
	}
	return s.failed(ctx, limited, op, err, fault.SentMaybe)
}

// failed puts an error into the house's words. sent is how far the operation may have got when
// nobody knows better.
func (s *state) failed(ctx, limited context.Context, op fault.Op, err error, sent fault.Sent) error {
	if err == nil {
		return nil
	}
	if known, ok := errors.AsType[*fault.Error](err); ok {
		known.Op = op
		return err
	}
	if pgconn.SafeToRetry(err) {
		sent = fault.SentNever
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return s.explain(op, e)
	}
	switch {
	case errors.Is(err, errClosed):
		return sqlstate.Closed(op)
	case sqlstate.Over(ctx) != nil:
		return sqlstate.Ended(op, sqlstate.Over(ctx), sent)
	case sqlstate.Over(limited) != nil:
		return fault.New(op, fault.Unavailable, "%s did not answer within %v", s.where, s.timeout).Because(err).WithSent(sent)
	}
	return fault.New(op, fault.Unavailable, "%s cannot be reached; is the server up?", s.where).Because(err).WithSent(sent)
}

// explain puts the server's refusal into the house's words. A statement that was refused did
// nothing.
func (s *state) explain(op fault.Op, e *pgconn.PgError) error {
	say := func(code fault.Code, hint string) error {
		return fault.New(op, code, "%s refuses%s", s.where, hint).Because(e).WithSent(fault.SentNever)
	}
	switch e.Code {
	case "40001", "40P01", "55P03":
		return say(fault.Unavailable, ", for others write the same rows; try again")
	case "42501", "28000", "28P01":
		return say(fault.Denied, "; check user and password, and what the role may do")
	case "42703":
		return say(fault.Unsupported, "; is the table one of another version (v1, v2)?")
	case "54000":
		return say(fault.TooLarge, "; keys can be about 2700 bytes")
	case "57P01", "57P02":
		// The server goes down. It may have carried out the statement before it said so.
		return fault.New(op, fault.Unavailable, "%s is shutting down", s.where).Because(e).WithSent(fault.SentMaybe)
	}
	switch e.Code[:min(2, len(e.Code))] {
	case "22":
		return say(fault.Invalid, " the data")
	case "53":
		if e.Code == "53300" {
			return say(fault.Unavailable, ", for it has too many connections; lower maxConns")
		}
		return say(fault.Exhausted, "; is its disk full?")
	}
	return say(fault.Unavailable, "")
}

// Get reads one key.
func (s *state) Get(ctx context.Context, key string, _ block.StateRead) (block.StateItem, error) {
	const op fault.Op = "postgres.state.Get"
	item := block.StateItem{Key: key}
	if err := sqlstate.CheckKey(op, key); err != nil {
		return item, err
	}
	err := s.do(ctx, op, func(ctx context.Context, c *pgx.Conn) error {
		found, err := s.scan(op, c.QueryRow(ctx, s.layout.get, key))
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err == nil {
			item = found
		}
		return err
	})
	return item, err
}

// GetMany reads several keys with one statement, at one moment.
func (s *state) GetMany(ctx context.Context, keys []string, _ block.StateRead) ([]block.StateItem, error) {
	const op fault.Op = "postgres.state.GetMany"
	for _, k := range keys {
		if err := sqlstate.CheckKey(op, k); err != nil {
			return nil, err
		}
	}
	found := make(map[string]block.StateItem, len(keys))
	if len(keys) == 0 {
		return nil, nil
	}
	err := s.do(ctx, op, func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, s.layout.getMany, keys)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			item, err := s.scan(op, rows)
			if err != nil {
				return err
			}
			found[item.Key] = item
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	return sqlstate.Arrange(keys, found), nil
}

func (s *state) scan(op fault.Op, row pgx.Row) (block.StateItem, error) {
	item := block.StateItem{Exists: true}
	var raw []byte
	var binary bool
	var end pgtype.Timestamptz
	if err := row.Scan(&item.Key, &raw, &binary, &item.ETag, &end); err != nil {
		return block.StateItem{}, err
	}
	if end.Valid && end.InfinityModifier == pgtype.Finite {
		item.Expires = end.Time
	}
	var err error
	if item.Value, err = s.layout.decode(raw, binary); err != nil {
		return block.StateItem{}, fault.New(op, fault.Lost, "the stored value of key %q cannot be read", item.Key).Because(err)
	}
	return item, nil
}

// claim takes a round of cleaning, by Dapr's mark: all who share the table look at it.
func (s *state) claim(ctx context.Context) (mine bool, err error) {
	// A little less than the interval: two ticks of one clock may come a moment closer.
	every := s.every.Milliseconds() - 100
	err = s.do(ctx, "postgres.state.clean", func(ctx context.Context, c *pgx.Conn) error {
		tag, err := c.Exec(ctx, s.layout.claim, every)
		mine = tag.RowsAffected() > 0
		return err
	})
	return mine, err
}

func (s *state) remove(ctx context.Context, limit int) (n int64, err error) {
	err = s.do(ctx, "postgres.state.clean", func(ctx context.Context, c *pgx.Conn) error {
		tag, err := c.Exec(ctx, s.layout.clean, int64(limit))
		n = tag.RowsAffected()
		return err
	})
	return n, err
}
