package postgres_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/postgres"
	"github.com/mecha-project/mecha/test/servers"
)

func newBinding(t testing.TB, items ...string) block.Output {
	t.Helper()
	c := postgres.DefaultBindingConfig()
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	b, err := postgres.NewBinding(block.Env{Log: slog.New(slog.DiscardHandler)}, c)
	if err != nil {
		t.Fatalf("NewBinding: %v", err)
	}
	return b.(block.Output)
}

// openBinding is newBinding with the component closed when the test ends.
func openBinding(t testing.TB, items ...string) block.Output {
	t.Helper()
	b := newBinding(t, items...)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := b.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

// statement is an operation; params is a JSON array or empty.
func statement(op, sql, params string) block.BindingRequest {
	md := map[string]string{"sql": sql, "traceparent": "00-1-2-01"}
	if params != "" {
		md["params"] = params
	}
	return block.BindingRequest{Operation: op, Data: []byte("null"), Metadata: md}
}

func exec(t testing.TB, b block.Output, sql, params string) (affected string) {
	t.Helper()
	a, err := b.Invoke(t.Context(), statement("exec", sql, params))
	if err != nil {
		t.Fatalf("exec %s %s: %v", sql, params, err)
	}
	return a.Metadata["rows-affected"]
}

func query(t testing.TB, b block.Output, sql, params string) (rows string) {
	t.Helper()
	a, err := b.Invoke(t.Context(), statement("query", sql, params))
	if err != nil {
		t.Fatalf("query %s %s: %v", sql, params, err)
	}
	if !json.Valid(a.Data) {
		t.Fatalf("query %s: %s is no JSON", sql, a.Data)
	}
	return string(a.Data)
}

// eachMode runs a test with every way of sending statements.
func eachMode(t *testing.T, test func(t *testing.T, mode string)) {
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) { test(t, mode) })
	}
}

func TestBinding(t *testing.T) {
	port := servers.Postgres(t).Port
	b := openBinding(t, at(port)...)
	exec(t, b, "CREATE TABLE suite (n int)", "")
	for name, works := range map[string]block.BindingRequest{
		"exec": statement("exec", "INSERT INTO suite VALUES ($1)", "[1]"), "query": statement("query", "SELECT 1, $1::text", `["x"]`),
		"exec without parameters": statement("exec", "DELETE FROM suite", ""),
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.Output(t, func(t *testing.T) blocktest.OutputPlace {
				return blocktest.OutputPlace{Open: func() block.Output { return newBinding(t, at(port)...) }, Works: works}
			})
		})
	}
}

