package policy_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/policy/balance"
)

var update = flag.Bool("update", false, "rewrite docs/reference/policy.md")

// The reference page says what the comments of the structs say, which are what users write.
func TestReference(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "reference", "policy.md")
	got := newReference(t).page()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the page is not up to date; run with -update. -want +got:\n%s", diff)
	}
}

// reference makes the page: types by package and name, and those that are still to be written.
type reference struct {
	t     *testing.T
	types map[string]*ast.TypeSpec
	docs  map[string]string
	order []string
}

func newReference(t *testing.T) *reference {
	r := &reference{t: t, types: map[string]*ast.TypeSpec{}, docs: map[string]string{}}
	for prefix, file := range map[string]string{"": "spec.go", "outlier.": "outlier/config.go", "health.": "health/config.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, s := range g.Specs {
				ts := s.(*ast.TypeSpec)
				r.types[prefix+ts.Name.Name], r.docs[prefix+ts.Name.Name] = ts, g.Doc.Text()
			}
		}
	}
	return r
}

const referenceHead = `# TrafficPolicy

Generated from the structs in ` + "`runtime/policy`" + `; rewrite with ` + "`go test ./runtime/policy -run Reference -update`" + `.
What the fields are good for, with examples that run: [the guide](../guide/policy/README.md).

A TrafficPolicy is a document in a resource folder:

` + "```" + `
apiVersion: mecha.io/v1
kind: TrafficPolicy
metadata:
  name: …        # as refusals and metrics name it
  namespace: …   # only sidecars of this namespace; default all
scopes: [ … ]    # only the sidecars of these app ids; default all
spec: …          # below
` + "```" + `

Fields that do not exist and values of a wrong form stop the start of the sidecar; in a file that changes while it
runs they are reported, and what was in force stays. Durations have units: ` + "`300ms`, `1m30s`" + `.
`

func (r *reference) page() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	r.order = []string{"Spec"}
	for i := 0; i < len(r.order); i++ { // grows while it is written
		r.section(&b, r.order[i])
	}
	b.WriteString("\n## Words\n")
	retry := slices.Compact(slices.Sorted(slices.Values(policy.RetryNames())))
	for _, w := range []struct {
		what  string
		words []string
	}{
		{"Kinds of calls", policy.Kinds()}, {"Outcomes of attempts", call.Outcomes()},
		{"What `retry.on` takes: outcomes, and Envoy's and gRPC's names", retry}, {"Balancing policies", balance.Names()},
	} {
		fmt.Fprintf(&b, "\n%s: `%s`.\n", w.what, strings.Join(w.words, "`, `"))
	}
	return b.String()
}

// section is a struct with the table of its fields.
func (r *reference) section(b *strings.Builder, name string) {
	st, ok := r.types[name].Type.(*ast.StructType)
	if !ok {
		r.t.Fatalf("%s is no struct", name)
	}
	names := map[string]string{} // Go's → YAML's
	for _, f := range st.Fields.List {
		names[f.Names[0].Name] = yamlName(f)
	}
	fmt.Fprintf(b, "\n## %s\n\n%s\n\n| field | type | meaning |\n|---|---|---|\n", title(name), inWords(strings.TrimPrefix(r.docs[name], "Config is what a user writes. "), names))
	for _, f := range st.Fields.List {
		key := yamlName(f)
		if key == "-" {
			continue
		}
		doc := f.Doc.Text()
		if doc == "" {
			doc = f.Comment.Text()
		}
		if doc == "" {
			r.t.Errorf("%s.%s has no comment, so nobody learns what it is for", name, f.Names[0].Name)
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", key, r.kind(name, f.Type), inWords(doc, names))
	}
}

func yamlName(f *ast.Field) string {
	name, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("yaml"), ",")
	return name
}

// title is a type's name on the page.
func title(name string) string {
	switch name {
	case "outlier.Config":
		return "Outlier"
	case "health.Config":
		return "Health"
	}
	_, after, found := strings.Cut(name, ".")
	if found {
		return after
	}
	return name
}

// kind is a field's type in words; a struct's own section is put in line.
func (r *reference) kind(in string, e ast.Expr) string {
	switch x := e.(type) {
	case *ast.StarExpr:
		return r.kind(in, x.X)
	case *ast.ArrayType:
		return "list of " + r.kind(in, x.Elt)
	case *ast.MapType:
		return "map of " + r.kind(in, x.Value)
	case *ast.SelectorExpr:
		name := x.X.(*ast.Ident).Name + "." + x.Sel.Name
		if name == "time.Duration" {
			return "duration"
		}
		return r.link(name)
	case *ast.Ident:
		switch x.Name {
		case "string":
			return "text"
		case "int", "float64":
			return "number"
		case "bool":
			return "true or false"
		case "Words":
			return "word, or list of words"
		}
		if prefix, _, ok := strings.Cut(in, "."); ok {
			return r.link(prefix + "." + x.Name)
		}
		return r.link(x.Name)
	}
	r.t.Fatalf("a field of %s has a type without words: %T", in, e)
	return ""
}

func (r *reference) link(name string) string {
	if r.types[name] == nil {
		r.t.Fatalf("no type is called %s", name)
	}
	if !slices.Contains(r.order, name) {
		r.order = append(r.order, name)
	}
	return fmt.Sprintf("[%s](#%s)", title(name), strings.ToLower(title(name)))
}

var identifier = regexp.MustCompile(`\b[A-Z][A-Za-z0-9]*\b`)

// inWords is a comment as users read it: in one line, with their names for the fields.
func inWords(doc string, names map[string]string) string {
	doc = strings.Join(strings.Fields(doc), " ")
	doc = strings.NewReplacer("see RetryNames", "see [words](#words)", "see Kinds", "see [words](#words)", "see Spec.Subsets", "see `subsets` of [Spec](#spec)", "|", `\|`).Replace(doc)
	doc = identifier.ReplaceAllStringFunc(doc, func(w string) string {
		if key := names[w]; key != "" && key != "-" {
			return "`" + key + "`"
		}
		return w
	})
	if doc != "" && !strings.HasSuffix(doc, ".") {
		doc += "."
	}
	return doc
}
