package telemetry

import (
	"fmt"
	"strings"

	"github.com/mecha-project/mecha/components/fault"
)

// W3C's limits of baggage.
const (
	maxBaggage        = 8192 // bytes
	maxBaggageMembers = 64
)

// ErrBaggage is the beginning of the text with which a malformed baggage header is refused, on
// HTTP (400) as on gRPC (InvalidArgument).
const ErrBaggage = "invalid baggage header: "

const opBaggage fault.Op = "telemetry.baggage"

// CheckBaggage reports what is wrong with the value of a baggage header, as an Invalid fault
// whose text begins with ErrBaggage. An empty header is right. Nothing is allocated unless
// something is wrong, and a right header is passed on as it came.
func CheckBaggage(header string) error {
	if header == "" {
		return nil
	}
	if len(header) > maxBaggage {
		return fault.New(opBaggage, fault.Invalid, ErrBaggage+"%d bytes, the limit is %d", len(header), maxBaggage)
	}
	n := 0
	for m := range strings.SplitSeq(header, ",") {
		if n++; n > maxBaggageMembers {
			return fault.New(opBaggage, fault.Invalid, ErrBaggage+"more than %d members", maxBaggageMembers)
		}
		if what := memberFault(m); what != "" {
			return fault.New(opBaggage, fault.Invalid, ErrBaggage+"%s in member %q; write key=value with percent-encoding", what, m)
		}
	}
	return nil
}

// memberFault names what is wrong with one member, or is empty.
func memberFault(m string) string {
	pair, props, more := strings.Cut(m, ";")
	key, value, ok := strings.Cut(pair, "=")
	if !ok {
		return "no '='"
	}
	if !token(strings.TrimSpace(key)) {
		return "invalid key"
	}
	if value = strings.TrimSpace(value); !baggageValue(value) || !percents(value) {
		return "invalid value"
	}
	for more {
		var p string
		p, props, more = strings.Cut(props, ";")
		if !property(p) {
			return "invalid property"
		}
	}
	return ""
}

// property checks key or key=value with blanks around either; an empty one is allowed.
func property(p string) bool {
	if p == "" {
		return true
	}
	key, value, has := strings.Cut(p, "=")
	if !token(strings.Trim(key, " \t")) {
		return false
	}
	value = strings.Trim(value, " \t")
	return !has || baggageValue(value) && percents(value)
}

// token checks RFC 7230's token, the form of keys.
func token(s string) bool {
	if s == "" {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			continue
		}
		if strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return true
}

// baggageValue checks for printable ASCII without blank, quote, comma, semicolon, backslash.
func baggageValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == ',' || c == ';' || c == '\\' {
			return false
		}
	}
	return true
}

// percents checks that every % is followed by two hexadecimal digits.
func percents(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			continue
		}
		if i+2 >= len(s) || !hexAny(s[i+1]) || !hexAny(s[i+2]) {
			return false
		}
		i += 2
	}
	return true
}

func hexAny(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// BaggageMember is one entry of a baggage header.
type BaggageMember struct {
	Key        string
	Value      string // decoded
	Properties string // as they came, without the first semicolon
}

// ParseBaggage checks and reads a baggage header. Of entries with the same key the last stands.
func ParseBaggage(header string) ([]BaggageMember, error) {
	if err := CheckBaggage(header); err != nil || header == "" {
		return nil, err
	}
	var out []BaggageMember
next:
	for m := range strings.SplitSeq(header, ",") {
		pair, props, _ := strings.Cut(m, ";")
		key, value, _ := strings.Cut(pair, "=")
		b := BaggageMember{Key: strings.TrimSpace(key), Value: unescape(strings.TrimSpace(value)), Properties: props}
		for i := range out {
			if out[i].Key == b.Key {
				out[i] = b
				continue next
			}
		}
		out = append(out, b)
	}
	return out, nil
}

// unescape decodes percent-encoding that was checked. Bytes that are no UTF-8 become U+FFFD.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' {
			var c byte
			_, _ = fmt.Sscanf(s[i+1:i+3], "%02x", &c)
			b = append(b, c)
			i += 2
			continue
		}
		b = append(b, s[i])
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}

// FormatBaggage is the header's value for members, encoded. It is the inverse of ParseBaggage.
func FormatBaggage(members []BaggageMember) string {
	var b strings.Builder
	for i, m := range members {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(m.Key)
		b.WriteByte('=')
		for j := 0; j < len(m.Value); j++ {
			if c := m.Value[j]; c != '%' && baggageValue(m.Value[j:j+1]) {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
		if m.Properties != "" {
			b.WriteString(";" + m.Properties)
		}
	}
	return b.String()
}
