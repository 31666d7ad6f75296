package sim_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

// How long things may take beside what a fault explains.
const (
	commitEvery = 200 * time.Millisecond // of the engine
	handOver    = 500 * time.Millisecond
)

// record is one accepted message of the topic.
type record struct {
	part int32
	pos  uint64
	id   string
	key  string
	at   time.Time
	late bool // appended to a partition that was closed already

	before []*record // those of its key in other partitions that were answered before it was sent
}

// pub is one message to publish.
type pub struct {
	id, key  string
	seq      int
	before   *pub // the one before it in its key, that it must not overtake
	answered bool // to the engine
	told     bool // to the app: it is published
	let      bool // the app let its key go on without it
	rec      *record
}

// seatOf is who claimed a partition under an epoch.
type seatOf struct {
	seat, life string
	link       *link
	at         time.Time
}

// partOf is a partition in a group.
type partOf struct {
	group  string
	id     int32
	claims map[uint64]seatOf
	owner  uint64 // highest epoch claimed
	epoch  uint64 // of the progress
	free   bool   // yielded
	freeAt time.Time
	views  map[uint64]*view

	body     []byte
	progress lane.Progress
	done     map[uint64]bool     // acknowledged or dropped, by the app's word, for good
	maybe    map[uint64]bool     // the same, but the word came about when the handler's time was over
	copies   map[uint64][]uint64 // positions in the park log
	buried   map[uint64]bool     // on the dead-letter topic
	given    map[string]bool     // keys whose parked messages were dropped by an administrator
	seeks    []uint64            // where it may be moved to
	askedAt  time.Time           // when an administrator last asked to move it
	movedAt  time.Time           // when it was last moved
	skip     uint64              // what is appended below is passed over: it was moved beyond its end
}

// view is one owner's time with a partition.
type view struct {
	p        *partOf
	epoch    uint64
	who      seatOf
	start    lane.Progress
	app      *app
	assigned bool
	since    time.Time // when it was assigned
	revoking time.Time // when it was told
	deadline time.Time
	moved    bool   // by a seek: the app was told
	over     string // why nothing may be delivered any more

	acked   map[uint64]time.Time
	dropped map[uint64]bool
	open    map[uint64]*stay
	stays   map[uint64]*stay // the last of each message
	last    time.Time        // when the app last answered
}

// stay is a delivery.
type stay struct {
	rec     *record
	at, due time.Time
	attempt int
	size    int
	nacked  time.Time
	pause   time.Duration // before it may come again
	final   bool          // it must not come again under this epoch
	gap     bool
	expired bool
}

// judge watches a history. All of it is guarded by world.mu, save said.
type judge struct {
	w      *world
	logs   map[int32][]*record
	keys   map[int32]map[string][]*record
	pubs   map[string]*pub
	parts  map[string]map[int32]*partOf // by group
	opened int32                        // first partition of the current generation

	said    sync.Mutex
	toldEnd []toldEnd // guarded by said: what Consumed said
}

type toldEnd struct {
	group string
	part  int32
	upTo  uint64
}

func newJudge(w *world) *judge {
	return &judge{w: w, logs: map[int32][]*record{}, keys: map[int32]map[string][]*record{}, pubs: map[string]*pub{}, parts: map[string]map[int32]*partOf{}}
}

func (j *judge) part(group string, id int32) *partOf {
	byID := j.parts[group]
	if byID == nil {
		byID = map[int32]*partOf{}
		j.parts[group] = byID
	}
	p := byID[id]
	if p == nil {
		p = &partOf{group: group, id: id, claims: map[uint64]seatOf{}, views: map[uint64]*view{}, done: map[uint64]bool{}, maybe: map[uint64]bool{},
			copies: map[uint64][]uint64{}, buried: map[uint64]bool{}, given: map[string]bool{}, progress: lane.Progress{Watermark: 1}}
		byID[id] = p
	}
	return p
}

func (p *partOf) String() string { return p.group + " " + strconv.Itoa(int(p.id)) }

