package mysql_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
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

func stored(t *testing.T, s block.State, key string) int {
	t.Helper()
	item, err := s.Get(t.Context(), key, block.StateRead{})
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(string(item.Value))
	return n
}

// pair is a transaction that writes one number to two keys.
func pair(w, n int) []block.StateOp {
	v := []byte(strconv.Itoa(n))
	return []block.StateOp{{StateWrite: block.StateWrite{Key: fmt.Sprint("a", w), Value: v}}, {StateWrite: block.StateWrite{Key: fmt.Sprint("b", w), Value: v}}}
}

// Acknowledged writes survive a killed server and transactions are whole.
func TestKilledServer(t *testing.T) {
	server := servers.MySQL(t)
	s := open(t, at(server.Port)...)
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	acked := make([]int, 3)
	for w := range acked {
		wg.Go(func() {
			for n := 1; !stop.Load(); n++ {
				err := s.(block.StateTx).Transact(context.Background(), pair(w, n))
				switch fault.Of(err) {
				case fault.OK:
					acked[w] = n
				case fault.Unavailable:
					if fault.SentOf(err) == fault.SentUnknown {
						t.Errorf("Transact: %v: nobody knows how far it got", err)
					}
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
		a, b := stored(t, s, fmt.Sprint("a", w)), stored(t, s, fmt.Sprint("b", w))
		if a != b || a < n || n == 0 {
			t.Errorf("writer %d: %d acknowledged, %d and %d stored", w, n, a, b)
		}
	}
}

// A server that says nothing holds up nobody beyond their deadlines, wherever they are.
func TestSilentServer(t *testing.T) {
	server := servers.MySQL(t)
	s := open(t, at(server.Port, "timeout", "1s", "maxConns", "4")...)
	set(t, s, "k", "1")
	var wg sync.WaitGroup
	var ended atomic.Int32
	stop := make(chan struct{})
	for w := range 6 { // more than there are connections
		wg.Go(func() {
			defer ended.Add(1)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
				err := s.(block.StateTx).Transact(ctx, pair(w, n))
				cancel()
				if code := fault.Of(err); code != fault.OK && code != fault.Deadline {
					t.Errorf("Transact: %v (%v)", err, code)
				}
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	server.Freeze()
	defer server.Thaw()
	close(stop)
	waitFor(t, "calls to end with their deadlines", func() bool { return ended.Load() == 6 })
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Set(ctx, block.StateWrite{Key: "k", Value: []byte("2")}); fault.Of(err) != fault.Deadline {
		t.Errorf("Set: %v (%v)", err, fault.Of(err))
	}
	// A new connection cannot be made in time.
	waitFor(t, "a call that finds no connection", func() bool {
		err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("2")})
		if fault.Of(err) != fault.Unavailable {
			t.Fatalf("Set: %v (%v)", err, fault.Of(err))
		}
		return fault.SentOf(err) == fault.SentNever
	})
	server.Thaw()
	waitFor(t, "the store to work again", func() bool { return s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("3")}) == nil })
	want(t, s, "k", "3")
}

// Close does not wait for a server that says nothing.
func TestCloseSilent(t *testing.T) {
	server := servers.MySQL(t)
	s := open(t, at(server.Port)...)
	set(t, s, "k", "1")
	server.Freeze()
	defer server.Thaw()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// Connections that are cut are replaced; calls under way say that they may have happened.
func TestCutConnections(t *testing.T) {
	server := servers.MySQL(t)
	relay := servers.NewRelay(t, server.Port)
	s := open(t, at(relay.Port)...)
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
	if acked == 0 || stored(t, s, "k") < acked {
		t.Errorf("%d acknowledged, %d stored", acked, stored(t, s, "k"))
	}
}

func TestServerNotThere(t *testing.T) {
	server := servers.MySQL(t)
	server.Kill()
	s := open(t, at(server.Port)...)
	refused := func(when string) {
		t.Helper()
		err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("v")})
		if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "refused") {
			t.Errorf("Set %s: %v (%v, sent %v)", when, err, fault.Of(err), fault.SentOf(err))
		}
	}
	refused("before the first connection")
	server.Start(t)
	set(t, s, "k", "v")
	server.Kill()
	_, _ = s.Get(t.Context(), "k", block.StateRead{}) // finds out
	refused("after the server went")
}

func TestTLSAndPassword(t *testing.T) {
	server := servers.MySQL(t)
	pem, err := os.ReadFile(server.Cert)
	if err != nil {
		t.Fatal(err)
	}
	custom := address(servers.SQLPassword, server.Port, "?tls=custom")
	for key, value := range map[string]string{"pemPath": server.Cert, "pemContents": string(pem)} {
		s := open(t, "connectionString", custom, key, value)
		set(t, s, "k", key)
	}
	db := direct(t, server.Port, "")
	run(t, db, `CREATE USER safe IDENTIFIED BY 'x' REQUIRE SSL`)
	run(t, db, `GRANT ALL ON *.* TO safe`)
	safe := fmt.Sprintf("safe:x@tcp(127.0.0.1:%d)/", server.Port)
	set(t, open(t, "url", safe+"?tls=custom", "pemPath", server.Cert), "k", "v")
	for name, c := range map[string]struct {
		dsn  string
		code fault.Code
	}{
		"an unknown authority": {address(servers.SQLPassword, server.Port, "?tls=true"), fault.Unavailable},
		"a wrong password":     {address("wrong", server.Port, ""), fault.Denied},
		"no TLS":               {safe, fault.Denied},
	} {
		err := open(t, "url", c.dsn).Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("v")})
		if fault.Of(err) != c.code || fault.SentOf(err) != fault.SentNever || strings.Contains(err.Error(), servers.SQLPassword) {
			t.Errorf("%s: %v (%v, sent %v)", name, err, fault.Of(err), fault.SentOf(err))
		}
	}
}

