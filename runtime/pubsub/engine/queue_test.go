package engine

import (
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

func TestQueueKeepsOrderAndRoom(t *testing.T) {
	var q queue[int]
	next, want := 0, 0
	for round := range 1000 {
		for range round%7 + 1 {
			q.push(next)
			next++
		}
		for range min(q.len(), round%5+1) {
			if got := q.pop(); got != want {
				t.Fatalf("popped %d, want %d", got, want)
			}
			want++
		}
		for q.len() > 20 {
			if got := q.pop(); got != want {
				t.Fatalf("popped %d, want %d", got, want)
			}
			want++
		}
	}
	if cap(q.items) > 128 {
		t.Errorf("the queue has room for %d after at most 27 at once", cap(q.items))
	}
}

// validSeat is a seat whose partitions are the member's.
type validSeat struct{ seat }

func (validSeat) Valid(Part, uint64) bool { return true }

// TestDueWithoutRoom: a repetition that is due while the app takes nothing more must not have the
// dispatcher look again and again.
func TestDueWithoutRoom(t *testing.T) {
	c, err := NewConsumer(ConsumeOptions{Topics: []string{"orders"}, Group: "g", Ordering: OrderNone, HandlerTimeout: -1,
		Limits: Limits{Messages: 1, PartitionMessages: 4}, Retry: Retry{First: time.Millisecond, Attempts: -1}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.seat, c.life = validSeat{}, t.Context()
	o := newOwned(c, group.Claim{Part: Part{Topic: "orders"}, Epoch: 1})
	o.phase, o.told = owning, true
	o.lane = lane.New(lane.Options{Ordering: OrderNone, Attempts: -1, Backoff: c.backoff, InFlight: 4, InFlightBytes: 1 << 20,
		Window: 100, Buffer: 1 << 20, MaxProgress: 1 << 10}, lane.Progress{Watermark: 1})
	c.owned[o.part] = o
	o.lane.Offer([]block.LogRecord{{Position: 1}, {Position: 2}})
	o.list()
	now := time.Now()
	if ev, _ := c.next(now); ev == nil {
		t.Fatal("nothing is delivered")
	}
	if err := c.Nack(Refusal{Part: o.part, Epoch: 1, Position: 1, Delay: time.Second}); err != nil {
		t.Fatal(err)
	}
	if ev, _ := c.next(now); ev == nil {
		t.Fatal("the second is not delivered")
	}
	now = now.Add(time.Hour)
	for range 10 {
		ev, due := c.next(now)
		if ev != nil {
			t.Fatalf("%#v without room", ev)
		}
		if due.IsZero() || due.After(now) {
			if err := c.Ack(o.part, 1, []Range{{From: 2, To: 2}}); err != nil {
				t.Fatal(err)
			}
			if ev, _ := c.next(now); ev == nil {
				t.Fatal("what was due is not delivered when there is room")
			}
			return
		}
	}
	t.Fatal("the dispatcher is told to look again at once, for ever")
}
