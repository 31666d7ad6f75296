package group

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// The model check: a world of a few members, each driven by a machine as the hub drives it, and a
// ledger whose only step is the single read or write. From a settled group it goes through all
// orders of what can happen, up to a number of disturbances and of ticks of the clock, and looks at
// every state on the way. Time is in ticks: a heartbeat each, fenced after two, dead
// after three.
//
// Undisturbed, what is due is done before the next tick, in any order. A disturbance is one of:
// a member dies (its writes under way may still be made), is stopped or goes on, leaves, comes (also
// under the name of one that died or still lives); its clock misses a tick; a heartbeat is lost, is
// made without an answer, with a late one, or late without one; so any other write or read; its watch
// falls silent, or begins anew. Apps let go when they like, and commit when they like.
//
// Heartbeats are made, and seen by those who listen, as soon as they are sent, unless disturbed: their
// order among other things is of no interest, and it would be most of the states. For the same reason,
// in a scenario that is not fine, timers go off with the tick, the watch tells news at once, and the
// requests a member has under way are done together: until something is disturbed.

const (
	tick     = 2 * time.Millisecond
	modelTTL = 5 * time.Millisecond // between two ticks and three
)

// stored is an entry of the world's ledger. Revisions are counted for each key, so that what is
// independent leads to the same state in either order.
type stored struct {
	value []byte
	rev   uint64
	there bool
}

type status uint8

const (
	absent status = iota // never came, or left
	up
	stopped
	crashed
	over // another came with its name
)

// fate is what becomes of a member's next heartbeat.
type fate uint8

const (
	arrives    fate = iota
	lost            // never made, answered by an error
	unanswered      // made, answered by an error
	slow            // made, answered later
	late            // made later, answered by an error
)

// letter is a request under way, or its answer.
type letter struct {
	req      request
	answered bool
	reply    reply
}

// node is a member. Like all of a world it is not changed once others can see it.
type node struct {
	name     string
	instance string
	status   status
	lives    int // how often it came
	clock    int
	missed   bool // its clock missed a tick
	skips    bool // it misses the next one
	m        *machine
	mail     []letter
	news     []block.LedgerEntry // the watch has not told yet
	deaf     bool
	beat     fate
	// The app, as the events tell it.
	open   map[Part]uint64 // epochs of what it has
	asked  map[Part]bool
	mark   map[Part]int // how far it is
	done   map[Part]int // what it released
	ended  bool
	leaves bool
	enc    []byte
	encAt  [3]int // the bases it is encoded over
}

type world struct {
	cfg     *scenario
	ledger  map[string]stored
	enc     []byte // of the ledger
	nodes   []*node
	ghosts  []block.LedgerWrite // writes of nobody who waits: made some time, or never
	tick    int                 // left
	faults  int                 // left
	commits int                 // left
	top     map[Part]uint64     // highest epoch told
	wrong   string
	last    string
	parent  *world
}

type scenario struct {
	name    string
	nodes   []string // instances; those with a * come only by a disturbance
	layout  Layout
	ticks   int
	faults  int
	commits int
	drains  bool
	fine    bool // see above
}

func (w *world) fail(format string, args ...any) {
	if w.wrong == "" {
		w.wrong = fmt.Sprintf(format, args...)
	}
}

func (n *node) now() instant { return instant(n.clock) * tick }

// next is a world to go on with. Nodes are copied when they act.
func (w *world) next(what string) *world {
	n := *w
	n.nodes = slices.Clone(w.nodes)
	n.parent, n.last = w, what
	return &n
}

func (w *world) trace() string {
	var steps []string
	for x := w; x != nil; x = x.parent {
		if x.last != "" {
			steps = append(steps, x.last)
		}
	}
	slices.Reverse(steps)
	return strings.Join(steps, "\n    ")
}

// own is a copy of a node that may be changed.
func (w *world) own(i int) *node {
	old := w.nodes[i]
	n := *old
	if old.m != nil {
		n.m = old.m.clone()
	}
	n.mail, n.news = slices.Clone(old.mail), slices.Clone(old.news)
	n.open, n.asked, n.mark, n.done = maps.Clone(old.open), maps.Clone(old.asked), maps.Clone(old.mark), maps.Clone(old.done)
	n.enc = nil
	w.nodes[i] = &n
	return &n
}

func (m *machine) clone() *machine {
	n := *m
	n.pulses, n.seats, n.owners = maps.Clone(m.pulses), maps.Clone(m.seats), maps.Clone(m.owners)
	n.commands, n.graves, n.gone = maps.Clone(m.commands), maps.Clone(m.graves), maps.Clone(m.gone)
	n.slots = maps.Clone(m.slots)
	n.own = make(map[int]*seat, len(m.own))
	for k, s := range m.own {
		c := *s
		c.used = maps.Clone(s.used)
		c.holds = make(map[Part]*hold, len(s.holds))
		for p, h := range s.holds {
			hc := *h
			hc.waiting = slices.Clone(h.waiting)
			if h.next != nil {
				nc := *h.next
				hc.next = &nc
			}
			c.holds[p] = &hc
		}
		n.own[k] = &c
	}
	n.ops = make(map[uint64]*op, len(m.ops))
	for k, o := range m.ops {
		c := *o
		n.ops[k] = &c
	}
	return &n
}

