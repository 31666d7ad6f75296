package postgres

import (
	"context"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlbinding"
)

var _ block.Output = (*output)(nil)

// BindingConfig configures PostgreSQL as an output binding.
type BindingConfig struct {
	Conn ConnConfig
	// MaxResultSize bounds the rows of a query, as JSON; more are an error.
	MaxResultSize conf.ByteSize `yaml:"maxResultSize"`
}

// DefaultBindingConfig is the configuration with nothing set.
func DefaultBindingConfig() *BindingConfig {
	return &BindingConfig{Conn: defaultConn(), MaxResultSize: 100 * conf.MiB}
}

// Validate reports every mistake.
func (c *BindingConfig) Validate() error {
	if c.MaxResultSize <= 0 {
		return conf.Bad("maxResultSize", "must be above 0")
	}
	return nil
}

// NewBinding opens an output binding. It does no I/O: the first use does.
func NewBinding(_ block.Env, c *BindingConfig) (block.Component, error) {
	const op fault.Op = "postgres.NewBinding"
	if err := errors.Join(c.Conn.Validate(), c.Validate()); err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	p, err := c.Conn.pool()
	if err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	o := &output{max: c.MaxResultSize, mode: p.conn.DefaultQueryExecMode}
	if o.mode == pgx.QueryExecModeSimpleProtocol {
		o.mode = pgx.QueryExecModeExec // the simple protocol has no parameters: they would be put into the text
	}
	o.open(p, c.Conn.Timeout)
	return o, nil
}

// output runs the app's statements.
type output struct {
	server
	mode pgx.QueryExecMode
	max  conf.ByteSize
}

// Operations are what Invoke takes.
func (o *output) Operations() []string { return sqlbinding.Operations() }

// Ping checks that the server answers.
func (o *output) Ping(ctx context.Context) error {
	return o.do(ctx, "postgres.binding.Ping", nil, func(ctx context.Context, c *pgx.Conn) error { return c.Ping(ctx) })
}

// Close closes all connections.
func (o *output) Close(ctx context.Context) error { return o.close(ctx, "postgres.binding.Close") }

// Invoke runs one statement.
func (o *output) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	const op fault.Op = "postgres.binding.Invoke"
	req, err := sqlbinding.Read(op, r)
	if err != nil {
		return nil, err
	}
	if req.Operation == sqlbinding.Close {
		return nil, o.rest(ctx, op)
	}
	if err := o.check(op, req); err != nil {
		return nil, err
	}
	began := time.Now()
	var data []byte
	var affected int64
	err = o.do(ctx, op, nil, func(ctx context.Context, c *pgx.Conn) (err error) {
		for range 2 {
			data, affected, err = o.run(ctx, op, c, req)
			if !o.outdated(err) {
				break
			}
		}
		return o.refused(op, c, req, err)
	})
	if err != nil {
		return nil, err
	}
	return req.Answer(began, data, affected), nil
}

// rest gives up the connections that nobody uses.
func (o *output) rest(ctx context.Context, op fault.Op) error {
	switch {
	case ctx.Err() != nil:
		return fault.Wrap(op, fault.Canceled, ctx.Err())
	case o.closed.Load():
		return nil
	}
	o.pool.rest()
	return nil
}

var fromClient = regexp.MustCompile(`(?i)\b(from\s+stdin|to\s+stdout)\b`)

// check refuses what the server would take in another way than meant.
func (o *output) check(op fault.Op, req *sqlbinding.Request) error {
	for i, p := range req.Params {
		if p.Kind == sqlbinding.Text && strings.IndexByte(p.Text, 0) >= 0 {
			return req.BadParam(op, i, "holds NUL, which no text of the database can")
		}
	}
	if req.Word() == "COPY" && fromClient.MatchString(req.SQL) { // both sides would wait for each other
		return fault.New(op, fault.Unsupported, "COPY from or to the client does not go through a binding; use INSERT, SELECT or a file on the server").WithSent(fault.SentNever)
	}
	return nil
}