func bindingOperations(t *testing.T, port int) {
	eachMode(t, func(t *testing.T, mode string) {
		b := openBinding(t, at(port, "queryExecMode", mode)...)
		table := "t_" + mode
		if n := exec(t, b, "CREATE TABLE "+table+" (id int PRIMARY KEY, name text)", ""); n != "0" {
			t.Errorf("a new table affects %s rows", n)
		}
		if n := exec(t, b, "INSERT INTO "+table+" VALUES ($1, $2), ($3, $4)", `[1, "one", 2, null]`); n != "2" {
			t.Errorf("%s rows were written, want 2", n)
		}
		if n := exec(t, b, "INSERT INTO "+table+" VALUES (3, 'a'); INSERT INTO "+table+" VALUES (4, 'b'); DELETE FROM "+table+" WHERE id > 2", ""); n != "2" {
			t.Errorf("the last of several statements affects %s rows, want 2", n)
		}
		if got := query(t, b, "SELECT id, name FROM "+table+" ORDER BY id", ""); got != `[[1,"one"],[2,null]]` {
			t.Errorf("rows are %s", got)
		}
		if got := query(t, b, "SELECT name FROM "+table+" WHERE id = $1", "[99]"); got != `[]` {
			t.Errorf("no rows are %s", got)
		}
		if got := query(t, b, "INSERT INTO "+table+" VALUES ($1, $2) RETURNING id", `[5, "five"]`); got != `[[5]]` {
			t.Errorf("an insert returns %s", got)
		}
		if got := query(t, b, "DELETE FROM "+table+" WHERE id = 5", ""); got != `[]` {
			t.Errorf("a query without rows returns %s", got)
		}
		// A parameter is a value, whatever it looks like.
		evil := `'); DROP TABLE ` + table + `; --`
		exec(t, b, "INSERT INTO "+table+" VALUES ($1, $2)", `[6, "`+evil+`"]`)
		if got, want := query(t, b, "SELECT name FROM "+table+" WHERE id = 6", ""), `[["`+evil+`"]]`; got != want {
			t.Errorf("the name is %s, want %s", got, want)
		}
		if got := query(t, b, "SELECT query LIKE '%$'||'1%' FROM pg_stat_activity WHERE pid = pg_backend_pid() AND $1::text IS NOT NULL", `["x"]`); got != "[[true]]" {
			t.Errorf("the server sees a statement without parameter: %s", got)
		}
		// The table changes below the statements that the library has kept.
		for range 3 {
			query(t, b, "SELECT * FROM "+table, "")
			query(t, b, "SELECT * FROM "+table+" WHERE id = $1", "[1]")
		}
		exec(t, b, "ALTER TABLE "+table+" ADD COLUMN more int", "")
		for range 3 {
			if got := query(t, b, "SELECT * FROM "+table+" WHERE id = $1", "[1]"); got != `[[1,"one",null]]` {
				t.Errorf("with another column the row is %s", got)
			}
			query(t, b, "SELECT * FROM "+table, "")
		}
	})
}

func bindingMetadata(t *testing.T, port int) {
	b := openBinding(t, at(port)...)
	for op, want := range map[string][]string{"exec": {"duration", "end-time", "operation", "rows-affected", "sql", "start-time"},
		"query": {"duration", "end-time", "operation", "sql", "start-time"}} {
		a, err := b.Invoke(t.Context(), statement(op, "SELECT 1", ""))
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range want {
			if a.Metadata[k] == "" {
				t.Errorf("%s: %s is missing in %v", op, k, a.Metadata)
			}
		}
		if len(a.Metadata) != len(want) || a.Metadata["sql"] != "SELECT 1" || a.Metadata["operation"] != op {
			t.Errorf("%s: %v", op, a.Metadata)
		}
	}
}

