package pubsub_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/memory"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

func inMemory(t testing.TB) block.PubSub {
	t.Helper()
	b, err := memory.NewPubSub(block.Env{}, memory.DefaultPubSubConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}

// TestNothingLostInOrder is the promise, end to end on a real backend: an app that fails a
// third of its deliveries, with members that leave and come back, gets every message, each key
// in order.
func TestNothingLostInOrder(t *testing.T) {
	const keys, each = 8, 25
	b := inMemory(t)
	var mu sync.Mutex
	done := map[string][]int{} // by key, in order of success
	left := keys * each
	over := make(chan struct{})
	a := app(func(_ context.Context, r *call.Request) (*call.Response, error) {
		key, n, _ := strings.Cut(dataOf(r.Data), " ")
		seq, err := strconv.Atoi(n)
		if err != nil {
			return nil, err
		}
		if seq%each == 7 && r.Header.Get(pubsub.AttemptHeader) == "1" || rand.IntN(50) == 0 {
			return status(500, "")
		}
		mu.Lock()
		defer mu.Unlock()
		done[key] = append(done[key], seq)
		if left--; left == 0 {
			close(over)
		}
		return status(200, "")
	})
	s := open(t, b, nil, pubsub.Options{App: a})
	defer drain(t, s)
	subscribe(t, s, sub("orders"))
	for i := range each {
		for k := range keys {
			err := s.Publish(t.Context(), pubsub.PublishRequest{PubSub: "ps", Topic: "orders", Data: fmt.Appendf(nil, "k%d %d", k, i),
				Metadata: map[string]string{"partitionKey": fmt.Sprint("k", k)}})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	select {
	case <-over:
	case <-time.After(60 * time.Second):
		t.Fatal("messages are missing")
	}
	mu.Lock()
	defer mu.Unlock()
	for key, seqs := range done {
		for i, seq := range seqs {
			if seq != i {
				t.Errorf("key %s: message %d came at place %d: %v", key, seq, i, seqs)
				break
			}
		}
	}
}

// BenchmarkPublish is a publish without I/O: envelope, checks, the call, a broker that takes
// everything.
func BenchmarkPublish(b *testing.B) {
	s := open(b, void{}, nil, pubsub.Options{})
	r := pubsub.PublishRequest{PubSub: "ps", Topic: "orders", ContentType: "application/json", Data: order(1024), Trace: pubsub.Trace{Parent: parent}}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Publish(b.Context(), r); err != nil {
			b.Fatal(err)
		}
	}
}

type void struct{ block.PubSub }

func (void) Publish(context.Context, []block.Message) []error { return nil }

func order(n int) []byte {
	return fmt.Appendf(nil, `{"text":%q}`, strings.Repeat("x", n-11))
}

// BenchmarkPublishDeliver is one message from publish to the answer of an app that does
// nothing, through the in-memory broker.
func BenchmarkPublishDeliver(b *testing.B) {
	done := make(chan struct{}, 64)
	s := open(b, inMemory(b), nil, pubsub.Options{App: app(func(context.Context, *call.Request) (*call.Response, error) {
		done <- struct{}{}
		return &call.Response{Status: 200}, nil
	})})
	defer drain(b, s)
	subscribe(b, s, sub("orders"))
	r := pubsub.PublishRequest{PubSub: "ps", Topic: "orders", ContentType: "application/json", Data: order(1024), Trace: pubsub.Trace{Parent: parent}}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Publish(b.Context(), r); err != nil {
			b.Fatal(err)
		}
		<-done
	}
}
