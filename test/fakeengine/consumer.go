package fakeengine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/mecha-project/mecha/api/nativeapi"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
)

// members is a group's part in one topic.
type members struct {
	e          *Engine
	t          *topic
	list       []*consumer // in the order they joined
	parts      map[int32]*progress
	generation uint64
}

// progress is how far a group is with a partition, and whose it is.
type progress struct {
	epoch     uint64
	owner     *consumer
	revoking  uint64 // the assignment that asked for it back; 0: none
	watermark uint64 // position of the first message that is not resolved
	next      uint64 // of the first that was never looked at
	resolved  map[uint64]bool
	waiting   []uint64 // looked at, to be delivered when their turn comes, ascending
	inFlight  map[uint64]*flight
	keys      map[string]bool // at the app, or pausing before a retry
	attempts  map[uint64]int
	gaps      map[string]bool
	parked    map[string]*parked
	paused    bool
	// seen is the epoch of the last owner, by owner's name, to tell what is over from what never was.
	delivered uint64 // the highest position that was delivered under the epoch
	credit    int
	credited  bool
}

type flight struct{ size int }

type parked struct {
	positions []uint64
	since     time.Time
	reason    string
}

// group is made when it is named. Locked, as all below.
func (e *Engine) group(topic, name string) *members {
	k := topic + "\x00" + cmp.Or(name, "app")
	g := e.groups[k]
	if g == nil {
		g = &members{e: e, t: e.topic(topic), parts: map[int32]*progress{}}
		e.groups[k] = g
	}
	return g
}

func (g *members) progress(id int32) *progress {
	p := g.parts[id]
	if p == nil {
		p = &progress{watermark: 1, next: 1, resolved: map[uint64]bool{}, attempts: map[uint64]int{}, gaps: map[string]bool{}, parked: map[string]*parked{}}
		p.reset()
		g.parts[id] = p
	}
	return p
}

// reset forgets what is at the app.
func (p *progress) reset() {
	p.inFlight, p.keys, p.delivered, p.paused, p.credit, p.credited = map[uint64]*flight{}, map[string]bool{}, 0, false, 0, false
	p.waiting = p.waiting[:0]
	p.next = p.watermark
}

func (g *members) seek(id int32, to engine.Place) {
	p := g.progress(id)
	switch end := uint64(len(g.t.logs[id]) + 1); to.Kind {
	case engine.Latest:
		p.watermark = end
	case engine.AtPosition:
		p.watermark = min(to.Position, end)
	case engine.AtTime:
		p.watermark = end
		for _, r := range slices.Backward(g.t.logs[id]) {
			if !r.Time.Before(to.Time) {
				p.watermark = r.Position
			}
		}
	default:
		p.watermark = 1
	}
	clear(p.resolved)
	p.reset()
	g.pump(id)
}

// consumer is a member. It consumes one topic, or several as if each were alone.
type consumer struct {
	e          *Engine
	o          engine.ConsumeOptions
	name       string
	tell       func(engine.Event)
	groups     []*members
	assignment uint64
	asked      map[uint64][]engine.Part // of Revoking, by assignment
	running    bool
	closing    bool
	over       bool
	why        error
	ended      chan struct{}
	credit     int
	messages   int // at the app
	bytes      int
}

