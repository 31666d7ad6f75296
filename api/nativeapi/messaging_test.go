package nativeapi_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
	"github.com/mecha-project/mecha/test/fakeengine"
)

func entry(key, value string) *mechav1.PublishEntry {
	return &mechav1.PublishEntry{Key: key, Value: []byte(value)}
}

func TestPublish(t *testing.T) {
	e, c := start(t)
	e.Fail = func(n engine.Entry) error {
		if string(n.Data) == "bad" {
			return fault.New("test", fault.Unavailable, "the broker is away").WithAfter(time.Second)
		}
		return nil
	}
	p := publish(t, c, &mechav1.PublishOpen{Topic: "orders", ProducerId: "me", Require: []mechav1.Capability{mechav1.Capability_CAPABILITY_DEDUPLICATION}})
	if o := p.opened(); o.GetPartitions() != 4 || o.GetHash() == "" || len(o.GetCapabilities()) != 9 || o.GetDedupWindow().AsDuration() != time.Minute || o.GetMaxMessage() != 1<<20 {
		t.Errorf("opened: %v", o)
	}
	p.batch(1, entry("a", "1"), entry("a", "2"), entry("b", "3"))
	p.batch(1, entry("a", "1"), entry("a", "2"), entry("b", "3"))
	p.batch(4, entry("a", "bad"), entry("a", "5"), entry("b", "6"))
	p.batch(7, entry("a", "7"))
	p.send(&mechav1.PublishFrame{Frame: &mechav1.PublishFrame_ResumeKey{ResumeKey: &mechav1.ResumeKey{Key: "a"}}})
	p.batch(8, entry("a", "8"), entry("", strings.Repeat("x", 2<<20)))
	first := p.receipts()
	if first.GetBatch() != 1 || len(first.GetReceipts()) != 3 || first.GetReceipts()[0].GetPosition() != 1 || first.GetReceipts()[1].GetPosition() != 2 || first.GetReceipts()[0].GetDuplicate() {
		t.Errorf("first receipts: %v", first)
	}
	for i, r := range p.receipts().GetReceipts() {
		if !r.GetDuplicate() || r.GetPosition() != first.GetReceipts()[i].GetPosition() || r.GetPartition() != first.GetReceipts()[i].GetPartition() {
			t.Errorf("second time: %v, first %v", r, first.GetReceipts()[i])
		}
	}
	failed := p.receipts().GetReceipts()
	if f := failed[0].GetError(); f.GetReason() != "UNAVAILABLE" || f.GetCode() != int32(codes.Unavailable) || !f.GetRetryable() || f.GetRetryAfter().AsDuration() != time.Second {
		t.Errorf("the failed one: %v", f)
	}
	if f := failed[1].GetError(); f.GetReason() != "PRECEDING_FAILED" || f.GetRetryable() || failed[2].GetError() != nil {
		t.Errorf("behind the failed one: %v, of another key: %v", f, failed[2])
	}
	if f := p.receipts().GetReceipts()[0].GetError(); f.GetReason() != "PRECEDING_FAILED" {
		t.Errorf("before resume_key: %v", f)
	}
	last := p.receipts()
	if last.GetBatch() != 5 || last.GetReceipts()[0].GetError() != nil || last.GetReceipts()[1].GetError().GetReason() != "TOO_LARGE" || last.GetReceipts()[1].GetError().GetRetryable() {
		t.Errorf("last receipts: %v", last)
	}
	if err := p.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the call ended with %v", err)
	}
}

