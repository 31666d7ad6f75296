package sqlstate_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlstate"
)

// within does what a database does with a page's condition.
func within(p sqlstate.Page, key string) bool {
	return (key > p.From || key == p.From && !p.Begun) && (p.Before == "" || key < p.Before)
}

// A page without a token has exactly the keys with its prefix.
func FuzzPage(f *testing.F) {
	for _, s := range []string{"", "a", "a||", "a|}", "ü", "a\ud7ff", "a\ue000", "a\U0010ffff", "\U0010ffff\U0010ffff", "\x7f", "\u07ff", "\uffff", "b"} {
		for _, k := range []string{"a||k", "", "b", "a\ue000", "\U0010ffff", "\u0800", "\U00010000"} {
			f.Add(s, k)
		}
	}
	f.Fuzz(func(t *testing.T, prefix, key string) {
		if !utf8.ValidString(key) || strings.Contains(key, "\x00") {
			return
		}
		p, err := new(sqlstate.Pager).Page("op", prefix, "", 10, false)
		if err != nil {
			if utf8.ValidString(prefix) && !strings.Contains(prefix, "\x00") {
				t.Fatalf("prefix %q: %v", prefix, err)
			}
			return
		}
		for _, k := range []string{key, prefix + key, prefix} {
			if got, want := within(p, k), strings.HasPrefix(k, prefix); got != want {
				t.Errorf("prefix %q, key %q: %v, want %v (before %q)", prefix, k, got, want, p.Before)
			}
		}
		if strings.HasPrefix(key, prefix) {
			next, err := new(sqlstate.Pager).Page("op", prefix, block.PageToken(prefix, key), 10, false)
			if err != nil || within(next, key) || !within(next, key+"a") {
				t.Errorf("behind %q: %+v, %v", key, next, err)
			}
		}
	})
}

func TestPageRefuses(t *testing.T) {
	var g sqlstate.Pager
	for name, err := range map[string]error{
		"limit 0":           second(g.Page("op", "a", "", 0, false)),
		"a prefix with NUL": second(g.Page("op", "a\x00", "", 1, false)),
		"no text":           second(g.Page("op", "a\xff", "", 1, false)),
	} {
		if fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	// A token with the right sum and a key that nobody can have.
	err := second(g.Page("op", "a", block.PageToken("a", "a\xff"), 1, false))
	if fault.ReasonOf(err) != fault.BadToken {
		t.Errorf("a made up token: %v, want a bad token", err)
	}
}

func second(_ sqlstate.Page, err error) error { return err }

// A page asks for as many rows as the ones before suggest, and gives up what is much larger.
func TestPageSizes(t *testing.T) {
	var g sqlstate.Pager
	page := func(limit, size int, keysOnly bool) (asked, got int, early bool, next string) {
		t.Helper()
		p, err := g.Page("op", "", "", limit, keysOnly)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		items, early, err := p.Fill(func() bool { n++; return n <= p.Limit }, func() (block.StateItem, error) {
			return block.StateItem{Key: fmt.Sprint(n), Value: make([]byte, size)}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return p.Limit, len(items), early, p.Token("", items, early)
	}
	if asked, got, early, next := page(1000, 100, false); asked != 1000 || got != 1000 || early || next == "" {
		t.Errorf("small items: asked for %d, got %d, early %v, next %q", asked, got, early, next)
	}
	if _, got, early, next := page(1000, 1<<20, false); got != 8 || !early || next == "" {
		t.Errorf("items that are larger than thought: got %d, early %v, next %q", got, early, next)
	}
	if asked, _, early, _ := page(1000, 1<<20, false); asked != 4 || early {
		t.Errorf("large items again: asked for %d, early %v", asked, early)
	}
	if asked, _, _, _ := page(3, 64<<20, false); asked != 3 {
		t.Errorf("with limit 3: asked for %d", asked)
	}
	if asked, _, _, _ := page(1000, 0, true); asked != 1000 {
		t.Errorf("keys only: asked for %d", asked)
	}
	page(1000, 10, false) // four small ones
	if asked, _, _, _ := page(1000, 10, false); asked != 1000 {
		t.Errorf("small items again: asked for %d", asked)
	}
}

func TestPageWhere(t *testing.T) {
	var g sqlstate.Pager
	mark := func(n int) string { return fmt.Sprint("$", n) }
	for _, c := range []struct {
		prefix, token, text string
		args                []any
	}{
		{"a", "", "k >= $1 AND k < $2 ORDER BY k LIMIT $3", []any{"a", "b", int64(7)}},
		{"a", block.PageToken("a", "ab"), "k > $1 AND k < $2 ORDER BY k LIMIT $3", []any{"ab", "b", int64(7)}},
		{"", block.PageToken("", "ab"), "k > $1 ORDER BY k LIMIT $2", []any{"ab", int64(7)}},
	} {
		p, err := g.Page("op", c.prefix, c.token, 7, true)
		if err != nil || p.Where("k", mark) != c.text || !slices.Equal(p.Args(), c.args) {
			t.Errorf("%q behind %q: %s %v, %v; want %s %v", c.prefix, c.token, p.Where("k", mark), p.Args(), err, c.text, c.args)
		}
	}
}

func TestBeside(t *testing.T) {
	long := strings.Repeat("t", 63)
	for table, want := range map[string]string{"state": "state_fences", "s.state": "s.state_fences", "": "_fences"} {
		if got := sqlstate.Beside(table, "_fences"); got != want {
			t.Errorf("Beside(%q) = %q, want %q", table, got, want)
		}
	}
	a, b := sqlstate.Beside(long, "_fences"), sqlstate.Beside(long[:62]+"u", "_fences")
	if len(a) != 63 || len(b) != 63 || a == b || a == long || sqlstate.CheckName("k", a) != nil {
		t.Errorf("long names become %q and %q", a, b)
	}
	if got := sqlstate.Beside("s."+long, "_fences"); got != "s."+a {
		t.Errorf("with a schema: %q", got)
	}
	if got := sqlstate.Beside(long[:56], "_fences"); got != long[:56]+"_fences" {
		t.Errorf("a name that fits: %q", got)
	}
}

func TestDigits(t *testing.T) {
	last := ""
	for _, n := range []uint64{0, 9, 10, 99, 1 << 53, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
		if d := sqlstate.Digits(n); len(d) != 20 || d <= last {
			t.Errorf("Digits(%d) = %q, after %q", n, d, last)
		} else {
			last = d
		}
	}
}
