package mysql_test

import (
	"bytes"
	"database/sql"
	"encoding/base64"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

// daprTables makes what one of Dapr's sidecars leaves behind, in the server's collation, and
// returns a connection to it.
func daprTables(t testing.TB, port int, schema string) *sql.DB {
	t.Helper()
	run(t, direct(t, port, ""), "CREATE DATABASE IF NOT EXISTS "+schema)
	db := direct(t, port, schema)
	run(t, db, `CREATE TABLE state (id VARCHAR(255) NOT NULL PRIMARY KEY, value JSON NOT NULL, isbinary BOOLEAN NOT NULL,
		insertDate TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
		updateDate TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
		eTag VARCHAR(36) NOT NULL, expiredate TIMESTAMP NULL, INDEX expiredate_idx(expiredate))`)
	run(t, db, `CREATE TABLE dapr_metadata (id VARCHAR(255) NOT NULL PRIMARY KEY, value TEXT NOT NULL)`)
	return db
}

const daprEtag = "11111111-1111-4111-8111-11111111111a"

func daprWrite(t testing.TB, db *sql.DB, key, value string, binary bool, end string) {
	t.Helper()
	run(t, db, `REPLACE INTO state (id, value, eTag, isbinary, expiredate) VALUES (?, ?, ?, ?, `+end+`)`, key, value, daprEtag, binary)
}

func TestReadsDaprsRows(t *testing.T) {
	port := servers.MySQL(t, "--default-time-zone=+05:00").Port
	for _, made := range []string{"dapr", "mecha"} { // whose tables they are
		t.Run(made, func(t *testing.T) {
			var db *sql.DB
			if made == "dapr" {
				db = daprTables(t, port, made)
			}
			s := open(t, at(port, "schemaName", made)...)
			if err := s.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			if db == nil {
				db = direct(t, port, made)
			}
			daprWrite(t, db, "app||json", `{"b":1, "a":"ü"}`, false, "NULL")
			daprWrite(t, db, "app||bytes", `"`+base64.StdEncoding.EncodeToString([]byte("\x00raw?>"))+`"`, true, "NULL")
			daprWrite(t, db, "app||dies", `"x"`, false, "CURRENT_TIMESTAMP + INTERVAL 100 SECOND")
			daprWrite(t, db, "app||dead", `"x"`, false, "CURRENT_TIMESTAMP - INTERVAL 1 SECOND")
			if item := want(t, s, "app||json", `{"b":1, "a":"ü"}`); item.ETag != daprEtag || !item.Expires.IsZero() {
				t.Errorf("item %+v", item)
			}
			want(t, s, "app||bytes", "\x00raw?>")
			if left := time.Until(want(t, s, "app||dies", `"x"`).Expires); left < 60*time.Second || left > 101*time.Second {
				t.Errorf("expires in %v", left)
			}
			if item, err := s.Get(t.Context(), "app||dead", block.StateRead{}); err != nil || item.Exists {
				t.Errorf("an expired row: %+v, %v", item, err)
			}
			err := s.Set(t.Context(), block.StateWrite{Key: "app||json", Value: []byte("2"), ETag: strings.ToUpper(daprEtag)})
			if fault.Of(err) != fault.Conflict {
				t.Errorf("Set with the etag in capitals: %v", err)
			}
			if err := s.Set(t.Context(), block.StateWrite{Key: "app||json", Value: []byte("2"), ETag: daprEtag}); err != nil {
				t.Errorf("Set with Dapr's etag: %v", err)
			}
		})
	}
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func TestWritesDaprsRows(t *testing.T) {
	port := servers.MySQL(t).Port
	s := open(t, at(port)...)
	writes := []block.StateWrite{{Key: "json", Value: []byte(`{"a": 1}`)}, {Key: "bytes", Value: []byte("\xff\xfe\xfd\x00")}, {Key: "empty"},
		{Key: "dies", Value: []byte("1"), TTL: 100 * time.Second}}
	if err := s.Set(t.Context(), writes[0]); err != nil {
		t.Fatal(err)
	}
	if errs := s.(block.StateBatch).SetMany(t.Context(), writes[1:]); errs != nil {
		t.Fatal(errs)
	}
	db := direct(t, port, "dapr_state_store")
	for _, w := range writes {
		var id, value, etag, end string
		var binary bool
		err := db.QueryRow(`SELECT id, value, eTag, isbinary, IFNULL(expiredate, "") FROM state WHERE id = ?
			AND (expiredate IS NULL OR expiredate > CURRENT_TIMESTAMP)`, w.Key).Scan(&id, &value, &etag, &binary, &end)
		if err != nil || id != w.Key || value != `"`+base64.StdEncoding.EncodeToString(w.Value)+`"` || !binary || !uuidForm.MatchString(etag) {
			t.Errorf("%s: row %q %s %s %v, %v", w.Key, id, value, etag, binary, err)
		}
		if _, err := time.Parse(time.DateTime, end); (err == nil) != (w.TTL > 0) {
			t.Errorf("%s ends at %q", w.Key, end)
		}
		// Dapr's conditional update and removal find our rows.
		r, err := db.Exec(`UPDATE state SET value = ?, eTag = ?, isbinary = ?, expiredate = NULL WHERE id = ? AND eTag = ?`, `{"n":1}`, daprEtag, false, w.Key, etag)
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := r.RowsAffected(); n != 1 {
			t.Errorf("%s: Dapr's update changed %d rows", w.Key, n)
		}
		want(t, s, w.Key, `{"n":1}`)
	}
	columns := text(t, db, `SELECT GROUP_CONCAT(CONCAT(COLUMN_NAME, ' ', COLUMN_TYPE, ' ', IS_NULLABLE, ' ', COLUMN_KEY, ' ', EXTRA) ORDER BY ORDINAL_POSITION SEPARATOR '\n')
		FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = 'dapr_state_store' AND TABLE_NAME = 'state'`)
	wanted := "id varbinary(3072) NO PRI \nvalue longtext NO  \nisbinary tinyint(1) NO  \ninsertDate timestamp NO  \n" +
		"updateDate timestamp NO  on update current_timestamp()\neTag varchar(36) NO  \nexpiredate timestamp YES MUL "
	if columns != wanted {
		t.Errorf("columns:\n%s\nwant\n%s", columns, wanted)
	}
}

// In Dapr's own tables the database takes some keys for the same. No key gets another's value.
func TestLaxKeys(t *testing.T) {
	port := servers.MySQL(t).Port
	for _, charset := range []string{"latin1", "utf8mb4"} {
		t.Run(charset, func(t *testing.T) { laxKeys(t, port, charset) })
	}
}

func laxKeys(t *testing.T, port int, charset string) {
	run(t, direct(t, port, ""), "CREATE DATABASE "+charset+" CHARACTER SET "+charset)
	db := daprTables(t, port, charset)
	var log bytes.Buffer
	s := openLogged(t, &log, at(port, "schemaName", charset)...)
	set(t, s, "key", "1")
	for _, other := range []string{"KEY", "kéy", "key "} {
		if item, err := s.Get(t.Context(), other, block.StateRead{}); err != nil || item.Exists {
			t.Errorf("Get(%q) = %+v, %v", other, item, err)
		}
		items, err := s.(block.StateBatch).GetMany(t.Context(), []string{other, "key"}, block.StateRead{})
		if err != nil || items[0].Exists || string(items[1].Value) != "1" {
			t.Errorf("GetMany(%q, key) = %+v, %v", other, items, err)
		}
		w := block.StateWrite{Key: other, Value: []byte("2")}
		for name, err := range map[string]error{
			"Set":         s.Set(t.Context(), w),
			"first write": s.Set(t.Context(), block.StateWrite{Key: other, FirstWrite: true}),
			"SetMany":     s.(block.StateBatch).SetMany(t.Context(), []block.StateWrite{{Key: "b"}, w})[1],
			"Transact":    s.(block.StateTx).Transact(t.Context(), []block.StateOp{{StateWrite: block.StateWrite{Key: "b"}}, {StateWrite: w}}),
		} {
			if fault.Of(err) != fault.Invalid || fault.SentOf(err) != fault.SentNever || fault.ReasonOf(err) != fault.IllegalKey {
				t.Errorf("%s(%q): %v (%v)", name, other, err, fault.Of(err))
			}
		}
		if err := s.Delete(t.Context(), block.StateDelete{Key: other}); err != nil {
			t.Errorf("Delete(%q): %v", other, err)
		}
		etag := want(t, s, "key", "1").ETag
		if err := s.Delete(t.Context(), block.StateDelete{Key: other, ETag: etag}); fault.Of(err) != fault.Conflict {
			t.Errorf("Delete(%q) with the other's etag: %v", other, err)
		}
		if err := s.Set(t.Context(), block.StateWrite{Key: other, ETag: etag}); fault.Of(err) != fault.Conflict {
			t.Errorf("Set(%q) with the other's etag: %v", other, err)
		}
		want(t, s, "key", "1")
	}
	if n := text(t, db, `SELECT COUNT(*) FROM state`); n != "1" {
		t.Errorf("%s rows, want 1", n)
	}
	if !strings.Contains(log.String(), "collation") {
		t.Errorf("the log does not warn: %s", log.String())
	}
	// A row that has ended makes room for the other spelling.
	daprWrite(t, db, "key", `"x"`, false, "CURRENT_TIMESTAMP - INTERVAL 1 SECOND")
	if err := s.Set(t.Context(), block.StateWrite{Key: "KEY", Value: []byte("3"), FirstWrite: true}); err != nil {
		t.Errorf("first write over an expired row: %v", err)
	}
	want(t, s, "KEY", "3")
	if err := s.Set(t.Context(), block.StateWrite{Key: strings.Repeat("k", 256)}); fault.Of(err) != fault.TooLarge {
		t.Errorf("a key of 256 characters: %v (%v)", err, fault.Of(err))
	}
	err := s.Set(t.Context(), block.StateWrite{Key: "键", Value: []byte("v")})
	if charset == "latin1" {
		if fault.Of(err) != fault.Invalid {
			t.Errorf("a key that the column cannot hold: %v (%v)", err, fault.Of(err))
		}
		return
	}
	if err != nil {
		t.Error(err)
	}
	// The manual's way out.
	run(t, db, `ALTER TABLE state MODIFY id VARBINARY(3072) NOT NULL`)
	set(t, s, "key", "4")
	want(t, s, "KEY", "3")
	want(t, s, "键", "v")
	set(t, s, strings.Repeat("k", 256), "v")
}

func TestLimits(t *testing.T) {
	port := servers.MySQL(t, "--max-allowed-packet=1M").Port
	s := open(t, at(port, "maxConns", "1")...) // what breaks a connection is seen by the next call
	refused := map[string]struct {
		w    block.StateWrite
		code fault.Code
	}{
		"a long key":          {block.StateWrite{Key: strings.Repeat("k", 3073)}, fault.TooLarge},
		"a large value":       {block.StateWrite{Key: "k", Value: make([]byte, 2<<20)}, fault.TooLarge},
		"an end far away":     {block.StateWrite{Key: "k", TTL: 250 * 365 * 24 * time.Hour}, fault.Invalid},
		"a key with NUL":      {block.StateWrite{Key: "a\x00"}, fault.Invalid},
		"an unreadable key":   {block.StateWrite{Key: "a\xff"}, fault.Invalid},
		"a value with an end": {block.StateWrite{Key: "k", FirstWrite: true, TTL: 250 * 365 * 24 * time.Hour}, fault.Invalid},
	}
	for name, r := range refused {
		if err := s.Set(t.Context(), r.w); fault.Of(err) != r.code || fault.SentOf(err) != fault.SentNever {
			t.Errorf("%s: %v (%v, sent %v)", name, err, fault.Of(err), fault.SentOf(err))
		}
		set(t, s, "other", name)
	}
	long := strings.Repeat("k", 3072)
	if err := s.Set(t.Context(), block.StateWrite{Key: long, Value: []byte("v")}); err != nil {
		t.Fatalf("the longest key: %v", err)
	}
	want(t, s, long, "v")
	if err := s.Set(t.Context(), block.StateWrite{Key: long, Value: []byte("w"), TTL: time.Hour}); err != nil { // in the second index, too
		t.Error(err)
	}
}

func TestTablesRefused(t *testing.T) {
	port := servers.MySQL(t).Port
	for schema, change := range map[string]string{
		"old": `ALTER TABLE state DROP COLUMN expiredate`, "bare": `ALTER TABLE state ENGINE=MyISAM`} {
		run(t, daprTables(t, port, schema), change)
		err := open(t, at(port, "schemaName", schema)...).Ping(t.Context())
		if fault.Of(err) != fault.Unsupported || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), schema+".state") {
			t.Errorf("%s: %v (%v)", schema, err, fault.Of(err))
		}
	}
	db := daprTables(t, port, "more") // what a later version adds
	run(t, db, `ALTER TABLE state ADD COLUMN row_id BIGINT NOT NULL AUTO_INCREMENT UNIQUE`)
	s := open(t, at(port, "schemaName", "more")...)
	set(t, s, "k", "v")
	run(t, db, `INSERT INTO state (id, value, isbinary, eTag) VALUES ('bad', '"*"', 1, 'e')`)
	if _, err := s.Get(t.Context(), "bad", block.StateRead{}); fault.Of(err) != fault.Lost {
		t.Errorf("a damaged value: %v (%v)", err, fault.Of(err))
	}
	// A user that may not make databases works on one that is there.
	run(t, db, `CREATE USER poor IDENTIFIED BY 'x'`)
	run(t, db, `GRANT SELECT, INSERT, UPDATE, DELETE ON more.* TO poor`)
	poor := func(schema string) block.State {
		return open(t, "url", fmt.Sprintf("poor:x@tcp(127.0.0.1:%d)/", port), "schemaName", schema)
	}
	set(t, poor("more"), "k", "w")
	if err := poor("elsewhere").Ping(t.Context()); fault.Of(err) != fault.Denied {
		t.Errorf("a database that may not be made: %v (%v)", err, fault.Of(err))
	}
}