// What the types of the database are in JSON, in every way of sending statements.
func TestBindingTypes(t *testing.T) {
	port := servers.Postgres(t).Port
	c := sqlConn(t, port)
	run(t, c, "CREATE TYPE mood AS ENUM ('glad', 'sad and low')")
	run(t, c, "CREATE TYPE pair AS (a int, b text)")
	run(t, c, "CREATE DOMAIN amount AS numeric CHECK (value > 0)")
	cases := []struct{ sql, want string }{
		{"NULL::int", "null"}, {"NULL::jsonb", "null"}, {"NULL::bytea", "null"}, {"NULL::int[]", "null"}, {"NULL::timestamptz", "null"},
		{"(-32768)::int2", "-32768"}, {"2147483647", "2147483647"}, {"9007199254740993::int8", "9007199254740993"}, {"7::oid", "7"},
		{"0.1::float4", "0.1"}, {"1e20::float8", "1e+20"}, {"1.5e-9::float8", "1.5e-09"}, {"'NaN'::float8", `"NaN"`}, {"'-Infinity'::float4", `"-Infinity"`},
		{"12345678901234567890.1200::numeric", "12345678901234567890.1200"}, {"0.00::numeric(5,2)", "0.00"}, {"'NaN'::numeric", `"NaN"`}, {"5::amount", "5"},
		{"true", "true"}, {"false", "false"},
		{`'a"ä' || chr(10)`, `"a\"ä\n"`}, {"'ab'::char(4)", `"ab  "`}, {"''::text", `""`}, {"'n'::name", `"n"`}, {"'x'::\"char\"", `"x"`},
		{`'{"b": 1,  "a": [1.50, 12345678901234567890]}'::json`, `{"b":1,"a":[1.50,12345678901234567890]}`}, {`'{"b":1,"a":null}'::jsonb`, `{"a":null,"b":1}`}, {"'\"x\"'::jsonb", `"x"`},
		{`'\x00ff10'::bytea`, `"AP8Q"`}, {"''::bytea", `""`},
		{"'2026-01-02 03:04:05.123456+05:30'::timestamptz", `"2026-01-01T21:34:05.123456Z"`}, {"'2026-01-02 03:04:05'::timestamp", `"2026-01-02T03:04:05Z"`},
		{"'2026-01-02'::date", `"2026-01-02T00:00:00Z"`}, {"'infinity'::timestamptz", `"infinity"`}, {"'-infinity'::date", `"-infinity"`},
		{"'0001-01-01'::date", `"0001-01-01T00:00:00Z"`}, {"'12:34:56.5'::time", `"12:34:56.5"`}, {"'1 day 2 hours'::interval", `"1 day 02:00:00"`},
		{"'00000000-0000-4000-8000-00000000000a'::uuid", `"00000000-0000-4000-8000-00000000000a"`},
		{"'10.0.0.1'::inet", `"10.0.0.1"`}, {"'[1,5)'::int4range", `"[1,5)"`}, {"'(1,2)'::point", `"(1,2)"`}, {"B'101'", `"101"`}, {"'<a/>'::xml", `"<a/>"`},
		{"'sad and low'::mood", `"sad and low"`}, {"'{glad,sad and low}'::mood[]", `"{glad,\"sad and low\"}"`}, {"ROW(1,'x')::pair", `"(1,x)"`}, {"ROW(1,'x')", `"(1,x)"`},
		{"ARRAY[1,NULL,3]", "[1,null,3]"}, {"'{}'::int[]", "[]"}, {"ARRAY[[1,2],[3,4]]", "[[1,2],[3,4]]"}, {"'[5:6]={1,2}'::int[]", "[1,2]"},
		{`ARRAY['a"b','NULL',NULL,'x,y','']`, `["a\"b","NULL",null,"x,y",""]`}, {"ARRAY[true,false]", "[true,false]"}, {"ARRAY[1.50,2]::numeric[]", "[1.50,2]"},
		{`ARRAY['{"a":1}','[2]']::jsonb[]`, `[{"a":1},[2]]`}, {`ARRAY['\x01','\xff']::bytea[]`, `["AQ==","/w=="]`},
		{"ARRAY['2026-01-02 03:04:05+00','infinity']::timestamptz[]", `["2026-01-02T03:04:05Z","infinity"]`},
		{"ARRAY['2026-01-02']::date[]", `["2026-01-02T00:00:00Z"]`}, {"ARRAY['1 day']::interval[]", `"{\"1 day\"}"`},
		{"ARRAY['00000000-0000-4000-8000-00000000000a']::uuid[]", `["00000000-0000-4000-8000-00000000000a"]`},
	}
	eachMode(t, func(t *testing.T, mode string) {
		b := openBinding(t, at(port, "queryExecMode", mode)...)
		for _, tt := range cases {
			if got := query(t, b, "SELECT "+tt.sql, ""); got != "[["+tt.want+"]]" {
				t.Errorf("%s: %s, want %s", tt.sql, got, tt.want)
			}
		}
		for sql, want := range map[string]string{ // which have no form in RFC 3339
			"'12026-01-02'::date": "12026-01-02", "'0044-03-15 BC'::date": "0044-03-15 BC", "'0044-03-15 03:04:05 BC'::timestamp": "0044-03-15 03:04:05", "'12026-01-02 03:04:05+00'::timestamptz": "12026-01-02 03:04:05",
		} {
			var got [][]string
			if err := json.Unmarshal([]byte(query(t, b, "SELECT "+sql, "")), &got); err != nil || !strings.HasPrefix(got[0][0], want) {
				t.Errorf("%s: %q, %v; want %s", sql, got, err, want)
			}
		}
		if got := query(t, b, "SELECT", ""); got != "[[]]" {
			t.Errorf("a row without columns is %s", got)
		}
	})
	// Settings of the role do not change it.
	run(t, c, "ALTER ROLE postgres SET datestyle = 'German'")
	run(t, c, "ALTER ROLE postgres SET timezone = 'Asia/Kolkata'")
	run(t, c, "ALTER ROLE postgres SET bytea_output = 'escape'")
	b := openBinding(t, at(port)...)
	if got, want := query(t, b, `SELECT '2026-01-02 03:04:05+00'::timestamptz, '2026-01-02'::date, '\x00'::bytea`, ""), `[["2026-01-02T03:04:05Z","2026-01-02T00:00:00Z","AA=="]]`; got != want {
		t.Errorf("with settings of the role: %s, want %s", got, want)
	}
}

