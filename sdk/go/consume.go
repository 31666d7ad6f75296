package mecha

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// ConsumeOptions say what to consume and how. Only PubSub and Topics are needed.
type ConsumeOptions struct {
	PubSub string   // the name of a pub/sub component
	Topics []string // at least one
	Group  string   // default: the app's name
	// Instance names this member over restarts, such as the name of a pod: it gets the partitions back
	// that it had. Default: a random name, which is kept for as long as Consume runs.
	Instance string
	Ordering mechav1.Ordering // default: by key
	Start    *mechav1.Place   // of a group without progress; default: Earliest
	Manual   []*mechav1.Partition
	// Concurrency is how many handlers run at once, of different keys unless Ordering says otherwise.
	// Default: 64.
	Concurrency int
	// Limits bound what is delivered and not done. Default: twice Concurrency messages, and what the
	// sidecar has for the rest.
	Limits         *mechav1.ConsumeLimits
	Retry          *mechav1.RetryPolicy
	HandlerTimeout time.Duration // default: 5 minutes; negative: none
	// RevokeTimeout is how long handlers may go on when their partition moves, and when Consume is to
	// end. Default: 10 seconds.
	RevokeTimeout  time.Duration
	StatusInterval time.Duration // default: none
	Require        []mechav1.Capability
	// OnFrame sees every frame but deliveries, before it is acted upon: assignments, status,
	// faults. It must not block.
	OnFrame func(*mechav1.BrokerFrame)
	// Log tells of reconnections, faults and errors of handlers. Default: slog.Default.
	Log *slog.Logger
}

// ErrLost is the cause of a handler's context that ended because its partition is another's by now:
// what the handler says counts no more.
var ErrLost = errors.New("mecha: the partition was lost")

// Handler handles one message. nil: it is done. RetryAfter, DeadLetter, Park and Drop say what is to become of it; any other
// error means that it is delivered again. ctx has the values of Consume's, and ends when the
// partition is lost.
type Handler func(ctx context.Context, m *Message) error

// Consume has messages handled until ctx ends. Then it waits for the handlers that run, up to RevokeTimeout,
// leaves the group and returns nil. A lost connection is repaired, for as long as it takes; another stream
// is opened when the handlers of the one before have ended, for which their contexts do. Any other error is what the
// sidecar refuses for good, and INSTANCE_REPLACED when another consumer has come with the same
// Instance.
func (c *Client) Consume(ctx context.Context, o ConsumeOptions, handle Handler) error {
	o.Instance = cmp.Or(o.Instance, "go-"+random())
	o.Concurrency = cmp.Or(o.Concurrency, 64)
	o.RevokeTimeout = cmp.Or(o.RevokeTimeout, 10*time.Second)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Limits == nil {
		o.Limits = &mechav1.ConsumeLimits{Messages: uint32(2 * o.Concurrency)} //nolint:gosec // small
	}
	var pause backOff
	for {
		began := time.Now()
		err := c.session(ctx, &o, handle)
		switch {
		case ctx.Err() != nil:
			return nil
		case lasts(err):
			return err
		}
		if time.Since(began) > 5*time.Second {
			pause = backOff{}
		}
		o.Log.WarnContext(ctx, "the stream of a consumer ended; it is opened again", "topics", o.Topics, "instance", o.Instance, "error", err)
		if !pause.wait(ctx) {
			return nil
		}
	}
}

func (o *ConsumeOptions) open() *mechav1.ConsumeOpen {
	out := &mechav1.ConsumeOpen{PubsubName: o.PubSub, Topics: o.Topics, Group: o.Group, InstanceId: o.Instance, Ordering: o.Ordering, Start: o.Start, Manual: o.Manual,
		Limits: o.Limits, Retry: o.Retry, HandlerTimeout: optional(o.HandlerTimeout), RevokeTimeout: optional(o.RevokeTimeout), StatusInterval: optional(o.StatusInterval), Require: o.Require}
	if o.HandlerTimeout < 0 {
		out.HandlerTimeout = durationpb.New(0)
	}
	return out
}

// optional is a time that is left out when it is not positive.
func optional(d time.Duration) *durationpb.Duration {
	if d <= 0 {
		return nil
	}
	return durationpb.New(d)
}

// jitter varies a pause by a fifth.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()*2-1)*float64(d)/5) //nolint:gosec // no secret
}

// session is one stream. One goroutine receives, one sends, and workers handle.
type session struct {
	o      *ConsumeOptions
	handle Handler
	st     *Stream
	ctx    context.Context // of handlers
	wake   chan struct{}   // has a token when there is something to send
	over   chan struct{}   // closed when the stream has ended

	mu      sync.Mutex
	ready   *sync.Cond               // of mu: queue or ended changed
	queue   []Message                // guarded by mu: delivered and not begun; the limits bound it
	turns   map[part]*turn           // guarded by mu
	pending map[*turn][]uint64       // guarded by mu: positions to acknowledge
	extends []*mechav1.ConsumerFrame // guarded by mu: to send before the acknowledgements
	frames  []*mechav1.ConsumerFrame // guarded by mu: to send behind them
	ended   bool                     // guarded by mu: nothing is sent any more
}

