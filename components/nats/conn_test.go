package nats

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/fault"
)

// TestClosedWhileConnecting: a connection that is made in the very moment of the end is closed
// too, and serves nobody.
func TestClosedWhileConnecting(t *testing.T) {
	srv, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer srv.WaitForShutdown()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server does not start")
	}
	nc, err := natsgo.Connect("", natsgo.InProcessServer(srv))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var given atomic.Int32 // back
	c := newConn(func(context.Context) (*dialed, error) {
		return &dialed{nc: nc, away: nc.LastError, close: func() { given.Add(1) }}, nil
	}, slog.New(slog.DiscardHandler))

	c.mu.Lock() // both stand in line for it, the end first
	ended := make(chan struct{})
	go func() {
		c.close()
		close(ended)
	}()
	time.Sleep(50 * time.Millisecond)
	c.work.Go(c.connect)
	time.Sleep(50 * time.Millisecond)
	c.mu.Unlock()
	<-ended

	if n := given.Load(); n != 1 {
		t.Errorf("the connection was given back %d times, want once", n)
	}
	if _, err := c.acquire(t.Context(), "t"); fault.Of(err) != fault.Unavailable {
		t.Errorf("acquire after the end: %v, want unavailable", err)
	}
}
