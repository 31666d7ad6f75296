package grpcapi_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/runtime/call"
)

// raw opens a plain HTTP/2 request at the edge.
func raw(t testing.TB, k *kit, req *h2.Request) *h2.Stream {
	t.Helper()
	c := &h2.Client{Addr: "edge", Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", strings.TrimPrefix(k.conn.Target(), "passthrough:///"))
	}}
	t.Cleanup(func() { c.Close() })
	st, err := c.Do(within(t), req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}

func TestWhatIsNoGRPC(t *testing.T) {
	k := newKit(t, grpcapi.Options{})
	grpcType := call.Field{Name: "content-type", Value: "application/grpc"}
	tests := []struct {
		name   string
		req    h2.Request
		status int
		code   string
	}{
		{"JSON", h2.Request{Path: "/a.B/C", Fields: fields("content-type", "application/json")}, 415, "3"},
		{"no content type", h2.Request{Path: "/a.B/C"}, 415, "3"},
		{"GET", h2.Request{Method: "GET", Path: "/a.B/C", Fields: call.Fields{grpcType}}, 405, "13"},
		{"no method", h2.Request{Path: "/a.B", Fields: call.Fields{grpcType}}, 200, "12"},
		{"a bad timeout", h2.Request{Path: "/a.B/C", Fields: call.Fields{grpcType, {Name: "grpc-timeout", Value: "soon"}}}, 400, "13"},
		{"no message", h2.Request{Path: "/dapr.proto.runtime.v1.Dapr/GetMetadata", Fields: call.Fields{grpcType}}, 200, "13"},
		{"two messages", h2.Request{Path: "/dapr.proto.runtime.v1.Dapr/GetMetadata", Fields: call.Fields{grpcType}, Body: make([]byte, 10)}, 200, "13"},
		{"half a message", h2.Request{Path: "/dapr.proto.runtime.v1.Dapr/GetMetadata", Fields: call.Fields{grpcType}, Body: []byte{0, 0, 0, 0, 9, 1}}, 200, "13"},
		{"no protobuf", h2.Request{Path: "/dapr.proto.runtime.v1.Dapr/GetState", Fields: call.Fields{grpcType}, Body: []byte{0, 0, 0, 0, 1, 0xff}}, 200, "13"},
		{"half a message to proxy", h2.Request{Path: "/a.B/C", Fields: call.Fields{grpcType, {Name: "dapr-app-id", Value: "x"}}, Body: []byte{0, 0, 0}}, 200, "13"},
		{"an unknown compression", h2.Request{Path: "/dapr.proto.runtime.v1.Dapr/GetMetadata", Fields: call.Fields{grpcType, {Name: "grpc-encoding", Value: "zip"}}, Body: []byte{1, 0, 0, 0, 0}}, 200, "12"},
		{"well", h2.Request{Path: "/dapr.proto.runtime.v1.Dapr/Shutdown", Fields: call.Fields{grpcType}, Body: make([]byte, 5)}, 200, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.req.End = true
			st := raw(t, k, &tt.req)
			if st.Status() != tt.status || st.Header().Get("grpc-status") != tt.code || st.Header().Get("content-type") != "application/grpc" {
				t.Errorf("got %d %v, want %d and status %s", st.Status(), st.Header(), tt.status, tt.code)
			}
		})
	}
}

func TestMetadataOverTheLimit(t *testing.T) {
	k := newKit(t, grpcapi.Options{MaxHeader: 4 << 10})
	st := raw(t, k, &h2.Request{Path: "/a.B/C", Fields: fields("content-type", "application/grpc", "x", strings.Repeat("x", 5000)), End: true})
	if st.Header().Get("grpc-status") != "8" || !strings.Contains(st.Header().Get("grpc-message"), "4096") {
		t.Errorf("got %v", st.Header())
	}
}

// withData invokes method m of app x.
func withData(data string) *runtimev1.InvokeServiceRequest {
	in := invokeRequest("x", "m", nil)
	in.Message.Data = &anypb.Any{Value: []byte(data)}
	return in
}

