package invoke_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/invoke"
)

func TestRoutes(t *testing.T) {
	tests := []struct {
		target string
		body   string // who answered
		code   fault.Code
		reason fault.Reason
	}{
		{"me", "local", fault.OK, ""},
		{"me.home", "local", fault.OK, ""},
		{"me.away", "me-away", fault.OK, ""},
		{"shop", "shop-home", fault.OK, ""},
		{"shop.home", "shop-home", fault.OK, ""},
		{"shop.away", "shop-away", fault.OK, ""},
		{"github", "external", fault.OK, ""}, // an HTTPEndpoint resource
		{"dotted.end.point", "external", fault.OK, ""},
		{"http://example.com/base", "external", fault.OK, ""},
		{"https://example.com", "external", fault.OK, ""},
		{"ftp://example.com", "", fault.NotFound, fault.NoInstances}, // a name with one dot, and no such app
		{"nobody", "", fault.NotFound, fault.NoInstances},
		{"a.b.c", "", fault.Invalid, ""},
		{"", "", fault.Invalid, fault.NoTarget},
	}
	k := newKit(t, func(o *invoke.Options) {
		o.Endpoints = []invoke.Endpoint{{Name: "github", BaseURL: "https://api.github.com"}, {Name: "dotted.end.point", BaseURL: "http://d"}}
	})
	k.reg.set(block.Name{App: "me", Namespace: "away"}, "me-away")
	k.reg.set(shop, "shop-home")
	k.reg.set(block.Name{App: "shop", Namespace: "away"}, "shop-away")
	for _, tt := range tests {
		t.Run(tt.target, func(t *testing.T) {
			body, err := k.do(t, tt.target)
			if body != tt.body || fault.Of(err) != tt.code || fault.ReasonOf(err) != tt.reason {
				t.Errorf("got %q, %v (%v %q); want %q, %v %q", body, err, fault.Of(err), fault.ReasonOf(err), tt.body, tt.code, tt.reason)
			}
		})
	}
	want := []invoke.Endpoint{{Name: "github", BaseURL: "https://api.github.com"}, {Name: "dotted.end.point", BaseURL: "http://d"},
		{BaseURL: "http://example.com/base"}, {BaseURL: "https://example.com"}}
	if d := cmp.Diff(want, k.ext.got); d != "" {
		t.Errorf("endpoints called (-want +got):\n%s", d)
	}
}

func TestNamesThatCannotBeResolved(t *testing.T) {
	tests := []struct {
		name string
		opt  func(*invoke.Options)
		fail error
		code fault.Code
		text string
	}{
		{"unknown", nil, nil, fault.NotFound, "couldn't find service: shop"},
		{"no registry", func(o *invoke.Options) { o.Registry = nil }, nil, fault.NotReady, "couldn't find service: shop: no name resolution is configured"},
		{"the registry fails", nil, fault.New("dns", fault.Unavailable, "timeout"), fault.Unavailable, "couldn't find service: shop: timeout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var k *kit
			if tt.opt != nil {
				k = newKit(t, tt.opt)
			} else {
				k = newKit(t)
			}
			k.reg.fail(tt.fail)
			_, err := k.do(t, "shop")
			if fault.Of(err) != tt.code || err.Error() != tt.text {
				t.Errorf("got %v (%v), want %q (%v)", err, fault.Of(err), tt.text, tt.code)
			}
		})
	}
}

