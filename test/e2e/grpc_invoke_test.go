package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mecha-project/mecha/test/harness"
)

// callbackApp is a gRPC app that is called through AppCallback.OnInvoke.
type callbackApp struct {
	runtimev1.UnimplementedAppCallbackServer
}

// callbackSeen is what it saw, as its answer tells.
type callbackSeen struct {
	Method, Type, TypeURL, Verb, Query, Data string
	MD                                       metadata.MD
}

func (callbackApp) OnInvoke(ctx context.Context, in *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	grpc.SetHeader(ctx, metadata.Pairs("x-head", "h", "x-data-bin", "\x00\xff"))
	grpc.SetTrailer(ctx, metadata.Pairs("x-trail", "t"))
	switch in.GetMethod() {
	case "fail":
		st, _ := status.New(codes.AlreadyExists, "there").WithDetails(&errdetails.ErrorInfo{Reason: "R", Domain: "d"})
		return nil, st.Err()
	case "code":
		var code int
		fmt.Sscan(string(in.GetData().GetValue()), &code)
		return nil, status.Error(codes.Code(code), "as asked")
	case "hang":
		<-ctx.Done()
		return nil, ctx.Err()
	case "typed":
		return &commonv1.InvokeResponse{Data: &anypb.Any{TypeUrl: "type.example/x", Value: []byte("proto")}, ContentType: "ignored/type"}, nil
	case "untyped":
		return &commonv1.InvokeResponse{Data: &anypb.Any{Value: []byte("text")}}, nil
	}
	out, _ := json.Marshal(callbackSeen{in.GetMethod(), in.GetContentType(), in.GetData().GetTypeUrl(),
		in.GetHttpExtension().GetVerb().String(), in.GetHttpExtension().GetQuerystring(), string(in.GetData().GetValue()), md})
	return &commonv1.InvokeResponse{Data: &anypb.Any{Value: out}, ContentType: "application/json"}, nil
}

func serveCallbacks(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	runtimev1.RegisterAppCallbackServer(srv, callbackApp{})
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	return l.Addr().(*net.TCPAddr).Port
}

func dapr(t *testing.T, target string) runtimev1.DaprClient {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return runtimev1.NewDaprClient(conn)
}

func invokeRequest(id, method string, verb commonv1.HTTPExtension_Verb, data string) *runtimev1.InvokeServiceRequest {
	return &runtimev1.InvokeServiceRequest{Id: id, Message: &commonv1.InvokeRequest{Method: method, Data: &anypb.Any{Value: []byte(data)},
		HttpExtension: &commonv1.HTTPExtension{Verb: verb}}}
}

func callContext(t *testing.T, kv ...string) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, kv...)
}

