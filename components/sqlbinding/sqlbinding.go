// Package sqlbinding is what output bindings to SQL databases have in common: the requests that
// apps make of them, the metadata of the answers, and rows as JSON.
//
// It is no backend: it knows no product and offers no part. What a product's types are in JSON is
// the backend's to say; Rows writes them. Start reading at Read.
package sqlbinding

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// The operations, Dapr's.
const (
	Exec  = "exec"  // a statement; the answer tells how many rows it changed
	Query = "query" // a statement; the answer is its rows
	Close = "close" // gives up connections; there is no answer
)

// Operations lists them.
func Operations() []string { return []string{Exec, Query, Close} }

// Metadata entries of a request.
const (
	sqlEntry    = "sql"
	paramsEntry = "params"
)

// Request is what an app asks for.
type Request struct {
	Operation string
	SQL       string // empty for Close
	Params    []Param
}

// Kind is the JSON type of a parameter.
type Kind uint8

// The kinds.
const (
	Null Kind = iota
	Bool
	Number
	Text
	List
	Object
)

// String is the kind in messages.
func (k Kind) String() string {
	return [...]string{"null", "boolean", "number", "string", "array", "object"}[k]
}

// Param is a value for a statement. It is bound, never put into the statement's text.
type Param struct {
	Kind Kind
	// Text is the text of a string, otherwise the JSON as it was written, without white space.
	Text string
}

// maxParams is what the wires of the products can count.
const maxParams = 65535

// Read reads a request. Its errors say what is wrong, where, and what would be right.
func Read(op fault.Op, r block.BindingRequest) (*Request, error) {
	out := &Request{Operation: r.Operation}
	if !slices.Contains(Operations(), r.Operation) {
		return nil, fault.New(op, fault.Unsupported, "invalid operation: %s; known are %s", r.Operation, strings.Join(Operations(), ", ")).WithSent(fault.SentNever)
	}
	if r.Operation == Close {
		return out, nil
	}
	out.SQL = strings.Clone(r.Metadata[sqlEntry])
	switch {
	case strings.TrimSpace(out.SQL) == "":
		return nil, bad(op, sqlEntry, "is missing; it holds the statement")
	case strings.IndexByte(out.SQL, 0) >= 0 || !utf8.ValidString(out.SQL):
		return nil, bad(op, sqlEntry, "is not UTF-8 text without NUL")
	}
	var err error
	out.Params, err = readParams(op, r.Metadata[paramsEntry])
	return out, err
}

// readParams reads a JSON array, element by element, so that a mistake has an index.
func readParams(op fault.Op, text string) ([]Param, error) {
	if t := strings.TrimSpace(text); t == "" || t == "null" {
		return nil, nil
	}
	in := json.NewDecoder(strings.NewReader(text))
	if t, err := in.Token(); err != nil || t != json.Delim('[') {
		return nil, bad(op, paramsEntry, `is no JSON array; want one value for each parameter, such as [1,"two",null]`)
	}
	var out []Param
	for in.More() {
		var raw json.RawMessage
		if err := in.Decode(&raw); err != nil {
			return nil, bad(op, paramsEntry, "is no JSON array: element [%d]: %s", len(out), syntax(err))
		}
		if len(out) == maxParams {
			return nil, bad(op, paramsEntry, "has more than %d elements", maxParams)
		}
		p, err := param(raw)
		if err != nil {
			return nil, bad(op, paramsEntry, "element [%d]: %s", len(out), syntax(err))
		}
		out = append(out, p)
	}
	if _, err := in.Token(); err != nil {
		return nil, bad(op, paramsEntry, "is no JSON array: %s", syntax(err))
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return nil, bad(op, paramsEntry, "goes on after its JSON array, at byte %d", in.InputOffset())
	}
	return out, nil
}

// syntax is the decoder's word for a mistake.
func syntax(err error) string {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "the text ends too early"
	}
	return err.Error()
}

