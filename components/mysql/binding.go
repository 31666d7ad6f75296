package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlbinding"
	"github.com/mecha-project/mecha/components/sqlstate"
)

var _ block.Output = (*output)(nil)

// NewBinding opens an output binding. It does no I/O: the first use does.
func NewBinding(_ block.Env, c *BindingConfig) (block.Component, error) {
	const op fault.Op = "mysql.NewBinding"
	if err := c.Validate(); err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	dc, err := c.driver()
	if err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	db, err := c.pool(dc)
	if err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	return &output{c: *c, db: db, many: dc.MultiStatements, where: "the database on " + dc.Addr}, nil
}

// output runs the app's statements.
type output struct {
	c     BindingConfig
	db    *sql.DB // makes connections by itself, when it needs them
	many  bool    // whether one text may hold several statements
	where string

	mu     sync.Mutex
	closed bool // guarded by mu
}

// Operations are what Invoke takes.
func (o *output) Operations() []string { return sqlbinding.Operations() }

// Ping checks that the server answers.
func (o *output) Ping(ctx context.Context) error {
	return o.do(ctx, "mysql.binding.Ping", &sqlbinding.Request{}, o.db.PingContext)
}

// Close closes all connections.
func (o *output) Close(ctx context.Context) error {
	const op fault.Op = "mysql.binding.Close"
	o.mu.Lock()
	again := o.closed
	o.closed = true
	o.mu.Unlock()
	if again {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- o.db.Close() }()
	select {
	case err := <-done:
		return fault.Wrap(op, fault.Internal, err)
	case <-ctx.Done():
		return sqlstate.Ended(op, ctx.Err(), fault.SentUnknown)
	}
}

func (o *output) isClosed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed
}

// Invoke runs one statement.
func (o *output) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	const op fault.Op = "mysql.binding.Invoke"
	req, err := sqlbinding.Read(op, r)
	if err != nil {
		return nil, err
	}
	if req.Operation == sqlbinding.Close {
		return nil, o.rest(ctx, op)
	}
	args := make([]any, len(req.Params))
	for i, p := range req.Params {
		args[i] = argument(p)
	}
	began := time.Now()
	var data []byte
	var affected int64
	err = o.do(ctx, op, req, func(ctx context.Context) error {
		return o.on(ctx, req, func(db runner) (err error) {
			if req.Operation == sqlbinding.Query {
				data, err = o.query(ctx, op, db, req, args)
				return err
			}
			affected, err = changed(db.ExecContext(ctx, req.SQL, args...))
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return req.Answer(began, data, affected), nil
}

// rest gives up the connections that nobody uses.
func (o *output) rest(ctx context.Context, op fault.Op) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.db.SetMaxIdleConns(-1)
		o.db.SetMaxIdleConns(o.c.idle())
	}
	return nil
}

// runner is a pool or a connection.
type runner interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// on runs a statement on some connection. One that may leave the connection in a transaction, in
// which statements of others would be acknowledged and lost, gets a connection that is cleaned or
// given up behind it.
func (o *output) on(ctx context.Context, req *sqlbinding.Request, run func(runner) error) error {
	call := false
	switch req.Word() {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "WITH", "VALUES", "TABLE", "CREATE", "ALTER", "DROP", "TRUNCATE", "RENAME",
		"SHOW", "EXPLAIN", "DESCRIBE", "DESC", "ANALYZE", "OPTIMIZE", "CHECK", "GRANT", "REVOKE", "DO", "LOAD":
		if !o.many || !strings.Contains(req.SQL, ";") {
			return run(o.db)
		}
	case "CALL":
		call = !o.many
	}
	for tries := 1; ; tries++ {
		c, err := o.db.Conn(ctx)
		if err != nil {
			return err
		}
		err = run(c)
		if err != nil || !call || !clean(ctx, c) {
			_ = c.Raw(func(any) error { return driver.ErrBadConn })
		}
		_ = c.Close() // its only error is that of the line above
		if !errors.Is(err, driver.ErrBadConn) || tries == 3 {
			return err
		}
		// The connection was stale and took nothing.
	}
}

// clean ends what a procedure may have begun.
func clean(ctx context.Context, c *sql.Conn) bool {
	for _, q := range []string{"ROLLBACK", "SET autocommit = 1"} {
		if _, err := c.ExecContext(ctx, q); err != nil {
			return false
		}
	}
	return true
}

func changed(r sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// query reads the rows of a statement; of a procedure's several results the first.
func (o *output) query(ctx context.Context, op fault.Op, db runner, req *sqlbinding.Request, args []any) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := db.QueryContext(ctx, req.SQL, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, err
	}
	names, kinds := make([]string, len(types)), make([]string, len(types))
	values, into := make([]sql.RawBytes, len(types)), make([]any, len(types))
	for i, t := range types {
		names[i], kinds[i], into[i] = t.Name(), t.DatabaseTypeName(), &values[i]
	}
	out := sqlbinding.NewObjects(o.c.MaxResultSize, names)
	var buf []byte
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		out.Begin()
		for i, v := range values {
			buf = appendValue(buf[:0], kinds[i], v)
			out.Put(buf)
		}
		if err := out.End(op); err != nil {
			cancel() // so that the rest is not read
			return nil, err
		}
	}
	return out.Done(), rows.Err()
}

