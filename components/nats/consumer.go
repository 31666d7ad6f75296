package nats

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// consumer is one running Consume: a member of a group on a topic.
//
// It asks the durable consumer for exactly as many messages as may be unanswered besides
// those it holds, so the server never has more on the way than the limit. While it holds
// messages it tells the server so: a slow handler keeps its message, and a dead member's come
// back after AckWait. When it ends it gives back all it holds, at once.
//
// A lost connection ends a session, not the consumer: what is held stays held, answers that
// could not be sent are sent in the next session.
type consumer struct {
	b       *pubsub
	op      fault.Op
	opts    block.ConsumeOptions
	deliver func(block.Delivery)
	subject string // of the topic
	durable string // the server's name for group and topic

	wake chan struct{} // one slot: an answer was given

	mu    sync.Mutex
	nc    *natsgo.Conn        // guarded by mu; of the current session, nil between
	held  map[uint64]*holding // guarded by mu; unanswered, by sequence in the stream
	late  []answer            // guarded by mu; could not be sent
	left  []*holding          // guarded by mu; came when a session ended, and nobody looked at it
	ended bool                // guarded by mu; answers are ignored now
}

// holding is a message in the consumer's hands.
type holding struct {
	seq   uint64
	reply string    // where answers go; guarded by consumer.mu
	told  time.Time // when the server last heard of it; guarded by consumer.mu
	done  bool      // answered; guarded by consumer.mu
}

// answer is what to tell the server about a message.
type answer struct {
	reply string
	body  []byte
}

var (
	bodyAck  = []byte("+ACK")
	bodyWork = []byte("+WPI") // in progress
	bodyNack = []byte("-NAK")
)

func newConsumer(b *pubsub, op fault.Op, topic string, opts block.ConsumeOptions, deliver func(block.Delivery)) *consumer {
	return &consumer{b: b, op: op, opts: opts, deliver: deliver, subject: b.prefix + topic,
		durable: consumerName(opts.Group, opts.Topic), wake: make(chan struct{}, 1), held: map[uint64]*holding{}}
}

// run goes from session to session until ctx or closing ends, or it cannot go on.
func (c *consumer) run(ctx context.Context, closing <-chan struct{}) error {
	defer c.finish()
	pause := 100 * time.Millisecond
	for {
		p, err := c.b.conn.acquire(ctx, c.op)
		if err == nil {
			var good bool
			if good, err = c.session(ctx, closing, p); good {
				pause = 100 * time.Millisecond
			}
		}
		select {
		case <-closing:
			return closedError(c.op)
		default:
		}
		if ctx.Err() != nil {
			return fault.Wrap(c.op, fault.Canceled, ctx.Err())
		}
		c.giveBackLeft()
		switch fault.Of(err) {
		case fault.Invalid, fault.Unsupported, fault.Denied, fault.Unauthenticated, fault.Lost:
			return err
		case fault.OK:
			continue
		}
		c.b.conn.log.Warn("consumer interrupted; trying again", "topic", c.opts.Topic, "group", c.opts.Group, "pause", pause, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		case <-closing:
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// session consumes over one inbox. It ends without an error when a fresh one is needed; good
// tells that it got as far as consuming.
func (c *consumer) session(ctx context.Context, closing <-chan struct{}, p *period) (good bool, err error) {
	if err := c.prepare(ctx, p); err != nil {
		return false, err
	}
	// Statuses come on top of messages: one for each request that ends early.
	messages := make(chan *natsgo.Msg, c.opts.MaxInFlight+64)
	inbox := p.nc.NewInbox()
	sub, err := p.nc.ChanSubscribe(inbox, messages)
	if err != nil {
		return false, sendError(c.op, err)
	}
	c.begin(p.nc)
	s := &session{c: c, p: p, inbox: inbox, messages: messages}
	err = s.loop(ctx, closing)
	s.end(ctx, sub)
	return true, err
}

// prepare makes the stream and the durable consumer unless they exist.
func (c *consumer) prepare(ctx context.Context, p *period) error {
	if err := c.b.create(ctx, c.op, p); err != nil {
		return err
	}
	_, err := p.js.CreateOrUpdateConsumer(ctx, c.b.stream, jetstream.ConsumerConfig{
		Durable: c.durable, Description: "group " + strconv.Quote(c.opts.Group) + " on topic " + strconv.Quote(c.opts.Topic),
		FilterSubject: c.subject, DeliverPolicy: jetstream.DeliverAllPolicy, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: c.b.c.AckWait, MaxDeliver: -1,
		MaxAckPending: -1, // members bound what they hold themselves
	})
	if err != nil {
		return adminError(c.op, fmt.Sprintf("consumer of topic %q, group %q", c.opts.Topic, c.opts.Group), err)
	}
	return nil
}

// begin lets answers out over nc, first those which are late.
func (c *consumer) begin(nc *natsgo.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nc = nc
	late := c.late
	c.late = nil
	for _, a := range late {
		c.send(a)
	}
}

// send tells the server, or remembers to. mu is held.
func (c *consumer) send(a answer) {
	if c.nc == nil || c.nc.Publish(a.reply, a.body) != nil {
		c.late = append(c.late, a)
	}
}

// take makes a message the consumer's. False: it is held already. The server may send a
// message again when it was killed before it noted the delivery; then the new answer address
// counts.
func (c *consumer) take(m *natsgo.Msg, seq uint64) (*holding, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if h := c.held[seq]; h != nil {
		h.reply, h.told = m.Reply, now
		return h, false
	}
	h := &holding{seq: seq, reply: m.Reply, told: now}
	c.held[seq] = h
	return h, true
}

func (c *consumer) holds() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.held)
}

// settle answers a held message, once.
func (c *consumer) settle(h *holding, body []byte) {
	c.mu.Lock()
	if h.done || c.ended {
		c.mu.Unlock()
		return
	}
	h.done = true
	delete(c.held, h.seq)
	c.send(answer{h.reply, body})
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// renew tells the server of messages held for long, and returns when to do so next.
func (c *consumer) renew() time.Duration {
	every := c.b.c.AckWait / 3
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, h := range c.held {
		if now.Sub(h.told) >= every/2 && c.nc != nil {
			h.told = now
			_ = c.nc.Publish(h.reply, bodyWork) // lost with the connection; the next one tells
		}
	}
	return every
}

// finish ends the consumer: what it holds goes back to the group, later answers find nothing.
func (c *consumer) finish() {
	c.mu.Lock()
	back := c.left
	for _, h := range c.held {
		h.done = true
		back = append(back, h)
	}
	tell := c.late
	c.ended = true
	c.nc, c.held, c.late, c.left = nil, nil, nil, nil
	c.mu.Unlock()
	inOrder(back)
	for _, h := range back {
		tell = append(tell, answer{h.reply, bodyNack})
	}
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	for !c.tell(ctx, tell) && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond) // the connection was lost just then: try the next one
	}
}

