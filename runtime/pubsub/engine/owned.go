package engine

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

// phase is where a partition is between claim and release.
type phase uint8

const (
	opening  phase = iota // where to begin is being found out; the app does not know of it
	owning                // it is read and delivered
	revoking              // the app is letting go of it
	gone                  // not the consumer's any more
)

// owned is one partition of a consumer. Its fields are guarded by Consumer.mu.
type owned struct {
	c     *Consumer
	part  Part
	epoch uint64
	phase phase
	told  bool // the app knows that it owns it
	ctx   context.Context
	stop  context.CancelFunc

	lane       *lane.Lane // nil while opening
	listed     bool       // in Consumer.ready
	credit     credit
	paused     bool
	assignment uint64               // of its Revoking
	deadline   time.Time            // of its Revoking
	starved    bool                 // in Consumer.starved
	doubted    time.Time            // when to look again, after the group was not sure of it
	keeps      bool                 // the broker knows that what is parked is to be kept
	drained    bool                 // of an old generation, and the group knows that it is read to its end
	committed  uint64               // watermark of the last commit
	end        uint64               // greater than the position of the newest record, as far as known
	tasks      []func()             // for the reader's goroutine to do
	interrupt  func()               // ends the reader's wait
	returns    map[string]*comeback // keys that come back from the park log

	moved chan struct{} // one slot: the reader may go on
}

func newOwned(c *Consumer, cl group.Claim) *owned {
	o := &owned{c: c, part: cl.Part, epoch: cl.Epoch, moved: make(chan struct{}, 1), interrupt: func() {}, returns: map[string]*comeback{}}
	o.ctx, o.stop = context.WithCancel(c.life)
	return o
}

// do has the reader's goroutine do something soon. c.mu is held.
func (o *owned) do(task func()) {
	o.tasks = append(o.tasks, task)
	o.interrupt()
	signal(o.moved)
}

// run is a partition's life: find where to begin, tell the app, read on.
func (o *owned) run(progress []byte) {
	defer o.stop()
	reader, err := o.open(progress)
	pause := 200 * time.Millisecond
	for err != nil {
		if o.ctx.Err() != nil {
			return
		}
		o.c.report(err, "a partition cannot be read yet", "partition", o.part.String())
		if !wait(o.ctx, pause) {
			return
		}
		pause = min(2*pause, 5*time.Second)
		reader, err = o.open(progress)
	}
	defer reader.Close()
	for {
		if err := o.read(reader); o.ctx.Err() != nil {
			return
		} else if err != nil { // this reader is no good any more
			o.c.report(err, "reading a partition failed and is tried again", "partition", o.part.String())
			reader.Close()
			if !wait(o.ctx, pause) {
				return
			}
			pause = min(2*pause, 5*time.Second)
			if again, err := o.reopen(); err == nil {
				reader, pause = again, 200*time.Millisecond
			}
		}
	}
}

// open finds where to begin and makes the lane.
func (o *owned) open(progress []byte) (block.LogReader, error) {
	log := o.c.e.log
	p, fresh, err := o.begin(progress)
	if err != nil {
		return nil, err
	}
	bounds, err := log.Bounds(o.ctx, o.part.Topic, []int32{o.part.ID})
	if err != nil {
		return nil, err
	}
	reader, err := log.OpenReader(o.ctx, o.part.Topic, o.part.ID, p.Watermark, o.readOptions())
	if err != nil {
		return nil, err
	}
	c := o.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if o.phase == gone {
		reader.Close()
		return nil, context.Canceled
	}
	o.lane = lane.New(c.laneOptions(), p)
	o.lane.Paused = o.paused
	o.committed, o.end = p.Watermark, bounds[0].Next
	signal(c.layout)
	if fresh { // so that the group has a place from now on
		o.lane.Redirty()
		signal(c.dirty)
	}
	if keeper, ok := block.As[block.LogKeeper](log); ok {
		keeper.Consumed(o.part.Topic, c.opts.Group, o.part.ID, p.Watermark)
		if from := o.lane.ParkedFrom(); from > 0 {
			keeper.Consumed(parkLog(c.opts.Group, o.part.Topic), c.opts.Group, o.part.ID, from)
		}
	}
	if o.phase == opening {
		o.phase, o.told = owning, true
		c.assignment++
		c.announce(Assigned{Assignment: c.assignment, Group: c.view,
			Parts: []AssignedPart{{Part: o.part, Epoch: o.epoch, Next: p.Watermark, End: bounds[0].Next}}})
	}
	return reader, nil
}

