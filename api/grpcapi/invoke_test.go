package grpcapi_test

import (
	"context"
	"errors"
	"flag"
	"io"
	"strings"
	"testing"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

var update = flag.Bool("update", false, "rewrite testdata")

func invokeRequest(id, method string, ext *commonv1.HTTPExtension) *runtimev1.InvokeServiceRequest {
	return &runtimev1.InvokeServiceRequest{Id: id, Message: &commonv1.InvokeRequest{Method: method, HttpExtension: ext}}
}

func TestWhatInvokeServiceAsksFor(t *testing.T) {
	post := &commonv1.HTTPExtension{Verb: commonv1.HTTPExtension_POST, Querystring: "a=b&c"}
	tests := []struct {
		name string
		msg  *commonv1.InvokeRequest
		want call.Request
	}{
		{"plain", &commonv1.InvokeRequest{Method: "m", HttpExtension: post, ContentType: "text/plain", Data: &anypb.Any{Value: []byte("x")}},
			call.Request{Verb: "POST", Path: "m", Query: "a=b&c", Type: "text/plain", Data: []byte("x"), Length: 1}},
		{"the path is cleaned", &commonv1.InvokeRequest{Method: "/a//b/../c/", HttpExtension: post}, call.Request{Verb: "POST", Path: "a/c", Query: "a=b&c"}},
		{"no extension", &commonv1.InvokeRequest{Method: "m"}, call.Request{Path: "m"}},
		{"a typed message", &commonv1.InvokeRequest{Method: "m", HttpExtension: post, ContentType: "ignored", Data: &anypb.Any{TypeUrl: "t/x", Value: []byte("x")}},
			call.Request{Verb: "POST", Path: "m", Query: "a=b&c", Type: "application/x-protobuf", TypeURL: "t/x", Data: []byte("x"), Length: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got call.Request
			k := newKit(t, grpcapi.Options{Token: "secret", Invoke: invokeFunc(func(ctx context.Context, req *call.Request, out call.Responder) error {
				got = *req
				return out.Respond(ctx, &call.Response{Status: 200, Data: []byte("y"), Type: "a/b", TypeURL: "r/y"})
			})})
			ctx := metadata.AppendToOutgoingContext(within(t), "X-Mine", "1", "data-bin", "\x00\xff", "dapr-api-token", "secret")
			resp, err := k.InvokeService(ctx, &runtimev1.InvokeServiceRequest{Id: "target", Message: tt.msg})
			if err != nil {
				t.Fatal(err)
			}
			h := got.Header
			got.Header = nil
			tt.want.Protocol, tt.want.Target = call.Unary, "target"
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if h.Get("x-mine") != "1" || h.Get("data-bin") != "\x00\xff" || h.Get(":authority") == "" {
				t.Errorf("metadata %v", h)
			}
			for _, gone := range []string{"dapr-api-token", "content-type"} {
				if v, ok := h.Lookup(gone); ok {
					t.Errorf("%s: %q travels on", gone, v)
				}
			}
			if !proto.Equal(resp, &commonv1.InvokeResponse{ContentType: "a/b", Data: &anypb.Any{TypeUrl: "r/y", Value: []byte("y")}}) {
				t.Errorf("answer %v", resp)
			}
		})
	}
}

func TestWhatInvokeServiceAnswers(t *testing.T) {
	rawStatus, err := proto.Marshal(status.New(codes.NotFound, "no such order").Proto())
	if err != nil {
		t.Fatal(err)
	}
	stream := func(s string) io.ReadCloser { return io.NopCloser(strings.NewReader(s)) }
	tests := []struct {
		name   string
		invoke invokeFunc
		data   string
		code   codes.Code
		text   string
		header metadata.MD
	}{
		{"an HTTP app", answers(&call.Response{Status: 201, Data: []byte("ok"), Header: fields("X-A", "1", "Cache-Control", "no", "X-é", "lost")}), "ok", codes.OK, "",
			metadata.MD{"x-a": {"1"}, "dapr-cache-control": {"no"}, "dapr-http-status": {"201"}}},
		{"a stream", answers(&call.Response{Status: 200, Stream: stream("streamed"), Length: call.Unknown}), "streamed", codes.OK, "", nil},
		{"an HTTP app that fails", answers(&call.Response{Status: 404, Data: []byte("gone")}), "", codes.NotFound, "Not Found", metadata.MD{"dapr-http-status": {"404"}}},
		{"a redirect", answers(&call.Response{Status: 302}), "", codes.Unknown, "Found", nil},
		{"a gRPC app", answers(&call.Response{Status: 200, FromGRPC: true, Data: []byte("ok"), Header: fields("x-a", "1")}), "ok", codes.OK, "", metadata.MD{"x-a": {"1"}}},
		{"a gRPC app that fails", answers(&call.Response{Status: 200, FromGRPC: true, GRPCStatus: rawStatus}), "", codes.NotFound, "no such order", nil},
		{"a gRPC app's broken status", answers(&call.Response{Status: 200, FromGRPC: true, GRPCStatus: []byte{0xff}}), "", codes.Internal, "failed to invoke, id: x, err: ", nil},
		{"over the limit", answers(&call.Response{Status: 200, Stream: stream(strings.Repeat("x", 2000)), Length: call.Unknown}), "", codes.ResourceExhausted, "failed to invoke, id: x, err: the app's answer is over the limit of 1024 bytes", nil},
		{"nobody", invokeFunc(func(context.Context, *call.Request, call.Responder) error {
			return fault.New("op", fault.NotFound, "couldn't find service: x")
		}),
			"", codes.Internal, "failed to invoke, id: x, err: couldn't find service: x", nil},
		{"too late", invokeFunc(func(context.Context, *call.Request, call.Responder) error {
			return fault.Wrap("op", fault.Internal, context.DeadlineExceeded)
		}),
			"", codes.DeadlineExceeded, "failed to invoke, id: x, err: context deadline exceeded", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(t, grpcapi.Options{Invoke: tt.invoke, MaxMessage: 1024})
			var header metadata.MD
			resp, err := k.InvokeService(within(t), invokeRequest("x", "m", nil), grpc.Header(&header))
			st := status.Convert(err)
			if st.Code() != tt.code || !strings.HasPrefix(st.Message(), tt.text) || string(resp.GetData().GetValue()) != tt.data {
				t.Errorf("got %q, %v %q", resp.GetData().GetValue(), st.Code(), st.Message())
			}
			for name, want := range tt.header {
				if d := cmp.Diff(want, header[name]); d != "" {
					t.Errorf("header %s (-want +got):\n%s", name, d)
				}
			}
		})
	}
}

