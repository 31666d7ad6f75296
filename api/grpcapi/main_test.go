package grpcapi_test

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/runtime/about"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// invokeFunc is service invocation.
type invokeFunc func(ctx context.Context, req *call.Request, out call.Responder) error

func (f invokeFunc) Invoke(ctx context.Context, req *call.Request, out call.Responder) error {
	return f(ctx, req, out)
}

// answers makes an invoker with one whole answer.
func answers(resp *call.Response) invokeFunc {
	return func(ctx context.Context, _ *call.Request, out call.Responder) error { return out.Respond(ctx, resp) }
}

// served keeps what the observer is told.
type served struct {
	mu  sync.Mutex
	log []string
}

func (s *served) GRPCServed(method string, code codes.Code, _ string, _, _ int64, _ time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, method+" "+code.String())
}

func (s *served) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.log...)
}

type kit struct {
	runtimev1.DaprClient
	conn   *grpc.ClientConn
	about  *about.Sidecar
	served *served
	drain  func(context.Context) error
}

// newKit serves the API on a port of its own, with a client.
func newKit(t testing.TB, o grpcapi.Options) *kit {
	t.Helper()
	k := &kit{about: about.New("app"), served: &served{}}
	o.AppID, o.About, o.Observe, o.Log = "app", k.about, k.served, slog.New(slog.DiscardHandler)
	s := grpcapi.New(o)
	l := listen(t)
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	k.conn = dial(t, l.Addr().String())
	k.DaprClient = runtimev1.NewDaprClient(k.conn)
	var once sync.Once
	k.drain = func(ctx context.Context) (err error) {
		once.Do(func() {
			err = s.Drain(ctx)
			if e := <-done; e != nil {
				t.Errorf("Serve ended with %v", e)
			}
		})
		return err
	}
	t.Cleanup(func() {
		k.conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = k.drain(ctx)
	})
	return k
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dial(t testing.TB, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// within is a context that ends well before the test's own limit.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}