// Every way to be wrong ends this call, by its name, and no other.
func TestPublishRefuses(t *testing.T) {
	e, c := start(t)
	other := publish(t, c, &mechav1.PublishOpen{Topic: "orders"})
	other.opened()
	batch := func(b *mechav1.PublishBatch) *mechav1.PublishFrame {
		return &mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Batch{Batch: b}}
	}
	open := func(o *mechav1.PublishOpen) *mechav1.PublishFrame {
		return &mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Open{Open: o}}
	}
	good := open(&mechav1.PublishOpen{PubsubName: "pubsub", Topic: "orders"})
	with := func(e *mechav1.PublishEntry) *mechav1.PublishFrame {
		return batch(&mechav1.PublishBatch{Entries: []*mechav1.PublishEntry{e}})
	}
	huge := uint32(1 << 31)
	tests := []struct {
		name   string
		frames []*mechav1.PublishFrame
		code   codes.Code
		reason string
	}{
		{"nothing", nil, codes.InvalidArgument, "FRAME_ORDER"},
		{"no open", []*mechav1.PublishFrame{with(entry("", "x"))}, codes.InvalidArgument, "FRAME_ORDER"},
		{"an empty frame first", []*mechav1.PublishFrame{{}}, codes.InvalidArgument, "FRAME_ORDER"},
		{"an empty frame", []*mechav1.PublishFrame{good, {}}, codes.InvalidArgument, "UNKNOWN_FRAME"},
		{"open twice", []*mechav1.PublishFrame{good, good}, codes.InvalidArgument, "FRAME_ORDER"},
		{"component", []*mechav1.PublishFrame{open(&mechav1.PublishOpen{PubsubName: "none", Topic: "orders"})}, codes.NotFound, "NO_SUCH_COMPONENT"},
		{"no topic", []*mechav1.PublishFrame{open(&mechav1.PublishOpen{PubsubName: "pubsub"})}, codes.InvalidArgument, "NO_TOPIC"},
		{"topic", []*mechav1.PublishFrame{open(&mechav1.PublishOpen{PubsubName: "pubsub", Topic: fakeengine.Forbidden})}, codes.PermissionDenied, "FORBIDDEN_TOPIC"},
		{"ordering", []*mechav1.PublishFrame{open(&mechav1.PublishOpen{PubsubName: "pubsub", Topic: "orders", Ordering: 9})}, codes.InvalidArgument, "BAD_OPTION"},
		{"capability", []*mechav1.PublishFrame{open(&mechav1.PublishOpen{PubsubName: "pubsub", Topic: "orders", Require: []mechav1.Capability{77}})}, codes.Unimplemented, "MISSING_CAPABILITY"},
		{"capability beyond all", []*mechav1.PublishFrame{open(&mechav1.PublishOpen{PubsubName: "pubsub", Topic: "orders", Require: []mechav1.Capability{257}})}, codes.Unimplemented, "MISSING_CAPABILITY"},
		{"no entries", []*mechav1.PublishFrame{good, batch(&mechav1.PublishBatch{})}, codes.InvalidArgument, "BAD_ENTRY"},
		{"too many entries", []*mechav1.PublishFrame{good, batch(&mechav1.PublishBatch{Entries: make([]*mechav1.PublishEntry, 4097)})}, codes.InvalidArgument, "BAD_ENTRY"},
		{"sequence of nobody", []*mechav1.PublishFrame{good, batch(&mechav1.PublishBatch{Sequence: 1, Entries: []*mechav1.PublishEntry{entry("", "x")}})}, codes.InvalidArgument, "BAD_OPTION"},
		{"no sequence", []*mechav1.PublishFrame{open(&mechav1.PublishOpen{PubsubName: "pubsub", Topic: "orders", ProducerId: "p"}), with(entry("", "x"))}, codes.InvalidArgument, "BAD_OPTION"},
		{"partition", []*mechav1.PublishFrame{good, with(&mechav1.PublishEntry{Partition: &huge})}, codes.InvalidArgument, "NO_SUCH_PARTITION"},
		{"ttl", []*mechav1.PublishFrame{good, with(&mechav1.PublishEntry{Ttl: durationpb.New(-1)})}, codes.InvalidArgument, "BAD_ENTRY"},
		{"ttl out of range", []*mechav1.PublishFrame{good, with(&mechav1.PublishEntry{Ttl: &durationpb.Duration{Seconds: 1 << 60}})}, codes.InvalidArgument, "BAD_ENTRY"},
		{"deliver_at", []*mechav1.PublishFrame{good, with(&mechav1.PublishEntry{DeliverAt: &timestamppb.Timestamp{Nanos: -1}})}, codes.InvalidArgument, "BAD_ENTRY"},
		{"resume of a partition", []*mechav1.PublishFrame{good, {Frame: &mechav1.PublishFrame_ResumeKey{ResumeKey: &mechav1.ResumeKey{Partition: &huge}}}}, codes.InvalidArgument, "NO_SUCH_PARTITION"},
		{"a frame beyond the limit", []*mechav1.PublishFrame{good, with(entry("", strings.Repeat("x", 5<<20)))}, codes.ResourceExhausted, "TOO_LARGE"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st, err := c.Publish(limited(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range tt.frames {
				if err := st.Send(f); err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
			}
			if len(tt.frames) == 0 {
				_ = st.CloseSend()
			}
			for err = nil; err == nil; {
				_, err = st.Recv()
			}
			wantStatus(t, err, tt.code, tt.reason)
			other.batch(0, entry("k", "fine"))
			if r := other.receipts().GetReceipts()[0]; r.GetError() != nil {
				t.Errorf("another stream got %v", r)
			}
		})
	}
	for _, vs := range e.Values("orders") {
		for _, v := range vs {
			if v != "fine" {
				t.Errorf("%q was published", v)
			}
		}
	}
}

