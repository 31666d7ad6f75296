package dns_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/dns"
	"github.com/mecha-project/mecha/components/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// zone is a name server on the loopback interface: UDP and TCP on one port.
type zone struct {
	addr  string
	asked atomic.Int64

	mu      sync.Mutex
	records map[string][]string // guarded by mu; "name type" to records in zone file form
	extra   map[string][]string // guarded by mu; the same, for the additional section
	rcode   int                 // guarded by mu; answered to everything unless 0
	silent  bool                // guarded by mu
}

func serve(t testing.TB) *zone {
	t.Helper()
	z := &zone{records: map[string][]string{}, extra: map[string][]string{}}
	var udp net.PacketConn
	var tcp net.Listener
	for range 10 { // the port that UDP got may be taken for TCP
		var err error
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err == nil {
			break
		}
		_ = udp.Close()
	}
	if tcp == nil {
		t.Fatal("no port free for both UDP and TCP")
	}
	z.addr = udp.LocalAddr().String()
	for _, s := range []*wire.Server{{PacketConn: udp, Handler: z}, {Listener: tcp, Handler: z}} {
		up, down := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(up) }
		go func() { down <- s.ActivateAndServe() }()
		<-up
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-down
		})
	}
	return z
}

func (z *zone) ServeDNS(w wire.ResponseWriter, q *wire.Msg) {
	z.asked.Add(1)
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.silent {
		return
	}
	m := new(wire.Msg).SetReply(q)
	name := strings.ToLower(q.Question[0].Name)
	key := name + " " + wire.TypeToString[q.Question[0].Qtype]
	for _, text := range z.records[key] {
		m.Answer = append(m.Answer, must(wire.NewRR(text)))
	}
	for _, text := range z.extra[key] {
		m.Extra = append(m.Extra, must(wire.NewRR(text)))
	}
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, must(wire.NewRR("test. 60 SOA ns.test. me.test. 1 1 1 1 1")))
		if !slices.ContainsFunc([]string{" A", " AAAA", " SRV"}, func(t string) bool { return len(z.records[name+t]) > 0 }) {
			m.Rcode = wire.RcodeNameError
		}
	}
	if z.rcode != 0 {
		m.Rcode, m.Answer, m.Ns = z.rcode, nil, nil
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		m.Truncate(1232)
	}
	_ = w.WriteMsg(m)
}

func must(rr wire.RR, err error) wire.RR {
	if err != nil {
		panic(err)
	}
	return rr
}

func (z *zone) set(name, typ string, ttl int, values ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	var list []string
	for _, v := range values {
		list = append(list, fmt.Sprintf("%s %d %s %s", name, ttl, typ, v))
	}
	z.records[name+" "+typ] = list
}

