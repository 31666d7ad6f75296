package sim_test

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// rolls are random numbers that depend on nothing but what they are for.
type rolls struct{ state uint64 }

func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

func hashText(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

func (w *world) roll(what ...uint64) *rolls {
	h := mix(w.seed + 0x9e3779b97f4a7c15)
	for _, x := range what {
		h = mix(h ^ mix(x+0x9e3779b97f4a7c15))
	}
	return &rolls{h}
}

func (r *rolls) next() uint64 {
	r.state += 0x9e3779b97f4a7c15
	return mix(r.state)
}

func (r *rolls) below(n int) int { return int(r.next() % uint64(n)) }

func (r *rolls) chance(p float64) bool { return float64(r.next()>>11)/(1<<53) < p }

func (r *rolls) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(r.next() % uint64(d))
}

func (r *rolls) between(lo, hi time.Duration) time.Duration { return lo + r.upTo(hi-lo) }

func (r *rolls) shuffle(list []uint64) {
	for i := len(list) - 1; i > 0; i-- {
		k := r.below(i + 1)
		list[i], list[k] = list[k], list[i]
	}
}

// config is what a history is made of.
type config struct {
	theme    string
	parts    int
	sidecars int
	groups   []string
	ttl      time.Duration
	span     time.Duration // of the faults
	history  int           // records the broker keeps beyond what is consumed

	ordering       engine.Ordering
	retry          engine.Retry
	limits         engine.Limits
	credited       bool
	autoRevoke     bool
	handlerTimeout time.Duration
	revokeTimeout  time.Duration

	keys, perKey, free int // messages: of each key, and without one
	handler            time.Duration
	slow, fail         float64
	remedies           float64 // of failures, those that ask for something else than a retry
	parks              bool
	never              float64
	twice, stale       float64
	batch              bool
	hold               float64 // of revocations, those not answered, or in the middle of work
	poison             map[string]bool
	atomic, noID       float64
	delay              time.Duration
	noise              float64
	actions            []action
}

// action is something that happens at its time.
type action struct {
	at   time.Duration
	what string
	who  int
	d    time.Duration
	n    int
}

func (a action) String() string { return fmt.Sprintf("%v %s %d %v %d", a.at, a.what, a.who, a.d, a.n) }

// themes are what histories are about; each seed has one.
var themes = []string{"members", "members", "crash", "cut", "halt", "noise", "park", "dead", "order", "limits", "resize", "seek", "alone", "blocked", "storm", "storm"}

