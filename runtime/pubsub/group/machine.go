package group

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// instant is a time of the monotonic clock, as the time since the hub began.
type instant = time.Duration

// machine is a hub's mind: what it knows of the ledger, what its seats hold and what it is about
// to do. It does no I/O, starts nothing and reads no clock. Everything that happens is told to it
// together with the time (wake, watch, reply, and what the seats ask for); step then says what to
// do: requests to the ledger, which are answered by reply in any order, late or with an error,
// and events for the seats. The runner (hub.go) makes it live; the model check explores it.
type machine struct {
	group  string
	member string
	ttl    time.Duration
	retry  time.Duration // pause after the first failed request, doubled with each

	// What the ledger holds, as far as the watch and our own requests told.
	ready    bool // the watch has told all there is at least once
	pulses   map[string]pulse
	seats    map[string]place
	owners   map[Part]ownership
	commands map[Part]order
	graves   map[string]uint64 // keys that were removed, with the last revision known of each
	gone     map[sitting]bool  // seats that were read and found to be no more: certain for ever

	layouts map[string]Layout
	own     map[int]*seat // by handle
	handles int

	// The heartbeat. Others count from when they see it, which is after it was sent; so this
	// member counts from the sending of the last one that is known to have arrived.
	beats  uint64  // sent so far
	rev    uint64  // of the pulse, 0 unknown
	due    instant // when to send the next one
	acked  instant // when the last one that arrived was sent
	beaten bool    // one arrived
	fenced bool    // nothing may be held: that was too long ago, or never
	doubt  bool

	ops    map[uint64]*op
	slots  map[slot]uint64 // the one operation there is of each kind and thing
	lastOp uint64
	wakeAt instant // when step asked to be called again; 0 never
	dirty  bool    // something changed that partitions may have to move for
	target map[Part]string
	stale  bool // target has to be computed anew

	version  uint64 // grows when what the seats own changes
	requests []request
	notes    []string // for the log
	events   []event
	outcomes []outcome
}

// pulse is a member's heartbeat as seen from here.
type pulse struct {
	rev   uint64
	ttl   time.Duration
	seen  instant // when it last changed, by our clock
	dead  bool    // it was silent for its ttl, and a read confirmed that
	alien bool    // it cannot be read
}

// place is a seat of the group.
type place struct {
	rev   uint64
	rec   seatRecord
	alien bool
}

// sitting is one life of a seat.
type sitting struct{ seat, incarnation string }

// ownership is the owner entry of a partition. The zero value is a partition nobody ever owned.
type ownership struct {
	rev   uint64
	rec   ownerRecord
	alien bool
}

func (o ownership) sitting() sitting { return sitting{o.rec.Seat, o.rec.Incarnation} }

// order is a command entry.
type order struct {
	rev  uint64
	body []byte
}

// request is a thing to do with the ledger: reading an entry, or writing it.
type request struct {
	op  uint64
	get bool
	block.LedgerWrite
	pulse bool // is sent by itself
}

// verdict is how a request ended.
type verdict uint8

const (
	done     verdict = iota // entry is what was read, or has the revision that the write made
	conflict                // the entry has another revision
	failed                  // nothing is known
)

// reply answers a request.
type reply struct {
	op      uint64
	verdict verdict
	entry   block.LedgerEntry
}

type eventKind uint8

const (
	evAssigned eventKind = iota
	evRevoke
	evLost
	evChanged
	evDoubt
	evCommand
	evEnded
)

// event is a call of a seat's Events.
type event struct {
	seat    int
	kind    eventKind
	claims  []Claim
	parts   []Part
	reason  string
	view    View
	doubt   bool
	command Command
}

// outcome ends what a caller waits for.
type outcome struct {
	ticket uint64
	err    *failure
}

// failure is why a commit or a join did not work. nil is success.
type failure struct {
	fenced bool
	why    string
}

func newMachine(group, member string, ttl, retry time.Duration) *machine {
	return &machine{
		group: group, member: member, ttl: ttl, retry: retry,
		pulses: map[string]pulse{}, seats: map[string]place{}, owners: map[Part]ownership{},
		commands: map[Part]order{}, graves: map[string]uint64{}, gone: map[sitting]bool{},
		layouts: map[string]Layout{}, own: map[int]*seat{}, ops: map[uint64]*op{}, slots: map[slot]uint64{},
		fenced: true, stale: true,
	}
}

