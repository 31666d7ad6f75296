package sim_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
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

// ledger takes in an accepted write.
func (j *judge) ledger(l *link, w *block.LedgerWrite) {
	parts := block.LedgerParts(w.Key)
	switch {
	case parts[0] == "progress" && len(parts) == 4 && parts[2] == topic:
		id, _ := strconv.Atoi(parts[3])
		j.progressed(l, j.part(parts[1], int32(id)), w)
	case parts[0] == "group" && len(parts) == 5 && parts[2] == "owner" && parts[3] == topic:
		id, _ := strconv.Atoi(parts[4])
		j.ownerSet(l, j.part(parts[1], int32(id)), w)
	case parts[0] == "group" && len(parts) == 5 && parts[2] == "command" && parts[3] == topic:
		id, _ := strconv.Atoi(parts[4])
		j.w.note(int32(id), "", "%s writes the command of %s/%d: %s", l.name, parts[1], id, w.Value)
		if strings.Contains(string(w.Value), `"seek"`) {
			p := j.part(parts[1], int32(id))
			p.askedAt = time.Now()
			j.w.check("I13")
			if len(p.seeks) == 0 {
				j.w.violate("I13", p.id, "", "%s is asked to move, and another group should", p)
			}
		}
	}
}

func (j *judge) ownerSet(l *link, p *partOf, w *block.LedgerWrite) {
	var r struct {
		Seat        string `json:"seat"`
		Incarnation string `json:"incarnation"`
		Epoch       uint64 `json:"epoch"`
		Drained     bool   `json:"drained"`
	}
	if w.Remove || json.Unmarshal(w.Value, &r) != nil {
		j.w.violate("I3", p.id, "", "the owner entry of %s is removed or cannot be read", p)
		return
	}
	j.w.check("I3")
	if r.Seat == "" {
		j.yielded(l, p, r.Epoch)
		return
	}
	had, known := p.claims[r.Epoch]
	switch {
	case r.Epoch < p.owner:
		j.w.violate("I3", p.id, "", "%s goes from epoch %d back to %d", p, p.owner, r.Epoch)
	case known && (had.seat != r.Seat || had.life != r.Incarnation):
		j.w.violate("I3", p.id, "", "%s has two owners in epoch %d: %s and %s", p, r.Epoch, had.seat, r.Seat)
	case known:
		if r.Drained {
			j.drained(p)
		}
		return
	}
	j.w.note(p.id, "", "%s claims %s, epoch %d", r.Seat, p, r.Epoch)
	j.opening(p)
	p.claims[r.Epoch] = seatOf{r.Seat, r.Incarnation, l, time.Now()}
	p.owner = r.Epoch
	p.free = false
}

// drained: a partition of an old generation is said to be done.
func (j *judge) drained(p *partOf) {
	j.w.note(p.id, "", "%s is drained", p)
	j.w.check("I12")
	if p.id >= j.opened {
		j.w.violate("I12", p.id, "", "%s is said to be drained and is a partition of the current generation", p)
	}
	for _, r := range j.logs[p.id] {
		if !r.late && r.pos >= p.progress.Watermark && !resolved(&p.progress, r.pos) {
			j.w.violate("I12", p.id, r.key, "%s is said to be drained, and %s at %d is not committed", p, r.id, r.pos)
			return
		}
	}
}

// opening: a partition of a new generation is claimed.
func (j *judge) opening(p *partOf) {
	gen := j.w.generation(p.id)
	if gen == 0 {
		return
	}
	j.w.check("I12")
	for part, log := range j.logs {
		if j.w.generation(part) >= gen {
			continue
		}
		o := j.part(p.group, part)
		for _, r := range log {
			if !r.late && r.pos >= o.progress.Watermark && !resolved(&o.progress, r.pos) {
				j.w.violate("I12", p.id, r.key, "%s is opened while %s at %d of %s is not resolved", p, r.id, r.pos, o)
				return
			}
		}
	}
}

