package mqtt

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

const (
	// Pauses between attempts to connect: the first, doubled with each failure up to the longest.
	firstPause = 100 * time.Millisecond
	lastPause  = 20 * time.Second
	// retryPause is between the first attempts to bring an event, Dapr's; parkPause between those
	// after backOffMaxRetries, where Dapr waits for the next connection.
	retryPause = 5 * time.Second
	parkPause  = time.Minute
	// atOnce is how many events may be at the app, held how many in all may wait to be brought again.
	atOnce = 64
	held   = 1024
)

// backoff is the pause after failure n (from 1), a fifth either way at random.
func backoff(n int) time.Duration {
	d := lastPause
	if n < 10 {
		d = min(firstPause<<max(n-1, 0), lastPause)
	}
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// sleep waits, and reports false when ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// reading is one run of Read.
type reading struct {
	b       *binding
	ctx     context.Context // the run's
	deliver func(context.Context, block.BindingEvent) ([]byte, error)
	work    sync.WaitGroup // events
	slots   chan struct{}  // holds one for each event at the app
	held    chan struct{}  // holds one for each event

	mu   sync.Mutex
	over bool                // guarded by mu; no more events begin
	now  *session            // guarded by mu; the latest that brought an event
	open map[uint16]*message // guarded by mu; events that the broker waits for, by their number
}

// message is an event with QoS 1 until its acknowledgement is written.
type message struct {
	p       *packets.PublishPacket
	s       *session // guarded by reading.mu; the latest that brought it
	handled bool     // guarded by reading.mu; the app has taken it
	telling bool     // guarded by reading.mu; somebody tells the broker
}

// Read delivers the topic's messages, several at once. One is acknowledged when the app has handled
// it. It returns early when the broker refuses what connecting again cannot mend.
func (b *binding) Read(ctx context.Context, deliver func(context.Context, block.BindingEvent) ([]byte, error)) error {
	const op fault.Op = "mqtt.Read"
	where := "mqtt broker at " + b.reader.at.target
	if err := ctx.Err(); err != nil {
		return over(op, where, err, fault.SentNever)
	}
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.out.life, cancel)()
	r := &reading{b: b, ctx: work, deliver: deliver, slots: make(chan struct{}, atOnce), held: make(chan struct{}, held), open: map[uint16]*message{}}
	defer r.settle()
	for failures := 1; ; failures++ {
		began := time.Now()
		err := r.follow(op)
		switch {
		case ctx.Err() != nil:
			return over(op, where, ctx.Err(), fault.SentNever)
		case b.out.life.Err() != nil:
			return b.out.shut(op)
		case lasting(err):
			return err
		}
		if time.Since(began) > lastPause {
			failures = 1 // it was well for a while
		}
		pause := backoff(failures)
		hint := ""
		if failures > 2 && errors.Is(err, errEOF) {
			hint = "does another client have the id " + b.reader.id + "?"
		}
		b.log.Warn("reading from the topic broke off and is taken up again", "topic", b.c.Topic, "error", err, "after", pause, "hint", hint)
		sleep(work, pause)
	}
}

// follow reads on one connection, until it or the run ends. Then it waits for the events at the app,
// whose acknowledgements need the connection.
func (r *reading) follow(op fault.Op) error {
	c := r.b.reader
	c.take = r.take
	ctx, cancel := context.WithTimeout(r.ctx, connectPatience)
	s, err := c.open(ctx)
	cancel()
	if err != nil {
		return c.refused(op, err)
	}
	r.b.out.met.Store(true)
	defer s.close()
	// Also when the broker remembers: it may have been for another topic.
	if err := s.subscribe(r.ctx, op, r.b.c.Topic); err != nil {
		return err
	}
	select {
	case <-s.gone:
		return s.ended(op, fault.SentMaybe)
	case <-r.ctx.Done():
		r.settle()
		return r.ctx.Err()
	}
}

// settle waits for the events at the app; no more begin.
func (r *reading) settle() {
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	r.work.Wait()
}

// take starts an event. It holds up the connection while too many are under way.
func (r *reading) take(s *session, p *packets.PublishPacket) {
	if p.Qos == 1 && r.known(s, p) {
		return
	}
	select {
	case r.held <- struct{}{}:
	case <-r.ctx.Done(): // the broker keeps it
		return
	case <-s.gone:
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || r.ctx.Err() != nil {
		<-r.held
		return
	}
	m := &message{p: p, s: s}
	if p.Qos == 1 {
		r.open[p.MessageID] = m
	}
	r.work.Go(func() {
		defer func() { <-r.held }()
		r.see(m)
	})
}

// known tells whether a message that comes again, on a connection made again, is one that the app
// still has, or has taken when nobody could be told. Such a one is not brought twice: its
// acknowledgement goes out on the new connection. As long as none was written on the old one the
// broker cannot have given the number to another message.
func (r *reading) known(s *session, p *packets.PublishPacket) bool {
	r.mu.Lock()
	if r.now != s {
		if r.now = s; !s.present {
			clear(r.open) // the broker has forgotten us, and counts anew
		}
	}
	m := r.open[p.MessageID]
	if m == nil || !p.Dup || m.p.TopicName != p.TopicName || !bytes.Equal(m.p.Payload, p.Payload) {
		r.mu.Unlock()
		return false
	}
	m.s = s
	tell := m.handled && !m.telling
	m.telling = m.telling || tell
	r.mu.Unlock()
	if tell {
		r.tell(m)
	}
	return true
}

// see brings one event to the app, again and again until it is taken or the run ends.
func (r *reading) see(m *message) {
	for tries := 1; ; tries++ {
		select {
		case r.slots <- struct{}{}:
		case <-r.ctx.Done():
			return
		}
		if r.ctx.Err() != nil {
			<-r.slots
			return
		}
		_, err := r.deliver(r.ctx, block.BindingEvent{Data: bytes.Clone(m.p.Payload), Metadata: map[string]string{"topic": m.p.TopicName}})
		<-r.slots
		if err == nil {
			r.taken(m)
			return
		}
		pause := r.b.retry
		if most := r.b.c.BackOffMaxRetries; most >= 0 && tries > most {
			if pause = r.b.park; m.p.Qos == 0 {
				return // nobody keeps it; the failure was told
			}
		}
		if !sleep(r.ctx, pause) {
			return
		}
	}
}

// taken notes that the app has taken an event.
func (r *reading) taken(m *message) {
	if m.p.Qos == 0 {
		return
	}
	r.mu.Lock()
	m.handled = true
	tell := !m.telling
	m.telling = true
	r.mu.Unlock()
	if tell {
		r.tell(m)
	}
}

// tell acknowledges a message on the latest connection that brought it. If that has ended, the
// message comes again and is known. One at a time does this for a message.
func (r *reading) tell(m *message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		s := m.s
		r.mu.Unlock()
		err := s.acknowledge(m.p.MessageID)
		r.mu.Lock()
		if m.s != s {
			continue // it has come again meanwhile
		}
		if m.telling = false; err == nil && r.open[m.p.MessageID] == m {
			delete(r.open, m.p.MessageID)
		}
		return
	}
}
