package mysql_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/mecha-project/mecha/components/block"
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

// keys scans all keys with a prefix in pages.
func keys(t testing.TB, s block.State, prefix string, limit int) (out []string) {
	t.Helper()
	for token := ""; ; {
		items, next, err := s.(block.StateScan).Scan(t.Context(), prefix, token, limit, len(out)%2 == 0)
		if err != nil {
			t.Fatalf("Scan(%q, %q): %v", prefix, token, err)
		}
		for _, it := range items {
			out = append(out, it.Key)
		}
		if token = next; token == "" {
			return out
		}
	}
}

// Tables that Dapr made are in an order in which what begins alike does not stand together. Scans
// go by bytes all the same.
func TestScanLaxKeys(t *testing.T) {
	port := servers.MySQL(t).Port
	for _, charset := range []string{"latin1", "utf8mb4"} {
		t.Run(charset, func(t *testing.T) {
			run(t, direct(t, port, ""), "CREATE DATABASE "+charset+" CHARACTER SET "+charset)
			db := daprTables(t, port, charset)
			s := open(t, at(port, "schemaName", charset)...)
			stored := []string{"app||B", "app||a", "app||c", "app||%", "app||_x", "app||é", "app||z", "app||zz", "APP||d", "app|e", "app||", "app|}", "ápp||f", "app||ÿ", "b"}
			if charset == "utf8mb4" {
				stored = append(stored, "app||键", "app||\U0010ffff")
			}
			for _, k := range stored {
				set(t, s, k, "v")
			}
			daprWrite(t, db, "app||dead", `"x"`, false, "CURRENT_TIMESTAMP - INTERVAL 1 SECOND")
			slices.Sort(stored)
			for _, prefix := range []string{"", "app||", "app||z", "A", "APP", "app||%", "app||_", "app||é", "app||ÿ", "app|", "nobody"} {
				var want []string
				for _, k := range stored {
					if strings.HasPrefix(k, prefix) {
						want = append(want, k)
					}
				}
				for _, limit := range []int{1, 3, 100} {
					if got := keys(t, s, prefix, limit); !slices.Equal(got, want) {
						t.Errorf("Scan(%q) with limit %d gave %q, want %q", prefix, limit, got, want)
					}
				}
			}
		})
	}
}

// A page of our tables is read by their index.
func TestScanUsesTheIndex(t *testing.T) {
	port := servers.MySQL(t).Port
	s := open(t, at(port)...)
	fill(t, s, 5000, []byte("v"))
	db := direct(t, port, "dapr_state_store")
	read := func() (n int) {
		t.Helper()
		rows, err := db.Query(`SHOW GLOBAL STATUS LIKE 'Handler_read%'`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var name, value string
			if err := rows.Scan(&name, &value); err != nil {
				t.Fatal(err)
			}
			part, _ := strconv.Atoi(value)
			n += part
		}
		return n
	}
	run(t, db, `ANALYZE TABLE state`)
	read() // itself reads rows
	base := read()
	own := read() - base
	before := read()
	for _, token := range []string{"", block.PageToken("app||", "app||02500")} {
		items, _, err := s.(block.StateScan).Scan(t.Context(), "app||", token, 10, false)
		if err != nil || len(items) != 10 {
			t.Fatalf("Scan: %d items, %v", len(items), err)
		}
	}
	if n := read() - before - own; n > 200 {
		t.Errorf("two pages of 10 read %d rows", n)
	}
}

// Fences stand in a table of their own, which a database of Dapr's gets with the first of them,
// however many stores begin at once.
func TestFencesBesideDaprsTables(t *testing.T) {
	port := servers.MySQL(t).Port
	db := daprTables(t, port, "dapr")
	s := open(t, at(port, "schemaName", "dapr")...)
	set(t, s, "a", "1")
	const tables = `SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'dapr'`
	if n := text(t, db, tables); n != "2" {
		t.Errorf("%s tables before the first fence, want Dapr's two", n)
	}
	var wg sync.WaitGroup
	for i := range 6 {
		other := open(t, at(port, "schemaName", "dapr")...)
		wg.Go(func() {
			if err := other.(block.StateFence).TransactFenced(t.Context(), "app||f", 7, op(fmt.Sprint("k", i), "v")); err != nil {
				t.Errorf("store %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if got := text(t, db, `SELECT GROUP_CONCAT(CONCAT(id, ' ', epoch, ' ', writes)) FROM state_fences`); got != "app||f 7 6" {
		t.Errorf("the fences are %q", got)
	}
	if items, metadata := text(t, db, `SELECT COUNT(*) FROM state`), text(t, db, `SELECT COUNT(*) FROM dapr_metadata`); items != "7" || metadata != "0" {
		t.Errorf("Dapr's tables have %s and %s rows, want 7 and 0", items, metadata)
	}
	err := s.(block.StateFence).TransactFenced(t.Context(), "app||f", 6, op("a", "2"))
	if fault.ReasonOf(err) != fault.Fenced || !strings.Contains(err.Error(), `"app||f"`) || fault.SentOf(err) != fault.SentNever {
		t.Errorf("a lower epoch: %v (sent %v)", err, fault.SentOf(err))
	}
	want(t, s, "a", "1")
	if got := text(t, db, `SELECT CONCAT(epoch, ' ', writes) FROM state_fences`); got != "7 6" {
		t.Errorf("after a refused write the fence is %q", got)
	}
}

// BenchmarkStateScan: a page of 100 out of 20 000 items of 1 KiB, and writes with a fence beside
// those without.
func BenchmarkStateScan(b *testing.B) {
	port := servers.MySQL(b).Port
	ctx := context.Background()
	value := make([]byte, 1024)
	s := open(b, at(port)...)
	fill(b, s, 20_000, value)
	run(b, direct(b, port, "dapr_state_store"), `ANALYZE TABLE state`)
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
	measure("scan 100, first", scan("", false))
	measure("scan 100, middle", scan(middle, false))
	measure("scan 100 keys, middle", scan(middle, true))
	one, two := op("app||a", string(value)), append(op("app||a", string(value)), op("app||b", string(value))...)
	measure("set", func() error { return s.Set(ctx, one[0].StateWrite) })
	measure("fenced set", func() error { return s.(block.StateFence).TransactFenced(ctx, "f", 7, one) })
	measure("tx of 2", func() error { return s.(block.StateTx).Transact(ctx, two) })
	measure("fenced tx of 2", func() error { return s.(block.StateFence).TransactFenced(ctx, "f", 7, two) })
}
