package pubsub_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
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

var update = flag.Bool("update", false, "rewrite testdata")

// outcomes are the app's answers of Dapr's delivery table.
var outcomes = []struct {
	name   string
	answer func() (*call.Response, error)
}{
	{"200 empty", func() (*call.Response, error) { return status(200, "") }},
	{"204", func() (*call.Response, error) { return status(204, "") }},
	{"200 not JSON", func() (*call.Response, error) { return status(200, "RETRY") }},
	{"200 list", func() (*call.Response, error) { return status(200, `["RETRY"]`) }},
	{"200 status is a number", func() (*call.Response, error) { return status(200, `{"status":1}`) }},
	{"200 status empty", func() (*call.Response, error) { return status(200, `{"status":""}`) }},
	{"200 SUCCESS", func() (*call.Response, error) { return status(200, `{"status":"SUCCESS"}`) }},
	{"200 RETRY", func() (*call.Response, error) { return status(200, `{"status":"RETRY"}`) }},
	{"299 RETRY, key in capitals", func() (*call.Response, error) { return status(299, `{"STATUS":"RETRY"}`) }},
	{"200 DROP", func() (*call.Response, error) { return status(200, `{"status":"DROP"}`) }},
	{"200 unknown", func() (*call.Response, error) { return status(200, `{"status":"retry"}`) }},
	{"404 SUCCESS", func() (*call.Response, error) { return status(404, `{"status":"SUCCESS"}`) }},
	{"302", func() (*call.Response, error) { return status(302, "") }},
	{"400", func() (*call.Response, error) { return status(400, "") }},
	{"429", func() (*call.Response, error) { return status(429, "") }},
	{"500", func() (*call.Response, error) { return status(500, "") }},
	{"stream cut after 200", func() (*call.Response, error) {
		return &call.Response{Status: 200, Length: call.Unknown, Stream: io.NopCloser(io.MultiReader(strings.NewReader("{"), brokenReader{}))}, nil
	}},
	{"streamed DROP", func() (*call.Response, error) {
		return &call.Response{Status: 200, Length: call.Unknown, Stream: io.NopCloser(strings.NewReader(`{"status":"DROP"}`))}, nil
	}},
	{"streamed RETRY with a long reason", func() (*call.Response, error) {
		return &call.Response{Status: 200, Length: call.Unknown, Stream: io.NopCloser(strings.NewReader(
			`{"reason":"` + strings.Repeat("x", 100<<10) + `","status":"RETRY"}`))}, nil
	}},
	{"streamed without end", func() (*call.Response, error) {
		return &call.Response{Status: 200, Length: call.Unknown, Stream: io.NopCloser(endless{})}, nil
	}},
	{"transport failure", func() (*call.Response, error) { return nil, fault.New("t", fault.Unavailable, "refused") }},
	{"app unhealthy", func() (*call.Response, error) {
		return nil, fault.New("t", fault.NotReady, "app is not in a healthy state").With(fault.AppUnhealthy)
	}},
	{"handler panics", func() (*call.Response, error) { panic("boom") }},
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// TestOutcomes writes down what becomes of a message for every answer of the app, without and
// with a dead-letter topic: testdata/outcomes.txt is the delivery table.
func TestOutcomes(t *testing.T) {
	var out bytes.Buffer
	for _, o := range outcomes {
		for _, dead := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) { outcome(t, &out, o.name, dead, o.answer) })
		}
	}
	golden(t, "outcomes.txt", out.Bytes())
}

// outcome plays one message against an app that gives the answer twice and then success.
func outcome(t *testing.T, out *bytes.Buffer, name string, dead bool, answer func() (*call.Response, error)) {
	if dead {
		name += ", dead-letter topic"
	}
	var steps []string
	b, rec := newBroker(), &recorder{}
	var mu sync.Mutex
	write := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		steps = append(steps, fmt.Sprintf(format, args...))
	}
	calls := 0
	s := open(t, b, nil, pubsub.Options{Recorder: rec, App: app(func(_ context.Context, r *call.Request) (*call.Response, error) {
		write("attempt %s", r.Header.Get(pubsub.AttemptHeader))
		if calls++; calls > 2 {
			return status(200, "")
		}
		return answer()
	})})
	defer drain(t, s)
	b.log = write
	subscription := sub("t")
	if dead {
		withDeadLetter(&subscription)
	}
	subscribe(t, s, subscription)
	b.put(event("t", "", "x"))
	time.Sleep(time.Hour)
	synctest.Wait()
	fmt.Fprintf(out, "%s\n  %s\n  metrics: %s\n", name, strings.Join(steps, " | "), strings.Join(rec.got, ", "))
}

