package postgres

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var _ block.StateQuery = (*jsonState)(nil)

// jsonState is a store whose values the server can look into.
type jsonState struct {
	*state
	most int // bytes of keys and values in the answer to one query
}

const maxFound = 64 << 20

// Queries implements block.StateQuery.
func (s *jsonState) Queries() bool { return true }

// Query finds items by their values. A number is compared as a number with numbers, everything
// else as text, in the database's order of letters. A token is how many items came before.
func (s *jsonState) Query(ctx context.Context, q block.StateSearch) (block.StateFound, error) {
	const op fault.Op = "postgres.state.Query"
	var skip uint64
	if q.Token != "" {
		var err error
		if skip, err = strconv.ParseUint(q.Token, 10, 62); err != nil {
			return block.StateFound{}, fault.New(op, fault.Invalid, "page.token %q is none of this store's", q.Token).WithSent(fault.SentNever)
		}
	}
	var b search
	text := b.statement(s.layout.search, &q, skip)
	var out block.StateFound
	err := s.do(ctx, op, func(ctx context.Context, c *pgx.Conn) error {
		args := b.args
		if c.Config().DefaultQueryExecMode != pgx.QueryExecModeSimpleProtocol {
			// Callers make up statements: they are not to fill the cache of prepared ones.
			args = append([]any{pgx.QueryExecModeExec}, args...)
		}
		rows, err := c.Query(ctx, text, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		out.Items = nil
		for size := 0; rows.Next(); {
			item, err := s.scan(op, rows)
			if item.Err = err; err != nil && fault.Of(err) != fault.Lost {
				return err
			}
			if size += len(item.Key) + len(item.Value) + 100; size > s.most {
				return fault.New(op, fault.TooLarge, "more than %d MiB match; ask for less with a filter or page.limit", s.most>>20)
			}
			out.Items = append(out.Items, item)
		}
		return rows.Err()
	})
	if err != nil {
		return block.StateFound{}, err
	}
	if q.Limit > 0 && len(out.Items) == q.Limit {
		out.Token = strconv.FormatUint(skip+uint64(q.Limit), 10)
	}
	return out, nil
}

// search is a statement in the making. What comes from outside is in args, never in the text.
type search struct{ args []any }

// arg adds an argument and gives its place.
func (b *search) arg(v any) string {
	b.args = append(b.args, v)
	return "$" + strconv.Itoa(len(b.args))
}

func (b *search) statement(begin string, q *block.StateSearch, skip uint64) string {
	var out strings.Builder
	out.WriteString(begin)
	prefix := b.arg(q.Prefix)
	out.WriteString(" AND left(t.key, length(" + prefix + "::text)) = " + prefix + "::text")
	if q.Apart != "" {
		out.WriteString(" AND strpos(substr(t.key, length(" + prefix + "::text) + 1), " + b.arg(q.Apart) + "::text) = 0")
	}
	if q.Filter != nil {
		out.WriteString(" AND " + b.filter(q.Filter))
	}
	out.WriteString(" ORDER BY ")
	for _, by := range q.Sort {
		out.WriteString(b.value(by.Path))
		if by.Desc {
			out.WriteString(" DESC")
		}
		out.WriteString(", ")
	}
	out.WriteString("t.key")
	if q.Limit > 0 {
		out.WriteString(" LIMIT " + b.arg(int64(q.Limit)) + "::bigint")
	}
	if skip > 0 {
		out.WriteString(" OFFSET " + b.arg(int64(skip)) + "::bigint")
	}
	return out.String()
}

// value is what a path leads to, as JSON; NULL if it leads nowhere.
func (b *search) value(path []string) string { return "(t.value #> " + b.arg(path) + "::text[])" }

var operators = map[block.StateFilterOp]string{block.FilterEQ: "=", block.FilterNE: "<>", block.FilterGT: ">", block.FilterGE: ">=", block.FilterLT: "<", block.FilterLE: "<="}

func (b *search) filter(f *block.StateFilter) string {
	switch f.Op {
	case block.FilterAnd, block.FilterOr:
		parts := make([]string, len(f.Filters))
		for i := range f.Filters {
			parts[i] = b.filter(&f.Filters[i])
		}
		return "(" + strings.Join(parts, " "+string(f.Op)+" ") + ")"
	case block.FilterIn:
		return b.in(f)
	}
	path := b.arg(f.Path) + "::text[]"
	document, text, operator := "(t.value #> "+path+")", "(t.value #>> "+path+")", operators[f.Op]
	switch v := f.Values[0].(type) {
	case nil:
		return document + " " + operator + " 'null'::jsonb"
	case json.Number:
		other := ""
		if f.Op == block.FilterEQ || f.Op == block.FilterNE {
			other = " ELSE " + text + " " + operator + " " + b.arg(string(v)) + "::text"
		}
		return "CASE WHEN jsonb_typeof(" + document + ") = 'number' THEN " + text + "::numeric " + operator + " " + b.arg(string(v)) + "::text::numeric" + other + " END"
	}
	return text + " " + operator + " " + b.arg(plain(f.Values[0])) + "::text"
}

// in is a comparison with several values: one as each of them would be alone.
func (b *search) in(f *block.StateFilter) string {
	var texts, numbers []string
	null := false
	for _, v := range f.Values {
		switch v := v.(type) {
		case nil:
			null = true
		case json.Number:
			texts, numbers = append(texts, string(v)), append(numbers, string(v))
		default:
			texts = append(texts, plain(v))
		}
	}
	path := b.arg(f.Path) + "::text[]"
	document, text := "(t.value #> "+path+")", "(t.value #>> "+path+")"
	parts := []string{text + " = ANY(" + b.arg(texts) + "::text[])"}
	if len(numbers) > 0 {
		parts = append(parts, "CASE WHEN jsonb_typeof("+document+") = 'number' THEN "+text+"::numeric = ANY("+b.arg(numbers)+"::text[]::numeric[]) END")
	}
	if null {
		parts = append(parts, document+" = 'null'::jsonb")
	}
	return "(" + strings.Join(parts, " OR ") + ")"
}

// plain is a string or a boolean as the database writes it.
func plain(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}
