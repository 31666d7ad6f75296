package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEvents(t *testing.T) {
	s := New(nil, identity.Self{App: "shop"}, slog.New(slog.DiscardHandler))
	for _, tt := range []struct {
		name, value string
		metadata    map[string]string
		want        string
	}{
		{"JSON is JSON", `{"a":1}`, nil, `{"data":{"a":1},"datacontenttype":"application/json","id":"k","source":"shop","specversion":"1.0","type":"com.dapr.event.sent"}`},
		{"text is text", `hello`, nil, `{"data":"hello","datacontenttype":"text/plain","id":"k","source":"shop","specversion":"1.0","type":"com.dapr.event.sent"}`},
		{"bytes are base64", "\xff\x00", nil, `{"data_base64":"/wA=","datacontenttype":"application/octet-stream","id":"k","source":"shop","specversion":"1.0","type":"com.dapr.event.sent"}`},
		{"JSON that is said to be text", `{"a":1}`, map[string]string{"contentType": "text/plain"},
			`{"contentType":"text/plain","data":"{\"a\":1}","datacontenttype":"text/plain","id":"k","source":"shop","specversion":"1.0","type":"com.dapr.event.sent"}`},
		{"metadata are attributes, but not id, data or the mark", `1`, map[string]string{"color": "red", "id": "x", "data": "y", "outbox.projection": "true", "type": "mine"},
			`{"color":"red","data":1,"datacontenttype":"application/json","id":"k","source":"shop","specversion":"1.0","type":"mine"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := json.Marshal(s.event("k", []byte(tt.value), tt.metadata))
			if d := cmp.Diff(tt.want, string(got)); d != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, d)
			}
		})
	}
}

// broker keeps what is published, or fails.
type broker struct {
	mu   sync.Mutex
	got  []block.Message
	fail error
}

func (b *broker) Publish(_ context.Context, msgs []block.Message) []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return []error{b.fail}
	}
	b.got = append(b.got, msgs...)
	return nil
}

func (*broker) Consume(ctx context.Context, _ block.ConsumeOptions, _ func(block.Delivery)) error {
	<-ctx.Done()
	return ctx.Err()
}
func (*broker) Ping(context.Context) error  { return nil }
func (*broker) Close(context.Context) error { return nil }

// marks are markers of transactions: those that are there.
type marks struct {
	mu    sync.Mutex
	there map[string]bool
	err   error
}

func (m *marks) Marked(_ context.Context, _, key string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.there[key], m.err
}

func (m *marks) Unmark(_ context.Context, _, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.there, key)
	return m.err
}

func newService(b *broker) *Service {
	stores := catalog.NewStore[block.PubSub](block.KindPubSub)
	stores.Put(catalog.NewHandle[block.PubSub](catalog.Info{Name: "ps"}, b, &call.Target{Kind: call.Publish, Name: "ps"}))
	self := identity.Self{App: "shop", Namespace: "home"}
	return New(pubsub.New(stores, self, pubsub.Options{}), self, slog.New(slog.DiscardHandler))
}

var info = catalog.Info{Name: "st", Raw: map[string]string{"outboxpublishpubsub": "ps", "outboxpublishtopic": "orders"}}

func upsert(key, value string, metadata map[string]string) state.Operation {
	return state.Operation{Operation: "upsert", Item: state.Item{Key: key, Value: []byte(value), Metadata: metadata}}
}

func TestPrepare(t *testing.T) {
	b := &broker{}
	s := newService(b)
	ops := []state.Operation{upsert("a", `1`, nil), {Operation: "delete", Item: state.Item{Key: "b"}}, upsert("c", `"kept"`, nil), upsert("c", `"shown"`, map[string]string{"outbox.projection": "true"})}
	kept, markers, _, err := s.Prepare(t.Context(), info, ops)
	if err != nil || len(kept) != 3 || len(markers) != 2 || len(b.got) != 2 {
		t.Fatalf("%d operations, %d markers, %d messages, %v; want 3, 2, 2", len(kept), len(markers), len(b.got), err)
	}
	for i, m := range b.got {
		var in internalEvent
		if err := json.Unmarshal(m.Data, &in); err != nil || in.Event["id"] != markers[i] || m.Topic != "homeshopordersoutbox" {
			t.Errorf("message %d: %s to %s, %v", i, m.Data, m.Topic, err)
		}
	}
	if kept, markers, _, err := s.Prepare(t.Context(), catalog.Info{Name: "plain"}, ops); err != nil || len(kept) != 4 || markers != nil {
		t.Errorf("a store without an outbox: %d operations, %v, %v", len(kept), markers, err)
	}
	b.fail = errors.New("down")
	if _, _, _, err := s.Prepare(t.Context(), info, ops); fault.ReasonOf(err) != fault.OutboxFailed {
		t.Errorf("a broker that is down: %v; the transaction must not be made", err)
	}
}

func TestSettle(t *testing.T) {
	event := func(made time.Time) []byte {
		b, _ := json.Marshal(internalEvent{Made: made, Event: map[string]any{"id": "outbox-1", "specversion": "1.0", "data": 1}})
		return b
	}
	for _, tt := range []struct {
		name    string
		there   bool
		after   time.Duration // when the marker appears
		failed  bool
		discard bool
		age     time.Duration
		down    bool // the broker
		err     error
		want    pubsub.Answer
		out     int // events published
	}{
		{name: "committed", there: true, want: pubsub.Success, out: 1},
		{name: "committed a little later", after: 3 * time.Second, want: pubsub.Success, out: 1},
		{name: "not committed yet", want: pubsub.Retry},
		{name: "not committed, and users do not mind", discard: true, want: pubsub.Drop},
		{name: "known to have failed", failed: true, want: pubsub.Drop},
		{name: "never committed", age: 2 * time.Hour, want: pubsub.Drop},
		{name: "old, and committed", there: true, age: 2 * time.Hour, want: pubsub.Success, out: 1},
		{name: "the store is down", err: errors.New("down"), age: 2 * time.Hour, want: pubsub.Retry},
		{name: "the broker is down", there: true, down: true, want: pubsub.Retry},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, m := &broker{}, &marks{there: map[string]bool{"outbox-1": tt.there}, err: tt.err}
				if tt.down {
					b.fail = errors.New("down")
				}
				s := newService(b)
				if tt.failed {
					s.fail([]string{"outbox-1"})
				}
				if tt.after > 0 {
					time.AfterFunc(tt.after, func() { m.mu.Lock(); m.there["outbox-1"] = true; m.mu.Unlock() })
				}
				cfg, _ := of(info)
				cfg.discard = tt.discard
				start := time.Now()
				got := s.settle(t.Context(), "st", cfg, m, event(start.Add(-tt.age)))
				if got != tt.want || len(b.got) != tt.out {
					t.Errorf("%v with %d events, want %v with %d", got, len(b.got), tt.want, tt.out)
				}
				if tt.want == pubsub.Success && m.there["outbox-1"] {
					t.Error("the marker is left")
				}
				if took := time.Since(start); took > 13*time.Second {
					t.Errorf("took %v", took)
				}
			})
		})
	}
	if got := newService(&broker{}).settle(t.Context(), "st", settings{}, &marks{}, []byte("no event")); got != pubsub.Drop {
		t.Errorf("a message that is none: %v", got)
	}
}
