package pubsub_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

// spanBook numbers spans, makes a traceparent of the number, and writes down what happens.
type spanBook struct {
	mu  sync.Mutex
	n   int
	got []string
}

func (b *spanBook) start(kind, topic string, of pubsub.Trace) (pubsub.Trace, pubsub.TraceSpan) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	b.got = append(b.got, fmt.Sprintf("%s %d of %s below %q", kind, b.n, topic, of.Parent))
	return pubsub.Trace{Parent: numbered(b.n), Bin: "bin"}, numberedSpan{b, b.n}
}

func (b *spanBook) Entry(_ context.Context, topic string, of pubsub.Trace) (pubsub.Trace, pubsub.TraceSpan) {
	return b.start("entry", topic, of)
}

func (b *spanBook) Delivery(_ context.Context, topic string, of pubsub.Trace) (pubsub.Trace, pubsub.TraceSpan) {
	return b.start("delivery", topic, of)
}

func numbered(n int) string { return fmt.Sprintf("00-%032x-%016x-01", 1, n) }

type numberedSpan struct {
	b *spanBook
	n int
}

func (s numberedSpan) End(err error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.got = append(s.b.got, fmt.Sprintf("end %d failed=%v", s.n, err != nil))
}

func (b *spanBook) want(t *testing.T, want ...string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := cmp.Diff(want, b.got); d != "" {
		t.Errorf("spans (-want +got):\n%s", d)
	}
}

func tracedEvent(topic, id string) block.Message {
	return block.Message{Topic: topic, Data: fmt.Appendf(nil, `{"id":%q,"data":%q,"traceid":%q,"traceparent":%q}`, id, id, parent, parent)}
}

// Every attempt has a span of its own, below the event and not below the attempt before.
func TestSpanOfEveryAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		book, b := &spanBook{}, newBroker()
		var seen []string
		s := open(t, b, nil, pubsub.Options{Tracing: book, App: app(func(_ context.Context, r *call.Request) (*call.Response, error) {
			seen = append(seen, r.Header.Get("traceparent"))
			if len(seen) == 1 {
				return status(500, "")
			}
			return status(200, `{"status":"DROP"}`)
		})})
		subscribe(t, s, sub("t"))
		b.put(tracedEvent("t", "a"))
		drainAfterRetry(t, s)
		if d := cmp.Diff([]string{numbered(1), numbered(2)}, seen); d != "" {
			t.Errorf("the app saw (-want +got):\n%s", d)
		}
		below := fmt.Sprintf("%q", parent)
		book.want(t, "delivery 1 of t below "+below, "end 1 failed=true", "delivery 2 of t below "+below, "end 2 failed=false")
	})
}

// An event without trace fields has no place in a trace.
func TestNoSpanWithoutTraceFields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		book, b := &spanBook{}, newBroker()
		s := open(t, b, nil, pubsub.Options{Tracing: book, App: app(func(_ context.Context, r *call.Request) (*call.Response, error) {
			if _, ok := r.Header.Lookup("traceparent"); ok {
				t.Error("the app sees a traceparent")
			}
			return status(200, "")
		})})
		subscribe(t, s, sub("t"))
		b.put(event("t", "", "a"))
		synctest.Wait()
		drain(t, s)
		book.want(t)
	})
}

// drainAfterRetry lets what failed come again, on the fake clock.
func drainAfterRetry(t *testing.T, s *pubsub.Service) {
	t.Helper()
	time.Sleep(time.Minute)
	drain(t, s)
}

// An app that takes decoded events gets both forms of the delivery's context.
func TestSpanForSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		book, b := &spanBook{}, newBroker()
		var got []string
		s := open(t, b, nil, pubsub.Options{Tracing: book, Sink: eventFunc(func(e *pubsub.Event) { got = append(got, e.TraceParent+" "+e.TraceBin) })})
		subscribe(t, s, sub("t"))
		b.put(tracedEvent("t", "a"))
		synctest.Wait()
		drain(t, s)
		if d := cmp.Diff([]string{numbered(1) + " bin"}, got); d != "" {
			t.Errorf("the app saw (-want +got):\n%s", d)
		}
	})
}

// eventFunc is a sink that takes every event.
type eventFunc func(*pubsub.Event)

func (f eventFunc) Deliver(_ context.Context, e *pubsub.Event) (pubsub.Answer, error) {
	f(e)
	return pubsub.Success, nil
}

func (eventFunc) DeliverBulk(context.Context, *pubsub.Batch) ([]pubsub.Answer, error) {
	return nil, nil
}

// Every message of a batch has a span, which fails if the app asks for the message again.
func TestSpansOfBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		book, b := &spanBook{}, newBroker()
		answers := &batchApp{answer: func(n int, body *batchBody) (*call.Response, error) {
			return statuses(body, func(data string) string {
				if data == "b" && n == 1 {
					return "RETRY"
				}
				return "SUCCESS"
			})
		}}
		s := open(t, b, nil, pubsub.Options{Tracing: book, App: answers})
		subscribe(t, s, sub("t", bulk))
		for _, id := range []string{"a", "b"} {
			b.put(tracedEvent("t", id))
		}
		drainAfterRetry(t, s)
		below := fmt.Sprintf("%q", parent)
		book.want(t, "delivery 1 of t below "+below, "delivery 2 of t below "+below, "end 1 failed=false", "end 2 failed=true",
			"delivery 3 of t below "+below, "end 3 failed=false")
	})
}

// Every entry of a bulk publish has a span below the publish, and its event carries it; raw
// messages have no place for it.
func TestSpansOfBulkPublish(t *testing.T) {
	request := func(raw string) pubsub.BulkRequest {
		return pubsub.BulkRequest{PubSub: "ps", Topic: "t", Trace: pubsub.Trace{Parent: parent}, Metadata: map[string]string{"rawPayload": raw},
			Entries: []pubsub.BulkEntry{{ID: "1", Event: []byte("a")}, {ID: "2", Event: []byte("b")}}}
	}
	below := fmt.Sprintf("%q", parent)
	started := []string{"entry 1 of t below " + below, "entry 2 of t below " + below}
	for _, tt := range []struct {
		name    string
		raw     string
		fail    func(block.Message) error
		want    []string
		parents []string
	}{
		{"published", "false", nil, append(started[:2:2], "end 1 failed=false", "end 2 failed=false"), []string{numbered(1), numbered(2)}},
		{"one refused", "false", func(m block.Message) error {
			if strings.Contains(string(m.Data), `"data":"b"`) {
				return fault.New("t", fault.Unavailable, "no")
			}
			return nil
		}, append(started[:2:2], "end 1 failed=false", "end 2 failed=true"), []string{numbered(1)}},
		{"raw", "true", nil, nil, []string{"", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			book, b := &spanBook{}, newBroker()
			b.failPublish = tt.fail
			s := open(t, b, nil, pubsub.Options{Tracing: book})
			in := request(tt.raw)
			_, _ = s.BulkPublish(t.Context(), in)
			book.want(t, tt.want...)
			var parents []string
			for _, m := range b.sent {
				var e struct{ TraceParent string }
				_ = json.Unmarshal(m.Data, &e) // a raw message is no event
				parents = append(parents, e.TraceParent)
			}
			if d := cmp.Diff(tt.parents, parents); d != "" {
				t.Errorf("events carry (-want +got):\n%s", d)
			}
			if in.Entries[0].Trace != (pubsub.Trace{}) {
				t.Error("the caller's entries were changed")
			}
		})
	}
}
