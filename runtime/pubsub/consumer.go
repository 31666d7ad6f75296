package pubsub

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// A message that failed comes again after firstPause, doubled with every failure, and never
// later than lastPause.
const (
	firstPause = 500 * time.Millisecond
	lastPause  = time.Minute
)

// deadLetterTimeout bounds the copy to a dead-letter topic, as Dapr's does.
const deadLetterTimeout = 30 * time.Second

// backoff is the pause after failure n (from 1): exponential, a fifth either way at random, so
// that messages that failed together do not come back together.
func backoff(n int) time.Duration {
	d := lastPause
	if n < 8 { // 500 ms << 7 is over a minute
		d = min(firstPause<<max(n-1, 0), lastPause)
	}
	return min(time.Duration(float64(d)*(0.8+0.4*rand.Float64())), lastPause)
}

// settlePatience is how long messages in progress may take to finish when a subscription stops
// for a while, because the app is not healthy or the component is replaced. A call that hangs
// must not keep the subscription from coming back. A drain has its own limit.
const settlePatience = time.Minute

// consumer is one subscription at work on one component instance.
type consumer struct {
	s       *Service
	route   *route
	h       *catalog.Handle[block.PubSub]
	rules   *rules
	sink    EventSink    // nil: the app takes events over HTTP
	inbound *call.Target // policy of deliveries
	lanes   *lanes       // nil when the subscription takes batches
	log     *slog.Logger
	closing func() bool // fetching has stopped for good or for now
}

// received is a message in the consumer's hands.
type received struct {
	block.Delivery
	receipt *receipt // of a log's message, which has no Ack and Nack; nil for a queue's
}

// ack says that the message is done.
func (m *received) ack() {
	if m.receipt != nil {
		m.receipt.ack()
		return
	}
	m.Ack()
}

// nack gives the message back; it comes again not before delay.
func (m *received) nack(delay time.Duration) {
	if m.receipt != nil {
		m.receipt.nack(delay)
		return
	}
	m.Nack(delay)
}

// leaveAll gives back those that nobody has begun with, or that were cut short.
func leaveAll(ms []received) {
	for i := range ms {
		if ms[i].receipt != nil {
			ms[i].receipt.leave()
		}
	}
}

// run consumes until fetch ends, then lets messages in progress finish, for as long as work and
// settlePatience last. Messages fetched and not begun, and those cut short by work's end, stay unanswered:
// they go back to the group when the broker's Consume returns. An early return says why the
// broker cannot go on.
func (c *consumer) run(fetch, work context.Context) error {
	c.closing = func() bool { return fetch.Err() != nil }
	work, cut := context.WithCancel(work)
	defer cut()
	// Once fetching has ended, messages in progress have settlePatience, or what a drain allows.
	unhook := context.AfterFunc(fetch, func() {
		late := time.AfterFunc(settlePatience, func() {
			select {
			case <-c.s.manager.draining:
			default:
				cut()
			}
		})
		context.AfterFunc(work, func() { late.Stop() })
	})
	defer unhook()
	desc := call.Desc{Op: "subscribe", Resource: c.route.sub.Topic, Safety: call.Safe, Streamed: true, Lasting: true}
	_, err := catalog.Do(work, c.h, desc, func(ctx context.Context, broker block.PubSub) (struct{}, error) {
		if log, ok := block.As[block.Log](broker); ok {
			return struct{}{}, c.runLog(ctx, fetch, work, log)
		}
		if queue, ok := block.As[block.Queue](broker); ok {
			return struct{}{}, c.runQueue(ctx, fetch, work, queue)
		}
		return struct{}{}, fault.New("pubsub.Subscribe", fault.Unsupported, "component %s can neither be read by position nor consumed", c.h.Name)
	}, nil)
	return err
}

// group is whom the subscription shares its messages with.
func (c *consumer) group() string {
	if c.rules.group != "" {
		return c.rules.group
	}
	return c.s.self.App
}

