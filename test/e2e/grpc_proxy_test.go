package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/test/harness"
)

// TestProxyMetadata: what travels beside a proxied call.
func TestProxyMetadata(t *testing.T) {
	t.Parallel()
	app := &mirrorApp{}
	mesh := harness.NewMesh(t)
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: app.serve(t), Protocol: "grpc", Env: []string{"APP_API_TOKEN=app-secret"}})
	caller := mesh.Start(harness.Options{AppID: "caller", Env: []string{"DAPR_API_TOKEN=api-secret"}})
	for _, tt := range []struct {
		name, target, key, value string
		remote                   bool
	}{
		{"remote", caller.Target(), "dapr-app-id", "callee", true},
		{"remote by callee id", caller.Target(), "dapr-callee-app-id", "callee", true},
		{"local", callee.Target(), "dapr-app-id", "callee", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, tt.target)
			ctx := callContext(t, tt.key, tt.value, "x-mine", "1", "x-mine", "2", "x-in-bin", "\x00\xff", "dapr-api-token", "api-secret", "dapr-caller-app-id", "forged")
			if _, err := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{}); err != nil {
				t.Fatal(err)
			}
			md := app.last()
			if !slices.Equal(md["x-mine"], []string{"1", "2"}) || first(md, "x-in-bin") != "\x00\xff" {
				t.Errorf("app saw %v", md)
			}
			if !slices.Equal(md["dapr-api-token"], []string{"app-secret"}) {
				t.Errorf("app saw token %q, want its own", md["dapr-api-token"])
			}
			if md["dapr-app-id"] != nil {
				t.Errorf("app saw dapr-app-id %q", md["dapr-app-id"])
			}
			if slices.Contains(md["dapr-caller-app-id"], "forged") {
				t.Errorf("app saw the forged caller %q", md["dapr-caller-app-id"])
			}
			if tt.remote && (!slices.Equal(md["dapr-caller-app-id"], []string{"caller"}) || !slices.Equal(md["dapr-callee-app-id"], []string{"callee"})) {
				t.Errorf("app saw caller %q, callee %q", md["dapr-caller-app-id"], md["dapr-callee-app-id"])
			}
			if first(md, "content-type") != "application/grpc" {
				t.Errorf("app saw content-type %q", md["content-type"])
			}
		})
	}
}

// TestProxyContentType: the encoding of the messages is between caller and app.
func TestProxyContentType(t *testing.T) {
	t.Parallel()
	app := &mirrorApp{}
	mesh := harness.NewMesh(t)
	mesh.Start(harness.Options{AppID: "callee", AppPort: app.serve(t), Protocol: "grpc"})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	_, err := dial(t, caller.Target()).UnaryCall(callContext(t, "dapr-app-id", "callee"), &grpc_testing.SimpleRequest{}, grpc.CallContentSubtype("proto"))
	if err != nil {
		t.Fatal(err)
	}
	if got := first(app.last(), "content-type"); got != "application/grpc+proto" {
		t.Errorf("app saw content-type %q, want the caller's application/grpc+proto", got)
	}
}

// mirrorApp keeps the metadata of the last call, and tells when one ends early.
type mirrorApp struct {
	testApp
	seen      chan metadata.MD
	began     chan struct{}
	cancelled chan struct{}
}

func (a *mirrorApp) serve(t *testing.T) int {
	a.seen = make(chan metadata.MD, 16)
	a.began, a.cancelled = make(chan struct{}, 16), make(chan struct{}, 16)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(srv, a)
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	return l.Addr().(*net.TCPAddr).Port
}

func (a *mirrorApp) last() metadata.MD { return <-a.seen }

func (a *mirrorApp) UnaryCall(ctx context.Context, in *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	a.seen <- md
	if in.GetFillUsername() { // means: hang
		a.began <- struct{}{}
		<-ctx.Done()
		a.cancelled <- struct{}{}
		return nil, ctx.Err()
	}
	return &grpc_testing.SimpleResponse{}, nil
}

func (a *mirrorApp) FullDuplexCall(ss grpc_testing.TestService_FullDuplexCallServer) error {
	a.began <- struct{}{}
	<-ss.Context().Done()
	a.cancelled <- struct{}{}
	return ss.Context().Err()
}

