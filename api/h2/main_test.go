package h2_test

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quiet drops logs of expected failures.
var quiet = slog.New(slog.DiscardHandler)

// raw is a gRPC codec whose messages are *[]byte.
type raw struct{}

func (raw) Name() string                    { return "proto" }
func (raw) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = append([]byte(nil), b...); return nil }

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve runs s until the test ends.
func serve(t testing.TB, s *h2.Server) string {
	t.Helper()
	if s.Log == nil {
		s.Log = quiet
	}
	l := listen(t)
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// client makes a client of ours.
func client(t testing.TB, addr string) *h2.Client {
	t.Helper()
	c := &h2.Client{Addr: addr, Log: quiet, Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}}
	t.Cleanup(func() { c.Close() })
	return c
}

// grpcClient makes a client of grpc-go.
func grpcClient(t testing.TB, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
	c, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// grpcServer runs a server of grpc-go whose every method is h.
func grpcServer(t testing.TB, h grpc.StreamHandler, opts ...grpc.ServerOption) (string, *grpc.Server) {
	t.Helper()
	opts = append(opts, grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(h), grpc.MaxRecvMsgSize(64<<20), grpc.WaitForHandlers(true))
	s := grpc.NewServer(opts...)
	l := listen(t)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String(), s
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

var (
	grpcHeader = call.Fields{{Name: "content-type", Value: "application/grpc"}}
	grpcOK     = call.Fields{{Name: "grpc-status", Value: "0"}}
)

func grpcEnd(code codes.Code, text string) call.Fields {
	return call.Fields{{Name: "grpc-status", Value: strconv.Itoa(int(code))}, {Name: "grpc-message", Value: text}}
}

// message frames one gRPC message.
func message(p []byte) []byte {
	b := append(make([]byte, 0, 5+len(p)), 0)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
}

// body is everything a stream still has.
func body(st *h2.Stream) ([]byte, error) { return io.ReadAll(st) }

// echo answers with the request's body, whole if it was there at once, else as it comes.
func echo(st *h2.Stream) {
	first, ended := st.First()
	if ended {
		_ = st.Respond(200, grpcHeader, first, grpcOK)
		return
	}
	if st.SendHeaders(200, grpcHeader) != nil {
		return
	}
	if _, err := st.Write(first); err != nil {
		return
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := st.Read(buf)
		if n > 0 {
			if _, werr := st.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err == io.EOF {
			_ = st.CloseSend(grpcOK)
			return
		}
		if err != nil {
			return
		}
	}
}

// grpcEcho is echo for a server of grpc-go: it sends back messages, and metadata whose name
// begins with "x-".
func grpcEcho(_ any, ss grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(ss.Context())
	back := metadata.MD{}
	for k, v := range md {
		if len(k) > 2 && k[:2] == "x-" {
			back[k] = v
		}
	}
	ss.SetTrailer(back)
	if err := ss.SetHeader(back); err != nil {
		return err
	}
	for {
		var m []byte
		err := ss.RecvMsg(&m)
		if err == io.EOF {
			if want := md["x-fail"]; len(want) > 0 {
				return status.Error(codes.FailedPrecondition, want[0])
			}
			return nil
		}
		if err != nil {
			return err
		}
		if err := ss.SendMsg(&m); err != nil {
			return err
		}
	}
}
