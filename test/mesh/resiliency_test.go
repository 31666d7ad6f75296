package mesh

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mecha-project/mecha/test/harness"
)

// resiliency is the text of a Resiliency resource; policies and targets are YAML in one line.
func resiliency(name, policies, targets string) string {
	return fmt.Sprintf("apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: %s}\nspec:\n  policies: %s\n  targets: %s\n", name, policies, targets)
}

// flaky is an HTTP app whose paths say how it fails: /fail/<status>/<times>/<name> answers so
// often with the status and then with 200, /slow/<milliseconds>/<times>/<name> takes so long so
// often, and /early/... is a fail that reads no more than the first bytes of the body.
type flaky struct {
	mu   sync.Mutex
	got  map[string][]string // bodies by path
	more http.Handler        // for other paths; may be nil
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if len(parts) != 4 {
		if f.more != nil {
			f.more.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(404)
		return
	}
	number, _ := strconv.Atoi(parts[1])
	times, _ := strconv.Atoi(parts[2])
	from := io.Reader(r.Body)
	if parts[0] == "early" && f.calls(r.URL.Path) < times {
		from = io.LimitReader(r.Body, 10)
	}
	body, err := io.ReadAll(from)
	if err != nil {
		body = []byte("cut short: " + err.Error())
	}
	n := f.take(r.URL.Path, string(body))
	w.Header().Set("X-Answer", strconv.Itoa(n))
	switch {
	case n > times:
	case parts[0] == "slow":
		select {
		case <-time.After(time.Duration(number) * time.Millisecond):
		case <-r.Context().Done():
		}
	default:
		w.WriteHeader(number)
	}
	fmt.Fprintf(w, "answer %d", n)
}

func (f *flaky) take(path, body string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.got == nil {
		f.got = map[string][]string{}
	}
	f.got[path] = append(f.got[path], body)
	return len(f.got[path])
}

func (f *flaky) calls(path string) int { return len(f.bodies(path)) }

func (f *flaky) bodies(path string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.got[path]...)
}

// pair is an app with a sidecar, and a sidecar that calls it; both have the same resources.
type pair struct {
	app         *flaky
	front, back *harness.Sidecar
}

func newPair(t *testing.T, files map[string]string) *pair {
	t.Helper()
	p := &pair{app: &flaky{}}
	m := harness.NewMesh(t)
	p.back = m.Start(harness.Options{AppID: "back", AppPort: harness.Serve(t, p.app), Files: files})
	p.front = m.Start(harness.Options{AppID: "front", Files: files})
	return p
}

// ask is an invocation, what its caller must get and how often the app must see it.
type ask struct {
	path   string
	status int
	calls  int
}

// check makes the calls from one sidecar; tag keeps their paths apart from others'.
func (p *pair) check(t *testing.T, from *harness.Sidecar, tag string, asks []ask) {
	t.Helper()
	for _, a := range asks {
		path := a.path + "/" + tag
		resp, body := harness.Do(t, "POST", from.URL("/v1.0/invoke/back/method"+path), []byte("the body"))
		got := p.app.bodies(path)
		if resp.StatusCode != a.status || len(got) != a.calls {
			t.Errorf("%s: %d %s after %d calls, want %d after %d", path, resp.StatusCode, body, len(got), a.status, a.calls)
		}
		if want := fmt.Sprintf("answer %d", a.calls); string(body) != want && a.status != 204 || resp.Header.Get("X-Answer") != strconv.Itoa(a.calls) {
			t.Errorf("%s: the answer is %q with %v, want the app's last, %q", path, body, resp.Header, want)
		}
		for i, b := range got {
			if b != "the body" {
				t.Errorf("%s: call %d has the body %q", path, i+1, b)
			}
		}
	}
}

const targetBack = "{apps: {back: {retry: r}}}"

