package call_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/mecha-project/mecha/runtime/call"
)

// ends are the outer ends of a spliced pair of connections.
func ends(t *testing.T, ctx context.Context) (left, right *net.TCPConn, done chan struct{}) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pair := func() (*net.TCPConn, *net.TCPConn) {
		out, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { out.Close(); in.Close() })
		out.SetDeadline(time.Now().Add(10 * time.Second))
		return out.(*net.TCPConn), in.(*net.TCPConn)
	}
	left, a := pair()
	right, b := pair()
	done = make(chan struct{})
	go func() { call.Splice(ctx, a, b); close(done) }()
	return left, right, done
}

func TestSplice(t *testing.T) {
	t.Run("the end of one direction is passed on", func(t *testing.T) {
		left, right, done := ends(t, t.Context())
		io.WriteString(left, "question")
		left.CloseWrite()
		if got, err := io.ReadAll(right); string(got) != "question" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		io.WriteString(right, "answer")
		right.Close()
		if got, err := io.ReadAll(left); string(got) != "answer" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		<-done
	})
	t.Run("a broken side breaks the other", func(t *testing.T) {
		left, right, done := ends(t, t.Context())
		left.SetLinger(0)
		left.Close()
		if _, err := io.ReadAll(right); err != nil {
			t.Logf("the other side saw %v", err)
		}
		<-done
	})
	t.Run("the context ends both", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		left, right, done := ends(t, ctx)
		cancel()
		<-done
		for _, c := range []net.Conn{left, right} {
			if _, err := io.ReadAll(c); err != nil {
				t.Logf("a side saw %v", err)
			}
		}
	})
}