// TestProxyCancel: a gRPC app learns within about a second that its caller has gone or that
// its time is up.
func TestProxyCancel(t *testing.T) {
	t.Parallel()
	app := &mirrorApp{}
	mesh := harness.NewMesh(t)
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: app.serve(t), Protocol: "grpc"})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	for _, way := range bothWays(callee, caller) {
		c := dial(t, way.via.Target())
		for _, deadline := range []bool{false, true} {
			for _, stream := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/deadline=%v/stream=%v", way.name, deadline, stream), func(t *testing.T) {
					ctx, cancel := context.WithTimeout(callContext(t, "dapr-app-id", "callee"), map[bool]time.Duration{true: 300 * time.Millisecond, false: 10 * time.Second}[deadline])
					defer cancel()
					ended := make(chan error, 1)
					go func() {
						if !stream {
							_, err := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{FillUsername: true})
							ended <- err
							return
						}
						bs, err := c.FullDuplexCall(ctx)
						if err == nil {
							bs.Send(&grpc_testing.StreamingOutputCallRequest{})
							_, err = bs.Recv()
						}
						ended <- err
					}()
					within(t, 5*time.Second, "the app gets the call", app.began)
					want := codes.DeadlineExceeded
					if !deadline {
						cancel()
						want = codes.Canceled
					}
					within(t, 1500*time.Millisecond, "the app's call is cancelled", app.cancelled)
					if err := <-ended; status.Code(err) != want {
						t.Errorf("the caller got %v, want %v", err, want)
					}
				})
			}
		}
	}
}

// TestProxyFailures: what a gRPC caller learns when its call cannot be proxied.
func TestProxyFailures(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	mesh.Start(harness.Options{AppID: "web", AppPort: harness.Serve(t, http.HandlerFunc(echo))})
	mesh.Start(harness.Options{AppID: "noapp"})
	dead := harness.FreePort(t)
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", dead))
	if err != nil {
		t.Fatal(err)
	}
	mesh.Start(harness.Options{AppID: "dead", AppPort: dead, Protocol: "grpc"})
	l.Close()
	mesh.Start(harness.Options{AppID: "bare", AppPort: serveCallbacks(t), Protocol: "grpc"})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	c := dial(t, caller.Target())
	for _, tt := range []struct {
		name string
		md   []string
		code codes.Code
		text string
	}{
		{"no target", nil, codes.Unknown, "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata"},
		{"unknown app", []string{"dapr-app-id", "ghost"}, codes.Unknown, "ghost"},
		{"two dots", []string{"dapr-app-id", "a.b.c"}, codes.Unknown, "invalid app id a.b.c"},
		{"app speaks HTTP", []string{"dapr-app-id", "web"}, codes.Unavailable, "--app-protocol"},
		{"no app port", []string{"dapr-app-id", "noapp"}, codes.Unavailable, "app channel is not initialized"},
		{"app is down", []string{"dapr-app-id", "dead"}, codes.Unavailable, "refused"},
		{"app lacks the service", []string{"dapr-app-id", "bare"}, codes.Unimplemented, "unknown service"},
		{"callee id wins", []string{"dapr-app-id", "ghost", "dapr-callee-app-id", "bare"}, codes.Unimplemented, "unknown service"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			_, err := c.UnaryCall(callContext(t, tt.md...), &grpc_testing.SimpleRequest{})
			if st := status.Convert(err); st.Code() != tt.code || !strings.Contains(st.Message(), tt.text) {
				t.Errorf("got %v, want %v with %q", st, tt.code, tt.text)
			}
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestProxyLargeStream: a stream's total has no limit, a message has.
func TestProxyLargeStream(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: serveGRPC(t), Protocol: "grpc"})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	c := dial(t, caller.Target())
	cs, err := c.StreamingInputCall(callContext(t, "dapr-app-id", "callee"))
	if err != nil {
		t.Fatal(err)
	}
	for range 40 {
		if err := cs.Send(&grpc_testing.StreamingInputCallRequest{Payload: &grpc_testing.Payload{Body: make([]byte, 1<<20)}}); err != nil {
			break // CloseAndRecv tells why
		}
	}
	if out, err := cs.CloseAndRecv(); err != nil || out.GetAggregatedPayloadSize() != 40<<20 {
		t.Errorf("40 MiB up: %v, %v", out, err)
	}
	ps := make([]*grpc_testing.ResponseParameters, 40)
	for i := range ps {
		ps[i] = &grpc_testing.ResponseParameters{Size: 1 << 20}
	}
	ss, err := c.StreamingOutputCall(callContext(t, "dapr-app-id", "callee"), &grpc_testing.StreamingOutputCallRequest{ResponseParameters: ps})
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for {
		m, err := ss.Recv()
		if err != nil {
			if err != io.EOF || total != 40<<20 {
				t.Errorf("40 MiB down: %d, %v", total, err)
			}
			break
		}
		total += len(m.GetPayload().GetBody())
	}
	_, err = c.UnaryCall(callContext(t, "dapr-app-id", "callee"), &grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: make([]byte, 5<<20)}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message of 5 MiB: %v, want ResourceExhausted", err)
	}
	for _, s := range []*harness.Sidecar{callee, caller} {
		if peak := memory(t, s, "VmHWM"); peak > 100<<20 {
			t.Errorf("sidecar %s took up to %d MiB", s.AppID, peak>>20)
		}
	}
}
