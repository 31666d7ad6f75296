package link

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/fault"
)

var update = flag.Bool("update", false, "rewrite testdata")

// goldenFrames has one encoding of every message of version 1. Changing any of them breaks peers
// of that version: add a version instead.
func goldenFrames() map[string][]byte {
	own := &hello{minVersion: 1, maxVersion: 1, maxFrame: 65536, maxStreams: 16384, maxHead: 1 << 20,
		streamWindow: 256 << 10, sessionWindow: 64 << 20, greeting: []byte("greeting")}
	req := meta{timeout: 1_500_000_000, headLen: 4, head: []byte("head"), body: []byte("body"), end: true}
	part := meta{headLen: 70000, head: []byte("begin")}
	resp := meta{headLen: 4, head: []byte("head"), body: []byte("body"), trailer: []byte("tail"), end: true}
	return map[string][]byte{
		"hello":         appendHello(nil, helloKind, own),
		"welcome":       appendHello(nil, welcomeKind, own),
		"refuse":        appendRefuse(nil, 1, 1, fault.Denied, "no"),
		"open":          appendOpen(nil, 1, &req),
		"open-part":     appendOpen(nil, 3, &part),
		"reply":         appendReply(nil, 1, &resp),
		"data":          appendData(nil, 1, []byte("body")),
		"end":           appendEnd(nil, 1, []byte("body"), 4, []byte("tail")),
		"more":          appendMore(nil, 3, []byte("rest")),
		"reset":         appendReset(nil, 5, false, fault.Canceled, "enough"),
		"reset-refused": appendReset(nil, 5, true, fault.Exhausted, "later"),
		"stop":          appendStop(nil, 7),
		"credit":        appendCredit(nil, 7, 131072),
		"credit-all":    appendCredit(nil, 0, 33554432),
		"ping":          appendPing(nil, kindPing, 0x0102030405060708),
		"pong":          appendPing(nil, kindPong, 0x0102030405060708),
		"goaway":        appendGoaway(nil, 9, fault.OK, "draining"),
		"goaway-all":    appendGoaway(nil, goawayAll, fault.OK, "draining"),
	}
}

func TestGoldenFrames(t *testing.T) {
	for name, got := range goldenFrames() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", "v1", name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(hex.Dump(got)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if dump := hex.Dump(got); dump != string(want) {
				t.Errorf("encoding changed; got\n%swant\n%s", dump, want)
			}
		})
	}
	files, err := filepath.Glob("testdata/v1/*.golden")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(files), len(goldenFrames()); got != want {
		t.Errorf("%d golden files for %d messages", got, want)
	}
}

func TestGoldenDecode(t *testing.T) {
	decode := func(name string) (header, []byte) {
		t.Helper()
		b := goldenFrames()[name]
		h, perr := parseHeader(b, 64<<10)
		if perr != nil {
			t.Fatalf("%s: %v", name, perr)
		}
		if h.n != len(b)-headerSize {
			t.Fatalf("%s: length %d of %d bytes", name, h.n, len(b))
		}
		return h, b[headerSize:]
	}
	for name, want := range map[string]layout{
		"open":      {timeout: 1_500_000_000, headLen: 4, head: 4, body: 4},
		"open-part": {headLen: 70000, head: 5},
		"reply":     {headLen: 4, head: 4, body: 4, trailer: 4},
	} {
		h, p := decode(name)
		if got, perr := parseLayout(h, p); perr != nil || got != want {
			t.Errorf("%s: %+v %v, want %+v", name, got, perr, want)
		}
	}
	h, p := decode("end")
	body, trailer, n, perr := parseEnd(h, p)
	if perr != nil || string(body) != "body" || string(trailer) != "tail" || n != 4 {
		t.Errorf("end: %q %q %d %v", body, trailer, n, perr)
	}
	k, p, err := readHandshake(&inbuf{src: bytes.NewReader(goldenFrames()["hello"]), buf: make([]byte, 64)}, "HELLO")
	if err != nil || k != helloKind {
		t.Fatalf("hello: kind %d, %v", k, err)
	}
	got, err := parseHello("HELLO", p)
	if err != nil || string(got.greeting) != "greeting" || got.maxStreams != 16384 || got.sessionWindow != 64<<20 {
		t.Errorf("hello: %+v %v", got, err)
	}
}

