package sqlbinding_test

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlbinding"
)

func read(operation, sql, params string) (*sqlbinding.Request, error) {
	return sqlbinding.Read("test", block.BindingRequest{Operation: operation, Metadata: map[string]string{"sql": sql, "params": params}})
}

func TestRead(t *testing.T) {
	type params = []sqlbinding.Param
	for text, want := range map[string]params{
		"": nil, " \n": nil, "null": nil, " null ": nil, "[]": nil, " [ ] ": nil,
		`[null,true,false]`:                  {{}, {sqlbinding.Bool, "true"}, {sqlbinding.Bool, "false"}},
		`[1, -2.50, 1e3,9007199254740993]`:   {{sqlbinding.Number, "1"}, {sqlbinding.Number, "-2.50"}, {sqlbinding.Number, "1e3"}, {sqlbinding.Number, "9007199254740993"}},
		`["", "a\"b\u00e4\n", "'; DROP --"]`: {{sqlbinding.Text, ""}, {sqlbinding.Text, "a\"bä\n"}, {sqlbinding.Text, "'; DROP --"}},
		`[[1, [ 2 ] ], {"b": 1, "a": [ ]}]`:  {{sqlbinding.List, "[1,[2]]"}, {sqlbinding.Object, `{"b":1,"a":[]}`}},
	} {
		r, err := read("exec", "SELECT 1", text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if d := cmp.Diff(want, r.Params); d != "" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
	}
	if r, err := sqlbinding.Read("test", block.BindingRequest{Operation: "close"}); err != nil || r.Operation != "close" {
		t.Errorf("close: %+v, %v", r, err)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		operation, sql, params string
		code                   fault.Code
		text                   string
	}{
		"no operation":    {"", "SELECT 1", "", fault.Unsupported, "known are exec, query, close"},
		"another":         {"Query", "SELECT 1", "", fault.Unsupported, "invalid operation: Query"},
		"no statement":    {"exec", " \n", "", fault.Invalid, "metadata entry sql is missing"},
		"NUL":             {"exec", "SELECT 1\x00", "", fault.Invalid, "metadata entry sql is not UTF-8 text without NUL"},
		"not UTF-8":       {"query", "SELECT '\xff'", "", fault.Invalid, "metadata entry sql is not UTF-8"},
		"an object":       {"query", "SELECT 1", `{"a":1}`, fault.Invalid, "metadata entry params is no JSON array; want one value for each"},
		"text":            {"query", "SELECT 1", `1,2`, fault.Invalid, "is no JSON array; want"},
		"no JSON":         {"query", "SELECT 1", `(1)`, fault.Invalid, "is no JSON array; want"},
		"a wrong element": {"query", "SELECT 1", `[1,"a",tru]`, fault.Invalid, "element [2]: invalid character"},
		"no comma":        {"query", "SELECT 1", `[1 2]`, fault.Invalid, "element [1]: "},
		"no end":          {"query", "SELECT 1", `[1,2`, fault.Invalid, "is no JSON array: the text ends too early"},
		"no end of text":  {"query", "SELECT 1", `[1,"a`, fault.Invalid, "element [1]: the text ends too early"},
		"more":            {"query", "SELECT 1", `[1] [2]`, fault.Invalid, "goes on after its JSON array, at byte"},
		"too many":        {"query", "SELECT 1", "[0" + strings.Repeat(",0", 65535) + "]", fault.Invalid, "more than 65535 elements"},
	} {
		_, err := read(tt.operation, tt.sql, tt.params)
		if fault.Of(err) != tt.code || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v (%v, sent %v); want %v, %s", name, err, fault.Of(err), fault.SentOf(err), tt.code, tt.text)
		}
	}
}

