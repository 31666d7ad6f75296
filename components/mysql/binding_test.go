package mysql_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/mysql"
	"github.com/mecha-project/mecha/test/servers"
)

func newBinding(t testing.TB, items ...string) block.Output {
	t.Helper()
	c := mysql.DefaultBindingConfig()
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	b, err := mysql.NewBinding(block.Env{Log: slog.New(slog.DiscardHandler)}, c)
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

// shop is the address of the database of these tests.
func shop(t testing.TB, port int, options string) string {
	t.Helper()
	run(t, direct(t, port, ""), "CREATE DATABASE IF NOT EXISTS shop CHARACTER SET utf8mb4")
	return address(servers.SQLPassword, port, "shop"+options)
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

func TestBinding(t *testing.T) {
	port := servers.MySQL(t).Port
	url := shop(t, port, "")
	b := openBinding(t, "url", url)
	exec(t, b, "CREATE TABLE suite (n int)", "")
	for name, works := range map[string]block.BindingRequest{
		"exec": statement("exec", "INSERT INTO suite VALUES (?)", "[1]"), "query": statement("query", "SELECT 1, ?", `["x"]`),
		"exec without parameters": statement("exec", "DELETE FROM suite", ""), "query without parameters": statement("query", "SELECT 1", ""),
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.Output(t, func(t *testing.T) blocktest.OutputPlace {
				return blocktest.OutputPlace{Open: func() block.Output { return newBinding(t, "url", url) }, Works: works}
			})
		})
	}
	for name, test := range map[string]func(*testing.T, int){
		"operations": bindingOperations, "types": bindingTypes, "params": bindingParams, "refusals": bindingRefusals, "close": bindingClose,
		"large result": bindingMaxResult, "at once": bindingAtOnce, "session": bindingSession, "left transaction": bindingLeftTransaction, "secrets": bindingSecrets,
	} {
		t.Run(name, func(t *testing.T) { test(t, port) })
	}
}

func bindingOperations(t *testing.T, port int) {
	// What the address says about parameters does not count.
	for name, options := range map[string]string{"plain": "", "spliced": "?interpolateParams=true&parseTime=false&charset=latin1"} {
		t.Run(name, func(t *testing.T) {
			b := openBinding(t, "url", shop(t, port, options), "maxOpenConns", "1")
			bound := func() string {
				return query(t, b, "SELECT VARIABLE_VALUE AS n FROM information_schema.SESSION_STATUS WHERE VARIABLE_NAME = 'COM_STMT_EXECUTE'", "")
			}
			before := bound()
			query(t, b, "SELECT ?", `["x"]`)
			if after := bound(); after == before {
				t.Errorf("the server has seen no statement with parameters: %s", after)
			}
			table := "t_" + name
			if n := exec(t, b, "CREATE TABLE "+table+" (id int PRIMARY KEY, name varchar(99))", ""); n != "0" {
				t.Errorf("a new table affects %s rows", n)
			}
			if n := exec(t, b, "INSERT INTO "+table+" VALUES (?, ?), (?, ?)", `[1, "öne 🙂", 2, null]`); n != "2" {
				t.Errorf("%s rows were written, want 2", n)
			}
			if got := query(t, b, "SELECT id, name FROM "+table+" ORDER BY id", ""); got != `[{"id":1,"name":"öne 🙂"},{"id":2,"name":null}]` {
				t.Errorf("rows are %s", got)
			}
			if got := query(t, b, "SELECT name FROM "+table+" WHERE id = ?", "[99]"); got != `[]` {
				t.Errorf("no rows are %s", got)
			}
			if got := query(t, b, "SELECT a.id, b.id FROM "+table+" a JOIN "+table+" b ON b.id = a.id + 1", ""); got != `[{"id":2}]` {
				t.Errorf("of two columns with one name the last is to count: %s", got)
			}
			if got := query(t, b, "DELETE FROM "+table+" WHERE id = 2", ""); got != `[]` {
				t.Errorf("a query without rows returns %s", got)
			}
			if got := query(t, b, "SELECT id FROM "+table+" LIMIT ?", "[1.0]"); got != `[{"id":1}]` {
				t.Errorf("with a limit: %s", got)
			}
			evil := `'); DROP TABLE ` + table + `; -- ?`
			exec(t, b, "INSERT INTO "+table+" VALUES (?, ?)", `[6, "`+evil+`"]`)
			if got, want := query(t, b, "SELECT name FROM "+table+" WHERE id = ?", "[6]"), `[{"name":"`+evil+`"}]`; got != want {
				t.Errorf("the name is %s, want %s", got, want)
			}
			a, err := b.Invoke(t.Context(), statement("query", "SELECT 1 AS one", ""))
			if err != nil || len(a.Metadata) != 5 || a.Metadata["sql"] != "SELECT 1 AS one" || a.Metadata["operation"] != "query" || a.Metadata["duration"] == "" || a.Metadata["start-time"] == "" || a.Metadata["end-time"] == "" {
				t.Errorf("metadata %v, %v", a.Metadata, err)
			}
		})
	}
}

