package postgres

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlstate"
)

// Set writes one key.
func (s *state) Set(ctx context.Context, w block.StateWrite) error {
	return s.fitting(ctx, "postgres.state.Set", block.StateOp{StateWrite: w})
}

// fitting performs a single operation; a value that the server refuses as JSON is written as bytes.
func (s *state) fitting(ctx context.Context, op fault.Op, o block.StateOp) error {
	err := s.one(ctx, op, &o)
	if o.JSON && unfit(err) {
		o.JSON = false
		err = s.one(ctx, op, &o)
	}
	return err
}

// unfit tells whether the server refuses a value as JSON of its own: it has no NUL, its numbers and
// its depth have limits, and its encoding may lack letters. Such a value is written as bytes.
// Nothing has happened then.
func unfit(err error) bool {
	code := sqlState(err)
	return strings.HasPrefix(code, "22") && code != "22012" || strings.HasPrefix(code, "54") && code != "54000"
}

// Delete removes one key.
func (s *state) Delete(ctx context.Context, d block.StateDelete) error {
	o := sqlstate.Removal(d)
	return s.one(ctx, "postgres.state.Delete", &o)
}

// one performs a single operation with a single statement.
func (s *state) one(ctx context.Context, op fault.Op, o *block.StateOp) error {
	statement, args, err := s.statement(op, o)
	if err != nil {
		return err
	}
	return s.do(ctx, op, func(ctx context.Context, c *pgx.Conn) error {
		tag, err := c.Exec(ctx, statement, args...)
		if err == nil && tag.RowsAffected() == 0 && sqlstate.Guarded(o) {
			return sqlstate.Refused(op, o)
		}
		return err
	})
}

// statement is how one operation is asked for. One that cannot succeed is refused here.
func (s *state) statement(op fault.Op, o *block.StateOp) (string, []any, error) {
	etag, err := s.check(op, o)
	if err != nil {
		return "", nil, err
	}
	l := s.layout
	switch {
	case o.Delete && o.ETag != "":
		return l.deleteIf, []any{o.Key, etag}, nil
	case o.Delete:
		return l.del, []any{o.Key}, nil
	case o.ETag != "":
		return l.update, []any{o.Key, l.encode(o), life(o), etag}, nil
	case o.FirstWrite:
		return l.first, []any{o.Key, l.encode(o), life(o)}, nil
	}
	return l.put, []any{o.Key, l.encode(o), life(o)}, nil
}

// check judges key and etag without the server; it returns the server's form of the etag.
func (s *state) check(op fault.Op, o *block.StateOp) (string, error) {
	if err := sqlstate.CheckKey(op, o.Key); err != nil || o.ETag == "" {
		return "", err
	}
	etag, ok := s.layout.etag(o.ETag)
	if !ok {
		return "", fault.New(op, s.layout.badEtag, "etag %q of key %q is none of this store's; read it again", o.ETag, o.Key).WithSent(fault.SentNever)
	}
	return etag, nil
}

// life is the seconds an item has to live; nil for ever.
func life(o *block.StateOp) *float64 {
	if o.TTL <= 0 {
		return nil
	}
	seconds := o.TTL.Seconds()
	return &seconds
}

// Transact applies all operations or none. They travel together and are one transaction of the
// server; an operation that finds another etag than expected undoes it.
func (s *state) Transact(ctx context.Context, ops []block.StateOp) error {
	const op fault.Op = "postgres.state.Transact"
	if len(ops) == 0 {
		return s.ended(ctx, op)
	}
	err := s.transact(ctx, op, ops)
	if !unfit(err) || !slices.ContainsFunc(ops, func(o block.StateOp) bool { return o.JSON }) {
		return err
	}
	ops = slices.Clone(ops)
	for i := range ops {
		ops[i].JSON = false
	}
	return s.transact(ctx, op, ops)
}

func (s *state) transact(ctx context.Context, op fault.Op, ops []block.StateOp) error {
	if len(ops) == 1 {
		return s.one(ctx, op, &ops[0])
	}
	return s.together(ctx, op, nil, ops)
}

