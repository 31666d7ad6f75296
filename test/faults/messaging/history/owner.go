package history

import (
	"fmt"
	"slices"
	"time"
)

// oneOwner is I3.
func (x *index) oneOwner(v *Verdict) {
	type lease struct {
		place
		epoch uint64
	}
	owner := map[lease]*Event{}
	for _, e := range x.all {
		if e.Kind != Assigned && e.Kind != Delivered || !e.told() {
			continue
		}
		l := lease{e.place(), e.Epoch}
		had := owner[l]
		if had == nil {
			owner[l] = e
			v.Checks++
		} else if had.owner() != e.owner() {
			x.violate(v, "two consumers have a partition under one epoch", had, e)
		}
	}
	x.epochsGrow(v)
	x.fencedSink(v)
	x.fencedStore(v)
}

// epochsGrow: an epoch that is given after another was seen is greater. What is given to a
// process that opened its stream after the other was seen was surely given later.
func (x *index) epochsGrow(v *Verdict) {
	opened := map[string]time.Duration{}
	last := map[string]map[place]*Event{}
	for _, e := range x.all {
		switch {
		case e.Kind == Opened:
			opened[e.Proc] = e.T
		case e.Kind == Assigned && e.told():
			v.Checks++
			if last[e.Proc] == nil {
				last[e.Proc] = map[place]*Event{}
			}
			had := last[e.Proc][e.place()]
			again := had != nil && had.T < opened[e.Proc] && had.owner() == e.owner() // the same member, another stream
			if had != nil && (e.Epoch < had.Epoch || e.Epoch == had.Epoch && !again) {
				x.violate(v, "an epoch did not grow", had, e)
			}
			last[e.Proc][e.place()] = e
			for _, k := range slices.Backward(x.epochs[e.place()]) {
				if k.t < opened[e.Proc] {
					if k.epoch > e.Epoch || k.epoch == e.Epoch && k.e.owner() != e.owner() {
						x.violate(v, "an epoch was given after a later one was seen", k.e, e)
					}
					break
				}
			}
		}
	}
}

// fencedSink: a store that took a write under an epoch takes none under an older one that begins
// later. Writes that overlap may come in any order.
func (x *index) fencedSink(v *Verdict) {
	newest := map[place][]*Event{} // by time; of greater and greater epochs
	for _, e := range x.byKind[Effect] {
		if !e.Fenced || !e.told() {
			continue
		}
		v.Checks++
		list := newest[e.place()]
		for _, had := range list {
			if had.T < e.From && had.Epoch > e.Epoch {
				x.violate(v, "a store took a write of an epoch that was over", had, e)
				break
			}
		}
		if len(list) == 0 || list[len(list)-1].Epoch < e.Epoch {
			newest[e.place()] = append(list, e)
		}
	}
}

// fencedStore: what is stored of a key in the end is its newest message. Were an old owner's late write
// taken, it would be older.
func (x *index) fencedStore(v *Verdict) {
	if x.drained == nil {
		return
	}
	newest := map[ofKey]*Event{}
	for _, e := range x.byKind[Acked] {
		k := ofKey{e.Group, e.Topic, e.Key}
		if newest[k] == nil || newest[k].Seq < e.Seq {
			newest[k] = e
		}
	}
	for _, e := range x.byKind[Stored] {
		v.Checks++
		if n := newest[ofKey{e.Group, e.Topic, e.Key}]; n != nil && n.Seq > e.Seq {
			x.violate(v, fmt.Sprintf("number %d of key %s was stored and acknowledged, and the store holds number %d", n.Seq, e.Key, e.Seq),
				append(slices.Clone(x.deliv[of{e.Group, e.ID}]), n, e)...)
		}
	}
}

// quietAfter is I4. It follows each consumer's own view, in which the order is certain.
func (x *index) quietAfter(v *Verdict) {
	type seat struct {
		proc string
		place
	}
	type state struct {
		epoch uint64
		ended *Event // what ended it
	}
	states := map[seat]*state{}
	for _, e := range x.all {
		s := seat{e.Proc, e.place()}
		switch e.Kind {
		case Opened:
			for k := range states {
				if k.proc == e.Proc && k.group == e.Group {
					delete(states, k)
				}
			}
		case Assigned:
			states[s] = &state{epoch: e.Epoch}
		case Revoking, RevokeDone, Lost:
			if st := states[s]; st != nil && (st.ended == nil || e.Kind != Revoking) && (e.Epoch == 0 || e.Epoch >= st.epoch) {
				st.ended = e
			}
		case Delivered:
			if !e.told() || e.Queued {
				continue
			}
			v.Checks++
			st := states[s]
			switch {
			case st == nil:
				x.violate(v, "a message of a partition was delivered that was never assigned", e)
			case e.Epoch != st.epoch:
				x.violate(v, fmt.Sprintf("a message was delivered under an epoch that is not that of the assignment (%d)", st.epoch), e)
			case st.ended != nil:
				x.violate(v, "a message was delivered after its partition was taken back", st.ended, e)
			}
		}
	}
}

// staleAcks is I14.
func (x *index) staleAcks(v *Verdict) {
	for _, e := range x.stale {
		if e.Kind != Acked {
			continue
		}
		v.Checks++
		id := of{e.Group, e.ID}
		valid := x.resolved[id]
		if valid == nil && x.drained != nil {
			x.violate(v, "a stale acknowledgement was the last word on a message", x.successor(e), e, x.drained)
		}
		for _, s := range x.byKind[Status] {
			if s.place() == e.place() && s.T > e.T && s.Committed > e.Pos && e.Pos > 0 && (valid == nil || valid.T > s.T) {
				x.violate(v, "the watermark passed a message on the word of a stale acknowledgement", x.successor(e), e, s)
				break
			}
		}
	}
}

// holder is who has a partition, from one event on.
type holder struct {
	e    *Event        // Assigned
	till time.Duration // when it was let go of or lost, as its app saw it; 0: never
	how  *Event
}

// holders are the assignments of each partition, by time.
func (x *index) holders() map[place][]*holder {
	out := map[place][]*holder{}
	current := map[string]map[place]*holder{}
	for _, e := range x.all {
		switch e.Kind {
		case Assigned:
			h := &holder{e: e}
			if current[e.Proc] == nil {
				current[e.Proc] = map[place]*holder{}
			}
			current[e.Proc][e.place()] = h
			out[e.place()] = append(out[e.place()], h)
		case RevokeDone, Lost:
			if h := current[e.Proc][e.place()]; h != nil && h.till == 0 && (e.Epoch == 0 || e.Epoch >= h.e.Epoch) {
				h.till, h.how = e.T, e
			}
		}
	}
	return out
}
