//go:build linux

package blocks

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	mecha "github.com/mecha-project/mecha/sdk/go"
	"github.com/mecha-project/mecha/test/harness"
)

// Two sidecars of one app publish and consume a topic, with the Go SDK on each, and are killed in turn
// while they do: nothing that was acknowledged is lost, nothing is published twice, and each key's messages have their
// first effect in order.
func TestSidecarKilledWhileMessaging(t *testing.T) {
	t.Parallel()
	const kills, keys = 6, 40
	options := harness.Options{AppID: "shop", Files: map[string]string{"broker.yaml": component("pubsub", "pubsub.embedded", "dataDir", nodeDir(t))}}
	topic := mecha.Topic{PubSub: "pubsub", Name: "orders"}
	silent := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	var mu sync.Mutex
	next := map[string]int{}      // the value that is due, by key
	places := map[string]string{} // where each message stands
	repeated := 0
	handle := func(_ context.Context, m *mecha.Message) error {
		i, err := strconv.Atoi(string(m.Value))
		if err != nil {
			t.Errorf("message %q", m.Value)
		}
		mu.Lock()
		defer mu.Unlock()
		name, place := fmt.Sprint(m.Key, "/", i), fmt.Sprint(m.Partition, "/", m.Position)
		if was := places[name]; was != "" && was != place {
			t.Errorf("message %s was published twice, at %s and %s", name, was, place)
		}
		places[name] = place
		switch {
		case i == next[m.Key]:
			next[m.Key]++
		case i < next[m.Key]:
			repeated++
		default:
			t.Errorf("key %s: %d while %d is due", m.Key, i, next[m.Key])
		}
		return nil
	}

	mesh := harness.NewMesh(t)
	var consumers sync.WaitGroup
	sides, ports := make([]*harness.Sidecar, 2), make([]harness.Ports, 2)
	clients := make([]*mecha.Client, 2)
	leaving, leave := context.WithCancel(ctx)
	for i := range sides {
		options.Ports = harness.Ports{}
		sides[i] = mesh.Start(options)
		ports[i] = sides[i].Ports()
		c, err := mecha.Dial(mecha.WithAddress(sides[i].Target()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients[i] = c
		consumers.Go(func() {
			if err := c.Consume(leaving, mecha.ConsumeOptions{PubSub: "pubsub", Topics: []string{"orders"}, Instance: fmt.Sprint("pod-", i), Log: silent}, handle); err != nil {
				t.Errorf("Consume: %v", err)
			}
		})
	}

	// Keys belong to one publisher each, for only that gives them an order.
	publishing, stop := context.WithCancel(ctx)
	var publishers sync.WaitGroup
	published := make([]map[string]int, 2)
	for i, c := range clients {
		p, err := c.NewPublisher(topic, mecha.PublisherOptions{Log: silent})
		if err != nil {
			t.Fatal(err)
		}
		sent := map[string]int{}
		published[i] = sent
		publishers.Go(func() {
			for n := 0; publishing.Err() == nil; n++ {
				key := fmt.Sprintf("%d-%d", i, n%keys)
				p.PublishAsync(ctx, mecha.Entry{Key: key, Value: []byte(strconv.Itoa(sent[key]))}, func(_ mecha.Receipt, err error) {
					if err != nil {
						t.Errorf("publish: %v", err)
					}
				})
				sent[key]++
				time.Sleep(500 * time.Microsecond)
			}
			if err := p.Close(ctx); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}

	for k := range kills {
		time.Sleep(300*time.Millisecond + rand.N(300*time.Millisecond))
		i := k % 2
		sides[i].Kill()
		options.Ports = ports[i]
		sides[i] = mesh.Start(options)
	}
	time.Sleep(300 * time.Millisecond)
	stop()
	publishers.Wait()

	total, missing := 0, 0
	for done := false; !done && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		mu.Lock()
		total, missing = 0, 0
		for _, sent := range published {
			for key, n := range sent {
				total += n
				missing += n - next[key]
			}
		}
		done = missing == 0
		mu.Unlock()
	}
	leave()
	consumers.Wait()
	if missing > 0 {
		t.Errorf("%d of %d messages were not handled", missing, total)
	}
	report("pubsub.embedded, sidecars killed %d times: %d messages published and handled in the order of %d keys, %d of them more than once", kills, total, 2*keys, repeated)
}
