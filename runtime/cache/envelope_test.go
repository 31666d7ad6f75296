package cache

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var envelopes = []*envelope{
	{value: []byte{}},
	{absent: true, fresh: 1, end: 2, value: []byte{}, stamps: []stamp{{"", 1<<64 - 1}}},
	{sliding: true, shared: true, fresh: 1 << 50, end: 1 << 51, ttl: 9, loadMS: 3, stamps: []stamp{{"", 7}, {"a tag", 8}}, value: []byte("value")},
	{lease: true, until: 5, prior: []byte{1, 2, 3}, value: []byte{}},
	{lease: true, until: 5, prior: []byte{}, value: []byte{}},
}

func TestEnvelope(t *testing.T) {
	for _, e := range envelopes {
		b := e.encode()
		got, err := decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e, got, cmp.AllowUnexported(envelope{}, stamp{})); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		for n := range len(b) - len(e.value) {
			if _, err := decode(b[:n]); err == nil {
				t.Errorf("%d of %d bytes are an envelope", n, len(b))
			}
		}
	}
}

// FuzzDecode decodes what may be in the store, which anybody may have written.
func FuzzDecode(f *testing.F) {
	for _, e := range envelopes {
		f.Add(e.encode())
	}
	f.Add([]byte{envelopeMagic, envelopeVersion, 0xFF})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decode(b)
		if err != nil {
			return
		}
		again, err := decode(e.encode())
		if err != nil {
			t.Fatalf("what was decoded does not encode: %v", err)
		}
		if diff := cmp.Diff(e, again, cmp.AllowUnexported(envelope{}, stamp{}), cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) })); diff != "" {
			t.Errorf("-first +second:\n%s", diff)
		}
	})
}
