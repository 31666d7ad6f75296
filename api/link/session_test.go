package link_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/api/link"
	"github.com/mecha-project/mecha/components/fault"
)

// carriers are the connections everything must work over: two written without waiting, two
// written by a goroutine.
var carriers = []struct {
	name string
	pair func(testing.TB) (net.Conn, net.Conn)
}{{"tcp", tcpPair}, {"unix", unixPair}, {"pipe", pipePair}, {"tls", tlsPair}}

func onEachCarrier(t *testing.T, f func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn))) {
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) { f(t, c.pair) })
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	for i := 0; i+8 <= n; i += 8 {
		v := r.Uint64()
		for k := range 8 {
			b[i+k] = byte(v >> (8 * k))
		}
	}
	return b
}

func TestUnary(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		c, s := sessions(t, pair, link.Config{Handler: echo}, link.Config{Handler: echo})
		for _, from := range []*link.Session{c, s} { // either side may call
			for _, size := range []struct{ head, body int }{
				{0, 0}, {10, 0}, {0, 10}, {100, 1 << 10}, {64, 64 << 10}, {65520, 1}, {65521, 0}, {200 << 10, 10}, {1 << 20, 2 << 20},
			} {
				head, body := pattern(size.head), pattern(size.body)
				gotHead, gotBody, _, err := call(background(t), from, head, body)
				if err != nil || !bytes.Equal(gotHead, head) || !bytes.Equal(gotBody, body) {
					t.Errorf("head of %d and body of %d bytes came back as %d and %d, %v", len(head), len(body), len(gotHead), len(gotBody), err)
				}
			}
		}
	})
}

func TestUnaryIsOneFrameEachWay(t *testing.T) {
	c, s := sessions(t, tcpPair, link.Config{}, link.Config{Handler: echo})
	if _, _, _, err := call(background(t), c, []byte("head"), make([]byte, 1<<10)); err != nil {
		t.Fatal(err)
	}
	if got := c.Stats(); got.FramesOut != 1 || got.FramesIn != 1 || got.Opened != 1 || got.Streams != 0 {
		t.Errorf("caller: %+v; want one frame each way and no stream left", got)
	}
	eventually(t, "handler returned", func() bool { return s.Stats().Handlers == 0 })
	if got := s.Stats(); got.FramesOut != 1 || got.FramesIn != 1 || got.Accepted != 1 || got.Streams != 0 || got.Inflight != 0 {
		t.Errorf("handler's side: %+v; want one frame each way and nothing left", got)
	}
}

func TestTrailers(t *testing.T) {
	big := pattern(300 << 10)
	for _, c := range []struct {
		name          string
		body, trailer []byte
	}{
		{"none", []byte("body"), nil},
		{"small", []byte("body"), []byte("trailer")},
		{"without body", nil, []byte("trailer")},
		{"fills a frame with the body", make([]byte, 40<<10), make([]byte, 30<<10)},
		{"over several frames", make([]byte, 10), big},
		{"big body and big trailer", big, big},
	} {
		t.Run(c.name, func(t *testing.T) {
			onEachCarrier(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
				client, _ := sessions(t, pair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
					body, err := io.ReadAll(st)
					if err != nil || !bytes.Equal(body, c.body) || !bytes.Equal(st.Trailer(), c.trailer) {
						t.Errorf("request of %d bytes, trailer of %d, %v", len(body), len(st.Trailer()), err)
					}
					_ = st.SendHead([]byte("h"), c.body, true, c.trailer)
				}})
				ctx := background(t)
				st, err := client.Open(ctx, nil, nil, false)
				if err != nil {
					t.Fatal(err)
				}
				if err := st.WriteFinal(c.body, c.trailer); err != nil {
					t.Fatal(err)
				}
				_, first, _, err := st.RecvHead(ctx)
				rest, rerr := io.ReadAll(st)
				if got := append(first, rest...); err != nil || rerr != nil || !bytes.Equal(got, c.body) || !bytes.Equal(st.Trailer(), c.trailer) {
					t.Errorf("answer of %d bytes, trailer of %d, %v, %v", len(got), len(st.Trailer()), err, rerr)
				}
			})
		})
	}
}