// write is one step of the ledger.
func (w *world) write(q block.LedgerWrite) (uint64, bool) {
	old := w.ledger[q.Key]
	rev := uint64(0)
	if old.there {
		rev = old.rev
	}
	if rev != q.Revision {
		return 0, false
	}
	w.judge(q, old)
	w.ledger, w.enc = maps.Clone(w.ledger), nil
	w.ledger[q.Key] = stored{value: q.Value, rev: old.rev + 1, there: !q.Remove}
	if strings.HasPrefix(q.Key, watchPrefix("g")) {
		e := block.LedgerEntry{Key: q.Key, Value: q.Value, Revision: old.rev + 1, Removed: q.Remove}
		pulse := strings.HasPrefix(q.Key, pulseKey("g", ""))
		for i, n := range w.nodes {
			if n.m == nil || n.status == crashed || n.status == absent || n.status == over {
				continue
			}
			n = w.own(i)
			if n.status == up && !n.deaf && (pulse && !q.Remove || !w.cfg.fine) {
				w.turn(i, n, func(now instant) { n.m.watch([]block.LedgerEntry{e}, false, now) })
				continue
			}
			n.news = slices.DeleteFunc(n.news, func(x block.LedgerEntry) bool { return x.Key == e.Key })
			n.news = append(n.news, e)
		}
	}
	return old.rev + 1, true
}

func (w *world) read(key string) block.LedgerEntry {
	e := block.LedgerEntry{Key: key}
	if s := w.ledger[key]; s.there {
		e.Value, e.Revision = s.value, s.rev
	}
	return e
}

// judge looks at a write that is accepted.
func (w *world) judge(q block.LedgerWrite, old stored) {
	parts := block.LedgerParts(q.Key)
	switch {
	case parts[0] == spaceProgress:
		id, _ := strconv.Atoi(parts[3])
		p := Part{parts[2], int32(id)}
		epoch, body, err := parseProgress(q.Value)
		if err != nil {
			w.fail("the progress of %s cannot be read", p)
		}
		was := uint64(0)
		var before []byte
		if old.there {
			was, before, _ = parseProgress(old.value)
		}
		if epoch < was || epoch < w.top[p] {
			w.fail("I14: a write of the progress of %s under epoch %d was accepted after %d, while an owner has %d", p, epoch, was, w.top[p])
		}
		if number(body) < number(before) {
			w.fail("I5: the progress of %s went back from %d to %d", p, number(before), number(body))
		}
	case parts[2] == kindOwner:
		id, _ := strconv.Atoi(parts[4])
		p := Part{parts[3], int32(id)}
		now, _ := parseOwner(q.Value)
		was, _ := parseOwner(old.value)
		same := now.Seat == "" || now.Seat == was.Seat && now.Incarnation == was.Incarnation && now.Drained && !was.Drained
		if q.Remove || now.Epoch < was.Epoch || now.Epoch == was.Epoch && !same {
			w.fail("I3: the owner of %s went from %+v to %+v", p, was, now)
		}
		if was.Seat != "" && now.Seat == "" {
			w.released(p, was.Seat)
		}
	}
}

// released: who gave a partition up has its last progress in the ledger.
func (w *world) released(p Part, seat string) {
	_, body, _ := parseProgress(w.ledger[progressKey("g", p)].value)
	for _, n := range w.nodes {
		if want, ok := n.done[p]; ok && n.instance == seat && n.status == up && number(body) < want {
			w.fail("I5: %s was given up with progress %d, the ledger has %d", p, want, number(body))
		}
	}
}

func number(b []byte) int {
	n, _ := strconv.Atoi(string(b))
	return n
}

