package sim_test

import (
	"time"

	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// app is what a consumer serves, for one run of it. Everything is guarded by world.mu.
type app struct {
	w     *world
	m     *member
	group string
	name  string
	link  *link
	c     *engine.Consumer
	over  bool

	views       map[int32]*view
	received    int
	granted     int
	concurrency int
	ready       map[*view][]uint64 // to be acknowledged together
}

func newApp(m *member) (*app, error) {
	w := m.s.w
	c := &w.cfg
	a := &app{w: w, m: m, group: m.group, name: m.s.name, link: m.s.link, views: map[int32]*view{}, ready: map[*view][]uint64{}}
	var err error
	a.c, err = engine.NewConsumer(c.options(m.group, m.s.name), silence)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	a.concurrency = w.cfg.limits.Concurrency
	m.app = a
	if m.leaving {
		a.c.Close(true)
	}
	if c.credited {
		a.grant(4)
		a.allow()
	}
	return a, nil
}

func (c *config) options(group, instance string) engine.ConsumeOptions {
	return engine.ConsumeOptions{Topics: []string{topic}, Group: group, Instance: instance, Ordering: c.ordering, Limits: c.limits,
		Retry: c.retry, Credited: c.credited, HandlerTimeout: orNever(c.handlerTimeout), RevokeTimeout: c.revokeTimeout, LeaveTimeout: c.revokeTimeout, AutoRevoke: c.autoRevoke}
}

// complete fills in the engine's defaults, by which the judge judges.
func (c *config) complete() error {
	x, err := engine.NewConsumer(c.options("g", ""), silence)
	if err == nil {
		c.retry, c.limits = x.Options().Retry, x.Options().Limits
	}
	return err
}

func orNever(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

func (a *app) grant(n int) {
	a.granted += n
	_ = a.c.Credit(n, 1<<20, nil)
}

// allow grants credit now and then.
func (a *app) allow() {
	n := uint64(0)
	var tick func()
	tick = func() {
		n++
		r := a.w.roll(a.link.n, hashText("credit"+a.group), n)
		if open := a.open(); open < 16 && (a.w.healed || r.chance(0.6)) {
			a.grant(r.below(6))
		}
		a.later(20*time.Millisecond+r.upTo(60*time.Millisecond), tick)
	}
	a.later(10*time.Millisecond, tick)
}

func (a *app) open() (n int) {
	for _, v := range a.views {
		n += len(v.open)
	}
	return n
}

// later does something at the app after a while, unless it is over by then; what comes while the sidecar
// stands still waits.
func (a *app) later(d time.Duration, f func()) {
	time.AfterFunc(d, func() {
		if d := a.link.standing(); d > 0 {
			a.later(d+time.Microsecond, f)
			return
		}
		a.w.mu.Lock()
		defer a.w.mu.Unlock()
		if !a.over && !a.link.gone() {
			f()
		}
	})
}

// tell takes an event.
func (a *app) tell(ev engine.Event) error {
	a.w.mu.Lock()
	if a.link.gone() {
		a.w.mu.Unlock()
		return nil
	}
	var then func()
	switch e := ev.(type) {
	case engine.Assigned:
		if a.m.since.IsZero() {
			a.m.since = time.Now()
		}
		a.w.judge.assigned(a, e)
	case engine.Revoking:
		a.w.judge.revoking(a, e)
		then = func() { a.revoke(e) }
	case engine.Lost:
		a.w.judge.lost(a, e)
	case engine.Deliver:
		a.w.judge.delivered(a, &e)
		then = func() { a.handle(&e) }
	case engine.GroupChanged:
		a.w.note(everywhere, "", "%s sees %d members in group %s", a.name, e.Members, a.group)
		if a.m.since.IsZero() {
			a.m.since = time.Now()
		}
	case engine.Fault:
		a.w.note(everywhere, "", "%s, group %s: %v", a.name, a.group, e.Err)
	}
	a.w.mu.Unlock()
	a.link.thawed()
	if then != nil {
		a.w.mu.Lock()
		if !a.over && !a.link.gone() {
			then()
		}
		a.w.mu.Unlock()
	}
	return nil
}

// handle begins with messages.
func (a *app) handle(d *engine.Deliver) {
	v := a.w.judge.part(a.group, d.ID).views[d.Epoch]
	if v == nil {
		return
	}
	for i := range d.Messages {
		a.begin(v, d.Part, &d.Messages[i])
	}
}

// begin lets a handler work on a message.
func (a *app) begin(v *view, part engine.Part, m *engine.Message) {
	c := &a.w.cfg
	pos, key, attempt := m.Position, m.Key, m.Attempt
	s := v.stays[pos]
	r := a.w.roll(hashText(string(m.Data)), uint64(attempt), a.link.n)
	d := 100*time.Microsecond + r.upTo(c.handler)
	if r.chance(c.slow) && !a.w.healed {
		d += 10 * c.handler
	}
	if !a.w.healed && r.chance(c.stale) { // words that cannot count
		a.later(d/2, func() { a.lie(v, part, pos) })
	}
	poisoned := !a.w.healed && c.poison[key]
	switch {
	case !a.w.healed && !poisoned && c.handlerTimeout > 0 && r.chance(c.never):
		if r.chance(0.5) {
			a.later(c.handlerTimeout+r.upTo(c.handlerTimeout/2), func() { a.ack(v, part, pos) })
		}
	case poisoned, !a.w.healed && r.chance(c.fail):
		refusal := engine.Refusal{Part: part, Epoch: v.epoch, Position: pos, Reason: "it failed"}
		if r.chance(c.remedies) {
			refusal.Remedy = []engine.Remedy{engine.RemedyDeadLetter, engine.RemedyPark, engine.RemedyDrop}[r.below(3)]
			if !c.parks && refusal.Remedy == engine.RemedyPark {
				refusal.Remedy = engine.RemedyDrop
			}
		}
		a.later(d, func() { a.nack(v, s, refusal) })
	case c.batch:
		a.later(d, func() { a.collect(v, part, pos, r) })
	default:
		a.later(d, func() { a.ack(v, part, pos) })
		if r.chance(c.twice) {
			a.later(d+r.upTo(50*time.Millisecond), func() { a.ack(v, part, pos) })
		}
	}
}

func (a *app) ack(v *view, part engine.Part, positions ...uint64) {
	ranges := make([]engine.Range, 0, len(positions))
	for _, pos := range positions {
		ranges = append(ranges, engine.Range{From: pos, To: pos})
	}
	err := a.c.Ack(part, v.epoch, ranges)
	a.w.note(part.ID, a.w.judge.key(part.ID, positions[0]), "%s acknowledges %v of %s, epoch %d: %v", a.name, positions, v.p, v.epoch, err)
	if err == nil {
		for _, pos := range positions {
			a.w.judge.acked(v, pos)
		}
	}
}

// collect acknowledges several at once, out of order.
func (a *app) collect(v *view, part engine.Part, pos uint64, r *rolls) {
	a.ready[v] = append(a.ready[v], pos)
	if len(a.ready[v]) > 1 {
		return
	}
	a.later(r.upTo(40*time.Millisecond)+1, func() {
		list := a.ready[v]
		delete(a.ready, v)
		r.shuffle(list)
		a.ack(v, part, list...)
	})
}

func (a *app) nack(v *view, s *stay, r engine.Refusal) {
	err := a.c.Nack(r)
	a.w.note(r.ID, s.rec.key, "%s refuses %d of %s, epoch %d, remedy %d: %v", a.name, r.Position, v.p, r.Epoch, r.Remedy, err)
	if err == nil {
		a.w.judge.nacked(v, r.Position, r.Remedy)
	}
}

// lie says what must not count: I14.
func (a *app) lie(v *view, part engine.Part, pos uint64) {
	j := a.w.judge
	a.w.check("I14")
	for _, epoch := range []uint64{v.epoch - 1, v.epoch + 1} {
		if now := a.views[part.ID]; now != nil && now.epoch == epoch {
			continue
		}
		if err := a.c.Ack(part, epoch, []engine.Range{{From: pos, To: pos}}); err == nil {
			a.w.violate("I14", part.ID, j.key(part.ID, pos), "an acknowledgement of %d of %s under epoch %d is taken, in epoch %d", pos, v.p, epoch, v.epoch)
		}
	}
	for _, r := range j.logs[part.ID] { // one that was never delivered
		if r.pos > pos && v.stays[r.pos] == nil && !v.settled(r, false) && len(v.p.copies[r.pos]) == 0 && v.over == "" {
			if err := a.c.Ack(part, v.epoch, []engine.Range{{From: pos + 1, To: r.pos}}); err == nil {
				a.w.violate("I14", part.ID, r.key, "an acknowledgement of %d to %d of %s is taken, and %d was not delivered", pos+1, r.pos, v.p, r.pos)
			}
			break
		}
	}
}

// revoke lets go of partitions as the configuration says.
func (a *app) revoke(e engine.Revoking) {
	c := &a.w.cfg
	r := a.w.roll(a.link.n, hashText("revoke"), e.Assignment)
	for _, part := range e.Parts {
		v := a.views[part.ID]
		if v == nil || c.autoRevoke {
			continue
		}
		switch {
		case !a.w.healed && r.chance(c.hold): // never
		case !a.w.healed && r.chance(c.hold): // in the middle of its work
			a.later(1, func() { a.letGo(v, e.Assignment, part) })
		default:
			var look func()
			look = func() {
				a.w.judge.expire(v, time.Now())
				if a.views[part.ID] != v {
					return
				}
				if len(v.open) > 0 || len(a.ready[v]) > 0 {
					a.later(2*time.Millisecond, look)
					return
				}
				a.letGo(v, e.Assignment, part)
			}
			a.later(time.Millisecond, look)
		}
	}
}

func (a *app) letGo(v *view, assignment uint64, part engine.Part) {
	if a.views[part.ID] != v {
		return
	}
	a.w.judge.released(v)
	_ = a.c.RevokeDone(assignment, []engine.Part{part})
}

// settle makes an app give way at the end.
func (a *app) settle() {
	if a.w.cfg.credited {
		a.grant(4)
	}
	_ = a.c.Control(engine.Control{Resume: true})
}
