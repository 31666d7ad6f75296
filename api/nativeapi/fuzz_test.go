package nativeapi_test

import (
	"context"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/api/nativeapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/test/fakeengine"
)

// script is a stream whose peer says what a fuzzer wrote.
type script struct {
	ctx context.Context
	in  []byte
	t   *testing.T
}

func (s *script) SetHeader(metadata.MD) error  { return nil }
func (s *script) SendHeader(metadata.MD) error { return nil }
func (s *script) SetTrailer(metadata.MD)       {}
func (s *script) Context() context.Context     { return s.ctx }

// SendMsg makes sure that a frame can be encoded and that a fault has a name.
func (s *script) SendMsg(m any) error {
	if _, err := proto.Marshal(m.(proto.Message)); err != nil {
		s.t.Errorf("a frame that cannot be sent: %v", err)
	}
	if f, ok := m.(*mechav1.BrokerFrame); ok && f.GetFault() != nil && (f.GetFault().GetReason() == "" || f.GetFault().GetCode() == 0) {
		s.t.Errorf("a fault without a name: %v", f)
	}
	return nil
}

// RecvMsg takes the next frame: two bytes of length, then its encoding.
func (s *script) RecvMsg(m any) error {
	for len(s.in) >= 2 {
		n := min(int(binary.BigEndian.Uint16(s.in)), len(s.in)-2)
		raw := s.in[2 : 2+n]
		s.in = s.in[2+n:]
		if proto.Unmarshal(raw, m.(proto.Message)) == nil {
			return nil
		}
	}
	return io.EOF
}

// registrar takes the handlers of the service.
type registrar map[string]func(any, grpc.ServerStream) error

func (r registrar) RegisterService(d *grpc.ServiceDesc, srv any) {
	for _, s := range d.Streams {
		r[s.StreamName] = func(_ any, ss grpc.ServerStream) error { return s.Handler(srv, ss) }
	}
}

func scriptOf(frames ...proto.Message) (out []byte) {
	for _, f := range frames {
		raw, err := proto.Marshal(f)
		if err != nil {
			panic(err)
		}
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(raw))), raw...)
	}
	return out
}

// play runs a script to its end and judges how the call ends.
func play(t *testing.T, method string, in []byte) {
	e := fakeengine.New()
	for i := range 6 {
		e.PutRecord("orders", int32(i%4), block.Message{Key: "k", Data: []byte("x")})
	}
	r := registrar{}
	server := &nativeapi.Server{Messaging: e}
	server.Register(r)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := r[method](nil, &script{ctx: ctx, in: in, t: t})
	switch st := status.Convert(err); st.Code() {
	case codes.OK:
	case codes.Internal, codes.Unknown, codes.DeadlineExceeded:
		t.Errorf("the call ended with %v", err)
	default:
		if reason(err) == "" {
			t.Errorf("the call ended without a name: %v", err)
		}
	}
}

func FuzzConsume(f *testing.F) {
	open := &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Open{Open: &mechav1.ConsumeOpen{PubsubName: "pubsub", Topics: []string{"orders"}}}}
	credited := &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Open{Open: &mechav1.ConsumeOpen{PubsubName: "pubsub", Topics: []string{"orders"}, Credited: true, AutoRevoke: true}}}
	d := &mechav1.Deliver{Topic: "orders", Epoch: 1}
	nack := &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Nack{Nack: &mechav1.Nack{Topic: "orders", Partition: 1, Epoch: 1, Position: 1, Remedy: mechav1.Remedy_REMEDY_PARK}}}
	f.Add(scriptOf(open, ackFrame(d, 1, 1), ackFrame(d, 1, 1<<63), nack, nack))
	f.Add(scriptOf(credited, &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Credit{Credit: &mechav1.Credit{Messages: 1<<32 - 1, Bytes: 1<<64 - 1}}}, ackFrame(d, 1, 1),
		&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Control{Control: &mechav1.Control{Action: &mechav1.Control_Seek{Seek: &mechav1.Place{Place: &mechav1.Place_Position{Position: 1 << 63}}}}}},
		&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_RevokeDone{RevokeDone: &mechav1.RevokeDone{Assignment: 1}}},
		&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Close{Close: &mechav1.Close{}}}, open))
	f.Add(scriptOf(ackFrame(d, 1, 1), open))
	f.Fuzz(func(t *testing.T, in []byte) { play(t, "Consume", in) })
}

func FuzzPublish(f *testing.F) {
	p := uint32(3)
	open := &mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Open{Open: &mechav1.PublishOpen{PubsubName: "pubsub", Topic: "orders", ProducerId: "p"}}}
	batch := &mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Batch{Batch: &mechav1.PublishBatch{Sequence: 1<<64 - 1, Entries: []*mechav1.PublishEntry{entry("k", "v"), {Partition: &p}}}}}
	f.Add(scriptOf(open, batch, batch, &mechav1.PublishFrame{Frame: &mechav1.PublishFrame_ResumeKey{ResumeKey: &mechav1.ResumeKey{Key: "k", Partition: &p}}}, batch))
	f.Add(scriptOf(batch, open))
	f.Fuzz(func(t *testing.T, in []byte) { play(t, "Publish", in) })
}
