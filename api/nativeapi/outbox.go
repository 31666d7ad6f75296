package nativeapi

import (
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// Bounds of a deliver frame, and of what an app may leave unread beside messages, which its limits
// bound.
const (
	frameMessages = 256
	frameBytes    = 1 << 20
	maxControls   = 1024
)

// item is a frame to send, or messages to make frames of.
type item struct {
	frame   *mechav1.BrokerFrame
	deliver engine.Deliver
}

// outbox is what waits for one stream. It never makes the engine wait: messages are bounded by the
// consumer's limits, and an app that leaves too much else unread is cut off. What waits is sent
// in order; messages of one partition that wait together travel together, and of states
// only the newest is kept.
type outbox struct {
	overflow func()        // called once
	wake     chan struct{} // has a token when there is something

	mu       sync.Mutex
	items    []item                 // guarded by mu
	spare    []item                 // guarded by mu: room for the next items
	last     map[engine.Part]int    // guarded by mu: the item of a partition that messages may be added to
	status   int                    // guarded by mu: index of the status that waits, below 0 if none does
	view     int                    // guarded by mu: the same of group_changed
	controls int                    // guarded by mu: items other than messages
	epochs   map[engine.Part]uint64 // guarded by mu: of what is assigned
	ended    bool                   // guarded by mu
	over     bool                   // guarded by mu: overflow was called
}

func newOutbox(overflow func()) *outbox {
	return &outbox{overflow: overflow, wake: make(chan struct{}, 1), last: map[engine.Part]int{}, epochs: map[engine.Part]uint64{}, status: -1, view: -1}
}

// tell takes an event of the engine.
func (o *outbox) tell(e engine.Event) {
	if d, ok := e.(engine.Deliver); ok {
		o.messages(d)
		return
	}
	o.mu.Lock()
	f, at := o.frame(e)
	switch {
	case f == nil || o.ended:
		o.mu.Unlock()
	case at != nil && *at >= 0:
		o.items[*at].frame = f
		o.mu.Unlock()
	default:
		if at != nil {
			*at = len(o.items)
		} else {
			clear(o.last) // messages that come later stay behind it
		}
		o.add(item{frame: f}) // unlocks
	}
}

// push adds a frame that is no event of the engine.
func (o *outbox) push(f *mechav1.BrokerFrame) {
	o.mu.Lock()
	if o.ended {
		o.mu.Unlock()
		return
	}
	o.add(item{frame: f})
}

// add appends an item and gives the lock back.
func (o *outbox) add(it item) {
	tooMany := false
	if it.frame != nil {
		o.controls++
		tooMany = o.controls > maxControls && !o.over
		o.over = o.over || tooMany
	}
	if !o.over {
		o.items = append(o.items, it)
	}
	o.mu.Unlock()
	if tooMany {
		o.overflow()
	}
	o.signal()
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) messages(d engine.Deliver) {
	if len(d.Messages) == 0 {
		return
	}
	o.mu.Lock()
	if o.ended || o.over {
		o.mu.Unlock()
		return
	}
	if i, ok := o.last[d.Part]; ok && o.items[i].deliver.Epoch == d.Epoch {
		waiting := &o.items[i].deliver
		waiting.Messages = append(slices.Clip(waiting.Messages), d.Messages...)
		o.mu.Unlock()
		return
	}
	o.last[d.Part] = len(o.items)
	o.add(item{deliver: d})
}

// frame is the form of an event, and where one of its kind waits that it replaces. Locked.
func (o *outbox) frame(e engine.Event) (*mechav1.BrokerFrame, *int) {
	switch e := e.(type) {
	case engine.Assigned:
		out := &mechav1.Assigned{Assignment: e.Assignment, Group: view(engine.GroupChanged{View: e.Group})}
		for _, p := range e.Parts {
			o.epochs[p.Part] = p.Epoch
			out.Partitions = append(out.Partitions, &mechav1.AssignedPartition{Partition: epochOf(p.Part, p.Epoch), Next: p.Next, End: p.End})
		}
		return &mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_Assigned{Assigned: out}}, nil
	case engine.Revoking:
		out := &mechav1.Revoking{Assignment: e.Assignment, Deadline: moment(e.Deadline), Reason: text(e.Reason)}
		for _, p := range e.Parts {
			out.Partitions = append(out.Partitions, &mechav1.Partition{Topic: text(p.Topic), Partition: uint32(p.ID)}) //nolint:gosec // not negative
		}
		return &mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_Revoking{Revoking: out}}, nil
	case engine.Lost:
		out := &mechav1.Lost{Reason: text(e.Reason)}
		for _, p := range e.Parts {
			out.Partitions = append(out.Partitions, epochOf(p, o.epochs[p]))
			delete(o.epochs, p)
		}
		return &mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_Lost{Lost: out}}, nil
	case engine.GroupChanged:
		return &mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_GroupChanged{GroupChanged: view(e)}}, &o.view
	case engine.Status:
		out := &mechav1.ConsumeStatus{}
		for _, p := range e.Parts {
			out.Partitions = append(out.Partitions, &mechav1.PartitionStatus{Partition: epochOf(p.Part, p.Epoch), Committed: p.Committed, End: p.End, Lag: p.Lag,
				InFlight: whole(p.InFlight), Oldest: span(p.Oldest), ParkedKeys: whole(p.ParkedKeys), Paused: p.Paused, Blocked: p.Blocked})
		}
		return &mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_Status{Status: out}}, &o.status
	case engine.Fault:
		if e.Err != nil {
			return &mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_Fault{Fault: faultOf(e.Err, "", nil)}}, nil
		}
	}
	return nil, nil
}