// plan makes the configuration of a seed.
func plan(seed uint64) config {
	w := &world{seed: seed}
	r := w.roll(1)
	ms := time.Millisecond
	c := config{theme: themes[seed%uint64(len(themes))], parts: 1 + r.below(4), sidecars: 1 + r.below(3), groups: []string{"g"}, ttl: time.Second,
		span: r.between(2*time.Second, 4*time.Second), history: 1024, handlerTimeout: 0, revokeTimeout: r.between(500*ms, 1500*ms),
		keys: 1 + r.below(6), perKey: 4 + r.below(14), free: r.below(10), handler: r.between(1*ms, 40*ms), slow: 0.03, delay: r.between(100*time.Microsecond, 3*ms), autoRevoke: r.chance(0.4)}
	c.retry = engine.Retry{First: r.between(5*ms, 60*ms), Max: 300 * ms, Attempts: -1}
	c.limits = engine.Limits{PartitionMessages: 1 + r.below(12), Messages: 4 + r.below(24), Window: 4 + r.below(60)}
	if r.chance(0.5) {
		c.limits = engine.Limits{}
	}
	if r.chance(0.3) {
		c.history = 4
	}
	if r.chance(0.3) {
		c.fail = 0.1
	}
	if r.chance(0.3) {
		c.batch = true
	}
	if r.chance(0.3) {
		c.twice, c.stale = 0.1, 0.1
	}
	switch r.below(8) {
	case 0:
		c.ordering = engine.OrderPartition
	case 1:
		c.ordering = engine.OrderNone
	case 2:
		c.ordering = engine.OrderLoose
	}
	if r.chance(0.2) {
		c.credited = true
	}
	switch c.theme {
	case "members":
		c.members(r, 2+r.below(4), "join", "leave", "restart", "join", "leave")
		c.hold = []float64{0, 0, 0.3}[r.below(3)]
	case "crash":
		c.members(r, 1+r.below(3), "kill", "kill", "again", "replace", "replace", "join")
	case "cut":
		c.members(r, 1+r.below(3), "cut", "silence", "reset", "deaf", "join")
	case "halt":
		c.sidecars = 2 + r.below(2)
		c.members(r, 1+r.below(2), "halt")
	case "noise":
		c.noise = []float64{0.02, 0.1, 0.2}[r.below(3)]
		c.members(r, 1+r.below(3), "join", "leave", "reset")
	case "park":
		c.parking(r)
		c.members(r, 1+r.below(4), "unpark", "unpark", "join", "kill", "leave", "restart")
	case "dead":
		c.retry.Attempts, c.retry.Then = 1+r.below(3), []engine.Remedy{engine.RemedyDeadLetter, engine.RemedyDeadLetter, engine.RemedyDrop}[r.below(3)]
		c.fail, c.remedies = 0.2, 0.2
		c.members(r, r.below(3), "join", "kill", "leave")
	case "order":
		c.ordering, c.keys, c.fail, c.never, c.handlerTimeout = engine.OrderKey, 1+r.below(3), 0.25, 0.1, r.between(200*ms, 600*ms)
		c.perKey = 10 + r.below(20)
		c.members(r, r.below(3), "join", "leave", "kill", "concurrency")
	case "limits":
		c.credited = r.chance(0.6)
		c.limits = engine.Limits{PartitionMessages: 1 + r.below(4), Messages: 1 + r.below(6), Window: 2 + r.below(10)}
		c.poison = map[string]bool{"k0": r.chance(0.7)}
		c.never, c.handlerTimeout = 0.1, r.between(200*ms, 600*ms)
		c.members(r, 1+r.below(3), "concurrency", "pause", "join")
	case "resize":
		c.ordering, c.perKey, c.keys = engine.OrderKey, 15+r.below(15), 2+r.below(4)
		c.span = r.between(4*time.Second, 6*time.Second)
		c.members(r, r.below(3), "join", "leave", "kill")
		c.actions = append(c.actions, action{at: r.between(300*ms, 1200*ms), what: "resize", n: 1 + r.below(6)})
		if r.chance(0.5) { // something is left to do in the old partitions
			c.poison = map[string]bool{"k0": true}
		} else {
			c.fail, c.retry.First, c.retry.Max = 0.4, r.between(100*ms, 800*ms), time.Second
		}
	case "blocked": // a key fails all the time, and nothing else is wrong
		c.ordering, c.credited, c.fail, c.batch, c.slow = engine.OrderKey, false, 0, false, 0
		c.keys, c.perKey, c.handler, c.poison = 2+r.below(4), 10+r.below(20), r.between(ms, 10*ms), map[string]bool{"k0": true}
		c.retry.First, c.retry.Max = r.between(400*ms, 1000*ms), time.Second
		c.limits = engine.Limits{Window: 4 + r.below(60)}
	case "alone": // one thing happens, and how long it takes is judged
		c.sidecars, c.fail, c.batch = 2+r.below(3), 0, false
		c.members(r, 1, "kill", "kill", "leave", "join")
		c.actions[0].at = r.between(2500*ms, 3000*ms)
		c.span = 5 * time.Second
	case "seek":
		c.noise = []float64{0, 0, 0.1}[r.below(3)]
		c.groups = []string{"g", "h"}
		c.history = 1024
		c.members(r, r.below(2), "join", "leave")
		c.members(r, 1+r.below(2), "seek", "move")
	case "storm":
		c.noise = []float64{0, 0.03, 0.1}[r.below(3)]
		c.sidecars = 2 + r.below(2)
		c.fail, c.never, c.handlerTimeout = 0.1, 0.03, r.between(300*ms, 900*ms)
		c.hold = []float64{0, 0.2}[r.below(2)]
		if r.chance(0.5) {
			c.parking(r)
		}
		c.members(r, 3+r.below(4), "join", "leave", "kill", "again", "cut", "silence", "reset", "deaf", "halt", "restart", "replace", "unpark", "pause", "concurrency")
	}
	if r.chance(0.2) {
		c.atomic = 0.3
	}
	if r.chance(0.15) {
		c.noID = 1
	}
	slices.SortStableFunc(c.actions, func(a, b action) int { return int(a.at - b.at) })
	return c
}