// Expired rows go, once per interval of all who share the mark, which is in the server's time.
func TestCleanup(t *testing.T) {
	port := servers.MySQL(t, "--default-time-zone=+05:00").Port
	s := open(t, at(port, "cleanupInterval", "1s")...)
	if err := s.Set(t.Context(), block.StateWrite{Key: "lives", Value: []byte("1"), TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	db := direct(t, port, "dapr_state_store")
	run(t, db, `INSERT INTO state (id, value, isbinary, eTag, expiredate) SELECT seq, '1', 0, 'e', '2001-01-01' FROM seq_1_to_2500`)
	rows := func() string { return text(t, db, `SELECT COUNT(*) FROM state`) }
	waitFor(t, "expired rows to go", func() bool { return rows() == "1" })
	if late := text(t, db, `SELECT ABS(TIMESTAMPDIFF(SECOND, value, CURRENT_TIMESTAMP)) < 60 FROM dapr_metadata WHERE id = 'last-cleanup'`); late != "1" {
		t.Errorf("the mark is not the server's time: %s", text(t, db, `SELECT value FROM dapr_metadata`))
	}
	// A fresh mark of another sidecar keeps us from cleaning.
	run(t, db, `UPDATE dapr_metadata SET value = CURRENT_TIMESTAMP + INTERVAL 1 HOUR`)
	run(t, db, `INSERT INTO state (id, value, isbinary, eTag, expiredate) VALUES ('dead', '1', 0, 'e', '2001-01-01')`)
	time.Sleep(2500 * time.Millisecond)
	if rows() != "2" {
		t.Errorf("%s rows: the mark was not respected", rows())
	}
}
