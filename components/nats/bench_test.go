package nats_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// cpuOf is the processor time used by a process so far, 0 where /proc does not tell.
func cpuOf(pid string) time.Duration {
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text)[strings.LastIndexByte(string(text), ')')+1:])
	user, _ := strconv.Atoi(fields[11])
	sys, _ := strconv.Atoi(fields[12])
	return time.Duration(user+sys) * 10 * time.Millisecond
}

// nodeOf is the process of the node serving dir.
func nodeOf(tb testing.TB, dir string) string {
	tb.Helper()
	text, err := os.ReadFile(dir + "/lock")
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// measure runs op in callers goroutines and reports the median and the processor time of the
// node and of this process per operation.
func measure(b *testing.B, pid string, callers int, op func()) {
	b.Helper()
	times := make([][]time.Duration, callers)
	node, own := cpuOf(pid), cpuOf("self")
	b.ResetTimer()
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for range (b.N + callers - 1) / callers {
				start := time.Now()
				op()
				times[c] = append(times[c], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(times...)
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Nanoseconds())/1000, "p50-µs")
	b.ReportMetric(float64((cpuOf(pid)-node).Microseconds())/float64(b.N), "node-cpu-µs/op")
	b.ReportMetric(float64((cpuOf("self")-own).Microseconds())/float64(b.N), "own-cpu-µs/op")
}

func BenchmarkEmbeddedState(b *testing.B) {
	for _, durability := range []string{"os", "strict"} {
		dir := nodeDir(b)
		s := embeddedState(b, dir, "statestore", "durability", durability)
		ctx := context.Background()
		value := make([]byte, 1024)
		if err := s.Set(ctx, block.StateWrite{Key: "app||k", Value: value}); err != nil {
			b.Fatal(err)
		}
		tx, _ := s.(block.StateTx)
		pid := nodeOf(b, dir)
		ops := map[string]func(){
			"get": func() { _, _ = s.Get(ctx, "app||k", block.StateRead{}) },
			"set": func() { _ = s.Set(ctx, block.StateWrite{Key: "app||k", Value: value}) },
			"tx2": func() {
				err := tx.Transact(ctx, []block.StateOp{{StateWrite: block.StateWrite{Key: "app||a", Value: value}}, {StateWrite: block.StateWrite{Key: "app||b", Value: value}}})
				if err != nil {
					b.Error(err)
				}
			},
		}
		for _, name := range []string{"get", "set", "tx2"} {
			for _, callers := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/%s/%d", durability, name, callers), func(b *testing.B) { measure(b, pid, callers, ops[name]) })
			}
		}
		_ = s.Close(ctx)
	}
}

// BenchmarkEmbeddedScan reads pages of 100 items of 1 KiB out of 10 000, beside the same number of
// reads by key; once all of them are wanted, once every second one.
func BenchmarkEmbeddedScan(b *testing.B) {
	dir := nodeDir(b)
	s := embeddedState(b, dir, "statestore")
	defer s.Close(context.Background())
	ctx := context.Background()
	const all, page = 10_000, 100
	keys := make([]string, 0, page)
	for i := 0; i < all; i += 500 {
		var ws []block.StateWrite
		for k := i; k < i+500; k++ {
			ws = append(ws, block.StateWrite{Key: fmt.Sprintf("app||%d/%d", k%2, k), Value: make([]byte, 1024)})
		}
		if errs := s.(block.StateBatch).SetMany(ctx, ws); errs != nil {
			b.Fatal(errs)
		}
		keys = append(keys, ws[0].Key, ws[1].Key, ws[2].Key, ws[3].Key, ws[4].Key)
	}
	pid := nodeOf(b, dir)
	scan := func(prefix string, keysOnly bool) func() {
		token := ""
		return func() {
			items, next, err := s.(block.StateScan).Scan(ctx, prefix, token, page, keysOnly)
			if err != nil || len(items) == 0 && next != "" {
				b.Error(len(items), err)
			}
			token = next
		}
	}
	b.Run("page", func(b *testing.B) { measure(b, pid, 1, scan("app||", false)) })
	b.Run("page of keys", func(b *testing.B) { measure(b, pid, 1, scan("app||", true)) })
	b.Run("page of every second key", func(b *testing.B) { measure(b, pid, 1, scan("app||1/", false)) })
	b.Run("get 100", func(b *testing.B) {
		measure(b, pid, 1, func() {
			if _, err := s.(block.StateBatch).GetMany(ctx, keys, block.StateRead{}); err != nil {
				b.Error(err)
			}
		})
	})
}

// BenchmarkEmbeddedFence compares writes behind a fence with plain ones.
func BenchmarkEmbeddedFence(b *testing.B) {
	dir := nodeDir(b)
	s := embeddedState(b, dir, "statestore")
	defer s.Close(context.Background())
	ctx := context.Background()
	value := make([]byte, 1024)
	op := func(key string) block.StateOp {
		return block.StateOp{StateWrite: block.StateWrite{Key: key, Value: value}}
	}
	if err := s.(block.StateFence).TransactFenced(ctx, "app||f", 7, []block.StateOp{op("app||k"), op("app||l")}); err != nil {
		b.Fatal(err)
	}
	pid := nodeOf(b, dir)
	item, err := s.Get(ctx, "app||k", block.StateRead{})
	if err != nil {
		b.Fatal(err)
	}
	conditional := op("app||k")
	ops := map[string]func() error{
		"set": func() error { return s.Set(ctx, op("app||n").StateWrite) },
		"fenced set": func() error {
			return s.(block.StateFence).TransactFenced(ctx, "app||f", 7, []block.StateOp{op("app||n")})
		},
		"tx2": func() error { return s.(block.StateTx).Transact(ctx, []block.StateOp{op("app||n"), op("app||m")}) },
		"fenced tx2": func() error {
			return s.(block.StateFence).TransactFenced(ctx, "app||f", 7, []block.StateOp{op("app||n"), op("app||m")})
		},
		"fenced set with etag": func() error {
			conditional.ETag = item.ETag
			if err := s.(block.StateFence).TransactFenced(ctx, "app||f", 7, []block.StateOp{conditional}); err != nil {
				return err
			}
			item, err = s.Get(ctx, "app||k", block.StateRead{})
			return err
		},
	}
	for _, name := range []string{"set", "fenced set", "tx2", "fenced tx2", "fenced set with etag"} {
		b.Run(name, func(b *testing.B) {
			measure(b, pid, 1, func() {
				if err := ops[name](); err != nil {
					b.Error(err)
				}
			})
		})
	}
}