// Retries of invocations over HTTP: what is repeated, how often, and that the app's last answer
// is what the caller gets, from another app and from the app itself.
func TestResiliencyRetries(t *testing.T) {
	for _, tt := range []struct {
		name, policy string
		asks         []ask
	}{
		{"without matching every status from 400", "{policy: constant, duration: 10ms, maxRetries: 2}", []ask{
			{"/fail/500/9", 500, 3}, {"/fail/400/9", 400, 3}, {"/fail/404/9", 404, 3}, {"/fail/429/9", 429, 3}, {"/fail/599/9", 599, 3},
			{"/fail/500/1", 200, 2}, {"/fail/503/2", 200, 3}, {"/fail/200/9", 200, 1}, {"/fail/204/9", 204, 1}, {"/fail/302/9", 302, 1}}},
		{"matching", `{policy: constant, duration: 10, maxRetries: 2, matching: {httpStatusCodes: "429, 500-502"}}`, []ask{
			{"/fail/429/9", 429, 3}, {"/fail/500/9", 500, 3}, {"/fail/502/1", 200, 2}, {"/fail/503/9", 503, 1}, {"/fail/428/9", 428, 1}, {"/fail/404/9", 404, 1}}},
		{"matching of gRPC codes only", `{policy: constant, duration: 10ms, maxRetries: 1, matching: {gRPCStatusCodes: "14"}}`, []ask{{"/fail/500/9", 500, 2}}},
		{"none", "{policy: constant, duration: 10ms, maxRetries: 0}", []ask{{"/fail/500/9", 500, 1}}},
		{"exponential", "{policy: exponential, maxInterval: 40ms, maxRetries: 2}", []ask{{"/fail/500/9", 500, 3}, {"/fail/500/1", 200, 2}, {"/fail/302/9", 302, 1}}},
		{"without limit", "{policy: constant, duration: 1ms, maxRetries: -1}", []ask{{"/fail/500/40", 200, 41}}},
		{"without a number", "{policy: constant, duration: 1ms}", []ask{{"/fail/500/20", 200, 21}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, map[string]string{"r.yaml": resiliency("res", "{retries: {r: "+tt.policy+"}}", targetBack)})
			p.check(t, p.front, "remote", tt.asks)
			p.check(t, p.back, "self", tt.asks)
		})
	}
}

