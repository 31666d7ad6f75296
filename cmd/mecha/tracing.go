package main

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/invoke"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// Names of trace context on the wires.
const (
	traceParent = "traceparent"
	traceState  = "tracestate"
	traceBin    = "grpc-trace-bin"
	baggage     = "baggage"
)

// noTrace is what Dapr sends where tracing is not configured and the caller sent nothing.
const noTrace = "00-00000000000000000000000000000000-0000000000000000-00"

// tracing gives edges, invocation and messaging their spans. Spans of API requests are of
// kind client, for the sidecar makes the call in the app's name; the callee's sidecar adds the
// server's half, so that tools that draw services by such pairs draw app to app.
type tracing struct {
	tracer             *telemetry.Tracer
	app                string
	host               string // where the APIs listen, for attributes
	httpPort, grpcPort int
}

// span is one request's span, on either wire. In mode Echo it repeats what came in.
type span struct {
	telemetry.Span
	parent, state string // as headers
	baggage       string
}

var plainEcho = &span{parent: noTrace}

// start begins a span below what the caller sent.
func (t *tracing) start(ctx context.Context, parent telemetry.SpanContext, ok bool, name string) (context.Context, *span) {
	if !ok && t.tracer.Mode() == telemetry.Echo {
		return ctx, plainEcho
	}
	ctx, s := t.tracer.Start(ctx, parent, name, telemetry.Client)
	c := s.Context()
	return ctx, &span{Span: s, parent: c.Traceparent(), state: c.State}
}

type spanKey struct{}

// HTTPBegin implements httpapi.Tracing.
func (t *tracing) HTTPBegin(ctx context.Context, method, path string, header call.Fields) (context.Context, httpapi.Span, string) {
	if t.tracer.Mode() == telemetry.Off {
		return ctx, nil, ""
	}
	bag := header.Get(baggage)
	if bag != "" {
		if err := telemetry.CheckBaggage(bag); err != nil {
			return ctx, nil, err.Error()
		}
	}
	parent, ok := telemetry.ParseTrace(header.Get(traceParent), header.Get(traceState))
	ctx, s := t.start(ctx, parent, ok, path)
	if bag != "" {
		echo := *s
		echo.baggage = bag
		s = &echo
	}
	if s.Recording() {
		t.describeHTTP(s.Span, method, path, header)
	}
	return ctx, httpSpan{s}, ""
}

// httpSpan is a span towards HTTP callers.
type httpSpan struct{ *span }

// Response implements httpapi.Span: the app's own traceparent wins.
func (s httpSpan) Response(h call.Fields) call.Fields {
	if _, ok := h.Lookup(traceParent); !ok {
		h = append(h, call.Field{Name: "Traceparent", Value: s.parent})
	}
	if s.state != "" {
		h = append(h, call.Field{Name: "Tracestate", Value: s.state})
	}
	if s.baggage != "" {
		h = append(h, call.Field{Name: "Baggage", Value: s.baggage})
	}
	return h
}

// Request implements httpapi.Span.
func (s httpSpan) Request(h call.Fields) call.Fields { return s.inject(h, false) }

// Headers gives the trace context to published events.
func (s httpSpan) Headers() (parent, state string) { return s.forEvent() }

// End implements httpapi.Span.
func (s httpSpan) End(status int) { s.EndHTTP(status) }

// forEvent is empty when there is no trace.
func (s *span) forEvent() (parent, state string) {
	if s.parent == noTrace {
		return "", ""
	}
	return s.parent, s.state
}

// inject puts the span's context into a call's headers, in place of the caller's. The state of
// another trace does not go on beside it.
func (s *span) inject(h call.Fields, binary bool) call.Fields {
	h = setField(h, traceParent, s.parent)
	h = setField(h, traceState, s.state)
	if binary && s.Context().Valid() {
		h = setField(h, traceBin, string(s.Context().AppendTraceBin(nil)))
	}
	return h
}

