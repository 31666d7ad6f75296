package grpcapi_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/fault"
)

func TestTimeouts(t *testing.T) {
	for text, want := range map[string]time.Duration{"1H": time.Hour, "2M": 2 * time.Minute, "99999999S": 99999999 * time.Second, "10m": 10 * time.Millisecond,
		"7u": 7 * time.Microsecond, "0n": 0, "99999999H": math.MaxInt64} {
		if got, ok := grpcapi.ParseTimeout(text); !ok || got != want {
			t.Errorf("%s: %v, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "1", "S", "-1S", "+1S", "1.5S", "1s", "123456789S", "1 S", "S1"} {
		if got, ok := grpcapi.ParseTimeout(text); ok {
			t.Errorf("%q was read as %v", text, got)
		}
	}
	for _, d := range []time.Duration{1, time.Microsecond, 1500 * time.Microsecond, time.Second, 99 * time.Second, time.Hour, 1000 * time.Hour, 24 * 365 * time.Hour, math.MaxInt64} {
		text := grpcapi.FormatTimeout(d)
		back, ok := grpcapi.ParseTimeout(text)
		if !ok || back < d || back > d+d/100+time.Microsecond && d < math.MaxInt64 {
			t.Errorf("%v became %s, which is %v", d, text, back)
		}
	}
	if text := grpcapi.FormatTimeout(-1); text != "0n" {
		t.Errorf("a time that is over became %s", text)
	}
}

func TestMessagesOfStatuses(t *testing.T) {
	for plain, wire := range map[string]string{"": "", "plain text": "plain text", "100%": "100%25", "é": "%C3%A9", "a\nb": "a%0Ab", "\xff": "%EF%BF%BD"} {
		if got := grpcapi.EscapeMessage(plain); got != wire {
			t.Errorf("%q became %q, want %q", plain, got, wire)
		}
	}
	for wire, plain := range map[string]string{"%C3%A9": "é", "%c3%a9": "é", "%": "%", "%2": "%2", "%zz%41": "%zzA"} {
		if got := grpcapi.UnescapeMessage(wire); got != plain {
			t.Errorf("%q was read as %q, want %q", wire, got, plain)
		}
	}
}

func TestContentTypes(t *testing.T) {
	for ctype, want := range map[string]bool{"application/grpc": true, "application/grpc+proto": true, "Application/GRPC;x=y": true, "application/grpc-web": false, "application/grpcx": false, "": false, "application/json": false} {
		if got := grpcapi.IsGRPC(ctype); got != want {
			t.Errorf("%q: %v", ctype, got)
		}
	}
}

func TestBinaryFields(t *testing.T) {
	nothing := func(string) bool { return false }
	got := grpcapi.PlainFields(fields("a-bin", "AP8", "b-bin", "AP8=", "c-bin", "AA,/w==", "d-bin", "***", "x", "a,b", "te", "trailers", "grpc-status", "0"), nothing)
	want := fields("a-bin", "\x00\xff", "b-bin", "\x00\xff", "c-bin", "\x00", "c-bin", "\xff", "x", "a,b")
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("off the wire (-want +got):\n%s", d)
	}
	back := grpcapi.WireFields(nil, fields("A-Bin", "\x00\xff", "x", "é", "y", "ok", "te", "x"), nil)
	if d := cmp.Diff(fields("a-bin", "AP8", "y", "ok"), back); d != "" {
		t.Errorf("onto the wire (-want +got):\n%s", d)
	}
}

func TestMeter(t *testing.T) {
	var body []byte
	want := int64(0)
	for _, m := range []string{"one", "", strings.Repeat("x", 5000)} {
		body = grpcapi.AppendMessage(body, []byte(m))
		want += int64(len(m))
	}
	compressed := append([]byte{1, 0, 0, 0, 2}, "zz"...)
	body, want = append(body, compressed...), want+2
	for _, piece := range []int{1, 3, 7, 1 << 20} {
		if n, err := grpcapi.Measure(body, piece, 5000); n != want || !errors.Is(err, io.EOF) {
			t.Errorf("in pieces of %d: %d bytes, %v", piece, n, err)
		}
		if _, err := grpcapi.Measure(body, piece, 4999); fault.Of(err) != fault.TooLarge {
			t.Errorf("in pieces of %d, over the limit: %v", piece, err)
		}
		for _, cut := range []int{2, 6, len(body) - 1} {
			if _, err := grpcapi.Measure(body[:cut], piece, 0); !errors.Is(err, grpcapi.ErrBadMessage) {
				t.Errorf("cut at %d: %v", cut, err)
			}
		}
	}
	if _, err := grpcapi.Measure([]byte("\x02\x00\x00\x00\x00"), 9, 0); !errors.Is(err, grpcapi.ErrBadMessage) {
		t.Errorf("an unknown flag: %v", err)
	}
}

func TestReadingMessages(t *testing.T) {
	want := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("x"), 200<<10)}
	var body []byte
	for _, m := range want {
		body = grpcapi.AppendMessage(body, m)
	}
	for name, r := range map[string]io.Reader{"at once": bytes.NewReader(body), "byte by byte": iotest.OneByteReader(bytes.NewReader(body)), "with its end": iotest.DataErrReader(bytes.NewReader(body))} {
		got, err := grpcapi.ReadMessages(r, 0)
		if d := cmp.Diff(want, got, cmp.Comparer(bytes.Equal)); d != "" || !errors.Is(err, io.EOF) {
			t.Errorf("%s: ended with %v (-want +got):\n%.300s", name, err, d)
		}
	}
	for _, cut := range []string{"\x00\x00\x00", "\x00\x00\x00\x00\x05abc"} {
		if _, err := grpcapi.ReadMessages(strings.NewReader(cut), 0); status.Code(err) != codes.Internal {
			t.Errorf("%q: %v", cut, err)
		}
	}
	if _, err := grpcapi.ReadMessages(bytes.NewReader(body), 1000); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("over the limit: %v", err)
	}
	// A length is a claim: memory grows with the bytes that come.
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := grpcapi.ReadMessages(strings.NewReader("\x00\x7f\xff\xff\xffhello"), 0)
	runtime.ReadMemStats(&after)
	if grew := after.TotalAlloc - before.TotalAlloc; grew > 1<<20 || err == nil {
		t.Errorf("5 bytes took %d bytes of memory, %v", grew, err)
	}
}