func (o *owned) readOptions() block.ReadOptions {
	l := &o.c.opts.Limits
	return block.ReadOptions{Messages: l.PartitionMessages, Bytes: l.PartitionBytes}
}

// begin is the progress to start from; fresh when the group had none.
func (o *owned) begin(progress []byte) (p lane.Progress, fresh bool, err error) {
	if len(progress) > 0 {
		p, err = lane.ParseProgress(progress)
		return p, false, fault.Wrap("pubsub.Consume", fault.Internal, err)
	}
	p.Watermark, err = o.place(o.c.opts.Start)
	return p, true, err
}

// place is the position of a place.
func (o *owned) place(at Place) (uint64, error) {
	log := o.c.e.log
	switch at.Kind {
	case Latest:
		b, err := log.Bounds(o.ctx, o.part.Topic, []int32{o.part.ID})
		if err != nil {
			return 0, err
		}
		return max(1, b[0].Next), nil
	case AtTime:
		p, err := log.PositionAt(o.ctx, o.part.Topic, o.part.ID, at.Time)
		return max(1, p), err
	case AtPosition:
		return max(1, at.Position), nil
	default:
		return 1, nil
	}
}

func (o *owned) reopen() (block.LogReader, error) {
	o.c.mu.Lock()
	from := o.lane.ReadTo()
	o.c.mu.Unlock()
	return o.c.e.log.OpenReader(o.ctx, o.part.Topic, o.part.ID, from, o.readOptions())
}

// read moves records from the broker into the lane until something fails.
func (o *owned) read(reader block.LogReader) error {
	c := o.c
	ctx, cancel := context.WithCancel(o.ctx)
	defer func() { cancel() }()
	for {
		c.mu.Lock()
		tasks := o.tasks
		o.tasks = nil
		records, bytes := o.lane.Room()
		o.interrupt = cancel
		c.mu.Unlock()
		for _, task := range tasks {
			task()
		}
		if ctx.Err() != nil && o.ctx.Err() == nil { // interrupted, not ended
			cancel()
			ctx, cancel = context.WithCancel(o.ctx)
			continue
		}
		if records == 0 {
			select {
			case <-o.moved:
				continue
			case <-o.ctx.Done():
				return o.ctx.Err()
			}
		}
		recs, err := reader.Next(ctx, records, bytes)
		switch {
		case err != nil && o.ctx.Err() == nil && ctx.Err() != nil:
			continue
		case err != nil:
			return err
		}
		recs = o.within(recs)
		c.mu.Lock()
		if o.phase != gone && len(recs) > 0 {
			o.lane.Offer(recs)
			o.end = max(o.end, recs[len(recs)-1].Position+1)
			o.list()
		}
		c.mu.Unlock()
	}
}

// within leaves out what was appended behind the end of a partition that is not written to any more.
func (o *owned) within(recs []block.LogRecord) []block.LogRecord {
	end, closed := o.c.e.topics.end(o.part)
	if !closed {
		return recs
	}
	for i := range recs {
		if recs[i].Position >= end {
			return recs[:i]
		}
	}
	return recs
}

// list puts the partition among those that may have something to deliver. c.mu is held.
func (o *owned) list() {
	if o.listed || o.phase != owning || o.lane == nil {
		return
	}
	o.listed = true
	o.c.ready.push(o)
	o.c.poke()
}

// due is when the partition is to be looked at again; it is listed when that is now. c.mu is held.
func (o *owned) due(now time.Time) time.Time {
	switch {
	case o.phase == revoking && !now.Before(o.deadline):
		if o.told {
			o.c.announce(Lost{Parts: []Part{o.part}, Reason: "it was not let go of in time"})
		}
		o.finish("")
		return time.Time{}
	case o.phase == revoking:
		o.expire(now)
		if o.phase == gone {
			return time.Time{}
		}
		if at := o.lane.Due(); !at.IsZero() && at.Before(o.deadline) {
			return at
		}
		return o.deadline
	case o.phase != owning:
		return time.Time{}
	}
	if o.expire(now) {
		o.list()
	}
	at := o.lane.Due()
	if !o.doubted.IsZero() {
		if !now.Before(o.doubted) {
			o.doubted = time.Time{}
			o.list()
		} else if at.IsZero() || o.doubted.Before(at) {
			at = o.doubted
		}
	}
	return at
}

