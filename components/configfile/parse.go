package configfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// The format is one mapping of keys to plain values:
//
//	orders.limit: 10         # values are text: this one is "10", as it is written
//	greeting: "hello"
//	text: |
//	  several
//	  lines
//
// A JSON object of the same shape is read too. A nested value, a key that comes twice and an
// empty file are errors: an empty file is what a writer leaves for a moment, and {} says that
// there are no settings.

// Bounds of a file.
const (
	maxFileBytes = 4 << 20
)

// parser collects values and findings.
type parser struct {
	conf.FileFindings
	values map[string]string
	lines  map[string]int
}

// parse reads the content of a file. The error lists the findings as "file:line: words" and has
// the code Invalid.
func parse(file string, content []byte) (map[string]string, error) {
	if strings.EqualFold(filepath.Ext(file), ".json") {
		// JSON may be indented with tabs, which YAML does not accept. Inside JSON strings a bare
		// tab is not allowed, so this changes no value.
		content = bytes.ReplaceAll(content, []byte("\t"), []byte(" "))
	}
	p := &parser{FileFindings: conf.FileFindings{File: file}, values: map[string]string{}, lines: map[string]int{}}
	var root, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(content))
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		p.Add(1, "the file is empty; write {} if there are to be no settings")
	case err != nil:
		p.AddSyntax(err)
	case len(root.Content) != 1:
		p.Add(root.Line, "the file is not one mapping of keys to values")
	default:
		p.document(root.Content[0])
		if err := dec.Decode(&more); err == nil {
			p.Add(more.Line, "the file has a second document; put all settings into one")
		} else if !errors.Is(err, io.EOF) {
			p.AddSyntax(err)
		}
	}
	if p.Len() > 0 {
		return nil, fault.New("configfile.parse", fault.Invalid, "configuration file is wrong").Because(p.Err())
	}
	return p.values, nil
}

func (p *parser) document(n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		p.Add(n.Line, "the file is "+kind(n)+", want a mapping of keys to values")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
			p.Add(key.Line, "a key is "+kind(key)+", want plain text")
			continue
		}
		if line, twice := p.lines[key.Value]; twice {
			p.Add(key.Line, fmt.Sprintf("key %q is in line %d already", key.Value, line))
			continue
		}
		p.lines[key.Value] = key.Line
		p.value(key.Value, value)
	}
}

// value takes the text of a value as it is written. An empty one is the empty text: a word like
// ~ or null stands for itself nowhere, so it is refused rather than guessed.
func (p *parser) value(key string, n *yaml.Node) {
	switch {
	case n.Kind != yaml.ScalarNode:
		p.Add(n.Line, fmt.Sprintf("the value of %q is %s, want plain text; for lists and mappings write JSON as text", key, kind(n)))
	case n.Tag == "!!null" && n.Value != "":
		p.Add(n.Line, fmt.Sprintf("the value of %q is %s, which is no value; leave the key out, or quote it", key, n.Value))
	default:
		p.values[key] = n.Value
	}
}

// kind is what a node is, without its content: a configuration value is nobody else's business.
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
	return "a single value"
}