// What the types of the database are in JSON, over both of the server's ways to send them.
func bindingTypes(t *testing.T, port int) {
	b := openBinding(t, "url", shop(t, port, ""))
	exec(t, b, `CREATE TABLE types (
		tiny tinyint, yes boolean, small smallint unsigned, medium mediumint, i int zerofill, big bigint, ubig bigint unsigned,
		f float, d double, dec_ decimal(30,4), yr year, bits bit(9),
		c char(4), vc varchar(20), txt text, en enum('a','b c'), st set('x','y'), js json,
		bin binary(3), vb varbinary(9), bl blob, dt date, tm time, dtm datetime(6), ts timestamp(3) NULL, geo point)`, "")
	exec(t, b, `INSERT INTO types VALUES (-128, true, 65535, -8388608, 42, -9223372036854775808, 18446744073709551615,
		0.1, 1e-9, '12345678901234567890.1200', 2026, b'100000001',
		'ab', 'a"ä', 'x\ny', 'b c', 'x,y', '{"b": 1, "a": [1.50]}',
		X'00FF', X'00ff10', X'', '2026-01-02', '-12:34:56', '2026-01-02 03:04:05.123456', '2026-01-02 03:04:05.120', POINT(1, 2))`, "")
	exec(t, b, "INSERT INTO types () VALUES ()", "")
	want := map[string]string{"tiny": "-128", "yes": "1", "small": "65535", "medium": "-8388608", "i": "42", "big": "-9223372036854775808", "ubig": "18446744073709551615",
		"f": "0.1", "d": "1e-09", "dec_": `"12345678901234567890.1200"`, "yr": "2026", "bits": `"AQE="`,
		"c": `"ab"`, "vc": `"a\"ä"`, "txt": `"x\ny"`, "en": `"b c"`, "st": `"x,y"`, "js": `"{\"b\": 1, \"a\": [1.50]}"`,
		"bin": `"AP8A"`, "vb": `"AP8Q"`, "bl": `""`, "dt": `"2026-01-02T00:00:00Z"`, "tm": `"-12:34:56"`,
		"dtm": `"2026-01-02T03:04:05.123456Z"`, "ts": `"2026-01-02T03:04:05.12Z"`, "geo": `"AAAAAAEBAAAAAAAAAAAA8D8AAAAAAAAAQA=="`}
	for _, tt := range []struct{ sql, params string }{{"SELECT * FROM types", ""}, {"SELECT * FROM types WHERE 1 = ?", "[1]"}} {
		var rows []map[string]json.RawMessage
		if err := json.Unmarshal([]byte(query(t, b, tt.sql, tt.params)), &rows); err != nil || len(rows) != 2 || len(rows[0]) != len(want) {
			t.Fatalf("%v: %d rows, %v", err, len(rows), rows)
		}
		for column, v := range want {
			got := string(rows[0][column])
			if column == "d" {
				got = strings.Replace(got, "e-9", "e-09", 1) // the two ways differ
			}
			if got != v {
				t.Errorf("%s: column %s is %s, want %s", tt.sql, column, got, v)
			}
			if string(rows[1][column]) != "null" {
				t.Errorf("%s: column %s is %s, want null", tt.sql, column, rows[1][column])
			}
		}
	}
	// MariaDB has no type for JSON on its wire; MySQL has.
	if got := mysql.AppendValue(nil, "JSON", []byte(`{"b": 1}`)); string(got) != `{"b":1}` {
		t.Errorf("JSON is %s", got)
	}
}

