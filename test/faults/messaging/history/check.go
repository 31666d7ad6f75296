package history

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Claims are the invariants, in order.
var Claims = []struct{ ID, Text string }{
	{"I1", "every acknowledged message is handled, parked or dead-lettered, and none is invented"},
	{"I2", "first effects of a key are in the order of its messages"},
	{"I3", "a partition has one owner per epoch, and epochs grow"},
	{"I4", "nothing is delivered after a revocation or a loss"},
	{"I5", "the watermark never passes an unresolved message and never goes back"},
	{"I6", "what comes again after a fault is bounded"},
	{"I7", "no more is unresolved at the app than it allowed"},
	{"I8", "a blocked key delays no other key, up to the window"},
	{"I9", "parked messages stay aside, and come back in order before newer ones"},
	{"I10", "partitions have a new owner in time"},
	{"I11", "a failed ordered publish lets no later one of its key through"},
	{"I12", "a change of the number of partitions keeps the order of keys"},
	{"I13", "a seek affects its own group only"},
	{"I14", "a stale acknowledgement changes nothing"},
}

// Verdict is how a history stands to one invariant.
type Verdict struct {
	ID         string
	Checks     int // things that could have been wrong; 0: nothing to judge was seen
	Violations int
	Witness    []string // the smallest of the violations, for a person to read
}

// OK tells that nothing was wrong, or nothing was judged.
func (v Verdict) OK() bool { return v.Violations == 0 }

// Report is what Check found.
type Report struct {
	Verdicts []Verdict // in the order of Claims
	Figures  Figures
}

// OK tells that no invariant was violated.
func (r Report) OK() bool {
	return !slices.ContainsFunc(r.Verdicts, func(v Verdict) bool { return !v.OK() })
}

// Verdict is the verdict on an invariant.
func (r Report) Verdict(id string) Verdict {
	for _, v := range r.Verdicts {
		if v.ID == id {
			return v
		}
	}
	return Verdict{ID: id}
}

// String is one line per invariant, and the witnesses.
func (r Report) String() string {
	var b strings.Builder
	for i, v := range r.Verdicts {
		switch {
		case v.Checks == 0:
			fmt.Fprintf(&b, "%-4s not judged   %s\n", v.ID, Claims[i].Text)
		case v.OK():
			fmt.Fprintf(&b, "%-4s ok %9d %s\n", v.ID, v.Checks, Claims[i].Text)
		default:
			fmt.Fprintf(&b, "%-4s VIOLATED %d× in %d   %s\n", v.ID, v.Violations, v.Checks, Claims[i].Text)
			for _, line := range v.Witness {
				fmt.Fprintf(&b, "       %s\n", line)
			}
		}
	}
	return b.String()
}

// Check judges a history. It does not change it.
func Check(h *History) Report {
	x := newIndex(h)
	r := Report{Figures: x.figures()}
	judges := []func(*Verdict){x.noLoss, x.keyOrder, x.oneOwner, x.quietAfter, x.watermark, x.duplicates, x.credits,
		x.blocked, x.parking, x.takeover, x.orderedPublish, x.resize, x.seeks, x.staleAcks}
	for i, judge := range judges {
		v := Verdict{ID: Claims[i].ID}
		judge(&v)
		r.Verdicts = append(r.Verdicts, v)
	}
	return r
}

// violate counts a violation and keeps the smallest witness.
func (x *index) violate(v *Verdict, why string, events ...*Event) {
	v.Violations++
	if len(v.Witness) > 0 && len(v.Witness) <= len(events)+1 {
		return
	}
	v.Witness = []string{why}
	for _, e := range events {
		if e != nil {
			v.Witness = append(v.Witness, x.show(e))
		}
	}
}

func (x *index) show(e *Event) string {
	text := fmt.Sprintf("%9.3f s  %s", (e.T - x.start).Seconds(), e)
	if e.Until > 0 {
		text += fmt.Sprintf(" until %.3f s", (e.Until - x.start).Seconds())
	}
	return text
}

// place is a partition as a group sees it.
type place struct {
	group, topic string
	part         int32
}

func (e *Event) place() place { return place{e.Group, e.Topic, e.Part} }

// told tells that the event names a partition and an epoch.
func (e *Event) told() bool { return e.Part != NoPart && e.Epoch > 0 }

// owner is who owns a partition: the member, where it is told.
func (e *Event) owner() string { return cmp.Or(e.Member, e.Proc) }

// of is a message as a group sees it.
type of struct{ group, id string }

// ofKey is a key as a group sees it.
type ofKey struct{ group, topic, key string }

// message is what was published under one identity.
type message struct {
	id, key, topic string
	seq            int
	tries          int
	ok             *Event // the first acknowledgement
	first          *Event // the first word of it
	answers        int
	refusals       int
	part           int32
	pos            uint64
}

// epochAt is the highest epoch of a partition known at a time.
type epochAt struct {
	t     time.Duration
	epoch uint64
	e     *Event
}

// index is a history in the forms that judges ask for.
type index struct {
	s         Setup
	start     time.Duration
	all       []*Event // by time; those of one process in their order
	byKind    map[Kind][]*Event
	messages  map[string]*message
	deliv     map[of][]*Event // by time
	nacks     map[of][]*Event // that ask for another delivery
	resolved  map[of]*Event   // the first resolution that counts
	stale     []*Event        // acknowledgements that cannot count
	epochs    map[place][]epochAt
	effects   []*Event // in the order of the sink
	drained   *Event
	parkedKey map[ofKey][]*Event // nacks that parked, and Parked
	ofKeys    map[string][]*message
	refused   map[of][]*Event
	gone      map[of]bool // dropped or dead-lettered: never to be handled
	figs      *Figures
}

