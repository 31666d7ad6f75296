package sqlite

import (
	"database/sql"
	"fmt"
	"net/url"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver named "sqlite"
)

// dsn completes a user's connection string: a path, or a "file:" address with options, the
// form SQLite itself accepts. Options given there win over ours.
//
// durable keeps the last commits across a crash of the machine.
func dsn(conn string, busy time.Duration, wal, durable bool) (string, error) {
	conn = strings.TrimSpace(conn)
	path, query, _ := strings.Cut(conn, "?")
	if !strings.HasPrefix(path, "file:") {
		// A plain path may hold characters that mean something in an address.
		path = "file:" + strings.NewReplacer("%", "%25", "#", "%23").Replace(path)
	}
	if path == "file:" {
		return "", fmt.Errorf("%q names no file", conn)
	}
	opts, err := url.ParseQuery(query)
	if err != nil {
		return "", fmt.Errorf("its options cannot be read: %w", err)
	}
	pragma := func(name, value string) {
		for _, p := range opts["_pragma"] {
			if strings.HasPrefix(strings.ToLower(strings.TrimSpace(p)), name) {
				return
			}
		}
		opts.Add("_pragma", name+"("+value+")")
	}
	pragma("busy_timeout", fmt.Sprint(busy.Milliseconds()))
	if wal && !inMemory(conn) {
		pragma("journal_mode", "WAL")
	}
	if wal && !inMemory(conn) && !durable {
		// With the log a crash of the machine can lose the last commits but not damage the
		// file; a registry's rows are worth nothing after such a crash.
		pragma("synchronous", "NORMAL")
	}
	if opts.Get("_txlock") == "" {
		// A transaction that reads before it writes must not find out at its end that
		// somebody else wrote.
		opts.Set("_txlock", "immediate")
	}
	return path + "?" + opts.Encode(), nil
}

// inMemory tells whether a connection string names a database without a file, which every
// connection has for itself.
func inMemory(conn string) bool {
	return strings.Contains(conn, ":memory:") || strings.Contains(conn, "mode=memory")
}

// openDB makes the pool. It does not touch the file.
func openDB(conn string, busy time.Duration, wal, durable bool) (*sql.DB, error) {
	name, err := dsn(conn, busy, wal, durable)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", name)
	if err != nil {
		return nil, err
	}
	if inMemory(conn) {
		db.SetMaxOpenConns(1) // a second connection would see another database
	} else {
		db.SetMaxOpenConns(4) // readers beside one writer
		db.SetMaxIdleConns(2)
	}
	return db, nil
}
