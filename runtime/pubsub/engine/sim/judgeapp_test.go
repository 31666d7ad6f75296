package sim_test

import (
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// settled tells whether a record is resolved as this owner must see it. With sure it is so also in
// what is committed, or in its own hands: a copy that another made counts not.
func (v *view) settled(r *record, sure bool) bool {
	p := v.p
	if _, acked := v.acked[r.pos]; acked || v.dropped[r.pos] {
		return true
	}
	if resolved(&v.start, r.pos) && !p.aside(&v.start, r) {
		return true
	}
	return !sure && (p.maybe[r.pos] || p.buried[r.pos] || p.given[r.key] && len(p.copies[r.pos]) > 0)
}

// assigned, revoked and lost: an app was told.
func (j *judge) assigned(a *app, e engine.Assigned) {
	for _, ap := range e.Parts {
		p := j.part(a.group, ap.ID)
		v := p.views[ap.Epoch]
		j.w.note(ap.ID, "", "%s is assigned %s, epoch %d, from %d", a.name, p, ap.Epoch, ap.Next)
		j.w.check("I3")
		if v == nil || v.who.link != a.link {
			j.w.violate("I3", ap.ID, "", "%s is assigned to %s under epoch %d, which it did not take", p, a.name, ap.Epoch)
			continue
		}
		if v.assigned {
			j.w.violate("I3", ap.ID, "", "%s is assigned twice under epoch %d", p, ap.Epoch)
		}
		v.assigned, v.app, v.since = true, a, time.Now()
		a.views[ap.ID] = v
		if ap.Next != v.start.Watermark {
			j.w.violate("I5", ap.ID, "", "%s is told that %s goes on at %d, and %d is committed", a.name, p, ap.Next, v.start.Watermark)
		}
	}
}

func (j *judge) revoking(a *app, e engine.Revoking) {
	for _, part := range e.Parts {
		j.w.note(part.ID, "", "%s is asked for %s/%d by assignment %d", a.name, a.group, part.ID, e.Assignment)
		if v := a.views[part.ID]; v != nil && v.over == "" {
			v.over, v.revoking, v.deadline = "it is being revoked", time.Now(), e.Deadline
		} else {
			j.w.violate("I4", part.ID, "", "%s is asked for %s/%d, which it does not have", a.name, a.group, part.ID)
		}
	}
}

func (j *judge) released(v *view) {
	j.w.note(v.p.id, "", "%s lets go of %s, epoch %d", v.app.name, v.p, v.epoch)
	v.over = "the app let go of it"
	clear(v.open)
}

func (j *judge) lost(a *app, e engine.Lost) {
	for _, part := range e.Parts {
		j.w.note(part.ID, "", "%s lost %s/%d: %s", a.name, a.group, part.ID, e.Reason)
		if v := a.views[part.ID]; v != nil {
			v.over = "the app lost it"
			v.moved = strings.Contains(e.Reason, "moved to another position")
			clear(v.open)
			delete(a.views, part.ID)
		}
	}
}

// delivered judges a delivery at the moment it is made.
func (j *judge) delivered(a *app, d *engine.Deliver) {
	p := j.part(a.group, d.ID)
	v := p.views[d.Epoch]
	for i := range d.Messages {
		m := &d.Messages[i]
		j.w.note(d.ID, m.Key, "%s is given %s at %d of %s, epoch %d, attempt %d, gap %v", a.name, m.Data, m.Position, p, d.Epoch, m.Attempt, m.OrderGap)
		j.w.check("I4")
		switch {
		case v == nil || v.app != a || a.views[d.ID] != v:
			j.w.violate("I4", d.ID, m.Key, "%s is given a message of %s, epoch %d, which is not assigned to it", a.name, p, d.Epoch)
			return
		case v.over != "":
			j.w.violate("I4", d.ID, m.Key, "%s is given a message of %s, epoch %d, after %s", a.name, p, d.Epoch, v.over)
			return
		}
		j.w.check("I3")
		if now := p.views[p.epoch]; p.epoch > d.Epoch && now.who.seat != v.who.seat && !a.link.replaced {
			j.w.violate("I3", d.ID, m.Key, "%s delivers %s under epoch %d while %s owns it under %d", a.name, p, d.Epoch, now.who.seat, p.epoch)
		}
		r := j.at(d.ID, m.Position)
		if r == nil || r.id != string(m.Data) || r.key != m.Key {
			j.w.violate("I1", d.ID, m.Key, "%s is given %q at %d of %s, which is not what was published", a.name, m.Data, m.Position, p)
			return
		}
		j.message(a, v, r, m)
	}
	j.limits(a, v)
}

func (j *judge) message(a *app, v *view, r *record, m *engine.Message) {
	p, now := v.p, time.Now()
	j.expire(v, now)
	s := &stay{rec: r, at: now, attempt: m.Attempt, size: len(m.Data) + len(m.Key), gap: m.OrderGap}
	if t := j.w.cfg.handlerTimeout; t > 0 {
		s.due = now.Add(t)
	}
	last := v.stays[r.pos]
	j.w.check("I6")
	if v.settled(r, true) {
		j.w.violate("I6", p.id, r.key, "%s at %d of %s comes again, epoch %d, though it is resolved", r.id, r.pos, p, v.epoch)
	}
	if last != nil {
		switch {
		case v.open[r.pos] != nil:
			j.w.violate("I6", p.id, r.key, "%s at %d of %s comes again, epoch %d, while it is at the app", r.id, r.pos, p, v.epoch)
		case last.final:
			j.w.violate("I9", p.id, r.key, "%s at %d of %s comes again, epoch %d, though it was to be set aside", r.id, r.pos, p, v.epoch)
		case m.Attempt <= last.attempt && len(p.copies[r.pos]) == 0:
			j.w.violate("I2", p.id, r.key, "%s at %d of %s comes again, epoch %d, as attempt %d after %d", r.id, r.pos, p, v.epoch, m.Attempt, last.attempt)
		case now.Sub(last.nacked) < last.pause && j.w.cfg.ordering != engine.OrderLoose: // which lets it wait behind another instead
			j.w.violate("I2", p.id, r.key, "%s at %d of %s comes again %v after it failed, epoch %d, sooner than %v", r.id, r.pos, p, now.Sub(last.nacked), v.epoch, last.pause)
		}
	}
	if !a.link.replaced || p.epoch == v.epoch { // else the broker may have dropped what the owner is done with
		j.order(v, r, s)
	}
	j.window(v, r)
	if last == nil {
		j.punctual(v, r)
	}
	v.open[r.pos], v.stays[r.pos] = s, s
	a.received++
}

// order is I2, I9 and I12, and that gaps are told.
func (j *judge) order(v *view, r *record, s *stay) {
	p := v.p
	switch j.w.cfg.ordering {
	case engine.OrderPartition:
		j.w.check("I2")
		for _, o := range j.logs[p.id] {
			if o.pos < r.pos && !v.settled(o, false) && !p.isAside(v, o) {
				j.w.violate("I2", p.id, r.key, "%s at %d of %s is delivered, epoch %d, before %s at %d is resolved", r.id, r.pos, p, v.epoch, o.id, o.pos)
				return
			}
		}
	case engine.OrderKey:
		if r.key == "" {
			return
		}
		var before *record
		for _, o := range j.keys[p.id][r.key] {
			if o.pos >= r.pos {
				break
			}
			before = o
			j.w.check("I2")
			if v.settled(o, false) {
				continue
			}
			inv := "I2"
			if len(p.copies[o.pos]) > 0 {
				inv = "I9"
				j.w.check("I9")
			}
			j.w.violate(inv, p.id, r.key, "%s at %d of %s is delivered, epoch %d, before %s at %d is resolved", r.id, r.pos, p, v.epoch, o.id, o.pos)
			return
		}
		if len(p.copies) > 0 && len(p.copies[r.pos]) > 0 {
			j.w.check("I9")
		}
		for _, o := range r.before {
			j.w.check("I12")
			if op := j.part(p.group, o.part); !resolved(&op.progress, o.pos) || op.aside(&op.progress, o) {
				if op.aside(&op.progress, o) {
					continue // parked in its own partition: not promised, see the package
				}
				j.w.violate("I12", p.id, r.key, "%s at %d of %s is delivered before %s at %d of %s is resolved", r.id, r.pos, p, o.id, o.pos, op)
				return
			}
		}
		j.gap(v, r, before, s)
	}
}

// isAside tells whether a record is parked as far as anybody can know.
func (p *partOf) isAside(v *view, r *record) bool { return len(p.copies[r.pos]) > 0 }

// gap: the next message of a key says so when one before it was given up.
func (j *judge) gap(v *view, r, before *record, s *stay) {
	p := v.p
	if before == nil || len(p.seeks) > 0 || p.given[r.key] || len(p.copies) > 0 || p.maybe[before.pos] {
		return
	}
	want := false
	_, acked := v.acked[before.pos]
	switch {
	case acked:
	case resolved(&v.start, before.pos):
		want = slices.Contains(v.start.Gaps, r.key)
	case v.dropped[before.pos], p.buried[before.pos]:
		want = true
	}
	j.w.check("I2")
	if want != s.gap {
		j.w.violate("I2", p.id, r.key, "%s at %d of %s is delivered, epoch %d, with gap %v, want %v", r.id, r.pos, p, v.epoch, s.gap, want)
	}
}

// window is the bound of I8.
func (j *judge) window(v *view, r *record) {
	if len(v.p.copies[r.pos]) > 0 || len(v.p.copies) > 0 {
		return // what comes back is not of the window
	}
	n := 0
	for _, o := range slices.Backward(j.logs[v.p.id]) {
		if o.pos > r.pos {
			continue
		}
		n++
		if !v.settled(o, false) {
			if span := n; span > j.w.cfg.limits.Window {
				j.w.violate("I8", v.p.id, r.key, "%s at %d of %s is delivered, %d behind the first unresolved one, and the window is %d", r.id, r.pos, v.p, span, j.w.cfg.limits.Window)
				return
			}
		}
	}
	j.w.check("I8")
}

// punctual is the rest of I8: while a key is blocked the others go on.
func (j *judge) punctual(v *view, r *record) {
	if j.w.cfg.theme != "blocked" || j.w.healed || j.w.cfg.poison[r.key] {
		return
	}
	since, blocked, n := r.at, false, 0
	if v.since.After(since) {
		since = v.since
	}
	for _, o := range j.logs[v.p.id] {
		if o.pos >= r.pos {
			break
		}
		if at, ok := v.acked[o.pos]; o.key == r.key && r.key != "" && (!ok || at.After(since)) {
			if !ok {
				return // it has to wait for that
			}
			since = at
		}
		if blocked = blocked || j.w.cfg.poison[o.key]; blocked {
			n++
		}
	}
	if !blocked || n >= j.w.cfg.limits.Window {
		return
	}
	j.w.check("I8")
	if d := time.Since(since); d > promptly {
		j.w.violate("I8", v.p.id, r.key, "%s at %d of %s waits for %v, and only other keys are blocked", r.id, r.pos, v.p, d)
	}
}

// held judges what was not delivered while a key was blocked.
func (j *judge) held() {
	for _, parts := range j.parts {
		for _, p := range parts {
			v := p.views[p.epoch]
			if v == nil || !v.assigned {
				continue
			}
			for _, r := range j.logs[p.id] {
				if v.stays[r.pos] == nil && !v.settled(r, false) {
					j.punctual(v, r)
				}
			}
		}
	}
}

// expire takes back what stayed at the app too long.
func (j *judge) expire(v *view, now time.Time) {
	for pos, s := range v.open {
		if !s.due.IsZero() && !now.Before(s.due) {
			delete(v.open, pos)
			s.nacked, s.expired = s.due, true
			s.pause = j.pause(s.attempt)
			j.fated(v, s, engine.RemedyRetry)
		}
	}
}

// pause is how long a message waits at least after failure n.
func (j *judge) pause(n int) time.Duration {
	r := &j.w.cfg.retry
	d := r.First
	for ; n > 1 && d < r.Max; n-- {
		d *= 2
	}
	return time.Duration(float64(min(d, r.Max)) * 0.79)
}

// fated notes what becomes of a message that failed.
func (j *judge) fated(v *view, s *stay, r engine.Remedy) {
	retry := &j.w.cfg.retry
	if r == engine.RemedyRetry && retry.Attempts > 0 && retry.Then != engine.RemedyRetry && s.attempt >= retry.Attempts {
		r = retry.Then
	}
	switch r {
	case engine.RemedyDrop:
		v.dropped[s.rec.pos] = true
		v.p.done[s.rec.pos] = true
		s.final = true
	case engine.RemedyDeadLetter:
		s.final = true
	case engine.RemedyPark:
		s.pause = 0 // it may come back as soon as it is unparked
	}
}

// limits is I7.
func (j *judge) limits(a *app, v *view) {
	c, now := &j.w.cfg, time.Now()
	all := 0
	for _, o := range a.views {
		j.expire(o, now)
		all += len(o.open)
	}
	j.w.check("I7")
	most := min(c.limits.Messages, a.concurrency)
	switch {
	case all > most:
		j.w.violate("I7", v.p.id, "", "%d messages are at %s, and at most %d may be", all, a.name, most)
	case len(v.open) > c.limits.PartitionMessages:
		j.w.violate("I7", v.p.id, "", "%d messages of %s are at %s, and at most %d may be", len(v.open), v.p, a.name, c.limits.PartitionMessages)
	case c.credited && a.received > a.granted:
		j.w.violate("I7", v.p.id, "", "%s was given %d messages on credit for %d", a.name, a.received, a.granted)
	}
	switch c.ordering {
	case engine.OrderPartition:
		if len(v.open) > 1 {
			j.w.violate("I7", v.p.id, "", "%d messages of %s are at %s, which takes one after the other", len(v.open), v.p, a.name)
		}
	case engine.OrderKey:
		keys := map[string]bool{}
		for _, s := range v.open {
			if s.rec.key != "" && keys[s.rec.key] {
				j.w.violate("I7", v.p.id, s.rec.key, "two messages of key %s of %s are at %s", s.rec.key, v.p, a.name)
			}
			keys[s.rec.key] = true
		}
	}
}

// acked: the engine took an acknowledgement.
func (j *judge) acked(v *view, pos uint64) {
	now := time.Now()
	j.expire(v, now)
	v.last = now
	if v.open[pos] == nil {
		v.late(pos)
		return // else it counts for nothing
	}
	delete(v.open, pos)
	v.acked[pos] = now
	v.p.done[pos] = true
}

// late: a word came after the handler's time was over, and the engine may have been halted at that time.
func (v *view) late(pos uint64) {
	if s := v.stays[pos]; s != nil && s.expired {
		v.p.maybe[pos] = true
	}
}

// nacked: the engine took a refusal.
func (j *judge) nacked(v *view, pos uint64, r engine.Remedy) {
	now := time.Now()
	j.expire(v, now)
	v.last = now
	s := v.open[pos]
	if s == nil {
		if r == engine.RemedyDrop {
			v.late(pos)
		}
		return
	}
	delete(v.open, pos)
	s.nacked, s.pause = now, 0
	if r == engine.RemedyRetry {
		s.pause = j.pause(s.attempt)
	}
	j.fated(v, s, r)
}
