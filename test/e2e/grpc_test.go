package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/test/harness"
)

// testApp is a gRPC app with all four kinds of streams.
type testApp struct {
	grpc_testing.UnimplementedTestServiceServer
}

func (testApp) UnaryCall(ctx context.Context, in *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	grpc.SetHeader(ctx, metadata.Pairs("x-head", "h", "x-seen-caller", first(md, "dapr-caller-app-id"), "x-bin-bin", first(md, "x-in-bin")))
	grpc.SetTrailer(ctx, metadata.Pairs("x-trail", "t"))
	if st := in.GetResponseStatus(); st != nil {
		s, err := status.New(codes.Code(st.Code), st.Message).WithDetails(&grpc_testing.EchoStatus{Code: 7, Message: "detail"})
		if err != nil {
			return nil, err
		}
		return nil, s.Err()
	}
	return &grpc_testing.SimpleResponse{Payload: in.GetPayload()}, nil
}

func first(md metadata.MD, k string) string {
	if v := md[k]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func (testApp) StreamingOutputCall(in *grpc_testing.StreamingOutputCallRequest, ss grpc_testing.TestService_StreamingOutputCallServer) error {
	for _, p := range in.GetResponseParameters() {
		if err := ss.Send(&grpc_testing.StreamingOutputCallResponse{Payload: &grpc_testing.Payload{Body: make([]byte, p.Size)}}); err != nil {
			return err
		}
		time.Sleep(time.Duration(p.IntervalUs) * time.Microsecond)
	}
	return nil
}

func (testApp) StreamingInputCall(ss grpc_testing.TestService_StreamingInputCallServer) error {
	n := 0
	for {
		in, err := ss.Recv()
		if errors.Is(err, io.EOF) {
			return ss.SendAndClose(&grpc_testing.StreamingInputCallResponse{AggregatedPayloadSize: int32(n)})
		}
		if err != nil {
			return err
		}
		n += len(in.GetPayload().GetBody())
	}
}

func (testApp) FullDuplexCall(ss grpc_testing.TestService_FullDuplexCallServer) error {
	for {
		in, err := ss.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ss.Send(&grpc_testing.StreamingOutputCallResponse{Payload: in.GetPayload()}); err != nil {
			return err
		}
	}
}

func serveGRPC(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(srv, testApp{})
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	return l.Addr().(*net.TCPAddr).Port
}

func dial(t *testing.T, target string) grpc_testing.TestServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return grpc_testing.NewTestServiceClient(conn)
}

func TestProxyAllStreamKinds(t *testing.T) {
	mesh := harness.NewMesh(t)
	mesh.Start(harness.Options{AppID: "callee", AppPort: serveGRPC(t), Protocol: "grpc"})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	c := dial(t, caller.Target())
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "dapr-app-id", "callee", "x-in-bin", "\x00\x01\xff")

	t.Run("unary", func(t *testing.T) {
		var head, trail metadata.MD
		out, err := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: []byte("hello")}}, grpc.Header(&head), grpc.Trailer(&trail))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(out.GetPayload().GetBody()); got != "hello" {
			t.Errorf("payload = %q, want hello", got)
		}
		if first(head, "x-head") != "h" || first(trail, "x-trail") != "t" {
			t.Errorf("header %v, trailer %v: want x-head and x-trail", head, trail)
		}
		if got := first(head, "x-seen-caller"); got != "caller" {
			t.Errorf("callee saw caller %q, want caller", got)
		}
		if got := first(head, "x-bin-bin"); got != "\x00\x01\xff" {
			t.Errorf("binary metadata came back as %q", got)
		}
	})
	t.Run("error with details", func(t *testing.T) {
		var trail metadata.MD
		_, err := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{ResponseStatus: &grpc_testing.EchoStatus{Code: int32(codes.AlreadyExists), Message: "there"}}, grpc.Trailer(&trail))
		st := status.Convert(err)
		if st.Code() != codes.AlreadyExists || st.Message() != "there" || len(st.Details()) != 1 {
			t.Fatalf("status = %v with %d details, want AlreadyExists there with 1", st, len(st.Details()))
		}
		if first(trail, "x-trail") != "t" {
			t.Errorf("trailer %v: want x-trail", trail)
		}
	})
	t.Run("server streaming", func(t *testing.T) {
		ss, err := c.StreamingOutputCall(ctx, &grpc_testing.StreamingOutputCallRequest{ResponseParameters: []*grpc_testing.ResponseParameters{{Size: 1}, {Size: 100_000, IntervalUs: 20_000}, {Size: 3}}})
		if err != nil {
			t.Fatal(err)
		}
		var sizes []int
		for {
			m, err := ss.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			sizes = append(sizes, len(m.GetPayload().GetBody()))
		}
		if len(sizes) != 3 || sizes[1] != 100_000 {
			t.Errorf("sizes = %v, want [1 100000 3]", sizes)
		}
	})
	t.Run("client streaming", func(t *testing.T) {
		cs, err := c.StreamingInputCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			if err := cs.Send(&grpc_testing.StreamingInputCallRequest{Payload: &grpc_testing.Payload{Body: make([]byte, 10_000)}}); err != nil {
				t.Fatal(err)
			}
		}
		out, err := cs.CloseAndRecv()
		if err != nil || out.GetAggregatedPayloadSize() != 500_000 {
			t.Fatalf("got %v, %v; want 500000", out, err)
		}
	})
	t.Run("bidi ping pong", func(t *testing.T) {
		bs, err := c.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			if err := bs.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: make([]byte, i)}}); err != nil {
				t.Fatal(err)
			}
			m, err := bs.Recv()
			if err != nil || len(m.GetPayload().GetBody()) != i {
				t.Fatalf("round %d: %v, %v", i, m, err)
			}
		}
		bs.CloseSend()
		if _, err := bs.Recv(); !errors.Is(err, io.EOF) {
			t.Fatalf("end = %v, want EOF", err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		bs, err := c.FullDuplexCall(short)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bs.Recv(); status.Code(err) != codes.DeadlineExceeded {
			t.Fatalf("got %v, want DeadlineExceeded", err)
		}
	})
	t.Run("unknown app", func(t *testing.T) {
		bad := metadata.AppendToOutgoingContext(context.Background(), "dapr-app-id", "nosuch")
		_, err := c.UnaryCall(bad, &grpc_testing.SimpleRequest{})
		if status.Code(err) != codes.Unknown {
			t.Fatalf("got %v, want Unknown", err)
		}
	})
}
