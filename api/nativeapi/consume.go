package nativeapi

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mecha-project/mecha/api/apierr"
	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// Consume makes the caller a member of a group. One goroutine runs the consumer, one reads frames, one
// sends them: an app that does not read its stream holds up the last of them only.
func (s *messagingServer) Consume(ss grpc.BidiStreamingServer[mechav1.ConsumerFrame, mechav1.BrokerFrame]) error {
	first, err := ss.Recv()
	if err != nil {
		return openError(err)
	}
	open := first.GetOpen()
	if open == nil {
		return apierr.Native(invalid(frameOrder, "the first frame of Consume is not open"))
	}
	opts, err := consumeOptions(open)
	if err != nil {
		return apierr.Native(err)
	}
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	out := newOutbox(func() {
		cancel(fault.New(opMessaging, fault.Exhausted, "more than %d frames are unread: read the stream", maxControls).With(unread))
	})
	c, info, err := s.s.OpenConsumer(ctx, open.GetPubsubName(), opts, out.tell)
	if err != nil {
		return apierr.Native(err)
	}
	if err := require(open.GetPubsubName(), open.GetRequire(), info.Capabilities); err != nil {
		c.Close(false)
		return apierr.Native(err)
	}
	out.push(&mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_Opened{Opened: opened(info)}})

	con := &consuming{ss: ss, c: c, out: out}
	send := &sender{ss: ss, refuse: func(p engine.Part, epoch, position uint64, err error) {
		con.tooLarge(opts.Ordering, p, epoch, position, err)
	}}
	sent := make(chan error, 1)
	go func() {
		err := send.run(out)
		if err != nil {
			cancel(err)
		}
		sent <- err
	}()
	go func() { // it ends with the stream, as it cannot be woken otherwise
		if err := con.read(); err != nil {
			cancel(err)
		}
	}()
	err = c.Run(ctx)
	cause := context.Cause(ctx)
	out.end(cause != nil) // nobody is there to handle what was not sent
	failed := <-sent
	switch {
	case cause != nil && ss.Context().Err() == nil:
		return asStatus(cause)
	case err != nil:
		return asStatus(err)
	}
	return failed
}

// asStatus is an error as the call ends with it.
func asStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return apierr.Native(err)
}

// consuming is what the app says on one stream. It is used by one goroutine, save tooLarge.
type consuming struct {
	ss     grpc.BidiStreamingServer[mechav1.ConsumerFrame, mechav1.BrokerFrame]
	c      Consumer
	out    *outbox
	closed bool
	ranges []engine.Range // room
}

// read hands over what the app says until the stream ends. An error ends the call.
func (s *consuming) read() error {
	for {
		f, err := s.ss.Recv()
		if errors.Is(err, io.EOF) {
			s.c.Close(false) // it cannot resolve anything any more
			return nil
		}
		if err != nil {
			return frameError(err)
		}
		if err := s.frame(f); err != nil {
			return err
		}
	}
}

// frame is one frame. What can be wrong with it is told, and ends nothing save disorder.
func (s *consuming) frame(f *mechav1.ConsumerFrame) error {
	switch f := f.GetFrame().(type) {
	case *mechav1.ConsumerFrame_Ack:
		for _, a := range f.Ack.GetPartitions() {
			s.about("ack", a.GetTopic(), a.GetPartition(), a.GetEpoch(), s.ack(a))
		}
	case *mechav1.ConsumerFrame_Nack:
		s.about("nack", f.Nack.GetTopic(), f.Nack.GetPartition(), f.Nack.GetEpoch(), s.nack(f.Nack))
	case *mechav1.ConsumerFrame_Extend:
		s.about("extend", f.Extend.GetTopic(), f.Extend.GetPartition(), f.Extend.GetEpoch(), s.extend(f.Extend))
	case *mechav1.ConsumerFrame_RevokeDone:
		ps, err := parts(f.RevokeDone.GetPartitions())
		if err == nil {
			err = s.c.RevokeDone(f.RevokeDone.GetAssignment(), ps)
		}
		s.tell("revoke_done", err)
	case *mechav1.ConsumerFrame_Credit:
		if !s.closed {
			s.tell("credit", s.credit(f.Credit))
		}
	case *mechav1.ConsumerFrame_Control:
		if !s.closed {
			s.tell("control", s.control(f.Control))
		}
	case *mechav1.ConsumerFrame_Close:
		s.closed = true
		s.c.Close(f.Close.GetDrain())
	case *mechav1.ConsumerFrame_Open:
		return invalid(frameOrder, "open came twice")
	default: // of a newer kind; the app learns that nothing is done about it
		s.tell("unknown", fault.New(opMessaging, fault.Unsupported, "the frame is of no kind that this sidecar knows").With(unknownFrame))
	}
	return nil
}