// How long the silences are, as parts of the TTL.
func (m *machine) beatEvery() time.Duration { return m.ttl / 3 }
func (m *machine) doubtAfter() time.Duration {
	return m.ttl / 2 // one heartbeat is late by a sixth
}
func (m *machine) fenceAfter() time.Duration { return m.ttl * 4 / 5 }

// fenceAt is when this member must have let go of everything.
func (m *machine) fenceAt() instant {
	if m.fenced {
		return 0
	}
	return m.acked + m.fenceAfter()
}

// wake looks at the clock. It comes before anything else is done: the process may have been
// stopped, and what it believes may be long out of date.
func (m *machine) wake(now instant) {
	if m.wakeAt > 0 && now > m.wakeAt+m.beatEvery() {
		m.restartClocks(now)
	}
	if !m.fenced && now >= m.acked+m.fenceAfter() {
		m.fence()
	}
}

// restartClocks forgets how long others were silent: it was us who did not listen.
func (m *machine) restartClocks(now instant) {
	for name, p := range m.pulses {
		p.seen = now
		m.pulses[name] = p
	}
}

// fence lets go of everything: by now others may count this member as dead.
func (m *machine) fence() {
	m.fenced = true
	for _, s := range m.sorted() {
		m.rebirth(s, "the ledger does not answer in time")
	}
	for _, o := range m.ops {
		if o.kind.ofPartition() {
			m.drop(o)
		}
	}
	m.dirty = true
}

func (m *machine) note(key string, err error) {
	if err != nil {
		m.notes = append(m.notes, fmt.Sprintf("the ledger's entry %q is left alone: %v", key, err))
	}
}

// sorted are this hub's seats in the order they were opened: what the machine does must not
// depend on the order of a map.
func (m *machine) sorted() []*seat {
	if len(m.own) == 1 {
		for _, s := range m.own {
			return []*seat{s}
		}
	}
	out := slices.Collect(maps.Values(m.own))
	slices.SortFunc(out, func(a, b *seat) int { return cmp.Compare(a.handle, b.handle) })
	return out
}

// setLayout says how a topic is divided.
func (m *machine) setLayout(topic string, l Layout) {
	m.layouts[topic] = Layout{Generations: slices.Clone(l.Generations)}
	m.dirty, m.stale = true, true
}

// openGenerations is how many generations of a topic may be claimed: all before the last of them
// are drained.
func (m *machine) openGenerations(topic string) int {
	l := m.layouts[topic]
	for i, g := range l.Generations {
		for k := range g.Count {
			if o := m.owners[Part{Topic: topic, ID: g.First + k}]; !o.rec.Drained {
				return i + 1
			}
		}
	}
	return len(l.Generations)
}

// generationOf is the generation a partition belongs to, 0 if the layout does not have it.
func (l Layout) generationOf(id int32) int {
	for i, g := range l.Generations {
		if id >= g.First && id-g.First < g.Count {
			return i
		}
	}
	return 0
}

// step does what is to be done now.
func (m *machine) step(now instant) {
	m.beat(now)
	m.fenceDropsLeavers()
	for m.dirty {
		m.dirty = false
		if m.ready && !m.fenced {
			m.reconcile(now)
		}
	}
	m.watchOthers(now)
	m.send(now)
	m.plan(now)
}

// beat keeps the heartbeat going while there are seats, and doubts itself when it is late.
func (m *machine) beat(now instant) {
	if len(m.own) > 0 && now >= m.due && !m.busy(slot{kind: opPulse}) {
		m.start(op{kind: opPulse, key: pulseKey(m.group, m.member), rev: m.rev, value: m.nextPulse()}, now)
	}
	if doubt := m.beaten && now >= m.acked+m.doubtAfter(); doubt != m.doubt {
		m.doubt = doubt
		for _, s := range m.sorted() {
			m.events = append(m.events, event{seat: s.handle, kind: evDoubt, doubt: doubt})
		}
	}
}