func (c *config) parking(r *rolls) {
	c.ordering, c.parks = engine.OrderKey, true
	c.retry.Attempts, c.retry.Then = 1+r.below(3), engine.RemedyPark
	c.poison = map[string]bool{"k0": true, "k1": r.chance(0.5)}
	if r.chance(0.5) {
		c.poison = nil
		c.fail = 0.2
	}
	c.remedies = []float64{0, 0.3}[r.below(2)]
}

// members adds n actions of some kinds.
func (c *config) members(r *rolls, n int, kinds ...string) {
	for range n {
		a := action{at: r.between(200*time.Millisecond, c.span-500*time.Millisecond), what: kinds[r.below(len(kinds))], who: r.below(8), n: r.below(16)}
		a.d = r.between(c.ttl/2, 3*c.ttl)
		if a.what == "reset" || a.what == "pause" {
			a.d = r.between(10*time.Millisecond, 500*time.Millisecond)
		}
		c.actions = append(c.actions, a)
	}
}

// act makes an action happen.
func (w *world) act(a action) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.sidecars) == 0 && a.what != "join" {
		return
	}
	if a.what == "join" {
		if len(w.sidecars) < 4 {
			w.open("")
		}
		return
	}
	s := w.sidecars[a.who%len(w.sidecars)]
	switch a.what {
	case "kill":
		w.kill(s)
	case "again": // killed, and started again under its name
		w.kill(s)
		w.pending.Go(func() {
			time.Sleep(a.d / 4)
			w.mu.Lock()
			defer w.mu.Unlock()
			if !w.healed {
				w.open(s.name)
			}
		})
	case "replace": // a second one under the same name
		w.note(everywhere, "", "%s is replaced", s.name)
		s.link.replaced = true
		if a.n%2 == 0 {
			s.link.plug(a.d / 2)
		}
		w.forget(s)
		w.hurt(s.link, a.d)
		w.event(s.link)
		for _, m := range s.members {
			m.leaving = true
		}
		w.open(s.name)
		w.pending.Go(func() {
			for _, m := range s.members {
				select {
				case <-m.done:
				case <-w.peace: // the second one may be gone before the first has heard of it
				}
			}
			s.link.kill()
			s.end()
		})
	case "leave":
		w.leave(s, nil)
	case "restart":
		w.leave(s, func() {
			if !w.healed {
				w.open(s.name)
			}
		})
	case "cut", "silence":
		w.note(everywhere, "", "%s is cut off for %v, silently %v", s.name, a.d, a.what == "silence")
		w.hurt(s.link, a.d+time.Second)
		s.link.sever(a.d, a.what == "silence")
	case "halt":
		w.note(everywhere, "", "%s stands still for %v", s.name, a.d)
		w.hurt(s.link, a.d+time.Second)
		s.link.halt(a.d)
	case "deaf":
		w.note(everywhere, "", "%s hears nothing for %v", s.name, a.d/4)
		w.hurt(s.link, a.d/4)
		s.link.plug(a.d / 4)
	case "reset":
		w.note(everywhere, "", "the watches of %s start anew", s.name)
		s.link.resetWatches()
	case "unpark":
		w.pending.Go(func() { w.unpark(s, "g", a.n == 0) })
	case "resize":
		w.note(everywhere, "", "resize to %d", a.n)
		w.pending.Go(func() {
			ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
			defer stop()
			_, err := s.eng.ResizeTopic(ctx, topic, a.n)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.note(everywhere, "", "resized: %v", err)
		})
	case "seek", "move":
		w.seek(s, a)
	case "pause":
		if m := s.members[0]; m.app != nil {
			app := m.app
			_ = app.c.Control(engine.Control{Pause: true})
			app.later(a.d, func() { _ = app.c.Control(engine.Control{Resume: true}) })
		}
	case "concurrency":
		if app := s.members[0].app; app != nil {
			n := 1 + a.n%6
			app.concurrency = max(app.concurrency, n)
			app.later(50*time.Millisecond, func() {
				_ = app.c.Control(engine.Control{Concurrency: n})
				app.later(time.Millisecond, func() { app.concurrency = n })
			})
		}
	}
}