// yielded: a partition is given up in order, so nothing that was acknowledged may be missing.
func (j *judge) yielded(l *link, p *partOf, epoch uint64) {
	j.w.note(p.id, "", "%s gives up %s, epoch %d", l.name, p, epoch)
	p.free, p.freeAt = true, time.Now()
	v := p.views[epoch]
	if v == nil {
		return
	}
	if v.moved && slices.Contains(p.seeks, p.progress.Watermark) {
		p.movedAt = time.Now() // it was there already
	}
	if v.app != nil && v.over == "" && v.assigned {
		j.w.violate("I4", p.id, "", "%s is given up, epoch %d, while its app owns it", p, epoch)
	}
	if len(p.seeks) > 0 {
		return
	}
	if c := &j.w.cfg; !v.revoking.IsZero() && c.hold == 0 && c.never == 0 && j.w.quiet(v.revoking.Add(-2*c.ttl), time.Now()) {
		j.w.check("I10")
		since := v.revoking
		if v.last.After(since) {
			since = v.last
		}
		if d := time.Since(since); d > handOver {
			j.w.violate("I10", p.id, "", "%s is given up %v after it was asked for and its app was done", p, d)
		}
	}
	for pos := range v.acked {
		j.w.check("I6")
		if !resolved(&p.progress, pos) {
			j.w.violate("I6", p.id, j.key(p.id, pos), "%s is given up, epoch %d, and %d is acknowledged and not committed", p, epoch, pos)
			return
		}
	}
}

func (j *judge) key(part int32, pos uint64) string {
	if r := j.at(part, pos); r != nil {
		return r.key
	}
	return ""
}

// resolved tells whether a position counts as resolved in a progress, parked or not.
func resolved(p *lane.Progress, pos uint64) bool {
	if pos < p.Watermark {
		return true
	}
	return slices.ContainsFunc(p.Resolved, func(r lane.Range) bool { return pos >= r.From && pos <= r.To })
}

// aside tells whether a record is parked in a progress: there is a copy that is to come back.
func (p *partOf) aside(in *lane.Progress, r *record) bool {
	if r.key == "" {
		return false
	}
	for _, k := range in.Parked {
		if k.Key == r.key && r.pos >= k.Since {
			return slices.ContainsFunc(p.copies[r.pos], func(at uint64) bool { return at >= k.From })
		}
	}
	return false
}

func (j *judge) progressed(l *link, p *partOf, w *block.LedgerWrite) {
	if w.Remove || len(w.Value) < 10 {
		j.w.violate("I5", p.id, "", "the progress of %s is removed or too short", p)
		return
	}
	epoch, body := binary.BigEndian.Uint64(w.Value[2:10]), w.Value[10:]
	next := lane.Progress{Watermark: 1}
	if len(body) > 0 {
		var err error
		if next, err = lane.ParseProgress(body); err != nil {
			j.w.violate("I5", p.id, "", "the progress of %s cannot be read: %v", p, err)
			return
		}
	}
	j.w.check("I3")
	switch {
	case epoch < p.epoch:
		j.w.violate("I3", p.id, "", "the progress of %s goes from epoch %d back to %d, by %s", p, p.epoch, epoch, l.name)
		return
	case epoch > p.epoch:
		if len(p.body) > 0 && !bytes.Equal(p.body, body) {
			j.w.violate("I5", p.id, "", "the progress of %s changed while epoch %d took it", p, epoch)
		}
		j.taken(l, p, epoch)
		return
	}
	v := p.views[epoch]
	if v == nil || v.who.link != l {
		j.w.violate("I3", p.id, "", "the progress of %s, epoch %d, is written by %s, whose it is not", p, epoch, l.name)
		return
	}
	j.w.note(p.id, "", "%s commits %s, epoch %d: watermark %d, %v, parked %v", l.name, p, epoch, next.Watermark, next.Resolved, next.Parked)
	j.justify(p, v, &next)
	p.body, p.progress = bytes.Clone(body), next
}

