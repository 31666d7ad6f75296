package configfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

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
	maxFindings  = 20
)

// parser collects values and findings.
type parser struct {
	file     string
	values   map[string]string
	lines    map[string]int
	findings []error
}

// parse reads the content of a file. The error lists the findings as "file:line: words" and has
// the code Invalid.
func parse(file string, content []byte) (map[string]string, error) {
	if strings.EqualFold(filepath.Ext(file), ".json") {
		// JSON may be indented with tabs, which YAML does not accept. Inside JSON strings a bare
		// tab is not allowed, so this changes no value.
		content = bytes.ReplaceAll(content, []byte("\t"), []byte(" "))
	}
	p := &parser{file: file, values: map[string]string{}, lines: map[string]int{}}
	var root, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(content))
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		p.report(1, "the file is empty; write {} if there are to be no settings")
	case err != nil:
		p.syntax(err)
	case len(root.Content) != 1:
		p.report(root.Line, "the file is not one mapping of keys to values")
	default:
		p.document(root.Content[0])
		if err := dec.Decode(&more); err == nil {
			p.report(more.Line, "the file has a second document; put all settings into one")
		} else if !errors.Is(err, io.EOF) {
			p.syntax(err)
		}
	}
	if len(p.findings) > 0 {
		return nil, fault.New("configfile.parse", fault.Invalid, "configuration file is wrong").Because(errors.Join(p.findings...))
	}
	return p.values, nil
}

func (p *parser) document(n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		p.report(n.Line, "the file is "+kind(n)+", want a mapping of keys to values")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
			p.report(key.Line, "a key is "+kind(key)+", want plain text")
			continue
		}
		if line, twice := p.lines[key.Value]; twice {
			p.report(key.Line, fmt.Sprintf("key %q is in line %d already", key.Value, line))
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
		p.report(n.Line, fmt.Sprintf("the value of %q is %s, want plain text; for lists and mappings write JSON as text", key, kind(n)))
	case n.Tag == "!!null" && n.Value != "":
		p.report(n.Line, fmt.Sprintf("the value of %q is %s, which is no value; leave the key out, or quote it", key, n.Value))
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

func (p *parser) report(line int, words string) {
	switch {
	case len(p.findings) < maxFindings:
		p.findings = append(p.findings, fmt.Errorf("%s:%d: %s", p.file, max(line, 1), words))
	case len(p.findings) == maxFindings:
		p.findings = append(p.findings, errors.New("and more"))
	}
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// syntax reports what the YAML reader says, with its line moved to the front.
func (p *parser) syntax(err error) {
	text, line := err.Error(), 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
	}
	p.report(line, text)
}
