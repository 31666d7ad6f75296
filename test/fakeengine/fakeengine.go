// Package fakeengine is partitioned messaging in memory, for tests of what is above the engine: the
// edge and the SDKs. It promises what nativeapi.Messaging asks for, by the simplest means: one lock
// around all. What brokers add to it (leases, time, failures) is tested with the engine.
//
// Start at New. Fields of Engine are set before it is used.
package fakeengine

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/api/nativeapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
)

// Engine holds topics and groups of one pub/sub component.
type Engine struct {
	Component    string
	Partitions   int
	Capabilities []engine.Capability
	MaxMessage   int
	// Fail makes the append of an entry fail; nil: none does.
	Fail func(engine.Entry) error
	// Append is called before a batch is appended, by the goroutine that appends.
	Append func(engine.Batch)

	mu     sync.Mutex
	topics map[string]*topic
	groups map[string]*members
}

const (
	// Forbidden is a topic that nobody may use.
	Forbidden = "forbidden"

	op          fault.Op     = "fakeengine"
	lacking     fault.Reason = "missing_capability"
	replacedBy  fault.Reason = "instance_replaced"
	sessionTime              = 6 * time.Second
)

// New makes an engine that can do everything, with one component named "pubsub" and 4 partitions.
func New() *Engine {
	return &Engine{Component: "pubsub", Partitions: 4, MaxMessage: 1 << 20, topics: map[string]*topic{}, groups: map[string]*members{},
		Capabilities: []engine.Capability{engine.Deduplication, engine.Delay, engine.TTL, engine.Atomic, engine.Seek, engine.Manual, engine.Epochs, engine.Park, engine.Resize}}
}

var _ nativeapi.Messaging = (*Engine)(nil)

type topic struct {
	name   string
	layout group.Layout
	logs   map[int32][]block.LogRecord // positions are indexes + 1
	ids    map[string]engine.Receipt
	spread int32
}

func (e *Engine) check(component string, topics ...string) error {
	if component != e.Component {
		return fault.New(op, fault.NotFound, "pub/sub component %q is not loaded", component).With(fault.NoSuchComponent)
	}
	for _, t := range topics {
		switch t {
		case "":
			return fault.New(op, fault.Invalid, "the topic is empty").With(fault.NoTopic)
		case Forbidden:
			return fault.New(op, fault.Denied, "the app may not use topic %q", t).With(fault.ForbiddenTopic)
		}
	}
	return nil
}

// topic makes topics as they are named. Locked.
func (e *Engine) topic(name string) *topic {
	t := e.topics[name]
	if t == nil {
		t = &topic{name: name, logs: map[int32][]block.LogRecord{}, ids: map[string]engine.Receipt{},
			layout: group.Layout{Generations: []group.Generation{{Count: int32(e.Partitions)}}}}
		e.topics[name] = t
	}
	return t
}

func (t *topic) current() group.Generation { return t.layout.Generations[len(t.layout.Generations)-1] }

func (t *topic) parts() (out []engine.Part) {
	for _, g := range t.layout.Generations {
		for i := range g.Count {
			out = append(out, engine.Part{Topic: t.name, ID: g.First + i})
		}
	}
	return out
}

// place is the partition of an entry.
func (t *topic) place(n engine.Entry) (int32, error) {
	g := t.current()
	switch {
	case n.Partition != nil:
		if *n.Partition < g.First || *n.Partition >= g.First+g.Count {
			return 0, fault.New(op, fault.Invalid, "topic %q has no partition %d", t.name, *n.Partition).With(engine.NoSuchPartition)
		}
		return *n.Partition, nil
	case n.Key == "" && n.ID == "":
		t.spread++
		return g.First + t.spread%g.Count, nil
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(cmp.Or(n.Key, n.ID)))
	return g.First + int32(h.Sum32()%uint32(g.Count)), nil
}

// publisher appends in a goroutine of its own, so that frames overtake appends.
type publisher struct {
	e     *Engine
	o     engine.PublishOptions
	work  chan func()
	ended chan struct{}
	held  map[string]bool // of the goroutine
}

// OpenPublisher implements nativeapi.Messaging.
func (e *Engine) OpenPublisher(_ context.Context, component string, o engine.PublishOptions) (nativeapi.Publisher, engine.PublishInfo, error) {
	if err := e.check(component, o.Topic); err != nil {
		return nil, engine.PublishInfo{}, err
	}
	e.mu.Lock()
	n := e.topic(o.Topic).current().Count
	e.mu.Unlock()
	p := &publisher{e: e, o: o, work: make(chan func(), 64), ended: make(chan struct{}), held: map[string]bool{}}
	go func() {
		defer close(p.ended)
		for f := range p.work {
			f()
		}
	}()
	return p, engine.PublishInfo{Capabilities: e.Capabilities, Partitions: int(n), Hash: "fnv1a", Dedup: time.Minute, MaxMessage: e.MaxMessage}, nil
}

