package telemetry

import (
	"encoding/binary"
	"strings"
)

// SpanContext is a span's identity as it travels: W3C trace context. The zero value is no span.
type SpanContext struct {
	TraceID [16]byte
	SpanID  [8]byte
	Flags   byte   // Sampled and Random; other bits are not passed on
	State   string // tracestate, valid or empty
}

// The trace flags that are passed on.
const (
	Sampled byte = 1 // the span is recorded
	Random  byte = 2 // the trace id is random
)

// Valid reports whether c names a span.
func (c SpanContext) Valid() bool { return c.TraceID != [16]byte{} && c.SpanID != [8]byte{} }

// Sampled reports whether the span is recorded.
func (c SpanContext) Sampled() bool { return c.Flags&Sampled != 0 }

const traceparentLen = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")

// AppendTraceparent appends the traceparent header's value. Of a span context that is not valid
// it is all zeros, which is what Dapr sends when tracing is not configured.
func (c SpanContext) AppendTraceparent(b []byte) []byte {
	b = append(b, "00-"...)
	b = appendHex(b, c.TraceID[:])
	b = append(b, '-')
	b = appendHex(b, c.SpanID[:])
	b = append(b, '-')
	return appendHex(b, []byte{c.Flags & (Sampled | Random)})
}

// Traceparent is the traceparent header's value. See AppendTraceparent.
func (c SpanContext) Traceparent() string {
	var b [traceparentLen]byte
	return string(c.AppendTraceparent(b[:0]))
}

func appendHex(b, src []byte) []byte {
	const digits = "0123456789abcdef"
	for _, c := range src {
		b = append(b, digits[c>>4], digits[c&15])
	}
	return b
}

// ParseTrace reads the values of the headers traceparent and tracestate. It reports false when
// traceparent is absent or wrong: the caller then starts a new trace. A wrong tracestate is
// dropped alone, as W3C asks.
func ParseTrace(traceparent, tracestate string) (SpanContext, bool) {
	c, ok := parseTraceparent(traceparent)
	if ok && tracestate != "" {
		c.State = cleanTracestate(tracestate)
	}
	return c, ok
}

func parseTraceparent(s string) (c SpanContext, ok bool) {
	// version "-" trace id "-" span id "-" flags; versions above 0 may append more.
	if len(s) < traceparentLen || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return SpanContext{}, false
	}
	var version, flags [1]byte
	if !fromHex(version[:], s[:2]) || !fromHex(c.TraceID[:], s[3:35]) ||
		!fromHex(c.SpanID[:], s[36:52]) || !fromHex(flags[:], s[53:55]) {
		return SpanContext{}, false
	}
	switch {
	case version[0] == 0xff:
		return SpanContext{}, false
	case version[0] == 0 && (len(s) > traceparentLen || flags[0] > Sampled|Random):
		return SpanContext{}, false
	case len(s) > traceparentLen && s[traceparentLen] != '-':
		return SpanContext{}, false
	}
	c.Flags = flags[0] & (Sampled | Random)
	return c, c.Valid()
}

