package engine

import (
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

// Part is one partition of a topic.
type Part = group.Part

// Words of the lanes, see there.
type (
	// Ordering is what a consumer, or a publisher, keeps in order.
	Ordering = lane.Ordering
	// Remedy is what becomes of a message that the app could not handle.
	Remedy = lane.Remedy
	// Message is one delivery.
	Message = lane.Message
)

const (
	OrderKey       = lane.OrderKey
	OrderPartition = lane.OrderPartition
	OrderNone      = lane.OrderNone
	OrderLoose     = lane.OrderLoose

	RemedyRetry      = lane.RemedyRetry
	RemedyDeadLetter = lane.RemedyDeadLetter
	RemedyPark       = lane.RemedyPark
	RemedyDrop       = lane.RemedyDrop
)

// Retry says how often a message is delivered, how long the pauses are and what comes then.
type Retry struct {
	First    time.Duration // pause after the first failure, doubled with each; 0 means 500 ms
	Max      time.Duration // longest pause; 0 means 1 min. Pauses vary by a fifth at random.
	Attempts int           // deliveries before Then; 0 means 10, negative for ever
	Then     Remedy        // RemedyRetry means: for ever
	// DeadLetterTopic takes what RemedyDeadLetter sets aside, in the same component. Empty means
	// the topic's name with ".dead-letter" added.
	DeadLetterTopic string
}

// Place is where a group starts that has no progress, or where a reset moves it to.
type Place struct {
	Kind     PlaceKind
	Time     time.Time // of AtTime
	Position uint64    // of AtPosition
}

// PlaceKind is a kind of Place.
type PlaceKind uint8

// The places.
const (
	Earliest   PlaceKind = iota // the oldest record kept
	Latest                      // behind the newest
	AtTime                      // the first record accepted at a time or later
	AtPosition                  // a position; behind the newest record, what comes before it is passed by
)

// Limits bound what a consumer holds. 0 means the default.
type Limits struct {
	PartitionMessages int // unresolved at the app, of one partition; default 256
	PartitionBytes    int // default 4 MiB
	Messages          int // unresolved at the app, of all; default 1024
	Bytes             int // default 16 MiB
	Keys              int // keys at the app at once, of one partition; default PartitionMessages
	Concurrency       int // messages at the app at once, of all; default Messages. Can be changed by Control.
	Window            int // messages from the first unresolved one to the last resolved one, of one partition; default 10 000
}

// ConsumeOptions are what a member of a group wants.
type ConsumeOptions struct {
	Topics []string
	Group  string
	// Instance names the member for as long as it is meant to keep its partitions, over restarts
	// too: the name of a pod. A second one with the same name takes the partitions of the first at
	// once. Empty means a random one.
	Instance string
	Ordering Ordering
	Start    Place
	// Manual takes these partitions instead of sharing all of Topics with the group.
	Manual []Part
	Limits Limits
	Retry  Retry
	// Credited: nothing is delivered but what Credit allows, within Limits.
	Credited bool
	// HandlerTimeout is how long a message may stay unresolved without Extend; then it counts as
	// failed. 0 means 5 minutes, negative no limit.
	HandlerTimeout time.Duration
	// RevokeTimeout is how long the app may take to let go of a partition. 0 means 10 s.
	RevokeTimeout time.Duration
	// LeaveTimeout takes the place of RevokeTimeout when the consumer itself ends, if it is longer.
	LeaveTimeout time.Duration
	// AutoRevoke lets go of a partition as soon as nothing of it is at the app, without RevokeDone.
	AutoRevoke bool
	// StatusEvery is how often Status is told; 0 means not at all.
	StatusEvery time.Duration
}

// Event is what a consumer tells its app. Events of one partition are in order.
type Event interface{ event() }

// Assigned gives partitions to the app.
type Assigned struct {
	Assignment uint64 // grows with every Assigned and Revoking of the consumer
	Parts      []AssignedPart
	Group      group.View
}

// AssignedPart is a partition the app came to own.
type AssignedPart struct {
	Part
	Epoch uint64
	Next  uint64 // position of the first unresolved message, or where it will be
	End   uint64 // greater than the position of the newest message
}

// Revoking asks for partitions back: nothing new of them is delivered. The app is to resolve
// or give up what it has, then to call RevokeDone; after Deadline it has lost them.
type Revoking struct {
	Assignment uint64
	Parts      []Part
	Deadline   time.Time
	Reason     string
}

// Lost takes partitions away. What the app says of their messages counts no more.
type Lost struct {
	Parts  []Part
	Reason string
}

// Deliver hands over messages of one partition. The app owns them.
type Deliver struct {
	Part
	Epoch    uint64
	Messages []Message
}

// GroupChanged tells of the group's members.
type GroupChanged struct{ group.View }

// Status tells how the consumer's partitions are.
type Status struct{ Parts []PartStatus }

// PartStatus is how a partition is.
type PartStatus struct {
	Part
	Epoch      uint64
	Committed  uint64 // position of the first message that is not resolved durably
	End        uint64
	Lag        uint64        // messages between, as far as positions tell; an upper bound where they are not dense
	InFlight   int           // at the app
	Oldest     time.Duration // age of the oldest message at the app, since it was delivered
	ParkedKeys int
	Paused     bool
	Blocked    bool // the window is full: an unresolved message holds back the partition
}

// Fault tells of something that went wrong and does not end the consumer.
type Fault struct{ Err error }

func (Assigned) event()     {}
func (Revoking) event()     {}
func (Lost) event()         {}
func (Deliver) event()      {}
func (GroupChanged) event() {}
func (Status) event()       {}
func (Fault) event()        {}

// Range is positions From to To, both included.
type Range struct{ From, To uint64 }

// Refusal is the app's word on a message it could not handle.
type Refusal struct {
	Part
	Epoch    uint64
	Position uint64
	Remedy   Remedy
	Delay    time.Duration // of RemedyRetry; 0 means as Retry says
	Tried    int           // how many times more than once the app was given it in this delivery
	Reason   string
}

// Control changes a running consumer. Parts empty means all it owns.
type Control struct {
	Parts       []Part
	Pause       bool
	Resume      bool
	Seek        *Place
	Concurrency int // new Limits.Concurrency; 0 means unchanged
}

// Entry is a message to publish.
type Entry struct {
	block.Message
	// Partition is where it goes; nil: where its key belongs, or anywhere without one.
	Partition *int32
	DeliverAt time.Time
}

// Receipt is what became of an Entry.
type Receipt struct {
	Partition int32
	Position  uint64
	Duplicate bool
	Err       error // fault.PrecedingFailed: an earlier one of the key failed
}

// PublishOptions are how a publisher works.
type PublishOptions struct {
	Topic string
	// Producer makes publishing idempotent: a message of the same producer and sequence number is
	// taken once, over reconnections. Empty means none.
	Producer string
	// Ordering: OrderKey and OrderPartition hold back what follows a failed message, of its key or
	// partition, until ResumeKey.
	Ordering Ordering
}

// Capability is something that not every broker can do. The numbers are those of the native API.
type Capability uint8

// The capabilities.
const (
	Deduplication Capability = 1 + iota // Batch.Seq with PublishOptions.Producer, and Message.ID, are honoured
	Delay                               // Entry.DeliverAt is honoured
	TTL                                 // Message.TTL is honoured by the broker
	Atomic                              // Batch.Atomic is possible
	Seek                                // Control.Seek and a reset of a group
	Manual                              // ConsumeOptions.Manual
	Epochs                              // every owner of a partition has a greater epoch than all before
	Park                                // RemedyPark
	Resize                              // a topic can get another number of partitions
)

// TopicSize is how many partitions a topic has, those of its current generation.
type TopicSize struct {
	Topic      string
	Partitions int
}

// ConsumeInfo is what a consumer knows of itself as soon as it is open.
type ConsumeInfo struct {
	Member         string // ConsumeOptions.Instance, or the name that was made up
	Group          string
	Capabilities   []Capability
	SessionTTL     time.Duration // 0: the broker does not tell
	Limits         Limits        // those that hold
	HandlerTimeout time.Duration // 0: for ever
	RevokeTimeout  time.Duration
	Topics         []TopicSize
}

// PublishInfo is what a publisher knows of its topic as soon as it is open.
type PublishInfo struct {
	Capabilities []Capability
	Partitions   int
	Hash         string        // how keys are mapped to partitions
	Dedup        time.Duration // how long producers' numbers are remembered; 0: not at all
	MaxMessage   int           // of Data, in bytes; 0: no bound is known
}

// Batch is what a publisher is handed at once. Its receipts are in the order of Entries.
type Batch struct {
	Entries []Entry
	Atomic  bool // all or none
	// Seq is the sequence number of the first entry, each further one has the next; 0 without a
	// producer. An entry with an ID of its own is known by that instead.
	Seq uint64
}

// TopicInfo is how a topic is divided and what it holds.
type TopicInfo struct {
	Layout       group.Layout
	Partitions   []PartBounds
	Capabilities []Capability
	Hash         string
}

// PartBounds is what a partition holds, as block.LogBounds.
type PartBounds struct {
	ID int32
	block.LogBounds
}

// GroupInfo is who is in a group, and how far it is with a topic.
type GroupInfo struct {
	Members    []MemberInfo
	Partitions []GroupPart
}

// MemberInfo is a member of a group.
type MemberInfo struct {
	Name    string
	Leaving bool
}

// GroupPart is how far a group is with a partition.
type GroupPart struct {
	ID         int32
	Owner      string // empty: none
	Epoch      uint64
	Committed  uint64
	End        uint64
	Lag        uint64
	ParkedKeys int
}

// Parked is the messages of a key that a group has set aside.
type Parked struct {
	ID       int32 // of the partition
	Key      string
	Messages int
	First    uint64 // position of the first of them
	Since    time.Time
	Reason   string // what the app said of the first
}

// Reasons of faults that a consumer or a publisher is answered with.
const (
	// NotAssigned: the consumer does not own the partition and did not lose it either.
	NotAssigned fault.Reason = "not_assigned"
	// NotDelivered: the message is not at the app under this epoch.
	NotDelivered fault.Reason = "not_delivered"
	// StaleEpoch: the partition was lost, or revoked, since the epoch given.
	StaleEpoch fault.Reason = "stale_epoch"
	// NoRevoking: there is no such assignment to answer.
	NoRevoking fault.Reason = "no_revoking"
	// NoSuchPartition: the topic has none of that number.
	NoSuchPartition fault.Reason = "no_such_partition"
	// NotParked: nothing is parked under the key.
	NotParked fault.Reason = "not_parked"
	// InstanceReplaced: another consumer came with the same instance name.
	InstanceReplaced fault.Reason = "instance_replaced"
	// BadPartitions: the broker cannot have that number of partitions.
	BadPartitions fault.Reason = "bad_partitions"
)
