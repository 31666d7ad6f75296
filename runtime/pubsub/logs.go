package pubsub

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// engines are those of the brokers in use, one for each open component.
type engines struct {
	mu  sync.Mutex
	all map[block.Log]*engine.Engine // guarded by mu

	over     chan struct{} // closed by Close
	once     sync.Once
	watching sync.WaitGroup
}

// engine is that of a broker. It ends when the component does.
func (s *Service) engine(log block.Log) *engine.Engine {
	s.engines.mu.Lock()
	defer s.engines.mu.Unlock()
	e := s.engines.all[log]
	if e == nil {
		e = engine.New(log, s.log)
		s.engines.all[log] = e
		s.engines.watching.Go(func() {
			select {
			case <-log.Closed():
				s.closeEngine(log)
			case <-s.engines.over:
			}
		})
	}
	return e
}

func (s *Service) closeEngine(log block.Log) {
	s.engines.mu.Lock()
	e := s.engines.all[log]
	delete(s.engines.all, log)
	s.engines.mu.Unlock()
	if e != nil {
		e.Close()
	}
}

// Close ends what the service does in the background. It follows Drain, and comes before the components close.
func (s *Service) Close() {
	s.engines.once.Do(func() { close(s.engines.over) })
	s.engines.watching.Wait()
	s.engines.mu.Lock()
	logs := make([]block.Log, 0, len(s.engines.all))
	for log := range s.engines.all {
		logs = append(logs, log)
	}
	s.engines.mu.Unlock()
	for _, log := range logs {
		s.closeEngine(log)
	}
}

// consumeOptions are those of a subscription of Dapr's kind: messages that fail come again for ever unless
// there is a dead-letter topic, for which the consumer itself cares.
func (c *consumer) consumeOptions() engine.ConsumeOptions {
	limit := c.route.sub.inFlight(c.s.opts.MaxInFlight)
	o := engine.ConsumeOptions{Topics: []string{c.rules.prefix + c.route.sub.Topic}, Group: c.group(),
		Retry:          engine.Retry{First: firstPause, Max: lastPause, Attempts: -1},
		HandlerTimeout: -1, AutoRevoke: true, LeaveTimeout: 24 * time.Hour, // run ends it
		Limits: engine.Limits{PartitionMessages: limit, Messages: limit, Concurrency: limit}}
	if c.route.sub.Bulk.Enabled {
		size, _ := c.route.sub.bulk()
		n := max(limit, 2*size)
		o.Ordering = engine.OrderLoose
		o.Limits = engine.Limits{PartitionMessages: n, Messages: n, Concurrency: n}
	}
	return o
}

// runLog consumes a broker whose topics are logs.
func (c *consumer) runLog(ctx, fetch, work context.Context, log block.Log) error {
	ec, err := engine.NewConsumer(c.consumeOptions(), c.log)
	if err != nil {
		return err
	}
	var add func(received)
	var stop func()
	if c.route.sub.Bulk.Enabled {
		b := c.batches(work)
		add, stop = b.add, b.stop
	} else {
		p := &pool{handle: func(m received) {
			defer m.receipt.leave()
			defer c.survive(m)
			c.handle(work, &job{received: m})
		}}
		add, stop = p.add, p.stop
	}
	unhook := context.AfterFunc(fetch, func() {
		ec.Close(true)
		if c.route.sub.Bulk.Enabled {
			stop() // what waits in the buffer is given back
		}
	})
	defer unhook()
	defer c.s.running.add(c.h.Name, ec)()
	err = ec.Run(ctx, c.s.engine(log), func(ev engine.Event) error {
		switch ev := ev.(type) {
		case engine.Deliver:
			receipts := make([]receipt, len(ev.Messages))
			for i := range ev.Messages {
				receipts[i] = receipt{ec: ec, part: ev.Part, epoch: ev.Epoch, position: ev.Messages[i].Position}
				add(receive(&receipts[i], &ev.Messages[i]))
			}
		case engine.Lost:
			c.log.Warn("partitions were lost; messages in progress will be delivered again", "partitions", len(ev.Parts), "reason", ev.Reason)
		}
		return nil
	})
	stop()
	return err
}

// receipt answers a message to the engine, once.
type receipt struct {
	ec       *engine.Consumer
	part     engine.Part
	epoch    uint64
	position uint64
	answered atomic.Bool
	tried    int // times the app was given it, besides the first
}