// runQueue consumes a broker that keeps groups itself. ctx is the call's, work that of messages in progress.
func (c *consumer) runQueue(ctx, fetch, work context.Context, queue block.Queue) error {
	consume, cancel := context.WithCancel(ctx)
	defer cancel()
	limit := c.route.sub.inFlight(c.s.opts.MaxInFlight)
	opts := block.ConsumeOptions{Topic: c.rules.prefix + c.route.sub.Topic, Group: c.group(),
		MaxInFlight: limit * windowFactor, Metadata: c.route.sub.Metadata}
	var deliver func(block.Delivery)
	var stop func() // returns when nothing is in progress
	if c.route.sub.Bulk.Enabled {
		b := c.batches(work)
		opts.MaxInFlight = max(opts.MaxInFlight, 2*b.size)
		deliver, stop = func(d block.Delivery) { b.add(received{Delivery: d}) }, b.stop
	} else {
		c.lanes = newLanes(limit, func(j *job) time.Duration {
			defer c.survive(j.received)
			return c.handle(work, j)
		})
		deliver, stop = c.lanes.add, c.lanes.stop
	}
	drained := make(chan struct{})
	unhook := context.AfterFunc(fetch, func() {
		defer close(drained)
		stop()
		cancel()
	})
	err := queue.Consume(consume, opts, deliver)
	if unhook() {
		stop() // Consume ended by itself
	} else {
		<-drained
	}
	return err
}

// batches handles messages in batches.
func (c *consumer) batches(work context.Context) *batcher {
	return newBatcher(&c.route.sub, func(ms []received) {
		defer leaveAll(ms)
		defer c.survive(ms...)
		c.handleBatch(work, ms)
	})
}

// survive keeps a defect in the handling of a message from ending the process: the message
// comes again. Calls into the app and the broker are guarded already, by call.Do.
func (c *consumer) survive(ds ...received) {
	p := recover()
	if p == nil {
		return
	}
	c.log.Error("handling a message failed", "error", call.Panicked(p))
	for i := range ds {
		ds[i].nack(lastPause) // ignored for those answered already
	}
}

// handle sees one message through. A positive result asks for the message to be handled again
// after that pause, its key waiting.
func (c *consumer) handle(ctx context.Context, j *job) (again time.Duration) {
	if c.closing() {
		return 0 // not begun: unanswered
	}
	a, err := read(&c.route.sub, j.Delivery)
	if err != nil {
		return c.failed(ctx, j, err)
	}
	if a.expired(time.Now()) {
		return c.discard(ctx, j, "expired")
	}
	path, ok, err := c.route.path(a.event)
	switch {
	case err != nil:
		return c.failed(ctx, j, err)
	case !ok:
		return c.discard(ctx, j, "no route")
	}
	answer, err := c.deliver(ctx, j, a, path)
	switch {
	case err != nil:
		return c.failed(ctx, j, err)
	case answer == Drop:
		return c.discard(ctx, j, "dropped by the app")
	}
	j.ack()
	return 0
}

// deliver gives the event to the app as one call, counting every attempt.
func (c *consumer) deliver(ctx context.Context, j *job, a *arrival, path string) (Answer, error) {
	topic := c.route.sub.Topic
	desc := call.Desc{Op: "deliver", Resource: topic, Safety: call.Idempotent}
	return call.Do(ctx, c.inbound, desc, func(ctx context.Context) (Answer, error) {
		attempt := max(j.Attempt, 1) + j.tries
		j.tries++
		start := time.Now()
		trace, span := c.s.delivery(ctx, topic, a)
		answer, err := c.once(ctx, a, path, attempt, trace)
		if err == nil && answer == Retry {
			err = fault.New("pubsub.deliver", fault.Unavailable, "the app asked to send event %s of topic %s again", a.Position, topic)
		}
		c.count(answer, err, time.Since(start))
		if span != nil {
			span.End(err)
		}
		return answer, err
	})
}

func (c *consumer) once(ctx context.Context, a *arrival, path string, attempt int, trace Trace) (Answer, error) {
	if c.sink == nil {
		return c.deliverHTTP(ctx, a, path, attempt, trace)
	}
	e, err := a.decoded(&c.route.sub, path, attempt)
	if err != nil {
		return Retry, err
	}
	e.TraceParent, e.TraceBin = trace.Parent, trace.Bin
	return c.sink.Deliver(ctx, e)
}

func (c *consumer) count(answer Answer, err error, took time.Duration) {
	rec := c.s.opts.Recorder
	switch {
	case rec == nil:
	case err != nil:
		rec.PubSubIngress(c.h.Name, c.route.sub.Topic, "retry", "retry", took)
	case answer == Drop:
		rec.PubSubIngress(c.h.Name, c.route.sub.Topic, "drop", "success", took)
	default:
		rec.PubSubIngress(c.h.Name, c.route.sub.Topic, "success", "success", took)
	}
}