// A streamed body is sent again byte for byte, as far as it is kept; a longer one goes once.
func TestResiliencyOfStreamedBodies(t *testing.T) {
	p := newPair(t, map[string]string{"r.yaml": resiliency("res", "{retries: {r: {policy: constant, duration: 10ms, maxRetries: 3}}}", targetBack)})
	text := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
	for i := range text {
		text[i] += byte(i >> 12) // so that pieces in the wrong place show
	}
	for _, tt := range []struct {
		name, path string
		size       int
		status     int
		calls      int
	}{
		{"empty", "/fail/500/2/s", 0, 200, 3}, {"short", "/fail/500/2/s", 100, 200, 3}, {"many pieces", "/fail/503/2/s", 700 << 10, 200, 3},
		{"as much as is kept", "/fail/500/1/s", 1 << 20, 200, 2}, {"more", "/fail/500/1/s", 1<<20 + 1, 500, 1}, {"much more", "/fail/500/1/s", 3 << 20, 500, 1},
		{"answered before it is read", "/early/503/2/s", 500 << 10, 200, 3},
	} {
		for _, from := range []*harness.Sidecar{p.front, p.back} {
			t.Run(tt.name+" from "+from.AppID, func(t *testing.T) {
				path := tt.path + "-" + strings.ReplaceAll(t.Name()[strings.IndexByte(t.Name(), '/')+1:], "/", "-")
				body := text[:tt.size]
				req, err := http.NewRequestWithContext(limited(t), "POST", from.URL("/v1.0/invoke/back/method"+path), io.MultiReader(bytes.NewReader(body))) // of unknown length
				if err != nil {
					t.Fatal(err)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				answer, err := io.ReadAll(resp.Body)
				got := p.app.bodies(path)
				if err != nil || resp.StatusCode != tt.status || len(got) != tt.calls || string(answer) != fmt.Sprintf("answer %d", tt.calls) {
					t.Fatalf("%d %q after %d calls (%v), want %d after %d", resp.StatusCode, answer, len(got), err, tt.status, tt.calls)
				}
				for i, b := range got {
					if b != string(body) && !(strings.HasPrefix(tt.path, "/early") && i < tt.calls-1) {
						t.Errorf("call %d had %d bytes that are not those sent (%d)", i+1, len(b), len(body))
					}
				}
			})
		}
	}
}

// flakyRPC is a gRPC app that fails the first calls of a name (metadata "name", "times") with the
// status the request asks for; Dapr's OnInvoke does too, by its method /<code>/<times>/<name>.
type flakyRPC struct {
	grpc_testing.UnimplementedTestServiceServer
	runtimev1.UnimplementedAppCallbackServer
	f flaky
}

func (a *flakyRPC) UnaryCall(ctx context.Context, in *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	times, _ := strconv.Atoi(one(md, "times"))
	n := a.f.take(one(md, "name"), string(in.GetPayload().GetBody()))
	grpc.SetTrailer(ctx, metadata.Pairs("x-answer", strconv.Itoa(n)))
	if wait, _ := time.ParseDuration(one(md, "wait")); wait > 0 && n <= times {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		return &grpc_testing.SimpleResponse{}, nil
	}
	if n <= times {
		return nil, status.Error(codes.Code(in.GetResponseStatus().GetCode()), fmt.Sprintf("failure %d", n))
	}
	return &grpc_testing.SimpleResponse{Payload: in.GetPayload()}, nil
}

// FullDuplexCall sends every message back, or refuses the stream before it reads one.
func (a *flakyRPC) FullDuplexCall(st grpc_testing.TestService_FullDuplexCallServer) error {
	md, _ := metadata.FromIncomingContext(st.Context())
	times, _ := strconv.Atoi(one(md, "times"))
	if n := a.f.take(one(md, "name"), ""); n <= times {
		return status.Error(codes.Unavailable, fmt.Sprintf("failure %d", n))
	}
	for {
		in, err := st.Recv()
		if err != nil {
			return nil //nolint:nilerr // the end of the requests
		}
		if err := st.Send(&grpc_testing.StreamingOutputCallResponse{Payload: in.GetPayload()}); err != nil {
			return err
		}
	}
}

func (a *flakyRPC) OnInvoke(_ context.Context, in *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error) {
	parts := strings.Split(strings.Trim(in.GetMethod(), "/"), "/")
	code, _ := strconv.Atoi(parts[0])
	times, _ := strconv.Atoi(parts[1])
	n := a.f.take(in.GetMethod(), string(in.GetData().GetValue()))
	if n <= times {
		return nil, status.Error(codes.Code(code), fmt.Sprintf("failure %d", n))
	}
	return &commonv1.InvokeResponse{Data: &anypb.Any{Value: in.GetData().GetValue()}}, nil
}

func newRPCPair(t *testing.T, files map[string]string) (app *flakyRPC, front, back *harness.Sidecar) {
	t.Helper()
	app = &flakyRPC{}
	m := harness.NewMesh(t)
	port := serveGRPC(t, func(s *grpc.Server) {
		grpc_testing.RegisterTestServiceServer(s, app)
		runtimev1.RegisterAppCallbackServer(s, app)
	})
	back = m.Start(harness.Options{AppID: "back", AppPort: port, Protocol: "grpc", Files: files})
	return app, m.Start(harness.Options{AppID: "front", Files: files}), back
}

// unary makes a proxied call that fails so many times.
func unary(t *testing.T, from *harness.Sidecar, name string, code codes.Code, times, size int, more ...string) (*grpc_testing.SimpleResponse, metadata.MD, error) {
	t.Helper()
	ctx := metadata.AppendToOutgoingContext(limited(t), append([]string{"dapr-app-id", "back", "name", name, "times", strconv.Itoa(times)}, more...)...)
	var trailer metadata.MD
	resp, err := grpc_testing.NewTestServiceClient(dial(t, from.Target())).UnaryCall(ctx, &grpc_testing.SimpleRequest{
		ResponseStatus: &grpc_testing.EchoStatus{Code: int32(code)}, Payload: &grpc_testing.Payload{Body: bytes.Repeat([]byte{'x'}, size)}}, grpc.Trailer(&trailer))
	return resp, trailer, err
}

// Retries of proxied gRPC calls and of InvokeService.
func TestResiliencyOfGRPC(t *testing.T) {
	type rpc struct {
		code         codes.Code
		times, calls int
		size         int
	}
	for _, tt := range []struct {
		name, policy string
		rpcs         []rpc
	}{
		{"without matching every code", "{policy: constant, duration: 10ms, maxRetries: 2}", []rpc{
			{codes.Internal, 9, 3, 10}, {codes.NotFound, 9, 3, 10}, {codes.InvalidArgument, 9, 3, 0}, {codes.Unavailable, 1, 2, 10}, {codes.OK, 0, 1, 10},
			{codes.Internal, 2, 3, 300 << 10}, {codes.Internal, 9, 3, 1000 << 10}, {codes.Internal, 9, 1, 2 << 20}}},
		{"matching", `{policy: constant, duration: 10ms, maxRetries: 2, matching: {gRPCStatusCodes: "8,13-15"}}`, []rpc{
			{codes.ResourceExhausted, 9, 3, 10}, {codes.Internal, 9, 3, 10}, {codes.DataLoss, 1, 2, 10}, {codes.NotFound, 9, 1, 10}, {codes.Unauthenticated, 9, 1, 10}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			app, front, _ := newRPCPair(t, map[string]string{"r.yaml": resiliency("res", "{retries: {r: "+tt.policy+"}}", targetBack)})
			for i, r := range tt.rpcs {
				name := fmt.Sprintf("%v-%d", r.code, i)
				resp, trailer, err := unary(t, front, name, r.code, r.times, r.size)
				st, got := status.Convert(err), app.f.bodies(name)
				want := codes.OK
				if r.calls <= r.times {
					want = r.code
				}
				if st.Code() != want || len(got) != r.calls || (want != codes.OK && st.Message() != fmt.Sprintf("failure %d", r.calls)) || (want == codes.OK && len(resp.GetPayload().GetBody()) != r.size) {
					t.Errorf("%s with %d bytes: %v after %d calls, want %v after %d", name, r.size, err, len(got), want, r.calls)
				}
				if one(trailer, "x-answer") != strconv.Itoa(r.calls) || len(trailer.Get("x-answer")) != 1 {
					t.Errorf("%s: the trailer is %v, want that of call %d", name, trailer, r.calls)
				}
				for i, b := range got {
					if len(b) != r.size || strings.Trim(b, "x") != "" {
						t.Errorf("%s: call %d had %d bytes, want %d", name, i+1, len(b), r.size)
					}
				}
				if r.size > 100 {
					continue
				}
				method := fmt.Sprintf("%d/%d/%d", r.code, r.times, i)
				_, err = runtimev1.NewDaprClient(dial(t, front.Target())).InvokeService(limited(t), &runtimev1.InvokeServiceRequest{Id: "back",
					Message: &commonv1.InvokeRequest{Method: method, Data: &anypb.Any{Value: []byte("body")}}})
				if st := status.Convert(err); st.Code() != want || app.f.calls(method) != r.calls {
					t.Errorf("InvokeService %s: %v after %d calls, want %v after %d", method, err, app.f.calls(method), want, r.calls)
				}
			}
		})
	}
}

// A stream that is refused before anything is answered is begun again, with what was sent so
// far, although its caller goes on sending or waits for an answer first.
func TestResiliencyOfStreams(t *testing.T) {
	app, front, back := newRPCPair(t, map[string]string{"r.yaml": resiliency("res", "{retries: {r: {policy: constant, duration: 10ms, maxRetries: 2}}}", targetBack)})
	for _, from := range []*harness.Sidecar{front, back} {
		for _, tt := range []struct {
			times int
			want  codes.Code
		}{{0, codes.OK}, {2, codes.OK}, {9, codes.Unavailable}} {
			name := fmt.Sprintf("%s-%d", from.AppID, tt.times)
			ctx := metadata.AppendToOutgoingContext(limited(t), "dapr-app-id", "back", "name", name, "times", strconv.Itoa(tt.times))
			st, err := grpc_testing.NewTestServiceClient(dial(t, from.Target())).FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				want := strings.Repeat(strconv.Itoa(i), 40<<10)
				if err := st.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: []byte(want)}}); err != nil && tt.want == codes.OK {
					t.Fatal(err)
				}
				got, err := st.Recv()
				if status.Code(err) != tt.want || (err == nil && string(got.GetPayload().GetBody()) != want) {
					t.Errorf("%s: message %d came back with %d bytes, %v; want %v", name, i, len(got.GetPayload().GetBody()), err, tt.want)
				}
				if err != nil {
					break
				}
			}
			if n := app.f.calls(name); n != min(tt.times, 2)+1 {
				t.Errorf("%s: the app saw %d calls, want %d", name, n, min(tt.times, 2)+1)
			}
		}
	}
}