func bindingParams(t *testing.T, port int) {
	b := openBinding(t, "url", shop(t, port, ""))
	exec(t, b, "CREATE TABLE params (i bigint, u bigint unsigned, d decimal(40,20), f double, s text, j json, b boolean, at datetime(6), x blob)", "")
	exec(t, b, "INSERT INTO params VALUES (?, ?, ?, ?, ?, ?, ?, ?, FROM_BASE64(?))",
		`[9007199254740993, 18446744073709551615, 12345678901234567890.12345678901234567890, 1.5e-3, "a'b\\\"\u0000ä", {"a":[1, null]}, true, "2026-01-02 03:04:05.5", "AP8="]`)
	want := `[{"i":9007199254740993,"u":18446744073709551615,"d":"12345678901234567890.12345678901234567890","f":0.0015,"s":"a'b\\\"\u0000ä","j":"{\"a\":[1,null]}","b":1,"at":"2026-01-02T03:04:05.5Z","x":"AP8="}]`
	if got := query(t, b, "SELECT * FROM params", ""); got != want {
		t.Errorf("rows are\n%s, want\n%s", got, want)
	}
	if got := query(t, b, "SELECT i FROM params WHERE f = ? AND b = ? AND j = ?", `[0.0015, true, {"a":[1,null]}]`); got != `[{"i":9007199254740993}]` {
		t.Errorf("found %s", got)
	}
	exec(t, b, "INSERT INTO params (i, s) VALUES (?, ?)", `[1e3, [1, "x"]]`)
	if got := query(t, b, "SELECT i, s FROM params WHERE u IS NULL", ""); got != `[{"i":1000,"s":"[1,\"x\"]"}]` {
		t.Errorf("rows are %s", got)
	}
}

