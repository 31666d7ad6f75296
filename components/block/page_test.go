package block_test

import (
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

func TestPageToken(t *testing.T) {
	for _, c := range []struct{ prefix, last string }{{"", ""}, {"", "a"}, {"a||", "a||"}, {"a||", "a||b\x00\xff"}, {"ü", "ü键"}} {
		token := block.PageToken(c.prefix, c.last)
		last, begun, err := block.PageAfter("op", c.prefix, token)
		if err != nil || !begun || last != c.last {
			t.Errorf("PageAfter(%q, %q) = %q, %v, %v; want %q", c.prefix, token, last, begun, err, c.last)
		}
		if _, _, err := block.PageAfter("op", c.prefix+"x", token); fault.ReasonOf(err) != fault.BadToken {
			t.Errorf("a token of prefix %q with another: %v, want a bad token", c.prefix, err)
		}
	}
	if _, begun, err := block.PageAfter("op", "a", ""); begun || err != nil {
		t.Errorf("the empty token: %v, %v", begun, err)
	}
}

func FuzzPageToken(f *testing.F) {
	f.Add("a||", block.PageToken("a||", "a||b"))
	f.Add("", "AAAAAA")
	f.Fuzz(func(t *testing.T, prefix, token string) {
		last, begun, err := block.PageAfter("op", prefix, token)
		switch {
		case err != nil && (fault.Of(err) != fault.Invalid || fault.ReasonOf(err) != fault.BadToken):
			t.Errorf("%v is no bad token", err)
		case err == nil && begun != (token != ""):
			t.Errorf("token %q: begun is %v", token, begun)
		case begun && block.PageToken(prefix, last) != token:
			t.Errorf("token %q of %q is read as %q, which has another", token, prefix, last)
		}
	})
}
