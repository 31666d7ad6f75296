package telemetry_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

func newTracer(t testing.TB, o telemetry.TracingOptions) *telemetry.Tracer {
	t.Helper()
	tr, err := telemetry.NewTracer(o)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestModes(t *testing.T) {
	tests := []struct {
		name string
		o    telemetry.TracingOptions
		env  string
		want telemetry.Mode
	}{
		{"no section", telemetry.TracingOptions{}, "", telemetry.Echo},
		{"empty section", telemetry.TracingOptions{Configured: true}, "", telemetry.On},
		{"zero", telemetry.TracingOptions{Configured: true, SamplingRate: "0"}, "", telemetry.Off},
		{"zero as a float", telemetry.TracingOptions{Configured: true, SamplingRate: "0.00"}, "", telemetry.Off},
		{"negative", telemetry.TracingOptions{Configured: true, SamplingRate: "-1"}, "", telemetry.Off},
		{"one", telemetry.TracingOptions{Configured: true, SamplingRate: "1"}, "", telemetry.On},
		{"unreadable", telemetry.TracingOptions{Configured: true, SamplingRate: "often"}, "", telemetry.On},
		{"environment alone", telemetry.TracingOptions{}, "http://localhost:4317", telemetry.On},
		{"environment, but zero", telemetry.TracingOptions{Configured: true, SamplingRate: "0"}, "http://localhost:4317", telemetry.Off},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", tt.env)
			if got := newTracer(t, tt.o).Mode(); got != tt.want {
				t.Errorf("mode %d, want %d", got, tt.want)
			}
		})
	}
	var none *telemetry.Tracer
	if none.Mode() != telemetry.Echo || none.Close(context.Background()) != nil {
		t.Error("a nil tracer is not the unconfigured one")
	}
}

func TestStartByMode(t *testing.T) {
	in, _ := telemetry.ParseTrace(parent, "a=b")
	unsampled := in
	unsampled.Flags = 0
	ctx := context.Background()

	t.Run("echo", func(t *testing.T) {
		tr := newTracer(t, telemetry.TracingOptions{})
		c2, s := tr.Start(ctx, in, "x", telemetry.Server)
		if s.Context() != in || telemetry.SpanFrom(c2).Context() != in {
			t.Errorf("the parent is not passed on: %+v", s.Context())
		}
		if _, child := tr.Child(c2, "y", telemetry.Client); child.Context() != in {
			t.Errorf("child: %+v", child.Context())
		}
		_, s = tr.Start(ctx, telemetry.SpanContext{}, "x", telemetry.Server)
		if got := s.Context().Traceparent(); got != "00-00000000000000000000000000000000-0000000000000000-00" {
			t.Errorf("without a parent: %s", got)
		}
	})
	t.Run("off", func(t *testing.T) {
		tr := newTracer(t, telemetry.TracingOptions{Configured: true, SamplingRate: "0"})
		c2, s := tr.Start(ctx, in, "x", telemetry.Server)
		if c2 != ctx || s.Context().Valid() || s.Recording() {
			t.Errorf("a span while off: %+v", s.Context())
		}
	})
	t.Run("on", func(t *testing.T) {
		tr := newTracer(t, telemetry.TracingOptions{Configured: true, SamplingRate: "1"})
		for name, p := range map[string]telemetry.SpanContext{"sampled": in, "not sampled": unsampled} {
			c2, s := tr.Start(ctx, p, "x", telemetry.Server)
			got := s.Context()
			if got.TraceID != p.TraceID || got.SpanID == p.SpanID || got.Flags != p.Flags || got.State != "a=b" {
				t.Errorf("%s parent: %+v below %+v", name, got, p)
			}
			_, child := tr.Child(c2, "y", telemetry.Client)
			if child.Context().TraceID != p.TraceID || child.Context().SpanID == got.SpanID || child.Context().Flags != p.Flags {
				t.Errorf("%s parent: child %+v", name, child.Context())
			}
			if s.Recording() {
				t.Error("recording without an exporter")
			}
			s.SetAttr("a", "b") // must not panic
			s.EndHTTP(200)
		}
		_, s := tr.Start(ctx, telemetry.SpanContext{}, "x", telemetry.Server)
		if !s.Context().Valid() || !s.Context().Sampled() {
			t.Errorf("a new trace: %+v", s.Context())
		}
	})
}