// InvokeService on an HTTP app is repeated as an HTTP call is.
func TestResiliencyOfInvokeService(t *testing.T) {
	p := newPair(t, map[string]string{"r.yaml": resiliency("res", "{retries: {r: {policy: constant, duration: 10ms, maxRetries: 2}}}", targetBack)})
	for _, from := range []*harness.Sidecar{p.front, p.back} {
		for _, tt := range []struct {
			path  string
			want  codes.Code
			calls int
		}{{"/fail/500/9/", codes.Unknown, 3}, {"/fail/404/9/", codes.NotFound, 3}, {"/fail/503/1/", codes.OK, 2}, {"/fail/200/0/", codes.OK, 1}} {
			path := tt.path + from.AppID
			_, err := runtimev1.NewDaprClient(dial(t, from.Target())).InvokeService(limited(t), &runtimev1.InvokeServiceRequest{Id: "back",
				Message: &commonv1.InvokeRequest{Method: path, Data: &anypb.Any{Value: []byte("body")}, HttpExtension: &commonv1.HTTPExtension{Verb: commonv1.HTTPExtension_POST}}})
			if got := p.app.bodies(path); status.Code(err) != tt.want || len(got) != tt.calls || got[len(got)-1] != "body" {
				t.Errorf("%s from %s: %v after %q, want %v after %d calls", path, from.AppID, err, got, tt.want, tt.calls)
			}
		}
	}
}

