package postgres

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlstate"
)

var (
	_ block.Lock      = (*lock)(nil)
	_ block.LockFence = (*lock)(nil)
)

// LockConfig configures PostgreSQL as a lock store.
type LockConfig struct {
	Conn ConnConfig
	// TableName is the table of locks, "table" or "schema.table". It is made if it does not exist,
	// and beside it a sequence of its name with _token behind it.
	TableName string `yaml:"tableName"`
	// CleanupInterval is how often the rows of names that were free for as long are removed. 0 or
	// less means never.
	CleanupInterval time.Duration `yaml:"cleanupInterval" alias:"cleanupIntervalInSeconds" unit:"s"`
}

// DefaultLockConfig is the configuration with nothing set.
func DefaultLockConfig() *LockConfig {
	return &LockConfig{Conn: defaultConn(), TableName: "mecha_lock", CleanupInterval: time.Hour}
}

const tokenSuffix = "_token"

// Validate reports every mistake.
func (c *LockConfig) Validate() error {
	if err := sqlstate.CheckQualified("tableName", c.TableName); err != nil {
		return err
	}
	if len(c.TableName[strings.IndexByte(c.TableName, '.')+1:])+len(tokenSuffix) > 63 {
		return conf.Bad("tableName", "%q is too long; the name may have 57 letters, for the sequence has %s behind it", c.TableName, tokenSuffix)
	}
	return nil
}

// NewLock opens a lock store. It does no I/O: the first use does.
func NewLock(env block.Env, c *LockConfig) (block.Lock, error) {
	const op fault.Op = "postgres.NewLock"
	if err := errors.Join(c.Conn.Validate(), c.Validate()); err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	p, err := c.Conn.pool()
	if err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	l := &lock{s: lockStatements(c.TableName), table: c.TableName, keep: c.CleanupInterval, log: env.Log}
	l.open(p, c.Conn.Timeout)
	l.cleaner = sqlstate.Cleaner{Every: c.CleanupInterval, Claim: l.dirty, Remove: l.remove, Log: env.Log}
	return l, nil
}

// lock is a table with a row per name. A name is taken while its row has an owner and its end has
// not come by the server's clock.
//
// The number of a grant comes from one sequence for all names, drawn while the row is locked, so
// it is greater than that of every earlier grant, of this name and of all others. Therefore rows
// may be removed: what a name had is below what it will get. Only one thing could break that: a
// statement that draws a number for a new row, and then stands still while others insert the row,
// draw higher numbers and remove it. The cleaning locks the table against that: it begins when no
// statement that writes is under way.
type lock struct {
	server
	s       *lockTexts
	table   string
	keep    time.Duration
	log     *slog.Logger
	gate    sqlstate.Gate // open once the table is there
	cleaner sqlstate.Cleaner
}

// lockTexts are the statements about one table.
type lockTexts struct {
	take, unlock, renew   string // name, owner, microseconds; name, owner; as take
	dirty, shut, remove   string // microseconds; nothing; microseconds, number of rows
	probe, create, number string
}

