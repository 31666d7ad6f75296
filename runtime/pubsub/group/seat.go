package group

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

const (
	opFinish fault.Op = "group.Commit"
	opLeave  fault.Op = "group.Leave"
)

// SeatOptions say what a consumer wants.
type SeatOptions struct {
	// Topics are those whose partitions it shares with the group.
	Topics []string
	// Instance is who it is, over restarts: a second one with the same instance takes the place
	// and the partitions of the first at once. Empty means a random one.
	Instance string
	// Manual takes these partitions instead of sharing Topics. They are no one else's while this
	// consumer lives; of two that list one, the earlier has it.
	Manual []Part
}

// Progress is how far a partition is. Body is the engine's; nil counts as empty.
type Progress struct {
	Part
	Body []byte
}

// Ender is offered by Events that want to know when a seat came to its end without Leave: the
// hub was closed, or another consumer came with the same instance. Everything it had was Lost before.
type Ender interface{ Ended(reason string) }

// Seat is a consumer's place in a group. It is safe for concurrent use.
type Seat struct {
	run    *run
	handle int
	id     string
	events Events
	epochs atomic.Pointer[map[Part]uint64]

	mu      sync.Mutex
	queue   []event
	ready   bool // Join has returned it
	refused bool // or an error
}

// Join takes a seat in the group and returns when the others can see it, which needs the ledger to
// answer. Events are told after it returned. If ctx ends before, the seat is withdrawn.
func (h *Hub) Join(ctx context.Context, o SeatOptions, events Events) (*Seat, error) {
	topics, err := o.validate()
	if err != nil {
		return nil, err
	}
	id := o.Instance
	if id == "" {
		id = "~" + rand.Text()
	}
	s := &Seat{id: id, events: events}
	s.epochs.Store(&map[Part]uint64{})
	var joined chan *failure
	for {
		if s.run, err = h.current(); err != nil {
			return nil, err
		}
		var own *seat
		if s.run.turn(func(instant) {
			var ticket uint64
			ticket, joined = s.run.newTicket()
			own = s.run.m.join(id, rand.Text()[:13], topics, o.Manual, ticket)
			s.handle = own.handle
			s.run.seats[s.handle] = s
			s.run.joined = true
		}) {
			break
		}
	}
	select {
	case f := <-joined:
		if f != nil {
			s.open(false)
			return nil, f.err(opJoin, "group %q", h.opts.Group)
		}
	case <-ctx.Done():
		s.open(false)
		s.turn(func(own *seat, _ instant) { s.run.m.abandon(own) })
		return nil, fault.New(opJoin, fault.Of(ctx.Err()), "group %q: the ledger did not take the consumer in", h.opts.Group).Because(ctx.Err())
	}
	s.open(true)
	return s, nil
}

// open lets events through, or none ever.
func (s *Seat) open(ready bool) {
	s.mu.Lock()
	s.ready, s.refused = ready, !ready
	s.mu.Unlock()
	s.run.notify()
}

func (o SeatOptions) validate() ([]string, error) {
	topics := o.Topics
	if len(topics) == 0 {
		for _, p := range o.Manual {
			topics = append(topics, p.Topic)
		}
	}
	if len(topics) == 0 {
		return nil, fault.New(opJoin, fault.Invalid, "a consumer needs a topic, or partitions").With(fault.NoTopic)
	}
	for _, p := range o.Manual {
		if p.Topic == "" || p.ID < 0 {
			return nil, fault.New(opJoin, fault.Invalid, "there is no partition %q: want a topic and a number from 0", p)
		}
	}
	for _, t := range topics {
		if t == "" {
			return nil, fault.New(opJoin, fault.Invalid, "a topic without a name").With(fault.NoTopic)
		}
	}
	return topics, nil
}

func (f *failure) err(op fault.Op, format string, args ...any) error {
	e := fault.New(op, fault.Unavailable, format, args...)
	if f.fenced {
		e = fault.New(op, fault.Conflict, format, args...).With(fault.Fenced)
	}
	return e.Because(errors.New(f.why))
}

// ID is the seat's name in the group: its instance.
func (s *Seat) ID() string { return s.id }

// turn is a turn of the machine with this seat, if it still has it.
func (s *Seat) turn(f func(own *seat, now instant)) bool {
	there := false
	s.run.turn(func(now instant) {
		if own := s.run.m.own[s.handle]; own != nil {
			there = true
			f(own, now)
		}
	})
	return there
}

// SetLayout tells how a topic is divided. It holds for all seats of the hub, as long as it has
// any; the last word counts. Of a topic without a layout no partitions are taken but manual ones.
func (s *Seat) SetLayout(topic string, l Layout) {
	s.turn(func(*seat, instant) { s.run.m.setLayout(topic, l) })
}

// Valid tells whether the seat owns a partition under that epoch now. It takes no lock and is to
// be asked before each delivery: after the process was stopped for a while it is the first to know.
func (s *Seat) Valid(p Part, epoch uint64) bool {
	return (*s.epochs.Load())[p] == epoch && epoch != 0 && s.run.alive(time.Now())
}

