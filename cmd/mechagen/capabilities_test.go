package main

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/block"
)

const repository = "../.."

// The pages describe the binary, so the two lists of backends name the same ones.
func TestBackendsOfTheBinary(t *testing.T) {
	listed := regexp.MustCompile(`(\w+)\.Backend\(\)`)
	read := func(file string) []string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, m := range listed.FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
		slices.Sort(names)
		return names
	}
	got, want := read("backends.go"), read(filepath.Join(repository, "cmd/mecha/backends.go"))
	if !slices.Equal(got, want) || len(want) == 0 {
		t.Errorf("backends.go lists %q, cmd/mecha/backends.go %q", got, want)
	}
	if len(backends()) != len(got) {
		t.Errorf("%d backends, %d are listed", len(backends()), len(got))
	}
}

// Every optional interface of the blocks has a column: an interface that is no block itself, which
// one with Component inside is.
func TestEveryAbilityHasAColumn(t *testing.T) {
	known := map[string]bool{
		"Component": true, // what all can do
		"Late":      true, // when an ability is known, not one itself
	}
	for _, table := range abilities {
		for _, a := range table.columns {
			known[a.from] = true
		}
	}
	files, err := filepath.Glob(filepath.Join(repository, "components/block/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			i, ok := spec.Type.(*ast.InterfaceType)
			if !ok || !spec.Name.IsExported() || isBlock(i) {
				return true
			}
			switch spec.Name.Name {
			case "StandsFor": // says whom to ask, not what can be done
				return true
			case "LogReader", "Ledger": // parts of Log
				return true
			}
			seen++
			if !known[spec.Name.Name] {
				t.Errorf("block.%s has no column: add it to abilities in capabilities.go, offers[block.%[1]s](…)", spec.Name.Name)
			}
			return true
		})
	}
	if seen < 8 {
		t.Errorf("found %d optional interfaces: does this test still see them?", seen)
	}
}

func isBlock(i *ast.InterfaceType) bool {
	for _, m := range i.Methods.List {
		if id, ok := m.Type.(*ast.Ident); ok && id.Name == "Component" {
			return true
		}
	}
	return false
}

// plain is a state store that can do what the contract asks for and no more.
type plain struct{ block.State }

func (plain) Close(context.Context) error { return nil }

type brief struct{ plain }

func (brief) ExpiresItems() {}

type grouped struct{ plain }

func (grouped) Transact(context.Context, []block.StateOp) error { return nil }
func (grouped) MaxOps() int                                     { return 7 }

func TestCapabilities(t *testing.T) {
	part := func(name string, s block.State, opts ...block.Option) block.Part {
		return block.StatePart(name, "", func() *struct{} { return &struct{}{} }, func(block.Env, *struct{}) (block.State, error) { return s, nil }, opts...)
	}
	page, err := capabilities([]block.Backend{
		{Name: "two", Parts: []block.Part{part("plain", plain{}), part("brief", brief{}, block.Only("v2"))}},
		{Name: "one", Parts: []block.Part{part("grouped", grouped{})}},
	}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(page, "## State")
	if i < 0 || strings.Contains(page, "## Locks") {
		t.Fatalf("want the table of state and no other:\n%s", page)
	}
	const want = `## State

| component | etags, first-write | strong reads | transactions | time to live | several keys in one exchange |
|---|---|---|---|---|---|
| [` + "`state.brief`" + `](../../components/two/README.md) version v2 | yes | yes | – | yes | – |
| [` + "`state.grouped`" + `](../../components/one/README.md) | yes | yes | yes, of 7 operations at most | – | – |
| [` + "`state.plain`" + `](../../components/two/README.md) | yes | yes | – | – | – |
`
	// Columns may be added; those above stay.
	if got := page[i:]; !sameCells(got, want) {
		t.Errorf("got\n%s\nwant, perhaps with more columns,\n%s", got, want)
	}
}

func sameCells(got, want string) bool {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	if len(g) != len(w) {
		return false
	}
	for i := range w {
		if !strings.HasPrefix(g[i], strings.TrimSuffix(w[i], "|")) && g[i] != w[i] {
			return false
		}
	}
	return true
}

// A component that must be set is opened with an example of its README.
func TestExamples(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "components", "x")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	readme := "```yaml\nspec: {type: state.other, metadata: [{name: place, value: elsewhere}]}\n```\ntext\n```yaml\nnot: [yaml\n```\n```sh\nspec:\n```\n" +
		"```yaml\nspec:\n  type: state.x\n  metadata:\n  - {name: place, value: here}\n  - {name: word, secretKeyRef: {name: n, key: k}}\n```\n"
	if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte(readme), 0o600); err != nil {
		t.Fatal(err)
	}
	type config struct{ Place, Word string }
	var opened []config
	x := block.StatePart("x", "", func() *config { return &config{} }, func(_ block.Env, c *config) (block.State, error) {
		opened = append(opened, *c)
		if c.Place == "" {
			return nil, os.ErrInvalid
		}
		return plain{}, nil
	})
	if _, err := capabilities([]block.Backend{{Name: "x", Parts: []block.Part{x}}}, root); err != nil {
		t.Fatal(err)
	}
	if want := []config{{}, {"here", "a secret"}}; !slices.Equal(opened, want) {
		t.Errorf("opened with %q, want %q", opened, want)
	}
	if _, err := capabilities([]block.Backend{{Name: "y", Parts: []block.Part{x}}}, root); err == nil || !strings.Contains(err.Error(), "components/y/README.md") {
		t.Errorf("without a README: %v, want an error that names it", err)
	}
}
