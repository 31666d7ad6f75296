package link_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/api/link"
	"github.com/mecha-project/mecha/components/fault"
)

// cuts are the ways a connection ends.
var cuts = []struct {
	name string
	cut  func(client *link.Session, server net.Conn)
}{
	{"our side closes", func(c *link.Session, _ net.Conn) { _ = c.Close() }},
	{"the peer closes", func(_ *link.Session, s net.Conn) { _ = s.Close() }},
	{"the peer resets", func(_ *link.Session, s net.Conn) { _ = s.(*net.TCPConn).SetLinger(0); _ = s.Close() }},
}

// TestCut ends the connection at every phase of a call and checks what the caller learns.
func TestCut(t *testing.T) {
	phases := []struct {
		name string
		// run brings a call to its phase, cuts, and returns the call's error.
		run func(t *testing.T, c *link.Session, cut func()) error
	}{
		{"waiting for the head", func(t *testing.T, c *link.Session, cut func()) error {
			st, err := c.Open(background(t), []byte("wait"), nil, true)
			if err != nil {
				return err
			}
			go cut()
			_, _, _, err = st.RecvHead(background(t))
			return err
		}},
		{"reading the body", func(t *testing.T, c *link.Session, cut func()) error {
			st, err := c.Open(background(t), []byte("begin"), nil, true)
			if err != nil {
				return err
			}
			if _, _, final, err := st.RecvHead(background(t)); err != nil || final {
				t.Error(final, err)
			}
			go cut()
			_, err = io.ReadAll(st)
			return err
		}},
		{"waiting for credit", func(t *testing.T, c *link.Session, cut func()) error {
			st, err := c.Open(background(t), []byte("wait"), nil, false)
			if err != nil {
				return err
			}
			time.AfterFunc(5*time.Millisecond, cut)
			_, err = st.Write(make([]byte, 1<<20))
			return err
		}},
	}
	for _, how := range cuts {
		for _, phase := range phases {
			t.Run(how.name+"/"+phase.name, func(t *testing.T) {
				a, b := tcpPair(t)
				arrived := make(chan bool, 1)
				ended := make(chan error, 1)
				c, s, err := handshake(a, b, link.Config{Log: testLog(t)}, link.Config{Handler: func(st *link.Stream) {
					arrived <- true
					if string(st.Head()) == "begin" {
						_ = st.SendHead(nil, []byte("some"), false, nil)
					}
					<-st.Context().Done()
					ended <- st.Context().Err()
				}})
				if err != nil {
					t.Fatal(err)
				}
				err = phase.run(t, c, func() { <-arrived; how.cut(c, b) })
				if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe {
					t.Errorf("call: %v (%v), want unavailable, maybe sent", err, fault.SentOf(err))
				}
				if err := <-ended; err != context.Canceled {
					t.Errorf("handler's context: %v", err)
				}
				<-c.Done()
				if c.Err() == nil || c.Usable() {
					t.Error("the session does not know it is over")
				}
				if _, err := c.Open(background(t), nil, nil, true); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
					t.Errorf("open afterwards: %v (%v), want unavailable, never sent", err, fault.SentOf(err))
				}
				_ = c.Close()
				_ = s.Close()
				c.Wait()
				s.Wait()
			})
		}
	}
}

// TestNeverSent: calls whose head did not reach the connection may be repeated; one whose head
// did, may not.
func TestNeverSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		way := &fragile{Conn: a}
		c, s, err := handshake(way, b, link.Config{}, link.Config{Handler: func(st *link.Stream) { <-st.Context().Done() }})
		if err != nil {
			t.Fatal(err)
		}
		hold := make(chan struct{})
		way.set(func(f *fragile) { f.hold = hold })
		ctx := context.Background()
		open := func(head []byte, want fault.Sent) {
			st, err := c.Open(ctx, head, nil, true)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _, _, err := st.RecvHead(ctx)
				if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != want {
					t.Errorf("%v (%v), want unavailable and %v", err, fault.SentOf(err), want)
				}
			}()
			synctest.Wait()
		}
		open([]byte("in the connection's hands"), fault.SentMaybe)
		open([]byte("pending"), fault.SentNever)
		open(make([]byte, 100<<10), fault.SentNever)
		close(hold)
		<-c.Done()
		synctest.Wait()
		_ = s.Close()
		s.Wait()
	})
}

