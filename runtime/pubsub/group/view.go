package group

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/block"
)

// watch takes in what a watch of the ledger tells.
func (m *machine) watch(entries []block.LedgerEntry, reset bool, now instant) {
	if reset {
		m.ready = true
		m.dirty = true
		m.restartClocks(now)
		m.forgetMissing(entries, now)
	}
	for _, e := range entries {
		if e.Removed {
			m.buried(e.Key, e.Revision, now)
		} else {
			m.observe(e, now)
		}
	}
}

// forgetMissing removes what a complete list of entries does not hold.
func (m *machine) forgetMissing(entries []block.LedgerEntry, now instant) {
	there := make(map[string]bool, len(entries))
	for _, e := range entries {
		if !e.Removed {
			there[e.Key] = true
		}
	}
	var missing []string
	for name := range m.pulses {
		missing = append(missing, pulseKey(m.group, name))
	}
	for id := range m.seats {
		missing = append(missing, seatKey(m.group, id))
	}
	for p := range m.owners {
		missing = append(missing, ownerKey(m.group, p))
	}
	for p := range m.commands {
		missing = append(missing, commandKey(m.group, p))
	}
	for _, key := range missing {
		if !there[key] {
			m.buried(key, 0, now)
		}
	}
}

// buried takes in that an entry is gone. Answers that are under way may be older than that, so
// they are not believed.
func (m *machine) buried(key string, rev uint64, now instant) {
	for _, o := range m.ops {
		if o.key == key && o.flying {
			o.stale = true
		}
	}
	kind, name, p, ok := splitKey(m.group, key)
	if !ok {
		return
	}
	switch kind {
	case kindPulse:
		old, ok := m.pulses[name]
		if !ok || rev != 0 && old.rev > rev {
			return
		}
		m.graves[key] = grave(rev, old.rev)
		if name != m.member && m.hasSeat(name) {
			// Absence proves nothing yet: it counts as silence from now on.
			m.pulses[name] = pulse{ttl: old.ttl, seen: old.seen, dead: old.dead}
			return
		}
		delete(m.pulses, name)
	case kindSeat:
		if old, ok := m.seats[name]; ok && (rev == 0 || old.rev <= rev) {
			m.graves[key] = grave(rev, old.rev)
			delete(m.seats, name)
			m.dirty, m.stale = true, true
		}
	case kindOwner:
		if old, ok := m.owners[p]; ok && (rev == 0 || old.rev <= rev) {
			m.graves[key] = grave(rev, old.rev)
			delete(m.owners, p)
			m.dirty = true
			for _, s := range m.sorted() {
				if h := s.holds[p]; h != nil && h.rev != 0 {
					m.inspect(s, p, now)
				}
			}
		}
	case kindCommand:
		if old, ok := m.commands[p]; ok && (rev == 0 || old.rev <= rev) {
			m.graves[key] = grave(rev, old.rev)
			delete(m.commands, p)
		}
	}
}

// grave is the revision up to which news of an entry are old. Of one that is only missing from a list
// (rev is 0) it may be that the list is the older news: what was known last may be seen again.
func grave(rev, last uint64) uint64 {
	if rev == 0 && last > 0 {
		return last - 1
	}
	return max(rev, last)
}

func (m *machine) hasSeat(member string) bool {
	for _, s := range m.seats {
		if s.rec.Member == member {
			return true
		}
	}
	return false
}

// observe takes in an entry, from the watch, from a read or from a write of our own. Old news is
// ignored.
func (m *machine) observe(e block.LedgerEntry, now instant) {
	kind, name, p, ok := splitKey(m.group, e.Key)
	if !ok || e.Revision == 0 || e.Revision <= m.graves[e.Key] {
		return
	}
	delete(m.graves, e.Key)
	switch kind {
	case kindPulse:
		m.observePulse(name, e, now)
	case kindSeat:
		m.observeSeat(name, e, now)
	case kindOwner:
		m.observeOwner(p, e)
	case kindCommand:
		if old := m.commands[p]; e.Revision > old.rev {
			m.commands[p] = order{rev: e.Revision, body: slices.Clone(e.Value)}
			m.dirty = true
		}
	}
}

