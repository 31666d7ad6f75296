package engine

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
)

// Consumer is one member of a group. Make it with New…, give it to its app, then Run it: Run joins the
// group and tells the app what happens, one event after the other. The other methods may be called at any
// time, from any goroutine, also from within an event.
//
// What the app says of partitions it does not own any more, or of messages that are not at it, changes
// nothing.
type Consumer struct {
	opts ConsumeOptions
	log  *slog.Logger

	mu          sync.Mutex
	e           *Engine           // guarded by mu; set by Run
	seat        seat              // guarded by mu; set by Run
	owned       map[Part]*owned   // guarded by mu
	ready       queue[*owned]     // guarded by mu; may have something to deliver
	starved     []*owned          // guarded by mu; have something, which did not fit
	news        []Event           // guarded by mu; to be told before anything is delivered
	assignment  uint64            // guarded by mu
	revocations map[uint64][]Part // guarded by mu; what each Revoking asked for
	past        map[Part]uint64   // guarded by mu; last epoch of partitions that were the app's
	view        group.View        // guarded by mu
	doubt       bool              // guarded by mu; a heartbeat is late
	due         time.Time         // guarded by mu; before it no partition has to be looked at; zero: until one says so
	credit      credit            // guarded by mu; of all partitions
	concurrency int               // guarded by mu
	inFlight    int               // guarded by mu; messages at the app
	bytes       int               // guarded by mu; of them
	closing     bool              // guarded by mu; Close was called, or Run ends
	hurry       bool              // guarded by mu; nothing is waited for any more

	wake   chan struct{}   // one slot: the dispatcher has something to do
	dirty  chan struct{}   // one slot: there is something to commit
	urgent chan struct{}   // one slot: it is to be committed now
	copies chan struct{}   // one slot: something is to be copied aside
	leave  chan struct{}   // closed by Close
	seated chan struct{}   // closed when seat is set
	ended  chan string     // one slot: why the group ended the seat
	layout chan struct{}   // one slot: how topics are divided, or a partition of an old generation is new here
	life   context.Context // of all that works for the consumer; ends with Run
	work   sync.WaitGroup
}

// seat is what a consumer needs of its membership: group.Seat.
type seat interface {
	Commit(ctx context.Context, progress []group.Progress) []error
	Release(part Part, progress []byte)
	Drained(part Part)
	Done(part Part, c group.Command)
	Valid(part Part, epoch uint64) bool
	Leave(ctx context.Context) error
}

// NewConsumer checks options and makes a consumer.
func NewConsumer(o ConsumeOptions, log *slog.Logger) (*Consumer, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	return &Consumer{opts: o, log: log, owned: map[Part]*owned{}, credit: credit{ofMessages: true}, revocations: map[uint64][]Part{}, past: map[Part]uint64{}, concurrency: o.Limits.Concurrency,
		wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1), urgent: make(chan struct{}, 1), copies: make(chan struct{}, 1), leave: make(chan struct{}),
		seated: make(chan struct{}), ended: make(chan string, 1), layout: make(chan struct{}, 1)}, nil
}

// Run joins the group on a broker and calls tell with everything that happens, one event after the other, until
// Close, ctx's end, or an error of tell. Then it gives back its partitions: after Close with draining
// when the app has let go of them, within the revoke timeout; else at once. It returns nil after Close, or why it
// ended. It is called once.
func (c *Consumer) Run(ctx context.Context, e *Engine, tell func(Event) error) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	c.mu.Lock()
	c.e, c.life = e, life
	c.mu.Unlock()
	for _, topic := range c.opts.Topics { // made, and known before the group shares them out
		if _, err := e.topics.get(ctx, topic, false); err != nil {
			return err
		}
	}
	hub, release := e.hub(c.opts.Group)
	defer release()
	s, err := hub.Join(ctx, group.SeatOptions{Topics: c.opts.Topics, Instance: c.opts.Instance, Manual: c.opts.Manual}, (*groupEvents)(c))
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.seat = s
	c.mu.Unlock()
	close(c.seated)
	defer c.followLayouts(s)()
	c.work.Go(c.commitLoop)
	c.work.Go(c.copyLoop)
	if c.opts.StatusEvery > 0 {
		c.work.Go(c.statusLoop)
	}
	err = c.dispatch(ctx, s, tell)
	end()
	c.work.Wait()
	return err
}

