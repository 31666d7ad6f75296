package mecha_test

import (
	"context"
	"log"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/api/nativeapi"
	"github.com/mecha-project/mecha/runtime/about"
	mecha "github.com/mecha-project/mecha/sdk/go"
	"github.com/mecha-project/mecha/test/fakeengine"
)

// TestMain starts the sidecar that examples find by the environment.
func TestMain(m *testing.M) {
	s, err := listen(fakeengine.New(), "127.0.0.1:0", "", 4<<20)
	if err != nil {
		log.Fatal(err)
	}
	os.Setenv("MECHA_GRPC_ENDPOINT", s.address)
	code := m.Run()
	s.close()
	if err := goleak.Find(); err != nil && code == 0 {
		log.Print(err)
		code = 1
	}
	os.Exit(code)
}

// sidecar is the messaging API of a sidecar, whose connections can be cut.
type sidecar struct {
	net.Listener
	address string
	stop    func()

	mu    sync.Mutex
	conns []net.Conn
}

func (s *sidecar) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err == nil {
		s.mu.Lock()
		s.conns = append(s.conns, c)
		s.mu.Unlock()
	}
	return c, err
}

// cut breaks all connections.
func (s *sidecar) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func (s *sidecar) close() { s.stop() }

func listen(m nativeapi.Messaging, address, token string, maxMessage int) (*sidecar, error) {
	network := "tcp"
	if strings.HasPrefix(address, "/") {
		network = "unix"
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	native := &nativeapi.Server{Messaging: m}
	srv := grpcapi.New(grpcapi.Options{Native: native.Register, MaxMessage: maxMessage, Token: token, About: &about.Sidecar{}})
	s := &sidecar{Listener: l, address: l.Addr().String()}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), s) }()
	s.stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = srv.Drain(ctx)
		<-done
	})
	return s, nil
}

// start serves an engine and makes a client of it.
func start(t testing.TB) (*fakeengine.Engine, *sidecar, *mecha.Client) {
	t.Helper()
	e := fakeengine.New()
	s, c := serve(t, e, 4<<20)
	return e, s, c
}

func serve(t testing.TB, m nativeapi.Messaging, maxMessage int) (*sidecar, *mecha.Client) {
	t.Helper()
	s, err := listen(m, "127.0.0.1:0", "", maxMessage)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	c, err := mecha.Dial(mecha.WithAddress(s.address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return s, c
}

var quiet = slog.New(slog.DiscardHandler)

var orders = mecha.Topic{PubSub: "pubsub", Name: "orders"}

func limited(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for something that no event tells of.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

// consuming is a consumer that runs until the test ends or leave is called.
type consuming struct {
	t      testing.TB
	cancel context.CancelFunc
	done   chan error
}

func consume(t testing.TB, c *mecha.Client, o mecha.ConsumeOptions, h mecha.Handler) *consuming {
	t.Helper()
	if o.PubSub == "" {
		o.PubSub = orders.PubSub
	}
	if o.Topics == nil {
		o.Topics = []string{orders.Name}
	}
	if o.Log == nil {
		o.Log = quiet
	}
	ctx, cancel := context.WithCancel(limited(t))
	r := &consuming{t: t, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- c.Consume(ctx, o, h) }()
	t.Cleanup(func() { cancel(); r.done <- <-r.done })
	return r
}

// leave ends a consumer and waits for it.
func (r *consuming) leave() {
	r.t.Helper()
	r.cancel()
	err := <-r.done
	r.done <- err
	if err != nil {
		r.t.Errorf("Consume: %v", err)
	}
}

// wait waits for a consumer to end by itself.
func (r *consuming) wait() error {
	err := <-r.done
	r.done <- err
	return err
}