// What was sent before a bad frame is answered before the call ends.
func TestPublishAnswersBeforeTheEnd(t *testing.T) {
	_, c := start(t)
	p := publish(t, c, &mechav1.PublishOpen{Topic: "orders"})
	p.opened()
	for range 5 {
		p.batch(0, entry("k", "v"))
	}
	p.batch(0)
	for i := range 5 {
		if r := p.receipts(); r.GetBatch() != uint64(i+1) || r.GetReceipts()[0].GetError() != nil {
			t.Errorf("receipts %d: %v", i+1, r)
		}
	}
	_, err := p.Recv()
	wantStatus(t, err, codes.InvalidArgument, "BAD_ENTRY")
}

// Frames are read while others are appended, within bounds; receipts come in their order.
func TestPublishPipelines(t *testing.T) {
	for _, tt := range []struct {
		name            string
		size, most      int // of a value; of batches taken while the first is appended
		batches, atonce int
	}{
		{"many", 1, 17, 64, 5},
		{"large", 1 << 20, 9, 12, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			taken := 0
			e := fakeengine.New()
			hold := make(chan struct{})
			e.Append = func(engine.Batch) { <-hold }
			e.MaxMessage = 2 << 20
			c := serve(t, countedPublish{Engine: e, took: func() { mu.Lock(); taken++; mu.Unlock() }}, 4<<20)
			p := publish(t, c, &mechav1.PublishOpen{Topic: "orders"})
			p.opened()
			value := strings.Repeat("v", tt.size)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for range tt.batches {
					_ = p.Send(&mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Batch{Batch: &mechav1.PublishBatch{Entries: []*mechav1.PublishEntry{entry("k", value)}}}})
				}
			}()
			deadline := time.Now().Add(10 * time.Second)
			for n := 0; n < tt.atonce; time.Sleep(time.Millisecond) {
				mu.Lock()
				n = taken
				mu.Unlock()
				if time.Now().After(deadline) {
					t.Fatalf("%d batches were taken while the first is appended", n)
				}
			}
			hold <- struct{}{}
			if r := p.receipts(); r.GetBatch() != 1 {
				t.Errorf("first receipts: %v", r)
			}
			mu.Lock()
			if taken > tt.most+1 {
				t.Errorf("%d batches were taken with one answered, at most %d", taken, tt.most+1)
			}
			mu.Unlock()
			close(hold)
			for i := 2; i <= tt.batches; i++ {
				if r := p.receipts(); r.GetBatch() != uint64(i) || r.GetReceipts()[0].GetPosition() != uint64(i) {
					t.Fatalf("receipts %d: %v", i, r)
				}
			}
			<-sent
		})
	}
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

func TestNackParksAndUnparks(t *testing.T) {
	e, c := start(t)
	ctx := limited(t)
	s := consume(t, c, &mechav1.ConsumeOpen{Retry: &mechav1.RetryPolicy{Attempts: 2, FirstDelay: durationpb.New(time.Millisecond)}})
	s.opened()
	e.PutRecord("orders", 0, block.Message{Key: "k", Data: []byte("1")})
	e.PutRecord("orders", 0, block.Message{Key: "k", Data: []byte("2")})
	for attempt := range 2 {
		d := s.deliver()
		if m := d.GetMessages()[0]; m.GetAttempt() != uint32(attempt+1) || m.GetPosition() != 1 {
			t.Fatalf("delivered %v", m)
		}
		s.send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Nack{Nack: &mechav1.Nack{Topic: "orders", Epoch: d.GetEpoch(), Position: 1, Reason: "no stock"}}})
	}
	e.PutRecord("orders", 0, block.Message{Key: "other", Data: []byte("3")})
	s.ack(s.deliver())
	req := &mechav1.UnparkRequest{PubsubName: "pubsub", Topic: "orders", Key: "k"}
	keys, err := c.ListParked(ctx, &mechav1.ListParkedRequest{PubsubName: "pubsub", Topic: "orders", PageSize: 1})
	if err != nil || len(keys.GetKeys()) != 1 || keys.GetKeys()[0].GetMessages() != 2 || keys.GetKeys()[0].GetReason() != "no stock" || keys.GetNextPageToken() != "" {
		t.Errorf("parked %v, %v", keys, err)
	}
	if out, err := c.Unpark(ctx, req); err != nil || out.GetMessages() != 2 {
		t.Errorf("unpark: %v, %v", out, err)
	}
	for want := uint64(1); want <= 2; want++ {
		d := s.deliver()
		if d.GetMessages()[0].GetPosition() != want {
			t.Errorf("replayed %v, want position %d", d, want)
		}
		s.ack(d)
	}
	_, err = c.Unpark(ctx, req)
	wantStatus(t, err, codes.NotFound, "NOT_PARKED")
}

