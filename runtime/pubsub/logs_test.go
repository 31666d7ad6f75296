package pubsub_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/memory"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// patience bounds what a test waits for.
const patience = 20 * time.Second

// hub is a broker in memory that several services of a test use.
func hub(t testing.TB) func() block.PubSub {
	c := memory.DefaultPubSubConfig()
	c.Partitions, c.SessionTTL = 4, time.Second
	h := memory.NewHub(c)
	return func() block.PubSub {
		p := h.PubSub()
		t.Cleanup(func() { _ = p.Close(context.Background()) })
		return p
	}
}

// inbox is an app that writes down what it gets and answers what the test says.
type inbox struct {
	t      testing.TB
	answer func(body, attempt string) (*call.Response, error)

	mu  sync.Mutex
	got []string // body#attempt
	new chan struct{}
}

func newInbox(t testing.TB, answer func(body, attempt string) (*call.Response, error)) *inbox {
	if answer == nil {
		answer = func(string, string) (*call.Response, error) { return status(200, "") }
	}
	return &inbox{t: t, answer: answer, new: make(chan struct{}, 1)}
}

func (b *inbox) Invoke(_ context.Context, r *call.Request) (*call.Response, error) {
	body, attempt := dataOf(r.Data), r.Header.Get(pubsub.AttemptHeader)
	b.mu.Lock()
	b.got = append(b.got, body+"#"+attempt)
	b.mu.Unlock()
	select {
	case b.new <- struct{}{}:
	default:
	}
	return b.answer(body, attempt)
}

func (b *inbox) list() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.got)
}

// await returns when n deliveries were made.
func (b *inbox) await(n int) []string {
	b.t.Helper()
	late := time.After(patience)
	for len(b.list()) < n {
		select {
		case <-b.new:
		case <-time.After(10 * time.Millisecond):
		case <-late:
			b.t.Fatalf("%d deliveries, want %d: %q", len(b.list()), n, b.list())
		}
	}
	return b.list()
}

