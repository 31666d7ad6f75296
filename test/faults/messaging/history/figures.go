package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// extra is what a takeover may need beyond the session's end, or the handler's.
const extra = 500 * time.Millisecond

// takeover is I10.
func (x *index) takeover(v *Verdict) {
	if x.s.TTL == 0 || !x.s.Exact || len(x.all) == 0 { // the next owner may be one that does not tell
		return
	}
	over := x.all[len(x.all)-1].T
	held := x.holders()
	for _, p := range sorted(held, byPlace) {
		for i, h := range held[p] {
			f, limit, why := x.reason(h)
			if f == nil || i+1 < len(held[p]) && held[p][i+1].e.T <= f.T {
				continue // it had gone over to another before, though the app did not say that it let go
			}
			var next *holder
			for _, n := range held[p][i+1:] {
				if n.e.T > f.T && (n.e.Proc != h.e.Proc || n.e.Epoch > h.e.Epoch) { // also the same one again, when its sidecar is back sooner
					next = n
					break
				}
			}
			limit += extra + x.s.Allowance
			if x.disturbed(f.T, f.T+limit, x.around(f)...) {
				continue
			}
			switch {
			case next == nil && over > f.T+limit:
				v.Checks++
				x.violate(v, fmt.Sprintf("a partition found no new owner within %v", limit), h.e, f)
			case next == nil:
			case next.e.T-f.T > limit:
				v.Checks++
				x.violate(v, fmt.Sprintf("%s took %v, and the bound is %v", why, (next.e.T-f.T).Round(time.Millisecond), limit), h.e, f, next.e)
			default:
				v.Checks++
			}
		}
	}
}

// reason is why a partition had to find another owner, if it had to, and in what time.
func (x *index) reason(h *holder) (*Event, time.Duration, string) {
	for _, f := range x.byKind[Fault] {
		if f.Crash && len(f.Victims) > 0 && f.hits(h.e.Proc) && h.e.T <= f.T && (h.till == 0 || h.till > f.T) {
			return f, x.s.TTL, "a takeover"
		}
	}
	for _, r := range x.byKind[Revoking] {
		if r.Proc == h.e.Proc && r.place() == h.e.place() && r.T >= h.e.T && (h.till == 0 || r.T <= h.till) {
			if x.s.Handler == 0 {
				return nil, 0, ""
			}
			return r, x.s.Handler, "a hand-over"
		}
	}
	return nil, 0, ""
}

// around are the faults that made a revocation: joins and leaves.
func (x *index) around(e *Event) []*Event {
	out := []*Event{e}
	if e.Kind == Revoking {
		for _, f := range x.byKind[Fault] {
			if f.Join || f.Graceful {
				out = append(out, f)
			}
		}
	}
	return out
}

// Figures are what a history measures.
type Figures struct {
	Published, Delivered, Effects int
	Takeovers                     []time.Duration // from a crash to the next owner's assignment
	Handovers                     []time.Duration // from a revocation to the next owner's assignment
	Again                         []Again
	Unexplained                   int // messages that came again for no visible reason
	Late                          int // writes that a store refused because a later owner had written
	Pauses                        []Pause
}

// Again is what came again after one fault.
type Again struct {
	Cause *Event
	Count int
	Bound int // 0: not told
	first again
}

// Pause is the longest that a message waited around a fault, from its acceptance to its first
// delivery, where its partition (or its key, if partitions are not told) changed hands and where
// it did not.
type Pause struct {
	What            string
	Moved, Unmoved  time.Duration
	NMoved, NSteady int // partitions or keys
}

func (x *index) figures() Figures {
	if x.figs != nil {
		return *x.figs
	}
	f := Figures{Delivered: len(x.byKind[Delivered]), Effects: len(x.effects)}
	for _, m := range x.messages {
		if m.ok != nil {
			f.Published++
		}
	}
	for _, e := range x.byKind[Nacked] {
		if e.Fenced {
			f.Late++
		}
	}
	held := x.holders()
	for _, p := range sorted(held, byPlace) {
		for i, h := range held[p] {
			why, _, _ := x.reason(h)
			if why == nil || i+1 >= len(held[p]) {
				continue
			}
			next := held[p][i+1]
			switch {
			case next.e.T < why.T:
			case why.Kind == Fault:
				f.Takeovers = append(f.Takeovers, next.e.T-why.T)
			default:
				f.Handovers = append(f.Handovers, next.e.T-why.T)
			}
		}
	}
	counts := map[*Event]*Again{}
	for _, e := range x.byKind[Fault] {
		counts[e] = &Again{Cause: e, Bound: x.bound(e)}
	}
	for _, a := range x.repeats() {
		if a.cause == nil {
			f.Unexplained++
			continue
		}
		c := counts[a.cause]
		if c == nil {
			c = &Again{Cause: a.cause, Bound: x.bound(a.cause)}
			counts[a.cause] = c
		}
		if c.Count++; c.Count == 1 {
			c.first = a
		}
	}
	for _, c := range counts {
		f.Again = append(f.Again, *c)
	}
	slices.SortFunc(f.Again, func(a, b Again) int { return cmp.Compare(a.Cause.T, b.Cause.T) })
	for _, e := range x.byKind[Fault] {
		if p, ok := x.pause(e); ok {
			f.Pauses = append(f.Pauses, p)
		}
	}
	x.figs = &f
	return f
}

// pause measures a fault that stands alone.
func (x *index) pause(f *Event) (Pause, bool) {
	if !f.Join && !f.Graceful && !f.Crash {
		return Pause{}, false
	}
	to := f.end() + 1500*time.Millisecond
	if f.Crash {
		to += x.s.TTL
	}
	if x.disturbed(f.T-300*time.Millisecond, to, f) {
		return Pause{}, false
	}
	type unit struct {
		place
		key string
	}
	type seen struct {
		before, after string
		longest       time.Duration
	}
	units := map[unit]*seen{}
	for _, id := range sorted(x.deliv, byOf) {
		d, m := x.deliv[id][0], x.messages[id.id]
		if m == nil || m.ok == nil {
			continue
		}
		u := unit{place: d.place()}
		if d.Part == NoPart {
			u.key = d.Key
		}
		if units[u] == nil {
			units[u] = &seen{}
		}
		if m.ok.T >= f.T && m.ok.T <= to {
			units[u].longest = max(units[u].longest, d.T-m.ok.T)
		}
	}
	for _, d := range x.byKind[Delivered] {
		u := unit{place: d.place()}
		if d.Part == NoPart {
			u.key = d.Key
		}
		s := units[u]
		switch {
		case s == nil:
		case d.T < f.T:
			s.before = d.Proc
		case d.T <= to:
			s.after = d.Proc
		}
	}
	p := Pause{What: f.What}
	for _, s := range units {
		switch {
		case s.before == "" || s.after == "":
		case s.before != s.after:
			p.NMoved++
			p.Moved = max(p.Moved, s.longest)
		default:
			p.NSteady++
			p.Unmoved = max(p.Unmoved, s.longest)
		}
	}
	return p, p.NMoved+p.NSteady > 0
}
