//go:build unix

package app

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/test/faults/messaging/history"
)

// native consumes with mecha.v1.Messaging, on the bare stream: it writes down each frame in the
// order in which it came, so that what is told about partitions can be judged.
func (w *worker) native(ctx context.Context) error {
	conn, err := w.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	c := newConsumer(w)
	var all sync.WaitGroup
	all.Go(func() { c.members(ctx, conn, w.Topic) })
	if w.DeadLetter != "" {
		all.Go(func() { c.members(ctx, conn, w.DeadLetter) })
	}
	all.Wait()
	return nil
}

// members is one member of a group after the other, until the app is to end.
func (c *consumer) members(ctx context.Context, conn *grpc.ClientConn, topic string) {
	for ctx.Err() == nil {
		m := &member{consumer: c, topic: topic, state: mechav1.NewStateClient(conn), parts: map[part]*holding{}}
		m.live(ctx, conn)
		rest(ctx, 20*time.Millisecond)
	}
}

// part is a partition of a topic.
type part struct {
	topic string
	id    uint32
}

// holding is a partition that a member has.
type holding struct {
	epoch uint64
	open  sync.WaitGroup // messages at the app
}

// member is one stream.
type member struct {
	*consumer
	topic  string
	stream grpc.BidiStreamingClient[mechav1.ConsumerFrame, mechav1.BrokerFrame]
	send   sync.Mutex // around stream.Send
	state  mechav1.StateClient
	parts  map[part]*holding
	work   sync.WaitGroup
	taken  atomic.Int64
}

// live is a stream from its opening to its end.
func (m *member) live(ctx context.Context, conn *grpc.ClientConn) {
	lctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer m.work.Wait()
	var err error
	if m.stream, err = mechav1.NewMessagingClient(conn).Consume(lctx); err != nil {
		return
	}
	m.say(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Open{Open: m.open()}})
	leave := context.AfterFunc(ctx, func() {
		m.say(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Close{Close: &mechav1.Close{Drain: true}}})
		time.AfterFunc(10*time.Second, cancel)
	})
	defer leave()
	for {
		f, err := m.stream.Recv()
		if err != nil {
			return
		}
		m.hear(f)
	}
}

func (m *member) open() *mechav1.ConsumeOpen {
	o := &mechav1.ConsumeOpen{PubsubName: m.PubSub, Topics: []string{m.topic}, Group: m.Group, StatusInterval: durationpb.New(200 * time.Millisecond)}
	if m.topic != m.Topic {
		o.Group = m.Group + "-undertaker"
		return o
	}
	o.InstanceId, o.Ordering = m.Instance, m.Ordering
	o.Credited = m.Credit > 0
	// The window is no smaller than what may be at the app of a partition.
	o.Limits = &mechav1.ConsumeLimits{Messages: uint32(m.MaxInFlight), PartitionMessages: uint32(m.MaxInFlight), Window: uint32(m.Window)}
	o.Retry = &mechav1.RetryPolicy{FirstDelay: durationpb.New(300 * time.Millisecond), Attempts: int32(m.Attempts), DeadLetterTopic: m.DeadLetter}
	switch {
	case m.DeadLetter != "":
		o.Retry.Then = mechav1.Remedy_REMEDY_DEAD_LETTER
	case m.Attempts > 0:
		o.Retry.Then = mechav1.Remedy_REMEDY_PARK
	default:
		o.Retry.Attempts, o.Retry.Then = -1, mechav1.Remedy_REMEDY_RETRY
	}
	return o
}

// say sends a frame. One that cannot be sent is of no use any more: the stream has ended.
func (m *member) say(f *mechav1.ConsumerFrame) {
	m.send.Lock()
	defer m.send.Unlock()
	_ = m.stream.Send(f)
}

// mark writes an event about a partition of the topic under test.
func (m *member) mark(k history.Kind, p part, e history.Event) {
	if p.topic != m.Topic {
		return
	}
	e.Kind, e.Group, e.Topic, e.Part = k, m.Group, p.topic, int32(p.id)
	m.note(e)
}

// hear is what a frame means. It is called by one goroutine, in the order of frames.
func (m *member) hear(f *mechav1.BrokerFrame) {
	switch f := f.Frame.(type) {
	case *mechav1.BrokerFrame_Opened:
		if m.topic == m.Topic {
			m.note(history.Event{Kind: history.Opened, Group: m.Group, Part: history.NoPart})
			m.grant(m.Credit)
		}
	case *mechav1.BrokerFrame_Assigned:
		for _, p := range f.Assigned.Partitions {
			at := part{p.Partition.Topic, p.Partition.Partition}
			m.parts[at] = &holding{epoch: p.Partition.Epoch}
			m.mark(history.Assigned, at, history.Event{Epoch: p.Partition.Epoch, Next: p.Next})
		}
	case *mechav1.BrokerFrame_Revoking:
		m.revoke(f.Revoking)
	case *mechav1.BrokerFrame_Lost:
		for _, p := range f.Lost.Partitions {
			m.mark(history.Lost, part{p.Topic, p.Partition}, history.Event{Epoch: p.Epoch, What: f.Lost.Reason})
		}
	case *mechav1.BrokerFrame_Deliver:
		m.take(f.Deliver)
	case *mechav1.BrokerFrame_Status:
		for _, p := range f.Status.Partitions {
			m.mark(history.Status, part{p.Partition.Topic, p.Partition.Partition}, history.Event{Epoch: p.Partition.Epoch, Committed: p.Committed})
		}
	case *mechav1.BrokerFrame_Fault:
		m.note(history.Event{Kind: "fault_frame", Group: m.Group, Part: history.NoPart, What: f.Fault.Reason + ": " + f.Fault.Message})
	}
}

