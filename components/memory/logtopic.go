package memory

import (
	"bytes"
	"cmp"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

const (
	// idsKept and idsMax bound how long, and how many of a topic, IDs are remembered.
	idsKept = 2 * time.Minute
	idsMax  = 1 << 16
)

// logs are the topics of a hub.
type logs struct {
	limits *PubSubConfig
	start  time.Time // what is due is counted from here, by a clock that nobody sets

	mu      sync.RWMutex
	topics  map[string]*logTopic // guarded by mu
	clients int                  // guarded by mu; open components
	resting bool                 // guarded by mu: there is none, and no timer runs
}

func newLogs(limits *PubSubConfig) *logs {
	return &logs{limits: limits, start: time.Now(), topics: map[string]*logTopic{}}
}

// known is a topic, or nil when nobody has used it.
func (l *logs) known(name string) *logTopic {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.topics[name]
}

// topic is a topic, new or not.
func (l *logs) topic(name string) *logTopic {
	if t := l.known(name); t != nil {
		return t
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.topics[name]
	if t == nil {
		t = &logTopic{logs: l, name: name, parts: map[int32]*logPart{}, groups: map[string]map[int32]uint64{}, ids: map[logID]logPlace{}}
		l.topics[name] = t
	}
	return t
}

// logTopic is the partitions of a topic and what they have in common: limits, the groups that
// read them, and the IDs seen. Everything is guarded by mu.
//
// All records that have a position stand in one list, oldest first. Those from edge on are the
// last History ones and stay without a reason; of those before it only such are there as a group
// has not consumed. So what is dropped is always the oldest of its partition.
type logTopic struct {
	logs *logs
	name string

	mu     sync.Mutex
	parts  map[int32]*logPart
	groups map[string]map[int32]uint64 // what Consumed said last

	oldest, newest *logEntry
	edge           *logEntry // nil when no record is history
	history        int       // records from edge on
	count          int       // records, also those that are delayed
	delayed        int
	bytes          int64
	order          uint64 // of the last record

	ids    map[logID]logPlace
	idsOld []logID // in the order of their places' times

	due   dueHeap
	timer *time.Timer
	armed time.Duration // when timer fires; 0: it does not run
}

// logPart is one partition, guarded by its topic's mu.
type logPart struct {
	id      int32
	slots   []logSlot // in the order of positions; the first one holds a record
	gaps    int       // slots without a record
	next    uint64    // position of the next record
	last    int64     // time of the newest record
	floor   uint64    // every group has consumed what is below
	waiting []*logReader
}

// logSlot is where a record is, or was until its time to live ended.
type logSlot struct {
	position uint64
	time     int64 // of the record, ns since 1970
	entry    *logEntry
}

// logEntry is a record. What it carries never changes, so readers copy it without a lock; the rest
// is guarded by its topic's mu.
type logEntry struct {
	key  string
	data []byte
	meta map[string]string
	id   string
	ttl  time.Duration
	part *logPart

	position uint64 // 0: it is delayed
	time     int64  // when it got the position, ns since 1970
	order    uint64 // in which records of the topic were accepted or, if delayed, became visible
	size     int64

	due      time.Duration // when it becomes visible, or ends; 0: never
	dueIndex int           // in due; -1: it is not there

	older, newer *logEntry
}

type logID struct {
	id        string
	partition int32
}

// logPlace is where the record of an ID is.
type logPlace struct {
	position uint64 // 0 while it is delayed
	seen     time.Duration
}

func (c *PubSubConfig) maxRecord() int { return int(min(c.MaxBytes.Int64(), math.MaxInt)) }

// prepare checks a record and copies what it carries.
func (t *logTopic) prepare(op fault.Op, r *block.LogRecord) (*logEntry, error) {
	if r.Partition < 0 {
		return nil, badPartition(op, r.Partition)
	}
	if limit := t.logs.limits.maxRecord(); len(r.Data) > limit {
		return nil, fault.New(op, fault.TooLarge, "topic %q (in memory): a message of %d bytes, at most %d are kept; raise maxBytes", t.name, len(r.Data), limit)
	}
	e := &logEntry{key: r.Key, data: bytes.Clone(r.Data), meta: maps.Clone(r.Metadata), id: r.ID, ttl: r.TTL, dueIndex: -1}
	e.size = int64(len(e.data)+len(e.key)+len(e.id)) + 256 // entry, slot and room between, roughly
	for k, v := range e.meta {
		e.size += int64(len(k)+len(v)) + 32
	}
	return e, nil
}

func (t *logTopic) append(op fault.Op, recs []block.LogRecord, results []block.AppendResult) {
	var few [16]*logEntry
	entries := few[:0]
	for i := range recs {
		e, err := t.prepare(op, &recs[i])
		results[i].Err = err
		entries = append(entries, e)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.settle(now)
	for i, e := range entries {
		if e != nil {
			results[i] = t.add(op, now, e, &recs[i])
		}
	}
	t.arm()
}

// add takes one record in.
func (t *logTopic) add(op fault.Op, now time.Time, e *logEntry, r *block.LogRecord) block.AppendResult {
	if place, known := t.seen(now, logID{r.ID, r.Partition}); known {
		return block.AppendResult{Position: place.position, Duplicate: true}
	}
	if !t.room(1, e.size) {
		return block.AppendResult{Err: t.full(op)}
	}
	e.part = t.part(r.Partition)
	t.count++
	t.bytes += e.size
	if wait := r.DeliverAt.Sub(now); wait > 0 && !r.DeliverAt.IsZero() {
		t.order++
		e.order = t.order
		t.delayed++
		t.schedule(e, now, wait)
	} else {
		t.place(now, e)
	}
	t.remember(now, e)
	return block.AppendResult{Position: e.position}
}

// place gives a record its position.
func (t *logTopic) place(now time.Time, e *logEntry) {
	p := e.part
	p.next++
	p.last = max(p.last, now.UnixNano())
	t.order++
	e.position, e.time, e.order = p.next-1, p.last, t.order
	p.slots = append(p.slots, logSlot{e.position, e.time, e})
	if e.older = t.newest; e.older != nil {
		e.older.newer = e
	} else {
		t.oldest = e
	}
	t.newest = e
	if e.ttl > 0 {
		t.schedule(e, now, e.ttl)
	}
	for i, r := range p.waiting {
		r.waits = false
		r.poke()
		p.waiting[i] = nil
	}
	p.waiting = p.waiting[:0]
	if t.edge == nil {
		t.edge = e
	}
	// The newest stays at least until there is another: who waits for it shall see it.
	if t.history++; t.history > max(t.logs.limits.History, 1) {
		was := t.edge
		t.edge = was.newer
		t.history--
		if was.position < was.part.floor {
			t.drop(was)
		}
	}
}

// room makes room for n more records, if it can be made with such as every group has consumed.
func (t *logTopic) room(n int, size int64) bool {
	limits := t.logs.limits
	fits := func() bool {
		return t.count+n <= limits.MaxMessages && (t.bytes+size <= limits.MaxBytes.Int64() || t.count == 0 && n == 1)
	}
	for e := t.edge; !fits(); {
		if e == nil {
			return false
		}
		newer := e.newer
		if e.position < e.part.floor {
			t.drop(e)
		}
		e = newer
	}
	return true
}

// full says why there is no room. Of the groups it names the one that holds up the oldest record.
func (t *logTopic) full(op fault.Op) error {
	who := "a group"
	if e := t.oldest; e != nil {
		var names []string
		for name, upTo := range t.groups {
			if upTo[e.part.id] <= e.position {
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			who = "group \"" + slices.Min(names) + "\""
		}
	}
	late := ""
	if t.delayed > 0 {
		late = " or which are not due yet"
	}
	return fault.New(op, fault.Exhausted,
		"topic %q (in memory) keeps %d messages, %d bytes, which %s has not consumed%s; start its consumer, or raise maxMessages or maxBytes",
		t.name, t.count, t.bytes, who, late)
}

// drop forgets a record that has a position.
func (t *logTopic) drop(e *logEntry) {
	if t.edge != nil && e.order >= t.edge.order {
		t.history--
		if e == t.edge {
			t.edge = e.newer
		}
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		t.oldest = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		t.newest = e.older
	}
	e.older, e.newer = nil, nil
	t.count--
	t.bytes -= e.size
	t.unschedule(e)
	e.part.forget(e.position)
}

// forget empties the slot of a position.
func (p *logPart) forget(position uint64) {
	p.slots[p.find(position)].entry = nil
	p.gaps++
	for len(p.slots) > 0 && p.slots[0].entry == nil {
		p.slots = p.slots[1:] // append reuses or leaves the array
		p.gaps--
	}
	// A record that stays must not keep the slots of ever more that ended behind it.
	if p.gaps > 64 && p.gaps > len(p.slots)/2 {
		p.slots = slices.DeleteFunc(p.slots, func(s logSlot) bool { return s.entry == nil })
		p.gaps = 0
	}
}

// find is the index of the first slot whose position is at least this.
func (p *logPart) find(position uint64) int {
	if len(p.slots) == 0 || position <= p.slots[0].position {
		return 0
	}
	if position >= p.next {
		return len(p.slots)
	}
	// Mostly there is one slot for each position.
	if i := position - p.slots[0].position; i < uint64(len(p.slots)) && p.slots[i].position == position {
		return int(i)
	}
	i, _ := slices.BinarySearchFunc(p.slots, position, func(s logSlot, at uint64) int { return cmp.Compare(s.position, at) })
	return i
}

// part is a partition, new or not.
func (t *logTopic) part(id int32) *logPart {
	p := t.parts[id]
	if p == nil {
		p = &logPart{id: id, next: 1}
		p.floor = t.floor(id)
		t.parts[id] = p
	}
	return p
}

func (t *logTopic) partition(id int32) *logPart {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.part(id)
}

// floor is up to where every group has consumed a partition.
func (t *logTopic) floor(id int32) uint64 {
	floor := uint64(math.MaxUint64)
	for _, upTo := range t.groups {
		floor = min(floor, upTo[id])
	}
	return floor
}

func (t *logTopic) consumed(name string, id int32, upTo uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.groups[name]
	if g == nil {
		g = map[int32]uint64{}
		t.groups[name] = g
		for _, p := range t.parts {
			p.floor = 0
		}
	}
	g[id] = upTo
	p := t.part(id)
	p.floor = t.floor(id)
	for len(p.slots) > 0 {
		e := p.slots[0].entry
		if e.position >= p.floor || t.edge != nil && e.order >= t.edge.order {
			break
		}
		t.drop(e)
	}
}

// bounds of a partition; of one, or a topic, that nobody used as well.
func (t *logTopic) bounds(id int32) block.LogBounds {
	if t == nil {
		return block.LogBounds{First: 1, Next: 1}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settle(time.Now())
	p := t.parts[id]
	switch {
	case p == nil:
		return block.LogBounds{First: 1, Next: 1}
	case len(p.slots) == 0:
		return block.LogBounds{First: p.next, Next: p.next}
	}
	return block.LogBounds{First: p.slots[0].position, Next: p.next}
}

func (t *logTopic) positionAt(id int32, at time.Time) uint64 {
	if t == nil {
		return 1
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settle(time.Now())
	p := t.parts[id]
	if p == nil {
		return 1
	}
	i, _ := slices.BinarySearchFunc(p.slots, at, func(s logSlot, at time.Time) int {
		if time.Unix(0, s.time).Before(at) {
			return -1
		}
		return 1
	})
	for ; i < len(p.slots); i++ {
		if e := p.slots[i].entry; e != nil {
			return e.position
		}
	}
	return p.next
}

// seen tells whether the ID of a record is remembered.
func (t *logTopic) seen(now time.Time, id logID) (logPlace, bool) {
	if id.id == "" {
		return logPlace{}, false
	}
	for len(t.idsOld) > 0 && (len(t.idsOld) >= idsMax || t.ids[t.idsOld[0]].seen+idsKept <= t.logs.since(now)) {
		delete(t.ids, t.idsOld[0])
		t.idsOld = t.idsOld[1:]
	}
	place, known := t.ids[id]
	return place, known
}

// remember notes where the record of an ID is. Nothing is noted of an ID that is remembered.
func (t *logTopic) remember(now time.Time, e *logEntry) {
	if e.id != "" {
		id := logID{e.id, e.part.id}
		t.ids[id] = logPlace{e.position, t.logs.since(now)}
		t.idsOld = append(t.idsOld, id)
	}
}

// appendAtomic adds all records or none. Topics are locked in the order of their names, so that two
// calls do not wait for each other.
func (l *logs) appendAtomic(op fault.Op, recs []block.LogRecord) ([]block.AppendResult, error) {
	type share struct {
		topic *logTopic
		n     int
		size  int64
	}
	shares := map[string]*share{}
	entries := make([]*logEntry, len(recs))
	for i := range recs {
		r := &recs[i]
		if !r.DeliverAt.IsZero() {
			return nil, fault.New(op, fault.Unsupported, "record %d of %d is delayed: such are appended one by one only", i, len(recs))
		}
		s := shares[r.Topic]
		if s == nil {
			s = &share{topic: l.topic(r.Topic)}
			shares[r.Topic] = s
		}
		e, err := s.topic.prepare(op, r)
		if err != nil {
			return nil, err
		}
		entries[i] = e
		s.n++
		s.size += e.size
	}
	for _, name := range slices.Sorted(maps.Keys(shares)) {
		t := shares[name].topic
		t.mu.Lock()
		defer t.mu.Unlock()
	}
	now := time.Now()
	type named struct {
		topic string
		id    logID
	}
	own := map[named]struct{}{}
	for _, s := range shares {
		s.topic.settle(now)
	}
	for i := range recs {
		r := &recs[i]
		if r.ID == "" {
			continue
		}
		id := named{r.Topic, logID{r.ID, r.Partition}}
		_, twice := own[id]
		if _, known := shares[r.Topic].topic.seen(now, id.id); known || twice {
			return nil, fault.New(op, fault.Exists, "record %d of %d: its ID %q was appended before", i, len(recs), r.ID)
		}
		own[id] = struct{}{}
	}
	for _, s := range shares {
		if !s.topic.room(s.n, s.size) {
			if most := l.limits; s.n > most.MaxMessages || s.size > most.MaxBytes.Int64() && s.n > 1 {
				return nil, fault.New(op, fault.TooLarge, "%d messages of %d bytes together for topic %q (in memory), which keeps at most %d and %d bytes; raise maxMessages or maxBytes",
					s.n, s.size, s.topic.name, most.MaxMessages, most.MaxBytes.Int64())
			}
			return nil, s.topic.full(op)
		}
	}
	results := make([]block.AppendResult, len(recs))
	for i, e := range entries {
		t := shares[recs[i].Topic].topic
		e.part = t.part(recs[i].Partition)
		t.count++
		t.bytes += e.size
		t.place(now, e)
		t.remember(now, e)
		results[i].Position = e.position
	}
	for _, s := range shares {
		s.topic.arm()
	}
	return results, nil
}
