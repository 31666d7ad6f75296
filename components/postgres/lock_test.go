package postgres_test

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/postgres"
	"github.com/mecha-project/mecha/test/servers"
)

// fenced is what a store of locks can do.
type fenced interface {
	block.Lock
	block.LockFence
}

func newLock(t testing.TB, items ...string) fenced {
	t.Helper()
	c := postgres.DefaultLockConfig()
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	l, err := postgres.NewLock(block.Env{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, c)
	if err != nil {
		t.Fatalf("NewLock: %v", err)
	}
	return l.(fenced)
}

// openLock is newLock with the component closed when the test ends.
func openLock(t testing.TB, items ...string) fenced {
	t.Helper()
	l := newLock(t, items...)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}

// grant takes a name that is free, with a number above last.
func grant(t testing.TB, l fenced, name string, last uint64) uint64 {
	t.Helper()
	token, err := l.TryLockFenced(t.Context(), name, "me", time.Minute)
	if err != nil || token <= last {
		t.Fatalf("TryLockFenced(%s) = %d, %v; want more than %d", name, token, err, last)
	}
	return token
}

func giveBack(t testing.TB, l fenced, name string) {
	t.Helper()
	if st, err := l.Unlock(t.Context(), name, "me"); st != block.Unlocked || err != nil {
		t.Fatalf("Unlock(%s) = %v, %v", name, st, err)
	}
}

// The suite, also where transactions are of another kind by default.
func TestLock(t *testing.T) {
	server := servers.Postgres(t)
	c := sqlConn(t, server.Port)
	for _, isolation := range []string{"read committed", "serializable"} {
		run(t, c, "ALTER ROLE postgres SET default_transaction_isolation = '"+isolation+"'")
		t.Run(isolation, func(t *testing.T) {
			blocktest.Lock(t, func(t *testing.T) func() block.Lock {
				return func() block.Lock { return newLock(t, at(server.Port)...) }
			})
		})
	}
}

func TestLockModes(t *testing.T) {
	port := servers.Postgres(t).Port
	eachMode(t, func(t *testing.T, mode string) {
		l := openLock(t, at(port, "queryExecMode", mode)...)
		token := grant(t, l, "n", 0)
		if ok, err := l.TryLock(t.Context(), "n", "you", time.Minute); ok || err != nil {
			t.Errorf("TryLock of a taken name = %v, %v", ok, err)
		}
		if ok, err := l.Renew(t.Context(), "n", "me", time.Minute); !ok || err != nil {
			t.Errorf("Renew = %v, %v", ok, err)
		}
		if st, err := l.Unlock(t.Context(), "n", "you"); st != block.LockOfAnother || err != nil {
			t.Errorf("Unlock by another = %v, %v", st, err)
		}
		giveBack(t, l, "n")
		grant(t, l, "n", token)
		giveBack(t, l, "n")
	})
}

// Numbers grow although rows are removed, the table is dropped, or the sequence is set back. To
// be refused changes nothing.
func TestLockTokens(t *testing.T) {
	port := servers.Postgres(t).Port
	c := sqlConn(t, port)
	run(t, c, "CREATE SCHEMA app")
	l := openLock(t, at(port, "tableName", "app.locks")...)
	last := grant(t, l, "n", 0)
	other := grant(t, l, "m", last)
	state := func() string {
		return text(t, c, "SELECT (SELECT last_value FROM app.locks_token) || ' ' || string_agg(xmin || ' ' || xmax, ',' ORDER BY name) FROM app.locks")
	}
	before := state()
	for range 5 {
		if token, err := l.TryLockFenced(t.Context(), "n", "you", time.Minute); token != 0 || err != nil {
			t.Fatalf("a taken name: %d, %v", token, err)
		}
	}
	if after := state(); after != before {
		t.Errorf("to be refused has changed %s to %s", before, after)
	}
	giveBack(t, l, "n")
	run(t, c, "SELECT setval('app.locks_token', 1)")
	last = grant(t, l, "n", last) // the row remembers
	giveBack(t, l, "n")
	last = grant(t, l, "n", last)
	run(t, c, "DROP SEQUENCE app.locks_token CASCADE")
	giveBack(t, l, "n")
	waitFor(t, "the sequence to be made", func() bool {
		token, err := l.TryLockFenced(t.Context(), "p", "me", time.Minute)
		if err == nil && token <= max(last, other) {
			t.Fatalf("number %d, want more than %d and %d", token, last, other)
		}
		return err == nil
	})
	last = grant(t, l, "n", last)
	run(t, c, "DROP TABLE app.locks")
	_, err := l.TryLockFenced(t.Context(), "n", "me", time.Minute)
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
		t.Errorf("without the table: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	grant(t, l, "n", last)
}

// Names that were free for long leave no row, and nothing is lost by that.
func TestLockCleaning(t *testing.T) {
	port := servers.Postgres(t).Port
	c := sqlConn(t, port)
	keeper := openLock(t, at(port, "cleanupInterval", "0")...) // makes the table, removes nothing
	last := grant(t, keeper, "free", 0)
	giveBack(t, keeper, "free")
	grant(t, keeper, "held", 0)
	grant(t, keeper, "expired", 0)
	grant(t, keeper, "back", 0)
	run(t, c, "UPDATE mecha_lock SET ends = now() - interval '1 hour' WHERE name IN ('free', 'expired')")
	run(t, c, "UPDATE mecha_lock SET ends = now() - interval '1 hour', token = token + 1000000000 WHERE name = 'back'") // as if the sequence had been set back
	run(t, c, "INSERT INTO mecha_lock SELECT 'many' || i, 'x', now() - interval '1 hour', 1 FROM generate_series(1, 2500) AS i")
	// While somebody writes, nothing is removed.
	tx, err := c.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "INSERT INTO mecha_lock VALUES ('writing', NULL, now(), nextval('mecha_lock_token'))"); err != nil {
		t.Fatal(err)
	}
	l := openLock(t, at(port, "cleanupInterval", "300ms")...)
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	watch := sqlConn(t, port)
	tried := 0
	waitFor(t, "the cleaning to be turned away", func() bool {
		if text(t, watch, "SELECT count(*)::text FROM pg_locks WHERE relation = 'mecha_lock'::regclass AND mode = 'ShareRowExclusiveLock' AND NOT granted") != "0" {
			tried++
		}
		return tried > 2
	})
	if n := text(t, watch, "SELECT count(*)::text FROM mecha_lock WHERE ends < now() - interval '1 minute'"); n != "2503" {
		t.Errorf("%s old rows are left while somebody writes, want all 2503", n)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "old rows to go", func() bool {
		return text(t, watch, "SELECT string_agg(name, ',' ORDER BY name) FROM mecha_lock") == "back,held"
	})
	grant(t, l, "free", last)
	if ok, err := l.TryLock(t.Context(), "held", "you", time.Minute); ok || err != nil {
		t.Errorf("a lock that is held was taken: %v, %v", ok, err)
	}
}

// Cleaning at the same time as everything else: no number comes twice or falls.
func TestLockCleaningAtOnce(t *testing.T) {
	port := servers.Postgres(t).Port
	var wg sync.WaitGroup
	var mu sync.Mutex
	last := map[string]uint64{}
	grants := 0
	for w := range 4 {
		l := openLock(t, at(port, "cleanupInterval", "10ms")...)
		wg.Go(func() {
			for i := range 100 {
				name, owner := fmt.Sprint("n", i%3), fmt.Sprint("o", w)
				token, err := l.TryLockFenced(t.Context(), name, owner, time.Minute)
				if err != nil {
					t.Errorf("TryLockFenced: %v", err)
				}
				if token == 0 {
					continue
				}
				mu.Lock() // the lock is held: nobody else has a number for the name meanwhile
				if token <= last[name] {
					t.Errorf("%s: number %d after %d", name, token, last[name])
				}
				last[name] = token
				grants++
				mu.Unlock()
				if i%10 == 0 {
					time.Sleep(20 * time.Millisecond) // free names must get old enough, too
				}
				if st, err := l.Unlock(t.Context(), name, owner); st != block.Unlocked || err != nil {
					t.Errorf("Unlock = %v, %v", st, err)
				}
			}
		})
	}
	wg.Wait()
	if grants < 50 {
		t.Errorf("only %d grants", grants)
	}
	c := sqlConn(t, port)
	waitFor(t, "all rows to go", func() bool { return text(t, c, "SELECT count(*)::text FROM mecha_lock") == "0" })
}

// Two who unlock at once: one of them does it, nobody is told of another's lock.
func TestLockUnlockTwice(t *testing.T) {
	port := servers.Postgres(t).Port
	ls := []fenced{openLock(t, at(port)...), openLock(t, at(port)...)}
	for range 50 {
		grant(t, ls[0], "n", 0)
		var done atomic.Int32
		var wg sync.WaitGroup
		for _, l := range ls {
			wg.Go(func() {
				switch st, err := l.Unlock(t.Context(), "n", "me"); {
				case err != nil || st == block.LockOfAnother:
					t.Errorf("Unlock = %v, %v", st, err)
				case st == block.Unlocked:
					done.Add(1)
				}
			})
		}
		wg.Wait()
		if done.Load() != 1 {
			t.Fatalf("%d have unlocked", done.Load())
		}
	}
}

// Through crashes and cut connections no two owners have a name at once, as far as they were told,
// numbers only grow, and the store goes on by itself.
func TestLockFaults(t *testing.T) {
	server := servers.Postgres(t)
	relay := servers.NewRelay(t, server.Port)
	const ttl = 2 * time.Second // so that a grant nobody heard of ends soon
	var mu sync.Mutex
	holder, until, last := "", time.Time{}, uint64(0) // guarded by mu; until is when the holder's lock may end
	var grants atomic.Int64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range 4 {
		l := openLock(t, at(relay.Port)...)
		fine := func(what string, err error) bool {
			if err == nil {
				return true
			}
			if fault.Of(err) != fault.Unavailable || fault.SentOf(err) == fault.SentUnknown {
				t.Errorf("%s: %v (%v, sent %v)", what, err, fault.Of(err), fault.SentOf(err))
			}
			return false
		}
		turn := func(owner string) {
			asked := time.Now()
			token, err := l.TryLockFenced(context.Background(), "n", owner, ttl)
			if !fine("TryLockFenced", err) || token == 0 {
				return
			}
			grants.Add(1)
			mu.Lock()
			now := time.Now()
			if now.After(asked.Add(ttl)) { // a slow machine: it has ended already
				mu.Unlock()
				return
			}
			if holder != "" && now.Before(until) {
				t.Errorf("%s has the name and %s got it", holder, owner)
			}
			if token <= last {
				t.Errorf("number %d after %d", token, last)
			}
			holder, until, last = owner, asked.Add(ttl), token
			mu.Unlock()
			asked = time.Now()
			ok, err := l.Renew(context.Background(), "n", owner, ttl)
			mu.Lock()
			if fine("Renew", err) && holder == owner {
				if !ok && time.Now().Before(until) {
					t.Error("a lock that was held was not renewed")
				}
				if ok {
					until = asked.Add(ttl)
				}
			}
			// From here on others may have it, whatever becomes of the answer.
			end := time.Time{}
			if holder == owner {
				holder, end = "", until
			}
			mu.Unlock()
			if st, err := l.Unlock(context.Background(), "n", owner); fine("Unlock", err) && st != block.Unlocked && time.Now().Before(end) {
				t.Errorf("Unlock = %v", st)
			}
		}
		wg.Go(func() {
			for n := 0; !stop.Load(); n++ {
				turn(fmt.Sprintf("%d/%d", w, n)) // a grant that nobody heard of is nobody's
				time.Sleep(time.Millisecond)
			}
		})
	}
	more := func(what string) {
		before := grants.Load()
		waitFor(t, "grants "+what, func() bool { return grants.Load() > before+10 })
	}
	for range 2 {
		more("before a cut")
		relay.Cut()
		more("after a cut")
		server.Kill()
		server.Start(t)
		more("after a crash")
	}
	stop.Store(true)
	wg.Wait()
}

// A lock and its number survive a crash, and one that was held is not given away.
func TestLockSurvives(t *testing.T) {
	server := servers.Postgres(t)
	l := openLock(t, at(server.Port)...)
	token := grant(t, l, "n", 0)
	grant(t, l, "free", 0)
	giveBack(t, l, "free")
	server.Kill()
	server.Start(t)
	waitFor(t, "the store to work again", func() bool {
		ok, err := l.TryLock(t.Context(), "n", "you", time.Minute)
		if ok {
			t.Fatal("the lock was given to another")
		}
		return err == nil
	})
	giveBack(t, l, "n")
	grant(t, l, "n", token)
}

func TestLockSilentServer(t *testing.T) {
	server := servers.Postgres(t)
	l := openLock(t, at(server.Port, "timeout", "1s")...)
	grant(t, l, "n", 0)
	server.Freeze()
	defer server.Thaw()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := l.TryLock(ctx, "m", "me", time.Minute)
	if fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("TryLock: %v (%v, sent %v); want deadline, maybe sent", err, fault.Of(err), fault.SentOf(err))
	}
	_, err = l.Unlock(t.Context(), "n", "me")
	if fault.Of(err) != fault.Unavailable {
		t.Errorf("Unlock: %v (%v)", err, fault.Of(err))
	}
	server.Thaw()
	waitFor(t, "the store to work again", func() bool { return l.Ping(t.Context()) == nil })
	giveBack(t, l, "n")
}

