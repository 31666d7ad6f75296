package postgres_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/postgres"
	"github.com/mecha-project/mecha/test/servers"
)

type (
	filter = block.StateFilter
	num    = json.Number
)

func is(op block.StateFilterOp, path string, values ...any) *filter {
	return &filter{Op: op, Path: strings.Split(path, "."), Values: values}
}

func join(op block.StateFilterOp, parts ...*filter) *filter {
	f := &filter{Op: op}
	for _, p := range parts {
		f.Filters = append(f.Filters, *p)
	}
	return f
}

func setJSON(t testing.TB, s block.State, key, value string) {
	t.Helper()
	if err := s.Set(t.Context(), block.StateWrite{Key: key, Value: []byte(value), JSON: true}); err != nil {
		t.Fatalf("Set(%s): %v", key, err)
	}
}

// find gives the keys found, without their prefix.
func find(t testing.TB, s block.State, q block.StateSearch) (keys []string, token string) {
	t.Helper()
	found, err := s.(block.StateQuery).Query(t.Context(), q)
	if err != nil {
		t.Fatalf("Query(%+v): %v", q, err)
	}
	keys = []string{}
	for _, it := range found.Items {
		if !it.Exists || it.Err != nil || it.ETag == "" {
			t.Errorf("found %+v", it)
		}
		keys = append(keys, strings.TrimPrefix(it.Key, q.Prefix))
	}
	return keys, found.Token
}

func app(f *filter) block.StateSearch {
	return block.StateSearch{Prefix: "app||", Apart: "||", Filter: f}
}

func TestQuery(t *testing.T) {
	port := servers.Postgres(t).Port
	for _, mode := range []string{"", "exec", "simple_protocol", "cache_describe", "describe_exec"} {
		t.Run("mode "+mode, func(t *testing.T) { queryIn(t, port, mode) })
	}
}