func FuzzTimeout(f *testing.F) {
	for _, s := range []string{"1S", "99999999H", "0n", "x", "18446744073709551615S"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, ok := grpcapi.ParseTimeout(s)
		if d < 0 || !ok && d != 0 {
			t.Fatalf("%q is %v", s, d)
		}
		if back, ok2 := grpcapi.ParseTimeout(grpcapi.FormatTimeout(d)); !ok2 || back < d {
			t.Fatalf("%v became %v", d, back)
		}
	})
}

func FuzzMeter(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x03one\x00\x00\x00\x00\x01x"), uint8(3))
	f.Add([]byte("\x01\x00\x00\x00\x01a"), uint8(1))
	f.Add([]byte("\x00\xff\xff\xff\xffabc"), uint8(9))
	f.Fuzz(func(t *testing.T, body []byte, piece uint8) {
		n, err := grpcapi.Measure(body, 1+int(piece), 1<<20)
		whole, wholeErr := grpcapi.Measure(body, 1<<30, 1<<20)
		if n != whole || fault.Of(err) != fault.Of(wholeErr) {
			t.Fatalf("in pieces %d, %v; at once %d, %v", n, err, whole, wholeErr)
		}
		if msgs, rerr := grpcapi.ReadMessages(bytes.NewReader(body), 1<<20); errors.Is(rerr, io.EOF) && errors.Is(err, io.EOF) {
			total := 0
			for _, m := range msgs {
				total += len(m)
			}
			if int64(total) != n {
				t.Fatalf("%d bytes read, %d counted", total, n)
			}
		}
	})
}