func TestInvokeServiceRefuses(t *testing.T) {
	k := newKit(t, grpcapi.Options{Invoke: answers(&call.Response{Status: 200})})
	for name, tt := range map[string]struct {
		req  *runtimev1.InvokeServiceRequest
		text string
	}{
		"no id":            {invokeRequest("", "m", nil), "failed to invoke, id: , err: app id is empty"},
		"no message":       {&runtimev1.InvokeServiceRequest{Id: "x"}, "failed to invoke, id: x, err: "},
		"a forbidden path": {invokeRequest("x", "a?b", nil), "failed to invoke, id: x, err: code = InvalidArgument desc = method contains forbidden character"},
	} {
		_, err := k.InvokeService(within(t), tt.req)
		if st := status.Convert(err); st.Code() != codes.Internal || !strings.HasPrefix(st.Message(), tt.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// proxied calls /a.B/C of app x with frames.
func proxied(t *testing.T, k *kit, client, server bool, md ...string) grpc.ClientStream {
	t.Helper()
	cs, err := k.conn.NewStream(metadata.AppendToOutgoingContext(within(t), md...), &grpc.StreamDesc{ClientStreams: client, ServerStreams: server}, "/a.B/C", grpc.ForceCodecV2(grpcapi.NewCodec()))
	if err != nil {
		t.Fatal(err)
	}
	return cs
}

func TestWhatAProxiedCallAsksFor(t *testing.T) {
	var got call.Request
	var body []byte
	k := newKit(t, grpcapi.Options{Invoke: invokeFunc(func(ctx context.Context, req *call.Request, out call.Responder) error {
		got, body = *req, req.Data
		if req.Stream != nil {
			body, _ = io.ReadAll(req.Stream)
		}
		return out.Respond(ctx, &call.Response{Status: 200, Header: fields("x-h", "1"), Data: grpcapi.AppendMessage(nil, []byte("pong")),
			Trailer: func() call.Fields { return fields("x-t", "2", "grpc-status", "0") }})
	})})
	cs := proxied(t, k, false, false, "dapr-app-id", "old", "dapr-callee-app-id", "x", "X-Mine", "1", "data-bin", "\x00")
	if err := cs.SendMsg(grpcapi.FrameOf([]byte("ping"))); err != nil {
		t.Fatal(err)
	}
	var f grpcapi.Frame
	if err := cs.RecvMsg(&f); err != nil || string(f.Bytes()) != "pong" {
		t.Fatalf("%q, %v", f.Bytes(), err)
	}
	h, err := cs.Header()
	if err != nil || h.Get("x-h")[0] != "1" || cs.Trailer().Get("x-t")[0] != "2" || len(cs.Trailer().Get("grpc-status")) != 0 {
		t.Errorf("header %v, trailer %v, %v", h, cs.Trailer(), err)
	}
	if got.Protocol != call.GRPC || got.Target != "x" || got.Path != "/a.B/C" || !strings.HasPrefix(got.Type, "application/grpc") {
		t.Errorf("asked for %+v", got)
	}
	if got.Header.Get("x-mine") != "1" || got.Header.Get("data-bin") != "\x00" || got.Header.Get("dapr-app-id") != "" {
		t.Errorf("metadata %v", got.Header)
	}
	if string(body) != "\x00\x00\x00\x00\x04ping" {
		t.Errorf("body %q", body)
	}
}

func TestHowProxiedCallsEnd(t *testing.T) {
	trailer := func(nv ...string) func() call.Fields { return func() call.Fields { return fields(nv...) } }
	half := io.NopCloser(io.MultiReader(strings.NewReader("\x00\x00\x00\x00\x02ok"), errReader{fault.New("app", fault.Unavailable, "the app hung up")}))
	tests := []struct {
		name   string
		md     []string
		invoke invokeFunc
		code   codes.Code
		text   string
		msgs   int
	}{
		{"no target", []string{"x", "y"}, nil, codes.Unknown, "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata", 0},
		{"well", nil, answers(&call.Response{Data: grpcapi.AppendMessage(nil, []byte("ok")), Trailer: trailer("grpc-status", "0")}), codes.OK, "", 1},
		{"the app's status", nil, answers(&call.Response{Trailer: trailer("grpc-status", "5", "grpc-message", "no")}), codes.NotFound, "no", 0},
		{"messages, then a status", nil, answers(&call.Response{Stream: io.NopCloser(strings.NewReader("\x00\x00\x00\x00\x01a\x00\x00\x00\x00\x01b")), Trailer: trailer("grpc-status", "10", "grpc-message", "aborted")}), codes.Aborted, "aborted", 2},
		{"no status at all", nil, answers(&call.Response{}), codes.Unknown, "the proxied call ended without a status", 0},
		{"the body breaks off", nil, answers(&call.Response{Stream: half, Length: call.Unknown}), codes.Unavailable, "the app hung up", 1},
		{"nobody", nil, invokeFunc(func(context.Context, *call.Request, call.Responder) error {
			return fault.New("op", fault.Unavailable, "nobody there")
		}), codes.Unavailable, "nobody there", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(t, grpcapi.Options{Invoke: tt.invoke})
			if tt.md == nil {
				tt.md = []string{"dapr-app-id", "x"}
			}
			cs := proxied(t, k, true, true, tt.md...)
			_ = cs.SendMsg(grpcapi.FrameOf([]byte("ping")))
			_ = cs.CloseSend()
			n := 0
			var err error
			for ; ; n++ {
				var f grpcapi.Frame
				if err = cs.RecvMsg(&f); err != nil {
					break
				}
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			if st := status.Convert(err); st.Code() != tt.code || st.Message() != tt.text || n != tt.msgs {
				t.Errorf("%d messages, then %v; want %d, %v %q", n, err, tt.msgs, tt.code, tt.text)
			}
		})
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestTheEndOfAProxiedCallersCallIsSeen(t *testing.T) {
	started, ended := make(chan struct{}), make(chan error, 1)
	k := newKit(t, grpcapi.Options{Invoke: invokeFunc(func(ctx context.Context, req *call.Request, _ call.Responder) error {
		close(started)
		_, err := io.Copy(io.Discard, req.Stream)
		ended <- err
		return err
	})})
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(within(t), "dapr-app-id", "x"))
	defer cancel()
	cs, err := k.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/a.B/C", grpc.ForceCodecV2(grpcapi.NewCodec()))
	if err != nil {
		t.Fatal(err)
	}
	if err := cs.SendMsg(grpcapi.FrameOf([]byte("ping"))); err != nil {
		t.Fatal(err)
	}
	<-started
	cancel()
	if err := <-ended; err == nil {
		t.Error("a caller that broke off looks like one that ended")
	}
}
