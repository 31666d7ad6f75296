package grpcapi_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// fields makes fields from alternating names and values.
func fields(nv ...string) (fs call.Fields) {
	for i := 0; i < len(nv); i += 2 {
		fs.Add(nv[i], nv[i+1])
	}
	return fs
}

func sorted(fs call.Fields) call.Fields {
	slices.SortStableFunc(fs, func(a, b call.Field) int { return strings.Compare(a.Name, b.Name) })
	return fs
}

func TestMetadataAsFields(t *testing.T) {
	md := metadata.MD{"x-a": {"1", "2"}, "data-bin": {"\x00\xff"}, "grpc-trace-bin": {"t"}, ":authority": {"host"}, "content-type": {"application/grpc"}, "user-agent": {"u"},
		"te": {"trailers"}, "grpc-timeout": {"1S"}, "grpc-status": {"0"}, "grpc-accept-encoding": {"gzip"}, "dapr-app-id": {"x"}}
	got := sorted(grpcapi.FieldsOf(md, func(n string) bool { return n != "dapr-app-id" }))
	want := fields("data-bin", "\x00\xff", "grpc-trace-bin", "t", "x-a", "1", "x-a", "2")
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if back := grpcapi.MetadataOf(got); !cmp.Equal(back, metadata.MD{"x-a": {"1", "2"}, "data-bin": {"\x00\xff"}, "grpc-trace-bin": {"t"}}) {
		t.Errorf("and back: %v", back)
	}
}

// What gRPC refuses as metadata must not fail the call it came with.
func TestFieldsAsMetadata(t *testing.T) {
	tests := []struct {
		name     string
		in       call.Fields
		plain    metadata.MD // between gRPC ends
		prefixed metadata.MD // from or to HTTP
	}{
		{"names become lower case", fields("X-A", "1", "x-a", "2"), metadata.MD{"x-a": {"1", "2"}}, metadata.MD{"x-a": {"1", "2"}}},
		{"gRPC's own stay behind", fields("grpc-status", "0", "te", "x", "user-agent", "u"), metadata.MD{}, metadata.MD{}},
		{"permanent HTTP headers get a prefix", fields("Accept", "a", "Content-Type", "t", "Cookie", "c", "Host", "h", "X-Accept", "x"),
			metadata.MD{"accept": {"a"}, "cookie": {"c"}, "host": {"h"}, "x-accept": {"x"}},
			metadata.MD{"dapr-accept": {"a"}, "dapr-content-type": {"t"}, "dapr-cookie": {"c"}, "dapr-host": {"h"}, "x-accept": {"x"}}},
		{"pseudo headers stay behind", fields(":path", "/"), metadata.MD{}, metadata.MD{}},
		{"names gRPC cannot carry", fields("X~A", "1", "x!b", "2", "", "3", "ok", "4"), metadata.MD{"ok": {"4"}}, metadata.MD{"ok": {"4"}}},
		{"values gRPC cannot carry", fields("x-a", "é", "x-b", "tab\there", "x-c", "fine ~", "x-bin", "é\x00"),
			metadata.MD{"x-c": {"fine ~"}, "x-bin": {"é\x00"}}, metadata.MD{"x-c": {"fine ~"}, "x-bin": {"é\x00"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.plain, grpcapi.MetadataOf(tt.in)); d != "" {
				t.Errorf("plain (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.prefixed, grpcapi.Prefixed(tt.in, metadata.MD{})); d != "" {
				t.Errorf("prefixed (-want +got):\n%s", d)
			}
		})
	}
}

func TestStatusInTrailers(t *testing.T) {
	detailed, err := status.New(codes.NotFound, "no such thing").WithDetails(&errdetails.ErrorInfo{Reason: "R", Domain: "d"})
	if err != nil {
		t.Fatal(err)
	}
	for name, st := range map[string]*status.Status{"ok": status.New(codes.OK, ""), "plain": status.New(codes.Aborted, "100% over, é\n"), "with details": detailed} {
		t.Run(name, func(t *testing.T) {
			got, ok := grpcapi.WireStatus(grpcapi.StatusFields(fields("x-t", "1"), st))
			if !ok || got.Code() != st.Code() || got.Message() != st.Message() || len(got.Details()) != len(st.Details()) {
				t.Errorf("over the wire: got %v, want %v", got, st)
			}
			fs := grpcapi.StatusTrailer(metadata.MD{"x-t": {"1"}, "t-bin": {"\xff"}}, st)
			if fs.Get("x-t") != "1" || fs.Get("t-bin") != "\xff" || fs.Get("grpc-message") != st.Message() {
				t.Errorf("inside the house: %v", fs)
			}
		})
	}
	if _, ok := grpcapi.WireStatus(nil); ok {
		t.Error("a trailer without a status has one")
	}
	if st, _ := grpcapi.WireStatus(fields("grpc-status", "x")); st.Code() != codes.Unknown {
		t.Errorf("no number: %v; a call without a status has not succeeded", st)
	}
	if st, _ := grpcapi.WireStatus(fields("grpc-status", "5", "grpc-message", "m", "grpc-status-details-bin", "//8")); st.Code() != codes.NotFound || st.Message() != "m" {
		t.Errorf("details that cannot be read: %v", st)
	}
}

func TestStatusOfProxiedCallsThatGotNoAnswer(t *testing.T) {
	want := map[fault.Code]codes.Code{fault.Internal: codes.Internal, fault.Invalid: codes.Unknown, fault.NotFound: codes.Unknown, fault.Exists: codes.Unknown,
		fault.Conflict: codes.Unknown, fault.Denied: codes.PermissionDenied, fault.Unauthenticated: codes.Unauthenticated, fault.Exhausted: codes.ResourceExhausted,
		fault.TooLarge: codes.ResourceExhausted, fault.Unsupported: codes.Unknown, fault.Unavailable: codes.Unavailable, fault.Deadline: codes.DeadlineExceeded,
		fault.Canceled: codes.Canceled, fault.NotReady: codes.Internal, fault.BadEtag: codes.Unknown, fault.Lost: codes.Unknown}
	for c := fault.Internal; c <= fault.Lost; c++ {
		st := grpcapi.ProxyStatus(fault.New("op", c, "text"))
		if w, ok := want[c]; !ok || st.Code() != w || st.Message() != "text" {
			t.Errorf("%v: %v %q, want %v", c, st.Code(), st.Message(), w)
		}
	}
	if st := grpcapi.ProxyStatus(fault.New("op", fault.NotReady, "x").With(fault.NoApp)); st.Code() != codes.Unavailable {
		t.Errorf("no app: %v", st.Code())
	}
}