func bindingRefusals(t *testing.T, port int) {
	db := direct(t, port, "")
	url := shop(t, port, "")
	b := openBinding(t, "url", url)
	run(t, db, "CREATE TABLE shop.r (id int PRIMARY KEY, n int CHECK (n > 0), s varchar(3) NOT NULL DEFAULT '')")
	run(t, db, "INSERT INTO shop.r VALUES (1, 1, '')")
	run(t, db, "CREATE USER weak IDENTIFIED BY 'weak'")
	run(t, db, "GRANT SELECT ON shop.r TO weak")
	for _, tt := range []struct {
		op, sql, params string
		code            fault.Code
		sent            fault.Sent
		text            string
	}{
		{"exec", "SELEC 1", "", fault.Invalid, fault.SentMaybe, "SQL syntax"},
		{"query", "SELECT * FROM nowhere", "", fault.NotFound, fault.SentNever, "nowhere"},
		{"query", "SELECT no FROM r", "", fault.Invalid, fault.SentNever, "no"},
		{"query", "SELECT * FROM nodb.t", "", fault.NotFound, fault.SentNever, "nodb"},
		{"exec", "INSERT INTO r VALUES (?, 1, '')", "[1]", fault.Exists, fault.SentNever, "Duplicate"},
		{"exec", "INSERT INTO r VALUES (?, ?, '')", "[2, 0]", fault.Conflict, fault.SentNever, "CONSTRAINT"},
		{"exec", "INSERT INTO r VALUES (2, 1, ?)", "[null]", fault.Conflict, fault.SentNever, "null"},
		{"exec", "INSERT INTO r VALUES (2, 1, ?)", `["long"]`, fault.Invalid, fault.SentNever, "too long"},
		{"exec", "INSERT INTO r (id) VALUES (?)", `["x1"]`, fault.Invalid, fault.SentNever, "x1"},
		{"query", "SELECT ?, ?", "[1]", fault.Invalid, fault.SentNever, "metadata entry params and the statement do not fit: expected 2 arguments, got 1; give one for each ?"},
		{"exec", "SELECT 1", "[1]", fault.Invalid, fault.SentNever, "expected 0 arguments, got 1"},
		{"exec", "DELETE FROM r; DELETE FROM r", "", fault.Invalid, fault.SentMaybe, "SQL syntax"},
		{"exec", "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'", "", fault.Invalid, fault.SentMaybe, "no"},
		{"query", "", "", fault.Invalid, fault.SentNever, "metadata entry sql is missing"},
		{"query", "SELECT 1", "7", fault.Invalid, fault.SentNever, "metadata entry params is no JSON array"},
		{"exec", "INSERT INTO r VALUES (9, 1, ?)", `["` + strings.Repeat("x", 20<<20) + `"]`, fault.TooLarge, fault.SentNever, "max_allowed_packet"},
		{"exec", "LOAD DATA LOCAL INFILE '/etc/hostname' INTO TABLE r", "", fault.Invalid, fault.SentUnknown, ""},
	} {
		a, err := b.Invoke(t.Context(), statement(tt.op, tt.sql, tt.params))
		short := tt.params[:min(len(tt.params), 40)]
		if err == nil || a != nil || tt.text != "" && (fault.Of(err) != tt.code || fault.SentOf(err) != tt.sent) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s %s: %.300v (%v, sent %v); want %v, sent %v, %s", tt.sql, short, err, fault.Of(err), fault.SentOf(err), tt.code, tt.sent, tt.text)
		}
	}
	if got := query(t, b, "SELECT * FROM r", ""); got != `[{"id":1,"n":1,"s":""}]` {
		t.Errorf("refused statements have changed something: %s", got)
	}
	weak := openBinding(t, "url", fmt.Sprintf("weak:weak@tcp(127.0.0.1:%d)/shop", port))
	_, err := weak.Invoke(t.Context(), statement("exec", "DELETE FROM r", ""))
	if fault.Of(err) != fault.Denied || fault.SentOf(err) != fault.SentNever {
		t.Errorf("a table of others: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	// Several statements, for those who ask for it.
	many := openBinding(t, "url", shop(t, port, "?multiStatements=true"))
	_, err = many.Invoke(t.Context(), statement("exec", "INSERT INTO r VALUES (5, 1, ''); INSERT INTO r VALUES (1, 1, '')", ""))
	if fault.Of(err) != fault.Exists || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("the second of two statements: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	exec(t, b, "DELETE FROM r WHERE id = 5", "")
	slow := openBinding(t, "url", shop(t, port, "?max_statement_time=0.05"))
	_, err = slow.Invoke(t.Context(), statement("query", "SELECT SLEEP(20) FROM r", ""))
	if fault.Of(err) != fault.Deadline {
		t.Errorf("the server's own bound: %v (%v)", err, fault.Of(err))
	}
}

// The operation close gives up connections; the next statement makes another.
func bindingClose(t *testing.T, port int) {
	b := openBinding(t, "url", shop(t, port, ""))
	id := func() string { return query(t, b, "SELECT CONNECTION_ID()", "") }
	first := id()
	if again := id(); again != first {
		t.Errorf("two connections for one caller: %s, %s", first, again)
	}
	for range 2 {
		if a, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "close"}); a != nil || err != nil {
			t.Errorf("close: %+v, %v", a, err)
		}
	}
	if again := id(); again == first {
		t.Error("the connection is still there")
	}
	exec(t, b, "DO 1", "")
	if again := id(); again != id() {
		t.Error("connections are not kept any more")
	}
}

