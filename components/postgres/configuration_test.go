package postgres_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/postgres"
	"github.com/mecha-project/mecha/test/servers"
)

func openConfiguration(t testing.TB, items ...string) block.Configuration {
	t.Helper()
	c := postgres.DefaultConfigurationConfig()
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	s, err := postgres.NewConfiguration(block.Env{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, c)
	if err != nil {
		t.Fatalf("NewConfiguration: %v", err)
	}
	return s
}

// makeTable makes a table in Dapr's form, and a trigger that notifies a channel of the same name.
func makeTable(t testing.TB, c *pgx.Conn, name string) {
	t.Helper()
	run(t, c, strings.ReplaceAll(`
		CREATE TABLE items (key varchar NOT NULL, value varchar NOT NULL, version varchar NOT NULL, metadata json);
		CREATE FUNCTION items_changed() RETURNS trigger LANGUAGE plpgsql AS $$
		DECLARE r items;
		BEGIN
			IF TG_OP = 'DELETE' THEN r := OLD; ELSE r := NEW; END IF;
			PERFORM pg_notify('items', json_build_object('table', TG_TABLE_NAME, 'data',
				json_build_object('key', r.key, 'value', left(r.value, 100), 'version', r.version))::text);
			RETURN r;
		END $$;
		CREATE TRIGGER items_trigger AFTER INSERT OR UPDATE OR DELETE ON items FOR EACH ROW EXECUTE FUNCTION items_changed();`, "items", name))
}

// put writes as an operator does: a new row with the next version.
func put(t testing.TB, c *pgx.Conn, table, key, value string) {
	t.Helper()
	run(t, c, `INSERT INTO `+table+` SELECT $1::text, $2::text, (coalesce(max(version::int), 0) + 1)::text, '{"by": "op"}' FROM `+table+` WHERE key = $1::text`, key, value)
}

func TestConfiguration(t *testing.T) {
	srv := servers.Postgres(t)
	operator := sqlConn(t, srv.Port)
	makeTable(t, operator, "suite")
	for _, mode := range []string{"", "simple_protocol"} {
		t.Run("mode "+mode, func(t *testing.T) {
			blocktest.Configuration(t, func(t *testing.T) blocktest.ConfigurationPlace {
				relay := servers.NewRelay(t, srv.Port)
				return blocktest.ConfigurationPlace{
					Open: func() block.Configuration {
						return openConfiguration(t, at(relay.Port, "table", "suite", "notifyChannel", "suite", "queryExecMode", mode)...)
					},
					Set:    func(key, value string) { put(t, operator, "suite", key, value) },
					Delete: func(key string) { run(t, operator, "DELETE FROM suite WHERE key = $1", key) },
					Keys:   []string{"*", "%", "a_b", "with space", "ünï", `"q'`, `\`, "new\nline", "$1", "a/b.c"},
					Interrupt: func(meanwhile func()) {
						relay.Cut()
						meanwhile()
						relay.Cut()
					},
				}
			})
		})
	}
}

func TestConfigurationRows(t *testing.T) {
	port := servers.Postgres(t).Port
	c := sqlConn(t, port)
	run(t, c, `CREATE TABLE rows (key varchar, value varchar, version varchar, metadata json)`)
	run(t, c, `INSERT INTO rows VALUES ('a', 'nine', '9', NULL), ('a', 'ten', '10', '{"x": "y", "n": 1, "o": {"p": null}}'), ('a', 'word', 'zzz', NULL),
		('b', 'word', 'zzz', '[1]'), ('b', 'wore', 'zzy', NULL), ('c', NULL, NULL, 'null')`)
	s := openConfiguration(t, at(port, "table", "public.rows")...)
	defer s.Close(context.Background())
	for _, keys := range [][]string{nil, {"a", "b", "c", "none", "a\x00", "\xff"}} {
		got, err := s.Get(t.Context(), keys, nil)
		if err != nil || len(got) != 3 {
			t.Fatalf("Get(%q) = %v, %v", keys, got, err)
		}
		if a := got["a"]; a.Value != "ten" || a.Version != "10" || len(a.Metadata) != 3 || a.Metadata["x"] != "y" || a.Metadata["n"] != "1" || a.Metadata["o"] != `{"p": null}` {
			t.Errorf("a = %+v", a)
		}
		if b, c := got["b"], got["c"]; b.Value != "word" || b.Version != "zzz" || b.Metadata != nil || c.Value != "" || c.Version != "" || c.Metadata != nil {
			t.Errorf("b = %+v, c = %+v", b, c)
		}
	}
}

type following struct {
	told chan map[string]block.ConfigItem
	done chan error
}

func follow(t *testing.T, s block.Configuration, metadata map[string]string, keys ...string) *following {
	t.Helper()
	f := &following{told: make(chan map[string]block.ConfigItem, 100), done: make(chan error, 1)}
	started := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	t.Cleanup(func() { cancel(); work.Wait() })
	work.Go(func() {
		f.done <- s.Subscribe(ctx, keys, metadata, func() { close(started) }, func(m map[string]block.ConfigItem) { f.told <- m })
	})
	select {
	case <-started:
	case err := <-f.done:
		t.Fatalf("Subscribe: %v", err)
	case <-time.After(patience):
		t.Fatal("Subscribe does not start")
	}
	return f
}

func (f *following) next(t *testing.T) map[string]block.ConfigItem {
	t.Helper()
	select {
	case m := <-f.told:
		return m
	case err := <-f.done:
		t.Fatalf("the subscription ended: %v", err)
	case <-time.After(patience):
		t.Fatal("nothing is told")
	}
	return nil
}

// The request may name the channel; what a notification says beside the key does not count, and
// one that says nothing we understand makes us look.
func TestConfigurationNotifications(t *testing.T) {
	port := servers.Postgres(t).Port
	c := sqlConn(t, port)
	run(t, c, `CREATE TABLE quiet (key varchar, value varchar, version varchar, metadata json)`)
	s := openConfiguration(t, at(port, "table", "quiet")...)
	defer s.Close(context.Background())
	f := follow(t, s, map[string]string{"PGNotifyChannel": "own"}, "a")
	for i, payload := range []string{`{"data": {"key": "a", "value": "wrong", "version": "99"}}`, `nonsense`, ``, `{"data": {}}`, `{"data": {"key": "a"}}`} {
		value := string(rune('p' + i))
		run(t, c, `DELETE FROM quiet`)
		run(t, c, `INSERT INTO quiet VALUES ('a', $1, '1', NULL), ('b', 'v', '1', NULL)`, value)
		run(t, c, `SELECT pg_notify('own', $1)`, payload)
		if got := f.next(t); len(got) != 1 || got["a"].Value != value || got["a"].Version != "1" {
			t.Errorf("after %s: told %+v, want %s", payload, got, value)
		}
	}
	run(t, c, `DELETE FROM quiet`)
	run(t, c, `SELECT pg_notify('own', '{"data": {"key": "a", "value": "old", "version": "1"}}')`)
	if it, is := f.next(t)["a"]; !is || it.Value != "" {
		t.Errorf("after a removal: told %+v", it)
	}
	for name, metadata := range map[string]map[string]string{"none": nil, "a bad name": {"pgNotifyChannel": `x"; DROP TABLE quiet; --`}} {
		err := s.Subscribe(t.Context(), nil, metadata, func() { t.Error("started") }, nil)
		if fault.Of(err) != fault.Invalid {
			t.Errorf("channel: %s: %v (%v), want invalid", name, err, fault.Of(err))
		}
	}
}

// A table without a trigger is looked at now and then.
func TestConfigurationWithoutTrigger(t *testing.T) {
	port := servers.Postgres(t).Port
	c := sqlConn(t, port)
	run(t, c, `CREATE TABLE untriggered (key varchar, value varchar, version varchar, metadata json)`)
	s := openConfiguration(t, at(port, "table", "untriggered", "notifyChannel", "nobody")...)
	defer s.Close(context.Background())
	postgres.SetRecheck(s, 50*time.Millisecond)
	f := follow(t, s, nil)
	for _, v := range []string{"1", "2"} {
		put(t, c, "untriggered", "k", v)
		if got := f.next(t)["k"]; got.Value != v || got.Version != v {
			t.Errorf("told %+v, want %s", got, v)
		}
	}
}

// The server halts without a word, or dies; what changed is told when it is back.
func TestConfigurationServerFails(t *testing.T) {
	srv := servers.Postgres(t)
	c := sqlConn(t, srv.Port)
	makeTable(t, c, "failing")
	s := openConfiguration(t, at(srv.Port, "table", "failing", "notifyChannel", "failing")...)
	defer s.Close(context.Background())
	postgres.SetRecheck(s, 300*time.Millisecond)
	f := follow(t, s, nil, "k")
	srv.Freeze()
	time.Sleep(time.Second)
	srv.Thaw()
	put(t, c, "failing", "k", "1")
	if got := f.next(t)["k"]; got.Value != "1" {
		t.Errorf("told %+v", got)
	}
	srv.Kill()
	srv.Start(t)
	c = sqlConn(t, srv.Port)
	put(t, c, "failing", "k", "2")
	if got := f.next(t)["k"]; got.Value != "2" {
		t.Errorf("told %+v", got)
	}
}

func TestConfigurationTable(t *testing.T) {
	port := servers.Postgres(t).Port
	s := openConfiguration(t, at(port, "table", "nowhere", "notifyChannel", "x")...)
	defer s.Close(context.Background())
	_, get := s.Get(t.Context(), nil, nil)
	for what, err := range map[string]error{"Ping": s.Ping(t.Context()), "Get": get, "Subscribe": s.Subscribe(t.Context(), nil, nil, func() {}, nil)} {
		if err == nil || !strings.Contains(err.Error(), "postgreSQL configuration table 'nowhere' does not exist") {
			t.Errorf("%s: %v", what, err)
		}
	}
	down := openConfiguration(t, at(1, "table", "x", "notifyChannel", "x")...)
	defer down.Close(context.Background())
	if err := down.Subscribe(t.Context(), nil, nil, func() {}, nil); fault.Of(err) != fault.Unavailable || strings.Contains(err.Error(), servers.SQLPassword) {
		t.Errorf("without a server: %v (%v)", err, fault.Of(err))
	}
}

func TestConfigurationConfig(t *testing.T) {
	for _, bad := range [][]string{nil, {"table", "a b"}, {"table", "t;drop"}, {"table", "t", "notifyChannel", "Upper"}, {"table", "t", "notifyChannel", strings.Repeat("c", 64)}} {
		c := postgres.DefaultConfigurationConfig()
		if f := conf.Decode(conf.Items(at(1, bad...)...), c); len(f) != 1 {
			t.Errorf("%q: findings %v, want one", bad, f)
		}
	}
	c := postgres.DefaultConfigurationConfig()
	if f := conf.Decode(conf.Items(slices.Concat(at(1), []string{"table", "s.t", "notifyChannel", "c_1", "connMaxIdleTime", "10"})...), c); len(f) > 0 || c.Conn.ConnectionMaxIdleTime != 10*time.Second {
		t.Errorf("%v, %+v", f, c)
	}
}
