package nativeapi_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/grpcapi"
	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/api/nativeapi"
	"github.com/mecha-project/mecha/runtime/about"
	"github.com/mecha-project/mecha/test/fakeengine"
)

func TestMain(m *testing.M) {
	if target := os.Getenv(consumeEnv); target != "" {
		if err := consumeAll(context.Background(), target); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// serve answers mecha.v1.Messaging as a sidecar does, through its own gRPC edge, and dials it.
func serve(t testing.TB, m nativeapi.Messaging, maxMessage int) mechav1.MessagingClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	native := &nativeapi.Server{Messaging: m}
	s := grpcapi.New(grpcapi.Options{Native: native.Register, MaxMessage: maxMessage, About: &about.Sidecar{}})
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Drain(ctx); err != nil {
			t.Errorf("drain: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return mechav1.NewMessagingClient(conn)
}

func start(t testing.TB) (*fakeengine.Engine, mechav1.MessagingClient) {
	t.Helper()
	e := fakeengine.New()
	return e, serve(t, e, 4<<20)
}

// reason is the name of the failure in a status' details.
func reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

func wantStatus(t testing.TB, err error, code codes.Code, name string) {
	t.Helper()
	if status.Code(err) != code || reason(err) != name {
		t.Errorf("got %v %q (%v), want %v %q", status.Code(err), reason(err), err, code, name)
	}
}

func limited(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// publisher is a publishing stream.
type publisher struct {
	t testing.TB
	mechav1.Messaging_PublishClient
}

func publish(t testing.TB, c mechav1.MessagingClient, open *mechav1.PublishOpen) publisher {
	t.Helper()
	if open.PubsubName == "" {
		open.PubsubName = "pubsub"
	}
	st, err := c.Publish(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	p := publisher{t, st}
	p.send(&mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Open{Open: open}})
	return p
}

func (p publisher) send(f *mechav1.PublishFrame) {
	p.t.Helper()
	if err := p.Send(f); err != nil {
		p.t.Fatal(err)
	}
}

func (p publisher) batch(seq uint64, entries ...*mechav1.PublishEntry) {
	p.t.Helper()
	p.send(&mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Batch{Batch: &mechav1.PublishBatch{Entries: entries, Sequence: seq}}})
}

func (p publisher) opened() *mechav1.PublishOpened {
	p.t.Helper()
	r, err := p.Recv()
	if err != nil || r.GetOpened() == nil {
		p.t.Fatalf("got %v, %v; want opened", r, err)
	}
	return r.GetOpened()
}

func (p publisher) receipts() *mechav1.Receipts {
	p.t.Helper()
	r, err := p.Recv()
	if err != nil || r.GetReceipts() == nil {
		p.t.Fatalf("got %v, %v; want receipts", r, err)
	}
	return r.GetReceipts()
}

// consumer is a consuming stream.
type consumer struct {
	t testing.TB
	mechav1.Messaging_ConsumeClient
	cancel context.CancelFunc
}

func consume(t testing.TB, c mechav1.MessagingClient, open *mechav1.ConsumeOpen) consumer {
	t.Helper()
	if open.PubsubName == "" {
		open.PubsubName = "pubsub"
	}
	if open.Topics == nil {
		open.Topics = []string{"orders"}
	}
	ctx, cancel := context.WithCancel(limited(t))
	t.Cleanup(cancel)
	st, err := c.Consume(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := consumer{t, st, cancel}
	s.send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Open{Open: open}})
	return s
}

func (s consumer) send(f *mechav1.ConsumerFrame) {
	s.t.Helper()
	if err := s.Send(f); err != nil {
		s.t.Fatal(err)
	}
}

func (s consumer) frame() *mechav1.BrokerFrame {
	s.t.Helper()
	f, err := s.Recv()
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

// until reads frames until want says that one is it.
func (s consumer) until(what string, want func(*mechav1.BrokerFrame) bool) *mechav1.BrokerFrame {
	s.t.Helper()
	for {
		f, err := s.Recv()
		if err != nil {
			s.t.Fatalf("%v, while waiting for %s", err, what)
		}
		if want(f) {
			return f
		}
	}
}

func (s consumer) opened() *mechav1.ConsumeOpened {
	s.t.Helper()
	return s.until("opened", func(f *mechav1.BrokerFrame) bool { return f.GetOpened() != nil }).GetOpened()
}

func (s consumer) deliver() *mechav1.Deliver {
	s.t.Helper()
	return s.until("deliver", func(f *mechav1.BrokerFrame) bool { return f.GetDeliver() != nil }).GetDeliver()
}

func (s consumer) fault() *mechav1.MessagingFault {
	s.t.Helper()
	return s.until("fault", func(f *mechav1.BrokerFrame) bool { return f.GetFault() != nil }).GetFault()
}

func ackFrame(d *mechav1.Deliver, from, to uint64) *mechav1.ConsumerFrame {
	return &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Ack{Ack: &mechav1.Ack{Partitions: []*mechav1.PartitionAck{
		{Topic: d.GetTopic(), Partition: d.GetPartition(), Epoch: d.GetEpoch(), Ranges: []*mechav1.PositionRange{{From: from, To: to}}}}}}}
}

func (s consumer) ack(d *mechav1.Deliver) {
	s.t.Helper()
	ms := d.GetMessages()
	s.send(ackFrame(d, ms[0].GetPosition(), ms[len(ms)-1].GetPosition()))
}

// ended reads to the end of the call.
func (s consumer) ended() error {
	s.t.Helper()
	for {
		if _, err := s.Recv(); err != nil {
			return err
		}
	}
}
