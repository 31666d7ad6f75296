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

// External reaches plain HTTP services.
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

// Options make a Service. Self and ChainOut/ChainIn are required.
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
	// ChainOut and ChainIn compile the policy of a target.
	ChainOut, ChainIn func(*call.Target) *call.Chain
}

// Service is the runtime half of service invocation. It is safe for concurrent use.
type Service struct {
	o         Options
	stamp     stamps
	resolver  *resolver
	endpoints map[string]*destination
	self      *destination
	inbound   *call.Target
}

// destination is a place calls go to, with its policy.
type destination struct {
	target   *call.Target
	endpoint *Endpoint // external
	names    *names    // peers; nil for the own app
}

// New makes the service. Close ends the watches it starts.
func New(o Options) *Service {
	s := &Service{o: o, stamp: newStamps(o), endpoints: map[string]*destination{}}
	s.self = &destination{target: &call.Target{Kind: call.App, Direction: call.Outbound, Name: o.Self.App, Namespace: o.Self.Namespace}}
	s.self.target.SetChain(o.ChainOut(s.self.target))
	s.inbound = &call.Target{Kind: call.App, Direction: call.Inbound, Name: o.Self.App, Namespace: o.Self.Namespace}
	s.inbound.SetChain(o.ChainIn(s.inbound))
	s.resolver = newResolver(o.Registry, o.Log)
	for i := range o.Endpoints {
		e := o.Endpoints[i]
		s.endpoints[e.Name] = &destination{target: s.outTarget(e.Name, ""), endpoint: &e}
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
	c, err := call.Begin(ctx, d.target, call.Desc{Op: opOf(req), Resource: req.Path, Safety: safetyOf(req), Streamed: req.Streamed(), Attrs: &req.Header})
	if err != nil {
		return err
	}
	open := true
	defer func() { endPanicked(c, open) }()
	var resp *call.Response
	for c.Next() {
		resp, err = s.attempt(c, d, req)
		c.Done(err)
	}
	if err != nil {
		if n := c.Attempt - 1; n > 0 {
			err = fault.New("invoke.Invoke", fault.Of(err), "failed to invoke target %s after %d retries. Error", req.Target, n).Because(err)
		}
		open = false
		return c.End(err)
	}
	c.Final()
	err = respond(c.Context(), out, resp)
	open = false
	return c.End(err)
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
	c, err := call.Begin(ctx, s.inbound, call.Desc{Op: opOf(req), Resource: req.Path, Safety: safetyOf(req), Streamed: req.Streamed(), Attrs: &req.Header})
	if err != nil {
		return 0, err
	}
	open := true
	defer func() { endPanicked(c, open) }()
	var resp *call.Response
	for c.Next() {
		resp, err = s.o.Local.Invoke(c.Context(), req)
		c.Done(err)
	}
	if err != nil {
		open = false
		return 0, c.End(err)
	}
	c.Final()
	status = resp.Status
	if s.o.Record != nil {
		s.o.Record.InvokeResSent(caller, status)
	}
	err = respond(c.Context(), out, resp)
	open = false
	return status, c.End(err)
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
	if d, ok := s.endpoints[target]; ok {
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
	return s.resolver.find(ctx, block.Name{App: app, Namespace: ns}, func() *call.Target { return s.outTarget(app, ns) })
}

// IsURL reports whether a target is an absolute http or https URL rather than a name.
func IsURL(target string) bool {
	return strings.HasPrefix(target, "http://") || strings.HasPrefix(target, "https://")
}

// urlDestination makes a destination for a bare URL. It is not cached: callers can write any
// number of different URLs.
func (s *Service) urlDestination(base string) *destination {
	return &destination{target: s.outTarget(base, ""), endpoint: &Endpoint{BaseURL: base}}
}

func (s *Service) outTarget(name, ns string) *call.Target {
	t := &call.Target{Kind: call.Service, Direction: call.Outbound, Name: name, Namespace: ns}
	t.SetChain(s.o.ChainOut(t))
	return t
}

// attempt makes one try at the destination.
func (s *Service) attempt(c *call.Call, d *destination, req *call.Request) (*call.Response, error) {
	ctx := c.Context()
	switch {
	case d.endpoint != nil:
		s.stamp.clear(&req.Header)
		return s.o.External.Invoke(ctx, *d.endpoint, req)
	case d.names == nil:
		s.stamp.local(req, d.target.Name)
		return s.o.Local.Invoke(ctx, req)
	}
	s.stamp.remote(req, d.target.Name, c.Attempt == 1)
	return s.remote(ctx, d, req)
}

// remote calls one of the peers of a name. An instance that certainly did not get the request
// costs nothing: the next one is tried at once, each at most once per attempt. A streamed body
// that somebody began to read cannot be offered again.
func (s *Service) remote(ctx context.Context, d *destination, req *call.Request) (*call.Response, error) {
	var body *touched
	if req.Stream != nil {
		body = &touched{ReadCloser: req.Stream}
		req.Stream = body
	}
	var tried []string
	refreshed := false
	var last error
	for {
		to, ok := d.names.pick(tried)
		if !ok && !refreshed {
			refreshed = true
			if err := s.resolver.refresh(ctx, d.names); err != nil && last == nil {
				last = err
			}
			continue
		}
		switch {
		case ok:
		case last != nil:
			return nil, last
		default: // its last instance vanished as soon as it was found
			return nil, notFound(d.names.name)
		}
		start := time.Now()
		if s.o.Record != nil {
			s.o.Record.InvokeReqSent(d.target.Name, kindOf(req))
		}
		resp, err := s.o.Peers.Invoke(ctx, to, req)
		if err == nil {
			d.names.good(to)
			if s.o.Record != nil {
				s.o.Record.InvokeResRecv(d.target.Name, resp.Status, kindOf(req), time.Since(start))
			}
			return resp, nil
		}
		if fault.SentOf(err) != fault.SentNever || ctx.Err() != nil || body.begun() {
			return nil, err
		}
		d.names.bad(to)
		tried, last = append(tried, to.ID), err
	}
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
