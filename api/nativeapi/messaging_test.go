package nativeapi_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/test/fakeengine"
)

func entry(key, value string) *mechav1.PublishEntry {
	return &mechav1.PublishEntry{Key: key, Value: []byte(value)}
}

func TestConsume(t *testing.T) {
	e, c := start(t)
	for i := range 8 {
		e.Put("orders", string(rune('a'+i%3)), string(rune('0'+i)))
	}
	s := consume(t, c, &mechav1.ConsumeOpen{InstanceId: "one", Group: "g", StatusInterval: durationpb.New(100 * time.Millisecond),
		Require: []mechav1.Capability{mechav1.Capability_CAPABILITY_EPOCHS}})
	if o := s.frame().GetOpened(); o.GetMember() != "one" || o.GetGroup() != "g" || o.GetLimits().GetMessages() != 1024 || o.GetSessionTtl().AsDuration() != 6*time.Second ||
		o.GetTopics()[0].GetPartitions() != 4 || o.GetHandlerTimeout().AsDuration() != 5*time.Minute {
		t.Errorf("opened: %v", o)
	}
	a := s.until("assigned", func(f *mechav1.BrokerFrame) bool { return f.GetAssigned() != nil }).GetAssigned()
	if len(a.GetPartitions()) != 4 || a.GetAssignment() != 1 || a.GetGroup().GetMembers() != 1 || a.GetPartitions()[0].GetPartition().GetEpoch() != 1 {
		t.Errorf("assigned: %v", a)
	}
	seen := map[string]string{}
	for n := 0; n < 8; {
		d := s.deliver()
		for _, m := range d.GetMessages() {
			seen[m.GetKey()] += string(m.GetValue())
			n++
			if m.GetAttempt() != 1 || m.GetTime().AsTime().IsZero() || m.GetPosition() == 0 {
				t.Errorf("message %v", m)
			}
			s.send(ackFrame(d, m.GetPosition(), 0))
		}
	}
	if seen["a"] != "036" || seen["b"] != "147" || seen["c"] != "25" {
		t.Errorf("got %v", seen)
	}
	done := s.until("a status without lag", func(f *mechav1.BrokerFrame) bool {
		lag := uint64(0)
		for _, p := range f.GetStatus().GetPartitions() {
			lag += p.GetLag()
		}
		return f.GetStatus() != nil && lag == 0
	})
	if len(done.GetStatus().GetPartitions()) != 4 {
		t.Errorf("status %v", done)
	}
	s.send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Close{Close: &mechav1.Close{Drain: true}}})
	if err := s.ended(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestConsumeRefuses(t *testing.T) {
	_, c := start(t)
	open := func(o *mechav1.ConsumeOpen) []*mechav1.ConsumerFrame {
		if o.PubsubName == "" {
			o.PubsubName = "pubsub"
		}
		return []*mechav1.ConsumerFrame{{Frame: &mechav1.ConsumerFrame_Open{Open: o}}}
	}
	orders := []string{"orders"}
	good := open(&mechav1.ConsumeOpen{Topics: orders})
	tests := []struct {
		name   string
		frames []*mechav1.ConsumerFrame
		code   codes.Code
		reason string
	}{
		{"nothing", nil, codes.InvalidArgument, "FRAME_ORDER"},
		{"no open", []*mechav1.ConsumerFrame{{Frame: &mechav1.ConsumerFrame_Credit{Credit: &mechav1.Credit{Messages: 1}}}}, codes.InvalidArgument, "FRAME_ORDER"},
		{"open twice", append(open(&mechav1.ConsumeOpen{Topics: orders}), good...), codes.InvalidArgument, "FRAME_ORDER"},
		{"component", open(&mechav1.ConsumeOpen{PubsubName: "none", Topics: orders}), codes.NotFound, "NO_SUCH_COMPONENT"},
		{"no topic", open(&mechav1.ConsumeOpen{}), codes.InvalidArgument, "NO_TOPIC"},
		{"an empty topic", open(&mechav1.ConsumeOpen{Topics: []string{""}}), codes.InvalidArgument, "NO_TOPIC"},
		{"topic", open(&mechav1.ConsumeOpen{Topics: []string{fakeengine.Forbidden}}), codes.PermissionDenied, "FORBIDDEN_TOPIC"},
		{"capability", open(&mechav1.ConsumeOpen{Topics: orders, Require: []mechav1.Capability{99}}), codes.Unimplemented, "MISSING_CAPABILITY"},
		{"ordering", open(&mechav1.ConsumeOpen{Topics: orders, Ordering: 44}), codes.InvalidArgument, "BAD_OPTION"},
		{"start", open(&mechav1.ConsumeOpen{Topics: orders, Start: &mechav1.Place{}}), codes.InvalidArgument, "BAD_OPTION"},
		{"start not latest", open(&mechav1.ConsumeOpen{Topics: orders, Start: &mechav1.Place{Place: &mechav1.Place_Latest{}}}), codes.InvalidArgument, "BAD_OPTION"},
		{"start time", open(&mechav1.ConsumeOpen{Topics: orders, Start: &mechav1.Place{Place: &mechav1.Place_Time{Time: &timestamppb.Timestamp{Nanos: -1}}}}), codes.InvalidArgument, "BAD_OPTION"},
		{"manual", open(&mechav1.ConsumeOpen{Topics: orders, Manual: []*mechav1.Partition{{Topic: "orders", Partition: 4}}}), codes.InvalidArgument, "NO_SUCH_PARTITION"},
		{"manual beyond all", open(&mechav1.ConsumeOpen{Topics: orders, Manual: []*mechav1.Partition{{Topic: "orders", Partition: 1 << 31}}}), codes.InvalidArgument, "NO_SUCH_PARTITION"},
		{"retry", open(&mechav1.ConsumeOpen{Topics: orders, Retry: &mechav1.RetryPolicy{Then: 9}}), codes.InvalidArgument, "BAD_OPTION"},
		{"delay", open(&mechav1.ConsumeOpen{Topics: orders, Retry: &mechav1.RetryPolicy{FirstDelay: durationpb.New(-1)}}), codes.InvalidArgument, "BAD_OPTION"},
		{"status too often", open(&mechav1.ConsumeOpen{Topics: orders, StatusInterval: durationpb.New(1)}), codes.InvalidArgument, "BAD_OPTION"},
		{"status", open(&mechav1.ConsumeOpen{Topics: orders, StatusInterval: &durationpb.Duration{Seconds: 1 << 62}}), codes.InvalidArgument, "BAD_OPTION"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st, err := c.Consume(limited(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range tt.frames {
				if err := st.Send(f); err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
			}
			if tt.frames == nil {
				_ = st.CloseSend()
			}
			wantStatus(t, consumer{t: t, Messaging_ConsumeClient: st}.ended(), tt.code, tt.reason)
		})
	}
}

// A frame that is wrong is answered by a fault of a known name, and the stream goes on.
func TestFramesThatAreWrong(t *testing.T) {
	e, c := start(t)
	e.PutRecord("orders", 0, block.Message{Key: "k", Data: []byte("1")})
	s := consume(t, c, &mechav1.ConsumeOpen{})
	d := s.deliver()
	of := func(p uint32) *mechav1.Partition { return &mechav1.Partition{Topic: "orders", Partition: p} }
	ack := func(p uint32, epoch, from, to uint64) *mechav1.ConsumerFrame {
		return ackFrame(&mechav1.Deliver{Topic: "orders", Partition: p, Epoch: epoch}, from, to)
	}
	tests := []struct {
		name   string
		frame  *mechav1.ConsumerFrame
		reason string
		phase  string
	}{
		{"a credit of nothing", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Credit{Credit: &mechav1.Credit{}}}, "BAD_CREDIT", "credit"},
		{"a credit of another's", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Credit{Credit: &mechav1.Credit{Messages: 1, Partition: of(99)}}}, "NOT_ASSIGNED", "credit"},
		{"a credit beyond all", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Credit{Credit: &mechav1.Credit{Messages: 1<<32 - 1, Bytes: 1<<64 - 1, Partition: of(1 << 31)}}}, "NO_SUCH_PARTITION", "credit"},
		{"an ack of what was never delivered", ack(0, d.GetEpoch(), 1, 7), "NOT_DELIVERED", "ack"},
		{"an ack of another's", ack(99, 1, 1, 1), "NOT_ASSIGNED", "ack"},
		{"an ack of an epoch to come", ack(0, 1000, 1, 1), "NOT_ASSIGNED", "ack"},
		{"an ack backwards", ack(0, d.GetEpoch(), 3, 2), "BAD_RANGE", "ack"},
		{"an ack of position 0", ack(0, d.GetEpoch(), 0, 0), "BAD_RANGE", "ack"},
		{"an ack of nothing", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Ack{Ack: &mechav1.Ack{Partitions: []*mechav1.PartitionAck{{Topic: "orders", Epoch: 1}}}}}, "BAD_RANGE", "ack"},
		{"a nack of what was never delivered", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Nack{Nack: &mechav1.Nack{Topic: "orders", Epoch: d.GetEpoch(), Position: 9}}}, "NOT_DELIVERED", "nack"},
		{"a nack of no kind", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Nack{Nack: &mechav1.Nack{Topic: "orders", Epoch: d.GetEpoch(), Position: 1, Remedy: 9}}}, "BAD_OPTION", "nack"},
		{"a nack with a delay", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Nack{Nack: &mechav1.Nack{Topic: "orders", Epoch: d.GetEpoch(), Position: 1, Delay: durationpb.New(-1)}}}, "BAD_OPTION", "nack"},
		{"more time for nothing", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Extend{Extend: &mechav1.Extend{Topic: "orders", Epoch: d.GetEpoch(), Position: 9}}}, "NOT_DELIVERED", "extend"},
		{"no more time", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Extend{Extend: &mechav1.Extend{Topic: "orders", Epoch: d.GetEpoch(), Position: 1, By: &durationpb.Duration{}}}}, "BAD_OPTION", "extend"},
		{"an answer to nothing", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_RevokeDone{RevokeDone: &mechav1.RevokeDone{Assignment: 77}}}, "NO_REVOKING", "revoke_done"},
		{"a control of nothing", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Control{Control: &mechav1.Control{}}}, "BAD_OPTION", "control"},
		{"a pause of another's", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Control{Control: &mechav1.Control{Partitions: []*mechav1.Partition{of(99)}, Action: &mechav1.Control_Pause{Pause: true}}}}, "NOT_ASSIGNED", "control"},
		{"a seek to nowhere", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Control{Control: &mechav1.Control{Action: &mechav1.Control_Seek{}}}}, "BAD_OPTION", "control"},
		{"a concurrency of one partition", &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Control{Control: &mechav1.Control{Partitions: []*mechav1.Partition{of(0)}, Action: &mechav1.Control_Concurrency{Concurrency: 1}}}}, "BAD_OPTION", "control"},
		{"an unknown frame", &mechav1.ConsumerFrame{}, "UNKNOWN_FRAME", "unknown"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.send(tt.frame)
			if f := s.fault(); f.GetReason() != tt.reason || f.GetPhase() != tt.phase || f.GetMessage() == "" || f.GetCode() == 0 {
				t.Errorf("got %v, want %s in %s", f, tt.reason, tt.phase)
			}
		})
	}
	s.ack(d)
	e.PutRecord("orders", 0, block.Message{Key: "k", Data: []byte("2")})
	if d := s.deliver(); string(d.GetMessages()[0].GetValue()) != "2" {
		t.Errorf("after all this came %v", d)
	}
}

