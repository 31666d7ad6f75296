package postgres_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

// Acknowledged writes survive a killed server; what fails says that it may have happened, and
// transactions are whole.
func TestKilledServer(t *testing.T) {
	each(t, func(t *testing.T, version string) {
		server := servers.Postgres(t)
		s := open(t, version, at(server.Port)...)
		tx := s.(block.StateTx)
		if err := s.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		var stop atomic.Bool
		var wg sync.WaitGroup
		acked := make([]int, 3)
		for w := range acked {
			wg.Go(func() {
				for n := 1; !stop.Load(); n++ {
					v := []byte(strconv.Itoa(n))
					err := tx.Transact(context.Background(), []block.StateOp{
						{StateWrite: block.StateWrite{Key: fmt.Sprint("a", w), Value: v}}, {StateWrite: block.StateWrite{Key: fmt.Sprint("b", w), Value: v}}})
					switch fault.Of(err) {
					case fault.OK:
						acked[w] = n
					case fault.Unavailable:
						time.Sleep(5 * time.Millisecond)
					default:
						t.Errorf("Transact: %v (%v)", err, fault.Of(err))
					}
				}
			})
		}
		for range 2 {
			time.Sleep(200 * time.Millisecond)
			server.Kill()
			time.Sleep(50 * time.Millisecond)
			server.Start(t)
		}
		waitFor(t, "a write after the restart", func() bool {
			return s.Set(t.Context(), block.StateWrite{Key: "after", Value: []byte("v")}) == nil
		})
		time.Sleep(100 * time.Millisecond)
		stop.Store(true)
		wg.Wait()
		for w, n := range acked {
			a, b := want2(t, s, fmt.Sprint("a", w)), want2(t, s, fmt.Sprint("b", w))
			if a != b || a < n || n == 0 {
				t.Errorf("writer %d: %d acknowledged, %d and %d stored", w, n, a, b)
			}
		}
	})
}

func want2(t *testing.T, s block.State, key string) int {
	t.Helper()
	item, err := s.Get(t.Context(), key, block.StateRead{})
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(string(item.Value))
	return n
}

// A server that says nothing holds up nobody beyond their deadlines.
func TestSilentServer(t *testing.T) {
	server := servers.Postgres(t)
	s := open(t, "v2", at(server.Port, "timeout", "1s")...)
	set(t, s, "k", "1")
	server.Freeze()
	defer server.Thaw()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := s.Set(ctx, block.StateWrite{Key: "k", Value: []byte("2")})
	if fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("Set: %v (%v, sent %v); want deadline, maybe sent", err, fault.Of(err), fault.SentOf(err))
	}
	// The lost connection is not waited for; a new one cannot be made in time.
	err = s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("2")})
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
		t.Errorf("Set: %v (%v, sent %v); want unavailable, never sent", err, fault.Of(err), fault.SentOf(err))
	}
	var wg sync.WaitGroup
	for range 20 { // more than there are connections
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			if _, err := s.Get(ctx, "k", block.StateRead{}); fault.Of(err) != fault.Deadline {
				t.Errorf("Get: %v (%v)", err, fault.Of(err))
			}
		})
	}
	wg.Wait()
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("all of this took %v", took)
	}
	server.Thaw()
	waitFor(t, "the store to work again", func() bool { return s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("3")}) == nil })
	want(t, s, "k", "3")
}