// TestShapes: one or many messages in either direction, and both at once.
func TestShapes(t *testing.T) {
	const n = 200
	message := func(i int) []byte { return fmt.Appendf(nil, "message %04d;", i) }
	send := func(t *testing.T, st *link.Stream, count int) {
		for i := range count {
			if _, err := st.Write(message(i)); err != nil {
				t.Errorf("write %d: %v", i, err)
				return
			}
		}
		if err := st.CloseWrite(nil); err != nil {
			t.Errorf("end: %v", err)
		}
	}
	receive := func(t *testing.T, st *link.Stream, before []byte, count int) {
		rest, err := io.ReadAll(st)
		got := append(before, rest...)
		var want []byte
		for i := range count {
			want = append(want, message(i)...)
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, %v; want %d", len(got), err, len(want))
		}
	}
	for _, c := range []struct {
		name     string
		up, down int
	}{{"one to one", 1, 1}, {"many to one", n, 1}, {"one to many", 1, n}, {"many to many", n, n}} {
		t.Run(c.name, func(t *testing.T) {
			onEachCarrier(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
				handled := make(chan bool)
				client, _ := sessions(t, pair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
					defer close(handled)
					var wg sync.WaitGroup
					wg.Go(func() { receive(t, st, nil, c.up) })
					if err := st.SendHead(nil, nil, false, nil); err != nil {
						t.Error(err)
					}
					send(t, st, c.down)
					wg.Wait()
				}})
				ctx := background(t)
				st, err := client.Open(ctx, nil, nil, false)
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() { send(t, st, c.up) })
				_, first, _, err := st.RecvHead(ctx)
				if err != nil {
					t.Fatal(err)
				}
				receive(t, st, first, c.down)
				wg.Wait()
				<-handled
			})
		})
	}
}

// TestPingPong: messages arrive as they are sent, not when the stream ends.
func TestPingPong(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		c, _ := sessions(t, pair, link.Config{}, link.Config{Handler: echo})
		ctx := background(t)
		st, err := c.Open(ctx, nil, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := st.RecvHead(ctx); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 16)
		for i := range 100 {
			want := fmt.Sprintf("turn %d", i)
			if _, err := st.Write([]byte(want)); err != nil {
				t.Fatal(err)
			}
			if n, err := st.Read(buf); err != nil || string(buf[:n]) != want {
				t.Fatalf("got %q, %v; want %q", buf[:n], err, want)
			}
		}
		if err := st.CloseWrite([]byte("bye")); err != nil {
			t.Fatal(err)
		}
		if n, err := st.Read(buf); n != 0 || err != io.EOF || string(st.Trailer()) != "bye" {
			t.Errorf("after the end: %d, %v, trailer %q", n, err, st.Trailer())
		}
	})
}

// TestManyCallers mixes sizes over one session in both directions and checks every byte.
func TestManyCallers(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		c, s := sessions(t, pair, link.Config{Handler: echo}, link.Config{Handler: echo})
		sizes := []int{0, 1, 100, 5000, 70_000, 400_000}
		var wg sync.WaitGroup
		for i := range 16 {
			from := []*link.Session{c, s}[i%2]
			wg.Go(func() {
				for k := range 30 {
					body := pattern(sizes[(i+k)%len(sizes)])
					head := fmt.Appendf(nil, "%d/%d", i, k)
					gotHead, got, _, err := call(background(t), from, head, body)
					if err != nil || sha256.Sum256(got) != sha256.Sum256(body) || !bytes.Equal(gotHead, head) {
						t.Errorf("caller %d call %d: %d bytes became %d, %v", i, k, len(body), len(got), err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestEarlyAnswer(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		c, _ := sessions(t, pair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
			_ = st.SendHead([]byte("413"), []byte("too much"), true, []byte("trailer"))
		}})
		ctx := background(t)
		st, err := c.Open(ctx, nil, []byte("begin"), false)
		if err != nil {
			t.Fatal(err)
		}
		block := make([]byte, 100<<10)
		for err == nil {
			_, err = st.Write(block)
		}
		if !errors.Is(err, link.ErrStopped) {
			t.Errorf("write ended with %v, want ErrStopped", err)
		}
		head, body, final, err := st.RecvHead(ctx)
		if err != nil || string(head) != "413" || string(body) != "too much" || !final || string(st.Trailer()) != "trailer" {
			t.Errorf("answer %q %q %v %v", head, body, final, err)
		}
		if got := c.Stats(); got.Streams != 0 {
			t.Errorf("%d streams left", got.Streams)
		}
	})
}

// TestOpenStopped: an answer before Open could send the whole body is an answer.
func TestOpenStopped(t *testing.T) {
	c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
		_ = st.SendHead([]byte("done"), nil, true, nil)
	}})
	ctx := background(t)
	st, err := c.Open(ctx, nil, make([]byte, 8<<20), true)
	if err != nil {
		t.Fatal(err)
	}
	if head, _, final, err := st.RecvHead(ctx); err != nil || string(head) != "done" || !final {
		t.Errorf("answer %q, %v, %v", head, final, err)
	}
}