// Attempts that take too long: what callers are told, and that another attempt follows.
func TestResiliencyTimeouts(t *testing.T) {
	const policies = "{timeouts: {t: 400ms}, retries: {once: {policy: constant, duration: 5ms, maxRetries: 0}, twice: {policy: constant, duration: 5ms, maxRetries: 1}}}"
	for _, tt := range []struct {
		retry string
		calls int
	}{{"once", 1}, {"twice", 2}} {
		t.Run(tt.retry, func(t *testing.T) {
			files := map[string]string{"r.yaml": resiliency("res", policies, "{apps: {back: {timeout: t, retry: "+tt.retry+"}}}")}
			p := newPair(t, files)
			p.app.more = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // the head in time, the rest late
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
				time.Sleep(900 * time.Millisecond)
				io.WriteString(w, "the rest")
			})
			for _, from := range []*harness.Sidecar{p.front, p.back} {
				path := "/slow/10000/9/" + from.AppID
				resp, body := invoke(t, from, "GET", "back", path)
				code, message := failure(t, body)
				if resp.StatusCode != 500 || code != "ERR_DIRECT_INVOKE" || !strings.HasPrefix(message, "failed to invoke, id: back, err: ") || !strings.Contains(message, "context deadline exceeded") || p.app.calls(path) != tt.calls {
					t.Errorf("from %s: %d %s after %d calls, want 500 ERR_DIRECT_INVOKE, context deadline exceeded, after %d", from.AppID, resp.StatusCode, body, p.app.calls(path), tt.calls)
				}
				if resp, body := invoke(t, from, "GET", "back", "/drip"); resp.StatusCode != 200 || string(body) != "the rest" {
					t.Errorf("from %s: %d %q, want the whole answer, whose head came in time", from.AppID, resp.StatusCode, body)
				}
			}
			app, front, _ := newRPCPair(t, files)
			_, _, err := unary(t, front, "slow", codes.OK, 9, 10, "wait", "10s")
			if st := status.Convert(err); st.Code() != codes.DeadlineExceeded || app.f.calls("slow") != tt.calls {
				t.Errorf("proxied: %v after %d calls, want DeadlineExceeded after %d", err, app.f.calls("slow"), tt.calls)
			}
			if tt.calls == 2 {
				p.check(t, p.front, "then-fast", []ask{{"/slow/10000/1", 200, 2}})
				if _, _, err := unary(t, front, "then fast", codes.OK, 1, 10, "wait", "10s"); err != nil || app.f.calls("then fast") != 2 {
					t.Errorf("proxied: %v after %d calls, want the second's answer", err, app.f.calls("then fast"))
				}
			}
		})
	}
}

// refusedByBreaker checks the answer that an open breaker gives.
func refusedByBreaker(t *testing.T, from *harness.Sidecar, path string) {
	t.Helper()
	resp, body := invoke(t, from, "GET", "back", path)
	if code, message := failure(t, body); resp.StatusCode != 500 || code != "ERR_DIRECT_INVOKE" || !strings.HasSuffix(message, "err: circuit breaker is open") {
		t.Errorf("%s: %d %s, want 500 ERR_DIRECT_INVOKE, circuit breaker is open", path, resp.StatusCode, body)
	}
}

