package block_test

import (
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/block"
)

func TestInstanceValidate(t *testing.T) {
	good := block.Instance{ID: "id", App: "größe/../x", Namespace: "ns", Address: "[2001:db8::1]:1", Protocol: "dapr",
		Labels: map[string]string{"zone": ""}, Weight: 3}
	for _, c := range []struct {
		name, want string
		spoil      func(*block.Instance)
	}{
		{"complete", "", func(*block.Instance) {}},
		{"least", "", func(i *block.Instance) { *i = block.Instance{ID: "i", App: "a", Address: "h:65535"} }},
		{"no id", "has no id", func(i *block.Instance) { i.ID = "" }},
		{"no app", "has no app", func(i *block.Instance) { i.App = "" }},
		{"long namespace", "at most 200", func(i *block.Instance) { i.Namespace = strings.Repeat("n", 201) }},
		{"control character", "U+000A", func(i *block.Instance) { i.App = "a\nb" }},
		{"not UTF-8", "UTF-8", func(i *block.Instance) { i.Protocol = "\xff" }},
		{"no port", "host:port", func(i *block.Instance) { i.Address = "h" }},
		{"no host", "host:port", func(i *block.Instance) { i.Address = ":1" }},
		{"port 0", "from 1 to 65535", func(i *block.Instance) { i.Address = "h:0" }},
		{"port too large", "from 1 to 65535", func(i *block.Instance) { i.Address = "h:65536" }},
		{"address with a line break", "U+000A", func(i *block.Instance) { i.Address = "h\n:1" }},
		{"negative weight", "negative", func(i *block.Instance) { i.Weight = -1 }},
		{"nameless label", "without a name", func(i *block.Instance) { i.Labels = map[string]string{"": "x"} }},
		{"label with a control character", "U+0000", func(i *block.Instance) { i.Labels = map[string]string{"k": "\x00"} }},
		{"labels too large", "at most 1024", func(i *block.Instance) {
			i.Labels = map[string]string{"a": strings.Repeat("x", 600), "b": strings.Repeat("x", 600)}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := good
			c.spoil(&in)
			err := in.Validate()
			if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("Validate = %v, want %q", err, c.want)
			}
		})
	}
}
