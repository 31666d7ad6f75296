package sqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, file string, change func(*sqlite.RegistryConfig)) block.Registry {
	t.Helper()
	c := sqlite.DefaultRegistryConfig()
	c.ConnectionString = file
	if change != nil {
		change(c)
	}
	r, err := sqlite.NewRegistry(block.Env{Log: logger(t)}, c)
	if err != nil {
		t.Fatalf("NewRegistry: %v", err)
	}
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	return r
}

// logger keeps what the registry warns of, for the test's own log.
func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// patient is a configuration for a crowd on a slow machine: the limits are not the subject.
func patient(c *sqlite.RegistryConfig) {
	c.UpdateInterval, c.Timeout, c.BusyTimeout = 30*time.Second, 15*time.Second, 15*time.Second
}

// quick renews every second and forgives two late renewals.
func quick(c *sqlite.RegistryConfig) {
	c.UpdateInterval, c.Timeout = 3*time.Second, 2*time.Second
}

var orders = block.Name{App: "orders", Namespace: "default"}

func instance(n int) block.Instance {
	return block.Instance{ID: fmt.Sprint("id-", n), App: "orders", Namespace: "default", Address: fmt.Sprint("127.0.0.1:", 1000+n)}
}

func register(t testing.TB, r block.Registry, in block.Instance) {
	t.Helper()
	if err := r.(block.Registrar).Register(context.Background(), in); err != nil {
		t.Fatalf("Register: %v", err)
	}
}

func ids(t testing.TB, r block.Registry) string {
	t.Helper()
	got, err := r.Resolve(context.Background(), orders)
	if err != nil {
		t.Fatalf("Resolve: %v", err)
	}
	var out []string
	for _, in := range got {
		out = append(out, in.ID)
	}
	return strings.Join(out, " ")
}

// raw opens the file as somebody else would.
func raw(t testing.TB, file string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func exec(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(8 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 8s: %s", what)
		}
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	blocktest.Registry(t, func(t *testing.T) blocktest.RegistryPlace {
		file := filepath.Join(t.TempDir(), "registry.db")
		return blocktest.RegistryPlace{
			Crowd: 10,
			Open:  func(t *testing.T) block.Registry { return open(t, file, patient) },
		}
	})
}

// Rows are renewed, rows of the dead end by themselves, and a vanished row comes back.
func TestRenewal(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "registry.db")
	r, db := open(t, file, quick), raw(t, file)
	register(t, r, instance(1))
	exec(t, db, "INSERT INTO hosts VALUES ('dead', '127.0.0.1:9', 'orders', 'default', unixepoch())")
	if got := ids(t, r); got != "dead id-1" {
		t.Fatalf("ids = %q, want both", got)
	}
	eventually(t, "the row that nobody renews is left out", func() bool { return ids(t, r) == "id-1" })
	time.Sleep(3500 * time.Millisecond) // longer than a row lives
	if got := ids(t, r); got != "id-1" {
		t.Fatalf("ids after 3.5s = %q, want the renewed one", got)
	}
	exec(t, db, "DELETE FROM hosts")
	eventually(t, "the vanished row is written again", func() bool { return ids(t, r) == "id-1" })
}

// An address held by a live instance is not taken back: that would be a fight without end.
func TestTakenAddress(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "registry.db")
	r, db := open(t, file, quick), raw(t, file)
	register(t, r, instance(1))
	exec(t, db, "DELETE FROM hosts")
	exec(t, db, "INSERT INTO hosts VALUES ('thief', '127.0.0.1:1001', 'orders', 'default', unixepoch() + 1)")
	time.Sleep(2 * time.Second)
	if got := ids(t, r); got != "thief" {
		t.Errorf("ids with the address taken = %q, want the live holder alone", got)
	}
	eventually(t, "the row comes back when its holder is dead", func() bool { return ids(t, r) == "id-1" })
}

func TestCrashedPredecessorWithTheSameAddress(t *testing.T) {
	file := filepath.Join(t.TempDir(), "registry.db")
	r := open(t, file, nil)
	if err := r.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, raw(t, file), "INSERT INTO hosts VALUES ('before', '127.0.0.1:1001', 'orders', 'default', unixepoch())")
	register(t, r, instance(1))
	if got := ids(t, r); got != "id-1" {
		t.Errorf("ids = %q, want the successor alone", got)
	}
}

// A row as Dapr's sidecars write it: no details, an empty namespace.
func TestDaprRowsAreSeen(t *testing.T) {
	file := filepath.Join(t.TempDir(), "registry.db")
	db := raw(t, file)
	for _, q := range []string{
		"CREATE TABLE metadata (key text NOT NULL PRIMARY KEY, value text NOT NULL)",
		"INSERT INTO metadata VALUES ('nr-migrations', '1')",
		"CREATE TABLE hosts (registration_id TEXT NOT NULL PRIMARY KEY, address TEXT NOT NULL, app_id TEXT NOT NULL, namespace TEXT NOT NULL, last_update INTEGER NOT NULL)",
		"CREATE UNIQUE INDEX hosts_address_idx ON hosts (address)",
		"INSERT INTO hosts VALUES ('a-dapr', '127.0.0.1:50002', 'orders', '', unixepoch())",
	} {
		exec(t, db, q)
	}
	r := open(t, file, nil)
	register(t, r, instance(1))
	got, err := r.Resolve(t.Context(), orders)
	if err != nil || len(got) != 2 || got[0].Protocol != "dapr" || got[0].Namespace != "default" || got[1].ID != "id-1" {
		t.Errorf("Resolve = %+v, %v; want Dapr's instance and ours", got, err)
	}
	var n int
	if err := db.QueryRow("SELECT count(*) FROM hosts WHERE app_id = 'orders' AND unixepoch() - last_update < 5").Scan(&n); err != nil || n != 2 {
		t.Errorf("Dapr's own lookup counts %d rows, %v; want 2", n, err)
	}
}

func TestNewerTablesAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "registry.db")
	db := raw(t, file)
	exec(t, db, "CREATE TABLE metadata (key text NOT NULL PRIMARY KEY, value text NOT NULL)")
	exec(t, db, "INSERT INTO metadata VALUES ('nr-migrations', '9')")
	if err := open(t, file, nil).Ping(t.Context()); fault.Of(err) != fault.Unsupported || !strings.Contains(err.Error(), `version "9"`) {
		t.Errorf("Ping = %v (%v), want unsupported naming the version", err, fault.Of(err))
	}
}

func TestCleanup(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "registry.db")
	r := open(t, file, func(c *sqlite.RegistryConfig) { quick(c); c.CleanupInterval = time.Second })
	db := raw(t, file)
	register(t, r, instance(1))
	exec(t, db, "INSERT INTO hosts VALUES ('old', '127.0.0.1:9', 'orders', '', unixepoch() - 3600)")
	exec(t, db, "INSERT INTO hosts_mecha VALUES ('old', '{}')")
	exec(t, db, "INSERT INTO hosts VALUES ('late', '127.0.0.1:8', 'orders', '', unixepoch() - 10)")
	eventually(t, "the old row and its details are removed", func() bool {
		var n int
		err := db.QueryRow("SELECT (SELECT count(*) FROM hosts WHERE registration_id = 'old') + (SELECT count(*) FROM hosts_mecha WHERE registration_id = 'old')").Scan(&n)
		return err == nil && n == 0
	})
	var n int
	if err := db.QueryRow("SELECT count(*) FROM hosts").Scan(&n); err != nil || n != 2 {
		t.Errorf("%d rows left, %v; want ours and the late one", n, err)
	}
}

func TestLockedDatabase(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "registry.db")
	r := open(t, file, func(c *sqlite.RegistryConfig) {
		quick(c)
		c.Timeout, c.BusyTimeout = 300*time.Millisecond, 100*time.Millisecond
	})
	if err := r.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	tx, err := raw(t, file).Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("DELETE FROM hosts"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	err = r.(block.Registrar).Register(t.Context(), instance(1))
	if fault.Of(err) != fault.Unavailable || time.Since(start) > 3*time.Second || !strings.Contains(err.Error(), file) {
		t.Errorf("Register on a locked database = %v (%v) after %v, want unavailable soon, naming the file", err, fault.Of(err), time.Since(start))
	}
	if got := ids(t, r); got != "" {
		t.Errorf("ids = %q, want none; reading must go on beside a writer", got)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	register(t, r, instance(1))
}

func TestUnusableFiles(t *testing.T) {
	for name, file := range map[string]string{"a directory": t.TempDir(), "no folder": filepath.Join(t.TempDir(), "no", "x.db")} {
		if err := open(t, file, nil).Ping(t.Context()); fault.Of(err) != fault.Unavailable {
			t.Errorf("%s: Ping = %v (%v), want unavailable", name, err, fault.Of(err))
		}
	}
	odd := filepath.Join(t.TempDir(), "100% #odd name.db")
	if err := open(t, odd, nil).Ping(t.Context()); err != nil {
		t.Errorf("odd name: Ping = %v", err)
	}
	if got, _ := filepath.Glob(filepath.Join(filepath.Dir(odd), "100%*name.db")); len(got) != 1 {
		t.Errorf("the file with the odd name is not there")
	}
	mem := open(t, ":memory:", nil)
	register(t, mem, instance(1))
	if got := ids(t, mem); got != "id-1" {
		t.Errorf("in memory: ids = %q, want its own", got)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		name, want string
		items      []conf.Item
	}{
		{"dapr's keys", "", conf.Items("connectionString", "a.db", "tableName", "h", "metadataTableName", "m", "updateInterval", "10s",
			"cleanupInterval", "60s", "timeout", "2s", "busyTimeout", "1s", "disableWAL", "true")},
		{"bare numbers are seconds", "", conf.Items("connectionString", "a.db", "updateInterval", "10", "timeoutInSeconds", "2")},
		{"connectionString missing", "connectionString", nil},
		{"no file in it", "names no file", conf.Items("connectionString", "?mode=ro")},
		{"table name", "not a table name", conf.Items("connectionString", "a.db", "tableName", `h"; DROP`)},
		{"same tables", "already", conf.Items("connectionString", "a.db", "tableName", "metadata")},
		{"interval too short", "at least 1s longer", conf.Items("connectionString", "a.db", "updateInterval", "1s")},
		{"fraction", "whole number", conf.Items("connectionString", "a.db", "updateInterval", "5500ms")},
		{"timeout", "time to wait", conf.Items("connectionString", "a.db", "timeout", "0s")},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := conf.Decode(c.items, sqlite.DefaultRegistryConfig()).Err()
			if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("findings = %v, want %q", err, c.want)
			}
		})
	}
	set, err := block.NewSet(sqlite.Backend())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := set.Find("nameresolution.sqlite", "v1"); !ok {
		t.Errorf("nameresolution.sqlite is not among %v", set.Types())
	}
}

func BenchmarkResolve(b *testing.B) {
	file := filepath.Join(b.TempDir(), "registry.db")
	r := open(b, file, nil)
	register(b, r, instance(1))
	for b.Loop() {
		if ids(b, r) != "id-1" {
			b.Fatal("not found")
		}
	}
}