// raise is what a transaction does to a fence.
type raise struct {
	fence string
	epoch uint64
}

// TransactFenced applies all operations and raises the fence, or does nothing. The fence is a row
// of a table of its own. It is written before everything else, also when its epoch stays the
// same: so its lock orders the transactions, and every later one sees the epoch.
func (s *state) TransactFenced(ctx context.Context, fence string, epoch uint64, ops []block.StateOp) error {
	const op fault.Op = "postgres.state.TransactFenced"
	if err := sqlstate.CheckKey(op, fence); err != nil {
		return err
	}
	return s.together(ctx, op, &raise{fence, epoch}, ops)
}

// together performs operations in one transaction, after raising a fence unless it is nil.
func (s *state) together(ctx context.Context, op fault.Op, r *raise, ops []block.StateOp) error {
	order := sqlstate.Order(ops)
	var batch pgx.Batch
	if r != nil {
		batch.Queue(expected(s.layout.fence), r.fence, sqlstate.Digits(r.epoch))
	}
	for _, i := range order {
		statement, args, err := s.statement(op, &ops[i])
		if err != nil {
			return err
		}
		if sqlstate.Guarded(&ops[i]) {
			statement = expected(statement)
		}
		batch.Queue(statement, args...)
	}
	return s.do(ctx, op, func(ctx context.Context, c *pgx.Conn) error {
		if r != nil {
			if err := s.fences.Pass(ctx, func(ctx context.Context) error { return s.layout.setupFences(ctx, c) }); err != nil {
				return err
			}
		}
		results := c.SendBatch(ctx, &batch)
		if r != nil {
			if _, err := results.Exec(); err != nil {
				_ = results.Close()           // repeats the error
				if sqlState(err) == "22012" { // division by zero: see expected
					return sqlstate.Fenced(op, r.fence, r.epoch)
				}
				return err
			}
		}
		for _, i := range order {
			_, err := results.Exec()
			if err == nil {
				continue
			}
			_ = results.Close()
			if sqlState(err) == "22012" && sqlstate.Guarded(&ops[i]) {
				return sqlstate.Refused(op, &ops[i])
			}
			return err
		}
		return results.Close() // the transaction ends here
	})
}

func (s *state) ended(ctx context.Context, op fault.Op) error {
	if err := ctx.Err(); err != nil {
		return sqlstate.Ended(op, err, fault.SentNever)
	}
	return nil
}

// SetMany writes several keys, each kind of write with one statement.
func (s *state) SetMany(ctx context.Context, ws []block.StateWrite) []error {
	return s.many(ctx, "postgres.state.SetMany", sqlstate.Writes(ws))
}

// DeleteMany removes several keys, each kind of removal with one statement.
func (s *state) DeleteMany(ctx context.Context, ds []block.StateDelete) []error {
	return s.many(ctx, "postgres.state.DeleteMany", sqlstate.Removals(ds))
}

// roundOps and roundBytes bound what travels together.
const (
	roundOps   = 1000
	roundBytes = 8 << 20
)

// many performs operations in rounds without repeated keys.
func (s *state) many(ctx context.Context, op fault.Op, ops []block.StateOp) []error {
	errs := make([]error, len(ops))
	var round []int
	seen := map[string]bool{}
	size := 0
	flush := func() {
		if len(round) > 0 {
			s.round(ctx, op, ops, round, errs)
		}
		round, size = nil, 0
		clear(seen)
	}
	for i := range ops {
		if _, errs[i] = s.check(op, &ops[i]); errs[i] != nil {
			continue
		}
		if seen[ops[i].Key] || len(round) == roundOps || size > roundBytes {
			flush()
		}
		round, size = append(round, i), size+len(ops[i].Value)
		seen[ops[i].Key] = true
	}
	flush()
	return sqlstate.Some(errs)
}

// group is the operations of one kind, as arrays.
type group struct {
	statement string
	keys      []string
	ops       []*block.StateOp
	lives     []*float64
	etags     []string
	places    []int // in ops
	guarded   bool
	removal   bool
}

