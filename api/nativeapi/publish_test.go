package nativeapi_test

import (
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
	"github.com/mecha-project/mecha/test/fakeengine"
)

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
