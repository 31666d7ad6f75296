package sqlite_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

func op(key, value string) []block.StateOp {
	return []block.StateOp{{StateWrite: block.StateWrite{Key: key, Value: []byte(value)}}}
}

// Fences stand in a table of their own, which a database of Dapr's gets with the first of them.
func TestFencesBesideDaprsTables(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	db := sqlDB(t, file)
	daprTables(t, db)
	s := openState(t, file)
	count := func(query string) (n int) {
		t.Helper()
		if err := db.QueryRow(query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := s.Set(t.Context(), block.StateWrite{Key: "a", Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	const tables = `SELECT count(*) FROM sqlite_master WHERE type = 'table'`
	if n := count(tables); n != 2 {
		t.Errorf("%d tables before the first fence, want Dapr's two", n)
	}
	f := s.(block.StateFence)
	if err := f.TransactFenced(t.Context(), "app||f", 7, op("b", "2")); err != nil {
		t.Fatal(err)
	}
	if n := count(`SELECT count(*) FROM state_fences WHERE key = 'app||f' AND epoch = '00000000000000000007'`); n != 1 {
		t.Errorf("the fence's row is missing")
	}
	if items, metadata := count(`SELECT count(*) FROM state`), count(`SELECT count(*) FROM metadata`); items != 2 || metadata != 1 {
		t.Errorf("Dapr's tables have %d and %d rows, want 2 and 1", items, metadata)
	}
	err := f.TransactFenced(t.Context(), "app||f", 6, op("b", "3"))
	if fault.ReasonOf(err) != fault.Fenced || !strings.Contains(err.Error(), `"app||f"`) || fault.SentOf(err) != fault.SentNever {
		t.Errorf("a lower epoch: %v (sent %v)", err, fault.SentOf(err))
	}
	wantValue(t, s, "b", "2")
	// Two stores with tables of their own in one file have fences of their own.
	other := openState(t, file, "tableName", strings.Repeat("t", 63), "metadataTableName", "othermeta")
	if err := other.(block.StateFence).TransactFenced(t.Context(), "app||f", 1, op("b", "4")); err != nil {
		t.Errorf("a fence of another table: %v", err)
	}
	wantValue(t, other, "b", "4")
}

// The sweeper knows nothing of fences.
func TestFencesAreNotCleaned(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openState(t, file, "cleanupInterval", "1s")
	f := s.(block.StateFence)
	ops := op("k", "v")
	ops[0].TTL = time.Second
	if err := f.TransactFenced(t.Context(), "f", 7, ops); err != nil {
		t.Fatal(err)
	}
	db := sqlDB(t, file)
	n := -1
	for end := time.Now().Add(30 * time.Second); n != 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err := db.QueryRow(`SELECT count(*) FROM state`).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	if n != 0 {
		t.Fatalf("%d rows were not cleaned", n)
	}
	if err := f.TransactFenced(t.Context(), "f", 6, nil); fault.ReasonOf(err) != fault.Fenced {
		t.Errorf("a lower epoch after the cleaning: %v", err)
	}
}

// A damaged value ends the scan in words; a scan of keys goes on.
func TestScanDamaged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openState(t, file)
	if err := s.Set(t.Context(), block.StateWrite{Key: "a", Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	run(t, sqlDB(t, file), `INSERT INTO state (key, value, is_binary, etag) VALUES ('b', '*', 1, 'e')`)
	_, _, err := s.(block.StateScan).Scan(t.Context(), "", "", 10, false)
	if fault.Of(err) != fault.Lost || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("a scan over a damaged value: %v (%v)", err, fault.Of(err))
	}
	items, next, err := s.(block.StateScan).Scan(t.Context(), "", "", 10, true)
	if err != nil || len(items) != 2 || next != "" {
		t.Errorf("a scan of keys = %+v, %q, %v", items, next, err)
	}
}

// BenchmarkStateScan: a page of 100 out of 20 000 items of 1 KiB, and writes with a fence beside
// those without.
func BenchmarkStateScan(b *testing.B) {
	ctx := context.Background()
	s := openState(b, filepath.Join(b.TempDir(), "state.db"))
	value := []byte(`{"text":"` + strings.Repeat("x", 1000) + `"}`)
	for i := range 20 {
		var ws []block.StateWrite
		for j := range 1000 {
			ws = append(ws, block.StateWrite{Key: fmt.Sprintf("app||%05d", i*1000+j), Value: value})
		}
		if errs := s.(block.StateBatch).SetMany(ctx, ws); errs != nil {
			b.Fatal(errs)
		}
	}
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
