package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// position is a message in its place.
type position struct {
	pos uint64
	id  string
	key string
}

// positions are the messages known of each place, in order. Those that only the publisher knows
// belong to every group.
func (x *index) positions() map[place][]position {
	seen := map[place]map[uint64]bool{}
	out := map[place][]position{}
	add := func(p place, q position) {
		if seen[p] == nil {
			seen[p] = map[uint64]bool{}
		}
		if q.pos > 0 && !seen[p][q.pos] {
			seen[p][q.pos] = true
			out[p] = append(out[p], q)
		}
	}
	for _, e := range x.byKind[Delivered] {
		if e.Part != NoPart {
			add(e.place(), position{e.Pos, e.ID, e.Key})
		}
	}
	for _, m := range x.messages {
		if m.part != NoPart {
			for _, g := range x.s.Groups {
				add(place{g, m.topic, m.part}, position{m.pos, m.id, m.key})
			}
		}
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b position) int { return cmp.Compare(a.pos, b.pos) })
	}
	return out
}

// watermark is I5.
func (x *index) watermark(v *Verdict) {
	positions := x.positions()
	checked := map[place]int{} // of positions
	first := map[place]uint64{}
	for _, e := range x.byKind[Assigned] {
		if at, ok := first[e.place()]; !ok || e.Next < at {
			first[e.place()] = e.Next
		}
	}
	for _, e := range x.byKind[Status] {
		p := e.place()
		list := positions[p]
		for ; checked[p] < len(list) && list[checked[p]].pos < e.Committed; checked[p]++ {
			q := list[checked[p]]
			if q.pos < first[p] {
				continue // before the group began
			}
			v.Checks++
			r := x.resolved[of{p.group, q.id}]
			if r != nil && r.T <= e.T || x.heldBack(p, q, e.T) {
				continue
			}
			x.violate(v, fmt.Sprintf("the watermark passed position %d (%s), which was not resolved", q.pos, q.id), append(slices.Clone(x.deliv[of{p.group, q.id}]), r, e)...)
		}
	}
	x.watermarkGrows(v)
}

// heldBack tells that a message was set aside behind a parked one of its key, or for one refused
// for good, without being delivered.
func (x *index) heldBack(p place, q position, by time.Duration) bool {
	for _, e := range x.parkedKey[ofKey{p.group, p.topic, q.key}] {
		if e.T <= by {
			return true
		}
	}
	return false
}

// watermarkGrows: what is committed under one epoch, or given to the next, never goes back. Epochs
// are compared, not times: an owner may hear late.
func (x *index) watermarkGrows(v *Verdict) {
	of := map[place][]*Event{}
	for _, e := range x.all {
		if (e.Kind == Status || e.Kind == Assigned) && e.told() {
			of[e.place()] = append(of[e.place()], e)
		}
	}
	for _, p := range sorted(of, byPlace) {
		list := of[p]
		slices.SortStableFunc(list, func(a, b *Event) int { return cmp.Compare(a.Epoch, b.Epoch) })
		var had *Event
		mark := func(e *Event) uint64 { return max(e.Committed, e.Next) }
		for _, e := range list {
			if mark(e) == 0 {
				continue
			}
			v.Checks++
			if had != nil && mark(e) < mark(had) && !x.soughtBefore(p.group, e.T) {
				x.violate(v, "the watermark went back", had, e)
			}
			had = e
		}
	}
}

// soughtBefore tells that a group was moved before a time.
func (x *index) soughtBefore(group string, t time.Duration) bool {
	return slices.ContainsFunc(x.byKind[Seek], func(e *Event) bool { return e.Group == group && e.T <= t })
}

// again is a delivery that nobody asked for, of a message that was delivered before.
type again struct {
	before, e *Event
	cause     *Event // a Fault, Lost or Opened; nil if there is none
}

// repeats are all of them, by group and message.
func (x *index) repeats() (out []again) {
	for _, id := range sorted(x.deliv, byOf) {
		m := x.messages[id.id]
		for pos, list := range byPos(x.deliv[id]) {
			if pos == 0 && (m == nil || m.tries > 1) {
				continue // each of them may be a message of its own
			}
			for i, e := range list[1:] {
				before := list[i]
				if x.soughtBefore(id.group, e.T) || x.asked(id, before, e) {
					continue
				}
				out = append(out, again{before, e, x.cause(before, e)})
			}
		}
	}
	return out
}

