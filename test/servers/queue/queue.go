// Package queue is a broker in memory that keeps groups and acknowledgements itself, as a block.Queue: the
// product behind pluggable components in tests. Product code has no such broker in memory.
package queue

import (
	"bytes"
	"container/heap"
	"context"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Broker is an empty broker when new. Clients share it.
type Broker struct {
	mu     sync.Mutex
	topics map[string]*topic // guarded by mu
}

// The bounds of a topic: what groups have not consumed, and what stays although they have.
const (
	maxMessages = 1 << 16
	maxBytes    = 64 << 20
	history     = 1024
)

// New makes a broker.
func New() *Broker { return &Broker{topics: map[string]*topic{}} }

func (h *Broker) topic(name string) *topic {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.topics[name]
	if t == nil {
		t = &topic{name: name, groups: map[string]*group{}}
		h.topics[name] = t
	}
	return t
}

// Client is one component's access to a Broker.
type Client struct {
	hub    *Broker
	closed chan struct{}
	once   sync.Once
	live   sync.WaitGroup // running Consume calls
	mu     sync.Mutex     // orders live.Add before the Wait in Close
}

var _ block.Queue = (*Client)(nil)

// Client opens a component on the broker.
func (h *Broker) Client() *Client { return &Client{hub: h, closed: make(chan struct{})} }

// Ping succeeds until Close.
func (p *Client) Ping(ctx context.Context) error { return p.usable("queue.Ping", ctx) }

// Close ends running Consume calls and waits for them, as long as ctx lasts.
func (p *Client) Close(ctx context.Context) error {
	p.mu.Lock()
	p.once.Do(func() { close(p.closed) })
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		p.live.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fault.Wrap("queue.Close", fault.Deadline, ctx.Err())
	}
}

// Publish appends the messages in order.
func (p *Client) Publish(ctx context.Context, msgs []block.Message) []error {
	const op fault.Op = "queue.Publish"
	errs := make([]error, len(msgs))
	failed := false
	for i := range msgs {
		if errs[i] = p.usable(op, ctx); errs[i] == nil {
			errs[i] = p.hub.topic(msgs[i].Topic).append(op, &msgs[i])
		}
		failed = failed || errs[i] != nil
	}
	if !failed {
		return nil
	}
	return errs
}

// Consume delivers messages until ctx ends. The goroutine of the caller does the delivering.
func (p *Client) Consume(ctx context.Context, opts block.ConsumeOptions, deliver func(block.Delivery)) error {
	const op fault.Op = "queue.Consume"
	if opts.MaxInFlight < 1 {
		return fault.New(op, fault.Invalid, "MaxInFlight is %d, want at least 1", opts.MaxInFlight)
	}
	p.mu.Lock()
	if err := p.usable(op, ctx); err != nil {
		p.mu.Unlock()
		return err
	}
	p.live.Add(1)
	p.mu.Unlock()
	defer p.live.Done()
	p.hub.topic(opts.Topic).run(ctx, p.closed, opts, deliver)
	return p.usable(op, ctx)
}

func (p *Client) usable(op fault.Op, ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	select {
	case <-p.closed:
		return fault.New(op, fault.Unavailable, "the broker is closed").WithSent(fault.SentNever)
	default:
		return nil
	}
}

// topic is a bounded log and the groups reading it. Everything is guarded by mu.
type topic struct {
	name string

	mu     sync.Mutex
	log    []*entry // log[i] has offset first+i
	first  int64
	bytes  int64
	groups map[string]*group
}

// entry is one message in the log. Its message never changes.
type entry struct {
	msg    block.Message
	offset int64
	needed int // groups that are not done with it
}

func (e *entry) size() int64 {
	n := int64(len(e.msg.Data)+len(e.msg.Key)) + 256 // entry, message and slots, roughly
	for k, v := range e.msg.Metadata {
		n += int64(len(k)+len(v)) + 32
	}
	return n
}

// group is one consumer group's place in the log.
type group struct {
	next    int64 // offset of the first message never delivered to the group
	back    returned
	members []*member
}

// member is one running Consume.
type member struct {
	free int // deliveries it may still get before one is answered
	held map[*lease]struct{}
	wake chan struct{} // one slot: something may have changed
}

// lease is one delivery in the hands of a member.
type lease struct {
	topic   *topic
	group   *group
	member  *member
	entry   *entry
	attempt int
	due     time.Time // when it may be delivered again, once it is back
}

func (t *topic) append(op fault.Op, m *block.Message) error {
	e := &entry{msg: *m}
	e.msg.Data = bytes.Clone(m.Data)
	e.msg.Metadata = maps.Clone(m.Metadata)
	size := e.size()
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.log) > 0 && t.log[0].needed == 0 && (len(t.log) >= history || t.full(size)) {
		t.drop()
	}
	if t.full(size) {
		return fault.New(op, fault.Exhausted,
			"topic %q keeps %d messages, %d bytes, which a group has not consumed",
			t.name, len(t.log), t.bytes)
	}
	e.offset, e.needed = t.first+int64(len(t.log)), len(t.groups)
	t.log = append(t.log, e)
	t.bytes += size
	for _, g := range t.groups {
		g.wake()
	}
	return nil
}