func TestParam(t *testing.T) {
	r, err := read("exec", "SELECT 1", `["a\"b", [1,"x",null,[true]], 1.0, -1e3, 1.5, 1e300, 7, 9007199254740993.0, {"a":1}, null]`)
	if err != nil {
		t.Fatal(err)
	}
	var jsons, wholes []string
	for _, p := range r.Params {
		jsons = append(jsons, p.JSON())
		if w, ok := p.Whole(); ok {
			wholes = append(wholes, w)
		}
	}
	if d := cmp.Diff([]string{`"a\"b"`, `[1,"x",null,[true]]`, "1.0", "-1e3", "1.5", "1e300", "7", "9007199254740993.0", `{"a":1}`, "null"}, jsons); d != "" {
		t.Errorf("JSON (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"1", "-1000"}, wholes); d != "" {
		t.Errorf("whole numbers (-want +got):\n%s", d)
	}
	want := []sqlbinding.Param{{Kind: sqlbinding.Number, Text: "1"}, {Kind: sqlbinding.Text, Text: "x"}, {}, {Kind: sqlbinding.List, Text: "[true]"}}
	if d := cmp.Diff(want, r.Params[1].Elements()); d != "" {
		t.Errorf("elements (-want +got):\n%s", d)
	}
	if got := r.BadParam("test", 1, "is wrong").Error(); got != "metadata entry params element [1] (array): is wrong" {
		t.Error(got)
	}
	if got := r.BadParam("test", 99, "is wrong").Error(); got != "metadata entry params is wrong" {
		t.Error(got)
	}
}

func TestAnswer(t *testing.T) {
	began := time.Now().Add(-time.Second)
	for operation, affected := range map[string]string{"exec": "7", "query": ""} {
		r, err := read(operation, "SELECT 1", "")
		if err != nil {
			t.Fatal(err)
		}
		a := r.Answer(began, []byte("x"), 7)
		start, err1 := time.Parse(time.RFC3339Nano, a.Metadata["start-time"])
		end, err2 := time.Parse(time.RFC3339Nano, a.Metadata["end-time"])
		took, err3 := time.ParseDuration(a.Metadata["duration"])
		if err1 != nil || err2 != nil || err3 != nil || !start.Equal(began) || end.Sub(start) != took || took < time.Second {
			t.Errorf("%s: times %v", operation, a.Metadata)
		}
		if a.Metadata["operation"] != operation || a.Metadata["sql"] != "SELECT 1" || a.Metadata["rows-affected"] != affected || string(a.Data) != "x" {
			t.Errorf("%s: %q %v", operation, a.Data, a.Metadata)
		}
	}
	r, _ := read("exec", "SELECT '"+strings.Repeat("x", 5000)+"'", "")
	if md := r.Answer(began, nil, 0).Metadata; md["sql"] != "" || md["rows-affected"] != "0" {
		t.Errorf("a long statement: %v", md)
	}
}

func TestAllOrNothing(t *testing.T) {
	for sql, want := range map[string]bool{
		"insert into t values ($1)": true, " \n(SELECT 1) ;\n": true, "WITH x AS (SELECT 1) DELETE FROM t": true, "REPLACE INTO t VALUES (1)": true,
		"INSERT INTO t VALUES (1); COMMIT; SELECT 1/0": false, "CALL p()": false, "DO $$ BEGIN COMMIT; END $$": false, "CREATE TABLE x ()": false,
		"SELECTED": false, "": false, "-- SELECT\nCALL p()": false, "BEGIN": false,
	} {
		if got := (&sqlbinding.Request{SQL: sql}).AllOrNothing(); got != want {
			t.Errorf("%s: %v, want %v", sql, got, want)
		}
	}
}

func TestRows(t *testing.T) {
	fill := func(w *sqlbinding.Rows, rows ...[]string) string {
		for _, row := range rows {
			w.Begin()
			for _, v := range row {
				w.Put([]byte(v))
			}
			if err := w.End("test"); err != nil {
				t.Fatal(err)
			}
		}
		return string(w.Done())
	}
	for want, got := range map[string]string{
		`[]`:                   fill(sqlbinding.NewArrays(conf.KiB)),
		`[[]]`:                 fill(sqlbinding.NewArrays(conf.KiB), nil),
		`[[1,null],["x",2]]`:   fill(sqlbinding.NewArrays(conf.KiB), []string{"1", "null"}, []string{`"x"`, "2"}),
		`[{"a":1,"b\"":2},{}]`: fill(sqlbinding.NewObjects(conf.KiB, []string{"a", `b"`}), []string{"1", "2"}, nil),
		`[{"b":2,"a":3,"":4}]`: fill(sqlbinding.NewObjects(conf.KiB, []string{"a", "b", "a", ""}), []string{"1", "2", "3", "4"}),
		`[{"a":2}]`:            fill(sqlbinding.NewObjects(conf.KiB, []string{"a", "a"}), []string{"1", "2"}),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	w := sqlbinding.NewArrays(100)
	var err error
	for n := 0; err == nil; n++ {
		if n > 20 {
			t.Fatal("rows without end")
		}
		w.Begin()
		w.Put([]byte(`"123456"`))
		err = w.End("test")
	}
	if fault.Of(err) != fault.TooLarge || !strings.Contains(err.Error(), "maxResultSize, 100;") {
		t.Errorf("%v (%v)", err, fault.Of(err))
	}
}

func TestAppend(t *testing.T) {
	for want, got := range map[string][]byte{
		"0": sqlbinding.AppendNumber(nil, []byte("0")), "42": sqlbinding.AppendNumber(nil, []byte("00042")), "-0.50": sqlbinding.AppendNumber(nil, []byte("-0.50")),
		"1e+20": sqlbinding.AppendNumber(nil, []byte("1e+20")), `"NaN"`: sqlbinding.AppendNumber(nil, []byte("NaN")), `"-Infinity"`: sqlbinding.AppendNumber(nil, []byte("-Infinity")),
		`""`: sqlbinding.AppendNumber(nil, nil), `"-"`: sqlbinding.AppendNumber(nil, []byte("-")), `"1."`: sqlbinding.AppendNumber(nil, []byte("1.")),
		`"AP8="`:    sqlbinding.AppendBytes(nil, []byte{0, 255}),
		`{"b":"x"}`: sqlbinding.AppendJSON(nil, []byte(`{ "b" : "x" }`)), `"{no"`: sqlbinding.AppendJSON(nil, []byte("{no")),
		`9`: sqlbinding.AppendNumber(nil, []byte("0009")),
	} {
		if string(got) != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	if b, ok := sqlbinding.AppendTime(nil, at); !ok || string(b) != `"2026-01-02T03:04:05.0000006Z"` {
		t.Errorf("%s, %v", b, ok)
	}
	for _, year := range []int{-1, 10000} {
		if b, ok := sqlbinding.AppendTime(nil, time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)); ok || len(b) > 0 {
			t.Errorf("year %d: %s", year, b)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, s := range []string{"", "null", "[]", `[1,"a",null,[true,{"a":1.5e3}]]`, `[1 2]`, `["\ud800"]`, "[" + strings.Repeat("[", 50), `[1]]`, "[\xff]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := read("exec", "SELECT 1", text)
		var want []any
		valid := strings.TrimSpace(text) == "" || json.Unmarshal([]byte(text), &want) == nil
		if valid != (err == nil) && len(want) <= 65535 {
			t.Fatalf("%q: %v; a JSON array: %v", text, err, valid)
		}
		if err != nil {
			if fault.Of(err) != fault.Invalid || !strings.HasPrefix(err.Error(), "metadata entry params ") {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		parts := make([]string, len(r.Params))
		for i, p := range r.Params {
			parts[i] = p.JSON()
			if p.Kind == sqlbinding.List {
				p.Elements()
			}
			p.Whole()
		}
		var got []any
		if err := json.Unmarshal([]byte("["+strings.Join(parts, ",")+"]"), &got); err != nil || len(got) != len(want) {
			t.Fatalf("%q comes back as %q: %v", text, parts, err)
		}
		if len(want) > 0 && !cmp.Equal(want, got) {
			t.Fatalf("%q comes back as %q", text, parts)
		}
	})
}

func FuzzAppend(f *testing.F) {
	for _, s := range []string{"", "a", "\x00\x1f\"\\\n\r\t\u007f\u2028ä🙂", "\xff\xc3", "1", "-0.5e-7", "00", "0x1", "+1", "NaN", "1e", "{}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var back string
		if b := sqlbinding.AppendText([]byte("x"), []byte(text)); json.Unmarshal(b[1:], &back) != nil || back != strings.ToValidUTF8(strings.Clone(text), "\ufffd") && back != perByte(text) {
			t.Fatalf("text %q is %s", text, b)
		}
		n := sqlbinding.AppendNumber(nil, []byte(text))
		if !json.Valid(n) {
			t.Fatalf("number %q is %s", text, n)
		}
		if n[0] != '"' {
			got, err1 := strconv.ParseFloat(string(n), 64)
			want, err2 := strconv.ParseFloat(text, 64)
			if (err1 == nil) != (err2 == nil) || got != want && !math.IsInf(want, 0) {
				t.Fatalf("number %q is %s", text, n)
			}
		}
		if j := sqlbinding.AppendJSON(nil, []byte(text)); !json.Valid(j) {
			t.Fatalf("JSON %q is %s", text, j)
		}
	})
}

// perByte replaces each byte that is not UTF-8 by itself.
func perByte(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		b.WriteRune(r)
		text = text[n:]
	}
	return b.String()
}
