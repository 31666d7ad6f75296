package sqlstate

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var (
	_ block.State      = (*Store)(nil)
	_ block.StateBatch = (*Store)(nil)
	_ block.StateTx    = (*Store)(nil)
	_ block.StateTTL   = (*Store)(nil)
	_ block.StateScan  = (*Store)(nil)
	_ block.StateFence = (*Store)(nil)
)

// Dialect is a product as Store needs it: its statements, with table names filled in, and the
// meaning of its errors.
//
// Statements must not touch expired rows except to replace or remove them.
type Dialect struct {
	// Name begins the names of operations: "sqlite.state".
	Name string
	// Where names the database in messages. It holds no secret.
	Where string
	// Open makes the pool without I/O.
	Open func() (*sql.DB, error)
	// Setup makes missing tables and checks those that are there.
	Setup func(context.Context, *sql.DB) error

	// Get reads key, value, binary mark, etag and end (seconds of Unix time or NULL) of the
	// keys listed in the parentheses that follow it.
	Get string
	// Scan reads rows of the same columns, ScanKeys with an empty value that is not binary in place
	// of the value; a condition on ScanKey follows either. ScanKey is the key in the order of its
	// bytes; it is asked for after Setup.
	Scan, ScanKeys string
	ScanKey        func() string
	// Put writes rows, whose values (key, value, binary mark, etag, end) stand between it and
	// PutEnd; each is a Row.
	Put, Row, PutEnd string
	// First writes one such row if there is no live one.
	First string
	// Update takes value, binary mark, new etag, end, key and old etag.
	Update string
	// Delete takes a key, DeleteIf a key and its etag.
	Delete, DeleteIf string
	// SetupFences makes the table of fences if it is missing. Fence takes a key and an epoch of
	// 20 digits and changes the key's row, or makes it, unless that has a greater epoch.
	SetupFences func(context.Context, *sql.DB) error
	Fence       string
	// Claim takes the interval in milliseconds and changes a row if the last cleaning is
	// further away. Clean deletes at most as many expired rows as its argument says.
	Claim, Clean string

	// Encode and Decode are the form of values; binary is the mark beside it.
	Encode func(value []byte) (text string, binary bool)
	Decode func(text []byte, binary bool) ([]byte, error)
	// End is the argument for an item's end; nil for a zero TTL.
	End func(ttl time.Duration) any
	// Explain judges an error of the driver. ok is false when it is not known; busy means that
	// the database was locked and nothing happened.
	Explain func(error) (e *fault.Error, busy, ok bool)

	// KeyTwice says that Update, Delete and DeleteIf take the key two times in a row: once to
	// find a row by an index that is lax about keys, once to compare it.
	KeyTwice bool
	// OneWriter says that the database takes one writer at a time: those of this process queue.
	OneWriter bool
	// Patience is how long to wait while the database is locked.
	Patience time.Duration
}

// Options are the settings of a Store.
type Options struct {
	Timeout time.Duration // of one operation
	Cleanup time.Duration // interval; none unless positive
	Log     *slog.Logger
}

// Store is a state store on a database/sql driver.
type Store struct {
	d       Dialect
	o       Options
	gate    Gate
	fences  Gate // open once the table of fences is there
	cleaner Cleaner
	pager   Pager
	writer  chan struct{} // holds a token while a write runs, if the dialect takes one at a time

	mu     sync.Mutex
	db     *sql.DB   // guarded by mu; nil before the first use
	stmts  stmts     // guarded by mu until the gate is open
	fence  *sql.Stmt // written before the fences' gate opens, read after
	closed bool      // guarded by mu
}

// stmts are the prepared statements of the hot paths.
type stmts struct{ get, put, first, update, del, delIf *sql.Stmt }

// New makes a store. It does no I/O and starts nothing.
func New(d Dialect, o Options) *Store {
	s := &Store{d: d, o: o, writer: make(chan struct{}, 1)}
	s.cleaner = Cleaner{Every: o.Cleanup, Log: o.Log, Claim: s.claim, Remove: s.remove}
	return s
}

func (s *Store) op(name string) fault.Op { return fault.Op(s.d.Name + "." + name) }

// ExpiresItems marks native expiry.
func (s *Store) ExpiresItems() {}

// MaxOps is 0: the database sets no limit.
func (s *Store) MaxOps() int { return 0 }

