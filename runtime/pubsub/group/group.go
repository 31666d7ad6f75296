// Package group decides who owns which partition, for brokers that have no consumer groups of
// their own. Its members share nothing but a block.Ledger.
package group

import "strconv"

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

// Events are told to a seat, one at a time and in order. They must not block, and must not call
// the seat from within, save Release.
type Events interface {
	// Assigned gives partitions to the seat.
	Assigned(claims []Claim)
	// Revoke asks for partitions back. For each, Seat.Release is to be called when nothing of it
	// is at the app any more and its last progress is known. The partition stays the seat's until then.
	Revoke(parts []Part, reason string)
	// Lost takes partitions away at once: another may own them by now. Nothing can be committed
	// any more.
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
