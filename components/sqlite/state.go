package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlstate"
)

// StateConfig configures SQLite as a state store. Names and defaults are Dapr's.
type StateConfig struct {
	// ConnectionString is the database file: a path, or a "file:" address with SQLite's options.
	// ":memory:" is a database of this sidecar alone, lost on exit.
	ConnectionString string `yaml:"connectionString" alias:"url" required:"true"`
	// TableName is the table of items.
	TableName string `yaml:"tableName"`
	// MetadataTableName is the table that records the version of the tables and the last cleaning.
	MetadataTableName string `yaml:"metadataTableName"`
	// CleanupInterval is how often expired rows are removed; they are never shown. 0 means never.
	CleanupInterval time.Duration `yaml:"cleanupInterval" alias:"cleanupIntervalInSeconds" unit:"s"`
	// Timeout bounds one operation; at least 1s.
	Timeout time.Duration `yaml:"timeout" alias:"timeoutInSeconds" unit:"s"`
	// BusyTimeout is how long an operation waits for another process's lock.
	BusyTimeout time.Duration `yaml:"busyTimeout" unit:"s"`
	// DisableWAL keeps the rollback journal instead of the write-ahead log: slower, but it works
	// on network file systems.
	DisableWAL bool `yaml:"disableWAL"`
}

// DefaultStateConfig is the configuration with nothing set.
func DefaultStateConfig() *StateConfig {
	return &StateConfig{TableName: "state", MetadataTableName: "metadata", Timeout: 20 * time.Second, BusyTimeout: 2 * time.Second}
}

// Validate reports every mistake. A missing connection string is the decoder's to report.
func (c *StateConfig) Validate() error {
	errs := []error{sqlstate.CheckName("tableName", c.TableName), sqlstate.CheckName("metadataTableName", c.MetadataTableName)}
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if c.ConnectionString != "" {
		if _, err := dsn(c.ConnectionString, 0, false, true); err != nil {
			bad("connectionString", "%v", err)
		}
	}
	if c.TableName == c.MetadataTableName {
		bad("metadataTableName", "%q is the table of items already", c.MetadataTableName)
	}
	if c.Timeout < time.Second {
		bad("timeout", "%v is too short; want 1s or more", c.Timeout)
	}
	if c.BusyTimeout < 0 {
		bad("busyTimeout", "%v is negative", c.BusyTimeout)
	}
	return errors.Join(errs...)
}

// NewState opens the store. It touches no file: the first use does.
func NewState(env block.Env, c *StateConfig) (block.State, error) {
	if err := c.Validate(); err != nil {
		return nil, fault.Wrap("sqlite.NewState", fault.Invalid, err)
	}
	if c.CleanupInterval > 0 && c.CleanupInterval < time.Second {
		env.Log.Warn("cleanupInterval is shorter than the mark's whole seconds; once a second is meant", "cleanupInterval", c.CleanupInterval)
		c.CleanupInterval = time.Second
	}
	return sqlstate.New(stateDialect(c), sqlstate.Options{Timeout: c.Timeout, Cleanup: c.CleanupInterval, Log: env.Log}), nil
}

// busyStep is the library's own wait for a lock. It does not hear a context end, so it is
// short, and the store asks again.
const busyStep = 20 * time.Millisecond

// stateDialect is Dapr's table: key, value as text, is_binary for base64, etag, and times as
// text in whole seconds.
func stateDialect(c *StateConfig) sqlstate.Dialect {
	fill := strings.NewReplacer("{state}", `"`+c.TableName+`"`, "{meta}", `"`+c.MetadataTableName+`"`,
		"{fences}", `"`+sqlstate.Beside(c.TableName, "_fences")+`"`,
		"{live}", "(expiration_time IS NULL OR expiration_time > CURRENT_TIMESTAMP)").Replace
	const set = `value = excluded.value, is_binary = excluded.is_binary, etag = excluded.etag,
		expiration_time = excluded.expiration_time, update_time = CURRENT_TIMESTAMP`
	put := fill(`INSERT INTO {state} (key, value, is_binary, etag, expiration_time) VALUES `)
	return sqlstate.Dialect{
		Name: "sqlite.state", Where: "the database " + c.ConnectionString,
		Open: func() (*sql.DB, error) {
			return openDB(c.ConnectionString, min(busyStep, c.BusyTimeout), !c.DisableWAL, true)
		},
		Setup: func(ctx context.Context, db *sql.DB) error { return setupState(ctx, db, fill, c.MetadataTableName) },
		Get:   fill(`SELECT key, value, is_binary, etag, unixepoch(expiration_time) FROM {state} WHERE {live} AND key IN `),
		// The column's collation compares bytes.
		Scan:     fill(`SELECT key, value, is_binary, etag, unixepoch(expiration_time) FROM {state} WHERE {live} AND `),
		ScanKeys: fill(`SELECT key, '', false, etag, unixepoch(expiration_time) FROM {state} WHERE {live} AND `),
		ScanKey:  func() string { return "key" },
		Put:      put, Row: "(?, ?, ?, ?, ?)", PutEnd: ` ON CONFLICT (key) DO UPDATE SET ` + set,
		First: put + `(?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET ` + set + ` WHERE expiration_time <= CURRENT_TIMESTAMP`,
		Update: fill(`UPDATE {state} SET value = ?, is_binary = ?, etag = ?, expiration_time = ?, update_time = CURRENT_TIMESTAMP
			WHERE key = ? AND etag = ? AND {live}`),
		Delete:      fill(`DELETE FROM {state} WHERE key = ?`),
		DeleteIf:    fill(`DELETE FROM {state} WHERE key = ? AND etag = ? AND {live}`),
		SetupFences: func(ctx context.Context, db *sql.DB) error { return setupFences(ctx, db, fill) },
		Fence: fill(`INSERT INTO {fences} AS f (key, epoch) VALUES (?, ?)
			ON CONFLICT (key) DO UPDATE SET epoch = excluded.epoch WHERE f.epoch <= excluded.epoch`),
		Claim: fill(`INSERT INTO {meta} (key, value) VALUES ('last-cleanup', CURRENT_TIMESTAMP)
			ON CONFLICT (key) DO UPDATE SET value = CURRENT_TIMESTAMP WHERE (unixepoch() - unixepoch(value)) * 1000 > ?`),
		Clean:  fill(`DELETE FROM {state} WHERE key IN (SELECT key FROM {state} WHERE expiration_time <= CURRENT_TIMESTAMP LIMIT ?)`),
		Encode: encodeState, Decode: decodeState, End: endOf, Explain: explain,
		OneWriter: true, Patience: c.BusyTimeout,
	}
}