// An epoch that is over is lost, and the one that holds is not touched.
func TestStaleEpoch(t *testing.T) {
	e, c := start(t)
	e.PutRecord("orders", 0, block.Message{Key: "k", Data: []byte("1")})
	old := consume(t, c, &mechav1.ConsumeOpen{InstanceId: "pod"})
	d1 := old.deliver()
	s := consume(t, c, &mechav1.ConsumeOpen{InstanceId: "pod"})
	d2 := s.deliver()
	wantStatus(t, old.ended(), codes.Aborted, "INSTANCE_REPLACED")
	if d2.GetEpoch() <= d1.GetEpoch() || d2.GetMessages()[0].GetAttempt() != 2 {
		t.Errorf("then %v, before %v", d2, d1)
	}
	for what, f := range map[string]*mechav1.ConsumerFrame{
		"ack":  ackFrame(d1, 1, 1),
		"nack": {Frame: &mechav1.ConsumerFrame_Nack{Nack: &mechav1.Nack{Topic: "orders", Epoch: d1.GetEpoch(), Position: 1}}},
	} {
		s.send(f)
		l := s.until("lost", func(f *mechav1.BrokerFrame) bool { return f.GetLost() != nil }).GetLost()
		if len(l.GetPartitions()) != 1 || l.GetPartitions()[0].GetEpoch() != d1.GetEpoch() || l.GetPartitions()[0].GetTopic() != "orders" {
			t.Errorf("%s: lost %v", what, l)
		}
	}
	s.ack(d2)
	e.PutRecord("orders", 0, block.Message{Key: "k", Data: []byte("2")})
	if d := s.deliver(); d.GetMessages()[0].GetPosition() != 2 {
		t.Errorf("then %v", d)
	}
}

