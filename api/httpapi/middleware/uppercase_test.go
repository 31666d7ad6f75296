package middleware

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

func FuzzUpper(f *testing.F) {
	f.Add([]byte("hello, world"), 1)
	f.Add([]byte("größer ıſɐ 世界"), 2)
	f.Add([]byte("bad \xff\xe4\xb8 end\xe4"), 3)
	f.Fuzz(func(t *testing.T, body []byte, size int) {
		got, err := io.ReadAll(upper(iotest.DataErrReader(&pieces{body, min(max(size, 1), 64)})))
		if err != nil {
			t.Fatal(err)
		}
		whole, used := appendUpper(nil, body, true)
		if used != len(body) || !bytes.Equal(got, whole) {
			t.Fatalf("in pieces %q, whole %q", got, whole)
		}
		if utf8.Valid(body) && string(got) != strings.ToUpper(string(body)) {
			t.Fatalf("got %q, want %q", got, strings.ToUpper(string(body)))
		}
	})
}

// pieces reads a body in pieces of n bytes.
type pieces struct {
	body []byte
	n    int
}

func (s *pieces) Read(p []byte) (int, error) {
	if len(s.body) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.n)], s.body)
	s.body = s.body[n:]
	return n, nil
}

func TestUpperPassesErrorsOn(t *testing.T) {
	broken := errors.New("the app left")
	got, err := io.ReadAll(upper(io.MultiReader(strings.NewReader("ab\xe4\xb8"), iotest.ErrReader(broken))))
	if string(got) != "AB\xe4\xb8" || !errors.Is(err, broken) {
		t.Errorf("got %q, %v; want what came before the error, and the error", got, err)
	}
}
