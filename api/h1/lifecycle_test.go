package h1_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestUpgrade(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		if ex.Upgrades() != "echo" {
			_ = ex.Respond(426, nil, nil)
			return
		}
		nc, err := ex.Upgrade(call.Fields{{Name: "Upgrade", Value: "echo"}, {Name: "Content-Length", Value: "5"}})
		if err != nil {
			t.Errorf("Upgrade: %v", err)
			return
		}
		_, _ = io.Copy(nc, nc)
		nc.Close()
	})
	nc := dial(t, addr)
	// The first bytes of the new protocol come with the request.
	_, _ = io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\nfirst")
	_, _ = io.WriteString(nc, " second")
	_ = nc.(*net.TCPConn).CloseWrite()
	all, _ := io.ReadAll(nc)
	const want = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\nfirst second"
	if string(all) != want {
		t.Errorf("got %q\nwant %q", all, want)
	}
	if answer := talk(t, addr, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nUpgrade: echo\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 426") {
		t.Errorf("an Upgrade that Connection does not name: %q", answer)
	}
}

func TestHTTP2PrefaceIsHandedOver(t *testing.T) {
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	got := make(chan string, 1)
	h2 := func(nc net.Conn) {
		p := make([]byte, len(preface)+5)
		_, _ = io.ReadFull(nc, p)
		got <- string(p)
	}
	addr := serveWith(t, &h1.Server{Handler: echo, H2: h2})
	nc := dial(t, addr)
	for _, part := range []string{"P", "RI * HTTP/2.0\r\n\r\n", "SM\r\n", "\r\nafter"} {
		_, _ = io.WriteString(nc, part)
		time.Sleep(5 * time.Millisecond)
	}
	if g := <-got; g != preface+"after" {
		t.Errorf("handed over %q", g)
	}
	if answer := talk(t, addr, "PUT / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(answer, "HTTP/1.1 200") {
		t.Errorf("HTTP/1.1 beside it: %q", answer)
	}
	if answer := talk(t, serve(t, echo), preface); !strings.HasPrefix(answer, "HTTP/1.1 505") {
		t.Errorf("without H2: %q", answer)
	}
}

func TestShutdown(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	s := &h1.Server{Handler: func(ex *h1.Exchange) {
		if ex.Path() == "/slow" {
			close(entered)
			<-release
		}
		_ = ex.Respond(200, nil, []byte("done"))
	}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ln) }()

	idle, slow := dial(t, ln.Addr().String()), dial(t, ln.Addr().String())
	idleRd := bufio.NewReader(idle)
	_, _ = io.WriteString(idle, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if _, err := http.ReadResponse(idleRd, nil); err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(idleRd, make([]byte, 4))
	_, _ = io.WriteString(slow, "GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
	<-entered

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); fault.Of(err) != fault.Deadline {
		t.Errorf("Shutdown over a running exchange: %v", err)
	}
	if _, err := idleRd.ReadByte(); err != io.EOF {
		t.Errorf("the idle connection: %v, want its end", err)
	}
	if nc, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		nc.Close()
		t.Error("still accepting")
	}
	close(release)
	if err := s.Shutdown(t.Context()); err != nil {
		t.Errorf("second Shutdown: %v", err)
	}
	all, _ := io.ReadAll(slow)
	if !strings.Contains(string(all), "Connection: close\r\n") || !strings.HasSuffix(string(all), "done") {
		t.Errorf("the running exchange got %q", all)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := s.Serve(t.Context(), ln); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	entered := make(chan struct{})
	s := &h1.Server{Handler: func(ex *h1.Exchange) {
		close(entered)
		<-ex.Context().Done()
	}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	nc := dial(t, ln.Addr().String())
	_, _ = io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-entered
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := io.ReadAll(nc); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the caller sees %v", err)
	}
}

func TestMaxConns(t *testing.T) {
	addr := serveWith(t, &h1.Server{Handler: echo, MaxConns: 1})
	first := dial(t, addr)
	_, _ = io.WriteString(first, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(first), nil); err != nil {
		t.Fatal(err)
	}
	all, _ := io.ReadAll(dial(t, addr))
	if !strings.HasPrefix(string(all), "HTTP/1.1 503") {
		t.Errorf("the second connection got %q", all)
	}
}