// justify holds a progress against what happened.
func (j *judge) justify(p *partOf, v *view, next *lane.Progress) {
	moved := v.moved && slices.Contains(p.seeks, next.Watermark) && len(next.Resolved) == 0
	if moved {
		p.skip, p.movedAt = next.Watermark, time.Now()
	}
	for _, r := range j.logs[p.id] {
		was, is := resolved(&p.progress, r.pos), resolved(next, r.pos)
		j.w.check("I5")
		switch {
		case moved && is && !was:
			p.done[r.pos] = true // passed over
		case moved && !is:
			delete(p.done, r.pos)
			delete(p.buried, r.pos)
		case was && !is:
			inv := "I5"
			if len(p.seeks) == 0 && j.w.sought {
				inv = "I13"
			}
			j.w.violate(inv, p.id, r.key, "%s: %s at %d was resolved and is not any more, epoch %d", p, r.id, r.pos, v.epoch)
			return
		case is && r.pos >= p.skip && !p.done[r.pos] && !p.maybe[r.pos] && !p.buried[r.pos] && !p.aside(next, r) && !(r.key != "" && p.given[r.key] && len(p.copies[r.pos]) > 0):
			inv := "I5"
			if len(p.copies[r.pos]) > 0 {
				inv = "I9"
			}
			j.w.violate(inv, p.id, r.key, "%s: progress counts %s at %d as resolved, epoch %d, which it is not", p, r.id, r.pos, v.epoch)
			return
		}
	}
}

// taken: an epoch begins.
func (j *judge) taken(l *link, p *partOf, epoch uint64) {
	who, claimed := p.claims[epoch]
	if !claimed || who.link != l {
		j.w.violate("I3", p.id, "", "%s takes %s under epoch %d, which it did not claim", l.name, p, epoch)
	}
	j.w.note(p.id, "", "%s takes %s, epoch %d: watermark %d, %v, parked %v", l.name, p, epoch, p.progress.Watermark, p.progress.Resolved, p.progress.Parked)
	if old := p.views[p.epoch]; old != nil {
		j.succession(old)
	}
	p.epoch = epoch
	p.views[epoch] = &view{p: p, epoch: epoch, who: who, start: p.progress, acked: map[uint64]time.Time{}, dropped: map[uint64]bool{},
		open: map[uint64]*stay{}, stays: map[uint64]*stay{}}
}

// succession judges how one owner followed another: what is delivered again for it (I6), and
// how long it took (I10).
func (j *judge) succession(old *view) {
	p, now := old.p, time.Now()
	robbed := false // by one that does not know yet that another has its name: not judged, see the package
	for e := old.epoch + 1; e <= p.owner; e++ {
		if c, ok := p.claims[e]; ok && c.link.replaced {
			robbed = true
		}
	}
	if len(p.seeks) == 0 && !robbed {
		for pos, at := range old.acked {
			j.w.check("I6")
			if !resolved(&p.progress, pos) && !j.w.disturbed(old.who.link, at, at.Add(commitEvery+100*time.Millisecond)) {
				j.w.violate("I6", p.id, j.key(p.id, pos), "%s: %d was acknowledged by %s, epoch %d, %v ago, and nothing kept it from being committed", p, pos, old.who.seat, old.epoch, now.Sub(at))
				break
			}
		}
	}
	if killed := old.who.link.killedAt(); !killed.IsZero() && !p.free && j.w.calm(killed.Add(-2*j.w.cfg.ttl), now, killed) && j.w.othersSince(p.group, killed) {
		j.w.check("I10")
		if d := now.Sub(killed); d > j.w.cfg.ttl+handOver {
			j.w.violate("I10", p.id, "", "%s found its next owner %v after %s was killed, and the TTL is %v", p, d, old.who.seat, j.w.cfg.ttl)
		}
	}
	if p.free && j.w.quiet(p.freeAt.Add(-2*j.w.cfg.ttl), now) && j.w.othersSince(p.group, p.freeAt) && j.w.generation(p.id) == 0 {
		j.w.check("I10")
		if now.Sub(p.freeAt) > handOver {
			j.w.violate("I10", p.id, "", "%s was free for %v", p, now.Sub(p.freeAt))
		}
	}
}

