package link_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/api/link"
	"github.com/mecha-project/mecha/components/fault"
)

// TestLargeBothWays moves 200 MiB each way at once through a reader that is slow at times; memory stays
// at the windows' size.
func TestLargeBothWays(t *testing.T) {
	const total, piece = 200 << 20, 256 << 10
	handled := make(chan bool)
	c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
		defer close(handled)
		var wg sync.WaitGroup
		wg.Go(func() {
			if n, err := io.Copy(&slowly{every: 8 << 20}, st); n != total || err != nil {
				t.Errorf("handler read %d, %v", n, err)
			}
		})
		if err := st.SendHead(nil, nil, false, nil); err != nil {
			t.Error(err)
		}
		pour(t, st, total, piece)
		wg.Wait()
	}})
	var peak atomic.Int64
	stop := sampleMemory(&peak)
	defer stop()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	st, err := c.Open(ctx, nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { pour(t, st, total, piece) })
	if _, _, _, err := st.RecvHead(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(&slowly{every: 8 << 20}, st); n != total || err != nil {
		t.Errorf("caller read %d, %v", n, err)
	}
	wg.Wait()
	<-handled
	stop()
	if got := peak.Load(); got > 32<<20 {
		t.Errorf("memory in use peaked at %d MiB", got>>20)
	}
}

// slowly is a writer that pauses after so many bytes.
type slowly struct{ every, n int }

func (w *slowly) Write(p []byte) (int, error) {
	if w.n += len(p); w.n > w.every {
		w.n = 0
		time.Sleep(2 * time.Millisecond)
	}
	return len(p), nil
}

func pour(t *testing.T, st *link.Stream, total, piece int) {
	block := make([]byte, piece)
	for sent := 0; sent < total; sent += piece {
		if _, err := st.Write(block); err != nil {
			t.Errorf("after %d bytes: %v", sent, err)
			return
		}
	}
	if err := st.CloseWrite(nil); err != nil {
		t.Error(err)
	}
}

// sampleMemory keeps the peak of the heap's growth until stopped.
func sampleMemory(peak *atomic.Int64) (stop func()) {
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			if d := int64(now.HeapInuse) - int64(before.HeapInuse); d > peak.Load() {
				peak.Store(d)
			}
		}
	})
	return sync.OnceFunc(func() { close(done); wg.Wait() })
}

// TestStalledStream: a handler that does not read stalls its own sender, and nobody else.
func TestStalledStream(t *testing.T) {
	onEachCarrier(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		resume := make(chan struct{})
		const window = 64 << 10
		cfg := link.Config{StreamWindow: window, MaxStreamWindow: window, Handler: func(st *link.Stream) {
			if string(st.Head()) == "stall" {
				select {
				case <-resume:
				case <-st.Context().Done():
				}
			}
			echo(st)
		}}
		c, s := sessions(t, pair, link.Config{StreamWindow: 4 << 20}, cfg)
		ctx := background(t)
		st, err := c.Open(ctx, []byte("stall"), nil, false)
		if err != nil {
			t.Fatal(err)
		}
		written := make(chan error, 1)
		var sent atomic.Int64
		go func() {
			block := make([]byte, 10<<10)
			for range 100 {
				n, err := st.Write(block)
				sent.Add(int64(n))
				if err != nil {
					written <- err
					return
				}
			}
			written <- st.CloseWrite(nil)
		}()
		eventually(t, "credit is exhausted", func() bool { return s.Stats().Inflight >= window })
		for i := range 50 {
			body := make([]byte, 20<<10)
			if _, got, _, err := call(ctx, c, nil, body); err != nil || len(got) != len(body) {
				t.Fatalf("call %d beside a stalled stream: %d, %v", i, len(got), err)
			}
		}
		if n := sent.Load(); n > window {
			t.Errorf("%d bytes were sent on credit of %d", n, window)
		}
		select {
		case err := <-written:
			t.Fatalf("the writer did not stall: %v", err)
		default:
		}
		close(resume)
		if _, first, _, err := st.RecvHead(ctx); err != nil {
			t.Error(err)
		} else if rest, err := io.ReadAll(st); err != nil || len(first)+len(rest) != 1000<<10 {
			t.Errorf("after the stall: %d bytes, %v", len(first)+len(rest), err)
		}
		if err := <-written; err != nil {
			t.Error(err)
		}
	})
}

