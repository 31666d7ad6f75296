package mysql_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/test/servers"
)

func BenchmarkState(b *testing.B) {
	port := servers.MySQL(b).Port
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
	s := open(b, at(port)...)
	measure("set", func() error { return s.Set(ctx, block.StateWrite{Key: "app||k", Value: value}) })
	measure("get", func() error { _, err := s.Get(ctx, "app||k", block.StateRead{}); return err })
	var ws []block.StateWrite
	var ops []block.StateOp
	for i := range 10 {
		ws = append(ws, block.StateWrite{Key: fmt.Sprint(i), Value: value})
		ops = append(ops, block.StateOp{StateWrite: ws[i]})
	}
	measure("set10", func() error {
		if errs := s.(block.StateBatch).SetMany(ctx, ws); errs != nil {
			return errs[0]
		}
		return nil
	})
	measure("tx10", func() error { return s.(block.StateTx).Transact(ctx, ops) })

	db := direct(b, port, "dapr_state_store")
	run(b, db, `CREATE TABLE direct (id VARBINARY(3072) NOT NULL PRIMARY KEY, value LONGBLOB NOT NULL, n BIGINT NOT NULL)`)
	put, err := db.Prepare(`INSERT INTO direct VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE value = VALUES(value), n = VALUES(n)`)
	if err != nil {
		b.Fatal(err)
	}
	get, err := db.Prepare(`SELECT value FROM direct WHERE id = ?`)
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	measure("direct/set", func() error { n++; _, err := put.Exec("app||k", value, n); return err })
	measure("direct/get", func() error { var v []byte; return get.QueryRow("app||k").Scan(&v) })
}

func BenchmarkBinding(b *testing.B) {
	port := servers.MySQL(b).Port
	o := openBinding(b, "url", shop(b, port, ""))
	exec(b, o, "CREATE TABLE t (id int PRIMARY KEY, name varchar(99), at timestamp DEFAULT CURRENT_TIMESTAMP)", "")
	exec(b, o, "INSERT INTO t (id, name) SELECT seq, CONCAT('name ', seq) FROM seq_1_to_1000", "")
	for name, r := range map[string]block.BindingRequest{
		"one row": statement("query", "SELECT * FROM t WHERE id = ?", "[7]"), "1000 rows": statement("query", "SELECT * FROM t", ""),
		"exec": statement("exec", "UPDATE t SET name = ? WHERE id = ?", `["x", 7]`),
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
}