// Parameters become what the statement wants.
func bindingParams(t *testing.T, port int) {
	run(t, sqlConn(t, port), "CREATE TYPE mood AS ENUM ('glad', 'sad and low')")
	eachMode(t, func(t *testing.T, mode string) {
		b := openBinding(t, at(port, "queryExecMode", mode)...)
		for _, tt := range []struct{ sql, params, want string }{
			{"$1::int + 1, $2::int8, $3::numeric, $4::float8", "[1, 9007199254740993, 1.50, 1e-3]", "2,9007199254740993,1.50,0.001"},
			{"$1::int, $2::int2, $3::int8, $4::int", "[1.0, 1e3, -2.0e0, 7]", "1,1000,-2,7"},
			{"$1::text, $2::varchar, $3::text", `["a'b\\\"", 12, ""]`, `"a'b\\\"","12",""`},
			{"$1::bool, $2::bool, $3::bool IS NULL", "[true, false, null]", "true,false,true"},
			{"$1::jsonb, $2::json, $3::jsonb", `[{"a":[1]}, [1, "x"], "[1]"]`, `{"a":[1]},[1,"x"],[1]`},
			{"$1::text, $2::text", `[{"a":1}, [1,2]]`, `"{\"a\":1}","[1,2]"`},
			{"$1::int[], 2 = ANY($2::int[]), $3::text[]", `[[1,null,3], [1,2], ["a\"b,", "NULL", null, "\\", ""]]`, `[1,null,3],true,["a\"b,","NULL",null,"\\",""]`},
			{"$1::int[], $2::int[], $3::bool[]", "[[[1,2],[3,4]], [], [true]]", "[[1,2],[3,4]],[],[true]"},
			{"$1::jsonb[]", `[[{"a":"x\"y"}, "s", [1], 2, null]]`, `[{"a":"x\"y"},"s",[1],2,null]`},
			{"$1::mood, ($2::mood[])[1]", `["glad", ["sad and low"]]`, `"glad","sad and low"`},
			{"$1::timestamptz, $2::date, $3::uuid", `["2026-01-02T03:04:05+01:00", "2026-01-02", "00000000-0000-4000-8000-00000000000a"]`, `"2026-01-02T02:04:05Z","2026-01-02T00:00:00Z","00000000-0000-4000-8000-00000000000a"`},
			{"$1::bytea", `["\\x00ff"]`, `"AP8="`},
			{"lower($1)", `["ABC"]`, `"abc"`},
		} {
			if got := query(t, b, "SELECT "+tt.sql, tt.params); got != "[["+tt.want+"]]" {
				t.Errorf("%s %s: %s, want %s", tt.sql, tt.params, got, tt.want)
			}
		}
	})
}

