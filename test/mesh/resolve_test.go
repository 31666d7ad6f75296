package mesh

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mecha-project/mecha/test/harness"
)

// named is an app that answers its own name.
func named(t *testing.T, name string) int {
	return harness.Serve(t, &inbox{more: func(_ string, _ seen, w http.ResponseWriter) { fmt.Fprint(w, name) }})
}

// resolving is a Configuration with a resolver; entries are "key: value" lines.
func resolving(name string, entries ...string) string {
	spec := "  nameResolution:\n    component: " + name + "\n"
	if len(entries) > 0 {
		spec += "    configuration:\n"
	}
	for _, e := range entries {
		spec += "      " + e + "\n"
	}
	return configuration(spec)
}

// tally calls an app n times and counts who answered; every call must succeed.
func tally(t *testing.T, via *harness.Sidecar, app string, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		resp, body := harness.Do(t, "GET", via.URL("/v1.0/invoke/"+app+"/method/who"), nil)
		if resp.StatusCode != 200 {
			t.Fatalf("call after %v: %d %s", got, resp.StatusCode, body)
		}
		got[string(body)]++
	}
	return got
}

// Two replicas and the entry of a dead one: whatever the registry, calls succeed and both
// replicas get some. When one more dies, the other gets all.
func TestResolvers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config func(t *testing.T, ports []int) string // of all sidecars, given the peer ports of the replicas
		log    string                                 // what is logged about the resolver
	}{
		{"hostdir by default", func(*testing.T, []int) string { return "" }, "hostdir"},
		{"staticfile", staticFile, "staticfile"},
		{"dns", nameServer, "dns"},
		{"sqlite", func(t *testing.T, _ []int) string {
			return resolving("sqlite", fmt.Sprintf("connectionString: %q", filepath.Join(t.TempDir(), "hosts.db")))
		}, "sqlite"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			mesh := harness.NewMesh(t)
			ports := []int{harness.FreePort(t), harness.FreePort(t), harness.FreePort(t)}
			config := tt.config(t, ports)
			var replicas []*harness.Sidecar
			for i, port := range ports {
				replicas = append(replicas, mesh.Start(harness.Options{AppID: "orders", AppPort: named(t, fmt.Sprint("replica ", i)), Config: config, Ports: harness.Ports{Peer: port}}))
			}
			replicas[2].Kill()
			caller := mesh.Start(harness.Options{AppID: "caller", Config: config})
			caller.WaitLog("Initialized name resolution to " + tt.log + "\"")
			got := tally(t, caller, "orders", 60)
			if got["replica 0"] < 5 || got["replica 1"] < 5 || len(got) != 2 {
				t.Errorf("60 calls went to %v, want a good part to each of the two living replicas", got)
			}
			replicas[0].Kill()
			// A call on the dead replica's session fails if it is sent before the end of the
			// session is noticed: nobody knows then whether the app has seen it.
			good := 0
			eventually(t, 5*time.Second, "the death is noticed", func() bool {
				resp, _ := harness.Do(t, "GET", caller.URL("/v1.0/invoke/orders/method/who"), nil)
				if good++; resp.StatusCode != 200 {
					good = 0
				}
				return good == 5
			})
			if got := tally(t, caller, "orders", 30); got["replica 1"] != 30 {
				t.Errorf("after a replica died, 30 calls went to %v, want all to the one left", got)
			}
			resp, body := harness.Do(t, "GET", caller.URL("/v1.0/invoke/nobody/method/who"), nil)
			if resp.StatusCode != 500 || !strings.Contains(string(body), "couldn't find service: nobody") {
				t.Errorf("a call to an unknown app is answered with %d %s", resp.StatusCode, body)
			}
		})
	}
}

func staticFile(t *testing.T, ports []int) string {
	path := filepath.Join(t.TempDir(), "apps.yaml")
	text := "apps:\n  orders:\n"
	for _, p := range ports {
		text += fmt.Sprintf("  - 127.0.0.1:%d\n", p)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return resolving("staticfile", fmt.Sprintf("path: %q", path))
}

// nameServer answers SRV questions about the replicas.
func nameServer(t *testing.T, ports []int) string {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		switch asked := q.Question[0]; {
		case asked.Name != "_peer._tcp.orders.default.mesh.test.":
			m.SetRcode(q, dns.RcodeNameError)
		case asked.Qtype == dns.TypeSRV:
			header := func(name string, typ uint16) dns.RR_Header {
				return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: 30}
			}
			for _, p := range ports {
				m.Answer = append(m.Answer, &dns.SRV{Hdr: header(asked.Name, dns.TypeSRV), Priority: 1, Weight: 1, Port: uint16(p), Target: "host.mesh.test."})
			}
			m.Extra = []dns.RR{&dns.A{Hdr: header("host.mesh.test.", dns.TypeA), A: net.IPv4(127, 0, 0, 1)}}
		}
		_ = w.WriteMsg(m) // a client that is gone
	})}
	go srv.ActivateAndServe()
	t.Cleanup(func() { srv.Shutdown() })
	return resolving("dns", `template: "_peer._tcp.{{.ID}}.{{.Namespace}}.mesh.test"`, fmt.Sprintf("resolvers: %q", conn.LocalAddr()))
}

// A resolver that does not exist is an error in the log and in calls to others, and nothing
// else: the sidecar serves its own app.
func TestUnknownResolver(t *testing.T) {
	s := harness.NewMesh(t).Start(harness.Options{AppID: "own", AppPort: named(t, "own"), Config: resolving("structured")})
	s.WaitLog(`couldn't find name resolver structured/v1`)
	inOrder(t, lines(t, s), `error dapr.runtime: \[CREATE_COMPONENT_FAILURE\]: initialization error occurred for \S* ?\(structured/v1\): couldn't find name resolver structured/v1`)
	if got := tally(t, s, "own", 1); got["own"] != 1 {
		t.Errorf("its own app: %v", got)
	}
	resp, body := harness.Do(t, "GET", s.URL("/v1.0/invoke/other/method/who"), nil)
	if resp.StatusCode != 500 || !strings.Contains(string(body), "couldn't find service: other") {
		t.Errorf("a call to another app is answered with %d %s", resp.StatusCode, body)
	}
}

// A replica that joins gets calls soon, without a restart of the caller.
func TestReplicaJoins(t *testing.T) {
	mesh := harness.NewMesh(t)
	mesh.Start(harness.Options{AppID: "orders", AppPort: named(t, "first")})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	tally(t, caller, "orders", 1)
	mesh.Start(harness.Options{AppID: "orders", AppPort: named(t, "second")})
	eventually(t, 5*time.Second, "the new replica gets calls", func() bool { return tally(t, caller, "orders", 2)["second"] > 0 })
}
