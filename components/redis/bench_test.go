package redis_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/test/servers"
)

// each runs op in callers goroutines and reports the median.
func each(b *testing.B, callers int, op func() error) {
	b.Helper()
	b.ReportAllocs()
	times := make([][]time.Duration, callers)
	var wg sync.WaitGroup
	b.ResetTimer()
	for c := range callers {
		wg.Go(func() {
			for range (b.N + callers - 1) / callers {
				start := time.Now()
				if err := op(); err != nil {
					b.Error(err)
					return
				}
				times[c] = append(times[c], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(times...)
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Nanoseconds())/1000, "p50-µs")
}

// BenchmarkState compares reads and writes of 1 KiB with what the client library needs for the
// same without the contract: a read of two fields, a write of a field and a count.
func BenchmarkState(b *testing.B) {
	srv := servers.StartRedis(b)
	if _, err := servers.RedisCommand(srv.Port, "CONFIG", "SET", "appendonly", "no"); err != nil {
		b.Fatal(err)
	}
	s, r := open(b, "redisHost", srv.Addr), direct(b, srv.Addr)
	defer s.Close(context.Background())
	ctx, cancel := context.WithCancel(context.Background()) // as a request's
	defer cancel()
	value := make([]byte, 1024)
	key := "app||k"
	if err := s.Set(ctx, block.StateWrite{Key: key, Value: value}); err != nil {
		b.Fatal(err)
	}
	keys := make([]string, 50)
	for i := range keys {
		keys[i] = key
	}
	ops := []struct {
		name string
		op   func() error
	}{
		{"get", func() error { _, err := s.Get(ctx, key, block.StateRead{}); return err }},
		{"get direct", func() error { return r.HMGet(ctx, key, "data", "version").Err() }},
		{"set", func() error { return s.Set(ctx, block.StateWrite{Key: key, Value: value}) }},
		{"set direct", func() error {
			_, err := r.Pipelined(ctx, func(p goredis.Pipeliner) error {
				p.HSet(ctx, "direct", "data", value)
				p.HIncrBy(ctx, "direct", "version", 1)
				return nil
			})
			return err
		}},
		{"get 50", func() error { _, err := s.(block.StateBatch).GetMany(ctx, keys, block.StateRead{}); return err }},
	}
	for _, o := range ops {
		for _, callers := range []int{1, 32} {
			b.Run(fmt.Sprint(o.name, "/", callers), func(b *testing.B) { each(b, callers, o.op) })
		}
	}
}

func BenchmarkBinding(b *testing.B) {
	srv := servers.StartRedis(b, "--appendfsync", "no")
	o := openedBinding(b, "redisHost", srv.Addr)
	for name, r := range map[string]block.BindingRequest{
		"create": request("create", string(make([]byte, 1024)), "key", "k"), "get": request("get", "", "key", "k"), "increment": request("increment", "", "key", "n"),
	} {
		b.Run(name, func(b *testing.B) {
			each(b, 32, func() error { _, err := o.Invoke(b.Context(), r); return err })
		})
	}
}

// BenchmarkScan reads pages of 100 items of 1 KiB out of 10 000, beside as many reads by key, and
// pages of one app's keys among ten times as many of others.
func BenchmarkScan(b *testing.B) {
	srv := servers.StartRedis(b)
	if _, err := servers.RedisCommand(srv.Port, "CONFIG", "SET", "appendonly", "no"); err != nil {
		b.Fatal(err)
	}
	s := open(b, "redisHost", srv.Addr)
	defer s.Close(context.Background())
	ctx := context.Background()
	const all, page = 10_000, 100
	var keys []string
	for i := 0; i < all; i += page {
		var ws []block.StateWrite
		for k := i; k < i+page; k++ {
			app := "app||"
			if k%11 == 0 {
				app = "few||"
			}
			ws = append(ws, block.StateWrite{Key: fmt.Sprint(app, k), Value: make([]byte, 1024)})
		}
		if errs := s.(block.StateBatch).SetMany(ctx, ws); errs != nil {
			b.Fatal(errs)
		}
		keys = append(keys, ws[1].Key)
	}
	scan := func(prefix string, keysOnly bool) func() error {
		token := ""
		return func() error {
			_, next, err := s.(block.StateScan).Scan(ctx, prefix, token, page, keysOnly)
			token = next
			return err
		}
	}
	b.Run("page", func(b *testing.B) { each(b, 1, scan("app||", false)) })
	b.Run("page of keys", func(b *testing.B) { each(b, 1, scan("app||", true)) })
	b.Run("page of few among many", func(b *testing.B) { each(b, 1, scan("few||", false)) })
	b.Run("get 100", func(b *testing.B) {
		each(b, 1, func() error { _, err := s.(block.StateBatch).GetMany(ctx, keys, block.StateRead{}); return err })
	})
}

// BenchmarkFence compares writes behind a fence with plain ones.
func BenchmarkFence(b *testing.B) {
	srv := servers.StartRedis(b)
	if _, err := servers.RedisCommand(srv.Port, "CONFIG", "SET", "appendonly", "no"); err != nil {
		b.Fatal(err)
	}
	s := open(b, "redisHost", srv.Addr)
	defer s.Close(context.Background())
	ctx := context.Background()
	op := func(key string) block.StateOp {
		return block.StateOp{StateWrite: block.StateWrite{Key: key, Value: make([]byte, 1024)}}
	}
	one, two := []block.StateOp{op("app||a")}, []block.StateOp{op("app||a"), op("app||b")}
	for _, bench := range []struct {
		name string
		op   func() error
	}{
		{"set", func() error { return s.Set(ctx, one[0].StateWrite) }},
		{"fenced set", func() error { return s.(block.StateFence).TransactFenced(ctx, "app||f", 7, one) }},
		{"tx2", func() error { return s.(block.StateTx).Transact(ctx, two) }},
		{"fenced tx2", func() error { return s.(block.StateFence).TransactFenced(ctx, "app||f", 7, two) }},
	} {
		for _, callers := range []int{1, 32} {
			b.Run(fmt.Sprint(bench.name, "/", callers), func(b *testing.B) { each(b, callers, bench.op) })
		}
	}
}