func TestBindingRefusals(t *testing.T) {
	port := servers.Postgres(t).Port
	c := sqlConn(t, port)
	run(t, c, "CREATE TABLE r (id int PRIMARY KEY, n int CHECK (n > 0), s varchar(3) NOT NULL DEFAULT '')")
	run(t, c, "INSERT INTO r VALUES (1, 1)")
	run(t, c, "CREATE ROLE weak LOGIN PASSWORD 'weak'")
	run(t, c, "CREATE PROCEDURE half() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO r VALUES (50, 1); COMMIT; PERFORM 1/0; END $$")
	eachMode(t, func(t *testing.T, mode string) {
		b := openBinding(t, at(port, "queryExecMode", mode)...)
		for _, tt := range []struct {
			op, sql, params string
			code            fault.Code
			sent            fault.Sent
			text            string
		}{
			{"exec", "SELEC 1", "", fault.Invalid, fault.SentMaybe, "syntax error"},
			{"query", "SELECT FROM WHERE", "", fault.Invalid, fault.SentNever, "syntax error"},
			{"query", "SELECT * FROM nowhere", "", fault.NotFound, fault.SentNever, `relation "nowhere" does not exist`},
			{"query", "SELECT no FROM r", "", fault.Invalid, fault.SentNever, `column "no" does not exist`},
			{"query", "SELECT nofunc(1)", "", fault.NotFound, fault.SentNever, "nofunc"},
			{"exec", "INSERT INTO r VALUES ($1, 1)", "[1]", fault.Exists, fault.SentNever, "duplicate key"},
			{"exec", "INSERT INTO r VALUES ($1, $2)", "[2, 0]", fault.Conflict, fault.SentNever, "check constraint"},
			{"exec", "INSERT INTO r VALUES (2, 1, $1)", "[null]", fault.Conflict, fault.SentNever, "null value"},
			{"exec", "INSERT INTO r VALUES (2, 1, $1)", `["long"]`, fault.Invalid, fault.SentNever, "too long"},
			{"query", "SELECT 1/$1::int", "[0]", fault.Invalid, fault.SentNever, "division by zero"},
			{"exec", "CREATE TABLE r ()", "", fault.Exists, fault.SentMaybe, "already exists"},
			{"query", "SELECT $1::int, $2::int", `[1, "x1y2"]`, fault.Invalid, fault.SentNever, "metadata entry params element [1] (string): the database refuses it: ERROR: invalid input syntax for type integer"},
			{"query", "SELECT $1::int", "[1.5]", fault.Invalid, fault.SentNever, "element [0] (number)"},
			{"query", "SELECT $1::int, $2::text", `[{"a":1}, "x"]`, fault.Invalid, fault.SentNever, "element [0] (object)"},
			{"query", "SELECT $1::int[]", `[["x"]]`, fault.Invalid, fault.SentNever, "element [0] (array)"},
			{"query", "SELECT $1::text", `["a\u0000b"]`, fault.Invalid, fault.SentNever, "element [0] (string): holds NUL"},
			{"query", "SELECT $1::int, $2::int", "[1]", fault.Invalid, fault.SentUnknown, ""},
			{"query", "SELECT $1::int", "[1, 2]", fault.Invalid, fault.SentUnknown, ""},
			{"query", "SELECT $1::int, $2::int[]", "[[1]]", fault.Invalid, fault.SentNever, "metadata entry params has 1 elements and the statement 2 parameters"},
			{"query", "SELECT 1; SELECT 2", "", fault.Invalid, fault.SentMaybe, "multiple commands"},
			{"exec", "SELECT 1; SELECT $1::int", "[1]", fault.Invalid, fault.SentMaybe, "multiple commands"},
			{"exec", "COPY r FROM STDIN", "", fault.Unsupported, fault.SentNever, "COPY"},
			{"query", "copy r TO stdout", "", fault.Unsupported, fault.SentNever, "COPY"},
			{"exec", "CALL half()", "", fault.Invalid, fault.SentMaybe, "division by zero"},
			{"exec", "INSERT INTO r VALUES (60, 1); COMMIT; SELECT 1/0", "", fault.Invalid, fault.SentMaybe, "division by zero"},
			{"exec", "SET statement_timeout = '50ms'; SELECT pg_sleep(20)", "", fault.Deadline, fault.SentMaybe, "statement timeout"},
			{"query", "", "", fault.Invalid, fault.SentNever, "metadata entry sql is missing"},
			{"query", "SELECT 1", "{}", fault.Invalid, fault.SentNever, "metadata entry params is no JSON array"},
		} {
			a, err := b.Invoke(t.Context(), statement(tt.op, tt.sql, tt.params))
			if a != nil || fault.Of(err) != tt.code || tt.sent != fault.SentUnknown && fault.SentOf(err) != tt.sent || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%s %s: %v (%v, sent %v); want %v, sent %v, %s", tt.sql, tt.params, err, fault.Of(err), fault.SentOf(err), tt.code, tt.sent, tt.text)
			}
			run(t, c, "DELETE FROM r WHERE id IN (50, 60)")
		}
		if got := query(t, b, "SELECT * FROM r", ""); got != `[[1,1,""]]` {
			t.Errorf("refused statements have changed something: %s", got)
		}
	})
	weak := openBinding(t, "host", "127.0.0.1", "port", strconv.Itoa(port), "database", "postgres", "user", "weak", "password", "weak")
	_, err := weak.Invoke(t.Context(), statement("query", "SELECT * FROM r", ""))
	if fault.Of(err) != fault.Denied {
		t.Errorf("a table of others: %v (%v)", err, fault.Of(err))
	}
}

