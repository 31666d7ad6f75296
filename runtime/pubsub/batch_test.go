package pubsub_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

type batchBody struct {
	ID, Type, Topic, PubSubName string
	Metadata                    map[string]string
	Entries                     []struct {
		EntryID, ContentType string
		Event                json.RawMessage
		Metadata             map[string]string
	}
}

// batchApp answers batches by the data of their events.
type batchApp struct {
	mu     sync.Mutex
	times  []time.Duration
	start  time.Time
	bodies []batchBody
	paths  []string
	answer func(n int, b *batchBody) (*call.Response, error)
}

func (a *batchApp) Invoke(_ context.Context, r *call.Request) (*call.Response, error) {
	var b batchBody
	if err := json.Unmarshal(r.Data, &b); err != nil || r.Type != "application/json" || r.Header.Get("pubsubName") != "ps" {
		return status(400, fmt.Sprint(err))
	}
	a.mu.Lock()
	a.bodies, a.paths, a.times = append(a.bodies, b), append(a.paths, r.Path), append(a.times, time.Since(a.start))
	n := len(a.bodies)
	a.mu.Unlock()
	if a.answer != nil {
		return a.answer(n, &b)
	}
	return statuses(&b, func(string) string { return "SUCCESS" })
}

func statuses(b *batchBody, f func(data string) string) (*call.Response, error) {
	var out []string
	for _, e := range b.Entries {
		if s := f(dataOf(e.Event)); s != "missing" {
			out = append(out, fmt.Sprintf(`{"entryId":%q,"status":%q}`, e.EntryID, s))
		}
	}
	return status(200, `{"statuses":[`+strings.Join(out, ",")+`]}`)
}

func bulk(s *pubsub.Subscription) {
	s.Bulk = pubsub.BulkSubscribe{Enabled: true, MaxMessages: 3, MaxAwait: time.Second}
}

func TestBatchTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, a := newBroker(), &batchApp{start: time.Now()}
		s := open(t, b, nil, pubsub.Options{App: a})
		defer drain(t, s)
		subscribe(t, s, sub("t", bulk))
		for i := range 4 { // three at once, the fourth after a second
			b.put(event("t", "", fmt.Sprint(i)))
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		b.put(event("t", "", "4")) // waits from 5 to 6
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		b.put(event("t", "", "5"))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		var sizes []int
		for _, body := range a.bodies {
			sizes = append(sizes, len(body.Entries))
		}
		if diff := cmp.Diff([]int{3, 1, 2}, sizes); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]time.Duration{0, time.Second, 6 * time.Second}, a.times); diff != "" {
			t.Error(diff)
		}
		first := a.bodies[0]
		if first.ID == "" || first.Type != "com.dapr.event.sent.bulk" || first.Topic != "t" || first.PubSubName != "ps" || first.Metadata["pubsubName"] != "ps" ||
			first.Entries[0].ContentType != "application/cloudevents+json" || first.Entries[0].EntryID == "" || first.Entries[0].Metadata["mecha-attempt"] != "1" {
			t.Errorf("batch %+v", first)
		}
	})
}

func TestBatchAnswers(t *testing.T) {
	cases := []struct {
		name   string
		answer func(n int, b *batchBody) (*call.Response, error)
		want   []string // of the broker in the first second after delivery
	}{
		{"each its own", func(_ int, b *batchBody) (*call.Response, error) {
			return statuses(b, func(d string) string {
				return map[string]string{"0": "SUCCESS", "1": "DROP", "2": "RETRY"}[d]
			})
		}, []string{"ack 1", "publish dead", "ack 2", "publish dead", "ack 3"}},
		{"silence and nonsense mean retry", func(_ int, b *batchBody) (*call.Response, error) {
			return statuses(b, func(d string) string { return map[string]string{"0": "missing", "1": "", "2": "success"}[d] })
		}, []string{"publish dead", "ack 1", "publish dead", "ack 2", "publish dead", "ack 3"}},
		{"404 means done", func(int, *batchBody) (*call.Response, error) { return status(404, "") }, []string{"ack 1", "ack 2", "ack 3"}},
		{"unreadable", func(int, *batchBody) (*call.Response, error) { return status(200, "ok") }, []string{"publish dead", "ack 1", "publish dead", "ack 2", "publish dead", "ack 3"}},
		{"500", func(int, *batchBody) (*call.Response, error) { return status(500, "") }, []string{"publish dead", "ack 1", "publish dead", "ack 2", "publish dead", "ack 3"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, a := newBroker(), &batchApp{answer: c.answer}
				s := open(t, b, nil, pubsub.Options{App: a})
				defer drain(t, s)
				subscribe(t, s, sub("t", bulk, withDeadLetter))
				b.put(event("t", "", "0"))
				b.put(event("t", "", "1"))
				synctest.Wait()
				log := b.record()
				b.put(event("t", "", "2"))
				synctest.Wait()
				if !slices.Equal(log()[1:], c.want) {
					t.Errorf("log %q, want %q", log()[1:], c.want)
				}
			})
		})
	}
}

func TestBatchRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, rec := newBroker(), &recorder{}
		a := &batchApp{answer: func(n int, b *batchBody) (*call.Response, error) {
			return statuses(b, func(d string) string {
				if d == "1" && n < 4 {
					return "RETRY"
				}
				return "SUCCESS"
			})
		}}
		target := &call.Target{}
		target.SetChain(&call.Chain{Retry: func(c *call.Call, err error) (time.Duration, bool) { return 0, c.Attempt < 2 }})
		s := open(t, b, nil, pubsub.Options{App: a, Recorder: rec, Inbound: func(string) *call.Target { return target }})
		defer drain(t, s)
		subscribe(t, s, sub("t", bulk))
		for i := range 3 {
			b.put(event("t", "", fmt.Sprint(i)))
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		var got []string
		for _, body := range a.bodies {
			line := ""
			for _, e := range body.Entries {
				line += dataOf(e.Event) + "/" + e.Metadata["mecha-attempt"] + " "
			}
			got = append(got, strings.TrimSpace(line))
		}
		// The policy repeats only the failed entry; then it comes again from the broker.
		if want := []string{"0/1 1/1 2/1", "1/2", "1/2", "1/3"}; !slices.Equal(got, want) {
			t.Errorf("batches %q, want %q", got, want)
		}
		if !slices.Contains(rec.got, "bulk event t RETRY 1") || !slices.Contains(rec.got, "bulk ingress t") {
			t.Errorf("recorded %q", rec.got)
		}
	})
}

func TestBatchSettlesWhatNeedsNoApp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, a := newBroker(), &batchApp{}
		s := open(t, b, nil, pubsub.Options{App: a})
		defer drain(t, s)
		subscribe(t, s, sub("t", withDeadLetter, func(s *pubsub.Subscription) {
			s.Bulk = pubsub.BulkSubscribe{Enabled: true, MaxAwait: time.Second}
			s.Rules = []pubsub.Rule{{"event.type == 'x'", "/x"}, {"event.type == 'y'", "/y"}}
		}))
		for _, body := range []string{`{"type":"x"}`, `bad`, `{"type":"y"}`, `{"type":"z"}`, `{"type":"x","expiration":"1999-01-01T00:00:00Z"}`, `{"type":"x"}`, `{}`} {
			b.put(block.Message{Topic: "t", Data: []byte(body)})
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if want := []string{"x", "y"}; !slices.Equal(a.paths, want) || len(a.bodies[0].Entries) != 2 {
			t.Errorf("calls to %q, %+v", a.paths, a.bodies)
		}
		if dead := len(b.topics()) - 7; dead != 4 {
			t.Errorf("%d dead letters, want 4", dead)
		}
	})
}

func TestBatchRawAndSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, a := newBroker(), &batchApp{answer: func(int, *batchBody) (*call.Response, error) { return status(404, "") }}
		s := open(t, b, nil, pubsub.Options{App: a})
		defer drain(t, s)
		raw := func(s *pubsub.Subscription) { s.Metadata = map[string]string{"rawPayload": "true"} }
		subscribe(t, s, sub("t", bulk, raw))
		b.put(block.Message{Topic: "t", Data: []byte{0, 255}})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if e := a.bodies[0].Entries[0]; string(e.Event) != `"AP8="` || e.ContentType != "application/octet-stream" {
			t.Errorf("entry %+v", e)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b, k := newBroker(), &sink{batches: make(chan *pubsub.Batch, 1), answers: []pubsub.Answer{pubsub.Success, pubsub.Drop, pubsub.Success}}
		s := open(t, b, nil, pubsub.Options{Sink: k})
		defer drain(t, s)
		subscribe(t, s, sub("t", bulk))
		b.put(event("t", "", "a"))
		b.put(event("t", "", "b"))
		b.put(block.Message{Topic: "t", Data: []byte(`{"id":"p","data_base64":"?"}`)}) // must not spoil the others
		log := b.record()
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		batch := <-k.batches
		if len(batch.Entries) != 2 || batch.Path != "/t" || batch.Entries[1].Event.ID != "b" || batch.Entries[1].Event.Attempt != 1 || batch.Entries[1].Metadata["pubsubName"] != "ps" {
			t.Errorf("batch %+v", batch)
		}
		if want := []string{"nack 3", "ack 1", "ack 2"}; !slices.Equal(log(), want) {
			t.Errorf("log %q, want %q", log(), want)
		}
	})
}

// TestBatchDrain: a batch that is filling goes back, one in progress finishes.
func TestBatchDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		a := &batchApp{answer: func(_ int, b *batchBody) (*call.Response, error) {
			time.Sleep(time.Second)
			return statuses(b, func(string) string { return "SUCCESS" })
		}}
		s := open(t, b, nil, pubsub.Options{App: a})
		subscribe(t, s, sub("t", bulk))
		for i := range 4 {
			b.put(event("t", "", fmt.Sprint(i)))
		}
		synctest.Wait()
		log := b.record()
		if err := s.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		if want := []string{"ack 1", "ack 2", "ack 3", "returned 4"}; !slices.Equal(log(), want) {
			t.Errorf("log %q, want %q", log(), want)
		}
	})
}
