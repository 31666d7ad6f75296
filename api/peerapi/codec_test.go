package peerapi_test

import (
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mecha-project/mecha/api/peerapi"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

var update = flag.Bool("update", false, "rewrite testdata")

// Sidecars of different versions meet: these bytes are a promise. A change here needs a new
// version directory, and the old one must still be read.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
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
	if d := cmp.Diff(string(want), hex.Dump(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func stream(s string) io.ReadCloser { return io.NopCloser(strings.NewReader(s)) }

var requests = []struct {
	name string
	req  call.Request
}{
	{"request_empty", call.Request{Target: "me"}},
	{"request_http", call.Request{Protocol: call.HTTP, Target: "shop.home", Verb: "POST", Path: "orders/1", Query: "a=b&c", Type: "text/plain",
		Header: call.Fields{{Name: "X-One", Value: "1"}, {Name: "x-one", Value: ""}, {Name: "X-Bytes", Value: "\x00\xff"}}, Data: []byte("whole")}},
	{"request_unary", call.Request{Protocol: call.Unary, Target: "shop", Verb: "PUT", Path: "m", TypeURL: "type.googleapis.com/a.B", Data: make([]byte, 300)}},
	{"request_grpc_stream", call.Request{Protocol: call.GRPC, Target: "shop", Path: "/a.B/C", Stream: stream(""), Length: call.Unknown}},
	{"request_upgrade", call.Request{Target: "shop", Verb: "GET", Path: "ws", Upgrade: "websocket"}},
	{"request_known_length_stream", call.Request{Target: "shop", Verb: "PUT", Path: "m", Stream: stream(""), Length: 1 << 40}},
}

func TestRequestsOnTheWire(t *testing.T) {
	for _, tt := range requests {
		t.Run(tt.name, func(t *testing.T) {
			b := peerapi.AppendRequest(nil, &tt.req)
			golden(t, tt.name, b)
			got, streamed, err := peerapi.DecodeRequest(b)
			if err != nil {
				t.Fatal(err)
			}
			want := tt.req // the body follows the head; only its length is in it
			want.Data, want.Stream = nil, nil
			if !tt.req.Streamed() {
				want.Length = int64(len(tt.req.Data))
			}
			if d := cmp.Diff(&want, got, cmpopts.EquateEmpty()); d != "" || streamed != tt.req.Streamed() {
				t.Errorf("streamed %v (-want +got):\n%s", streamed, d)
			}
		})
	}
}

var answers = []struct {
	name string
	resp call.Response
}{
	{"response_empty", call.Response{Status: 204, Length: 0}},
	{"response_whole", call.Response{Status: 200, Type: "text/plain", Header: call.Fields{{Name: "X-A", Value: "1"}}, Data: []byte("ok")}},
	{"response_head", call.Response{Status: 200, Length: 12345}},
	{"response_stream", call.Response{Status: 599, Stream: stream(""), Length: call.Unknown}},
	{"response_upgraded", call.Response{Status: 101, Upgrade: raw{}, Header: call.Fields{{Name: "Upgrade", Value: "websocket"}}}},
	{"response_grpc_app", call.Response{Status: 200, FromGRPC: true, TypeURL: "t/x", Data: []byte{1}}},
	{"response_grpc_app_failed", call.Response{Status: 200, FromGRPC: true, GRPCStatus: []byte{8, 5}}},
}

func TestAnswersOnTheWire(t *testing.T) {
	for _, tt := range answers {
		t.Run(tt.name, func(t *testing.T) {
			b := peerapi.AppendResponse(nil, &tt.resp)
			golden(t, tt.name, b)
			got, streamed, upgrade, err := peerapi.DecodeAnswer(b)
			if err != nil {
				t.Fatal(err)
			}
			want := tt.resp
			if len(want.Data) > 0 {
				want.Length = int64(len(want.Data))
			}
			want.Data, want.Stream = nil, nil
			want.Upgrade = nil
			if d := cmp.Diff(&want, got); d != "" || streamed != (tt.resp.Stream != nil) || upgrade != (tt.resp.Upgrade != nil) {
				t.Errorf("streamed %v, upgrade %v (-want +got):\n%s", streamed, upgrade, d)
			}
		})
	}
}

func TestErrorsOnTheWire(t *testing.T) {
	late := fault.New("op", fault.Exhausted, "too fast")
	late.After = 1500 * time.Millisecond
	tests := []struct {
		name string
		err  error
		want fault.Error
	}{
		{"error_plain", errors.New("x"), fault.Error{Code: fault.Internal, Reason: fault.PeerAnswered, Msg: "x"}},
		{"error_full", fault.New("op", fault.NotReady, "no app").With(fault.NoApp).WithSent(fault.SentNever),
			fault.Error{Code: fault.NotReady, Reason: fault.NoApp, Sent: fault.SentNever, Msg: "no app"}},
		{"error_after", late, fault.Error{Code: fault.Exhausted, Reason: fault.PeerAnswered, Msg: "too fast", After: 1500 * time.Millisecond}},
		{"error_wrapped", fault.Wrap("outer", fault.Lost, fault.New("op", fault.Denied, "no").With(fault.PolicyRejected).WithSent(fault.SentMaybe)),
			fault.Error{Code: fault.Lost, Reason: fault.PeerRejected, Sent: fault.SentMaybe, Msg: "no"}},
		{"error_rule", fault.New("op", fault.Denied, "not you").With(fault.PolicyRejected).WithSent(fault.SentNever).WithRule("shop-only"),
			fault.Error{Code: fault.Denied, Reason: fault.PeerRejected, Sent: fault.SentNever, Msg: "not you", Rule: "shop-only"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := peerapi.AppendError(nil, tt.err)
			golden(t, tt.name, b)
			tt.want.Op = "peer"
			for what, decode := range map[string]func([]byte) error{
				"answer": func(b []byte) error { _, _, _, err := peerapi.DecodeAnswer(b); return err },
				"end":    func(b []byte) error { _, err := peerapi.DecodeEnd(b); return err },
			} {
				var got *fault.Error
				if err := decode(b); !errors.As(err, &got) {
					t.Fatalf("as %s: %v", what, err)
				}
				if d := cmp.Diff(&tt.want, got); d != "" {
					t.Errorf("as %s (-want +got):\n%s", what, d)
				}
			}
		})
	}
}

func TestTrailersOnTheWire(t *testing.T) {
	if b := peerapi.AppendTrailer(nil, nil); len(b) != 0 {
		t.Errorf("no trailer takes %d bytes", len(b))
	}
	want := call.Fields{{Name: "grpc-status", Value: "0"}, {Name: "x-bin", Value: "\x00\x01"}}
	b := peerapi.AppendTrailer(nil, want)
	golden(t, "trailer", b)
	got, err := peerapi.DecodeEnd(b)
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if fs, err := peerapi.DecodeEnd(nil); fs != nil || err != nil {
		t.Errorf("an end without a trailer: %v, %v", fs, err)
	}
}

// A later version appends; this one must not mind.
func TestBytesBehindAHeadAreLeftAlone(t *testing.T) {
	more := []byte("\xffnews")
	if req, _, err := peerapi.DecodeRequest(append(peerapi.AppendRequest(nil, &requests[1].req), more...)); err != nil || req.Path != "orders/1" {
		t.Errorf("request: %v", err)
	}
	if resp, _, _, err := peerapi.DecodeAnswer(append(peerapi.AppendResponse(nil, &answers[1].resp), more...)); err != nil || resp.Status != 200 {
		t.Errorf("response: %v", err)
	}
	if _, err := peerapi.DecodeEnd(append(peerapi.AppendTrailer(nil, call.Fields{{Name: "a", Value: "b"}}), more...)); err != nil {
		t.Errorf("trailer: %v", err)
	}
}

// Every prefix of a good head is a bad head: nothing is taken for granted.
func TestCutHeadsAreRefused(t *testing.T) {
	check := func(name string, whole []byte, decode func([]byte) error) {
		for n := range len(whole) {
			if n == 0 && name == "trailer" {
				continue // no trailer at all is fine
			}
			err := decode(whole[:n])
			if err == nil {
				t.Errorf("%s: %d of %d bytes were taken for whole", name, n, len(whole))
			} else if fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "malformed") {
				t.Errorf("%s: %d of %d bytes: %v", name, n, len(whole), err)
			}
		}
	}
	for _, tt := range requests {
		check(tt.name, peerapi.AppendRequest(nil, &tt.req), func(b []byte) error { _, _, err := peerapi.DecodeRequest(b); return err })
	}
	for _, tt := range answers {
		check(tt.name, peerapi.AppendResponse(nil, &tt.resp), func(b []byte) error { _, _, _, err := peerapi.DecodeAnswer(b); return err })
	}
	check("trailer", peerapi.AppendTrailer(nil, call.Fields{{Name: "a", Value: "b"}}), func(b []byte) error { _, err := peerapi.DecodeEnd(b); return err })
	check("error", peerapi.AppendError(nil, errors.New("x")), func(b []byte) error { _, _, _, err := peerapi.DecodeAnswer(b); return err })
}

func TestHeadsThatLie(t *testing.T) {
	tests := []struct{ name, head string }{
		{"another kind", "\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
		{"an unknown protocol", "\x01\x03\x00\x00\x00\x00\x00\x00\x00\x00"},
		{"a string longer than the head", "\x01\x00\x00\xff\xff\xff\xff\x0f"},
		{"more fields than bytes", "\x01\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\x0f"},
		{"a number without an end", "\x01\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00"},
		{"a length beyond reason", "\x01\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00\x00\x00\x00\x00\x00\x00"},
	}
	for _, tt := range tests {
		if req, _, err := peerapi.DecodeRequest([]byte(tt.head)); fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %+v, %v", tt.name, req, err)
		}
	}
	// An error with code OK is none: it must not be taken for success.
	if _, _, _, err := peerapi.DecodeAnswer([]byte{3, 0, 0, 0, 0, 0}); fault.Of(err) != fault.Invalid {
		t.Errorf("an error with code OK: %v", err)
	}
}

func FuzzDecodeRequest(f *testing.F) {
	for _, tt := range requests {
		f.Add(peerapi.AppendRequest(nil, &tt.req))
	}
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x00\x7f"))
	f.Fuzz(func(t *testing.T, in []byte) {
		req, streamed, err := peerapi.DecodeRequest(in)
		if err != nil {
			return
		}
		if cap(req.Header) > len(in)/2+4 {
			t.Fatalf("room for %d fields from %d bytes", cap(req.Header), len(in))
		}
		length := req.Length
		if streamed {
			req.Stream = stream("")
		}
		again, streamed2, err := peerapi.DecodeRequest(peerapi.AppendRequest(nil, req))
		if err != nil || streamed2 != streamed {
			t.Fatalf("what was read cannot be written and read: %v, streamed %v/%v", err, streamed, streamed2)
		}
		if streamed && again.Length != length {
			t.Fatalf("length %d became %d", length, again.Length)
		}
		req.Stream, req.Length, again.Length = nil, 0, 0
		if d := cmp.Diff(req, again); d != "" {
			t.Fatalf("(-first +second):\n%s", d)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	for _, tt := range answers {
		f.Add(peerapi.AppendResponse(nil, &tt.resp))
	}
	f.Add(peerapi.AppendError(nil, errors.New("x")))
	f.Add([]byte{2, 0x1f, 200, 1, 5, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		resp, streamed, upgrade, err := peerapi.DecodeAnswer(in)
		if err != nil {
			if resp != nil || fault.Of(err) == fault.OK {
				t.Fatalf("both %v and %v", resp, err)
			}
			return
		}
		if cap(resp.Header) > len(in)/2 || len(resp.GRPCStatus) > len(in) {
			t.Fatalf("room for %d fields and %d bytes of status from %d bytes", cap(resp.Header), len(resp.GRPCStatus), len(in))
		}
		if streamed {
			resp.Stream = stream("")
		}
		if upgrade {
			resp.Upgrade = raw{}
		}
		again, streamed2, upgrade2, err := peerapi.DecodeAnswer(peerapi.AppendResponse(nil, resp))
		if err != nil || streamed2 != streamed || upgrade2 != upgrade {
			t.Fatalf("what was read cannot be written and read: %v", err)
		}
		resp.Stream, resp.Upgrade = nil, nil
		if d := cmp.Diff(resp, again); d != "" {
			t.Fatalf("(-first +second):\n%s", d)
		}
	})
}

type raw struct{ io.ReadWriteCloser }

func FuzzDecodeEnd(f *testing.F) {
	f.Add([]byte{})
	f.Add(peerapi.AppendTrailer(nil, call.Fields{{Name: "grpc-status", Value: "0"}}))
	f.Add(peerapi.AppendError(nil, fault.New("op", fault.Lost, "x").With("r")))
	f.Add([]byte{4, 0xff, 0xff, 3})
	f.Fuzz(func(t *testing.T, in []byte) {
		fs, err := peerapi.DecodeEnd(in)
		if err != nil {
			if fs != nil {
				t.Fatalf("both %v and %v", fs, err)
			}
			var e *fault.Error
			if !errors.As(err, &e) || e.Code == fault.OK {
				t.Fatalf("got %v", err)
			}
			return
		}
		if cap(fs) > len(in)/2 {
			t.Fatalf("room for %d fields from %d bytes", cap(fs), len(in))
		}
		again, err := peerapi.DecodeEnd(peerapi.AppendTrailer(nil, fs))
		if err != nil || !cmp.Equal(fs, again) {
			t.Fatalf("%v became %v, %v", fs, again, err)
		}
	})
}
