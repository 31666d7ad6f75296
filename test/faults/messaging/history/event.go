// Package history judges what was seen of messaging while things broke.
//
// A history is a list of events that publishers, apps, their sink and whoever broke things wrote
// down: each its own file, one line per event, all by one clock. Check holds it against the
// invariants I1 to I14 of docs/verification.md and gives a verdict for each, with the smallest
// witness of a violation. It knows no broker and no API: what the events do not tell is not
// judged, and a verdict says how much was.
//
// Times of different processes are compared only in directions that a late stamp cannot turn
// around: what a process does is stamped before it does it, what it sees after it saw it. The sink
// is one file that all append to, and its order is the order of effects.
//
// Start at Event, then Check.
package history

import (
	"fmt"
	"strings"
	"time"
)

// Kind is what an event tells.
type Kind string

// The kinds. "Stamped before" and "after" are about the act itself.
const (
	// Publishing: a message is sent: ID, Key, Seq. Stamped before.
	Publishing Kind = "publishing"
	// Published: a publish was answered. Outcome, ID, Key, Seq; Part and Pos if the answer has them,
	// Stream where later ones depend on earlier ones. From is when it was sent. Stamped after.
	Published Kind = "published"
	// ResumeKey: a publisher lets a key go on after a failure, on Stream. Stamped before.
	ResumeKey Kind = "resume_key"

	// Opened: a consumer's stream was opened, or its app began to listen; what an earlier one had
	// is over. Stamped after.
	Opened Kind = "opened"
	// Delivered: a message reached the app. Stamped after.
	Delivered Kind = "delivered"
	// Effect: a message took effect at the sink. Fenced: a store took it by its epoch, between From and T.
	Effect Kind = "effect"
	// Acked: the app is done with a message. Stamped before.
	Acked Kind = "acked"
	// Nacked: the app refuses a message, with Remedy. Stamped before.
	Nacked Kind = "nacked"
	// Assigned: the app came to own Part under Epoch, from position Next. Stamped after.
	Assigned Kind = "assigned"
	// Revoking: the app is to let go of Part. Stamped after.
	Revoking Kind = "revoking"
	// RevokeDone: the app lets go of Part. Stamped before.
	RevokeDone Kind = "revoke_done"
	// Lost: the app was told that it lost Part. Stamped after.
	Lost Kind = "lost"
	// Credit: the app allows N further messages. Stamped before.
	Credit Kind = "credit"
	// Status: the owner of Part was told Committed. Stamped after.
	Status Kind = "status"
	// Parked: a message was found among those set aside. Stamped after.
	Parked Kind = "parked"
	// Unparked: the messages of Key are let go on. Stamped before.
	Unparked Kind = "unparked"
	// DeadLettered: a message arrived on the dead-letter topic. Stamped after.
	DeadLettered Kind = "dead_lettered"
	// Stored: in the end a store that takes writes by epoch holds this message as the newest of Key.
	Stored Kind = "stored"
	// Seek: Group is moved to another position, by an administrator or a consumer. Stamped before.
	Seek Kind = "seek"
	// Resized: Topic gets another number of partitions, N. Stamped before.
	Resized Kind = "resized"

	// Fault: something was broken from T to Until. Victims are the processes of apps that it hit;
	// none means all. What names it. Graceful tells that it was an orderly leave; Crash that the
	// victims' partitions have to find another owner; Join that a member came.
	Fault Kind = "fault"
	// Drained: everything was given time to be handled and nothing is under way any more. Without
	// it nothing is said to be lost.
	Drained Kind = "drained"
)

// Outcome is how a publish ended.
type Outcome string

// The outcomes.
const (
	OK        Outcome = "ok"
	Failed    Outcome = "failed"
	Preceding Outcome = "preceding" // refused because an earlier one of its key failed
	Unknown   Outcome = "unknown"   // it may have been accepted
)

// Remedy is what an app wants done with a message that it refuses.
type Remedy string

// The remedies.
const (
	Retry      Remedy = "retry"
	DeadLetter Remedy = "dead_letter"
	Park       Remedy = "park"
	Drop       Remedy = "drop"
)

// NoPart is the partition of a message whose partition is not told.
const NoPart int32 = -1