// setField gives a name one value, in the place of the first entry or at the end. An empty value
// drops the name.
func setField(h call.Fields, name, value string) call.Fields {
	out, set := h[:0], value == ""
	for _, f := range h {
		if len(f.Name) == len(name) && equalFold(f.Name, name) {
			if set {
				continue
			}
			f.Value, set = value, true
		}
		out = append(out, f)
	}
	if !set {
		out = append(out, call.Field{Name: name, Value: value})
	}
	return out
}

func equalFold(a, lower string) bool {
	for i := range len(a) {
		c := a[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// GRPCBegin implements grpcapi.Tracing.
func (t *tracing) GRPCBegin(ctx context.Context, method string, md metadata.MD) (context.Context, grpcapi.Span, string) {
	if t.tracer.Mode() == telemetry.Off {
		return ctx, nil, ""
	}
	bag := one(md, baggage)
	if err := telemetry.CheckBaggage(bag); err != nil {
		return ctx, nil, err.Error()
	}
	parent, ok := telemetry.ParseGRPC(one(md, traceBin), one(md, traceParent), one(md, traceState))
	ctx, s := t.start(ctx, parent, ok, method)
	if s.Recording() {
		t.describeGRPC(s.Span, method, md)
	}
	return context.WithValue(ctx, spanKey{}, s), grpcSpan{s, method, bag}, ""
}

func one(md metadata.MD, name string) string {
	if v := md[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// grpcSpan is a span towards gRPC callers.
type grpcSpan struct {
	*span
	method  string
	baggage string
}

const (
	daprMethods   = "/dapr.proto."
	invokeService = "/dapr.proto.runtime.v1.Dapr/InvokeService"
)

// Response implements grpcapi.Span. Dapr's own methods but InvokeService answer the binary
// form only.
func (s grpcSpan) Response() metadata.MD {
	var md metadata.MD
	if c := s.Context(); c.Valid() {
		md = metadata.Pairs(traceBin, string(c.AppendTraceBin(nil)))
		if s.method == invokeService || !strings.HasPrefix(s.method, daprMethods) {
			md.Set(traceParent, s.parent)
		}
	}
	if s.baggage != "" {
		md = metadata.Join(md, metadata.Pairs(baggage, s.baggage))
	}
	return md
}

// End implements grpcapi.Span.
func (s grpcSpan) End(code codes.Code) { s.EndGRPC(uint32(code), "") }

// Headers gives the trace context to published events.
func (t *tracing) Headers(ctx context.Context) (parent, state string) {
	if s, ok := ctx.Value(spanKey{}).(*span); ok {
		return s.forEvent()
	}
	return "", ""
}

// Request puts the call's trace context into an invocation's headers.
func (t *tracing) Request(ctx context.Context, h call.Fields) call.Fields {
	if s, ok := ctx.Value(spanKey{}).(*span); ok {
		return s.inject(h, true)
	}
	return h
}

// Arrived implements invoke.Tracing: the span of a call that a peer sent for the own app.
func (t *tracing) Arrived(ctx context.Context, req *call.Request) (context.Context, invoke.Span) {
	if t.tracer.Mode() != telemetry.On {
		return ctx, nil
	}
	parent, _ := telemetry.ParseTrace(req.Header.Get(traceParent), req.Header.Get(traceState))
	ctx, s := t.tracer.Start(ctx, parent, "CallLocal", telemetry.Server)
	if s.Recording() {
		name := req.Path // a proxied call keeps its full method
		if req.Protocol != call.GRPC {
			name = telemetry.CallLocalName(t.app, req.Path)
		}
		s.SetName(name)
		s.SetAttr(telemetry.AttrRPCService, telemetry.InvocationMarker)
		s.SetAttr(telemetry.AttrPeer, t.app)
	}
	out := &span{Span: s, parent: s.Context().Traceparent(), state: s.Context().State}
	req.Header = out.inject(req.Header, req.Protocol != call.HTTP)
	return ctx, arrived{s, req.Protocol}
}

type arrived struct {
	telemetry.Span
	protocol call.Protocol
}

// End implements invoke.Span. A proxied call's own status is in its trailer, which only its
// two ends read.
func (a arrived) End(status int, err error) {
	if err != nil || a.protocol == call.GRPC {
		a.Span.End(err)
		return
	}
	a.EndHTTP(status)
}