func (s *consuming) tell(phase string, err error) {
	if err != nil {
		s.out.push(&mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_Fault{Fault: faultOf(err, phase, nil)}})
	}
}

// about tells of an error that is about a partition. An epoch that is over is lost, whatever was
// said with it.
func (s *consuming) about(phase, topic string, id uint32, epoch uint64, err error) {
	if err == nil {
		return
	}
	of := &mechav1.Epoch{Topic: topic, Partition: id, Epoch: epoch}
	if fault.ReasonOf(err) == engine.StaleEpoch {
		s.out.push(&mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_Lost{Lost: &mechav1.Lost{Partitions: []*mechav1.Epoch{of}, Reason: text(err.Error())}}})
		return
	}
	s.out.push(&mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_Fault{Fault: faultOf(err, phase, of)}})
}

func (s *consuming) ack(in *mechav1.PartitionAck) error {
	p, err := part(in.GetTopic(), in.GetPartition())
	if err != nil {
		return err
	}
	s.ranges = s.ranges[:0]
	for _, r := range in.GetRanges() {
		to := r.GetTo()
		if to == 0 {
			to = r.GetFrom()
		}
		if r.GetFrom() == 0 || r.GetFrom() > to {
			return invalid(badRange, "positions %d to %d are no range; positions begin with 1", r.GetFrom(), to)
		}
		s.ranges = append(s.ranges, engine.Range{From: r.GetFrom(), To: to})
	}
	if len(s.ranges) == 0 {
		return invalid(badRange, "an ack of %v without ranges", p)
	}
	return s.c.Ack(p, in.GetEpoch(), s.ranges)
}

func (s *consuming) nack(in *mechav1.Nack) error {
	p, err := part(in.GetTopic(), in.GetPartition())
	if err != nil {
		return err
	}
	r := engine.Refusal{Part: p, Epoch: in.GetEpoch(), Position: in.GetPosition(), Reason: in.GetReason()}
	var ok bool
	if r.Remedy, ok = remedy(in.GetRemedy()); !ok {
		return invalid(badOption, "nack.remedy is %d, which is not known", in.GetRemedy())
	}
	if in.GetDelay() != nil {
		if err := in.GetDelay().CheckValid(); err != nil {
			return invalid(badOption, "nack.delay: %v", err)
		}
		if r.Delay = in.GetDelay().AsDuration(); r.Delay < 0 {
			return invalid(badOption, "nack.delay is %v", r.Delay)
		}
		r.Delay = max(r.Delay, 1) // 0 would be taken for the policy's
	}
	return s.c.Nack(r)
}

// remedy reads what is to become of a message; an unspecified one is RemedyRetry.
func remedy(in mechav1.Remedy) (engine.Remedy, bool) {
	switch in {
	case mechav1.Remedy_REMEDY_UNSPECIFIED, mechav1.Remedy_REMEDY_RETRY:
		return engine.RemedyRetry, true
	case mechav1.Remedy_REMEDY_DEAD_LETTER:
		return engine.RemedyDeadLetter, true
	case mechav1.Remedy_REMEDY_PARK:
		return engine.RemedyPark, true
	case mechav1.Remedy_REMEDY_DROP:
		return engine.RemedyDrop, true
	}
	return 0, false
}