// appendValue appends a column's value, which is the text of any type, as JSON: numbers and JSON
// as such, NULL as null, bytes in base64, times as RFC 3339, all else as text. Decimals are text,
// as in Dapr, so that readers who have binary numbers only lose nothing.
func appendValue(b []byte, kind string, text sql.RawBytes) []byte {
	switch {
	case text == nil:
		return append(b, "null"...)
	case strings.HasSuffix(kind, "INT"), kind == "YEAR", kind == "FLOAT", kind == "DOUBLE":
		return sqlbinding.AppendNumber(b, text)
	case kind == "JSON":
		return sqlbinding.AppendJSON(b, text)
	case strings.HasSuffix(kind, "BLOB"), strings.HasSuffix(kind, "BINARY"), kind == "BIT", kind == "GEOMETRY", kind == "VECTOR":
		return sqlbinding.AppendBytes(b, text)
	}
	return sqlbinding.AppendText(b, text)
}

// exact is how many digits of a number with a fraction a float64 keeps.
const exact = 15

// argument is a parameter in the driver's form. Arrays and objects are their JSON.
func argument(p sqlbinding.Param) any {
	switch p.Kind {
	case sqlbinding.Null:
		return nil
	case sqlbinding.Bool:
		return p.Text == "true"
	case sqlbinding.Number:
		text := p.Text
		if whole, ok := p.Whole(); ok {
			text = whole
		}
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n
		}
		if n, err := strconv.ParseUint(text, 10, 64); err == nil {
			return n
		}
		if f, err := strconv.ParseFloat(text, 64); err == nil && digits(text) <= exact {
			return f
		}
	}
	return p.Text // of a number, all its digits
}

func digits(text string) (n int) {
	for _, c := range text {
		if c >= '0' && c <= '9' {
			n++
		}
	}
	return n
}

// do runs one operation within the timeout and puts its failure into the house's words.
func (o *output) do(ctx context.Context, op fault.Op, req *sqlbinding.Request, run func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return sqlstate.Ended(op, err, fault.SentNever)
	}
	if o.isClosed() {
		return sqlstate.Closed(op)
	}
	limited := ctx
	if o.c.Timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, o.c.Timeout)
		defer cancel()
	}
	return o.failed(ctx, limited, op, req, run(limited))
}

