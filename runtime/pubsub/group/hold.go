package group

import (
	"maps"
	"slices"

	"github.com/mecha-project/mecha/components/block"
)

// holding is how far the ownership of a partition is.
type holding uint8

const (
	claiming  holding = iota // the owner entry is being written
	reading                  // the progress is being read
	taking                   // and written back under the new epoch, which shuts out the last owner
	owned                    // the seat was told
	revoking                 // it was asked to let go
	releasing                // it did; its last progress is being written
	yielding                 // the owner entry is being given up
)

// hold is a partition that a seat owns, or is about to, or is letting go of.
type hold struct {
	state    holding
	epoch    uint64
	rev      uint64 // of the owner entry, 0 while claiming
	progress uint64 // revision of the progress entry
	drained  bool
	command  uint64 // the last one told, by its revision

	waiting []uint64 // tickets of the commit that is under way
	next    *commit  // what to commit after it
}

type commit struct {
	body    []byte
	tickets []uint64
}

// told tells whether the seat believes it owns the partition.
func (h *hold) told() bool { return h.state == owned || h.state == revoking }

// reconcileSeat goes through the partitions that are the seat's or should be.
func (m *machine) reconcileSeat(s *seat, now instant) {
	if m.own[s.handle] != s || s.phase == joining {
		return
	}
	var revoked []Part
	open := map[string]int{}
	for _, p := range m.concerns(s) {
		h, o := s.holds[p], m.owners[p]
		want := s.phase == seated && m.target[p] == s.id
		if h != nil {
			switch {
			case h.state == owned && !want:
				h.state = revoking
				revoked = append(revoked, p)
			case h.state == owned:
				m.command(s, p, h)
			}
			continue
		}
		n, known := open[p.Topic]
		if !known {
			n = m.openGenerations(p.Topic)
			open[p.Topic] = n
		}
		want = want && (len(m.layouts[p.Topic].Generations) == 0 || m.layouts[p.Topic].generationOf(p.ID) < n)
		switch st := m.standing(s, o); {
		case m.busy(slot{kind: opLook, seat: s.handle, part: p}):
		case st == ourselves && !want:
			h = &hold{epoch: o.rec.Epoch, rev: o.rev, drained: o.rec.Drained}
			s.holds[p] = h
			m.yield(s, p, h, now)
		case !want:
		case st == suspect:
			key := seatKey(m.group, o.rec.Seat)
			if !m.busy(slot{kind: opProbe, key: key}) {
				m.start(op{kind: opProbe, key: key, get: true, value: []byte(o.rec.Incarnation)}, now)
			}
		case st != living:
			m.claim(s, p, o, now)
		}
	}
	if len(revoked) > 0 {
		reason := "the group shares the partitions anew"
		if s.phase == leaving {
			reason = "the consumer leaves"
		}
		m.events = append(m.events, event{seat: s.handle, kind: evRevoke, parts: revoked, reason: reason})
	}
}

// concerns are the partitions a seat has to do with.
func (m *machine) concerns(s *seat) []Part {
	set := map[Part]bool{}
	for p, id := range m.target {
		if id == s.id {
			set[p] = true
		}
	}
	for p := range s.holds {
		set[p] = true
	}
	for p, o := range m.owners {
		if o.sitting() == s.sitting() {
			set[p] = true
		}
	}
	return slices.SortedFunc(maps.Keys(set), comparePart)
}

// claim begins to take a partition: its epoch is greater than that of every owner before, and
// than any this seat asked for, whatever became of that.
func (m *machine) claim(s *seat, p Part, o ownership, now instant) {
	epoch := max(o.rec.Epoch, s.used[p]) + 1
	s.used[p] = epoch
	s.holds[p] = &hold{state: claiming, epoch: epoch, drained: o.rec.Drained}
	m.start(op{kind: opClaim, seat: s.handle, part: p, key: ownerKey(m.group, p), rev: o.rev,
		value: encode(ownerRecord{Version: recordVersion, Seat: s.id, Incarnation: s.incarnation(), Epoch: epoch, Drained: o.rec.Drained})}, now)
}

// read goes on with a claim when the progress was read: it is written back under the new epoch,
// so that whatever the last owner still sends is over another revision and refused.
func (m *machine) read(o *op, e block.LedgerEntry, now instant) {
	s := m.own[o.seat]
	h := s.holds[o.part]
	var epoch uint64
	var body []byte
	if e.Revision != 0 {
		var err error
		if epoch, body, err = parseProgress(e.Value); err != nil {
			if o.kind == opRead {
				m.later(o, now) // of another version: leave it alone
			} else {
				m.start(op{kind: opRead, seat: o.seat, part: o.part, key: progressKey(m.group, o.part), get: true}, now+m.beatEvery())
			}
			return
		}
	}
	m.drop(o)
	if epoch >= h.epoch {
		m.overtaken(s, o.part, epoch, now)
		return
	}
	h.state = taking
	m.start(op{kind: opTake, seat: o.seat, part: o.part, key: progressKey(m.group, o.part), rev: e.Revision,
		value: encodeProgress(h.epoch, body)}, now)
}

// taken ends a claim: the partition is the seat's.
func (m *machine) taken(s *seat, p Part, h *hold, rev uint64, value []byte, now instant) {
	if s.phase != seated {
		m.yield(s, p, h, now)
		return
	}
	h.state, h.progress = owned, rev
	m.version++
	_, body, _ := parseProgress(value)
	m.events = append(m.events, event{seat: s.handle, kind: evAssigned, claims: []Claim{{Part: p, Epoch: h.epoch, Progress: body}}})
}

