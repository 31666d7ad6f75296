package sqlite_test

import (
	"context"
	"database/sql"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlite"
)

func openState(t testing.TB, file string, items ...string) block.State {
	t.Helper()
	c := sqlite.DefaultStateConfig()
	if f := conf.Decode(conf.Items(append([]string{"connectionString", file}, items...)...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	s, err := sqlite.NewState(block.Env{Log: logger(t)}, c)
	if err != nil {
		t.Fatalf("NewState: %v", err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

func sqlDB(t testing.TB, file string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func run(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func wantValue(t testing.TB, s block.State, key, want string) block.StateItem {
	t.Helper()
	item, err := s.Get(t.Context(), key, block.StateRead{})
	if err != nil || !item.Exists || string(item.Value) != want {
		t.Fatalf("Get(%s) = %q (exists %v), %v; want %q", key, item.Value, item.Exists, err, want)
	}
	return item
}

func TestState(t *testing.T) {
	for name, items := range map[string][]string{"write-ahead log": nil, "rollback journal": {"disableWAL", "true"}} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "state.db")
			// The file's lock goes to whoever asks at the right moment: two clients that fight for it
			// may wait for longer than the default.
			blocktest.State(t, func(t *testing.T) block.State { return openState(t, file, append(items, "busyTimeout", "20s")...) })
		})
	}
	t.Run("in memory", func(t *testing.T) {
		blocktest.State(t, func(t *testing.T) block.State { return openState(t, ":memory:") })
	})
}

// daprTables makes what one of Dapr's sidecars leaves behind.
func daprTables(t testing.TB, db *sql.DB) {
	t.Helper()
	run(t, db, `CREATE TABLE metadata (key text NOT NULL PRIMARY KEY, value text NOT NULL)`)
	run(t, db, `INSERT INTO metadata VALUES ('migrations', '1')`)
	run(t, db, `CREATE TABLE state (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL, is_binary BOOLEAN NOT NULL, etag TEXT NOT NULL,
		expiration_time TIMESTAMP DEFAULT NULL, update_time TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)`)
}

func TestReadsDaprsRows(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	db := sqlDB(t, file)
	daprTables(t, db)
	insert := `INSERT OR REPLACE INTO state (key, value, is_binary, etag, update_time, expiration_time) VALUES (?, ?, ?, ?, CURRENT_TIMESTAMP, `
	run(t, db, insert+"NULL)", "app||json", `{"a":1}`, false, "11111111-1111-4111-8111-111111111111")
	run(t, db, insert+"NULL)", "app||bytes", base64.StdEncoding.EncodeToString([]byte("\x00raw")), true, "22222222-2222-4222-8222-222222222222")
	run(t, db, insert+"DATETIME(CURRENT_TIMESTAMP, '+100 seconds'))", "app||dies", `"x"`, false, "33333333-3333-4333-8333-333333333333")
	run(t, db, insert+"DATETIME(CURRENT_TIMESTAMP, '-1 seconds'))", "app||dead", `"x"`, false, "44444444-4444-4444-8444-444444444444")

	s := openState(t, file)
	if item := wantValue(t, s, "app||json", `{"a":1}`); item.ETag != "11111111-1111-4111-8111-111111111111" {
		t.Errorf("etag %q", item.ETag)
	}
	wantValue(t, s, "app||bytes", "\x00raw")
	if item := wantValue(t, s, "app||dies", `"x"`); time.Until(item.Expires) < 90*time.Second || time.Until(item.Expires) > 101*time.Second {
		t.Errorf("expires %v", item.Expires)
	}
	if item, err := s.Get(t.Context(), "app||dead", block.StateRead{}); err != nil || item.Exists {
		t.Errorf("an expired row: %+v, %v", item, err)
	}
	if err := s.Set(t.Context(), block.StateWrite{Key: "app||json", Value: []byte("2"), ETag: "11111111-1111-4111-8111-111111111111"}); err != nil {
		t.Errorf("Set with Dapr's etag: %v", err)
	}
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func TestWritesDaprsRows(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openState(t, file)
	writes := []block.StateWrite{
		{Key: "json", Value: []byte(`{"a": 1}`)}, {Key: "bytes", Value: []byte("\xff\x00")}, {Key: "empty"},
		{Key: "dies", Value: []byte("1"), TTL: 100 * time.Second}}
	for _, w := range writes[:2] {
		if err := s.Set(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	if errs := s.(block.StateBatch).SetMany(t.Context(), writes[1:]); errs != nil {
		t.Fatal(errs)
	}
	db := sqlDB(t, file)
	want := map[string]string{"json": `{"a": 1}|0`, "bytes": base64.StdEncoding.EncodeToString([]byte("\xff\x00")) + "|1", "empty": "|1", "dies": "1|0"}
	for key, w := range want {
		var value, etag, updated, kind string
		var end sql.NullString
		err := db.QueryRow(`SELECT value || '|' || is_binary, etag, CAST(update_time AS TEXT), CAST(expiration_time AS TEXT), typeof(value) FROM state WHERE key = ?`, key).
			Scan(&value, &etag, &updated, &end, &kind)
		if err != nil || value != w || !uuidForm.MatchString(etag) || kind != "text" {
			t.Errorf("%s: %q (%s), etag %q, %v; want %q as text", key, value, kind, etag, err, w)
		}
		if _, err := time.Parse(time.DateTime, updated); err != nil {
			t.Errorf("%s: update_time %q", key, updated)
		}
		if end.Valid != (key == "dies") {
			t.Errorf("%s: expiration_time %v", key, end)
		}
		if _, err := time.Parse(time.DateTime, end.String); end.Valid && err != nil {
			t.Errorf("%s: expiration_time %q", key, end.String)
		}
	}
	var schema, version string
	if err := db.QueryRow(`SELECT sql FROM sqlite_master WHERE name = 'state'`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	for _, column := range []string{"key TEXT NOT NULL PRIMARY KEY", "value TEXT NOT NULL", "is_binary BOOLEAN NOT NULL", "etag TEXT NOT NULL",
		"expiration_time TIMESTAMP DEFAULT NULL", "update_time TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP"} {
		if !strings.Contains(schema, column) {
			t.Errorf("column %q is not in %s", column, schema)
		}
	}
	if err := db.QueryRow(`SELECT value FROM metadata WHERE key = 'migrations'`).Scan(&version); err != nil || version != "1" {
		t.Errorf("migrations = %q, %v; want 1", version, err)
	}
}

// One of two stores cleans within an interval, and the rows are gone.
func TestStateCleanup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	a, b := openState(t, file, "cleanupInterval", "1s"), openState(t, file, "cleanupInterval", "1s")
	for _, s := range []block.State{a, b} {
		if err := s.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	db := sqlDB(t, file)
	run(t, db, `PRAGMA busy_timeout = 5000`)
	for i := range 1500 { // more than one portion
		run(t, db, `INSERT INTO state (key, value, is_binary, etag, expiration_time) VALUES (?, '1', 0, 'e', '2001-01-01 00:00:00')`, fmt.Sprint(i))
	}
	if err := a.Set(t.Context(), block.StateWrite{Key: "lives", Value: []byte("1"), TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	n := -1
	for end := time.Now().Add(30 * time.Second); n != 1 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err := db.QueryRow(`SELECT count(*) FROM state`).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	if n != 1 {
		t.Errorf("%d rows are left, want 1", n)
	}
	var mark string
	if err := db.QueryRow(`SELECT value FROM metadata WHERE key = 'last-cleanup'`).Scan(&mark); err != nil {
		t.Errorf("the mark: %v", err)
	}
	if _, err := time.Parse(time.DateTime, mark); err != nil {
		t.Errorf("the mark is %q", mark)
	}
}

// A fresh mark of another sidecar keeps us from cleaning.
func TestStateCleanupElsewhere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	db := sqlDB(t, file)
	daprTables(t, db)
	run(t, db, `INSERT INTO metadata VALUES ('last-cleanup', datetime('now', '+1 hour'))`)
	run(t, db, `INSERT INTO state (key, value, is_binary, etag, expiration_time) VALUES ('k', '1', 0, 'e', '2001-01-01 00:00:00')`)
	s := openState(t, file, "cleanupInterval", "1s")
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond)
	var n int
	if err := db.QueryRow(`SELECT count(*) FROM state`).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d rows, %v: the mark was not respected", n, err)
	}
}

// While somebody else holds the lock, a write waits as long as busyTimeout allows, and not a
// moment longer than its caller.
func TestStateLocked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openState(t, file, "busyTimeout", "10s")
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := sqlDB(t, file).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lock := func(q string) {
		t.Helper()
		if _, err := conn.ExecContext(context.Background(), q); err != nil {
			t.Fatal(err)
		}
	}
	lock("BEGIN IMMEDIATE")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	err = s.Set(ctx, block.StateWrite{Key: "k", Value: []byte("v")})
	if fault.Of(err) != fault.Unavailable && fault.Of(err) != fault.Deadline {
		t.Errorf("Set: %v (%v)", err, fault.Of(err))
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Set with a deadline of 100ms took %v", took)
	}
	impatient := openState(t, file, "busyTimeout", "50ms")
	err = impatient.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("v")})
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
		t.Errorf("Set: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Set(context.Background(), block.StateWrite{Key: "k", Value: []byte("v")}); err != nil {
			t.Errorf("a write that waits: %v", err)
		}
	})
	time.Sleep(100 * time.Millisecond)
	lock("ROLLBACK")
	wg.Wait()
	_ = conn.Close()
}

func TestStateFileFaults(t *testing.T) {
	dir := t.TempDir()
	s := openState(t, filepath.Join(dir, "no", "such", "folder.db"))
	if err := s.Ping(t.Context()); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
		t.Errorf("a folder that does not exist: %v (%v)", err, fault.Of(err))
	}
	file := filepath.Join(dir, "state.db")
	db := sqlDB(t, file)
	daprTables(t, db)
	run(t, db, `UPDATE metadata SET value = 'x'`)
	if err := openState(t, file).Ping(t.Context()); fault.Of(err) != fault.Unsupported || !strings.Contains(err.Error(), "metadata") {
		t.Errorf("tables of an unknown version: %v", err)
	}
	run(t, db, `UPDATE metadata SET value = '7'`)
	run(t, db, `ALTER TABLE state ADD COLUMN row_id INTEGER`)
	late := openState(t, file)
	if err := late.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("v")}); err != nil {
		t.Errorf("tables with a column more: %v", err)
	}
	run(t, db, `INSERT INTO state (key, value, is_binary, etag) VALUES ('bad', '*', 1, 'e')`)
	if _, err := late.Get(t.Context(), "bad", block.StateRead{}); fault.Of(err) != fault.Lost {
		t.Errorf("a damaged value: %v (%v)", err, fault.Of(err))
	}
	if err := late.Set(t.Context(), block.StateWrite{Key: "a\x00b"}); fault.Of(err) != fault.Invalid {
		t.Errorf("a key with NUL: %v", err)
	}
}

