package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestToken(t *testing.T) {
	var travelled bool
	k := newKit(func(o *httpapi.Options) { o.Token = "secret" }, withInvoke(func(ctx context.Context, req *call.Request, out call.Responder) error {
		_, travelled = req.Header.Lookup("dapr-api-token")
		return out.Respond(ctx, &call.Response{Status: 200})
	}))
	tests := []struct {
		name, method, target, token string
		status                      int
	}{
		{"none", "GET", "/v1.0/metadata", "", 401},
		{"wrong", "GET", "/v1.0/metadata", "Secret", 401},
		{"a prefix", "GET", "/v1.0/metadata", "secre", 401},
		{"right", "GET", "/v1.0/metadata", "secret", 200},
		{"health needs none", "GET", "/v1.0/healthz", "", 204},
		{"nor with a slash", "GET", "/v1.0/healthz/outbound/", "", 500},
		{"but only to ask", "POST", "/v1.0/healthz", "", 401},
		{"and nothing below it", "GET", "/v1.0/healthz/../invoke/a/method/m", "", 401},
		{"nor beside it", "GET", "/v1.0/healthzzz", "", 401},
		{"invocation", "GET", "/v1.0/invoke/a/method/m", "secret", 200},
	}
	for _, tt := range tests {
		headers := []string{"dapr-app-id", "shop"}
		if tt.token != "" {
			headers = append(headers, "Dapr-Api-Token", tt.token)
		}
		x := k.do(tt.method, tt.target, "", headers...)
		if x.Status != tt.status || (tt.status == 401 && string(x.Out) != "invalid api token") {
			t.Errorf("%s: %d %q, want %d", tt.name, x.Status, x.Out, tt.status)
		}
		if travelled {
			t.Errorf("%s: the token travelled on", tt.name)
		}
	}
}

func TestCORS(t *testing.T) {
	const site = "https://site"
	tests := []struct {
		name    string
		origins []string
		method  string
		headers []string
		status  int
		want    call.Fields // of the answer, those of CORS
	}{
		{"off", nil, "GET", []string{"Origin", site}, 200, nil},
		{"off, preflight", nil, "OPTIONS", []string{"Origin", site, "Access-Control-Request-Method", "PUT"}, 404, nil},
		{"any origin", []string{"*"}, "GET", []string{"Origin", site}, 200, fields("Vary", "Origin", "Access-Control-Allow-Origin", "*")},
		{"a listed origin", []string{"https://a", site}, "GET", []string{"Origin", site}, 200, fields("Vary", "Origin", "Access-Control-Allow-Origin", site)},
		{"another origin", []string{"https://a"}, "GET", []string{"Origin", site}, 200, fields("Vary", "Origin")},
		{"no origin", []string{"*"}, "GET", nil, 200, fields("Vary", "Origin")},
		{"a prefix of a listed origin", []string{site + ".com"}, "GET", []string{"Origin", site}, 200, fields("Vary", "Origin")},
		{"preflight", []string{site}, "OPTIONS", []string{"Origin", site, "Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "x-a, content-type"}, 200,
			fields("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers", "Access-Control-Allow-Origin", site, "Access-Control-Allow-Methods", "PUT", "Access-Control-Allow-Headers", "X-A, Content-Type")},
		{"preflight of another origin", []string{"https://a"}, "OPTIONS", []string{"Origin", site, "Access-Control-Request-Method", "PUT"}, 200,
			fields("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(func(o *httpapi.Options) {
				o.Origins = tt.origins
				if tt.method == "OPTIONS" && tt.origins != nil {
					o.Token = "secret" // browsers send none with a preflight
				}
			})
			x := k.do(tt.method, "/v1.0/metadata", "", tt.headers...)
			var got call.Fields
			for _, f := range x.Answer {
				if f.Name == "Vary" || strings.HasPrefix(f.Name, "Access-Control") {
					got = append(got, f)
				}
			}
			if d := cmp.Diff(tt.want, got); x.Status != tt.status || d != "" {
				t.Errorf("%d (-want +got):\n%s", x.Status, d)
			}
		})
	}
}