// The barrier: nothing new of a partition between revoking and revoke_done, and nobody else has it
// until then; what is lost by the deadline is told with its epoch.
func TestRevoke(t *testing.T) {
	e, c := start(t)
	a := consume(t, c, &mechav1.ConsumeOpen{InstanceId: "a"})
	a.until("assigned", func(f *mechav1.BrokerFrame) bool { return f.GetAssigned() != nil })
	b := consume(t, c, &mechav1.ConsumeOpen{InstanceId: "b"})
	r := a.until("revoking", func(f *mechav1.BrokerFrame) bool { return f.GetRevoking() != nil }).GetRevoking()
	if len(r.GetPartitions()) != 2 || r.GetReason() != "rebalance" || !r.GetDeadline().AsTime().After(time.Now()) {
		t.Errorf("revoking %v", r)
	}
	moved := r.GetPartitions()[0].GetPartition()
	e.PutRecord("orders", int32(moved), block.Message{Data: []byte("x")})
	a.send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_RevokeDone{RevokeDone: &mechav1.RevokeDone{Assignment: r.GetAssignment()}}})
	d := b.deliver()
	if d.GetPartition() != moved || d.GetEpoch() != 2 {
		t.Errorf("the new owner got %v", d)
	}
	a.send(ackFrame(&mechav1.Deliver{Topic: "orders", Partition: moved, Epoch: 1}, 1, 1))
	for {
		f := a.frame()
		if f.GetDeliver() != nil {
			t.Errorf("the old owner got %v", f)
		}
		if l := f.GetLost(); l != nil {
			if l.GetPartitions()[0].GetEpoch() != 1 {
				t.Errorf("lost %v", l)
			}
			break
		}
	}
}