// doubtPause is when a partition is looked at again that was not to be delivered just then.
const doubtPause = 50 * time.Millisecond

// expire counts messages that stayed at the app too long as failed, and has repetitions take their place,
// also while there is no room to deliver anything. It reports whether there was something to do.
func (o *owned) expire(now time.Time) bool {
	at := o.lane.Due()
	if at.IsZero() || now.Before(at) {
		return false
	}
	o.change(func() { o.lane.Next(now, nil, 0, 0) })
	return true
}

// deliver takes what may go to the app now; nil when that is nothing. c.mu is held.
func (o *owned) deliver(now time.Time) Event {
	c := o.c
	if o.phase != owning {
		return nil
	}
	if !c.seat.Valid(o.part, o.epoch) {
		o.doubted = now.Add(doubtPause) // the group is about to say that it is lost
		c.soon(o.doubted)
		return nil
	}
	messages, bytes := c.room(o)
	var out []Message
	o.change(func() { out = o.lane.Next(now, nil, messages, bytes) })
	if o.lane.Hungry() && !o.starved {
		if len(out) > 0 && len(out) == messages {
			o.list()
		} else {
			o.starved = true
			c.starved = append(c.starved, o)
		}
	}
	if len(out) == 0 {
		return nil
	}
	if c.opts.Credited {
		size := 0
		for i := range out {
			size += len(out[i].Data) + len(out[i].Key)
		}
		c.credit.spend(len(out), size)
		o.credit.spend(len(out), size)
	}
	return Deliver{Part: o.part, Epoch: o.epoch, Messages: out}
}

// change runs a change of the lane and does what follows from it. c.mu is held.
func (o *owned) change(f func()) {
	c := o.c
	n, size := o.lane.InFlight()
	f()
	n2, size2 := o.lane.InFlight()
	c.inFlight += n2 - n
	c.bytes += size2 - size
	if o.lane.Dirty() {
		signal(c.dirty)
		if o.lane.Acks() >= commitAcks {
			signal(c.urgent)
		}
	}
	if o.lane.HasAsides() {
		signal(c.copies)
	}
	signal(o.moved)
	for _, b := range o.returns {
		signal(b.more)
	}
	poke := c.soon(o.lane.Due())
	if n2 < n { // something came back: there is room, perhaps for something that waits
		if o.lane.Hungry() {
			o.list()
		}
		c.feed()
		poke = poke || c.ready.len() > 0
	}
	if poke {
		c.poke()
	}
	o.settle()
}

// settle ends a revocation that waits for nothing but the app. c.mu is held.
func (o *owned) settle() {
	if o.phase == revoking && o.c.opts.AutoRevoke {
		if n, _ := o.lane.InFlight(); n == 0 {
			o.finish("")
		}
	}
}

// revoke begins to take the partition from the app; false when the app has nothing to do with that. c.mu is
// held.
func (o *owned) revoke(assignment uint64, deadline time.Time) (tell bool) {
	switch o.phase {
	case opening:
		o.finish("")
		return false
	case owning:
		o.phase, o.assignment, o.deadline = revoking, assignment, deadline
		o.c.soon(deadline) // whoever revokes wakes the dispatcher
		if o.c.hurry {
			o.finish("")
			return false
		}
		return true
	default:
		return false
	}
}

// finish gives the partition back with what is resolved by now. With a reason the app is told that it lost
// it. c.mu is held.
func (o *owned) finish(reason string) {
	if o.phase == gone {
		return
	}
	var progress []byte
	if o.lane != nil {
		progress = o.lane.TakeProgress()
	}
	if reason != "" && o.told {
		o.c.announce(Lost{Parts: []Part{o.part}, Reason: reason})
	}
	o.drop()
	o.c.seat.Release(o.part, progress)
}

// drop forgets the partition. c.mu is held.
func (o *owned) drop() {
	if o.lane != nil {
		n, size := o.lane.InFlight()
		o.c.inFlight -= n
		o.c.bytes -= size
	}
	o.phase = gone
	if o.told {
		o.c.past[o.part] = o.epoch
	}
	delete(o.c.owned, o.part)
	o.stop()
	for _, other := range o.c.owned {
		other.list() // there is room at the app now
	}
	o.c.poke()
}
