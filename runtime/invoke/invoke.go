// Package invoke is service invocation: it decides where a call to an app goes (the own app,
// a peer sidecar, an external HTTP endpoint), resolves and balances, and stamps who calls whom.
//
// It knows no wire: edges hand it a call.Request and a call.Responder, and it reaches peers and
// endpoints through the two small interfaces below, which edges implement. Start at
// Service.Invoke for calls that leave and Service.Serve for calls that arrive.
package invoke

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/identity"
)

// Local is the own app.
type Local interface {
	Invoke(ctx context.Context, req *call.Request) (*call.Response, error)
}

// Peers reaches other sidecars.
type Peers interface {
	// Invoke calls the app behind one instance. An error's fault.Sent tells whether the
	// instance may have seen the request.
	Invoke(ctx context.Context, to block.Instance, req *call.Request) (*call.Response, error)
}

// External reaches plain HTTP services. One that keeps connections may have a method
// Forget(Endpoint): no new call goes to that endpoint.
type External interface {
	Invoke(ctx context.Context, to Endpoint, req *call.Request) (*call.Response, error)
}

// Endpoint is an external HTTP service: an HTTPEndpoint resource or a bare URL.
type Endpoint struct {
	Name    string // the resource's name; empty for a bare URL
	BaseURL string
	Header  call.Fields // added to every request
	TLS     any         // edge-specific client TLS settings; nil means the defaults
}

// Recorder counts invocations between sidecars. Methods are called on the hot path.
type Recorder interface {
	InvokeReqSent(app, kind string)
	InvokeReqRecv(app string)
	InvokeResSent(app string, status int)
	InvokeResRecv(app string, status int, kind string, took time.Duration)
}

// Tracing starts the span of a call that arrived from a peer and puts its context into the
// request's headers. A nil Span records nothing.
type Tracing interface {
	Arrived(ctx context.Context, req *call.Request) (context.Context, Span)
}

// Span is a call's span. err is set when the app gave no answer.
type Span interface {
	End(status int, err error)
}

// Options make a Service. Self is required.
type Options struct {
	Self      identity.Self
	HostIP    string // for the forwarded headers
	HostName  string
	Local     Local
	Peers     Peers
	External  External
	Registry  block.Registry
	Endpoints []Endpoint
	Record    Recorder // may be nil
	Tracing   Tracing  // may be nil
	Log       *slog.Logger
	// Govern puts a target under policy; nil leaves it without.
	Govern func(*call.Target)
}

// Service is the runtime half of service invocation. It is safe for concurrent use.
type Service struct {
	o         Options
	stamp     stamps
	resolver  *resolver
	endpoints endpoints
	self      *destination
	inbound   *call.Target
	caller    call.Caller // the own app
	urls      urls
}

// destination is a place calls go to, with its policy.
type destination struct {
	target   *call.Target
	endpoint *Endpoint   // external
	names    *names      // peers; nil for the own app
	unknown  *block.Name // of peers that nobody has looked for yet
}

// New makes the service. Close ends the watches it starts.
func New(o Options) *Service {
	if o.Govern == nil {
		o.Govern = func(*call.Target) {}
	}
	s := &Service{o: o, stamp: newStamps(o)}
	s.caller = call.Caller{App: o.Self.App, Namespace: o.Self.Namespace, Proven: true}
	s.self = &destination{target: &call.Target{Kind: call.App, Direction: call.Outbound, Name: o.Self.App, Namespace: o.Self.Namespace}}
	o.Govern(s.self.target)
	s.inbound = &call.Target{Kind: call.App, Direction: call.Inbound, Name: o.Self.App, Namespace: o.Self.Namespace}
	o.Govern(s.inbound)
	s.resolver = newResolver(o.Registry, o.Log)
	for _, e := range o.Endpoints {
		s.SetEndpoint(e)
	}
	return s
}

// Close ends background watches.
func (s *Service) Close() { s.resolver.close() }