// round performs operations on different keys in one exchange and notes their errors.
func (s *state) round(ctx context.Context, op fault.Op, ops []block.StateOp, round []int, errs []error) {
	// In the order of keys, so that two rounds at once do not wait for each other in a circle.
	slices.SortFunc(round, func(a, b int) int {
		if ops[a].Key < ops[b].Key {
			return -1
		}
		return 1
	})
	groups := s.groups(op, ops, round)
	err := s.do(ctx, op, func(ctx context.Context, c *pgx.Conn) error { return s.exchange(ctx, op, c, ops, groups, errs) })
	if err == nil {
		return
	}
	json := func(i int) bool { return ops[i].JSON }
	for _, i := range round {
		errs[i] = err
	}
	if unfit(err) && slices.ContainsFunc(round, json) { // one of them: the others are as they were
		for _, i := range round {
			errs[i] = s.fitting(ctx, op, ops[i])
		}
	}
}

func (s *state) groups(op fault.Op, ops []block.StateOp, round []int) []*group {
	l := s.layout
	kinds := [5]group{{statement: l.putMany}, {statement: l.firstMany, guarded: true}, {statement: l.updateMany, guarded: true},
		{statement: l.delMany, removal: true}, {statement: l.deleteIfMany, guarded: true, removal: true}}
	for _, i := range round {
		o := &ops[i]
		kind := 0
		switch {
		case o.Delete && o.ETag != "":
			kind = 4
		case o.Delete:
			kind = 3
		case o.ETag != "":
			kind = 2
		case o.FirstWrite:
			kind = 1
		}
		g := &kinds[kind]
		etag, _ := s.check(op, o) // checked before
		g.keys, g.ops, g.lives = append(g.keys, o.Key), append(g.ops, o), append(g.lives, life(o))
		g.etags, g.places = append(g.etags, etag), append(g.places, i)
	}
	var out []*group
	for i := range kinds {
		if len(kinds[i].keys) > 0 {
			out = append(out, &kinds[i])
		}
	}
	return out
}

// args are a group's arrays as its statement takes them.
func (g *group) args(l *layout) []any {
	args := []any{g.keys}
	if !g.removal {
		args = append(args, l.array(g.ops), g.lives)
	}
	if g.etags[0] != "" {
		args = append(args, g.etags)
	}
	return args
}

// exchange sends groups as one transaction. Guarded statements tell which keys they changed.
func (s *state) exchange(ctx context.Context, op fault.Op, c *pgx.Conn, ops []block.StateOp, groups []*group, errs []error) error {
	var batch pgx.Batch
	// Insertions lock in the order of their arrays. The other statements, and several together,
	// lock in any order unless the rows are locked before.
	if len(groups) > 1 || groups[0].statement == s.layout.updateMany || groups[0].removal {
		var keys []string
		for _, g := range groups {
			keys = append(keys, g.keys...)
		}
		if len(keys) > 1 {
			batch.Queue(s.layout.lock, keys)
		}
	}
	first := batch.Len()
	for _, g := range groups {
		batch.Queue(g.statement, g.args(s.layout)...)
	}
	results := c.SendBatch(ctx, &batch)
	defer results.Close()
	if first > 0 {
		if _, err := results.Exec(); err != nil {
			return err
		}
	}
	refused := map[int]error{}
	for _, g := range groups {
		if !g.guarded {
			if _, err := results.Exec(); err != nil {
				return err
			}
			continue
		}
		rows, err := results.Query()
		if err != nil {
			return err
		}
		changed, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		done := make(map[string]bool, len(changed))
		for _, k := range changed {
			done[k] = true
		}
		for _, i := range g.places {
			if !done[ops[i].Key] {
				refused[i] = sqlstate.Refused(op, &ops[i])
			}
		}
	}
	if err := results.Close(); err != nil { // the transaction ends here
		return err
	}
	for i, err := range refused {
		errs[i] = err
	}
	return nil
}