func queryIn(t *testing.T, port int, mode string) {
	s := open(t, "v1", at(port, append(tables("v1", "query"+mode), "queryExecMode", mode)...)...)
	for key, value := range map[string]string{
		"app||1": `{"person": {"name": "Ann", "age": 9}, "state": "CA", "on": true, "tags": ["x"], "none": null}`,
		"app||2": `{"person": {"name": "Bob", "age": 10}, "state": "WA", "on": false, "dot.ted": 1}`,
		"app||3": `{"person": {"name": "Cid", "age": 100.5}, "state": "CA", "it's": "o'clock"}`,
		"app||4": `{"person": {"name": "Dan", "age": "9"}, "state": null}`,
		"app||5": ` [1, 2]`,
		// Others' keys, actors' keys, keys without prefix and look-alikes.
		"other||1": `{"state": "CA"}`, "app||T||7||k": `{"state": "CA"}`, "bare": `{"state": "CA"}`, "app": `{"state": "CA"}`,
		"app2||1": `{"state": "CA"}`, "APP||1": `{"state": "CA"}`, "ap_||1": `{"state": "CA"}`,
	} {
		setJSON(t, s, key, value)
	}
	set(t, s, "app||bytes", "\x00state")
	setJSON(t, s, "app||text", `"CA"`)
	if err := s.Set(t.Context(), block.StateWrite{Key: "app||dead", Value: []byte(`{"state": "CA"}`), JSON: true, TTL: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "an item to expire", func() bool {
		item, err := s.Get(t.Context(), "app||dead", block.StateRead{})
		return err == nil && !item.Exists
	})
	all := []string{"1", "2", "3", "4", "5", "bytes", "text"}
	for _, tt := range []struct {
		name string
		f    *filter
		want []string
	}{
		{"everything", nil, all},
		{"a string", is("EQ", "state", "CA"), []string{"1", "3"}},
		{"another spelling", is("EQ", "state", "ca"), nil},
		{"a number", is("EQ", "person.age", num("10")), []string{"2"}},
		{"a number in another spelling", is("EQ", "person.age", num("1.005e2")), []string{"3"}},
		{"a number and the text of one", is("EQ", "person.age", num("9")), []string{"1", "4"}},
		{"the text of a number", is("EQ", "person.age", "9"), []string{"1", "4"}},
		{"a boolean", is("EQ", "on", true), []string{"1"}},
		{"null", is("EQ", "state", nil), []string{"4"}},
		{"null, which is not nothing", is("EQ", "none", nil), []string{"1"}},
		{"not null", is("NEQ", "state", nil), []string{"1", "2", "3"}},
		{"not a string", is("NEQ", "state", "CA"), []string{"2"}},
		{"not a number", is("NEQ", "person.age", num("10")), []string{"1", "3", "4"}},
		{"greater, as a number", is("GT", "person.age", num("9")), []string{"2", "3"}},
		{"at least, as a number", is("GTE", "person.age", num("9")), []string{"1", "2", "3"}},
		{"less, as a number", is("LT", "person.age", num("10")), []string{"1"}},
		{"at most, as a number", is("LTE", "person.age", num("10")), []string{"1", "2"}},
		{"greater, as text", is("GT", "person.name", "Bob"), []string{"3", "4"}},
		{"at most, as text", is("LTE", "person.name", "Bob"), []string{"1", "2"}},
		{"one of", is("IN", "state", "WA", "XX", "CA"), []string{"1", "2", "3"}},
		{"one of several kinds", is("IN", "person.age", "9", num("100.50"), nil, true), []string{"1", "3", "4"}},
		{"one of, with null", is("IN", "state", nil, "WA"), []string{"2", "4"}},
		{"both", join("AND", is("EQ", "state", "CA"), is("GT", "person.age", num("50"))), []string{"3"}},
		{"either", join("OR", is("EQ", "person.name", "Ann"), is("EQ", "person.name", "Bob")), []string{"1", "2"}},
		{"nested", join("OR", is("EQ", "person.name", "Dan"), join("AND", is("EQ", "state", "CA"), is("EQ", "on", true))), []string{"1", "4"}},
		{"an element", is("EQ", "tags.0", "x"), []string{"1"}},
		{"a member that is not there", is("EQ", "nothing.at.all", "x"), nil},
		{"a name with a quote", is("EQ", "it's", "o'clock"), []string{"3"}},
		{"an injection by name", is("EQ", `state' = 'CA' OR '1'='1`, "x"), nil},
		{"an injection by value", is("EQ", "state", `CA' OR '1'='1`), nil},
		{"an injection into an array", is("IN", "state", `x"}'); DROP TABLE x; --`, `{},"`), nil},
		{"placeholders", is("EQ", "$1", "$2"), nil},
	} {
		keys, token := find(t, s, app(tt.f))
		if want := append([]string{}, tt.want...); cmp.Diff(want, keys) != "" || token != "" {
			t.Errorf("%s: %v, token %q; want %v", tt.name, keys, token, want)
		}
	}

	// Values come with what is found.
	found, err := s.(block.StateQuery).Query(t.Context(), app(is("EQ", "person.name", "Bob")))
	if item := want(t, s, "app||2", `{"on": false, "state": "WA", "person": {"age": 10, "name": "Bob"}, "dot.ted": 1}`); err != nil || cmp.Diff([]block.StateItem{item}, found.Items) != "" {
		t.Errorf("found %+v, %v; want %+v", found, err, item)
	}

	// Order, pages and their tokens.
	age := block.StateOrder{Path: []string{"person", "age"}, Desc: true}
	q := app(is("IN", "person.name", "Ann", "Bob", "Cid", "Dan"))
	q.Sort = []block.StateOrder{age}
	if keys, _ := find(t, s, q); cmp.Diff([]string{"3", "2", "1", "4"}, keys) != "" {
		t.Errorf("by age, downwards: %v", keys)
	}
	q.Sort = []block.StateOrder{{Path: []string{"state"}}, age}
	if keys, _ := find(t, s, q); cmp.Diff([]string{"4", "3", "1", "2"}, keys) != "" {
		t.Errorf("by state, then age: %v", keys)
	}
	var pages [][]string
	q = app(nil)
	for q.Limit = 3; ; {
		keys, token := find(t, s, q)
		pages = append(pages, keys)
		if q.Token = token; token == "" {
			break
		}
	}
	if d := cmp.Diff([][]string{all[:3], all[3:6], all[6:]}, pages); d != "" {
		t.Errorf("pages (-want +got):\n%s", d)
	}
	if keys, token := find(t, s, block.StateSearch{Apart: "||", Filter: is("EQ", "state", "CA")}); cmp.Diff([]string{"app", "bare"}, keys) != "" || token != "" {
		t.Errorf("keys without a prefix: %v", keys)
	}

	for name, tt := range map[string]struct {
		q    block.StateSearch
		code fault.Code
	}{
		"a token that is none":     {block.StateSearch{Token: "x"}, fault.Invalid},
		"a token below 0":          {block.StateSearch{Token: "-1"}, fault.Invalid},
		"a token beyond all":       {block.StateSearch{Token: "99999999999999999999"}, fault.Invalid},
		"a number beyond numbers":  {app(is("EQ", "a", num("1e999999"))), fault.Invalid},
		"a name that is no letter": {app(is("EQ", "a\xff", "x")), fault.Invalid},
	} {
		if _, err := s.(block.StateQuery).Query(t.Context(), tt.q); fault.Of(err) != tt.code {
			t.Errorf("%s: %v (%v), want %v", name, err, fault.Of(err), tt.code)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.(block.StateQuery).Query(ended, app(nil)); fault.Of(err) != fault.Canceled {
		t.Errorf("an ended context: %v", err)
	}
}

// Version v2 holds bytes: there is nothing to look into.
func TestNoQueryOfBytes(t *testing.T) {
	if s, ok := open(t, "v2", "host", "h").(block.StateQuery); ok {
		t.Errorf("v2 offers queries: %v", s.Queries())
	}
	if s, ok := open(t, "v1", "host", "h").(block.StateQuery); !ok || !s.Queries() {
		t.Error("v1 offers no queries")
	}
}

// JSON is stored as Dapr's sidecars store it, unless the database has no such JSON; then, and
// where there is nothing to look into, as bytes. It is read as what it was.
func TestJSONWrites(t *testing.T) {
	port := servers.Postgres(t).Port
	s := open(t, "v1", at(port)...)
	values := []struct {
		name, value, read string
		binary            bool
	}{
		{"object", ` {"b":1.0,"a":"é"}`, `{"a": "é", "b": 1.0}`, false},
		{"array", `[{"a":1}]`, `[{"a": 1}]`, false},
		{"string", `"text"`, `"text"`, true},
		{"number", `1.50`, `1.50`, true},
		{"null", `null`, `null`, true},
		{"nul", `{"a":"\u0000"}`, `{"a":"\u0000"}`, true},
		{"surrogate", `{"a":"\ud800"}`, `{"a":"\ud800"}`, true},
		{"letters", "{\"a\":\"\xff\"}", "{\"a\":\"\xff\"}", true},
		{"huge", `{"a":1e999999}`, `{"a":1e999999}`, true},
		{"no json", `{"a"`, `{"a"`, true},
	}
	c := sqlConn(t, port)
	check := func(how string) {
		t.Helper()
		for i, v := range values {
			key := fmt.Sprint("app||", i)
			want(t, s, key, v.read)
			if got := text(t, c, `SELECT isbinary::text FROM state WHERE key = $1`, key); got != fmt.Sprint(v.binary) {
				t.Errorf("%s, %s: isbinary is %s, want %v", v.name, how, got, v.binary)
			}
		}
		run(t, c, `DELETE FROM state`)
	}
	var ws []block.StateWrite
	var ops []block.StateOp
	for i, v := range values {
		w := block.StateWrite{Key: fmt.Sprint("app||", i), Value: []byte(v.value), JSON: true}
		if err := s.Set(t.Context(), w); err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		ws, ops = append(ws, w), append(ops, block.StateOp{StateWrite: w})
	}
	check("one by one")
	if errs := s.(block.StateBatch).SetMany(t.Context(), ws); errs != nil {
		t.Fatal(errs)
	}
	check("together")
	if err := s.(block.StateTx).Transact(t.Context(), ops[:2]); err != nil {
		t.Fatal(err)
	}
	want(t, s, "app||0", values[0].read)
	// One value that is unfit makes bytes of the transaction's others: it is one or none.
	if err := s.(block.StateTx).Transact(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	for i, v := range values {
		want(t, s, fmt.Sprint("app||", i), v.value)
	}
	if !ops[0].JSON {
		t.Error("the caller's operations have changed")
	}
	// Order and conditions hold on the way to bytes, too.
	same := []block.StateWrite{{Key: "k", Value: []byte(`{"n":1}`), JSON: true}, {Key: "bad", Value: []byte(`{"a":"\u0000"}`), JSON: true},
		{Key: "first", Value: []byte(`{}`), JSON: true, FirstWrite: true}, {Key: "app||0", Value: []byte(`{}`), JSON: true, ETag: "1"}, {Key: "k", Value: []byte(`{"n":2}`), JSON: true}}
	errs := s.(block.StateBatch).SetMany(t.Context(), same)
	for i, err := range errs {
		if (fault.Of(err) == fault.Conflict) != (i == 3) || (i != 3 && err != nil) {
			t.Errorf("write %d: %v", i, err)
		}
	}
	want(t, s, "k", `{"n": 2}`)
	want(t, s, "bad", `{"a":"\u0000"}`)
}

// A damaged row is found as such, beside the others.
func TestQueryDamaged(t *testing.T) {
	port := servers.Postgres(t).Port
	s := open(t, "v1", at(port)...)
	setJSON(t, s, "app||1", `{"a":1}`)
	run(t, sqlConn(t, port), `INSERT INTO state (key, value, isbinary) VALUES ('app||2', '"*"', true)`)
	found, err := s.(block.StateQuery).Query(t.Context(), app(nil))
	if err != nil || len(found.Items) != 2 || found.Items[0].Err != nil || fault.Of(found.Items[1].Err) != fault.Lost || found.Items[1].Key != "app||2" {
		t.Errorf("found %+v, %v", found, err)
	}
	items, err := s.(block.StateBatch).GetMany(t.Context(), []string{"app||2", "app||1", "app||3"}, block.StateRead{})
	if err != nil || fault.Of(items[0].Err) != fault.Lost || items[0].Exists || string(items[1].Value) != `{"a": 1}` || items[2].Exists || items[2].Err != nil {
		t.Errorf("GetMany: %+v, %v", items, err)
	}
}

func TestQueryTooLarge(t *testing.T) {
	port := servers.Postgres(t).Port
	s := open(t, "v1", at(port)...)
	setJSON(t, s, "app||0", `{"n":0}`)
	run(t, sqlConn(t, port), `INSERT INTO state (key, value, isbinary) SELECT 'app||' || i, jsonb_build_object('n', i, 'x', repeat('x', 10000)), false FROM generate_series(1, 70) i`)
	postgres.Limit(s, 512<<10)
	_, err := s.(block.StateQuery).Query(t.Context(), app(nil))
	if fault.Of(err) != fault.TooLarge || !strings.Contains(err.Error(), "page.limit") {
		t.Errorf("an answer of 700 kB: %v", err)
	}
	q := app(nil)
	q.Limit = 10
	if keys, token := find(t, s, q); len(keys) != 10 || token != "10" {
		t.Errorf("a page of it: %v %q", keys, token)
	}
}

// FuzzStatement: nothing that comes from outside becomes part of a statement.
func FuzzStatement(f *testing.F) {
	f.Add("state", "CA", "app||", "7")
	f.Add("a' OR 'x", "'; DROP TABLE state; --", "$1", "1e5")
	f.Fuzz(func(t *testing.T, path, value, prefix, number string) {
		build := func(path, value, prefix, number string) string {
			p := strings.Split(path, ".")
			return postgres.Statement(&block.StateSearch{Prefix: prefix, Apart: value, Limit: 3, Sort: []block.StateOrder{{Path: p, Desc: true}},
				Filter: join("OR", &filter{Op: "EQ", Path: p, Values: []any{value}}, &filter{Op: "IN", Path: p, Values: []any{value, num(number), nil}},
					&filter{Op: "GT", Path: p, Values: []any{num(number)}})})
		}
		if value == "" {
			return // Apart is another statement then
		}
		if got, want := build(path, value, prefix, number), build("a", "b", "c", "1"); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	})
}
