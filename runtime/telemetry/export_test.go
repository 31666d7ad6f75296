package telemetry_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/runtime/telemetry"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// sink is an OTLP collector for tests, over gRPC and HTTP.
type sink struct {
	collector.UnimplementedTraceServiceServer
	mu      sync.Mutex
	spans   []*otlp.Span
	service string
	header  string // the value of x-key
	path    string
}

func (s *sink) add(r *collector.ExportTraceServiceRequest, header string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.header = header
	for _, rs := range r.ResourceSpans {
		s.service = attr(rs.Resource.Attributes, "service.name")
		for _, ss := range rs.ScopeSpans {
			s.spans = append(s.spans, ss.Spans...)
		}
	}
}

func (s *sink) Export(ctx context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.add(r, strings.Join(md.Get("x-key"), ","))
	return &collector.ExportTraceServiceResponse{}, nil
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var req collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.path = r.URL.Path
	s.add(&req, r.Header.Get("X-Key"))
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func attr(attrs []*common.KeyValue, key string) string {
	for _, a := range attrs {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

func grpcSink(t *testing.T) (*sink, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, srv := &sink{}, grpc.NewServer()
	collector.RegisterTraceServiceServer(srv, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	return s, l.Addr().String()
}

func httpSink(t *testing.T) (*sink, string) {
	t.Helper()
	s := &sink{}
	srv := httptest.NewServer(s)
	t.Cleanup(func() { srv.Close(); http.DefaultClient.CloseIdleConnections() })
	return s, strings.TrimPrefix(srv.URL, "http://")
}

// trace makes a server span with a client span below it, then closes the tracer.
func traceOnce(t *testing.T, o telemetry.TracingOptions) (parent, server, client telemetry.SpanContext) {
	t.Helper()
	o.Service = "orders"
	tr := newTracer(t, o)
	parent, _ = telemetry.ParseTrace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b")
	ctx, s := tr.Start(context.Background(), parent, "", telemetry.Server)
	if !s.Recording() {
		t.Fatal("not recording")
	}
	s.SetName("/v1.0/state/mem")
	s.SetAttr(telemetry.AttrAPI, "GET /v1.0/state/mem")
	s.SetInt(telemetry.AttrPort, 3500)
	s.SetHeader("Dapr-App-Id", "b")
	s.SetHeader("dapr-api-token", "secret")
	s.SetHeader("Authorization", "secret")
	_, c := tr.Child(ctx, telemetry.CallLocalName("b", "m"), telemetry.Client)
	c.EndGRPC(5, "no such thing")
	s.EndHTTP(500)
	end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for range 2 { // Close is safe twice
		if err := tr.Close(end); err != nil {
			t.Fatal(err)
		}
	}
	return parent, s.Context(), c.Context()
}

// check compares what a collector got with what traceOnce made.
func (s *sink) check(t *testing.T, parent, server, client telemetry.SpanContext) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spans) != 2 {
		t.Fatalf("%d spans", len(s.spans))
	}
	c, sp := s.spans[0], s.spans[1]
	if !bytes.Equal(sp.TraceId, parent.TraceID[:]) || !bytes.Equal(sp.ParentSpanId, parent.SpanID[:]) || !bytes.Equal(sp.SpanId, server.SpanID[:]) {
		t.Errorf("server span: trace %x parent %x id %x", sp.TraceId, sp.ParentSpanId, sp.SpanId)
	}
	if !bytes.Equal(c.ParentSpanId, server.SpanID[:]) || !bytes.Equal(c.SpanId, client.SpanID[:]) {
		t.Errorf("client span: parent %x id %x", c.ParentSpanId, c.SpanId)
	}
	if sp.Name != "/v1.0/state/mem" || sp.Kind != otlp.Span_SPAN_KIND_SERVER || sp.TraceState != "a=b" || sp.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR {
		t.Errorf("server span: %v", sp)
	}
	if c.Name != "CallLocal/b/m" || c.Kind != otlp.Span_SPAN_KIND_CLIENT || c.Status.GetMessage() != "no such thing" || attr(c.Attributes, "dapr.status_code") != "5" {
		t.Errorf("client span: %v", c)
	}
	if attr(sp.Attributes, "dapr.api") != "GET /v1.0/state/mem" || attr(sp.Attributes, "dapr-app-id") != "b" || attr(sp.Attributes, "dapr.status_code") != "500" {
		t.Errorf("attributes: %v", sp.Attributes)
	}
	if strings.Contains(sp.String(), "secret") {
		t.Errorf("a secret in %v", sp)
	}
	if s.service != "orders" {
		t.Errorf("service.name %q", s.service)
	}
}

func TestOTLPGRPC(t *testing.T) {
	s, addr := grpcSink(t)
	p, sp, c := traceOnce(t, telemetry.TracingOptions{Configured: true, SamplingRate: "0.001",
		OTel: telemetry.OTelOptions{Endpoint: addr, Protocol: "grpc", Insecure: true, Headers: map[string]string{"x-key": "k"}, Timeout: 3 * time.Second}})
	s.check(t, p, sp, c)
	if s.header != "k" {
		t.Errorf("header %q", s.header)
	}
}

func TestOTLPHTTP(t *testing.T) {
	s, addr := httpSink(t)
	p, sp, c := traceOnce(t, telemetry.TracingOptions{Configured: true, SamplingRate: "1",
		OTel: telemetry.OTelOptions{Endpoint: addr, Protocol: "http", Insecure: true, Headers: map[string]string{"x-key": "k"}}})
	s.check(t, p, sp, c)
	if s.header != "k" || s.path != "/v1/traces" {
		t.Errorf("header %q, path %q", s.header, s.path)
	}
}

func TestOTLPFromEnvironment(t *testing.T) {
	overGRPC, grpcAddr := grpcSink(t)
	overHTTP, httpAddr := httpSink(t)
	tests := []struct {
		name string
		env  map[string]string
		sink *sink
		path string
	}{
		{"grpc with scheme", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + grpcAddr}, overGRPC, ""},
		{"grpc without scheme", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": grpcAddr, "OTEL_EXPORTER_OTLP_INSECURE": "true"}, overGRPC, ""},
		{"http", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + httpAddr + "/base", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, overHTTP, "/base/v1/traces"},
		{"traces own", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://" + httpAddr + "/own",
			"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, overHTTP, "/own"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.sink.spans, tt.sink.path = nil, ""
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=e")
			p, sp, c := traceOnce(t, telemetry.TracingOptions{})
			tt.sink.check(t, p, sp, c)
			if tt.sink.path != tt.path || tt.sink.header != "e" {
				t.Errorf("path %q, header %q", tt.sink.path, tt.sink.header)
			}
		})
	}
}

func TestServiceNameFromEnvironment(t *testing.T) {
	t.Setenv("OTEL_SERVICE_NAME", "other")
	var out bytes.Buffer
	traceOnce(t, telemetry.TracingOptions{Configured: true, SamplingRate: "1", Stdout: true, Out: &out})
	if !strings.Contains(out.String(), `"service":"other"`) {
		t.Errorf("got %s", &out)
	}
}

func TestZipkin(t *testing.T) {
	var mu sync.Mutex
	var spans []map[string]any
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		var got []map[string]any
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil || r.URL.Path != "/api/v2/spans" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		spans = append(spans, got...)
		w.WriteHeader(http.StatusAccepted)
	}))
	defer srv.Close()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	_, sp, _ := traceOnce(t, telemetry.TracingOptions{Configured: true, SamplingRate: "1", Zipkin: srv.URL + "/api/v2/spans"})
	mu.Lock()
	defer mu.Unlock()
	if len(spans) != 2 || spans[1]["id"] != hex.EncodeToString(sp.SpanID[:]) || spans[1]["kind"] != "SERVER" ||
		spans[1]["localEndpoint"].(map[string]any)["serviceName"] != "orders" {
		t.Errorf("spans: %v", spans)
	}
}

