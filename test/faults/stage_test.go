//go:build unix

package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mecha-project/mecha/test/harness"
)

// envApp makes the test binary an app: "http" or "grpc", on the port in envPort.
const (
	envApp  = "MECHA_FAULTS_APP"
	envPort = "MECHA_FAULTS_PORT"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(envApp); kind != "" {
		runApp(kind, os.Getenv(envPort))
		return
	}
	code := m.Run()
	results.print()
	os.Exit(code)
}

// runApp is an app that answers what it was asked, until it is killed.
func runApp(kind, port string) {
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if kind == "grpc" {
		s := grpc.NewServer()
		grpc_testing.RegisterTestServiceServer(s, echoService{})
		err = s.Serve(l)
	} else {
		err = http.Serve(l, http.HandlerFunc(echo))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func echo(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/stream" {
		stream(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the caller is gone
	}
	w.Write(body)
}

type echoService struct {
	grpc_testing.UnimplementedTestServiceServer
}

func (echoService) UnaryCall(_ context.Context, in *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	return &grpc_testing.SimpleResponse{Payload: in.GetPayload()}, nil
}

// app is an app in a process of its own.
type app struct {
	t    testing.TB
	kind string
	port int
	cmd  *exec.Cmd
}

func startApp(t testing.TB, kind string) *app {
	t.Helper()
	a := &app{t: t, kind: kind, port: harness.FreePort(t)}
	a.start()
	t.Cleanup(a.kill)
	return a
}

// start runs the app and waits for its port.
func (a *app) start() {
	a.t.Helper()
	self, err := os.Executable()
	if err != nil {
		a.t.Fatal(err)
	}
	a.cmd = exec.Command(self)
	a.cmd.Env = append(os.Environ(), envApp+"="+a.kind, envPort+"="+strconv.Itoa(a.port))
	a.cmd.Stderr = os.Stderr
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.port))
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			a.t.Fatal("the app did not start: ", err)
		}
	}
}

func (a *app) kill() {
	_ = a.cmd.Process.Kill() // it may have ended
	_ = a.cmd.Wait()
}

// overHTTP calls an app with an HTTP invocation through a sidecar.
func overHTTP(t testing.TB, s *harness.Sidecar, app string) caller {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true, DialContext: s.Dial}}
	t.Cleanup(client.CloseIdleConnections)
	url := s.URL("/v1.0/invoke/" + app + "/method/echo")
	return func(ctx context.Context, n int64) error {
		want := []byte(fmt.Sprintf("call %d", n))
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(want))
		if err != nil {
			return err
		}
		req.GetBody = nil // each call once: what the sidecar answers is what counts
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		switch {
		case err != nil:
			return err
		case resp.StatusCode != http.StatusOK:
			return fmt.Errorf("%d %s", resp.StatusCode, got)
		case !bytes.Equal(got, want):
			return fmt.Errorf("%w: %q to %q", errWrong, got, want)
		}
		return nil
	}
}

// connect makes a gRPC client that does not wait long for a sidecar that was restarted.
func connect(t testing.TB, s *harness.Sidecar) *grpc.ClientConn {
	t.Helper()
	quick := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.3, MaxDelay: 200 * time.Millisecond}
	dial := func(ctx context.Context, addr string) (net.Conn, error) { return s.Dial(ctx, "tcp", addr) }
	conn, err := grpc.NewClient("passthrough:///"+s.Target(), grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// overInvokeService calls an app with Dapr's InvokeService.
func overInvokeService(t testing.TB, s *harness.Sidecar, app string) caller {
	client := runtimev1.NewDaprClient(connect(t, s))
	return func(ctx context.Context, n int64) error {
		want := fmt.Sprintf("call %d", n)
		out, err := client.InvokeService(ctx, &runtimev1.InvokeServiceRequest{Id: app, Message: &commonv1.InvokeRequest{Method: "echo",
			Data: &anypb.Any{Value: []byte(want)}, HttpExtension: &commonv1.HTTPExtension{Verb: commonv1.HTTPExtension_POST}}})
		if err != nil {
			return err
		}
		if got := string(out.GetData().GetValue()); got != want {
			return fmt.Errorf("%w: %q to %q", errWrong, got, want)
		}
		return nil
	}
}

// overProxy calls a gRPC app with its own method.
func overProxy(t testing.TB, s *harness.Sidecar, app string) caller {
	client := grpc_testing.NewTestServiceClient(connect(t, s))
	return func(ctx context.Context, n int64) error {
		want := fmt.Sprintf("call %d", n)
		ctx = metadata.AppendToOutgoingContext(ctx, "dapr-app-id", app)
		out, err := client.UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: []byte(want)}})
		if err != nil {
			return err
		}
		if got := string(out.GetPayload().GetBody()); got != want {
			return fmt.Errorf("%w: %q to %q", errWrong, got, want)
		}
		return nil
	}
}