// OpenConsumer implements nativeapi.Messaging.
func (e *Engine) OpenConsumer(_ context.Context, component string, o engine.ConsumeOptions, tell func(engine.Event)) (nativeapi.Consumer, engine.ConsumeInfo, error) {
	if err := e.check(component, o.Topics...); err != nil {
		return nil, engine.ConsumeInfo{}, err
	}
	l := &o.Limits
	for _, d := range []struct {
		v *int
		n int
	}{{&l.PartitionMessages, 256}, {&l.PartitionBytes, 4 << 20}, {&l.Messages, 1024}, {&l.Bytes, 16 << 20}, {&l.Window, 10_000}} {
		*d.v = cmp.Or(*d.v, d.n)
	}
	l.Keys, l.Concurrency = cmp.Or(l.Keys, l.PartitionMessages), cmp.Or(l.Concurrency, l.Messages)
	o.RevokeTimeout = cmp.Or(o.RevokeTimeout, 10*time.Second)
	o.Retry.Attempts = cmp.Or(o.Retry.Attempts, 10)
	o.Retry.First = cmp.Or(o.Retry.First, 10*time.Millisecond)
	c := &consumer{e: e, o: o, tell: tell, asked: map[uint64][]engine.Part{}, ended: make(chan struct{})}
	c.name = o.Instance
	if c.name == "" {
		c.name = fmt.Sprintf("member-%p", c)
	}
	info := engine.ConsumeInfo{Member: c.name, Group: cmp.Or(o.Group, "app"), Capabilities: e.Capabilities, SessionTTL: sessionTime, Limits: *l,
		HandlerTimeout: max(cmp.Or(o.HandlerTimeout, 5*time.Minute), 0), RevokeTimeout: o.RevokeTimeout}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range o.Manual {
		if !slices.Contains(e.topic(p.Topic).parts(), p) {
			return nil, info, fault.New(op, fault.Invalid, "there is no partition %v", p).With(engine.NoSuchPartition)
		}
		if !slices.Contains(c.o.Topics, p.Topic) {
			c.o.Topics = append(c.o.Topics, p.Topic)
		}
	}
	for _, t := range c.o.Topics {
		c.groups = append(c.groups, e.group(t, o.Group))
		info.Topics = append(info.Topics, engine.TopicSize{Topic: t, Partitions: int(e.topic(t).current().Count)})
	}
	return c, info, nil
}

// Run implements nativeapi.Consumer.
func (c *consumer) Run(ctx context.Context) error {
	c.e.mu.Lock()
	if c.closing {
		c.e.mu.Unlock()
		return nil
	}
	c.running = true
	for _, g := range c.groups {
		for _, other := range slices.Clone(g.list) {
			if other.name == c.name {
				other.finish(fault.New(op, fault.Conflict, "another stream came with instance %q", c.name).With(replacedBy))
			}
		}
		g.list = append(g.list, c)
		g.changed()
	}
	c.e.mu.Unlock()
	var status <-chan time.Time
	if c.o.StatusEvery > 0 {
		t := time.NewTicker(c.o.StatusEvery)
		defer t.Stop()
		status = t.C
	}
	for {
		select {
		case <-ctx.Done():
			c.e.mu.Lock()
			c.finish(ctx.Err())
			c.e.mu.Unlock()
			return c.why
		case <-c.ended:
			return c.why
		case <-status:
			c.e.mu.Lock()
			c.tell(c.status())
			c.e.mu.Unlock()
		}
	}
}

func (c *consumer) status() (out engine.Status) {
	c.owned(func(g *members, id int32, p *progress) {
		end := uint64(len(g.t.logs[id]) + 1)
		out.Parts = append(out.Parts, engine.PartStatus{Part: engine.Part{Topic: g.t.name, ID: id}, Epoch: p.epoch, Committed: p.watermark, End: end, Lag: end - p.watermark,
			InFlight: len(p.inFlight), ParkedKeys: len(p.parked), Paused: p.paused})
	})
	return out
}

func (c *consumer) owned(f func(*members, int32, *progress)) {
	for _, g := range c.groups {
		for _, part := range g.t.parts() {
			if p := g.progress(part.ID); p.owner == c {
				f(g, part.ID, p)
			}
		}
	}
}

// finish takes the consumer out of its groups.
func (c *consumer) finish(why error) {
	if c.over {
		return
	}
	c.over, c.why = true, why
	for _, g := range c.groups {
		g.list = slices.DeleteFunc(g.list, func(m *consumer) bool { return m == c })
	}
	c.owned(func(_ *members, _ int32, p *progress) { p.free() })
	close(c.ended)
	for _, g := range c.groups {
		g.changed()
	}
}

func (p *progress) free() {
	p.owner, p.revoking = nil, 0
	p.reset()
}

// changed gives partitions their owners. Those that move are asked back first.
func (g *members) changed() {
	g.generation++
	load, want := map[*consumer]int{}, map[int32]*consumer{}
	var takers []*consumer
	for _, c := range g.list {
		if !c.closing && len(c.o.Manual) == 0 {
			takers = append(takers, c)
		}
	}
	parts := g.t.parts()
	quota := 0
	if len(takers) > 0 {
		quota = (len(parts) + len(takers) - 1) / len(takers)
	}
	for _, part := range parts { // who has one keeps it, up to its share
		for _, c := range g.list {
			if slices.Contains(c.o.Manual, part) {
				want[part.ID] = c
			}
		}
		if o := g.progress(part.ID).owner; want[part.ID] == nil && o != nil && slices.Contains(takers, o) && load[o] < quota {
			want[part.ID] = o
			load[o]++
		}
	}
	for _, part := range parts {
		if want[part.ID] == nil && len(takers) > 0 {
			c := slices.MinFunc(takers, func(a, b *consumer) int { return load[a] - load[b] })
			want[part.ID] = c
			load[c]++
		}
	}
	g.apply(want)
	for _, c := range g.list {
		c.tell(engine.GroupChanged{View: g.view(c)})
	}
}