// watchOthers reads the heartbeats of members that were silent for too long, for the watch
// alone may be what is late.
func (m *machine) watchOthers(now instant) {
	if !m.ready || m.fenced {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(m.pulses)) {
		p := m.pulses[name]
		key := pulseKey(m.group, name)
		if name == m.member || p.dead || p.alien || now < p.seen+p.ttl || m.busy(slot{kind: opCheck, key: key}) {
			continue
		}
		m.start(op{kind: opCheck, key: key, rev: p.rev, get: true}, now)
	}
}

// plan says when step is to be called again, if nothing happens before.
func (m *machine) plan(now instant) {
	at := instant(0)
	soon := func(t instant) {
		if at == 0 || t < at {
			at = max(t, now+1)
		}
	}
	if len(m.own) > 0 {
		if !m.busy(slot{kind: opPulse}) {
			soon(m.due)
		}
		if m.beaten && !m.doubt {
			soon(m.acked + m.doubtAfter())
		}
		if !m.fenced {
			soon(m.acked + m.fenceAfter())
		}
	}
	for _, o := range m.ops {
		if !o.flying {
			soon(o.due)
		}
	}
	if m.ready && !m.fenced {
		for name, p := range m.pulses {
			if name != m.member && !p.dead && !p.alien && !m.busy(slot{kind: opCheck, key: pulseKey(m.group, name)}) {
				soon(p.seen + p.ttl)
			}
		}
	}
	m.wakeAt = at
}

// reconcile compares what is with what should be, and starts what brings them together.
func (m *machine) reconcile(now instant) {
	for _, s := range m.sorted() {
		m.register(s, now)
	}
	if m.stale {
		m.stale = false
		m.target = share(m.active(), m.layouts)
	}
	for _, s := range m.sorted() {
		m.look(s)
		m.reconcileSeat(s, now)
	}
	m.clean()
}

// look tells a seat of changes of the group.
func (m *machine) look(s *seat) {
	if m.own[s.handle] != s || s.phase != seated {
		return
	}
	var ids []string
	index := -1
	for _, o := range m.active() {
		if !s.shares(o) {
			continue
		}
		if o.id == s.id {
			index = len(ids)
		}
		ids = append(ids, o.id)
	}
	if index < 0 || slices.Equal(ids, s.others) {
		return
	}
	s.others = ids
	s.generation++
	m.events = append(m.events, event{seat: s.handle, kind: evChanged,
		view: View{Generation: s.generation, Members: len(ids), Index: index}})
}

// clean removes the records of the dead once their partitions are taken, and records that bear
// this member's name and that it knows nothing of.
func (m *machine) clean() {
	for _, id := range slices.Sorted(maps.Keys(m.seats)) {
		pl := m.seats[id]
		if pl.alien || m.alive(pl.rec, id) || m.owed(sitting{id, pl.rec.Incarnation}) || m.ownID(id) {
			continue
		}
		m.remove(seatKey(m.group, id), pl.rev)
	}
	for _, name := range slices.Sorted(maps.Keys(m.pulses)) {
		if p := m.pulses[name]; p.dead && !m.hasSeat(name) && p.rev != 0 {
			m.remove(pulseKey(m.group, name), p.rev)
		}
	}
	for who := range m.gone {
		if !m.owns(who) {
			delete(m.gone, who)
		}
	}
}

func (m *machine) ownID(id string) bool {
	for _, s := range m.own {
		if s.id == id {
			return true
		}
	}
	return false
}

// owed tells whether a dead seat has partitions that somebody is going to take.
func (m *machine) owed(who sitting) bool {
	for p, o := range m.owners {
		if o.sitting() == who && m.target[p] != "" && m.target[p] != who.seat {
			return true
		}
	}
	return false
}

func (m *machine) owns(who sitting) bool {
	for _, o := range m.owners {
		if o.sitting() == who {
			return true
		}
	}
	return false
}

func (m *machine) remove(key string, rev uint64) {
	if !m.busy(slot{kind: opClean, key: key}) {
		m.start(op{kind: opClean, key: key, rev: rev, remove: true}, 0)
	}
}

func comparePart(a, b Part) int {
	return cmp.Or(strings.Compare(a.Topic, b.Topic), cmp.Compare(a.ID, b.ID))
}
