package telemetry_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/telemetry"
	otelbaggage "go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestTraceparent(t *testing.T) {
	ids := "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
	tests := []struct {
		name, in, want string // want is the value formatted again, "" for invalid
	}{
		{"sampled", parent, parent},
		{"not sampled", "00-" + ids + "-00", "00-" + ids + "-00"},
		{"random flag", "00-" + ids + "-03", "00-" + ids + "-03"},
		{"unknown flags in version 0", "00-" + ids + "-09", ""},
		{"later version", "cc-" + ids + "-09", "00-" + ids + "-01"},
		{"later version with more", "cc-" + ids + "-01-what", parent},
		{"later version, no dash", "cc-" + ids + "-01x", ""},
		{"version 0 with more", parent + "-x", ""},
		{"forbidden version", "ff-" + ids + "-01", ""},
		{"upper case", strings.ToUpper(parent), ""},
		{"short", parent[:54], ""},
		{"zero trace", "00-00000000000000000000000000000000-b7ad6b7169203331-01", ""},
		{"zero span", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", ""},
		{"dashes moved", "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01", ""},
		{"empty", "", ""},
		{"words", "foo", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, ok := telemetry.ParseTrace(tt.in, "")
			if ok != (tt.want != "") {
				t.Fatalf("ok = %v, context %+v", ok, c)
			}
			if ok && c.Traceparent() != tt.want {
				t.Errorf("got %s, want %s", c.Traceparent(), tt.want)
			}
		})
	}
	if got := (telemetry.SpanContext{}).Traceparent(); got != "00-00000000000000000000000000000000-0000000000000000-00" {
		t.Errorf("zero value: %s", got)
	}
}

func TestTracestate(t *testing.T) {
	many := make([]string, 33)
	for i := range many {
		many[i] = fmt.Sprintf("k%d=v", i)
	}
	tests := []struct{ name, in, want string }{
		{"one", "a=b", "a=b"},
		{"two", "a=b,c=d e", "a=b,c=d e"},
		{"blanks", " a=b ,\tc=d\t", "a=b,c=d"},
		{"empty members", ",a=b,,c=d,", "a=b,c=d"},
		{"tenant", "1t@sys=v", "1t@sys=v"},
		{"duplicate", "a=1,b=2,a=3", ""},
		{"upper-case key", "A=1", ""},
		{"no value", "a=", ""},
		{"no key", "=a", ""},
		{"equals in value", "a=b=c", ""},
		{"blank before equals", "a =b", ""},
		{"not ascii", "a=ü", ""},
		{"thirty-two", strings.Join(many[:32], ","), strings.Join(many[:32], ",")},
		{"thirty-three", strings.Join(many, ","), ""},
		{"long value", "a=" + strings.Repeat("x", 257), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, ok := telemetry.ParseTrace(parent, tt.in)
			if !ok || c.State != tt.want {
				t.Errorf("State = %q, ok %v, want %q", c.State, ok, tt.want)
			}
		})
	}
}

func TestTraceBin(t *testing.T) {
	c, _ := telemetry.ParseTrace(parent, "")
	bin := string(c.AppendTraceBin(nil))
	if len(bin) != telemetry.TraceBinLen {
		t.Fatalf("%d bytes", len(bin))
	}
	tests := []struct {
		name, in string
		ok       bool
		flags    byte
	}{
		{"round trip", bin, true, 1},
		{"not sampled", bin[:28] + "\x00", true, 0},
		{"without flags", bin[:27], true, 0},
		{"more fields", bin + "\x03x", true, 1},
		{"other version", "\x01" + bin[1:], false, 0},
		{"short", bin[:26], false, 0},
		{"field numbers", bin[:18] + "\x07" + bin[19:], false, 0},
		{"zero", strings.Repeat("\x00", 18) + "\x01" + bin[19:], false, 0},
		{"empty", "", false, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := telemetry.ParseTraceBin(tt.in)
			want := c
			want.Flags = tt.flags
			if !tt.ok {
				want = telemetry.SpanContext{}
			}
			if ok != tt.ok || got != want {
				t.Errorf("got %+v, %v, want %+v", got, ok, want)
			}
		})
	}
	other := strings.Replace(parent, "b7", "c7", 1)
	if got, _ := telemetry.ParseGRPC(bin, other, ""); got != c {
		t.Errorf("grpc-trace-bin is not preferred: %s", got.Traceparent())
	}
	if got, _ := telemetry.ParseGRPC("bad", other, "a=b"); got.Traceparent() != other || got.State != "a=b" {
		t.Errorf("traceparent is not the second choice: %s %s", got.Traceparent(), got.State)
	}
}

