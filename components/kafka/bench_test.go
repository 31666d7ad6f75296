package kafka_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mecha-project/mecha/components/block"
)

// BenchmarkInvoke appends records of 1 KiB from 32 callers.
func BenchmarkInvoke(b *testing.B) {
	k := sharedKafka(b)
	topic := fresh("bench")
	k.CreateTopic(b, topic, 4)
	out := opened(b, "brokers", k.Addr, "publishTopic", topic).(block.Output)
	data := strings.Repeat("x", 1024)
	b.SetParallelism(32)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := out.Invoke(context.Background(), create(data)); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkRead takes records of 1 KiB from four partitions.
func BenchmarkRead(b *testing.B) {
	k := sharedKafka(b)
	topic := fresh("bench")
	k.CreateTopic(b, topic, 4)
	c := client(b, k, kgo.DefaultProduceTopic(topic))
	data := make([]byte, 1024)
	var left atomic.Int64
	left.Store(int64(b.N))
	for range b.N {
		c.Produce(context.Background(), &kgo.Record{Value: data}, nil)
	}
	if err := c.Flush(within(b)); err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	b.ReportAllocs()
	b.ResetTimer()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = opened(b, "brokers", k.Addr, "topics", topic, "consumerGroup", topic, "initialOffset", "oldest").(block.Input).Read(ctx,
			func(context.Context, block.BindingEvent) ([]byte, error) {
				if left.Add(-1) == 0 {
					close(done)
				}
				return nil, nil
			})
	}()
	<-done
	b.StopTimer()
	cancel()
	<-over
}
