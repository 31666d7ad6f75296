package mysql_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/mysql"
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

func open(t testing.TB, items ...string) block.State { return openLogged(t, t.Output(), items...) }

func openLogged(t testing.TB, log io.Writer, items ...string) block.State {
	t.Helper()
	c := mysql.DefaultStateConfig()
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	s, err := mysql.NewState(block.Env{Log: slog.New(slog.NewTextHandler(log, nil))}, c)
	if err != nil {
		t.Fatalf("NewState: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = s.Close(ctx)
	})
	return s
}

// address is a connection string.
func address(password string, port int, options string) string {
	return fmt.Sprintf("mecha:%s@tcp(127.0.0.1:%d)/%s", password, port, options)
}

// at is the metadata that leads to a port.
func at(port int, more ...string) []string {
	return append([]string{"connectionString", address(servers.SQLPassword, port, "")}, more...)
}

// direct is a connection of the driver itself, with the server's defaults.
func direct(t testing.TB, port int, schema string) *sql.DB {
	t.Helper()
	c, err := driver.ParseDSN(address(servers.SQLPassword, port, schema))
	if err != nil {
		t.Fatal(err)
	}
	connector, err := driver.NewConnector(c)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func run(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func text(t testing.TB, db *sql.DB, query string, args ...any) string {
	t.Helper()
	var s string
	if err := db.QueryRow(query, args...).Scan(&s); err != nil {
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

// The suite, also with options that change how the driver and the server work.
func TestState(t *testing.T) {
	port := servers.MySQL(t).Port
	for name, options := range map[string]string{
		"plain":             "",
		"other options":     "?interpolateParams=true&clientFoundRows=true&parseTime=true&charset=latin1&sql_mode=%27ANSI%27&time_zone=%27%2B05:00%27",
		"snapshot per call": "?tx_isolation=%27REPEATABLE-READ%27&autocommit=1",
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.State(t, func(t *testing.T) block.State {
				return open(t, "connectionString", address(servers.SQLPassword, port, options))
			})
		})
	}
}

// Stores that start at once make one set of tables.
func TestTablesMadeTogether(t *testing.T) {
	port := servers.MySQL(t).Port
	var wg sync.WaitGroup
	for i := range 6 {
		s := open(t, at(port, "schemaName", "together")...)
		wg.Go(func() {
			if err := s.Set(t.Context(), block.StateWrite{Key: fmt.Sprint(i), Value: []byte("v")}); err != nil {
				t.Errorf("store %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func TestConfig(t *testing.T) {
	bad := map[string][]string{
		"required":               {},
		"connectionString":       {"url", "root:s3cret/db"},
		"connectionString:":      {"url", "root:s3cret@tcp(h:1)/orders"},
		"schemaName":             {"url", "u:p@tcp(h)/", "schemaName", "a b"},
		"tableName":              {"url", "u:p@tcp(h)/", "tableName", "a`b"},
		"metadataTableName":      {"url", "u:p@tcp(h)/", "metadataTableName", "state"},
		"timeoutInSeconds":       {"url", "u:p@tcp(h)/", "timeout", "10ms"},
		"maxConns":               {"url", "u:p@tcp(h)/", "maxConns", "-1"},
		"pemPath: required":      {"url", "u:p@tcp(h)/?tls=custom"},
		"pemPath: has no effect": {"url", "u:p@tcp(h)/", "pemPath", "/x"},
		"pemPath":                {"url", "u:p@tcp(h)/?tls=custom", "pemPath", "/does/not/exist"},
		"pemContents":            {"url", "u:p@tcp(h)/?tls=custom", "pemContents", "x"},
	}
	for want, items := range bad {
		err := conf.Decode(conf.Items(items...), mysql.DefaultStateConfig()).Err()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", want, err)
		}
	}
	c := mysql.DefaultStateConfig()
	f := conf.Decode(conf.Items("connectionString", "u:p@tcp(h)/", "timeoutInSeconds", "0", "cleanupInterval", "-1", "SCHEMANAME", "x"), c)
	if len(f) > 0 || c.SchemaName != "x" {
		t.Errorf("Dapr's spelling: %+v, %v", c, f)
	}
}