type part struct {
	topic string
	id    uint32
}

// turn is the time from assigned to the end of a partition's ownership.
type turn struct {
	s      *session
	part   part
	epoch  uint64
	ctx    context.Context
	cancel context.CancelCauseFunc
	before *turn         // the turn before, while its handlers may run
	idle   chan struct{} // closed when it is over and no handler of it runs

	// Guarded by session.mu.
	running    int
	closing    bool   // asked back: no handler starts
	over       bool   // lost, or given back
	assignment uint64 // of revoking
}

// session consumes by one stream until it ends, or until ctx does and all is done.
func (c *Client) session(ctx context.Context, o *ConsumeOptions, handle Handler) error {
	base, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(ErrLost)
	opening, cancel := context.WithCancel(base)
	defer cancel()
	given := context.AfterFunc(ctx, cancel) // until it is open, the end of ctx ends it at once
	st, err := c.OpenStream(opening, o.open())
	if err != nil {
		given()
		return err
	}
	defer st.Abort()
	if !given() {
		return nil
	}
	s := &session{o: o, handle: handle, st: st, ctx: base, wake: make(chan struct{}, 1), over: make(chan struct{}), turns: map[part]*turn{}, pending: map[*turn][]uint64{}}
	s.ready = sync.NewCond(&s.mu)
	s.observe(&mechav1.BrokerFrame{Frame: &mechav1.BrokerFrame_Opened{Opened: st.Opened()}})
	var workers, sender sync.WaitGroup
	for range o.Concurrency {
		workers.Go(s.worker)
	}
	sender.Go(s.send)
	leave := context.AfterFunc(ctx, func() { s.leave(stop) })
	err = s.receive()
	leave()
	s.end() // the stream is gone, and with it the partitions
	patience := time.AfterFunc(o.RevokeTimeout, func() {
		o.Log.Warn("handlers go on though their partitions are lost; they are waited for", "topics", o.Topics)
	})
	workers.Wait()
	patience.Stop()
	sender.Wait()
	if errors.Is(err, io.EOF) && ctx.Err() == nil {
		return errors.New("the sidecar ended the stream")
	}
	return err
}

// leave asks to end the stream when all is done, and cuts it off when that takes too long.
func (s *session) leave(stop context.CancelCauseFunc) {
	s.mu.Lock()
	s.frames = append(s.frames, &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Close{Close: &mechav1.Close{Drain: true}}})
	s.mu.Unlock()
	s.signal()
	t := time.NewTimer(s.o.RevokeTimeout)
	defer t.Stop()
	select {
	case <-s.over:
	case <-t.C:
		stop(ErrLost)
		s.st.Abort()
	}
}

func (s *session) observe(f *mechav1.BrokerFrame) {
	if s.o.OnFrame != nil {
		s.o.OnFrame(f)
	}
}

// receive acts upon frames until the stream ends.
func (s *session) receive() error {
	for {
		f, err := s.st.Receive()
		if err != nil {
			return err
		}
		if d := f.GetDeliver(); d != nil {
			s.deliver(d)
			continue
		}
		s.observe(f)
		switch f := f.GetFrame().(type) {
		case *mechav1.BrokerFrame_Assigned:
			s.assigned(f.Assigned)
		case *mechav1.BrokerFrame_Revoking:
			s.revoking(f.Revoking)
		case *mechav1.BrokerFrame_Lost:
			s.lost(f.Lost)
		case *mechav1.BrokerFrame_Fault:
			s.o.Log.Warn("the sidecar reports a fault", "topics", s.o.Topics, "phase", f.Fault.GetPhase(), "error", faultError(f.Fault))
		}
	}
}

func (s *session) assigned(a *mechav1.Assigned) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range a.GetPartitions() {
		e := p.GetPartition()
		t := &turn{s: s, part: part{e.GetTopic(), e.GetPartition()}, epoch: e.GetEpoch(), idle: make(chan struct{})}
		t.ctx, t.cancel = context.WithCancelCause(s.ctx)
		if old := s.turns[t.part]; old != nil {
			old.finish(ErrLost) // it is, if it was not told
			if t.before = old; old.running == 0 {
				t.before = old.before
			}
		}
		s.turns[t.part] = t
	}
}

// finish ends a turn. Locked.
func (t *turn) finish(cause error) {
	if t.over {
		return
	}
	t.over, t.closing = true, true
	t.cancel(cause)
	delete(t.s.pending, t)
	if t.running == 0 {
		close(t.idle)
	}
}

func (s *session) lost(l *mechav1.Lost) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range l.GetPartitions() {
		// An answer to what was said with an old epoch says nothing about the one that holds.
		if t := s.turns[part{e.GetTopic(), e.GetPartition()}]; t != nil && (e.GetEpoch() == 0 || t.epoch <= e.GetEpoch()) {
			t.finish(ErrLost)
		}
	}
}

