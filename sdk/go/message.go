package mecha

import (
	"time"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// Message is one delivery. It is the handler's alone until the handler returns.
type Message struct {
	Topic     string
	Partition uint32
	Position  uint64 // its place in the partition
	Key       string
	Value     []byte
	Headers   map[string]string
	Time      time.Time // when the broker accepted it
	Attempt   int       // counts its deliveries to the group, from 1
	OrderGap  bool      // an earlier message of the key was dropped, or went to the dead-letter topic
	ID        string    // what its publisher named it for de-duplication
	// Epoch numbers the turns at the partition: greater than that of every owner before.
	Epoch uint64

	turn *turn
}

// IfEpoch is the condition under which state and cache writes of this message's handler take effect: that
// nobody who had the partition later has written.
func (m *Message) IfEpoch() *mechav1.Epoch {
	return &mechav1.Epoch{Topic: m.Topic, Partition: m.Partition, Epoch: m.Epoch}
}

// Extend gives the handler more time, from now. After the handler timeout without it the message
// counts as failed, though the handler runs on. The sidecar's own timeout is meant with d 0.
func (m *Message) Extend(d time.Duration) {
	m.turn.s.extend(&mechav1.Extend{Topic: m.Topic, Partition: m.Partition, Epoch: m.Epoch, Position: m.Position, By: optional(d)})
}

// messageOf makes a message of a delivery.
func messageOf(t *turn, in *mechav1.DeliveredMessage) Message {
	return Message{Topic: t.part.topic, Partition: t.part.id, Epoch: t.epoch, Position: in.GetPosition(), Key: in.GetKey(), Value: in.GetValue(), Headers: in.GetHeaders(),
		Time: in.GetTime().AsTime(), Attempt: int(in.GetAttempt()), OrderGap: in.GetOrderGap(), ID: in.GetId(), turn: t}
}
