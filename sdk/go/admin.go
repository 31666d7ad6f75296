package mecha

import (
	"context"
	"iter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// Earliest is the oldest message kept.
func Earliest() *mechav1.Place {
	return &mechav1.Place{Place: &mechav1.Place_Earliest{Earliest: true}}
}

// Latest is behind the newest message.
func Latest() *mechav1.Place { return &mechav1.Place{Place: &mechav1.Place_Latest{Latest: true}} }

// AtTime is the first message accepted at t or later.
func AtTime(t time.Time) *mechav1.Place {
	return &mechav1.Place{Place: &mechav1.Place_Time{Time: timestamppb.New(t)}}
}

// AtPosition is the first message whose position is at least n.
func AtPosition(n uint64) *mechav1.Place {
	return &mechav1.Place{Place: &mechav1.Place_Position{Position: n}}
}

// Topic is a topic of a pub/sub component.
type Topic struct{ PubSub, Name string }

// DescribeTopic tells how a topic is divided and what its partitions hold.
func (c *Client) DescribeTopic(ctx context.Context, t Topic) (*mechav1.DescribeTopicResponse, error) {
	out, err := c.msg.DescribeTopic(ctx, &mechav1.DescribeTopicRequest{PubsubName: t.PubSub, Topic: t.Name})
	return out, errorOf(err)
}

// DescribeGroup tells who is in a group and how far it is. An empty group is the app's own, here and
// below.
func (c *Client) DescribeGroup(ctx context.Context, t Topic, group string) (*mechav1.DescribeGroupResponse, error) {
	out, err := c.msg.DescribeGroup(ctx, &mechav1.DescribeGroupRequest{PubsubName: t.PubSub, Topic: t.Name, Group: group})
	return out, errorOf(err)
}

// ResetGroup moves a group to a place, in some partitions or, with none given, in all.
func (c *Client) ResetGroup(ctx context.Context, t Topic, group string, to *mechav1.Place, partitions ...uint32) error {
	_, err := c.msg.ResetGroup(ctx, &mechav1.ResetGroupRequest{PubsubName: t.PubSub, Topic: t.Name, Group: group, To: to, Partitions: partitions})
	return errorOf(err)
}

// Parked goes through the keys that a group has set aside. It ends at the first error, which comes
// with a nil key.
func (c *Client) Parked(ctx context.Context, t Topic, group string) iter.Seq2[*mechav1.ParkedKey, error] {
	return func(yield func(*mechav1.ParkedKey, error) bool) {
		req := &mechav1.ListParkedRequest{PubsubName: t.PubSub, Topic: t.Name, Group: group}
		for {
			page, err := c.msg.ListParked(ctx, req)
			if err != nil {
				yield(nil, errorOf(err))
				return
			}
			for _, k := range page.GetKeys() {
				if !yield(k, nil) {
					return
				}
			}
			if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
				return
			}
		}
	}
}

// Unpark has the messages of a key delivered again, before newer ones, and tells how many they are.
func (c *Client) Unpark(ctx context.Context, t Topic, group string, partition uint32, key string) (uint64, error) {
	return c.unpark(ctx, t, group, partition, key, false)
}

// DropParked is rid of the messages of a key that were set aside, and tells how many they were.
func (c *Client) DropParked(ctx context.Context, t Topic, group string, partition uint32, key string) (uint64, error) {
	return c.unpark(ctx, t, group, partition, key, true)
}

func (c *Client) unpark(ctx context.Context, t Topic, group string, partition uint32, key string, drop bool) (uint64, error) {
	out, err := c.msg.Unpark(ctx, &mechav1.UnparkRequest{PubsubName: t.PubSub, Topic: t.Name, Group: group, Partition: partition, Key: key, Drop: drop})
	return out.GetMessages(), errorOf(err)
}

// ResizeTopic gives a topic another number of partitions. Keys keep their order.
func (c *Client) ResizeTopic(ctx context.Context, t Topic, partitions uint32) (*mechav1.ResizeTopicResponse, error) {
	out, err := c.msg.ResizeTopic(ctx, &mechav1.ResizeTopicRequest{PubsubName: t.PubSub, Topic: t.Name, Partitions: partitions})
	return out, errorOf(err)
}
