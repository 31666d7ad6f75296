package mqtt_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

// A broker that is not there is an error at once, reading waits for it, and all goes on when it is.
func TestNotThereAtFirst(t *testing.T) {
	m := servers.StartMosquitto(t)
	m.Stop(t)
	out := &logs{}
	b := openLogged(t, out.logger(), m.URL("tcp", m.Port), "topic", "t")
	// The sidecar starts all the same.
	if err := b.Ping(soon(t)); err != nil || !strings.Contains(out.String(), "the broker is not there") {
		t.Errorf("Ping: %v, and logged: %s", err, out)
	}
	for what, err := range map[string]error{"create": tryCreate(soon(t), b, "data")} {
		if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "is it up") {
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
	m.Start(t)
	r.begun(t, b, "t")
	if text := out.String(); strings.Contains(text, "s3cret") || strings.Contains(text, "p%40w") {
		t.Errorf("the log has the password: %s", text)
	}
}

// counted counts events by their data.
type counted struct {
	mu   sync.Mutex
	seen map[string]int // guarded by mu
}

func (c *counted) add(data string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[data]++
	return c.seen[data]
}

func (c *counted) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.seen)
}

// send sends under ever new data until stop is called, which gives what was acknowledged.
func send(t *testing.T, b both) (stop func() []string) {
	var mu sync.Mutex
	var acknowledged []string
	end := make(chan struct{})
	var senders sync.WaitGroup
	for s := range 4 {
		senders.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-end:
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
					mu.Lock()
					acknowledged = append(acknowledged, data)
					mu.Unlock()
				}
				time.Sleep(2 * time.Millisecond) // a load, not a race
			}
		})
	}
	return func() []string {
		close(end)
		senders.Wait()
		return acknowledged
	}
}