// keys are the messages of each key, in order; the index is topic, NUL, key.
func (x *index) keys() map[string][]*message {
	if x.ofKeys == nil {
		x.ofKeys = map[string][]*message{}
		for _, id := range sorted(x.messages, cmp.Compare[string]) {
			m := x.messages[id]
			x.ofKeys[m.topic+"\x00"+m.key] = append(x.ofKeys[m.topic+"\x00"+m.key], m)
		}
		for _, of := range x.ofKeys {
			slices.SortStableFunc(of, func(a, b *message) int { return cmp.Compare(a.seq, b.seq) })
		}
	}
	return x.ofKeys
}

func newIndex(h *History) *index {
	x := &index{s: h.Setup, byKind: map[Kind][]*Event{}, messages: map[string]*message{}, deliv: map[of][]*Event{}, nacks: map[of][]*Event{},
		resolved: map[of]*Event{}, epochs: map[place][]epochAt{}, parkedKey: map[ofKey][]*Event{}, gone: map[of]bool{}}
	for i := range h.Events {
		e := h.Events[i]
		x.all = append(x.all, &e)
	}
	slices.SortStableFunc(x.all, func(a, b *Event) int { return cmp.Compare(a.T, b.T) })
	if len(x.all) > 0 {
		x.start = x.all[0].T
	}
	for _, e := range x.all {
		x.byKind[e.Kind] = append(x.byKind[e.Kind], e)
		switch e.Kind {
		case Publishing, Published:
			x.published(e)
		case Delivered:
			x.deliv[of{e.Group, e.ID}] = append(x.deliv[of{e.Group, e.ID}], e)
			x.sawEpoch(e)
		case Assigned:
			x.sawEpoch(e)
		case Drained:
			x.drained = e
		}
	}
	for _, e := range x.all {
		x.resolution(e)
	}
	x.effects = slices.Clone(x.byKind[Effect])
	slices.SortStableFunc(x.effects, func(a, b *Event) int { return cmp.Compare(a.Order, b.Order) })
	return x
}

func (x *index) published(e *Event) {
	m := x.messages[e.ID]
	if m == nil {
		m = &message{id: e.ID, key: e.Key, topic: e.Topic, seq: e.Seq, first: e, part: NoPart}
		x.messages[e.ID] = m
	}
	if e.Kind == Publishing {
		m.tries++
		return
	}
	m.answers++
	if e.Outcome == Failed || e.Outcome == Preceding {
		m.refusals++
	}
	if e.Outcome == OK && m.ok == nil {
		m.ok = e
		if e.Part != NoPart && e.Pos > 0 {
			m.part, m.pos = e.Part, e.Pos
		}
	}
}

// refused tells that a message was certainly not accepted, however often it was sent.
func (m *message) refused() bool { return m.tries > 0 && m.refusals == m.tries }

func (x *index) sawEpoch(e *Event) {
	if !e.told() {
		return
	}
	known := x.epochs[e.place()]
	if len(known) == 0 || known[len(known)-1].epoch < e.Epoch {
		x.epochs[e.place()] = append(known, epochAt{e.T, e.Epoch, e})
	}
}

// successor is the first sign of a greater epoch before an acknowledgement was even sent.
func (x *index) successor(e *Event) *Event {
	if !e.told() {
		return nil
	}
	for _, k := range x.epochs[e.place()] {
		if k.epoch > e.Epoch && k.t < e.T {
			return k.e
		}
	}
	return nil
}

// resolution notes what resolves a message for a group.
func (x *index) resolution(e *Event) {
	id := of{e.Group, e.ID}
	final := false
	switch e.Kind {
	case Acked, Nacked:
		if x.successor(e) != nil {
			x.stale = append(x.stale, e)
			return
		}
		final = e.Kind == Acked || e.Remedy == Drop || e.Remedy == Park || e.Remedy == DeadLetter && !x.s.DeadLetters
		if e.Kind == Nacked && e.Remedy == Retry {
			final = x.s.Attempts > 0 && e.Attempt >= x.s.Attempts && !x.s.DeadLetters
			x.nacks[id] = append(x.nacks[id], e)
		}
		if e.Kind == Nacked && e.Remedy == Park {
			k := ofKey{e.Group, e.Topic, e.Key}
			x.parkedKey[k] = append(x.parkedKey[k], e)
		}
	case DeadLettered, Parked:
		final = true
		if e.Kind == Parked {
			k := ofKey{e.Group, e.Topic, e.Key}
			x.parkedKey[k] = append(x.parkedKey[k], e)
		}
	default:
		return
	}
	if e.Kind == DeadLettered || e.Remedy == Drop || e.Remedy == DeadLetter {
		x.gone[id] = true
	}
	if final && x.resolved[id] == nil {
		x.resolved[id] = e
	}
}

// sorted are the keys of a map in order, so that witnesses are the same each time.
func sorted[K comparable, V any](m map[K]V, by func(a, b K) int) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, by)
	return out
}

func byPlace(a, b place) int {
	return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.topic, b.topic), cmp.Compare(a.part, b.part))
}

func byOf(a, b of) int { return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.id, b.id)) }

// hits tells that a fault hit a process.
func (e *Event) hits(proc string) bool {
	return len(e.Victims) == 0 || slices.Contains(e.Victims, proc)
}

// end is when a fault was over.
func (e *Event) end() time.Duration { return max(e.T, e.Until) }
