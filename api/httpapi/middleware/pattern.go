package middleware

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"
)

// pattern matches whole paths: a text, or an expression when the pattern has variables.
type pattern struct {
	text string
	expr *regexp.Regexp
	vars []string // escaped for a query, one for each group of expr
}

// parsePattern compiles "/goods/{id}" or "/goods/{id:[0-9]+}".
func parsePattern(s string) (pattern, error) {
	if !strings.HasPrefix(s, "/") {
		return pattern{}, fmt.Errorf("the pattern %q must begin with a slash", s)
	}
	p := pattern{text: s}
	var expr strings.Builder
	for rest := s; rest != ""; {
		open := strings.IndexByte(rest, '{')
		if open < 0 {
			open = len(rest)
		}
		if strings.IndexByte(rest[:open], '}') >= 0 {
			return pattern{}, fmt.Errorf("the pattern %q has a } without a {", s)
		}
		expr.WriteString(regexp.QuoteMeta(rest[:open]))
		if rest = rest[open:]; rest == "" {
			break
		}
		end := closing(rest)
		if end < 0 {
			return pattern{}, fmt.Errorf("the pattern %q has a { without a }", s)
		}
		name, value, err := variable(s, rest[1:end])
		if err != nil {
			return pattern{}, err
		}
		p.vars = append(p.vars, url.QueryEscape(name))
		expr.WriteString("(" + value + ")")
		rest = rest[end+1:]
	}
	if p.vars == nil {
		return p, nil
	}
	var err error
	if p.expr, err = regexp.Compile("^" + expr.String() + "$"); err != nil {
		return pattern{}, fmt.Errorf("the pattern %q: %w", s, err)
	}
	return p, nil
}

// closing finds the brace that closes the one s begins with; -1 when there is none.
func closing(s string) int {
	depth := 0
	for i := range len(s) {
		switch s[i] {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

// variable reads what stands between braces.
func variable(pattern, s string) (name, expr string, err error) {
	name, expr, custom := strings.Cut(s, ":")
	name = strings.TrimSpace(name)
	switch {
	case name == "":
		return "", "", fmt.Errorf("the pattern %q has a variable without a name", pattern)
	case !custom:
		return name, "[^/]+", nil
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return "", "", fmt.Errorf("the pattern %q, variable %s: %w", pattern, name, err)
	}
	if re.NumSubexp() > 0 {
		return "", "", fmt.Errorf("the pattern %q, variable %s: the expression has a group; write (?:…) for it", pattern, name)
	}
	return name, "(?:" + expr + ")", nil
}

// match compares a decoded path; vars are the variables' values as a raw query.
func (p *pattern) match(path string) (vars string, ok bool) {
	if p.expr == nil {
		return "", path == p.text
	}
	m := p.expr.FindStringSubmatchIndex(path)
	if m == nil {
		return "", false
	}
	var b strings.Builder
	for i, name := range p.vars {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(name + "=" + url.QueryEscape(path[m[2*i+2]:m[2*i+3]]))
	}
	return b.String(), true
}

// parseAliases reads the routes in the order they are written.
func parseAliases(text string) (aliases, error) {
	pairs, err := routePairs(text)
	if err != nil {
		return nil, err
	}
	var out aliases
	seen := map[string]bool{}
	for _, p := range pairs {
		if seen[p[0]] {
			return nil, fmt.Errorf("the pattern %q is given twice; keep one", p[0])
		}
		seen[p[0]] = true
		a, err := newAlias(p[0], p[1])
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// routePairs reads a map of texts as pairs, from JSON, else from YAML.
func routePairs(text string) ([][2]string, error) {
	if strings.HasPrefix(strings.TrimSpace(text), "{") && json.Valid([]byte(text)) {
		return jsonPairs([]byte(text))
	}
	var doc yaml.Node
	err := yaml.NewDecoder(strings.NewReader(text)).Decode(&doc)
	switch {
	case errors.Is(err, io.EOF): // nothing but blanks and comments
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("neither JSON nor YAML: %w", err)
	}
	m := doc.Content[0]
	if m.Kind == yaml.ScalarNode && m.Tag == "!!null" {
		return nil, nil
	}
	if m.Kind != yaml.MappingNode {
		return nil, errors.New(`is not a map of patterns to paths; write for example {"/goods/{id}": "/v1.0/invoke/shop/method/goods"}`)
	}
	var out [][2]string
	for i := 0; i+1 < len(m.Content); i += 2 {
		k, v := m.Content[i], m.Content[i+1]
		if k.Kind != yaml.ScalarNode || v.Kind != yaml.ScalarNode || v.Tag != "!!str" {
			return nil, fmt.Errorf("line %d: each entry must be a pattern and a path", k.Line)
		}
		out = append(out, [2]string{k.Value, v.Value})
	}
	return out, nil
}

// jsonPairs reads a valid JSON object.
func jsonPairs(text []byte) ([][2]string, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	var out [][2]string
	for d.More() {
		k, err := d.Token()
		if err != nil {
			return nil, err
		}
		v, err := d.Token()
		if err != nil {
			return nil, err
		}
		to, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("the target of %q must be a text", k)
		}
		out = append(out, [2]string{k.(string), to})
	}
	return out, nil
}
