package group

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// key names a state. What cannot make a difference is left out, and ages are cut off where they
// cannot either, so that states merge.
func (w *world) key() [32]byte {
	b := encoder{base: map[string]uint64{}}
	var at [3]int
	for i, n := range w.nodes {
		if n.m != nil {
			k := pulseKey("g", n.m.member)
			b.base[k] = w.ledger[k].rev
			at[i] = int(w.ledger[k].rev)
		}
	}
	for _, n := range w.nodes {
		if n.enc == nil || n.encAt != at {
			n.enc, n.encAt = n.encode(b.base), at
		}
		b.Write(n.enc)
	}
	if w.enc == nil {
		e := &encoder{base: b.base}
		for _, k := range slices.Sorted(maps.Keys(w.ledger)) {
			s := w.ledger[k]
			e.value(k, s.value)
			e.rev(k, s.rev)
			e.flag(s.there)
		}
		w.enc = e.Bytes()
	}
	b.Write(w.enc)
	ghosts := make([]string, len(w.ghosts))
	for i, q := range w.ghosts {
		e := &encoder{base: b.base}
		e.value(q.Key, q.Value)
		e.rev(q.Key, q.Revision)
		e.flag(q.Remove)
		ghosts[i] = e.String()
	}
	slices.Sort(ghosts)
	b.str(ghosts...)
	b.num(w.faults, w.commits)
	for _, p := range slices.SortedFunc(maps.Keys(w.top), comparePart) {
		b.part(p)
		b.num(int(w.top[p]))
	}
	return sha256.Sum256(b.Bytes())
}

// encoder writes what names a state. Heartbeats only ever go on, so what they are is counted from
// what the ledger has: a group where nothing else happened is the same as before.
type encoder struct {
	bytes.Buffer
	base map[string]uint64 // of pulses
}

func (b *encoder) rev(key string, rev uint64) {
	base, pulse := b.base[key]
	switch {
	case rev == 0:
		b.num(1 << 20)
	case pulse:
		b.num(int(rev) - int(base))
	default:
		b.num(int(rev))
	}
}

func (b *encoder) value(key string, value []byte) {
	b.str(key)
	if _, pulse := b.base[key]; !pulse {
		b.str(string(value))
	}
}

func (b *encoder) num(ns ...int) {
	for _, n := range ns {
		b.Write(binary.AppendVarint(nil, int64(n)))
	}
}

func (b *encoder) str(ss ...string) {
	for _, s := range ss {
		b.num(len(s))
		b.WriteString(s)
	}
}

func (b *encoder) flag(fs ...bool) {
	for _, f := range fs {
		if f {
			b.num(1)
		} else {
			b.num(0)
		}
	}
}

func (b *encoder) part(p Part) { b.num(int(p.ID)) }