func (s *consuming) extend(in *mechav1.Extend) error {
	p, err := part(in.GetTopic(), in.GetPartition())
	if err != nil {
		return err
	}
	var by time.Duration
	if in.GetBy() != nil {
		if err := in.GetBy().CheckValid(); err != nil {
			return invalid(badOption, "extend.by: %v", err)
		}
		if by = in.GetBy().AsDuration(); by <= 0 {
			return invalid(badOption, "extend.by is %v; leave it out for another handler timeout", by)
		}
	}
	return s.c.Extend(p, in.GetEpoch(), in.GetPosition(), by)
}

func (s *consuming) credit(in *mechav1.Credit) error {
	if in.GetMessages() == 0 && in.GetBytes() == 0 {
		return invalid(badCredit, "credit of no messages and no bytes")
	}
	var of *engine.Part
	if q := in.GetPartition(); q != nil {
		p, err := part(q.GetTopic(), q.GetPartition())
		if err != nil {
			return err
		}
		of = &p
	}
	bytes := number(in.GetBytes())
	if bytes == 0 {
		bytes = most
	}
	return s.c.Credit(number(uint64(in.GetMessages())), bytes, of)
}

func (s *consuming) control(in *mechav1.Control) error {
	ps, err := parts(in.GetPartitions())
	if err != nil {
		return err
	}
	c := engine.Control{Parts: ps}
	switch a := in.GetAction().(type) {
	case *mechav1.Control_Pause:
		c.Pause = a.Pause
	case *mechav1.Control_Resume:
		c.Resume = a.Resume
	case *mechav1.Control_Seek:
		to, err := place("control.seek", a.Seek)
		if err != nil {
			return err
		}
		c.Seek = &to
	case *mechav1.Control_Concurrency:
		if c.Concurrency = number(uint64(a.Concurrency)); len(ps) > 0 {
			return invalid(badOption, "control.concurrency is that of all partitions; leave partitions out")
		}
	}
	if !c.Pause && !c.Resume && c.Seek == nil && c.Concurrency == 0 {
		return invalid(badOption, "control says none of pause, resume, seek and concurrency")
	}
	return s.c.Control(c)
}

// tooLarge sets a message aside that cannot be sent, for it would be as large the next time.
func (s *consuming) tooLarge(o engine.Ordering, p engine.Part, epoch, position uint64, cause error) {
	r := engine.Refusal{Part: p, Epoch: epoch, Position: position, Remedy: engine.RemedyPark, Reason: "too large for a frame: " + cause.Error()}
	if o == engine.OrderNone {
		r.Remedy = engine.RemedyDeadLetter
	}
	of := &mechav1.Epoch{Topic: p.Topic, Partition: uint32(p.ID), Epoch: epoch} //nolint:gosec // not negative
	s.out.push(&mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_Fault{Fault: faultOf(fault.New(opMessaging, fault.TooLarge,
		"message %d of %v is larger than a frame may be and is set aside", position, p).Because(cause), "deliver", of)}})
	if err := s.c.Nack(r); err != nil {
		s.about("deliver", p.Topic, uint32(p.ID), epoch, err) //nolint:gosec // not negative
	}
}

