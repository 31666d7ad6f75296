package nats_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/nats"
)

// perMessage turns measure's figures of calls into figures of messages.
func perMessage(b *testing.B, pid string, n int, run func()) {
	b.Helper()
	node, own := cpuOf(pid), cpuOf("self")
	b.ResetTimer()
	run()
	b.StopTimer()
	all := float64(b.N * n)
	b.ReportMetric(all/b.Elapsed().Seconds(), "msg/s")
	b.ReportMetric(float64((cpuOf(pid)-node).Microseconds())/all, "node-cpu-µs/msg")
	b.ReportMetric(float64((cpuOf("self")-own).Microseconds())/all, "own-cpu-µs/msg")
}

func openBenchLog(b *testing.B) (block.Log, string) {
	b.Helper()
	dir := nodeDir(b)
	l := embeddedLog(b, dir, "pubsub", "maxBytes", "-1")
	b.Cleanup(func() { _ = l.Close(context.Background()) })
	if err := l.Ping(b.Context()); err != nil {
		b.Fatal(err)
	}
	return l, nodeOf(b, dir)
}

func BenchmarkLogAppend(b *testing.B) {
	for _, size := range []int{1, 64} {
		for _, callers := range []int{1, 8} {
			b.Run(fmt.Sprintf("%dx256B/%d", size, callers), func(b *testing.B) {
				l, pid := openBenchLog(b)
				batch := make([]block.LogRecord, size)
				for i := range batch {
					batch[i] = block.LogRecord{Message: block.Message{Topic: "t", Data: make([]byte, 256)}, Partition: int32(i % 32)}
				}
				perMessage(b, pid, size, func() {
					measure(b, pid, callers, func() {
						recs := append([]block.LogRecord(nil), batch...)
						for _, r := range l.Append(b.Context(), recs) {
							if r.Err != nil {
								b.Error(r.Err)
							}
						}
					})
				})
			})
		}
	}
}

func BenchmarkLogRead(b *testing.B) {
	for _, keyed := range []bool{false, true} {
		b.Run(map[bool]string{false: "256B", true: "256B with key and 4 headers"}[keyed], func(b *testing.B) {
			l, pid := openBenchLog(b)
			r := block.LogRecord{Message: block.Message{Topic: "t", Data: make([]byte, 256)}}
			if keyed {
				r.Key, r.ID, r.Metadata = "order-17", "", map[string]string{"cloudevents.type": "order", "content-type": "application/json", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
			}
			batch := make([]block.LogRecord, 1000)
			for n := 0; n < b.N; n += len(batch) {
				for i := range batch {
					batch[i] = r
				}
				for _, r := range l.Append(b.Context(), batch) {
					if r.Err != nil {
						b.Fatal(r.Err)
					}
				}
			}
			rd := reader(b, l, "t", 0, 0, block.ReadOptions{})
			perMessage(b, pid, 1, func() {
				for n := 0; n < b.N; {
					got, err := rd.Next(b.Context(), 64, 1<<20)
					if err != nil {
						b.Fatal(err)
					}
					n += len(got)
				}
			})
		})
	}
}

// BenchmarkLogEndToEnd is from Append to the same record out of Next.
func BenchmarkLogEndToEnd(b *testing.B) {
	l, pid := openBenchLog(b)
	rd := reader(b, l, "t", 0, 0, block.ReadOptions{})
	got := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			recs, err := rd.Next(ctx, 64, 1<<20)
			if err != nil {
				return
			}
			for range recs {
				got <- struct{}{}
			}
		}
	})
	rec := []block.LogRecord{{Message: block.Message{Topic: "t", Data: make([]byte, 256)}}}
	measure(b, pid, 1, func() {
		if r := l.Append(b.Context(), rec); r[0].Err != nil {
			b.Error(r[0].Err)
		}
		<-got
	})
	cancel()
	wg.Wait()
}

