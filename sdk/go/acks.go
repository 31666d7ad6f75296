package mecha

import (
	"slices"
	"strings"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// acks makes a frame of all that is to be acknowledged; nil if nothing is. Locked.
func (s *session) acks() *mechav1.ConsumerFrame {
	if len(s.pending) == 0 {
		return nil
	}
	out := &mechav1.Ack{}
	for t, positions := range s.pending {
		out.Partitions = append(out.Partitions, &mechav1.PartitionAck{Topic: t.part.topic, Partition: t.part.id, Epoch: t.epoch, Ranges: ranges(positions)})
	}
	clear(s.pending)
	return &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Ack{Ack: out}}
}

// ranges joins positions that follow each other.
func ranges(positions []uint64) []*mechav1.PositionRange {
	slices.Sort(positions)
	var out []*mechav1.PositionRange
	for _, p := range positions {
		if last := len(out) - 1; last >= 0 && out[last].To+1 >= p {
			out[last].To = p
			continue
		}
		out = append(out, &mechav1.PositionRange{From: p, To: p})
	}
	return out
}

// reasonText is an error for the broker, cut to a length that headers bear.
func reasonText(err error) string {
	text := strings.ToValidUTF8(err.Error(), "\uFFFD")
	if len(text) > 1024 {
		text = strings.ToValidUTF8(text[:1024], "")
	}
	return text
}
