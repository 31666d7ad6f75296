// Package group decides who owns which partition, for brokers that have no consumer groups of
// their own. Its members share nothing but a block.Ledger, whose one strength is enough: of two
// writes over the same revision of an entry only one is accepted.
//
// # The parts
//
// A Hub is one process's membership in one group; a Seat is one consumer in it, opened by
// Hub.Join. The ledger holds, for a group g:
//
//	group,g,pulse,<member>       the heartbeat of a process, rewritten each third of its TTL
//	group,g,seat,<seat>          a consumer: its member, incarnation, topics, and whether it is leaving
//	group,g,owner,<topic>,<n>    whose a partition is, and under which epoch; never removed
//	group,g,command,<topic>,<n>  what an administrator asks of a partition's owner
//	progress,g,<topic>,<n>       how far the partition is, and under which epoch that was said
//
// All but the last are watched by every member.
//
// # How ownership moves
//
// Each member computes from the seats which of them a partition should belong to (share). That is
// a pure function, so members that know the same agree without talking; while they do not, the
// owner entries keep them apart. Then each seat compares, partition by partition:
//
//	mine, and not meant for me         ask the app for it back (Events.Revoke), and when it let go
//	                                   (Seat.Release) write the last progress, then "owned by nobody"
//	meant for me, and nobody's         claim it
//	meant for me, the owner is dead    claim it
//	meant for me, the owner is alive   wait: it sees the same and will give it up
//
// To claim is to write the owner entry with an epoch one higher, and then to write the progress
// back under that epoch. The second step is what shuts out the last owner: its commits are over
// a revision that is no more. Only then is the seat told (Events.Assigned). So every commit that
// is accepted is known to the next owner, and none is accepted after it began. Epochs grow with every
// claim and never repeat, whatever fails on the way.
//
// A consumer that leaves says so first, gives up its partitions one by one, and removes its record
// last, for a seat without a record counts as dead.
//
// # Who is dead
//
// Nobody compares clocks. A member is dead for an observer when its heartbeat did not change for
// its whole TTL by the observer's own clock, and reading the entry, past the watch that may
// be late, confirms that. An observer that was itself stopped, or whose watch began anew, counts
// from the beginning. A member, for its part, counts from the moment it sent the last heartbeat that
// is known to have arrived, which is earlier than anybody can have seen it, and lets go of everything
// after four fifths of the TTL (Events.Lost). So it stops before others begin, without a message
// getting through. A process that was stopped notices when it wakes: Seat.Valid, to be asked before
// each delivery, looks at the clock. (Neither helps when the whole machine sleeps, for then the
// monotonic clock may stand still. The epochs hold even then: nothing can be committed, and the app's
// own writes can be fenced with them.)
//
// Two things end an ownership sooner: a consumer that comes with the same instance replaces its
// predecessor and takes over at once; and a seat whose record is not in the ledger under the incarnation
// that its owner entries name is gone for certain, for an incarnation never returns.
//
// # In the code
//
// machine (machine.go, op.go, hold.go) is all of this without I/O, goroutines or a clock; hub.go
// makes it live. The tests drive the same machine through every order of events they can reach.
package group

import (
	"iter"
	"strconv"
)

// Part is one partition of a topic.
type Part struct {
	Topic string
	ID    int32
}

func (p Part) String() string { return p.Topic + "/" + strconv.Itoa(int(p.ID)) }

// Layout is how a topic is divided: one generation after each change of its number of
// partitions, the current one last. A partition belongs to one generation for good.
type Layout struct{ Generations []Generation }

// Generation is Count partitions, numbered from First.
type Generation struct{ First, Count int32 }

// parts are all partitions of a topic, oldest generation first.
func (l Layout) parts(topic string) iter.Seq[Part] {
	return func(yield func(Part) bool) {
		for _, g := range l.Generations {
			for i := range g.Count {
				if !yield(Part{Topic: topic, ID: g.First + i}) {
					return
				}
			}
		}
	}
}

// Claim is a partition that a seat came to own.
type Claim struct {
	Part
	// Epoch is the fencing token: greater than that of every earlier owner.
	Epoch uint64
	// Progress is what the last owner committed; nil when nobody ever did.
	Progress []byte
}

// View is a group as a seat sees it.
type View struct {
	Generation uint64 // grows with every change
	Members    int    // seats that take partitions of any of this seat's topics
	Index      int    // of this seat among them, in the order they joined, from 0
}

// Events are told to a seat, one at a time and in order, by one goroutine of its hub, beginning
// after Join returned. They must not block, for no seat of the hub is told anything meanwhile. Within
// them Release, Drained, Done, SetLayout and Valid may be called; Leave would wait for what cannot come.
type Events interface {
	// Assigned gives partitions to the seat.
	Assigned(claims []Claim)
	// Revoke asks for partitions back. For each, Seat.Release is to be called when nothing of it
	// is at the app any more and its last progress is known. The partition stays the seat's until then.
	Revoke(parts []Part, reason string)
	// Lost takes partitions away at once: another may own them by now. Nothing can be committed
	// any more. It may cross a Release, and then be of a partition that was just released.
	Lost(parts []Part, reason string)
	// Changed tells of the group's members.
	Changed(v View)
	// Doubt is set while a heartbeat is late: what is delivered now may have to be delivered again.
	Doubt(on bool)
	// Command hands over what an administrator asks of a partition the seat owns. It is answered by
	// Seat.Done.
	Command(p Part, c Command)
}

// Command is what an administrator asks of the owner of a partition. Body is the engine's.
type Command struct {
	Revision uint64 // of the entry, for Done
	Body     []byte
}

// Replaced is the reason of Ender.Ended when another consumer took the seat.
const Replaced = "another consumer came with the same instance id"
