package pubsub

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// What the native API asks for goes to the engine as it is; here is decided who may use which topic, under
// which name the broker has it, and which policy governs it. Messages are the app's bytes: no envelope.

// Ending is closed by EndStreams.
func (s *Service) Ending() <-chan struct{} { return s.ending }

// EndStreams ends the streams of publishers, which would keep the edges from draining. It is called once.
func (s *Service) EndStreams() { close(s.ending) }

// topicOf is what a component's broker calls a topic, for publishing or subscribing.
func (s *Service) topicOf(op fault.Op, component, topic string, publish bool) (*catalog.Handle[block.PubSub], *rules, error) {
	h, err := s.lookup(component, topic)
	if err != nil {
		return nil, nil, err
	}
	rules := s.rulesOf(h)
	if publish {
		return h, rules, s.checkPublish(rules, topic)
	}
	if !rules.maySubscribe(s.self.App, topic) {
		return nil, nil, forbidden(op, "subscription to topic '%s' on pubsub '%s' is not allowed", topic, component)
	}
	return h, rules, nil
}

// onLog runs fn on the engine of a component, as one call.
func onLog[R any](ctx context.Context, s *Service, h *catalog.Handle[block.PubSub], d call.Desc, fn func(context.Context, *engine.Engine) (R, error)) (R, error) {
	return catalog.Do(ctx, h, d, func(ctx context.Context, broker block.PubSub) (R, error) {
		log, ok := block.As[block.Log](broker)
		if !ok {
			var none R
			return none, fault.New("pubsub.native", fault.Unsupported, "pub/sub component %s has no partitions: it keeps groups and acknowledgements itself; use Dapr's API with it", h.Name)
		}
		return fn(ctx, s.engine(log))
	}, nil)
}

// admin describes a call of the administrative methods.
func (s *Service) admin(op, topic string) call.Desc {
	d := s.desc(op, topic, "")
	d.Safety = call.Idempotent
	return d
}

// Publisher publishes to one topic for the native API. Its methods are called by one goroutine.
type Publisher struct {
	s     *Service
	h     *catalog.Handle[block.PubSub]
	topic string // the app's name
	opts  engine.PublishOptions
	p     *engine.Publisher

	mu    sync.Mutex
	queue []*publication // guarded by mu
	busy  bool           // guarded by mu; somebody works the queue off
}

// publication is a batch on its way.
type publication struct {
	ctx    context.Context
	batch  engine.Batch
	done   func([]engine.Receipt)
	resume *string // lets a key through instead
}

// OpenPublisher prepares to publish to a topic.
func (s *Service) OpenPublisher(ctx context.Context, component string, o engine.PublishOptions) (*Publisher, engine.PublishInfo, error) {
	const op fault.Op = "pubsub.OpenPublisher"
	if o.Ordering > engine.OrderNone {
		return nil, engine.PublishInfo{}, fault.New(op, fault.Invalid, "ordering %d is not known", o.Ordering)
	}
	h, rules, err := s.topicOf(op, component, o.Topic, true)
	if err != nil {
		return nil, engine.PublishInfo{}, err
	}
	p := &Publisher{s: s, h: h, topic: o.Topic}
	o.Topic = rules.prefix + o.Topic
	p.opts, p.p = o, engine.NewPublisher(o)
	info, err := onLog(ctx, s, h, s.admin("describe", p.topic), func(ctx context.Context, e *engine.Engine) (engine.PublishInfo, error) {
		return e.PublishInfo(ctx, o.Topic)
	})
	return p, info, err
}

// maxRound bounds the messages that are appended at once.
const maxRound = 4096

// Publish takes a batch; calls are in order. done is told the receipts, once, later or at once.
func (p *Publisher) Publish(ctx context.Context, b engine.Batch, done func([]engine.Receipt)) {
	if p.opts.Producer != "" && b.Seq > 0 {
		for i := range b.Entries {
			if b.Entries[i].ID == "" {
				b.Entries[i].ID = p.opts.Producer + "/" + strconv.FormatUint(b.Seq+uint64(i), 10)
			}
		}
	}
	p.add(&publication{ctx: ctx, batch: b, done: done})
}