// A stale registry entry, or a port another app took over, must not deliver one app's calls to
// another.
func TestServeRefusesCallsForOthers(t *testing.T) {
	tests := []struct {
		target string
		mine   bool
	}{{"me", true}, {"me.home", true}, {"me.away", false}, {"you", false}, {"you.home", false}, {"ME", false}, {"me.home.x", false}, {"", false}, {"http://me", false}}
	k := newKit(t)
	for _, tt := range tests {
		t.Run(tt.target, func(t *testing.T) {
			called := false
			k.local.see = func(context.Context, *call.Request) { called = true }
			err := k.Serve(t.Context(), &call.Request{Target: tt.target}, "caller", &answer{})
			if called != tt.mine || (err == nil) != tt.mine {
				t.Errorf("the app was called: %v; error %v", called, err)
			}
		})
	}
	err := k.Serve(t.Context(), &call.Request{Target: "you"}, "", &answer{})
	if fault.SentOf(err) != fault.SentNever || fault.ReasonOf(err) != "" || fault.Of(err) != fault.Unavailable {
		t.Errorf("%v (%v, sent %v): the caller must be free to try elsewhere", err, fault.Of(err), fault.SentOf(err))
	}
	if want := "this sidecar serves me.home, not you.home"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

// counts is a recorder.
type counts struct{ log []string }

func (c *counts) InvokeReqSent(app, kind string) { c.log = append(c.log, "req sent "+app+" "+kind) }
func (c *counts) InvokeReqRecv(app string)       { c.log = append(c.log, "req recv "+app) }
func (c *counts) InvokeResSent(app string, status int) {
	c.log = append(c.log, "res sent "+app+" "+string(rune('0'+status/100)))
}
func (c *counts) InvokeResRecv(app string, status int, kind string, _ time.Duration) {
	c.log = append(c.log, "res recv "+app+" "+string(rune('0'+status/100))+" "+kind)
}

func TestWhatIsCounted(t *testing.T) {
	var c counts
	k := newKit(t, func(o *invoke.Options) { o.Record = &c })
	k.reg.set(shop, "s")
	_, _ = k.do(t, "shop")
	_, _ = k.do(t, "me") // not between sidecars
	_ = k.Invoke(t.Context(), &call.Request{Target: "shop", Protocol: call.GRPC, Path: "/a.B/C"}, &answer{})
	_ = k.Serve(t.Context(), &call.Request{Target: "me"}, "you", &answer{})
	_ = k.Serve(t.Context(), &call.Request{Target: "other"}, "you", &answer{})
	k.peers.set("s", unsent)
	_, _ = k.do(t, "shop")
	want := []string{"req sent shop unary", "res recv shop 2 unary", "req sent shop streaming", "res recv shop 2 streaming",
		"req recv you", "res sent you 2", "req sent shop unary"}
	if d := cmp.Diff(want, c.log); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// tracing starts spans.
type tracing struct {
	none bool
	ends []string
}

type ctxKey struct{}

func (tr *tracing) Arrived(ctx context.Context, req *call.Request) (context.Context, invoke.Span) {
	req.Header.Set("traceparent", "ours")
	if tr.none {
		return ctx, nil
	}
	return context.WithValue(ctx, ctxKey{}, "span"), tr
}

func (tr *tracing) End(status int, err error) {
	tr.ends = append(tr.ends, string(rune('0'+status/100))+" "+fault.Of(err).String())
}

func TestArrivedCallsHaveASpan(t *testing.T) {
	var tr tracing
	k := newKit(t, func(o *invoke.Options) { o.Tracing = &tr })
	var parent string
	var inSpan any
	k.local.see = func(ctx context.Context, req *call.Request) {
		parent, inSpan = req.Header.Get("traceparent"), ctx.Value(ctxKey{})
	}
	req := func() *call.Request {
		return &call.Request{Target: "me", Header: call.Fields{{Name: "Traceparent", Value: "callers"}}}
	}
	if err := k.Serve(t.Context(), req(), "you", &answer{}); err != nil {
		t.Fatal(err)
	}
	if parent != "ours" || inSpan != "span" {
		t.Errorf("the app saw %q, in %v", parent, inSpan)
	}
	k.local.err = fault.New("app", fault.Unavailable, "down")
	_ = k.Serve(t.Context(), req(), "you", &answer{})
	_ = k.Serve(t.Context(), &call.Request{Target: "you"}, "you", &answer{}) // refused before there is a span
	tr.none = true
	if err := k.Serve(t.Context(), req(), "you", &answer{}); fault.Of(err) != fault.Unavailable {
		t.Errorf("without a span: %v", err)
	}
	if d := cmp.Diff([]string{"2 ok", "0 unavailable"}, tr.ends); d != "" {
		t.Errorf("spans (-want +got):\n%s", d)
	}
}

func TestLayersJudgeCallsBothWays(t *testing.T) {
	var got []call.Desc
	var targets []*call.Target
	refused := fault.New("layer", fault.Denied, "no")
	govern := func(t *call.Target) {
		t.SetChain(&call.Chain{Layers: []call.Layer{judge{func(c *call.Call) error {
			d := c.Desc
			d.Attrs = nil
			got, targets = append(got, d), append(targets, c.Target)
			if v, _ := c.Attrs.Lookup("x-block"); v != "" {
				return refused
			}
			return nil
		}}}})
	}
	k := newKit(t, func(o *invoke.Options) { o.Govern = govern })
	k.reg.set(shop, "s")
	_ = k.Invoke(t.Context(), &call.Request{Target: "shop", Verb: "PUT", Path: "a/b"}, &answer{})
	_ = k.Invoke(t.Context(), &call.Request{Target: "me", Verb: "GET", Path: "x"}, &answer{})
	_ = k.Invoke(t.Context(), &call.Request{Target: "http://e", Verb: "PATCH", Path: "x"}, &answer{})
	_ = k.Serve(t.Context(), &call.Request{Target: "me", Protocol: call.GRPC, Path: "/a.B/C"}, "peer", &answer{})
	me := call.Caller{App: "me", Namespace: "home", Proven: true}
	want := []call.Desc{{Op: "PUT", Resource: "a/b", Safety: call.Idempotent, Caller: me}, {Op: "GET", Resource: "x", Safety: call.Safe, Caller: me},
		{Op: "PATCH", Resource: "x", Safety: call.Unsafe, Caller: me}, {Op: "/a.B/C", Resource: "/a.B/C", Safety: call.Unsafe, Caller: call.Caller{App: "peer"}}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("what layers are told (-want +got):\n%s", d)
	}
	kinds := []call.Kind{call.Service, call.App, call.Service, call.App}
	for i, tg := range targets {
		if tg.Kind != kinds[i] || (tg.Direction == call.Inbound) != (i == 3) {
			t.Errorf("call %d is for %v, direction %v", i, tg.Kind, tg.Direction)
		}
	}
	blocked := call.Fields{{Name: "X-Block", Value: "1"}}
	k.peers.take()
	if err := k.Invoke(t.Context(), &call.Request{Target: "shop", Header: blocked}, &answer{}); !errors.Is(err, refused) || len(k.peers.take()) != 0 {
		t.Errorf("a refused call: %v", err)
	}
	if err := k.Serve(t.Context(), &call.Request{Target: "me", Header: blocked}, "", &answer{}); !errors.Is(err, refused) {
		t.Errorf("a refused arrival: %v", err)
	}
}

type judge struct{ f func(*call.Call) error }

func (j judge) Enter(ctx context.Context, c *call.Call) (context.Context, error) { return ctx, j.f(c) }
func (j judge) Exit(_ *call.Call, err error) error                               { return err }

func TestTheAnswerIsClosedHoweverWritingItEnds(t *testing.T) {
	broken := errors.New("caller has gone")
	tests := []struct {
		name string
		out  *answer
	}{{"well", &answer{}}, {"badly", &answer{err: broken}}, {"with a panic", &answer{panics: true}}}
	for _, tt := range tests {
		for _, way := range []string{"Invoke", "Serve"} {
			t.Run(tt.name+", "+way, func(t *testing.T) {
				held := &closer{}
				k := newKit(t)
				k.local.resp = &call.Response{Held: held}
				var err error
				func() {
					defer func() { _ = recover() }()
					if way == "Invoke" {
						err = k.Invoke(t.Context(), &call.Request{Target: "me"}, tt.out)
					} else {
						err = k.Serve(t.Context(), &call.Request{Target: "me"}, "", tt.out)
					}
				}()
				if held.n != 1 {
					t.Errorf("closed %d×, want once", held.n)
				}
				if !errors.Is(err, tt.out.err) {
					t.Errorf("got %v, want %v", err, tt.out.err)
				}
			})
		}
	}
}

type closer struct{ n int }

func (c *closer) Close() error { c.n++; return nil }
