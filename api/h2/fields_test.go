package h2

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/mecha-project/mecha/runtime/call"
)

// decoded is what a decoder makes of a block.
func decoded(t testing.TB, d *hpack.Decoder, block []byte) call.Fields {
	t.Helper()
	hs, err := d.DecodeFull(block)
	if err != nil {
		t.Fatalf("decode %x: %v", block, err)
	}
	var fs call.Fields
	for _, h := range hs {
		fs.Add(h.Name, h.Value)
	}
	return fs
}

// Encoder and decoder must agree on the dynamic table through additions, evictions and resizing.
func TestEncoderAgreesWithDecoder(t *testing.T) {
	var e encoder
	e.init()
	d := hpack.NewDecoder(4096, nil)
	rng := rand.New(rand.NewPCG(1, 2))
	names := []string{"content-type", "x-a", "x-b", "grpc-timeout", "user-agent", "authorization", "date"}
	for i := range 5000 {
		var fs call.Fields
		for range rng.IntN(8) {
			value := fmt.Sprint(rng.IntN(60))
			switch rng.IntN(20) {
			case 0:
				value = strings.Repeat("v", rng.IntN(600))
			case 1:
				value = ""
			}
			fs.Add(names[rng.IntN(len(names))], value)
		}
		if rng.IntN(100) == 0 {
			for range 1 + rng.IntN(2) {
				e.setMax(uint32(rng.IntN(5000)))
			}
		}
		block := e.fields(e.begin(nil), fs)
		if got := decoded(t, d, block); fmt.Sprint(got) != fmt.Sprint(fs) && len(got)+len(fs) > 0 {
			t.Fatalf("block %d: %v became %v", i, fs, got)
		}
	}
}

func TestEncoderKeepsWhatRepeats(t *testing.T) {
	var e encoder
	e.init()
	d := hpack.NewDecoder(4096, nil)
	var sizes []int
	for i := range 1000 {
		fs := call.Fields{{Name: "content-type", Value: "application/grpc"}, {Name: "x-tenant", Value: "blue"}, {Name: "x-request", Value: fmt.Sprint(i)}}
		block := e.fields(e.begin(nil), fs)
		if got := decoded(t, d, block); fmt.Sprint(got) != fmt.Sprint(fs) {
			t.Fatalf("%v became %v", fs, got)
		}
		sizes = append(sizes, len(block))
	}
	slices.Sort(sizes)
	if got, want := sizes[len(sizes)/2], 2+2+len("x-request")+1+3; got > want {
		t.Errorf("most blocks have %d bytes, want at most %d: two fields as an index each", got, want)
	}
}

func TestEncoderLeavesOut(t *testing.T) {
	var e encoder
	e.init()
	d := hpack.NewDecoder(4096, nil)
	for range 3 {
		fs := call.Fields{{Name: "Connection", Value: "close"}, {Name: "transfer-encoding", Value: "x"}, {Name: "host", Value: "x"}, {Name: "", Value: "x"},
			{Name: ":path", Value: "/"}, {Name: "a b", Value: "x"}, {Name: "X-Mixed", Value: "a\nb\x00"}}
		if got := decoded(t, d, e.fields(e.begin(nil), fs)); fmt.Sprint(got) != "[{x-mixed a b }]" {
			t.Errorf("got %v", got)
		}
	}
}

func TestSecretsAreNeverIndexed(t *testing.T) {
	var e encoder
	e.init()
	d := hpack.NewDecoder(4096, nil)
	for range 3 {
		hs, err := d.DecodeFull(e.field(e.begin(nil), "dapr-api-token", "s3cret"))
		if err != nil || len(hs) != 1 || !hs[0].Sensitive {
			t.Errorf("got %v, %v", hs, err)
		}
	}
}

func FuzzEncoder(f *testing.F) {
	f.Add("content-type", "application/grpc", uint32(4096))
	f.Add("X-\r\n", "a\r\nb", uint32(0))
	f.Add(":path", "/", uint32(40))
	f.Fuzz(func(t *testing.T, name, value string, table uint32) {
		var e encoder
		e.init()
		d := hpack.NewDecoder(4096, nil)
		e.setMax(table)
		for range 3 {
			for _, fd := range decoded(t, d, e.field(e.begin(nil), name, value)) {
				if !validName(fd.Name) || !validValue(fd.Value) {
					t.Fatalf("%q: %q reached the wire", fd.Name, fd.Value)
				}
			}
		}
	})
}