// Resume lets messages of a key, or of a partition, through again, behind those taken before.
func (p *Publisher) Resume(key string, partition *int32) {
	if partition != nil {
		key = strconv.Itoa(int(*partition))
	}
	p.add(&publication{resume: &key})
}

// Close does nothing: what was taken is published.
func (p *Publisher) Close() {}

func (p *Publisher) add(job *publication) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, job)
	if !p.busy {
		p.busy = true
		go p.work() // ends when the queue is empty; done of every batch tells the caller when
	}
}

// work publishes what is queued, as much at once as came meanwhile.
func (p *Publisher) work() {
	for {
		p.mu.Lock()
		if len(p.queue) == 0 {
			p.busy = false
			p.mu.Unlock()
			return
		}
		n, entries := 0, 0
		for ; n < len(p.queue); n++ {
			job := p.queue[n]
			if n > 0 && (job.resume != nil || job.batch.Atomic || p.queue[0].resume != nil || p.queue[0].batch.Atomic || entries+len(job.batch.Entries) > maxRound) {
				break
			}
			entries += len(job.batch.Entries)
		}
		round := p.queue[:n:n]
		p.queue = p.queue[n:]
		p.mu.Unlock()
		if round[0].resume != nil {
			p.p.ResumeKey(*round[0].resume)
			continue
		}
		p.publish(round, entries)
	}
}

// publish makes one call of a round of batches. Of an attempt after the first only what failed is sent.
func (p *Publisher) publish(round []*publication, n int) {
	entries := make([]engine.Entry, 0, n)
	for _, job := range round {
		entries = append(entries, job.batch.Entries...)
	}
	receipts := make([]engine.Receipt, len(entries))
	pending := make([]int, len(entries))
	for i := range pending {
		pending[i] = i
	}
	atomic := round[0].batch.Atomic
	start := time.Now()
	desc := p.s.desc("publish", p.topic, "")
	if len(entries) > 0 {
		desc.Key = entries[0].Key
	}
	_, err := onLog(round[0].ctx, p.s, p.h, desc, func(ctx context.Context, e *engine.Engine) (struct{}, error) {
		batch := entries
		if len(pending) < len(entries) {
			batch = make([]engine.Entry, len(pending))
			for j, i := range pending {
				batch[j] = entries[i]
			}
		}
		var left []int
		var first error
		for j, r := range p.p.Publish(ctx, e, batch, atomic) {
			receipts[pending[j]] = r
			if r.Err != nil {
				left = append(left, pending[j])
				if first == nil || fault.ReasonOf(first) == fault.PrecedingFailed {
					first = r.Err
				}
			}
		}
		pending = left
		return struct{}{}, first
	})
	if err != nil {
		for _, i := range pending { // refused before an attempt was made
			if receipts[i].Err == nil {
				receipts[i].Err = err
			}
		}
	}
	p.p.Settle(entries, receipts)
	if rec := p.s.opts.Recorder; rec != nil {
		rec.PubSubBulkEgress(p.h.Name, p.topic, err == nil, time.Since(start))
	}
	for _, job := range round {
		k := len(job.batch.Entries)
		job.done(receipts[:k:k])
		receipts = receipts[k:]
	}
}

// Consumer is a member of a group for the native API. It is the engine's, with the app's names of topics.
type Consumer struct {
	s      *Service
	h      *catalog.Handle[block.PubSub]
	c      *engine.Consumer
	prefix string
	tell   func(engine.Event)
}

