package peerapi_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/api/peerapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serveFunc is the callee's runtime.
type serveFunc func(ctx context.Context, req *call.Request, caller string, out call.Responder) error

func (f serveFunc) Serve(ctx context.Context, req *call.Request, caller string, out call.Responder) error {
	return f(ctx, req, caller, out)
}

// pair is two sidecars with a TCP connection between them.
type pair struct {
	*peerapi.Client
	server *peerapi.Server
	at     block.Instance
	served chan error
	down   func(context.Context) error // shuts the server down, once
}

func newPair(t testing.TB, serve serveFunc) *pair {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	p := &pair{Client: peerapi.NewClient("caller", log), server: peerapi.NewServer(serve, "callee", log),
		at: block.Instance{ID: "1", Address: l.Addr().String()}, served: make(chan error, 1)}
	go func() { p.served <- p.server.Serve(context.Background(), l) }()
	var once sync.Once
	p.down = func(ctx context.Context) (err error) {
		once.Do(func() {
			l.Close()
			err = p.server.Shutdown(ctx)
			if e := <-p.served; e != nil {
				t.Errorf("Serve ended with %v", e)
			}
		})
		return err
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = p.Close(ctx)
		_ = p.down(ctx)
	})
	return p
}

// within is a context that ends well before the test's own limit.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// read reads an answer, whole or streamed, and closes it.
func read(t testing.TB, resp *call.Response) (string, error) {
	t.Helper()
	if resp.Stream == nil {
		body := string(resp.Data)
		return body, resp.Close()
	}
	b, err := io.ReadAll(resp.Stream)
	resp.Close()
	return string(b), err
}

// pipe is a body written by hand.
func pipe() (*io.PipeReader, *io.PipeWriter) { return io.Pipe() }

// eventually waits for a signal.
func eventually(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: not within 10 s", what)
	}
}
