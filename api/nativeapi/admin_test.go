package nativeapi_test

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/test/fakeengine"
)

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
