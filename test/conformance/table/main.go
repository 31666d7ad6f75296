// Command table reads the output of `go test -json` and prints what the conformance suites came to:
// a row for each block on each backend, and what failed in full. `make conformance` runs it.
//
// A suite says in its output which block it checks (blocktest.AttrBlock), so a new backend or a new
// suite needs no line here. A row that is missing is found by the reference page of components, which
// is generated from the binary's list of backends: a component whose backend runs no suite of its
// block is a failure.
//
// Start reading at run; read.go takes the output apart.
package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	const page = "docs/reference/components.md"
	components, err := os.Open(page)
	if err != nil {
		fmt.Fprintln(os.Stderr, "table: run it in the repository's root:", err)
		os.Exit(2)
	}
	defer components.Close()
	ok, err := run(os.Stdin, components, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
	}
	if !ok {
		os.Exit(1)
	}
}

// run prints the table of what in says and reports whether all went well. components is the
// reference page.
func run(in, components io.Reader, out io.Writer) (bool, error) {
	r, err := read(in, out)
	if err != nil {
		return false, err
	}
	rows := r.rows()
	missing, err := missing(components, rows)
	if err != nil {
		return false, err
	}
	failures := r.failures()
	for _, f := range failures {
		fmt.Fprintf(out, "\n--- FAILED: %s\n%s", f.name, f.output)
	}
	fmt.Fprintln(out)
	show(out, rows)
	passed, failed := r.others()
	fmt.Fprintf(out, "\nOther tests of these packages: %d passed, %d failed.\n", passed, failed)
	for _, k := range missing {
		fmt.Fprintf(out, "NO SUITE RAN: %s of backend %s\n", k.block, k.backend)
	}
	if len(r.packages) == 0 {
		fmt.Fprintln(out, "NOTHING RAN: the input holds no test")
	}
	return len(failures) == 0 && len(missing) == 0 && len(r.packages) > 0, nil
}

// key is a row's place.
type key struct{ block, backend string }

// counts are a row: how often the suite ran, in different set-ups, and how its subtests ended.
type counts struct {
	suites, passed, failed, absent int
	lacks                          []string // the names of those not offered, each once
}

func (c *counts) add(d counts) {
	c.suites += d.suites
	c.passed += d.passed
	c.failed += d.failed
	c.absent += d.absent
	for _, name := range d.lacks {
		if !slices.Contains(c.lacks, name) {
			c.lacks = append(c.lacks, name)
		}
	}
}

func show(out io.Writer, rows map[key]counts) {
	keys := make([]key, 0, len(rows))
	block, backend := len("block"), len("backend")
	for k := range rows {
		keys = append(keys, k)
		block, backend = max(block, len(k.block)), max(backend, len(k.backend))
	}
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(strings.Compare(a.block, b.block), strings.Compare(a.backend, b.backend))
	})
	fmt.Fprintf(out, "%-*s  %-*s  set-ups   run  passed  failed  not offered\n", block, "block", backend, "backend")
	line := func(k key, c counts) {
		fmt.Fprintf(out, "%-*s  %-*s  %7d  %4d  %6d  %6d  %11d\n", block, k.block, backend, k.backend, c.suites, c.passed+c.failed, c.passed, c.failed, c.absent)
	}
	var total counts
	for _, k := range keys {
		line(k, rows[k])
		total.add(rows[k])
	}
	line(key{"all", ""}, total)
	fmt.Fprintln(out, "\nNot offered:")
	for _, k := range keys {
		if c := rows[k]; len(c.lacks) > 0 {
			fmt.Fprintf(out, "  %s of %s: %s\n", k.block, k.backend, strings.Join(c.lacks, "; "))
		}
	}
}

// missing are the components of the reference page on whose backend no suite of their block ran.
func missing(page io.Reader, rows map[key]counts) ([]key, error) {
	var out []key
	backend, seen := "", 0
	lines := bufio.NewScanner(page)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "## "); ok {
			backend = name
			continue
		}
		typ, ok := strings.CutPrefix(lines.Text(), "### `")
		if !ok {
			continue
		}
		seen++
		block, _, _ := strings.Cut(typ, ".")
		k := key{block, backend}
		if _, ran := rows[k]; !ran && !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	if seen == 0 {
		return nil, fmt.Errorf("the reference page lists no component; has its form changed?")
	}
	return out, lines.Err()
}