// TestStalledWriterHonoursContext: waiting for credit ends with the caller's context.
func TestStalledWriterHonoursContext(t *testing.T) {
	c, _ := sessions(t, tcpPair, link.Config{}, link.Config{StreamWindow: 10 << 10, MaxStreamWindow: 10 << 10, Handler: func(st *link.Stream) { <-st.Context().Done() }})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	st, err := c.Open(ctx, nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	n, err := st.Write(make([]byte, 100<<10))
	if n != 10<<10 || fault.Of(err) != fault.Deadline {
		t.Errorf("wrote %d, %v; want the window and deadline", n, err)
	}
}

// TestSessionWindow: many stalled streams share the session's window; when they are read, the
// waiting ones go on, and an abandoned stream gives its share back.
func TestSessionWindow(t *testing.T) {
	resume := make(chan struct{})
	cfg := link.Config{StreamWindow: 64 << 10, SessionWindow: 100 << 10, Handler: func(st *link.Stream) {
		select {
		case <-resume:
			echo(st)
		case <-st.Context().Done():
		}
	}}
	c, s := sessions(t, tcpPair, link.Config{}, cfg)
	ctx := background(t)
	quit, giveUp := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			callCtx := ctx
			if i == 0 {
				callCtx = quit
			}
			body := make([]byte, 60<<10)
			_, got, _, err := call(callCtx, c, nil, body)
			if i == 0 && err == nil || i > 0 && (err != nil || len(got) != len(body)) {
				t.Errorf("call %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	eventually(t, "the session's window is full", func() bool { return s.Stats().Inflight >= 90<<10 })
	giveUp()
	close(resume)
	wg.Wait()
	eventually(t, "nothing is held", func() bool { return s.Stats().Inflight == 0 && s.Stats().Streams == 0 })
}

// TestWindowGrows: over a path with a long round trip, a window that limits the sender grows, and
// only then. Time is simulated.
func TestWindowGrows(t *testing.T) {
	const total = 16 << 20
	for _, c := range []struct {
		name      string
		rtt       time.Duration
		limit     int
		min, max  time.Duration
		otherwise string
	}{
		{"fixed window", 50 * time.Millisecond, 256 << 10, 3 * time.Second, 4 * time.Second, "64 windows take 64 round trips"},
		{"growing window", 50 * time.Millisecond, 4 << 20, 100 * time.Millisecond, 700 * time.Millisecond, "after a few round trips the window no longer limits"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				client, server, err := handshake(newDelayed(a, c.rtt/2), newDelayed(b, c.rtt/2), link.Config{},
					link.Config{MaxStreamWindow: c.limit, Handler: func(st *link.Stream) {
						n, _ := io.Copy(io.Discard, st)
						_ = st.SendHead(fmt.Append(nil, n), nil, true, nil)
					}})
				if err != nil {
					t.Fatal(err)
				}
				st, err := client.Open(context.Background(), nil, nil, false)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				pour(t, st, total, 64<<10)
				if head, _, _, err := st.RecvHead(context.Background()); err != nil || string(head) != fmt.Sprint(total) {
					t.Errorf("%s, %v", head, err)
				}
				if took := time.Since(began); took < c.min || took > c.max {
					t.Errorf("16 MiB took %s, want %s to %s: %s", took, c.min, c.max, c.otherwise)
				}
				_ = client.Close()
				server.Wait()
			})
		})
	}
}

