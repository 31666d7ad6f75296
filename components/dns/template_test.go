package dns

import (
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	wire "github.com/miekg/dns"

	"github.com/mecha-project/mecha/components/block"
)

func FuzzReadAnswer(f *testing.F) {
	for _, text := range []string{"a. 5 A 192.0.2.1", "a. 5 AAAA ::1", "a. 5 SRV 0 0 1 b.", "a. 5 CNAME b.", "a. 5 SOA b. c. 1 2 3 4 5"} {
		rr, err := wire.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		m := new(wire.Msg).SetQuestion("a.", wire.TypeA)
		m.Answer, m.Extra, m.Ns = []wire.RR{rr}, []wire.RR{rr}, []wire.RR{rr}
		data, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(wire.Msg)
		if m.Unpack(data) != nil {
			return
		}
		for _, typ := range []uint16{wire.TypeA, wire.TypeAAAA, wire.TypeSRV} {
			got := read(m, typ)
			if got.ttl < 0 || got.ttl > maxTTL || (len(got.records) == 0 && got.ttl > negativeTTL) {
				t.Errorf("ttl %v for %d records", got.ttl, len(got.records))
			}
			for _, rr := range got.records {
				if ip, _ := addressOf(rr); ip != "" && net.ParseIP(ip) == nil {
					t.Errorf("%q is no address", ip)
				}
			}
			for _, p := range broughtAlong(got.extra, "a.", "any").places {
				if net.ParseIP(p.address) == nil {
					t.Errorf("%q is no address", p.address)
				}
			}
		}
	})
}

func FuzzExpand(f *testing.F) {
	f.Add("{{.ID}}.{{.Namespace}}.test:{{.Port}}", "orders", "ns")
	f.Add("{{.ID}}:80", "evil.example:1", "")
	f.Add("[{{.ID}}]:80", "::1", "{{.Port}}")
	f.Add("{{", "}}", "\x00")
	f.Fuzz(func(t *testing.T, template, app, namespace string) {
		c := DefaultConfig()
		c.Template = template
		q, err := c.expand(block.Name{App: app, Namespace: namespace})
		if err != nil {
			return
		}
		if net.ParseIP(q.host) == nil && strings.ContainsAny(q.host, ":/ \x00[]@") {
			t.Errorf("%q with %q and %q gives the host %q", template, app, namespace, q.host)
		}
	})
}

func TestCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache()
		places := []place{{address: "192.0.2.1:1"}}
		c.put("kept", answer{places, time.Hour}, time.Now())
		c.put("none", answer{nil, time.Hour}, time.Now())
		time.Sleep(negativeTTL)
		if _, ok := c.get("none", time.Now()); ok {
			t.Errorf("an empty answer is kept longer than %v", negativeTTL)
		}
		time.Sleep(maxTTL - negativeTTL - 1)
		if _, ok := c.get("kept", time.Now()); !ok {
			t.Error("an answer was dropped early")
		}
		time.Sleep(time.Nanosecond)
		if _, ok := c.get("kept", time.Now()); ok {
			t.Errorf("an answer is kept longer than %v", maxTTL)
		}
		for n := range 3 * maxKept {
			c.put(string(rune('a'+n%26))+time.Duration(n).String(), answer{places, time.Minute}, time.Now())
		}
		if len(c.kept) > maxKept {
			t.Errorf("%d answers kept, want at most %d", len(c.kept), maxKept)
		}
	})
}