// OpenConsumer checks what can be checked and prepares a consumer; Run joins the group. tell is called while Run
// runs and must not block. An empty group is the app's own.
func (s *Service) OpenConsumer(ctx context.Context, component string, o engine.ConsumeOptions, tell func(engine.Event)) (*Consumer, engine.ConsumeInfo, error) {
	const op fault.Op = "pubsub.OpenConsumer"
	var none engine.ConsumeInfo
	if len(o.Topics) == 0 {
		if err := s.Check(component, ""); err != nil {
			return nil, none, err
		}
	}
	out := &Consumer{s: s, tell: tell}
	topics := make([]string, len(o.Topics))
	for i, t := range o.Topics {
		h, rules, err := s.topicOf(op, component, t, false)
		if err != nil {
			return nil, none, err
		}
		out.h, out.prefix = h, rules.prefix
		topics[i] = out.prefix + t
		if o.Group == "" {
			o.Group = rules.group
		}
	}
	if o.Group == "" {
		o.Group = s.self.App
	}
	if dead := o.Retry.DeadLetterTopic; dead != "" {
		if _, _, err := s.topicOf(op, component, dead, true); err != nil {
			return nil, none, err
		}
		o.Retry.DeadLetterTopic = out.prefix + dead
	}
	o.Topics = topics
	manual := make([]engine.Part, len(o.Manual))
	for i, p := range o.Manual {
		manual[i] = out.inner(p)
	}
	o.Manual = manual
	var err error
	if out.c, err = engine.NewConsumer(o, s.log.With("component", component, "group", o.Group)); err != nil {
		return nil, none, err
	}
	info, err := onLog(ctx, s, out.h, s.admin("describe", o.Topics[0]), func(ctx context.Context, e *engine.Engine) (engine.ConsumeInfo, error) {
		return e.ConsumeInfo(ctx, out.c)
	})
	for i := range info.Topics {
		info.Topics[i].Topic = strings.TrimPrefix(info.Topics[i].Topic, out.prefix)
	}
	return out, info, err
}

// Run joins the group and tells what happens until Close, ctx's end, or the service's.
func (c *Consumer) Run(ctx context.Context) error {
	m := &c.s.manager
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return fault.New("pubsub.Consume", fault.Unavailable, "the sidecar is shutting down")
	}
	m.alive.Add(1)
	m.mu.Unlock()
	defer m.alive.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan struct{})
	defer close(over)
	replaced := make(chan struct{})
	go func() {
		draining, gone := m.draining, c.h.Gone()
		for {
			select {
			case <-draining:
				draining = nil
				c.c.Close(true)
			case <-gone:
				gone = nil
				close(replaced)
				c.c.Close(true)
			case <-m.work.Done(): // a drain's patience is over
				c.c.Close(false)
				return
			case <-over:
				return
			}
		}
	}()
	desc := call.Desc{Op: "subscribe", Resource: c.c.Options().Topics[0], Safety: call.Safe, Streamed: true, Lasting: true}
	_, err := onLog(ctx, c.s, c.h, desc, func(ctx context.Context, e *engine.Engine) (struct{}, error) {
		defer c.s.running.add(c.h.Name, c.c)()
		return struct{}{}, c.c.Run(ctx, e, func(ev engine.Event) error {
			c.tell(c.outer(ev))
			return nil
		})
	})
	if err != nil {
		return err
	}
	select {
	case <-m.draining:
		return fault.New("pubsub.Consume", fault.Unavailable, "the sidecar is shutting down")
	case <-replaced:
		return fault.New("pubsub.Consume", fault.Unavailable, "component %s was replaced; open the stream again", c.h.Name)
	default:
		return nil
	}
}

// inner is a partition under the broker's name of its topic.
func (c *Consumer) inner(p engine.Part) engine.Part {
	return engine.Part{Topic: c.prefix + p.Topic, ID: p.ID}
}

func (c *Consumer) inners(ps []engine.Part) []engine.Part {
	if c.prefix == "" {
		return ps
	}
	out := make([]engine.Part, len(ps))
	for i, p := range ps {
		out[i] = c.inner(p)
	}
	return out
}

// outer is an event with the app's names of topics.
func (c *Consumer) outer(ev engine.Event) engine.Event {
	if c.prefix == "" {
		return ev
	}
	name := func(topic *string) { *topic = strings.TrimPrefix(*topic, c.prefix) }
	names := func(ps []engine.Part) []engine.Part {
		out := make([]engine.Part, len(ps))
		for i, p := range ps {
			name(&p.Topic)
			out[i] = p
		}
		return out
	}
	switch ev := ev.(type) {
	case engine.Assigned:
		for i := range ev.Parts {
			name(&ev.Parts[i].Topic)
		}
		return ev
	case engine.Revoking:
		ev.Parts = names(ev.Parts)
		return ev
	case engine.Lost:
		ev.Parts = names(ev.Parts)
		return ev
	case engine.Deliver:
		name(&ev.Part.Topic)
		return ev
	case engine.Status:
		for i := range ev.Parts {
			name(&ev.Parts[i].Topic)
		}
		return ev
	}
	return ev
}