func say(t testing.TB, s *pubsub.Service, topic, key, text string) {
	t.Helper()
	r := pubsub.PublishRequest{PubSub: "ps", Topic: topic, Data: []byte(text)}
	if key != "" {
		r.Metadata = map[string]string{"partitionKey": key}
	}
	if err := s.Publish(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// TestReplicasShare: replicas of an app share its messages, and one that leaves hands over without a loss
// or a repetition.
func TestReplicasShare(t *testing.T) {
	client := hub(t)
	publisher := open(t, client(), nil, pubsub.Options{})
	one, two := newInbox(t, nil), newInbox(t, nil)
	first := open(t, client(), nil, pubsub.Options{App: one})
	subscribe(t, first, sub("orders"))
	for i := range 50 {
		say(t, publisher, "orders", fmt.Sprint("k", i%10), fmt.Sprint(i))
	}
	one.await(50)
	second := open(t, client(), nil, pubsub.Options{App: two})
	subscribe(t, second, sub("orders"))
	defer drain(t, second)
	for i := 50; len(two.list()) == 0; i++ { // until the second has its share
		say(t, publisher, "orders", fmt.Sprint("k", i%10), fmt.Sprint("x", i))
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := first.Drain(ctx); err != nil {
		t.Fatalf("Drain: %v", err)
	}
	before := len(two.list())
	for i := range 50 {
		say(t, publisher, "orders", fmt.Sprint("k", i%10), fmt.Sprint("y", i))
	}
	two.await(before + 50)
	seen := map[string]bool{}
	for _, d := range append(one.list(), two.list()...) {
		body, attempt, _ := strings.Cut(d, "#")
		if seen[body] || attempt != "1" {
			t.Errorf("message %s came again", d)
		}
		seen[body] = true
	}
}

func TestFailuresKeepTheirPlace(t *testing.T) {
	client := hub(t)
	app := newInbox(t, func(body, attempt string) (*call.Response, error) {
		if body == "a0" && attempt != "3" {
			return status(500, "")
		}
		return status(200, "")
	})
	s := open(t, client(), nil, pubsub.Options{App: app})
	subscribe(t, s, sub("orders"))
	defer drain(t, s)
	for i := range 3 {
		say(t, s, "orders", "a", fmt.Sprint("a", i))
		say(t, s, "orders", "b", fmt.Sprint("b", i))
	}
	got := app.await(8)
	only := func(prefix string) (out []string) {
		for _, d := range got {
			if strings.HasPrefix(d, prefix) {
				out = append(out, d)
			}
		}
		return out
	}
	if want := []string{"a0#1", "a0#2", "a0#3", "a1#1", "a2#1"}; !slices.Equal(only("a"), want) {
		t.Errorf("key a: %q, want %q", only("a"), want)
	}
	if i := slices.Index(got, "b2#1"); i < 0 || i > slices.Index(got, "a0#2") {
		t.Errorf("key b waited for key a: %q", got)
	}
}

// TestDrainGivesBack: what was fetched and not begun goes to the next replica as if nobody had seen it.
func TestDrainGivesBack(t *testing.T) {
	client := hub(t)
	release := make(chan struct{})
	slow := newInbox(t, func(string, string) (*call.Response, error) { <-release; return status(200, "") })
	s := open(t, client(), nil, pubsub.Options{App: slow})
	for i := range 10 {
		say(t, s, "orders", "", fmt.Sprint(i))
	}
	subscribe(t, s, sub("orders", func(s *pubsub.Subscription) { s.Metadata = map[string]string{"maxInFlight": "2"} }))
	slow.await(2)
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(context.Background()) }()
	time.Sleep(50 * time.Millisecond)
	close(release)
	if err := <-drained; err != nil {
		t.Fatalf("Drain: %v", err)
	}
	if n := len(slow.list()); n > 2 {
		t.Errorf("%d messages began although the service was draining", n-2)
	}
	next := newInbox(t, nil)
	s2 := open(t, client(), nil, pubsub.Options{App: next})
	subscribe(t, s2, sub("orders"))
	defer drain(t, s2)
	for _, d := range next.await(8) {
		if !strings.HasSuffix(d, "#1") {
			t.Errorf("%s: nobody had begun with it", d)
		}
	}
}

// TestCutComesAgain: a message that a drain cuts off is delivered again, to the next replica.
func TestCutComesAgain(t *testing.T) {
	client := hub(t)
	stuck := make(chan struct{})
	app := appFunc(func(ctx context.Context, _ *call.Request) (*call.Response, error) {
		select {
		case stuck <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	s := open(t, client(), nil, pubsub.Options{App: app})
	subscribe(t, s, sub("orders"))
	say(t, s, "orders", "k", "m")
	<-stuck
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Drain: %v, want the deadline", err)
	}
	next := newInbox(t, nil)
	s2 := open(t, client(), nil, pubsub.Options{App: next})
	subscribe(t, s2, sub("orders"))
	defer drain(t, s2)
	if got := next.await(1); !strings.HasPrefix(got[0], "m#") {
		t.Errorf("got %q", got)
	}
}

type appFunc = app

func TestDeadLetterOfALog(t *testing.T) {
	client := hub(t)
	app := newInbox(t, func(body, _ string) (*call.Response, error) {
		if body == "bad" {
			return status(200, `{"status":"DROP"}`)
		}
		return status(200, "")
	})
	s := open(t, client(), nil, pubsub.Options{App: app})
	subscribe(t, s, sub("orders", withDeadLetter), sub("dead"))
	defer drain(t, s)
	say(t, s, "orders", "k", "bad")
	say(t, s, "orders", "k", "good")
	got := app.await(3)
	slices.Sort(got)
	if want := []string{"bad#1", "bad#1", "good#1"}; !slices.Equal(got, want) {
		t.Errorf("deliveries %q, want %q", got, want)
	}
}

func TestPauseGivesUpItsShare(t *testing.T) {
	client := hub(t)
	one, two := newInbox(t, nil), newInbox(t, nil)
	first := open(t, client(), nil, pubsub.Options{App: one})
	subscribe(t, first, sub("orders"))
	defer drain(t, first)
	say(t, first, "orders", "k", "0")
	one.await(1)
	first.Pause()
	second := open(t, client(), nil, pubsub.Options{App: two})
	subscribe(t, second, sub("orders"))
	for i := range 10 {
		say(t, first, "orders", fmt.Sprint("k", i), fmt.Sprint(i))
	}
	two.await(10)
	drain(t, second)
	first.Resume()
	say(t, first, "orders", "k", "again")
	one.await(2)
}

func TestPublishToNowhere(t *testing.T) {
	s := open(t, hub(t)(), nil, pubsub.Options{})
	publish := func(topic, number string) error {
		return s.Publish(t.Context(), pubsub.PublishRequest{PubSub: "ps", Topic: topic, Data: []byte("x"), Metadata: map[string]string{"partitionNumber": number}})
	}
	wantFault(t, publish("orders", "abc"), fault.Invalid, fault.BadMetadata, `"abc"`)
	wantFault(t, publish("orders", "-1"), fault.Invalid, fault.BadMetadata, "from 0")
	wantFault(t, publish("orders", "4"), fault.Invalid, engine.NoSuchPartition, "it has 4")
	wantFault(t, publish("mecha.parked/x", "0"), fault.Denied, fault.ForbiddenTopic, "use another")
	if err := publish("orders", "3"); err != nil {
		t.Errorf("a partition that is there: %v", err)
	}
}

// told is a native consumer's app.
type told struct {
	mu     sync.Mutex
	events []engine.Event
	new    chan struct{}
}

func newTold() *told { return &told{new: make(chan struct{}, 1)} }

func (e *told) tell(ev engine.Event) {
	e.mu.Lock()
	e.events = append(e.events, ev)
	e.mu.Unlock()
	select {
	case e.new <- struct{}{}:
	default:
	}
}

// await is the first event of a kind.
func await[E engine.Event](t *testing.T, e *told) E {
	t.Helper()
	late := time.After(patience)
	for {
		e.mu.Lock()
		for _, ev := range e.events {
			if x, ok := ev.(E); ok {
				e.mu.Unlock()
				return x
			}
		}
		e.mu.Unlock()
		select {
		case <-e.new:
		case <-late:
			t.Fatalf("no %T was told", *new(E))
		}
	}
}

func TestNative(t *testing.T) {
	client := hub(t)
	// Topics of this component live in the namespace: default + topic at the broker.
	raw := map[string]string{"x": "{namespace}", "publishingscopes": "shop=orders", "subscriptionscopes": "shop=orders"}
	s := open(t, client(), raw, pubsub.Options{})
	ctx := t.Context()

	_, _, err := s.OpenPublisher(ctx, "nope", engine.PublishOptions{Topic: "orders"})
	wantFault(t, err, fault.NotFound, fault.NoSuchComponent, "nope")
	_, _, err = s.OpenPublisher(ctx, "ps", engine.PublishOptions{})
	wantFault(t, err, fault.Invalid, fault.NoTopic, "topic")
	_, _, err = s.OpenPublisher(ctx, "ps", engine.PublishOptions{Topic: "secrets"})
	wantFault(t, err, fault.Denied, fault.ForbiddenTopic, "secrets")
	_, _, err = s.OpenConsumer(ctx, "ps", engine.ConsumeOptions{Topics: []string{"secrets"}}, nil)
	wantFault(t, err, fault.Denied, fault.ForbiddenTopic, "secrets")
	_, _, err = s.OpenConsumer(ctx, "ps", engine.ConsumeOptions{Topics: []string{"orders"}, Retry: engine.Retry{DeadLetterTopic: "secrets"}}, nil)
	wantFault(t, err, fault.Denied, fault.ForbiddenTopic, "secrets")
	_, _, err = s.OpenConsumer(ctx, "ps", engine.ConsumeOptions{}, nil)
	wantFault(t, err, fault.Invalid, fault.NoTopic, "topic")
	_, err = s.DescribeTopic(ctx, "ps", "orders")
	wantFault(t, err, fault.NotFound, fault.NoTopic, "orders")

	p, info, err := s.OpenPublisher(ctx, "ps", engine.PublishOptions{Topic: "orders", Producer: "me"})
	if err != nil || info.Partitions != 4 {
		t.Fatalf("OpenPublisher: %+v, %v", info, err)
	}
	send := func(seq uint64, keys ...string) []engine.Receipt {
		b := engine.Batch{Seq: seq}
		for _, k := range keys {
			b.Entries = append(b.Entries, engine.Entry{Message: block.Message{Key: k, Data: []byte("hello")}})
		}
		out := make(chan []engine.Receipt, 1)
		p.Publish(ctx, b, func(r []engine.Receipt) { out <- r })
		return <-out
	}
	first := send(1, "a", "b", "")
	for i, r := range send(1, "a", "b", "") {
		if r.Err != nil || !r.Duplicate || r.Position != first[i].Position || r.Partition != first[i].Partition {
			t.Errorf("sent again: %+v, want %+v as a duplicate", r, first[i])
		}
	}
	app := newTold()
	c, ci, err := s.OpenConsumer(ctx, "ps", engine.ConsumeOptions{Topics: []string{"orders"}, Instance: "pod"}, app.tell)
	if err != nil || ci.Group != "shop" || ci.Member != "pod" || ci.Topics[0] != (engine.TopicSize{Topic: "orders", Partitions: 4}) {
		t.Fatalf("OpenConsumer: %+v, %v", ci, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	d := await[engine.Deliver](t, app)
	if d.Topic != "orders" || await[engine.Assigned](t, app).Parts[0].Topic != "orders" {
		t.Errorf("delivered as %q, want the app's name of the topic", d.Topic)
	}
	if err := c.Ack(d.Part, d.Epoch, []engine.Range{{From: d.Messages[0].Position, To: d.Messages[0].Position}}); err != nil {
		t.Errorf("Ack: %v", err)
	}
	g, err := s.DescribeGroup(ctx, "ps", "", "orders")
	if err != nil || len(g.Members) != 1 || g.Members[0].Name != "pod" || len(g.Partitions) != 4 {
		t.Errorf("DescribeGroup: %+v, %v", g, err)
	}
	go func() { _ = s.Drain(context.Background()) }()
	r := await[engine.Revoking](t, app)
	if err := c.RevokeDone(r.Assignment, r.Parts); err != nil {
		t.Errorf("RevokeDone: %v", err)
	}
	select {
	case err := <-ended:
		wantFault(t, err, fault.Unavailable, "", "shutting down")
	case <-time.After(patience):
		t.Fatal("Run did not return")
	}
	if err := c.Run(ctx); fault.Of(err) != fault.Unavailable {
		t.Errorf("Run while draining: %v", err)
	}
	s.Close()
}

func TestNativeNeedsALog(t *testing.T) {
	s := open(t, newBroker(), nil, pubsub.Options{})
	_, _, err := s.OpenPublisher(t.Context(), "ps", engine.PublishOptions{Topic: "orders"})
	wantFault(t, err, fault.Unsupported, "", "Dapr's API")
	_, _, err = s.OpenConsumer(t.Context(), "ps", engine.ConsumeOptions{Topics: []string{"orders"}}, nil)
	wantFault(t, err, fault.Unsupported, "", "Dapr's API")
}