// TestAnswerBeforeRequestEnds: the answer may be complete while the request goes on.
func TestAnswerBeforeRequestEnds(t *testing.T) {
	got := make(chan int64, 1)
	c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
		_ = st.SendHead([]byte("fine"), nil, true, nil)
		n, err := io.Copy(io.Discard, st)
		if err != nil {
			t.Error(err)
		}
		got <- n
	}})
	ctx := background(t)
	st, err := c.Open(ctx, nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, final, err := st.RecvHead(ctx); err != nil || !final {
		t.Fatal(final, err)
	}
	const n = 3 << 20
	if err := st.WriteFinal(make([]byte, n), nil); err != nil {
		t.Fatal(err)
	}
	if got := <-got; got != n {
		t.Errorf("handler read %d bytes of %d", got, n)
	}
}

func TestReset(t *testing.T) {
	t.Run("by the handler", func(t *testing.T) {
		c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
			_ = st.SendHead([]byte("head"), nil, false, nil)
			st.Reset(fault.Lost, "the disk is gone")
			if _, err := st.Write([]byte("x")); fault.Of(err) != fault.Lost {
				t.Errorf("handler's write after reset: %v", err)
			}
		}})
		st, err := c.Open(background(t), nil, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		_, _, _, _ = st.RecvHead(background(t))
		_, err = io.ReadAll(st)
		if fault.Of(err) != fault.Lost || fault.SentOf(err) != fault.SentMaybe || !strings.Contains(err.Error(), "the disk is gone") {
			t.Errorf("got %v (%v), want lost with its text, maybe sent", err, fault.SentOf(err))
		}
		if _, err = st.Write([]byte("x")); fault.Of(err) != fault.Lost {
			t.Errorf("write: %v", err)
		}
	})
	t.Run("refused by the handler", func(t *testing.T) {
		c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) { st.Refuse(fault.Exhausted, "busy") }})
		_, _, _, err := call(background(t), c, nil, nil)
		if fault.Of(err) != fault.Exhausted || fault.SentOf(err) != fault.SentNever {
			t.Errorf("got %v (%v), want exhausted, never sent", err, fault.SentOf(err))
		}
	})
	t.Run("by the caller", func(t *testing.T) {
		seen := make(chan error, 1)
		c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
			_, err := io.ReadAll(st)
			<-st.Context().Done()
			seen <- err
		}})
		st, err := c.Open(background(t), nil, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		st.Reset(fault.Canceled, "never mind")
		if err := <-seen; fault.Of(err) != fault.Canceled || !strings.Contains(err.Error(), "never mind") {
			t.Errorf("handler saw %v, want canceled", err)
		}
		if _, _, _, err := st.RecvHead(background(t)); fault.Of(err) != fault.Canceled {
			t.Errorf("caller sees %v, want canceled", err)
		}
	})
	t.Run("by the caller's context", func(t *testing.T) {
		started, seen := make(chan bool, 1), make(chan bool)
		c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
			started <- true
			<-st.Context().Done()
			seen <- true
		}})
		ctx, cancel := context.WithCancel(context.Background())
		st, err := c.Open(ctx, nil, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		<-started
		go cancel()
		_, _, _, err = st.RecvHead(ctx)
		if fault.Of(err) != fault.Canceled || !errors.Is(err, context.Canceled) {
			t.Errorf("caller sees %v, want canceled", err)
		}
		<-seen
	})
	t.Run("after the end", func(t *testing.T) {
		c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: echo})
		ctx := background(t)
		st, _ := c.Open(ctx, nil, []byte("body"), true)
		_, body, final, err := st.RecvHead(ctx)
		st.Reset(fault.Canceled, "")
		if err != nil || !final || string(body) != "body" {
			t.Error(string(body), final, err)
		}
		if _, _, _, err := call(ctx, c, nil, nil); err != nil {
			t.Error("the session suffered:", err)
		}
	})
}

