package binding_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/call"
)

// reading is a kit whose component "in" is being read.
func reading(t *testing.T, change ...func(*binding.Options)) (*kit, *read) {
	t.Helper()
	k := newKit(t, change...)
	in := newInput()
	k.put("in", in, "direction", "input", "route", "/events")
	k.Resume()
	return k, begun(in)
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, r := reading(t)
		k.app.set(func(string) (int, string) { return 200, `{"to":["out"],"data":1}` })
		said, err := r.deliver(block.BindingEvent{Data: []byte("data"), Metadata: map[string]string{"readTimeUTC": "now", "x-custom": "1", "Content-Length": "0",
			"dapr-api-token": "forged", "Host": "evil", "two\r\nlines": "x", "lines": "x\r\nHost: y", "traceparent": "tp", "tracestate": "ts"}})
		if err != nil || string(said) != `{"to":["out"],"data":1}` {
			t.Errorf("%s, %v", said, err)
		}
		if _, err := r.deliver(block.BindingEvent{}); err != nil {
			t.Error(err)
		}
		want := []string{"POST events application/json readTimeUTC=now traceparent=tp tracestate=ts x-custom=1 data", "POST events application/json"}
		if d := cmp.Diff(want, k.app.all()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if d := cmp.Diff([]string{"in in true", "in in true"}, k.rec.all()); d != "" {
			t.Errorf("recorded (-want +got):\n%s", d)
		}
	})
}

// Every 2xx is the end of an event; to policy only 200 is a success.
func TestAnswers(t *testing.T) {
	for status, tt := range map[int]struct {
		ok       bool
		attempts int
		http     int // what policy is shown
	}{200: {true, 1, 0}, 201: {true, 3, 0}, 204: {true, 3, 0}, 299: {true, 3, 0}, 300: {false, 3, 0}, 302: {false, 3, 0}, 400: {false, 3, 400}, 404: {false, 3, 404}, 500: {false, 3, 500}, 0: {false, 3, 0}} {
		synctest.Test(t, func(t *testing.T) {
			k, r := reading(t)
			shown := -1
			k.inbound.SetChain(&call.Chain{Retry: func(c *call.Call, _ error) (time.Duration, bool) {
				shown = c.Try().Status.HTTP
				if c.Op != "event" || c.Safety != call.Idempotent || c.Outcome == call.OK {
					t.Errorf("%d: policy saw %s %v, %v", status, c.Op, c.Safety, c.Outcome)
				}
				return time.Second, c.Attempt < 3
			}})
			k.app.set(func(string) (int, string) { return status, "body" })
			said, err := r.deliver(block.BindingEvent{})
			if (err == nil) != tt.ok || tt.ok && string(said) != "body" || !tt.ok && said != nil {
				t.Errorf("%d: %q, %v", status, said, err)
			}
			if n := len(k.app.all()); n != tt.attempts {
				t.Errorf("%d: %d attempts, want %d", status, n, tt.attempts)
			}
			if tt.attempts > 1 && shown != tt.http {
				t.Errorf("%d: policy was shown status %d, want %d", status, shown, tt.http)
			}
			if got, want := fmt.Sprint(k.rec.all()), fmt.Sprintf("[in in %v]", tt.ok); got != want {
				t.Errorf("%d: recorded %s, want %s", status, got, want)
			}
			if n := k.log.count("did not handle an event"); (n == 1) == tt.ok {
				t.Errorf("%d: told %d times", status, n)
			}
		})
	}
}

func TestAPolicyThatRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, r := reading(t)
		k.inbound.SetChain(&call.Chain{Layers: []call.Layer{refusing{}}})
		if _, err := r.deliver(block.BindingEvent{}); fault.ReasonOf(err) != fault.PolicyRejected {
			t.Errorf("%v", err)
		}
		if n := len(k.app.all()); n != 0 {
			t.Errorf("the app got %d events", n)
		}
	})
}

type refusing struct{}

func (refusing) Enter(ctx context.Context, _ *call.Call) (context.Context, error) {
	return ctx, fault.New("op", fault.Exhausted, "too many").With(fault.PolicyRejected)
}
func (refusing) Exit(_ *call.Call, err error) error { return err }

// sink is a gRPC app.
type sink struct {
	mu     sync.Mutex
	inputs func() ([]string, error)
	got    []binding.Event
	reply  binding.Reply
	err    error
	hang   time.Duration
	inside int
	peak   int
}

func (s *sink) Inputs(context.Context) ([]string, error) { return s.inputs() }

func (s *sink) BindingEvent(_ context.Context, e *binding.Event) (binding.Reply, error) {
	s.mu.Lock()
	s.inside++
	s.peak = max(s.peak, s.inside)
	s.got = append(s.got, *e)
	s.mu.Unlock()
	time.Sleep(s.hang)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inside--
	return s.reply, s.err
}

func TestSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		s := &sink{inputs: func() ([]string, error) {
			if asked++; asked == 1 {
				return nil, fault.New("op", fault.Unavailable, "starting")
			}
			return []string{"in"}, nil
		}, reply: binding.Reply{Data: []byte("said")}}
		k := newKit(t, func(o *binding.Options) { o.Sink = s })
		in, other := newInput(), newInput()
		k.put("in", in)
		k.Resume()
		time.Sleep(10 * time.Second)
		k.put("other", other)
		k.Refresh("other")
		r := begun(in)
		if r == nil || begun(other) != nil || k.log.count("has not subscribed to binding other.") != 1 {
			t.Fatal("read is not what the app listed")
		}
		said, err := r.deliver(block.BindingEvent{Data: []byte("d"), Metadata: map[string]string{"k": "v"}})
		if err != nil || string(said) != "said" {
			t.Errorf("%s, %v", said, err)
		}
		if d := cmp.Diff([]binding.Event{{Binding: "in", Data: []byte("d"), Metadata: map[string]string{"k": "v"}}}, s.got); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		s.err = fault.New("op", fault.Unavailable, "no")
		if _, err := r.deliver(block.BindingEvent{}); fault.Of(err) != fault.Unavailable {
			t.Errorf("%v", err)
		}
		if len(k.app.all()) != 0 {
			t.Errorf("HTTP requests %q", k.app.all())
		}
	})
}

