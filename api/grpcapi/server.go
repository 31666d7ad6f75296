package grpcapi

import (
	"context"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/runtime/about"
	"github.com/mecha-project/mecha/runtime/call"
)

// Invoker is service invocation.
type Invoker interface {
	Invoke(ctx context.Context, req *call.Request, out call.Responder) error
}

// Observer measures and logs finished API calls.
type Observer interface {
	// GRPCServed is called when a call has ended; received and sent are bytes of messages.
	GRPCServed(method string, code codes.Code, userAgent string, received, sent int64, took time.Duration)
}

// Tracing gives each call its span; nil leaves trace metadata alone.
type Tracing interface {
	// GRPCBegin starts the call's span. The returned metadata go to the caller as headers.
	// refused is the text of an InvalidArgument answer.
	GRPCBegin(ctx context.Context, method string, md metadata.MD) (next context.Context, span Span, refused string)
	// Request puts the call's trace context into the headers of an invocation.
	Request(ctx context.Context, h call.Fields) call.Fields
	// Headers is the call's trace context as header values; empty when there is none.
	Headers(ctx context.Context) (parent, state string)
}

// Span is one call's span.
type Span interface {
	// Describe tells the span what a call with one decoded request is about.
	Describe(req any)
	Response() metadata.MD
	End(code codes.Code)
}

// Options make a Server. Optional fields are off when zero.
type Options struct {
	AppID      string
	Token      string // DAPR_API_TOKEN
	MaxMessage int    // bytes of one message; below zero: no limit
	MaxHeader  int    // bytes of the header list
	Allow      *Rules

	Invoke  Invoker
	State   State
	PubSub  PubSub
	Secret  Secret
	Lock    Lock
	Config  Config
	Crypto  Crypto
	Binding Binding
	Native  func(grpc.ServiceRegistrar) // registers services of our own; may be nil
	About   *about.Sidecar
	Observe Observer
	Tracing Tracing
	Log     *slog.Logger
}

// Server answers Dapr's gRPC API and proxies every other service.
type Server struct {
	runtimev1.UnimplementedDaprServer
	o        Options
	services services
	wire     *h2.Server
}

// New makes a server. Serve it on any number of listeners.
func New(o Options) *Server {
	o.MaxMessage = max(o.MaxMessage, 0)
	s := &Server{o: o}
	s.wire = &h2.Server{Handler: s.handle, TooLarge: s.tooLarge, MaxHeaderList: max(o.MaxHeader, 0), Log: o.Log}
	runtimev1.RegisterDaprServer(&s.services, s)
	if o.Native != nil {
		o.Native(&s.services)
	}
	reflection.Register(&s.services)
	return s
}

// Serve answers on l until Drain, then returns nil.
func (s *Server) Serve(_ context.Context, l net.Listener) error {
	return s.wire.Serve(context.Background(), l) // Drain ends it, in order
}

// Drain lets running calls finish until ctx ends, then breaks them. (Shutdown is an RPC.)
func (s *Server) Drain(ctx context.Context) error { return s.wire.Drain(ctx) }

// tooLarge answers a request whose header is over the limit.
func (s *Server) tooLarge(st *h2.Stream) {
	r := &rpc{s: s, st: st, header: call.Fields{{Name: "content-type", Value: grpcType}}}
	r.refuse(200, codes.ResourceExhausted, fmt.Sprintf("the request's metadata are over the limit of %d bytes (--read-buffer-size)", s.o.MaxHeader))
}

// admit judges a call before any handler: token, API lists.
func (s *Server) admit(md metadata.MD, method string) error {
	if s.o.Token != "" {
		if err := s.checkToken(md); err != nil {
			return err
		}
	}
	if !s.o.Allow.GRPC(method) {
		return (&apierr.Error{Row: apierr.Row{GRPC: codes.Unimplemented, Info: "Not Implemented"}, Message: "Not Implemented",
			Metadata: map[string]string{"http.code": "501", "http.error_message": "requested endpoint is not available"}}).Status().Err()
	}
	return nil
}

func (s *Server) checkToken(md metadata.MD) error {
	got := md[tokenKey]
	text := "authentication error: api token mismatch"
	if len(got) == 0 {
		text = "missing api token in request metadata"
	} else if subtle.ConstantTimeCompare([]byte(got[0]), []byte(s.o.Token)) == 1 {
		return nil
	}
	return apierr.FromHTTPApp(401, "Unauthorized", []byte(text)).Err()
}

func (s *Server) begin(ctx context.Context, method string, md metadata.MD) (context.Context, Span, error) {
	if s.o.Tracing == nil {
		return ctx, nil, nil
	}
	ctx, span, refused := s.o.Tracing.GRPCBegin(ctx, method, md)
	if refused != "" {
		return ctx, span, status.Error(codes.InvalidArgument, refused)
	}
	return ctx, span, nil
}

// guarded makes a panic in a handler that call's error.
func guarded(f func() (any, error)) (out any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = status.Error(codes.Internal, call.Panicked(p).Error())
		}
	}()
	return f()
}

// Rule is one entry of the API lists.
type Rule struct{ Name, Version, Protocol string }

// Rules are the API allow and deny lists. Nil allows everything.
type Rules struct{ Allowed, Denied []Rule }

// GRPC reports whether a method is served. Only Dapr's own methods and ours are listed; proxied
// calls always pass.
func (r *Rules) GRPC(fullMethod string) bool {
	if r == nil {
		return true
	}
	service, name, _ := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	native, ours := strings.CutPrefix(service, "mecha.v1.")
	if !ours && !strings.HasPrefix(service, "dapr.proto.runtime.") {
		return true
	}
	listed := func(rule Rule) bool { return groups[rule.Name+"."+shortVersion(rule.Version)][name] }
	if ours {
		group := "mecha." + strings.ToLower(native)
		listed = func(rule Rule) bool {
			return strings.HasPrefix(group, rule.Name) && shortVersion(rule.Version) == "v1"
		}
	}
	any, hit := has(r.Allowed, listed)
	if any && !hit {
		return false
	}
	_, denied := has(r.Denied, listed)
	return !denied
}

func has(rules []Rule, listed func(Rule) bool) (any, hit bool) {
	for _, rule := range rules {
		if rule.Protocol != "grpc" {
			continue
		}
		any = true
		if listed(rule) {
			return true, true
		}
	}
	return any, false
}

func shortVersion(v string) string {
	v = strings.ReplaceAll(v, ".0", "")
	return strings.ReplaceAll(v, "-", "")
}