// commit writes the progress of a partition. While one is under way the newest waits, for both.
func (m *machine) commit(s *seat, p Part, body []byte, ticket uint64, now instant) {
	h := s.holds[p]
	if h == nil || !h.told() {
		m.settle(&ticket, &failure{fenced: true, why: "it is not this consumer's any more"})
		return
	}
	m.push(s, p, h, body, []uint64{ticket}, now)
}

// push begins a commit, or puts it behind the one under way.
func (m *machine) push(s *seat, p Part, h *hold, body []byte, tickets []uint64, now instant) {
	if body == nil {
		body = []byte{}
	}
	if m.busy(slot{kind: opCommit, seat: s.handle, part: p}) {
		if h.next != nil {
			tickets = append(h.next.tickets, tickets...)
		}
		h.next = &commit{body: body, tickets: tickets}
		return
	}
	h.waiting = tickets
	m.start(op{kind: opCommit, seat: s.handle, part: p, key: progressKey(m.group, p), rev: h.progress,
		value: encodeProgress(h.epoch, body)}, now)
}

// committed is called when progress was written.
func (m *machine) committed(s *seat, p Part, h *hold, rev uint64, now instant) {
	h.progress = rev
	for _, t := range h.waiting {
		m.settle(&t, nil)
	}
	h.waiting = nil
	switch next := h.next; {
	case next != nil:
		h.next = nil
		m.push(s, p, h, next.body, next.tickets, now)
	case h.state == releasing:
		m.yield(s, p, h, now)
	}
}

// release gives a partition up: first its last progress, then the ownership.
func (m *machine) release(s *seat, p Part, body []byte, now instant) {
	h := s.holds[p]
	if h == nil || !h.told() {
		return // it was lost meanwhile
	}
	h.state = releasing
	m.dirty = true
	m.version++
	switch {
	case body != nil:
		m.push(s, p, h, body, nil, now)
	case !m.busy(slot{kind: opCommit, seat: s.handle, part: p}):
		m.yield(s, p, h, now)
	}
}

// yield gives up the owner entry.
func (m *machine) yield(s *seat, p Part, h *hold, now instant) {
	m.dropOf(s.handle, p)
	h.state = yielding
	m.start(op{kind: opYield, seat: s.handle, part: p, key: ownerKey(m.group, p), rev: h.rev,
		value: encode(ownerRecord{Version: recordVersion, Epoch: h.epoch, Drained: h.drained})}, now)
}

// markDrained says in the ledger that nothing of a partition is left to do.
func (m *machine) markDrained(s *seat, p Part, now instant) {
	if h := s.holds[p]; h != nil && h.told() {
		h.drained = true
		m.drain(s, p, h, now)
	}
}

// drain begins to write that a partition is drained, unless that is known or under way.
func (m *machine) drain(s *seat, p Part, h *hold, now instant) {
	if m.owners[p].rec.Drained || m.busy(slot{kind: opDrain, seat: s.handle, part: p}) {
		return
	}
	m.start(op{kind: opDrain, seat: s.handle, part: p, key: ownerKey(m.group, p), rev: h.rev,
		value: encode(ownerRecord{Version: recordVersion, Seat: s.id, Incarnation: s.incarnation(), Epoch: h.epoch, Drained: true})}, now)
}

// mine tells whether the owner entry, as far as is known, is that of a hold.
func (m *machine) mine(s *seat, p Part, h *hold) bool {
	r := m.owners[p].rec
	return r.Seat == s.id && r.Incarnation == s.incarnation() && r.Epoch == h.epoch
}

// command tells the owner what an administrator asks, once.
func (m *machine) command(s *seat, p Part, h *hold) {
	c, ok := m.commands[p]
	if !ok || h.command >= c.rev {
		return
	}
	h.command = c.rev
	m.events = append(m.events, event{seat: s.handle, kind: evCommand, parts: []Part{p}, command: Command{Revision: c.rev, Body: c.body}})
}

// finish removes a command that was carried out.
func (m *machine) finish(s *seat, p Part, rev uint64, now instant) {
	o := op{kind: opDone, seat: s.handle, part: p, key: commandKey(m.group, p), rev: rev, remove: true}
	if !m.busy(o.slot()) {
		m.start(o, now)
	}
}

// lose takes a partition away at once.
func (m *machine) lose(s *seat, p Part, reason string) {
	h := s.holds[p]
	if h == nil {
		return
	}
	if h.told() {
		m.version++
		m.events = append(m.events, event{seat: s.handle, kind: evLost, parts: []Part{p}, reason: reason})
	}
	tickets := h.waiting
	if h.next != nil {
		tickets = append(tickets, h.next.tickets...)
	}
	for _, t := range tickets {
		m.settle(&t, &failure{fenced: true, why: reason})
	}
	m.dropOf(s.handle, p)
	delete(s.holds, p)
	m.dirty = true
}

// loseAll takes everything away at once.
func (m *machine) loseAll(s *seat, reason string) {
	for _, p := range slices.SortedFunc(maps.Keys(s.holds), comparePart) {
		m.lose(s, p, reason)
	}
}

// inspect reads an owner entry anew.
func (m *machine) inspect(s *seat, p Part, now instant) {
	o := op{kind: opLook, seat: s.handle, part: p, key: ownerKey(m.group, p), get: true}
	if !m.busy(o.slot()) {
		m.start(o, now)
	}
}

// inspected is what became of it. observe has told its content already.
func (m *machine) inspected(o *op, e block.LedgerEntry) {
	m.drop(o)
	m.dirty = true
	if s := m.own[o.seat]; s != nil && e.Revision == 0 {
		if h := s.holds[o.part]; h != nil && h.rev != 0 {
			m.lose(s, o.part, "the ledger has no owner of it")
		}
	}
}
