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
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestServerUnary(t *testing.T) {
	c := grpcClient(t, serve(t, &h2.Server{Handler: echo}))
	for _, n := range []int{0, 1, 1 << 10, 100 << 10, 1 << 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			in := bytes.Repeat([]byte{byte(n), 7}, n/2+1)[:n]
			var out []byte
			if err := c.Invoke(within(t, 10*time.Second), "/s/m", &in, &out); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(in, out) {
				t.Errorf("%d bytes came back as %d others", len(in), len(out))
			}
		})
	}
}

// A unary request is whole before its handler asks, or the package has no reason to be.
func TestServerUnaryRequestIsThereAtOnce(t *testing.T) {
	var whole, all atomic.Int32
	c := grpcClient(t, serve(t, &h2.Server{Handler: func(st *h2.Stream) {
		data, ended := st.First()
		all.Add(1)
		if ended {
			whole.Add(1)
			_ = st.Respond(200, grpcHeader, data, grpcOK)
			return
		}
		_ = st.Respond(200, append(grpcHeader[:1:1], grpcOK...), nil, nil)
	}}))
	in, out := make([]byte, 1<<10), []byte(nil)
	for range 50 {
		_ = c.Invoke(within(t, 10*time.Second), "/s/m", &in, &out)
	}
	if w, n := whole.Load(), all.Load(); n != 50 || w < 45 {
		t.Errorf("%d of %d requests were whole; grpc-go writes them in one piece", w, n)
	}
}

func TestServerStreams(t *testing.T) {
	c := grpcClient(t, serve(t, &h2.Server{Handler: echo}))
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	st, err := c.NewStream(within(t, 10*time.Second), desc, "/s/bidi")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		in, out := []byte(strings.Repeat("x", i*500)), []byte(nil)
		if err := st.SendMsg(&in); err != nil {
			t.Fatal(err)
		}
		if err := st.RecvMsg(&out); err != nil || !bytes.Equal(in, out) {
			t.Fatalf("message %d came back as %d bytes, %v", i, len(out), err)
		}
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var m []byte
	if err := st.RecvMsg(&m); err != io.EOF {
		t.Errorf("the end is %v", err)
	}
}

