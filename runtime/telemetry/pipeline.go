package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// pipeline is the recording half of a Tracer: OpenTelemetry's SDK with our ids and a batcher
// for each exporter.
type pipeline struct {
	tracer   trace.Tracer
	provider *sdk.TracerProvider
}

// newPipeline makes the exporters that can be made and logs the others. It is nil when none can.
func newPipeline(o TracingOptions, exports []exporterOf) *pipeline {
	service := o.Service
	if name := os.Getenv("OTEL_SERVICE_NAME"); name != "" {
		service = name
	}
	attrs := []attribute.KeyValue{attribute.String("service.name", service)}
	if o.Version != "" {
		attrs = append(attrs, attribute.String("service.version", o.Version))
	}
	opts := []sdk.TracerProviderOption{
		sdk.WithSampler(sdk.AlwaysSample()), // the Tracer has decided
		sdk.WithIDGenerator(givenIDs{}),
		sdk.WithResource(resource.NewSchemaless(attrs...)),
	}
	n := 0
	for _, e := range exports {
		x, err := e.make(context.Background())
		if err != nil {
			o.Log.Error("Tracing: spans will not be exported", "exporter", e.name, "err", err)
			continue
		}
		opts = append(opts, sdk.WithSpanProcessor(newBatcher(e.name, x, o.Log)))
		n++
	}
	if n == 0 {
		return nil
	}
	p := sdk.NewTracerProvider(opts...)
	return &pipeline{tracer: p.Tracer("mecha"), provider: p}
}

// start begins recording the span c below parent.
func (p *pipeline) start(parent, c SpanContext, remote bool, name string, kind SpanKind) trace.Span {
	ctx := context.WithValue(context.Background(), idsKey{}, c)
	if parent.Valid() {
		state, _ := trace.ParseTraceState(parent.State)
		ctx = trace.ContextWithSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: parent.TraceID, SpanID: parent.SpanID, TraceFlags: trace.TraceFlags(parent.Flags), TraceState: state, Remote: remote,
		}))
	}
	_, s := p.tracer.Start(ctx, name, trace.WithSpanKind(otelKind(kind)))
	return s
}

func otelKind(k SpanKind) trace.SpanKind {
	switch k {
	case Server:
		return trace.SpanKindServer
	case Client:
		return trace.SpanKindClient
	case Producer:
		return trace.SpanKindProducer
	case Consumer:
		return trace.SpanKindConsumer
	}
	return trace.SpanKindInternal
}

func (p *pipeline) close(ctx context.Context) error { return p.provider.Shutdown(ctx) }

// givenIDs hands the SDK the ids the Tracer made.
type givenIDs struct{}

type idsKey struct{}

func (givenIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	c, _ := ctx.Value(idsKey{}).(SpanContext)
	return c.TraceID, c.SpanID
}

func (givenIDs) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	c, _ := ctx.Value(idsKey{}).(SpanContext)
	return c.SpanID
}

// The batcher's measures are those of OpenTelemetry's batch processor.
const (
	batchSize    = 512
	queueSize    = 2048
	batchDelay   = 5 * time.Second
	batchTimeout = 30 * time.Second
	warnEvery    = time.Minute
)

// batcher collects ended spans for one exporter. Unlike the SDK's own it keeps no goroutine and
// no ticker: the first span of a batch sets a timer, and a goroutine lives while it exports.
type batcher struct {
	name   string
	x      sdk.SpanExporter
	log    *slog.Logger
	ctx    context.Context // of exports; ends when Shutdown's time is up
	cancel context.CancelFunc

	mu      sync.Mutex // guards what follows
	queue   []sdk.ReadOnlySpan
	timer   *time.Timer   // set while a part of a batch waits
	running chan struct{} // closed when the exporting goroutine ends; nil while there is none
	closed  bool
	lost    int       // spans since the last warning
	warned  time.Time // when
}

func newBatcher(name string, x sdk.SpanExporter, log *slog.Logger) *batcher {
	b := &batcher{name: name, x: x, log: log}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// OnStart implements sdk.SpanProcessor.
func (b *batcher) OnStart(context.Context, sdk.ReadWriteSpan) {}

// OnEnd implements sdk.SpanProcessor. It never blocks: a full queue loses the span.
func (b *batcher) OnEnd(s sdk.ReadOnlySpan) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return
	case len(b.queue) >= queueSize:
		b.lost++
		return
	}
	b.queue = append(b.queue, s)
	switch {
	case len(b.queue) >= batchSize:
		b.kick()
	case b.timer == nil && b.running == nil:
		b.timer = time.AfterFunc(batchDelay, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.kick()
		})
	}
}

// kick starts the exporting goroutine unless it runs. b.mu is held.
func (b *batcher) kick() {
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if b.running == nil && len(b.queue) > 0 {
		b.running = make(chan struct{})
		go b.run()
	}
}

// run exports until the queue is empty.
func (b *batcher) run() {
	for {
		b.mu.Lock()
		n := min(len(b.queue), batchSize)
		if n == 0 {
			b.queue = nil
			close(b.running)
			b.running = nil
			b.mu.Unlock()
			return
		}
		batch := b.queue[:n:n]
		b.queue = b.queue[n:]
		b.mu.Unlock()

		ctx, cancel := context.WithTimeout(b.ctx, batchTimeout)
		err := b.x.ExportSpans(ctx, batch)
		cancel()
		if err != nil {
			b.failed(n, err)
		}
	}
}

// failed warns about lost spans, at most once a minute.
func (b *batcher) failed(n int, err error) {
	b.mu.Lock()
	b.lost += n
	lost, due := b.lost, time.Since(b.warned) >= warnEvery
	if due {
		b.lost, b.warned = 0, time.Now()
	}
	b.mu.Unlock()
	if due {
		b.log.Warn("Tracing: spans could not be exported and are lost; is the collector up?", "exporter", b.name, "spans", lost, "err", err)
	}
}

// ForceFlush implements sdk.SpanProcessor: it waits until what is queued is exported or ctx ends.
func (b *batcher) ForceFlush(ctx context.Context) error {
	b.mu.Lock()
	b.kick()
	running := b.running
	b.mu.Unlock()
	if running == nil {
		return nil
	}
	select {
	case <-running:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Shutdown implements sdk.SpanProcessor: it flushes until ctx ends, then gives the rest up.
func (b *batcher) Shutdown(ctx context.Context) error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	err := b.ForceFlush(ctx)
	b.cancel()
	b.mu.Lock()
	b.queue = nil
	running := b.running
	b.mu.Unlock()
	if running != nil {
		<-running // its export was cancelled
	}
	return errors.Join(err, b.x.Shutdown(ctx))
}