// dispatch tells the app what happens until the consumer has left its group.
func (c *Consumer) dispatch(ctx context.Context, s seat, tell func(Event) error) (err error) {
	var left chan error // of the seat, once it leaves
	closed := c.leave
	over := ctx.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var set time.Time // what the timer is set to
	depart := func(hurry bool) {
		closed = nil
		if hurry {
			over = nil
			c.abandon()
		}
		if left == nil {
			left = make(chan error, 1)
			c.mu.Lock()
			c.closing = true
			c.mu.Unlock()
			c.work.Go(func() { left <- s.Leave(c.life) })
		}
	}
	for {
		ev, due := c.next(time.Now())
		if ev != nil {
			if failed := err; failed == nil {
				if err = tell(ev); err != nil {
					depart(true)
				}
			}
			continue
		}
		var late <-chan time.Time
		if !due.IsZero() {
			if !due.Equal(set) {
				timer.Reset(max(0, time.Until(due)))
				set = due
			}
			late = timer.C
		}
		select {
		case <-c.wake:
		case <-late:
			set = time.Time{}
		case <-closed:
			c.mu.Lock()
			hurry := c.hurry
			c.mu.Unlock()
			depart(hurry)
		case <-over:
			if err == nil {
				err = fault.Wrap("pubsub.Consume", fault.Canceled, ctx.Err())
			}
			depart(true)
		case why := <-c.ended:
			if err == nil {
				err = fault.New("pubsub.Consume", fault.Unavailable, "%s", why)
				if why == group.Replaced {
					err = fault.New("pubsub.Consume", fault.Conflict, "%s", why).With(InstanceReplaced)
				}
			}
			depart(true)
		case <-left:
			for ev, _ := c.next(time.Now()); ev != nil && err == nil; ev, _ = c.next(time.Now()) {
				err = tell(ev) // the last that was lost
			}
			return err
		}
	}
}

// Close ends the consumer: with drain when the app has resolved what it has or let go of it, else at once. It does
// not wait; Run returns when it is over. It is safe twice; a second call may hurry the first.
func (c *Consumer) Close(drain bool) {
	c.mu.Lock()
	again := c.closing
	c.closing = true
	c.hurry = c.hurry || !drain
	hurry := c.hurry
	c.mu.Unlock()
	if !again {
		close(c.leave)
	} else if hurry {
		c.abandon()
	}
}

// abandon lets go of all partitions without waiting for the app.
func (c *Consumer) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hurry = true
	for _, o := range c.owned {
		o.finish("the consumer ended")
	}
}

// next is the next event to tell; when there is none, when to look again.
func (c *Consumer) next(now time.Time) (Event, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.news) > 0 {
		ev := c.news[0]
		c.news[0] = nil
		c.news = c.news[1:]
		return ev, time.Time{}
	}
	for c.ready.len() > 0 && c.roomy() {
		o := c.ready.pop()
		o.listed = false
		if d := o.deliver(now); d != nil {
			return d, time.Time{}
		}
		if len(c.news) > 0 { // it was lost
			ev := c.news[0]
			c.news = c.news[1:]
			return ev, time.Time{}
		}
	}
	if c.due.IsZero() || now.Before(c.due) {
		return nil, c.due
	}
	c.due = time.Time{}
	for _, o := range c.owned {
		c.soon(o.due(now))
	}
	return nil, c.due
}

// soon has the partitions looked at then, or earlier; a zero time says nothing. It tells whether that is
// earlier than before. mu is held.
func (c *Consumer) soon(at time.Time) bool {
	if at.IsZero() || !c.due.IsZero() && !at.Before(c.due) {
		return false
	}
	c.due = at
	return true
}

// roomy tells whether anything may be delivered at all. mu is held.
func (c *Consumer) roomy() bool {
	l := &c.opts.Limits
	messages, bytes := min(c.concurrency, l.Messages)-c.inFlight, l.Bytes-c.bytes
	if c.opts.Credited {
		messages, bytes = c.credit.room(messages, bytes)
	}
	return messages > 0 && bytes > 0
}

// poke wakes the dispatcher.
func (c *Consumer) poke() { signal(c.wake) }

// queue is first in, first out; its room is used again.
type queue[T any] struct {
	items []T // those before head are taken
	head  int
}

func (q *queue[T]) len() int { return len(q.items) - q.head }

func (q *queue[T]) push(v T) {
	if q.head > 0 && len(q.items) == cap(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, v)
}

func (q *queue[T]) pop() T {
	var none T
	v := q.items[q.head]
	q.items[q.head] = none
	if q.head++; q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return v
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// announce queues an event. mu is held.
func (c *Consumer) announce(ev Event) {
	if last := len(c.news) - 1; last >= 0 {
		a, is := ev.(Assigned)
		b, was := c.news[last].(Assigned)
		if is && was { // partitions claimed together are told together
			a.Parts = append(b.Parts, a.Parts...)
			c.news[last] = a
			return
		}
	}
	c.news = append(c.news, ev)
	c.poke()
}

// feed lists the partitions that had something for which there was no room. mu is held.
func (c *Consumer) feed() {
	starved := c.starved
	c.starved = nil
	for _, o := range starved {
		o.starved = false
		o.list()
	}
}

// room is how much may be delivered of a partition now. mu is held.
func (c *Consumer) room(o *owned) (messages, bytes int) {
	l := &c.opts.Limits
	messages = min(c.concurrency, l.Messages) - c.inFlight
	bytes = l.Bytes - c.bytes
	if c.opts.Credited {
		messages, bytes = c.credit.room(messages, bytes)
		messages, bytes = o.credit.room(messages, bytes)
	}
	if c.doubt { // what is delivered now may be delivered again by another
		n, _ := o.lane.InFlight()
		messages = min(messages, l.PartitionMessages/2-n)
	}
	return min(messages, maxBatch), min(bytes, maxBatchBytes)
}

func (c *Consumer) report(err error, what string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.announce(Fault{Err: err})
	c.log.Warn(what, append(args, "error", err)...)
}