// run sends a statement and reads its answer. Without parameters exec takes several statements.
func (o *output) run(ctx context.Context, op fault.Op, c *pgx.Conn, req *sqlbinding.Request) (data []byte, affected int64, err error) {
	args, err := o.args(ctx, c, req)
	if err != nil {
		return nil, 0, err
	}
	if req.Operation == sqlbinding.Exec {
		tag, err := c.Exec(ctx, req.SQL, args...)
		return nil, tag.RowsAffected(), err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := c.Query(ctx, req.SQL, append([]any{binary}, args...)...)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	out := sqlbinding.NewArrays(o.max)
	fields := rows.FieldDescriptions()
	var buf []byte
	for rows.Next() {
		out.Begin()
		for i, raw := range rows.RawValues() {
			if buf, err = appendValue(buf[:0], c.TypeMap(), &fields[i], raw); err != nil {
				return nil, 0, err
			}
			out.Put(buf)
		}
		if err := out.End(op); err != nil {
			cancel() // so that the rest is not read
			return nil, 0, err
		}
	}
	return out.Done(), 0, rows.Err()
}

// args are the parameters in the form that the library sends as it is: text, which the server
// reads as whatever type the statement wants. A list is an array of the database for some types
// and JSON for others, so the server is asked.
func (o *output) args(ctx context.Context, c *pgx.Conn, req *sqlbinding.Request) ([]any, error) {
	if len(req.Params) == 0 && req.Operation == sqlbinding.Exec {
		return nil, nil // in the simple protocol
	}
	args := []any{o.mode}
	var types []uint32
	for i, p := range req.Params {
		_, whole := p.Whole()
		if types == nil && (p.Kind == sqlbinding.List || whole) {
			sd, err := c.Prepare(ctx, "", req.SQL)
			if err != nil {
				return nil, err
			}
			if types = sd.ParamOIDs; len(types) != len(req.Params) {
				return nil, wrongNumber(req, len(types))
			}
		}
		var oid uint32
		if types != nil {
			oid = types[i]
		}
		args = append(args, argument(c.TypeMap(), oid, p))
	}
	return args, nil
}

func wrongNumber(req *sqlbinding.Request, want int) error {
	return req.BadParam("", -1, "has "+strconv.Itoa(len(req.Params))+" elements and the statement "+strconv.Itoa(want)+" parameters; give one for each of $1, $2, …")
}

// outdated tells that what the library kept of a statement does not fit any more, for somebody has
// changed the tables. The statement has not been carried out, and the library has forgotten it.
func (o *output) outdated(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (e.Code == "0A000" && e.Routine == "RevalidateCachedQuery" || e.Code == "08P01" && o.mode == pgx.QueryExecModeCacheDescribe)
}

// refused says what the server's refusal of an app's statement means. Errors that are not about the
// statement are left to server.failed.
func (o *output) refused(op fault.Op, c *pgx.Conn, req *sqlbinding.Request, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, known := errors.AsType[*fault.Error](err); known {
		return err
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if !c.IsClosed() && !c.PgConn().IsBusy() { // the library has refused it
			return req.BadParam(op, -1, "and the statement do not fit: "+err.Error()).Because(nil)
		}
		return err
	}
	sent := fault.SentMaybe
	if req.AllOrNothing() {
		sent = fault.SentNever
	}
	code := meaning(e)
	if code == fault.OK {
		if known, ok := errors.AsType[*fault.Error](o.explain(op, e)); ok && sent == fault.SentMaybe {
			return known.WithSent(sent)
		}
		return err
	}
	if i, ok := parameter(e); ok {
		return req.BadParam(op, i, "the database refuses it").Because(e).WithSent(sent)
	}
	return fault.New(op, code, "the database refuses the statement").Because(e).WithSent(sent)
}

// meaning is the code of a refusal, OK for one that is not about the statement.
func meaning(e *pgconn.PgError) fault.Code {
	switch e.Code {
	case "23505", "42P04", "42P06", "42P07", "42701", "42710", "42723":
		return fault.Exists
	case "3D000", "3F000", "42P01", "42704", "42883":
		return fault.NotFound
	case "42501":
		return fault.Denied
	case "08P01": // a wrong number of parameters
		return fault.Invalid
	case "54000", "54001", "54011", "54023":
		return fault.TooLarge
	case "25006":
		return fault.Unavailable
	case "57014":
		return fault.Deadline // statement_timeout, or somebody has cancelled it
	case "40001", "40P01", "55P03":
		return fault.Unavailable
	}
	switch e.Code[:min(2, len(e.Code))] {
	case "0A":
		return fault.Unsupported
	case "23", "27", "44":
		return fault.Conflict
	case "02", "03", "0B", "0L", "0P", "0Z", "20", "21", "22", "24", "25", "26", "2B", "2D", "2F", "34", "38", "39", "3B", "42", "55", "P0":
		return fault.Invalid
	case "XX":
		return fault.Internal
	}
	return fault.OK
}

var placeholder = regexp.MustCompile(`\$([0-9]{1,5})`)

// parameter tells which parameter a refusal is about. The server says so in its context, in words
// that depend on its language.
func parameter(e *pgconn.PgError) (int, bool) {
	found := placeholder.FindStringSubmatch(e.Where)
	if found == nil || !strings.HasPrefix(e.Code, "22") || strings.Contains(e.Where, "\n") || strings.HasPrefix(e.Where, "PL/") {
		return 0, false
	}
	n, _ := strconv.Atoi(found[1])
	return n - 1, n > 0
}
