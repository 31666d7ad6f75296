package group

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// op is something the machine is doing with one entry of the ledger. It lasts until its outcome
// is known: a write whose answer is an error may have been made, so the entry is read and
// compared, and the write is tried again only over the same revision. Of all the tries of a
// write one at most is accepted, and the machine knows of it.
type op struct {
	id   uint64
	kind opKind
	seat int
	part Part
	key  string

	value  []byte
	rev    uint64 // over which it writes; of a check: the one last seen
	remove bool

	get    bool   // it reads now
	flying bool   // a request is out
	stale  bool   // the answer that comes may be older than what is known
	known  uint64 // the entry's revision, as known when it was sent to be read
	tries  int
	due    instant // not before
	sent   instant
}

type opKind uint8

const (
	opPulse  opKind = iota // heartbeat
	opCheck                // read a silent member's heartbeat
	opProbe                // read an owner's seat
	opRecord               // write a seat's record
	opStrike               // remove it
	opClean                // remove what the dead left
	opDone                 // remove a command
	opClaim                // become the owner
	opLook                 // read the owner entry
	opRead                 // read the progress
	opTake                 // write it back under the new epoch
	opCommit               // write the progress
	opDrain                // mark the partition as drained
	opYield                // be the owner no more
)

// ofPartition tells which operations end with the ownership they are about.
func (k opKind) ofPartition() bool { return k >= opClaim }

// slot names an operation: there is one at a time of each.
type slot struct {
	kind opKind
	seat int
	part Part
	key  string
}

func (o *op) slot() slot {
	switch o.kind {
	case opPulse:
		return slot{kind: o.kind}
	case opCheck, opProbe, opClean:
		return slot{kind: o.kind, key: o.key}
	case opDone:
		return slot{kind: o.kind, part: o.part, key: strconv.FormatUint(o.rev, 10)}
	}
	return slot{kind: o.kind, seat: o.seat, part: o.part}
}

func (m *machine) busy(s slot) bool { return m.slots[s] != 0 }

func (m *machine) start(o op, now instant) {
	m.lastOp++
	o.id, o.due = m.lastOp, now
	m.ops[o.id] = &o
	m.slots[o.slot()] = o.id
}

// drop forgets an operation. Its requests may still be under way and have their effect.
func (m *machine) drop(o *op) {
	delete(m.ops, o.id)
	if s := o.slot(); m.slots[s] == o.id {
		delete(m.slots, s)
	}
}

// dropOf forgets what is under way for a partition of a seat.
func (m *machine) dropOf(seat int, p Part) {
	for k := opClaim; k <= opYield; k++ {
		if id := m.slots[slot{kind: k, seat: seat, part: p}]; id != 0 {
			m.drop(m.ops[id])
		}
	}
}

// send makes requests of what is due, in the order it was started.
func (m *machine) send(now instant) {
	var due []*op
	for _, o := range m.ops {
		if !o.flying && now >= o.due {
			due = append(due, o)
		}
	}
	slices.SortFunc(due, func(a, b *op) int { return cmp.Compare(a.id, b.id) })
	for _, o := range due {
		o.flying, o.sent, o.known = true, now, m.known(o.key)
		m.requests = append(m.requests, request{op: o.id, get: o.get, pulse: o.kind == opPulse,
			LedgerWrite: block.LedgerWrite{Key: o.key, Value: o.value, Revision: o.rev, Remove: o.remove}})
	}
}

// known is the revision of a watched entry, as far as is known, or 0.
func (m *machine) known(key string) uint64 {
	switch kind, name, p, _ := splitKey(m.group, key); kind {
	case kindPulse:
		return m.pulses[name].rev
	case kindSeat:
		return m.seats[name].rev
	case kindOwner:
		return m.owners[p].rev
	case kindCommand:
		return m.commands[p].rev
	}
	return 0
}

// later tries an operation again after a pause.
func (m *machine) later(o *op, now instant) {
	pause := m.retry << min(o.tries, 16)
	o.tries++
	o.due = now + min(pause, max(m.retry, m.beatEvery()))
}

// reply takes in the answer to a request.
func (m *machine) reply(r reply, now instant) {
	o := m.ops[r.op]
	if o == nil {
		return // it was given up meanwhile
	}
	o.flying = false
	o.due = now
	if o.kind == opPulse {
		m.replyPulse(o, r, now)
		return
	}
	if o.stale {
		o.stale = false
		o.get = true // find out
		return
	}
	if !o.get {
		switch r.verdict {
		case done:
			m.written(o, r.entry.Revision, now)
		case conflict:
			o.get = true
		case failed:
			o.get = true
			m.later(o, now)
		}
		return
	}
	if r.verdict != done {
		m.later(o, now)
		return
	}
	m.found(o, r.entry, now)
}

// found judges what a read found, of an operation that reads only or whose write has an
// outcome that is not known.
func (m *machine) found(o *op, e block.LedgerEntry, now instant) {
	e.Key = o.key
	if e.Revision != 0 {
		m.observe(e, now)
	} else if o.known != 0 {
		m.buried(o.key, o.known, now)
	}
	if m.ops[o.id] == nil {
		return // what was read ended it
	}
	switch o.kind {
	case opCheck:
		m.checked(o, e)
		return
	case opProbe:
		m.probed(o, e)
		return
	case opLook:
		m.inspected(o, e)
		return
	case opRead:
		m.read(o, e, now)
		return
	}
	switch {
	case o.remove && e.Revision == 0:
		m.written(o, 0, now)
	case !o.remove && e.Revision != 0 && bytes.Equal(e.Value, o.value):
		m.written(o, e.Revision, now) // an earlier try was accepted
	case e.Revision == o.rev:
		o.get = false // none was
	default:
		m.refused(o, e, now)
	}
}

