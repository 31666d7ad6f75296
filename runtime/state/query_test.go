package state_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/state"
)

// queryStore notes what it is asked.
type queryStore struct {
	*store
	asked []block.StateSearch
	found block.StateFound
	err   error
}

func (q *queryStore) Queries() bool { return true }
func (q *queryStore) Query(_ context.Context, s block.StateSearch) (block.StateFound, error) {
	q.asked = append(q.asked, s)
	return q.found, q.err
}

func TestQueryParsed(t *testing.T) {
	path := func(p ...string) []string { return p }
	filter := func(op block.StateFilterOp, p []string, v ...any) block.StateFilter {
		return block.StateFilter{Op: op, Path: p, Values: v}
	}
	ca := filter("EQ", path("state"), "CA")
	for _, tt := range []struct {
		name, text string
		want       block.StateSearch
	}{
		{"nothing", `{}`, block.StateSearch{}},
		{"empty filter", `{"filter": {}, "sort": [], "page": {}}`, block.StateSearch{}},
		{"nulls", `{"filter": null, "sort": null, "page": null}`, block.StateSearch{}},
		{"equal", `{"filter": {"EQ": {"state": "CA"}}, "unknown": 1}`, block.StateSearch{Filter: &ca}},
		{"exact numbers", `{"filter": {"GTE": {"a.b": 12345678901234567890}}}`, block.StateSearch{Filter: &block.StateFilter{Op: "GTE", Path: path("a", "b"), Values: []any{json.Number("12345678901234567890")}}}},
		{"several", `{"filter": {"IN": {"a..b": ["x", 1.5e3, true, null]}}}`, block.StateSearch{Filter: &block.StateFilter{Op: "IN", Path: path("a", "", "b"), Values: []any{"x", json.Number("1.5e3"), true, nil}}}},
		{"joined", `{"filter": {"OR": [{"NEQ": {"x": null}}, {"AND": [{"EQ": {"state": "CA"}}, {"LT": {"x": "y"}}]}]}}`, block.StateSearch{Filter: &block.StateFilter{Op: "OR", Filters: []block.StateFilter{
			filter("NEQ", path("x"), nil), {Op: "AND", Filters: []block.StateFilter{ca, filter("LT", path("x"), "y")}}}}}},
		{"order and page", `{"sort": [{"key": "a.b", "order": "DESC"}, {"key": "c"}, {"key": "d", "order": "asc"}], "page": {"limit": 3, "token": "6"}}`,
			block.StateSearch{Sort: []block.StateOrder{{Path: path("a", "b"), Desc: true}, {Path: path("c")}, {Path: path("d")}}, Limit: 3, Token: "6"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := &queryStore{store: newStore()}
			s, _ := open(t, st, nil, nil)
			if _, err := s.Query(t.Context(), "st", []byte(tt.text)); err != nil {
				t.Fatal(err)
			}
			tt.want.Prefix, tt.want.Apart = "shop||", "||"
			if d := cmp.Diff([]block.StateSearch{tt.want}, st.asked); d != "" {
				t.Errorf("asked (-want +got):\n%s", d)
			}
		})
	}
}