// settled tells whether a record is resolved as this owner must see it. With sure it is so also in
// what is committed, or in its own hands: a copy that another made counts not.
func (v *view) settled(r *record, sure bool) bool {
	p := v.p
	if _, acked := v.acked[r.pos]; acked || v.dropped[r.pos] {
		return true
	}
	if resolved(&v.start, r.pos) && !p.aside(&v.start, r) {
		return true
	}
	return !sure && (p.maybe[r.pos] || p.buried[r.pos] || p.given[r.key] && len(p.copies[r.pos]) > 0)
}

// assigned, revoked and lost: an app was told.
func (j *judge) assigned(a *app, e engine.Assigned) {
	for _, ap := range e.Parts {
		p := j.part(a.group, ap.ID)
		v := p.views[ap.Epoch]
		j.w.note(ap.ID, "", "%s is assigned %s, epoch %d, from %d", a.name, p, ap.Epoch, ap.Next)
		j.w.check("I3")
		if v == nil || v.who.link != a.link {
			j.w.violate("I3", ap.ID, "", "%s is assigned to %s under epoch %d, which it did not take", p, a.name, ap.Epoch)
			continue
		}
		if v.assigned {
			j.w.violate("I3", ap.ID, "", "%s is assigned twice under epoch %d", p, ap.Epoch)
		}
		v.assigned, v.app, v.since = true, a, time.Now()
		a.views[ap.ID] = v
		if ap.Next != v.start.Watermark {
			j.w.violate("I5", ap.ID, "", "%s is told that %s goes on at %d, and %d is committed", a.name, p, ap.Next, v.start.Watermark)
		}
	}
}

func (j *judge) revoking(a *app, e engine.Revoking) {
	for _, part := range e.Parts {
		j.w.note(part.ID, "", "%s is asked for %s/%d by assignment %d", a.name, a.group, part.ID, e.Assignment)
		if v := a.views[part.ID]; v != nil && v.over == "" {
			v.over, v.revoking, v.deadline = "it is being revoked", time.Now(), e.Deadline
		} else {
			j.w.violate("I4", part.ID, "", "%s is asked for %s/%d, which it does not have", a.name, a.group, part.ID)
		}
	}
}

func (j *judge) released(v *view) {
	j.w.note(v.p.id, "", "%s lets go of %s, epoch %d", v.app.name, v.p, v.epoch)
	v.over = "the app let go of it"
	clear(v.open)
}

func (j *judge) lost(a *app, e engine.Lost) {
	for _, part := range e.Parts {
		j.w.note(part.ID, "", "%s lost %s/%d: %s", a.name, a.group, part.ID, e.Reason)
		if v := a.views[part.ID]; v != nil {
			v.over = "the app lost it"
			v.moved = strings.Contains(e.Reason, "moved to another position")
			clear(v.open)
			delete(a.views, part.ID)
		}
	}
}

// delivered judges a delivery at the moment it is made.
func (j *judge) delivered(a *app, d *engine.Deliver) {
	p := j.part(a.group, d.ID)
	v := p.views[d.Epoch]
	for i := range d.Messages {
		m := &d.Messages[i]
		j.w.note(d.ID, m.Key, "%s is given %s at %d of %s, epoch %d, attempt %d, gap %v", a.name, m.Data, m.Position, p, d.Epoch, m.Attempt, m.OrderGap)
		j.w.check("I4")
		switch {
		case v == nil || v.app != a || a.views[d.ID] != v:
			j.w.violate("I4", d.ID, m.Key, "%s is given a message of %s, epoch %d, which is not assigned to it", a.name, p, d.Epoch)
			return
		case v.over != "":
			j.w.violate("I4", d.ID, m.Key, "%s is given a message of %s, epoch %d, after %s", a.name, p, d.Epoch, v.over)
			return
		}
		j.w.check("I3")
		if now := p.views[p.epoch]; p.epoch > d.Epoch && now.who.seat != v.who.seat && !a.link.replaced {
			j.w.violate("I3", d.ID, m.Key, "%s delivers %s under epoch %d while %s owns it under %d", a.name, p, d.Epoch, now.who.seat, p.epoch)
		}
		r := j.at(d.ID, m.Position)
		if r == nil || r.id != string(m.Data) || r.key != m.Key {
			j.w.violate("I1", d.ID, m.Key, "%s is given %q at %d of %s, which is not what was published", a.name, m.Data, m.Position, p)
			return
		}
		j.message(a, v, r, m)
	}
	j.limits(a, v)
}