// revoke lets go of partitions when nothing of them is at the app.
func (m *member) revoke(r *mechav1.Revoking) {
	var held []*holding
	for _, p := range r.Partitions {
		m.mark(history.Revoking, part{p.Topic, p.Partition}, history.Event{What: r.Reason})
		if h := m.parts[part{p.Topic, p.Partition}]; h != nil {
			held = append(held, h)
		}
	}
	m.work.Go(func() {
		for _, h := range held {
			h.open.Wait()
		}
		for i, p := range r.Partitions {
			e := history.Event{}
			if len(held) == len(r.Partitions) {
				e.Epoch = held[i].epoch
			}
			m.mark(history.RevokeDone, part{p.Topic, p.Partition}, e)
		}
		done := &mechav1.RevokeDone{Assignment: r.Assignment}
		if r.Assignment%2 == 0 { // or all, by naming none
			done.Partitions = r.Partitions
		}
		m.say(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_RevokeDone{RevokeDone: done}})
	})
}

// take handles what was delivered, each message by itself. Whoever lost the partition meanwhile
// says what it has to say all the same: it must not count.
func (m *member) take(d *mechav1.Deliver) {
	at := part{d.Topic, d.Partition}
	h := m.parts[at]
	if h == nil || h.epoch != d.Epoch {
		h = &holding{epoch: d.Epoch} // wrong, and the checker will say so
	}
	for _, msg := range d.Messages {
		if d.Topic != m.Topic {
			m.bury(msg.Value)
			m.ack(at, d.Epoch, msg.Position)
			continue
		}
		b := m.read(msg.Value)
		e := history.Event{Pos: msg.Position, Epoch: d.Epoch, ID: b.ID, Key: b.Key, Seq: b.Seq, Attempt: int(msg.Attempt), Gap: msg.OrderGap}
		m.mark(history.Delivered, at, e)
		h.open.Add(1)
		m.work.Go(func() {
			defer h.open.Done()
			m.finish(at, b, e)
		})
	}
}

func (m *member) finish(at part, b body, e history.Event) {
	time.Sleep(m.takes(b))
	if m.refuses(b) {
		e.Remedy = history.Retry
		if m.Attempts > 0 && e.Attempt >= m.Attempts && m.DeadLetter == "" {
			e.Remedy = history.Park // what the policy makes of it
		}
		m.mark(history.Nacked, at, e)
		m.grant(1)
		m.say(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Nack{Nack: &mechav1.Nack{Topic: at.topic, Partition: at.id, Epoch: e.Epoch, Position: e.Pos, Remedy: mechav1.Remedy_REMEDY_RETRY, Reason: "poison"}}})
		return
	}
	begun := history.Now()
	if m.State != "" && !m.store(at, b, e.Epoch) {
		e.Remedy, e.Fenced = history.Retry, true
		m.mark(history.Nacked, at, e)
		m.say(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Nack{Nack: &mechav1.Nack{Topic: at.topic, Partition: at.id, Epoch: e.Epoch, Position: e.Pos, Remedy: mechav1.Remedy_REMEDY_RETRY, Reason: "not stored"}}})
		return
	}
	done := e
	done.Kind, done.Group, done.Topic, done.Part = history.Effect, m.Group, at.topic, int32(at.id)
	done.From, done.Fenced = begun, m.State != ""
	m.must(m.sink.Add(done))
	m.mark(history.Acked, at, e)
	m.grant(1)
	m.ack(at, e.Epoch, e.Pos)
}

// store writes the message as the newest of its key, if no later owner of the partition has written.
func (m *member) store(at part, b body, epoch uint64) bool {
	value, err := json.Marshal(b)
	m.must(err)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = m.state.Write(ctx, &mechav1.WriteRequest{StoreName: m.State, IfEpoch: &mechav1.Epoch{Topic: at.topic, Partition: at.id, Epoch: epoch},
		Operations: []*mechav1.StateOperation{{Operation: &mechav1.StateOperation_Set{Set: &mechav1.SetState{Key: b.Key, Value: value}}}}})
	return err == nil
}

func (m *member) ack(at part, epoch, pos uint64) {
	m.say(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Ack{Ack: &mechav1.Ack{Partitions: []*mechav1.PartitionAck{
		{Topic: at.topic, Partition: at.id, Epoch: epoch, Ranges: []*mechav1.PositionRange{{From: pos, To: pos}}}}}}})
}

// starveEvery is after how many messages a credited consumer gives nothing for a while.
const starveEvery = 200

// grant allows n more messages, if the consumer is credited. Now and then it lets the broker starve.
func (m *member) grant(n int) {
	if m.Credit == 0 || n == 0 || m.topic != m.Topic {
		return
	}
	if m.taken.Add(int64(n))%starveEvery == 0 {
		time.Sleep(500 * time.Millisecond)
	}
	m.note(history.Event{Kind: history.Credit, Group: m.Group, N: n, Part: history.NoPart})
	m.say(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Credit{Credit: &mechav1.Credit{Messages: uint32(n)}}})
}