// A breaker of an app: one for each method; what callers are told, what is logged and counted.
func TestResiliencyBreakers(t *testing.T) {
	p := newPair(t, map[string]string{"r.yaml": resiliency("res", "{retries: {r: {policy: constant, duration: 5ms, maxRetries: 9}}, circuitBreakers: {cb: {timeout: 60s, trip: consecutiveFailures >= 2}}}",
		"{apps: {back: {circuitBreaker: cb, retry: r}, plain: {circuitBreaker: cb}}}")})
	for _, from := range []*harness.Sidecar{p.front, p.back} {
		path := "/fail/404/99/" + from.AppID
		refusedByBreaker(t, from, path) // the third attempt is refused, and that is the end of it
		refusedByBreaker(t, from, path)
		if n := p.app.calls(path); n != 2 {
			t.Errorf("from %s: the app saw %d calls, want 2", from.AppID, n)
		}
		p.check(t, from, "other-"+from.AppID, []ask{{"/fail/500/0", 200, 1}, {"/fail/500/1", 200, 2}})
		from.WaitLog(fmt.Sprintf(`Circuit breaker \"back:%s\" changed state from closed to open`, strings.TrimPrefix(path, "/")))
	}
	labels := func(policy, status string) []string {
		return []string{"name", "res", "namespace", "", "policy", policy, "flow_direction", "outbound", "target", "app_back", "status", status}
	}
	eventually(t, 5*time.Second, "the metrics tell of the breaker", func() bool {
		m := scrape(t, p.front)
		return value(m, "dapr_resiliency_activations_total", labels("circuitbreaker", "open")...) == 1 && value(m, "dapr_resiliency_activations_total", labels("retry", "")...) == 2
	})
	m := scrape(t, p.front)
	for _, want := range []struct {
		name   string
		labels []string
		min    float64
	}{
		{"dapr_resiliency_loaded", []string{"name", "res", "namespace", ""}, 1},
		{"dapr_resiliency_count", labels("circuitbreaker", "closed"), 5}, {"dapr_resiliency_count", labels("circuitbreaker", "open"), 2}, {"dapr_resiliency_count", labels("retry", ""), 4},
	} {
		if got := value(m, want.name, want.labels...); got < want.min {
			t.Errorf("%s%v is %v, want at least %v", want.name, want.labels, got, want.min)
		}
	}
	if got := value(m, "dapr_resiliency_count", labels("circuitbreaker", "open")...); got != 2 {
		t.Errorf("the open breaker was asked %v times, want twice: what it refuses is not tried again", got)
	}
	sum := 0.0
	for _, status := range []string{"closed", "half-open", "open", "unknown"} {
		got := value(m, "dapr_resiliency_cb_state", labels("circuitbreaker", status)...)
		if got < 0 {
			t.Errorf("dapr_resiliency_cb_state has no series with status %s", status)
		}
		sum += got
	}
	if sum != 1 {
		t.Errorf("the series of dapr_resiliency_cb_state add up to %v, want 1", sum)
	}
}

