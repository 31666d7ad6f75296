package engine_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// TestUnparkUnderLoad: keys that fail again and again while they are brought back, and while more of their
// messages arrive, lose none and keep their order.
func TestUnparkUnderLoad(t *testing.T) {
	const keys, each = 6, 150
	b := newBroker(t, 2)
	e := b.engine()
	var mu sync.Mutex
	fails := map[string]int{}
	done := map[string][]int{}
	total := 0
	handle := func(a *app, d engine.Deliver) {
		for i := range d.Messages {
			go func() {
				m := &d.Messages[i]
				var n int
				_, _ = fmt.Sscan(string(m.Data), &n)
				mu.Lock()
				bad := n%40 == 5 && fails[m.Key+string(m.Data)] < 5
				if bad {
					fails[m.Key+string(m.Data)]++
				} else {
					done[m.Key] = append(done[m.Key], n)
					total++
				}
				mu.Unlock()
				if bad {
					_ = a.c.Nack(engine.Refusal{Part: d.Part, Epoch: d.Epoch, Position: m.Position, Reason: "bad day"})
				} else {
					_ = a.c.Ack(d.Part, d.Epoch, []engine.Range{{From: m.Position, To: m.Position}})
				}
			}()
		}
	}
	consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}, Retry: engine.Retry{First: time.Millisecond, Attempts: 2, Then: engine.RemedyPark}}, handle)
	go func() {
		p := engine.NewPublisher(engine.PublishOptions{Topic: "t"})
		for i := range each {
			var batch []engine.Entry
			for k := range keys {
				batch = append(batch, engine.Entry{Message: block.Message{Key: fmt.Sprint("k", k), Data: fmt.Append(nil, i)}})
			}
			p.Publish(context.Background(), e, batch, false)
			time.Sleep(2 * time.Millisecond)
		}
	}()
	late := time.Now().Add(patience)
	for {
		mu.Lock()
		n := total
		mu.Unlock()
		if n == keys*each {
			break
		}
		if time.Now().After(late) {
			parked, _, err := e.ListParked(context.Background(), "g", "t", "", 100)
			t.Fatalf("%d of %d messages; parked %+v, %v", n, keys*each, parked, err)
		}
		parked, _, _ := e.ListParked(context.Background(), "g", "t", "", 100)
		for _, k := range parked {
			_, _ = e.Unpark(context.Background(), "g", "t", k.ID, k.Key, false)
		}
		time.Sleep(5 * time.Millisecond)
	}
	for key, got := range done {
		for i, n := range got {
			if n != i {
				t.Errorf("key %s: %d came at place %d", key, n, i)
				break
			}
		}
	}
}
