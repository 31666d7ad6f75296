package block

import (
	"context"
	"strings"
	"time"
)

// Log is offered by brokers whose topics are logs divided into partitions and read by position.
// The house keeps groups, order, acknowledgements and retries itself (runtime/pubsub); a broker
// only appends, reads, and keeps the small records of its Ledger.
//
// A partition is a number of a topic, from 0; it exists as soon as somebody names it. A negative
// one is fault.Invalid. Positions are numbers from 1 that grow with every record of a partition.
// They need not be dense: a position without a record means nothing. A record, once accepted,
// keeps its position and content until the broker's limits remove it, oldest first, or its TTL
// does. Content is Topic, Key, Data and Metadata, any bytes in them; ID and TTL may be read as zero.
type Log interface {
	Component
	Ledger
	// LogFeatures tell what the broker can do. They are known as soon as it is open, for they
	// are what its configuration promises; a server that is too old for one is an error of Ping
	// and of the first use.
	LogFeatures() LogFeatures
	// Closed is closed by Close: whoever works for the broker in the background ends then.
	Closed() <-chan struct{}
	// Append adds records, each to the topic and partition it names, and returns one result per
	// record; a context that has ended is the error of all.
	// Records of one partition are accepted in the order given; one that is refused does not
	// keep back the others. A record with an ID that was accepted within the last
	// LogFeatures.Dedup on the same topic and partition, or earlier in the same call, is not added
	// again: its result is a duplicate with the position of the first, if that is known. One over
	// LogFeatures.MaxRecord is fault.TooLarge.
	//
	// An error of a record that may have been accepted carries fault.SentMaybe.
	Append(ctx context.Context, recs []LogRecord) []AppendResult
	// OpenReader starts reading a partition at the first record whose position is at least from.
	// Where the oldest records are gone it starts at the oldest kept. It does no I/O that
	// outlives ctx; the reader does.
	OpenReader(ctx context.Context, topic string, partition int32, from uint64, opts ReadOptions) (LogReader, error)
	// Bounds tells, for each of the partitions of a topic and in their order, which positions it
	// holds.
	Bounds(ctx context.Context, topic string, partitions []int32) ([]LogBounds, error)
	// PositionAt is the position of the first record accepted at t or later, or LogBounds.Next
	// when there is none.
	PositionAt(ctx context.Context, topic string, partition int32, t time.Time) (uint64, error)
}

// LogReader reads one partition. It is used by one goroutine, save Close.
type LogReader interface {
	// Next returns records in the order of positions: at least one, at most max, and as many of
	// them as fit into bytes of Data (a single one that is larger comes alone). It waits for the first one
	// until ctx ends and does not wait for more. A max or bytes below 1 counts as 1. Lost connections
	// are repaired inside, without a gap or a repetition. After ctx's error the reader goes on where
	// it was; any other means that it cannot go on. After Close, the reader's or the component's, that
	// is fault.Unavailable.
	//
	// The slice is valid until the next call; the records belong to the caller.
	Next(ctx context.Context, max, bytes int) ([]LogRecord, error)
	// Close ends the reader and a Next that waits. It is safe twice.
	Close()
}

// ReadOptions bound what a reader fetches ahead.
type ReadOptions struct {
	Messages int // 0 means 256
	Bytes    int // of Data; 0 means 4 MiB
}

// LogRecord is a message in its place.
type LogRecord struct {
	Message
	Partition int32
	// Position and Time are the broker's: they are not read by Append. Time is when the record was
	// accepted, or became visible if it was delayed; it does not go back from one record of a
	// partition to the next. Message.TTL counts from it.
	Position uint64
	Time     time.Time
	// DeliverAt asks that the record is not seen before; it takes its position then, in the order
	// of these times. A time that has passed asks for nothing. Only with LogFeatures.Delay.
	DeliverAt time.Time
}

// AppendResult is what became of a record.
type AppendResult struct {
	Position  uint64 // 0 when it is not known: a delayed record has none yet, and one due about now may have none
	Duplicate bool
	Err       error
}

// LogBounds are the positions a partition holds: First is that of the oldest record kept, Next is
// greater than that of the newest. Both are equal when it holds none. A record that is accepted
// later has a position of Next or more, and Next does not go back when records are removed.
type LogBounds struct{ First, Next uint64 }

