package rabbitmq_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

// A server that is not there is an error at once, reading waits for it, and all goes on when it is.
func TestNotThereAtFirst(t *testing.T) {
	srv := server(t)
	srv.Stop(t)
	out := &logs{}
	b := openLogged(t, out.logger(), srv.URL(), "queueName", queueName(t), "durable", "true", "reconnectWait", "200ms")
	// The sidecar starts all the same.
	if err := b.Ping(soon(t)); err != nil || !strings.Contains(out.String(), "the server is not there") {
		t.Errorf("Ping: %v, and logged: %s", err, out)
	}
	for what, err := range map[string]error{"create": tryCreate(soon(t), b, "data")} {
		if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "is the server up") {
			t.Errorf("%s: %v", what, err)
		}
	}
	r := read(t, b, nil)
	eventually(t, func() error {
		if strings.Count(out.String(), "broke off") < 2 {
			return fmt.Errorf("not told: %s", out)
		}
		return nil
	})
	srv.Start(t)
	eventually(t, func() error { return tryCreate(soon(t), b, "data") })
	r.next(t)
	if text := out.String(); strings.Contains(text, "s3cret") || strings.Contains(text, "p%40w") {
		t.Errorf("the log has the password: %s", text)
	}
}

// Whatever was acknowledged to the sender reaches the app, across kills of the server; what the
// app has handled and the server heard of does not come again.
func TestKilledUnderLoad(t *testing.T) {
	srv := server(t)
	b := open(t, srv.URL(), "queueName", queueName(t), "durable", "true", "reconnectWait", "100ms", "prefetchCount", "10")
	var mu sync.Mutex
	seen := map[string]int{}
	read(t, b, func(_ context.Context, e event) error {
		mu.Lock()
		defer mu.Unlock()
		seen[string(e.Data)]++
		if seen[string(e.Data)] == 1 && strings.HasSuffix(string(e.Data), "77") {
			return fault.New("app", fault.Unavailable, "not now")
		}
		return nil
	})
	stop, acknowledged := make(chan struct{}), make(chan string, 100_000)
	var senders sync.WaitGroup
	for s := range 4 {
		senders.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				data := fmt.Sprintf("%d/%d", s, i)
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				began := time.Now()
				err := tryCreate(ctx, b, data)
				if took := time.Since(began); took > 11*time.Second {
					t.Errorf("create took %v", took)
				}
				cancel()
				if err == nil {
					acknowledged <- data
				}
				time.Sleep(2 * time.Millisecond) // a load, not a race
			}
		})
	}
	handled := func() int { mu.Lock(); defer mu.Unlock(); return len(seen) }
	for range 2 {
		before := handled()
		eventually(t, func() error {
			if handled() < before+100 {
				return fmt.Errorf("%d events", handled()-before)
			}
			return nil
		})
		srv.Kill()
		srv.Start(t)
	}
	before := handled()
	eventually(t, func() error {
		if handled() < before+100 {
			return fmt.Errorf("%d events after the last start", handled()-before)
		}
		return nil
	})
	close(stop)
	senders.Wait()
	close(acknowledged)
	var sent []string
	for data := range acknowledged {
		sent = append(sent, data)
	}
	eventually(t, func() error {
		mu.Lock()
		defer mu.Unlock()
		missing := 0
		for _, data := range sent {
			if seen[data] == 0 {
				missing++
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d acknowledged messages did not come", missing, len(sent))
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	total := 0
	for _, n := range seen {
		total += n
	}
	t.Logf("%d acknowledged, %d came, %d deliveries", len(sent), len(seen), total)
	if total > 2*len(seen)+100 {
		t.Error("acknowledgements got lost")
	}
}

// A connection that broke is made again; what was not acknowledged comes again, marked or not.
func TestCut(t *testing.T) {
	srv := server(t)
	relay := servers.NewRelay(t, srv.Port)
	b := open(t, srv.URLAt(relay.Port), "queueName", queueName(t), "reconnectWait", "100ms")
	begun, release := make(chan struct{}, 100), make(chan struct{})
	r := read(t, b, func(context.Context, event) error { begun <- struct{}{}; <-release; return nil })
	create(t, b, "data")
	<-begun
	relay.Cut()
	close(release)
	r.next(t) // its acknowledgement finds no connection
	if got := string(r.next(t).Data); got != "data" {
		t.Errorf("%s came", got)
	}
	for i := range 20 {
		relay.Cut()
		eventually(t, func() error { return tryCreate(soon(t), b, strconv.Itoa(i)) })
	}
}

// A server that has stopped moving holds nobody beyond the deadline; the connection counts as lost
// after three heartbeats, and all goes on when the server does.
func TestFrozen(t *testing.T) {
	srv := server(t)
	b := open(t, srv.URL(), "queueName", queueName(t), "durable", "true", "heartBeat", "1s", "reconnectWait", "100ms")
	r := read(t, b, nil)
	create(t, b, "before")
	r.next(t)
	srv.Freeze()
	t.Cleanup(srv.Thaw)
	for what, call := range map[string]func(context.Context) error{"create": func(ctx context.Context) error { return tryCreate(ctx, b, "frozen") }, "Ping": b.Ping} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		began := time.Now()
		err := call(ctx)
		cancel()
		if took := time.Since(began); fault.Of(err) != fault.Deadline || took > 4*time.Second {
			t.Errorf("%s: %v after %v", what, err, took)
		}
	}
	began := time.Now()
	err := tryCreate(soon(t), b, "frozen too") // no deadline of its own worth mentioning
	if took := time.Since(began); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe || took > 15*time.Second {
		t.Errorf("create: %v after %v", err, took)
	}
	stopped := time.Now()
	if err := r.stop(); fault.Of(err) != fault.Canceled || time.Since(stopped) > 6*time.Second {
		t.Errorf("Read: %v after %v", err, time.Since(stopped))
	}
	srv.Thaw()
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		return tryCreate(ctx, b, "after")
	})
	again := read(t, b, nil)
	for string(again.next(t).Data) != "after" {
	}
	srv.Freeze()
	closing := time.Now()
	if err := b.Close(t.Context()); err != nil || time.Since(closing) > 8*time.Second {
		t.Errorf("Close: %v after %v", err, time.Since(closing))
	}
	srv.Thaw()
}

