//go:build unix

package app

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/dapr/go-sdk/client"

	"github.com/mecha-project/mecha/test/faults/messaging/history"
)

const (
	// publishTimeout is how long one attempt may take.
	publishTimeout = 2 * time.Second
	// lastTries is how long a publisher that is to end goes on with what it has begun.
	lastTries = 20 * time.Second
)

// publish sends the messages of each key one after the other, and the next only when the last was
// acknowledged: what is in order at the publisher has to be in order everywhere. An attempt without
// an answer is made again under the same identity.
func (w *worker) publish(ctx context.Context) error {
	c, err := w.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	late, cancel := context.WithCancel(context.Background())
	defer cancel()
	context.AfterFunc(ctx, func() { time.AfterFunc(lastTries, cancel) })
	var all sync.WaitGroup
	for i, key := range w.Keys {
		all.Go(func() {
			if !rest(ctx, w.Pause*time.Duration(i)/time.Duration(len(w.Keys))) { // not all at once
				return
			}
			for seq := 1; ctx.Err() == nil; seq++ {
				b := body{ID: fmt.Sprintf("%s-%d", key, seq), Key: key, Seq: seq}
				if p, ok := w.Poison[key]; ok && p.Seq == seq {
					b.Fails = p.Fails
				}
				if !w.send(late, c, b) || !rest(ctx, w.Pause) {
					return
				}
			}
		})
	}
	all.Wait()
	return nil
}

// send publishes a message until it is acknowledged.
func (w *worker) send(ctx context.Context, c client.Client, b body) bool {
	e := history.Event{ID: b.ID, Key: b.Key, Seq: b.Seq, Part: history.NoPart}
	for {
		sent := e
		sent.Kind = history.Publishing
		w.note(sent)
		answered := e
		answered.Kind, answered.From = history.Published, history.Now()
		tctx, cancel := context.WithTimeout(ctx, publishTimeout)
		err := c.PublishEvent(tctx, w.PubSub, w.Topic, b, client.PublishEventWithMetadata(map[string]string{"partitionKey": b.Key, "cloudevent.id": b.ID}))
		cancel()
		answered.Outcome = history.OK
		if err != nil {
			answered.Outcome, answered.What = history.Unknown, err.Error()
		}
		w.note(answered)
		if err == nil {
			return true
		}
		if !rest(ctx, 20*time.Millisecond) {
			return false
		}
	}
}