// tell sends last answers and sees them arrive, so that others get what is given back before we
// say that we ended. It waits for a lost connection to come back, as long as ctx lasts.
func (c *consumer) tell(ctx context.Context, answers []answer) bool {
	p := c.b.conn.now.Load()
	if p == nil {
		if len(answers) == 0 {
			return true
		}
		var err error
		if p, err = c.b.conn.acquire(ctx, c.op); err != nil {
			return false
		}
	}
	for _, a := range answers {
		if p.nc.Publish(a.reply, a.body) != nil {
			return false
		}
	}
	return p.nc.FlushWithContext(ctx) == nil
}

// leave notes a message which came and nobody will look at.
func (c *consumer) leave(m *natsgo.Msg, seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.held[seq]; h != nil {
		h.reply = m.Reply // sent again although it is in hand, see take
		return
	}
	c.left = append(c.left, &holding{seq: seq, reply: m.Reply})
}

// giveBackLeft gives back what a session left, when others follow.
func (c *consumer) giveBackLeft() {
	c.mu.Lock()
	defer c.mu.Unlock()
	inOrder(c.left)
	for _, h := range c.left {
		c.send(answer{h.reply, bodyNack})
	}
	c.left = nil
}

// inOrder sorts messages to be given back in the order of the topic: the server sends them
// again in the order it is told, and no message may overtake an earlier one of its key.
func inOrder(hs []*holding) {
	slices.SortFunc(hs, func(a, b *holding) int { return cmp.Compare(a.seq, b.seq) })
}

func (c *consumer) nack(h *holding, delay time.Duration) {
	body := bodyNack
	if delay > 0 {
		body = fmt.Appendf(nil, `-NAK {"delay": %d}`, delay.Nanoseconds())
	}
	c.settle(h, body)
}

// delivery makes what the service sees.
func (c *consumer) delivery(m *natsgo.Msg, h *holding, attempt int) block.Delivery {
	d := block.Delivery{
		Message:  block.Message{Topic: c.opts.Topic, Data: m.Data},
		Attempt:  attempt,
		Position: strconv.FormatUint(h.seq, 10),
		Ack:      func() { c.settle(h, bodyAck) },
		Nack:     func(delay time.Duration) { c.nack(h, delay) },
	}
	if len(m.Header) > 0 {
		d.Metadata = metadataOf(m.Header)
		if v := m.Header[headerKey]; len(v) > 0 {
			d.Key = headerValue(v[0])
		}
		if v := m.Header[headerID]; len(v) > 0 {
			d.ID = headerValue(v[0])
		}
	}
	return d
}

// place reads a message's address for answers, which says where it stands:
// $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, in
// newer servers with domain and account before the stream.
func place(reply string) (seq uint64, attempt int, ok bool) {
	t := strings.Split(reply, ".")
	if len(t) < 9 || t[0] != "$JS" || t[1] != "ACK" {
		return 0, 0, false
	}
	if t = t[4:]; len(t) >= 7 {
		t = t[2:]
	}
	attempt, err := strconv.Atoi(t[0])
	if err != nil {
		return 0, 0, false
	}
	seq, err = strconv.ParseUint(t[1], 10, 64)
	return seq, attempt, err == nil
}