// TestInvokeServiceHTTPApp: a gRPC caller and an HTTP app.
func TestInvokeServiceHTTPApp(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var status int
		if n, _ := fmt.Sscanf(r.URL.Path, "/status/%d", &status); n == 1 {
			w.Header().Set("Location", "/x")
			w.WriteHeader(status)
			if status != 204 && status != 304 {
				io.WriteString(w, strings.Repeat("why ", 40))
			}
			return
		}
		w.Header().Set("X-Custom", "c")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Grpc-Status", "13")
		if r.URL.Path == "/notype" {
			w.Header()["Content-Type"] = nil
			return
		}
		echo(w, r)
	}))
	for _, way := range bothWays(callee, caller) {
		c := dapr(t, way.via.Target())
		t.Run(way.name+"/request", func(t *testing.T) {
			in := invokeRequest("callee", "a//b/../c", commonv1.HTTPExtension_PUT, "data")
			in.Message.ContentType = "text/weird"
			in.Message.HttpExtension.Querystring = "q=1&r=%2F"
			ctx := callContext(t, "x-mine", "1", "x-mine", "2", "x-data-bin", "\x00", "grpc-special", "s", "dapr-caller-app-id", "forged", "authorization", "Bearer x")
			var header metadata.MD
			out, err := c.InvokeService(ctx, in, grpc.Header(&header))
			if err != nil {
				t.Fatal(err)
			}
			got := decodeSeen(t, out.GetData().GetValue())
			if got.Method != "PUT" || got.URI != "/a/c?q=1&r=%2F" || got.Body != "data" {
				t.Errorf("app saw %s %s %q", got.Method, got.URI, got.Body)
			}
			for name, want := range map[string]string{"Content-Type": "text/weird", "X-Mine": "1|2", "Authorization": "Bearer x", "Dapr-Authority": caller.Target(),
				"Dapr-Caller-App-Id": way.via.AppID, "Dapr-Caller-Namespace": "default"} {
				if name == "Dapr-Authority" && !way.remote {
					want = callee.Target()
				}
				if v := strings.Join(got.Header.Values(name), "|"); v != want {
					t.Errorf("app saw %s = %q, want %q", name, v, want)
				}
			}
			if ua := got.Header.Get("User-Agent"); !strings.HasPrefix(ua, "grpc-go/") {
				t.Errorf("app saw User-Agent %q", ua)
			}
			if got.Header["X-Data-Bin"] != nil || got.Header["Grpc-Accept-Encoding"] != nil {
				t.Errorf("app saw %v", got.Header)
			}
			if out.GetContentType() != "application/json" || first(header, "dapr-http-status") != "200" || first(header, "x-custom") != "c" ||
				first(header, "dapr-cache-control") != "no-store" || first(header, "dapr-content-type") != "application/json" {
				t.Errorf("content type %q, headers %v", out.GetContentType(), header)
			}
		})
		t.Run(way.name+"/type URL", func(t *testing.T) {
			in := invokeRequest("callee", "x", commonv1.HTTPExtension_POST, "raw")
			in.Message.Data.TypeUrl, in.Message.ContentType = "type.example/x", "text/plain"
			out, err := c.InvokeService(callContext(t), in)
			if err != nil {
				t.Fatal(err)
			}
			if got := decodeSeen(t, out.GetData().GetValue()); got.Header.Get("Content-Type") != "application/x-protobuf" || got.Body != "raw" {
				t.Errorf("app saw %q %q", got.Header.Get("Content-Type"), got.Body)
			}
		})
		t.Run(way.name+"/empty answer", func(t *testing.T) {
			for _, method := range []string{"notype", "status/204"} {
				out, err := c.InvokeService(callContext(t), invokeRequest("callee", method, commonv1.HTTPExtension_GET, ""))
				if err != nil || out.GetData() == nil || len(out.GetData().GetValue()) > 0 || out.GetContentType() != "" {
					t.Errorf("%s: got %v, %v; want empty data and no content type", method, out, err)
				}
			}
		})
		for httpStatus, want := range map[int]codes.Code{301: codes.Unknown, 302: codes.Unknown, 304: codes.Unknown, 400: codes.Internal, 401: codes.Unauthenticated, 403: codes.PermissionDenied,
			404: codes.NotFound, 405: codes.Unknown, 408: codes.Canceled, 409: codes.AlreadyExists, 412: codes.Unknown, 418: codes.Unknown, 429: codes.ResourceExhausted,
			500: codes.Unknown, 501: codes.Unimplemented, 502: codes.Unknown, 503: codes.Unavailable, 504: codes.DeadlineExceeded} {
			t.Run(fmt.Sprintf("%s/status %d", way.name, httpStatus), func(t *testing.T) {
				var header metadata.MD
				_, err := c.InvokeService(callContext(t), invokeRequest("callee", fmt.Sprintf("status/%d", httpStatus), commonv1.HTTPExtension_GET, ""), grpc.Header(&header))
				st := status.Convert(err)
				if st.Code() != want || st.Message() != http.StatusText(httpStatus) || len(st.Details()) != 1 {
					t.Fatalf("got %v (%d details), want %v %s", st, len(st.Details()), want, http.StatusText(httpStatus))
				}
				info, ok := st.Details()[0].(*errdetails.ErrorInfo)
				body := strings.Repeat("why ", 40)[:63]
				if httpStatus == 304 {
					body = ""
				}
				text, has := info.GetMetadata()["http.error_message"]
				if !ok || info.Reason != http.StatusText(httpStatus) || info.Domain != "dapr.io" || info.Metadata["http.code"] != fmt.Sprint(httpStatus) || !has || text != body {
					t.Errorf("detail %v", info)
				}
				if first(header, "dapr-http-status") != fmt.Sprint(httpStatus) {
					t.Errorf("dapr-http-status = %q", first(header, "dapr-http-status"))
				}
			})
		}
		for _, tt := range []struct {
			name string
			in   *runtimev1.InvokeServiceRequest
			text string
		}{
			{"no id", invokeRequest("", "x", commonv1.HTTPExtension_GET, ""), "app id is empty"},
			{"no message", &runtimev1.InvokeServiceRequest{Id: "callee"}, "failed to invoke, id: callee, err: "},
			{"no extension", &runtimev1.InvokeServiceRequest{Id: "callee", Message: &commonv1.InvokeRequest{Method: "x"}}, "invalid HTTP verb"},
			{"verb NONE", invokeRequest("callee", "x", commonv1.HTTPExtension_NONE, ""), "invalid HTTP verb"},
			{"verb CONNECT", invokeRequest("callee", "x", commonv1.HTTPExtension_CONNECT, ""), "invalid HTTP verb"},
			{"forbidden character", invokeRequest("callee", "a?b", commonv1.HTTPExtension_GET, ""), "method contains forbidden character"},
			{"unknown app", invokeRequest("ghost", "x", commonv1.HTTPExtension_GET, ""), "couldn't find service: ghost"},
			{"two dots", invokeRequest("a.b.c", "x", commonv1.HTTPExtension_GET, ""), "invalid app id a.b.c"},
		} {
			t.Run(way.name+"/"+tt.name, func(t *testing.T) {
				_, err := c.InvokeService(callContext(t), tt.in)
				st := status.Convert(err)
				if st.Code() != codes.Internal || !strings.Contains(st.Message(), tt.text) || !strings.HasPrefix(st.Message(), "failed to invoke, id: ") && tt.name != "no id" || len(st.Details()) > 0 {
					t.Errorf("got %v with %d details, want Internal with %q", st, len(st.Details()), tt.text)
				}
			})
		}
	}
}

