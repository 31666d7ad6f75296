package mdns_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/mdns"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childMain()
		return
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, change func(*mdns.Config)) block.Registry {
	t.Helper()
	c := mdns.DefaultConfig()
	c.BrowseTimeout = 300 * time.Millisecond
	if change != nil {
		change(c)
	}
	r, err := mdns.New(block.Env{Log: slog.New(slog.DiscardHandler)}, c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	return r
}

func register(t testing.TB, r block.Registry, in block.Instance) {
	t.Helper()
	if err := r.(block.Registrar).Register(context.Background(), in); err != nil {
		t.Fatalf("Register: %v", err)
	}
}

// instance has a name of its own: other tests may speak on the same network.
func instance(n int) block.Instance {
	tag := rand.Uint32()
	return block.Instance{ID: fmt.Sprintf("id-%d-%08x", n, tag), App: fmt.Sprintf("orders-%08x", tag),
		Namespace: "default", Address: fmt.Sprint("192.0.2.9:", 1000+n)}
}

func addresses(t testing.TB, r block.Registry, name block.Name) string {
	t.Helper()
	got, err := r.Resolve(context.Background(), name)
	if err != nil {
		t.Fatalf("Resolve: %v", err)
	}
	var out []string
	for _, in := range got {
		out = append(out, in.Address)
	}
	return strings.Join(out, " ")
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(8 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 8s: %s", what)
		}
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	blocktest.Registry(t, func(*testing.T) blocktest.RegistryPlace {
		return blocktest.RegistryPlace{Open: func(t *testing.T) block.Registry { return open(t, nil) }}
	})
}

func TestHostRules(t *testing.T) {
	own := ownAddresses(t)
	for _, c := range []struct {
		name, address, env, config string
		want                       func(host string) bool
	}{
		{"as given", "192.0.2.9:1", "192.0.2.8", "", is("192.0.2.9")},
		{"the variable for a wildcard", "0.0.0.0:1", "192.0.2.8", "", is("192.0.2.8")},
		{"the interface's address for a wildcard", "[::]:1", "", "", func(h string) bool { return own[h] }},
		{"the configuration first", "192.0.2.9:1", "192.0.2.8", "host.test", is("host.test")},
		{"loopback is of use on this host", "127.0.0.1:1", "", "", is("127.0.0.1")},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("DAPR_HOST_IP", c.env)
			in := instance(1)
			in.Address = c.address
			register(t, open(t, func(k *mdns.Config) { k.Address = c.config }), in)
			got := addresses(t, open(t, nil), in.Name())
			host, port, err := net.SplitHostPort(got)
			if err != nil || port != "1" || !c.want(host) {
				t.Errorf("announced %q, not what the rules say", got)
			}
		})
	}
}

func is(want string) func(string) bool { return func(got string) bool { return got == want } }

func ownAddresses(t testing.TB) map[string]bool {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]bool{}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() {
			own[n.IP.String()] = true
		}
	}
	return own
}

// An announcement that nobody renews ends; one in use is asked for again before it does.
func TestLifetime(t *testing.T) {
	t.Parallel()
	in, ghost := instance(1), instance(2)
	ghost.App = in.App
	register(t, open(t, func(c *mdns.Config) { c.CacheTTL = 2 * time.Second }), in)
	crash := startChild(t, "", ghost)
	v := open(t, func(c *mdns.Config) { c.CacheTTL = 2 * time.Second })
	eventually(t, "both are heard", func() bool { return len(strings.Fields(addresses(t, v, in.Name()))) == 2 })
	crash()
	eventually(t, "the crashed one ends", func() bool { return addresses(t, v, in.Name()) == in.Address })
	for start := time.Now(); time.Since(start) < 3*time.Second; time.Sleep(50 * time.Millisecond) {
		if got := addresses(t, v, in.Name()); got != in.Address {
			t.Fatalf("addresses = %q after %v, want the living one at all times", got, time.Since(start))
		}
	}
}

func TestFirstLookupIsQuickWhenAnswered(t *testing.T) {
	t.Parallel()
	in := instance(1)
	register(t, open(t, nil), in)
	v := open(t, func(c *mdns.Config) { c.BrowseTimeout = 20 * time.Second })
	start := time.Now()
	if got := addresses(t, v, in.Name()); got != in.Address || time.Since(start) > 5*time.Second {
		t.Errorf("first lookup gave %q after %v, want the instance soon after its answer", got, time.Since(start))
	}
}

// Ordinary tools (dig -p 5353 @224.0.0.251) ask from another port and expect the answer there.
func TestAnswersOrdinaryDNS(t *testing.T) {
	t.Parallel()
	in := instance(1)
	register(t, open(t, nil), in)
	conn, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	q := new(wire.Msg).SetQuestion("_mecha._tcp.local.", wire.TypePTR)
	data, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.WriteTo(data, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	for buf := make([]byte, 9000); ; {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatalf("no answer about %s: %v", in.ID, err)
		}
		m := new(wire.Msg)
		if err := m.Unpack(buf[:n]); err != nil || m.Id != q.Id {
			t.Fatalf("answer: %v, id %d, want %d", err, m.Id, q.Id)
		}
		if strings.Contains(m.String(), "id="+in.ID) { // others may answer as well
			return
		}
	}
}

func TestTooLargeToAnnounce(t *testing.T) {
	in := instance(1)
	in.ID, in.App, in.Namespace = strings.Repeat("i", 200), strings.Repeat("a", 200), strings.Repeat("n", 200)
	in.Labels = map[string]string{"x": strings.Repeat("y", 1000)}
	if err := open(t, nil).(block.Registrar).Register(t.Context(), in); fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "fit one packet") {
		t.Errorf("Register = %v (%v), want invalid with the bound", err, fault.Of(err))
	}
}

func TestNoSuchInterface(t *testing.T) {
	r := open(t, func(c *mdns.Config) { c.Interfaces = []string{"nope0"} })
	if err := r.Ping(t.Context()); fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "nope0") {
		t.Errorf("Ping = %v (%v), want unavailable naming the interface", err, fault.Of(err))
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		name, want string
		items      []conf.Item
	}{
		{"defaults", "", nil},
		{"all", "", conf.Items("address", "10.0.0.1", "interfaces", "eth0,eth1", "family", "ipv4", "browseTimeout", "2", "cacheTTL", "30s")},
		{"address with port", "without port", conf.Items("address", "10.0.0.1:80\n")},
		{"browse", "time to wait", conf.Items("browseTimeout", "0")},
		{"ttl", "too short", conf.Items("cacheTTL", "10ms")},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := conf.Decode(c.items, mdns.DefaultConfig()).Err()
			if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("findings = %v, want %q", err, c.want)
			}
		})
	}
	set, err := block.NewSet(mdns.Backend())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := set.Find("nameresolution.mdns", "v1"); !ok {
		t.Errorf("nameresolution.mdns is not among %v", set.Types())
	}
}
