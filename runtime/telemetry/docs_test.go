package telemetry_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

var update = flag.Bool("update", false, "rewrite the metrics reference")

// reference is the page as the code would have it: the prose that is there, the table ours.
func reference(page string) string {
	const begin, end = "<!-- begin table -->\n", "<!-- end table -->\n"
	head, rest, _ := strings.Cut(page, begin)
	_, tail, _ := strings.Cut(rest, end)
	var b strings.Builder
	b.WriteString(head + begin)
	b.WriteString("| Metric | Kind | Labels | Meaning |\n|---|---|---|---|\n")
	for _, d := range telemetry.Defs() {
		labels := slices.Clone(d.Labels)
		slices.Sort(labels)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.Name, d.Kind, strings.Join(labels, ", "), d.Help)
	}
	b.WriteString(end + tail)
	return b.String()
}

func TestReferencePage(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "reference", "metrics.md")
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
		t.Errorf("docs/reference/metrics.md is not what the code emits; run go test ./runtime/telemetry -run TestReferencePage -update\n%s", diff)
	}
}

func TestDefs(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range telemetry.Defs() {
		named := strings.HasPrefix(d.Name, "dapr_") || strings.HasPrefix(d.Name, "mecha_") // the latter have no like in Dapr
		if !named || d.Help == "" || len(d.Labels) == 0 || seen[d.Name] {
			t.Errorf("%+v is incomplete or twice", d)
		}
		seen[d.Name] = true
	}
}