func (j *judge) message(a *app, v *view, r *record, m *engine.Message) {
	p, now := v.p, time.Now()
	j.expire(v, now)
	s := &stay{rec: r, at: now, attempt: m.Attempt, size: len(m.Data) + len(m.Key), gap: m.OrderGap}
	if t := j.w.cfg.handlerTimeout; t > 0 {
		s.due = now.Add(t)
	}
	last := v.stays[r.pos]
	j.w.check("I6")
	if v.settled(r, true) {
		j.w.violate("I6", p.id, r.key, "%s at %d of %s comes again, epoch %d, though it is resolved", r.id, r.pos, p, v.epoch)
	}
	if last != nil {
		switch {
		case v.open[r.pos] != nil:
			j.w.violate("I6", p.id, r.key, "%s at %d of %s comes again, epoch %d, while it is at the app", r.id, r.pos, p, v.epoch)
		case last.final:
			j.w.violate("I9", p.id, r.key, "%s at %d of %s comes again, epoch %d, though it was to be set aside", r.id, r.pos, p, v.epoch)
		case m.Attempt <= last.attempt && len(p.copies[r.pos]) == 0:
			j.w.violate("I2", p.id, r.key, "%s at %d of %s comes again, epoch %d, as attempt %d after %d", r.id, r.pos, p, v.epoch, m.Attempt, last.attempt)
		case now.Sub(last.nacked) < last.pause && j.w.cfg.ordering != engine.OrderLoose: // which lets it wait behind another instead
			j.w.violate("I2", p.id, r.key, "%s at %d of %s comes again %v after it failed, epoch %d, sooner than %v", r.id, r.pos, p, now.Sub(last.nacked), v.epoch, last.pause)
		}
	}
	if !a.link.replaced || p.epoch == v.epoch { // else the broker may have dropped what the owner is done with
		j.order(v, r, s)
	}
	j.window(v, r)
	if last == nil {
		j.punctual(v, r)
	}
	v.open[r.pos], v.stays[r.pos] = s, s
	a.received++
}

// order is I2, I9 and I12, and that gaps are told.
func (j *judge) order(v *view, r *record, s *stay) {
	p := v.p
	switch j.w.cfg.ordering {
	case engine.OrderPartition:
		j.w.check("I2")
		for _, o := range j.logs[p.id] {
			if o.pos < r.pos && !v.settled(o, false) && !p.isAside(v, o) {
				j.w.violate("I2", p.id, r.key, "%s at %d of %s is delivered, epoch %d, before %s at %d is resolved", r.id, r.pos, p, v.epoch, o.id, o.pos)
				return
			}
		}
	case engine.OrderKey:
		if r.key == "" {
			return
		}
		var before *record
		for _, o := range j.keys[p.id][r.key] {
			if o.pos >= r.pos {
				break
			}
			before = o
			j.w.check("I2")
			if v.settled(o, false) {
				continue
			}
			inv := "I2"
			if len(p.copies[o.pos]) > 0 {
				inv = "I9"
				j.w.check("I9")
			}
			j.w.violate(inv, p.id, r.key, "%s at %d of %s is delivered, epoch %d, before %s at %d is resolved", r.id, r.pos, p, v.epoch, o.id, o.pos)
			return
		}
		if len(p.copies) > 0 && len(p.copies[r.pos]) > 0 {
			j.w.check("I9")
		}
		for _, o := range r.before {
			j.w.check("I12")
			if op := j.part(p.group, o.part); !resolved(&op.progress, o.pos) || op.aside(&op.progress, o) {
				if op.aside(&op.progress, o) {
					continue // parked in its own partition: not promised, see the package
				}
				j.w.violate("I12", p.id, r.key, "%s at %d of %s is delivered before %s at %d of %s is resolved", r.id, r.pos, p, o.id, o.pos, op)
				return
			}
		}
		j.gap(v, r, before, s)
	}
}