func (o *output) failed(ctx, limited context.Context, op fault.Op, req *sqlbinding.Request, err error) error {
	if err == nil {
		return nil
	}
	if _, known := errors.AsType[*fault.Error](err); known {
		return err
	}
	sent := fault.SentMaybe
	if _, ok := errors.AsType[*sqlstate.Unsent](err); ok {
		sent = fault.SentNever
	}
	if errors.Is(err, mysql.ErrPktTooLarge) {
		return fault.New(op, fault.TooLarge, "the statement and its parameters are larger than the server's max_allowed_packet").WithSent(fault.SentNever)
	}
	if e, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return refusal(op, req, e, sent)
	}
	switch {
	case sqlstate.Over(ctx) != nil:
		return sqlstate.Ended(op, sqlstate.Over(ctx), sent)
	case sqlstate.Over(limited) != nil:
		return fault.New(op, fault.Unavailable, "%s did not answer within %v", o.where, o.c.Timeout).Because(err).WithSent(sent)
	case o.isClosed():
		return fault.New(op, fault.Unavailable, "the component was closed meanwhile").Because(err).WithSent(sent)
	case strings.HasPrefix(err.Error(), "sql: expected "): // arguments; database/sql has no type for it
		return req.BadParam(op, -1, "and the statement do not fit: "+strings.TrimPrefix(err.Error(), "sql: ")+"; give one for each ?").WithSent(fault.SentNever)
	}
	return fault.New(op, fault.Unavailable, "%s cannot be reached; is the server up?", o.where).Because(err).WithSent(sent)
}

// refusal puts the server's answer to an app's statement into the house's words.
func refusal(op fault.Op, req *sqlbinding.Request, e *mysql.MySQLError, sent fault.Sent) error {
	code, undone := refusals[e.Number], true
	switch {
	case e.Number == errUnnamed && strings.Contains(e.Message, "max_allowed_packet"):
		code = fault.TooLarge // of a long parameter, which is sent ahead of its statement
	case code == fault.OK:
		code = fault.Invalid // there are thousands, and most are about the statement
	case interrupted[e.Number]:
		undone = false
	}
	if undone && req.AllOrNothing() {
		sent = fault.SentNever
	}
	return fault.New(op, code, "the database refuses the statement").Because(e).WithSent(sent)
}

// refusals says what an error number means to an app. Others are fault.Invalid.
var refusals = map[uint16]fault.Code{
	1044: fault.Denied, 1045: fault.Denied, 1142: fault.Denied, 1143: fault.Denied, 1227: fault.Denied, 1370: fault.Denied, 1698: fault.Denied,
	1820: fault.Denied, 1862: fault.Denied, 3118: fault.Denied, 4151: fault.Denied, 1130: fault.Denied, 1129: fault.Denied,
	1040: fault.Exhausted, 1203: fault.Exhausted, 1226: fault.Exhausted, 1021: fault.Exhausted, 1041: fault.Exhausted, 1114: fault.Exhausted,
	1007: fault.Exists, 1022: fault.Exists, 1050: fault.Exists, 1060: fault.Exists, 1061: fault.Exists, 1062: fault.Exists, 1169: fault.Exists, 1586: fault.Exists,
	1008: fault.NotFound, errNoDatabase: fault.NotFound, 1051: fault.NotFound, errNoTable: fault.NotFound, 1305: fault.NotFound,
	1048: fault.Conflict, 1216: fault.Conflict, 1217: fault.Conflict, 1451: fault.Conflict, 1452: fault.Conflict, 3819: fault.Conflict, 4025: fault.Conflict,
	errPacket: fault.TooLarge,
	1205:      fault.Unavailable, errDeadlock: fault.Unavailable, errChanged: fault.Unavailable, 1290: fault.Unavailable, 1792: fault.Unavailable, 1836: fault.Unavailable,
	1053: fault.Unavailable, 1077: fault.Unavailable, 1079: fault.Unavailable, 1152: fault.Unavailable, 1158: fault.Unavailable, 1159: fault.Unavailable,
	1160: fault.Unavailable, 1161: fault.Unavailable, 1317: fault.Unavailable, 1927: fault.Unavailable,
	1969: fault.Deadline, 3024: fault.Deadline,
	1235: fault.Unsupported, 1295: fault.Unsupported,
}

// interrupted are those that may come in the middle of a statement, or after it.
var interrupted = map[uint16]bool{1053: true, 1077: true, 1079: true, 1152: true, 1158: true, 1159: true, 1160: true, 1161: true, 1317: true, 1927: true}
