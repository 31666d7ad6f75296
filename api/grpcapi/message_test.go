package grpcapi_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/fault"
)

func TestMessagesAsABody(t *testing.T) {
	var body []byte
	want := [][]byte{[]byte("one"), {}, []byte("three in parts"), bytes.Repeat([]byte("x"), 200<<10)}
	body = grpcapi.AppendMessage(body, want[0])
	body = grpcapi.AppendMessage(body)
	body = grpcapi.AppendMessage(body, []byte("three "), []byte("in parts"))
	body = grpcapi.AppendMessage(body, want[3])
	if got := body[:8]; string(got) != "\x00\x00\x00\x00\x03one" {
		t.Errorf("the first message is %q; the prefix is gRPC's own", got)
	}
	for name, r := range map[string]io.Reader{"at once": bytes.NewReader(body), "byte by byte": iotest.OneByteReader(bytes.NewReader(body)), "with its end": iotest.DataErrReader(bytes.NewReader(body))} {
		got, err := grpcapi.ReadMessages(r, 0)
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s: ended with %v", name, err)
		}
		if d := cmp.Diff(want, got, cmp.Comparer(bytes.Equal)); d != "" {
			t.Errorf("%s (-want +got):\n%.300s", name, d)
		}
	}
	rest := body
	for i := range want {
		var msg []byte
		var err error
		if msg, rest, err = grpcapi.CutMessage(rest); err != nil || !bytes.Equal(msg, want[i]) {
			t.Fatalf("message %d: %d bytes, %v", i, len(msg), err)
		}
	}
	if len(rest) != 0 {
		t.Errorf("%d bytes are left", len(rest))
	}
}

func TestBodiesThatAreNoMessages(t *testing.T) {
	for name, body := range map[string]string{
		"a prefix cut short": "\x00\x00\x00", "a message cut short": "\x00\x00\x00\x00\x05abc", "a compressed message": "\x01\x00\x00\x00\x01a", "no message at all": "\x00\x00\x00\x00\x05"} {
		if _, _, err := grpcapi.CutMessage([]byte(body)); !errors.Is(err, grpcapi.ErrBadMessage) {
			t.Errorf("%s, whole: %v", name, err)
		}
		if _, err := grpcapi.ReadMessages(strings.NewReader(body), 0); !errors.Is(err, grpcapi.ErrBadMessage) {
			t.Errorf("%s, streamed: %v", name, err)
		}
	}
	if _, err := grpcapi.ReadMessages(strings.NewReader("\x00\x00\x00\x00\x05hello"), 4); fault.Of(err) != fault.TooLarge {
		t.Errorf("over the limit: %v", err)
	}
	broken := errors.New("broken")
	if _, err := grpcapi.ReadMessages(io.MultiReader(strings.NewReader("\x00\x00\x00\x00\x05he"), iotest.ErrReader(broken)), 0); !errors.Is(err, broken) {
		t.Errorf("the source's own error became %v", err)
	}
}

// A length is a claim: memory grows with the bytes that come.
func TestAClaimedLengthCostsNothing(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := grpcapi.ReadMessages(strings.NewReader("\x00\x7f\xff\xff\xffhello"), 0)
	runtime.ReadMemStats(&after)
	if grew := after.TotalAlloc - before.TotalAlloc; grew > 1<<20 || err == nil {
		t.Errorf("5 bytes took %d bytes of memory, %v", grew, err)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x00\x03one\x00\x00\x00\x00\x01x"))
	f.Add([]byte("\x01\x00\x00\x00\x01a"))
	f.Add([]byte("\x00\xff\xff\xff\xffabc"))
	f.Fuzz(func(t *testing.T, body []byte) {
		streamed, err := grpcapi.ReadMessages(bytes.NewReader(body), 0)
		var whole [][]byte
		var cutErr error
		for rest := body; len(rest) > 0; {
			var msg []byte
			if msg, rest, cutErr = grpcapi.CutMessage(rest); cutErr != nil {
				break
			}
			whole = append(whole, msg)
		}
		if d := cmp.Diff(whole, streamed, cmp.Comparer(bytes.Equal)); d != "" {
			t.Fatalf("whole and streamed differ:\n%s", d)
		}
		if errors.Is(err, io.EOF) != (cutErr == nil) {
			t.Fatalf("whole ends with %v, streamed with %v", cutErr, err)
		}
		var again []byte
		for _, m := range whole {
			again = grpcapi.AppendMessage(again, m)
		}
		if !bytes.HasPrefix(body, again) {
			t.Fatalf("%q was read, %q is written", body, again)
		}
	})
}