// TestDeadLetterToItself: a dead-letter topic that is the topic itself would turn one bad
// message into an endless stream of copies without a pause.
func TestDeadLetterToItself(t *testing.T) {
	for name, answer := range map[string]string{"RETRY": "nack 1", "DROP": "ack 1"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker()
				log := b.record()
				calls := 0
				s := open(t, b, nil, pubsub.Options{App: app(func(context.Context, *call.Request) (*call.Response, error) {
					if calls++; calls > 5 {
						return status(200, "")
					}
					return status(200, `{"status":"`+name+`"}`)
				})})
				defer drain(t, s)
				subscribe(t, s, sub("t", func(s *pubsub.Subscription) { s.DeadLetterTopic = "t" }))
				b.put(event("t", "", "x"))
				time.Sleep(300 * time.Millisecond)
				synctest.Wait()
				if diff := cmp.Diff([]string{"publish t", answer}, log()); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs; run with -update and read the change:\n%s", path, diff)
	}
}

// one delivers a single message over HTTP and returns the request the app saw.
func one(t *testing.T, subscription pubsub.Subscription, m block.Message) *call.Request {
	t.Helper()
	b := newBroker()
	seen := make(chan *call.Request, 1)
	s := open(t, b, nil, pubsub.Options{App: app(func(_ context.Context, r *call.Request) (*call.Response, error) {
		seen <- r
		return status(200, "")
	})})
	defer drain(t, s)
	subscribe(t, s, subscription)
	b.put(m)
	select {
	case r := <-seen:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("the app was not called")
		return nil
	}
}

func header(r *call.Request) map[string]string {
	out := map[string]string{}
	for _, f := range r.Header {
		out[f.Name] += f.Value
	}
	return out
}

func TestHTTPRequest(t *testing.T) {
	body := `{"id":"1", "traceparent":"` + parent + `","data":1}`
	r := one(t, sub("t", func(s *pubsub.Subscription) { s.Rules[0].Path = "ev/x%20y?a=b" }), block.Message{Topic: "t", Data: []byte(body), Metadata: map[string]string{
		"rawPayload": "false", "__key": "k",
		"Content-Type": "evil", "dapr-api-token": "evil", "Host": "evil", "PUBSUBNAME": "evil", "traceparent": "evil", "bad name": "x", "split": "a\r\nb: c", "Mecha-Attempt": "9"}})
	if r.Verb != "POST" || r.Path != "ev/x y" || r.Query != "a=b" || r.Type != "application/cloudevents+json" || string(r.Data) != body || r.Length != int64(len(body)) {
		t.Errorf("request %+v with body %s", r, r.Data)
	}
	want := map[string]string{"rawPayload": "false", "__key": "k", "pubsubName": "ps", "mecha-attempt": "1", "traceparent": parent}
	if diff := cmp.Diff(want, header(r)); diff != "" {
		t.Error(diff)
	}
}

func TestHTTPTrace(t *testing.T) {
	const zero = "00-00000000000000000000000000000000-0000000000000000-00"
	cases := []struct{ name, body, want string }{
		{"absent", `{}`, ""},
		{"empty", `{"traceid":""}`, zero},
		{"in traceid", `{"traceid":"` + parent + `"}`, parent},
		{"nonsense", `{"traceparent":"x\ny"}`, zero},
		{"not text", `{"traceparent":1}`, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := one(t, sub("t"), block.Message{Topic: "t", Data: []byte(c.body)})
			if got := r.Header.Get("traceparent"); got != c.want {
				t.Errorf("traceparent = %q, want %q", got, c.want)
			}
		})
	}
}

func TestRawSubscription(t *testing.T) {
	raw := func(s *pubsub.Subscription) { s.Metadata = map[string]string{"rawPayload": "true"} }
	r := one(t, sub("t", raw), block.Message{Topic: "t", Data: []byte("\x00bytes"), Metadata: map[string]string{"traceid": parent, "tracestate": "s"}})
	var id string
	if _, err := fmt.Sscanf(string(r.Data), `{"data_base64":"AGJ5dGVz","datacontenttype":"application/octet-stream","id":"%36s`, &id); err != nil {
		t.Fatalf("body %s: %v", r.Data, err)
	}
	want := `{"data_base64":"AGJ5dGVz","datacontenttype":"application/octet-stream","id":"` + id + `","pubsubname":"ps","source":"Dapr","specversion":"1.0","topic":"t",` +
		`"traceid":"` + parent + `","traceparent":"` + parent + `","tracestate":"s","type":"com.dapr.event.sent"}`
	if diff := cmp.Diff(want, string(r.Data)); diff != "" {
		t.Error(diff)
	}
}

func TestBinaryMode(t *testing.T) {
	r := one(t, sub("t"), block.Message{Topic: "t", Data: []byte{0xff}, Metadata: map[string]string{"content-type": "application/octet-stream", "ce_id": "7", "CE_type": "x"}})
	if want := `{"data_base64":"/w==","datacontenttype":"application/octet-stream","id":"7","type":"x"}`; string(r.Data) != want {
		t.Errorf("body %s, want %s", r.Data, want)
	}
}