func TestBaggage(t *testing.T) {
	tests := []struct {
		name, in, want string // want "" is valid; else what the error names
	}{
		{"empty", "", ""},
		{"one", "user=alice", ""},
		{"several with properties", "a=1;p;q=2 ; r = %20 , b=x%41y,c=", ""},
		{"equals in value", "a=b=c", ""},
		{"no equals", "user", "no '='"},
		{"empty key", "=v", "invalid key"},
		{"blank in key", "a b=v", "invalid key"},
		{"blank in value", "a=v w", "invalid value"},
		{"quote in value", `a="v"`, "invalid value"},
		{"half percent", "a=%4", "invalid value"},
		{"bad property", "a=b;c d", "invalid property"},
		{"empty member", "a=b,,c=d", "no '='"},
		{"too long", "a=" + strings.Repeat("x", 8192), "8194 bytes"},
		{"too many", strings.TrimSuffix(strings.Repeat("a=b,", 65), ","), "more than 64"},
		{"not ascii", "a=ü", "invalid value"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := telemetry.CheckBaggage(tt.in)
			if tt.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), "invalid baggage header: ") || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("err = %v", err)
			}
			if fault.Of(err) != fault.Invalid {
				t.Errorf("code %v", fault.Of(err))
			}
		})
	}
}

func TestParseBaggage(t *testing.T) {
	got, err := telemetry.ParseBaggage(" a = x%20y ;p=1,b=2,a=3%FF")
	want := []telemetry.BaggageMember{{Key: "a", Value: "3\uFFFD"}, {Key: "b", Value: "2"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	members := []telemetry.BaggageMember{{Key: "k", Value: "ü,%; x", Properties: "p=1"}}
	again, err := telemetry.ParseBaggage(telemetry.FormatBaggage(members))
	if diff := cmp.Diff(members, again); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
}

func TestPropagationDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 64)
	if n := testing.AllocsPerRun(100, func() {
		c, ok := telemetry.ParseTrace(parent, "a=b,c=d")
		if !ok || telemetry.CheckBaggage("user=alice,tenant=acme;p=1") != nil {
			t.Error("refused")
		}
		buf = c.AppendTraceparent(buf[:0])
		buf = c.AppendTraceBin(buf[:0])
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzTrace compares with OpenTelemetry's own propagator, which other parties of a trace use.
func FuzzTrace(f *testing.F) {
	f.Add(parent, "a=b,c=d")
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03", " a=b , ,c=d")
	f.Add("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff-more", "1t@s=v")
	f.Add("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1,a=2")
	f.Fuzz(func(t *testing.T, traceparent, tracestate string) {
		carrier := propagation.MapCarrier{"traceparent": traceparent, "tracestate": tracestate}
		want := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
		got, ok := telemetry.ParseTrace(traceparent, tracestate)
		if len(traceparent) > 55 && ok != want.IsValid() && traceparent[55] != '-' {
			return // OpenTelemetry cuts at dashes and so accepts what W3C's length rule refuses
		}
		if ok != want.IsValid() {
			t.Fatalf("%q: ok = %v, OpenTelemetry says %v", traceparent, ok, want.IsValid())
		}
		if !ok {
			return
		}
		if got.TraceID != want.TraceID() || got.SpanID != want.SpanID() || got.Flags != byte(want.TraceFlags()) {
			t.Errorf("%q: got %s, want %v", traceparent, got.Traceparent(), want)
		}
		if got.State != want.TraceState().String() {
			t.Errorf("%q: state %q, OpenTelemetry says %q", tracestate, got.State, want.TraceState().String())
		}
		again, ok := telemetry.ParseTrace(got.Traceparent(), got.State)
		if !ok || again != got {
			t.Errorf("not stable: %+v, then %+v", got, again)
		}
	})
}

func FuzzTraceBin(f *testing.F) {
	c, _ := telemetry.ParseTrace(parent, "")
	f.Add(c.AppendTraceBin(nil))
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ok := telemetry.ParseTraceBin(string(b))
		if ok != c.Valid() {
			t.Fatalf("ok %v of %+v", ok, c)
		}
		if !ok {
			return
		}
		if again, _ := telemetry.ParseTraceBin(string(c.AppendTraceBin(nil))); again != c {
			t.Errorf("not stable: %+v, then %+v", c, again)
		}
	})
}

// FuzzBaggage compares with OpenTelemetry's parser.
func FuzzBaggage(f *testing.F) {
	f.Add("a=1;p;q=2,b=x%41y,c=")
	f.Add("user")
	f.Add(" a = b ; c = d ")
	f.Add("a=%zz")
	f.Fuzz(func(t *testing.T, header string) {
		want, wantErr := otelbaggage.Parse(header)
		got, err := telemetry.ParseBaggage(header)
		if (err == nil) != (wantErr == nil) {
			if strings.Count(header, ",") >= 64 {
				return // repeated keys count here as members, there once
			}
			t.Fatalf("%q: %v, OpenTelemetry says %v", header, err, wantErr)
		}
		if err != nil {
			return
		}
		if len(got) != want.Len() {
			t.Fatalf("%q: %d members, OpenTelemetry has %d", header, len(got), want.Len())
		}
		for _, m := range got {
			if w := want.Member(m.Key).Value(); w != m.Value && !strings.Contains(w, "\uFFFD") {
				t.Errorf("%q: %s = %q, OpenTelemetry says %q", header, m.Key, m.Value, w)
			}
		}
		if again, err := telemetry.ParseBaggage(telemetry.FormatBaggage(got)); err == nil {
			if diff := cmp.Diff(got, again); diff != "" {
				t.Errorf("not stable: %s", diff)
			}
		}
	})
}
