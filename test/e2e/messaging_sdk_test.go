package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	mecha "github.com/mecha-project/mecha/sdk/go"
	"github.com/mecha-project/mecha/test/harness"
)

const messagingStores = `apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: pubsub}
spec: {type: pubsub.in-memory, version: v1}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec: {type: state.in-memory, version: v1}
`

var silent = slog.New(slog.DiscardHandler)

func messagingSidecar(t *testing.T) (*harness.Sidecar, *mecha.Client) {
	t.Helper()
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Files: map[string]string{"s.yaml": messagingStores}})
	s.WaitOutbound()
	c, err := mecha.Dial(mecha.WithAddress(s.Target()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return s, c
}

// The Go SDK on a sidecar: published at full speed, consumed by two members that come and go, with
// failures, in the order of each key, and written under the epoch.
func TestMessagingSDK(t *testing.T) {
	t.Parallel()
	_, c := messagingSidecar(t)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	topic := mecha.Topic{PubSub: "pubsub", Name: "orders"}
	const keys, n = 50, 60
	var mu sync.Mutex
	next, total := map[string]int{}, 0
	state := mechav1.NewStateClient(c.Conn())
	all := make(chan struct{})
	handler := func(ctx context.Context, m *mecha.Message) error {
		i, _ := strconv.Atoi(string(m.Value))
		if i%29 == 7 && m.Attempt == 1 {
			return errors.New("once more")
		}
		if i == 3 {
			_, err := state.Write(ctx, &mechav1.WriteRequest{StoreName: "statestore", IfEpoch: m.IfEpoch(), Operations: []*mechav1.StateOperation{
				{Operation: &mechav1.StateOperation_Set{Set: &mechav1.SetState{Key: m.Key, Value: m.Value}}}}})
			if err != nil {
				t.Errorf("state: %v", err)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if i > next[m.Key] {
			t.Errorf("key %s: %d while %d is due", m.Key, i, next[m.Key])
		}
		if i == next[m.Key] {
			next[m.Key]++
			if total++; total == keys*n {
				close(all)
			}
		}
		return nil
	}
	o := mecha.ConsumeOptions{PubSub: "pubsub", Topics: []string{"orders"}, Group: "g", Log: silent, Instance: "one",
		OnFrame: func(f *mechav1.BrokerFrame) {
			if f.GetFault() != nil {
				t.Errorf("fault %v", f)
			}
		}}
	var wg sync.WaitGroup
	run := func(ctx context.Context, o mecha.ConsumeOptions) {
		wg.Go(func() {
			if err := c.Consume(ctx, o, handler); err != nil {
				t.Errorf("Consume: %v", err)
			}
		})
	}
	first, leave := context.WithCancel(ctx)
	defer leave()
	run(first, o)
	p, err := c.NewPublisher(topic, mecha.PublisherOptions{Log: silent})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		for k := range keys {
			p.PublishAsync(ctx, mecha.Entry{Key: fmt.Sprint("k", k), Value: []byte(strconv.Itoa(i))}, func(_ mecha.Receipt, err error) {
				if err != nil {
					t.Errorf("publish: %v", err)
				}
			})
		}
		switch i {
		case n / 4:
			two := o
			two.Instance = "two"
			run(ctx, two)
		case n / 2:
			leave()
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-all:
	case <-ctx.Done():
		mu.Lock()
		t.Errorf("%d of %d; %v", total, keys*n, next)
		mu.Unlock()
	}
	cancel()
	wg.Wait()
}

// The unary methods are JSON over HTTP too, and see what Dapr's API published.
func TestMessagingJSON(t *testing.T) {
	t.Parallel()
	s, _ := messagingSidecar(t)
	nativeJSON(t, s, "messaging/describetopic", `{"pubsubName":"pubsub","topic":"orders"}`, 404, `{"errorCode":"NO_TOPIC"}`)
	if resp, body := harness.Do(t, "POST", s.URL("/v1.0/publish/pubsub/orders"), []byte(`"hello"`), "Content-Type", "application/json"); resp.StatusCode != 204 {
		t.Fatalf("publish: %d %s", resp.StatusCode, body)
	}
	topic := nativeJSON(t, s, "messaging/describetopic", `{"pubsubName":"pubsub","topic":"orders"}`, 200, `{}`)
	if n := len(topic["partitions"].([]any)); n == 0 {
		t.Errorf("topic %v", topic)
	}
	nativeJSON(t, s, "messaging/describegroup", `{"pubsubName":"none","topic":"orders"}`, 404, `{"errorCode":"NO_SUCH_COMPONENT"}`)
	nativeJSON(t, s, "messaging/resetgroup", `{"pubsubName":"pubsub","topic":"orders"}`, 400, `{"errorCode":"BAD_OPTION"}`)
	nativeJSON(t, s, "messaging/resetgroup", `{"pubsubName":"pubsub","topic":"orders","to":{"latest":true}}`, 200, `{}`)
	nativeJSON(t, s, "messaging/unpark", `{"pubsubName":"pubsub","topic":"orders","key":"k"}`, 404, `{"errorCode":"NOT_PARKED"}`)
	nativeJSON(t, s, "messaging/listparked", `{"pubsubName":"pubsub","topic":"orders"}`, 200, `{"nextPageToken":""}`)
}

// The sample tells the story of its README.
func TestMessagingSample(t *testing.T) {
	t.Parallel()
	s, _ := messagingSidecar(t)
	program := filepath.Join(t.TempDir(), "sample")
	if out, err := exec.Command("go", "build", "-o", program, "../../deploy/samples/messaging").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = append(os.Environ(), "DAPR_GRPC_ENDPOINT="+s.Target())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"order-13 is set aside", "the consumer leaves", "800 events of 200 orders", "out of order: 0, repeated: 0"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the sample does not say %q:\n%s", want, out)
		}
	}
}
