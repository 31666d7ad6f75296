package engine_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/memory"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// The figures of docs/performance.md are those of the benchmarks; the test sees to it that they stay bounded.

const mib = 1 << 20

// heap is the bytes of live objects.
func heap() float64 {
	runtime.GC()
	runtime.GC() // what a pool held goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// counter runs a consumer that keeps nothing: each frame is handed to handle, and counted then.
//
// It returns when the consumer has all partitions: what is published before a group is known, the broker need not
// keep for it.
func counter(t testing.TB, e *engine.Engine, partitions int, handle func(*engine.Consumer, engine.Deliver)) (n *atomic.Int64) {
	t.Helper()
	c, err := engine.NewConsumer(engine.ConsumeOptions{Topics: []string{"t"}, Group: "g", AutoRevoke: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("NewConsumer: %v", err)
	}
	n = &atomic.Int64{}
	done := make(chan error, 1)
	all := make(chan struct{})
	go func() {
		done <- c.Run(context.Background(), e, func(ev engine.Event) error {
			switch ev := ev.(type) {
			case engine.Deliver:
				handle(c, ev)
				n.Add(int64(len(ev.Messages)))
			case engine.Assigned:
				if partitions -= len(ev.Parts); partitions == 0 {
					close(all)
				}
			}
			return nil
		})
	}()
	t.Cleanup(func() {
		c.Close(false)
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-all:
	case <-time.After(patience):
		t.Fatal("the consumer does not get its partitions")
	}
	return n
}

func ackEach(c *engine.Consumer, d engine.Deliver) {
	for _, m := range d.Messages {
		_ = c.Ack(d.Part, d.Epoch, []engine.Range{{From: m.Position, To: m.Position}})
	}
}

// reach waits until there are as many.
func reach(t testing.TB, n *atomic.Int64, want int) {
	t.Helper()
	for late := time.Now().Add(2 * time.Minute); n.Load() < int64(want); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("%d of %d messages were delivered", n.Load(), want)
		}
	}
}

// manyKeys consumes messages of 256 bytes, each of a key of its own, and tells what the heap has grown by when
// all are done, and how far it had in between.
func manyKeys(t testing.TB, keys int) (after, most float64) {
	e := newBroker(t, 32).engine()
	n := counter(t, e, 32, ackEach)
	pour := func(from, to int) {
		p := engine.NewPublisher(engine.PublishOptions{Topic: "t"})
		entries := make([]engine.Entry, 0, 1000)
		value := make([]byte, 256)
		for i := from; i < to; i++ {
			entries = append(entries, engine.Entry{Message: block.Message{Key: fmt.Sprintf("customer-%d", i), Data: value}})
			if len(entries) < cap(entries) && i < to-1 {
				continue
			}
			for _, r := range p.Publish(context.Background(), e, entries, false) {
				if r.Err != nil {
					t.Fatalf("Publish: %v", r.Err)
				}
			}
			entries = entries[:0]
			reach(t, n, i-10_000) // not more than the broker keeps
		}
		reach(t, n, to)
	}
	pour(0, 20_000) // the broker's history is full, pools are
	before := heap()
	for from := 20_000; from < keys+20_000; from += keys / 10 {
		pour(from, from+keys/10)
		most = max(most, heap()-before)
	}
	return heap() - before, most
}

// blockedKey consumes a partition whose first message is never answered, until nothing more is delivered. It
// tells what the heap grew by meanwhile, and how many messages were delivered. own says whether the others
// have keys of their own; else all are of the blocked one.
func blockedKey(t testing.TB, own bool, size int) (grown float64, delivered int) {
	const stored = 12_000
	c := memory.DefaultPubSubConfig()
	c.Partitions, c.SessionTTL, c.MaxMessages, c.MaxBytes, c.History = 1, time.Second, 2*stored, conf.GiB, 2*stored
	e := (&broker{t: t, hub: memory.NewHub(c)}).engine()
	p := engine.NewPublisher(engine.PublishOptions{Topic: "t"})
	for from := 0; from < stored; from += 1000 {
		entries := make([]engine.Entry, 1000)
		for i := range entries {
			entries[i].Message = block.Message{Key: "blocked", Data: make([]byte, size)}
			if own && from+i > 0 {
				entries[i].Key = fmt.Sprintf("customer-%d", from+i)
			}
		}
		for _, r := range p.Publish(context.Background(), e, entries, false) {
			if r.Err != nil {
				t.Fatalf("Publish: %v", r.Err)
			}
		}
	}
	before := heap()
	n := counter(t, e, 1, func(c *engine.Consumer, d engine.Deliver) {
		if d.Messages[0].Key == "blocked" {
			d.Messages = d.Messages[1:]
		}
		ackEach(c, d)
	})
	reach(t, n, 1)
	for last := int64(0); n.Load() != last; time.Sleep(500 * time.Millisecond) { // nothing tells that nothing comes
		last = n.Load()
	}
	return heap() - before, int(n.Load())
}

// TestMemoryIsBounded: keys that are done cost nothing, and a blocked one no more than its window and buffer.
func TestMemoryIsBounded(t *testing.T) {
	if _, most := manyKeys(t, 20_000); most > 10*mib {
		t.Errorf("20 000 keys one after the other took %.1f MiB; they are done", most/mib)
	}
	grown, n := blockedKey(t, true, 256)
	if grown > 8*mib || n != 10_000 {
		t.Errorf("a blocked key took %.1f MiB, and %d messages went past it; want the window of 10000", grown/mib, n)
	}
	// All behind it wait: bounded by the buffer, twice 4 MiB, with what an entry takes.
	if grown, n := blockedKey(t, false, 4096); grown > 12*mib || n != 1 {
		t.Errorf("a blocked key with all messages took %.1f MiB, %d were delivered", grown/mib, n)
	}
}

// BenchmarkMemoryOfKeys is a million keys, each with one message, one after the other.
func BenchmarkMemoryOfKeys(b *testing.B) {
	for range b.N {
		after, most := manyKeys(b, 1_000_000)
		b.ReportMetric(after/mib, "MiB-after")
		b.ReportMetric(most/mib, "MiB-most")
	}
}

// BenchmarkMemoryOfABlockedKey is a window that is full because its first message is never answered.
func BenchmarkMemoryOfABlockedKey(b *testing.B) {
	for _, own := range []bool{true, false} {
		for _, size := range []int{256, 4096} {
			b.Run(fmt.Sprintf("others=%v/size=%d", own, size), func(b *testing.B) {
				for range b.N {
					grown, n := blockedKey(b, own, size)
					b.ReportMetric(grown/mib, "MiB")
					b.ReportMetric(float64(n), "delivered")
				}
			})
		}
	}
}