func TestServerMetadata(t *testing.T) {
	var path, authority, scheme, method string
	c := grpcClient(t, serve(t, &h2.Server{Handler: func(st *h2.Stream) {
		path, authority, scheme, method = st.Path(), st.Authority(), st.Scheme(), st.Method()
		back := grpcHeader[:1:1]
		for _, f := range st.Header() {
			if strings.HasPrefix(f.Name, "x-") {
				back.Add(f.Name, f.Value)
			}
		}
		_ = st.Respond(200, back, message(nil), append(grpcOK[:1:1], call.Field{Name: "X-Upper", Value: "tail"}, call.Field{Name: "connection", Value: "close"}))
	}}), grpc.WithAuthority("who"))
	long := strings.Repeat("v", 7000)
	for range 4 { // compression tables fill up
		ctx := metadata.AppendToOutgoingContext(within(t, 10*time.Second), "x-a", "1", "x-a", "2", "x-b-bin", "\x00\xff", "x-long", long, "x-empty", "")
		var header, trailer metadata.MD
		in, out := []byte(nil), []byte(nil)
		if err := c.Invoke(ctx, "/s/m", &in, &out, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(header["x-a"]) != "[1 2]" || header["x-b-bin"][0] != "\x00\xff" || header["x-long"][0] != long || len(header["x-empty"]) != 1 {
			t.Errorf("header %v", header)
		}
		if fmt.Sprint(trailer["x-upper"]) != "[tail]" || len(trailer["connection"]) != 0 {
			t.Errorf("trailer %v", trailer)
		}
	}
	if path != "/s/m" || authority != "who" || scheme != "http" || method != "POST" {
		t.Errorf("got %s %s %s %s", method, scheme, authority, path)
	}
}

func TestServerTrailersOnly(t *testing.T) {
	c := grpcClient(t, serve(t, &h2.Server{Handler: func(st *h2.Stream) {
		_ = st.Respond(200, append(grpcHeader[:1:1], grpcEnd(codes.NotFound, "no such thing")...), nil, nil)
	}}))
	in, out := []byte("x"), []byte(nil)
	err := c.Invoke(within(t, 10*time.Second), "/s/m", &in, &out)
	if status.Code(err) != codes.NotFound || status.Convert(err).Message() != "no such thing" {
		t.Errorf("got %v", err)
	}
}

func TestServerHandlerEnds(t *testing.T) {
	tests := []struct {
		name    string
		handler func(*h2.Stream)
		want    codes.Code
	}{
		{"without an answer", func(*h2.Stream) {}, codes.Internal},
		{"in a panic", func(*h2.Stream) { panic("boom") }, codes.Internal},
		{"in the middle", func(st *h2.Stream) { _ = st.SendHeaders(200, grpcHeader); _, _ = st.Write(message([]byte("x"))) }, codes.Internal},
		{"by a reset", func(st *h2.Stream) { st.Reset(h2.RefusedStream) }, codes.Unavailable},
		{"with the request unread", func(st *h2.Stream) {
			_ = st.Respond(200, append(grpcHeader[:1:1], grpcEnd(codes.Aborted, "")...), nil, nil)
		}, codes.Aborted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := grpcClient(t, serve(t, &h2.Server{Handler: tt.handler}))
			in, out := make([]byte, 1<<20), []byte(nil)
			if err := c.Invoke(within(t, 10*time.Second), "/s/m", &in, &out); status.Code(err) != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestServerContextEnds(t *testing.T) {
	type seen struct{ ctx, read, write error }
	got := make(chan seen, 1)
	waits := make(chan struct{}, 1)
	c := grpcClient(t, serve(t, &h2.Server{Handler: func(st *h2.Stream) {
		if strings.HasSuffix(st.Path(), "deadline") {
			st.SetDeadline(time.Now().Add(30 * time.Millisecond))
		}
		waits <- struct{}{}
		var s seen
		buf := make([]byte, 100)
		for s.read == nil {
			_, s.read = st.Read(buf)
		}
		<-st.Context().Done()
		s.ctx = st.Context().Err()
		_, s.write = st.Write(make([]byte, 1<<20))
		got <- s
	}}))
	open := func(path string) func() {
		ctx, cancel := context.WithCancel(context.Background())
		st, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path)
		if err != nil {
			t.Fatal(err)
		}
		m := []byte("x")
		_ = st.SendMsg(&m)
		<-waits
		return cancel
	}
	t.Run("the caller cancels", func(t *testing.T) {
		open("/s/cancel")()
		s := <-got
		if !errors.Is(s.ctx, context.Canceled) || fault.Of(s.read) != fault.Canceled || fault.Of(s.write) != fault.Canceled {
			t.Errorf("got %+v", s)
		}
		if code, ok := h2.IsReset(s.read); !ok || code != h2.Cancel {
			t.Errorf("the read's error is %v", s.read)
		}
	})
	t.Run("a deadline", func(t *testing.T) {
		defer open("/s/deadline")()
		s := <-got
		if fault.Of(s.read) != fault.Deadline || fault.Of(s.write) != fault.Deadline {
			t.Errorf("got %+v", s)
		}
	})
	t.Run("the connection is lost", func(t *testing.T) {
		open("/s/lost")
		c.Close()
		s := <-got
		if !errors.Is(s.ctx, context.Canceled) || fault.Of(s.read) != fault.Canceled {
			t.Errorf("got %+v", s)
		}
	})
}

func TestServerManyStreams(t *testing.T) {
	c := grpcClient(t, serve(t, &h2.Server{Handler: echo}))
	const streams = 1000
	ctx := within(t, 20*time.Second)
	all := make([]grpc.ClientStream, streams)
	for i := range all {
		st, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/s/bidi")
		if err != nil {
			t.Fatal(err)
		}
		m := []byte(fmt.Sprint(i))
		if err := st.SendMsg(&m); err != nil {
			t.Fatal(err)
		}
		all[i] = st
	}
	for i, st := range all {
		var m []byte
		if err := st.RecvMsg(&m); err != nil || string(m) != fmt.Sprint(i) {
			t.Fatalf("stream %d: %q, %v", i, m, err)
		}
		_ = st.CloseSend()
		if err := st.RecvMsg(&m); err != io.EOF {
			t.Fatalf("stream %d ends with %v", i, err)
		}
	}
}

func TestServerLargeMessagesOverSmallWindows(t *testing.T) {
	size := 16 << 20
	tests := []struct {
		name   string
		server *h2.Server
		opts   []grpc.DialOption
		size   int
	}{
		{"defaults", &h2.Server{}, nil, size},
		{"ours are tiny", &h2.Server{Window: 1000, ConnWindow: 1}, nil, 1 << 20},
		{"theirs are the smallest", &h2.Server{}, []grpc.DialOption{grpc.WithStaticStreamWindowSize(64 << 10), grpc.WithStaticConnWindowSize(64 << 10)}, size},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.server.Handler = echo
			c := grpcClient(t, serve(t, tt.server), tt.opts...)
			in := bytes.Repeat([]byte("0123456789abcde\n"), tt.size/16)
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					var out []byte
					if err := c.Invoke(within(t, 20*time.Second), "/s/m", &in, &out); err != nil || !bytes.Equal(in, out) {
						t.Errorf("%d bytes came back as %d, %v", len(in), len(out), err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// A stream nobody reads must stop neither the connection nor its other streams.
func TestServerSlowStreamIsSlowAlone(t *testing.T) {
	release := make(chan struct{})
	total := make(chan int, 8)
	c := grpcClient(t, serve(t, &h2.Server{Handler: func(st *h2.Stream) {
		if st.Path() == "/s/quick" {
			echo(st)
			return
		}
		<-release
		b, _ := body(st)
		total <- len(b)
		_ = st.Respond(200, append(grpcHeader[:1:1], grpcOK...), nil, nil)
	}}))
	ctx := within(t, 20*time.Second)
	const streams, size = 6, 1 << 20 // more than the connection's window together
	for range streams {
		go func() {
			in, out := make([]byte, size), []byte(nil)
			_ = c.Invoke(ctx, "/s/slow", &in, &out)
		}()
	}
	in, out := make([]byte, 100<<10), []byte(nil)
	for range 50 {
		if err := c.Invoke(ctx, "/s/quick", &in, &out); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	for range streams {
		if n := <-total; n != size+5 {
			t.Errorf("a slow stream got %d bytes", n)
		}
	}
}

func TestServerDrainLosesNothing(t *testing.T) {
	handler := func(st *h2.Stream) { time.Sleep(2 * time.Millisecond); echo(st) }
	first := &h2.Server{Handler: handler}
	var addr atomic.Value // where new connections go
	addr.Store(serve(t, first))
	second := serve(t, &h2.Server{Handler: handler})
	c := grpcClient(t, "moving", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr.Load().(string))
	}))
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
				in, out := make([]byte, 1<<10), []byte(nil)
				if err := c.Invoke(within(t, 10*time.Second), "/s/m", &in, &out, grpc.WaitForReady(true)); err != nil {
					t.Errorf("a call failed while draining: %v", err)
					return
				}
				calls.Add(1)
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
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

func TestServerDrainIsCutOff(t *testing.T) {
	began := make(chan struct{})
	s := &h2.Server{Handler: func(st *h2.Stream) { close(began); <-st.Context().Done() }}
	c := grpcClient(t, serve(t, s))
	if _, err := c.NewStream(within(t, 10*time.Second), &grpc.StreamDesc{ClientStreams: true}, "/s/hang"); err != nil {
		t.Fatal(err)
	}
	<-began
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Drain(ctx); fault.Of(err) != fault.Deadline {
		t.Errorf("Drain: %v", err)
	}
}

func TestServerHeaderTooLarge(t *testing.T) {
	var cut atomic.Bool
	tests := []struct {
		name   string
		server *h2.Server
		want   codes.Code
	}{
		{"431", &h2.Server{Handler: echo, MaxHeaderList: 2000}, codes.Unknown},
		{"an answer of the edge", &h2.Server{Handler: echo, MaxHeaderList: 2000, TooLarge: func(st *h2.Stream) {
			cut.Store(st.Path() == "/s/m")
			_ = st.Respond(200, append(grpcHeader[:1:1], grpcEnd(codes.ResourceExhausted, "")...), nil, nil)
		}}, codes.ResourceExhausted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := serve(t, tt.server)
			c := client(t, addr)
			fields := call.Fields{{Name: "content-type", Value: "application/grpc"}, {Name: "x-long", Value: strings.Repeat("x", 3000)}}
			st, err := c.Do(within(t, 5*time.Second), &h2.Request{Path: "/s/m", Fields: fields, End: true})
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			if tt.want == codes.Unknown && st.Status() != 431 || tt.want != codes.Unknown && st.Header().Get("grpc-status") != "8" {
				t.Errorf("status %d, %v", st.Status(), st.Header())
			}
			// The connection goes on.
			st, err = c.Do(within(t, 5*time.Second), &h2.Request{Path: "/s/m", Fields: grpcHeader, End: true})
			if err != nil || st.Status() != 200 {
				t.Fatalf("then %v", err)
			}
			st.Close()
		})
	}
	if !cut.Load() {
		t.Error("the edge did not see the path")
	}
}
