package call_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestFields(t *testing.T) {
	tests := []struct {
		name   string
		change func(f *call.Fields)
		want   call.Fields
	}{
		{"add keeps what is there", func(f *call.Fields) { f.Add("A", "3") }, call.Fields{{"A", "1"}, {"b", "x"}, {"a", "2"}, {"A", "3"}}},
		{"set leaves one, at the end", func(f *call.Fields) { f.Set("a", "9") }, call.Fields{{"b", "x"}, {"a", "9"}}},
		{"set of a new name", func(f *call.Fields) { f.Set("c", "y") }, call.Fields{{"A", "1"}, {"b", "x"}, {"a", "2"}, {"c", "y"}}},
		{"del takes all spellings and keeps order", func(f *call.Fields) { f.Del("a") }, call.Fields{{"b", "x"}}},
		{"del of what is not there", func(f *call.Fields) { f.Del("nope") }, call.Fields{{"A", "1"}, {"b", "x"}, {"a", "2"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := call.Fields{{"A", "1"}, {"b", "x"}, {"a", "2"}}
			tt.change(&f)
			if d := cmp.Diff(tt.want, f); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestFieldsLookup(t *testing.T) {
	f := call.Fields{{"Content-Type", "a"}, {"X-Empty", ""}, {"content-type", "b"}}
	tests := []struct {
		name, value string
		found       bool
	}{
		{"content-type", "a", true}, // the first of several
		{"CONTENT-TYPE", "a", true},
		{"x-empty", "", true}, // present and empty is not absent
		{"content-typ", "", false},
		{"", "", false},
		{"content\u2010type", "", false},
	}
	for _, tt := range tests {
		v, ok := f.Lookup(tt.name)
		if v != tt.value || ok != tt.found || f.Get(tt.name) != tt.value {
			t.Errorf("Lookup(%q) = %q, %v; want %q, %v", tt.name, v, ok, tt.value, tt.found)
		}
	}
	var none call.Fields
	if _, ok := none.Lookup("x"); ok {
		t.Error("the zero value is empty")
	}
	none.Del("x")
	none.Set("x", "1")
	if none.Get("X") != "1" {
		t.Error("the zero value is ready to use")
	}
}

type closer struct {
	io.Reader
	io.Writer
	closed int
	err    error
}

func (c *closer) Close() error { c.closed++; return c.err }

func TestResponseCloseReleasesEverything(t *testing.T) {
	broken := errors.New("broken")
	stream, upgrade, held := &closer{err: broken}, &closer{err: broken}, &closer{}
	if err := (*call.Response)(nil).Close(); err != nil {
		t.Errorf("closing nil: %v", err)
	}
	if err := (&call.Response{}).Close(); err != nil {
		t.Errorf("closing an answer without a body: %v", err)
	}
	if err := (&call.Response{Stream: stream, Held: held}).Close(); !errors.Is(err, broken) || stream.closed != 1 || held.closed != 1 {
		t.Errorf("stream closed %d×, held %d×, error %v; want 1, 1 and the stream's error", stream.closed, held.closed, err)
	}
	if err := (&call.Response{Upgrade: upgrade}).Close(); !errors.Is(err, broken) || upgrade.closed != 1 {
		t.Errorf("upgrade closed %d×, error %v", upgrade.closed, err)
	}
}

func TestResponseGivesBorrowedMemoryBackOnce(t *testing.T) {
	held := &closer{}
	r := &call.Response{Held: held}
	r.Close()
	r.Close()
	if held.closed != 1 {
		t.Errorf("given back %d×; a pooled buffer given back twice has two owners", held.closed)
	}
}

func TestStreamedRequest(t *testing.T) {
	if (&call.Request{Data: []byte("x")}).Streamed() {
		t.Error("a whole body is no stream")
	}
	if !(&call.Request{Stream: io.NopCloser(strings.NewReader(""))}).Streamed() {
		t.Error("a stream is one even when it is empty")
	}
}

func TestCleanPath(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ""},
		{"a", "a"},
		{"a/b", "a/b"},
		{"/a/b/", "a/b"},
		{"//a///b//", "a/b"},
		{"a/./b", "a/b"},
		{"./a", "a"},
		{"a/../b", "b"},
		{"../../etc/passwd", "etc/passwd"},
		{"a/b/../../..", ""},
		{"..", ""},
		{".", ""},
		{"/", ""},
		{"a/..", ""},
		{".hidden", ".hidden"},
		{"a/.hidden/..b", "a/.hidden/..b"},
		{"...", "..."},
		{"a/.../b", "a/.../b"},
		{"a b/ü", "a b/ü"},
		{"a%2fb", "a%2fb"}, // it is decoded already: what looks escaped is text
		{`a\..\b`, `a\..\b`},
	}
	for _, tt := range tests {
		got, err := call.CleanPath(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("CleanPath(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
	for _, bad := range []string{"a#b", "a?b", "a\x00", "\n", "a\x7f", "a/../b?x", "\x1f"} {
		if got, err := call.CleanPath(bad); fault.Of(err) != fault.Invalid {
			t.Errorf("CleanPath(%q) = %q, %v; want an invalid argument", bad, got, err)
		}
	}
}

func FuzzCleanPath(f *testing.F) {
	for _, s := range []string{"", "/", "a/b", "../../x", "a/./b//c/..", "....//", ".", "a/..", "a?b", "\x00", "a/.", ".../..", "/..a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := call.CleanPath(in)
		if err != nil {
			if fault.Of(err) != fault.Invalid || !strings.ContainsFunc(in, func(r rune) bool { return r == '#' || r == '?' || r < 0x20 || r == 0x7f }) {
				t.Fatalf("CleanPath(%q) refused: %v", in, err)
			}
			return
		}
		if got != "" {
			for seg := range strings.SplitSeq(got, "/") {
				if seg == "" || seg == "." || seg == ".." {
					t.Fatalf("CleanPath(%q) = %q has the segment %q", in, got, seg)
				}
			}
		}
		again, err := call.CleanPath(got)
		if err != nil || again != got {
			t.Fatalf("CleanPath is not idempotent: %q, then %q, %v", got, again, err)
		}
	})
}