func TestQueryRefused(t *testing.T) {
	deep := strings.Repeat(`{"AND": [{"EQ": {"a": 1}}, `, 60) + `{"EQ": {"a": 1}}` + strings.Repeat(`]}`, 60)
	wide := `{"OR": [` + strings.Repeat(`{"EQ": {"a": 1}},`, 1000) + `{"EQ": {"a": 1}}]}`
	many := `{"IN": {"a": [` + strings.Repeat(`1,`, 10_000) + `1]}}`
	for _, tt := range []struct{ text, want string }{
		{``, "unexpected end of JSON input"},
		{`{`, "unexpected end of JSON input"},
		{`[]`, "cannot unmarshal array"},
		{"{\"filter\": {\"EQ\": {\"\xff\": 1}}}", "not valid UTF-8"},
		{`{"filter": []}`, "a filter is an object with one member"},
		{`{"filter": "EQ"}`, "a filter is an object with one member"},
		{`{"filter": {"EQ": {"a": 1}, "NEQ": {"a": 2}}}`, "a filter is an object with one member"},
		{`{"filter": {"LIKE": {"a": 1}}}`, `unsupported filter "LIKE"; there are EQ, `},
		{`{"filter": {"eq": {"a": 1}}}`, `unsupported filter "eq"`},
		{`{"filter": {"EQ": {}}}`, "EQ is for one key"},
		{`{"filter": {"EQ": {"a": 1, "b": 2}}}`, "EQ is for one key"},
		{`{"filter": {"EQ": 1}}`, "EQ is for one key"},
		{`{"filter": {"EQ": {"": 1}}}`, "a key is empty"},
		{`{"filter": {"EQ": {"a\u0000": 1}}}`, "contains a NUL"},
		{`{"filter": {"EQ": {"a": "b\u0000"}}}`, "a value is neither a string nor a number"},
		{`{"filter": {"EQ": {"` + strings.Repeat("é", 600) + `": 1}}}`, "longer than 1024 bytes"},
		{`{"filter": {"EQ": {"a": {"b": 1}}}}`, `EQ "a": a value is neither a string nor a number, true, false or null`},
		{`{"filter": {"GT": {"a": true}}}`, `GT "a": a value is neither a string nor a number`},
		{`{"filter": {"EQ": {"a": 1e999999999}}}`, "a value is neither"},
		{`{"filter": {"EQ": {"a": ` + strings.Repeat("9", 500) + `}}}`, "a value is neither"},
		{`{"filter": {"IN": {"a": "x"}}}`, "array of at least one value"},
		{`{"filter": {"IN": {"a": []}}}`, "array of at least one value"},
		{`{"filter": {"IN": {"a": [[]]}}}`, "a value is neither"},
		{`{"filter": {"AND": {"EQ": {"a": 1}}}}`, "AND is for an array of at least two filters"},
		{`{"filter": {"OR": [{"EQ": {"a": 1}}]}}`, "OR is for an array of at least two filters"},
		{`{"filter": {"OR": [{"EQ": {"a": 1}}, {}]}}`, "a filter is an object with one member"},
		{`{"filter": ` + deep + `}`, "more than 50 inside each other"},
		{`{"filter": ` + wide + `}`, "more than 1000 filters"},
		{`{"filter": ` + many + `}`, "more than 10000 values"},
		{`{"sort": [{"key": "a", "order": "random()"}]}`, `sort by "a": order "random()" is neither ASC nor DESC`},
		{`{"sort": [{"order": "ASC"}]}`, "sort: a key is empty"},
		{`{"sort": {"key": "a"}}`, "cannot unmarshal"},
		{`{"sort": [` + strings.Repeat(`{"key":"a"},`, 20) + `{"key":"a"}]}`, "it sorts by 21 keys"},
		{`{"page": {"limit": -1}}`, "page.limit is -1"},
		{`{"page": {"limit": 1.5}}`, "cannot unmarshal number"},
		{`{"page": {"token": 3}}`, "cannot unmarshal number"},
	} {
		st := &queryStore{store: newStore()}
		s, rec := open(t, st, nil, nil)
		_, err := s.Query(t.Context(), "st", []byte(tt.text))
		wantFault(t, err, fault.Invalid, state.BadQuery, tt.want)
		if len(st.asked) > 0 || len(rec.got) > 0 {
			t.Errorf("%.80s: the store was asked, recorded %v", tt.text, rec.got)
		}
	}
}

func TestQueryScoped(t *testing.T) {
	for setting, want := range map[string]string{"": "shop||", "name": "st||", "none": "", "Team": "team||"} {
		st := &queryStore{store: newStore(), found: block.StateFound{Token: "2", Items: []block.StateItem{
			{Key: want + "a", Exists: true, Value: []byte("1"), ETag: "7"}, {Key: want + "b", Err: fault.New("t", fault.Lost, "damaged")}}}}
		s, rec := open(t, st, map[string]string{"keyprefix": setting}, nil)
		got, err := s.Query(t.Context(), "st", []byte(`{"page": {"limit": 2}}`))
		if err != nil || got.Token != "2" || len(got.Results) != 2 || got.Results[0].Key != "a" || got.Results[0].Err != nil || string(got.Results[0].Value) != "1" ||
			got.Results[1].Key != "b" || got.Results[1].Err == nil {
			t.Errorf("keyPrefix %q: %+v, %v", setting, got, err)
		}
		if q := st.asked[0]; q.Prefix != want || q.Apart != "||" {
			t.Errorf("keyPrefix %q: asked for keys %q, apart %q", setting, q.Prefix, q.Apart)
		}
		if d := cmp.Diff([]string{"st query true"}, rec.got); d != "" {
			t.Error(d)
		}
	}
	st := &queryStore{store: newStore(), err: fault.New("t", fault.Unavailable, "down")}
	s, rec := open(t, st, nil, again(3))
	_, err := s.Query(t.Context(), "st", []byte(`{}`))
	wantFault(t, err, fault.Unavailable, "", "down")
	if len(st.asked) != 3 || !cmp.Equal(rec.got, []string{"st query false"}) {
		t.Errorf("a read is repeated as policy says: %d attempts, recorded %v", len(st.asked), rec.got)
	}
}

