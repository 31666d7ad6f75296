package postgres_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/test/servers"
)

func BenchmarkState(b *testing.B) {
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
		measure(v+"/set", func() error { return s.Set(ctx, block.StateWrite{Key: "app||k", Value: value}) })
		measure(v+"/get", func() error { _, err := s.Get(ctx, "app||k", block.StateRead{}); return err })
		var ws []block.StateWrite
		var ops []block.StateOp
		for i := range 10 {
			ws = append(ws, block.StateWrite{Key: fmt.Sprint(i), Value: value})
			ops = append(ops, block.StateOp{StateWrite: ws[i]})
		}
		measure(v+"/set10", func() error {
			if errs := s.(block.StateBatch).SetMany(ctx, ws); errs != nil {
				return errs[0]
			}
			return nil
		})
		measure(v+"/tx10", func() error { return s.(block.StateTx).Transact(ctx, ops) })
	}
	c := sqlConn(b, port)
	run(b, c, `CREATE TABLE direct (key text PRIMARY KEY, value bytea NOT NULL)`)
	measure("direct/set", func() error {
		_, err := c.Exec(ctx, `INSERT INTO direct VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, "app||k", value)
		return err
	})
	measure("direct/get", func() error {
		var v []byte
		return c.QueryRow(ctx, `SELECT value FROM direct WHERE key = $1`, "app||k").Scan(&v)
	})
}

func BenchmarkBinding(b *testing.B) {
	port := servers.Postgres(b).Port
	o := openBinding(b, at(port, "url", "sslmode=disable")...)
	exec(b, o, "CREATE TABLE t (id int PRIMARY KEY, name text, at timestamptz DEFAULT now())", "")
	exec(b, o, "INSERT INTO t SELECT i, 'name ' || i FROM generate_series(1, 1000) AS i", "")
	c := sqlConn(b, port)
	for name, r := range map[string]block.BindingRequest{
		"one row": statement("query", "SELECT * FROM t WHERE id = $1", "[7]"), "1000 rows": statement("query", "SELECT * FROM t", ""),
		"exec": statement("exec", "UPDATE t SET name = $1 WHERE id = $2", `["x", 7]`), "a list": statement("query", "SELECT count(*) FROM t WHERE id = ANY($1)", "[[1,2,3]]"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := o.Invoke(b.Context(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("direct, one row", func(b *testing.B) {
		for b.Loop() {
			var id int
			var name string
			if err := c.QueryRow(b.Context(), "SELECT id, name FROM t WHERE id = $1", 7).Scan(&id, &name); err != nil {
				b.Fatal(err)
			}
		}
	})
}