func TestParseHeaderRejects(t *testing.T) {
	frame := func(n uint32, k kind, flags byte, rsv byte, id uint64) []byte {
		b := appendHeader(nil, int(n), k, flags, id)
		b[6] = rsv
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"payload over the limit", frame(65537, kindData, 0, 0, 1), "over the limit"},
		{"largest length", frame(1<<32-1, kindData, 0, 0, 1), "over the limit"},
		{"unknown critical kind", frame(0, 0x20, 0, 0, 1), "unknown critical"},
		{"kind zero", frame(0, 0, 0, 0, 1), "unknown critical"},
		{"reserved bits", frame(1, kindData, 0, 1, 1), "reserved"},
		{"unknown flag", frame(16, kindOpen, 2, 0, 1), "flags"},
		{"flag on data", frame(1, kindData, 1, 0, 1), "flags"},
		{"open too short", frame(15, kindOpen, 0, 0, 1), "wrong length"},
		{"reply too short", frame(7, kindReply, 0, 0, 1), "wrong length"},
		{"end too short", frame(3, kindEnd, 0, 0, 1), "wrong length"},
		{"empty data", frame(0, kindData, 0, 0, 1), "wrong length"},
		{"empty more", frame(0, kindMore, 0, 0, 1), "wrong length"},
		{"stop with payload", frame(1, kindStop, 0, 0, 1), "wrong length"},
		{"reset text too long", frame(resetFixed+maxText+1, kindReset, 0, 0, 1), "wrong length"},
		{"credit too long", frame(8, kindCredit, 0, 0, 1), "wrong length"},
		{"ping too short", frame(7, kindPing, 0, 0, 0), "wrong length"},
		{"goaway too short", frame(11, kindGoaway, 0, 0, 0), "wrong length"},
		{"ping on a stream", frame(8, kindPing, 0, 0, 1), "stream id"},
		{"goaway on a stream", frame(12, kindGoaway, 0, 0, 1), "stream id"},
		{"data on the session", frame(1, kindData, 0, 0, 0), "stream id"},
		{"open on the session", frame(16, kindOpen, 0, 0, 0), "stream id"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, perr := parseHeader(c.b, 65536)
			if perr == nil || !strings.Contains(perr.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", perr, c.want)
			}
		})
	}
	if _, perr := parseHeader(frame(9, 0x80|0x21, 0xff, 0xff, 77), 65536); perr != nil {
		t.Errorf("unknown skippable kind: %v", perr)
	}
}

func TestParseLayoutRejects(t *testing.T) {
	meta := func(headLen, trailerLen uint32, rest string) []byte {
		b := appendReply(nil, 1, &meta{headLen: int(headLen), body: []byte(rest)})[headerSize:]
		b[4], b[5], b[6], b[7] = byte(trailerLen), byte(trailerLen>>8), byte(trailerLen>>16), byte(trailerLen>>24)
		return b
	}
	for _, c := range []struct {
		name string
		p    []byte
		end  bool
		want string
	}{
		{"end before the head is complete", meta(10, 0, "short"), true, "before the head"},
		{"trailer before the head is complete", meta(10, 1, "short"), false, "before the head"},
		{"trailer without end", meta(1, 1, "ab"), false, "trailer"},
		{"trailer longer than the frame", meta(1, 3, "ab"), true, "trailer"},
		{"trailer of 4 GiB", meta(1, 1<<32-1, "ab"), true, "trailer"},
		{"head of 4 GiB", meta(1<<32-1, 0, "ab"), false, "range"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := header{kind: kindReply, n: len(c.p), id: 1}
			if c.end {
				h.flags = flagEnd
			}
			if _, perr := parseLayout(h, c.p); perr == nil || !strings.Contains(perr.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", perr, c.want)
			}
		})
	}
}