// consumeOptions reads the open frame.
func consumeOptions(in *mechav1.ConsumeOpen) (o engine.ConsumeOptions, err error) {
	o = engine.ConsumeOptions{Topics: in.GetTopics(), Group: in.GetGroup(), Instance: in.GetInstanceId(), Credited: in.GetCredited(), AutoRevoke: in.GetAutoRevoke()}
	if o.Ordering, err = ordering(in.GetOrdering()); err != nil {
		return o, err
	}
	if in.GetStart() != nil {
		if o.Start, err = place("start", in.GetStart()); err != nil {
			return o, err
		}
	}
	if o.Manual, err = parts(in.GetManual()); err != nil {
		return o, err
	}
	if len(o.Topics) == 0 && len(o.Manual) == 0 {
		return o, fault.New(opMessaging, fault.Invalid, "open.topics is empty: name what to consume").With(fault.NoTopic)
	}
	if o.Retry, err = retry(in.GetRetry(), o.Ordering); err != nil {
		return o, err
	}
	o.Limits = limits(in.GetLimits())
	if in.GetHandlerTimeout() != nil {
		if o.HandlerTimeout, err = option("handler_timeout", in.GetHandlerTimeout()); err != nil {
			return o, err
		}
		if o.HandlerTimeout == 0 {
			o.HandlerTimeout = -1 // for ever; 0 is the default
		}
	}
	if o.RevokeTimeout, err = option("revoke_timeout", in.GetRevokeTimeout()); err != nil {
		return o, err
	}
	if o.StatusEvery, err = option("status_interval", in.GetStatusInterval()); err == nil && o.StatusEvery > 0 && o.StatusEvery < minStatus {
		err = invalid(badOption, "open.status_interval is %v; at least %v", o.StatusEvery, minStatus)
	}
	return o, err
}

// minStatus bounds how often the broker is asked how partitions stand.
const minStatus = 100 * time.Millisecond

func retry(in *mechav1.RetryPolicy, o engine.Ordering) (engine.Retry, error) {
	out := engine.Retry{Attempts: int(in.GetAttempts()), DeadLetterTopic: in.GetDeadLetterTopic()}
	var err error
	if out.First, err = option("retry.first_delay", in.GetFirstDelay()); err != nil {
		return out, err
	}
	if out.Max, err = option("retry.max_delay", in.GetMaxDelay()); err != nil {
		return out, err
	}
	if in.GetThen() == mechav1.Remedy_REMEDY_UNSPECIFIED {
		out.Then = [...]engine.Remedy{engine.OrderKey: engine.RemedyPark, engine.OrderPartition: engine.RemedyRetry, engine.OrderNone: engine.RemedyDeadLetter}[o]
		return out, nil
	}
	var ok bool
	if out.Then, ok = remedy(in.GetThen()); !ok {
		return out, invalid(badOption, "retry.then is %d, which is not known", in.GetThen())
	}
	return out, nil
}

// option reads a time of the open frame; an absent one is 0.
func option(name string, d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, invalid(badOption, "open.%s: %v", name, err)
	}
	if d.AsDuration() < 0 {
		return 0, invalid(badOption, "open.%s is %v; leave it out for the default", name, d.AsDuration())
	}
	return d.AsDuration(), nil
}

func limits(in *mechav1.ConsumeLimits) engine.Limits {
	return engine.Limits{PartitionMessages: number(uint64(in.GetPartitionMessages())), PartitionBytes: number(in.GetPartitionBytes()),
		Messages: number(uint64(in.GetMessages())), Bytes: number(in.GetBytes()), Keys: number(uint64(in.GetKeys())),
		Concurrency: number(uint64(in.GetConcurrency())), Window: number(uint64(in.GetWindow()))}
}

func opened(i engine.ConsumeInfo) *mechav1.ConsumeOpened {
	out := &mechav1.ConsumeOpened{Member: text(i.Member), Group: text(i.Group), Capabilities: capabilities(i.Capabilities), SessionTtl: span(i.SessionTTL),
		HandlerTimeout: span(i.HandlerTimeout), RevokeTimeout: span(i.RevokeTimeout),
		Limits: &mechav1.ConsumeLimits{PartitionMessages: whole(i.Limits.PartitionMessages), PartitionBytes: wide(i.Limits.PartitionBytes),
			Messages: whole(i.Limits.Messages), Bytes: wide(i.Limits.Bytes), Keys: whole(i.Limits.Keys), Concurrency: whole(i.Limits.Concurrency), Window: whole(i.Limits.Window)}}
	for _, t := range i.Topics {
		out.Topics = append(out.Topics, &mechav1.TopicPartitions{Topic: text(t.Topic), Partitions: whole(t.Partitions)})
	}
	return out
}