// Invoke calls the app, endpoint or URL named by req.Target and hands the answer to out. It
// returns when out has written all of it. An error means that out was not called, or that
// out itself failed.
func (s *Service) Invoke(ctx context.Context, req *call.Request, out call.Responder) error {
	d, err := s.route(ctx, req.Target)
	if err != nil {
		return err
	}
	c, err := call.Begin(ctx, d.target, s.describe(req, s.caller))
	if err != nil {
		return err
	}
	open := true
	defer func() { endPanicked(c, open) }()
	l := leg{s: s, c: c, d: d, req: req}
	if p := c.Policy(); p.Replay && req.Stream != nil {
		l.keepBody()
		defer l.body.done()
	}
	if m := c.Policy().Mirror; m != nil {
		s.mirror(c, m, req)
	}
	resp, err := call.Run(c, l, leg.keep, drop, attempt)
	if err != nil {
		if n := c.Attempt - 1; n > 0 && c.Outcome != call.Rejected {
			err = fault.New("invoke.Invoke", fault.Of(err), "failed to invoke target %s after %d retries. Error", req.Target, n).Because(err)
		}
		open = false
		return c.End(err)
	}
	err = s.answer(c, req, out, resp)
	open = false
	return c.End(err)
}

// answer hands the answer of a call to whoever waits for it, and tells the call how it ended.
func (s *Service) answer(c *call.Call, req *call.Request, out call.Responder, resp *call.Response) error {
	c.Final()
	if rewrite := c.Policy().Answer; rewrite != nil {
		rewrite(c, &resp.Header)
	}
	streamed, trailer := resp.Stream != nil, resp.Trailer
	err := respond(c.Context(), out, resp)
	if err == nil && streamed && req.Protocol == call.GRPC && trailer != nil {
		c.Read(grpcStatus(trailer()))
	}
	return err
}

// describe is what policies see of a request.
func (s *Service) describe(req *call.Request, caller call.Caller) call.Desc {
	return call.Desc{Op: opOf(req), Resource: req.Path, Safety: safetyOf(req), Streamed: req.Streamed(), Shadow: req.Shadow, Attrs: &req.Header, Caller: caller}
}

// endPanicked ends a call that is still open when its function is left, which only a panic
// does: the layers around it must get back what they lent. The panic goes on to the edge.
func endPanicked(c *call.Call, open bool) {
	if open {
		_ = c.End(errPanicked) // nobody is left to hear it
	}
}

var errPanicked = fault.New("invoke.Invoke", fault.Internal, "the call panicked")

// respond hands the answer over and closes it, also when writing it panics: it may hold one of
// the app's slots.
func respond(ctx context.Context, out call.Responder, resp *call.Response) error {
	defer resp.Close()
	return out.Respond(ctx, resp)
}

// Serve runs a call that a peer sidecar sent for the own app. caller is the peer's app id as
// far as it is known.
func (s *Service) Serve(ctx context.Context, req *call.Request, caller string, out call.Responder) error {
	if err := s.mine(req.Target); err != nil {
		return err
	}
	if err := cleanPath(req); err != nil {
		return err
	}
	if s.o.Record != nil {
		s.o.Record.InvokeReqRecv(caller)
	}
	if s.o.Tracing == nil {
		_, err := s.toApp(ctx, req, caller, out)
		return err
	}
	ctx, span := s.o.Tracing.Arrived(ctx, req)
	status, err := s.toApp(ctx, req, caller, out)
	if span != nil {
		span.End(status, err)
	}
	return err
}

// cleanPath brings the path a peer sent into the form that rules and the app see. The caller's
// sidecar has done so already, unless it is none of ours.
func cleanPath(req *call.Request) error {
	clean, err := call.CleanPath(req.Path)
	if err != nil {
		return err
	}
	if req.Protocol == call.GRPC {
		clean = "/" + clean // a full method begins with a slash
	}
	req.Path = clean
	return nil
}

