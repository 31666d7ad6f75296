package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/mecha-project/mecha/components/fault"
)

// create are Dapr's tables with one difference: a key is bytes, as many as an index takes. In
// Dapr's it is text of 255 characters in whatever collation the server prefers.
var create = []string{
	`CREATE TABLE IF NOT EXISTS {meta} (id VARCHAR(255) NOT NULL PRIMARY KEY, value TEXT NOT NULL) ENGINE=InnoDB`,
	`CREATE TABLE IF NOT EXISTS {state} (
		id VARBINARY(3072) NOT NULL PRIMARY KEY,
		value JSON NOT NULL,
		isbinary BOOLEAN NOT NULL,
		insertDate TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
		updateDate TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
		eTag VARCHAR(36) NOT NULL,
		expiredate TIMESTAMP NULL DEFAULT NULL,
		INDEX expiredate_idx (expiredate)
	) ENGINE=InnoDB ROW_FORMAT=DYNAMIC`,
	createFences,
}

// createFences makes the table of fences, which is ours.
const createFences = `CREATE TABLE IF NOT EXISTS {fences} (
		id VARBINARY(3072) NOT NULL PRIMARY KEY,
		epoch BIGINT UNSIGNED NOT NULL,
		writes BIGINT UNSIGNED NOT NULL
	) ENGINE=InnoDB ROW_FORMAT=DYNAMIC`

// setupFences makes the table of fences in a database whose tables were made without.
func setupFences(ctx context.Context, db *sql.DB, fill func(string) string) error {
	_, err := db.ExecContext(ctx, fill(`SELECT id, epoch, writes FROM {fences} LIMIT 0`))
	if number(err) != errNoTable {
		return err
	}
	if _, err := db.ExecContext(ctx, fill(createFences)); err != nil {
		return fmt.Errorf("make the table of fences: %w", err)
	}
	return nil
}

// setup makes what is missing and checks what is there. Tables that exist stay as they are. lax
// tells that the table of items compares keys as text.
func setup(ctx context.Context, db *sql.DB, log *slog.Logger, c *StateConfig, fill func(string) string) (lax bool, err error) {
	err = probe(ctx, db, fill)
	if n := number(err); n == errNoDatabase || n == errNoTable {
		if err := build(ctx, db, c.SchemaName, fill); err != nil {
			return false, err
		}
		err = probe(ctx, db, fill)
	}
	if number(err) == errNoColumn {
		return false, fault.New("", fault.Unsupported, "table %s.%s lacks a column; tables of Dapr before 1.11 need "+
			"ADD COLUMN expiredate TIMESTAMP NULL, ADD INDEX expiredate_idx (expiredate)", c.SchemaName, c.TableName).
			Because(err).WithSent(fault.SentNever)
	}
	if err != nil {
		return false, err
	}
	return check(ctx, db, log, c)
}

// build makes the database, unless it is there: the user may lack the right. Then the tables.
func build(ctx context.Context, db *sql.DB, schema string, fill func(string) string) error {
	var n int
	if err := db.QueryRowContext(ctx, `SELECT COUNT(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = ?`, schema).Scan(&n); err != nil {
		return err
	}
	statements := create
	if n == 0 {
		statements = append([]string{"CREATE DATABASE IF NOT EXISTS `" + schema + "`"}, create...)
	}
	for _, q := range statements {
		if _, err := db.ExecContext(ctx, fill(q)); err != nil {
			return fmt.Errorf("make the tables in %s: %w", schema, err)
		}
	}
	return nil
}

// probe asks for nothing from the columns that the statements use.
func probe(ctx context.Context, db *sql.DB, fill func(string) string) error {
	for _, q := range []string{`SELECT id, value, isbinary, eTag, expiredate FROM {state} LIMIT 0`, `SELECT id, value FROM {meta} LIMIT 0`} {
		if _, err := db.ExecContext(ctx, fill(q)); err != nil {
			return err
		}
	}
	return nil
}

// check refuses a table without transactions and warns of one that takes keys for each other.
func check(ctx context.Context, db *sql.DB, log *slog.Logger, c *StateConfig) (lax bool, err error) {
	var kind, collation, engine, transactions string
	err = db.QueryRowContext(ctx, `SELECT c.DATA_TYPE, COALESCE(c.COLLATION_NAME, ''), e.ENGINE, COALESCE(e.TRANSACTIONS, '')
		FROM information_schema.COLUMNS c
		JOIN information_schema.TABLES t ON t.TABLE_SCHEMA = c.TABLE_SCHEMA AND t.TABLE_NAME = c.TABLE_NAME
		JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE
		WHERE c.TABLE_SCHEMA = ? AND c.TABLE_NAME = ? AND c.COLUMN_NAME = 'id'`, c.SchemaName, c.TableName).
		Scan(&kind, &collation, &engine, &transactions)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return true, nil // a view, or a server that shows nothing: it works or its errors tell
	case err != nil:
		return false, err
	case transactions == "NO":
		return false, fault.New("", fault.Unsupported, "table %s.%s is kept by the engine %s, which has no transactions; use InnoDB", c.SchemaName, c.TableName, engine).
			WithSent(fault.SentNever)
	case !strings.HasSuffix(strings.ToLower(kind), "binary"):
		log.Warn("the table takes some keys for the same, by its collation; the second of two such keys is refused",
			"table", c.SchemaName+"."+c.TableName, "collation", collation)
		return true, nil
	}
	return false, nil
}

// number is the server's number of an error, or 0.
func number(err error) uint16 {
	if e, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return e.Number
	}
	return 0
}