func TestRevokeDeadline(t *testing.T) {
	_, c := start(t)
	a := consume(t, c, &mechav1.ConsumeOpen{InstanceId: "a", RevokeTimeout: durationpb.New(20 * time.Millisecond)})
	a.until("assigned", func(f *mechav1.BrokerFrame) bool { return f.GetAssigned() != nil })
	b := consume(t, c, &mechav1.ConsumeOpen{InstanceId: "b"})
	l := a.until("lost", func(f *mechav1.BrokerFrame) bool { return f.GetLost() != nil }).GetLost()
	if len(l.GetPartitions()) != 2 || l.GetPartitions()[0].GetEpoch() != 1 {
		t.Errorf("lost %v", l)
	}
	if got := b.until("assigned", func(f *mechav1.BrokerFrame) bool { return f.GetAssigned() != nil }).GetAssigned(); got.GetPartitions()[0].GetPartition().GetEpoch() != 2 {
		t.Errorf("assigned %v", got)
	}
}

func TestCreditsAndControl(t *testing.T) {
	e, c := start(t)
	for range 10 {
		e.PutRecord("orders", 1, block.Message{Data: []byte("x")})
	}
	s := consume(t, c, &mechav1.ConsumeOpen{Credited: true})
	s.opened()
	credit := func(n uint32) {
		s.send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Credit{Credit: &mechav1.Credit{Messages: n}}})
	}
	control := func(c *mechav1.Control) {
		s.send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Control{Control: c}})
	}
	got := func() (n int) {
		d := s.deliver()
		s.ack(d)
		return len(d.GetMessages())
	}
	credit(3)
	if n := got(); n != 3 {
		t.Errorf("%d messages for a credit of 3", n)
	}
	control(&mechav1.Control{Action: &mechav1.Control_Pause{Pause: true}})
	credit(2)
	control(&mechav1.Control{Partitions: []*mechav1.Partition{{Topic: "orders", Partition: 1}}, Action: &mechav1.Control_Resume{Resume: true}})
	if n := got(); n != 2 {
		t.Errorf("%d messages for a credit of 2 after the pause", n)
	}
	control(&mechav1.Control{Action: &mechav1.Control_Seek{Seek: &mechav1.Place{Place: &mechav1.Place_Position{Position: 10}}}})
	credit(100)
	if n := got(); n != 1 {
		t.Errorf("%d messages from position 10", n)
	}
	control(&mechav1.Control{Action: &mechav1.Control_Concurrency{Concurrency: 1}})
	control(&mechav1.Control{Action: &mechav1.Control_Seek{Seek: &mechav1.Place{Place: &mechav1.Place_Earliest{Earliest: true}}}})
	for range 3 {
		if n := got(); n != 1 {
			t.Errorf("%d messages at once with a concurrency of 1", n)
		}
	}
}

