package mesh

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/test/harness"
)

// span is an exported span, whatever the protocol it came by.
type span struct {
	Service, Name, Kind string // Kind in lower case: client, server, producer, consumer
	Trace, ID, Parent   string // hexadecimal
	Attrs               map[string]string
	Failed              bool
}

// spans collects what exporters send.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu     sync.Mutex
	all    []span
	header http.Header // of the last HTTP export
}

func (c *spans) add(s ...span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, s...)
}

// list is what has arrived.
func (c *spans) list() []span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]span(nil), c.all...)
}

// find is the one span of a service with that name; it fails on none and on several.
func (c *spans) find(t *testing.T, service, name string) span {
	t.Helper()
	var found []span
	for _, s := range c.list() {
		if s.Service == service && strings.EqualFold(s.Name, name) { // Zipkin has lower case only
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans %q of %s, want one; there are:\n%s", len(found), name, service, c)
	}
	return found[0]
}

func (c *spans) String() string {
	var b strings.Builder
	for _, s := range c.list() {
		b.WriteString(s.Service + " " + s.Kind + " " + s.Name + " " + s.Trace + " " + s.ID + " under " + s.Parent + "\n")
	}
	return b.String()
}

// Export implements the OTLP collector over gRPC.
func (c *spans) Export(_ context.Context, in *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.fromOTLP(in)
	return &collector.ExportTraceServiceResponse{}, nil
}

func (c *spans) fromOTLP(in *collector.ExportTraceServiceRequest) {
	for _, rs := range in.GetResourceSpans() {
		service := attrs(rs.GetResource().GetAttributes())["service.name"]
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.add(span{Service: service, Name: s.GetName(), Kind: strings.ToLower(strings.TrimPrefix(s.GetKind().String(), "SPAN_KIND_")),
					Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
					Attrs: attrs(s.GetAttributes()), Failed: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR})
			}
		}
	}
}

func attrs(kvs []*commonpb.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range kvs {
		switch v := kv.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			out[kv.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			out[kv.GetKey()] = strconv.FormatInt(v.IntValue, 10)
		}
	}
	return out
}

// otlpGRPC starts a collector and returns its address.
func otlpGRPC(t *testing.T) (*spans, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, srv := &spans{}, grpc.NewServer()
	collector.RegisterTraceServiceServer(srv, c)
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	return c, l.Addr().String()
}

// otlpHTTP starts a collector that takes OTLP and Zipkin over HTTP, and returns its address.
func otlpHTTP(t *testing.T) (*spans, string) {
	t.Helper()
	c, mux := &spans{}, http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", func(w http.ResponseWriter, r *http.Request) {
		var in collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(readBody(t, r), &in); err != nil {
			t.Errorf("an export cannot be read: %v", err)
		}
		c.mu.Lock()
		c.header = r.Header
		c.mu.Unlock()
		c.fromOTLP(&in)
		w.Header().Set("Content-Type", "application/x-protobuf")
	})
	mux.HandleFunc("POST /api/v2/spans", func(w http.ResponseWriter, r *http.Request) {
		var in []struct {
			TraceID, ID, ParentID, Name, Kind string
			LocalEndpoint                     struct{ ServiceName string }
			Tags                              map[string]string
		}
		if err := json.Unmarshal(readBody(t, r), &in); err != nil {
			t.Errorf("an export cannot be read: %v", err)
		}
		for _, s := range in {
			c.add(span{Service: s.LocalEndpoint.ServiceName, Name: s.Name, Kind: strings.ToLower(s.Kind), Trace: s.TraceID, ID: s.ID,
				Parent: s.ParentID, Attrs: s.Tags, Failed: s.Tags["error"] != ""})
		}
		w.WriteHeader(http.StatusAccepted)
	})
	return c, "127.0.0.1:" + strconv.Itoa(harness.Serve(t, mux))
}

func readBody(t *testing.T, r *http.Request) []byte {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(body)
		if err != nil {
			t.Errorf("an export is not gzip as it says: %v", err)
			return nil
		}
		body = z
	}
	b, err := io.ReadAll(body)
	if err != nil {
		t.Errorf("reading an export: %v", err)
	}
	return b
}
