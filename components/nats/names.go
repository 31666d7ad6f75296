package nats

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"strings"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/fault"
)

// Subjects, stream names and header lines each allow less than keys, topics and metadata do.
// Every encoding here is reversible and leaves plain ASCII names readable, so that the
// product's own tools show something a person recognises.

const hexDigits = "0123456789ABCDEF"

// plain tells which bytes stand for themselves in a subject. The dot separates tokens, the
// star and the greater-than sign are wildcards, the equals sign escapes.
func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '/'
}

// appendToken writes s as one subject token: other bytes as =XX, an empty s as a lone =.
func appendToken(dst []byte, s string) []byte {
	if s == "" {
		return append(dst, '=')
	}
	for i := range len(s) {
		if c := s[i]; plain(c) {
			dst = append(dst, c)
		} else {
			dst = append(dst, '=', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return dst
}

func parseToken(t string) (string, error) {
	if t == "=" {
		return "", nil
	}
	if !strings.Contains(t, "=") && t != "" {
		return t, nil
	}
	return unescape(t, '=')
}

func unescape(s string, mark byte) (string, error) {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != mark {
			out = append(out, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errors.New("an escape is cut short")
		}
		hi, lo := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
		if hi < 0 || lo < 0 {
			return "", errors.New("an escape is not hexadecimal")
		}
		out = append(out, byte(hi<<4|lo))
		i += 2
	}
	if len(out) == 0 {
		return "", errors.New("a token is empty")
	}
	return string(out), nil
}

// The longest encoded key or topic in bytes. A protocol line, which may hold one twice with
// the stream's name, must stay below the server's 4096.
const maxEncoded = 3400

// appendKey writes a key as subject tokens. The separator || of scoped keys becomes a dot, so
// that all keys of one app can be named by a wildcard.
func appendKey(dst []byte, op fault.Op, key string) ([]byte, error) {
	start := len(dst)
	for rest, more := key, true; more; {
		var part string
		part, rest, more = strings.Cut(rest, "||")
		if len(dst) > start {
			dst = append(dst, '.')
		}
		dst = appendToken(dst, part)
	}
	if len(dst)-start > maxEncoded {
		return nil, fault.New(op, fault.Invalid, "key of %d bytes is too long: encoded it takes %d bytes, at most %d fit; use a shorter key", len(key), len(dst)-start, maxEncoded).With(fault.IllegalKey)
	}
	return dst, nil
}

// keyFilter is the narrowest filter of subjects, without the bucket's own prefix, that all keys
// with this prefix match; others may match too.
func keyFilter(op fault.Op, prefix string) (string, error) {
	whole := -1             // where the last part begins
	for rest := prefix; ; { // separators are found from the left: of three bars the first two are one
		i := strings.Index(rest, "||")
		if i < 0 {
			break
		}
		rest = rest[i+2:]
		whole = len(prefix) - len(rest)
	}
	if whole < 0 {
		return ">", nil
	}
	filter, err := appendKey(nil, op, prefix[:whole-2])
	return string(filter) + ".>", err
}

// parseKey is the inverse of appendKey.
func parseKey(subject string) (string, error) {
	tokens := strings.Split(subject, ".")
	for i, t := range tokens {
		s, err := parseToken(t)
		if err != nil {
			return "", err
		}
		tokens[i] = s
	}
	return strings.Join(tokens, "||"), nil
}

// topicToken writes a topic as one subject token.
func topicToken(op fault.Op, topic string) (string, error) {
	t := appendToken(nil, topic)
	if len(t) > maxEncoded {
		return "", fault.New(op, fault.Invalid, "topic of %d bytes is too long: encoded it takes %d bytes, at most %d fit", len(topic), len(t), maxEncoded)
	}
	return string(t), nil
}

// objectName turns any name into one a stream or consumer may have: letters, digits, - and _.
// A name that has to be changed gets a hash of the original, so that two never meet.
func objectName(name string) string {
	const longest = 48
	clean := []byte(name)
	for i, c := range clean {
		if !plain(c) || c == '/' {
			clean[i] = '_'
		}
	}
	if string(clean) == name && name != "" && len(name) <= longest {
		return name
	}
	if len(clean) > longest-17 {
		clean = clean[:longest-17]
	}
	return string(clean) + "_" + shortHash(name)
}

// shortHash is 16 characters that differ for different parts.
func shortHash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte{byte(len(p) >> 24), byte(len(p) >> 16), byte(len(p) >> 8), byte(len(p))})
		h.Write([]byte(p))
	}
	return strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil)[:10]))
}

// Headers of messages. Metadata travels as one header per pair, behind a prefix: a publisher
// must not reach the headers which mean something to the server.
const (
	headerKey    = "Mecha-Key"
	headerID     = "Mecha-Id"
	headerMeta   = "Mecha-Meta-"
	headerExpiry = "Mecha-Expires"
)

// headerSafe tells which bytes stand for themselves in a header: printable ASCII save the
// escape character, and in names save the colon. Blanks are escaped at the ends of values,
// where parsers trim them; in names always.
func headerText(s string, name bool) string {
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = headerByte(s, i, name)
	}
	if clean {
		return s
	}
	out := make([]byte, 0, len(s)+16)
	for i := range len(s) {
		if headerByte(s, i, name) {
			out = append(out, s[i])
		} else {
			out = append(out, '%', hexDigits[s[i]>>4], hexDigits[s[i]&15])
		}
	}
	return string(out)
}

func headerByte(s string, i int, name bool) bool {
	switch c := s[i]; {
	case c == ' ':
		return !name && i > 0 && i < len(s)-1
	case c == ':':
		return !name
	default:
		return c > ' ' && c < 0x7f && c != '%'
	}
}

// headerValue undoes headerText. Text of foreign publishers that is no escape stays as it is.
func headerValue(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	if out, err := unescape(s, '%'); err == nil {
		return out
	}
	return s
}

func setMetadata(h natsgo.Header, metadata map[string]string) {
	for k, v := range metadata {
		h[headerMeta+headerText(k, true)] = []string{headerText(v, false)}
	}
}

// metadataOf collects the metadata, nil when there is none. Headers of foreign publishers are
// metadata too, save those of the server.
func metadataOf(h natsgo.Header) map[string]string {
	var m map[string]string
	for k, v := range h {
		name, ours := strings.CutPrefix(k, headerMeta)
		if !ours && (strings.HasPrefix(k, "Nats-") || k == headerKey || k == headerID) || len(v) == 0 {
			continue
		}
		if m == nil {
			m = make(map[string]string, len(h))
		}
		if ours {
			m[headerValue(name)] = headerValue(v[0])
		} else if _, taken := m[k]; !taken {
			m[k] = v[0]
		}
	}
	return m
}