// Ping checks that the database answers and has its tables.
func (s *Store) Ping(ctx context.Context) error {
	return s.do(ctx, s.op("Ping"), false, func(ctx context.Context, db *sql.DB) error { return db.PingContext(ctx) })
}

// Close ends the cleaning and closes all connections.
func (s *Store) Close(ctx context.Context) error {
	s.mu.Lock()
	db := s.db
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	s.cleaner.Stop(ctx)
	if db == nil {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- db.Close() }()
	select {
	case err := <-done:
		return fault.Wrap(s.op("Close"), fault.Internal, err)
	case <-ctx.Done():
		return Ended(s.op("Close"), ctx.Err(), fault.SentUnknown)
	}
}

// prepare opens the pool, makes the tables and prepares the hot statements.
func (s *Store) prepare(ctx context.Context) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return Closed("")
	}
	if s.db == nil {
		db, err := s.d.Open()
		if err != nil {
			s.mu.Unlock()
			return err
		}
		s.db = db
	}
	db := s.db
	s.mu.Unlock()
	if err := s.d.Setup(ctx, db); err != nil {
		return err
	}
	var made stmts
	for _, p := range []struct {
		into **sql.Stmt
		text string
	}{{&made.get, s.d.Get + "(?)"}, {&made.put, s.d.Put + s.d.Row + s.d.PutEnd}, {&made.first, s.d.First},
		{&made.update, s.d.Update}, {&made.del, s.d.Delete}, {&made.delIf, s.d.DeleteIf}} {
		st, err := db.PrepareContext(ctx, p.text)
		if err != nil {
			return err
		}
		*p.into = st
	}
	s.mu.Lock()
	s.stmts = made
	s.mu.Unlock()
	s.cleaner.Start()
	return nil
}

// do runs one operation within Timeout, with the tables made, and puts its failure into the
// house's words.
func (s *Store) do(ctx context.Context, op fault.Op, write bool, run func(context.Context, *sql.DB) error) error {
	if err := ctx.Err(); err != nil {
		return Ended(op, err, fault.SentNever)
	}
	limited, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	db, err := s.ready(limited, op)
	if err != nil {
		return s.failed(ctx, limited, op, err, fault.SentNever)
	}
	if write && s.d.OneWriter {
		select {
		case s.writer <- struct{}{}:
			defer func() { <-s.writer }()
		case <-limited.Done():
			return s.failed(ctx, limited, op, limited.Err(), fault.SentNever)
		}
	}
	return s.failed(ctx, limited, op, s.patiently(limited, func() error { return run(limited, db) }), fault.SentMaybe)
}

func (s *Store) ready(ctx context.Context, op fault.Op) (*sql.DB, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, Closed(op)
	}
	err := s.gate.Pass(ctx, func(ctx context.Context) error {
		return s.patiently(ctx, func() error { return s.prepare(ctx) })
	})
	return s.db, err // the gate is open: db does not change any more
}

// patiently repeats what found the database locked, for which nothing happened. It waits in
// small steps: the library's own waiting does not hear a context end.
func (s *Store) patiently(ctx context.Context, run func() error) error {
	end := time.Now().Add(s.d.Patience)
	for {
		err := run()
		if err == nil || s.d.Patience <= 0 || Answered(err) || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		if _, busy, _ := s.d.Explain(err); !busy {
			return err
		}
	}
}

// failed puts an error into the house's words. sent is how far the operation may have got
// when nobody knows better.
func (s *Store) failed(ctx, limited context.Context, op fault.Op, err error, sent fault.Sent) error {
	if err == nil {
		return nil
	}
	if known, ok := errors.AsType[*fault.Error](err); ok {
		if known.Op == "" {
			known.Op = op
		}
		return err
	}
	if e, _, ok := s.d.Explain(err); ok {
		e.Op = op
		return e.Because(err)
	}
	if _, ok := errors.AsType[*Unsent](err); ok {
		sent = fault.SentNever
	}
	switch {
	case Over(ctx) != nil:
		return Ended(op, Over(ctx), sent)
	case Over(limited) != nil:
		return fault.New(op, fault.Unavailable, "%s did not answer within %v", s.d.Where, s.o.Timeout).Because(err).WithSent(sent)
	case s.isClosed():
		return fault.New(op, fault.Unavailable, "the component was closed meanwhile").Because(err).WithSent(sent)
	}
	return fault.New(op, fault.Unavailable, "%s failed", s.d.Where).Because(err).WithSent(sent)
}

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Get reads one key.
func (s *Store) Get(ctx context.Context, key string, _ block.StateRead) (block.StateItem, error) {
	op := s.op("Get")
	item := block.StateItem{Key: key}
	if err := CheckKey(op, key); err != nil {
		return item, err
	}
	err := s.do(ctx, op, false, func(ctx context.Context, _ *sql.DB) error {
		found, err := s.scan(op, s.stmts.get.QueryRowContext(ctx, key).Scan)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return nil
		case err == nil && found.Key == key:
			item = found
		}
		return err
	})
	return item, err
}