// isAside tells whether a record is parked as far as anybody can know.
func (p *partOf) isAside(v *view, r *record) bool { return len(p.copies[r.pos]) > 0 }

// gap: the next message of a key says so when one before it was given up.
func (j *judge) gap(v *view, r, before *record, s *stay) {
	p := v.p
	if before == nil || len(p.seeks) > 0 || p.given[r.key] || len(p.copies) > 0 || p.maybe[before.pos] {
		return
	}
	want := false
	_, acked := v.acked[before.pos]
	switch {
	case acked:
	case resolved(&v.start, before.pos):
		want = slices.Contains(v.start.Gaps, r.key)
	case v.dropped[before.pos], p.buried[before.pos]:
		want = true
	}
	j.w.check("I2")
	if want != s.gap {
		j.w.violate("I2", p.id, r.key, "%s at %d of %s is delivered, epoch %d, with gap %v, want %v", r.id, r.pos, p, v.epoch, s.gap, want)
	}
}

// window is the bound of I8.
func (j *judge) window(v *view, r *record) {
	if len(v.p.copies[r.pos]) > 0 || len(v.p.copies) > 0 {
		return // what comes back is not of the window
	}
	n := 0
	for _, o := range slices.Backward(j.logs[v.p.id]) {
		if o.pos > r.pos {
			continue
		}
		n++
		if !v.settled(o, false) {
			if span := n; span > j.w.cfg.limits.Window {
				j.w.violate("I8", v.p.id, r.key, "%s at %d of %s is delivered, %d behind the first unresolved one, and the window is %d", r.id, r.pos, v.p, span, j.w.cfg.limits.Window)
				return
			}
		}
	}
	j.w.check("I8")
}

// promptly is how soon a message is delivered that nothing keeps back, in histories of the theme
// blocked.
const promptly = 250 * time.Millisecond

// punctual is the rest of I8: while a key is blocked the others go on.
func (j *judge) punctual(v *view, r *record) {
	if j.w.cfg.theme != "blocked" || j.w.healed || j.w.cfg.poison[r.key] {
		return
	}
	since, blocked, n := r.at, false, 0
	if v.since.After(since) {
		since = v.since
	}
	for _, o := range j.logs[v.p.id] {
		if o.pos >= r.pos {
			break
		}
		if at, ok := v.acked[o.pos]; o.key == r.key && r.key != "" && (!ok || at.After(since)) {
			if !ok {
				return // it has to wait for that
			}
			since = at
		}
		if blocked = blocked || j.w.cfg.poison[o.key]; blocked {
			n++
		}
	}
	if !blocked || n >= j.w.cfg.limits.Window {
		return
	}
	j.w.check("I8")
	if d := time.Since(since); d > promptly {
		j.w.violate("I8", v.p.id, r.key, "%s at %d of %s waits for %v, and only other keys are blocked", r.id, r.pos, v.p, d)
	}
}

// held judges what was not delivered while a key was blocked.
func (j *judge) held() {
	for _, parts := range j.parts {
		for _, p := range parts {
			v := p.views[p.epoch]
			if v == nil || !v.assigned {
				continue
			}
			for _, r := range j.logs[p.id] {
				if v.stays[r.pos] == nil && !v.settled(r, false) {
					j.punctual(v, r)
				}
			}
		}
	}
}