func byPos(list []*Event) map[uint64][]*Event {
	out := map[uint64][]*Event{}
	for _, e := range list {
		out[e.Pos] = append(out[e.Pos], e)
	}
	return out
}

// asked tells that a delivery was refused before the next.
func (x *index) asked(id of, before, e *Event) bool {
	return slices.ContainsFunc(x.refusals()[id], func(n *Event) bool { return n.Proc == before.Proc && n.T >= before.T && n.T <= e.T })
}

func (x *index) refusals() map[of][]*Event {
	if x.refused == nil {
		x.refused = map[of][]*Event{}
		for _, e := range x.byKind[Nacked] {
			x.refused[of{e.Group, e.ID}] = append(x.refused[of{e.Group, e.ID}], e)
		}
	}
	return x.refused
}

// cause is what made a message come again: the last fault that hit who had it (or who has it now:
// one that was halted may deliver what others had meanwhile), or its loss of the partition or the
// stream.
func (x *index) cause(before, e *Event) *Event {
	for _, hit := range []string{before.Proc, e.Proc} {
		for _, f := range slices.Backward(x.byKind[Fault]) {
			if x.s.Exact && (f.Graceful || f.Join) { // what is handed over in order does not come again
				continue
			}
			if f.T <= e.T && f.hits(hit) && before.T <= f.end()+x.s.CommitWindow {
				return f
			}
		}
	}
	for _, kind := range []Kind{Lost, Opened} {
		for _, f := range slices.Backward(x.byKind[kind]) {
			if f.Proc == before.Proc && f.T >= before.T && f.T <= e.T && (kind == Opened || f.place() == before.place()) {
				return f
			}
		}
	}
	return nil
}

// duplicates is I6.
func (x *index) duplicates(v *Verdict) {
	for _, a := range x.figures().Again {
		if a.Cause == nil {
			continue
		}
		v.Checks++
		if a.Bound > 0 && a.Count > a.Bound {
			x.violate(v, fmt.Sprintf("%d messages came again, and at most %d may", a.Count, a.Bound), a.Cause, a.first.before, a.first.e)
		}
	}
	if !x.s.Exact {
		return
	}
	for _, a := range x.repeats() {
		v.Checks++
		if a.cause == nil {
			x.violate(v, "a message came again for no visible reason", a.before, x.resolved[of{a.e.Group, a.e.ID}], a.e)
		}
	}
}

// bound is how much may come again after a fault: what was under way, and what was acknowledged
// since the last commit that is sure to have happened.
func (x *index) bound(f *Event) int {
	if x.s.Limit == 0 {
		return 0
	}
	from, to := f.T-x.s.CommitWindow, f.end()+x.s.CommitWindow
	if f.Kind != Fault { // a loss that nobody made: it was in doubt for as long as a session may be
		from -= x.s.TTL
	}
	hit := func(proc string) bool { return f.Kind == Fault && f.hits(proc) || f.Kind != Fault && f.Proc == proc }
	procs := map[string]bool{}
	for _, e := range x.byKind[Delivered] {
		if hit(e.Proc) && e.T <= to {
			procs[e.Proc] = true
		}
	}
	n := x.s.Limit * len(procs)
	for _, e := range x.byKind[Acked] {
		if hit(e.Proc) && e.T >= from && e.T <= to {
			n++
		}
	}
	return n
}

