package h1

import (
	"net/netip"
	"strings"

	"github.com/mecha-project/mecha/runtime/call"
)

// refusal is why a message is not acceptable, as the status and words a server answers with.
type refusal struct {
	status int
	reason string // may be empty: the status says it all
}

func (r *refusal) Error() string { return r.reason }

func bad(reason string) *refusal { return &refusal{400, reason} }

// maxFields bounds the fields of one head or trailer: the slice costs more than the bytes.
const maxFields = 1000

// framing is what the fields of a head say about its body and its connection.
type framing struct {
	length     int64 // of Content-Length; -1 when absent
	chunked    bool
	hosts      int
	host       string
	closes     bool // Connection: close
	keeps      bool // Connection: keep-alive
	upgrades   bool // Connection: upgrade
	upgrade    string
	expect     bool // Expect: 100-continue
	expectElse bool // any other expectation
	both       bool // Transfer-Encoding beside Content-Length
}

// parseFields appends the fields of text, lines ending with CR LF, to dst and collects what
// they say about framing. A trailer section passes a nil fr.
func parseFields(dst call.Fields, text string, fr *framing) (call.Fields, *refusal) {
	for text != "" {
		i := strings.IndexByte(text, '\n')
		if i < 1 || text[i-1] != '\r' {
			return dst, bad(errBareLF.Error())
		}
		line := text[:i-1]
		text = text[i+1:]
		colon := strings.IndexByte(line, ':')
		if colon < 0 {
			return dst, bad("header line without a colon")
		}
		name, value := line[:colon], trim(line[colon+1:])
		if !validToken(name) {
			return dst, badName(line)
		}
		if !all(value, &valueByte) {
			return dst, bad("control byte in a header value")
		}
		if len(dst) == maxFields {
			return dst, &refusal{431, "more than 1000 header fields"}
		}
		dst = append(dst, call.Field{Name: name, Value: value})
		if fr == nil {
			continue
		}
		if r := fr.note(name, value); r != nil {
			return dst, r
		}
	}
	return dst, nil
}

func badName(line string) *refusal {
	if line[0] == ' ' || line[0] == '\t' {
		return bad("folded header line")
	}
	return bad("invalid header name (empty, or with a space or another byte that is not allowed)")
}

// note takes one field into account.
func (fr *framing) note(name, value string) *refusal {
	switch len(name) {
	case 4:
		if same(name, "Host") {
			fr.hosts++
			fr.host = value
		}
	case 6:
		if same(name, "Expect") {
			fr.expect = same(value, "100-continue")
			fr.expectElse = !fr.expect
		}
	case 7:
		if same(name, "Upgrade") {
			fr.upgrade = value
		}
	case 10:
		if same(name, "Connection") {
			fr.closes = fr.closes || listed(value, "close")
			fr.keeps = fr.keeps || listed(value, "keep-alive")
			fr.upgrades = fr.upgrades || listed(value, "upgrade")
		}
	case 14:
		if same(name, "Content-Length") {
			return fr.noteLength(value)
		}
	case 17:
		if same(name, "Transfer-Encoding") {
			if fr.chunked || !same(value, "chunked") {
				return bad("Transfer-Encoding must be exactly chunked, once")
			}
			fr.chunked = true
			fr.both = fr.length >= 0
		}
	}
	return nil
}

func (fr *framing) noteLength(value string) *refusal {
	n, ok := parseLength(value)
	switch {
	case !ok:
		return bad("invalid Content-Length")
	case fr.length >= 0 && fr.length != n:
		return bad("differing Content-Length fields")
	}
	fr.length = n
	fr.both = fr.chunked
	return nil
}

func parseLength(s string) (int64, bool) {
	if s == "" || len(s) > 18 { // 18 digits are an exabyte and cannot overflow
		return 0, false
	}
	var n int64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}

// requestHead is a parsed request line and its fields. It is reused; strings are not.
type requestHead struct {
	framing
	method, target string
	path, query    string // of the target, still escaped; query without '?'
	authority      string // of an absolute or authority-form target; it outranks Host
	minor          int    // of HTTP/1.x
	fields         call.Fields
}

// parse reads a whole head, from the request line to the CR LF of the last field.
func (h *requestHead) parse(text string) *refusal {
	*h = requestHead{fields: h.fields[:0], framing: framing{length: -1}}
	line, rest, ok := strings.Cut(text, "\r\n")
	if !ok {
		return bad("no request line")
	}
	if r := h.parseLine(line); r != nil {
		return r
	}
	var r *refusal
	if h.fields, r = parseFields(h.fields, rest, &h.framing); r != nil {
		return r
	}
	return h.check()
}