// expire takes back what stayed at the app too long.
func (j *judge) expire(v *view, now time.Time) {
	for pos, s := range v.open {
		if !s.due.IsZero() && !now.Before(s.due) {
			delete(v.open, pos)
			s.nacked, s.expired = s.due, true
			s.pause = j.pause(s.attempt)
			j.fated(v, s, engine.RemedyRetry)
		}
	}
}

// pause is how long a message waits at least after failure n.
func (j *judge) pause(n int) time.Duration {
	r := &j.w.cfg.retry
	d := r.First
	for ; n > 1 && d < r.Max; n-- {
		d *= 2
	}
	return time.Duration(float64(min(d, r.Max)) * 0.79)
}

// fated notes what becomes of a message that failed.
func (j *judge) fated(v *view, s *stay, r engine.Remedy) {
	retry := &j.w.cfg.retry
	if r == engine.RemedyRetry && retry.Attempts > 0 && retry.Then != engine.RemedyRetry && s.attempt >= retry.Attempts {
		r = retry.Then
	}
	switch r {
	case engine.RemedyDrop:
		v.dropped[s.rec.pos] = true
		v.p.done[s.rec.pos] = true
		s.final = true
	case engine.RemedyDeadLetter:
		s.final = true
	case engine.RemedyPark:
		s.pause = 0 // it may come back as soon as it is unparked
	}
}

// limits is I7.
func (j *judge) limits(a *app, v *view) {
	c, now := &j.w.cfg, time.Now()
	all := 0
	for _, o := range a.views {
		j.expire(o, now)
		all += len(o.open)
	}
	j.w.check("I7")
	most := min(c.limits.Messages, a.concurrency)
	switch {
	case all > most:
		j.w.violate("I7", v.p.id, "", "%d messages are at %s, and at most %d may be", all, a.name, most)
	case len(v.open) > c.limits.PartitionMessages:
		j.w.violate("I7", v.p.id, "", "%d messages of %s are at %s, and at most %d may be", len(v.open), v.p, a.name, c.limits.PartitionMessages)
	case c.credited && a.received > a.granted:
		j.w.violate("I7", v.p.id, "", "%s was given %d messages on credit for %d", a.name, a.received, a.granted)
	}
	switch c.ordering {
	case engine.OrderPartition:
		if len(v.open) > 1 {
			j.w.violate("I7", v.p.id, "", "%d messages of %s are at %s, which takes one after the other", len(v.open), v.p, a.name)
		}
	case engine.OrderKey:
		keys := map[string]bool{}
		for _, s := range v.open {
			if s.rec.key != "" && keys[s.rec.key] {
				j.w.violate("I7", v.p.id, s.rec.key, "two messages of key %s of %s are at %s", s.rec.key, v.p, a.name)
			}
			keys[s.rec.key] = true
		}
	}
}

// acked: the engine took an acknowledgement.
func (j *judge) acked(v *view, pos uint64) {
	now := time.Now()
	j.expire(v, now)
	v.last = now
	if v.open[pos] == nil {
		v.late(pos)
		return // else it counts for nothing
	}
	delete(v.open, pos)
	v.acked[pos] = now
	v.p.done[pos] = true
}

// late: a word came after the handler's time was over, and the engine may have been halted at that time.
func (v *view) late(pos uint64) {
	if s := v.stays[pos]; s != nil && s.expired {
		v.p.maybe[pos] = true
	}
}

// nacked: the engine took a refusal.
func (j *judge) nacked(v *view, pos uint64, r engine.Remedy) {
	now := time.Now()
	j.expire(v, now)
	v.last = now
	s := v.open[pos]
	if s == nil {
		if r == engine.RemedyDrop {
			v.late(pos)
		}
		return
	}
	delete(v.open, pos)
	s.nacked, s.pause = now, 0
	if r == engine.RemedyRetry {
		s.pause = j.pause(s.attempt)
	}
	j.fated(v, s, r)
}

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
