package postgres_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/postgres"
	"github.com/mecha-project/mecha/test/servers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// parts are the two stores, by version.
var parts = map[string]func() block.Part{"v1": postgres.PartV1, "v2": postgres.PartV2}

// each runs a test on both versions.
func each(t *testing.T, test func(t *testing.T, version string)) {
	for _, v := range []string{"v1", "v2"} {
		t.Run(v, func(t *testing.T) { test(t, v) })
	}
}

func open(t testing.TB, version string, items ...string) block.State {
	t.Helper()
	part := parts[version]()
	c := part.Config()
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	comp, err := part.Open(block.Env{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, c)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = comp.Close(ctx)
	})
	return comp.(block.State)
}

// at is the metadata that leads to a port.
func at(port int, more ...string) []string {
	return append([]string{"host", "127.0.0.1", "port", fmt.Sprint(port), "database", "postgres", "user", "postgres", "password", servers.SQLPassword}, more...)
}

// tables gives a store tables of its own.
func tables(version, name string) []string {
	if version == "v1" {
		return []string{"tableName", name + "state", "metadataTableName", name + "meta"}
	}
	return []string{"tablePrefix", name, "metadataTableName", name + "meta"}
}

// address is a connection string.
func address(port int, database string) string {
	quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(servers.SQLPassword)
	return fmt.Sprintf("host=127.0.0.1 port=%d dbname=%s user=postgres password='%s' sslmode=disable", port, database, quoted)
}

func sqlConn(t testing.TB, port int) *pgx.Conn {
	t.Helper()
	return sqlConnTo(t, port, "postgres")
}

func sqlConnTo(t testing.TB, port int, database string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), address(port, database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func run(t testing.TB, c *pgx.Conn, query string, args ...any) {
	t.Helper()
	if _, err := c.Exec(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func text(t testing.TB, c *pgx.Conn, query string, args ...any) string {
	t.Helper()
	var s string
	if err := c.QueryRow(t.Context(), query, args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return s
}

func set(t testing.TB, s block.State, key, value string) {
	t.Helper()
	if err := s.Set(t.Context(), block.StateWrite{Key: key, Value: []byte(value)}); err != nil {
		t.Fatalf("Set(%s): %v", key, err)
	}
}

func want(t testing.TB, s block.State, key, value string) block.StateItem {
	t.Helper()
	item, err := s.Get(t.Context(), key, block.StateRead{})
	if err != nil || !item.Exists || string(item.Value) != value {
		t.Fatalf("Get(%s) = %q (exists %v), %v; want %q", key, item.Value, item.Exists, err, value)
	}
	return item
}

// The suite on both versions, and on every way of sending statements.
func TestState(t *testing.T) {
	port := servers.Postgres(t).Port
	for _, mode := range []string{"", "exec", "simple_protocol", "cache_describe", "describe_exec"} {
		each(t, func(t *testing.T, version string) {
			t.Run("mode "+mode, func(t *testing.T) {
				blocktest.State(t, func(t *testing.T) block.State {
					return open(t, version, at(port, append(tables(version, "suite_"+version), "queryExecMode", mode)...)...)
				})
			})
		})
	}
}

// Stores that start at once make one set of tables.
func TestTablesMadeTogether(t *testing.T) {
	port := servers.Postgres(t).Port
	each(t, func(t *testing.T, version string) {
		var wg sync.WaitGroup
		for i := range 6 {
			s := open(t, version, at(port, tables(version, "together_"+version)...)...)
			wg.Go(func() {
				if err := s.Set(t.Context(), block.StateWrite{Key: fmt.Sprint(i), Value: []byte("v")}); err != nil {
					t.Errorf("store %d: %v", i, err)
				}
			})
		}
		wg.Wait()
	})
}
