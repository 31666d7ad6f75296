package sqlbinding

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"time"
	"unicode/utf8"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// Rows writes the rows of a query as a JSON array: of arrays, or of objects when columns have
// names. Each row is Begin, a value for every column, and End. It is for one goroutine.
type Rows struct {
	b     []byte
	max   conf.ByteSize
	names [][]byte // `"name":` of each column; empty for one that a later one of its name replaces
	rows  int
	col   int
	any   bool // whether the row has a value
}

// NewArrays writes rows as arrays, of max bytes together.
func NewArrays(max conf.ByteSize) *Rows { return &Rows{b: []byte{'['}, max: max} }

// NewObjects writes rows as objects. Of columns with one name the last counts.
func NewObjects(max conf.ByteSize, names []string) *Rows {
	w := NewArrays(max)
	last := make(map[string]int, len(names))
	for i, n := range names {
		last[n] = i
	}
	w.names = make([][]byte, len(names))
	for i, n := range names {
		if last[n] == i {
			w.names[i] = append(appendText(nil, n), ':')
		}
	}
	return w
}

// Begin begins a row.
func (w *Rows) Begin() {
	if w.rows > 0 {
		w.b = append(w.b, ',')
	}
	w.rows++
	w.col, w.any = 0, false
	w.b = append(w.b, w.bracket('[', '{'))
}

// End ends a row. It fails when the rows have become too many.
func (w *Rows) End(op fault.Op) error {
	w.b = append(w.b, w.bracket(']', '}'))
	if int64(len(w.b)) > w.max.Int64() {
		return fault.New(op, fault.TooLarge, "the rows are larger than maxResultSize, %v; ask for fewer (LIMIT), or raise it", w.max).WithSent(fault.SentMaybe)
	}
	return nil
}

// Done is the whole array. Nothing may follow.
func (w *Rows) Done() []byte { return append(w.b, ']') }

func (w *Rows) bracket(array, object byte) byte {
	if w.names != nil {
		return object
	}
	return array
}

// value makes room for a value. It is false for one that a later column replaces.
func (w *Rows) value() bool {
	i := w.col
	w.col++
	if w.names != nil && len(w.names[i]) == 0 {
		return false
	}
	if w.any {
		w.b = append(w.b, ',')
	}
	w.any = true
	if w.names != nil {
		w.b = append(w.b, w.names[i]...)
	}
	return true
}

// Put writes a value, which is JSON.
func (w *Rows) Put(value []byte) {
	if w.value() {
		w.b = append(w.b, value...)
	}
}

// AppendText appends a text as a JSON string. Bytes that are not UTF-8 become U+FFFD.
func AppendText(b, text []byte) []byte { return appendText(b, text) }

// AppendNumber appends a number: as it is, without zeros before it. What is none in JSON (NaN,
// Infinity) becomes a string.
func AppendNumber(b, text []byte) []byte {
	start := len(b)
	rest := text
	if len(rest) > 0 && rest[0] == '-' {
		b, rest = append(b, '-'), rest[1:]
	}
	for len(rest) > 1 && rest[0] == '0' && rest[1] >= '0' && rest[1] <= '9' {
		rest = rest[1:]
	}
	if !isNumber(rest) {
		return appendText(b[:start], text)
	}
	return append(b, rest...)
}

// AppendBytes appends bytes as a JSON string in base64.
func AppendBytes(b, value []byte) []byte {
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, value)
	return append(b, '"')
}

// AppendTime appends a time as RFC 3339 has it. It cannot for years beyond four digits.
func AppendTime(b []byte, t time.Time) ([]byte, bool) {
	if y := t.Year(); y < 0 || y > 9999 {
		return b, false
	}
	b = append(b, '"')
	b = t.AppendFormat(b, time.RFC3339Nano)
	return append(b, '"'), true
}

// AppendJSON appends JSON without its white space; what is none becomes a string.
func AppendJSON(b, value []byte) []byte {
	buf := bytes.NewBuffer(b)
	if json.Compact(buf, value) != nil {
		return appendText(b, value)
	}
	return buf.Bytes()
}

// isNumber tells whether text is a JSON number without sign.
func isNumber(text []byte) bool {
	digits := func() bool {
		n := 0
		for n < len(text) && text[n] >= '0' && text[n] <= '9' {
			n++
		}
		text = text[n:]
		return n > 0
	}
	if len(text) > 1 && text[0] == '0' && text[1] >= '0' && text[1] <= '9' || !digits() {
		return false
	}
	if len(text) > 0 && text[0] == '.' {
		if text = text[1:]; !digits() {
			return false
		}
	}
	if len(text) > 0 && text[0]|0x20 == 'e' {
		text = text[1:]
		if len(text) > 0 && (text[0] == '+' || text[0] == '-') {
			text = text[1:]
		}
		if !digits() {
			return false
		}
	}
	return len(text) == 0
}

const hexDigits = "0123456789abcdef"

func appendText[T string | []byte](b []byte, text T) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(text); {
		c := text[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(string(text[i:min(len(text), i+utf8.UTFMax)]))
			if r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
			b = append(append(b, text[start:i]...), "\ufffd"...)
			i++
			start = i
			continue
		}
		b = append(b, text[start:i]...)
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
	}
	return append(append(b, text[start:]...), '"')
}
