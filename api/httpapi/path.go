package httpapi

import (
	"net/url"
	"strings"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// originForm turns an absolute-form or asterisk-form target into a path.
func originForm(target string) string {
	if i := strings.Index(target, "://"); i >= 0 {
		rest := target[i+3:]
		if j := strings.IndexAny(rest, "/?"); j >= 0 {
			if rest[j] == '?' {
				return "/" + rest[j:]
			}
			return rest[j:]
		}
		return "/"
	}
	return "/" + target
}

// collapse removes duplicate slashes.
func collapse(path string) string {
	if !strings.Contains(path, "//") {
		return path
	}
	b := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		if path[i] == '/' && len(b) > 0 && b[len(b)-1] == '/' {
			continue
		}
		b = append(b, path[i])
	}
	return string(b)
}

// validEscapes reports whether every '%' starts a valid escape.
func validEscapes(path string) bool {
	for i := strings.IndexByte(path, '%'); i >= 0; {
		if i+2 >= len(path) || !isHex(path[i+1]) || !isHex(path[i+2]) {
			return false
		}
		j := strings.IndexByte(path[i+3:], '%')
		if j < 0 {
			break
		}
		i += 3 + j
	}
	return true
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}

// unescape decodes percent-escapes once; s has valid ones.
func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	out, err := url.PathUnescape(s)
	if err != nil {
		return s
	}
	return out
}

// cleanMethod decodes the method part of an invocation path once, and cleans it.
func cleanMethod(escaped string) (string, error) { return call.CleanPath(unescape(escaped)) }

// appTarget builds the request target for the app from a decoded method path. The path is
// read as a URL once more, as Dapr does: an escape sequence in it is kept, a lone '%' is an
// error, and bytes a URL cannot hold are escaped.
func appTarget(path, query string) (string, error) {
	clean := true
	for i := 0; i < len(path); i++ {
		if c := path[i]; c <= ' ' || c >= 0x7f || c == '%' || c == '"' || c == '<' || c == '>' || c == '\\' || c == '^' || c == '`' || c == '{' || c == '|' || c == '}' || c == '[' || c == ']' {
			clean = false
			break
		}
	}
	if clean {
		if query == "" {
			return "/" + path, nil
		}
		return "/" + path + "?" + query, nil
	}
	u, err := url.Parse("/" + path)
	if err != nil {
		return "", fault.New("httpapi.appTarget", fault.Invalid, "invalid URL escape in method %q", path)
	}
	out := u.EscapedPath()
	if query != "" {
		out += "?" + query
	}
	return out, nil
}

// eachParam walks a raw query. As in Go's parser, parts with a raw ';' or a bad escape are
// left out.
func eachParam(query string, f func(k, v string) bool) {
	for query != "" {
		var part string
		part, query, _ = strings.Cut(query, "&")
		if part == "" || strings.Contains(part, ";") {
			continue
		}
		k, v, _ := strings.Cut(part, "=")
		k, err1 := url.QueryUnescape(k)
		v, err2 := url.QueryUnescape(v)
		if err1 != nil || err2 != nil {
			continue
		}
		if !f(k, v) {
			return
		}
	}
}

func queryParam(query, name string) (value string, ok bool) {
	if query == "" {
		return "", false
	}
	eachParam(query, func(k, v string) bool {
		if k == name {
			value, ok = v, true
		}
		return !ok
	})
	return value, ok
}