func (n *node) encode(base map[string]uint64) []byte {
	b := &encoder{base: base}
	b.str(n.name)
	b.num(int(n.status), n.lives, int(n.beat))
	b.flag(n.missed, n.skips, n.deaf, n.ended, n.leaves)
	if n.status != up && n.status != stopped {
		return b.Bytes()
	}
	for _, e := range n.news {
		b.value(e.Key, e.Value)
		b.rev(e.Key, e.Revision)
		b.flag(e.Removed)
	}
	var mail []string
	for _, l := range n.mail {
		c := &encoder{base: base}
		o := n.m.ops[l.req.op]
		c.flag(o != nil, l.answered, l.req.get, l.req.Remove)
		c.value(l.req.Key, l.req.Value)
		c.value(l.req.Key, l.reply.entry.Value)
		c.rev(l.req.Key, l.req.Revision)
		c.num(int(l.reply.verdict))
		c.rev(l.req.Key, l.reply.entry.Revision)
		if o != nil {
			c.num(int(o.kind), o.seat)
			c.part(o.part)
		}
		mail = append(mail, c.String())
	}
	slices.Sort(mail)
	b.str(mail...)
	for _, x := range []map[Part]uint64{n.open} {
		for _, p := range slices.SortedFunc(maps.Keys(x), comparePart) {
			b.part(p)
			b.num(int(x[p]), n.mark[p])
			b.flag(n.asked[p])
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(n.done), comparePart) {
		b.part(p)
		b.num(n.done[p])
	}
	n.m.encodeTo(b, n.now())
	return b.Bytes()
}

func (m *machine) encodeTo(b *encoder, now instant) {
	age := func(t instant, most time.Duration) int { return int((min(now-t, most+tick)) / tick) }
	ahead := func(t instant) int { return int((max(t-now, 0) + tick - 1) / tick) }
	b.flag(m.ready, m.fenced, m.doubt, m.beaten)
	b.rev(pulseKey(m.group, m.member), m.rev)
	b.num(ahead(m.due), age(m.acked, modelTTL), int(max(m.wakeAt-now+4*tick, 0)/tick), len(m.own))
	for _, k := range slices.Sorted(maps.Keys(m.pulses)) {
		p := m.pulses[k]
		b.str(k)
		b.rev(pulseKey(m.group, k), p.rev)
		b.num(age(p.seen, modelTTL))
		b.flag(p.dead)
	}
	for _, k := range slices.Sorted(maps.Keys(m.seats)) {
		p := m.seats[k]
		b.str(k, p.rec.Incarnation, p.rec.Member)
		b.num(int(p.rev), int(p.rec.Joined))
		b.flag(p.rec.Leaving)
	}
	for _, k := range slices.SortedFunc(maps.Keys(m.owners), comparePart) {
		o := m.owners[k]
		b.part(k)
		b.str(o.rec.Seat, o.rec.Incarnation)
		b.num(int(o.rev), int(o.rec.Epoch))
		b.flag(o.rec.Drained)
	}
	for _, k := range slices.Sorted(maps.Keys(m.graves)) {
		b.str(k)
		b.rev(k, m.graves[k])
	}
	for _, k := range slices.SortedFunc(maps.Keys(m.gone), func(a, b sitting) int {
		return cmp.Or(strings.Compare(a.seat, b.seat), strings.Compare(a.incarnation, b.incarnation))
	}) {
		b.str(k.seat, k.incarnation)
	}
	for _, s := range m.sorted() {
		b.str(s.incarnation())
		b.num(int(s.phase), int(s.joined), int(s.rev))
		b.flag(s.quit)
		for _, p := range slices.SortedFunc(maps.Keys(s.holds), comparePart) {
			h := s.holds[p]
			b.part(p)
			b.num(int(h.state), int(h.epoch), int(h.rev), int(h.progress))
			b.flag(h.drained, h.next != nil)
			if h.next != nil {
				b.str(string(h.next.body))
			}
		}
		for _, p := range slices.SortedFunc(maps.Keys(s.used), comparePart) {
			b.part(p)
			b.num(int(s.used[p]))
		}
	}
	var ops []string
	for _, o := range m.ops {
		c := &encoder{base: b.base}
		c.num(int(o.kind), o.seat, ahead(o.due))
		c.rev(o.key, o.rev)
		c.rev(o.key, o.known)
		c.part(o.part)
		c.value(o.key, o.value)
		c.flag(o.remove, o.get, o.flying, o.stale)
		if o.kind == opPulse {
			c.num(age(o.sent, modelTTL))
		}
		ops = append(ops, c.String())
	}
	slices.Sort(ops)
	b.str(ops...)
}

// dump shows a world to people.
func (w *world) dump() string {
	var b strings.Builder
	for _, n := range w.nodes {
		fmt.Fprintf(&b, "%s status %d clock %d deaf %v open %v asked %v news %d\n", n.name, n.status, n.clock, n.deaf, n.open, n.asked, len(n.news))
		for _, l := range n.mail {
			fmt.Fprintf(&b, "  mail %s %s, answered %v\n", l.req.Key, l.req.Value, l.answered)
		}
		if n.m == nil || n.status != up {
			continue
		}
		m := n.m
		fmt.Fprintf(&b, "  fenced %v acked %v wakeAt %v due %v target %v gone %v\n", m.fenced, m.acked, m.wakeAt, m.due, m.target, m.gone)
		for k, p := range m.pulses {
			fmt.Fprintf(&b, "  pulse %s %+v\n", k, p)
		}
		for k, p := range m.seats {
			fmt.Fprintf(&b, "  seat %s %+v\n", k, p)
		}
		for k, o := range m.owners {
			fmt.Fprintf(&b, "  owner %s %+v\n", k, o)
		}
		for _, o := range m.ops {
			fmt.Fprintf(&b, "  op %d %s %s %+v\n", o.kind, o.key, o.value, *o)
		}
		for _, s := range m.own {
			fmt.Fprintf(&b, "  own %+v\n", *s)
			for p, h := range s.holds {
				fmt.Fprintf(&b, "    hold %s %+v\n", p, *h)
			}
		}
	}
	return b.String()
}
