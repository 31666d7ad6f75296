package postgres

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
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
	_ block.StateScan  = (*state)(nil)
	_ block.StateFence = (*state)(nil)
)

// state is a table with a row per key.
type state struct {
	server
	layout  *layout
	every   time.Duration // between cleanings
	gate    sqlstate.Gate // open once the tables are there
	fences  sqlstate.Gate // open once the table of fences is there
	cleaner sqlstate.Cleaner
	pager   sqlstate.Pager
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
	return s.server.close(ctx, "postgres.state.Close")
}

// do runs one operation on a connection, with the tables made.
func (s *state) do(ctx context.Context, op fault.Op, run func(context.Context, *pgx.Conn) error) error {
	ready := func(ctx context.Context, c *pgx.Conn) error {
		return s.gate.Pass(ctx, func(ctx context.Context) error { return s.layout.setup(ctx, c) })
	}
	return s.server.do(ctx, op, ready, func(ctx context.Context, c *pgx.Conn) error {
		s.cleaner.Start()
		err := run(ctx, c)
		if sqlState(err) == "42P01" {
			s.gate.Shut() // somebody dropped a table; the next call makes it anew
			s.fences.Shut()
		}
		return err
	})
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
			if item.Err = err; err != nil && fault.Of(err) != fault.Lost {
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

// Scan gives items in the order of the bytes of their keys.
func (s *state) Scan(ctx context.Context, prefix, token string, limit int, keysOnly bool) ([]block.StateItem, string, error) {
	const op fault.Op = "postgres.state.Scan"
	page, err := s.pager.Page(op, prefix, token, limit, keysOnly)
	if err != nil {
		return nil, "", err
	}
	statement := s.layout.scan
	if keysOnly {
		statement = s.layout.scanKeys
	}
	statement += page.Where(scanKey, func(n int) string { return "$" + strconv.Itoa(n) })
	var items []block.StateItem
	early := false
	err = s.do(ctx, op, func(ctx context.Context, c *pgx.Conn) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		rows, err := c.Query(ctx, statement, page.Args()...)
		if err != nil {
			return err
		}
		defer rows.Close()
		items, early, err = page.Fill(rows.Next, func() (block.StateItem, error) { return s.scan(op, rows) })
		switch {
		case err != nil:
			return err
		case early:
			cancel()
			return nil
		}
		rows.Close()
		return rows.Err()
	})
	if err != nil {
		return nil, "", err
	}
	return items, page.Token(prefix, items, early), nil
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
		return block.StateItem{Key: item.Key}, fault.New(op, fault.Lost, "the stored value of key %q cannot be read", item.Key).Because(err)
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
