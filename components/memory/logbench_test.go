package memory_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mecha-project/mecha/components/block"
)

// BenchmarkLog: records of 256 bytes, appended and read in batches.
func BenchmarkLog(b *testing.B) {
	for _, size := range []int{1, 16, 64} {
		for _, kind := range []string{"plain", "with IDs", "with metadata"} {
			b.Run(fmt.Sprintf("%s, %d at once", kind, size), func(b *testing.B) {
				_, p := openLog(b, nil)
				p.Consumed("t", "g", 0, 0)
				r, err := p.OpenReader(b.Context(), "t", 0, 0, block.ReadOptions{})
				if err != nil {
					b.Fatal(err)
				}
				batch := slices.Repeat([]block.LogRecord{rec("t", 0, strings.Repeat("x", 256))}, size)
				if kind == "with metadata" {
					for i := range batch {
						batch[i].Metadata = map[string]string{"cloudevent.id": "x", "cloudevent.type": "y", "traceparent": "z"}
					}
				}
				b.ReportAllocs()
				ctx := b.Context()
				n := 0
				for b.Loop() {
					if kind == "with IDs" {
						for i := range batch {
							batch[i].ID = fmt.Sprint(n + i)
						}
					}
					p.Append(ctx, batch)
					for read := 0; read < size; {
						recs, err := r.Next(ctx, size, 1<<20)
						if err != nil {
							b.Fatal(err)
						}
						read += len(recs)
					}
					n += size
					p.Consumed("t", "g", 0, uint64(n))
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
			})
		}
	}
}

// BenchmarkLogGroups is one process that appends to 32 partitions and reads each with a reader that
// waits: a goroutine per partition, as the engine has.
func BenchmarkLogGroups(b *testing.B) {
	const partitions, size = 32, 16
	_, p := openLog(b, nil)
	ctx, stop := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	read := make(chan int, 1024)
	for part := range int32(partitions) {
		p.Consumed("t", "g", part, 0)
		r, err := p.OpenReader(ctx, "t", part, 0, block.ReadOptions{})
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			for {
				recs, err := r.Next(ctx, 256, 1<<20)
				if err != nil {
					return
				}
				p.Consumed("t", "g", part, recs[len(recs)-1].Position+1)
				read <- len(recs)
			}
		})
	}
	batch := slices.Repeat([]block.LogRecord{rec("t", 0, strings.Repeat("x", 256))}, size)
	b.ReportAllocs()
	sent, got := 0, 0
	for i := 0; b.Loop(); i++ {
		for n := range batch {
			batch[n].Partition = int32((i*size + n) * 7 % partitions)
		}
		p.Append(ctx, batch)
		for sent += size; sent-got > 4096; {
			got += <-read
		}
	}
	for got < sent {
		got += <-read
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(sent), "ns/record")
	stop()
	wg.Wait()
}