func bindingMaxResult(t *testing.T, port int) {
	b := openBinding(t, "url", shop(t, port, ""), "maxResultSize", "10k")
	start := time.Now()
	_, err := b.Invoke(t.Context(), statement("query", "SELECT REPEAT('x', 1000) FROM seq_1_to_100000000", ""))
	if fault.Of(err) != fault.TooLarge || !strings.Contains(err.Error(), "maxResultSize, 10k") {
		t.Errorf("%v (%v)", err, fault.Of(err))
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("it took %v: all rows were read", took)
	}
	if got := query(t, b, "SELECT REPEAT('x', 9000) AS x", ""); len(got) != 9010 {
		t.Errorf("%d bytes", len(got))
	}
}

func bindingAtOnce(t *testing.T, port int) {
	b := openBinding(t, "url", shop(t, port, ""), "maxOpenConns", "3")
	exec(t, b, "CREATE TABLE n (id int PRIMARY KEY, n int)", "")
	exec(t, b, "INSERT INTO n VALUES (1, 0)", "")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 15 {
				if _, err := b.Invoke(t.Context(), statement("exec", "UPDATE n SET n = n + ? WHERE id = ?", "[1, 1]")); err != nil {
					t.Errorf("exec: %v", err)
				}
				a, err := b.Invoke(t.Context(), statement("query", "SELECT ? AS i", fmt.Sprintf("[%d]", i)))
				if err != nil || string(a.Data) != fmt.Sprintf(`[{"i":%d}]`, i) {
					t.Errorf("query: %+v, %v", a, err)
				}
				if i == 7 {
					_, _ = b.Invoke(t.Context(), block.BindingRequest{Operation: "close"})
				}
			}
		})
	}
	wg.Wait()
	if got := query(t, b, "SELECT n FROM n", ""); got != `[{"n":120}]` {
		t.Errorf("the number is %s, want 120", got)
	}
}

// Variables of the session are the user's, and the server's own stay.
func bindingSession(t *testing.T, port int) {
	plain, given := openBinding(t, "url", shop(t, port, "")), openBinding(t, "url", shop(t, port, "?time_zone=%27%2B05:00%27&sql_mode=%27ANSI_QUOTES%27&loc=UTC"))
	const ask = "SELECT @@session.time_zone = @@global.time_zone AS zone, @@session.sql_mode = @@global.sql_mode AS mode, @@session.tx_isolation = @@global.tx_isolation AS tx"
	if got := query(t, plain, ask, ""); got != `[{"zone":1,"mode":1,"tx":1}]` {
		t.Errorf("a plain address changes the session: %s", got)
	}
	if got := query(t, given, "SELECT @@session.time_zone AS zone, @@session.sql_mode AS mode", ""); got != `[{"zone":"+05:00","mode":"ANSI_QUOTES"}]` {
		t.Errorf("given variables: %s", got)
	}
}

