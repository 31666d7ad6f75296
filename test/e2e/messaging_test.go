package e2e

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	mecha "github.com/mecha-project/mecha/sdk/go"
	"github.com/mecha-project/mecha/test/harness"
)

// eventsAndStore is a broker and a store on an embedded node in dir, with a short session.
func eventsAndStore(dir string) string {
	return fmt.Sprintf(`apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: events}
spec:
  type: pubsub.embedded
  version: v1
  metadata:
  - {name: dataDir, value: %[1]q}
  - {name: partitions, value: "6"}
  - {name: sessionTTL, value: 1s}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: store}
spec:
  type: state.embedded
  version: v1
  metadata:
  - {name: dataDir, value: %[1]q}
`, dir)
}

// member is a sidecar with a client of the SDK.
type member struct {
	*harness.Sidecar
	*mecha.Client
}

func messagingMesh(t *testing.T) func() *member {
	mesh := harness.NewMesh(t)
	files := map[string]string{"s.yaml": eventsAndStore(t.TempDir())}
	return func() *member {
		t.Helper()
		s := mesh.Start(harness.Options{AppID: "orders", Files: files})
		s.WaitOutbound()
		c, err := mecha.Dial(mecha.WithAddress(s.Target()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return &member{s, c}
	}
}

// effects is what consumers did: the first effect of each message, in the order they came.
type effects struct {
	t    *testing.T
	mu   sync.Mutex
	seen map[string]time.Time // by body
	last map[string]int       // by key
}

func (e *effects) take(m *mecha.Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	body := string(m.Value)
	n, _ := strconv.Atoi(body)
	if _, again := e.seen[body]; !again {
		e.seen[body] = time.Now()
		if last, ok := e.last[m.Key]; ok && n < last {
			e.t.Errorf("key %s: message %d took effect first after %d", m.Key, n, last)
		}
	}
	e.last[m.Key] = max(e.last[m.Key], n)
}

func (e *effects) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.seen)
}