func (g *members) view(c *consumer) group.View {
	return group.View{Generation: g.generation, Members: len(g.list), Index: slices.Index(g.list, c)}
}

func (g *members) apply(want map[int32]*consumer) {
	give, back := map[*consumer][]engine.AssignedPart{}, map[*consumer][]engine.Part{}
	for _, part := range g.t.parts() {
		p, to := g.progress(part.ID), want[part.ID]
		switch {
		case p.owner == to || to == nil:
		case p.owner != nil:
			if p.revoking == 0 {
				back[p.owner] = append(back[p.owner], part)
			}
		default:
			p.owner = to
			p.epoch++
			p.credited = false
			if to.o.Start.Kind != engine.Earliest && p.epoch == 1 {
				g.seek(part.ID, to.o.Start)
			}
			give[to] = append(give[to], engine.AssignedPart{Part: part, Epoch: p.epoch, Next: p.watermark, End: uint64(len(g.t.logs[part.ID]) + 1)})
		}
	}
	for _, c := range g.list {
		if ps := back[c]; ps != nil {
			c.revoke(g, ps, "rebalance")
		}
		if ps := give[c]; ps != nil {
			c.assignment++
			c.tell(engine.Assigned{Assignment: c.assignment, Parts: ps, Group: g.view(c)})
			for _, p := range ps {
				g.pump(p.ID)
			}
		}
	}
}

func (c *consumer) revoke(g *members, ps []engine.Part, reason string) {
	c.assignment++
	n := c.assignment
	c.asked[n] = ps
	for _, part := range ps {
		g.progress(part.ID).revoking = n
	}
	c.tell(engine.Revoking{Assignment: n, Parts: ps, Deadline: time.Now().Add(c.o.RevokeTimeout), Reason: reason})
	time.AfterFunc(c.o.RevokeTimeout, func() {
		c.e.mu.Lock()
		defer c.e.mu.Unlock()
		var lost []engine.Part
		for _, part := range ps {
			if p := g.progress(part.ID); p.owner == c && p.revoking == n {
				lost = append(lost, part)
				p.free()
			}
		}
		if lost != nil && !c.over {
			c.tell(engine.Lost{Parts: lost, Reason: "revoke timeout"})
			g.changed()
		}
	})
}

// pump delivers what may be.
func (g *members) pump(id int32) {
	p := g.progress(id)
	c := p.owner
	if c == nil || p.revoking != 0 || p.paused || c.closing || c.over {
		return
	}
	log := g.t.logs[id]
	d := engine.Deliver{Part: engine.Part{Topic: g.t.name, ID: id}, Epoch: p.epoch}
	full := func() bool {
		l := c.o.Limits
		return len(p.inFlight) >= min(l.PartitionMessages, l.Keys) || c.messages >= min(l.Messages, l.Concurrency) || c.bytes >= l.Bytes ||
			c.o.Credited && (c.credit == 0 || p.credited && p.credit == 0) || c.o.Ordering == engine.OrderPartition && len(p.inFlight) > 0
	}
	try := func(pos uint64) (deliver bool) {
		r := log[pos-1]
		if c.o.Ordering == engine.OrderKey && r.Key != "" && p.keys[r.Key] || p.inFlight[pos] != nil {
			return false
		}
		p.keys[r.Key] = true
		p.inFlight[pos] = &flight{size: len(r.Data)}
		p.attempts[pos]++
		p.delivered = max(p.delivered, pos)
		c.messages++
		c.bytes += len(r.Data)
		if c.o.Credited {
			c.credit--
			p.credit--
		}
		d.Messages = append(d.Messages, engine.Message{LogRecord: r, Attempt: p.attempts[pos], OrderGap: p.gaps[r.Key]})
		delete(p.gaps, r.Key)
		return true
	}
	waiting := p.waiting
	p.waiting = nil
	blocked := map[string]bool{}
	for i, pos := range waiting {
		if full() {
			p.waiting = append(p.waiting, waiting[i:]...)
			break
		}
		if key := log[pos-1].Key; blocked[key] || !try(pos) {
			if key != "" {
				blocked[key] = true
			}
			p.waiting = append(p.waiting, pos)
		}
	}
	for ; p.next <= uint64(len(log)) && !full(); p.next++ {
		if p.resolved[p.next] {
			continue
		}
		r := log[p.next-1]
		if k := p.parked[r.Key]; k != nil {
			k.positions = append(k.positions, p.next)
			p.resolve(p.next)
			continue
		}
		if r.Key != "" && blocked[r.Key] || !try(p.next) {
			p.waiting = append(p.waiting, p.next)
		}
	}
	if d.Messages != nil {
		c.tell(d)
	}
}

