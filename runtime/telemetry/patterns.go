package telemetry

import (
	"sort"
	"strings"

	"github.com/mecha-project/mecha/components/fault"
)

// pattern is one line of metrics.http.pathMatching: a path whose parts may be {name}, which
// stands for one part; the last may be {name...} or empty after a slash, which stand for any
// number of parts.
type pattern struct {
	text   string // as written: the label of a match
	invoke string // the label of a match inside a service invocation
	parts  []string
	rest   bool // anything may follow parts
}

const opPatterns fault.Op = "telemetry.pathMatching"

// parsePatterns compiles patterns, the more exact first. It refuses what cannot match or is
// not a pattern, naming it.
func parsePatterns(texts []string) ([]pattern, error) {
	var out []pattern
	for _, t := range texts {
		p, err := parsePattern(t)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].before(&out[j]) })
	return out, nil
}

func parsePattern(text string) (pattern, error) {
	if !strings.HasPrefix(text, "/") {
		return pattern{}, fault.New(opPatterns, fault.Invalid,
			"metrics.http.pathMatching: pattern %q must begin with a slash, like /orders/{id}", text)
	}
	p := pattern{text: text, invoke: "/v1.0/invoke/{app_id}/method" + text}
	p.parts = strings.Split(text[1:], "/")
	last := len(p.parts) - 1
	switch {
	case p.parts[last] == "":
		p.parts, p.rest = p.parts[:last], true
	case strings.HasPrefix(p.parts[last], "{") && strings.HasSuffix(p.parts[last], "...}"):
		p.parts, p.rest = p.parts[:last], true
	case p.parts[last] == "{$}":
		p.parts[last] = ""
	}
	for _, part := range p.parts {
		open, shut := strings.Count(part, "{"), strings.Count(part, "}")
		if open != shut || open > 1 || open == 1 && !variable(part) {
			return pattern{}, fault.New(opPatterns, fault.Invalid,
				"metrics.http.pathMatching: pattern %q: %q is neither a fixed part nor {name}; a variable fills a whole part between slashes", text, part)
		}
	}
	return p, nil
}

// variable reports whether a part stands for any text.
func variable(part string) bool {
	return len(part) > 2 && part[0] == '{' && part[len(part)-1] == '}'
}

// before reports whether p is more exact than q: fixed parts before variables, whole paths
// before open ends, long before short.
func (p *pattern) before(q *pattern) bool {
	for i := 0; i < len(p.parts) && i < len(q.parts); i++ {
		if pv, qv := variable(p.parts[i]), variable(q.parts[i]); pv != qv {
			return qv
		}
	}
	if p.rest != q.rest {
		return q.rest
	}
	return len(p.parts) > len(q.parts)
}

// match reports whether path, with or without its leading slash, fits.
func (p *pattern) match(path string) bool {
	path = strings.TrimPrefix(path, "/")
	for i, want := range p.parts {
		got, after, more := strings.Cut(path, "/")
		if variable(want) {
			if got == "" {
				return false
			}
		} else if got != want {
			return false
		}
		if !more && i < len(p.parts)-1 {
			return false
		}
		if !more {
			return !p.rest
		}
		path = after
		if i == len(p.parts)-1 {
			return p.rest
		}
	}
	return p.rest
}

// match finds the pattern that governs path. An empty path has none.
func (p *paths) match(path string) *pattern {
	if path == "" {
		return nil
	}
	for i := range p.patterns {
		if p.patterns[i].match(path) {
			return &p.patterns[i]
		}
	}
	return nil
}
