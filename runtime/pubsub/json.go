package pubsub

import (
	"unicode/utf8"
)

// This file is the little JSON the hot path needs: check a value, copy it into an envelope,
// find members of an event. Values are never decoded into Go values and encoded again: that
// costs ten times as much and would change numbers.

// maxDepth bounds nesting, as encoding/json does.
const maxDepth = 10000

// validJSON reports whether src is exactly one JSON value, white space around it allowed.
func validJSON(src []byte) bool {
	end := scanValue(src, skipSpace(src, 0), 0)
	return end >= 0 && skipSpace(src, end) == len(src)
}

func skipSpace(s []byte, i int) int {
	for i < len(s) && (s[i] == ' ' || s[i] == '\n' || s[i] == '\t' || s[i] == '\r') {
		i++
	}
	return i
}

// scanValue returns the index after the value that starts at s[i], or -1.
func scanValue(s []byte, i, depth int) int {
	if i >= len(s) {
		return -1
	}
	switch c := s[i]; {
	case c == '"':
		return scanString(s, i)
	case depth >= maxDepth && (c == '{' || c == '['):
		return -1
	case c == '{':
		return scanMembers(s, i, depth, nil)
	case c == '[':
		return scanArray(s, i, depth)
	case c == 't':
		return scanWord(s, i, "true")
	case c == 'f':
		return scanWord(s, i, "false")
	case c == 'n':
		return scanWord(s, i, "null")
	case c == '-' || c >= '0' && c <= '9':
		return scanNumber(s, i)
	}
	return -1
}

func scanWord(s []byte, i int, word string) int {
	if end := i + len(word); end <= len(s) && string(s[i:end]) == word {
		return end
	}
	return -1
}

// plain marks bytes that a JSON string may hold as they are and that end no string.
var plain = func() (t [256]bool) {
	for c := 0x20; c < 256; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

func scanString(s []byte, i int) int {
	for i++; i < len(s); i++ {
		if plain[s[i]] {
			continue
		}
		switch s[i] {
		case '"':
			return i + 1
		case '\\':
			if i++; i >= len(s) {
				return -1
			}
			switch s[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if i+4 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) || !isHex(s[i+3]) || !isHex(s[i+4]) {
					return -1
				}
				i += 4
			default:
				return -1
			}
		default: // a control character
			return -1
		}
	}
	return -1
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func scanDigits(s []byte, i int) int {
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	return i
}

func scanNumber(s []byte, i int) int {
	if s[i] == '-' {
		i++
	}
	start := i
	i = scanDigits(s, i)
	if i == start || s[start] == '0' && i > start+1 {
		return -1
	}
	if i < len(s) && s[i] == '.' {
		start = i + 1
		if i = scanDigits(s, start); i == start {
			return -1
		}
	}
	if i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		i++
		if i < len(s) && (s[i] == '+' || s[i] == '-') {
			i++
		}
		start = i
		if i = scanDigits(s, start); i == start {
			return -1
		}
	}
	return i
}

func scanArray(s []byte, i, depth int) int {
	i = skipSpace(s, i+1)
	if i < len(s) && s[i] == ']' {
		return i + 1
	}
	for {
		if i = scanValue(s, i, depth+1); i < 0 {
			return -1
		}
		if i = skipSpace(s, i); i >= len(s) {
			return -1
		}
		switch s[i] {
		case ']':
			return i + 1
		case ',':
			i = skipSpace(s, i+1)
		default:
			return -1
		}
	}
}

// scanMembers scans the object that starts at s[i]. member, if set, is told each name (its
// quoted text) and value.
func scanMembers(s []byte, i, depth int, member func(name, value []byte)) int {
	i = skipSpace(s, i+1)
	if i < len(s) && s[i] == '}' {
		return i + 1
	}
	for {
		if i >= len(s) || s[i] != '"' {
			return -1
		}
		name := i
		if i = scanString(s, i); i < 0 {
			return -1
		}
		nameEnd := i
		if i = skipSpace(s, i); i >= len(s) || s[i] != ':' {
			return -1
		}
		value := skipSpace(s, i+1)
		if i = scanValue(s, value, depth+1); i < 0 {
			return -1
		}
		if member != nil {
			member(s[name:nameEnd], s[value:i])
		}
		if i = skipSpace(s, i); i >= len(s) {
			return -1
		}
		switch s[i] {
		case '}':
			return i + 1
		case ',':
			i = skipSpace(s, i+1)
		default:
			return -1
		}
	}
}

// scanObject reports whether src is exactly one JSON object, telling member its members.
func scanObject(src []byte, member func(name, value []byte)) bool {
	i := skipSpace(src, 0)
	if i >= len(src) || src[i] != '{' {
		return false
	}
	end := scanMembers(src, i, 0, member)
	return end >= 0 && skipSpace(src, end) == len(src)
}

// copied marks bytes of valid JSON that may be copied into an envelope without a look:
// ASCII but for white space, which may have to go, quotes, and what HTML escaping changes.
var copied = func() (t [256]bool) {
	for c := 0x21; c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
	}
	return t
}()

// appendJSON appends valid JSON without its white space and escaped for HTML. Names, order,
// numbers and escapes stay as they are; bytes that are no UTF-8 become U+FFFD.
func appendJSON(dst, src []byte) []byte {
	inString := false
	start := 0 // src[start:i] waits to be copied
	for i := 0; i < len(src); {
		c := src[i]
		if copied[c] {
			i++
			continue
		}
		switch {
		case c == '"':
			inString = !inString
			i++
		case c == '\\':
			i += 2 // the escaped byte is ASCII, and 'u' is followed by plain digits
		case !inString: // white space: all else outside strings is copied
			dst = append(dst, src[start:i]...)
			i++
			start = i
		case unescaped[c]: // a blank or DEL in a string
			i++
		default:
			dst = append(dst, src[start:i]...)
			dst, i = appendEscaped(dst, src, i)
			start = i
		}
	}
	return append(dst, src[start:]...)
}

// unescaped marks the ASCII bytes that a string of ours holds as they are.
var unescaped = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
	}
	return t
}()

const hexDigits = "0123456789abcdef"

// appendEscaped appends the one rune at s[i] as a string holds it and returns the next index.
func appendEscaped[S []byte | string](dst []byte, s S, i int) ([]byte, int) {
	c := s[i]
	if c < utf8.RuneSelf {
		switch c {
		case '"', '\\':
			return append(dst, '\\', c), i + 1
		case '\b':
			return append(dst, '\\', 'b'), i + 1
		case '\f':
			return append(dst, '\\', 'f'), i + 1
		case '\n':
			return append(dst, '\\', 'n'), i + 1
		case '\r':
			return append(dst, '\\', 'r'), i + 1
		case '\t':
			return append(dst, '\\', 't'), i + 1
		}
		return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15]), i + 1
	}
	n := min(len(s)-i, utf8.UTFMax)
	r, size := utf8.DecodeRuneInString(string(s[i : i+n]))
	switch {
	case r == utf8.RuneError && size == 1:
		return append(dst, `\ufffd`...), i + 1
	case r == '\u2028' || r == '\u2029': // line ends to JavaScript
		return append(dst, '\\', 'u', '2', '0', '2', hexDigits[r&15]), i + size
	}
	return append(dst, s[i:i+size]...), i + size
}

// appendString appends s as a JSON string, escaped exactly as encoding/json does.
func appendString[S []byte | string](dst []byte, s S) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		if unescaped[s[i]] {
			i++
			continue
		}
		dst = append(dst, s[start:i]...)
		dst, i = appendEscaped(dst, s, i)
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