func TestAnswersOfApps(t *testing.T) {
	st, err := proto.Marshal(status.New(codes.NotFound, "no such order").Proto())
	if err != nil {
		t.Fatal(err)
	}
	stream := func(s string) io.ReadCloser { return io.NopCloser(strings.NewReader(s)) }
	tests := []struct {
		name   string
		resp   call.Response
		status int
		typ    string
		body   string
		length int64
	}{
		{"whole", call.Response{Status: 201, Type: "a/b", Data: []byte("ok")}, 201, "a/b", "ok", 2},
		{"its type is guessed", call.Response{Status: 200, Data: []byte("<html>")}, 200, "text/html; charset=utf-8", "<html>", 6},
		{"nothing", call.Response{Status: 204}, 204, "", "", 0},
		{"a stream of known length", call.Response{Status: 200, Type: "a/b", Stream: stream("ok"), Length: 2}, 200, "a/b", "ok", 2},
		{"a stream", call.Response{Status: 200, Type: "a/b", Stream: stream("ok"), Length: call.Unknown}, 200, "a/b", "ok", -1},
		{"a stream's type is guessed", call.Response{Status: 200, Stream: stream("plain"), Length: call.Unknown}, 200, "text/plain; charset=utf-8", "plain", -1},
		{"any status", call.Response{Status: 599, Type: "a/b", Data: []byte("x")}, 599, "a/b", "x", 1},
		{"a gRPC app", call.Response{Status: 200, FromGRPC: true, Type: "a/b", Data: []byte("x")}, 200, "a/b", "x", 1},
		{"a gRPC app's typed message", call.Response{Status: 200, FromGRPC: true, Type: "a/b", TypeURL: "t/x", Data: []byte("x")}, 200, "application/x-protobuf", "x", 1},
		{"a gRPC app's failure", call.Response{Status: 200, FromGRPC: true, GRPCStatus: st}, 404, "text/plain; charset=utf-8", "", -2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.resp.Header = fields("X-A", "1", "Connection", "close", "Data-Bin", "x")
			x := newKit(withInvoke(answers(&tt.resp))).do("GET", "/v1.0/invoke/a/method/m", "")
			if x.Status != tt.status || x.Answer.Get("Content-Type") != tt.typ || x.Answers != 1 || !x.Ended || x.Aborted {
				t.Errorf("%d %q, %d answers, ended %v", x.Status, x.Answer.Get("Content-Type"), x.Answers, x.Ended)
			}
			if tt.length == -2 {
				if s := strings.ReplaceAll(string(x.Out), " ", ""); s != `{"code":5,"message":"nosuchorder"}` {
					t.Errorf("body %s", x.Out)
				}
			} else if string(x.Out) != tt.body || x.Length != tt.length {
				t.Errorf("%q of length %d", x.Out, x.Length)
			}
			if x.Answer.Get("X-A") != "1" || x.Answer.Get("Connection") != "" || x.Answer.Get("Data-Bin") != "" {
				t.Errorf("headers %v", x.Answer)
			}
		})
	}
}