// TestInvokeServiceGRPCApp: a gRPC caller and a gRPC app, through InvokeService.
func TestInvokeServiceGRPCApp(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: serveCallbacks(t), Protocol: "grpc", Env: []string{"APP_API_TOKEN=app-secret"}})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	for _, way := range bothWays(callee, caller) {
		c := dapr(t, way.via.Target())
		t.Run(way.name+"/request", func(t *testing.T) {
			in := invokeRequest("callee", "a", commonv1.HTTPExtension_PATCH, "data")
			in.Message.HttpExtension.Querystring, in.Message.ContentType = "q=1", "text/x"
			var header, trailer metadata.MD
			out, err := c.InvokeService(callContext(t, "x-mine", "1", "x-mine", "2", "x-in-bin", "\x00\x01", "dapr-caller-app-id", "forged"), in, grpc.Header(&header), grpc.Trailer(&trailer))
			if err != nil {
				t.Fatal(err)
			}
			var got callbackSeen
			json.Unmarshal(out.GetData().GetValue(), &got)
			if got.Method != "a" || got.Verb != "PATCH" || got.Query != "q=1" || got.Type != "text/x" || got.Data != "data" {
				t.Errorf("app saw %+v", got)
			}
			if !slices.Equal(got.MD["x-mine"], []string{"1", "2"}) || first(got.MD, "x-in-bin") != "\x00\x01" || !slices.Equal(got.MD["dapr-caller-app-id"], []string{way.via.AppID}) ||
				first(got.MD, "dapr-api-token") != "app-secret" {
				t.Errorf("app saw metadata %v", got.MD)
			}
			if first(header, "x-head") != "h" || first(header, "x-data-bin") != "\x00\xff" || first(trailer, "x-trail") != "t" || first(header, "dapr-http-status") != "" {
				t.Errorf("header %v, trailer %v", header, trailer)
			}
		})
		t.Run(way.name+"/type URL kept", func(t *testing.T) {
			out, err := c.InvokeService(callContext(t), invokeRequest("callee", "typed", commonv1.HTTPExtension_GET, ""))
			if err != nil || out.GetData().GetTypeUrl() != "type.example/x" || string(out.GetData().GetValue()) != "proto" {
				t.Errorf("got %v, %v", out, err)
			}
		})
		t.Run(way.name+"/no extension is fine", func(t *testing.T) {
			out, err := c.InvokeService(callContext(t), &runtimev1.InvokeServiceRequest{Id: "callee", Message: &commonv1.InvokeRequest{Method: "m"}})
			var got callbackSeen
			json.Unmarshal(out.GetData().GetValue(), &got)
			if err != nil || got.Verb != "NONE" {
				t.Errorf("app saw %+v, %v", got, err)
			}
		})
		t.Run(way.name+"/error unchanged", func(t *testing.T) {
			_, err := c.InvokeService(callContext(t), invokeRequest("callee", "fail", commonv1.HTTPExtension_GET, ""))
			st := status.Convert(err)
			if st.Code() != codes.AlreadyExists || st.Message() != "there" || len(st.Details()) != 1 || st.Details()[0].(*errdetails.ErrorInfo).Reason != "R" {
				t.Errorf("got %v %v", st, st.Details())
			}
		})
		t.Run(way.name+"/deadline", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_, err := c.InvokeService(ctx, invokeRequest("callee", "hang", commonv1.HTTPExtension_GET, ""))
			if status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("got %v, want DeadlineExceeded", err)
			}
		})
	}
}

