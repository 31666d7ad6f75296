package pubsub

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

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