func TestAdmin(t *testing.T) {
	e, c := start(t)
	ctx := limited(t)
	e.PutRecord("orders", 3, block.Message{Data: []byte("x")})
	topic, err := c.DescribeTopic(ctx, &mechav1.DescribeTopicRequest{PubsubName: "pubsub", Topic: "orders"})
	if err != nil || len(topic.GetPartitions()) != 4 || topic.GetPartitions()[3].GetEnd() != 2 || topic.GetGenerations()[0].GetCount() != 4 || topic.GetHash() == "" || len(topic.GetCapabilities()) == 0 {
		t.Errorf("topic %v, %v", topic, err)
	}
	s := consume(t, c, &mechav1.ConsumeOpen{InstanceId: "one"})
	s.ack(s.deliver())
	group := func() *mechav1.DescribeGroupResponse {
		g, err := c.DescribeGroup(ctx, &mechav1.DescribeGroupRequest{PubsubName: "pubsub", Topic: "orders"})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	for deadline := time.Now().Add(10 * time.Second); group().GetPartitions()[3].GetCommitted() != 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("group %v", group())
		}
	}
	if g := group(); g.GetMembers()[0].GetMember() != "one" || g.GetPartitions()[3].GetOwner() != "one" || g.GetPartitions()[3].GetLag() != 0 || g.GetPartitions()[3].GetEpoch() != 1 {
		t.Errorf("group %v", g)
	}
	if _, err := c.ResetGroup(ctx, &mechav1.ResetGroupRequest{PubsubName: "pubsub", Topic: "orders", Partitions: []uint32{3}, To: &mechav1.Place{Place: &mechav1.Place_Earliest{Earliest: true}}}); err != nil {
		t.Fatal(err)
	}
	if d := s.deliver(); d.GetMessages()[0].GetPosition() != 1 {
		t.Errorf("after the reset came %v", d)
	}
	resized, err := c.ResizeTopic(ctx, &mechav1.ResizeTopicRequest{PubsubName: "pubsub", Topic: "orders", Partitions: 8})
	if err != nil || len(resized.GetGenerations()) != 2 || resized.GetGenerations()[1].GetFirst() != 4 || resized.GetGenerations()[1].GetCount() != 8 {
		t.Errorf("resized %v, %v", resized, err)
	}
	earliest := &mechav1.Place{Place: &mechav1.Place_Earliest{Earliest: true}}
	for name, tt := range map[string]struct {
		err    error
		code   codes.Code
		reason string
	}{
		"component":    {second(c.DescribeTopic(ctx, &mechav1.DescribeTopicRequest{PubsubName: "none", Topic: "orders"})), codes.NotFound, "NO_SUCH_COMPONENT"},
		"topic":        {second(c.DescribeGroup(ctx, &mechav1.DescribeGroupRequest{PubsubName: "pubsub", Topic: fakeengine.Forbidden})), codes.PermissionDenied, "FORBIDDEN_TOPIC"},
		"no place":     {second(c.ResetGroup(ctx, &mechav1.ResetGroupRequest{PubsubName: "pubsub", Topic: "orders"})), codes.InvalidArgument, "BAD_OPTION"},
		"no partition": {second(c.ResetGroup(ctx, &mechav1.ResetGroupRequest{PubsubName: "pubsub", Topic: "orders", Partitions: []uint32{77}, To: earliest})), codes.InvalidArgument, "NO_SUCH_PARTITION"},
		"partition":    {second(c.ResetGroup(ctx, &mechav1.ResetGroupRequest{PubsubName: "pubsub", Topic: "orders", Partitions: []uint32{1 << 31}, To: earliest})), codes.InvalidArgument, "NO_SUCH_PARTITION"},
		"unpark":       {second(c.Unpark(ctx, &mechav1.UnparkRequest{PubsubName: "pubsub", Topic: "orders", Partition: 1 << 31})), codes.InvalidArgument, "NO_SUCH_PARTITION"},
		"page size":    {second(c.ListParked(ctx, &mechav1.ListParkedRequest{PubsubName: "pubsub", Topic: "orders", PageSize: 1001})), codes.InvalidArgument, "BAD_OPTION"},
		"page token":   {second(c.ListParked(ctx, &mechav1.ListParkedRequest{PubsubName: "pubsub", Topic: "orders", PageToken: "x"})), codes.InvalidArgument, "BAD_PAGE_TOKEN"},
		"size 0":       {second(c.ResizeTopic(ctx, &mechav1.ResizeTopicRequest{PubsubName: "pubsub", Topic: "orders"})), codes.InvalidArgument, "BAD_PARTITIONS"},
		"size":         {second(c.ResizeTopic(ctx, &mechav1.ResizeTopicRequest{PubsubName: "pubsub", Topic: "orders", Partitions: 1 << 30})), codes.InvalidArgument, "BAD_PARTITIONS"},
	} {
		if status.Code(tt.err) != tt.code || reason(tt.err) != tt.reason {
			t.Errorf("%s: got %v %q, want %v %q", name, tt.err, reason(tt.err), tt.code, tt.reason)
		}
	}
}

func second[T any](_ T, err error) error { return err }

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
