package mecha

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// Stream is one session of a member of a group, with every frame in sight: nothing is answered, kept
// or repeated by itself. Receive from one goroutine; send from any.
type Stream struct {
	st     grpc.BidiStreamingClient[mechav1.ConsumerFrame, mechav1.BrokerFrame]
	opened *mechav1.ConsumeOpened
	cancel context.CancelFunc

	mu sync.Mutex // one sends at a time
}

// OpenStream joins a group, and returns when the sidecar has accepted. The stream lives until Abort, until
// ctx ends, or until Receive fails.
func (c *Client) OpenStream(ctx context.Context, open *mechav1.ConsumeOpen) (*Stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := c.openStream(ctx, open)
	if err != nil {
		cancel()
		return nil, errorOf(err)
	}
	s.cancel = cancel
	return s, nil
}

func (c *Client) openStream(ctx context.Context, open *mechav1.ConsumeOpen) (*Stream, error) {
	st, err := c.msg.Consume(ctx)
	if err != nil {
		return nil, err
	}
	s := &Stream{st: st}
	if err := s.Send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Open{Open: open}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	f, err := st.Recv()
	if err != nil {
		return nil, err
	}
	if s.opened = f.GetOpened(); s.opened == nil {
		return nil, fmt.Errorf("mecha: the first frame is %T, not opened", f.GetFrame())
	}
	return s, nil
}

// Opened is what the sidecar said at first: the member's name, what the broker can do, limits.
func (s *Stream) Opened() *mechav1.ConsumeOpened { return s.opened }

// Receive waits for the next frame. io.EOF is the end after Close; any other error means that the stream
// is lost, and with it all partitions.
func (s *Stream) Receive() (*mechav1.BrokerFrame, error) {
	f, err := s.st.Recv()
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	return f, errorOf(err)
}

// Send sends a frame. It waits while the sidecar does not read. io.EOF: the stream has ended; Receive tells
// why.
func (s *Stream) Send(f *mechav1.ConsumerFrame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st.Send(f)
}

// Ack says that messages of a partition are done, by their positions.
func (s *Stream) Ack(of *mechav1.Epoch, ranges ...*mechav1.PositionRange) error {
	return s.Send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Ack{Ack: &mechav1.Ack{Partitions: []*mechav1.PartitionAck{
		{Topic: of.GetTopic(), Partition: of.GetPartition(), Epoch: of.GetEpoch(), Ranges: ranges}}}}})
}

// Credit allows more messages, of a stream that was opened with credited; of one partition, or of all
// when it is nil. With bytes 0 their size does not matter.
func (s *Stream) Credit(messages uint32, bytes uint64, partition *mechav1.Partition) error {
	return s.Send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Credit{Credit: &mechav1.Credit{Messages: messages, Bytes: bytes, Partition: partition}}})
}

// RevokeDone answers revoking: nothing of these partitions is in hand any more; of all of them, when
// none is given.
func (s *Stream) RevokeDone(assignment uint64, partitions ...*mechav1.Partition) error {
	return s.Send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_RevokeDone{RevokeDone: &mechav1.RevokeDone{Assignment: assignment, Partitions: partitions}}})
}

// Close leaves the group, with drain only when everything that was delivered is resolved. Receive goes
// on until io.EOF.
func (s *Stream) Close(drain bool) error {
	return s.Send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Close{Close: &mechav1.Close{Drain: drain}}})
}

// Abort drops the stream as a lost connection does. It is safe twice.
func (s *Stream) Abort() { s.cancel() }

// backOff is the pause before an attempt, and before the next one.
type backOff struct{ last time.Duration }

// wait pauses; false when ctx ended.
func (b *backOff) wait(ctx context.Context) bool {
	b.last = min(max(2*b.last, 50*time.Millisecond), 5*time.Second)
	t := time.NewTimer(jitter(b.last))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
