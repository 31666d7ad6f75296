package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/mecha-project/mecha/components/conf"
)

// Bounds on what one resource file may ask of us: a small file can name a huge tree
// through aliases, and a deep one would exhaust the stack.
const (
	maxFileBytes = 8 << 20
	maxNodes     = 200_000
	maxDepth     = 100
)

// document is one YAML document of a resource file, free of aliases and merge keys.
type document struct {
	file       string
	line       int
	apiVersion string
	kind       string
	root       *yaml.Node // a mapping
}

// parseDocuments splits data into YAML documents. A document that cannot be read becomes an
// Error finding; the others are returned.
func parseDocuments(file string, data []byte) ([]document, conf.Findings) {
	if len(data) > maxFileBytes {
		return nil, conf.Findings{{File: file, Severity: conf.Error,
			Msg: fmt.Sprintf("the file has %d bytes; resource files may have at most %d", len(data), maxFileBytes)}}
	}
	var docs []document
	var found conf.Findings
	for _, c := range splitDocuments(data) {
		// A chunk holds one document, or more when they are separated in a way that only the
		// parser sees.
		in := yaml.NewDecoder(bytes.NewReader(c.text))
		for {
			root, err := parseOne(in, c.line)
			if errors.Is(err, io.EOF) {
				break
			}
			if root != nil {
				docs = append(docs, document{file: file, line: root.Line, root: root,
					apiVersion: textOf(child(root, "apiVersion")), kind: textOf(child(root, "kind"))})
			}
			if err == nil {
				continue
			}
			found = append(found, syntaxFinding(file, c, err))
			if _, readable := errors.AsType[*lineError](err); !readable {
				break // the parser has lost its way
			}
		}
	}
	return docs, found
}

// chunk is the text of one document and the number of lines before it.
type chunk struct {
	text []byte
	line int
}

// splitDocuments cuts at document markers. The parser could do it, but it gives up on the
// whole file at the first document that is wrong. A marker in the first column always
// starts a document, so cutting by lines is exact.
func splitDocuments(data []byte) []chunk {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	var out []chunk
	start, startLine, line, empty := 0, 0, 0, true
	flush := func(end int) {
		if !empty {
			out = append(out, chunk{text: data[start:end], line: startLine})
		}
	}
	for at := 0; at < len(data); {
		end := at + bytes.IndexByte(data[at:], '\n') + 1
		if end == at {
			end = len(data)
		}
		text := bytes.TrimRight(data[at:end], "\r\n")
		if rest, ok := bytes.CutPrefix(text, []byte("---")); ok && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t') {
			flush(at)
			start, startLine, empty = at, line, len(bytes.TrimSpace(stripComment(rest))) == 0
		} else if t := bytes.TrimSpace(text); len(t) > 0 && t[0] != '#' && text[0] != '%' && string(t) != "..." {
			empty = false
		}
		at = end
		line++
	}
	flush(len(data))
	return out
}

func stripComment(b []byte) []byte {
	if i := bytes.IndexByte(b, '#'); i >= 0 {
		return b[:i]
	}
	return b
}

// parseOne reads the next document; nil means it holds nothing. The error is io.EOF at the
// end, a *lineError when the document is unfit, else the parser's.
func parseOne(in *yaml.Decoder, offset int) (*yaml.Node, error) {
	var n yaml.Node
	if err := in.Decode(&n); err != nil {
		return nil, err
	}
	if len(n.Content) == 0 {
		return nil, nil
	}
	e := expander{offset: offset, left: maxNodes}
	root := e.expand(n.Content[0], 0)
	switch {
	case e.err != nil:
		return nil, e.err
	case root.Kind == yaml.ScalarNode && root.Tag == "!!null":
		return nil, nil
	case root.Kind != yaml.MappingNode:
		return nil, errAt(root.Line, "want a resource (apiVersion, kind, metadata, spec), got %s", nameNode(root))
	}
	return root, nil
}

// lineError is an error on a line of the file (not of the chunk).
type lineError struct {
	line int
	msg  string
}

func (e *lineError) Error() string { return e.msg }

func errAt(line int, format string, args ...any) error {
	return &lineError{line: line, msg: fmt.Sprintf(format, args...)}
}

var yamlLine = regexp.MustCompile(`line (\d+):?\s*`)

// syntaxFinding turns the parser's error, whose lines count from the chunk's start, into a
// finding with the file's line.
func syntaxFinding(file string, c chunk, err error) conf.Finding {
	f := conf.Finding{File: file, Line: c.line + 1, Severity: conf.Error}
	if le, ok := errors.AsType[*lineError](err); ok {
		f.Line, f.Msg = le.line, le.msg
		return f
	}
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatchIndex(msg); m != nil {
		n, _ := strconv.Atoi(msg[m[2]:m[3]])
		if strings.Contains(msg, "expected ',' or") {
			n++ // for this message the parser mostly counts from 0
		}
		f.Line = c.line + min(n, 1+bytes.Count(bytes.TrimRight(c.text, "\n"), []byte("\n")))
		msg = msg[:m[0]] + msg[m[1]:]
	}
	f.Msg = "not valid YAML: " + strings.TrimSpace(msg)
	return f
}

// expander copies a tree with every alias replaced by what it stands for and every merge
// key (<<) by the entries it brings, within a budget.
type expander struct {
	offset int
	left   int
	err    error
}

func (e *expander) expand(n *yaml.Node, depth int) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
		depth++
		if depth > maxDepth {
			break
		}
	}
	out := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value, Style: n.Style, Line: n.Line + e.offset, Column: n.Column}
	e.left--
	switch {
	case e.err != nil:
	case e.left < 0:
		e.err = errAt(out.Line, "the document is too large once its aliases are expanded (over %d values)", maxNodes)
	case depth > maxDepth:
		e.err = errAt(out.Line, "nested deeper than %d levels", maxDepth)
	case n.Kind == yaml.MappingNode:
		e.mapping(n, out, depth)
	default:
		for _, c := range n.Content {
			if e.err != nil {
				break
			}
			out.Content = append(out.Content, e.expand(c, depth+1))
		}
	}
	return out
}

func (e *expander) mapping(n, out *yaml.Node, depth int) {
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content) && e.err == nil; i += 2 {
		k, v := n.Content[i], e.expand(n.Content[i+1], depth+1)
		if k.Kind == yaml.ScalarNode && k.Tag == "!!merge" {
			switch v.Kind {
			case yaml.MappingNode:
				merged = append(merged, v.Content...)
			case yaml.SequenceNode:
				for _, m := range v.Content {
					merged = append(merged, m.Content...)
				}
			}
			continue
		}
		out.Content = append(out.Content, e.expand(k, depth+1), v)
	}
	// A key of the mapping itself wins over a merged one, an earlier merge over a later.
	for i := 0; i+1 < len(merged); i += 2 {
		if child(out, merged[i].Value) == nil {
			out.Content = append(out.Content, merged[i], merged[i+1])
		}
	}
}

// child is the value of a key in a mapping, or nil. Case counts.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// textOf is a scalar's text, or empty.
func textOf(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return ""
	}
	s, _ := scalarText(n)
	return s
}

// nameNode names what a node is, for "want …, got …".
func nameNode(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	if n.Tag == "!!null" {
		return "nothing"
	}
	if len(n.Value) > 60 {
		return fmt.Sprintf("%q…", strings.ToValidUTF8(n.Value[:60], ""))
	}
	return strconv.Quote(n.Value)
}