// A role that may only use the table is enough for one made beforehand; without it the error says
// what is wrong.
func TestLockRights(t *testing.T) {
	port := servers.Postgres(t).Port
	c := sqlConn(t, port)
	run(t, c, "CREATE ROLE app LOGIN PASSWORD 'app'")
	items := []string{"host", "127.0.0.1", "port", strconv.Itoa(port), "database", "postgres", "user", "app", "password", "app"}
	l := openLock(t, items...)
	_, err := l.TryLock(t.Context(), "n", "me", time.Minute)
	if fault.Of(err) != fault.Denied || fault.SentOf(err) != fault.SentNever {
		t.Errorf("without a table: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	for _, q := range lockTable {
		run(t, c, q)
	}
	run(t, c, "GRANT SELECT, INSERT, UPDATE, DELETE ON mecha_lock TO app")
	run(t, c, "GRANT SELECT, USAGE ON SEQUENCE mecha_lock_token TO app")
	token := grant(t, l, "n", 0)
	giveBack(t, l, "n")
	run(t, c, "UPDATE mecha_lock SET ends = now() - interval '1 hour'")
	cleaning := openLock(t, append(items, "cleanupInterval", "50ms")...)
	if err := cleaning.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the row to go", func() bool { return text(t, c, "SELECT count(*)::text FROM mecha_lock") == "0" })
	grant(t, l, "n", token)
}

// lockTable is how the README tells to make the table.
var lockTable = []string{
	`CREATE TABLE mecha_lock (name text COLLATE "C" PRIMARY KEY, owner text, ends timestamptz NOT NULL, token bigint NOT NULL)`,
	`CREATE SEQUENCE mecha_lock_token AS bigint OWNED BY mecha_lock.token`,
}

func TestLockTableMadeTogether(t *testing.T) {
	port := servers.Postgres(t).Port
	var wg sync.WaitGroup
	var granted atomic.Int32
	for i := range 8 {
		l := openLock(t, at(port)...)
		wg.Go(func() {
			ok, err := l.TryLock(t.Context(), "n", fmt.Sprint("o", i), time.Minute)
			if err != nil {
				t.Errorf("store %d: %v", i, err)
			}
			if ok {
				granted.Add(1)
			}
		})
	}
	wg.Wait()
	if granted.Load() != 1 {
		t.Errorf("%d have the lock", granted.Load())
	}
}

func TestLockBadRequests(t *testing.T) {
	port := servers.Postgres(t).Port
	l := openLock(t, at(port)...)
	for name, tt := range map[string]struct {
		name, owner string
		ttl         time.Duration
		code        fault.Code
		text        string
	}{
		"no time":         {"n", "me", 0, fault.Invalid, "above 0"},
		"NUL in a name":   {"n\x00", "me", time.Second, fault.Invalid, "resource"},
		"no UTF-8":        {"n", "m\xff", time.Second, fault.Invalid, "owner"},
		"a name too long": {noise(t, 6000), "me", time.Second, fault.TooLarge, "too long"},
	} {
		if _, err := l.TryLockFenced(t.Context(), tt.name, tt.owner, tt.ttl); fault.Of(err) != tt.code || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v (%v, sent %v); want %v, %s", name, err, fault.Of(err), fault.SentOf(err), tt.code, tt.text)
		}
	}
	if ok, err := l.TryLock(t.Context(), "far", "me", 1<<63-1); !ok || err != nil {
		t.Errorf("the longest time: %v, %v", ok, err)
	}
	run(t, sqlConn(t, port), "CREATE TABLE other (name text)")
	run(t, sqlConn(t, port), "CREATE SEQUENCE other_token")
	_, err := openLock(t, at(port, "tableName", "other")...).TryLock(t.Context(), "n", "me", time.Second)
	if fault.Of(err) != fault.Unsupported || !strings.Contains(err.Error(), "table other is none of locks") {
		t.Errorf("another's table: %v (%v)", err, fault.Of(err))
	}
	for name, items := range map[string][]string{
		"a name that needs quotes": {"host", "h", "tableName", `lo"ck`}, "a name too long": {"host", "h", "tableName", "app." + strings.Repeat("x", 58)},
		"no server": {"tableName", "x"}, "sql": {"host", "h", "tableName", "x; DROP TABLE y"},
	} {
		if err := conf.Decode(conf.Items(items...), postgres.DefaultLockConfig()).Err(); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	wrong := []string{"host", "127.0.0.1", "port", strconv.Itoa(port), "database", "postgres", "user", "postgres", "password", "gu3ss"}
	_, err = openLock(t, wrong...).TryLock(t.Context(), "n", "me", time.Second)
	if fault.Of(err) != fault.Denied || strings.Contains(err.Error(), "gu3ss") {
		t.Errorf("a wrong password: %v (%v)", err, fault.Of(err))
	}
}

func BenchmarkLock(b *testing.B) {
	port := servers.Postgres(b).Port
	l := openLock(b, at(port)...)
	grant(b, l, "taken", 0)
	b.Run("take and give back", func(b *testing.B) {
		for b.Loop() {
			grant(b, l, "n", 0)
			giveBack(b, l, "n")
		}
	})
	b.Run("refused", func(b *testing.B) {
		for b.Loop() {
			if ok, err := l.TryLock(b.Context(), "taken", "you", time.Minute); ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
}