func view(v engine.GroupChanged) *mechav1.GroupView {
	return &mechav1.GroupView{Generation: v.Generation, Members: whole(v.Members), MyIndex: whole(v.Index)}
}

func epochOf(p engine.Part, epoch uint64) *mechav1.Epoch {
	return &mechav1.Epoch{Topic: text(p.Topic), Partition: uint32(p.ID), Epoch: epoch} //nolint:gosec // not negative
}

// end says that nothing more comes. With drop what waits is thrown away.
func (o *outbox) end(drop bool) {
	o.mu.Lock()
	o.ended = true
	if drop {
		o.items = nil
	}
	o.mu.Unlock()
	o.signal()
}

// take waits for something and takes all there is; ended when there will be no more. The slice
// is valid until the next call.
func (o *outbox) take() (items []item, ended bool) {
	for {
		o.mu.Lock()
		if len(o.items) > 0 || o.ended {
			items, o.items, o.spare = o.items, o.spare[:0], o.items
			ended = o.ended
			clear(o.last)
			o.status, o.view, o.controls = -1, -1, 0
			o.mu.Unlock()
			return items, ended
		}
		o.mu.Unlock()
		<-o.wake
	}
}

// sender writes frames. It is used by one goroutine.
type sender struct {
	ss grpc.BidiStreamingServer[mechav1.ConsumerFrame, mechav1.BrokerFrame]
	// refuse is told of a message that does not fit into a frame.
	refuse func(p engine.Part, epoch, position uint64, err error)

	// What frames of messages are made of, again and again: a frame is encoded when Send returns.
	reply  mechav1.BrokerFrame
	oneof  mechav1.BrokerFrame_Deliver
	body   mechav1.Deliver
	spares []*mechav1.DeliveredMessage
}

// run sends until the outbox ends or the stream breaks.
func (s *sender) run(o *outbox) error {
	for {
		items, ended := o.take()
		for i := range items {
			if err := s.send(&items[i]); err != nil {
				o.end(true)
				return err
			}
		}
		clear(items) // what was sent is not ours to keep
		if ended {
			return nil
		}
	}
}

func (s *sender) send(it *item) error {
	if it.frame != nil {
		return s.ss.Send(it.frame)
	}
	ms := it.deliver.Messages
	for len(ms) > 0 {
		n, size := 1, len(ms[0].Data)
		for n < len(ms) && n < frameMessages && size+len(ms[n].Data) <= frameBytes {
			size += len(ms[n].Data)
			n++
		}
		if err := s.messages(&it.deliver, ms[:n]); err != nil {
			return err
		}
		ms = ms[n:]
	}
	return nil
}

// messages sends one frame, or more if they do not fit.
func (s *sender) messages(d *engine.Deliver, ms []engine.Message) error {
	err := s.ss.Send(s.deliver(d, ms))
	for i := range ms {
		m := s.spares[i]
		m.Value, m.Headers, m.Key, m.Id = nil, nil, "", ""
	}
	if status.Code(err) != codes.ResourceExhausted { // nothing was sent
		return err
	}
	if len(ms) == 1 {
		s.refuse(d.Part, d.Epoch, ms[0].Position, err)
		return nil
	}
	if err := s.messages(d, ms[:len(ms)/2]); err != nil {
		return err
	}
	return s.messages(d, ms[len(ms)/2:])
}

func (s *sender) deliver(d *engine.Deliver, ms []engine.Message) *mechav1.BrokerFrame {
	for len(s.spares) < len(ms) {
		s.spares = append(s.spares, &mechav1.DeliveredMessage{Time: &timestamppb.Timestamp{}})
	}
	for i := range ms {
		in, out := &ms[i], s.spares[i]
		out.Position, out.Key, out.Value, out.Headers, out.Id = in.Position, text(in.Key), in.Data, headers(in.Metadata), text(in.ID)
		out.Attempt, out.OrderGap = whole(in.Attempt), in.OrderGap
		out.Time.Seconds, out.Time.Nanos = in.Time.Unix(), int32(in.Time.Nanosecond()) //nolint:gosec // below 1e9
	}
	s.body.Topic, s.body.Partition, s.body.Epoch, s.body.Messages = text(d.Topic), uint32(d.ID), d.Epoch, s.spares[:len(ms)] //nolint:gosec // not negative
	s.oneof.Deliver, s.reply.Frame = &s.body, &s.oneof
	return &s.reply
}
