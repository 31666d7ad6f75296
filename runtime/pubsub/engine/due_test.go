package engine_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/memory"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// TestTimeoutWithoutRoom: an app that is full of messages it never answers gets them again all the same.
func TestTimeoutWithoutRoom(t *testing.T) {
	b := newBroker(t, 1)
	e := b.engine()
	publish(t, e, "t", 1, 0, 1)
	o := engine.ConsumeOptions{Topics: []string{"t"}, HandlerTimeout: 50 * time.Millisecond, Retry: forever(), Limits: engine.Limits{Messages: 1}}
	a := consume(t, e, o, func(a *app, d engine.Deliver) {
		if d.Messages[0].Attempt > 1 {
			ackAll(a, d)
		}
	})
	a.wait("the message again", func() bool { return len(a.got) == 2 })
}

// TestRevokeWaitsForTheHandlersTime: a revocation that ends by itself ends when a message's time is over.
func TestRevokeWaitsForTheHandlersTime(t *testing.T) {
	b := newBroker(t, 1)
	e := b.engine()
	publish(t, e, "t", 1, 0, 1)
	o := engine.ConsumeOptions{Topics: []string{"t"}, HandlerTimeout: 300 * time.Millisecond, RevokeTimeout: time.Minute, LeaveTimeout: time.Minute, AutoRevoke: true}
	a := consume(t, e, o, nil)
	a.wait("the message", func() bool { return len(a.got) == 1 })
	a.close(true)
}

// TestParkedOutlivesHistory: a broker that keeps what is not consumed keeps what is parked.
func TestParkedOutlivesHistory(t *testing.T) {
	c := memory.DefaultPubSubConfig()
	c.Partitions, c.SessionTTL, c.History = 1, time.Second, 2
	b := &broker{t: t, hub: memory.NewHub(c)}
	e := b.engine()
	const n = 20
	broken := func(a *app, d engine.Deliver) {
		for _, m := range d.Messages {
			_ = a.c.Nack(engine.Refusal{Part: d.Part, Epoch: d.Epoch, Position: m.Position, Remedy: engine.RemedyPark})
		}
	}
	o := engine.ConsumeOptions{Topics: []string{"t"}, Retry: forever()}
	a := consume(t, e, o, broken)
	a.wait("the partition", func() bool {
		return slices.ContainsFunc(a.events, func(ev engine.Event) bool { _, is := ev.(engine.Assigned); return is })
	})
	publish(t, e, "t", 1, 0, n)
	ctx := context.Background()
	parked := func() int {
		keys, _, err := e.ListParked(ctx, "g", "t", "", 10)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0
		for _, k := range keys {
			sum += k.Messages
		}
		return sum
	}
	a.wait("all to be parked", func() bool { return parked() == n })
	a.close(true)
	a = consume(t, e, o, ackAll)
	if _, err := e.Unpark(ctx, "g", "t", 0, "k0", false); err != nil {
		t.Fatal(err)
	}
	a.wait("all that was parked", func() bool { return len(a.got) >= n })
	got := values(a.got)
	if !slices.IsSorted(got) || got[0] != 0 || len(got) != n {
		t.Errorf("of %d parked messages came back %v", n, got)
	}
}

// TestResetAndUnparkTogether: one command does not swallow another.
func TestResetAndUnparkTogether(t *testing.T) {
	b := newBroker(t, 1)
	e := b.engine()
	publish(t, e, "t", 2, 0, 6)
	o := engine.ConsumeOptions{Topics: []string{"t"}, Retry: forever()}
	a := consume(t, e, o, func(a *app, d engine.Deliver) {
		for _, m := range d.Messages {
			if m.Key == "k0" {
				_ = a.c.Nack(engine.Refusal{Part: d.Part, Epoch: d.Epoch, Position: m.Position, Remedy: engine.RemedyPark})
			} else {
				_ = a.c.Ack(d.Part, d.Epoch, []engine.Range{{From: m.Position, To: m.Position}})
			}
		}
	})
	ctx := context.Background()
	a.wait("k0 to be parked", func() bool {
		keys, _, err := e.ListParked(ctx, "g", "t", "", 10)
		return err == nil && len(keys) == 1 && keys[0].Messages == 3
	})
	a.close(true)
	if _, err := e.Unpark(ctx, "g", "t", 0, "k0", false); err != nil {
		t.Fatal(err)
	}
	if err := e.ResetGroup(ctx, "g", "t", nil, engine.Place{Kind: engine.AtPosition, Position: 4}); err != nil {
		t.Fatal(err)
	}
	a = consume(t, e, o, ackAll)
	a.wait("what is parked, and what the group was moved to", func() bool {
		got := values(a.got)
		return slices.Contains(got, 0) && slices.Contains(got, 2) && slices.Contains(got, 4) && slices.Contains(got, 5)
	})
}