// Publish implements nativeapi.Publisher.
func (p *publisher) Publish(_ context.Context, b engine.Batch, done func([]engine.Receipt)) {
	p.work <- func() {
		if p.e.Append != nil {
			p.e.Append(b)
		}
		out := make([]engine.Receipt, len(b.Entries))
		for i, n := range b.Entries {
			if b.Seq != 0 && n.ID == "" {
				n.ID = fmt.Sprintf("%s/%d", p.o.Producer, b.Seq+uint64(i))
			}
			if out[i] = p.one(n); out[i].Err != nil && fault.ReasonOf(out[i].Err) != fault.PrecedingFailed {
				if unit := p.unit(n.Key, out[i].Partition); unit != "" {
					p.held[unit] = true
				}
			}
		}
		done(out)
	}
}

// unit is what keeps an order of its own; empty: none does.
func (p *publisher) unit(key string, partition int32) string {
	switch {
	case p.o.Ordering == engine.OrderPartition:
		return fmt.Sprint("p", partition)
	case p.o.Ordering == engine.OrderKey && key != "":
		return "k" + key
	}
	return ""
}

func (p *publisher) one(n engine.Entry) engine.Receipt {
	p.e.mu.Lock()
	id, err := p.e.topic(p.o.Topic).place(n)
	p.e.mu.Unlock()
	if err != nil {
		return engine.Receipt{Err: err}
	}
	n.Partition = &id
	if p.held[p.unit(n.Key, id)] {
		return engine.Receipt{Partition: id, Err: fault.New(op, fault.Conflict, "an earlier message of key %q, or of partition %d, failed; resume it", n.Key, id).With(fault.PrecedingFailed)}
	}
	if len(n.Data) > p.e.MaxMessage {
		return engine.Receipt{Partition: id, Err: fault.New(op, fault.TooLarge, "%d bytes; at most %d", len(n.Data), p.e.MaxMessage)}
	}
	if p.e.Fail != nil {
		if err := p.e.Fail(n); err != nil {
			return engine.Receipt{Partition: id, Err: err}
		}
	}
	return p.e.append(p.o.Topic, n)
}

// Resume implements nativeapi.Publisher.
func (p *publisher) Resume(key string, partition *int32) {
	p.work <- func() {
		delete(p.held, "k"+key)
		if partition != nil {
			delete(p.held, fmt.Sprint("p", *partition))
		}
	}
}

// Close implements nativeapi.Publisher.
func (p *publisher) Close() {
	close(p.work)
	<-p.ended
}

// Put appends a message as a publisher would.
func (e *Engine) Put(topic, key, value string) engine.Receipt {
	return e.append(topic, engine.Entry{Message: block.Message{Topic: topic, Key: key, Data: []byte(value)}})
}

// PutRecord appends a message to a partition.
func (e *Engine) PutRecord(topic string, partition int32, m block.Message) engine.Receipt {
	return e.append(topic, engine.Entry{Message: m, Partition: &partition})
}

func (e *Engine) append(name string, n engine.Entry) engine.Receipt {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.topic(name)
	if r, twice := t.ids[n.ID]; twice && n.ID != "" {
		r.Duplicate = true
		return r
	}
	id, err := t.place(n)
	if err != nil {
		return engine.Receipt{Err: err}
	}
	n.Topic = name
	pos := uint64(len(t.logs[id]) + 1)
	t.logs[id] = append(t.logs[id], block.LogRecord{Message: n.Message, Partition: id, Position: pos, Time: time.Now()})
	r := engine.Receipt{Partition: id, Position: pos}
	if n.ID != "" {
		t.ids[n.ID] = r
	}
	for key, g := range e.groups {
		if strings.HasPrefix(key, name+"\x00") {
			g.pump(id)
		}
	}
	return r
}

// Values are all that was appended to a topic, by partition and in order.
func (e *Engine) Values(name string) map[int32][]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[int32][]string{}
	for id, log := range e.topic(name).logs {
		for _, r := range log {
			out[id] = append(out[id], string(r.Data))
		}
	}
	return out
}