// What the engine says to an answer is not looked at: it refuses those for a partition that was lost, whose
// messages come again elsewhere.
func (r *receipt) ack() {
	if r.answered.CompareAndSwap(false, true) {
		_ = r.ec.Ack(r.part, r.epoch, []engine.Range{{From: r.position, To: r.position}})
	}
}

func (r *receipt) nack(delay time.Duration) {
	if r.answered.CompareAndSwap(false, true) {
		_ = r.ec.Nack(engine.Refusal{Part: r.part, Epoch: r.epoch, Position: r.position, Delay: delay, Tried: r.tried})
	}
}

func (r *receipt) leave() {
	if r.answered.CompareAndSwap(false, true) {
		_ = r.ec.Return(r.part, r.epoch, r.position)
	}
}

func receive(r *receipt, m *engine.Message) received {
	var room [40]byte
	place := append(strconv.AppendInt(room[:0], int64(r.part.ID), 10), '/')
	return received{receipt: r, Delivery: block.Delivery{Message: m.Message, Attempt: m.Attempt,
		Position: string(strconv.AppendUint(place, m.Position, 10))}}
}

// pool runs messages, each in a goroutine; idle ones are used again. Whoever adds bounds how many there are.
type pool struct {
	handle func(received)

	mu      sync.Mutex
	waiting []chan received // guarded by mu; idle workers
	stopped bool            // guarded by mu
	running sync.WaitGroup
}

func (p *pool) add(m received) {
	p.mu.Lock()
	if n := len(p.waiting); n > 0 {
		w := p.waiting[n-1]
		p.waiting = p.waiting[:n-1]
		p.mu.Unlock()
		w <- m
		return
	}
	p.running.Add(1)
	p.mu.Unlock()
	go p.work(m)
}

func (p *pool) work(m received) {
	defer p.running.Done()
	next := make(chan received, 1)
	for {
		p.handle(m)
		p.mu.Lock()
		if p.stopped || len(p.waiting) >= maxIdle {
			p.mu.Unlock()
			return
		}
		p.waiting = append(p.waiting, next)
		p.mu.Unlock()
		var ok bool
		if m, ok = <-next; !ok {
			return
		}
	}
}

// stop waits for messages in progress. Nothing is added any more.
func (p *pool) stop() {
	p.mu.Lock()
	p.stopped = true
	for _, w := range p.waiting {
		close(w)
	}
	p.waiting = nil
	p.mu.Unlock()
	p.running.Wait()
}

// put appends messages to a broker of either kind; it returns nil when all were accepted, else one error or
// nil per message.
func (s *Service) put(ctx context.Context, broker block.PubSub, msgs []block.Message) []error {
	log, ok := block.As[block.Log](broker)
	if !ok {
		if queue, ok := block.As[block.Queue](broker); ok {
			return queue.Publish(ctx, msgs)
		}
		err := fault.New("pubsub.Publish", fault.Unsupported, "the component is no broker")
		return slices.Repeat([]error{err}, len(msgs))
	}
	return putLog(ctx, s.engine(log), msgs)
}

// putLog appends messages to one topic. Those of one key stay in order: when one is refused, so are those
// behind it.
func putLog(ctx context.Context, e *engine.Engine, msgs []block.Message) []error {
	if len(msgs) == 0 {
		return nil
	}
	entries := make([]engine.Entry, len(msgs))
	for i := range msgs {
		partition, err := partitionNumber(msgs[i].Metadata)
		if err != nil { // nothing is published of a request that is wrong in part
			return slices.Repeat([]error{err}, len(msgs))
		}
		entries[i] = engine.Entry{Message: msgs[i], Partition: partition}
	}
	o := engine.PublishOptions{Topic: msgs[0].Topic}
	if len(msgs) == 1 {
		o.Ordering = engine.OrderNone
	}
	var errs []error
	for i, r := range engine.NewPublisher(o).Publish(ctx, e, entries, false) {
		if r.Err != nil {
			if errs == nil {
				errs = make([]error, len(msgs))
			}
			errs[i] = r.Err
		}
	}
	return errs
}

// partitionNumber is the partition a publisher asks for; nil when it asks for none.
func partitionNumber(metadata map[string]string) (*int32, error) {
	for name, value := range metadata {
		if !strings.EqualFold(name, "partitionNumber") {
			continue
		}
		n, err := strconv.ParseInt(value, 10, 32)
		if err != nil || n < 0 {
			return nil, fault.New("pubsub.Publish", fault.Invalid, "metadata partitionNumber is %q; want the number of a partition, from 0", value).
				With(fault.BadMetadata).WithSent(fault.SentNever)
		}
		id := int32(n)
		return &id, nil
	}
	return nil, nil
}
