package postgres

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlstate"
)

// layout is one of Dapr's two forms of the tables: the statements and the forms of values and
// etags. Rows that have expired are not live; statements replace or remove them only.
type layout struct {
	get, getMany string // key or keys
	// Of one row: key, value, seconds to live or NULL; update and deleteIf add the etag.
	put, first, update  string
	del, deleteIf       string // key; key and etag
	putMany, firstMany  string // the same with arrays; firstMany and updateMany return keys
	updateMany, delMany string
	deleteIfMany        string
	lock                string // locks the rows of keys in the order of keys
	scan, scanKeys      string // a condition on scanKey follows
	fence               string // key and epoch of 20 digits; changes a row unless its epoch is greater
	claim, clean        string // milliseconds; number of rows

	// search is the beginning of a query, of all live rows; empty where values cannot be looked
	// into.
	search string

	probe  string   // fails while a table or column is missing
	create []string // makes what is missing
	// The same for the table of fences, which may be missing until a fence is asked for.
	probeFences, createFences string
	meta                      string // the metadata table
	mark                      string // the row with the version of the tables
	level                     int    // that version, as create makes it
	least                     int    // the version of a table that has our columns and no mark

	// encode is what is written as an argument, array several of them.
	encode func(*block.StateOp) any
	array  func([]*block.StateOp) any
	// decode reads a value; binary is the mark beside it.
	decode func(raw []byte, binary bool) ([]byte, error)
	// etag is the database's form of an etag. ok is false for one it cannot have issued.
	etag    func(string) (canonical string, ok bool)
	badEtag fault.Code
}

// scanKey is a key in the order of its bytes. It uses the index of tables that we made, and
// of others that have an index on it.
const scanKey = `key COLLATE "C"`

// expected makes statements fail with division by zero unless they change exactly one row. It
// lets a whole transaction travel at once, and be undone by the server.
func expected(statement string) string {
	return "WITH done AS (" + statement + " RETURNING 1) SELECT 1/count(*) FROM done"
}

// v2 holds values as bytes and etags as random UUIDs.
func v2(prefix, meta string) *layout {
	l := statements(meta, "last-cleanup-state-v2-"+prefix, map[string]string{
		"{table}": prefix + "state", "{end}": "expires_at", "{changed}": "updated_at",
		"{read}": "value, true", "{unread}": "''::bytea, true", "{etag}": "etag::text",
		"{columns}": "value, etag", "{value}": "$2::bytea, gen_random_uuid()", "{values}": "b.v, gen_random_uuid()",
		"{excluded}": "value = excluded.value, etag = excluded.etag",
		"{set}":      "value = $2::bytea, etag = gen_random_uuid()", "{setmany}": "value = b.v, etag = gen_random_uuid()",
		"{array}": "bytea[]",
	})
	l.mark, l.level = "migrations-state-v2-"+prefix, 2
	l.least = 1 // row_id, of version 2, is not used here: Dapr's sidecars add it
	l.create = []string{
		`CREATE TABLE IF NOT EXISTS ` + prefix + `state (
			key text COLLATE "C" NOT NULL PRIMARY KEY,
			value bytea NOT NULL,
			etag uuid NOT NULL DEFAULT gen_random_uuid(),
			created_at timestamp with time zone NOT NULL DEFAULT now(),
			updated_at timestamp with time zone,
			expires_at timestamp with time zone,
			row_id bigint GENERATED ALWAYS AS IDENTITY UNIQUE
		)`,
		`CREATE INDEX ON ` + prefix + `state (expires_at)`,
		l.createFences,
	}
	value := func(o *block.StateOp) []byte {
		if o.Value == nil {
			return []byte{} // nil would be NULL
		}
		return o.Value
	}
	l.encode = func(o *block.StateOp) any { return value(o) }
	l.array = func(ops []*block.StateOp) any { return each(ops, value) }
	l.decode = func(raw []byte, _ bool) ([]byte, error) { return raw, nil }
	l.etag, l.badEtag = canonicalUUID, fault.Conflict
	return l
}

// canonicalUUID accepts the usual form only: an etag is what was read, letter for letter.
func canonicalUUID(etag string) (string, bool) {
	u, err := uuid.Parse(etag)
	return u.String(), err == nil && len(etag) == 36
}

// v1 holds values as jsonb, bytes as a JSON string in base64; etags are the numbers of the
// transactions that wrote the rows. Objects and arrays that are declared to be JSON are written as
// what they are, for queries; everything else as bytes, so a row is binary if it holds a string.
func v1(table, meta string) *layout {
	l := statements(meta, "last-cleanup", map[string]string{
		"{table}": table, "{end}": "expiredate", "{changed}": "updatedate",
		"{read}": "value::text, isbinary", "{unread}": "''::text, false", "{etag}": "xmin::text",
		"{columns}": "value, isbinary", "{value}": "$2::text::jsonb, left($2::text, 1) = '\"'", "{values}": "b.v::jsonb, left(b.v, 1) = '\"'",
		"{excluded}": "value = excluded.value, isbinary = excluded.isbinary",
		"{set}":      "value = $2::text::jsonb, isbinary = left($2::text, 1) = '\"'", "{setmany}": "value = b.v::jsonb, isbinary = left(b.v, 1) = '\"'",
		"{array}": "text[]",
	})
	l.mark, l.level, l.least = "migrations", 2, 2
	l.create = []string{
		`CREATE TABLE IF NOT EXISTS ` + table + ` (
			key text COLLATE "C" NOT NULL PRIMARY KEY,
			value jsonb NOT NULL,
			isbinary boolean NOT NULL,
			insertdate TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT NOW(),
			updatedate TIMESTAMP WITH TIME ZONE NULL
		)`,
		`ALTER TABLE ` + table + ` ADD COLUMN IF NOT EXISTS expiredate TIMESTAMP WITH TIME ZONE`,
		l.createFences,
	}
	l.encode = func(o *block.StateOp) any { return document(o) }
	l.array = func(ops []*block.StateOp) any { return each(ops, document) }
	l.search = `SELECT key, value::text, isbinary, xmin::text, expiredate FROM ` + table + ` AS t WHERE (t.expiredate IS NULL OR t.expiredate >= now())`
	l.decode = func(raw []byte, binary bool) ([]byte, error) {
		if !binary {
			return raw, nil
		}
		return sqlstate.FromQuoted(raw)
	}
	l.etag, l.badEtag = canonicalNumber, fault.BadEtag
	return l
}