// DescribeTopic implements nativeapi.Messaging.
func (e *Engine) DescribeTopic(_ context.Context, component, name string) (engine.TopicInfo, error) {
	if err := e.check(component, name); err != nil {
		return engine.TopicInfo{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.describe(e.topic(name)), nil
}

func (e *Engine) describe(t *topic) engine.TopicInfo {
	info := engine.TopicInfo{Layout: group.Layout{Generations: slices.Clone(t.layout.Generations)}, Capabilities: e.Capabilities, Hash: "fnv1a"}
	for _, p := range t.parts() {
		info.Partitions = append(info.Partitions, engine.PartBounds{ID: p.ID, LogBounds: block.LogBounds{First: 1, Next: uint64(len(t.logs[p.ID]) + 1)}})
	}
	return info
}

// ResizeTopic implements nativeapi.Messaging.
func (e *Engine) ResizeTopic(_ context.Context, component, name string, n int) (engine.TopicInfo, error) {
	if err := e.check(component, name); err != nil {
		return engine.TopicInfo{}, err
	}
	if n > 1024 {
		return engine.TopicInfo{}, fault.New(op, fault.Invalid, "%d partitions; at most 1024", n).With(engine.BadPartitions)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.topic(name)
	g := t.current()
	t.layout.Generations = append(t.layout.Generations, group.Generation{First: g.First + g.Count, Count: int32(n)})
	return e.describe(t), nil
}

// DescribeGroup implements nativeapi.Messaging.
func (e *Engine) DescribeGroup(_ context.Context, component, name, topic string) (engine.GroupInfo, error) {
	if err := e.check(component, topic); err != nil {
		return engine.GroupInfo{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var info engine.GroupInfo
	g := e.group(topic, name)
	for _, c := range g.list {
		info.Members = append(info.Members, engine.MemberInfo{Name: c.name, Leaving: c.closing})
	}
	for _, p := range g.t.parts() {
		pr := g.progress(p.ID)
		gp := engine.GroupPart{ID: p.ID, Epoch: pr.epoch, Committed: pr.watermark, End: uint64(len(g.t.logs[p.ID]) + 1), ParkedKeys: len(pr.parked)}
		gp.Lag = gp.End - gp.Committed
		if pr.owner != nil {
			gp.Owner = pr.owner.name
		}
		info.Partitions = append(info.Partitions, gp)
	}
	return info, nil
}

// ResetGroup implements nativeapi.Messaging.
func (e *Engine) ResetGroup(_ context.Context, component, name, topic string, ids []int32, to engine.Place) error {
	if err := e.check(component, topic); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.group(topic, name)
	if len(ids) == 0 {
		for _, p := range g.t.parts() {
			ids = append(ids, p.ID)
		}
	}
	for _, id := range ids {
		if !slices.Contains(g.t.parts(), engine.Part{Topic: topic, ID: id}) {
			return fault.New(op, fault.Invalid, "topic %q has no partition %d", topic, id).With(engine.NoSuchPartition)
		}
	}
	for _, id := range ids {
		g.seek(id, to)
	}
	return nil
}

// ListParked implements nativeapi.Messaging.
func (e *Engine) ListParked(_ context.Context, component, name, topic, token string, size int) (keys []engine.Parked, next string, err error) {
	if err := e.check(component, topic); err != nil {
		return nil, "", err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.group(topic, name)
	for _, p := range g.t.parts() {
		for key, k := range g.progress(p.ID).parked {
			keys = append(keys, engine.Parked{ID: p.ID, Key: key, Messages: len(k.positions), First: k.positions[0], Since: k.since, Reason: k.reason})
		}
	}
	slices.SortFunc(keys, func(a, b engine.Parked) int { return strings.Compare(a.Key, b.Key) })
	if token != "" {
		i := slices.IndexFunc(keys, func(k engine.Parked) bool { return k.Key == token })
		if i < 0 {
			return nil, "", fault.New(op, fault.Invalid, "page_token %q is none of this list", token).With(fault.BadToken)
		}
		keys = keys[i:]
	}
	if len(keys) > size {
		return keys[:size], keys[size].Key, nil
	}
	return keys, "", nil
}

// Unpark implements nativeapi.Messaging.
func (e *Engine) Unpark(_ context.Context, component, name, topic string, id int32, key string, drop bool) (int, error) {
	if err := e.check(component, topic); err != nil {
		return 0, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.group(topic, name)
	p := g.progress(id)
	k := p.parked[key]
	if k == nil {
		return 0, fault.New(op, fault.NotFound, "nothing of key %q is parked in partition %d", key, id).With(engine.NotParked)
	}
	delete(p.parked, key)
	if !drop {
		p.waiting = append(slices.Clone(k.positions), p.waiting...)
		g.pump(id)
	}
	return len(k.positions), nil
}

// Ending implements nativeapi.Messaging: this one never ends.
func (e *Engine) Ending() <-chan struct{} { return nil }