// A proxied call that a breaker refuses ends with code Unknown, and other methods go on.
func TestResiliencyBreakerOfGRPC(t *testing.T) {
	app, front, _ := newRPCPair(t, map[string]string{"r.yaml": resiliency("res", "{circuitBreakers: {cb: {timeout: 60s, trip: consecutiveFailures >= 2}}}", "{apps: {back: {circuitBreaker: cb}}}")})
	for i, want := range []codes.Code{codes.NotFound, codes.NotFound, codes.Unknown, codes.Unknown} {
		_, _, err := unary(t, front, "b", codes.NotFound, 99, 1)
		if st := status.Convert(err); st.Code() != want || (want == codes.Unknown && !strings.Contains(st.Message(), "circuit breaker is open")) {
			t.Errorf("call %d: %v, want %v", i+1, err, want)
		}
	}
	if n := app.f.calls("b"); n != 2 {
		t.Errorf("the app saw %d calls, want 2", n)
	}
	ctx := metadata.AppendToOutgoingContext(limited(t), "dapr-app-id", "back")
	if _, err := grpc_testing.NewTestServiceClient(dial(t, front.Target())).EmptyCall(ctx, &grpc_testing.Empty{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("another method: %v, want the app's own Unimplemented", err)
	}
	front.WaitLog(`Circuit breaker \"back:/grpc.testing.TestService/UnaryCall\" changed state from closed to open`)
}

// An open breaker lets a call through after its time: one failure opens it again, a success
// closes it.
func TestResiliencyBreakerRecovers(t *testing.T) {
	p := newPair(t, map[string]string{"r.yaml": resiliency("res", "{circuitBreakers: {cb: {timeout: 300ms, trip: consecutiveFailures >= 2}}}", "{apps: {back: {circuitBreaker: cb}}}")})
	const path = "/fail/500/3/x"
	reach := func(status int) {
		t.Helper()
		eventually(t, 10*time.Second, fmt.Sprintf("the app answers %d", status), func() bool {
			resp, body := invoke(t, p.front, "GET", "back", path)
			return resp.StatusCode == status && strings.HasPrefix(string(body), "answer")
		})
	}
	reach(500)
	reach(500)
	refused := func() bool {
		resp, body := invoke(t, p.front, "GET", "back", path)
		return resp.StatusCode == 500 && strings.Contains(string(body), "circuit breaker is open")
	}
	eventually(t, 10*time.Second, "the breaker is open", refused) // at once, unless the machine is slow
	reach(500)                                                    // half-open, and open again
	reach(200)
	name := fmt.Sprintf("Circuit breaker %q changed state from ", "back:"+strings.TrimPrefix(path, "/"))
	p.front.WaitLog("changed state from half-open to closed") // which may come after the answer
	inOrder(t, lines(t, p.front), "info dapr.runtime: "+name+"closed to open", "info dapr.runtime: "+name+"open to half-open",
		"info dapr.runtime: "+name+"half-open to open", "info dapr.runtime: "+name+"open to half-open", "info dapr.runtime: "+name+"half-open to closed")
	if n := p.app.calls(path); n != 4 {
		t.Errorf("the app saw %d calls, want 4", n)
	}
}

// Which policies a target has: its own by name, defaults by name, several resources together.
func TestResiliencyNames(t *testing.T) {
	retry := func(name string, n int) string {
		return fmt.Sprintf("%s: {policy: constant, duration: 5ms, maxRetries: %d}", name, n)
	}
	scoped := func(text, app string) string { return text + "scopes: [" + app + "]\n" }
	for _, tt := range []struct {
		name  string
		files map[string]string
		calls int // of a call that the app answers with 500
		log   string
	}{
		{"own", map[string]string{"a.yaml": resiliency("a", "{retries: {"+retry("r", 1)+","+retry("DefaultRetryPolicy", 4)+"}}", targetBack)}, 2, "Loading Resiliency configuration: a"},
		{"default of apps", map[string]string{"a.yaml": resiliency("a", "{retries: {"+retry("DefaultAppRetryPolicy", 2)+","+retry("DefaultRetryPolicy", 4)+"}}", "{}")}, 3, ""},
		{"default of all", map[string]string{"a.yaml": resiliency("a", "{retries: {"+retry("DefaultRetryPolicy", 4)+"}}", "{}")}, 5, ""},
		{"defaults of others", map[string]string{"a.yaml": resiliency("a", "{retries: {"+retry("DefaultActorRetryPolicy", 4)+","+retry("DefaultComponentRetryPolicy", 4)+"}}", "{}")}, 1, ""},
		{"no default for a target that is listed", map[string]string{"a.yaml": resiliency("a", "{timeouts: {t: 10s}, retries: {"+retry("DefaultRetryPolicy", 4)+"}}", "{apps: {back: {timeout: t}}}")}, 1, ""},
		{"unknown name", map[string]string{"a.yaml": resiliency("a", "{retries: {"+retry("r", 2)+"}}", "{apps: {back: {retry: rr, timeout: none, circuitBreaker: none}}}")}, 1, ""},
		{"two resources", map[string]string{"a.yaml": resiliency("a", "{retries: {"+retry("r", 2)+"}}", "{}"), "b.yaml": resiliency("b", "{}", targetBack)}, 3, "Loading Resiliency configuration: b"},
		{"second document", map[string]string{"a.yaml": component("s", "state.in-memory") + "---\n" + resiliency("a", "{retries: {"+retry("r", 2)+"}}", targetBack)}, 3, ""},
		{"in scope", map[string]string{"a.yaml": scoped(resiliency("a", "{retries: {"+retry("r", 2)+"}}", targetBack), "front")}, 3, ""},
		{"out of scope", map[string]string{"a.yaml": scoped(resiliency("a", "{retries: {"+retry("r", 2)+"}}", targetBack), "back")}, 1, ""},
		{"another target", map[string]string{"a.yaml": resiliency("a", "{retries: {"+retry("r", 2)+"}}", "{apps: {other: {retry: r}}}")}, 1, ""},
		{"built-in name", map[string]string{"a.yaml": resiliency("a", "{retries: {"+retry("DaprBuiltInServiceRetries", 5)+"}}", "{}")}, 1, ""},
		{"broken duration", map[string]string{"a.yaml": resiliency("bad", "{timeouts: {t: soon}, retries: {"+retry("r", 2)+"}}", targetBack)}, 1, "Could not read resiliency policy bad: "},
		{"broken policy", map[string]string{"a.yaml": resiliency("bad", "{retries: {r: {policy: sometimes}}}", targetBack)}, 1, "Could not read resiliency policy bad: "},
		{"broken matching", map[string]string{"a.yaml": resiliency("bad", `{retries: {r: {policy: constant, matching: {httpStatusCodes: "5xx"}}}}`, targetBack)}, 1, "Could not read resiliency policy bad: "},
		{"broken trip", map[string]string{"a.yaml": resiliency("bad", "{retries: {"+retry("r", 2)+"}, circuitBreakers: {cb: {trip: failures > many}}}", targetBack)}, 1, "Could not read resiliency policy bad: "},
		{"broken beside good", map[string]string{"a.yaml": resiliency("bad", "{timeouts: {t: soon}}", "{}"), "b.yaml": resiliency("good", "{retries: {"+retry("r", 2)+"}}", targetBack)}, 3, "Loading Resiliency configuration: good"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, tt.files)
			if resp, _ := invoke(t, p.front, "GET", "back", "/fail/500/99/x"); resp.StatusCode != 500 || p.app.calls("/fail/500/99/x") != tt.calls {
				t.Errorf("%d after %d calls, want 500 after %d", resp.StatusCode, p.app.calls("/fail/500/99/x"), tt.calls)
			}
			if tt.log == "" {
				return
			}
			level := "info"
			if strings.HasPrefix(tt.log, "Could not") {
				level = "error"
			}
			inOrder(t, lines(t, p.front), level+" dapr.runtime: "+tt.log+".*")
		})
	}
}

