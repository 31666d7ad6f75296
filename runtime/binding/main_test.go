package binding_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// base is what components share.
type base struct{}

func (base) Ping(context.Context) error  { return nil }
func (base) Close(context.Context) error { return nil }

// output keeps what it was asked.
type output struct {
	base
	mu     sync.Mutex
	asked  []string             // guarded by mu
	answer *block.BindingAnswer // guarded by mu
	fail   func(n int) error    // guarded by mu; nil: never
	inside int                  // guarded by mu
	peak   int                  // guarded by mu
	pause  time.Duration
}

func (o *output) Operations() []string { return []string{"create", "get"} }

func (o *output) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	o.mu.Lock()
	o.inside++
	o.peak = max(o.peak, o.inside)
	o.asked = append(o.asked, fmt.Sprintf("%s %s %v", r.Operation, r.Data, r.Metadata))
	n := len(o.asked)
	o.mu.Unlock()
	if o.pause > 0 {
		time.Sleep(o.pause)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inside--
	if o.fail != nil {
		if err := o.fail(n); err != nil {
			return o.answer, err
		}
	}
	return o.answer, nil
}

func (o *output) all() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.asked...)
}

// input brings the events that the test sends.
type input struct {
	base
	reads chan *read // every Read that begins
}

// read is one running Read.
type read struct {
	deliver func(block.BindingEvent) ([]byte, error)
	fail    chan error
	ended   chan struct{}
}

func newInput() *input { return &input{reads: make(chan *read, 16)} }

func (i *input) Read(ctx context.Context, deliver func(context.Context, block.BindingEvent) ([]byte, error)) error {
	var work sync.WaitGroup
	r := &read{fail: make(chan error, 1), ended: make(chan struct{})}
	r.deliver = func(e block.BindingEvent) ([]byte, error) {
		work.Add(1)
		defer work.Done()
		return deliver(ctx, e)
	}
	defer close(r.ended)
	defer work.Wait()
	i.reads <- r
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-r.fail:
		return err
	}
}

// both is an input and an output.
type both struct {
	*output
	*input
}

func (both) Ping(context.Context) error  { return nil }
func (both) Close(context.Context) error { return nil }

// channel is an HTTP app.
type channel struct {
	mu     sync.Mutex
	got    []string                      // guarded by mu
	answer func(string) (int, string)    // by "VERB path"; nil: 200
	hang   func(context.Context, string) // may be nil
}

func (c *channel) Invoke(ctx context.Context, r *call.Request) (*call.Response, error) {
	what := r.Verb + " " + r.Path
	line := what
	if r.Query != "" {
		line += "?" + r.Query
	}
	line += " " + r.Type
	for _, name := range []string{"readTimeUTC", "traceparent", "tracestate", "x-custom", "dapr-api-token", "Host"} {
		if v, ok := r.Header.Lookup(name); ok {
			line += " " + name + "=" + v
		}
	}
	if len(r.Data) > 0 {
		line += " " + string(r.Data)
	}
	c.mu.Lock()
	c.got = append(c.got, line)
	answer, hang := c.answer, c.hang
	c.mu.Unlock()
	if hang != nil {
		hang(ctx, what)
		if ctx.Err() != nil {
			return nil, fault.Wrap("channel", fault.Canceled, ctx.Err())
		}
	}
	if answer == nil {
		return &call.Response{Status: 200}, nil
	}
	status, body := answer(what)
	if status == 0 {
		return nil, fault.New("channel", fault.Unavailable, "connection refused").WithSent(fault.SentNever)
	}
	return &call.Response{Status: status, Data: []byte(body)}, nil
}
func (c *channel) Probe(context.Context) error { return nil }
func (c *channel) Close() error                { return nil }

func (c *channel) set(answer func(string) (int, string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = answer
}

func (c *channel) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.got...)
}

type recorder struct {
	mu  sync.Mutex
	got []string
}

func (r *recorder) OutputBinding(component, op string, ok bool, _ time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, fmt.Sprintf("out %s %s %v", component, op, ok))
}

func (r *recorder) InputBinding(component string, ok bool, _ time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, fmt.Sprintf("in %s %v", component, ok))
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.got...)
}

type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

type kit struct {
	*binding.Service
	stores   *catalog.Store[block.Component]
	app      *channel
	rec      *recorder
	log      *logLines
	inbound  *call.Target
	outbound *call.Target
}

func newKit(t testing.TB, change ...func(*binding.Options)) *kit {
	t.Helper()
	k := &kit{stores: catalog.NewStore[block.Component](block.KindBinding), app: &channel{}, rec: &recorder{}, log: &logLines{},
		inbound: &call.Target{Kind: call.Binding, Direction: call.Inbound, Name: "b"}, outbound: &call.Target{Kind: call.Binding, Name: "b"}}
	o := binding.Options{Log: slog.New(slog.NewTextHandler(k.log, nil)), Recorder: k.rec, App: app.New(k.app, app.Options{}),
		Inbound: func(string) *call.Target { return k.inbound }}
	for _, f := range change {
		f(&o)
	}
	k.Service = binding.New(k.stores, identity.Self{App: "shop", Namespace: "default"}, o)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = k.Drain(ctx)
	})
	return k
}

// put loads a component.
func (k *kit) put(name string, c block.Component, raw ...string) {
	info := catalog.Info{Name: name, Type: "bindings.fake", Raw: map[string]string{}}
	for i := 0; i+1 < len(raw); i += 2 {
		info.Raw[raw[i]] = raw[i+1]
	}
	if o, ok := c.(block.Output); ok {
		info.Operations = o.Operations()
	}
	target := &call.Target{Kind: call.Binding, Name: name}
	if name == "b" {
		target = k.outbound
	}
	k.stores.Put(catalog.NewHandle(info, c, target))
}
