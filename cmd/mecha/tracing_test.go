package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// TestOneTraceContextGoesOn: whatever the caller sent, the callee finds the trace of the
// sidecar's span and no other beside it.
func TestOneTraceContextGoesOn(t *testing.T) {
	const own, other = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-11111111111111111111111111111111-2222222222222222-01"
	for _, tt := range []struct {
		name     string
		in, want call.Fields
	}{
		{"none", call.Fields{{Name: "a", Value: "1"}}, call.Fields{{Name: "a", Value: "1"}, {Name: "traceparent", Value: noTrace}}},
		{"one", call.Fields{{Name: "Traceparent", Value: own}, {Name: "Tracestate", Value: "k=v"}}, call.Fields{{Name: "Traceparent", Value: own}, {Name: "Tracestate", Value: "k=v"}}},
		{"two", call.Fields{{Name: "traceparent", Value: own}, {Name: "a", Value: "1"}, {Name: "traceparent", Value: other}},
			call.Fields{{Name: "traceparent", Value: own}, {Name: "a", Value: "1"}}},
		{"the state of a trace that cannot be read", call.Fields{{Name: "traceparent", Value: "junk"}, {Name: "tracestate", Value: "k=v"}},
			call.Fields{{Name: "traceparent", Value: noTrace}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tracer, err := telemetry.NewTracer(telemetry.TracingOptions{Service: "a"})
			if err != nil {
				t.Fatal(err)
			}
			_, s, refused := (&tracing{tracer: tracer}).HTTPBegin(t.Context(), "GET", "/x", tt.in)
			if refused != "" {
				t.Fatal(refused)
			}
			got := s.Request(append(call.Fields{}, tt.in...))
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