// nextPulse is the value of the next heartbeat.
func (m *machine) nextPulse() []byte {
	m.beats++
	return encode(pulseRecord{Version: recordVersion, TTL: int64((m.ttl + time.Millisecond - 1) / time.Millisecond), Beat: m.beats})
}

// replyPulse goes on with the heartbeat. Only the answer to a write counts, and from when it
// was sent: a read says nothing about when others saw it.
func (m *machine) replyPulse(o *op, r reply, now instant) {
	switch {
	case r.verdict == failed:
		m.later(o, now)
	case r.verdict == conflict:
		o.get = true
	case o.get:
		o.get, o.rev = false, r.entry.Revision
	default:
		m.rev = r.entry.Revision
		m.acked, m.beaten = max(m.acked, o.sent), true
		m.due = o.sent + m.beatEvery()
		m.drop(o)
		if m.fenced && now < m.acked+m.fenceAfter() {
			m.fenced = false
			m.dirty = true
		}
	}
}

// checked is what became of reading the heartbeat of a silent member.
func (m *machine) checked(o *op, e block.LedgerEntry) {
	m.drop(o)
	_, name, _, _ := splitKey(m.group, o.key)
	p, ok := m.pulses[name]
	if !ok || p.rev != o.rev || e.Revision != 0 && e.Revision != o.rev {
		return // it lives
	}
	p.dead = true
	m.pulses[name] = p
	m.dirty, m.stale = true, true
}

// probed is what became of reading the seat of an owner.
func (m *machine) probed(o *op, e block.LedgerEntry) {
	m.drop(o)
	m.dirty = true
	_, id, _, _ := splitKey(m.group, o.key)
	there := ""
	if e.Revision != 0 {
		rec, err := parseSeat(e.Value)
		if err != nil {
			return
		}
		there = rec.Incarnation
	}
	for _, own := range m.owners {
		// What was read is younger than the owner entry that asked for it, and an incarnation
		// never returns.
		if own.rec.Seat == id && own.rec.Incarnation != there && m.asked(o, own) {
			m.gone[sitting{id, own.rec.Incarnation}] = true
		}
	}
}

func (m *machine) asked(o *op, own ownership) bool {
	return string(o.value) == own.rec.Incarnation
}

// written is called when a write was accepted.
func (m *machine) written(o *op, rev uint64, now instant) {
	m.drop(o)
	if o.remove {
		m.buried(o.key, o.rev, now)
	} else {
		m.observe(block.LedgerEntry{Key: o.key, Value: o.value, Revision: rev}, now)
	}
	m.dirty = true
	s := m.own[o.seat]
	if s == nil {
		return
	}
	switch o.kind {
	case opRecord:
		m.recorded(s, rev)
		return
	case opStrike:
		m.forget(s)
		return
	}
	h := s.holds[o.part]
	if h == nil {
		return
	}
	switch o.kind {
	case opClaim:
		h.rev = rev
		if s.phase != seated {
			m.yield(s, o.part, h, now)
			return
		}
		h.state = reading
		m.start(op{kind: opRead, seat: s.handle, part: o.part, key: progressKey(m.group, o.part), get: true}, now)
	case opTake:
		m.taken(s, o.part, h, rev, o.value, now)
	case opCommit:
		m.committed(s, o.part, h, rev, now)
	case opDrain:
		h.rev = rev
	case opYield:
		m.dropOf(s.handle, o.part)
		delete(s.holds, o.part)
	}
}

// refused is called when an entry turned out to be another than a write was to be over.
func (m *machine) refused(o *op, e block.LedgerEntry, now instant) {
	m.dirty = true
	s := m.own[o.seat]
	switch o.kind {
	case opClean, opDone:
		m.drop(o) // it is not what it was
		return
	case opStrike:
		m.drop(o)
		if s != nil {
			m.forget(s) // whoever holds the seat now: it is not this one
		}
		return
	case opRecord:
		m.drop(o) // register decides again
		return
	}
	var h *hold
	if s != nil {
		h = s.holds[o.part]
	}
	if h == nil {
		m.drop(o)
		return
	}
	switch o.kind {
	case opTake, opCommit:
		epoch, _, err := parseProgress(e.Value)
		switch {
		case e.Revision != 0 && err != nil:
			m.later(o, now) // of another version: leave it alone
			o.get = true
		case e.Revision != 0 && epoch > h.epoch:
			m.overtaken(s, o.part, epoch, now)
		case o.kind == opTake:
			m.drop(o)
			m.read(&op{kind: opTake, seat: o.seat, part: o.part}, e, now)
		default:
			o.rev, o.get = e.Revision, false // an earlier commit of ours
		}
	case opDrain:
		m.drop(o)
		if m.mine(s, o.part, h) {
			m.drain(s, o.part, h, now)
		}
	default: // claim, yield: the entry that was read decides
		m.dropOf(s.handle, o.part)
		delete(s.holds, o.part)
	}
}

// overtaken is called when the progress of a partition is of a later epoch than ours.
func (m *machine) overtaken(s *seat, p Part, epoch uint64, now instant) {
	s.used[p] = max(s.used[p], epoch)
	m.lose(s, p, fmt.Sprintf("another consumer took it over (epoch %d)", epoch))
	// The owner entry that is known may be behind. Nothing is done before it was read.
	m.inspect(s, p, now)
}