// Event is one thing that happened. Which fields count depends on its Kind.
type Event struct {
	T    time.Duration `json:"t"` // of the system's monotonic clock
	Kind Kind          `json:"kind"`
	// Proc is the process that wrote it down; a name is used for one process only.
	Proc string `json:"proc,omitempty"`
	// Member is the consumer's name in its group, if it is told. A member outlives an app that
	// is started again beside the same sidecar.
	Member string `json:"member,omitempty"`

	Group string `json:"group,omitempty"`
	Topic string `json:"topic,omitempty"`
	Part  int32  `json:"part"`
	Pos   uint64 `json:"pos,omitempty"`
	Epoch uint64 `json:"epoch,omitempty"`

	ID      string `json:"id,omitempty"`
	Key     string `json:"key,omitempty"`
	Seq     int    `json:"seq,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	Gap     bool   `json:"gap,omitempty"` // the delivery says that an earlier one of the key is missing

	// Queued: the app may have had it for a while before it wrote that down, so what was told
	// meanwhile says nothing about it.
	Queued bool `json:"queued,omitempty"`

	From      time.Duration `json:"from,omitempty"`
	Outcome   Outcome       `json:"outcome,omitempty"`
	Stream    string        `json:"stream,omitempty"`
	Remedy    Remedy        `json:"remedy,omitempty"`
	Next      uint64        `json:"next,omitempty"`
	Committed uint64        `json:"committed,omitempty"`
	N         int           `json:"n,omitempty"`
	// Fenced: an Effect that a store took by its epoch; a Nacked because a store refused the epoch.
	Fenced bool `json:"fenced,omitempty"`

	Until    time.Duration `json:"until,omitempty"`
	What     string        `json:"what,omitempty"`
	Victims  []string      `json:"victims,omitempty"`
	Crash    bool          `json:"crash,omitempty"`
	Graceful bool          `json:"graceful,omitempty"`
	Join     bool          `json:"join,omitempty"`

	// Order is the place of an Effect in the sink, from 1. Load sets it; 0 means by time.
	Order int `json:"order,omitempty"`
}

// Setup is what was promised while a history was made. 0 means not told, and then not judged.
type Setup struct {
	Name   string `json:"name"`
	Seed   int64  `json:"seed"`
	Driver string `json:"driver"`
	API    string `json:"api"`
	// Groups are those that consume everything published from the start on.
	Groups []string `json:"groups"`
	// Exact tells that all consumers see what concerns their partitions (an assignment, a revocation, a
	// loss), so that a message that comes again for no visible reason is wrong.
	Exact bool `json:"exact,omitempty"`
	// DeadLetters tells that the dead-letter topic is consumed: what is sent there has to arrive.
	DeadLetters bool          `json:"dead_letters,omitempty"`
	TTL         time.Duration `json:"ttl,omitempty"`       // of members' sessions
	Handler     time.Duration `json:"handler,omitempty"`   // longest time that an app takes for a message
	Partition   bool          `json:"partition,omitempty"` // whole partitions are kept in order, not only keys
	Limit       int           `json:"limit,omitempty"`     // messages unresolved at one app
	Attempts    int           `json:"attempts,omitempty"`  // deliveries after which a message is set aside
	Window      int           `json:"window,omitempty"`    // messages of a partition delivered past an unresolved one
	// CommitWindow is how long before a fault an acknowledgement may have been made without being
	// durable: the interval of commits and an allowance for a busy machine.
	CommitWindow time.Duration `json:"commit_window,omitempty"`
	// Allowance is what a busy machine may add to a bound on time.
	Allowance time.Duration `json:"allowance,omitempty"`
}

// History is what was seen.
type History struct {
	Setup  Setup
	Events []Event
}

// String shows the event to a person; times are shown by Check.
func (e Event) String() string {
	var b strings.Builder
	w := func(format string, args ...any) {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, format, args...)
	}
	w("%s", e.Kind)
	if e.Outcome != "" {
		w("%s", e.Outcome)
	}
	if e.Remedy != "" {
		w("%s", e.Remedy)
	}
	if e.What != "" {
		w("%q", e.What)
	}
	if e.Key != "" {
		w("%s/%d", e.Key, e.Seq)
	}
	if e.Topic != "" && e.Part != NoPart {
		w("at %s/%d", e.Topic, e.Part)
		if e.Pos > 0 {
			w("position %d", e.Pos)
		}
	}
	if e.Epoch > 0 {
		w("epoch %d", e.Epoch)
	}
	if e.Attempt > 1 {
		w("attempt %d", e.Attempt)
	}
	if e.Kind == Assigned {
		w("next %d", e.Next)
	}
	if e.Kind == Status {
		w("committed %d", e.Committed)
	}
	if e.N != 0 {
		w("n %d", e.N)
	}
	if e.Order > 0 {
		w("(no. %d of the sink)", e.Order)
	}
	if e.Group != "" {
		w("group %s", e.Group)
	}
	if len(e.Victims) > 0 {
		w("on %s", strings.Join(e.Victims, " "))
	}
	if e.Proc != "" {
		w("by %s", e.Proc)
		if e.Member != "" {
			w("(member %s)", e.Member)
		}
	}
	return b.String()
}
