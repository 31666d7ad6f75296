package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// statements are the registry's SQL with its table names filled in. Names were validated
// as identifiers. Times are whole seconds of the database's clock, as Dapr stores them.
type statements struct {
	create  []string
	version string // reads the version of the tables
	probe   string // fails while our own table is missing
	record  string // writes it

	resolve, register, describe, renew, holder string
	deregister, forget, claimCleanup, cleanup  string
}

const (
	versionKey = "nr-migrations"
	cleanupKey = "nr-last-cleanup"
	// tablesVersion is the version of Dapr's tables we know.
	tablesVersion = 1
)

func newStatements(hosts, meta string, live time.Duration) statements {
	fill := strings.NewReplacer(
		"{hosts}", hosts, "{meta}", meta, "{details}", hosts+"_mecha",
		"{live}", strconv.Itoa(int(live.Seconds())),
		// Well after the end: a row that is merely late must find itself again.
		"{dead}", strconv.Itoa(max(60, 10*int(live.Seconds()))),
		"{version}", versionKey, "{cleaned}", cleanupKey, "{now}", "unixepoch()",
	).Replace
	return statements{
		create: []string{
			fill(`CREATE TABLE IF NOT EXISTS "{meta}" (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL)`),
			fill(`CREATE TABLE IF NOT EXISTS "{hosts}" (registration_id TEXT NOT NULL PRIMARY KEY, address TEXT NOT NULL,
				app_id TEXT NOT NULL, namespace TEXT NOT NULL, last_update INTEGER NOT NULL)`),
			fill(`CREATE UNIQUE INDEX IF NOT EXISTS "{hosts}_address_idx" ON "{hosts}" (address)`),
			fill(`CREATE INDEX IF NOT EXISTS "{hosts}_last_update_idx" ON "{hosts}" (last_update)`),
			fill(`CREATE TABLE IF NOT EXISTS "{details}" (registration_id TEXT NOT NULL PRIMARY KEY, details TEXT NOT NULL)`),
		},
		version: fill(`SELECT value FROM "{meta}" WHERE key = '{version}'`),
		probe:   fill(`SELECT count(*) FROM (SELECT 1 FROM "{details}" LIMIT 1)`),
		record:  fill(`INSERT INTO "{meta}" (key, value) VALUES ('{version}', ?)`),
		// A row without details is one of Dapr's, which leaves the namespace empty and does
		// not look at it: it answers in every namespace.
		resolve: fill(`SELECT h.registration_id, h.address, d.details FROM "{hosts}" h
			LEFT JOIN "{details}" d ON d.registration_id = h.registration_id
			WHERE h.app_id = ?1 AND (h.namespace = ?2 OR (h.namespace = '' AND d.registration_id IS NULL))
			AND {now} - h.last_update < {live} ORDER BY h.registration_id`),
		register:   fill(`REPLACE INTO "{hosts}" (registration_id, address, app_id, namespace, last_update) VALUES (?, ?, ?, ?, {now})`),
		describe:   fill(`REPLACE INTO "{details}" (registration_id, details) VALUES (?, ?)`),
		renew:      fill(`UPDATE "{hosts}" SET last_update = {now} WHERE registration_id = ? AND address = ?`),
		holder:     fill(`SELECT registration_id FROM "{hosts}" WHERE address = ? AND {now} - last_update < {live}`),
		deregister: fill(`DELETE FROM "{hosts}" WHERE registration_id = ? AND address = ?`),
		forget: fill(`DELETE FROM "{details}" WHERE registration_id = ?1
			AND NOT EXISTS (SELECT 1 FROM "{hosts}" WHERE registration_id = ?1 AND address <> ?2)`),
		claimCleanup: fill(`INSERT INTO "{meta}" (key, value) VALUES ('{cleaned}', CURRENT_TIMESTAMP)
			ON CONFLICT (key) DO UPDATE SET value = CURRENT_TIMESTAMP WHERE {now} - unixepoch(value) >= ?`),
		cleanup: fill(`DELETE FROM "{hosts}" WHERE {now} - last_update >= {dead};
			DELETE FROM "{details}" WHERE registration_id NOT IN (SELECT registration_id FROM "{hosts}")`),
	}
}

// ensure makes the tables that are missing. The usual case, all there, takes no write lock:
// sidecars that start together would wait for each other.
func (s statements) ensure(ctx context.Context, db *sql.DB) error {
	var version string
	var n int
	if db.QueryRowContext(ctx, s.version).Scan(&version) == nil && db.QueryRowContext(ctx, s.probe).Scan(&n) == nil {
		return checkVersion(version)
	}
	return inTx(ctx, db, func(tx *sql.Tx) error { return s.createTables(ctx, tx) })
}

// createTables makes what is missing and records the version, so that one of Dapr's
// sidecars coming later takes the tables for its own.
func (s statements) createTables(ctx context.Context, tx *sql.Tx) error {
	for _, q := range s.create {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("create the registry's tables: %w", err)
		}
	}
	var version string
	switch err := tx.QueryRowContext(ctx, s.version).Scan(&version); {
	case errors.Is(err, sql.ErrNoRows):
		_, err := tx.ExecContext(ctx, s.record, strconv.Itoa(tablesVersion))
		return err
	case err != nil:
		return err
	}
	return checkVersion(version)
}

func checkVersion(version string) error {
	if n, err := strconv.Atoi(version); err != nil || n > tablesVersion {
		return fault.New("sqlite.registry.tables", fault.Unsupported,
			"the registry's tables have version %q and this version of mecha knows %d; use another file or metadataTableName",
			version, tablesVersion)
	}
	return nil
}

// inTx runs a write transaction: all of run or nothing.
func inTx(ctx context.Context, db *sql.DB, run func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := run(tx); err != nil {
		if back := tx.Rollback(); !errors.Is(back, sql.ErrTxDone) { // done: the context ended it
			err = errors.Join(err, back)
		}
		return err
	}
	return tx.Commit()
}