// A server that is short of memory takes no messages; senders hear so, and readers go on.
func TestShortOfMemory(t *testing.T) {
	srv := server(t)
	b := open(t, srv.URL(), "queueName", queueName(t), "durable", "true")
	r := read(t, b, nil)
	create(t, b, "before")
	r.next(t)
	t.Cleanup(func() { srv.Ctl(t, "set_vm_memory_high_watermark", "0.9") })
	srv.Ctl(t, "set_vm_memory_high_watermark", "0")
	// The first to send after the alarm meets it.
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := tryCreate(ctx, b, "blocked"); fault.Of(err) != fault.Exhausted || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "memory") {
			return fmt.Errorf("create: %v", err)
		}
		return nil
	})
	srv.Ctl(t, "set_vm_memory_high_watermark", "0.9")
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return tryCreate(ctx, b, "after")
	})
	for string(r.next(t).Data) != "after" {
	}
}

// Close ends readers and senders, and everything they started.
func TestClose(t *testing.T) {
	srv := server(t)
	b := open(t, srv.URL(), "queueName", queueName(t))
	begun := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- b.Read(ctx, func(ctx context.Context, _ event) ([]byte, error) {
			begun <- struct{}{}
			<-ctx.Done() // the app is told
			return nil, ctx.Err()
		})
	}()
	create(t, b, "data")
	<-begun
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "closed") {
			t.Errorf("Read: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Read goes on")
	}
}
