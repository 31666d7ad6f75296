package mecha_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/api/nativeapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
	mecha "github.com/mecha-project/mecha/sdk/go"
)

// flood is an engine that costs next to nothing: it delivers messages as fast as they are acknowledged,
// and has published what it is handed.
type flood struct {
	nativeapi.Messaging
	parts, window int
}

type flooding struct {
	nativeapi.Consumer
	f     *flood
	tell  func(engine.Event)
	close chan struct{}
	once  sync.Once
	mu    sync.Mutex
	next  []uint64
}

func (f *flood) OpenConsumer(_ context.Context, _ string, _ engine.ConsumeOptions, tell func(engine.Event)) (nativeapi.Consumer, engine.ConsumeInfo, error) {
	return &flooding{f: f, tell: tell, close: make(chan struct{}), next: make([]uint64, f.parts)}, engine.ConsumeInfo{}, nil
}

func (c *flooding) Run(ctx context.Context) error {
	var parts []engine.AssignedPart
	for p := range c.f.parts {
		parts = append(parts, engine.AssignedPart{Part: engine.Part{Topic: "orders", ID: int32(p)}, Epoch: 1})
	}
	c.tell(engine.Assigned{Assignment: 1, Parts: parts})
	for p := range c.f.parts {
		c.more(int32(p), c.f.window/c.f.parts)
	}
	select {
	case <-c.close:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var value = make([]byte, 256)

func (c *flooding) more(p int32, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ms := make([]engine.Message, n)
	now := time.Now()
	for i := range ms {
		c.next[p]++
		ms[i] = engine.Message{LogRecord: block.LogRecord{Message: block.Message{Key: "customer-4711", Data: value}, Position: c.next[p], Time: now}, Attempt: 1}
	}
	c.tell(engine.Deliver{Part: engine.Part{Topic: "orders", ID: p}, Epoch: 1, Messages: ms})
}

func (c *flooding) Ack(p engine.Part, _ uint64, ranges []engine.Range) error {
	n := 0
	for _, r := range ranges {
		n += int(r.To-r.From) + 1
	}
	c.more(p.ID, n)
	return nil
}

func (c *flooding) Close(bool) { c.once.Do(func() { close(c.close) }) }

func (f *flood) OpenPublisher(context.Context, string, engine.PublishOptions) (nativeapi.Publisher, engine.PublishInfo, error) {
	return &sink{}, engine.PublishInfo{}, nil
}

type sink struct{ n uint64 }

func (s *sink) Publish(_ context.Context, b engine.Batch, done func([]engine.Receipt)) {
	rs := make([]engine.Receipt, len(b.Entries))
	for i := range rs {
		s.n++
		rs[i].Position = s.n
	}
	done(rs)
}
func (s *sink) Resume(string, *int32) {}
func (s *sink) Close()                {}

// BenchmarkConsume is a message of 256 bytes through edge, gRPC and SDK to a handler that does nothing,
// and its acknowledgement: both sides in one process.
func BenchmarkConsume(b *testing.B) {
	_, c := serve(b, &flood{parts: 16, window: 1024}, 4<<20)
	ctx, cancel := context.WithCancel(b.Context())
	var n atomic.Int64
	b.ReportAllocs()
	before := cpuTime()
	b.ResetTimer()
	err := c.Consume(ctx, mecha.ConsumeOptions{PubSub: "pubsub", Topics: []string{"orders"}, Concurrency: 16, Log: quiet}, func(context.Context, *mecha.Message) error {
		if n.Add(1) == int64(b.N) {
			cancel()
		}
		return nil
	})
	b.StopTimer()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/float64(n.Load())/1e3, "cpu-µs/op")
	b.ReportMetric(float64(n.Load())/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkPublish is a message of 256 bytes the other way, and its receipt.
func BenchmarkPublish(b *testing.B) {
	_, c := serve(b, &flood{}, 4<<20)
	p := publisher(b, c, mecha.PublisherOptions{})
	b.ReportAllocs()
	before := cpuTime()
	b.ResetTimer()
	for range b.N {
		p.PublishAsync(b.Context(), mecha.Entry{Key: "customer-4711", Value: value}, func(_ mecha.Receipt, err error) {
			if err != nil {
				b.Error(err)
			}
		})
	}
	if err := p.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/float64(b.N)/1e3, "cpu-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}
