package h1

import (
	"net/http" // the table of reason phrases, nothing else
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/runtime/call"
)

// Byte classes of RFC 9110 (token, field-value) and RFC 3986 (host), as tables.
var (
	tokenByte = table("!#$%&'*+-.^_`|~" + digits + letters)
	hostByte  = table("-._~!$&'()*+,;=:[]%" + digits + letters)
	valueByte = func() (t [256]bool) {
		for i := range t {
			t[i] = i >= ' ' && i != 0x7f || i == '\t'
		}
		return t
	}()
)

const (
	digits  = "0123456789"
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

func table(members string) (t [256]bool) {
	for i := range len(members) {
		t[members[i]] = true
	}
	return t
}

func all(s string, t *[256]bool) bool {
	for i := range len(s) {
		if !t[s[i]] {
			return false
		}
	}
	return true
}

func validToken(s string) bool { return s != "" && all(s, &tokenByte) }
func validHost(s string) bool  { return all(s, &hostByte) }

// same compares header names and tokens; the length test settles nearly every case.
func same(a, b string) bool { return len(a) == len(b) && strings.EqualFold(a, b) }

// trim removes the optional white space around a value.
func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// listed reports whether a comma-separated list has the token.
func listed(list, token string) bool {
	for list != "" {
		var item string
		item, list, _ = strings.Cut(list, ",")
		if same(trim(item), token) {
			return true
		}
	}
	return false
}

// HopByHop reports whether a field belongs to one connection and must not be carried on:
// the fields of RFC 9110 section 7.6.1 and their historical companions. Fields that a
// Connection field names are hop-by-hop too; EndToEnd knows those.
func HopByHop(name string) bool {
	switch len(name) {
	case 2:
		return same(name, "TE")
	case 7:
		return same(name, "Trailer") || same(name, "Upgrade")
	case 10:
		return same(name, "Connection") || same(name, "Keep-Alive")
	case 14:
		return same(name, "HTTP2-Settings")
	case 16:
		return same(name, "Proxy-Connection")
	case 17:
		return same(name, "Transfer-Encoding")
	}
	return false
}

// EndToEnd appends to dst the fields of src that a proxy passes on: no hop-by-hop field, none
// that a Connection field names, no Content-Length (it is written anew with the body).
func EndToEnd(dst, src call.Fields) call.Fields {
	named := ""
	for i := range src {
		if same(src[i].Name, "Connection") {
			named += "," + src[i].Value
		}
	}
	if dst == nil {
		dst = make(call.Fields, 0, len(src))
	}
	for _, f := range src {
		if HopByHop(f.Name) || same(f.Name, "Content-Length") || named != "" && listed(named, f.Name) {
			continue
		}
		dst = append(dst, f)
	}
	return dst
}

// place tells in which message fields are written.
type place uint8

const (
	inRequest place = 1 << iota
	inResponse
	withUpgrade // the message is a 101, or asks for one: Upgrade is written
)

// owned reports whether a field is written by this package itself (framing, connection,
// Date, Host) and so is dropped when a caller supplies it.
func owned(name string, in place) bool {
	switch len(name) {
	case 4:
		return in&inResponse != 0 && same(name, "Date") || in&inRequest != 0 && same(name, "Host")
	case 6:
		return same(name, "Expect")
	case 7:
		if in&withUpgrade != 0 && same(name, "Upgrade") {
			return false
		}
	case 14:
		if same(name, "Content-Length") {
			return true
		}
	}
	return HopByHop(name)
}

// appendFields writes fields, dropping owned ones and names that are not tokens.
func appendFields(b []byte, fields call.Fields, in place) []byte {
	for i := range fields {
		if owned(fields[i].Name, in) {
			continue
		}
		b = appendField(b, fields[i].Name, fields[i].Value)
	}
	return b
}

// appendField writes one line in canonical case ("content-type" as "Content-Type"). Bytes
// that could end the line or are otherwise illegal in a value become spaces, so that no value
// can inject a field; a name that is not a token drops the line.
func appendField(b []byte, name, value string) []byte {
	start := len(b)
	upper := true
	for i := range len(name) {
		ch := name[i]
		switch {
		case !tokenByte[ch]:
			return b[:start]
		case upper && 'a' <= ch && ch <= 'z':
			ch -= 'a' - 'A'
		case !upper && 'A' <= ch && ch <= 'Z':
			ch += 'a' - 'A'
		}
		b = append(b, ch)
		upper = ch == '-'
	}
	if name == "" {
		return b
	}
	b = append(b, ':', ' ')
	b = appendValue(b, value)
	return append(b, '\r', '\n')
}

func appendValue(b []byte, v string) []byte {
	if all(v, &valueByte) {
		return append(b, v...)
	}
	for i := range len(v) {
		if ch := v[i]; valueByte[ch] {
			b = append(b, ch)
		} else {
			b = append(b, ' ')
		}
	}
	return b
}

func appendStatusLine(b []byte, status int) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	return append(b, '\r', '\n')
}

func appendLength(b []byte, n int64) []byte {
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, '\r', '\n')
}

// noBody reports whether a response never has a body: to HEAD, 1xx, 204, 304.
func noBody(method string, status int) bool {
	return method == "HEAD" || status < 200 || status == 204 || status == 304
}

// dateLine remembers the Date line of the current second.
type dateLine struct{ p atomic.Pointer[stamp] }

type stamp struct {
	second int64
	line   string
}

func (d *dateLine) append(b []byte) []byte {
	now := time.Now()
	s := d.p.Load()
	if s == nil || s.second != now.Unix() {
		s = &stamp{now.Unix(), now.UTC().Format("Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n")}
		d.p.Store(s)
	}
	return append(b, s.line...)
}