// TestPartlySentHead: a head whose last part never left cannot have been acted on. What callers are
// told is compared with what the peer really got.
func TestPartlySentHead(t *testing.T) {
	a, b := tcpPair(t)
	var ran sync.Map
	c, s, err := handshake(a, b, link.Config{}, link.Config{Handler: func(st *link.Stream) { ran.Store(st.Head()[0], true) }})
	if err != nil {
		t.Fatal(err)
	}
	// The peer's process stands still: kernel buffers fill up, then heads are stuck half-way.
	stop := stand(s)
	defer stop()
	ctx := background(t)
	var never sync.Map
	var wg sync.WaitGroup
	for i := range byte(40) {
		wg.Go(func() {
			head := make([]byte, 1<<20)
			head[0] = i
			st, err := c.Open(ctx, head, nil, true)
			if err == nil {
				_, _, _, err = st.RecvHead(ctx)
			}
			if fault.Of(err) != fault.Unavailable || fault.SentOf(err) == fault.SentUnknown {
				t.Errorf("got %v (%v)", err, fault.SentOf(err))
			}
			if fault.SentOf(err) == fault.SentNever {
				never.Store(i, true)
			}
		})
	}
	eventually(t, "the connection is full", func() bool { return c.Stats().Pending > 100<<10 })
	_ = c.Close()
	wg.Wait()
	stop()
	<-s.Done()
	s.Wait()
	n := 0
	never.Range(func(i, _ any) bool {
		n++
		if _, did := ran.Load(i); did {
			t.Errorf("call %d was acted on, and said never sent", i)
		}
		return true
	})
	if n == 0 {
		t.Error("no call was found never sent")
	}
}

// TestSilentPeer: a peer that swallows everything is found out while a call waits, in simulated time.
func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		way := &fragile{Conn: a}
		cfg := link.Config{PingInterval: 10 * time.Second, PingTimeout: 20 * time.Second}
		c, s, err := handshake(way, b, cfg, link.Config{Handler: echo})
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		if _, _, _, err := call(ctx, c, nil, nil); err != nil {
			t.Fatal(err)
		}
		way.set(func(f *fragile) { f.swallow = true })
		began := time.Now()
		_, _, _, err = call(ctx, c, nil, nil)
		if took := time.Since(began); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe || took > 41*time.Second || took < 20*time.Second {
			t.Errorf("after %s: %v (%v); want unavailable, maybe sent, within two intervals and a ping's time", took, err, fault.SentOf(err))
		}
		_ = s.Close()
		c.Wait()
		s.Wait()
	})
}

// TestSlowHandlerIsAlive: a peer that answers pings is waited for.
func TestSlowHandlerIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		c, s, err := handshake(a, b, link.Config{}, link.Config{Handler: func(st *link.Stream) {
			time.Sleep(time.Hour)
			echo(st)
		}})
		if err != nil {
			t.Fatal(err)
		}
		if _, body, _, err := call(context.Background(), c, nil, []byte("patience")); err != nil || string(body) != "patience" {
			t.Errorf("%q, %v", body, err)
		}
		_ = c.Close()
		s.Wait()
	})
}

// TestIdleIsQuiet: no bytes and no timers while no stream is open, and a call after a long pause
// brings a ping along.
func TestIdleIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		way := &fragile{Conn: a}
		c, s, err := handshake(way, b, link.Config{}, link.Config{Handler: echo})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := call(context.Background(), c, nil, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		before := c.Stats()
		time.Sleep(1000 * time.Hour)
		if after := c.Stats(); after.FramesOut != before.FramesOut || after.FramesIn != before.FramesIn {
			t.Errorf("an idle session sent %d frames and got %d", after.FramesOut-before.FramesOut, after.FramesIn-before.FramesIn)
		}
		if _, _, _, err := call(context.Background(), c, nil, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if after := c.Stats(); after.FramesOut != before.FramesOut+2 || after.FramesIn != before.FramesIn+2 {
			t.Errorf("the next call: %d frames out and %d in, want call and ping", after.FramesOut-before.FramesOut, after.FramesIn-before.FramesIn)
		}
		_ = c.Close()
		s.Wait()
	})
}

// TestPeerThatTakesNothing: a connection that accepts no bytes ends the session after WriteTimeout;
// meanwhile callers are bound by their own contexts.
func TestPeerThatTakesNothing(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		a, b := pair(t)
		c, s, err := handshake(a, b, link.Config{WriteTimeout: 300 * time.Millisecond}, link.Config{Handler: echo})
		if err != nil {
			t.Fatal(err)
		}
		stop := stand(s)
		defer stop()
		// How much the kernel takes before it takes nothing, and how fast it is given that much,
		// is the machine's affair: calls go on until the session ends.
		deadline := time.Now().Add(20 * time.Second)
		for c.Err() == nil {
			if time.Now().After(deadline) {
				t.Errorf("the session goes on with %d bytes pending", c.Stats().Pending)
				_ = c.Close()
				break
			}
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() { callInVain(t, c) })
			}
			wg.Wait()
		}
		if err := c.Err(); !errors.Is(err, context.DeadlineExceeded) && fault.Of(err) != fault.Unavailable {
			t.Error(err)
		}
		stop()
		_ = s.Close()
		c.Wait()
		s.Wait()
	})
}

// callInVain opens streams for 50 ms and checks that it is let go in time.
func callInVain(t *testing.T, c *link.Session) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	for ctx.Err() == nil {
		st, err := c.Open(ctx, make([]byte, 500<<10), nil, true)
		if err != nil {
			break
		}
		st.Reset(fault.Canceled, "")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a call with 50 ms took %s", took)
	}
}

// stand stops a session's reader, as if its process was stopped.
func stand(s *link.Session) (stop func()) { return s.Stand() }
