package staticfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// The format:
//
//	apps:
//	  orders:                      # app id
//	    - 10.0.0.5:50002           # an address alone, or
//	    - address: 10.0.0.6:50002
//	      namespace: prod          # default: the sidecar's own
//	      protocol: dapr           # default: mecha
//	      weight: 2                # default: 1
//	      labels: {zone: eu-1}
//	      id: orders-6             # default: made from app, namespace and address
//
// The file is read strictly: an unknown key, a wrong type or a duplicate is an error with
// its line, and all of them are reported together.

// Bounds of a file.
const (
	maxFileBytes = 1 << 20
	maxInstances = 10_000
)

// table is a parsed file: the instances of each name, in the order of the file.
type table map[block.Name][]block.Instance

// copyOf is a list that the caller may change.
func (t table) copyOf(name block.Name) []block.Instance {
	out := make([]block.Instance, 0, len(t[name]))
	for _, in := range t[name] {
		in.Labels = maps.Clone(in.Labels)
		out = append(out, in)
	}
	return out
}

// parser collects instances and findings.
type parser struct {
	conf.FileFindings
	namespace string
	table     table
	ids       map[string]int // line of each id
	total     int
}

// parse reads the content of a file. The error lists the findings as "file:line: words" and
// has the code Invalid.
func parse(file string, content []byte, namespace string) (table, error) {
	if strings.EqualFold(filepath.Ext(file), ".json") {
		// JSON may be indented with tabs, which YAML does not accept. Inside JSON strings a
		// bare tab is not allowed, so this changes no value.
		content = bytes.ReplaceAll(content, []byte("\t"), []byte(" "))
	}
	p := &parser{FileFindings: conf.FileFindings{File: file}, namespace: namespace, table: table{}, ids: map[string]int{}}
	var root, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(content))
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		return p.table, nil // empty, or comments only: no apps
	case err != nil:
		p.AddSyntax(err)
	case len(root.Content) != 1:
		p.bad(&root, "the file is not one mapping")
	default:
		p.document(root.Content[0])
		if err := dec.Decode(&more); err == nil {
			p.bad(&more, "the file has a second document; put all apps into one")
		} else if !errors.Is(err, io.EOF) {
			p.AddSyntax(err)
		}
	}
	if p.Len() > 0 {
		return nil, fault.New("staticfile.parse", fault.Invalid, "registry file is wrong").Because(p.Err())
	}
	return p.table, nil
}

func (p *parser) bad(n *yaml.Node, format string, args ...any) {
	p.Add(n.Line, fmt.Sprintf(format, args...))
}

// pairs gives the keys and values of a mapping, once each. It reports everything else,
// aliases too: a small file could stand for a huge one.
func (p *parser) pairs(n *yaml.Node, what string, each func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		p.bad(n, "%s is %s, want a mapping", what, kind(n))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		switch {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!merge":
			p.bad(key, "%s has a key that is %s, want plain text", what, kind(key))
		case seen[key.Value]:
			p.bad(key, "%s has the key %q twice", what, key.Value)
		default:
			seen[key.Value] = true
			each(key, n.Content[i+1])
		}
	}
}

func (p *parser) unknown(key *yaml.Node, what string, known ...string) {
	hint := "known: " + strings.Join(known, ", ")
	if near := conf.Nearest(key.Value, known); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	p.bad(key, "%s has no key %q; %s", what, key.Value, hint)
}

func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias, which this file may not use"
	}
	if n.Tag == "!!null" {
		return "empty"
	}
	return fmt.Sprintf("the value %q", n.Value)
}

func (p *parser) document(n *yaml.Node) {
	if n.Tag == "!!null" {
		return
	}
	p.pairs(n, "the file", func(key, value *yaml.Node) {
		if key.Value != "apps" {
			p.unknown(key, "the file", "apps")
			return
		}
		p.pairs(value, "apps", p.app)
	})
}

func (p *parser) app(key, value *yaml.Node) {
	if value.Kind != yaml.SequenceNode {
		p.bad(value, "app %q is %s, want a list of addresses", key.Value, kind(value))
		return
	}
	for _, n := range value.Content {
		if p.total++; p.total > maxInstances {
			p.bad(n, "the file has more than %d instances", maxInstances)
			return
		}
		p.instance(key.Value, n)
	}
}

func (p *parser) instance(app string, n *yaml.Node) {
	in := block.Instance{App: app, Namespace: p.namespace}
	before := p.Len()
	if n.Kind == yaml.ScalarNode {
		in.Address = n.Value
	} else {
		p.pairs(n, "an instance of "+strconv.Quote(app), func(key, value *yaml.Node) { p.field(&in, key, value) })
	}
	if p.Len() > before {
		return
	}
	if in.ID == "" {
		in.ID = fmt.Sprintf("%s.%s@%s", in.App, in.Namespace, in.Address)
		if len(in.ID) > 200 {
			in.ID = in.ID[len(in.ID)-200:]
		}
		in.ID = strings.ToValidUTF8(in.ID, "")
	}
	if err := in.Validate(); err != nil {
		p.bad(n, "%v", err)
		return
	}
	if line, twice := p.ids[in.ID]; twice {
		p.bad(n, "instance %q is in line %d already", in.ID, line)
		return
	}
	p.ids[in.ID] = n.Line
	name := in.Name()
	p.table[name] = append(p.table[name], in)
}

func (p *parser) field(in *block.Instance, key, value *yaml.Node) {
	texts := map[string]*string{"address": &in.Address, "id": &in.ID, "namespace": &in.Namespace, "protocol": &in.Protocol}
	switch key.Value {
	case "address", "id", "namespace", "protocol":
		p.text(key.Value, value, texts[key.Value])
	case "weight":
		n, err := strconv.Atoi(value.Value)
		if value.Kind != yaml.ScalarNode || err != nil || n < 0 || n > 1_000_000 {
			p.bad(value, "weight is %s, want a whole number from 0 to 1000000", kind(value))
			return
		}
		in.Weight = n
	case "labels":
		in.Labels = map[string]string{}
		p.pairs(value, "labels", func(k, v *yaml.Node) {
			var text string
			p.text("label "+strconv.Quote(k.Value), v, &text)
			in.Labels[k.Value] = text
		})
	default:
		p.unknown(key, "an instance", "address", "id", "labels", "namespace", "protocol", "weight")
	}
	if key.Value == "protocol" && in.Protocol != "mecha" && in.Protocol != "dapr" {
		p.bad(value, "protocol is %s, want mecha or dapr", kind(value))
	}
}

func (p *parser) text(what string, n *yaml.Node, into *string) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		p.bad(n, "%s is %s, want text", what, kind(n))
		return
	}
	*into = n.Value
}