// A sidecar that cannot be reached is tried again without any policy of the user's: three
// times, or as the policy of the built-in name says, which can only be more.
func TestResiliencyOfUnreachableApps(t *testing.T) {
	for _, tt := range []struct{ name, policies, want, log string }{
		{"more", "{retries: {DaprBuiltInServiceRetries: {policy: constant, duration: 5ms, maxRetries: 5}}}", "after 5 retries", ""},
		{"too few", "{retries: {DaprBuiltInServiceRetries: {policy: constant, duration: 5ms, maxRetries: 1}}}", "after 3 retries", "1 is too few for DaprBuiltInServiceRetries; 3 are made"},
		{"user's own", "{retries: {DefaultRetryPolicy: {policy: constant, duration: 5ms, maxRetries: 1}}}", "after 1 retries", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			apps := filepath.Join(t.TempDir(), "apps.yaml")
			if err := os.WriteFile(apps, fmt.Appendf(nil, "apps: {gone: [\"127.0.0.1:%d\"]}\n", harness.FreePort(t)), 0o600); err != nil {
				t.Fatal(err)
			}
			s := harness.NewMesh(t).Start(harness.Options{AppID: "front", Files: map[string]string{"r.yaml": resiliency("a", tt.policies, "{}")},
				Config: configuration(fmt.Sprintf("  nameResolution: {component: staticfile, configuration: {path: %q}}\n", apps))})
			resp, body := invoke(t, s, "POST", "gone", "/x")
			if code, message := failure(t, body); resp.StatusCode != 500 || code != "ERR_DIRECT_INVOKE" || !strings.Contains(message, "failed to invoke target gone "+tt.want) {
				t.Errorf("%d %s, want 500 ERR_DIRECT_INVOKE %s", resp.StatusCode, body, tt.want)
			}
			if !strings.Contains(s.Log(), tt.log) {
				t.Errorf("the log does not say %q", tt.log)
			}
		})
	}
}