// failed settles a message the app did not take: to the dead-letter topic if there is one,
// else it comes again. Nothing is settled while stopping, and a message never goes to the
// dead-letter topic because this sidecar could not reach out to the app at all.
func (c *consumer) failed(ctx context.Context, j *job, err error) time.Duration {
	switch {
	case ctx.Err() != nil || c.closing():
		return 0 // unanswered
	case fault.Of(err) == fault.NotReady || heldBack(err) || !c.route.sub.buries():
		return c.later(j, err)
	}
	return c.bury(ctx, j, err)
}

// heldBack tells whether policy kept the message from the app because it is too much for now:
// that says nothing about the message.
func heldBack(err error) bool {
	reason := fault.ReasonOf(err)
	return reason == fault.BreakerOpen || reason == fault.PolicyRejected && (fault.Of(err) == fault.Exhausted || fault.Of(err) == fault.Unavailable)
}

// discard settles a message nobody wants: it leaves a copy on the dead-letter topic if there
// is one.
func (c *consumer) discard(ctx context.Context, j *job, why string) time.Duration {
	if !c.route.sub.buries() {
		c.log.DebugContext(ctx, "message discarded", "why", why, "position", j.Position)
		j.ack()
		return 0
	}
	if ctx.Err() != nil || c.closing() {
		return 0
	}
	return c.bury(ctx, j, fault.New("pubsub.discard", fault.Invalid, "%s", why))
}

// bury copies a message to the dead-letter topic and acknowledges it when the copy is safe.
func (c *consumer) bury(ctx context.Context, j *job, cause error) time.Duration {
	start := time.Now()
	if err := c.deadLetter(ctx, &j.Delivery); err != nil {
		if ctx.Err() != nil {
			return 0
		}
		c.log.WarnContext(ctx, "dead-letter copy failed, the message stays", "deadLetterTopic", c.route.sub.DeadLetterTopic,
			"position", j.Position, "error", err)
		return c.later(j, err)
	}
	c.log.WarnContext(ctx, "message moved to the dead-letter topic", "deadLetterTopic", c.route.sub.DeadLetterTopic,
		"position", j.Position, "error", cause)
	if rec := c.s.opts.Recorder; rec != nil {
		rec.PubSubIngress(c.h.Name, c.route.sub.Topic, "drop", "drop", time.Since(start))
	}
	j.ack()
	return 0
}

// deadLetter publishes a message's bytes and metadata unchanged, with pubsubName and our mark.
func (c *consumer) deadLetter(ctx context.Context, d *block.Delivery) error {
	sub := &c.route.sub
	if err := c.s.checkPublish(c.rules, sub.DeadLetterTopic); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, deadLetterTimeout)
	defer cancel()
	metadata := make(map[string]string, len(d.Metadata)+2)
	for k, v := range d.Metadata {
		metadata[k] = v
	}
	metadata["pubsubName"] = sub.PubSub
	metadata[deadLetterMark] = sub.Topic
	return c.s.append(ctx, c.h, sub.DeadLetterTopic, block.Message{
		Topic: c.rules.prefix + sub.DeadLetterTopic, Key: d.Key, Data: d.Data, Metadata: metadata, ID: newID()})
}

// later makes a message come again. One with a key is held here, in front of its successors;
// one without goes back to the broker, for any member of the group.
func (c *consumer) later(j *job, cause error) time.Duration {
	// The broker's count tells deliveries, not failures: those of dead processes and lost
	// connections are in it. A message held here has its failures counted here, or one failure
	// after a bad hour would keep its key waiting for a minute.
	failures := max(j.Attempt, 1)
	if j.Key != "" && c.lanes != nil {
		failures = j.rounds + 1
	}
	pause := backoff(failures)
	if c.lanes == nil && !c.route.sub.Bulk.Enabled {
		pause = 0 // the engine's own, which is the same
	}
	log := c.log.Debug
	if c.lanes != nil && c.lanes.stalled() {
		log = c.log.Warn // an operator may have to help: fix the app, or set a dead-letter topic
	}
	log("message will be delivered again", "key", j.Key, "position", j.Position, "attempt", max(j.Attempt, 1)+j.tries, "after", pause, "error", cause)
	if j.Key != "" && c.lanes != nil {
		j.rounds++
		return pause
	}
	if j.receipt != nil {
		j.receipt.tried = max(0, j.tries-1)
	}
	j.nack(pause)
	return 0
}
