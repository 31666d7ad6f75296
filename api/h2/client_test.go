package h2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

func request(path string, body []byte, more ...call.Field) *h2.Request {
	fields := append(call.Fields{{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}}, more...)
	return &h2.Request{Authority: "test", Path: path, Fields: fields, Body: body, End: true}
}

func TestClientUnary(t *testing.T) {
	addr, _ := grpcServer(t, grpcEcho)
	c := client(t, addr)
	for _, n := range []int{0, 1 << 10, 100 << 10, 16 << 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			in := message(bytes.Repeat([]byte{7}, n))
			st, err := c.Do(within(t, 10*time.Second), request("/s/m", in))
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			out, err := body(st)
			if err != nil || !bytes.Equal(in, out) || st.Trailer().Get("grpc-status") != "0" {
				t.Errorf("%d bytes came back as %d, %v, trailer %v", len(in), len(out), err, st.Trailer())
			}
		})
	}
}

func TestClientMetadata(t *testing.T) {
	addr, _ := grpcServer(t, grpcEcho)
	c := client(t, addr)
	for range 3 {
		st, err := c.Do(within(t, 10*time.Second), request("/s/m", message(nil), call.Field{Name: "X-a", Value: "1"}, call.Field{Name: "x-a", Value: "2"},
			call.Field{Name: "x-b-bin", Value: "AP8="}, call.Field{Name: "x-line", Value: "a\r\nb"}, call.Field{Name: "bad name", Value: "x"}))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := body(st)
		h, tr := st.Header(), st.Trailer()
		if st.Status() != 200 || len(b) != 5 || h.Get("x-b-bin") != "AP8" && h.Get("x-b-bin") != "AP8=" || h.Get("x-line") != "a  b" || tr.Get("x-a") != "1" {
			t.Errorf("status %d, %d bytes, header %v, trailer %v", st.Status(), len(b), h, tr)
		}
		st.Close()
	}
}