func (p *progress) resolve(pos uint64) {
	p.resolved[pos] = true
	for p.resolved[p.watermark] {
		delete(p.resolved, p.watermark)
		p.watermark++
	}
}

// part finds a partition by what the app says of it.
func (c *consumer) part(part engine.Part, epoch uint64) (*members, *progress, error) {
	for _, g := range c.groups {
		if g.t.name != part.Topic || !slices.Contains(g.t.parts(), part) {
			continue
		}
		p := g.progress(part.ID)
		if p.owner == c && p.epoch == epoch {
			return g, p, nil
		}
		if epoch > 0 && epoch <= p.epoch {
			return nil, nil, fault.New(op, fault.Conflict, "epoch %d of %v is over", epoch, part).With(engine.StaleEpoch)
		}
	}
	return nil, nil, fault.New(op, fault.Invalid, "%v with epoch %d was never assigned", part, epoch).With(engine.NotAssigned)
}

// landed takes a message off the app.
func (c *consumer) landed(g *members, p *progress, id int32, pos uint64) {
	f := p.inFlight[pos]
	delete(p.inFlight, pos)
	delete(p.keys, g.t.logs[id][pos-1].Key)
	c.messages--
	c.bytes -= f.size
}

// settle goes on after something was resolved.
func (c *consumer) settle() {
	c.owned(func(g *members, id int32, p *progress) {
		g.pump(id)
		if p.revoking != 0 && c.o.AutoRevoke && len(p.inFlight) == 0 {
			p.free()
			g.changed()
		}
	})
	if c.closing && c.messages == 0 {
		c.finish(nil)
	}
}

// Credit implements nativeapi.Consumer.
func (c *consumer) Credit(messages, _ int, part *engine.Part) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	if part != nil {
		for _, g := range c.groups {
			if p := g.parts[part.ID]; g.t.name == part.Topic && p != nil && p.owner == c {
				p.credit += messages
				p.credited = true
				c.settle()
				return nil
			}
		}
		return fault.New(op, fault.Invalid, "%v is not assigned", *part).With(engine.NotAssigned)
	}
	c.credit += messages
	c.settle()
	return nil
}

// Ack implements nativeapi.Consumer.
func (c *consumer) Ack(part engine.Part, epoch uint64, ranges []engine.Range) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	g, p, err := c.part(part, epoch)
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if r.To > p.delivered {
			return fault.New(op, fault.Invalid, "positions %d to %d of %v: %d was never delivered", r.From, r.To, part, r.To).With(engine.NotDelivered)
		}
	}
	for _, r := range ranges {
		for pos := r.From; pos <= r.To; pos++ {
			if p.inFlight[pos] != nil {
				c.landed(g, p, part.ID, pos)
				p.resolve(pos)
				delete(p.attempts, pos)
			}
		}
	}
	c.settle()
	return nil
}

