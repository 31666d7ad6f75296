package h1_test

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/api/h1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits that end much earlier when all is well.
const patience = 10 * time.Second

// serve runs a server with the handler on a loopback port and returns its address.
func serve(t testing.TB, handler func(*h1.Exchange)) string {
	t.Helper()
	return serveWith(t, &h1.Server{Handler: handler})
}

func serveWith(t testing.TB, s *h1.Server) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		_ = s.Close()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("Serve did not end after Close")
		}
	})
	return ln.Addr().String()
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func itoa(n int) string { return strconv.Itoa(n) }