// A name that policy divides by key has no one to ask.
func TestQueryOfADividedStore(t *testing.T) {
	st := &queryStore{store: newStore()}
	s, _ := open(t, st, nil, &call.Chain{Place: func(string) string { return "part" }})
	_, err := s.Query(t.Context(), "st", []byte(`{}`))
	wantFault(t, err, fault.Unsupported, "", "split by key")
	if len(st.asked) > 0 {
		t.Error("one of several was asked")
	}
}

// JSON is what a wire, or the content type, says is JSON.
func TestJSONIsMarked(t *testing.T) {
	st := newStore()
	s, _ := open(t, st, nil, nil)
	for _, item := range []state.Item{{Key: "wire", Value: []byte("{}"), JSON: true}, {Key: "type", Value: []byte("{}"), Metadata: map[string]string{"contentType": "application/json"}}, {Key: "bytes", Value: []byte("{}")}} {
		if err := s.Set(t.Context(), "st", []state.Item{item}); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []bool{true, true, false} {
		if st.writes[i].JSON != want {
			t.Errorf("%s: JSON is %v", st.writes[i].Key, st.writes[i].JSON)
		}
	}
}

// FuzzQuery: whatever text comes, a store sees only what the contract promises.
func FuzzQuery(f *testing.F) {
	for _, text := range []string{`{}`, `{"filter":{"EQ":{"a.b":"c"}},"sort":[{"key":"a","order":"DESC"}],"page":{"limit":2,"token":"4"}}`,
		`{"filter":{"AND":[{"IN":{"a":[1,"x",null,true]}},{"OR":[{"GT":{"n":1e3}},{"NEQ":{"n":null}}]}]}}`, `{"filter":{"EQ":{"\u0000":1}}}`} {
		f.Add([]byte(text))
	}
	st := &queryStore{store: newStore()}
	s := state.New(catalogOf(st), shop, nil)
	f.Fuzz(func(t *testing.T, text []byte) {
		st.asked = nil
		if _, err := s.Query(context.Background(), "st", text); err != nil {
			if fault.Of(err) != fault.Invalid || len(st.asked) > 0 {
				t.Errorf("%v, asked %v", err, st.asked)
			}
			return
		}
		q := st.asked[0]
		if q.Prefix != "shop||" || q.Limit < 0 {
			t.Errorf("asked for %+v", q)
		}
		for _, o := range q.Sort {
			checkPath(t, o.Path)
		}
		if q.Filter != nil {
			checkFilter(t, q.Filter, 0)
		}
	})
}

func checkPath(t *testing.T, path []string) {
	if all := strings.Join(path, "."); len(path) == 0 || all == "" || len(all) > 1024 || strings.Contains(all, "\x00") || !utf8.ValidString(all) {
		t.Errorf("path %q", path)
	}
}

func checkFilter(t *testing.T, f *block.StateFilter, depth int) {
	if depth > 50 {
		t.Fatal("too deep")
	}
	switch f.Op {
	case block.FilterAnd, block.FilterOr:
		if len(f.Filters) < 2 || f.Values != nil || f.Path != nil {
			t.Errorf("%+v", f)
		}
		for i := range f.Filters {
			checkFilter(t, &f.Filters[i], depth+1)
		}
		return
	case block.FilterEQ, block.FilterNE, block.FilterGT, block.FilterGE, block.FilterLT, block.FilterLE:
		if len(f.Values) != 1 {
			t.Errorf("%+v", f)
		}
	case block.FilterIn:
		if len(f.Values) == 0 {
			t.Errorf("%+v", f)
		}
	default:
		t.Errorf("operation %q", f.Op)
	}
	checkPath(t, f.Path)
	for _, v := range f.Values {
		switch v := v.(type) {
		case nil, bool:
		case string:
			if strings.Contains(v, "\x00") || !utf8.ValidString(v) {
				t.Errorf("string %q", v)
			}
		case json.Number:
			if _, err := v.Float64(); len(v) > 900 || err != nil && !strings.Contains(err.Error(), "range") {
				t.Errorf("number %s: %v", v, err)
			}
		default:
			t.Errorf("value %T", v)
		}
	}
}
