package engine

import (
	"context"
	"crypto/rand"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
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

// credit is what the app still takes. Of what was never granted it takes any amount.
type credit struct {
	messages, bytes     int
	ofMessages, ofBytes bool // granted once
}

// room is how much of messages and bytes the credit allows.
func (cr *credit) room(messages, bytes int) (int, int) {
	if cr.ofMessages {
		messages = min(messages, cr.messages)
	}
	if cr.ofBytes {
		bytes = min(bytes, cr.bytes)
	}
	return messages, bytes
}

// grant adds to the credit.
func (cr *credit) grant(messages, bytes int) {
	if messages > 0 {
		cr.ofMessages = true
		cr.messages = min(cr.messages+messages, maxCredit)
	}
	if bytes > 0 {
		cr.ofBytes = true
		cr.bytes = min(cr.bytes+bytes, maxCredit)
	}
}

// spend takes from it what was delivered. A message that is larger than the bytes left, and goes alone, takes
// them all.
func (cr *credit) spend(messages, bytes int) {
	cr.messages = max(0, cr.messages-messages)
	cr.bytes = max(0, cr.bytes-bytes)
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

// Defaults of ConsumeOptions and Limits.
const (
	defaultPartitionMessages = 256
	defaultPartitionBytes    = 4 << 20
	defaultMessages          = 1024
	defaultBytes             = 16 << 20
	defaultWindow            = 10_000
	defaultHandlerTimeout    = 5 * time.Minute
	defaultRevokeTimeout     = 10 * time.Second
	defaultAttempts          = 10
	defaultFirst             = 500 * time.Millisecond
	defaultMax               = time.Minute

	// maxProgress keeps a progress record below what brokers take for one: Kafka's commit metadata
	// holds 4096 bytes.
	maxProgress = 3 << 10
	// maxBatch messages, and maxBatchBytes, go into one Deliver.
	maxBatch      = 256
	maxBatchBytes = 1 << 20
)

// NewConsumer checks options and makes a consumer.
func NewConsumer(o ConsumeOptions, log *slog.Logger) (*Consumer, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	return &Consumer{opts: o, log: log, owned: map[Part]*owned{}, credit: credit{ofMessages: true}, revocations: map[uint64][]Part{}, past: map[Part]uint64{}, concurrency: o.Limits.Concurrency,
		wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1), urgent: make(chan struct{}, 1), copies: make(chan struct{}, 1), leave: make(chan struct{}),
		seated: make(chan struct{}), ended: make(chan string, 1), layout: make(chan struct{}, 1)}, nil
}

// complete fills in the defaults.
func (o *ConsumeOptions) complete() error {
	const op fault.Op = "pubsub.Consume"
	bad := func(format string, args ...any) *fault.Error {
		return fault.New(op, fault.Invalid, format, args...)
	}
	o.Topics = slices.Clone(o.Topics)
	slices.Sort(o.Topics)
	o.Topics = slices.Compact(o.Topics)
	switch {
	case len(o.Topics) == 0:
		return bad("no topic is given").With(fault.NoTopic)
	case o.Topics[0] == "":
		return bad("a topic is empty").With(fault.NoTopic)
	case o.Group == "":
		return bad("no group is given")
	case o.Ordering > OrderLoose:
		return bad("ordering %d is not known", o.Ordering)
	case o.Retry.Then > RemedyDrop:
		return bad("retry: remedy %d is not known", o.Retry.Then)
	case o.Retry.First < 0 || o.Retry.Max < 0:
		return bad("retry: a pause is negative")
	}
	for _, t := range o.Topics {
		if strings.HasPrefix(t, reservedPrefix) {
			return bad("topic %q: names that begin with %s are for parked messages", t, reservedPrefix).With(fault.NoTopic)
		}
	}
	for _, p := range o.Manual {
		if !slices.Contains(o.Topics, p.Topic) || p.ID < 0 {
			return bad("manual partition %s is of none of the topics", p)
		}
	}
	for _, l := range []struct {
		name   string
		value  *int
		normal int
	}{
		{"partition messages", &o.Limits.PartitionMessages, defaultPartitionMessages},
		{"partition bytes", &o.Limits.PartitionBytes, defaultPartitionBytes},
		{"messages", &o.Limits.Messages, defaultMessages},
		{"bytes", &o.Limits.Bytes, defaultBytes},
		{"concurrency", &o.Limits.Concurrency, o.Limits.Messages},
		{"keys", &o.Limits.Keys, o.Limits.PartitionMessages},
		{"window", &o.Limits.Window, defaultWindow},
	} {
		if *l.value < 0 {
			return bad("limits: %s is negative", l.name)
		}
		if *l.value == 0 {
			*l.value = l.normal
		}
		if *l.value == 0 {
			*l.value = defaultMessages
		}
	}
	o.Limits.PartitionMessages = min(o.Limits.PartitionMessages, o.Limits.Keys)
	o.Limits.Window = max(o.Limits.Window, o.Limits.PartitionMessages)
	fill(&o.Retry.First, defaultFirst)
	fill(&o.Retry.Max, max(defaultMax, o.Retry.First))
	if o.Retry.Attempts == 0 {
		o.Retry.Attempts = defaultAttempts
	}
	if o.Retry.Then == RemedyRetry {
		o.Retry.Attempts = -1
	}
	fill(&o.HandlerTimeout, defaultHandlerTimeout)
	o.HandlerTimeout = max(o.HandlerTimeout, 0)
	fill(&o.RevokeTimeout, defaultRevokeTimeout)
	if o.Instance == "" {
		o.Instance = rand.Text()
	}
	return nil
}

func fill(d *time.Duration, normal time.Duration) {
	if *d == 0 {
		*d = normal
	}
}

// Options are the consumer's, completed.
func (c *Consumer) Options() ConsumeOptions { return c.opts }

// backoff is the pause after failure n: doubled each time, a fifth either way at random, so that
// messages that failed together do not come back together.
func (c *Consumer) backoff(n int) time.Duration {
	d := c.opts.Retry.First
	for ; n > 1 && d < c.opts.Retry.Max; n-- {
		d *= 2
	}
	d = min(d, c.opts.Retry.Max)
	return time.Duration(float64(d) * (0.8 + 0.4*mathrand.Float64()))
}

func (c *Consumer) laneOptions() lane.Options {
	o := &c.opts
	progress := maxProgress
	if most := c.e.log.LogFeatures().MaxEntry; most > 0 {
		progress = min(progress, most-256)
	}
	return lane.Options{Ordering: o.Ordering, Attempts: o.Retry.Attempts, Then: o.Retry.Then, Backoff: c.backoff,
		HandlerTimeout: o.HandlerTimeout, InFlight: o.Limits.PartitionMessages, InFlightBytes: o.Limits.PartitionBytes,
		Window: o.Limits.Window, Buffer: 2 * o.Limits.PartitionBytes, MaxProgress: progress}
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

// maxCredit keeps sums of credit within numbers.
const maxCredit = 1 << 40

// Credit lets the app be given more: messages and bytes on top of what is left. With a part it bounds that
// partition too. Before the first grant of a kind there is no bound of that kind, save that of messages altogether,
// of which the app takes none. It is an error in a consumer that was not opened with Credited.
func (c *Consumer) Credit(messages, bytes int, part *Part) error {
	const op fault.Op = "pubsub.Credit"
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.opts.Credited {
		return fault.New(op, fault.Invalid, "the consumer was opened without credit; it takes none")
	}
	if messages < 0 || bytes < 0 || messages+bytes == 0 || messages > maxCredit || bytes > maxCredit {
		return fault.New(op, fault.Invalid, "credit of %d messages and %d bytes: want 0 to %d, and not nothing at all", messages, bytes, maxCredit)
	}
	if part == nil {
		c.credit.grant(messages, bytes)
		c.feed()
		c.poke()
		return nil
	}
	o, err := c.present(op, *part)
	if err != nil {
		return err
	}
	o.credit.grant(messages, bytes)
	o.list()
	return nil
}

// present is a partition that the app owns. mu is held.
func (c *Consumer) present(op fault.Op, p Part) (*owned, error) {
	switch o := c.owned[p]; {
	case o != nil && o.told:
		return o, nil
	case c.past[p] > 0:
		return nil, fault.New(op, fault.Conflict, "partition %s was lost or given back", p).With(StaleEpoch)
	}
	return nil, fault.New(op, fault.Invalid, "partition %s is not assigned to this consumer", p).With(NotAssigned)
}

// mine is a partition that the app owns in an epoch. mu is held.
func (c *Consumer) mine(op fault.Op, p Part, epoch uint64) (*owned, error) {
	o := c.owned[p]
	switch {
	case o != nil && o.told && o.epoch == epoch:
		return o, nil
	case epoch <= c.past[p] && epoch > 0, o != nil && o.told && epoch < o.epoch:
		return nil, fault.New(op, fault.Conflict, "epoch %d of partition %s is over: the partition was lost or given back", epoch, p).With(StaleEpoch)
	}
	return nil, c.notAssigned(op, p, epoch)
}

func (c *Consumer) notAssigned(op fault.Op, p Part, epoch uint64) error {
	return fault.New(op, fault.Invalid, "partition %s is not assigned to this consumer under epoch %d", p, epoch).With(NotAssigned)
}

// Ack resolves messages. Positions without a message do not matter, nor those that are resolved. An error,
// StaleEpoch, NotAssigned or NotDelivered, changes nothing.
func (c *Consumer) Ack(part Part, epoch uint64, ranges []Range) error {
	const op fault.Op = "pubsub.Ack"
	for _, r := range ranges {
		if r.From > r.To {
			return fault.New(op, fault.Invalid, "range %d to %d of partition %s runs backwards", r.From, r.To, part)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.mine(op, part, epoch)
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if !o.lane.Delivered(r.From, r.To) {
			return fault.New(op, fault.Invalid, "positions %d to %d of partition %s were not all delivered under epoch %d", r.From, r.To, part, epoch).With(NotDelivered)
		}
	}
	now := time.Now()
	o.change(func() {
		for _, r := range ranges {
			o.lane.Ack(now, r.From, r.To)
		}
	})
	return nil
}

// Nack says that the app could not handle a message.
func (c *Consumer) Nack(r Refusal) error {
	const op fault.Op = "pubsub.Nack"
	if r.Remedy > RemedyDrop || r.Delay < 0 {
		return fault.New(op, fault.Invalid, "remedy %d after %v: no such thing", r.Remedy, r.Delay)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.mine(op, r.Part, r.Epoch)
	if err != nil {
		return err
	}
	if !o.lane.Delivered(r.Position, r.Position) {
		return notDelivered(op, r.Part, r.Position, r.Epoch)
	}
	o.change(func() {
		o.lane.Tried(r.Position, r.Tried)
		o.lane.Nack(time.Now(), r.Position, r.Remedy, r.Delay, r.Reason)
	})
	return nil
}

// Return gives a message back that the app has not begun with.
func (c *Consumer) Return(part Part, epoch, position uint64) error {
	const op fault.Op = "pubsub.Return"
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.mine(op, part, epoch)
	if err != nil {
		return err
	}
	if !o.lane.Delivered(position, position) {
		return notDelivered(op, part, position, epoch)
	}
	o.change(func() { o.lane.Return(position) })
	return nil
}

func notDelivered(op fault.Op, p Part, position, epoch uint64) error {
	return fault.New(op, fault.Invalid, "position %d of partition %s was not delivered under epoch %d", position, p, epoch).With(NotDelivered)
}

// Extend gives a message at the app more time, from now; 0 means another handler timeout.
func (c *Consumer) Extend(part Part, epoch, position uint64, by time.Duration) error {
	const op fault.Op = "pubsub.Extend"
	if by < 0 {
		return fault.New(op, fault.Invalid, "an extension by %v", by)
	}
	if by == 0 {
		by = c.opts.HandlerTimeout
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.mine(op, part, epoch)
	if err != nil {
		return err
	}
	if !o.lane.Delivered(position, position) {
		return notDelivered(op, part, position, epoch)
	}
	o.lane.Extend(time.Now(), position, by)
	c.soon(o.lane.Due())
	c.poke()
	return nil
}

// maxRevocations is how many answers to Revoking are remembered, so that one that comes late is no error.
const maxRevocations = 1000

// RevokeDone says that the app has let go of partitions of a Revoking; none means all of it. It is
// NoRevoking when there was no such assignment, or a partition is none of its. One that is answered, or was
// lost meanwhile, is no error.
func (c *Consumer) RevokeDone(assignment uint64, parts []Part) error {
	const op fault.Op = "pubsub.RevokeDone"
	c.mu.Lock()
	defer c.mu.Unlock()
	asked, ok := c.revocations[assignment]
	if !ok {
		return fault.New(op, fault.Invalid, "assignment %d revokes nothing", assignment).With(NoRevoking)
	}
	for _, p := range parts {
		if !slices.Contains(asked, p) {
			return fault.New(op, fault.Invalid, "assignment %d does not revoke partition %s", assignment, p).With(NoRevoking)
		}
	}
	if len(parts) == 0 {
		parts = asked
	}
	for _, p := range parts {
		if o := c.owned[p]; o != nil && o.phase == revoking && o.assignment == assignment {
			o.finish("")
		}
	}
	return nil
}

// Control pauses, resumes or moves partitions, or changes the concurrency.
func (c *Consumer) Control(ct Control) error {
	const op fault.Op = "pubsub.Control"
	c.mu.Lock()
	defer c.mu.Unlock()
	if ct.Concurrency < 0 || ct.Pause && ct.Resume {
		return fault.New(op, fault.Invalid, "concurrency %d, pause %v, resume %v cannot be", ct.Concurrency, ct.Pause, ct.Resume)
	}
	which := make([]*owned, 0, len(c.owned))
	for _, p := range ct.Parts {
		o, err := c.present(op, p)
		if err != nil {
			return err
		}
		which = append(which, o)
	}
	if len(ct.Parts) == 0 {
		for _, o := range c.owned {
			which = append(which, o)
		}
	}
	if ct.Concurrency > 0 {
		c.concurrency = ct.Concurrency
	}
	for _, o := range which {
		if ct.Pause || ct.Resume {
			o.paused = ct.Pause
			if o.lane != nil {
				o.lane.Paused = ct.Pause
			}
		}
		if ct.Seek != nil {
			o.do(func() { o.seekSoon(*ct.Seek, func() {}) })
		}
		o.list()
	}
	for _, o := range c.owned {
		o.list()
	}
	c.poke()
	return nil
}

// groupEvents is the consumer as its group sees it.
type groupEvents Consumer

// lock waits until Run knows its seat: the group may be faster.
func (g *groupEvents) lock() *Consumer {
	c := (*Consumer)(g)
	<-c.seated
	c.mu.Lock()
	return c
}

// Ended implements group.Ender.
func (g *groupEvents) Ended(reason string) {
	c := (*Consumer)(g)
	select {
	case c.ended <- reason:
	default:
	}
}

// Assigned implements group.Events.
func (g *groupEvents) Assigned(claims []group.Claim) {
	c := g.lock()
	defer c.mu.Unlock()
	for _, cl := range claims {
		o := newOwned(c, cl)
		c.owned[cl.Part] = o
		c.work.Go(func() { o.run(cl.Progress) })
	}
}

// Revoke implements group.Events.
func (g *groupEvents) Revoke(parts []Part, reason string) {
	c := g.lock()
	defer c.mu.Unlock()
	c.assignment++
	patience := c.opts.RevokeTimeout
	if c.closing {
		patience = max(patience, c.opts.LeaveTimeout)
	}
	ev := Revoking{Assignment: c.assignment, Deadline: time.Now().Add(patience), Reason: reason}
	for _, p := range parts {
		if o := c.owned[p]; o != nil && o.revoke(ev.Assignment, ev.Deadline) {
			ev.Parts = append(ev.Parts, p)
		}
	}
	if len(ev.Parts) > 0 {
		c.announce(ev)
		c.revocations[ev.Assignment] = ev.Parts
		for old := range c.revocations {
			if len(c.revocations) > maxRevocations && old != ev.Assignment && ev.Assignment-old > maxRevocations/2 {
				delete(c.revocations, old)
			}
		}
	}
	for _, p := range ev.Parts { // after it is told: one without messages at the app is over at once
		c.owned[p].settle()
	}
	c.poke()
}

// Lost implements group.Events.
func (g *groupEvents) Lost(parts []Part, reason string) {
	c := g.lock()
	defer c.mu.Unlock()
	var lost []Part
	for _, p := range parts {
		if o := c.owned[p]; o != nil {
			if o.told {
				lost = append(lost, p)
			}
			o.drop()
		}
	}
	if len(lost) > 0 {
		c.announce(Lost{Parts: lost, Reason: reason})
	}
}

// Changed implements group.Events.
func (g *groupEvents) Changed(v group.View) {
	c := g.lock()
	defer c.mu.Unlock()
	c.view = v
	c.announce(GroupChanged{View: v})
}

// Doubt implements group.Events.
func (g *groupEvents) Doubt(on bool) {
	c := g.lock()
	defer c.mu.Unlock()
	c.doubt = on
	for _, o := range c.owned {
		o.list()
	}
	c.poke()
}

// Command implements group.Events.
func (g *groupEvents) Command(p Part, cmd group.Command) {
	c := g.lock()
	defer c.mu.Unlock()
	if o := c.owned[p]; o != nil {
		o.do(func() { o.obey(cmd) })
	}
}

func (c *Consumer) report(err error, what string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.announce(Fault{Err: err})
	c.log.Warn(what, append(args, "error", err)...)
}