// What is granted reaches the engine as numbers that it can add up.
func TestCreditNumbers(t *testing.T) {
	got := make(chan [2]int, 1)
	s := consume(t, serve(t, credits{Engine: fakeengine.New(), got: got}, 4<<20), &mechav1.ConsumeOpen{Credited: true})
	s.opened()
	for _, tt := range []struct {
		credit *mechav1.Credit
		want   [2]int
	}{
		{&mechav1.Credit{Messages: 3}, [2]int{3, 1 << 40}},
		{&mechav1.Credit{Bytes: 7}, [2]int{0, 7}},
		{&mechav1.Credit{Messages: 1<<32 - 1, Bytes: 1<<64 - 1}, [2]int{1<<32 - 1, 1 << 40}},
	} {
		s.send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Credit{Credit: tt.credit}})
		if n := <-got; n != tt.want {
			t.Errorf("%v: the engine got %v, want %v", tt.credit, n, tt.want)
		}
	}
}

// An app that does not read holds up itself only.
func TestAppThatDoesNotRead(t *testing.T) {
	e, c := start(t)
	value := strings.Repeat("v", 8<<10)
	deaf := consume(t, c, &mechav1.ConsumeOpen{Group: "deaf"})
	deaf.opened()
	s := consume(t, c, &mechav1.ConsumeOpen{Group: "fine"})
	s.opened()
	for range 1000 { // more than its window and the wire hold
		e.Put("orders", "", value)
	}
	for n := 0; n < 1000; {
		d := s.deliver()
		n += len(d.GetMessages())
		s.ack(d)
	}
}