func open(t testing.TB, z *zone, change func(*dns.Config)) block.Registry {
	t.Helper()
	c := dns.DefaultConfig()
	c.Template, c.Resolvers, c.Timeout = "{{.ID}}.{{.Namespace}}.test:{{.Port}}", []string{z.addr}, time.Second
	if change != nil {
		change(c)
	}
	r, err := dns.New(block.Env{}, c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	return r
}

func TestConformance(t *testing.T) {
	srv := func(c *dns.Config) { c.Template = "_mecha._tcp.{{.ID}}.{{.Namespace}}.test" }
	blocktest.Registry(t, func(t *testing.T) blocktest.RegistryPlace {
		z := serve(t)
		return blocktest.RegistryPlace{
			AddressOnly: true,
			Open:        func(t *testing.T) block.Registry { return open(t, z, srv) },
			Put:         func(_ *testing.T, list []block.Instance) { z.put(list) },
		}
	})
}

// put writes instances as SRV records with a host for each.
func (z *zone) put(list []block.Instance) {
	srv := map[string][]string{}
	for n, in := range list {
		host, port, _ := net.SplitHostPort(in.Address)
		target := fmt.Sprintf("h%d.test.", n)
		typ := "A"
		if strings.Contains(host, ":") {
			typ = "AAAA"
		}
		z.set(target, typ, 1, host)
		name := strings.ToLower(fmt.Sprintf("_mecha._tcp.%s.%s.test.", in.App, in.Namespace))
		srv[name] = append(srv[name], "0 1 "+port+" "+target)
	}
	for name, values := range srv {
		z.set(name, "SRV", 1, values...)
	}
}

func addresses(t testing.TB, r block.Registry, app string) string {
	t.Helper()
	got, err := r.Resolve(context.Background(), block.Name{App: app, Namespace: "ns"})
	if err != nil {
		t.Fatalf("Resolve(%s): %v", app, err)
	}
	var out []string
	for _, in := range got {
		out = append(out, fmt.Sprintf("%s*%d", in.Address, in.Weight))
	}
	return strings.Join(out, " ")
}

func TestResolve(t *testing.T) {
	z := serve(t)
	z.set("both.ns.test.", "A", 60, "192.0.2.2", "192.0.2.1", "192.0.2.1")
	z.set("both.ns.test.", "AAAA", 60, "2001:db8::1")
	z.set("four.ns.test.", "A", 60, "192.0.2.4")
	z.set("_s.weighted.ns.test.", "SRV", 60, "10 3 1001 a.test.", "10 0 1002 b.test.", "20 9 1003 c.test.")
	z.set("a.test.", "A", 60, "192.0.2.11", "192.0.2.12")
	z.set("b.test.", "A", 60, "192.0.2.13")
	z.set("_s.none.ns.test.", "SRV", 60, "0 0 0 .")
	srv := func(c *dns.Config) { c.Template = "_s.{{ .ID }}.{{.Namespace}}.test" }
	for _, c := range []struct {
		name, app, want string
		change          func(*dns.Config)
	}{
		{"both families, doubles removed, sorted", "both", "192.0.2.1:50002*1 192.0.2.2:50002*1 [2001:db8::1]:50002*1", nil},
		{"ipv6 only", "both", "[2001:db8::1]:50002*1", func(c *dns.Config) { c.Family = "ipv6" }},
		{"one family empty", "four", "192.0.2.4:50002*1", nil},
		{"another port", "four", "192.0.2.4:7*1", func(c *dns.Config) { c.Port = 7 }},
		{"no such name", "nobody", "", nil},
		{"srv: weights of the first priority", "weighted", "192.0.2.11:1001*3 192.0.2.12:1001*3 192.0.2.13:1002*1", srv},
		{"srv: decidedly none", "none", "", srv},
		{"srv: no such name", "nobody", "", srv},
		{"fixed address", "any", "[::1]:50002*1", func(c *dns.Config) { c.Template = "[::1]:{{.Port}}" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := addresses(t, open(t, z, c.change), c.app); got != c.want {
				t.Errorf("addresses = %q, want %q", got, c.want)
			}
		})
	}
}

func TestAnswersBringTargetsAlong(t *testing.T) {
	z := serve(t)
	z.set("_s.a.ns.test.", "SRV", 60, "0 1 1001 x.test.", "0 1 1002 y.test.")
	z.mu.Lock()
	z.extra["_s.a.ns.test. SRV"] = []string{"x.test. 60 A 192.0.2.1", "y.test. 60 A 192.0.2.2", "other.test. 60 A 192.0.2.3"}
	z.mu.Unlock()
	r := open(t, z, func(c *dns.Config) { c.Template = "_s.{{.ID}}.{{.Namespace}}.test" })
	if got, want := addresses(t, r, "a"), "192.0.2.1:1001*1 192.0.2.2:1002*1"; got != want || z.asked.Load() != 1 {
		t.Errorf("addresses = %q with %d questions, want %q with one", got, z.asked.Load(), want)
	}
}

func TestLongAnswerComesOverTCP(t *testing.T) {
	z := serve(t)
	var ips []string
	for n := range 200 {
		ips = append(ips, fmt.Sprintf("192.0.2.%d", n+1))
	}
	z.set("many.ns.test.", "A", 60, ips...)
	if got := len(strings.Fields(addresses(t, open(t, z, nil), "many"))); got != 200 {
		t.Errorf("%d addresses, want 200", got)
	}
}

func TestTTLBoundsTheCache(t *testing.T) {
	z := serve(t)
	z.set("long.ns.test.", "A", 60, "192.0.2.1")
	z.set("short.ns.test.", "A", 1, "192.0.2.1")
	z.set("none.ns.test.", "A", 0, "192.0.2.1")
	r := open(t, z, func(c *dns.Config) { c.Family = "ipv4" })
	for _, app := range []string{"long", "short", "none"} {
		addresses(t, r, app)
		z.set(app+".ns.test.", "A", 60, "192.0.2.2")
	}
	for app, want := range map[string]string{"long": "192.0.2.1:50002*1", "none": "192.0.2.2:50002*1"} {
		if got := addresses(t, r, app); got != want {
			t.Errorf("%s: addresses = %q, want %q", app, got, want)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for addresses(t, r, "short") != "192.0.2.2:50002*1" {
		if time.Now().After(deadline) {
			t.Fatal("an answer with a TTL of 1s is still believed after 5s")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestFailures(t *testing.T) {
	bad, good := serve(t), serve(t)
	bad.mu.Lock()
	bad.rcode = wire.RcodeServerFailure
	bad.mu.Unlock()
	good.set("a.ns.test.", "A", 60, "192.0.2.1")
	name := block.Name{App: "a", Namespace: "ns"}

	_, err := open(t, bad, nil).Resolve(t.Context(), name)
	if fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "SERVFAIL") || !strings.Contains(err.Error(), bad.addr) {
		t.Errorf("server failure: %v (%v), want unavailable naming server and answer", err, fault.Of(err))
	}
	if err := open(t, bad, nil).Ping(t.Context()); err != nil {
		t.Errorf("Ping of a server that answers at all = %v, want nil", err)
	}
	next := open(t, good, func(c *dns.Config) { c.Resolvers = []string{bad.addr, good.addr} })
	if got := addresses(t, next, "a"); got != "192.0.2.1:50002*1" {
		t.Errorf("with a second server: %q, want its answer", got)
	}
	for _, app := range []string{"", "a b", "evil.example:80/", "-a", "a..b", strings.Repeat("x", 64), "größe"} {
		if _, err := next.Resolve(t.Context(), block.Name{App: app, Namespace: "ns"}); fault.Of(err) != fault.Invalid {
			t.Errorf("app %q: %v (%v), want invalid", app, err, fault.Of(err))
		}
	}
}

func TestCancelIsPrompt(t *testing.T) {
	z := serve(t)
	z.mu.Lock()
	z.silent = true
	z.mu.Unlock()
	r := open(t, z, func(c *dns.Config) { c.Timeout = 30 * time.Second })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	_, err := r.Resolve(ctx, block.Name{App: "a", Namespace: "ns"})
	if fault.Of(err) != fault.Canceled || time.Since(start) > 5*time.Second {
		t.Errorf("Resolve = %v (%v) after %v, want canceled at once", err, fault.Of(err), time.Since(start))
	}
	short := open(t, z, func(c *dns.Config) { c.Timeout = 50 * time.Millisecond })
	if err := short.Ping(t.Context()); err == nil {
		t.Error("Ping of a silent server = nil")
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		name, want string
		items      []conf.Item
	}{
		{"defaults", "", nil},
		{"dapr's keys", "", conf.Items("clusterDomain", "cluster.local", "template", "{{.ID}}-dapr.{{.Namespace}}.svc.{{.ClusterDomain}}:{{.Port}}")},
		{"unknown variable", "{{.Data.region}} is not offered", conf.Items("template", "{{.ID}}.{{.Data.region}}:1")},
		{"no host", "not a host name", conf.Items("template", ":{{.Port}}")},
		{"odd port", "not a number", conf.Items("template", "a:b")},
		{"address without port", "without a port", conf.Items("template", "10.0.0.1")},
		{"port", "not a port", conf.Items("port", "70000")},
		{"timeout", "time to wait", conf.Items("timeout", "0s")},
		{"resolver", "not a name server", conf.Items("resolvers", "10.0.0.1:x")},
		{"resolvers", "", conf.Items("resolvers", "10.0.0.1, ::1, dns.test:5353")},
		{"family", "ipv4", conf.Items("family", "ipx")},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := conf.Decode(c.items, dns.DefaultConfig()).Err()
			if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("findings = %v, want %q", err, c.want)
			}
		})
	}
	set, err := block.NewSet(dns.Backend())
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []string{"nameresolution.dns", "nameresolution.kubernetes"} {
		part, ok := set.Find(typ, "v1")
		if !ok {
			t.Fatalf("%s is not among %v", typ, set.Types())
		}
		if _, err := part.Open(block.Env{}, part.Config()); err != nil {
			t.Errorf("open %s with defaults: %v", typ, err)
		}
	}
}