// fromHex decodes lower-case hexadecimal text of twice dst's length.
func fromHex(dst []byte, s string) bool {
	for i := range dst {
		hi, ok1 := hexDigit(s[2*i])
		lo, ok2 := hexDigit(s[2*i+1])
		if !ok1 || !ok2 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// maxStateMembers is W3C's limit of tracestate entries.
const maxStateMembers = 32

// cleanTracestate returns s if it is a valid tracestate without needless blanks and commas, a
// cleaned copy if it is valid with them, and "" if it is not valid.
func cleanTracestate(s string) string {
	clean, n := true, 0
	for rest, more := s, true; more; {
		var m string
		m, rest, more = strings.Cut(rest, ",")
		if m == "" {
			clean = false
			continue
		}
		key, value, ok := stateMember(m)
		if n++; !ok || n > maxStateMembers || keyBefore(s[:len(s)-len(rest)-len(m)-sep(more)], key) {
			return ""
		}
		if len(key)+1+len(value) != len(m) {
			clean = false
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for m := range strings.SplitSeq(s, ",") {
		if m == "" {
			continue
		}
		key, value, _ := stateMember(m)
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(key + "=" + value)
	}
	return b.String()
}

// sep is the length of the comma after a member that has a successor.
func sep(more bool) int {
	if more {
		return 1
	}
	return 0
}

// keyBefore reports whether key occurs among the members in s.
func keyBefore(s, key string) bool {
	for m := range strings.SplitSeq(s, ",") {
		if k, _, ok := stateMember(m); ok && k == key {
			return true
		}
	}
	return false
}

// stateMember splits one entry of a tracestate into key and value, without blanks around them.
func stateMember(m string) (key, value string, ok bool) {
	key, value, ok = strings.Cut(m, "=")
	if !ok {
		return "", "", false
	}
	key, value = strings.TrimLeft(key, " \t"), strings.TrimRight(value, " \t")
	return key, value, stateKey(key) && stateValue(value)
}

// stateKey checks simple-key and tenant@system keys with their length limits.
func stateKey(k string) bool {
	tenant, system, multi := strings.Cut(k, "@")
	if !multi {
		return len(k) <= 256 && lower(k) && keyChars(k)
	}
	return len(tenant) <= 241 && len(system) <= 14 && tenant != "" &&
		(lower(tenant) || tenant[0] >= '0' && tenant[0] <= '9') && keyChars(tenant) && lower(system) && keyChars(system)
}

// lower reports whether s begins with a lower-case letter.
func lower(s string) bool { return s != "" && s[0] >= 'a' && s[0] <= 'z' }

func keyChars(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '*' || c == '/') {
			return false
		}
	}
	return true
}

func stateValue(v string) bool {
	if v == "" || len(v) > 256 || v[len(v)-1] == ' ' {
		return false
	}
	for i := 0; i < len(v); i++ {
		if c := v[i]; c < 0x20 || c > 0x7e || c == ',' || c == '=' {
			return false
		}
	}
	return true
}

// TraceBinLen is the length of a grpc-trace-bin value.
const TraceBinLen = 29

// AppendTraceBin appends the (unencoded) value of the gRPC metadata grpc-trace-bin: a version,
// then the trace id, the span id and the flags, each behind its field number.
func (c SpanContext) AppendTraceBin(b []byte) []byte {
	b = append(b, 0, 0)
	b = append(b, c.TraceID[:]...)
	b = append(b, 1)
	b = append(b, c.SpanID[:]...)
	return append(b, 2, c.Flags&Sampled)
}

// ParseTraceBin reads a grpc-trace-bin value. Trailing fields it does not know are ignored, and
// so is a missing flags field.
func ParseTraceBin(s string) (c SpanContext, ok bool) {
	if len(s) < TraceBinLen-2 || s[0] != 0 || s[1] != 0 || s[18] != 1 {
		return SpanContext{}, false
	}
	copy(c.TraceID[:], s[2:18])
	copy(c.SpanID[:], s[19:27])
	if len(s) >= TraceBinLen && s[27] == 2 {
		c.Flags = s[28] & Sampled
	}
	if !c.Valid() {
		return SpanContext{}, false
	}
	return c, true
}

// ParseGRPC reads the trace context of gRPC metadata: grpc-trace-bin if it is there and right,
// else traceparent with tracestate.
func ParseGRPC(bin, traceparent, tracestate string) (SpanContext, bool) {
	if c, ok := ParseTraceBin(bin); ok {
		return c, true
	}
	return ParseTrace(traceparent, tracestate)
}

// low64 is the half of the trace id that ratio sampling looks at.
func (c *SpanContext) low64() uint64 { return binary.BigEndian.Uint64(c.TraceID[8:]) }
