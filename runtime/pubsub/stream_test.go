package pubsub_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

// client is the app's end of a stream.
type client struct {
	mu     sync.Mutex
	got    []*pubsub.Event
	fail   error
	stream *pubsub.Stream
	done   chan error
	leave  context.CancelFunc
}

func connect(t *testing.T, s *pubsub.Service, opts pubsub.StreamOptions) *client {
	t.Helper()
	st, err := s.OpenStream(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	c := &client{stream: st, done: make(chan error, 1), leave: leave}
	go func() {
		c.done <- st.Run(ctx, func(e *pubsub.Event) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.got = append(c.got, e)
			return c.fail
		})
	}()
	synctest.Wait()
	return c
}

func (c *client) breaks(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = err
}

func (c *client) data() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.got {
		out = append(out, string(e.Data))
	}
	return out
}

func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		s := open(t, b, nil, pubsub.Options{}) // no app, no Resume
		defer drain(t, s)
		c := connect(t, s, pubsub.StreamOptions{PubSub: "ps", Topic: "t", DeadLetterTopic: "dead"})
		if diff := cmp.Diff([]string{"STREAMING ps t /"}, names(s.List())); diff != "" {
			t.Error(diff)
		}
		for _, data := range []string{"a", "b", "c"} {
			b.put(event("t", "", data))
		}
		synctest.Wait()
		got := c.data()
		slices.Sort(got)
		if want := []string{"a", "b", "c"}; !slices.Equal(got, want) {
			t.Fatalf("sent %q, want all of %q before any answer", got, want)
		}
		if c.stream.Answer("nobody", pubsub.Success) {
			t.Error("an answer to no event was taken")
		}
		for id, a := range map[string]pubsub.Answer{"a": pubsub.Success, "b": pubsub.Drop, "c": pubsub.Retry} {
			if !c.stream.Answer(id, a) {
				t.Errorf("answer to %s was not taken", id)
			}
		}
		if c.stream.Answer("a", pubsub.Success) {
			t.Error("a second answer was taken")
		}
		synctest.Wait()
		if got := b.topics(); !slices.Equal(got, []string{"t", "t", "t", "dead", "dead"}) {
			t.Errorf("published to %q: RETRY and DROP go to the dead-letter topic", got)
		}
		c.leave()
		if err := <-c.done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
		if len(s.List()) != 0 {
			t.Errorf("still listed: %v", s.List())
		}
	})
}

func TestStreamGoneGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		s := open(t, b, nil, pubsub.Options{})
		defer drain(t, s)
		c := connect(t, s, pubsub.StreamOptions{PubSub: "ps", Topic: "t"})
		b.put(event("t", "", "a"))
		synctest.Wait()
		c.leave()
		<-c.done
		again := connect(t, s, pubsub.StreamOptions{PubSub: "ps", Topic: "t"})
		synctest.Wait()
		if !slices.Equal(again.data(), []string{"a"}) || again.got[0].Attempt != 2 {
			t.Errorf("second client got %+v", again.got)
		}
		again.leave()
		<-again.done
	})
}

func TestStreamSameID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		s := open(t, b, nil, pubsub.Options{})
		defer drain(t, s)
		c := connect(t, s, pubsub.StreamOptions{PubSub: "ps", Topic: "t"})
		b.put(event("t", "", "same"))
		b.put(event("t", "", "same"))
		synctest.Wait()
		log := b.record()
		taken := 0
		for range 3 {
			if c.stream.Answer("same", pubsub.Success) {
				taken++
			}
		}
		if taken != 2 {
			t.Errorf("two events with one id took %d answers, want 2", taken)
		}
		synctest.Wait()
		if len(log()) != 2 {
			t.Errorf("log %q, want two acks", log())
		}
		c.leave()
		<-c.done
	})
}

func TestStreamPauseDrainAndFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		s := open(t, b, nil, pubsub.Options{})
		c := connect(t, s, pubsub.StreamOptions{PubSub: "ps", Topic: "t"})
		s.Pause()
		b.put(event("t", "", "a"))
		synctest.Wait()
		if len(c.data()) != 0 {
			t.Error("sent while paused")
		}
		c.breaks(errors.New("pipe broke once"))
		s.Resume()
		synctest.Wait()
		c.breaks(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		if !slices.Equal(c.data(), []string{"a", "a"}) {
			t.Errorf("sent %q, want the failed one again", c.data())
		}
		go func() {
			time.Sleep(time.Second)
			c.stream.Answer("a", pubsub.Success)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := s.Drain(ctx); err != nil {
			t.Errorf("Drain = %v, want it to wait for the answer", err)
		}
		if err := <-c.done; err != nil {
			t.Errorf("Run = %v after a drain", err)
		}
		if st, err := s.OpenStream(pubsub.StreamOptions{PubSub: "ps", Topic: "t"}); err != nil || fault.Of(st.Run(t.Context(), nil)) != fault.Unavailable {
			t.Error("a stream ran after the drain")
		}
		c.leave()
	})
}

