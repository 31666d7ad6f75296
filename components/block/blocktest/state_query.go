package blocktest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// stateQuery checks that what is asked for is found, of the prefix and nothing else, page by page.
func stateQuery(s *stateTest) {
	able, ok := s.store.(block.StateQuery)
	if !ok {
		return
	}
	if !able.Queries() {
		if _, err := able.Query(s.ctx(), block.StateSearch{}); fault.Of(err) != fault.Unsupported {
			s.Errorf("Query of a store that has none: %v, want fault.Unsupported", err)
		}
		return
	}
	for i := range 7 {
		s.set(block.StateWrite{Key: s.key(fmt.Sprint(i)), JSON: true, Value: fmt.Appendf(nil, `{"n": %d, "of": {"kind": "%s"}}`, 5*i, []string{"even", "odd"}[i%2])})
	}
	s.set(block.StateWrite{Key: s.key("actor||7"), JSON: true, Value: []byte(`{"n": 0, "of": {"kind": "even"}}`)})
	s.set(block.StateWrite{Key: "x" + s.key("7"), JSON: true, Value: []byte(`{"n": 0, "of": {"kind": "even"}}`)})
	s.set(block.StateWrite{Key: s.key("bytes"), Value: []byte("\x00n\xff")})
	is := func(op block.StateFilterOp, path string, v ...any) block.StateFilter {
		return block.StateFilter{Op: op, Path: strings.Split(path, "."), Values: v}
	}
	even, large := is(block.FilterEQ, "of.kind", "even"), is(block.FilterGE, "n", json.Number("10"))
	for name, tt := range map[string]struct {
		filter *block.StateFilter
		want   string
	}{
		"all":         {nil, "0 1 2 3 4 5 6 bytes"},
		"text":        {&even, "0 2 4 6"},
		"number":      {&large, "2 3 4 5 6"},
		"both":        {&block.StateFilter{Op: block.FilterAnd, Filters: []block.StateFilter{even, large}}, "2 4 6"},
		"either":      {&block.StateFilter{Op: block.FilterOr, Filters: []block.StateFilter{even, large}}, "0 2 3 4 5 6"},
		"one of":      {&block.StateFilter{Op: block.FilterIn, Path: []string{"n"}, Values: []any{json.Number("5"), json.Number("1.5e1"), "x"}}, "1 3"},
		"not there":   {&block.StateFilter{Op: block.FilterNE, Path: []string{"no"}, Values: []any{"x"}}, ""},
		"a quotation": {&block.StateFilter{Op: block.FilterEQ, Path: []string{`n' OR 'x`}, Values: []any{`' OR ''='`}}, ""},
	} {
		keys, token := s.find(able, block.StateSearch{Prefix: s.key(""), Apart: "||", Filter: tt.filter})
		if slices.Sort(keys); strings.Join(keys, " ") != tt.want || token != "" {
			s.Errorf("%s: found %v, token %q; want %s", name, keys, token, tt.want)
		}
	}
	q := block.StateSearch{Prefix: s.key(""), Apart: "||", Filter: &even, Sort: []block.StateOrder{{Path: []string{"n"}, Desc: true}}, Limit: 3}
	first, token := s.find(able, q)
	q.Token = token
	second, end := s.find(able, q)
	if got := fmt.Sprint(first, second); token == "" || end != "" || got != "[6 4 2] [0]" {
		s.Errorf("pages %s, tokens %q and %q; want [6 4 2] [0]", got, token, end)
	}
	if _, err := able.Query(s.ctx(), block.StateSearch{Token: "no token"}); fault.Of(err) != fault.Invalid {
		s.Errorf("a token that is none: %v, want fault.Invalid", err)
	}
}

// find gives the keys of what is found, and checks that each item is what a read gives.
func (s *stateTest) find(able block.StateQuery, q block.StateSearch) (keys []string, token string) {
	s.Helper()
	found, err := able.Query(s.ctx(), q)
	if err != nil {
		s.Fatalf("Query(%+v): %v", q, err)
	}
	for _, it := range found.Items {
		read := s.get(it.Key)
		if it.Err != nil || !it.Exists || string(it.Value) != string(read.Value) || it.ETag != read.ETag {
			s.Errorf("found %+v, read %+v", it, read)
		}
		keys = append(keys, strings.TrimPrefix(it.Key, q.Prefix))
	}
	return keys, found.Token
}
