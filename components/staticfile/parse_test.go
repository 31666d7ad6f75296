package staticfile

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

func TestParse(t *testing.T) {
	got, err := parse("apps.yaml", []byte(`
apps:
  orders:
    - 10.0.0.5:50002
    - address: "[fe80::1]:50002"
      namespace: prod
      protocol: dapr
      weight: 2
      labels: {zone: eu-1, n: 7}
      id: six
  idle: []
`), "default")
	want := table{
		{App: "orders", Namespace: "default"}: {{ID: "orders.default@10.0.0.5:50002", App: "orders", Namespace: "default", Address: "10.0.0.5:50002"}},
		{App: "orders", Namespace: "prod"}: {{ID: "six", App: "orders", Namespace: "prod", Address: "[fe80::1]:50002",
			Protocol: "dapr", Weight: 2, Labels: map[string]string{"zone": "eu-1", "n": "7"}}},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("parse: %v (-want +got):\n%s", err, diff)
	}
}

func TestParseEmpty(t *testing.T) {
	for _, text := range []string{"", "# nothing yet\n", "---\n", "{}", "null"} {
		if got, err := parse("f", []byte(text), "ns"); err != nil || len(got) != 0 {
			t.Errorf("parse(%q) = %v, %v; want no apps", text, got, err)
		}
	}
}

func TestParseJSONWithTabs(t *testing.T) {
	got, err := parse("f.json", []byte("{\n\t\"apps\": {\n\t\t\"a\": [\n\t\t\t\"h:1\"\n\t\t]\n\t}\n}\n"), "ns")
	if err != nil || len(got[block.Name{App: "a", Namespace: "ns"}]) != 1 {
		t.Errorf("parse = %v, %v; want one instance", got, err)
	}
}

func TestParseFindings(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"syntax", "apps:\n  - [", "f:"},
		{"not a mapping", "- a", `f:1: the file is a list, want a mapping`},
		{"unknown top key", "app: {}", `f:1: the file has no key "app"; did you mean "apps"?`},
		{"apps is a list", "apps: [a]", `f:1: apps is a list, want a mapping`},
		{"app is text", "apps:\n  a: h:1", `f:2: app "a" is the value "h:1", want a list of addresses`},
		{"no port", "apps:\n  a:\n  - h", `f:3: instance "a.ns@h": address "h" is not host:port`},
		{"unknown key", "apps:\n  a:\n  - address: h:1\n    wieght: 2", `f:4: an instance has no key "wieght"; did you mean "weight"?`},
		{"bad weight", "apps: {a: [{address: 'h:1', weight: many}]}", `f:1: weight is the value "many", want a whole number`},
		{"bad protocol", "apps: {a: [{address: 'h:1', protocol: http}]}", `f:1: protocol is the value "http", want mecha or dapr`},
		{"same instance twice", "apps:\n  a:\n  - h:1\n  - h:1", `f:4: instance "a.ns@h:1" is in line 3 already`},
		{"same app twice", "apps:\n  a: [h:1]\n  a: [h:2]", `f:3: apps has the key "a" twice`},
		{"empty address", "apps:\n  a:\n  - address:\n", `f:3: address is empty, want text`},
		{"alias", "apps:\n  a: &x ['h:1']\n  b: *x", `f:3: app "b" is an alias`},
		{"merge key", "apps:\n  a:\n  - &x {address: 'h:1'}\n  - {<<: *x}", `f:4: an instance of "a" has a key`},
		{"two documents", "apps: {}\n---\napps: {}", `second document`},
		{"label is a list", "apps: {a: [{address: 'h:1', labels: {z: []}}]}", `f:1: label "z" is a list, want text`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse("f", []byte(c.text), "ns")
			if fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), c.want) {
				t.Errorf("parse = %v (%v), want invalid with %q", err, fault.Of(err), c.want)
			}
		})
	}
}

func TestParseReportsEverythingWithinReason(t *testing.T) {
	_, err := parse("f", []byte("apps:\n  a:\n"+strings.Repeat("  - bad\n", 100)), "ns")
	if err == nil {
		t.Fatal("no error")
	}
	if n := strings.Count(err.Error(), "\n"); n != conf.MaxFileFindings {
		t.Errorf("%d lines, want %d findings and a last line", n+1, conf.MaxFileFindings)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("apps: {orders: ['h:1', {address: 'h:2', weight: 2, labels: {a: b}}]}")
	f.Add("apps:\n  a: &x ['h:1']\n  b: *x")
	f.Add("{\"apps\":{\"a\":[\"h:1\"]}}")
	f.Add("apps: {a: [{<<: {address: 'h:1'}}]}")
	f.Add("--- \n...\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parse("f.json", []byte(text), "ns")
		if err != nil {
			if fault.Of(err) != fault.Invalid {
				t.Errorf("code %v for %v", fault.Of(err), err)
			}
			return
		}
		for name, list := range got {
			for _, in := range list {
				if err := in.Validate(); err != nil || in.Name() != name {
					t.Errorf("accepted %+v under %+v: %v", in, name, err)
				}
			}
		}
	})
}
