package nats_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/nats"
	"github.com/mecha-project/mecha/components/nats/embedded"
)

// The test binary is also the embedded node.
func TestMain(m *testing.M) {
	limitNode()
	embedded.MainIfNode()
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("os/exec.(*Cmd).Wait")) // reaps a node as long as it lives
}

const patience = 30 * time.Second

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

func env(t testing.TB, component string) block.Env {
	return block.Env{Log: slog.New(slog.NewTextHandler(testLog{t}, nil)), AppID: "app", Namespace: "default", Component: component}
}

// testLog writes to the test's log. Lines of goroutines that outlive the test would panic, so
// it checks.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Logf("%s", p)
	}
	return len(p), nil
}

// nodeDir is a directory for a node. It is removed after the node has left.
func nodeDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { waitFor(t, "the node to leave", func() bool { return unlocked(dir) }) })
	return dir
}

// embeddedState opens a store in a node of dir.
func embeddedState(t testing.TB, dir, component string, items ...string) block.State {
	t.Helper()
	c := nats.DefaultEmbeddedStateConfig()
	decode(t, c, append([]string{"dataDir", dir, "linger", "200ms"}, items...)...)
	s, err := nats.NewEmbeddedState(env(t, component), c)
	if err != nil {
		t.Fatalf("NewEmbeddedState: %v", err)
	}
	return s
}

func embeddedPubSub(t testing.TB, dir, component string, items ...string) block.Log {
	t.Helper()
	c := nats.DefaultEmbeddedPubSubConfig()
	decode(t, c, append([]string{"dataDir", dir, "linger", "200ms"}, items...)...)
	p, err := nats.NewEmbeddedPubSub(env(t, component), c)
	if err != nil {
		t.Fatalf("NewEmbeddedPubSub: %v", err)
	}
	return p.(block.Log)
}

func decode(t testing.TB, into any, items ...string) {
	t.Helper()
	if f := conf.Decode(conf.Items(items...), into); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
}

// startServer runs a NATS server as a user would, on TCP.
func startServer(t testing.TB) *server.Server {
	t.Helper()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(), MaxPayload: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(20 * time.Second) {
		t.Fatal("the NATS server does not start")
	}
	return srv
}

func serverState(t testing.TB, url, component string, items ...string) block.State {
	t.Helper()
	c := nats.DefaultStateConfig()
	decode(t, c, append([]string{"natsURL", url}, items...)...)
	s, err := nats.NewState(env(t, component), c)
	if err != nil {
		t.Fatalf("NewState: %v", err)
	}
	return s
}

func serverPubSub(t testing.TB, url, component string, items ...string) block.Log {
	t.Helper()
	c := nats.DefaultPubSubConfig()
	decode(t, c, append([]string{"natsURL", url}, items...)...)
	p, err := nats.NewPubSub(env(t, component), c)
	if err != nil {
		t.Fatalf("NewPubSub: %v", err)
	}
	return p.(block.Log)
}

func TestEmbeddedState(t *testing.T) {
	dir := nodeDir(t)
	blocktest.State(t, func(t *testing.T) block.State { return embeddedState(t, dir, "statestore") })
}

func TestServerState(t *testing.T) {
	url := startServer(t).ClientURL()
	blocktest.State(t, func(t *testing.T) block.State { return serverState(t, url, "statestore") })
}

func embeddedLock(t testing.TB, dir, component string) block.Lock {
	t.Helper()
	c := nats.DefaultEmbeddedLockConfig()
	decode(t, c, "dataDir", dir, "linger", "200ms")
	l, err := nats.NewEmbeddedLock(env(t, component), c)
	if err != nil {
		t.Fatalf("NewEmbeddedLock: %v", err)
	}
	return l
}

func serverLock(t testing.TB, url, component string, items ...string) block.Lock {
	t.Helper()
	c := nats.DefaultLockConfig()
	decode(t, c, append([]string{"natsURL", url}, items...)...)
	l, err := nats.NewLock(env(t, component), c)
	if err != nil {
		t.Fatalf("NewLock: %v", err)
	}
	return l
}

func TestEmbeddedCache(t *testing.T) {
	dir := nodeDir(t)
	blocktest.Cache(t, func(t *testing.T) func() block.Cache {
		return func() block.Cache {
			c := nats.DefaultEmbeddedCacheConfig()
			decode(t, c, "dataDir", dir)
			s, err := nats.NewEmbeddedCache(env(t, "cache"), c)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	})
}

func TestServerCache(t *testing.T) {
	url := startServer(t).ClientURL()
	blocktest.Cache(t, func(t *testing.T) func() block.Cache {
		return func() block.Cache {
			c := nats.DefaultCacheConfig()
			decode(t, c, "natsURL", url)
			s, err := nats.NewCache(env(t, "cache"), c)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	})
}

func TestEmbeddedLock(t *testing.T) {
	dir := nodeDir(t)
	blocktest.Lock(t, func(t *testing.T) func() block.Lock {
		return func() block.Lock { return embeddedLock(t, dir, "lockstore") }
	})
}

func TestServerLock(t *testing.T) {
	url := startServer(t).ClientURL()
	blocktest.Lock(t, func(t *testing.T) func() block.Lock {
		return func() block.Lock { return serverLock(t, url, "lockstore") }
	})
}
