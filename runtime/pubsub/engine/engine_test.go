package engine_test

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/memory"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for.
const patience = 20 * time.Second

// broker is an in-memory broker that several engines of a test use, as sidecars would.
type broker struct {
	t   testing.TB
	hub *memory.Hub
}

func newBroker(t testing.TB, partitions int) *broker {
	c := memory.DefaultPubSubConfig()
	c.Partitions, c.SessionTTL = partitions, time.Second
	return &broker{t: t, hub: memory.NewHub(c)}
}

// engine opens an engine as another sidecar would.
func (b *broker) engine() *engine.Engine {
	p := b.hub.PubSub()
	e := engine.New(p, slog.New(slog.DiscardHandler))
	b.t.Cleanup(func() {
		e.Close()
		if err := p.Close(context.Background()); err != nil {
			b.t.Errorf("Close: %v", err)
		}
	})
	return e
}

func publish(t testing.TB, e *engine.Engine, topic string, keys int, from, to int) {
	t.Helper()
	p := engine.NewPublisher(engine.PublishOptions{Topic: topic})
	var entries []engine.Entry
	for i := from; i < to; i++ {
		entries = append(entries, engine.Entry{Message: block.Message{Key: fmt.Sprintf("k%d", i%keys), Data: []byte(strconv.Itoa(i))}})
	}
	for _, r := range p.Publish(context.Background(), e, entries, false) {
		if r.Err != nil {
			t.Fatalf("Publish: %v", r.Err)
		}
	}
}

// app is a consumer and what it was told.
type app struct {
	t    testing.TB
	c    *engine.Consumer
	stop context.CancelFunc
	done chan error

	holdOn bool // does not answer a Revoking

	mu     sync.Mutex
	events []engine.Event
	got    []engine.Message
	news   chan struct{}
}

// consume runs a consumer; handle, when not nil, is called with every delivery from the consumer's goroutine.
func consume(t testing.TB, e *engine.Engine, o engine.ConsumeOptions, handle func(*app, engine.Deliver)) *app {
	t.Helper()
	if o.Group == "" {
		o.Group = "g"
	}
	c, err := engine.NewConsumer(o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("NewConsumer: %v", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &app{t: t, c: c, stop: stop, holdOn: o.AutoRevoke, done: make(chan error, 1), news: make(chan struct{}, 1)}
	go func() {
		a.done <- c.Run(ctx, e, func(ev engine.Event) error {
			a.mu.Lock()
			a.events = append(a.events, ev)
			d, is := ev.(engine.Deliver)
			if is {
				a.got = append(a.got, d.Messages...)
			}
			a.mu.Unlock()
			select {
			case a.news <- struct{}{}:
			default:
			}
			if is && handle != nil {
				handle(a, d)
			}
			if r, is := ev.(engine.Revoking); is && !a.holdOn {
				if err := c.RevokeDone(r.Assignment, nil); err != nil {
					t.Errorf("RevokeDone: %v", err)
				}
			}
			return nil
		})
	}()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-a.done:
			a.done <- err
		case <-time.After(patience):
			t.Error("Run did not return")
		}
	})
	return a
}

func ackAll(a *app, d engine.Deliver) {
	var ranges []engine.Range
	for _, m := range d.Messages {
		ranges = append(ranges, engine.Range{From: m.Position, To: m.Position})
	}
	_ = a.c.Ack(d.Part, d.Epoch, ranges)
}

// wait returns when ok holds.
func (a *app) wait(what string, ok func() bool) {
	a.t.Helper()
	late := time.After(patience)
	for {
		a.mu.Lock()
		yes := ok()
		a.mu.Unlock()
		if yes {
			return
		}
		select {
		case <-a.news:
		case <-time.After(20 * time.Millisecond):
		case <-late:
			a.t.Fatalf("waited too long for %s; %d messages, events %+v", what, len(a.got), a.events[max(0, len(a.events)-10):])
		}
	}
}

func (a *app) close(drain bool) {
	a.t.Helper()
	a.c.Close(drain)
	select {
	case err := <-a.done:
		a.done <- err
		if err != nil {
			a.t.Errorf("Run: %v, want nil after Close", err)
		}
	case <-time.After(patience):
		a.t.Fatal("Run did not return after Close")
	}
}

func TestOrderOfKeys(t *testing.T) {
	b := newBroker(t, 4)
	e := b.engine()
	publish(t, e, "t", 7, 0, 500)
	a := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}}, ackAll)
	a.wait("all messages", func() bool { return len(a.got) == 500 })
	last := map[string]int{}
	for _, m := range a.got {
		i, _ := strconv.Atoi(string(m.Data))
		if before, ok := last[m.Key]; ok && i != before+7 {
			t.Errorf("key %s: %d after %d", m.Key, i, before)
		}
		last[m.Key] = i
	}
	a.close(true)
	again := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}}, ackAll)
	publish(t, e, "t", 7, 500, 501)
	again.wait("the new message", func() bool { return len(again.got) > 0 })
	if len(again.got) != 1 || string(again.got[0].Data) != "500" {
		t.Errorf("a group goes on at %q, want 500", again.got[0].Data)
	}
}

// values are the bodies of messages, as numbers.
func values(ms []engine.Message) (out []int) {
	for _, m := range ms {
		n, _ := strconv.Atoi(string(m.Data))
		out = append(out, n)
	}
	return out
}