func (m *machine) observePulse(name string, e block.LedgerEntry, now instant) {
	old, known := m.pulses[name]
	if known && e.Revision <= old.rev {
		return
	}
	next := pulse{rev: e.Revision, seen: now, ttl: m.ttl}
	if r, err := parsePulse(e.Value); err != nil {
		next.alien = true
		m.note(e.Key, err)
	} else {
		next.ttl = r.ttl()
	}
	m.pulses[name] = next
	if !known || old.dead {
		m.dirty, m.stale = true, true
	}
}

func (m *machine) observeSeat(id string, e block.LedgerEntry, now instant) {
	if e.Revision <= m.seats[id].rev {
		return
	}
	rec, err := parseSeat(e.Value)
	m.note(e.Key, err)
	m.seats[id] = place{rev: e.Revision, rec: rec, alien: err != nil}
	switch p, known := m.pulses[rec.Member]; {
	case err != nil || rec.Member == m.member:
	case !known:
		m.pulses[rec.Member] = pulse{seen: now, ttl: m.ttl} // its silence begins now
	case p.dead: // who writes lives
		p.dead, p.seen = false, now
		m.pulses[rec.Member] = p
	}
	m.dirty, m.stale = true, true
}

func (m *machine) observeOwner(p Part, e block.LedgerEntry) {
	if e.Revision <= m.owners[p].rev {
		return
	}
	rec, err := parseOwner(e.Value)
	m.note(e.Key, err)
	m.owners[p] = ownership{rev: e.Revision, rec: rec, alien: err != nil}
	m.dirty = true
	for _, s := range m.sorted() {
		h := s.holds[p]
		if h == nil || h.rev == 0 || e.Revision <= h.rev {
			continue
		}
		if err == nil && rec.Seat == s.id && rec.Incarnation == s.incarnation() && rec.Epoch == h.epoch {
			h.rev = e.Revision
			continue
		}
		m.lose(s, p, fmt.Sprintf("another consumer took it over (epoch %d)", rec.Epoch))
	}
}

// standing is what is known of the owner of a partition.
type standing uint8

const (
	nobody    standing = iota // free
	ourselves                 // this life of this seat
	living                    // somebody who lives, as far as is known
	departed                  // somebody who is certainly no more
	suspect                   // somebody whose seat is not seen: to be read
)

func (m *machine) standing(s *seat, o ownership) standing {
	if o.alien {
		return living
	}
	if o.rec.Seat == "" {
		return nobody
	}
	switch who := o.sitting(); {
	case who == s.sitting():
		return ourselves
	case m.gone[who]:
		return departed
	case o.rec.Seat == s.id && strings.HasPrefix(o.rec.Incarnation, s.base+"."):
		return departed // an earlier life of ours
	case o.rec.Seat == s.id:
		return suspect // it is a predecessor, or already a successor
	}
	pl, ok := m.seats[o.rec.Seat]
	switch {
	case !ok:
		return suspect
	case pl.alien:
		return living
	case pl.rec.Incarnation != o.rec.Incarnation:
		return suspect
	case !m.alive(pl.rec, o.rec.Seat):
		return departed
	}
	return living
}

// alive tells whether the member of a seat lives. One's own member does, but for seats it no
// longer has.
func (m *machine) alive(rec seatRecord, id string) bool {
	if rec.Member != m.member {
		return !m.pulses[rec.Member].dead
	}
	for _, s := range m.own {
		if s.id == id && s.incarnation() == rec.Incarnation {
			return true
		}
	}
	return false
}

// active are the seats that take partitions.
func (m *machine) active() []sharer {
	var out []sharer
	for id, pl := range m.seats {
		if !pl.alien && !pl.rec.Leaving && m.alive(pl.rec, id) {
			out = append(out, sharer{id: id, joined: pl.rec.Joined, topics: pl.rec.Topics, manual: pl.rec.Manual})
		}
	}
	slices.SortFunc(out, bySeniority)
	return out
}
