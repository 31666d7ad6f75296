package link_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/api/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// background is a context for calls that should need none; it ends a stuck test.
func background(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// tcpPair is two ends of a TCP connection over loopback.
func tcpPair(t testing.TB) (client, server net.Conn) { return socketPair(t, "tcp", "127.0.0.1:0") }

// unixPair is two ends of a Unix socket.
func unixPair(t testing.TB) (client, server net.Conn) {
	return socketPair(t, "unix", filepath.Join(t.TempDir(), "s"))
}

func socketPair(t testing.TB, network, addr string) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		server, _ = l.Accept()
	}()
	client, err = net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	<-done
	if server == nil {
		t.Fatal("accept failed")
	}
	return client, server
}

func pipePair(testing.TB) (client, server net.Conn) { return net.Pipe() }

// sessions makes both ends of a session and closes them, handlers included, after the test.
func sessions(t testing.TB, pair func(testing.TB) (net.Conn, net.Conn), client, server link.Config) (c, s *link.Session) {
	t.Helper()
	a, b := pair(t)
	c, s, err := handshake(a, b, client, server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = s.Close()
		c.Wait()
		s.Wait()
	})
	return c, s
}

func handshake(a, b net.Conn, client, server link.Config) (c, s *link.Session, err error) {
	var wg sync.WaitGroup
	var serverErr error
	wg.Go(func() { s, serverErr = link.NewServer(b, server) })
	c, err = link.NewClient(a, client)
	wg.Wait()
	if err == nil {
		err = serverErr
	}
	if err != nil {
		if c != nil {
			_ = c.Close()
		}
		if s != nil {
			_ = s.Close()
		}
	}
	return c, s, err
}

// echo answers with the request's head, body and trailer.
func echo(st *link.Stream) {
	first, final := st.First()
	if final {
		_ = st.SendHead(st.Head(), first, true, st.Trailer())
		return
	}
	if st.SendHead(st.Head(), first, false, nil) != nil {
		return
	}
	if _, err := io.Copy(st, st); err != nil {
		return
	}
	_ = st.CloseWrite(st.Trailer())
}

// call is a unary call. A body larger than the windows is written beside reading the answer,
// because echo answers as it reads.
func call(ctx context.Context, s *link.Session, head, body []byte) (rhead, rbody, trailer []byte, err error) {
	var st *link.Stream
	if len(body) <= 256<<10 {
		st, err = s.Open(ctx, head, body, true)
	} else {
		st, err = s.Open(ctx, head, nil, false)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	if len(body) > 256<<10 {
		written := make(chan error, 1)
		go func() { written <- st.WriteFinal(body, nil) }()
		defer func() {
			if werr := <-written; err == nil {
				err = werr
			}
		}()
	}
	rhead, rbody, final, err := st.RecvHead(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	if !final {
		rest, err := io.ReadAll(st)
		if err != nil {
			return nil, nil, nil, err
		}
		rbody = append(rbody, rest...)
	}
	return rhead, rbody, st.Trailer(), nil
}

// testLog shows what sessions log in the test's output.
func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: still not so after 10 s", what)
		}
	}
}