func TestStreamRefusals(t *testing.T) {
	s := open(t, newBroker(), map[string]string{"protectedtopics": "p"}, pubsub.Options{})
	cases := []struct {
		name string
		opts pubsub.StreamOptions
		code fault.Code
		why  fault.Reason
		text string
	}{
		{"no pubsub", pubsub.StreamOptions{Topic: "t"}, fault.Invalid, fault.EmptyName, "pubsubName is required"},
		{"no topic", pubsub.StreamOptions{PubSub: "x"}, fault.Invalid, fault.NoTopic, "topic is required"},
		{"unknown", pubsub.StreamOptions{PubSub: "x", Topic: "t"}, fault.NotFound, fault.NoSuchComponent, "x"},
		{"scopes", pubsub.StreamOptions{PubSub: "ps", Topic: "p"}, fault.Denied, fault.ForbiddenTopic, "subscription to topic 'p' on pubsub 'ps' is not allowed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.OpenStream(c.opts)
			wantFault(t, err, c.code, c.why, c.text)
		})
	}
}

// sink is a gRPC-like app.
type sink struct {
	events  chan *pubsub.Event
	batches chan *pubsub.Batch
	answers []pubsub.Answer
}

func (s *sink) Deliver(_ context.Context, e *pubsub.Event) (pubsub.Answer, error) {
	s.events <- e
	return pubsub.Success, nil
}

func (s *sink) DeliverBulk(_ context.Context, b *pubsub.Batch) ([]pubsub.Answer, error) {
	s.batches <- b
	return s.answers, nil
}

func TestSinkEvent(t *testing.T) {
	base := `"id":"1","source":"s","type":"ty","specversion":"1.0","topic":"orig","pubsubname":"ps","traceid":"` + parent + `"`
	cases := []struct {
		name, body string
		data, ct   string
	}{
		{"json", `{` + base + `,"datacontenttype":"application/json","data":{"n": 12345678901234567890}}`, `{"n": 12345678901234567890}`, "application/json"},
		{"json string", `{` + base + `,"datacontenttype":"application/json","data":"x"}`, `"x"`, "application/json"},
		{"text", `{` + base + `,"datacontenttype":"text/plain","data":"h\u00e9\n"}`, "hé\n", "text/plain"},
		{"+json as text", `{` + base + `,"datacontenttype":"application/ld+json","data":"{}"}`, "{}", "application/ld+json"},
		{"bytes", `{` + base + `,"datacontenttype":"application/octet-stream","data_base64":"AP8="}`, "\x00\xff", "application/octet-stream"},
		{"no content type", `{` + base + `,"data":{"a":1}}`, `{"a":1}`, ""},
		{"no data", `{` + base + `}`, "", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b, k := newBroker(), &sink{events: make(chan *pubsub.Event, 1)}
			s := open(t, b, nil, pubsub.Options{Sink: k})
			defer drain(t, s)
			subscribe(t, s, sub("t"))
			b.put(block.Message{Topic: "t", Data: []byte(c.body), Metadata: map[string]string{"m": "v"}})
			want := &pubsub.Event{ID: "1", Source: "s", Type: "ty", SpecVersion: "1.0", DataContentType: c.ct, PubSub: "ps", Topic: "t", Path: "/t",
				Extensions: map[string]any{"topic": "orig", "pubsubname": "ps", "traceid": parent}, TraceParent: parent, Attempt: 1,
				Metadata: map[string]string{"m": "v", "pubsubName": "ps", "mecha-attempt": "1"}}
			got := <-k.events
			if string(got.Data) != c.data {
				t.Errorf("data = %q, want %q", got.Data, c.data)
			}
			got.Data = nil
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSinkRawJSONObject(t *testing.T) {
	b, k := newBroker(), &sink{events: make(chan *pubsub.Event, 1)}
	s := open(t, b, nil, pubsub.Options{Sink: k})
	defer drain(t, s)
	subscribe(t, s, sub("t"))
	b.put(block.Message{Topic: "t", Data: []byte(`{"a":1}`)})
	if e := <-k.events; e.ID != "" || e.Type != "" || !cmp.Equal(e.Extensions, map[string]any{"a": 1.0}) {
		t.Errorf("event %+v", e)
	}
}
