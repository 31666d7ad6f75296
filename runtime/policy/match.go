package policy

import (
	"strings"

	"github.com/mecha-project/mecha/runtime/call"
)

// kindOf is the word for what a target is, as policies write it. A call to the own app is a
// service call like any other.
func kindOf(t *call.Target) string {
	if t.Kind == call.App && t.Direction == call.Outbound {
		return call.Service.String()
	}
	return t.Kind.String()
}

// Kinds are the words for Match.Kind.
func Kinds() (out []string) {
	for _, k := range call.Kinds() {
		out = append(out, k.String())
	}
	return out
}

// holdsData tells whether a kind of call goes to something that keeps data by key, so that
// calls with one key must meet.
func holdsData(k call.Kind) bool {
	switch k {
	case call.State, call.Config, call.Lock, call.Publish, call.Cache:
		return true
	}
	return false
}

// pattern is a word with * for any run of characters, compiled.
type pattern struct {
	text    string // without the stars
	mode    uint8
	pieces  []string // of a glob with stars elsewhere than at its ends
	anyCase bool
}

const (
	exact uint8 = iota
	everything
	prefix
	suffix
	inside
	glob
)

func newPattern(s string, anyCase bool) pattern {
	p := pattern{text: s, anyCase: anyCase}
	if anyCase {
		p.text = strings.ToLower(s)
	}
	switch n := strings.Count(s, "*"); {
	case n == 0:
	case strings.Trim(s, "*") == "":
		p.mode = everything
	case n == 1 && strings.HasSuffix(s, "*"):
		p.mode, p.text = prefix, p.text[:len(p.text)-1]
	case n == 1 && strings.HasPrefix(s, "*"):
		p.mode, p.text = suffix, p.text[1:]
	case n == 2 && strings.HasSuffix(s, "*") && strings.HasPrefix(s, "*"):
		p.mode, p.text = inside, p.text[1:len(p.text)-1]
	default:
		p.mode, p.pieces = glob, strings.Split(p.text, "*")
	}
	return p
}

func (p *pattern) fits(s string) bool {
	if p.anyCase {
		n := len(p.text)
		switch p.mode { // without the allocation that a lower-case copy costs
		case exact:
			return len(s) == n && strings.EqualFold(s, p.text)
		case prefix:
			return len(s) >= n && strings.EqualFold(s[:n], p.text)
		case suffix:
			return len(s) >= n && strings.EqualFold(s[len(s)-n:], p.text)
		case inside, glob:
			s = strings.ToLower(s)
		}
	}
	switch p.mode {
	case exact:
		return s == p.text
	case everything:
		return true
	case prefix:
		return strings.HasPrefix(s, p.text)
	case suffix:
		return strings.HasSuffix(s, p.text)
	case inside:
		return strings.Contains(s, p.text)
	}
	return p.globFits(s)
}

func (p *pattern) globFits(s string) bool {
	first, last := p.pieces[0], p.pieces[len(p.pieces)-1]
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, piece := range p.pieces[1 : len(p.pieces)-1] {
		at := strings.Index(s, piece)
		if at < 0 {
			return false
		}
		s = s[at+len(piece):]
	}
	return true
}

type patterns []pattern

// patternsOf compiles words; nil for none, which fits everything.
func patternsOf(words []string, anyCase bool) patterns {
	var out patterns
	for _, w := range words {
		out = append(out, newPattern(w, anyCase))
	}
	return out
}

func (ps patterns) fits(s string) bool {
	if len(ps) == 0 {
		return true
	}
	for i := range ps {
		if ps[i].fits(s) {
			return true
		}
	}
	return false
}

// pathsOf compiles path patterns. Paths inside have no leading slash, except gRPC methods; users
// write one. "/a/**" fits everything below /a.
func pathsOf(words []string) patterns {
	var out patterns
	for _, w := range words {
		w = strings.TrimPrefix(w, "/")
		if below, ok := strings.CutSuffix(w, "/**"); ok {
			w = below + "/*"
		}
		out = append(out, newPattern(w, false))
	}
	return out
}

func (ps patterns) fitsPath(s string) bool {
	return ps.fits(strings.TrimPrefix(s, "/"))
}

// matcher is a compiled Match, without the parts that only look at the target.
type matcher struct {
	op, method, path, from patterns
	headers                []headerMatch
}

type headerMatch struct {
	name  string
	value pattern
}

// static tells whether m can fit calls on the target at all.
func (m *Match) static(t *call.Target) bool {
	if len(m.Kind) > 0 && !patternsOf(m.Kind, true).fits(kindOf(t)) {
		return false
	}
	return len(m.Dest) == 0 || fitsName(patternsOf(m.Dest, false), t.Name, t.Namespace)
}

// fitsName fits "app" and "app.namespace".
func fitsName(ps patterns, name, namespace string) bool {
	return ps.fits(name) || (namespace != "" && ps.fits(name+"."+namespace))
}

// compile makes the rest of m; nil when there is nothing left to look at.
func (m *Match) compile() *matcher {
	c := &matcher{op: patternsOf(m.Op, true), method: patternsOf(m.Method, true), path: pathsOf(m.Path), from: patternsOf(m.From, false)}
	for name, value := range m.Headers {
		c.headers = append(c.headers, headerMatch{name, newPattern(value, false)})
	}
	if len(c.op)+len(c.method)+len(c.path)+len(c.from)+len(c.headers) == 0 {
		return nil
	}
	return c
}

func (m *matcher) fits(c *call.Call) bool {
	if !m.op.fits(c.Op) || (len(m.method) > 0 && !fitsVerb(m.method, c.Op)) {
		return false
	}
	if len(m.path) > 0 && !m.path.fitsPath(c.Resource) {
		return false
	}
	if len(m.from) > 0 && !fitsName(m.from, c.Caller.App, c.Caller.Namespace) {
		return false
	}
	for i := range m.headers {
		if c.Attrs == nil {
			return false
		}
		v, ok := c.Attrs.Lookup(m.headers[i].name)
		if !ok || !m.headers[i].value.fits(v) {
			return false
		}
	}
	return true
}

// fitsVerb looks at HTTP verbs only: a gRPC method begins with a slash, the operations of a
// component are in lower case.
func fitsVerb(ps patterns, op string) bool {
	return op != "" && 'A' <= op[0] && op[0] <= 'Z' && ps.fits(op)
}
