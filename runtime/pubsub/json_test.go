package pubsub

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/mecha-project/mecha/runtime/identity"
)

// Inside tests: these functions face outside bytes and have an exact model in encoding/json.

var jsonSeeds = []string{
	`{"a":1,"b":[true,false,null],"c":{"d":"x"}}`, ` { "a" : [ ] , "b" : { } } `, `"<&>\u2028 é"`, "\"\u2028\u2029\"",
	`-0.5e+10`, `01`, `-`, `1.`, `1e`, `"\x"`, `"\u12g4"`, `"unended`, `[1,]`, `{"a":}`, `{"a" 1}`, `{,}`, `tru`, ``, ` `, `[[[[]]]]`,
	"\"\xff\xfe\"", "\"a\tb\"", `{"a":1}x`, `"\\"`, `"\ud800"`, "\"\x7f\"", `[1 2]`, `{"a":1,}`, `nulll`,
}

func FuzzJSON(f *testing.F) {
	for _, s := range jsonSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		got := validJSON(src)
		if want := json.Valid(src); got != want {
			t.Fatalf("validJSON(%q) = %v, want %v", src, got, want)
		}
		if !got {
			return
		}
		out := appendJSON(nil, src)
		var compact, want bytes.Buffer
		if err := json.Compact(&compact, bytes.ToValidUTF8(src, []byte(`\ufffd`))); err != nil {
			t.Fatal(err)
		}
		json.HTMLEscape(&want, compact.Bytes())
		// ToValidUTF8 replaces a run of bad bytes by one mark, we replace each: compare values.
		if !utf8.Valid(out) || utf8.Valid(src) && !bytes.Equal(out, want.Bytes()) {
			t.Fatalf("appendJSON(%q) = %q, want %q", src, out, want.Bytes())
		}
		if a, b := decode(t, src), decode(t, out); !bytes.Equal(a, b) {
			t.Fatalf("appendJSON(%q) = %q means another value", src, out)
		}
		object := strings.HasPrefix(strings.TrimLeft(string(src), " \t\r\n"), "{")
		if scanObject(src, func(name, value []byte) {
			if !json.Valid(name) || !json.Valid(value) {
				t.Fatalf("member %q: %q of %q is not JSON", name, value, src)
			}
			_ = unquote(name)
		}) != object {
			t.Fatalf("scanObject(%q) disagrees", src)
		}
	})
}

func decode(t *testing.T, src []byte) []byte {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(src))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func FuzzString(f *testing.F) {
	for _, s := range append(jsonSeeds, "a\x00b\b\f\n\r\t\x1f", "\xe2\x80", "日本語\u2028") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := appendString(nil, s); !bytes.Equal(got, want) {
			t.Fatalf("appendString(%q) = %s, want %s", s, got, want)
		}
		if got := appendString(nil, []byte(s)); !bytes.Equal(got, want) {
			t.Fatalf("appendString of bytes %q = %s, want %s", s, got, want)
		}
		var back string
		if err := json.Unmarshal(want, &back); err != nil {
			t.Fatal(err)
		}
		if got := unquote(want); got != back {
			t.Fatalf("unquote(%s) = %q, want %q", want, got, back)
		}
	})
}

func TestJSONDepth(t *testing.T) {
	for _, depth := range []int{100, 9999, 10000, 10001, 2_000_000} {
		src := []byte(strings.Repeat("[", depth) + strings.Repeat("]", depth))
		if got, want := validJSON(src), json.Valid(src); got != want {
			t.Errorf("depth %d: valid = %v, want %v", depth, got, want)
		}
	}
}

func TestProtoCloudEvent(t *testing.T) {
	text := func(num protowire.Number, s string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), s)
	}
	cases := []struct {
		name string
		data []byte
		want bool
	}{
		{"id and source", append(text(1, "id"), text(2, "src")...), true},
		{"attribute", text(5, string(text(1, "name"))), true},
		{"unknown field", protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 7), true},
		{"bad UTF-8 in id", text(1, "\xff"), false},
		{"bad attribute", text(5, "\x0a\xff"), false},
		{"cut short", text(1, "identity")[:4], false},
		{"text", []byte("hello, world"), false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := isProtoCloudEvent(c.data); got != c.want {
				t.Errorf("isProtoCloudEvent(%x) = %v, want %v", c.data, got, c.want)
			}
		})
	}
}

func FuzzProtoCloudEvent(f *testing.F) {
	f.Add([]byte{0x0a, 1, 'a'})
	f.Add([]byte("hello"))
	f.Fuzz(func(t *testing.T, b []byte) { isProtoCloudEvent(b) })
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]float64{0: .5, 1: .5, 2: 1, 3: 2, 7: 32, 8: 60, 1000: 60} {
		for range 50 {
			got := backoff(n).Seconds()
			if got < want*.8 || got > min(want*1.2, 60) {
				t.Errorf("backoff(%d) = %vs, want about %vs", n, got, want)
			}
		}
	}
}

func BenchmarkEnvelope(b *testing.B) {
	object := []byte(`{"order":"` + strings.Repeat("abcdefgh ", 56) + `","items":[` + strings.Repeat(`{"sku":"a-1","n":12},`, 24) + `{}],"note":"<b>"}`)
	cases := map[string]struct {
		contentType string
		data        []byte
	}{
		"json":   {jsonType, object},
		"text":   {textType, bytes.Repeat([]byte("plain text "), 93)},
		"binary": {octetType, bytes.Repeat([]byte{1, 2, 3, 4}, 256)},
	}
	for name, c := range cases {
		b.Run(name, func(b *testing.B) {
			s := New(nil, identity.Self{App: "shop", Namespace: "default"}, Options{})
			r := &PublishRequest{PubSub: "pubsub", Topic: "orders", Data: c.data, ContentType: c.contentType,
				Trace: Trace{Parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
			b.SetBytes(int64(len(c.data)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.message(&rules{}, r, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