func (e *effects) await(n int) {
	e.t.Helper()
	late := time.Now().Add(30 * time.Second)
	for e.count() < n {
		if time.Now().After(late) {
			e.t.Fatalf("%d of %d messages took effect", e.count(), n)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestNativeMessaging runs an app of three instances against the embedded node, kills one of its sidecars, and
// reads what the administrator's calls say over both wires.
func TestNativeMessaging(t *testing.T) {
	start := messagingMesh(t)
	sink := &effects{t: t, seen: map[string]time.Time{}, last: map[string]int{}}
	topic := mecha.Topic{PubSub: "events", Name: "orders"}
	publisher := start()
	pub, err := publisher.NewPublisher(topic, mecha.PublisherOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	consume := func(m *member) {
		running.Go(func() {
			err := m.Consume(ctx, mecha.ConsumeOptions{PubSub: "events", Topics: []string{"orders"}}, func(_ context.Context, msg *mecha.Message) error {
				if msg.Key == "poison" {
					return mecha.Park(fmt.Errorf("cannot read it"))
				}
				sink.take(msg)
				return nil
			})
			if err != nil && ctx.Err() == nil {
				t.Errorf("Consume: %v", err)
			}
		})
	}
	publish := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			r, err := pub.Publish(ctx, mecha.Entry{Key: fmt.Sprint("k", i%12), Value: []byte(strconv.Itoa(i))})
			if err != nil || r.Position == 0 || r.Duplicate {
				t.Fatalf("Publish: %+v, %v", r, err)
			}
		}
	}
	members := []*member{start(), start()}
	for _, m := range members {
		consume(m)
	}
	publish(0, 300)
	sink.await(300)

	victim := start()
	consume(victim)
	group := func() (*mechav1.DescribeGroupResponse, map[string]int) {
		t.Helper()
		g, err := publisher.DescribeGroup(ctx, topic, "")
		if err != nil {
			t.Fatal(err)
		}
		owners := map[string]int{}
		for _, p := range g.GetPartitions() {
			owners[p.GetOwner()]++
		}
		return g, owners
	}
	late := time.Now().Add(20 * time.Second)
	for {
		if _, owners := group(); len(owners) == 3 && owners[""] == 0 {
			for name, n := range owners {
				if n != 2 {
					t.Errorf("%s has %d partitions of 6, want 2", name, n)
				}
			}
			break
		}
		if time.Now().After(late) {
			g, _ := group()
			t.Fatalf("the third member has nothing: %v", g)
		}
		time.Sleep(20 * time.Millisecond)
	}
	victim.Kill()
	killed := time.Now()
	publish(300, 600)
	sink.await(600)
	t.Logf("all partitions were served %v after a sidecar was killed (session 1s)", time.Since(killed).Round(time.Millisecond))

	if _, err := pub.Publish(ctx, mecha.Entry{Key: "poison", Value: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	var parked *mechav1.ParkedKey
	for late = time.Now().Add(20 * time.Second); parked == nil; {
		for k, err := range publisher.Parked(ctx, topic, "") {
			if err != nil {
				t.Fatal(err)
			}
			parked = k
		}
		if time.Now().After(late) {
			t.Fatal("nothing was parked")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if parked.GetKey() != "poison" || parked.GetMessages() != 1 {
		t.Errorf("parked %v", parked)
	}
	if n, err := publisher.DropParked(ctx, topic, "", parked.GetPartition(), "poison"); err != nil || n != 1 {
		t.Errorf("DropParked: %d, %v", n, err)
	}
	nativeJSON(t, publisher.Sidecar, "messaging/DescribeTopic", `{"pubsub_name":"events","topic":"orders"}`, 200, `{}`)
	if _, err := publisher.DescribeTopic(ctx, mecha.Topic{PubSub: "events", Name: "nothing"}); status.Code(err) != codes.NotFound {
		t.Errorf("a topic that is not there: %v", err)
	}

	// A sidecar that is told to end hands over and leaves, whatever streams are open.
	begun := time.Now()
	members[0].Signal(syscall.SIGTERM)
	if code := members[0].Wait(20 * time.Second); code != 0 {
		t.Errorf("exit code %d\n%s", code, members[0].Log())
	}
	publish(600, 700)
	sink.await(700)
	t.Logf("handed over %v after SIGTERM", time.Since(begun).Round(time.Millisecond))
	begun = time.Now()
	publisher.Signal(syscall.SIGTERM)
	if code := publisher.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("a sidecar with an open stream of a publisher took %v to end", took)
	}
	stop()
	running.Wait()
}

// TestFenceOfAPartition: what a former owner of a partition writes late does not take effect.
func TestFenceOfAPartition(t *testing.T) {
	start := messagingMesh(t)
	m := start()
	ctx, stop := context.WithTimeout(context.Background(), 60*time.Second)
	defer stop()
	topic := mecha.Topic{PubSub: "events", Name: "orders"}
	pub, err := m.NewPublisher(topic, mecha.PublisherOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pub.Publish(ctx, mecha.Entry{Key: "k", Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	state := mechav1.NewStateClient(m.Conn())
	write := func(e *mechav1.Epoch, value string) error {
		_, err := state.Write(ctx, &mechav1.WriteRequest{StoreName: "store", IfEpoch: e, Operations: []*mechav1.StateOperation{
			{Operation: &mechav1.StateOperation_Set{Set: &mechav1.SetState{Key: "order", Value: []byte(value)}}}}})
		return err
	}
	epochs := make(chan *mechav1.Epoch, 10)
	once := func(value string) *mechav1.Epoch {
		t.Helper()
		cctx, leave := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			done <- m.Consume(cctx, mecha.ConsumeOptions{PubSub: "events", Topics: []string{"orders"}}, func(_ context.Context, msg *mecha.Message) error {
				epochs <- msg.IfEpoch()
				return mecha.RetryAfter(time.Hour, nil) // for the next owner
			})
		}()
		e := <-epochs
		if err := write(e, value); err != nil {
			t.Errorf("the owner's write: %v", err)
		}
		leave()
		if err := <-done; err != nil {
			t.Errorf("Consume: %v", err)
		}
		return e
	}
	first := once("1")
	second := once("2")
	if second.GetEpoch() <= first.GetEpoch() {
		t.Errorf("epoch %d after %d", second.GetEpoch(), first.GetEpoch())
	}
	if err := write(first, "late"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a late write of the former owner: %v, want FailedPrecondition", err)
	}
	_ = pub.Close(ctx)
}
