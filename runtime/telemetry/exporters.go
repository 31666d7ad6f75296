package telemetry

import (
	"context"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	//lint:ignore SA1019 Zipkin is part of Dapr's configuration for as long as its exporter exists
	"go.opentelemetry.io/otel/exporters/zipkin"
	sdk "go.opentelemetry.io/otel/sdk/trace"
)

// exporterOf is an exporter that can be made.
type exporterOf struct {
	name string
	make func(context.Context) (sdk.SpanExporter, error)
}

const opTracing fault.Op = "telemetry.tracing"

// exporters checks the options and returns what to make of them.
func (o *TracingOptions) exporters() ([]exporterOf, error) {
	var out []exporterOf
	if o.Stdout {
		w := o.Out
		if w == nil {
			w = os.Stdout
		}
		out = append(out, exporterOf{"stdout", func(context.Context) (sdk.SpanExporter, error) { return &writerExporter{w: w}, nil }})
	}
	if o.Zipkin != "" {
		if u, err := url.Parse(o.Zipkin); err != nil || u.Scheme == "" || u.Host == "" {
			return nil, fault.New(opTracing, fault.Invalid,
				"tracing.zipkin.endpointAddress: %q is not a URL; write it like http://localhost:9411/api/v2/spans", o.Zipkin)
		}
		out = append(out, exporterOf{"zipkin", func(context.Context) (sdk.SpanExporter, error) { return zipkin.New(o.Zipkin) }})
	}
	if o.OTel.Endpoint != "" {
		x, err := o.OTel.exporter()
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

// fill takes the collector from the OTEL_EXPORTER_OTLP_* environment when the configuration
// names none, and reports whether it did. Of two variables the one for traces wins.
func (o *OTelOptions) fill() bool {
	if o.Endpoint != "" {
		return false
	}
	signal := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
	endpoint := signal
	if endpoint == "" {
		endpoint = os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	}
	if endpoint == "" {
		return false
	}
	o.Protocol = "grpc"
	if strings.HasPrefix(otlpEnv("PROTOCOL"), "http") { // http/protobuf or http/json
		o.Protocol = "http"
	}
	o.Insecure = strings.HasPrefix(endpoint, "http://") || strings.EqualFold(otlpEnv("INSECURE"), "true")
	o.Endpoint = endpoint
	if o.Protocol == "http" && signal == "" {
		// The general endpoint is a base to which the signal's path is added.
		o.Endpoint = strings.TrimSuffix(endpoint, "/") + "/v1/traces"
	}
	return true
}

// otlpEnv reads an exporter variable, the traces' own before the general.
func otlpEnv(name string) string {
	if v := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_" + name); v != "" {
		return v
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_" + name)
}

// exporter returns the OTLP exporter. What the options leave open (headers, time-out,
// certificates) the library takes from the environment.
func (o OTelOptions) exporter() (exporterOf, error) {
	host, path := o.Endpoint, ""
	if _, rest, ok := strings.Cut(host, "://"); ok {
		host = rest
	}
	if i := strings.IndexByte(host, '/'); i >= 0 {
		host, path = host[:i], host[i:]
	}
	if host == "" {
		return exporterOf{}, fault.New(opTracing, fault.Invalid, "tracing.otel.endpointAddress: %q names no host; write it like localhost:4317", o.Endpoint)
	}
	switch o.Protocol {
	case "grpc", "":
		return exporterOf{"otlp grpc", func(ctx context.Context) (sdk.SpanExporter, error) { return o.grpc(ctx, host) }}, nil
	case "http":
		return exporterOf{"otlp http", func(ctx context.Context) (sdk.SpanExporter, error) { return o.http(ctx, host, path) }}, nil
	}
	return exporterOf{}, fault.New(opTracing, fault.Invalid, "invalid protocol %s provided for Otel endpoint; it is grpc or http", o.Protocol)
}

func (o OTelOptions) grpc(ctx context.Context, host string) (sdk.SpanExporter, error) {
	opts := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(host)}
	if o.Insecure {
		opts = append(opts, otlptracegrpc.WithInsecure())
	}
	if len(o.Headers) > 0 {
		opts = append(opts, otlptracegrpc.WithHeaders(o.Headers))
	}
	if o.Timeout > 0 {
		opts = append(opts, otlptracegrpc.WithTimeout(o.Timeout))
	}
	return otlptracegrpc.New(ctx, opts...)
}

func (o OTelOptions) http(ctx context.Context, host, path string) (sdk.SpanExporter, error) {
	opts := []otlptracehttp.Option{otlptracehttp.WithEndpoint(host)}
	if path != "" {
		opts = append(opts, otlptracehttp.WithURLPath(path))
	}
	if o.Insecure {
		opts = append(opts, otlptracehttp.WithInsecure())
	}
	if len(o.Headers) > 0 {
		opts = append(opts, otlptracehttp.WithHeaders(o.Headers))
	}
	if o.Timeout > 0 {
		opts = append(opts, otlptracehttp.WithTimeout(o.Timeout))
	}
	return otlptracehttp.New(ctx, opts...)
}

// writerExporter writes each span as one line of JSON.
type writerExporter struct {
	mu sync.Mutex
	w  io.Writer
}

// spanLine is the shape of such a line.
type spanLine struct {
	Name     string         `json:"name"`
	TraceID  string         `json:"traceId"`
	SpanID   string         `json:"spanId"`
	ParentID string         `json:"parentSpanId,omitempty"`
	Kind     string         `json:"kind"`
	Start    time.Time      `json:"startTime"`
	End      time.Time      `json:"endTime"`
	Status   string         `json:"status,omitempty"`
	Attrs    map[string]any `json:"attributes,omitempty"`
	Service  string         `json:"service,omitempty"`
}

// ExportSpans implements sdk.SpanExporter.
func (e *writerExporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range spans {
		if err := ctx.Err(); err != nil {
			return err
		}
		l := spanLine{
			Name: s.Name(), TraceID: s.SpanContext().TraceID().String(), SpanID: s.SpanContext().SpanID().String(),
			Kind: s.SpanKind().String(), Start: s.StartTime(), End: s.EndTime(), Status: s.Status().Description,
		}
		if s.Parent().SpanID().IsValid() {
			l.ParentID = s.Parent().SpanID().String()
		}
		for _, a := range s.Attributes() {
			if l.Attrs == nil {
				l.Attrs = make(map[string]any)
			}
			l.Attrs[string(a.Key)] = a.Value.AsInterface()
		}
		if v, ok := s.Resource().Set().Value("service.name"); ok {
			l.Service = v.AsString()
		}
		text, err := json.Marshal(l)
		if err != nil {
			return err
		}
		if _, err := e.w.Write(append(text, '\n')); err != nil {
			return err
		}
	}
	return nil
}

// Shutdown implements sdk.SpanExporter.
func (e *writerExporter) Shutdown(context.Context) error { return nil }