func TestCompressedRequests(t *testing.T) {
	var got call.Request
	var body string
	k := newKit(t, grpcapi.Options{MaxMessage: 10000, Invoke: invokeFunc(func(ctx context.Context, req *call.Request, out call.Responder) error {
		data := req.Data
		if req.Stream != nil {
			data, _ = io.ReadAll(req.Stream)
		}
		got, body = *req, string(data)
		got.Header = append(call.Fields(nil), req.Header...)
		return out.Respond(ctx, &call.Response{Status: 200, Header: fields("grpc-encoding", "gzip"), Data: data,
			Trailer: func() call.Fields { return fields("grpc-status", "0") }})
	})})
	in := withData(strings.Repeat("a", 5000))
	if _, err := k.InvokeService(within(t), in, grpc.UseCompressor(gzip.Name)); status.Code(err) != codes.OK { //nolint:staticcheck // the old way of invoking is served too
		t.Errorf("our own method: %v", err)
	}
	if got.Protocol != call.Unary || !strings.HasPrefix(body, "aaaa") {
		t.Errorf("our own method got %q", body[:min(len(body), 20)])
	}
	bomb := withData(strings.Repeat("a", 1<<20))
	if _, err := k.InvokeService(within(t), bomb, grpc.UseCompressor(gzip.Name)); status.Code(err) != codes.ResourceExhausted { //nolint:staticcheck // as above
		t.Errorf("a bomb: %v", err)
	}
	ctx := metadata.AppendToOutgoingContext(within(t), "dapr-app-id", "x")
	var out runtimev1.SetMetadataRequest
	if err := k.conn.Invoke(ctx, "/a.B/C", &runtimev1.SetMetadataRequest{Key: strings.Repeat("k", 1000)}, &out, grpc.UseCompressor(gzip.Name)); err != nil || len(out.GetKey()) != 1000 {
		t.Errorf("proxied: %v", err)
	}
	if got.Header.Get("grpc-encoding") != "gzip" || !strings.HasPrefix(body, "\x01") || !strings.HasPrefix(got.Header.Get("user-agent"), "grpc-go/") {
		t.Errorf("proxied: %q, %v; messages pass as they are", body[:min(len(body), 5)], got.Header)
	}
}

func TestMessagesOverTheLimit(t *testing.T) {
	k := newKit(t, grpcapi.Options{MaxMessage: 1000, Invoke: invokeFunc(func(ctx context.Context, req *call.Request, out call.Responder) error {
		if req.Stream == nil {
			return out.Respond(ctx, &call.Response{Status: 200, Data: make([]byte, 2000)})
		}
		_, err := io.Copy(io.Discard, req.Stream)
		return err
	})})
	big := withData(strings.Repeat("a", 200<<10))
	_, err := k.InvokeService(within(t), big) //nolint:staticcheck // as above
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a request: %v", err)
	}
	_, err = k.InvokeService(within(t), invokeRequest("x", "m", nil)) //nolint:staticcheck // as above
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("an answer: %v", err)
	}
	ctx := metadata.AppendToOutgoingContext(within(t), "dapr-app-id", "x")
	if err := k.conn.Invoke(ctx, "/a.B/C", big, &runtimev1.SetMetadataRequest{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("proxied: %v", err)
	}
	cs := proxied(t, k, true, true, "dapr-app-id", "x")
	for _, n := range []int{100, 2000} {
		_ = cs.SendMsg(grpcapi.FrameOf(make([]byte, n)))
		time.Sleep(5 * time.Millisecond)
	}
	var f grpcapi.Frame
	if err := cs.RecvMsg(&f); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a stream: %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	seen := make(chan error, 1)
	k := newKit(t, grpcapi.Options{Invoke: invokeFunc(func(ctx context.Context, _ *call.Request, _ call.Responder) error {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("the deadline did not come along")
		}
		<-ctx.Done()
		seen <- ctx.Err()
		return ctx.Err()
	})})
	// The sidecar must answer by itself, not leave it to the caller's own timer.
	st := raw(t, k, &h2.Request{Path: "/a.B/C", Fields: fields("content-type", "application/grpc", "grpc-timeout", "50m", "dapr-app-id", "x"), End: true})
	if got := st.Header().Get("grpc-status"); got != "4" {
		t.Errorf("ended with status %s: %v", got, st.Header())
	}
	if err := <-seen; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the call's context ended with %v", err)
	}
}

func TestReflection(t *testing.T) {
	k := newKit(t, grpcapi.Options{})
	rs, err := reflectionv1.NewServerReflectionClient(k.conn).ServerReflectionInfo(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := rs.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	out, err := rs.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range out.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	if !strings.Contains(strings.Join(names, " "), "dapr.proto.runtime.v1.Dapr") {
		t.Errorf("services %v", names)
	}
	_ = rs.CloseSend()
	if _, err := rs.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("ended with %v", err)
	}
}