// Nack implements nativeapi.Consumer.
func (c *consumer) Nack(r engine.Refusal) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	g, p, err := c.part(r.Part, r.Epoch)
	if err != nil {
		return err
	}
	if p.inFlight[r.Position] == nil {
		return fault.New(op, fault.Invalid, "message %d of %v is not at the app", r.Position, r.Part).With(engine.NotDelivered)
	}
	rec := g.t.logs[r.ID][r.Position-1]
	remedy := r.Remedy
	if remedy == engine.RemedyRetry && c.o.Retry.Attempts > 0 && p.attempts[r.Position] >= c.o.Retry.Attempts {
		remedy = c.o.Retry.Then
	}
	c.landed(g, p, r.ID, r.Position)
	switch remedy {
	case engine.RemedyRetry:
		p.keys[rec.Key] = true // the key waits with it
		epoch := p.epoch
		time.AfterFunc(cmp.Or(r.Delay, c.o.Retry.First), func() {
			c.e.mu.Lock()
			defer c.e.mu.Unlock()
			if p.owner == c && p.epoch == epoch {
				delete(p.keys, rec.Key)
				p.waiting = append([]uint64{r.Position}, p.waiting...)
				slices.Sort(p.waiting)
				g.pump(r.ID)
			}
		})
	case engine.RemedyPark:
		k := &parked{positions: []uint64{r.Position}, since: time.Now(), reason: r.Reason}
		p.parked[rec.Key] = k
		p.resolve(r.Position)
		p.waiting = slices.DeleteFunc(p.waiting, func(pos uint64) bool {
			same := g.t.logs[r.ID][pos-1].Key == rec.Key
			if same {
				k.positions = append(k.positions, pos)
				p.resolve(pos)
			}
			return same
		})
	default:
		if remedy == engine.RemedyDeadLetter {
			t := c.e.topic(cmp.Or(c.o.Retry.DeadLetterTopic, g.t.name+".dead-letter"))
			rec.Position = uint64(len(t.logs[0]) + 1)
			t.logs[0] = append(t.logs[0], rec)
		}
		p.gaps[rec.Key] = true
		p.resolve(r.Position)
	}
	c.settle()
	return nil
}

// Extend implements nativeapi.Consumer.
func (c *consumer) Extend(part engine.Part, epoch, position uint64, _ time.Duration) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	_, p, err := c.part(part, epoch)
	if err == nil && p.inFlight[position] == nil {
		err = fault.New(op, fault.Invalid, "message %d of %v is not at the app", position, part).With(engine.NotDelivered)
	}
	return err
}

// RevokeDone implements nativeapi.Consumer.
func (c *consumer) RevokeDone(assignment uint64, parts []engine.Part) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	asked, ok := c.asked[assignment]
	for _, p := range parts {
		ok = ok && slices.Contains(asked, p)
	}
	if !ok {
		return fault.New(op, fault.Invalid, "assignment %d asked for no such partitions", assignment).With(engine.NoRevoking)
	}
	if parts == nil {
		parts = asked
	}
	for _, g := range c.groups {
		free := false
		for _, part := range parts {
			if p := g.parts[part.ID]; part.Topic == g.t.name && p.owner == c && p.revoking == assignment {
				c.messages -= len(p.inFlight)
				for _, f := range p.inFlight {
					c.bytes -= f.size
				}
				p.free()
				free = true
			}
		}
		if free {
			g.changed()
		}
	}
	return nil
}

// Control implements nativeapi.Consumer.
func (c *consumer) Control(in engine.Control) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	have := map[engine.Part]bool{}
	c.owned(func(g *members, id int32, _ *progress) { have[engine.Part{Topic: g.t.name, ID: id}] = true })
	for _, p := range in.Parts {
		if !have[p] {
			return fault.New(op, fault.Invalid, "%v is not assigned", p).With(engine.NotAssigned)
		}
	}
	if in.Concurrency > 0 {
		c.o.Limits.Concurrency = in.Concurrency
	}
	c.owned(func(g *members, id int32, p *progress) {
		if len(in.Parts) > 0 && !slices.Contains(in.Parts, engine.Part{Topic: g.t.name, ID: id}) {
			return
		}
		p.paused = in.Pause || p.paused && !in.Resume
		if in.Seek != nil {
			c.messages -= len(p.inFlight)
			for _, f := range p.inFlight {
				c.bytes -= f.size
			}
			g.seek(id, *in.Seek)
		}
	})
	c.settle()
	return nil
}

// Close implements nativeapi.Consumer.
func (c *consumer) Close(drain bool) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	c.closing = true
	if c.running && (!drain || c.messages == 0) {
		c.finish(nil)
	}
	if c.running && drain && !c.over {
		time.AfterFunc(c.o.RevokeTimeout, func() {
			c.e.mu.Lock()
			defer c.e.mu.Unlock()
			c.finish(nil)
		})
	}
}