// toApp gives an arrived call to the app and its answer to out.
func (s *Service) toApp(ctx context.Context, req *call.Request, caller string, out call.Responder) (status int, err error) {
	c, err := call.Begin(ctx, s.inbound, s.describe(req, call.Caller{App: caller}))
	if err != nil {
		return 0, err
	}
	open := true
	defer func() { endPanicked(c, open) }()
	resp, err := s.ownApp(c, req)
	if err != nil {
		open = false
		return 0, c.End(err)
	}
	status = resp.Status
	if s.o.Record != nil {
		s.o.Record.InvokeResSent(caller, status)
	}
	err = s.answer(c, req, out, resp)
	open = false
	return status, c.End(err)
}

// ownApp makes the one attempt of a call that has arrived at the app.
func (s *Service) ownApp(c *call.Call, req *call.Request) (resp *call.Response, err error) {
	for c.Next() {
		if rewrite := c.Policy().Request; rewrite != nil {
			rewrite(c, &req.Header)
		}
		resp, err = s.o.Local.Invoke(c.Context(), req)
		c.Ended(err, statusOf(req, resp, err))
		c.Final()
	}
	return resp, c.Err
}

// mine refuses calls meant for somebody else: a stale registry entry, or a port that another
// app took over, must not deliver one app's calls to another.
func (s *Service) mine(target string) error {
	app, ns, err := identity.ParseApp(target, s.o.Self.Namespace)
	if err != nil {
		return err
	}
	if app != s.o.Self.App || ns != s.o.Self.Namespace {
		return fault.New("invoke.Serve", fault.Unavailable, "this sidecar serves %s.%s, not %s.%s", s.o.Self.App, s.o.Self.Namespace, app, ns).WithSent(fault.SentNever)
	}
	return nil
}

// route finds the destination of a target as the caller wrote it.
func (s *Service) route(ctx context.Context, target string) (*destination, error) {
	if target == s.o.Self.App {
		return s.self, nil
	}
	if d := s.endpoints.get(target); d != nil {
		return d, nil
	}
	if IsURL(target) {
		return s.urlDestination(target), nil
	}
	app, ns, err := identity.ParseApp(target, s.o.Self.Namespace)
	if err != nil {
		return nil, err
	}
	if app == s.o.Self.App && ns == s.o.Self.Namespace {
		return s.self, nil
	}
	name := block.Name{App: app, Namespace: ns}
	if d, ok := s.resolver.have(name); ok {
		return d, nil
	}
	// Where it is, an attempt asks: policy may send the call elsewhere, or refuse it.
	name.App, name.Namespace = strings.Clone(app), strings.Clone(ns)
	return &destination{target: s.outTarget(name.App, name.Namespace), unknown: &name}, nil
}

// IsURL reports whether a target is an absolute http or https URL rather than a name.
func IsURL(target string) bool {
	return strings.HasPrefix(target, "http://") || strings.HasPrefix(target, "https://")
}

func (s *Service) outTarget(name, ns string) *call.Target {
	t := &call.Target{Kind: call.Service, Direction: call.Outbound, Name: name, Namespace: ns}
	s.o.Govern(t)
	return t
}

// touched is a request body that remembers whether it can still be offered to another
// instance: neither read from nor closed.
type touched struct {
	io.ReadCloser
	yes atomic.Bool // reader and judge may be different goroutines
}

func (t *touched) Read(p []byte) (int, error) {
	t.yes.Store(true)
	return t.ReadCloser.Read(p)
}

func (t *touched) Close() error {
	t.yes.Store(true)
	return t.ReadCloser.Close()
}

func (t *touched) begun() bool { return t != nil && t.yes.Load() }

func kindOf(req *call.Request) string {
	if req.Protocol == call.GRPC {
		return "streaming"
	}
	return "unary"
}

func opOf(req *call.Request) string {
	if req.Protocol == call.GRPC {
		return req.Path
	}
	return req.Verb
}

// safetyOf judges by the verb; gRPC methods say nothing about themselves.
func safetyOf(req *call.Request) call.Safety {
	if req.Protocol == call.GRPC {
		return call.Unsafe
	}
	switch req.Verb {
	case "GET", "HEAD", "OPTIONS", "TRACE":
		return call.Safe
	case "PUT", "DELETE":
		return call.Idempotent
	}
	return call.Unsafe
}
