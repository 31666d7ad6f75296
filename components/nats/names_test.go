package nats

import (
	"regexp"
	"strings"
	"testing"

	natsgo "github.com/nats-io/nats.go"

	"github.com/google/go-cmp/cmp"
)

// What key-value tools accept as a key.
var validKey = regexp.MustCompile(`^[-/_=.a-zA-Z0-9]+$`)

func TestKeys(t *testing.T) {
	for key, want := range map[string]string{
		"":                 "=",
		"a":                "a",
		"app||order/1":     "app.order/1",
		"app||":            "app.=",
		"||":               "=.=",
		"a|||b":            "a.=7Cb",
		"a||||b":           "a.=.b",
		"a.b":              "a=2Eb",
		"*":                "=2A",
		">":                "=3E",
		"a b":              "a=20b",
		"=":                "=3D",
		"ü":                "=C3=BC",
		"a\r\n":            "a=0D=0A",
		"actor||type||1||": "actor.type.1.=",
	} {
		got, err := appendKey(nil, "test", key)
		if err != nil || string(got) != want {
			t.Errorf("key %q is encoded %q, %v; want %q", key, got, err, want)
		}
	}
	for _, bad := range []string{"", ".", "a..b", "a.", "=4", "=zz", "=4g", "a=", "a=4"} {
		if got, err := parseKey(bad); err == nil {
			t.Errorf("subject %q is decoded %q, want an error", bad, got)
		}
	}
}

func FuzzKey(f *testing.F) {
	for _, s := range []string{"", "a", "a||b", "|||", "=", "a.b", "ü\x00\xff", "*.>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		enc, err := appendKey(nil, "test", key)
		if err != nil {
			if len(key) <= maxEncoded/3 {
				t.Fatalf("key %q is refused: %v", key, err)
			}
			return
		}
		subject := string(enc)
		if !validKey.MatchString(subject) || strings.Contains("."+subject+".", "..") {
			t.Errorf("key %q is encoded %q, which is no key", key, subject)
		}
		if back, err := parseKey(subject); err != nil || back != key {
			t.Errorf("key %q came back as %q, %v", key, back, err)
		}
	})
}

// Subjects written by others may be encoded differently; what they mean survives a round trip.
func FuzzSubject(f *testing.F) {
	for _, s := range []string{"a", "a.b", "=", "=.=", "=41", "a=7C", "x=7C.=7Cy"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, subject string) {
		key, err := parseKey(subject)
		if err != nil {
			return
		}
		again, err := appendKey(nil, "test", key)
		if err != nil {
			return
		}
		if back, err := parseKey(string(again)); err != nil || back != key {
			t.Errorf("subject %q means key %q, which encodes as %q and means %q, %v", subject, key, again, back, err)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add("name", "value")
	f.Add("", "")
	f.Add("a: b\r\n", " x\r\n\r\nInjected: 1")
	f.Add("%41", "%zz\x00\xff")
	f.Fuzz(func(t *testing.T, name, value string) {
		m := natsgo.NewMsg("s")
		setMetadata(m.Header, map[string]string{name: value})
		for k, v := range m.Header {
			if strings.ContainsAny(k+v[0], "\r\n\x00") || strings.TrimSpace(v[0]) != v[0] || strings.ContainsAny(k, ": ") {
				t.Errorf("metadata %q=%q becomes header %q: %q", name, value, k, v)
			}
		}
		if diff := cmp.Diff(map[string]string{name: value}, metadataOf(m.Header)); diff != "" {
			t.Errorf("metadata came back different:\n%s", diff)
		}
	})
}

func TestObjectNames(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"", "statestore", "a b", "a_b", "a.b", "a/b", "ü", strings.Repeat("n", 48), strings.Repeat("n", 49), strings.Repeat("n", 50), "*", ">"} {
		got := objectName(name)
		if !regexp.MustCompile(`^[-_a-zA-Z0-9]{1,64}$`).MatchString(got) {
			t.Errorf("name %q becomes %q", name, got)
		}
		if other, dup := seen[got]; dup {
			t.Errorf("names %q and %q both become %q", name, other, got)
		}
		seen[got] = name
	}
	if objectName("statestore") != "statestore" {
		t.Errorf("a plain name changes")
	}
	if shortHash("a", "b c") == shortHash("a b", "c") {
		t.Errorf("group and topic can be confused")
	}
}

func TestETags(t *testing.T) {
	for _, bad := range []string{"", "0", "-1", "+1", "01", "A", "1.", "1.0x", ".1", "1.-", "1.01", "zzzzzzzzzzzzzzzzzzzz", "1 ", "1.zzzzzzzzzzzzzzzzzz"} {
		if v, err := parseETag("test", bad); err == nil {
			t.Errorf("etag %q is accepted as %+v", bad, v)
		}
	}
	for _, good := range []string{"1", "10", "zz", "a.mh0p1x2y"} {
		v, err := parseETag("test", good)
		if err != nil || v.etag() != good {
			t.Errorf("etag %q: %+v, %v", good, v, err)
		}
	}
}