// at is the record at a position.
func (j *judge) at(part int32, pos uint64) *record {
	log := j.logs[part]
	i, ok := slices.BinarySearchFunc(log, pos, func(r *record, pos uint64) int {
		switch {
		case r.pos < pos:
			return -1
		case r.pos > pos:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return log[i]
}

// answered follows a message through the engine.
func (j *judge) answered(r *block.LogRecord) {
	j.w.mu.Lock()
	defer j.w.mu.Unlock()
	if p := j.pubs[string(r.Data)]; p != nil && r.Topic == topic {
		p.answered = true
	}
}

// appended takes in what the broker accepted. A duplicate is not.
func (j *judge) appended(r *block.LogRecord, pos uint64, atomic bool) {
	switch {
	case r.Topic == topic:
		j.published(r, pos, atomic)
	case strings.HasPrefix(r.Topic, "mecha.parked/"):
		group := strings.Split(r.Topic, "/")[1]
		if from, ok := origin(r); ok {
			p := j.part(group, r.Partition)
			p.copies[from] = append(p.copies[from], pos)
			j.w.note(r.Partition, r.Key, "parked: %d of group %s, in the park log at %d", from, group, pos)
		}
	case strings.HasPrefix(r.Topic, topic+".dead-letter"):
		if from, ok := origin(r); ok {
			group := r.ID[:strings.IndexByte(r.ID, '/')]
			text := strings.Split(r.Metadata["mecha-origin"], "/")
			id, _ := strconv.Atoi(text[1])
			j.part(group, int32(id)).buried[from] = true
			j.w.note(int32(id), r.Key, "dead-lettered: %d of group %s", from, group)
		}
	}
}

func origin(r *block.LogRecord) (uint64, bool) {
	text := r.Metadata["mecha-origin"]
	n, err := strconv.ParseUint(text[strings.LastIndexByte(text, '/')+1:], 10, 64)
	return n, err == nil
}

func (j *judge) published(r *block.LogRecord, pos uint64, atomic bool) {
	m := j.pubs[string(r.Data)]
	rec := &record{part: r.Partition, pos: pos, id: string(r.Data), key: r.Key, at: time.Now(), late: r.Partition < j.opened}
	log := j.logs[r.Partition]
	if len(log) > 0 && log[len(log)-1].pos >= pos {
		panic("positions of the broker do not grow")
	}
	j.logs[r.Partition] = append(log, rec)
	j.w.note(r.Partition, r.Key, "appended %s at %d", rec.id, pos)
	if m == nil {
		j.w.violate("I1", r.Partition, r.Key, "%s was appended, which nobody published", rec.id)
		return
	}
	m.rec = rec
	if r.Key == "" {
		return
	}
	if j.keys[r.Partition] == nil {
		j.keys[r.Partition] = map[string][]*record{}
	}
	for part, keys := range j.keys {
		if part == r.Partition {
			continue
		}
		for _, o := range keys[r.Key] {
			if of := j.pubs[o.id]; of.answered && of.seq < m.seq && !o.late {
				rec.before = append(rec.before, o)
			}
		}
	}
	j.keys[r.Partition][r.Key] = append(j.keys[r.Partition][r.Key], rec)
	j.w.check("I11")
	if b := m.before; b != nil && !b.answered && !b.let && !(atomic && b.rec != nil) {
		j.w.violate("I11", r.Partition, r.Key, "%s was appended although %s, before it, was not and its key was not resumed", m.id, b.id)
	}
}

func (j *judge) key(part int32, pos uint64) string {
	if r := j.at(part, pos); r != nil {
		return r.key
	}
	return ""
}

// promptly is how soon a message is delivered that nothing keeps back, in histories of the theme
// blocked.
const promptly = 250 * time.Millisecond

// consumed is called under the engine's locks: it is only noted.
func (j *judge) consumed(t, group string, part int32, upTo uint64) {
	if t != topic {
		return
	}
	j.said.Lock()
	defer j.said.Unlock()
	j.toldEnd = append(j.toldEnd, toldEnd{group, part, upTo})
}

// consumptions checks what was said to be consumed: it was committed before.
func (j *judge) consumptions() {
	j.said.Lock()
	said := j.toldEnd
	j.toldEnd = nil
	j.said.Unlock()
	for _, s := range said {
		p := j.part(s.group, s.part)
		j.w.check("I5")
		if s.upTo > p.progress.Watermark && len(p.seeks) == 0 {
			j.w.violate("I5", p.id, "", "%s is said to be consumed up to %d, and %d is committed", p, s.upTo, p.progress.Watermark)
		}
	}
}

// left counts what a group has not resolved durably.
func (j *judge) left(group string) (n int, first string) {
	for id, log := range j.logs {
		p := j.part(group, id)
		for _, r := range log {
			if !resolved(&p.progress, r.pos) || p.aside(&p.progress, r) {
				n++
				if first == "" {
					first = fmt.Sprintf("%s at %d of %s (key %q)", r.id, r.pos, p, r.key)
				}
			}
		}
		n += len(p.progress.Parked)
		if p.askedAt.After(p.movedAt) {
			n++
			first = fmt.Sprintf("%s is not moved, as was asked %v ago", p, time.Since(p.askedAt))
		}
		if first == "" && len(p.progress.Parked) > 0 {
			first = fmt.Sprintf("parked keys %v of %s", p.progress.Parked, p)
		}
	}
	return n, first
}