// What is acknowledged is committed, whatever a statement before it has left behind.
func bindingLeftTransaction(t *testing.T, port int) {
	db := direct(t, port, "?lock_wait_timeout=10") // a transaction that is left open fails this, and does not stop it
	for name, options := range map[string]string{"plain": "", "off": "?autocommit=0", "many": "?multiStatements=true&Autocommit=false"} {
		b := openBinding(t, "url", shop(t, port, options), "maxOpenConns", "1")
		run(t, db, "CREATE OR REPLACE TABLE shop.l (n int)")
		run(t, db, "CREATE OR REPLACE PROCEDURE shop.half() BEGIN START TRANSACTION; INSERT INTO l VALUES (99); END")
		run(t, db, "CREATE OR REPLACE PROCEDURE shop.off() BEGIN SET autocommit = 0; INSERT INTO l VALUES (98); COMMIT; SELECT 7 AS seven; END")
		leaves := []string{"BEGIN", "START TRANSACTION", "SET autocommit = 0", "CALL half()", "-- x\nBEGIN"}
		if name == "many" {
			leaves = append(leaves, "INSERT INTO l VALUES (98); BEGIN; INSERT INTO l VALUES (99)", "SELECT 1; BEGIN; INSERT INTO l VALUES (99)")
		}
		n := 0
		for _, q := range leaves {
			exec(t, b, q, "")
			n++
			exec(t, b, "INSERT INTO l VALUES (?)", fmt.Sprintf("[%d]", n))
		}
		if got := text(t, db, "SELECT GROUP_CONCAT(n ORDER BY n) FROM shop.l WHERE n < 98"); got != "1,2,3,4,5,6,7"[:2*n-1] {
			t.Errorf("%s: committed are %s of %d", name, got, n)
		}
		if got := text(t, db, "SELECT COUNT(*) FROM shop.l WHERE n = 99"); got != "0" {
			t.Errorf("%s: %s rows of transactions that nobody has ended", name, got)
		}
		if got := query(t, b, "CALL off()", ""); got != `[{"seven":7}]` {
			t.Errorf("%s: a procedure answers %s", name, got)
		}
		if got := text(t, db, "SELECT COUNT(*) FROM shop.l WHERE n = 98"); got == "0" {
			t.Errorf("%s: what a procedure has committed is gone", name)
		}
		exec(t, b, "INSERT INTO l VALUES (?)", "[50]")
		if got := text(t, db, "SELECT COUNT(*) FROM shop.l WHERE n = 50"); got != "1" {
			t.Errorf("%s: a statement after a procedure that has turned autocommit off is not committed", name)
		}
	}
}

func bindingSecrets(t *testing.T, port int) {
	_, err := openBinding(t, "url", address("gu3ss", port, "shop")).Invoke(t.Context(), statement("query", "SELECT 1", ""))
	if fault.Of(err) != fault.Denied || fault.SentOf(err) != fault.SentNever || strings.Contains(err.Error(), "gu3ss") {
		t.Errorf("a wrong password: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	for want, items := range map[string][]string{
		"url: required": {}, "url: want user": {"url", "root:gu3ss/db"}, "allowAllFiles": {"url", "u:gu3ss@tcp(h)/x?allowAllFiles=true"}, "or the value": {"url", "u:gu3ss@tcp(h)/x?parseTime=maybe"},
		"pemPath: required with tls=custom": {"url", "u:gu3ss@tcp(h)/x?tls=custom"}, "pemPath: has no effect": {"url", "u:gu3ss@tcp(h)/x", "pemPath", "/x"},
		"maxOpenConns": {"url", "u:gu3ss@tcp(h)/x", "maxOpenConns", "-1"}, "connMaxLifetime": {"url", "u:gu3ss@tcp(h)/x", "connMaxLifetime", "-1s"},
		"maxResultSize": {"url", "u:gu3ss@tcp(h)/x", "maxResultSize", "0"},
	} {
		err := conf.Decode(conf.Items(items...), mysql.DefaultBindingConfig()).Err()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "gu3ss") {
			t.Errorf("%s: %v", want, err)
		}
	}
	c := mysql.DefaultBindingConfig()
	if f := conf.Decode(conf.Items("url", "u:p@tcp(h)/x", "maxIdleConns", "2", "maxOpenConns", "9", "connMaxLifetime", "1m", "connMaxIdleTime", "30"), c); len(f) > 0 ||
		c.MaxIdleConns != 2 || c.MaxOpenConns != 9 || c.ConnMaxLifetime != time.Minute || c.ConnMaxIdleTime != 30*time.Second {
		t.Errorf("Dapr's keys: %+v, %v", c, f)
	}
}

