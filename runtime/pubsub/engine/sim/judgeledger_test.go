package sim_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

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
