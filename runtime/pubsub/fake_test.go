package pubsub_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var shop = identity.Self{App: "shop", Namespace: "default"}

// broker is a message broker of one group whose failures the test chooses. It keeps the
// contract of block.PubSub to the letter.
type broker struct {
	mu       sync.Mutex
	wake     chan struct{}
	queues   map[string][]block.Delivery
	sent     []block.Message
	consumed int // Consume calls
	opts     block.ConsumeOptions
	log      func(format string, args ...any) // called with mu held

	failPublish func(block.Message) error
	failConsume func(topic string, n int) error
}

func newBroker() *broker {
	return &broker{wake: make(chan struct{}), queues: map[string][]block.Delivery{}, log: func(string, ...any) {}}
}

func (b *broker) Ping(context.Context) error  { return nil }
func (b *broker) Close(context.Context) error { return nil }

func (b *broker) changed() { // b.mu is held
	close(b.wake)
	b.wake = make(chan struct{})
}

func (b *broker) Publish(_ context.Context, msgs []block.Message) []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for i, m := range msgs {
		if b.failPublish != nil {
			if err := b.failPublish(m); err != nil {
				if errs == nil {
					errs = make([]error, len(msgs))
				}
				errs[i] = err
				continue
			}
		}
		m.Data = append([]byte(nil), m.Data...)
		b.sent = append(b.sent, m)
		b.log("publish %s", m.Topic)
		b.queues[m.Topic] = append(b.queues[m.Topic], block.Delivery{Message: m, Attempt: 1, Position: fmt.Sprint(len(b.sent))})
		b.changed()
	}
	return errs
}

// put adds a message as another publisher would.
func (b *broker) put(m block.Message) { b.Publish(context.Background(), []block.Message{m}) }

func (b *broker) Consume(ctx context.Context, opts block.ConsumeOptions, deliver func(block.Delivery)) error {
	b.mu.Lock()
	b.consumed++
	n, fail := b.consumed, b.failConsume
	b.opts = opts
	b.mu.Unlock()
	if fail != nil {
		if err := fail(opts.Topic, n); err != nil {
			return err
		}
	}
	unanswered := map[int]block.Delivery{}
	next := 0
	ended := false
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		ended = true
		for i := range next { // in order
			if d, ok := unanswered[i]; ok {
				d.Attempt++
				b.log("returned %s", d.Position)
				b.queues[opts.Topic] = append(b.queues[opts.Topic], d)
			}
		}
		b.changed()
	}()
	for {
		b.mu.Lock()
		wake, q := b.wake, b.queues[opts.Topic]
		if len(q) == 0 || len(unanswered) >= opts.MaxInFlight {
			b.mu.Unlock()
			select {
			case <-wake:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		d, tag := q[0], next
		b.queues[opts.Topic] = q[1:]
		next++
		unanswered[tag] = d
		b.mu.Unlock()
		answer := func(then func()) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if _, open := unanswered[tag]; open && !ended {
				delete(unanswered, tag)
				then()
				b.changed()
			}
		}
		bare := d
		d.Ack = func() { answer(func() { b.log("ack %s", bare.Position) }) }
		d.Nack = func(delay time.Duration) {
			answer(func() {
				b.log("nack %s", bare.Position)
				again := bare
				again.Attempt++
				time.AfterFunc(delay, func() {
					b.mu.Lock()
					defer b.mu.Unlock()
					b.queues[opts.Topic] = append(b.queues[opts.Topic], again)
					b.changed()
				})
			})
		}
		deliver(d)
	}
}

// record starts a new log of what the broker sees; the result reads it.
func (b *broker) record() func() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var log []string
	b.log = func(format string, args ...any) { log = append(log, fmt.Sprintf(format, args...)) }
	return func() []string {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Clone(log)
	}
}

func (b *broker) topics() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, m := range b.sent {
		out = append(out, m.Topic)
	}
	return out
}

// ttlBroker also drops expired messages itself.
type ttlBroker struct{ *broker }

func (ttlBroker) ExpiresMessages() {}

// app is an HTTP app: a function of the request.
type app func(ctx context.Context, req *call.Request) (*call.Response, error)

func (a app) Invoke(ctx context.Context, req *call.Request) (*call.Response, error) {
	return a(ctx, req)
}

func status(code int, body string) (*call.Response, error) {
	data := []byte(body)
	return &call.Response{Status: code, Data: data, Length: int64(len(data)), Held: lent(data)}, nil
}

// lent is an answer's buffer, which is another's once the answer is closed.
type lent []byte

func (l lent) Close() error {
	for i := range l {
		l[i] = '#'
	}
	return nil
}

// open makes a service over one component named ps.
func open(t testing.TB, c block.PubSub, raw map[string]string, opts pubsub.Options) *pubsub.Service {
	t.Helper()
	stores := catalog.NewStore[block.PubSub](block.KindPubSub)
	stores.Put(catalog.NewHandle[block.PubSub](catalog.Info{Name: "ps", Raw: raw}, c,
		&call.Target{Kind: call.Publish, Name: "ps"}))
	return pubsub.New(stores, shop, opts)
}

// subscribe starts subscriptions and drains them when the test ends.
func subscribe(t testing.TB, s *pubsub.Service, subs ...pubsub.Subscription) {
	t.Helper()
	if err := s.SetDeclarative(subs); err != nil {
		t.Fatal(err)
	}
	s.Resume()
}

// drain stops a service at once.
func drain(t testing.TB, s *pubsub.Service) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.Drain(ctx)
}

func sub(topic string, change ...func(*pubsub.Subscription)) pubsub.Subscription {
	s := pubsub.Subscription{PubSub: "ps", Topic: topic, Rules: []pubsub.Rule{{Path: "/" + topic}}}
	for _, f := range change {
		f(&s)
	}
	return s
}

func withDeadLetter(s *pubsub.Subscription) { s.DeadLetterTopic = "dead" }

func event(topic, key, data string) block.Message {
	return block.Message{Topic: topic, Key: key,
		Data: fmt.Appendf(nil, `{"data":%q,"datacontenttype":"text/plain","id":%q,"source":"pub","specversion":"1.0","type":"t"}`, data, data)}
}

func wantFault(t *testing.T, err error, code fault.Code, reason fault.Reason, text string) {
	t.Helper()
	if fault.Of(err) != code || fault.ReasonOf(err) != reason {
		t.Errorf("error = %v (%v, %q), want %v, %q", err, fault.Of(err), fault.ReasonOf(err), code, reason)
	}
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error text = %v, want it to contain %q", err, text)
	}
}

// recorder writes down what it is told.
type recorder struct {
	mu  sync.Mutex
	got []string
}

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, fmt.Sprintf(format, args...))
}

func (r *recorder) PubSubEgress(c, topic string, ok bool, _ time.Duration) {
	r.add("egress %s %s %v", c, topic, ok)
}
func (r *recorder) PubSubBulkEgress(c, topic string, ok bool, _ time.Duration) {
	r.add("bulk egress %s %s %v", c, topic, ok)
}
func (r *recorder) PubSubIngress(c, topic, process, status string, _ time.Duration) {
	r.add("ingress %s %s %s", topic, process, status)
}
func (r *recorder) PubSubBulkIngress(topic string, _ time.Duration) { r.add("bulk ingress %s", topic) }
func (r *recorder) PubSubBulkIngressEvents(topic, status string, n int64) {
	r.add("bulk event %s %s %d", topic, status, n)
}