// Connections that are cut are replaced; calls under way say that they may have happened.
func TestCutConnections(t *testing.T) {
	server := servers.Postgres(t)
	relay := servers.NewRelay(t, server.Port)
	s := open(t, "v2", at(relay.Port)...)
	set(t, s, "k", "0")
	var stop atomic.Bool
	var wg sync.WaitGroup
	acked := 0
	wg.Go(func() {
		for n := 1; !stop.Load(); n++ {
			err := s.Set(context.Background(), block.StateWrite{Key: "k", Value: []byte(strconv.Itoa(n))})
			switch fault.Of(err) {
			case fault.OK:
				acked = n
			case fault.Unavailable:
				if fault.SentOf(err) == fault.SentUnknown {
					t.Errorf("Set: %v: nobody knows how far it got", err)
				}
			default:
				t.Errorf("Set: %v (%v)", err, fault.Of(err))
			}
		}
	})
	for range 10 {
		time.Sleep(30 * time.Millisecond)
		relay.Cut()
	}
	time.Sleep(30 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	if acked == 0 || want2(t, s, "k") < acked {
		t.Errorf("%d acknowledged", acked)
	}
}

func TestServerNotThere(t *testing.T) {
	server := servers.Postgres(t)
	server.Kill()
	s := open(t, "v2", at(server.Port)...)
	err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("v")})
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "refused") {
		t.Errorf("Set: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	server.Start(t)
	set(t, s, "k", "v")
}

func TestTLSAndPassword(t *testing.T) {
	server := servers.Postgres(t)
	address := func(user, password, options string) string {
		u := url.URL{Scheme: "postgres", User: url.UserPassword(user, password), Host: fmt.Sprint("localhost:", server.Port), Path: "postgres", RawQuery: options}
		return u.String()
	}
	s := open(t, "v2", "url", address("postgres", servers.SQLPassword, "sslmode=verify-full"), "sslRootCert", server.Cert)
	set(t, s, "k", "v")
	if got := text(t, sqlConn(t, server.Port), `SELECT count(*)::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND application_name = 'mecha'`); got != "1" {
		t.Errorf("%s connections over TLS, want 1", got)
	}
	for name, dsn := range map[string]string{
		"an unknown authority": address("postgres", servers.SQLPassword, "sslmode=verify-full"),
		"a wrong password":     address("postgres", "wrong", "sslmode=disable"),
		"a missing database":   strings.Replace(address("postgres", servers.SQLPassword, "sslmode=disable"), "/postgres?", "/nowhere?", 1),
	} {
		s := open(t, "v2", "connectionString", dsn)
		err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("v")})
		code := fault.Unavailable
		if name == "a wrong password" {
			code = fault.Denied
		}
		if fault.Of(err) != code || fault.SentOf(err) != fault.SentNever || strings.Contains(err.Error(), servers.SQLPassword) {
			t.Errorf("%s: %v (%v, sent %v)", name, err, fault.Of(err), fault.SentOf(err))
		}
	}
	// The name in the certificate and the address may come apart.
	apart := open(t, "v2", "url", address("postgres", servers.SQLPassword, "sslmode=verify-full"), "sslRootCert", server.Cert,
		"host", "localhost", "hostaddr", "127.0.0.1")
	want(t, apart, "k", "v")
}

// Batches and transactions over the same keys in opposite orders do not block each other.
func TestOppositeOrders(t *testing.T) {
	server := servers.Postgres(t)
	each(t, func(t *testing.T, version string) {
		s := open(t, version, at(server.Port, tables(version, "orders_"+version)...)...)
		batch, tx := s.(block.StateBatch), s.(block.StateTx)
		if err := s.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for range 25 {
					var ws []block.StateWrite
					var ops []block.StateOp
					var ds []block.StateDelete
					for i := range 10 {
						k := fmt.Sprint(i)
						if w%2 == 1 {
							k = fmt.Sprint(9 - i)
						}
						ws = append(ws, block.StateWrite{Key: k, Value: []byte("v")})
						ops = append(ops, block.StateOp{StateWrite: ws[i]})
						ds = append(ds, block.StateDelete{Key: k})
					}
					if errs := batch.SetMany(t.Context(), ws); errs != nil {
						t.Errorf("SetMany: %v", errs[0])
					}
					if err := tx.Transact(t.Context(), ops); err != nil {
						t.Errorf("Transact: %v", err)
					}
					if errs := batch.DeleteMany(t.Context(), ds); errs != nil {
						t.Errorf("DeleteMany: %v", errs[0])
					}
				}
			})
		}
		wg.Wait()
	})
}

// noise is text of n random bytes, which the server cannot compress.
func noise(t testing.TB, n int) string {
	t.Helper()
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

func TestLongKey(t *testing.T) {
	s := open(t, "v2", at(servers.Postgres(t).Port)...)
	key := noise(t, 6000)
	err := s.Set(t.Context(), block.StateWrite{Key: key, Value: []byte("v")})
	if fault.Of(err) != fault.TooLarge {
		t.Errorf("a key of %d bytes: %v (%v)", len(key), err, fault.Of(err))
	}
	set(t, s, "k", "v")
}