func TestDeadlineTravels(t *testing.T) {
	t.Run("to the handler", func(t *testing.T) {
		c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
			d, ok := st.Context().Deadline()
			_ = st.SendHead(fmt.Append(nil, ok, " ", time.Until(d) > 50*time.Second && time.Until(d) <= time.Minute), nil, true, nil)
		}})
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if head, _, _, err := call(ctx, c, nil, nil); err != nil || string(head) != "true true" {
			t.Errorf("with a deadline: %s, %v", head, err)
		}
		if head, _, _, err := call(context.Background(), c, nil, nil); err != nil || string(head) != "false false" {
			t.Errorf("without one: %s, %v", head, err)
		}
	})
	t.Run("and ends its waits", func(t *testing.T) {
		seen := make(chan error, 2)
		c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
			_, err := st.Read(make([]byte, 1))
			seen <- err
			derived, cancel := context.WithCancel(st.Context())
			<-derived.Done()
			cancel()
			seen <- context.Cause(derived)
		}})
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
		defer cancel()
		st, err := c.Open(ctx, nil, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-seen; fault.Of(err) != fault.Deadline {
			t.Errorf("handler's read: %v", err)
		}
		if err := <-seen; err != context.DeadlineExceeded {
			t.Errorf("handler's derived context: %v", err)
		}
		if _, _, _, err := st.RecvHead(ctx); fault.Of(err) != fault.Deadline {
			t.Errorf("caller: %v", err)
		}
	})
	t.Run("over before Open", func(t *testing.T) {
		c, s := sessions(t, tcpPair, link.Config{}, link.Config{Handler: echo})
		ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
		defer cancel()
		if _, err := c.Open(ctx, nil, nil, true); fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentNever {
			t.Errorf("got %v (%v), want deadline, never sent", err, fault.SentOf(err))
		}
		if n := s.Stats().Accepted; n != 0 {
			t.Errorf("%d streams arrived", n)
		}
	})
}

// TestDerivedContexts: contexts derived from a handler's end with the call, without a goroutine each.
func TestDerivedContexts(t *testing.T) {
	started, seen := make(chan bool), make(chan error)
	c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
		type key struct{}
		derived, cancel := context.WithCancel(context.WithValue(st.Context(), key{}, "value"))
		defer cancel()
		stopped := context.AfterFunc(st.Context(), func() { t.Error("a stopped function ran") })
		if !stopped() || stopped() {
			t.Error("stop did not report what it did")
		}
		if derived.Err() != nil || derived.Value(key{}) != "value" {
			t.Error(derived.Err(), derived.Value(key{}))
		}
		started <- true
		<-derived.Done()
		seen <- derived.Err()
		late := make(chan bool)
		context.AfterFunc(st.Context(), func() { close(late) })
		<-late
		seen <- st.Context().Err()
	}})
	st, err := c.Open(context.Background(), nil, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	<-started
	st.Reset(fault.Canceled, "")
	for range 2 {
		if err := <-seen; err != context.Canceled {
			t.Errorf("got %v, want canceled", err)
		}
	}
}