func TestStateConfig(t *testing.T) {
	bad := map[string][]string{
		"connectionString": {}, "timeout": {"timeout", "10ms"}, "tableName": {"tableName", "a b"},
		"metadataTableName": {"metadataTableName", "state"}, "busyTimeout": {"busyTimeout", "-1s"}}
	for key, items := range bad {
		if key != "connectionString" {
			items = append(items, "url", "x.db")
		}
		err := conf.Decode(conf.Items(items...), sqlite.DefaultStateConfig()).Err()
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v, want an error that names it", key, err)
		}
	}
	c := sqlite.DefaultStateConfig()
	f := conf.Decode(conf.Items("url", "x.db", "timeoutInSeconds", "30", "cleanupIntervalInSeconds", "60", "busyTimeout", "1s"), c)
	if len(f) > 0 || c.ConnectionString != "x.db" || c.Timeout != 30*time.Second || c.CleanupInterval != time.Minute {
		t.Errorf("aliases: %+v, %v", c, f)
	}
}

func BenchmarkState(b *testing.B) {
	value := []byte(`{"text":"` + strings.Repeat("x", 1000) + `"}`)
	s := openState(b, filepath.Join(b.TempDir(), "state.db"))
	ctx := context.Background()
	set := func() error { return s.Set(ctx, block.StateWrite{Key: "app||k", Value: value}) }
	if err := set(); err != nil {
		b.Fatal(err)
	}
	db := sqlDB(b, "file:"+filepath.Join(b.TempDir(), "direct.db")+"?_pragma=journal_mode(WAL)")
	run(b, db, `CREATE TABLE t (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL)`)
	put, err := db.Prepare(`INSERT INTO t VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`)
	if err != nil {
		b.Fatal(err)
	}
	get, err := db.Prepare(`SELECT value FROM t WHERE key = ?`)
	if err != nil {
		b.Fatal(err)
	}
	measure := func(name string, op func() error) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := op(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	measure("set", set)
	n := 0
	measure("set direct", func() error {
		n++ // SQLite does not write a row that stays the same
		_, err := put.Exec("app||k", strconv.Itoa(n)+string(value))
		return err
	})
	measure("get", func() error { _, err := s.Get(ctx, "app||k", block.StateRead{}); return err })
	measure("get direct", func() error { var v []byte; return get.QueryRow("app||k").Scan(&v) })
}