func (h *requestHead) parseLine(line string) *refusal {
	method, rest, ok1 := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok1 || !ok2 || !validToken(method) {
		return bad("malformed request line; want METHOD TARGET HTTP/1.1")
	}
	switch {
	case version == "HTTP/1.1":
		h.minor = 1
	case version == "HTTP/1.0":
	case len(version) == 8 && strings.HasPrefix(version, "HTTP/") && version[6] == '.' && isDigit(version[5]) && isDigit(version[7]):
		return &refusal{505, "only HTTP/1.0 and HTTP/1.1 are spoken here"}
	default:
		return bad("malformed HTTP version")
	}
	h.method, h.target = intern(method), target
	return h.splitTarget()
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isHex(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// splitTarget accepts the four forms of RFC 9112 section 3.2.
func (h *requestHead) splitTarget() *refusal {
	t := h.target
	for i := range len(t) {
		if t[i] <= ' ' || t[i] == 0x7f {
			return bad("control byte in the request target")
		}
	}
	switch {
	case strings.HasPrefix(t, "/"):
	case t == "*" && h.method == "OPTIONS":
		h.path = t
		return nil
	case h.method == "CONNECT":
		return h.takeAuthority(t)
	default:
		scheme, rest, ok := strings.Cut(t, "://")
		if !ok || !same(scheme, "http") && !same(scheme, "https") {
			return bad("malformed request target; want a path that begins with /")
		}
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		if r := h.takeAuthority(rest[:end]); r != nil {
			return r
		}
		t = rest[end:]
	}
	h.path, h.query, _ = strings.Cut(t, "?")
	for i := 0; i < len(h.path); i++ {
		if h.path[i] == '%' && (i+2 >= len(h.path) || !isHex(h.path[i+1]) || !isHex(h.path[i+2])) {
			return &refusal{status: 400}
		}
	}
	if h.path == "" {
		h.path = "/"
	}
	return nil
}

// takeAuthority accepts host, host:port and [IPv6]:port, without user information.
func (h *requestHead) takeAuthority(a string) *refusal {
	malformed := bad("malformed authority in the request target; want host or host:port")
	name, port := a, ""
	if i := strings.LastIndexByte(a, ':'); i >= 0 && !strings.HasSuffix(a, "]") {
		name, port = a[:i], a[i+1:]
	}
	if !allDigits(port) {
		return malformed
	}
	if inner, ok := strings.CutPrefix(name, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if ip, err := netip.ParseAddr(inner); !ok || err != nil || !ip.Is6() || ip.Zone() != "" {
			return malformed
		}
	} else if name == "" || !all(name, &nameByte) {
		return malformed
	}
	h.authority = a
	return nil
}

var nameByte = table("-._~" + digits + letters)

func allDigits(s string) bool {
	for i := range len(s) {
		if !isDigit(s[i]) {
			return false
		}
	}
	return true
}

// check applies the rules that need the whole head.
func (h *requestHead) check() *refusal {
	switch {
	case h.hosts == 0 && h.minor >= 1:
		return bad("missing Host header")
	case h.hosts > 1:
		return bad("more than one Host header")
	case !validHost(h.host):
		return bad("malformed Host header")
	case h.both:
		return bad("both Transfer-Encoding and Content-Length")
	case h.chunked && h.minor == 0:
		return bad("Transfer-Encoding in an HTTP/1.0 request")
	case h.expectElse:
		return &refusal{417, "the only expectation met here is 100-continue"}
	}
	if h.minor == 0 {
		h.expect = false
	}
	if h.authority != "" {
		h.host = h.authority
	}
	return nil
}

// intern returns a shared string for the known verbs, so that a kept method does not keep
// the whole head.
func intern(m string) string {
	switch m {
	case "GET":
		return "GET"
	case "POST":
		return "POST"
	case "PUT":
		return "PUT"
	case "DELETE":
		return "DELETE"
	case "HEAD":
		return "HEAD"
	case "OPTIONS":
		return "OPTIONS"
	case "PATCH":
		return "PATCH"
	case "CONNECT":
		return "CONNECT"
	case "TRACE":
		return "TRACE"
	}
	return m
}

// responseHead is a parsed status line and its fields.
type responseHead struct {
	framing
	status int
	minor  int
	fields call.Fields
}

func (h *responseHead) parse(text string) *refusal {
	*h = responseHead{fields: h.fields[:0], framing: framing{length: -1}}
	line, rest, ok := strings.Cut(text, "\r\n")
	// "HTTP/1.1 200" and an optional reason, which is ignored.
	if !ok || len(line) < 12 || !strings.HasPrefix(line, "HTTP/1.") || line[8] != ' ' ||
		len(line) > 12 && line[12] != ' ' || !allDigits(line[9:12]) || line[9] == '0' || !all(line, &valueByte) {
		return bad("malformed status line; want HTTP/1.1 and three digits")
	}
	if line[7] != '0' && line[7] != '1' {
		return bad("unknown HTTP version")
	}
	h.minor = int(line[7] - '0')
	h.status = int(line[9]-'0')*100 + int(line[10]-'0')*10 + int(line[11]-'0')
	var r *refusal
	h.fields, r = parseFields(h.fields, rest, &h.framing)
	return r
}
