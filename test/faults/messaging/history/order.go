package history

import "fmt"

// noLoss is I1.
func (x *index) noLoss(v *Verdict) {
	for _, e := range x.byKind[Delivered] {
		if m := x.messages[e.ID]; m == nil {
			x.violate(v, "a message was delivered that nobody published", e)
		} else if m.refused() {
			x.violate(v, "a message was delivered whose publish was refused", m.first, e)
		} else if m.key != e.Key || m.seq != e.Seq {
			x.violate(v, "a message was delivered with another's content", m.first, e)
		}
	}
	if x.drained == nil {
		return
	}
	for _, group := range x.s.Groups {
		for _, e := range x.byKind[Published] {
			m := x.messages[e.ID]
			if m == nil || m.ok != e {
				continue
			}
			v.Checks++
			id := of{group, e.ID}
			if x.resolved[id] != nil {
				continue
			}
			seen := []*Event{e}
			why := "an acknowledged message was never delivered to group " + group
			if d := x.deliv[id]; len(d) > 0 {
				why = "an acknowledged message was delivered and neither acknowledged, parked nor dead-lettered in group " + group
				seen = append(seen, d[len(d)-1])
			}
			x.violate(v, why, append(seen, x.drained)...)
		}
	}
}

// keyOrder is I2.
func (x *index) keyOrder(v *Verdict) {
	if x.s.Partition {
		x.partitionOrder(v)
	}
	last := map[ofKey]*Event{} // the first effect of the highest number so far
	seen := map[of]bool{}
	for _, e := range x.effects {
		if seen[of{e.Group, e.ID}] {
			continue
		}
		seen[of{e.Group, e.ID}] = true
		k := ofKey{e.Group, e.Topic, e.Key}
		if k.key == "" {
			continue
		}
		before := last[k]
		if before == nil {
			last[k] = e
			continue
		}
		v.Checks++
		if e.Seq > before.Seq {
			last[k] = e
			continue
		}
		x.violate(v, fmt.Sprintf("number %d of key %s took effect for the first time after number %d had", e.Seq, e.Key, before.Seq), x.story(before, e)...)
	}
}

// partitionOrder is I2 where whole partitions are kept in order.
func (x *index) partitionOrder(v *Verdict) {
	last := map[place]*Event{}
	seen := map[of]bool{}
	for _, e := range x.effects {
		id := of{e.Group, e.ID}
		if seen[id] || e.Part == NoPart {
			continue
		}
		seen[id] = true
		before := last[e.place()]
		if before == nil || e.Pos > before.Pos {
			last[e.place()] = e
			continue
		}
		v.Checks++
		x.violate(v, fmt.Sprintf("position %d took effect for the first time after position %d had", e.Pos, before.Pos), x.story(before, e)...)
	}
}

// story is what explains why one effect came before another: who delivered both, and when.
func (x *index) story(first, second *Event) []*Event {
	out := []*Event{}
	for _, e := range []*Event{second, first} {
		if m := x.messages[e.ID]; m != nil && m.ok != nil {
			out = append(out, m.ok)
		}
	}
	for _, e := range []*Event{first, second} {
		for _, d := range x.deliv[of{e.Group, e.ID}] {
			if d.Proc == e.Proc && d.T <= e.T {
				out = append(out, d)
				break
			}
		}
		out = append(out, e)
	}
	return out
}

// parking is I9: a key that was parked stays aside until it is let go on, and then comes in order.
func (x *index) parking(v *Verdict) {
	type replay struct {
		from *Event // Unparked
		seq  int    // the last number that came, or the one before the first
		last *Event
	}
	aside := map[ofKey]*Event{} // the message with which the key was parked
	back := map[ofKey]*replay{}
	for _, e := range x.all {
		k := ofKey{e.Group, e.Topic, e.Key}
		a, r := aside[k], back[k]
		switch {
		case e.Kind == Nacked && e.Remedy == Park && x.successor(e) == nil:
			if a == nil || a.Seq > e.Seq {
				aside[k] = e
			}
			delete(back, k)
		case e.Kind == Unparked && a != nil:
			back[k] = &replay{from: e, seq: a.Seq - 1}
			delete(aside, k)
		case e.Kind == Delivered && a != nil:
			v.Checks++
			if e.Seq > a.Seq {
				x.violate(v, "a message of a parked key was delivered", a, e)
			}
		case e.Kind == Acked && a != nil && a.ID == e.ID:
			delete(aside, k) // the refusal never arrived: it came again and was handled
		case e.Kind == Delivered && r != nil:
			v.Checks++
			if m := x.skipped(k, r.seq, e.Seq); m != nil {
				x.violate(v, fmt.Sprintf("after it was let go on, number %d of a key came before number %d", e.Seq, m.seq), m.ok, r.from, r.last, e)
			}
			if e.Seq > r.seq {
				r.seq, r.last = e.Seq, e
			}
		}
	}
}

// skipped is a message of a key between two numbers that has to come, if there is one.
func (x *index) skipped(k ofKey, from, to int) *message {
	if to <= from+1 {
		return nil
	}
	for _, m := range x.keys()[k.topic+"\x00"+k.key] {
		if m.seq > from && m.seq < to && m.ok != nil && !x.gone[of{k.group, m.id}] {
			return m
		}
	}
	return nil
}

// orderedPublish is I11.
func (x *index) orderedPublish(v *Verdict) {
	type lane struct{ stream, key string }
	failed := map[lane]*Event{}
	held := map[string]*Event{} // by id of what may not arrive: the failure
	for _, e := range x.all {
		l := lane{e.Stream, e.Key}
		switch {
		case e.Stream == "" || e.Key == "":
		case e.Kind == ResumeKey:
			delete(failed, l)
		case e.Kind == Published && failed[l] != nil:
			v.Checks++
			if e.Outcome == OK {
				x.violate(v, "a message was accepted behind a failed one of its key on the same stream", failed[l], e)
			} else if e.Outcome == Preceding {
				held[e.ID] = failed[l]
			}
		case e.Kind == Published && (e.Outcome == Failed || e.Outcome == Unknown):
			failed[l] = e
		}
	}
	for _, e := range x.byKind[Delivered] {
		if f := held[e.ID]; f != nil && x.messages[e.ID].ok == nil {
			x.violate(v, "a message was delivered that was refused for a failed one before it", f, x.messages[e.ID].first, e)
		}
	}
}

// resize is I12: I2, in histories with a change.
func (x *index) resize(v *Verdict) {
	changes := x.byKind[Resized]
	if len(changes) == 0 {
		return
	}
	x.keyOrder(v)
	if len(v.Witness) > 0 {
		v.Witness = append(v.Witness, x.show(changes[0]))
	}
}
