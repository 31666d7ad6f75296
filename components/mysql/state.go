package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlstate"
)

// NewState opens the store. It does no I/O: the first use does.
func NewState(env block.Env, c *StateConfig) (block.State, error) {
	if err := c.Validate(); err != nil {
		return nil, fault.Wrap("mysql.NewState", fault.Invalid, err)
	}
	dc, err := c.driver()
	if err != nil {
		return nil, fault.Wrap("mysql.NewState", fault.Invalid, err)
	}
	cleanup := c.CleanupInterval
	if cleanup > 0 && cleanup < time.Second {
		env.Log.Warn("cleanupInterval is shorter than the mark's whole seconds; once a second is meant", "cleanupInterval", cleanup)
		cleanup = time.Second
	}
	return sqlstate.New(dialect(env, c, dc), sqlstate.Options{Timeout: c.timeout(), Cleanup: cleanup, Log: env.Log}), nil
}

// deadlockTime is how long transactions that the server ended as deadlocks are begun again.
const deadlockTime = 5 * time.Second

// dialect is Dapr's table: id, value as JSON, isbinary for base64 in a JSON string, eTag, and
// whole seconds of the server's clock.
//
// Old tables compare keys without regard to case, accents and spaces at the end. A key finds a
// row by the index, and the row counts only if the bytes are the same.
func dialect(env block.Env, c *StateConfig, dc *mysql.Config) sqlstate.Dialect {
	lax := false // the table compares keys by a collation of text; known after Setup
	fill := strings.NewReplacer(
		"{fences}", "`"+c.SchemaName+"`.`"+sqlstate.Beside(c.TableName, "_fences")+"`",
		"{state}", "`"+c.SchemaName+"`.`"+c.TableName+"`", "{meta}", "`"+c.SchemaName+"`.`"+c.MetadataTableName+"`",
		"{key}", "id = ? AND CAST(CONVERT(id USING utf8mb4) AS BINARY) = CAST(? AS BINARY)",
		"{etag}", "CAST(eTag AS BINARY) = CAST(? AS BINARY)",
		"{live}", "(expiredate IS NULL OR expiredate > CURRENT_TIMESTAMP)",
		// The next whole second, so that no item ends early; NULL makes it NULL.
		"{end}", "CURRENT_TIMESTAMP + INTERVAL CEILING((MICROSECOND(CURRENT_TIMESTAMP(6)) + ?) / 1000000) SECOND",
		// Another key's row is not overwritten: NULL is refused as an id.
		"{id}", "id = IF(CAST(id AS BINARY) = CAST(VALUES(id) AS BINARY) OR expiredate <= CURRENT_TIMESTAMP, VALUES(id), NULL)",
		// Dapr's sidecars write and read the mark in the server's time zone.
		"{mark}", "COALESCE(CONVERT_TZ(CURRENT_TIMESTAMP, '+00:00', @@global.time_zone), CURRENT_TIMESTAMP)",
	).Replace
	const row = "(?, ?, ?, ?, {end})"
	const insert = `INSERT INTO {state} (id, value, isbinary, eTag, expiredate) VALUES `
	return sqlstate.Dialect{
		Name: "mysql.state", Where: fmt.Sprintf("the database %s on %s", c.SchemaName, dc.Addr),
		Open: func() (*sql.DB, error) { return open(dc, c.timeout(), c.MaxConns) },
		Setup: func(ctx context.Context, db *sql.DB) (err error) {
			lax, err = setup(ctx, db, env.Log, c, fill)
			return err
		},
		Get:      fill(`SELECT id, value, isbinary, eTag, CAST(UNIX_TIMESTAMP(expiredate) AS SIGNED) FROM {state} WHERE {live} AND id IN `),
		Scan:     fill(`SELECT id, value, isbinary, eTag, CAST(UNIX_TIMESTAMP(expiredate) AS SIGNED) FROM {state} WHERE {live} AND `),
		ScanKeys: fill(`SELECT id, '', false, eTag, CAST(UNIX_TIMESTAMP(expiredate) AS SIGNED) FROM {state} WHERE {live} AND `),
		ScanKey: func() string {
			if lax {
				return "CAST(CONVERT(id USING utf8mb4) AS BINARY)" // which no index knows
			}
			return "id"
		},
		Put: fill(insert), Row: fill(row), PutEnd: fill(` ON DUPLICATE KEY UPDATE {id}, value = VALUES(value), isbinary = VALUES(isbinary),
			eTag = VALUES(eTag), expiredate = VALUES(expiredate)`),
		// Assignments happen from left to right: the end, which the others look at, is the last.
		First: fill(insert + row + ` ON DUPLICATE KEY UPDATE {id},
			value = IF(expiredate <= CURRENT_TIMESTAMP, VALUES(value), value),
			isbinary = IF(expiredate <= CURRENT_TIMESTAMP, VALUES(isbinary), isbinary),
			eTag = IF(expiredate <= CURRENT_TIMESTAMP, VALUES(eTag), eTag),
			expiredate = IF(expiredate <= CURRENT_TIMESTAMP, VALUES(expiredate), expiredate)`),
		Update:      fill(`UPDATE {state} SET value = ?, isbinary = ?, eTag = ?, expiredate = {end} WHERE {key} AND {etag} AND {live}`),
		Delete:      fill(`DELETE FROM {state} WHERE {key}`),
		DeleteIf:    fill(`DELETE FROM {state} WHERE {key} AND {etag} AND {live}`),
		SetupFences: func(ctx context.Context, db *sql.DB) error { return setupFences(ctx, db, fill) },
		// An epoch that stays the same must change the row, or it would look refused. The counter
		// comes first: assignments happen from left to right.
		Fence: fill(`INSERT INTO {fences} (id, epoch, writes) VALUES (?, CAST(? AS UNSIGNED), 1) ON DUPLICATE KEY UPDATE
			writes = IF(epoch <= VALUES(epoch), writes + 1, writes), epoch = IF(epoch <= VALUES(epoch), VALUES(epoch), epoch)`),
		Claim: fill(`INSERT INTO {meta} (id, value) VALUES ('last-cleanup', {mark})
			ON DUPLICATE KEY UPDATE value = IF(TIMESTAMPDIFF(SECOND, value, VALUES(value)) * 1000 > ?, VALUES(value), value)`),
		Clean:    fill(`DELETE FROM {state} WHERE expiredate <= CURRENT_TIMESTAMP ORDER BY expiredate LIMIT ?`),
		KeyTwice: true,
		Encode:   encode, Decode: decode, End: end, Explain: explain, Patience: deadlockTime,
	}
}

// encode always writes bytes: the products' JSON columns change spaces, order and numbers of
// what the app wrote, or would.
func encode(value []byte) (string, bool) { return sqlstate.Quoted(value), true }

func decode(text []byte, binary bool) ([]byte, error) {
	if !binary {
		return text, nil
	}
	return sqlstate.FromQuoted(text)
}

// end is a time to live in microseconds: the statements add it to the server's clock.
func end(ttl time.Duration) any {
	if ttl <= 0 {
		return nil
	}
	return int64((ttl + time.Microsecond - 1) / time.Microsecond)
}

// explain judges an error of the driver. A refused statement did nothing.
func explain(err error) (e *fault.Error, busy, ok bool) {
	if errors.Is(err, mysql.ErrPktTooLarge) {
		return say(fault.TooLarge, "the request is larger than the server's max_allowed_packet"), false, true
	}
	known, is := errors.AsType[*mysql.MySQLError](err)
	if !is {
		return nil, false, false
	}
	e = meaning(known.Number)
	if known.Number == errUnnamed && strings.Contains(known.Message, "max_allowed_packet") {
		e = meaning(errPacket) // of a long value, which is sent ahead of its statement
	}
	return e, known.Number == errDeadlock || known.Number == errChanged, e != nil
}