// seek moves group g, by a consumer or an administrator.
func (w *world) seek(s *sidecar, a action) {
	to := engine.Place{Kind: engine.Earliest}
	switch a.n % 4 {
	case 1:
		to.Kind = engine.Latest
	case 2, 3:
		to = engine.Place{Kind: engine.AtPosition, Position: uint64(1 + a.n)}
	}
	w.check("I13")
	w.sought = true
	w.note(everywhere, "", "group g is moved to %v", to)
	for id := range int32(w.cfg.parts) {
		p := w.judge.part("g", id)
		switch to.Kind {
		case engine.Earliest:
			p.seeks = append(p.seeks, 1)
		case engine.AtPosition:
			p.seeks = append(p.seeks, to.Position)
		case engine.Latest: // wherever that is by then
			for i := range uint64(400) {
				p.seeks = append(p.seeks, i+1)
			}
		}
	}
	if a.what == "seek" {
		if app := s.members[0].app; app != nil {
			_ = app.c.Control(engine.Control{Seek: &to})
		}
		return
	}
	w.pending.Go(func() {
		ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
		defer stop()
		err := s.eng.ResetGroup(ctx, "g", topic, nil, to)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.note(everywhere, "", "group g is asked to move: %v", err)
	})
}

// unpark lets parked keys go on.
func (w *world) unpark(s *sidecar, group string, drop bool) {
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	w.mu.Lock()
	var keys []engine.Parked
	if w.cfg.parks {
		for id := range w.judge.logs {
			for _, k := range w.judge.part(group, id).progress.Parked {
				keys = append(keys, engine.Parked{ID: id, Key: k.Key})
			}
		}
	}
	w.mu.Unlock()
	for _, k := range keys {
		if drop {
			w.mu.Lock()
			w.judge.part(group, k.ID).given[k.Key] = true
			w.mu.Unlock()
		}
		n, err := s.eng.Unpark(ctx, group, topic, k.ID, k.Key, drop)
		w.mu.Lock()
		w.note(k.ID, k.Key, "key %s is let go on, drop %v: %d, %v", k.Key, drop, n, err)
		w.mu.Unlock()
	}
}

// publish starts the publishers: each key has one.
func (w *world) publish() {
	c := &w.cfg
	for k := range c.keys + 1 {
		key, n := fmt.Sprintf("k%d", k), c.perKey
		if k == c.keys {
			key, n = "", c.free
		}
		var msgs []*pub
		w.mu.Lock()
		for i := range n {
			m := &pub{id: fmt.Sprintf("%s/%d", key, i), key: key, seq: i}
			if i > 0 && key != "" {
				m.before = msgs[i-1]
			}
			msgs = append(msgs, m)
			w.judge.pubs[m.id] = m
		}
		w.mu.Unlock()
		if n > 0 {
			w.publishing.Go(func() { w.publisher(uint64(k), key, msgs) })
		}
	}
}

