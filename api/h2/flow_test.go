package h2_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/components/fault"
)

// A handler that gives the request up goes on answering, and its reader is not stuck.
func TestCloseRead(t *testing.T) {
	read := make(chan error, 1)
	c := grpcClient(t, serve(t, &h2.Server{Handler: func(st *h2.Stream) {
		go func() {
			var err error
			for buf := make([]byte, 1<<10); err == nil; {
				_, err = st.Read(buf)
			}
			read <- err
		}()
		time.Sleep(10 * time.Millisecond)
		st.CloseRead()
		if err := <-read; fault.Of(err) != fault.Canceled {
			t.Errorf("the read ended with %v", err)
		}
		_ = st.Respond(200, grpcHeader, message([]byte("enough")), grpcOK)
	}}))
	st, err := c.NewStream(within(t, 10*time.Second), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/s/m")
	if err != nil {
		t.Fatal(err)
	}
	in, out := make([]byte, 10<<10), []byte(nil)
	for range 100 {
		if st.SendMsg(&in) != nil {
			break
		}
	}
	if err := st.RecvMsg(&out); err != nil || string(out) != "enough" {
		t.Errorf("got %q, %v", out, err)
	}
}

// Calls of all kinds, many broken off in the middle, leave nothing behind: a drain afterwards
// finds no stream and no handler, and the windows are whole.
func TestNothingIsLeftBehind(t *testing.T) {
	s := &h2.Server{Handler: func(st *h2.Stream) {
		switch rand.IntN(10) {
		case 0:
			st.Reset(h2.Cancel)
		case 1:
			_ = st.Respond(200, grpcHeader, message(make([]byte, rand.IntN(200<<10))), grpcOK)
		case 2:
			st.SetDeadline(time.Now().Add(time.Millisecond))
			<-st.Context().Done()
			_ = st.Respond(200, append(grpcHeader[:1:1], grpcOK...), nil, nil)
		case 3: // forgets to answer
		default:
			echo(st)
		}
	}, Window: 20 << 10, ConnWindow: 70 << 10}
	c := client(t, serve(t, s))
	c.Window, c.ConnWindow = 20<<10, 70<<10
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 100 {
				ctx, cancel := context.WithCancel(within(t, 20*time.Second))
				if rand.IntN(4) == 0 {
					time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, cancel)
				}
				req := request("/s/m", make([]byte, rand.IntN(100<<10)))
				req.End = rand.IntN(2) == 0
				st, err := c.Open(ctx, req)
				if err == nil {
					if !req.End {
						go st.CloseSend(grpcOK) // waits for the body
					}
					if rand.IntN(5) > 0 {
						_, _, _, _ = st.RecvHeaders(ctx)
						_, _ = st.Read(make([]byte, 1+rand.IntN(50<<10)))
						_, _ = st.First()
					}
					st.Close()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	// The connection still carries more than its window, so no credit was lost.
	in := make([]byte, 1<<20)
	for range 40 { // until the handler is one that echoes
		st, err := c.Do(within(t, 10*time.Second), request("/s/m", in))
		if err != nil {
			continue
		}
		out, err := body(st)
		st.Close()
		if err == nil && len(out) == len(in) {
			break
		}
	}
	if err := s.Drain(within(t, 5*time.Second)); err != nil {
		t.Errorf("Drain: %v", err)
	}
}

// A server may answer while it reads, and stop reading while its answer is not taken: a large
// request must not wait for that.
func TestLargeBodiesBothWaysAtOnce(t *testing.T) {
	c := client(t, serve(t, &h2.Server{Handler: echo, Window: 20 << 10}))
	c.Window = 20 << 10
	in := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	st, err := c.Do(within(t, 10*time.Second), request("/s/m", in))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if out, err := body(st); err != nil || !bytes.Equal(in, out) {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

// Both ends ours: a drain under load loses no call.
func TestDrainBetweenOurEnds(t *testing.T) {
	handler := func(st *h2.Stream) { time.Sleep(time.Millisecond); echo(st) }
	first := &h2.Server{Handler: handler}
	var addr atomic.Value
	addr.Store(serve(t, first))
	second := serve(t, &h2.Server{Handler: handler})
	c := &h2.Client{Addr: "moving", Log: quiet, Dial: func(context.Context) (net.Conn, error) { return net.Dial("tcp", addr.Load().(string)) }}
	defer c.Close()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var calls atomic.Int32
	for range 32 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				st, err := c.Do(within(t, 10*time.Second), request("/s/m", message(make([]byte, 1000))))
				if err != nil {
					t.Errorf("a call failed: %v", err)
					return
				}
				if b, err := body(st); err != nil || len(b) != 1005 {
					t.Errorf("%d bytes, %v", len(b), err)
				}
				st.Close()
				calls.Add(1)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	addr.Store(second)
	if err := first.Drain(within(t, 10*time.Second)); err != nil {
		t.Errorf("Drain: %v", err)
	}
	time.Sleep(50 * time.Millisecond)
	close(stop)
	wg.Wait()
	if calls.Load() < 100 {
		t.Errorf("only %d calls", calls.Load())
	}
}