// Credit is the engine's.
func (c *Consumer) Credit(messages, bytes int, part *engine.Part) error {
	if part != nil {
		p := c.inner(*part)
		part = &p
	}
	return c.c.Credit(messages, bytes, part)
}

// Ack is the engine's.
func (c *Consumer) Ack(part engine.Part, epoch uint64, ranges []engine.Range) error {
	return c.c.Ack(c.inner(part), epoch, ranges)
}

// Nack is the engine's.
func (c *Consumer) Nack(r engine.Refusal) error {
	r.Part = c.inner(r.Part)
	return c.c.Nack(r)
}

// Extend is the engine's.
func (c *Consumer) Extend(part engine.Part, epoch, position uint64, by time.Duration) error {
	return c.c.Extend(c.inner(part), epoch, position, by)
}

// RevokeDone is the engine's.
func (c *Consumer) RevokeDone(assignment uint64, parts []engine.Part) error {
	return c.c.RevokeDone(assignment, c.inners(parts))
}

// Control is the engine's.
func (c *Consumer) Control(ct engine.Control) error {
	ct.Parts = c.inners(ct.Parts)
	return c.c.Control(ct)
}

// Close is the engine's.
func (c *Consumer) Close(drain bool) { c.c.Close(drain) }

// about runs an administrative method on a topic the app may subscribe to.
func about[R any](ctx context.Context, s *Service, op, component, topic string, fn func(ctx context.Context, e *engine.Engine, topic string) (R, error)) (R, error) {
	h, rules, err := s.topicOf(fault.Op("pubsub."+op), component, topic, false)
	if err != nil {
		var none R
		return none, err
	}
	return onLog(ctx, s, h, s.admin(op, topic), func(ctx context.Context, e *engine.Engine) (R, error) {
		return fn(ctx, e, rules.prefix+topic)
	})
}

// groupOf is the app's own group unless another is named.
func (s *Service) groupOf(component, group string) string {
	if group != "" {
		return group
	}
	if h, err := s.stores.Lookup(component); err == nil {
		if g := s.rulesOf(h).group; g != "" {
			return g
		}
	}
	return s.self.App
}

// DescribeTopic tells how a topic is divided and what it holds.
func (s *Service) DescribeTopic(ctx context.Context, component, topic string) (engine.TopicInfo, error) {
	return about(ctx, s, "DescribeTopic", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (engine.TopicInfo, error) {
		return e.DescribeTopic(ctx, topic)
	})
}

// DescribeGroup tells who is in a group and how far it is with a topic.
func (s *Service) DescribeGroup(ctx context.Context, component, group, topic string) (engine.GroupInfo, error) {
	return about(ctx, s, "DescribeGroup", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (engine.GroupInfo, error) {
		return e.DescribeGroup(ctx, s.groupOf(component, group), topic)
	})
}

// ResetGroup moves a group's progress with a topic.
func (s *Service) ResetGroup(ctx context.Context, component, group, topic string, partitions []int32, to engine.Place) error {
	_, err := about(ctx, s, "ResetGroup", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (struct{}, error) {
		return struct{}{}, e.ResetGroup(ctx, s.groupOf(component, group), topic, partitions, to)
	})
	return err
}

// ListParked lists the keys a group has set aside.
func (s *Service) ListParked(ctx context.Context, component, group, topic, token string, size int) (keys []engine.Parked, next string, err error) {
	keys, err = about(ctx, s, "ListParked", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (keys []engine.Parked, err error) {
		keys, next, err = e.ListParked(ctx, s.groupOf(component, group), topic, token, size)
		return keys, err
	})
	return keys, next, err
}

// Unpark has a key's parked messages delivered again, or drops them.
func (s *Service) Unpark(ctx context.Context, component, group, topic string, partition int32, key string, drop bool) (int, error) {
	return about(ctx, s, "Unpark", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (int, error) {
		return e.Unpark(ctx, s.groupOf(component, group), topic, partition, key, drop)
	})
}

// ResizeTopic gives a topic another number of partitions.
func (s *Service) ResizeTopic(ctx context.Context, component, topic string, partitions int) (engine.TopicInfo, error) {
	return about(ctx, s, "ResizeTopic", component, topic, func(ctx context.Context, e *engine.Engine, topic string) (engine.TopicInfo, error) {
		return e.ResizeTopic(ctx, topic, partitions)
	})
}