// publisher sends the messages of a key.
func (w *world) publisher(n uint64, key string, msgs []*pub) {
	r := w.roll(2, n)
	p := engine.NewPublisher(engine.PublishOptions{Topic: topic})
	gap := w.cfg.span / time.Duration(len(msgs)+1)
	for len(msgs) > 0 {
		k := min(len(msgs), 1+r.below(3))
		batch := msgs[:k]
		time.Sleep(r.upTo(2 * gap * time.Duration(k)))
		atomic := r.chance(w.cfg.atomic)
		w.send(p, r, key, batch, atomic)
		msgs = msgs[k:]
	}
}

// send publishes a batch, tries again what failed, and gives up in the end.
func (w *world) send(p *engine.Publisher, r *rolls, key string, batch []*pub, atomic bool) {
	pause := 20 * time.Millisecond
	for tries := 0; ; tries++ {
		entries := make([]engine.Entry, len(batch))
		for i, m := range batch {
			entries[i] = engine.Entry{Message: block.Message{Key: m.key, Data: []byte(m.id)}}
			if w.cfg.noID == 0 || tries > 0 && false {
				entries[i].ID = m.id
			}
		}
		w.mu.Lock()
		var e *engine.Engine
		if n := len(w.sidecars); n > 0 {
			e = w.sidecars[r.below(n)].eng
		}
		w.mu.Unlock()
		if e == nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		ctx, stop := context.WithTimeout(context.Background(), r.between(100*time.Millisecond, 4*time.Second))
		receipts := p.Publish(ctx, e, entries, atomic)
		stop()
		var again []*pub
		var failed []engine.Entry
		var why []engine.Receipt
		w.mu.Lock()
		for i, rc := range receipts {
			m := batch[i]
			if rc.Err == nil || atomic && fault.Of(rc.Err) == fault.Exists {
				m.told = true
				w.check("I1")
				if m.rec == nil || rc.Position > 0 && !rc.Duplicate && w.cfg.noID == 0 && (m.rec.pos != rc.Position || m.rec.part != rc.Partition) {
					w.violate("I1", rc.Partition, m.key, "%s is said to be published at %d/%d, where it is not", m.id, rc.Partition, rc.Position)
				}
				continue
			}
			again = append(again, m)
			failed = append(failed, entries[i])
			why = append(why, rc)
		}
		giveUp := len(again) > 0 && (tries > 40 || r.chance(0.05))
		w.mu.Unlock()
		if len(again) == 0 {
			return
		}
		if !giveUp {
			time.Sleep(pause)
			pause = min(2*pause, 500*time.Millisecond)
			batch = again
			continue
		}
		p.Settle(failed, why)
		if key != "" && fault.ReasonOf(why[0].Err) != fault.PrecedingFailed {
			w.held(p, e, again[len(again)-1])
		}
		w.mu.Lock()
		for _, m := range again {
			m.let = true
		}
		w.note(everywhere, "", "the publisher goes on without %s: %v", again[0].id, why[0].Err)
		w.mu.Unlock()
		p.ResumeKey(key)
		return
	}
}

// held checks that a key whose message failed for good takes no more.
func (w *world) held(p *engine.Publisher, e *engine.Engine, last *pub) {
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	rc := p.Publish(ctx, e, []engine.Entry{{Message: block.Message{Key: last.key, Data: []byte(last.id + "+")}}}, false)[0]
	w.mu.Lock()
	defer w.mu.Unlock()
	w.check("I11")
	if rc.Err == nil {
		w.violate("I11", rc.Partition, last.key, "a message was published behind %s, which failed for good", last.id)
	}
}
