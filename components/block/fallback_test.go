package block_test

import (
	"testing"

	"github.com/mecha-project/mecha/components/block"
)

func TestFallback(t *testing.T) {
	own := block.Part{Kind: block.KindState, Name: "own", Doc: "own"}
	set, err := block.NewSet(block.Backend{Name: "b", Parts: []block.Part{own}})
	if err != nil {
		t.Fatal(err)
	}
	set.Fallback(func(typ, version string) (block.Part, bool) {
		return block.Part{Kind: block.KindState, Name: "other", Doc: "other"}, typ == "state.other" && version == "v1" || typ == "state.own"
	})
	for _, tt := range []struct {
		typ, version, doc string
		ok                bool
	}{
		{"state.own", "v1", "own", true},  // the set wins
		{"state.own", "v9", "own", false}, // a type of the set in another version is not asked elsewhere
		{"state.other", "v1", "other", true},
		{"state.other", "v2", "", false},
	} {
		p, ok := set.Find(tt.typ, tt.version)
		if ok != tt.ok || ok && p.Doc != tt.doc {
			t.Errorf("Find(%s, %s) = %q, %v; want %q, %v", tt.typ, tt.version, p.Doc, ok, tt.doc, tt.ok)
		}
	}
	if n := len(set.Types()); n != 1 {
		t.Errorf("%d types, want those of the set", n)
	}
}
