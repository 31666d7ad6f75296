package pubsub

import (
	"context"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

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