// TestHTTPCallerGRPCApp: an HTTP caller and a gRPC app.
func TestHTTPCallerGRPCApp(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: serveCallbacks(t), Protocol: "grpc"})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	mappings := map[codes.Code]int{codes.Canceled: 408, codes.Unknown: 500, codes.InvalidArgument: 400, codes.DeadlineExceeded: 504, codes.NotFound: 404, codes.AlreadyExists: 409,
		codes.PermissionDenied: 403, codes.ResourceExhausted: 429, codes.FailedPrecondition: 400, codes.Aborted: 409, codes.OutOfRange: 400, codes.Unimplemented: 501,
		codes.Internal: 500, codes.Unavailable: 503, codes.DataLoss: 500, codes.Unauthenticated: 401}
	for _, way := range bothWays(callee, caller) {
		t.Run(way.name+"/request", func(t *testing.T) {
			_, body := harness.Do(t, "PUT", invokeURL(way.via, "callee", "a/b?q=1&q=2"), []byte("data"), "Content-Type", "text/x", "X-Multi", "1", "X-Multi", "2",
				"Accept", "text/y", "Cookie", "c=1", "X-Data-Bin", "aGk=", "Authorization", "Bearer x", "User-Agent", "mine/1", "dapr-caller-app-id", "forged")
			var got callbackSeen
			if err := json.Unmarshal(body, &got); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			if got.Method != "a/b" || got.Verb != "PUT" || got.Query != "q=1&q=2" || got.Type != "text/x" || got.Data != "data" {
				t.Errorf("app saw %+v", got)
			}
			for name, want := range map[string]string{"x-multi": "1|2", "dapr-accept": "text/y", "dapr-cookie": "c=1", "dapr-content-type": "text/x", "authorization": "Bearer x",
				"x-data-bin": "aGk=", "dapr-caller-app-id": way.via.AppID} {
				if v := strings.Join(got.MD[name], "|"); v != want {
					t.Errorf("app saw %s = %q, want %q", name, v, want)
				}
			}
			if ua := first(got.MD, "user-agent"); !strings.HasPrefix(ua, "grpc-go/") {
				t.Errorf("app saw user-agent %q, want gRPC's own", ua)
			}
			if got.MD["host"] != nil || got.MD["dapr-host"] != nil {
				t.Errorf("app saw the Host header: %v", got.MD)
			}
		})
		t.Run(way.name+"/unknown length", func(t *testing.T) {
			_, body, err := fetch(t.Context(), "POST", invokeURL(way.via, "callee", "x"), io.MultiReader(strings.NewReader("chun"), strings.NewReader("ked")))
			var got callbackSeen
			if json.Unmarshal(body, &got); err != nil || got.Data != "chunked" {
				t.Errorf("app saw %q, %v", got.Data, err)
			}
		})
		t.Run(way.name+"/answers", func(t *testing.T) {
			resp, body := harness.Do(t, "GET", invokeURL(way.via, "callee", "typed"), nil)
			if resp.Header.Get("Content-Type") != "application/x-protobuf" || string(body) != "proto" {
				t.Errorf("typed: %s %q", resp.Header.Get("Content-Type"), body)
			}
			resp, body = harness.Do(t, "GET", invokeURL(way.via, "callee", "untyped"), nil)
			if resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" || string(body) != "text" || resp.Header.Get("X-Head") != "h" || resp.Header.Get("X-Data-Bin") != "" {
				t.Errorf("untyped: %v %q", resp.Header, body)
			}
		})
		t.Run(way.name+"/error", func(t *testing.T) {
			resp, body := harness.Do(t, "GET", invokeURL(way.via, "callee", "fail"), nil)
			var got struct {
				Code    int
				Message string
				Details []map[string]any
			}
			if err := json.Unmarshal(body, &got); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			if resp.StatusCode != 409 || got.Code != int(codes.AlreadyExists) || got.Message != "there" || len(got.Details) != 1 || got.Details[0]["reason"] != "R" {
				t.Errorf("got %d %s", resp.StatusCode, body)
			}
			if resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" || resp.Header.Get("X-Head") != "h" {
				t.Errorf("headers %v", resp.Header)
			}
		})
		for code, want := range mappings {
			resp, body := harness.Do(t, "POST", invokeURL(way.via, "callee", "code"), fmt.Append(nil, int(code)))
			if resp.StatusCode != want || !strings.Contains(string(body), "as asked") {
				t.Errorf("%s: %v became %d %s, want %d", way.name, code, resp.StatusCode, body, want)
			}
		}
	}
}

