package block_test

import (
	"testing"

	"github.com/mecha-project/mecha/components/block"
)

func state(name string, opts ...block.Option) block.Part {
	return block.StatePart(name, "", func() *struct{} { return &struct{}{} },
		func(block.Env, *struct{}) (block.State, error) { return nil, nil }, opts...)
}

func TestVersionsOfOneType(t *testing.T) {
	first, second := state("sql", block.Alias("pg")), state("sql", block.Alias("pg"), block.Only("v2"))
	first.Doc, second.Doc = "first", "second"
	set, err := block.NewSet(block.Backend{Name: "b", Parts: []block.Part{first, second}})
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string]string{"": "first", "v0": "first", "v1": "first", "v2": "second", "v3": ""} {
		for _, typ := range []string{"state.sql", "state.pg"} {
			if p, ok := set.Find(typ, version); ok != (want != "") || ok && p.Doc != want {
				t.Errorf("%s/%s: got %q, %v; want %q", typ, version, p.Doc, ok, want)
			}
		}
	}
	if types := set.Types(); len(types) != 2 {
		t.Errorf("types %v, want each name once", types)
	}
	if _, err := block.NewSet(block.Backend{Name: "a", Parts: []block.Part{second}}, block.Backend{Name: "b", Parts: []block.Part{second}}); err == nil {
		t.Error("two parts serve one version of a type")
	}
}