// Commit writes the progress of partitions and returns one error per item. A partition that is
// not the seat's any more is fault.Conflict with fault.Fenced, and Events.Lost is told. While the
// ledger does not answer it waits, until ctx ends: then the outcome is unknown, and the write may
// still be made unless a later Commit takes its place.
func (s *Seat) Commit(ctx context.Context, items []Progress) []error {
	errs := make([]error, len(items))
	waits := make([]chan *failure, len(items))
	there := s.turn(func(own *seat, now instant) {
		for i, it := range items {
			var ticket uint64
			ticket, waits[i] = s.run.newTicket()
			s.run.m.commit(own, it.Part, it.Body, ticket, now)
		}
	})
	for i, it := range items {
		if !there {
			errs[i] = (&failure{fenced: true, why: "the consumer has left the group"}).err(opFinish, "partition %s", it.Part)
			continue
		}
		select {
		case f := <-waits[i]:
			if f != nil {
				errs[i] = f.err(opFinish, "partition %s", it.Part)
			}
		case <-ctx.Done():
			errs[i] = fault.New(opFinish, fault.Of(ctx.Err()), "partition %s: the ledger did not answer", it.Part).
				WithSent(fault.SentMaybe).Because(ctx.Err())
		}
	}
	return errs
}

// Release gives a partition up. Nothing of it may be at the app any more. Its last progress is
// committed first, unless it is nil, then the ownership is given up, both in the background. It
// does nothing for a partition that is not the seat's. A seat that releases what it was not asked
// for gets it back soon.
func (s *Seat) Release(p Part, progress []byte) {
	s.turn(func(own *seat, now instant) { s.run.m.release(own, p, progress, now) })
}

// Drained says that a partition of an old generation has no more to give: all of it is resolved,
// and committed, and nothing will be added. When that is said of all partitions of a generation,
// the next one may be claimed. It is kept in the ledger.
func (s *Seat) Drained(p Part) {
	s.turn(func(own *seat, now instant) { s.run.m.markDrained(own, p, now) })
}

// Done removes a command that was carried out. One that is not removed is told to the next owner too.
func (s *Seat) Done(p Part, c Command) {
	s.turn(func(own *seat, now instant) { s.run.m.finish(own, p, c.Revision, now) })
}

// Leave ends the seat: all partitions are asked back by Events.Revoke, and when they are released
// the others see it gone. If ctx ends before, what was not released is Lost, the rest happens in the
// background, and ctx's error is returned. It is safe twice.
func (s *Seat) Leave(ctx context.Context) error {
	var left chan *failure
	if !s.turn(func(own *seat, _ instant) {
		var ticket uint64
		ticket, left = s.run.newTicket()
		s.run.m.leave(own, ticket)
	}) {
		return s.run.wait(ctx)
	}
	select {
	case <-left:
		return s.run.wait(ctx)
	case <-ctx.Done():
		s.turn(func(own *seat, _ instant) { s.run.m.abandon(own) })
		return fault.Wrap(opLeave, fault.Deadline, ctx.Err())
	}
}

// wait returns when nothing of the run is left, if it is over.
func (r *run) wait(ctx context.Context) error {
	if !r.over() {
		return nil
	}
	select {
	case <-r.gone:
		return nil
	case <-ctx.Done():
		return fault.Wrap(opLeave, fault.Deadline, ctx.Err())
	}
}

func (s *Seat) push(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.queue); n > 0 && s.queue[n-1].kind == e.kind && s.queue[n-1].reason == e.reason {
		switch e.kind {
		case evAssigned:
			s.queue[n-1].claims = append(s.queue[n-1].claims, e.claims...)
			return
		case evLost:
			s.queue[n-1].parts = append(s.queue[n-1].parts, e.parts...)
			return
		}
	}
	s.queue = append(s.queue, e)
}

// deliver tells the events there are, one at a time, and reports whether none are kept back.
func (s *Seat) deliver() bool {
	for {
		s.mu.Lock()
		if !s.ready || len(s.queue) == 0 {
			told := s.ready || s.refused
			s.mu.Unlock()
			return told
		}
		e := s.queue[0]
		s.queue = s.queue[1:]
		s.mu.Unlock()
		switch e.kind {
		case evAssigned:
			s.events.Assigned(e.claims)
		case evRevoke:
			s.events.Revoke(e.parts, e.reason)
		case evLost:
			s.run.log.Warn("partitions were lost", "parts", e.parts, "reason", e.reason)
			s.events.Lost(e.parts, e.reason)
		case evChanged:
			s.events.Changed(e.view)
		case evDoubt:
			s.events.Doubt(e.doubt)
		case evCommand:
			s.events.Command(e.parts[0], e.command)
		case evEnded:
			if x, ok := s.events.(Ender); ok {
				x.Ended(e.reason)
			}
		}
	}
}