func TestStdout(t *testing.T) {
	var out bytes.Buffer
	p, sp, _ := traceOnce(t, telemetry.TracingOptions{Configured: true, SamplingRate: "1", Stdout: true, Out: &out})
	rows := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(rows) != 2 {
		t.Fatalf("%d lines: %s", len(rows), &out)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(rows[1]), &got); err != nil {
		t.Fatal(err)
	}
	if got["spanId"] != hex.EncodeToString(sp.SpanID[:]) || got["parentSpanId"] != hex.EncodeToString(p.SpanID[:]) || got["service"] != "orders" || got["name"] != "/v1.0/state/mem" {
		t.Errorf("span %v", got)
	}
}

// A collector that does not answer must not hold up the end of the process.
func TestCloseIsBounded(t *testing.T) {
	block := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-block:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(block)
	log, b := newLog(t, telemetry.LogOptions{})
	tr := newTracer(t, telemetry.TracingOptions{Configured: true, SamplingRate: "1", Log: log.Logger,
		OTel: telemetry.OTelOptions{Endpoint: strings.TrimPrefix(srv.URL, "http://"), Protocol: "http", Insecure: true}})
	_, s := tr.Start(context.Background(), telemetry.SpanContext{}, "x", telemetry.Server)
	s.End(nil)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := tr.Close(ctx); err == nil {
		t.Error("no error though spans were lost")
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Close took %v", took)
	}
	if !strings.Contains(b.String(), "spans could not be exported") || !strings.Contains(b.String(), "scope=dapr.runtime.trace") {
		t.Errorf("log: %s", b)
	}
	if _, s := tr.Start(context.Background(), telemetry.SpanContext{}, "x", telemetry.Server); !s.Context().Valid() {
		t.Error("no span context after Close")
	} else {
		s.End(nil)
	}
}

// Spans wait for company, but not for ever; nothing ticks while there are none.
func TestBatching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuffer
		tr := newTracer(t, telemetry.TracingOptions{Configured: true, SamplingRate: "1", Stdout: true, Out: &out})
		span := func() {
			_, s := tr.Start(context.Background(), telemetry.SpanContext{}, "x", telemetry.Server)
			s.End(nil)
		}
		span()
		time.Sleep(4 * time.Second)
		if n := out.lines(); n != 0 {
			t.Errorf("%d spans exported before the delay", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := out.lines(); n != 1 {
			t.Errorf("%d spans exported after the delay", n)
		}
		for range 512 {
			span()
		}
		synctest.Wait()
		if n := out.lines(); n != 513 {
			t.Errorf("%d spans exported after a full batch", n)
		}
		span()
		if err := tr.Close(context.Background()); err != nil || out.lines() != 514 {
			t.Errorf("after Close: %v, %d spans", err, out.lines())
		}
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) lines() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.b.String(), "\n")
}
