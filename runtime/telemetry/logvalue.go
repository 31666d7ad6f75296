package telemetry

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"time"
	"unicode/utf8"
)

// appendField renders one attribute.
func (h *handler) appendField(b []byte, key string, v slog.Value) []byte {
	if h.json {
		b = append(appendJSONString(b, key), ':')
		return appendJSONValue(b, v)
	}
	b = appendText(b, key)
	b = append(b, '=')
	return appendTextValue(b, v)
}

func appendTextValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10)
	case slog.KindFloat64:
		return strconv.AppendFloat(b, v.Float64(), 'g', -1, 64)
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool())
	}
	return appendText(b, valueText(v))
}

func appendJSONValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10)
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool())
	case slog.KindFloat64:
		if text, err := json.Marshal(v.Float64()); err == nil { // not for NaN and infinities
			return append(b, text...)
		}
	case slog.KindAny:
		if text, ok := composite(v.Any()); ok {
			return append(b, text...)
		}
	}
	return appendJSONString(b, valueText(v))
}

// valueText is the text of a value. A type that masks itself (LogValuer, Stringer, error,
// JSON marshaller) is always asked; see composite for the rest.
func valueText(v slog.Value) string {
	switch v.Kind() {
	case slog.KindString:
		return v.String()
	case slog.KindTime:
		return v.Time().Format(time.RFC3339Nano)
	case slog.KindDuration:
		return v.Duration().String()
	case slog.KindAny:
		switch x := v.Any().(type) {
		case nil:
			return "<nil>"
		case error:
			return safely(x.Error)
		case fmt.Stringer:
			return safely(x.String)
		case []byte:
			return string(x)
		}
		if text, ok := composite(v.Any()); ok {
			return string(text)
		}
		return fmt.Sprintf("%T", v.Any()) // nothing printable (a function, a channel): name the type
	}
	return v.String()
}

// composite renders structures as JSON. The fmt package would print unexported fields and go
// past the methods with which a secret inside masks itself.
func composite(x any) ([]byte, bool) {
	switch x.(type) {
	case error, fmt.Stringer, []byte:
		return nil, false
	}
	text, err := json.Marshal(x)
	return text, err == nil
}

// safely calls a method that may panic, as one with a nil receiver may: a log line must not
// bring the process down.
func safely(text func() string) (s string) {
	defer func() {
		if r := recover(); r != nil {
			s = fmt.Sprintf("!PANIC: %v", r)
		}
	}()
	return text()
}

// appendText writes s as it is if it consists of letters, digits and -._/@^+ only, else quoted.
// These are the rules of the format that log pipelines made for Dapr expect.
func appendText(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		c := s[i]
		plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			c == '-' || c == '.' || c == '_' || c == '/' || c == '@' || c == '^' || c == '+'
		if !plain {
			return strconv.AppendQuote(b, s)
		}
	}
	return append(b, s...)
}

// appendJSONString writes s as a JSON string. Invalid UTF-8 becomes the replacement character.
func appendJSONString(b []byte, s string) []byte {
	const hexDigits = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			b = append(append(b, s[start:i]...), "\uFFFD"...)
			start = i + n
		}
		i += n
	}
	return append(append(b, s[start:]...), '"')
}
