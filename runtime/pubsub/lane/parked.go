package lane

import (
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// A parked key's messages go, one after the other and in order, to the park log of the partition,
// and count as resolved when their copy is safe. Unpark brings them back in the same order: the
// engine reads the park log from ParkedKey.From on and hands in what belongs to the key (Replay).
// What arrives meanwhile for the key is still parked, behind them. When the end of the park log is
// reached and nothing is on its way there (ReplayEnd), what arrives from then on waits in the lane
// instead, and the key is live again when the last one before it is resolved.

// ParkedKey is a key set aside.
type ParkedKey struct {
	Key   string
	Since uint64 // position of the first message that is in the park log and not resolved
	From  uint64 // position in the park log to read from; 0 until the first copy is safe
	Count uint64 // messages in the park log, about
}

type parked struct {
	ParkedKey
	last      uint64 // position of the last copy this lane knows of
	replaying bool
	tail      bool // all that is in the park log is in the lane: newer messages wait here
}

// setAsideBehind is the reason of those parked because their key is.
const setAsideBehind = "an earlier message of its key is parked"

func (l *Lane) isParked(key string) bool {
	p := l.parked[key]
	return p != nil && !p.tail
}

// mayPark tells whether one more key fits into the progress record.
func (l *Lane) mayPark(e *entry) bool {
	if e.rec.Key == "" {
		return false
	}
	if l.parked[e.rec.Key] != nil {
		return true
	}
	size := len(e.rec.Key) + parkedOverhead
	for k := range l.parked {
		size += len(k) + parkedOverhead
	}
	return size <= l.opts.MaxProgress/2
}

// putAside takes an entry that is not at the app out of the lane's course, to be copied.
func (l *Lane) putAside(e *entry, r Remedy, reason string) {
	if r == RemedyPark && e.replayed {
		l.park(e)
		return
	}
	if r == RemedyPark && l.parked[e.rec.Key] == nil {
		l.parked[e.rec.Key] = &parked{ParkedKey: ParkedKey{Key: e.rec.Key, Since: e.rec.Position}}
	}
	if p := l.parked[e.rec.Key]; r == RemedyPark && p != nil && p.tail {
		p.replaying, p.tail = false, false // it was on its way back, with this one behind what was parked
	}
	if r == RemedyPark && !e.holds { // free until now: what follows of its key waits for the copy
		if l.keys[e.rec.Key] == nil {
			l.keys[e.rec.Key] = &chain{}
			e.holds = true
		}
	}
	l.dirty = true
	e.state, e.remedy, e.reason = setAside, r, reason
	l.setting++
	l.asides.push(e)
}

// HasAsides tells whether there is something to copy.
func (l *Lane) HasAsides() bool { return l.asides.n > 0 }

// Asides hands out what is to be copied, each once; Done answers them.
func (l *Lane) Asides() []Aside {
	if l.asides.n == 0 {
		return nil
	}
	out := make([]Aside, 0, l.asides.n)
	for e := l.asides.pop(); e != nil; e = l.asides.pop() {
		if e.state != setAside {
			continue // its copy was seen
		}
		e.flying = true
		out = append(out, Aside{Remedy: e.remedy, Record: e.rec, Failed: e.attempts, Reason: e.reason})
	}
	return out
}

// Done says that the copy of a record is safe, at copied in the park log, or that it failed and is to be
// tried again.
func (l *Lane) Done(now time.Time, position, copied uint64, err error) {
	if _, seen := l.early[position]; seen {
		delete(l.early, position)
		return
	}
	e := l.at(position)
	if e == nil || e.state != setAside {
		return
	}
	e.flying = false
	if err != nil {
		e.due = now.Add(l.opts.Backoff(1))
		l.held.push(e)
		return
	}
	l.copied(e, copied)
}

// copied is done with an entry whose copy is safe.
func (l *Lane) copied(e *entry, at uint64) {
	l.setting--
	remedy := e.remedy
	if remedy == RemedyPark {
		if p := l.parked[e.rec.Key]; p != nil {
			p.Count++
			l.parkedTo = max(l.parkedTo, at+1)
			p.last = max(p.last, at)
			if p.From == 0 && at != 0 {
				p.From = at
			}
		}
	}
	l.resolve(e)
	if remedy == RemedyDeadLetter {
		l.mark(e)
	}
	l.window.advance(&l.cursor)
}

// Parked lists the keys set aside, sorted.
func (l *Lane) Parked() []ParkedKey {
	out := make([]ParkedKey, 0, len(l.parked))
	for _, p := range l.parked {
		out = append(out, p.ParkedKey)
	}
	slices.SortFunc(out, func(a, b ParkedKey) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// ParkedFrom is the first position of the park log that is still needed: what is before it belongs to no key
// that is set aside. It is 0 while nothing is known.
func (l *Lane) ParkedFrom() uint64 {
	from := l.parkedTo
	for _, p := range l.parked {
		if p.From > 0 {
			from = min(from, p.From)
		}
	}
	return from
}

// Unpark starts to bring a key back. ok is false when it is not parked, or is coming back already.
func (l *Lane) Unpark(key string) (k ParkedKey, ok bool) {
	p := l.parked[key]
	if p == nil || p.replaying {
		return ParkedKey{}, false
	}
	p.replaying = true
	return p.ParkedKey, true
}

// DropParked gives up a key's parked messages, also those that are coming back, save one at the app. The next
// message of the key tells of the gap.
func (l *Lane) DropParked(key string) {
	p := l.parked[key]
	if p == nil {
		return
	}
	delete(l.parked, key)
	l.dirty = true
	if c := l.keys[key]; c != nil {
		var keep fifo
		for e := c.waiting.pop(); e != nil; e = c.waiting.pop() {
			if e.replayed {
				l.bytes -= e.size()
				e.state = done
				delete(l.replays, e.rec.Position)
			} else {
				keep.push(e)
			}
		}
		c.waiting = keep
	}
	if len(l.gaps) < maxGaps {
		l.gaps[key] = struct{}{}
	}
}

// maxReplays is how many parked messages of a key are brought in ahead of the one at the app.
const maxReplays = 16

// ReplayRoom is how many messages of a key that comes back are wanted now; -1 when it is not coming back
// any more.
func (l *Lane) ReplayRoom(key string) int {
	p := l.parked[key]
	if p == nil || !p.replaying {
		return -1
	}
	n := 0
	for _, e := range l.replays {
		if e.rec.Key == key {
			n++
		}
	}
	return maxReplays - n
}

// Copied says that a copy this lane asked for was seen in the park log, at a position there: it is safe,
// although Done was not called yet.
func (l *Lane) Copied(position, at uint64) {
	if e := l.window.find(position); e != nil && e.state == setAside && e.remedy == RemedyPark {
		if e.flying {
			l.early[position] = struct{}{}
		}
		l.copied(e, at)
	}
}

// Replay brings a parked message back. rec is as it was in the partition, at is where it is in the park log.
// One that is not resolved here was copied by an owner whose end came before it could say so: it will be
// copied again in its turn.
func (l *Lane) Replay(rec block.LogRecord, at uint64) {
	p := l.parked[rec.Key]
	if p == nil || !p.replaying || rec.Position < p.Since || at < p.From || l.replays[rec.Position] != nil {
		return // of an earlier time, or a copy made twice
	}
	if l.window.find(rec.Position) != nil || rec.Position >= l.window.next && !l.resolvedBefore.has(rec.Position) {
		return
	}
	l.parkedTo = max(l.parkedTo, at+1)
	e := &entry{rec: rec, replayed: true, parkedAt: at}
	l.replays[rec.Position] = e
	l.bytes += e.size()
	if c := l.keys[rec.Key]; c != nil {
		c.waiting.insert(e)
		return
	}
	l.keys[rec.Key] = &chain{}
	e.holds = true
	l.urgent.push(e)
}

// ReplayEnd says that the park log has been read up to a position, and that this was its end a while ago. It
// reports whether the key's messages are all in the lane: if not, some are on their way to the park log or
// came to it meanwhile, and more is to be read.
func (l *Lane) ReplayEnd(key string, upTo uint64) bool {
	p := l.parked[key]
	if p == nil || !p.replaying {
		return true
	}
	if p.last >= upTo {
		return false
	}
	c := l.keys[key]
	if c == nil { // all of it is resolved, and nothing waits
		delete(l.parked, key)
		l.dirty = true
		return true
	}
	for e := c.waiting.head; e != nil; e = e.next {
		if !e.replayed {
			return false
		}
	}
	if l.settingOf(key) {
		return false
	}
	p.tail = true
	return true
}

// settingOf tells whether a copy of a key's message is under way.
func (l *Lane) settingOf(key string) bool {
	if l.setting == 0 {
		return false
	}
	for i := range l.window.len() {
		if e := l.window.at(i); e != nil && e.state == setAside && e.rec.Key == key {
			return true
		}
	}
	return false
}

// replayDone is done with a message that came back.
func (l *Lane) replayDone(e *entry) {
	if p := l.parked[e.rec.Key]; p != nil {
		p.Since, p.From = e.rec.Position+1, e.parkedAt+1
		if p.Count > 0 {
			p.Count--
		}
	}
	l.release(e)
}

// park ends the return of a key: its first message failed again. What came back with it is in the park log
// still; what waited behind is parked in turn.
func (l *Lane) park(e *entry) {
	key := e.rec.Key
	l.bytes -= e.size()
	e.state = done
	delete(l.replays, e.rec.Position)
	if p := l.parked[key]; p != nil {
		p.replaying, p.tail = false, false
	}
	l.dirty = true
	c := l.keys[key]
	delete(l.keys, key)
	if c == nil {
		return
	}
	var first *entry
	var rest fifo
	for w := c.waiting.pop(); w != nil; w = c.waiting.pop() {
		switch {
		case w.replayed:
			l.bytes -= w.size()
			w.state = done
			delete(l.replays, w.rec.Position)
		case first == nil:
			first = w
		default:
			rest.push(w)
		}
	}
	if first != nil {
		l.keys[key] = &chain{waiting: rest}
		first.holds = true
		l.putAside(first, RemedyPark, setAsideBehind)
	}
}