func (t *topic) full(more int64) bool {
	return len(t.log) >= maxMessages || t.bytes+more > maxBytes
}

// drop forgets the oldest message. The slice's head moves; append reuses or leaves the array.
func (t *topic) drop() {
	t.bytes -= t.log[0].size()
	t.log[0] = nil
	t.log = t.log[1:]
	t.first++
}

// join adds a member, and the group if it is new: at the oldest message kept.
func (t *topic) join(name string, inFlight int) (*group, *member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.groups[name]
	if g == nil {
		g = &group{next: t.first}
		t.groups[name] = g
		for _, e := range t.log {
			e.needed++
		}
	}
	m := &member{free: inFlight, held: map[*lease]struct{}{}, wake: make(chan struct{}, 1)}
	g.members = append(g.members, m)
	return g, m
}

// leave removes a member; what it holds goes back to the group.
func (t *topic) leave(g *group, m *member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for l := range m.held {
		g.giveBack(l, now)
	}
	m.held = nil
	for i, other := range g.members {
		if other == m {
			g.members = append(g.members[:i], g.members[i+1:]...)
			break
		}
	}
	g.wake()
}

// take hands the next message to m, or tells how long until one given back is due (0: nothing
// is). A message that came back goes before new ones.
func (t *topic) take(g *group, m *member) (*lease, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.free == 0 {
		return nil, 0
	}
	var wait time.Duration
	if len(g.back) > 0 {
		if wait = time.Until(g.back[0].due); wait <= 0 {
			l, _ := heap.Pop(&g.back).(*lease)
			l.member, l.attempt = m, l.attempt+1
			return m.hold(l), 0
		}
	}
	if i := g.next - t.first; i < int64(len(t.log)) {
		g.next++
		return m.hold(&lease{topic: t, group: g, member: m, entry: t.log[i], attempt: 1}), 0
	}
	return nil, wait
}

func (m *member) hold(l *lease) *lease {
	m.free--
	m.held[l] = struct{}{}
	return l
}

// giveBack queues a fresh lease of the same message, so that late answers to the old one find
// nothing.
func (g *group) giveBack(l *lease, due time.Time) {
	heap.Push(&g.back, &lease{topic: l.topic, group: g, entry: l.entry, attempt: l.attempt, due: due})
}

func (g *group) wake() {
	for _, m := range g.members {
		if m.free > 0 {
			m.nudge()
		}
	}
}

func (m *member) nudge() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// answered takes l out of its member's hands; false means it was answered before or went back.
func (l *lease) answered() bool {
	m := l.member
	if _, held := m.held[l]; !held {
		return false
	}
	delete(m.held, l)
	m.free++
	m.nudge()
	return true
}

func (l *lease) ack() {
	l.topic.mu.Lock()
	defer l.topic.mu.Unlock()
	if l.answered() {
		l.entry.needed--
	}
}

func (l *lease) nack(delay time.Duration) {
	l.topic.mu.Lock()
	defer l.topic.mu.Unlock()
	if l.answered() {
		l.group.giveBack(l, time.Now().Add(max(delay, 0)))
		l.group.wake()
	}
}

// delivery is what the consumer sees; message content is copied, for it belongs to the
// consumer from now on.
func (l *lease) delivery() block.Delivery {
	msg := l.entry.msg
	msg.Data = bytes.Clone(msg.Data)
	msg.Metadata = maps.Clone(msg.Metadata)
	return block.Delivery{Message: msg, Attempt: l.attempt, Position: strconv.FormatInt(l.entry.offset, 10), Ack: l.ack, Nack: l.nack}
}

// returned is a heap of messages given back: soonest due first, then oldest.
type returned []*lease

func (h returned) Len() int { return len(h) }
func (h returned) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].entry.offset < h[j].entry.offset
	}
	return h[i].due.Before(h[j].due)
}
func (h returned) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push appends x, as container/heap asks.
func (h *returned) Push(x any) {
	l, _ := x.(*lease)
	*h = append(*h, l)
}

// Pop removes the last element, as container/heap asks.
func (h *returned) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return l
}

// run is one Consume: take, deliver, sleep. It returns when ctx or closed ends.
func (t *topic) run(ctx context.Context, closed <-chan struct{}, opts block.ConsumeOptions, deliver func(block.Delivery)) {
	g, m := t.join(opts.Group, opts.MaxInFlight)
	defer t.leave(g, m)
	timer := time.NewTimer(time.Hour) // re-armed whenever something is due; a stray tick is harmless
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-closed:
			return
		default:
		}
		l, wait := t.take(g, m)
		if l != nil {
			deliver(l.delivery())
			continue
		}
		var due <-chan time.Time
		if wait > 0 {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-ctx.Done():
		case <-closed:
		case <-m.wake:
		case <-due:
		}
	}
}