// document is what is written in a jsonb column: JSON that has something to look into as it is,
// else the bytes.
func document(o *block.StateOp) string {
	if text := bytes.TrimLeft(o.Value, " \t\r\n"); o.JSON && len(text) > 0 && (text[0] == '{' || text[0] == '[') {
		return string(text)
	}
	return sqlstate.Quoted(o.Value)
}

func each[T any](ops []*block.StateOp, encode func(*block.StateOp) T) []T {
	out := make([]T, len(ops))
	for i, o := range ops {
		out[i] = encode(o)
	}
	return out
}

func canonicalNumber(etag string) (string, bool) {
	n, err := strconv.ParseUint(etag, 10, 32)
	return strconv.FormatUint(n, 10), err == nil
}

// statements fills in what the two layouts have in common.
func statements(meta, cleaned string, parts map[string]string) *layout {
	pairs := []string{"{live}", "(t." + parts["{end}"] + " IS NULL OR t." + parts["{end}"] + " >= now())",
		"{until}", "now() + make_interval(secs => $3::float8)", "{untils}", "now() + make_interval(secs => b.ttl)",
		"{meta}", meta, "{cleaned}", cleaned, "{fences}", sqlstate.Beside(parts["{table}"], "_fences")}
	for k, v := range parts {
		pairs = append(pairs, k, v)
	}
	fill := strings.NewReplacer(pairs...).Replace
	get := fill(`SELECT key, {read}, {etag}, {end} FROM {table} AS t WHERE {live} AND key = `)
	put := fill(`INSERT INTO {table} AS t (key, {columns}, {end}) VALUES ($1, {value}, {until})
		ON CONFLICT (key) DO UPDATE SET {excluded}, {changed} = now(), {end} = excluded.{end}`)
	many := fill(`INSERT INTO {table} AS t (key, {columns}, {end})
		SELECT b.k, {values}, {untils} FROM unnest($1::text[], $2::{array}, $3::float8[]) AS b(k, v, ttl)
		ON CONFLICT (key) DO UPDATE SET {excluded}, {changed} = now(), {end} = excluded.{end}`)
	ended := fill(` WHERE t.{end} < now()`)
	return &layout{
		get: get + `$1`, getMany: get + `ANY($1::text[])`,
		put: put, first: put + ended,
		update: fill(`UPDATE {table} AS t SET {set}, {changed} = now(), {end} = {until}
			WHERE key = $1 AND {etag} = $4 AND {live}`),
		del:      fill(`DELETE FROM {table} WHERE key = $1`),
		deleteIf: fill(`DELETE FROM {table} AS t WHERE key = $1 AND {etag} = $2 AND {live}`),
		putMany:  many, firstMany: many + ended + ` RETURNING key`,
		updateMany: fill(`UPDATE {table} AS t SET {setmany}, {changed} = now(), {end} = {untils}
			FROM unnest($1::text[], $2::{array}, $3::float8[], $4::text[]) AS b(k, v, ttl, e)
			WHERE t.key = b.k AND t.{etag} = b.e AND {live} RETURNING t.key`),
		delMany: fill(`DELETE FROM {table} WHERE key = ANY($1::text[])`),
		deleteIfMany: fill(`DELETE FROM {table} AS t USING unnest($1::text[], $2::text[]) AS b(k, e)
			WHERE t.key = b.k AND t.{etag} = b.e AND {live} RETURNING t.key`),
		lock:     fill(`SELECT count(*) FROM (SELECT 1 FROM {table} WHERE key = ANY($1::text[]) ORDER BY key COLLATE "C" FOR UPDATE) AS l`),
		scan:     fill(`SELECT key, {read}, {etag}, {end} FROM {table} AS t WHERE {live} AND `),
		scanKeys: fill(`SELECT key, {unread}, {etag}, {end} FROM {table} AS t WHERE {live} AND `),
		fence: fill(`INSERT INTO {fences} AS t (key, epoch) VALUES ($1, $2::text::numeric)
			ON CONFLICT (key) DO UPDATE SET epoch = excluded.epoch WHERE t.epoch <= excluded.epoch`),
		claim: fill(`INSERT INTO {meta} AS m (key, value) VALUES ('{cleaned}', now()::text)
			ON CONFLICT (key) DO UPDATE SET value = now()::text
			WHERE (EXTRACT('epoch' FROM now() - m.value::timestamp with time zone) * 1000)::bigint > $1::bigint`),
		clean:       fill(`DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE {end} < now() LIMIT $1::bigint FOR UPDATE SKIP LOCKED)`),
		probe:       fill(`SELECT key, {columns}, {end} FROM {table} LIMIT 0`),
		probeFences: fill(`SELECT key, epoch FROM {fences} LIMIT 0`),
		// 64 bits without a sign need more than a bigint.
		createFences: fill(`CREATE TABLE IF NOT EXISTS {fences} (key text COLLATE "C" NOT NULL PRIMARY KEY, epoch numeric(20) NOT NULL)`),
		meta:         meta,
	}
}