// revoking is the first half of the barrier: no handler starts any more. done is the other half.
func (s *session) revoking(r *mechav1.Revoking) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range r.GetPartitions() {
		t := s.turns[part{p.GetTopic(), p.GetPartition()}]
		if t == nil || t.over {
			s.giveBack(&mechav1.Partition{Topic: p.GetTopic(), Partition: p.GetPartition()}, r.GetAssignment())
			continue
		}
		t.closing, t.assignment = true, r.GetAssignment()
		s.settle(t)
	}
}

// settle gives a partition back when it is asked for and nothing of it runs. Locked.
func (s *session) settle(t *turn) {
	if t.running > 0 || t.over || !t.closing {
		return
	}
	t.over = true
	t.cancel(nil)
	close(t.idle)
	s.giveBack(&mechav1.Partition{Topic: t.part.topic, Partition: t.part.id}, t.assignment)
}

// giveBack sends revoke_done, behind all acknowledgements there are. Locked.
func (s *session) giveBack(p *mechav1.Partition, assignment uint64) {
	s.frames = append(s.frames, &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_RevokeDone{RevokeDone: &mechav1.RevokeDone{
		Assignment: assignment, Partitions: []*mechav1.Partition{p}}}})
	s.signal()
}

func (s *session) deliver(d *mechav1.Deliver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.turns[part{d.GetTopic(), d.GetPartition()}]
	if t == nil || t.epoch != d.GetEpoch() || t.closing {
		return // it will be delivered again, to whom the partition belongs
	}
	for _, m := range d.GetMessages() {
		s.queue = append(s.queue, messageOf(t, m))
		s.ready.Signal()
	}
}

// worker runs handlers.
func (s *session) worker() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for len(s.queue) == 0 && !s.ended {
			s.ready.Wait()
		}
		if s.ended {
			return
		}
		m := s.queue[0]
		s.queue[0] = Message{}
		if s.queue = s.queue[1:]; len(s.queue) == 0 {
			s.queue = nil
		}
		if !s.begin(m.turn) {
			continue
		}
		s.mu.Unlock()
		err := s.handle(m.turn.ctx, &m)
		s.mu.Lock()
		s.done(m.turn, &m, err)
	}
}

// begin waits for handlers of an earlier turn of the partition, which may have the same keys in
// hand, and tells whether this one's may start. Locked; the lock is given back while it waits.
func (s *session) begin(t *turn) bool {
	for t.before != nil && !t.closing {
		before := t.before
		s.mu.Unlock()
		select {
		case <-before.idle:
		case <-t.ctx.Done():
		}
		s.mu.Lock()
		if before.running == 0 && t.before == before {
			t.before = nil
		}
	}
	if t.closing {
		return false
	}
	t.running++
	return true
}

// done says what became of a message. Locked.
func (s *session) done(t *turn, m *Message, err error) {
	t.running--
	switch {
	case t.over:
		if t.running == 0 {
			close(t.idle)
		}
		return
	case err == nil:
		s.pending[t] = append(s.pending[t], m.Position)
		s.signal()
	default:
		s.nack(m, err)
	}
	s.settle(t)
}

// nack hands a message back. Locked.
func (s *session) nack(m *Message, err error) {
	out := &mechav1.Nack{Topic: m.Topic, Partition: m.Partition, Epoch: m.Epoch, Position: m.Position, Remedy: mechav1.Remedy_REMEDY_RETRY, Reason: reasonText(err)}
	level := slog.LevelWarn
	var v *verdict
	if errors.As(err, &v) {
		level = slog.LevelDebug // the handler knows what it does
		out.Remedy = v.remedy
		if v.remedy == mechav1.Remedy_REMEDY_RETRY {
			out.Delay = durationpb.New(max(v.delay, 0))
		}
	}
	s.o.Log.Log(s.ctx, level, "a handler failed", "topic", m.Topic, "partition", m.Partition, "position", m.Position, "attempt", m.Attempt, "then", out.GetRemedy(), "error", err)
	s.frames = append(s.frames, &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Nack{Nack: out}})
	s.signal()
}

// extend asks for more time for a message that is not done.
func (s *session) extend(e *mechav1.Extend) {
	s.mu.Lock()
	s.extends = append(s.extends, &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Extend{Extend: e}})
	s.mu.Unlock()
	s.signal()
}

func (s *session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end stops the sender.
func (s *session) end() {
	s.mu.Lock()
	s.ended = true
	for _, t := range s.turns {
		t.finish(ErrLost)
	}
	s.ready.Broadcast()
	s.mu.Unlock()
	close(s.over)
	s.signal()
}

// send sends what has gathered while it sent, acknowledgements in one frame.
func (s *session) send() {
	for range s.wake {
		s.mu.Lock()
		frames := s.extends
		if ack := s.acks(); ack != nil {
			frames = append(frames, ack)
		}
		frames = append(frames, s.frames...)
		s.extends, s.frames = nil, nil
		ended := s.ended
		s.mu.Unlock()
		if ended {
			return
		}
		for _, f := range frames {
			if s.st.Send(f) != nil {
				return // receive learns why
			}
		}
	}
}
