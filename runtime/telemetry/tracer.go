package telemetry

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"
)

// Mode is what the tracing configuration amounts to.
type Mode uint8

const (
	// Echo is tracing without any configuration: an incoming span context is passed on
	// unchanged, and where there is none the all-zero traceparent is sent, as Dapr does.
	Echo Mode = iota
	// Off is samplingRate "0": no span context is made or answered. What came in is left to
	// the edge, which forwards it to the local app as it is.
	Off
	// On makes a span context for every call and records the sampled ones.
	On
)

// defaultRate is the share of new traces recorded when samplingRate cannot be read.
const defaultRate = 0.0001

// TracingOptions are the Configuration's tracing section. The zero value is "no section".
type TracingOptions struct {
	Configured   bool   // the section exists
	SamplingRate string // share of new traces to record, "0" to "1"
	Stdout       bool   // write spans to Out as JSON lines
	Zipkin       string // URL of a Zipkin collector, like http://localhost:9411/api/v2/spans
	OTel         OTelOptions

	Service string       // service.name of the spans, the app id; OTEL_SERVICE_NAME wins
	Version string       // service.version
	Log     *slog.Logger // told about spans that cannot be exported; nil means slog.Default
	Out     io.Writer    // for Stdout; nil means os.Stdout
}

// OTelOptions name an OTLP collector. Without Endpoint the standard OTEL_EXPORTER_OTLP_*
// environment decides; an endpoint there turns tracing on, with a sampling rate of 1 unless
// SamplingRate says otherwise.
type OTelOptions struct {
	Endpoint string // host:port, for http also with a path
	Protocol string // grpc (default) or http
	Insecure bool   // no TLS; Dapr's isSecure: false
	Headers  map[string]string
	Timeout  time.Duration // of one export; zero means the environment's or 10 s
}

// Tracer starts spans. A nil *Tracer is in mode Echo. It is safe for concurrent use.
type Tracer struct {
	mode    Mode
	bound   uint64 // trace ids whose low 63 bits are below it are recorded
	exports []exporterOf
	o       TracingOptions

	mu     sync.Mutex // guards the making and closing of pipe
	once   sync.Once
	pipe   *pipeline // nil until the first recorded span
	closed bool
}

// NewTracer checks the options. It starts nothing and connects to nothing: exporters are made
// with the first span that is recorded.
func NewTracer(o TracingOptions) (*Tracer, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.Log = Scope(o.Log, "dapr.runtime.trace")
	fromEnv := o.OTel.fill()
	t := &Tracer{}
	if !o.Configured && !fromEnv {
		return t, nil
	}
	rate := samplingRate(o.SamplingRate)
	if o.SamplingRate == "" && fromEnv {
		rate = 1
	}
	if rate <= 0 {
		t.mode = Off
		return t, nil
	}
	exports, err := o.exporters()
	if err != nil {
		return nil, err
	}
	t.mode, t.o, t.exports = On, o, exports
	// OpenTelemetry's own rule, so that every party that samples by trace id agrees.
	t.bound = uint64(math.Min(rate, 1) * (1 << 63))
	return t, nil
}

// samplingRate reads the configured rate as Dapr does.
func samplingRate(s string) float64 {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) {
		return defaultRate
	}
	return f
}

// Mode tells what edges do with headers.
func (t *Tracer) Mode() Mode {
	if t == nil {
		return Echo
	}
	return t.mode
}

// SpanKind says which side of a call a span is.
type SpanKind uint8

// The kinds of span.
const (
	Internal SpanKind = iota
	Server
	Client
	Producer
	Consumer
)

// Start begins a span below parent, which came with the call, or a new trace if parent is not
// valid. The context carries the span to Child and SpanFrom. In mode Off both come back empty;
// in mode Echo the span is the parent itself. A name that is dear to build is better set with
// SetName when the span is Recording.
func (t *Tracer) Start(ctx context.Context, parent SpanContext, name string, kind SpanKind) (context.Context, Span) {
	return t.start(ctx, parent, true, name, kind)
}

// Child begins a span below the one in ctx.
func (t *Tracer) Child(ctx context.Context, name string, kind SpanKind) (context.Context, Span) {
	return t.start(ctx, SpanFrom(ctx).Context(), false, name, kind)
}

func (t *Tracer) start(ctx context.Context, parent SpanContext, remote bool, name string, kind SpanKind) (context.Context, Span) {
	switch t.Mode() {
	case Off:
		return ctx, Span{}
	case Echo:
		if !parent.Valid() {
			return ctx, Span{}
		}
		return withSpan(ctx, Span{c: parent})
	}
	s := Span{c: t.next(parent)}
	if s.c.Sampled() && len(t.exports) > 0 {
		if p := t.pipeline(); p != nil {
			s.rec = p.start(parent, s.c, remote, name, kind)
		}
	}
	return withSpan(ctx, s)
}

// next makes the context of a new span.
func (t *Tracer) next(parent SpanContext) SpanContext {
	c := parent // the decision, the state and the trace id are inherited
	if !parent.Valid() {
		c = SpanContext{}
		for c.TraceID == [16]byte{} {
			binary.BigEndian.PutUint64(c.TraceID[:8], rand.Uint64())
			binary.BigEndian.PutUint64(c.TraceID[8:], rand.Uint64())
		}
		if c.low64()>>1 < t.bound {
			c.Flags = Sampled
		}
	}
	c.SpanID = [8]byte{}
	for c.SpanID == [8]byte{} {
		binary.BigEndian.PutUint64(c.SpanID[:], rand.Uint64())
	}
	return c
}

// pipeline makes the exporters once. It is nil when they cannot be made or t is closed; the log
// has the reason.
func (t *Tracer) pipeline() *pipeline {
	t.once.Do(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.closed {
			t.pipe = newPipeline(t.o, t.exports)
		}
	})
	return t.pipe
}

// Close exports what is left until ctx ends and stops. Spans that end later are lost. It is
// safe twice.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	t.mu.Unlock()
	p := t.pipeline() // nil for good if no span was recorded before
	if p == nil || !first {
		return nil
	}
	return p.close(ctx)
}

// spanKey carries a Span in a context.
type spanKey struct{}

// spanContext is a context and a span in one allocation.
type spanContext struct {
	context.Context
	span Span
}

func (c *spanContext) Value(k any) any {
	if k == (spanKey{}) {
		return c
	}
	return c.Context.Value(k)
}

func withSpan(ctx context.Context, s Span) (context.Context, Span) {
	return &spanContext{ctx, s}, s
}

// SpanFrom is the span ctx carries, or an empty one.
func SpanFrom(ctx context.Context) Span {
	if c, ok := ctx.Value(spanKey{}).(*spanContext); ok {
		return c.span
	}
	return Span{}
}