// One that asks for answers and does not read them is cut off.
func TestUnread(t *testing.T) {
	_, c := start(t)
	s := consume(t, c, &mechav1.ConsumeOpen{})
	bad := &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Ack{Ack: &mechav1.Ack{Partitions: make([]*mechav1.PartitionAck, 1000)}}}
	for range 200 {
		if err := s.Send(bad); err != nil {
			break
		}
	}
	wantStatus(t, s.ended(), codes.ResourceExhausted, "UNREAD")
}

// A message that no frame can carry is set aside, told, and does not stop what comes behind it.
func TestMessageTooLarge(t *testing.T) {
	e := fakeengine.New()
	c := serve(t, e, 64<<10)
	big := bytes.Repeat([]byte("x"), 100<<10)
	half := bytes.Repeat([]byte("y"), 40<<10)
	e.PutRecord("orders", 2, block.Message{Key: "h", Data: half})
	e.PutRecord("orders", 2, block.Message{Key: "big", Data: big})
	e.PutRecord("orders", 2, block.Message{Key: "h2", Data: half})
	s := consume(t, c, &mechav1.ConsumeOpen{})
	var positions []uint64
	var told *mechav1.MessagingFault
	for len(positions) < 2 || told == nil {
		f := s.frame()
		for _, m := range f.GetDeliver().GetMessages() {
			positions = append(positions, m.GetPosition())
		}
		if f.GetFault() != nil {
			told = f.GetFault()
		}
	}
	if told.GetReason() != "TOO_LARGE" || told.GetPhase() != "deliver" || told.GetRetryable() || told.GetPartition().GetPartition() != 2 {
		t.Errorf("fault %v", told)
	}
	if positions[0] != 1 || positions[1] != 3 {
		t.Errorf("delivered %v", positions)
	}
	parked, err := c.ListParked(t.Context(), &mechav1.ListParkedRequest{PubsubName: "pubsub", Topic: "orders"})
	if err != nil || len(parked.GetKeys()) != 1 || parked.GetKeys()[0].GetKey() != "big" || !strings.Contains(parked.GetKeys()[0].GetReason(), "too large") {
		t.Errorf("parked %v, %v", parked, err)
	}
}

// A broker's keys may be any bytes; the wire's are text.
func TestBytesThatAreNotText(t *testing.T) {
	e, c := start(t)
	e.PutRecord("orders", 0, block.Message{Key: "k\xff", Data: []byte("\xff"), Metadata: map[string]string{"h\xff": "v\xfe"}, ID: "i\xff"})
	m := consume(t, c, &mechav1.ConsumeOpen{}).deliver().GetMessages()[0]
	if m.GetKey() != "k\uFFFD" || string(m.GetValue()) != "\xff" || m.GetHeaders()["h\uFFFD"] != "v\uFFFD" || m.GetId() != "i\uFFFD" {
		t.Errorf("got %v", m)
	}
}

// A stream that is cut is a member that is gone: its partitions are another's at once, with what it
// had not resolved.
func TestStreamLost(t *testing.T) {
	e, c := start(t)
	e.PutRecord("orders", 0, block.Message{Data: []byte("x")})
	a := consume(t, c, &mechav1.ConsumeOpen{InstanceId: "a"})
	first := a.deliver()
	a.cancel()
	b := consume(t, c, &mechav1.ConsumeOpen{InstanceId: "b"})
	d := b.deliver()
	if d.GetMessages()[0].GetAttempt() != 2 || d.GetEpoch() <= first.GetEpoch() {
		t.Errorf("got %v", d)
	}
}

// An app that says no more has left: what it had is delivered to another.
func TestHalfClosed(t *testing.T) {
	_, c := start(t)
	a := consume(t, c, &mechav1.ConsumeOpen{InstanceId: "a"})
	a.opened()
	if err := a.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := a.ended(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
}