// Whatever was acknowledged to the sender reaches the app, across restarts and lost connections.
func TestRestartedUnderLoad(t *testing.T) {
	m := servers.MosquittoWith(t, "max_queued_messages 0")
	relay := servers.NewRelay(t, m.Port)
	b := open(t, m.URL("tcp", relay.Port), "topic", "t")
	got := &counted{seen: map[string]int{}}
	r := read(t, b, func(_ context.Context, e event) error { got.add(string(e.Data)); return nil })
	r.begun(t, b, "t")
	stop := send(t, b)
	for i := range 6 {
		before := got.size()
		eventually(t, func() error {
			if n := got.size() - before; n < 100 {
				return fmt.Errorf("%d events", n)
			}
			return nil
		})
		if i%3 == 2 {
			m.Stop(t) // it saves what it has
			m.Start(t)
		} else {
			relay.Cut()
		}
	}
	sent := stop()
	eventually(t, func() error {
		got.mu.Lock()
		defer got.mu.Unlock()
		missing := 0
		for _, data := range sent {
			if got.seen[data] == 0 {
				missing++
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d acknowledged messages did not come", missing, len(sent))
		}
		return nil
	})
	got.mu.Lock()
	defer got.mu.Unlock()
	total := 0
	for _, n := range got.seen {
		total += n
	}
	t.Logf("%d acknowledged, %d came, %d deliveries", len(sent), len(got.seen), total)
}

// A broker that was killed takes up again, with what it had saved.
func TestKilled(t *testing.T) {
	m := servers.MosquittoWith(t, servers.SaveAlways...)
	b := open(t, m.URL("tcp", m.Port), "topic", "t")
	r := read(t, b, nil)
	r.begun(t, b, "t")
	for range 2 {
		m.Kill()
		if err := tryCreate(soon(t), b, "nobody there"); fault.Of(err) != fault.Unavailable {
			t.Errorf("create: %v", err)
		}
		m.Start(t)
		eventually(t, func() error { return b.Ping(soon(t)) })
		r.begun(t, b, "t")
	}
}

// Events that are at the app while the connection is lost are acknowledged on the new one, whether
// the answer came before or after. TestKnownAgain has the details.
func TestCutWhileAtTheApp(t *testing.T) {
	m := server(t)
	relay := servers.NewRelay(t, m.Port)
	topic := own(t)
	out := open(t, m.URL("tcp", m.Port), "topic", topic, "consumerID", own(t))
	log := &logs{}
	b := openLogged(t, log.logger(), m.URL("tcp", relay.Port), "topic", topic, "consumerID", own(t))
	begun, release := make(chan struct{}, 10), make(chan struct{}, 10)
	r := read(t, b, func(_ context.Context, e event) error {
		if strings.HasPrefix(string(e.Data), "slow") {
			begun <- struct{}{}
			<-release
		}
		return nil
	})
	r.begun(t, out, topic)
	create(t, out, "slow 1")
	create(t, out, "slow 2")
	<-begun
	<-begun
	relay.Cut()
	r.begun(t, out, topic) // read on a new connection, which has brought them again
	release <- struct{}{}  // one is answered now
	relay.Cut()
	close(release) // the other while there may be no connection
	eventually(t, func() error {
		if n := strings.Count(log.String(), "broke off"); n < 2 {
			return fmt.Errorf("%d connections lost", n)
		}
		return nil
	})
	r.begun(t, out, topic)
	_ = r.stop()
	again := read(t, b, nil) // the broker has nothing left
	again.begun(t, out, topic)
	_ = again.stop()
	if close(again.events); len(again.events) != 0 {
		for e := range again.events {
			if strings.HasPrefix(string(e.Data), "slow") {
				t.Errorf("%s came to the next run", e.Data)
			}
		}
	}
}

// A broker that has stopped moving holds nobody beyond the deadline.
func TestFrozen(t *testing.T) {
	m := servers.StartMosquitto(t)
	b := open(t, m.URL("tcp", m.Port), "topic", "t")
	r := read(t, b, nil)
	r.begun(t, b, "t")
	m.Freeze()
	for _, data := range []string{"small", strings.Repeat("more than the system's buffers hold", 12<<20/34)} {
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // the data alone take a second to copy on a busy machine
		began := time.Now()
		err := tryCreate(ctx, b, data)
		cancel()
		if took := time.Since(began); fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentMaybe || took > 8*time.Second {
			t.Errorf("create of %d bytes: %v after %v", len(data), err, took)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	if err := tryCreate(ctx, b, "behind it"); fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentNever {
		t.Errorf("create behind one that hangs: %v", err)
	}
	if err := tryCreate(ctx, open(t, m.URL("tcp", m.Port), "topic", "t", "consumerID", "another"), "data"); fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentNever {
		t.Errorf("create by another: %v", err)
	}
	cancel()
	stopped := time.Now()
	if err := r.stop(); fault.Of(err) != fault.Canceled || time.Since(stopped) > 6*time.Second {
		t.Errorf("Read: %v after %v", err, time.Since(stopped))
	}
	closing := time.Now()
	if err := b.Close(t.Context()); err != nil || time.Since(closing) > 6*time.Second {
		t.Errorf("Close: %v after %v", err, time.Since(closing))
	}
	m.Thaw()
	after := open(t, m.URL("tcp", m.Port), "topic", "t")
	eventually(t, func() error { return tryCreate(soon(t), after, "after") })
}

// Two clients of one name throw each other out; both say what may be the matter.
func TestSameName(t *testing.T) {
	topic, id := own(t), own(t)
	out := &logs{}
	for range 2 {
		read(t, openLogged(t, out.logger(), address(t), "topic", topic, "consumerID", id), nil)
	}
	eventually(t, func() error {
		if !strings.Contains(out.String(), "does another client have the id "+id+"-consumer?") {
			return fmt.Errorf("logged: %s", out)
		}
		return nil
	})
}

// Close ends readers and senders, and everything they started.
func TestClose(t *testing.T) {
	topic := own(t)
	out := open(t, address(t), "topic", topic, "consumerID", own(t))
	b := open(t, address(t), "topic", topic, "consumerID", own(t))
	begun, done := make(chan struct{}, 1000), make(chan error, 1)
	go func() {
		done <- b.Read(t.Context(), func(ctx context.Context, _ event) ([]byte, error) {
			begun <- struct{}{}
			<-ctx.Done() // the app is told
			return nil, ctx.Err()
		})
	}()
	eventually(t, func() error {
		create(t, out, "data")
		select {
		case <-begun:
			return nil
		case <-time.After(50 * time.Millisecond):
			return fmt.Errorf("no event")
		}
	})
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