// Whatever a server sends, the answer is JSON.
func FuzzBindingValue(f *testing.F) {
	kinds := []string{"INT", "UNSIGNED BIGINT", "YEAR", "DOUBLE", "DECIMAL", "JSON", "BLOB", "VARBINARY", "BIT", "VARCHAR", "DATETIME", "?"}
	for i, s := range []string{"", "0042", "-1", "1e+20", "x", "{", "\xff", "{\"a\": 1}"} {
		f.Add(uint8(i), []byte(s))
	}
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		k := kinds[int(kind)%len(kinds)]
		if out := mysql.AppendValue(nil, k, raw); !json.Valid(out) {
			t.Fatalf("%s %q is %s", k, raw, out)
		}
	})
}

func TestBindingTLS(t *testing.T) {
	server := servers.MySQL(t)
	b := openBinding(t, "url", shop(t, server.Port, "?tls=custom"), "pemPath", server.Cert)
	if got := query(t, b, "SHOW STATUS LIKE 'Ssl_version'", ""); !strings.Contains(got, "TLSv1.") {
		t.Errorf("the session's TLS is %s", got)
	}
	_, err := openBinding(t, "url", shop(t, server.Port, "?tls=true")).Invoke(t.Context(), statement("query", "SELECT 1", ""))
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || strings.Contains(err.Error(), servers.SQLPassword) {
		t.Errorf("an unknown authority: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
}

// What was acknowledged is there after a crash; what failed says whether it may be.
func TestBindingKilledServer(t *testing.T) {
	server := servers.MySQL(t)
	b := openBinding(t, "url", shop(t, server.Port, ""))
	exec(t, b, "CREATE TABLE k (id int)", "")
	var stop atomic.Bool
	var acked, unsure atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				_, err := b.Invoke(context.Background(), statement("exec", "INSERT INTO k VALUES (?)", "[1]"))
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
	var rows []struct{ N int64 }
	if err := json.Unmarshal([]byte(query(t, b, "SELECT COUNT(*) AS N FROM k", "")), &rows); err != nil {
		t.Fatal(err)
	}
	if n := rows[0].N; n < acked.Load() || n > acked.Load()+unsure.Load() {
		t.Errorf("%d rows; %d were acknowledged, %d may have happened", n, acked.Load(), unsure.Load())
	}
}

func TestBindingSilentAndCut(t *testing.T) {
	server := servers.MySQL(t)
	relay := servers.NewRelay(t, server.Port)
	shop(t, server.Port, "")
	b := openBinding(t, "url", address(servers.SQLPassword, relay.Port, "shop"), "timeout", "1s")
	patient := openBinding(t, "url", address(servers.SQLPassword, relay.Port, "shop"))
	query(t, b, "SELECT 1", "")
	db := direct(t, server.Port, "")
	done := make(chan error, 1)
	go func() {
		_, err := patient.Invoke(context.Background(), statement("query", "SELECT SLEEP(20)", ""))
		done <- err
	}()
	waitFor(t, "the statement to run", func() bool {
		return text(t, db, "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT SLEEP(20)'") == "1"
	})
	relay.Cut()
	if err := <-done; fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("cut: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	waitFor(t, "the binding to go on", func() bool { _, err := b.Invoke(t.Context(), statement("query", "SELECT 1", "")); return err == nil })
	server.Freeze()
	defer server.Thaw()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := b.Invoke(ctx, statement("exec", "DO 1", ""))
	if fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentMaybe || time.Since(start) > 10*time.Second {
		t.Errorf("silent, after %v: %v (%v, sent %v)", time.Since(start), err, fault.Of(err), fault.SentOf(err))
	}
	_, err = b.Invoke(t.Context(), statement("exec", "DO 1", ""))
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
		t.Errorf("silent, beyond the timeout: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	server.Thaw()
	waitFor(t, "the binding to work again", func() bool { _, err := b.Invoke(t.Context(), statement("exec", "DO 1", "")); return err == nil })
}

func TestBindingServerComesLater(t *testing.T) {
	server := servers.MySQL(t)
	url := shop(t, server.Port, "")
	server.Kill()
	b := openBinding(t, "url", url)
	_, err := b.Invoke(t.Context(), statement("query", "SELECT 1", ""))
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	server.Start(t)
	query(t, b, "SELECT 1", "")
}