// GetMany reads several keys; those of one statement at one moment.
func (s *Store) GetMany(ctx context.Context, keys []string, _ block.StateRead) ([]block.StateItem, error) {
	op := s.op("GetMany")
	for _, k := range keys {
		if err := CheckKey(op, k); err != nil {
			return nil, err
		}
	}
	found := make(map[string]block.StateItem, len(keys))
	for start := 0; start < len(keys); start += manyKeys {
		part := keys[start:min(len(keys), start+manyKeys)]
		err := s.do(ctx, op, false, func(ctx context.Context, db *sql.DB) error { return s.read(ctx, op, db, part, found) })
		if err != nil {
			return nil, err
		}
	}
	return Arrange(keys, found), nil
}

// manyKeys bounds the arguments of one statement.
const manyKeys = 500

func (s *Store) read(ctx context.Context, op fault.Op, db *sql.DB, keys []string, into map[string]block.StateItem) error {
	args := make([]any, len(keys))
	for i, k := range keys {
		args[i] = k
	}
	rows, err := db.QueryContext(ctx, s.d.Get+list("?", len(keys)), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		item, err := s.scan(op, rows.Scan)
		if err != nil {
			return err
		}
		into[item.Key] = item
	}
	return rows.Err()
}

func (s *Store) scan(op fault.Op, scan func(...any) error) (block.StateItem, error) {
	item := block.StateItem{Exists: true}
	var text []byte
	var binary bool
	var end sql.NullInt64
	if err := scan(&item.Key, &text, &binary, &item.ETag, &end); err != nil {
		return block.StateItem{}, err
	}
	if end.Valid {
		item.Expires = time.Unix(end.Int64, 0)
	}
	var err error
	if item.Value, err = s.d.Decode(text, binary); err != nil {
		return block.StateItem{}, fault.New(op, fault.Lost, "the stored value of key %q cannot be read", item.Key).Because(err)
	}
	return item, nil
}

// Arrange puts items into the order of keys. A key asked for twice gets a copy, for values
// belong to the caller.
func Arrange(keys []string, found map[string]block.StateItem) []block.StateItem {
	out := make([]block.StateItem, len(keys))
	given := make(map[string]bool, len(keys))
	for i, k := range keys {
		out[i] = found[k]
		out[i].Key = k
		if given[k] {
			out[i].Value = append([]byte(nil), out[i].Value...)
		}
		given[k] = true
	}
	return out
}

// row is the values of a written row.
func (s *Store) row(o *block.StateOp) []any {
	text, binary := s.d.Encode(o.Value)
	return []any{o.Key, text, binary, uuid.NewString(), s.d.End(o.TTL)}
}

func list(what string, n int) string {
	b := make([]byte, 0, 2+n*(len(what)+1))
	b = append(b, '(')
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, what...)
	}
	return string(append(b, ')'))
}

func (s *Store) claim(ctx context.Context) (mine bool, err error) {
	op := s.op("clean")
	// A little less than the interval: two ticks of one clock may come a moment closer.
	every := s.o.Cleanup.Milliseconds() - 100
	err = s.do(ctx, op, true, func(ctx context.Context, db *sql.DB) error {
		n, err := affected(db.ExecContext(ctx, s.d.Claim, every))
		mine = n > 0
		return err
	})
	return mine, err
}

func (s *Store) remove(ctx context.Context, limit int) (n int64, err error) {
	err = s.do(ctx, s.op("clean"), true, func(ctx context.Context, db *sql.DB) (err error) {
		n, err = affected(db.ExecContext(ctx, s.d.Clean, limit))
		return err
	})
	return n, err
}
