package postgres_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

func op(key, value string) []block.StateOp {
	return []block.StateOp{{StateWrite: block.StateWrite{Key: key, Value: []byte(value)}}}
}

// fill writes n items app||00000, ….
func fill(t testing.TB, s block.State, n int, value []byte) {
	t.Helper()
	var ws []block.StateWrite
	for i := range n {
		ws = append(ws, block.StateWrite{Key: fmt.Sprintf("app||%05d", i), Value: value})
	}
	for part := range slices.Chunk(ws, 1000) {
		if errs := s.(block.StateBatch).SetMany(t.Context(), part); errs != nil {
			t.Fatal(errs)
		}
	}
}

// A page is read by the index: of our tables as they are, of Dapr's with the index of the manual.
func TestScanUsesTheIndex(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		for _, made := range []string{"ours", "dapr"} {
			t.Run(made, func(t *testing.T) {
				port := servers.Postgres(t).Port
				c := sqlConn(t, port)
				if made == "dapr" {
					for _, q := range append(daprTables[version], `CREATE INDEX CONCURRENTLY ON state (key COLLATE "C")`) {
						run(t, c, q)
					}
				}
				s := open(t, version, at(port)...)
				fill(t, s, 5000, []byte("v"))
				run(t, c, `ANALYZE state`)
				read := func() (n int) {
					t.Helper()
					// A session hands in its counters when it pauses, and at its end.
					if err := c.QueryRow(t.Context(), `SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'state'`).Scan(&n); err != nil {
						t.Fatal(err)
					}
					return n
				}
				reader := open(t, version, at(port)...)
				if err := reader.Ping(t.Context()); err != nil {
					t.Fatal(err)
				}
				_ = s.Close(t.Context())
				run(t, c, `SELECT pg_stat_reset()`)
				for _, token := range []string{"", block.PageToken("app||", "app||02500")} {
					items, _, err := reader.(block.StateScan).Scan(t.Context(), "app||", token, 10, false)
					if err != nil || len(items) != 10 {
						t.Fatalf("Scan: %d items, %v", len(items), err)
					}
				}
				_ = reader.Close(t.Context())
				waitFor(t, "the counters", func() bool { return read() > 0 })
				if n := read(); n > 200 {
					t.Errorf("two pages of 10 read %d rows", n)
				}
			})
		}
	})
}

// In a database whose order of text is not that of bytes, with tables that Dapr made, everything
// works the same.
func TestOtherOrder(t *testing.T) {
	port := servers.Postgres(t).Port
	each(t, func(t *testing.T, version string) {
		run(t, sqlConn(t, port), `CREATE DATABASE words_`+version+` TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'`)
		c := sqlConnTo(t, port, "words_"+version)
		if got := text(t, c, `SELECT string_agg(k, '' ORDER BY k) FROM unnest(ARRAY['B', 'a', '|', 'ä']) AS k`); got != "|aäB" {
			t.Fatalf("the database's order is %s, want another than that of bytes", got)
		}
		for _, q := range daprTables[version] {
			run(t, c, q)
		}
		blocktest.State(t, func(t *testing.T) block.State {
			return open(t, version, "connectionString", address(port, "words_"+version))
		})
	})
}

// Fences stand in a table of their own, which a database of Dapr's gets with the first of them. A
// role that may not make it cannot use fences, and all else.
func TestFencesBesideDaprsTables(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		port := servers.Postgres(t).Port
		c := sqlConn(t, port)
		for _, q := range daprTables[version] {
			run(t, c, q)
		}
		run(t, c, `CREATE ROLE poor LOGIN PASSWORD 'p'`)
		run(t, c, `GRANT SELECT, INSERT, UPDATE, DELETE ON state, dapr_metadata TO poor`)
		poor := open(t, version, "host", "127.0.0.1", "port", fmt.Sprint(port), "database", "postgres", "user", "poor", "password", "p")
		set(t, poor, "k", "v")
		err := poor.(block.StateFence).TransactFenced(t.Context(), "app||f", 7, op("k", "w"))
		if fault.Of(err) != fault.Denied || fault.SentOf(err) != fault.SentNever {
			t.Errorf("a fence of a role that may not make its table: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
		}
		want(t, poor, "k", "v")

		s := open(t, version, at(port)...)
		const tables = `SELECT count(*)::text FROM pg_tables WHERE schemaname = 'public'`
		if n := text(t, c, tables); n != "2" {
			t.Errorf("%s tables before the first fence, want Dapr's two", n)
		}
		if err := s.(block.StateFence).TransactFenced(t.Context(), "app||f", 7, op("k", "w")); err != nil {
			t.Fatal(err)
		}
		if got := text(t, c, `SELECT key || ' ' || epoch FROM state_fences`); got != "app||f 7" {
			t.Errorf("the fence is %q", got)
		}
		if n := text(t, c, `SELECT count(*)::text FROM state`); n != "1" {
			t.Errorf("%s items, want 1", n)
		}
		run(t, c, `GRANT SELECT, INSERT, UPDATE ON state_fences TO poor`)
		err = poor.(block.StateFence).TransactFenced(t.Context(), "app||f", 6, op("k", "x"))
		if fault.ReasonOf(err) != fault.Fenced || !strings.Contains(err.Error(), `"app||f"`) || fault.SentOf(err) != fault.SentNever {
			t.Errorf("a lower epoch: %v (sent %v)", err, fault.SentOf(err))
		}
		if err := poor.(block.StateFence).TransactFenced(t.Context(), "app||f", 8, op("k", "y")); err != nil {
			t.Errorf("the role with the right: %v", err)
		}
		want(t, s, "k", "y")

		// A table that somebody dropped is made anew, by the call after the one that finds out.
		run(t, c, `DROP TABLE state_fences`)
		if err := s.(block.StateFence).TransactFenced(t.Context(), "app||f", 9, op("k", "z")); fault.Of(err) != fault.Unavailable {
			t.Errorf("a dropped table: %v", err)
		}
		want(t, s, "k", "y")
		if err := s.(block.StateFence).TransactFenced(t.Context(), "app||f", 9, op("k", "z")); err != nil {
			t.Errorf("after that: %v", err)
		}
	})
}