// Batches and transactions over the same keys in opposite orders do not fail.
func TestOppositeOrders(t *testing.T) {
	port := servers.MySQL(t).Port
	for name, options := range map[string]string{"read committed": "", "repeatable read": "?tx_isolation=%27REPEATABLE-READ%27"} {
		t.Run(name, func(t *testing.T) {
			s := open(t, "url", address(servers.SQLPassword, port, options))
			batch := s.(block.StateBatch)
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					for range 15 {
						var ws []block.StateWrite
						var ops []block.StateOp
						var ds []block.StateDelete
						for i := range 10 {
							k := fmt.Sprint(i)
							if w%2 == 1 {
								k = fmt.Sprint(9 - i)
							}
							ws = append(ws, block.StateWrite{Key: k, Value: []byte("v"), TTL: time.Hour})
							ops = append(ops, block.StateOp{StateWrite: ws[i]})
							ds = append(ds, block.StateDelete{Key: k})
						}
						if errs := batch.SetMany(t.Context(), ws); errs != nil {
							t.Errorf("SetMany: %v", errs[0])
						}
						if err := s.(block.StateTx).Transact(t.Context(), ops); err != nil {
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
}

// A lock that another program holds is waited for as long as an operation may last, not longer.
func TestLocked(t *testing.T) {
	port := servers.MySQL(t).Port
	s := open(t, at(port, "timeout", "1s")...)
	set(t, s, "k", "1")
	other, err := direct(t, port, "dapr_state_store").Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(`UPDATE state SET isbinary = 1, eTag = 'x' WHERE id = 'k'`); err != nil {
		t.Fatal(err)
	}
	if err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("2")}); fault.Of(err) != fault.Unavailable {
		t.Errorf("Set: %v (%v)", err, fault.Of(err))
	}
	want(t, s, "k", "1")
	time.Sleep(1500 * time.Millisecond) // the server has given up the write by now
	if err := other.Rollback(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	want(t, s, "k", "1")
}

// A transaction that the server ends as a deadlock, and so undoes, is begun again.
func TestDeadlock(t *testing.T) {
	port := servers.MySQL(t).Port
	s := open(t, at(port)...)
	set(t, s, "a", "1")
	set(t, s, "b", "1")
	db := direct(t, port, "dapr_state_store")
	other, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	change := func(query string) {
		t.Helper()
		if _, err := other.Exec(query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	// The server undoes the transaction that changed less: ours.
	change(`INSERT INTO state (id, value, isbinary, eTag) SELECT CONCAT('x', seq), '1', 0, 'e' FROM seq_1_to_100`)
	change(`UPDATE state SET eTag = 'x' WHERE id = 'b'`)
	done := make(chan error, 1)
	go func() {
		done <- s.(block.StateTx).Transact(context.Background(), []block.StateOp{
			{StateWrite: block.StateWrite{Key: "a", Value: []byte("2")}}, {StateWrite: block.StateWrite{Key: "b", Value: []byte("2")}}})
	}()
	waitFor(t, "our transaction to wait", func() bool {
		time.Sleep(200 * time.Millisecond) // the view is not renewed when it is read more often than every 100ms
		return text(t, db, `SELECT COUNT(*) FROM information_schema.INNODB_TRX WHERE trx_state = 'LOCK WAIT'`) == "1"
	})
	change(`UPDATE state SET eTag = 'x' WHERE id = 'a'`)
	if err := other.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Transact: %v", err)
	}
	want(t, s, "a", "2")
	want(t, s, "b", "2")
}

// Connections that the pool makes in the background are bounded, too: some that a dead path
// swallows do not hold the pool's places forever.
func TestSwallowedConnections(t *testing.T) {
	server := servers.MySQL(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	relay := servers.NewRelay(t, server.Port)
	var wg sync.WaitGroup
	var left atomic.Int32 // to swallow
	wg.Go(func() {
		var swallowed []net.Conn
		defer func() {
			for _, c := range swallowed {
				_ = c.Close()
			}
		}()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if left.Add(-1) >= 0 {
				swallowed = append(swallowed, c)
				continue
			}
			there, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", relay.Port))
			if err != nil {
				_ = c.Close()
				continue
			}
			wg.Go(func() { _, _ = io.Copy(there, c); _ = there.Close() })
			wg.Go(func() { _, _ = io.Copy(c, there); _ = c.Close() })
		}
	})
	s := open(t, at(l.Addr().(*net.TCPAddr).Port, "timeout", "1s", "maxConns", "1")...)
	t.Cleanup(func() { _ = s.Close(context.Background()); _ = l.Close(); relay.Cut(); wg.Wait() })
	set(t, s, "k", "v")
	left.Store(2)
	relay.Cut()
	var callers sync.WaitGroup
	for range 3 {
		callers.Go(func() { _, _ = s.Get(context.Background(), "k", block.StateRead{}) })
	}
	callers.Wait()
	waitFor(t, "a call that works", func() bool { return s.Ping(t.Context()) == nil })
}