func TestSamplingRatio(t *testing.T) {
	const n = 4000
	for rate, want := range map[string][2]int{"1": {n, n}, "7": {n, n}, "0.25": {n/4 - 200, n/4 + 200}, "often": {0, 8}} {
		tr := newTracer(t, telemetry.TracingOptions{Configured: true, SamplingRate: rate})
		sampled := 0
		for range n {
			_, s := tr.Start(context.Background(), telemetry.SpanContext{}, "x", telemetry.Server)
			if s.Context().Sampled() {
				sampled++
			}
			if rate == "0.25" {
				c := s.Context()
				if below := binary.BigEndian.Uint64(c.TraceID[8:])>>1 < 1<<61; below != c.Sampled() {
					t.Fatalf("trace %s: sampled %v against the ratio rule", c.Traceparent(), c.Sampled())
				}
			}
		}
		if sampled < want[0] || sampled > want[1] {
			t.Errorf("rate %s: %d of %d, want %v", rate, sampled, n, want)
		}
	}
}

func TestBadTracingOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		o    telemetry.TracingOptions
		want string
	}{
		"zipkin":   {telemetry.TracingOptions{Zipkin: "localhost:9411"}, `"localhost:9411" is not a URL`},
		"protocol": {telemetry.TracingOptions{OTel: telemetry.OTelOptions{Endpoint: "a:1", Protocol: "soap"}}, "invalid protocol soap provided for Otel endpoint"},
		"no host":  {telemetry.TracingOptions{OTel: telemetry.OTelOptions{Endpoint: "http://"}}, "names no host"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.o.Configured, tt.o.SamplingRate = true, "1"
			_, err := telemetry.NewTracer(tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) || fault.Of(err) != fault.Invalid {
				t.Errorf("err = %v", err)
			}
		})
	}
}

func TestSpanNames(t *testing.T) {
	for want, got := range map[string]string{
		"CallLocal/b/orders/7": telemetry.CallLocalName("b", "/orders/7"),
		"CallActor/Cart/add":   telemetry.CallActorName("Cart", "add"),
		"pubsub/t1":            telemetry.PubSubName("t1"),
		"bindings/cron":        telemetry.BindingName("cron"),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestUnsampledSpansAreCheap(t *testing.T) {
	var out bytes.Buffer
	tr := newTracer(t, telemetry.TracingOptions{Configured: true, SamplingRate: "1", Stdout: true, Out: &out})
	in, _ := telemetry.ParseTrace(strings.TrimSuffix(parent, "01")+"00", "")
	ctx := context.Background()
	if n := testing.AllocsPerRun(100, func() {
		_, s := tr.Start(ctx, in, "x", telemetry.Server)
		s.SetAttr("a", "b")
		s.EndHTTP(200)
	}); n > 1 {
		t.Errorf("%v allocations, one for the context is enough", n)
	}
	if err := tr.Close(ctx); err != nil || out.Len() != 0 {
		t.Errorf("%v, exported %s", err, &out)
	}
}

func BenchmarkStartUnsampled(b *testing.B) {
	tr := newTracer(b, telemetry.TracingOptions{Configured: true, SamplingRate: "0.0000001"})
	b.ReportAllocs()
	for b.Loop() {
		_, s := tr.Start(context.Background(), telemetry.SpanContext{}, "x", telemetry.Server)
		s.EndHTTP(200)
	}
}

func BenchmarkParseTrace(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		telemetry.ParseTrace(parent, "a=b")
	}
}