func TestAnAnswerThatBreaksOffIsAborted(t *testing.T) {
	half := io.NopCloser(io.MultiReader(strings.NewReader("half"), errReader{errors.New("the app hung up")}))
	x := newKit(withInvoke(answers(&call.Response{Status: 200, Type: "a/b", Stream: half, Length: call.Unknown}))).do("GET", "/v1.0/invoke/a/method/m", "")
	if !x.Aborted || x.Ended || string(x.Out) != "half" || x.Answers != 1 {
		t.Errorf("aborted %v, ended %v, %q: it must not look whole", x.Aborted, x.Ended, x.Out)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestPanics(t *testing.T) {
	early := newKit(withInvoke(func(context.Context, *call.Request, call.Responder) error { panic("boom") }))
	if x := early.do("GET", "/v1.0/invoke/a/method/m", ""); x.Status != 500 || strings.Contains(string(x.Out), "boom") || !strings.Contains(string(x.Out), "ERR_INTERNAL") {
		t.Errorf("before an answer: %d %s; the caller learns nothing about the inside", x.Status, x.Out)
	}
	late := newKit(withInvoke(func(ctx context.Context, _ *call.Request, out call.Responder) error {
		_ = out.Respond(ctx, &call.Response{Status: 200, Data: []byte("x")})
		panic("boom")
	}))
	if x := late.do("GET", "/v1.0/invoke/a/method/m", ""); x.Answers != 1 || !x.Aborted {
		t.Errorf("after an answer: %d answers, aborted %v", x.Answers, x.Aborted)
	}
	if got := late.served.last(t); got.Status != 200 {
		t.Errorf("observed %+v", got)
	}
}

func TestUnansweredRequests(t *testing.T) {
	k := newKit(withInvoke(func(context.Context, *call.Request, call.Responder) error { return nil }))
	if x := k.do("GET", "/v1.0/invoke/a/method/m", ""); x.Status != 500 || x.Answers != 1 {
		t.Errorf("%d, %d answers", x.Status, x.Answers)
	}
}

func TestFailedInvocations(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
	}{{fault.New("op", fault.Unavailable, "nobody"), 500}, {fault.New("op", fault.Denied, "no"), 403}, {context.Canceled, 500}} {
		k := newKit(withInvoke(func(context.Context, *call.Request, call.Responder) error { return tt.err }))
		want := fmt.Sprintf(`{"errorCode":"ERR_DIRECT_INVOKE","message":"failed to invoke, id: a, err: %s"}`, tt.err)
		if x := k.do("GET", "/v1.0/invoke/a/method/m", ""); x.Status != tt.status || string(x.Out) != want {
			t.Errorf("%v: %d %s", tt.err, x.Status, x.Out)
		}
	}
}

func TestBodyLimits(t *testing.T) {
	limit := func(o *httpapi.Options) { o.MaxBody = 1000 }
	drain := withInvoke(func(ctx context.Context, req *call.Request, out call.Responder) error {
		if req.Stream != nil {
			if _, err := io.ReadAll(req.Stream); err != nil {
				return err
			}
		}
		return out.Respond(ctx, &call.Response{Status: 200})
	})
	tests := []struct {
		method, target, tag string
		status              int
	}{
		{"POST", "/v1.0/publish/p/t", "ERR_PUBSUB_PUBLISH_MESSAGE", 500},
		{"PUT", "/v1.0/metadata/k", "ERR_BODY_READ", 400},
		{"POST", "/v1.0/state/s", "ERR_MALFORMED_REQUEST", 400},
		{"POST", "/v1.0/invoke/a/method/m", "ERR_DIRECT_INVOKE", 500},
	}
	for _, tt := range tests {
		for _, chunked := range []bool{false, true} {
			k := newKit(limit, drain)
			x := &httpapi.Exchange{Verb: tt.method, To: tt.target, Payload: []byte(strings.Repeat("x", 1001)), Chunked: chunked}
			k.Do(x)
			if x.Status != tt.status || !strings.Contains(string(x.Out), tt.tag) || !strings.Contains(string(x.Out), "stream too large") {
				t.Errorf("%s, chunked %v: %d %s", tt.target, chunked, x.Status, x.Out)
			}
		}
	}
	for _, chunked := range []bool{false, true} {
		x := &httpapi.Exchange{Verb: "POST", To: "/v1.0/invoke/a/method/m", Payload: []byte(strings.Repeat("x", 1000)), Chunked: chunked}
		newKit(limit, drain).Do(x)
		if x.Status != 200 {
			t.Errorf("just at the limit, chunked %v: %d %s", chunked, x.Status, x.Out)
		}
	}
}

// serve puts a server on the wire.
func serve(t *testing.T, k *kit) (base string, down func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- k.Serve(context.Background(), l) }()
	return "http://" + l.Addr().String(), func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := k.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

func TestOnTheWire(t *testing.T) {
	k := newKit(withInvoke(func(ctx context.Context, req *call.Request, out call.Responder) error {
		switch req.Path {
		case "panic":
			panic("boom")
		case "break":
			return out.Respond(ctx, &call.Response{Status: 200, Type: "a/b", Length: call.Unknown,
				Stream: io.NopCloser(io.MultiReader(strings.NewReader("half"), errReader{errors.New("gone")}))})
		case "trailer":
			return out.Respond(ctx, &call.Response{Status: 200, Type: "a/b", Length: call.Unknown, Stream: io.NopCloser(strings.NewReader("x")),
				Trailer: func() call.Fields { return fields("X-T", "1") }})
		}
		return out.Respond(ctx, &call.Response{Status: 200, Type: "a/b", Length: 12345, Data: []byte("")})
	}))
	base, down := serve(t, k)
	defer down()
	client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()

	resp, err := client.Head(base + "/v1.0/invoke/a/method/m")
	if err != nil || resp.ContentLength != 12345 {
		t.Errorf("HEAD: %+v, %v; the length an app announces is kept", resp, err)
	}
	get := func(path string) (*http.Response, string, error) {
		resp, err := client.Get(base + "/v1.0/invoke/a/method/" + path)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}
	if resp, body, err := get("panic"); err != nil || resp.StatusCode != 500 || !strings.Contains(body, "ERR_INTERNAL") {
		t.Errorf("panic: %v %q, %v", resp, body, err)
	}
	if _, body, err := get("break"); err == nil {
		t.Errorf("a broken body was read to a clean end: %q", body)
	}
	if resp, body, err := get("trailer"); err != nil || body != "x" || resp.Trailer.Get("X-T") != "1" {
		t.Errorf("trailer: %q %v, %v", body, resp, err)
	}
}