func lockStatements(table string) *lockTexts {
	fill := strings.NewReplacer("{table}", table, "{token}", table+tokenSuffix,
		"{end}", "clock_timestamp() + $3::bigint * interval '1 microsecond'",
		"{taken}", "l.owner IS NOT NULL AND l.ends > clock_timestamp()",
		"{old}", "l.ends < clock_timestamp() - $1::bigint * interval '1 microsecond'").Replace
	return &lockTexts{
		// A name that is taken is only read: to be refused costs no write. clock_timestamp is
		// looked at again when another statement's end has been waited for; now() would stand still.
		take: fill(`WITH held AS (SELECT 1 FROM {table} AS l WHERE l.name = $1 AND {taken})
			INSERT INTO {table} AS l (name, owner, ends, token)
			SELECT $1, $2, {end}, nextval('{token}') WHERE NOT EXISTS (SELECT FROM held)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, ends = {end},
				token = greatest(l.token + 1, nextval('{token}'))
			WHERE NOT ({taken}) RETURNING token`),
		// The second part sees the table as it was before the first. 3 says that this statement
		// found the owner's lock and somebody else ended it first.
		unlock: fill(`WITH freed AS (UPDATE {table} AS l SET owner = NULL, ends = clock_timestamp()
				WHERE l.name = $1 AND l.owner = $2 AND {taken} RETURNING 1)
			SELECT CASE WHEN EXISTS (SELECT FROM freed) THEN 0
				ELSE coalesce((SELECT CASE WHEN l.owner = $2 THEN 3 ELSE 2 END FROM {table} AS l WHERE l.name = $1 AND {taken}), 1) END`),
		renew: fill(`UPDATE {table} AS l SET ends = {end} WHERE l.name = $1 AND l.owner = $2 AND {taken} RETURNING 1`),
		dirty: fill(`SELECT EXISTS (SELECT FROM {table} AS l WHERE {old})`),
		shut:  fill(`LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE`),
		// Rows whose numbers are above the sequence's, which somebody has set back, stay.
		remove: fill(`DELETE FROM {table} AS l WHERE l.name IN (SELECT l.name FROM {table} AS l
			WHERE {old} AND NOT ({taken}) AND l.token <= (SELECT last_value FROM {token}) LIMIT $2::bigint)`),
		probe: fill(`SELECT l.name, l.owner, l.ends, l.token, s.last_value FROM {table} AS l, {token} AS s LIMIT 0`),
		// Short rows that change in place need room in their page.
		create: fill(`CREATE TABLE IF NOT EXISTS {table} (
			name text COLLATE "C" NOT NULL PRIMARY KEY,
			owner text,
			ends timestamp with time zone NOT NULL,
			token bigint NOT NULL
		) WITH (fillfactor = 70)`),
		number: fill(`SELECT 'CREATE SEQUENCE IF NOT EXISTS {token} AS bigint START WITH ' ||
			greatest((extract(epoch FROM clock_timestamp()) * 1000000)::bigint, (SELECT coalesce(max(token), 0) + 1 FROM {table}))
			|| ' OWNED BY {table}.token'`),
	}
}

// Ping checks that the server answers and the table is there or can be made.
func (l *lock) Ping(ctx context.Context) error {
	return l.ask(ctx, "postgres.lock.Ping", func(ctx context.Context, c *pgx.Conn) error { return c.Ping(ctx) })
}

// Close ends the cleaning and closes all connections. Locks stay.
func (l *lock) Close(ctx context.Context) error {
	if l.closed.Swap(true) {
		return nil
	}
	l.cleaner.Stop(ctx)
	return l.close(ctx, "postgres.lock.Close")
}

// TryLock takes a free name.
func (l *lock) TryLock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	token, err := l.take(ctx, "postgres.lock.TryLock", name, owner, ttl)
	return token > 0, err
}

// TryLockFenced takes a free name and numbers the grant.
func (l *lock) TryLockFenced(ctx context.Context, name, owner string, ttl time.Duration) (uint64, error) {
	return l.take(ctx, "postgres.lock.TryLockFenced", name, owner, ttl)
}

func (l *lock) take(ctx context.Context, op fault.Op, name, owner string, ttl time.Duration) (uint64, error) {
	us, err := checkLock(op, name, owner, ttl)
	if err != nil {
		return 0, err
	}
	var token int64
	err = l.ask(ctx, op, func(ctx context.Context, c *pgx.Conn) error {
		token = 0
		return one(c.QueryRow(ctx, l.s.take, name, owner, us), &token)
	})
	return uint64(max(token, 0)), err
}