// LogFeatures are a broker's abilities as a log.
type LogFeatures struct {
	// Partitions is how many a topic gets that does not exist yet.
	Partitions int
	// Dedup is how long IDs are remembered; 0 means not at all.
	Dedup time.Duration
	// Delay: DeliverAt is honoured.
	Delay bool
	// TTL: Message.TTL is honoured by the broker.
	TTL bool
	// Atomic: the broker is a LogAtomic.
	Atomic bool
	// MaxRecord bounds the Data of a record in bytes; 0 means that the broker has no fixed bound.
	MaxRecord int
	// MaxEntry bounds the value of a ledger entry in bytes.
	MaxEntry int
	// SessionTTL is after what silence a member of a group counts as dead.
	SessionTTL time.Duration
}

// LogAtomic is offered by logs that can append several records as one.
type LogAtomic interface {
	// AppendAtomic adds all records or none. On success results are in the order of recs. Records
	// with DeliverAt are refused as fault.Unsupported, and those of several topics may be. With an ID
	// that is known none is added and the error is fault.Exists: a batch whose IDs are its own and
	// which is sent again was added the first time.
	AppendAtomic(ctx context.Context, recs []LogRecord) ([]AppendResult, error)
}

// LogKeeper is offered by logs that keep a record until every group has consumed it.
type LogKeeper interface {
	// Consumed says that a group is done with the records of a partition below upTo. The last word
	// counts: a group that goes back says so with a lower one. A group counts for all partitions of
	// the topic from the first time it is named, for which 0 will do.
	Consumed(topic, group string, partition int32, upTo uint64)
}

// Ledger keeps small records that are changed by comparing: who belongs to a group, who owns a
// partition, how far a group is. Keys are made by LedgerKey and are not empty.
//
// It is what exclusiveness rests on: an accepted write is seen by every later Get, whichever client
// asks, and of two writes over one revision only one is accepted.
type Ledger interface {
	// LedgerGet reads one entry; one that does not exist has revision 0.
	LedgerGet(ctx context.Context, key string) (LedgerEntry, error)
	// LedgerPut makes writes, independent of each other, and returns one result per write. Writes of
	// one key in one call happen in their order, each compared with what the one before left.
	LedgerPut(ctx context.Context, writes []LedgerWrite) []LedgerResult
	// LedgerWatch tells of the entries whose keys begin with prefix, which LedgerPrefix makes, until
	// ctx ends, then returns ctx's error. The first call of tell, and the first after changes may have
	// been missed (a lost connection), has reset set and holds all entries there are (none is possible);
	// later ones hold those that changed, in order, and those removed, with Removed set. Of several
	// changes of a key that come close together only the last may be told. tell is called by one
	// goroutine and must not block; the entries belong to it.
	LedgerWatch(ctx context.Context, prefix string, tell func(entries []LedgerEntry, reset bool)) error
}

// LedgerEntry is one record of a ledger.
type LedgerEntry struct {
	Key      string
	Value    []byte
	Revision uint64 // grows with every change of the key, over a removal too; 0: there is no such entry
	Removed  bool   // in a watch: the entry is gone; Revision is that of its removal or 0
}

// LedgerWrite changes an entry whose revision is the one given. Revision 0 means that there must
// be none. Remove takes the entry away; without a revision it is fault.Invalid.
type LedgerWrite struct {
	Key      string
	Value    []byte
	Revision uint64
	Remove   bool
}

// LedgerResult is what became of a write: the entry's new revision (0 after a removal), or an
// error, which is fault.Conflict when the entry has another revision and fault.TooLarge over
// LogFeatures.MaxEntry. A write that may have been accepted carries fault.SentMaybe.
type LedgerResult struct {
	Revision uint64
	Err      error
}

var ledgerEscape = strings.NewReplacer("%", "%25", "|", "%7C")
var ledgerUnescape = strings.NewReplacer("%7C", "|", "%25", "%")

// LedgerKey joins parts to a key. Parts may hold any text.
func LedgerKey(parts ...string) string {
	out := make([]string, len(parts))
	for i, p := range parts {
		out[i] = ledgerEscape.Replace(p)
	}
	return strings.Join(out, "||")
}

// LedgerPrefix is what the keys of all entries begin with whose first parts are these and which
// have at least one more. It needs a part.
func LedgerPrefix(parts ...string) string { return LedgerKey(parts...) + "||" }

// LedgerParts is the inverse of LedgerKey.
func LedgerParts(key string) []string {
	parts := strings.Split(key, "||")
	for i, p := range parts {
		parts[i] = ledgerUnescape.Replace(p)
	}
	return parts
}