// encodeState writes JSON as it is, readable for other tools, and everything else as base64.
// Either comes back byte for byte.
func encodeState(value []byte) (string, bool) {
	if json.Valid(value) && utf8.Valid(value) {
		return string(value), false
	}
	return sqlstate.Base64(value), true
}

func decodeState(text []byte, binary bool) ([]byte, error) {
	if !binary {
		return text, nil
	}
	return sqlstate.FromBase64(text)
}

// endOf is when an item ends, in whole seconds as Dapr's sidecars write and compare it; the
// next one, so that no item ends early.
func endOf(ttl time.Duration) any {
	if ttl <= 0 {
		return nil
	}
	return time.Now().Add(ttl + time.Second - time.Nanosecond).UTC().Truncate(time.Second).Format(time.DateTime)
}

// stateVersion is the version of Dapr's tables we know.
const stateVersion = 1

// setupState makes missing tables and records their version, so that one of Dapr's sidecars
// coming later takes them for its own. When all is there it writes nothing.
func setupState(ctx context.Context, db *sql.DB, fill func(string) string, meta string) error {
	var version string
	var n int
	read := fill(`SELECT value FROM {meta} WHERE key = 'migrations'`)
	if db.QueryRowContext(ctx, read).Scan(&version) == nil &&
		db.QueryRowContext(ctx, fill(`SELECT count(*) FROM (SELECT 1 FROM {state} LIMIT 1)`)).Scan(&n) == nil {
		return checkState(version, meta)
	}
	return inTx(ctx, db, func(tx *sql.Tx) error {
		for _, q := range []string{
			`CREATE TABLE IF NOT EXISTS {meta} (key text NOT NULL PRIMARY KEY, value text NOT NULL)`,
			`CREATE TABLE IF NOT EXISTS {state} (
				key TEXT NOT NULL PRIMARY KEY,
				value TEXT NOT NULL,
				is_binary BOOLEAN NOT NULL,
				etag TEXT NOT NULL,
				expiration_time TIMESTAMP DEFAULT NULL,
				update_time TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
			)`,
			createFences,
			`INSERT INTO {meta} (key, value) VALUES ('migrations', '` + strconv.Itoa(stateVersion) + `') ON CONFLICT DO NOTHING`,
		} {
			if _, err := tx.ExecContext(ctx, fill(q)); err != nil {
				return fmt.Errorf("create the tables: %w", err)
			}
		}
		if err := tx.QueryRowContext(ctx, read).Scan(&version); err != nil {
			return err
		}
		return checkState(version, meta)
	})
}

// createFences makes the table of fences. Epochs are numbers of 20 digits, as text: integers of
// the database have a sign.
const createFences = `CREATE TABLE IF NOT EXISTS {fences} (key TEXT NOT NULL PRIMARY KEY, epoch TEXT NOT NULL) WITHOUT ROWID`

// setupFences makes the table of fences in a database that was made without.
func setupFences(ctx context.Context, db *sql.DB, fill func(string) string) error {
	var n int
	if db.QueryRowContext(ctx, fill(`SELECT count(*) FROM (SELECT key, epoch FROM {fences} LIMIT 1)`)).Scan(&n) == nil {
		return nil
	}
	if _, err := db.ExecContext(ctx, fill(createFences)); err != nil {
		return fmt.Errorf("create the table of fences: %w", err)
	}
	return nil
}

// checkState accepts newer versions: Dapr's only ever added columns, which we do not name.
func checkState(version, meta string) error {
	if n, err := strconv.Atoi(version); err != nil || n < 1 {
		return fault.New("", fault.Unsupported, "table %s says that the tables have version %q, want a number; use another file or metadataTableName", meta, version).
			WithSent(fault.SentNever)
	}
	return nil
}

// explain judges an error of the library.
func explain(err error) (e *fault.Error, busy, ok bool) {
	known, is := errors.AsType[*sqlite.Error](err)
	if !is {
		return nil, false, false
	}
	say := func(code fault.Code, text string) (*fault.Error, bool, bool) {
		return fault.New("", code, "%s", text).WithSent(fault.SentNever), false, true
	}
	switch known.Code() & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		e, _, _ := say(fault.Unavailable, "the database is locked by somebody else; is a transaction left open?")
		return e, true, true
	case sqlite3.SQLITE_FULL:
		return say(fault.Exhausted, "the database cannot grow; is the disk full?")
	case sqlite3.SQLITE_TOOBIG:
		return say(fault.TooLarge, "the value is larger than the database allows")
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH:
		return say(fault.Denied, "the database may not be written")
	case sqlite3.SQLITE_CANTOPEN:
		return say(fault.Unavailable, "the database file cannot be opened; does its folder exist, and may it be written?")
	case sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT:
		return say(fault.Lost, "the database file is damaged, or not one of SQLite's")
	}
	return nil, false, false
}
