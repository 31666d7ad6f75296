package middleware_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/api/httpapi/middleware"
	"github.com/mecha-project/mecha/components/conf"
)

var update = flag.Bool("update", false, "rewrite the table of the middleware reference")

// reference is the page as the code would have it: the prose that is there, the table ours.
func reference(page string) string {
	const begin, end = "<!-- begin table -->\n", "<!-- end table -->\n"
	head, rest, _ := strings.Cut(page, begin)
	_, tail, _ := strings.Cut(rest, end)
	var b strings.Builder
	b.WriteString(head + begin)
	b.WriteString("| Type | What it does | Key | Value | Default |\n|---|---|---|---|---|\n")
	for _, f := range middleware.All() {
		for i, d := range conf.Describe(f.Config()) {
			typ, doc := "", ""
			if i == 0 {
				typ, doc = "`"+f.Type+"`", f.Doc
			}
			key := "`" + d.Name + "`"
			for _, a := range d.Aliases {
				key += " or `" + a + "`"
			}
			value := d.Type
			if len(d.Enum) > 0 {
				value = strings.Join(d.Enum, ", ")
			}
			def := d.Default
			if d.Required {
				def = "required"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", typ, doc, key, value, def)
		}
	}
	b.WriteString(end + tail)
	return b.String()
}

func TestReferencePage(t *testing.T) {
	path := filepath.Join("..", "..", "..", "docs", "reference", "middleware.md")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := reference(string(page))
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(page)); diff != "" {
		t.Errorf("docs/reference/middleware.md is not what the code reads; run go test ./api/httpapi/middleware -run TestReferencePage -update\n%s", diff)
	}
}

// The list is what commands search and show: sorted, complete, without doubles.
func TestAll(t *testing.T) {
	last := ""
	for _, f := range middleware.All() {
		if f.Type <= last || f.Doc == "" || !strings.HasSuffix(f.Doc, ".") || f.Config == nil || f.Open == nil {
			t.Errorf("%s is out of order or not complete", f.Type)
		}
		last = f.Type
	}
}