// TestCloseRead: either side may stop reading without failing the call.
func TestCloseRead(t *testing.T) {
	t.Run("by the handler", func(t *testing.T) {
		stopped := make(chan bool)
		c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
			st.CloseRead()
			st.CloseRead()
			if n, err := io.Copy(io.Discard, st); err != nil {
				t.Errorf("read %d bytes, %v after CloseRead", n, err)
			}
			<-stopped
			_ = st.SendHead([]byte("enough"), nil, true, nil)
		}})
		ctx := background(t)
		st, err := c.Open(ctx, nil, nil, false)
		for err == nil {
			_, err = st.Write(make([]byte, 10<<10))
		}
		if !errors.Is(err, link.ErrStopped) {
			t.Errorf("write: %v", err)
		}
		close(stopped)
		if head, _, final, err := st.RecvHead(ctx); err != nil || string(head) != "enough" || !final {
			t.Errorf("%q, %v, %v", head, final, err)
		}
	})
	t.Run("by the caller", func(t *testing.T) {
		handled := make(chan error, 1)
		c, s := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
			err := st.SendHead([]byte("head"), []byte("first"), false, nil)
			for err == nil {
				_, err = st.Write(make([]byte, 10<<10))
			}
			handled <- err
		}})
		ctx := background(t)
		st, err := c.Open(ctx, nil, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, first, _, err := st.RecvHead(ctx); err != nil || string(first) != "first" {
			t.Errorf("%q, %v", first, err)
		}
		st.CloseRead()
		if n, err := io.Copy(io.Discard, st); err != nil {
			t.Errorf("read %d bytes, %v after CloseRead", n, err)
		}
		if err := <-handled; !errors.Is(err, link.ErrStopped) {
			t.Errorf("handler's write: %v", err)
		}
		eventually(t, "no stream is left", func() bool { return c.Stats().Streams == 0 && s.Stats().Streams == 0 })
	})
}

// TestAnswerTooLarge: heads and trailers over a caller's limit fail where they are made.
func TestAnswerTooLarge(t *testing.T) {
	c, _ := sessions(t, tcpPair, link.Config{MaxHead: 100}, link.Config{Handler: func(st *link.Stream) {
		if err := st.SendHead(make([]byte, 101), nil, true, nil); fault.Of(err) != fault.TooLarge {
			t.Errorf("head: %v", err)
		}
		if err := st.SendHead(nil, nil, false, nil); err != nil {
			t.Error(err)
		}
		if err := st.CloseWrite(make([]byte, 101)); fault.Of(err) != fault.TooLarge {
			t.Errorf("trailer: %v", err)
		}
		st.Reset(fault.TooLarge, "the app's headers are too large")
	}})
	ctx := background(t)
	st, err := c.Open(ctx, nil, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, err = st.RecvHead(ctx)
	if err == nil {
		_, err = io.ReadAll(st)
	}
	if fault.Of(err) != fault.TooLarge {
		t.Errorf("caller: %v", err)
	}
}

func TestReadRest(t *testing.T) {
	c, s := sessions(t, tcpPair, link.Config{}, link.Config{Handler: echo})
	for _, size := range []int{0, 10, 20_000, 64 << 10, 200 << 10} {
		body := pattern(size)
		ctx := background(t)
		st, err := c.Open(ctx, nil, body, true)
		if err != nil {
			t.Fatal(err)
		}
		_, first, _, err := st.RecvHead(ctx)
		got, rerr := st.ReadRest(first, size)
		if err != nil || rerr != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes became %d, %v, %v", size, len(got), err, rerr)
		}
		if size == 0 {
			continue
		}
		st, err = c.Open(ctx, nil, body, true)
		if err != nil {
			t.Fatal(err)
		}
		_, first, _, err = st.RecvHead(ctx)
		if len(first) == 0 { // else it is all there, and the limit is the caller's business
			if _, rerr = st.ReadRest(first, size-1); fault.Of(rerr) != fault.TooLarge {
				t.Errorf("%d bytes with a limit below: %v, %v", size, err, rerr)
			}
		}
		st.Reset(fault.Canceled, "")
	}
	eventually(t, "nothing is left", func() bool { return s.Stats().Streams == 0 && c.Stats().Inflight == 0 })
}
