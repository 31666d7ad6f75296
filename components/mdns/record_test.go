package mdns

import (
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"github.com/mecha-project/mecha/components/block"
)

var sample = block.Instance{ID: `id "with" \odd; ü bytes`, App: "größe/../x", Namespace: "ns", Address: "192.0.2.1:50002",
	Protocol: "dapr", Weight: 7, Labels: map[string]string{"zone": `a=b\"`, "long": strings.Repeat("ß", 300)}}

func pack(t testing.TB, in block.Instance, ttl time.Duration) []byte {
	t.Helper()
	data, err := announcement(in, func() net.IP { return net.IPv4(192, 0, 2, 77) }, ttl).Pack()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAnnouncementRoundTrip(t *testing.T) {
	for _, c := range []struct{ name, address, want string }{
		{"IPv4", "192.0.2.1:50002", "192.0.2.1:50002"},
		{"IPv6", "[2001:db8::1]:1", "[2001:db8::1]:1"},
		{"host name", "host.test:65535", "host.test:65535"},
		{"wildcard", "0.0.0.0:7", "192.0.2.77:7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := sample
			in.Address = c.address
			m := new(wire.Msg)
			if err := m.Unpack(pack(t, in, time.Minute)); err != nil {
				t.Fatal(err)
			}
			in.Address = c.want
			if diff := cmp.Diff([]found{{in, time.Minute}}, parse(m), cmp.AllowUnexported(found{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestNoAnnouncementWithoutAddress(t *testing.T) {
	in := sample
	in.Address = "[::]:1"
	if m := announcement(in, func() net.IP { return nil }, time.Minute); m != nil {
		t.Errorf("announcement = %v, want none: there is no address to name", m)
	}
}

// Others' services, other versions and forged names are not ours.
func TestParseSkips(t *testing.T) {
	for name, spoil := range map[string]func(*wire.Msg){
		"no address": func(m *wire.Msg) { m.Extra = m.Extra[1:] },
		"no SRV":     func(m *wire.Msg) { m.Extra = append(m.Extra[:1], m.Extra[2]) },
		"no TXT":     func(m *wire.Msg) { m.Extra = m.Extra[:2] },
		"other id":   func(m *wire.Msg) { m.Extra[2].(*wire.TXT).Txt[3] = "id=somebody else" },
		"version":    func(m *wire.Msg) { m.Extra[2].(*wire.TXT).Txt[0] = "v=2" },
		"weight":     func(m *wire.Msg) { m.Extra[2].(*wire.TXT).Txt[5] = "w=heavy" },
		"port 0":     func(m *wire.Msg) { m.Extra[1].(*wire.SRV).Port = 0 },
		"other service": func(m *wire.Msg) {
			for _, rr := range m.Extra[1:] {
				rr.Header().Name = strings.Replace(rr.Header().Name, "_mecha", "_printer", 1)
			}
		},
	} {
		in := sample
		in.Labels = nil
		m := announcement(in, nil, time.Minute)
		spoil(m)
		if got := parse(m); len(got) != 0 {
			t.Errorf("%s: parse = %+v, want nothing", name, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	in := sample
	in.Labels = map[string]string{"zone": "a"}
	f.Add(pack(f, in, time.Minute))
	in.Address = "[::1]:1"
	f.Add(pack(f, in, 0))
	q, err := query(appService(in.Name())).Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q)
	f.Add([]byte("\x00\x00\x84\x00\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(wire.Msg)
		if m.Unpack(data) != nil {
			return
		}
		asked(m.Question, in)
		for _, got := range parse(m) {
			if err := got.Validate(); err != nil {
				t.Errorf("an invalid instance was taken: %v", err)
			}
		}
	})
}

func TestBookIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(time.Minute)
		watched := block.Name{App: "watched"}
		_, leave := b.listen(watched)
		defer leave()
		for n := range 2 * maxNames {
			b.list(block.Name{App: "app", Namespace: time.Duration(n).String()}, time.Now())
			time.Sleep(time.Millisecond)
		}
		if len(b.pages) > maxNames {
			t.Errorf("%d names kept, want at most %d", len(b.pages), maxNames)
		}
		var list []found
		for n := range 2 * maxInstances {
			list = append(list, found{block.Instance{ID: time.Duration(n).String(), App: "watched"}, time.Hour})
		}
		list = append(list, found{block.Instance{ID: "x", App: "never asked for"}, time.Hour})
		b.write(list, time.Now())
		live, _, _ := b.list(watched, time.Now())
		if len(live) != maxInstances {
			t.Errorf("%d instances of a watched name, want the bound %d: it must survive the names", len(live), maxInstances)
		}
		if b.pages[block.Name{App: "never asked for"}] != nil {
			t.Error("a name nobody asked for is kept")
		}
		time.Sleep(time.Minute)
		if live, ask, _ := b.list(watched, time.Now()); len(live) != 0 || !ask {
			t.Errorf("after their lifetime %d instances, ask %v; want none and a question", len(live), ask)
		}
	})
}

func TestEscape(t *testing.T) {
	for raw, want := range map[string]string{"plain": "plain", `\\`: `\`, `a\"b`: `a"b`, `\195\188`: "ü", `\`: `\`, `\9`: "9", `\999`: "999"} {
		if got := unescape(raw); got != want {
			t.Errorf("unescape(%q) = %q, want %q", raw, got, want)
		}
	}
}