// Events have the app's limit of calls, in its own protocol too.
func TestConcurrencyLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{hang: time.Second}
		k := newKit(t, func(o *binding.Options) {
			o.Sink, o.App = s, app.New(&channel{}, app.Options{MaxConcurrency: 2})
		})
		in := newInput()
		k.put("in", in, "direction", "input")
		k.Resume()
		r := begun(in)
		var all sync.WaitGroup
		for range 7 {
			all.Go(func() { _, _ = r.deliver(block.BindingEvent{}) })
		}
		all.Wait()
		if s.peak != 2 || len(s.got) != 7 {
			t.Errorf("%d events, %d at once; want 7 and 2", len(s.got), s.peak)
		}
	})
}

// A gRPC app's reply may pass data on to output bindings.
func TestForwarding(t *testing.T) {
	for name, tt := range map[string]struct {
		data     string
		parallel bool
		to       []string
		fail     int // the call that fails
		calls    int
		peak     int
		told     string
	}{
		"one after the other": {`{"a": 1}`, false, []string{"b", "b", "b"}, 0, 3, 1, ""},
		"as far as they go":   {`1`, false, []string{"b", "b", "b"}, 2, 2, 1, "could not be passed on"},
		"all at once":         {`1`, true, []string{"b", "b", "b"}, 2, 3, 3, "could not be passed on"},
		"nobody there":        {`1`, true, []string{"x", "b"}, 0, 1, 1, "couldn't find output binding x"},
		"no JSON":             {`{"a"`, false, []string{"b"}, 0, 0, 0, "no JSON"},
		"no data":             {``, true, []string{"b"}, 0, 0, 0, "no JSON"},
		"nowhere":             {`1`, true, nil, 0, 0, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &sink{reply: binding.Reply{Data: []byte(tt.data), To: tt.to, Parallel: tt.parallel}}
				k, r := reading(t, func(o *binding.Options) { o.Sink = s })
				out := &output{pause: time.Second, fail: func(n int) error {
					if n == tt.fail {
						return errors.New("full")
					}
					return nil
				}}
				k.put("b", out)
				said, err := r.deliver(block.BindingEvent{})
				if err != nil || string(said) != tt.data {
					t.Errorf("%q, %v; want the event handled whatever becomes of its data", said, err)
				}
				if len(out.all()) != tt.calls || out.peak != tt.peak {
					t.Errorf("%d calls, %d at once; want %d, %d", len(out.all()), out.peak, tt.calls, tt.peak)
				}
				for _, asked := range out.all() {
					if asked != "create "+tt.data+" map[]" {
						t.Errorf("asked %s", asked)
					}
				}
				if tt.told != "" && k.log.count(tt.told) == 0 || tt.told == "" && k.log.count("level=ERROR") > 0 {
					t.Errorf("want told: %q", tt.told)
				}
			})
		})
	}
}

// tracer numbers its spans.
type tracer struct {
	mu  sync.Mutex
	got []string
}

func (tr *tracer) BindingEvent(_ context.Context, name string, of binding.Trace) (binding.Trace, binding.TraceSpan) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.got = append(tr.got, name+" below "+of.Parent)
	return binding.Trace{Parent: fmt.Sprint("span ", len(tr.got)), Bin: "bin"}, ended{tr}
}

type ended struct{ tr *tracer }

func (e ended) End(err error) {
	e.tr.mu.Lock()
	defer e.tr.mu.Unlock()
	e.tr.got = append(e.tr.got, fmt.Sprintf("failed %v", err != nil))
}

func TestTracing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := &tracer{}
		k, r := reading(t, func(o *binding.Options) { o.Tracing = tr })
		k.inbound.SetChain(&call.Chain{Retry: func(c *call.Call, _ error) (time.Duration, bool) { return 0, c.Attempt < 2 }})
		n := 0
		k.app.set(func(string) (int, string) { n++; return map[int]int{1: 500, 2: 200}[n], "" })
		if _, err := r.deliver(block.BindingEvent{Metadata: map[string]string{"traceparent": "theirs"}}); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{"in below theirs", "failed true", "in below theirs", "failed false"}, tr.got); d != "" {
			t.Errorf("spans (-want +got):\n%s", d)
		}
		if got := strings.Join(k.app.all(), "\n"); !strings.Contains(got, "traceparent=span 1") || !strings.Contains(got, "traceparent=span 3") || strings.Contains(got, "theirs") {
			t.Errorf("the app saw %s", got)
		}
	})
}

// A defect of the app's edge is that event's failure only.
func TestPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, r := reading(t)
		k.app.set(func(string) (int, string) { panic("oh") })
		if _, err := r.deliver(block.BindingEvent{}); fault.Of(err) != fault.Internal {
			t.Errorf("%v", err)
		}
		k.app.set(nil)
		if _, err := r.deliver(block.BindingEvent{}); err != nil {
			t.Error(err)
		}
	})
}
