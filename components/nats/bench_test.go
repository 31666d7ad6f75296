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

func BenchmarkEmbeddedPublishDeliver(b *testing.B) {
	for _, callers := range []int{1, 32} {
		b.Run(strconv.Itoa(callers), func(b *testing.B) {
			dir := nodeDir(b)
			p := embeddedPubSub(b, dir, "pubsub")
			ctx, stop := context.WithCancel(context.Background())
			if err := p.Ping(ctx); err != nil {
				b.Fatal(err)
			}
			got := make(chan struct{}, 1<<16)
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = p.Consume(ctx, block.ConsumeOptions{Topic: "t", Group: "g", MaxInFlight: 64}, func(d block.Delivery) {
					d.Ack()
					got <- struct{}{}
				})
			}()
			msg := []block.Message{{Topic: "t", Data: make([]byte, 1024)}}
			measure(b, nodeOf(b, dir), callers, func() {
				if errs := p.Publish(ctx, msg); errs != nil {
					b.Error(errs)
				}
				<-got
			})
			stop()
			<-done
			_ = p.Close(context.Background())
		})
	}
}
