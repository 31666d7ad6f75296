//go:build unix

package app

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/dapr/go-sdk/client"
	"github.com/dapr/go-sdk/service/common"
	daprd "github.com/dapr/go-sdk/service/grpc"

	"github.com/mecha-project/mecha/test/faults/messaging/history"
)

// consumer handles messages: it waits a little, writes the effect to the sink, and says so.
type consumer struct {
	*worker
	mu    sync.Mutex
	fails map[string]int // guarded by mu; how often messages were refused
}

func newConsumer(w *worker) *consumer { return &consumer{worker: w, fails: map[string]int{}} }

// read is the body of a message. One that cannot be read ends the app: it is not what was sent.
func (c *consumer) read(raw []byte) body {
	var b body
	err := json.Unmarshal(raw, &b)
	if err == nil && b.Key == "" { // published with Dapr's API, consumed with the native one
		var event struct{ Data body }
		err = json.Unmarshal(raw, &event)
		b = event.Data
	}
	if err != nil || b.ID == "" {
		c.must(fmt.Errorf("a message came damaged: %q", raw))
	}
	return b
}

// handle is the app's work for one message; false means that it refuses it.
func (c *consumer) handle(raw []byte) bool {
	b := c.read(raw)
	e := history.Event{Group: c.Group, ID: b.ID, Key: b.Key, Seq: b.Seq, Part: history.NoPart}
	tell := func(k history.Kind) {
		e.Kind = k
		c.note(e)
	}
	tell(history.Delivered)
	time.Sleep(c.takes(b))
	if c.refuses(b) {
		e.Remedy = history.Retry
		if c.DeadLetter != "" {
			e.Remedy = history.DeadLetter
		}
		tell(history.Nacked)
		return false
	}
	done := e
	done.Kind, done.Topic = history.Effect, c.Topic
	c.must(c.sink.Add(done))
	tell(history.Acked)
	return true
}

// takes is how long a message takes: half of Handler on average, if it does not say itself.
func (c *consumer) takes(b body) time.Duration {
	if b.Long > 0 {
		return b.Long
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(c.dice.Int64N(int64(c.Handler) + 1))
}

func (c *consumer) refuses(b body) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.Fails >= 0 && c.fails[b.ID] >= b.Fails {
		return false
	}
	c.fails[b.ID]++
	return true
}

// bury takes what came to the dead-letter topic.
func (c *consumer) bury(raw []byte) {
	b := c.read(raw)
	c.note(history.Event{Kind: history.DeadLettered, Group: c.Group, ID: b.ID, Key: b.Key, Seq: b.Seq, Part: history.NoPart})
}

// stream subscribes with streams that the app opens, and opens them again when they end.
func (w *worker) stream(ctx context.Context) error {
	dapr, err := w.connect()
	if err != nil {
		return err
	}
	defer dapr.Close()
	c := newConsumer(w)
	var all sync.WaitGroup
	all.Go(func() {
		c.subscribe(ctx, dapr, c.Topic, func(m *client.SubscriptionMessage) {
			if c.handle(m.RawData) {
				_ = m.Success() // the stream may have ended; it comes again then
			} else {
				_ = m.Retry()
			}
		})
	})
	if w.DeadLetter != "" {
		all.Go(func() {
			c.subscribe(ctx, dapr, w.DeadLetter, func(m *client.SubscriptionMessage) { c.bury(m.RawData); _ = m.Success() })
		})
	}
	all.Wait()
	return nil
}

// subscribe keeps a subscription, and waits for its handlers in the end.
func (c *consumer) subscribe(ctx context.Context, dapr client.Client, topic string, handle func(*client.SubscriptionMessage)) {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for ctx.Err() == nil {
		o := client.SubscriptionOptions{PubsubName: c.PubSub, Topic: topic, Metadata: c.limits()}
		if topic == c.Topic && c.DeadLetter != "" {
			o.DeadLetterTopic = &c.DeadLetter
		}
		sub, err := dapr.Subscribe(context.WithoutCancel(ctx), o)
		if err != nil {
			rest(ctx, 50*time.Millisecond)
			continue
		}
		if topic == c.Topic {
			c.note(history.Event{Kind: history.Opened, Group: c.Group, Part: history.NoPart})
		}
		end := context.AfterFunc(ctx, func() { _ = sub.Close() })
		for {
			m, err := sub.Receive()
			if err != nil {
				break
			}
			handlers.Go(func() { handle(m) })
		}
		end()
		_ = sub.Close()
	}
}

// limits are the subscription's metadata.
func (c *consumer) limits() map[string]string {
	if c.MaxInFlight == 0 {
		return nil
	}
	return map[string]string{"maxInFlight": strconv.Itoa(c.MaxInFlight)}
}

// callback is a gRPC app that the sidecar calls.
func (w *worker) callback(ctx context.Context) error {
	s, err := daprd.NewService(w.Listen)
	if err != nil {
		return err
	}
	c := newConsumer(w)
	err = s.AddTopicEventHandler(&common.Subscription{PubsubName: w.PubSub, Topic: w.Topic, Route: "/" + w.Topic, DeadLetterTopic: w.DeadLetter, Metadata: c.limits()},
		func(_ context.Context, e *common.TopicEvent) (bool, error) {
			if c.handle(e.RawData) {
				return false, nil
			}
			return true, fmt.Errorf("%s is refused", e.ID)
		})
	if err == nil && w.DeadLetter != "" {
		err = s.AddTopicEventHandler(&common.Subscription{PubsubName: w.PubSub, Topic: w.DeadLetter, Route: "/" + w.DeadLetter},
			func(_ context.Context, e *common.TopicEvent) (bool, error) { c.bury(e.RawData); return false, nil })
	}
	if err != nil {
		return err
	}
	w.note(history.Event{Kind: history.Opened, Group: w.Group, Part: history.NoPart})
	ended := make(chan error, 1)
	go func() { ended <- s.Start() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return s.GracefulStop()
	}
}