// A transaction or a setting that a statement leaves behind is nobody else's.
func bindingLeftTransaction(t *testing.T, port int) {
	b := openBinding(t, at(port, "maxConns", "1")...)
	exec(t, b, "CREATE TABLE l (n int)", "")
	exec(t, b, "BEGIN; INSERT INTO l VALUES (1)", "")
	if got := query(t, b, "SELECT count(*) FROM l", ""); got != "[[0]]" {
		t.Errorf("%s rows of a transaction that nobody has ended", got)
	}
}

func bindingMaxResult(t *testing.T, port int) {
	b := openBinding(t, at(port, "maxResultSize", "10k", "maxConns", "1")...)
	start := time.Now()
	_, err := b.Invoke(t.Context(), statement("query", "SELECT repeat('x', 1000), generate_series(1, 100000000)", ""))
	if fault.Of(err) != fault.TooLarge || !strings.Contains(err.Error(), "maxResultSize, 10k") {
		t.Errorf("%v (%v)", err, fault.Of(err))
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("it took %v: all rows were read", took)
	}
	if got := query(t, b, "SELECT repeat('x', 9000)", ""); len(got) != 9006 {
		t.Errorf("%d bytes", len(got))
	}
}

// The operation close gives up connections; the next statement makes another.
func bindingClose(t *testing.T, port int) {
	c := sqlConn(t, port)
	b := openBinding(t, at(port)...)
	for range 2 {
		query(t, b, "SELECT 1", "")
		if n := text(t, c, ours); n != "1" {
			t.Errorf("%s connections, want 1", n)
		}
		for range 2 {
			if a, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "close"}); a != nil || err != nil {
				t.Errorf("close: %+v, %v", a, err)
			}
		}
		waitFor(t, "the connection to leave", func() bool { return text(t, c, ours) == "0" })
	}
}