// credits is I7. What a fault cuts off from the broker is unresolved for the app only.
func (x *index) credits(v *Verdict) {
	type seat struct{ proc, group string }
	type state struct {
		open              map[string]*Event
		allowed, received int
		credited          bool
		since             time.Duration
	}
	states := map[seat]*state{}
	get := func(e *Event) *state {
		s := states[seat{e.Proc, e.Group}]
		if s == nil {
			s = &state{open: map[string]*Event{}}
			states[seat{e.Proc, e.Group}] = s
		}
		return s
	}
	for _, e := range x.all {
		switch e.Kind {
		case Opened:
			states[seat{e.Proc, e.Group}] = nil
		case Credit:
			s := get(e)
			s.credited = true
			s.allowed += e.N
		case Acked, Nacked:
			delete(get(e).open, e.ID)
		case Lost:
			s := get(e)
			for id, d := range s.open {
				if d.place() == e.place() {
					delete(s.open, id)
				}
			}
		case Delivered:
			s := get(e)
			if x.brokenBetween(e.Proc, s.since, e.T) {
				clear(s.open)
			}
			s.since = e.T
			s.open[e.ID] = e
			s.received++
			if x.s.Limit > 0 {
				v.Checks++
				if len(s.open) > x.s.Limit {
					x.violate(v, fmt.Sprintf("%d messages are unresolved at one app, which allowed %d", len(s.open), x.s.Limit), e)
				}
			}
			if s.credited {
				v.Checks++
				if s.received > s.allowed {
					x.violate(v, fmt.Sprintf("%d messages were delivered, and credit was given for %d", s.received, s.allowed), e)
				}
			}
		}
	}
}

// brokenBetween tells that a fault of a process began or ended within a time.
func (x *index) brokenBetween(proc string, from, to time.Duration) bool {
	return slices.ContainsFunc(x.byKind[Fault], func(f *Event) bool {
		return f.hits(proc) && (f.T >= from && f.T <= to || f.end() >= from && f.end() <= to)
	})
}

// What a block must last, and how many messages of others must wait for it to be judged.
const (
	blockMin   = 1500 * time.Millisecond
	blockOther = 10
)

// blocked is I8.
func (x *index) blocked(v *Verdict) {
	for _, id := range sorted(x.nacks, byOf) {
		first, m := x.nacks[id][0], x.messages[id.id]
		if m == nil {
			continue
		}
		to := x.nacks[id][len(x.nacks[id])-1].T
		for _, d := range x.deliv[id] { // until it came again after the last of them
			if d.T > to {
				to = d.T
				break
			}
		}
		if to-first.T < blockMin || x.disturbed(first.T-x.s.TTL, to) {
			continue
		}
		waiting, passed := 0, map[string]bool{}
		var sample *Event
		for _, o := range x.messages {
			if o.ok == nil || o.key == m.key || o.topic != m.topic || m.part != o.part && first.Part != o.part {
				continue
			}
			for _, d := range x.deliv[of{id.group, o.id}] {
				if d.T >= first.T && d.T <= to && d.Part == first.Part {
					passed[o.id] = true
				}
			}
			if o.ok.T >= first.T && o.ok.T <= to-x.s.Allowance {
				waiting++
				if sample == nil || o.ok.T < sample.T {
					sample = o.ok
				}
			}
		}
		if waiting >= blockOther {
			v.Checks++
			if len(passed) == 0 {
				x.violate(v, fmt.Sprintf("for %.1f s key %s was refused, and none of the %d messages of other keys was delivered", (to-first.T).Seconds(), m.key, waiting), first, sample)
			}
		}
		if x.s.Window > 0 && first.Part != NoPart && first.Pos > 0 {
			v.Checks++
			n := 0
			for o := range passed {
				if x.messages[o].pos > first.Pos {
					n++
				}
			}
			if n > x.s.Window {
				x.violate(v, fmt.Sprintf("%d messages were delivered past an unresolved one, and the window is %d", n, x.s.Window), first)
			}
		}
	}
}

// disturbed tells that any fault touches a time.
func (x *index) disturbed(from, to time.Duration, but ...*Event) bool {
	return slices.ContainsFunc(x.byKind[Fault], func(f *Event) bool {
		return !slices.Contains(but, f) && f.T <= to && f.end() >= from
	})
}

// seeks is I13.
func (x *index) seeks(v *Verdict) {
	if len(x.byKind[Seek]) == 0 {
		return
	}
	sought := map[string]*Event{}
	for _, e := range x.byKind[Seek] {
		if sought[e.Group] == nil {
			sought[e.Group] = e
		}
	}
	for _, e := range x.byKind[Delivered] {
		if sought[e.Group] == nil && e.T >= x.byKind[Seek][0].T {
			v.Checks++
		}
	}
	for _, a := range x.repeats() {
		if a.cause == nil && sought[a.e.Group] == nil && a.e.T >= x.byKind[Seek][0].T {
			x.violate(v, "a message came again in a group that was not moved", x.byKind[Seek][0], a.before, a.e)
		}
	}
}
