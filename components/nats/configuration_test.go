package nats_test

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/nats"
)

func embeddedConfiguration(t testing.TB, dir, component string) *nats.Configuration {
	t.Helper()
	c := nats.DefaultEmbeddedConfigurationConfig()
	decode(t, c, "dataDir", dir, "linger", "200ms")
	return nats.OpenEmbeddedConfiguration(env(t, component), c)
}

func serverConfiguration(t testing.TB, url, component string) *nats.Configuration {
	t.Helper()
	c := nats.DefaultConfigurationConfig()
	decode(t, c, "natsURL", url)
	s, err := nats.NewConfiguration(env(t, component), c)
	if err != nil {
		t.Fatalf("NewConfiguration: %v", err)
	}
	return s.(*nats.Configuration)
}

// placeOf is a place whose operator writes through a component of their own.
func placeOf(t *testing.T, open func() *nats.Configuration, operator *nats.Configuration) blocktest.ConfigurationPlace {
	t.Cleanup(func() { _ = operator.Close(t.Context()) })
	return blocktest.ConfigurationPlace{
		Open: func() block.Configuration { return open() },
		Keys: []string{".a.b", "/a/b", "=", "A", "_-", ".x.y.z", "KV"},
		Set: func(key, value string) {
			for fault.Of(t.Context().Err()) == fault.OK { // a killed node may lose a write under way, which may be repeated
				version, err := operator.Set(t.Context(), key, value)
				if err == nil && version != "" {
					return
				}
				if fault.Of(err) != fault.Unavailable {
					t.Fatalf("Set: %v", err)
				}
			}
		},
		Delete: func(key string) {
			for err := operator.Delete(t.Context(), key); err != nil; err = operator.Delete(t.Context(), key) {
				if fault.Of(err) != fault.Unavailable {
					t.Fatalf("Delete: %v", err)
				}
			}
		}}
}

func TestServerConfiguration(t *testing.T) {
	url := startServer(t).ClientURL()
	blocktest.Configuration(t, func(t *testing.T) blocktest.ConfigurationPlace {
		via := newGate(t, strings.TrimPrefix(url, "nats://"))
		p := placeOf(t, func() *nats.Configuration {
			return serverConfiguration(t, "nats://"+via.l.Addr().String(), "configstore")
		},
			serverConfiguration(t, url, "configstore"))
		p.Interrupt = func(meanwhile func()) {
			via.set(false)
			meanwhile()
			via.set(true)
		}
		return p
	})
}

// gate passes connections on to a server while it is open.
type gate struct {
	l    net.Listener
	to   string
	mu   sync.Mutex
	open bool              // guarded by mu
	all  map[net.Conn]bool // guarded by mu
	work sync.WaitGroup
}

func newGate(t *testing.T, to string) *gate {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{l: l, to: to, open: true, all: map[net.Conn]bool{}}
	g.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.pass(c)
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.set(false)
		g.work.Wait()
	})
	return g
}

func (g *gate) pass(c net.Conn) {
	s, err := net.Dial("tcp", g.to)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil || !g.open {
		c.Close()
		if s != nil {
			s.Close()
		}
		return
	}
	g.all[c], g.all[s] = true, true
	for _, ends := range [][2]net.Conn{{c, s}, {s, c}} {
		g.work.Go(func() {
			_, _ = io.Copy(ends[0], ends[1])
			ends[0].Close()
			ends[1].Close()
		})
	}
}

func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = open
	if !open {
		for c := range g.all {
			c.Close()
		}
		clear(g.all)
	}
}