func BenchmarkLedger(b *testing.B) {
	l, pid := openBenchLog(b)
	value := make([]byte, 256)
	key := block.LedgerKey("g", "t", "0")
	var rev uint64
	b.Run("get", func(b *testing.B) {
		measure(b, pid, 1, func() {
			if _, err := l.LedgerGet(b.Context(), key); err != nil {
				b.Error(err)
			}
		})
	})
	b.Run("put", func(b *testing.B) {
		measure(b, pid, 1, func() {
			r := l.LedgerPut(b.Context(), []block.LedgerWrite{{Key: key, Value: value, Revision: rev}})[0]
			if r.Err != nil {
				b.Error(r.Err)
			}
			rev = r.Revision
		})
	})
	b.Run("put 32", func(b *testing.B) {
		revs := make([]uint64, 32)
		run := strconv.FormatInt(time.Now().UnixNano(), 36)
		measure(b, pid, 1, func() {
			writes := make([]block.LedgerWrite, 32)
			for i := range writes {
				writes[i] = block.LedgerWrite{Key: block.LedgerKey("h", run, strconv.Itoa(i)), Value: value, Revision: revs[i]}
			}
			for i, r := range l.LedgerPut(b.Context(), writes) {
				if r.Err != nil {
					b.Error(r.Err)
				}
				revs[i] = r.Revision
			}
		})
	})
}

// BenchmarkLogOpenReaders opens the readers of 32 partitions at once, each up to its first record.
func BenchmarkLogOpenReaders(b *testing.B) {
	l, pid := openBenchLog(b)
	const partitions = 32
	for p := range partitions {
		for _, r := range l.Append(b.Context(), []block.LogRecord{{Message: block.Message{Topic: "t", Data: []byte("x")}, Partition: int32(p)}}) {
			if r.Err != nil {
				b.Fatal(r.Err)
			}
		}
	}
	measure(b, pid, 1, func() {
		var wg sync.WaitGroup
		for p := range partitions {
			wg.Go(func() {
				r, err := l.OpenReader(b.Context(), "t", int32(p), 0, block.ReadOptions{})
				if err != nil {
					b.Error(err)
					return
				}
				defer r.Close()
				if _, err := r.Next(b.Context(), 1, 1); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

// residentOf is the memory of a process in KiB.
func residentOf(pid string) int {
	text, _ := os.ReadFile("/proc/" + pid + "/status")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}

// BenchmarkLogIdleReaders tells what a reader costs that waits: memory in the node and here.
func BenchmarkLogIdleReaders(b *testing.B) {
	b.Run("with consumers", func(b *testing.B) { idleReaders(b, time.Hour) })
	b.Run("parked", func(b *testing.B) { idleReaders(b, 500*time.Millisecond) })
}

func idleReaders(b *testing.B, park time.Duration) {
	l, pid := openBenchLog(b)
	nats.ParkAfter(l, park)
	const readers, topics = 2048, 64
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		node := residentOf(pid)
		ctx, cancel := context.WithCancel(b.Context())
		var wg sync.WaitGroup
		all := make([]block.LogReader, readers)
		for i := range readers {
			r, err := l.OpenReader(b.Context(), "t"+strconv.Itoa(i%topics), int32(i/topics), 0, block.ReadOptions{})
			if err != nil {
				b.Fatal(err)
			}
			all[i] = r
			wg.Go(func() { _, _ = r.Next(ctx, 1, 1) })
		}
		time.Sleep(3 * time.Second)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(residentOf(pid)-node)/readers, "node-KiB/reader")
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1024/readers, "own-heap-KiB/reader")
		b.ReportMetric(float64(after.StackInuse-before.StackInuse)/1024/readers, "own-stack-KiB/reader")
		idle := cpuOf(pid)
		time.Sleep(3 * time.Second)
		b.ReportMetric(float64((cpuOf(pid)-idle).Milliseconds())/3, "node-ms-CPU/s")
		cancel()
		wg.Wait()
		for _, r := range all {
			r.Close()
		}
	}
}