func TestRouting(t *testing.T) {
	rules := []pubsub.Rule{{"event.type == 'a'", "/a"}, {"event.data.n > 3 && event.topic == 'x'", "/n"}, {Path: "/default"}}
	cases := []struct {
		name  string
		rules []pubsub.Rule
		body  string
		want  string // path, or what becomes of the message
	}{
		{"first rule", rules, `{"type":"a"}`, "/a"},
		{"second rule", rules, `{"type":"b","topic":"x","data":{"n":4}}`, "/n"},
		{"default", rules, `{"type":"b","topic":"y","data":{"n":4.5}}`, "/default"},
		{"missing member is an error", rules, `{"type":"b"}`, "dead"},
		{"not a boolean", []pubsub.Rule{{"event.type", "/x"}, {Path: "/default"}}, `{"type":"a"}`, "dead"},
		{"nothing matches", rules[:1], `{"type":"b"}`, "dead"},
		{"no rules", nil, `{"type":"b"}`, "dead"},
		{"not JSON", rules[2:], `x`, "dead"},
		{"not an object", rules[2:], `[1]`, "dead"},
		{"empty path", []pubsub.Rule{{}}, `{}`, "/"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBroker()
			got := make(chan string, 10)
			s := open(t, b, nil, pubsub.Options{App: app(func(_ context.Context, r *call.Request) (*call.Response, error) {
				got <- "/" + r.Path
				return status(200, "")
			})})
			defer drain(t, s)
			b.log = func(format string, args ...any) {
				if line := fmt.Sprintf(format, args...); line == "publish dead" {
					got <- "dead"
				}
			}
			subscribe(t, s, sub("t", withDeadLetter, func(s *pubsub.Subscription) { s.Rules = c.rules }))
			b.put(block.Message{Topic: "t", Data: []byte(c.body)})
			if path := <-got; path != c.want {
				t.Errorf("event went to %q, want %q", path, c.want)
			}
		})
	}
}

func TestNoRouteWithoutDeadLetterIsAcked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		log := b.record()
		s := open(t, b, nil, pubsub.Options{})
		defer drain(t, s)
		subscribe(t, s, sub("t", func(s *pubsub.Subscription) { s.Rules = []pubsub.Rule{{"event.type == 'x'", "/x"}} }))
		b.put(block.Message{Topic: "t", Data: []byte(`{"type":"y"}`)})
		synctest.Wait()
		if want := []string{"publish t", "ack 1"}; !slices.Equal(log(), want) {
			t.Errorf("log %q, want %q", log(), want)
		}
	})
}

func TestExpiredAndDeadLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		var mu sync.Mutex
		var paths []string
		s := open(t, b, nil, pubsub.Options{App: app(func(_ context.Context, r *call.Request) (*call.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			paths = append(paths, r.Path)
			return status(200, "")
		})})
		defer drain(t, s)
		subscribe(t, s, sub("t", withDeadLetter), sub("dead"), sub("plain"))
		expired := `{"expiration":"1999-12-31T23:59:59Z","id":"1"}`
		b.put(block.Message{Topic: "t", Key: "k", Data: []byte(expired), Metadata: map[string]string{"a": "b"}})
		b.put(block.Message{Topic: "plain", Data: []byte(expired)})
		b.put(block.Message{Topic: "plain", Data: []byte(`{"expiration":"2000-01-01T00:00:00Z"}`)})
		b.put(block.Message{Topic: "plain", Data: []byte(`{"expiration":"2000-01-01T00:00:01Z"}`)})
		b.put(block.Message{Topic: "plain", Data: []byte(`{"expiration":"whenever"}`)})
		synctest.Wait()
		slices.Sort(paths)
		if want := []string{"dead", "plain", "plain"}; !slices.Equal(paths, want) {
			t.Errorf("delivered to %q, want %q: a dead-letter copy does not expire again", paths, want)
		}
		copied := b.sent[slices.IndexFunc(b.sent, func(m block.Message) bool { return m.Topic == "dead" })]
		if string(copied.Data) != expired || copied.Key != "k" || copied.Metadata["a"] != "b" || copied.Metadata["pubsubName"] != "ps" {
			t.Errorf("copy %+v %s", copied, copied.Data)
		}
	})
}

// TestDeadLetterRefused: a message stays until its copy is safe.
func TestDeadLetterRefused(t *testing.T) {
	for name, raw := range map[string]map[string]string{"broker": nil, "scopes": {"publishingscopes": "shop="}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker()
				log := b.record()
				copies := 0
				b.failPublish = func(m block.Message) error {
					if m.Topic != "dead" {
						return nil
					}
					if copies++; copies <= 3 {
						return fault.New("t", fault.Unavailable, "full")
					}
					return nil
				}
				s := open(t, b, raw, pubsub.Options{App: app(func(context.Context, *call.Request) (*call.Response, error) { return status(500, "") })})
				defer drain(t, s)
				subscribe(t, s, sub("t", withDeadLetter))
				b.put(event("t", "", "x"))
				time.Sleep(time.Minute)
				synctest.Wait()
				want := []string{"publish t", "nack 1", "nack 1", "nack 1", "publish dead", "ack 1"}
				if raw != nil {
					if len(log()) < 5 || slices.Contains(log(), "ack 1") || slices.Contains(log(), "publish dead") {
						t.Errorf("log %q, want a publish and nacks only", log())
					}
				} else if !slices.Equal(log(), want) {
					t.Errorf("log %q, want %q", log(), want)
				}
			})
		})
	}
}
