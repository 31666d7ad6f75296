package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mecha-project/mecha/components/fault"
)

// setup makes missing tables as Dapr's sidecars do: under the lock of a row in the metadata
// table, noting the version of what was made. When all is there it writes nothing, so a role
// that may not create tables is enough for tables made beforehand.
func (l *layout) setup(ctx context.Context, c *pgx.Conn) error {
	if level, err := l.readLevel(ctx, c); err == nil && level > 0 {
		if _, err := c.Exec(ctx, l.probe); err == nil {
			return nil
		}
	} else if !missing(err) {
		return err
	}
	// Two who create one table at once collide in the catalog; the second finds it afterwards.
	_, err := c.Exec(ctx, `CREATE TABLE IF NOT EXISTS `+l.meta+` (key text NOT NULL PRIMARY KEY, value text NOT NULL)`)
	if err != nil && !collision(err) {
		return fmt.Errorf("create table %s: %w", l.meta, err)
	}
	if _, err := c.Exec(ctx, `INSERT INTO `+l.meta+` (key, value) VALUES ('lock', 'lock') ON CONFLICT (key) DO NOTHING`); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT value FROM `+l.meta+` WHERE key = 'lock' FOR UPDATE`); err != nil {
			return err
		}
		return l.migrate(ctx, tx)
	})
}

// setupFences makes the table of fences in a database whose tables were made without.
func (l *layout) setupFences(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, l.probeFences)
	if err == nil || !missing(err) {
		return err
	}
	if _, err := c.Exec(ctx, l.createFences); err != nil && !collision(err) {
		return fmt.Errorf("create the table of fences: %w", err)
	}
	return nil
}

// migrate runs under the lock. A table that is there is left as it is: what Dapr's versions
// add to it later is none we need.
func (l *layout) migrate(ctx context.Context, tx pgx.Tx) error {
	there := false
	err := pgx.BeginFunc(ctx, tx, func(inner pgx.Tx) error { // a savepoint, for the probe may fail
		_, err := inner.Exec(ctx, l.probe)
		there = err == nil
		return err
	})
	if err != nil && !missing(err) {
		return err
	}
	if !there {
		for _, q := range l.create {
			if _, err := tx.Exec(ctx, q); err != nil {
				return fmt.Errorf("create the tables: %w", err)
			}
		}
	}
	level := l.level
	if there {
		level = l.least
	}
	_, err = tx.Exec(ctx, `INSERT INTO `+l.meta+` AS m (key, value) VALUES ($1, $2)
		ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE m.value::int < excluded.value::int`, l.mark, strconv.Itoa(level))
	return err
}

// readLevel is the version noted in the metadata table; 0 when there is none.
func (l *layout) readLevel(ctx context.Context, c *pgx.Conn) (int, error) {
	var text string
	err := c.QueryRow(ctx, `SELECT value FROM `+l.meta+` WHERE key = $1`, l.mark).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	level, err := strconv.Atoi(text)
	if err != nil || level < 0 {
		return 0, fault.New("", fault.Unsupported, "table %s notes version %q for the tables, want a number; use another metadataTableName", l.meta, text).
			WithSent(fault.SentNever)
	}
	return level, nil
}

// missing tells that a table, a column or a schema is not there (or that there is no error).
func missing(err error) bool {
	switch sqlState(err) {
	case "42P01", "42703", "3F000":
		return true
	}
	return err == nil
}

func collision(err error) bool {
	switch sqlState(err) {
	case "23505", "42P07", "42710":
		return true
	}
	return false
}

func sqlState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}
