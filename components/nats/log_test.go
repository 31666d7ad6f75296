package nats_test

import (
	"context"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/nats"
)

func embeddedLog(t testing.TB, dir, component string, items ...string) block.Log {
	t.Helper()
	return embeddedPubSub(t, dir, component, items...)
}

func serverLog(t testing.TB, url, component string, items ...string) block.Log {
	t.Helper()
	return serverPubSub(t, url, component, items...)
}

func rec(topic string, partition int32, data string) block.LogRecord {
	return block.LogRecord{Message: block.Message{Topic: topic, Data: []byte(data)}, Partition: partition}
}

func reader(t testing.TB, l block.Log, topic string, partition int32, from uint64, opts block.ReadOptions) block.LogReader {
	t.Helper()
	r, err := l.OpenReader(t.Context(), topic, partition, from, opts)
	if err != nil {
		t.Fatalf("OpenReader: %v (%v)", err, fault.Of(err))
	}
	t.Cleanup(r.Close)
	return r
}

// read takes n records.
func read(t testing.TB, r block.LogReader, n int) []block.LogRecord {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all []block.LogRecord
	for len(all) < n {
		got, err := r.Next(ctx, n-len(all), 1<<20)
		if err != nil {
			t.Fatalf("Next after %d of %d records: %v (%v)", len(all), n, err, fault.Of(err))
		}
		all = append(all, got...)
	}
	return all
}

func TestEmbeddedLog(t *testing.T) {
	dir := nodeDir(t)
	blocktest.Log(t, func(t *testing.T) func() block.Log {
		return func() block.Log { return embeddedLog(t, dir, "pubsub") }
	})
}

func TestServerLog(t *testing.T) {
	url := startServer(t).ClientURL()
	blocktest.Log(t, func(t *testing.T) func() block.Log {
		return func() block.Log {
			l := serverLog(t, url, "pubsub")
			nats.ParkAfter(l, 50*time.Millisecond) // so that readers of the suite do
			return l
		}
	})
}