// TestSmallAmongLarge: small calls stay quick beside a large transfer.
func TestSmallAmongLarge(t *testing.T) {
	const total = 64 << 20
	c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
		if string(st.Head()) == "sink" {
			_, _ = io.Copy(io.Discard, st)
			_ = st.SendHead(nil, nil, true, nil)
			return
		}
		echo(st)
	}})
	ctx := background(t)
	var busy atomic.Bool
	busy.Store(true)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer busy.Store(false)
		st, err := c.Open(ctx, []byte("sink"), nil, false)
		if err != nil {
			t.Error(err)
			return
		}
		pour(t, st, total, 1<<20)
		_, _, _, _ = st.RecvHead(ctx)
	})
	var took []time.Duration
	for busy.Load() {
		began := time.Now()
		if _, _, _, err := call(ctx, c, nil, make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	wg.Wait()
	slices.Sort(took)
	// A call queued behind the transfer would take as long as the transfer; the bound is loose
	// because the machine may be busy.
	if p50 := took[len(took)/2]; p50 > 20*time.Millisecond || len(took) < 10 {
		t.Errorf("%d calls beside the transfer, median %s", len(took), p50)
	}
	t.Logf("%d calls beside the transfer, median %s, 99%% %s", len(took), took[len(took)/2], took[len(took)*99/100])
}

// TestLargeTakeTurns: large transfers share the connection; none waits for another's end.
func TestLargeTakeTurns(t *testing.T) {
	const streams, total = 4, 32 << 20
	c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
		_, _ = io.Copy(io.Discard, st)
		_ = st.SendHead(nil, nil, true, nil)
	}})
	ctx := background(t)
	var sent [streams]atomic.Int64
	var behind sync.Once
	var wg, ready sync.WaitGroup
	ready.Add(streams)
	for i := range streams {
		st, err := c.Open(ctx, nil, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			block := make([]byte, 256<<10)
			ready.Done()
			ready.Wait()
			for sent[i].Load() < total {
				n, err := st.Write(block)
				if err != nil {
					t.Error(err)
					return
				}
				sent[i].Add(int64(n))
			}
			behind.Do(func() { // the first to finish looks how far the others are
				for k := range sent { // turns are fair; the scheduler of a busy machine is less so
					if n := sent[k].Load(); n < total/10 {
						t.Errorf("stream %d sent %d KiB when the first had sent %d", k, n>>10, total>>10)
					}
				}
			})
			_ = st.CloseWrite(nil)
			_, _, _, _ = st.RecvHead(ctx)
		})
	}
	wg.Wait()
}

// TestIdleStreams: ten thousand open streams that do nothing cost a bounded amount each.
func TestIdleStreams(t *testing.T) {
	const n = 10_000
	release := make(chan struct{})
	c, s := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
		select {
		case <-release:
			echo(st)
		case <-st.Context().Done():
		}
	}})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	streams := make([]*link.Stream, n)
	for i := range streams {
		st, err := c.Open(ctx, []byte("head"), nil, false)
		if err != nil {
			t.Fatal(err)
		}
		streams[i] = st
	}
	eventually(t, "all arrived", func() bool { return s.Stats().Handlers == n })
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := int64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse) / n
	t.Logf("%d bytes per idle stream, both ends and the handler's stack", each)
	if each > 16<<10 {
		t.Errorf("%d bytes per idle stream, both ends and the handler's stack", each)
	}
	close(release)
	for _, st := range streams {
		if err := st.WriteFinal([]byte("x"), nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, st := range streams {
		_, first, _, err := st.RecvHead(ctx)
		rest, rerr := io.ReadAll(st)
		if err = errors.Join(err, rerr); err != nil || string(append(first, rest...)) != "x" {
			t.Fatalf("%q %q, %v", first, rest, err)
		}
	}
}

// TestTinyWrites: a dribble of one-byte writes arrives whole.
func TestTinyWrites(t *testing.T) {
	c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: echo})
	ctx := background(t)
	st, err := c.Open(ctx, nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	want := pattern(20_000)
	go func() {
		for i := range want {
			if _, err := st.Write(want[i : i+1]); err != nil {
				t.Error(err)
				return
			}
		}
		_ = st.CloseWrite(nil)
	}()
	_, first, _, err := st.RecvHead(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(st)
	if got := append(first, rest...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
	}
}