// TestCancelAcrossProtocols: an app learns that its caller has gone also when the two speak
// different protocols.
func TestCancelAcrossProtocols(t *testing.T) {
	t.Parallel()
	began, cancelled := make(chan struct{}, 4), make(chan struct{}, 4)
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			began <- struct{}{}
			<-r.Context().Done()
			cancelled <- struct{}{}
		}
	}))
	for _, way := range bothWays(callee, caller) {
		t.Run("gRPC caller, HTTP app/"+way.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go dapr(t, way.via.Target()).InvokeService(ctx, invokeRequest("callee", "hang", commonv1.HTTPExtension_GET, ""))
			within(t, 5*time.Second, "the app gets the call", began)
			cancel()
			within(t, 1500*time.Millisecond, "the app's request is cancelled", cancelled)
		})
		t.Run("gRPC deadline, HTTP app/"+way.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			_, err := dapr(t, way.via.Target()).InvokeService(ctx, invokeRequest("callee", "hang", commonv1.HTTPExtension_GET, ""))
			if status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("got %v, want DeadlineExceeded", err)
			}
			within(t, 5*time.Second, "the app got the call", began)
			within(t, 1500*time.Millisecond, "the app's request is cancelled", cancelled)
		})
	}
	app := &hangingCallback{began: began, cancelled: cancelled}
	mesh := harness.NewMesh(t)
	callee = mesh.Start(harness.Options{AppID: "callee", AppPort: app.serve(t), Protocol: "grpc"})
	caller = mesh.Start(harness.Options{AppID: "caller"})
	for _, way := range bothWays(callee, caller) {
		t.Run("HTTP caller, gRPC app/"+way.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go fetch(ctx, "GET", invokeURL(way.via, "callee", "hang"), nil)
			within(t, 5*time.Second, "the app gets the call", began)
			cancel()
			within(t, 1500*time.Millisecond, "the app's call is cancelled", cancelled)
		})
	}
}

type hangingCallback struct {
	runtimev1.UnimplementedAppCallbackServer
	began, cancelled chan struct{}
}

func (a *hangingCallback) OnInvoke(ctx context.Context, _ *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error) {
	a.began <- struct{}{}
	<-ctx.Done()
	a.cancelled <- struct{}{}
	return nil, ctx.Err()
}

func (a *hangingCallback) serve(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	runtimev1.RegisterAppCallbackServer(srv, a)
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	return l.Addr().(*net.TCPAddr).Port
}

// TestManyCallersAtOnce: many calls of every kind at once come back with their own
// answers.
func TestManyCallersAtOnce(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "a/b")
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Id", r.Header.Get("X-Id"))
		w.Write(body)
	}))
	var all sync.WaitGroup
	for i := range 16 {
		way := bothWays(callee, caller)[i%2]
		c := dapr(t, way.via.Target())
		all.Go(func() {
			for j := range 40 {
				id := fmt.Sprintf("%d-%d", i, j)
				want := strings.Repeat(id+",", 1+j*j*13)
				if i%4 < 2 {
					resp, body := harness.Do(t, "POST", invokeURL(way.via, "callee", "x"), []byte(want), "X-Id", id)
					if string(body) != want || resp.Header.Get("X-Id") != id {
						t.Errorf("call %s got the answer of %s with %d bytes, want %d", id, resp.Header.Get("X-Id"), len(body), len(want))
					}
					continue
				}
				out, err := c.InvokeService(callContext(t, "x-id", id), invokeRequest("callee", "x", commonv1.HTTPExtension_POST, want))
				if err != nil || string(out.GetData().GetValue()) != want {
					t.Errorf("call %s got %d bytes, want %d: %v", id, len(out.GetData().GetValue()), len(want), err)
				}
			}
		})
	}
	all.Wait()
}