// Statements at the same time, over fewer connections than there are callers.
func bindingAtOnce(t *testing.T, port int) {
	b := openBinding(t, at(port, "maxConns", "3")...)
	exec(t, b, "CREATE TABLE n (id int PRIMARY KEY, n int)", "")
	exec(t, b, "INSERT INTO n VALUES (1, 0)", "")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 25 {
				if _, err := b.Invoke(t.Context(), statement("exec", "UPDATE n SET n = n + $1 WHERE id = $2", "[1, 1]")); err != nil {
					t.Errorf("exec: %v", err)
				}
				a, err := b.Invoke(t.Context(), statement("query", "SELECT $1::int", fmt.Sprintf("[%d]", i)))
				if err != nil || string(a.Data) != fmt.Sprintf("[[%d]]", i) {
					t.Errorf("query: %+v, %v", a, err)
				}
			}
		})
	}
	wg.Wait()
	if got := query(t, b, "SELECT n FROM n", ""); got != "[[200]]" {
		t.Errorf("the number is %s, want 200", got)
	}
}

// What was acknowledged is there after a crash; what failed says whether it may be.
func TestBindingKilledServer(t *testing.T) {
	server := servers.Postgres(t)
	b := openBinding(t, at(server.Port)...)
	exec(t, b, "CREATE TABLE k (id int)", "")
	var stop atomic.Bool
	var acked, unsure atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				_, err := b.Invoke(context.Background(), statement("exec", "INSERT INTO k VALUES ($1)", "[1]"))
				switch {
				case err == nil:
					acked.Add(1)
				case fault.Of(err) != fault.Unavailable:
					t.Errorf("exec: %v (%v)", err, fault.Of(err))
				case fault.SentOf(err) == fault.SentMaybe:
					unsure.Add(1)
				case fault.SentOf(err) != fault.SentNever:
					t.Errorf("exec: %v: nobody knows how far it got", err)
				}
				if err != nil {
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	more := func() {
		before := acked.Load()
		waitFor(t, "statements to succeed", func() bool { return acked.Load() > before+20 })
	}
	for range 2 {
		more()
		server.Kill()
		server.Start(t)
	}
	more()
	stop.Store(true)
	wg.Wait()
	var rows [][]int64
	if err := json.Unmarshal([]byte(query(t, b, "SELECT count(*) FROM k", "")), &rows); err != nil {
		t.Fatal(err)
	}
	if n := rows[0][0]; n < acked.Load() || n > acked.Load()+unsure.Load() {
		t.Errorf("%d rows; %d were acknowledged, %d may have happened", n, acked.Load(), unsure.Load())
	}
}

func TestBindingSilentAndCut(t *testing.T) {
	server := servers.Postgres(t)
	relay := servers.NewRelay(t, server.Port)
	b := openBinding(t, at(relay.Port, "timeout", "1s")...)
	query(t, b, "SELECT 1", "")
	done := make(chan error, 1)
	go func() {
		_, err := b.Invoke(context.Background(), statement("query", "SELECT pg_sleep(20)", ""))
		done <- err
	}()
	c := sqlConn(t, server.Port)
	waitFor(t, "the statement to run", func() bool {
		return text(t, c, "SELECT count(*)::text FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active' AND application_name = 'mecha'") == "1"
	})
	relay.Cut()
	if err := <-done; fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("cut: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	query(t, b, "SELECT 1", "")
	server.Freeze()
	defer server.Thaw()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := b.Invoke(ctx, statement("exec", "SELECT 1", ""))
	if fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentMaybe || time.Since(start) > 10*time.Second {
		t.Errorf("silent, after %v: %v (%v, sent %v)", time.Since(start), err, fault.Of(err), fault.SentOf(err))
	}
	_, err = b.Invoke(t.Context(), statement("exec", "SELECT 1", ""))
	if fault.Of(err) != fault.Unavailable {
		t.Errorf("silent, beyond the timeout: %v (%v)", err, fault.Of(err))
	}
	server.Thaw()
	waitFor(t, "the binding to work again", func() bool { _, err := b.Invoke(t.Context(), statement("exec", "SELECT 1", "")); return err == nil })
}

// On one server, for starting one takes long.
func TestBindingMore(t *testing.T) {
	port := servers.Postgres(t).Port
	for name, test := range map[string]func(*testing.T, int){
		"operations": bindingOperations, "metadata": bindingMetadata, "params": bindingParams, "left transaction": bindingLeftTransaction,
		"large result": bindingMaxResult, "close": bindingClose, "at once": bindingAtOnce, "secrets": bindingSecrets,
	} {
		t.Run(name, func(t *testing.T) { test(t, port) })
	}
}

// No error and no configuration finding holds the password.
func bindingSecrets(t *testing.T, port int) {
	dsn := func(password string) string {
		u := url.URL{Scheme: "postgres", User: url.UserPassword("postgres", password), Host: fmt.Sprint("127.0.0.1:", port), Path: "postgres"}
		return u.String()
	}
	good := openBinding(t, "url", dsn(servers.SQLPassword))
	query(t, good, "SELECT 1", "")
	_, err := openBinding(t, "connectionString", dsn("gu3ss")).Invoke(t.Context(), statement("query", "SELECT 1", ""))
	if fault.Of(err) != fault.Denied || fault.SentOf(err) != fault.SentNever || strings.Contains(err.Error(), "gu3ss") {
		t.Errorf("a wrong password: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	for name, items := range map[string][]string{
		"no address": {"connectionString", "postgres://u:gu3ss@h:port/x"}, "nothing": {}, "no size": {"host", "h", "password", "gu3ss", "maxResultSize", "0"},
		"no way of sending": {"host", "h", "queryExecMode", "none"},
	} {
		err := conf.Decode(conf.Items(items...), postgres.DefaultBindingConfig()).Err()
		if err == nil || strings.Contains(err.Error(), "gu3ss") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever a server sends, the answer is JSON or an error.
func FuzzBindingValue(f *testing.F) {
	for i, s := range []string{"", "1", "NaN", "{1,NULL,3}", "{{1,2},{3,4}}", "[5:6]={1,2}", "[0:2000000000]={}", `{"a\"b",""}`, "2026-01-02 03:04:05+00", "infinity", `\x00ff`, `{"a": 1}`, "\x00\x00\x00\x00\x00\x00\x00\x00", "{"} {
		f.Add(uint8(i), i%2 == 0, []byte(s))
	}
	oids := []uint32{pgtype.Int4OID, pgtype.NumericOID, pgtype.BoolOID, pgtype.JSONBOID, pgtype.ByteaOID, pgtype.DateOID, pgtype.TimestampOID, pgtype.TimestamptzOID,
		pgtype.TextOID, pgtype.UUIDOID, pgtype.Int4ArrayOID, pgtype.TextArrayOID, pgtype.ByteaArrayOID, pgtype.TimestamptzArrayOID, pgtype.JSONBArrayOID, pgtype.IntervalOID, 4242424}
	f.Fuzz(func(t *testing.T, kind uint8, binary bool, raw []byte) {
		oid, format := oids[int(kind)%len(oids)], int16(0)
		switch oid {
		case pgtype.ByteaOID, pgtype.DateOID, pgtype.TimestampOID, pgtype.TimestamptzOID: // the only ones asked for so
			if binary {
				format = 1
			}
		}
		if out, err := postgres.AppendValue(oid, format, raw); err == nil && !json.Valid(out) {
			t.Fatalf("type %d, format %d, %q is %s", oid, format, raw, out)
		}
	})
}

func TestBindingPart(t *testing.T) {
	set, err := block.NewSet(postgres.Backend())
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, typ := range []string{"bindings.postgresql", "bindings.postgres"} {
		if p, ok := set.Find(typ, "v1"); ok {
			types = append(types, p.Type())
		}
	}
	if d := cmp.Diff([]string{"bindings.postgresql", "bindings.postgresql"}, types); d != "" {
		t.Error(d)
	}
}