// turn is a turn of a node's machine, as run.turn does it.
func (w *world) turn(i int, n *node, f func(now instant)) {
	m := n.m
	now := n.now()
	tell := func() {
		for _, e := range m.events {
			w.told(n, e)
		}
		m.events = nil
	}
	m.wake(now)
	tell()
	if f != nil {
		f(now)
	}
	m.step(now)
	tell()
	reqs := m.requests
	m.requests, m.outcomes, m.notes = nil, nil, nil
	for _, s := range m.own {
		for p, h := range s.holds {
			if h.told() && n.open[p] != h.epoch {
				w.fail("I4: %s may deliver %s under epoch %d; the app was told %d", n.name, p, h.epoch, n.open[p])
			}
		}
	}
	if len(m.own) == 0 && n.status == up {
		n.status = absent
		if n.ended {
			n.status = over
		}
		n.mail, n.news, n.asked = nil, nil, nil
		if n.status == absent && len(n.open) > 0 {
			w.fail("I4: %s left and still has %v", n.name, n.open)
		}
		if e := w.read(pulseKey("g", m.member)); e.Revision != 0 {
			w.write(block.LedgerWrite{Key: e.Key, Revision: e.Revision, Remove: true})
		}
		return
	}
	for _, q := range reqs {
		if !q.pulse {
			n.mail = append(n.mail, letter{req: q})
		}
	}
	for _, q := range reqs {
		if !q.pulse {
			continue
		}
		if n = w.nodes[i]; n.status != up {
			return
		}
		fate := n.beat
		n.beat = arrives
		if q.get {
			fate = arrives
		}
		a := reply{op: q.op, verdict: failed}
		switch fate {
		case lost:
		case late:
			w.ghosts = append(slices.Clone(w.ghosts), q.LedgerWrite)
		default:
			if q.get {
				a.verdict, a.entry = done, w.read(q.Key)
			} else if rev, ok := w.write(q.LedgerWrite); ok {
				a.verdict, a.entry.Revision = done, rev
			} else {
				a.verdict = conflict
			}
			if n = w.nodes[i]; n.status != up {
				return
			}
			if fate == unanswered {
				a = reply{op: q.op, verdict: failed}
			}
			if fate == slow {
				n.mail = append(n.mail, letter{req: q, answered: true, reply: a})
				continue
			}
		}
		w.turn(i, n, func(now instant) { n.m.reply(a, now) })
	}
}

// told is the app hearing of an event.
func (w *world) told(n *node, e event) {
	switch e.kind {
	case evAssigned:
		for _, c := range e.claims {
			if c.Epoch <= w.top[c.Part] {
				w.fail("I3: %s was told of %s under epoch %d, after %d", n.name, c.Part, c.Epoch, w.top[c.Part])
			}
			w.top = maps.Clone(w.top)
			w.top[c.Part] = c.Epoch
			if n.open[c.Part] != 0 {
				w.fail("I4: %s got %s twice", n.name, c.Part)
			}
			n.open[c.Part], n.mark[c.Part] = c.Epoch, number(c.Progress)
			delete(n.done, c.Part)
			w.inOrder(c.Part)
		}
	case evRevoke:
		for _, p := range e.parts {
			n.asked[p] = true
		}
	case evLost:
		for _, p := range e.parts {
			if n.open[p] == 0 {
				w.fail("I4: %s lost %s, which it did not have", n.name, p)
			}
			delete(n.open, p)
			delete(n.asked, p)
			delete(n.mark, p)
		}
	case evEnded:
		n.ended = true
	}
}

// inOrder: a partition of a later generation is given to nobody before the earlier ones are drained.
func (w *world) inOrder(p Part) {
	l := w.cfg.layout
	for g := range l.generationOf(p.ID) {
		for k := range l.Generations[g].Count {
			old := Part{p.Topic, l.Generations[g].First + k}
			if rec, _ := parseOwner(w.ledger[ownerKey("g", old)].value); !rec.Drained {
				w.fail("I12: %s has an owner while %s is not drained", p, old)
			}
		}
	}
}

// look judges a state: nobody may deliver what another may deliver. (Who comes with the name of
// another takes over before that one can know.)
func (w *world) look() {
	for i, a := range w.nodes {
		for _, b := range w.nodes[i+1:] {
			if a.instance == b.instance {
				continue
			}
			for p := range a.open {
				if a.may(p) && b.may(p) {
					w.fail("I4: %s and %s may both deliver %s, under the epochs %d and %d", a.name, b.name, p, a.open[p], b.open[p])
				}
			}
		}
	}
}

// may is what Seat.Valid says. A process that is stopped asks when it goes on.
func (n *node) may(p Part) bool {
	if n.status != up || n.open[p] == 0 || n.now() >= n.m.fenceAt() {
		return false
	}
	for _, s := range n.m.own {
		if h := s.holds[p]; h != nil && h.told() {
			return true
		}
	}
	return false
}

var twoParts = Layout{Generations: []Generation{{Count: 2}}}

var scenarios = []scenario{
	{name: "two members", nodes: []string{"a", "b"}, layout: twoParts, ticks: 9, faults: 1, commits: 1},
	{name: "a third may come", nodes: []string{"a", "b", "c*"}, layout: twoParts, ticks: 8, faults: 1, commits: 0},
	{name: "the same name again", nodes: []string{"a", "b", "a*"}, layout: twoParts, ticks: 8, faults: 1, commits: 1},
	{name: "two generations", nodes: []string{"a", "b"}, layout: Layout{Generations: []Generation{{0, 1}, {1, 1}}}, ticks: 1, faults: 1, drains: true},
	{name: "every order", nodes: []string{"a", "b"}, layout: twoParts, ticks: 2, faults: 1, fine: true},
}