// Tables that we make have the table of fences from the beginning, under the names of long tables,
// too.
func TestFencesOfOurTables(t *testing.T) {
	port := servers.Postgres(t).Port
	c := sqlConn(t, port)
	run(t, c, `CREATE SCHEMA other`)
	long := strings.Repeat("t", 63)
	for _, items := range [][]string{{"tableName", "other." + long, "metadataTableName", "other.meta"}, {"tableName", "mine"}} {
		s := open(t, "v1", at(port, items...)...)
		set(t, s, "k", "v")
		name := text(t, c, `SELECT schemaname || '.' || tablename FROM pg_tables WHERE tablename LIKE '%\_fences' ORDER BY tablename DESC LIMIT 1`)
		if err := s.(block.StateFence).TransactFenced(t.Context(), "f", 7, op("k", "w")); err != nil {
			t.Fatal(err)
		}
		if got := text(t, c, `SELECT key || ' ' || epoch FROM `+name); got != "f 7" {
			t.Errorf("%s has %q", name, got)
		}
		run(t, c, `DROP TABLE `+name)
	}
}

// Under stricter isolation owners that meet at a fence may be turned away, and still none writes
// behind a later one.
func TestFencesSerializable(t *testing.T) {
	port := servers.Postgres(t).Port
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			run(t, sqlConn(t, port), `ALTER DATABASE postgres SET default_transaction_isolation = '`+level+`'`)
			s := open(t, "v2", at(port, tables("v2", strings.ReplaceAll(level, " ", "_"))...)...)
			set(t, s, "log", "")
			var next atomic.Uint64
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for epoch := next.Add(1); epoch <= 30; {
						item, err := s.Get(t.Context(), "log", block.StateRead{})
						if err != nil {
							t.Errorf("Get: %v", err)
							return
						}
						ops := op("log", fmt.Sprintf("%s %02d", item.Value, epoch))
						ops[0].ETag = item.ETag
						err = s.(block.StateFence).TransactFenced(t.Context(), "f", epoch, ops)
						switch {
						case fault.ReasonOf(err) == fault.Fenced || err == nil:
							epoch = next.Add(1)
						case fault.Of(err) == fault.Unavailable && fault.SentOf(err) == fault.SentNever, fault.Of(err) == fault.Conflict:
						default:
							t.Errorf("TransactFenced: %v", err)
							return
						}
					}
				})
			}
			wg.Wait()
			item, err := s.Get(t.Context(), "log", block.StateRead{})
			order := strings.Fields(string(item.Value))
			if err != nil || len(order) == 0 || !slices.IsSorted(order) {
				t.Errorf("the epochs wrote in the order %q (%v)", order, err)
			}
		})
	}
}

// BenchmarkStateScan: a page of 100 out of 20 000 items of 1 KiB, and writes with a fence beside
// those without.
func BenchmarkStateScan(b *testing.B) {
	port := servers.Postgres(b).Port
	ctx := context.Background()
	value := make([]byte, 1024)
	measure := func(name string, op func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := op(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for _, v := range []string{"v1", "v2"} {
		s := open(b, v, at(port, append(tables(v, "bench_"+v), "url", "sslmode=disable")...)...)
		fill(b, s, 20_000, value)
		run(b, sqlConn(b, port), `ANALYZE`)
		scan := func(token string, keysOnly bool) func() error {
			return func() error {
				items, _, err := s.(block.StateScan).Scan(ctx, "app||", token, 100, keysOnly)
				if err == nil && len(items) != 100 {
					err = fmt.Errorf("%d items", len(items))
				}
				return err
			}
		}
		middle := block.PageToken("app||", "app||10000")
		measure(v+"/scan 100, first", scan("", false))
		measure(v+"/scan 100, middle", scan(middle, false))
		measure(v+"/scan 100 keys, middle", scan(middle, true))
		one, two := op("app||a", string(value)), append(op("app||a", string(value)), op("app||b", string(value))...)
		measure(v+"/set", func() error { return s.Set(ctx, one[0].StateWrite) })
		measure(v+"/fenced set", func() error { return s.(block.StateFence).TransactFenced(ctx, "f", 7, one) })
		measure(v+"/tx of 2", func() error { return s.(block.StateTx).Transact(ctx, two) })
		measure(v+"/fenced tx of 2", func() error { return s.(block.StateFence).TransactFenced(ctx, "f", 7, two) })
	}
}
