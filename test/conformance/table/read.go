package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/block/blocktest"
)

// event is a line of `go test -json` (see `go doc test2json`).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
	Key     string
	Value   string
}

// results are the tests of a run.
type results struct {
	packages map[string]*pkg
	built    bytes.Buffer // what the compiler said
}

// pkg is a package's tests in the order of their start: a test comes before its subtests.
type pkg struct {
	name   string
	ended  string // action; empty while it runs
	output bytes.Buffer
	tests  []*test
	byName map[string]*test
}

type test struct {
	name           string
	ended          string // pass, fail, skip; empty when it never ended
	block, backend string // of a suite
	notOffered     bool   // the component lacks what it checks
	output         bytes.Buffer
}

// read takes the output apart and tells of each package that ends. Lines that are no event are
// passed on.
func read(in io.Reader, progress io.Writer) (*results, error) {
	r := &results{packages: map[string]*pkg{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil || e.Action == "" {
				fmt.Fprintf(progress, "%s\n", bytes.TrimRight(line, "\n"))
			} else {
				r.take(&e, progress)
			}
		}
		switch err {
		case nil:
		case io.EOF:
			return r, nil
		default:
			return nil, err
		}
	}
}

func (r *results) take(e *event, progress io.Writer) {
	if e.Package == "" { // build-output, build-fail: of a package that fails for it
		r.built.WriteString(e.Output)
		return
	}
	p := r.packages[e.Package]
	if p == nil {
		p = &pkg{name: e.Package, byName: map[string]*test{}}
		r.packages[e.Package] = p
	}
	if e.Test == "" {
		switch e.Action {
		case "output":
			p.output.WriteString(e.Output)
		case "pass", "fail", "skip":
			p.ended = e.Action
			if len(p.tests) > 0 || e.Action == "fail" {
				fmt.Fprintf(progress, "%s %s (%.1f s)\n", e.Action, short(e.Package), e.Elapsed)
			}
		}
		return
	}
	t := p.byName[e.Test]
	if t == nil {
		t = &test{name: e.Test}
		p.tests, p.byName[e.Test] = append(p.tests, t), t
	}
	switch e.Action {
	case "output":
		t.output.WriteString(e.Output)
	case "pass", "fail", "skip":
		t.ended = e.Action
	case "attr":
		switch e.Key {
		case blocktest.AttrBlock:
			t.block = e.Value
		case blocktest.AttrBackend:
			t.backend = e.Value
		case blocktest.AttrNotOffered:
			t.notOffered = true
		}
	}
}

// rows are the counts of all suites.
func (r *results) rows() map[key]counts {
	rows := map[key]counts{}
	for _, p := range r.packages {
		for _, t := range p.tests {
			if t.block == "" {
				continue
			}
			k := key{t.block, t.backend}
			if k.backend == "" {
				k.backend = backendOf(p.name)
			}
			c := counts{suites: 1}
			for _, sub := range p.children(t) {
				switch {
				case sub.ended == "pass" && !sub.notOffered:
					c.passed++
				case sub.ended == "pass":
					c.absent++
					c.lacks = append(c.lacks, strings.ReplaceAll(strings.TrimPrefix(sub.name, t.name+"/"), "_", " "))
				default:
					c.failed++
				}
			}
			if c.passed+c.failed+c.absent == 0 {
				c.failed++ // it ended before its first subtest
			}
			row := rows[k]
			row.add(c)
			rows[k] = row
		}
	}
	return rows
}

// children are the tests right below t.
func (p *pkg) children(t *test) []*test {
	var out []*test
	for _, sub := range p.tests {
		if strings.HasPrefix(sub.name, t.name+"/") && !slices.ContainsFunc(out, func(c *test) bool { return strings.HasPrefix(sub.name, c.name+"/") }) {
			out = append(out, sub)
		}
	}
	return out
}

// backendOf is the backend in whose folder a package is.
func backendOf(name string) string {
	if _, backend, ok := strings.Cut(name, "/components/"); ok {
		return backend
	}
	return short(name)
}

// short is a package's name without the module's.
func short(name string) string {
	return strings.TrimPrefix(name, "github.com/mecha-project/mecha/")
}

// others counts the tests that run no suite, the topmost of them: of a package where nothing is in
// a suite these are the Test functions.
func (r *results) others() (passed, failed int) {
	for _, p := range r.packages {
		for _, t := range p.tests {
			if strings.Contains(t.name, "/") || slices.ContainsFunc(p.tests, func(s *test) bool {
				return s.block != "" && (s == t || strings.HasPrefix(s.name, t.name+"/"))
			}) {
				continue
			}
			if t.bad() {
				failed++
			} else {
				passed++
			}
		}
	}
	return passed, failed
}

// bad tells of a test that failed, or never ended because its process did.
func (t *test) bad() bool { return t.ended != "pass" } // a skip is no pass

// failure is something that failed, with what it said.
type failure struct{ name, output string }

// failures are the innermost failed tests, and the packages that failed without one.
func (r *results) failures() []failure {
	var out []failure
	names := make([]string, 0, len(r.packages))
	for name := range r.packages {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		p := r.packages[name]
		before := len(out)
		for _, t := range p.tests {
			if t.bad() && !slices.ContainsFunc(p.tests, func(s *test) bool { return s.bad() && strings.HasPrefix(s.name, t.name+"/") }) {
				out = append(out, failure{short(name) + " " + t.name, t.output.String()})
			}
		}
		if p.ended != "pass" && p.ended != "skip" && len(out) == before {
			out = append(out, failure{short(name), r.built.String() + p.output.String()})
		}
	}
	return out
}
