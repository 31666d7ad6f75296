package group

import (
	"slices"
	"strconv"
	"strings"
)

// phase is where a seat is in its life.
type phase uint8

const (
	joining phase = iota // its record is not written yet
	seated
	leaving
)

// seat is a consumer of this hub.
type seat struct {
	handle int
	id     string
	base   string // of the incarnations
	life   int
	topics []string
	manual []Part
	phase  phase
	joined uint64
	rev    uint64 // of its record, once written; 0 not yet
	before string // the incarnation its record is written over
	quit   bool   // nobody waits for releases any more

	holds map[Part]*hold
	used  map[Part]uint64 // the highest epoch this seat ever asked for

	others     []string // the seats it shares with, itself included
	generation uint64

	joinTicket   uint64
	leaveTickets []uint64
}

// incarnation names this life of the seat. It ends when everything is lost at once, and the
// record is written anew under another one: so an incarnation that is not in the record of its
// seat owns nothing, now or later.
func (s *seat) incarnation() string { return s.base + "." + strconv.Itoa(s.life) }

// sitting is the seat as owner entries name it.
func (s *seat) sitting() sitting { return sitting{s.id, s.incarnation()} }

// shares tells whether another seat (or this one) takes partitions of this one's topics.
func (s *seat) shares(o sharer) bool {
	for _, t := range o.topics {
		if slices.Contains(s.topics, t) {
			return true
		}
	}
	return o.id == s.id
}

// join opens a seat. One with the same id that this hub has already comes to its end.
func (m *machine) join(id, base string, topics []string, manual []Part, ticket uint64) *seat {
	for _, old := range m.sorted() {
		if old.id == id {
			m.end(old, Replaced)
		}
	}
	m.handles++
	s := &seat{handle: m.handles, id: id, base: base, topics: topics, manual: manual,
		holds: map[Part]*hold{}, used: map[Part]uint64{}, joinTicket: ticket}
	m.own[s.handle] = s
	m.dirty = true
	return s
}

// register brings a seat's record into the ledger and keeps it there.
func (m *machine) register(s *seat, now instant) {
	pl, there := m.seats[s.id]
	if s.rev != 0 && there && pl.rev > s.rev && !pl.alien {
		if !strings.HasPrefix(pl.rec.Incarnation, s.base+".") {
			m.end(s, Replaced)
			return
		}
		s.rev = pl.rev
	}
	if m.busy(slot{kind: opRecord, seat: s.handle}) || m.busy(slot{kind: opStrike, seat: s.handle}) || pl.alien {
		return
	}
	switch {
	case s.phase == leaving && (s.rev == 0 || !there):
		if len(s.holds) == 0 {
			m.forget(s) // there is nothing to remove
		}
	case s.phase == leaving && !pl.rec.Leaving:
		m.record(s, pl.rev, now)
	case s.phase == leaving && len(s.holds) == 0 && !m.owns(s.sitting()):
		// Last of all: a seat without a record counts as dead.
		m.start(op{kind: opStrike, seat: s.handle, key: seatKey(m.group, s.id), rev: pl.rev, remove: true}, now)
	case s.phase == joining, s.phase == seated && !there:
		if s.phase == seated { // somebody removed it
			m.rebirth(s, "others took this consumer for dead")
		}
		s.joined = pl.rec.Joined
		if !there {
			for _, o := range m.seats {
				s.joined = max(s.joined, o.rec.Joined)
			}
			s.joined++
		}
		m.record(s, pl.rev, now)
	}
}

// record begins to write the record of a seat.
func (m *machine) record(s *seat, over uint64, now instant) {
	s.before = m.seats[s.id].rec.Incarnation
	m.start(op{kind: opRecord, seat: s.handle, key: seatKey(m.group, s.id), rev: over,
		value: encode(seatRecord{Version: recordVersion, Member: m.member, Incarnation: s.incarnation(), Joined: s.joined,
			Topics: s.topics, Manual: s.manual, Leaving: s.phase == leaving})}, now)
}

// recorded is called when the record of a seat was written.
func (m *machine) recorded(s *seat, rev uint64) {
	s.rev = rev
	if s.before != "" && s.before != s.incarnation() {
		m.gone[sitting{s.id, s.before}] = true // we wrote over it
	}
	if s.phase == joining {
		s.phase = seated
		m.settle(&s.joinTicket, nil)
	}
}

// rebirth takes everything from a seat and has it join again.
func (m *machine) rebirth(s *seat, reason string) {
	m.loseAll(s, reason)
	s.life++
	if s.phase == seated {
		s.phase = joining
	}
	if id := m.slots[slot{kind: opRecord, seat: s.handle}]; id != 0 {
		m.drop(m.ops[id])
	}
	m.dirty, m.stale = true, true
}

// settle ends the waiting for a ticket, if anybody waits.
func (m *machine) settle(ticket *uint64, err *failure) {
	if *ticket != 0 {
		m.outcomes = append(m.outcomes, outcome{ticket: *ticket, err: err})
		*ticket = 0
	}
}

// leave begins the end of a seat: its record says so, its partitions are asked back, and the
// record is removed when all are given up.
func (m *machine) leave(s *seat, ticket uint64) {
	s.leaveTickets = append(s.leaveTickets, ticket)
	s.phase = leaving
	m.settle(&s.joinTicket, &failure{why: "the consumer left"})
	m.dirty = true
}

// abandon ends a leave that takes too long: what was not released is lost.
func (m *machine) abandon(s *seat) {
	s.phase, s.quit = leaving, true
	m.loseAll(s, "the consumer left")
	m.dirty = true
}

// fenceDropsLeavers gives up seats nobody waits for any more when the ledger cannot be reached:
// others will find that this member is dead, or, if it comes back, that it has no such seat.
func (m *machine) fenceDropsLeavers() {
	if !m.fenced {
		return
	}
	for _, s := range m.sorted() {
		if s.quit {
			m.forget(s)
		}
	}
}

// end takes everything from a seat, for good.
func (m *machine) end(s *seat, reason string) {
	m.loseAll(s, reason)
	m.events = append(m.events, event{seat: s.handle, kind: evEnded, reason: reason})
	m.settle(&s.joinTicket, &failure{fenced: true, why: reason})
	m.forget(s)
}

// forget is the end of a seat, whatever led to it.
func (m *machine) forget(s *seat) {
	for _, o := range m.ops {
		if o.seat == s.handle {
			m.drop(o)
		}
	}
	m.settle(&s.joinTicket, &failure{why: "the consumer left"})
	for _, t := range s.leaveTickets {
		m.settle(&t, nil)
	}
	delete(m.own, s.handle)
	m.version++
	m.dirty, m.stale = true, true
}