// Unlock gives a name back.
func (l *lock) Unlock(ctx context.Context, name, owner string) (block.UnlockStatus, error) {
	const op fault.Op = "postgres.lock.Unlock"
	if _, err := checkLock(op, name, owner, 1); err != nil {
		return block.UnlockFailed, err
	}
	var status int64
	err := l.ask(ctx, op, func(ctx context.Context, c *pgx.Conn) error {
		for status = unsettled; status == unsettled; {
			if err := c.QueryRow(ctx, l.s.unlock, name, owner).Scan(&status); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return block.UnlockFailed, err
	}
	return block.UnlockStatus(status), nil
}

// unsettled is the answer of the unlock statement that has to be run again.
const unsettled = 3

// Renew makes a lock last from now.
func (l *lock) Renew(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	const op fault.Op = "postgres.lock.Renew"
	us, err := checkLock(op, name, owner, ttl)
	if err != nil {
		return false, err
	}
	var renewed int64
	err = l.ask(ctx, op, func(ctx context.Context, c *pgx.Conn) error {
		renewed = 0
		return one(c.QueryRow(ctx, l.s.renew, name, owner, us), &renewed)
	})
	return renewed > 0, err
}

// one reads a number, if there is a row.
func one(row pgx.Row, into *int64) error {
	if err := row.Scan(into); !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	return nil
}

// checkLock refuses what the table cannot hold, and gives the time in microseconds, rounded up: a
// lock never ends early.
func checkLock(op fault.Op, name, owner string, ttl time.Duration) (int64, error) {
	if ttl <= 0 {
		return 0, fault.New(op, fault.Invalid, "a lock for %v cannot be; give it a time above 0", ttl).WithSent(fault.SentNever)
	}
	for _, s := range []struct{ what, text string }{{"resource", name}, {"owner", owner}} {
		if sqlstate.CheckKey(op, s.text) != nil {
			return 0, fault.New(op, fault.Invalid, "the lock's %s %q is not UTF-8 text without NUL, which is all the database can hold", s.what, s.text).
				With(fault.IllegalKey).WithSent(fault.SentNever)
		}
	}
	return int64((ttl-1)/time.Microsecond) + 1, nil
}

// crowded is how long statements are run again that the server undid for the sake of others, as it
// does where transactions are serializable by default.
const crowded = 5 * time.Second

// ask runs one operation on a connection, with the table made.
func (l *lock) ask(ctx context.Context, op fault.Op, run func(context.Context, *pgx.Conn) error) error {
	ready := func(ctx context.Context, c *pgx.Conn) error {
		return l.gate.Pass(ctx, func(ctx context.Context) error { return l.setup(ctx, c) })
	}
	return l.do(ctx, op, ready, func(ctx context.Context, c *pgx.Conn) error {
		l.cleaner.Start()
		err := run(ctx, c)
		for end := time.Now().Add(crowded); ctx.Err() == nil && time.Now().Before(end); err = run(ctx, c) {
			if s := sqlState(err); s != "40001" && s != "40P01" {
				break
			}
		}
		switch sqlState(err) {
		case "42P01":
			l.gate.Shut() // somebody dropped the table; the next call makes it anew
		case "54000":
			return fault.New(op, fault.TooLarge, "the name of the lock is too long; it can have about 2700 bytes").Because(err).WithSent(fault.SentNever)
		}
		return err
	})
}

// setup makes what is missing. When all is there it writes nothing, so a role that may not create
// tables is enough for ones made beforehand.
func (l *lock) setup(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, l.s.probe)
	for range 3 { // those who make them at once collide in the catalog, and look again
		if err == nil || !missing(err) || sqlState(err) == "42703" {
			break
		}
		if err = l.make(ctx, c); err == nil || collision(err) {
			_, err = c.Exec(ctx, l.s.probe)
		}
	}
	if sqlState(err) == "42703" {
		return fault.New("", fault.Unsupported, "table %s is none of locks: it lacks a column; give tableName another name", l.table).Because(err).WithSent(fault.SentNever)
	}
	return err
}

// make makes the table and the sequence. The sequence starts at the server's time in microseconds,
// so that numbers grow also when somebody drops both.
func (l *lock) make(ctx context.Context, c *pgx.Conn) error {
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, l.s.create); err != nil {
			return err
		}
		var sequence string
		if err := tx.QueryRow(ctx, l.s.number).Scan(&sequence); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sequence)
		return err
	})
}

// dirty tells whether there are rows to remove. Every sidecar looks for itself.
func (l *lock) dirty(ctx context.Context) (found bool, err error) {
	err = l.ask(ctx, "postgres.lock.clean", func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, l.s.dirty, l.keep.Microseconds()).Scan(&found)
	})
	return found, err
}

// politely is how long the cleaning waits for the table: those who want to write wait behind it.
const politely = `SET LOCAL lock_timeout = '250ms'`

// remove removes rows of names that were free for long.
func (l *lock) remove(ctx context.Context, limit int) (n int64, err error) {
	err = l.ask(ctx, "postgres.lock.clean", func(ctx context.Context, c *pgx.Conn) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			for _, q := range []string{politely, l.s.shut} {
				if _, err := tx.Exec(ctx, q); err != nil {
					return err
				}
			}
			tag, err := tx.Exec(ctx, l.s.remove, l.keep.Microseconds(), int64(limit))
			n = tag.RowsAffected()
			return err
		})
	})
	if fault.Of(err) == fault.Unavailable && sqlState(err) == "55P03" {
		l.log.Debug("others hold the table of locks; it is cleaned another time", "table", l.table)
		return 0, nil
	}
	return n, err
}