func TestClientTrailersOnly(t *testing.T) {
	addr, _ := grpcServer(t, func(any, grpc.ServerStream) error { return status.Error(codes.NotFound, "nothing") })
	c := client(t, addr)
	st, err := c.Open(within(t, 10*time.Second), request("/s/m", message(nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	code, h, ended, err := st.RecvHeaders(within(t, 10*time.Second))
	if err != nil || code != 200 || !ended || h.Get("grpc-status") != "5" || h.Get("grpc-message") != "nothing" {
		t.Errorf("got %d %v %v %v", code, h, ended, err)
	}
	if b, ended := st.First(); len(b) > 0 || !ended {
		t.Errorf("a body of %d bytes, %v", len(b), ended)
	}
}

func TestClientStream(t *testing.T) {
	addr, _ := grpcServer(t, grpcEcho)
	c := client(t, addr)
	req := request("/s/m", nil)
	req.End = false
	st, err := c.Open(within(t, 10*time.Second), req)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for i := range 10 {
		in := message([]byte(strings.Repeat("m", i*100)))
		if _, err := st.Write(in); err != nil {
			t.Fatal(err)
		}
		out := make([]byte, len(in))
		if _, err := io.ReadFull(st, out); err != nil || !bytes.Equal(in, out) {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	if err := st.CloseSend(nil); err != nil {
		t.Fatal(err)
	}
	if b, err := body(st); err != nil || len(b) > 0 || st.Trailer().Get("grpc-status") != "0" {
		t.Errorf("the end is %d bytes, %v, %v", len(b), err, st.Trailer())
	}
}

func TestClientCancel(t *testing.T) {
	ended := make(chan error, 1)
	begun := make(chan struct{}, 1)
	addr, _ := grpcServer(t, func(_ any, ss grpc.ServerStream) error {
		begun <- struct{}{}
		<-ss.Context().Done()
		ended <- ss.Context().Err()
		return ss.Context().Err()
	})
	c := client(t, addr)
	tests := []struct {
		name string
		stop func(ctx context.Context, cancel func(), st *h2.Stream) error
		want fault.Code
	}{
		{"its context while it waits for the header", func(ctx context.Context, cancel func(), st *h2.Stream) error {
			go func() { time.Sleep(10 * time.Millisecond); cancel() }()
			_, _, _, err := st.RecvHeaders(ctx)
			return err
		}, fault.Canceled},
		{"its context while it reads", func(_ context.Context, cancel func(), st *h2.Stream) error {
			go func() { time.Sleep(10 * time.Millisecond); cancel() }()
			_, err := st.Read(make([]byte, 1))
			return err
		}, fault.Canceled},
		{"a deadline of the wait", func(ctx context.Context, _ func(), st *h2.Stream) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			defer cancel()
			_, _, _, err := st.RecvHeaders(ctx)
			return err
		}, fault.Deadline},
		{"closing", func(_ context.Context, _ func(), st *h2.Stream) error {
			st.Close()
			_, err := st.Read(make([]byte, 1))
			return err
		}, fault.Canceled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(within(t, 10*time.Second))
			defer cancel()
			st, err := c.Open(ctx, request("/s/m", message(nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			<-begun
			if err := tt.stop(ctx, cancel, st); fault.Of(err) != tt.want {
				t.Errorf("got %v (%v), want %v", err, fault.Of(err), tt.want)
			}
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
				t.Error("the server was not told")
			}
		})
	}
}

func TestClientCannotDial(t *testing.T) {
	l := listen(t)
	addr := l.Addr().String()
	l.Close()
	c := client(t, addr)
	for range 2 {
		_, err := c.Open(within(t, 5*time.Second), request("/s/m", nil))
		if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || err.Error() != "dial "+addr+": connection refused" {
			t.Errorf("got %v", err)
		}
	}
}

func TestClientMeetsAnotherProtocol(t *testing.T) {
	l := listen(t)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(nc, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
			nc.Close()
		}
	}()
	t.Cleanup(func() { l.Close() })
	c := client(t, l.Addr().String())
	_, err := c.Open(within(t, 5*time.Second), request("/s/m", nil))
	if fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "does not speak HTTP/2") {
		t.Errorf("got %v", err)
	}
}

func TestClientDialsOnceForAll(t *testing.T) {
	addr, _ := grpcServer(t, grpcEcho)
	c := client(t, addr)
	var dials atomic.Int32
	dial := c.Dial
	c.Dial = func(ctx context.Context) (net.Conn, error) {
		dials.Add(1)
		time.Sleep(20 * time.Millisecond)
		return dial(ctx)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			st, err := c.Do(within(t, 10*time.Second), request("/s/m", message(nil)))
			if err != nil {
				t.Error(err)
				return
			}
			st.Close()
		})
	}
	wg.Wait()
	if dials.Load() != 1 {
		t.Errorf("%d connections", dials.Load())
	}
}

func TestClientOpensMoreConnectionsAtTheLimit(t *testing.T) {
	hold := make(chan struct{})
	addr, _ := grpcServer(t, func(_ any, ss grpc.ServerStream) error {
		<-hold
		return nil
	}, grpc.MaxConcurrentStreams(10))
	c := client(t, addr)
	c.MaxConns = 4
	var streams []*h2.Stream
	ctx := within(t, 10*time.Second)
	for range 40 {
		st, err := c.Open(ctx, request("/s/m", message(nil)))
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		streams = append(streams, st)
	}
	if _, err := c.Open(ctx, request("/s/m", message(nil))); fault.Of(err) != fault.Exhausted || fault.SentOf(err) != fault.SentNever {
		t.Errorf("one more: %v", err)
	}
	close(hold)
	for _, st := range streams {
		if _, h, _, err := st.RecvHeaders(ctx); err != nil || h.Get("grpc-status") != "0" {
			t.Fatalf("got %v %v", h, err)
		}
	}
	st, err := c.Open(ctx, request("/s/m", message(nil)))
	if err != nil {
		t.Fatal(err)
	}
	st.Close()
}

// A server that leaves in order costs no call.
func TestClientSurvivesGracefulStop(t *testing.T) {
	slow := func(srv any, ss grpc.ServerStream) error {
		time.Sleep(2 * time.Millisecond)
		return grpcEcho(srv, ss)
	}
	first, s := grpcServer(t, slow)
	second, _ := grpcServer(t, slow)
	var addr atomic.Value
	addr.Store(first)
	c := &h2.Client{Addr: "moving", Log: quiet, Dial: func(ctx context.Context) (net.Conn, error) {
		return net.Dial("tcp", addr.Load().(string))
	}}
	defer c.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
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
				if err == nil {
					var b []byte
					if b, err = body(st); len(b) != 1005 && err == nil {
						err = fmt.Errorf("%d bytes, %v", len(b), st.Header())
					}
					st.Close()
				}
				if err != nil {
					t.Errorf("a call failed: %v", err)
					return
				}
				calls.Add(1)
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	addr.Store(second)
	s.GracefulStop()
	time.Sleep(50 * time.Millisecond)
	close(stop)
	wg.Wait()
	if calls.Load() < 100 {
		t.Errorf("only %d calls", calls.Load())
	}
}

func TestClientLosesItsConnection(t *testing.T) {
	begun := make(chan struct{})
	addr, s := grpcServer(t, func(_ any, ss grpc.ServerStream) error { close(begun); <-ss.Context().Done(); return nil })
	c := client(t, addr)
	st, err := c.Open(within(t, 10*time.Second), request("/s/m", message(nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	<-begun
	go s.Stop()
	_, _, _, err = st.RecvHeaders(within(t, 10*time.Second))
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("got %v, sent %v", err, fault.SentOf(err))
	}
}

func TestClientClosed(t *testing.T) {
	addr, _ := grpcServer(t, grpcEcho)
	c := client(t, addr)
	st, err := c.Do(within(t, 10*time.Second), request("/s/m", message(nil)))
	if err != nil {
		t.Fatal(err)
	}
	st.Close()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Open(within(t, 10*time.Second), request("/s/m", nil)); fault.Of(err) != fault.Unavailable {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := client(t, addr).Open(ctx, request("/s/m", nil)); !errors.Is(err, context.Canceled) || fault.SentOf(err) != fault.SentNever {
		t.Errorf("with a dead context: %v", err)
	}
}

// The server reads nothing for a while: the sender waits, as long as its context lets it.
func TestClientWaitsForWindow(t *testing.T) {
	release := make(chan struct{})
	addr, _ := grpcServer(t, func(srv any, ss grpc.ServerStream) error { <-release; return grpcEcho(srv, ss) },
		grpc.StaticStreamWindowSize(64<<10), grpc.StaticConnWindowSize(64<<10))
	c := client(t, addr)
	in := message(make([]byte, 1<<20))
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Do(short, request("/s/m", in)); fault.Of(err) != fault.Deadline {
		t.Errorf("got %v", err)
	}
	close(release)
	st, err := c.Do(within(t, 10*time.Second), request("/s/m", in))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if out, err := body(st); err != nil || !bytes.Equal(in, out) {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}