func param(raw json.RawMessage) (Param, error) {
	switch raw[0] {
	case 'n':
		return Param{}, nil
	case 't', 'f':
		return Param{Bool, string(raw)}, nil
	case '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return Param{Text, s}, err
	case '[', '{':
		var b bytes.Buffer
		err := json.Compact(&b, raw)
		kind := List
		if raw[0] == '{' {
			kind = Object
		}
		return Param{kind, b.String()}, err
	}
	return Param{Number, string(raw)}, nil
}

// Elements are the values in a List.
func (p Param) Elements() []Param {
	var raws []json.RawMessage
	_ = json.Unmarshal([]byte(p.Text), &raws) // it has been parsed
	out := make([]Param, len(raws))
	for i, raw := range raws {
		out[i], _ = param(raw)
	}
	return out
}

// JSON is the value as JSON.
func (p Param) JSON() string {
	switch p.Kind {
	case Null:
		return "null"
	case Text:
		return string(appendText(nil, p.Text))
	}
	return p.Text
}

// Whole is a Number without fraction and exponent, if it is a whole one that a float64 holds: apps
// whose numbers are all of one kind write 1.0 or 1e3 where a column wants an integer.
func (p Param) Whole() (string, bool) {
	if p.Kind != Number || !strings.ContainsAny(p.Text, ".eE") {
		return "", false
	}
	f, err := strconv.ParseFloat(p.Text, 64)
	if err != nil || f != float64(int64(f)) || f >= 1<<53 || f <= -1<<53 {
		return "", false
	}
	return strconv.FormatInt(int64(f), 10), true
}

// bad is an error about an entry of a request's metadata.
func bad(op fault.Op, entry, format string, args ...any) *fault.Error {
	e := fault.New(op, fault.Invalid, format, args...).With(fault.BadMetadata).WithSent(fault.SentNever)
	e.Msg = "metadata entry " + entry + " " + e.Msg
	return e
}

// BadParam is an error about one parameter, counted from 0 as in params. The value is not told.
func (r *Request) BadParam(op fault.Op, i int, what string) *fault.Error {
	if i < 0 || i >= len(r.Params) {
		return bad(op, paramsEntry, "%s", what)
	}
	return bad(op, paramsEntry, "element [%d] (%v): %s", i, r.Params[i].Kind, what)
}

// maxEcho bounds the statement in an answer's metadata, which become headers: clients refuse an
// answer whose headers are large.
const maxEcho = 4 << 10

// Answer is the answer to a request that began and has just ended. affected counts only for Exec.
func (r *Request) Answer(began time.Time, data []byte, affected int64) *block.BindingAnswer {
	began, ended := began.UTC(), time.Now().UTC()
	md := map[string]string{"operation": r.Operation, "start-time": began.Format(time.RFC3339Nano),
		"end-time": ended.Format(time.RFC3339Nano), "duration": ended.Sub(began).String()}
	if len(r.SQL) <= maxEcho {
		md["sql"] = r.SQL
	}
	if r.Operation == Exec {
		md["rows-affected"] = strconv.FormatInt(affected, 10)
	}
	return &block.BindingAnswer{Data: data, Metadata: md}
}

// AllOrNothing tells whether a statement that a database refuses has left nothing behind. Others,
// such as several in one text or a call of a procedure, may have committed something before.
func (r *Request) AllOrNothing() bool {
	text := strings.TrimRight(r.SQL, "; \t\r\n")
	switch r.Word() {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "MERGE", "WITH", "VALUES", "TABLE":
		return !strings.Contains(text, ";")
	}
	return false
}

// Word is the statement's first word, in capitals.
func (r *Request) Word() string {
	text := strings.TrimLeft(r.SQL, " \t\r\n(")
	end := strings.IndexFunc(text, func(c rune) bool { return (c|0x20) < 'a' || (c|0x20) > 'z' })
	if end >= 0 {
		text = text[:end]
	}
	return strings.ToUpper(text)
}
