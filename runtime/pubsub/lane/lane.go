// Package lane is one partition in the hands of its owner: which of its records wait, which are
// at the app, which are done, and what may be delivered next without breaking order.
//
// A Lane is a state machine. It does no I/O, knows no clock and starts no goroutine: the engine
// feeds it records (Offer), takes deliveries (Next) and set-aside work (Asides), tells it what the
// app says (Ack, Nack, Extend), and stores its Progress. Callers serialise all calls.
//
// Start at Lane; queue.go holds the window of records, parked.go the keys set aside, and
// progress.go what is durable.
//
// # Order
//
// Under OrderKey at most one message of a key is unresolved at the app; its successors wait in the
// lane, whatever becomes of it. Only keys that have a message at the app, or one that failed, cost
// memory of their own. The others flow past, until the window from the first unresolved record to
// the last one read is full: then nothing new is delivered, only what holds the window back.
package lane

import (
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// Ordering is what a lane keeps in order.
type Ordering uint8

const (
	// OrderKey keeps messages of one key in order: at most one of them is unresolved at the app.
	// Those without a key are free. It is the default.
	OrderKey Ordering = iota
	// OrderPartition keeps all messages of a partition in order, one at a time.
	OrderPartition
	// OrderNone keeps no order.
	OrderNone
	// OrderLoose delivers in order without waiting for answers, and holds a key only after one of its
	// messages failed. It is for apps that take batches one after the other.
	OrderLoose
)

// Remedy is what becomes of a message that the app could not handle.
type Remedy uint8

const (
	// RemedyRetry delivers it again, in its place: under OrderKey only its key waits.
	RemedyRetry Remedy = iota
	// RemedyDeadLetter copies it to the dead-letter topic and goes on. The next message of its key
	// says that there is a gap.
	RemedyDeadLetter
	// RemedyPark sets it and all later messages of its key aside, in order, until Unpark. A message
	// without a key goes to the dead-letter topic.
	RemedyPark
	// RemedyDrop goes on without it.
	RemedyDrop
)

// Options are how a lane works. All are set; there are no defaults.
type Options struct {
	Ordering Ordering
	Attempts int    // deliveries before Then; negative: for ever
	Then     Remedy // RemedyRetry: for ever
	// Backoff is the pause after failure n of a message, from 1.
	Backoff func(n int) time.Duration
	// HandlerTimeout bounds a message's stay at the app; 0 means no limit.
	HandlerTimeout time.Duration
	InFlight       int // messages at the app
	InFlightBytes  int
	Window         int // records from the first unresolved one to the last one read
	Buffer         int // bytes of unresolved records kept
	MaxProgress    int // bytes of Progress
}

// Message is one delivery.
type Message struct {
	block.LogRecord
	Attempt  int  // from 1
	OrderGap bool // an earlier message of the key was dead-lettered or dropped
}

// Aside is a record to be copied out of the lane: to the park log of the partition or to the
// dead-letter topic. Done answers it.
type Aside struct {
	Remedy Remedy // RemedyPark or RemedyDeadLetter
	Record block.LogRecord
	Failed int // deliveries that failed
	Reason string
}

// Lane is one partition. The zero value is not ready; use New.
type Lane struct {
	opts Options

	window window
	cursor int // slots of the window before it were looked at by Next

	urgent  fifo   // may go before what the cursor finds: successors, repetitions that are due
	held    timers // repetitions that are not due
	asides  fifo   // to be copied out; not handed to the engine yet
	setting int    // messages set aside whose copy is not done
	out     list   // at the app, in the order of their deadlines

	keys     map[string]*chain   // those with a message at the app, failed, or being set aside
	gaps     map[string]struct{} // keys whose next message tells of a gap
	parked   map[string]*parked  // keys set aside
	replays  map[uint64]*entry   // parked messages that are back, by position
	early    map[uint64]struct{} // set aside, with a copy that was seen before Done
	parkedTo uint64              // greater than any position of the park log seen

	resolvedBefore ranges // what the last owner had resolved, beyond its watermark
	tries          map[uint64]int

	bytes    int // of unresolved records in memory
	outBytes int
	acks     int  // resolved since Progress was last taken
	dirty    bool // Progress changed since it was last taken
	squeezed bool // Progress had to leave something out
	Paused   bool // nothing is delivered
}

// chain is what waits behind a key's first unresolved message.
type chain struct{ waiting fifo }

// maxGaps bounds the keys that are remembered for OrderGap; beyond it the flag is not told.
const maxGaps = 4096

// New makes a lane that goes on where progress ends. The first record offered must be the first
// one whose position is at least p.Watermark.
func New(opts Options, p Progress) *Lane {
	l := &Lane{opts: opts, keys: map[string]*chain{}, gaps: map[string]struct{}{}, parked: map[string]*parked{}, replays: map[uint64]*entry{},
		early: map[uint64]struct{}{}, resolvedBefore: p.Resolved, tries: map[uint64]int{}}
	l.window.next = p.Watermark
	for _, k := range p.Parked {
		l.parked[k.Key] = &parked{ParkedKey: k}
		l.parkedTo = max(l.parkedTo, k.From)
	}
	for _, t := range p.Tries {
		l.tries[t.Position] = t.Count
	}
	for _, k := range p.Gaps {
		l.gaps[k] = struct{}{}
	}
	l.out.init()
	return l
}

// Offer adds records that were read, in order.
func (l *Lane) Offer(recs []block.LogRecord) {
	for i := range recs {
		r := &recs[i]
		if r.Position < l.window.next {
			continue // a reader repeats itself
		}
		if l.resolvedBefore.has(r.Position) {
			l.window.push(r.Position, nil)
			l.window.advance(&l.cursor)
			continue
		}
		e := &entry{rec: *r, attempts: l.tries[r.Position]}
		delete(l.tries, r.Position)
		l.window.push(r.Position, e)
		l.bytes += e.size()
	}
}

// Room is how many more records, and bytes of them, may be offered; both 0 when there is no room.
func (l *Lane) Room() (records, bytes int) {
	records = l.opts.Window - l.window.len()
	bytes = l.opts.Buffer - l.bytes
	if ahead := l.window.len() - l.cursor; ahead > 0 {
		// What lies unread by Next is enough for one round at the app.
		records = min(records, l.opts.InFlight-ahead)
	}
	if records <= 0 || bytes <= 0 || l.squeezed {
		return 0, 0
	}
	return records, bytes
}

// Next takes up to messages deliveries, of at most bytes altogether (one that is larger goes
// alone), and appends them to into.
func (l *Lane) Next(now time.Time, into []Message, messages, bytes int) []Message {
	l.wake(now)
	if l.Paused {
		return into
	}
	messages = min(messages, l.opts.InFlight-l.out.n)
	bytes = min(bytes, l.opts.InFlightBytes-l.outBytes)
	start := len(into)
	for messages > 0 && bytes > 0 {
		e := l.candidate(now)
		if e == nil {
			break
		}
		size := e.payload()
		if size > bytes && (len(into) > start || l.out.n > 0) {
			l.urgent.pushFront(e)
			break
		}
		if into == nil {
			into = make([]Message, 0, min(messages, 1+l.urgent.n+l.window.len()-l.cursor))
		}
		messages, bytes = messages-1, bytes-size
		into = append(into, l.deliver(now, e))
	}
	return into
}

// candidate is the next entry that may be delivered; nil when there is none.
func (l *Lane) candidate(now time.Time) *entry {
	if l.opts.Ordering == OrderPartition && (l.out.n > 0 || l.held.len() > 0 || l.setting > 0) {
		return nil
	}
	if e := l.urgent.pop(); e != nil {
		return e
	}
	for l.cursor < l.window.len() && !l.squeezed {
		e := l.window.at(l.cursor)
		l.cursor++
		if e != nil && l.admit(e) {
			return e
		}
		if e == nil {
			continue
		}
		if l.opts.Ordering == OrderPartition {
			return nil
		}
	}
	return nil
}

// admit takes a fresh entry's key; false when it has to wait or is set aside.
func (l *Lane) admit(e *entry) bool {
	key := e.rec.Key
	if key == "" {
		return true
	}
	if c := l.keys[key]; c != nil {
		c.waiting.push(e)
		return false
	}
	parked := l.isParked(key)
	if parked || l.opts.Ordering == OrderKey {
		l.keys[key] = &chain{}
		e.holds = true
	}
	if parked {
		l.putAside(e, RemedyPark, setAsideBehind)
	}
	return !parked
}

func (l *Lane) deliver(now time.Time, e *entry) Message {
	e.attempts++
	e.since = now
	if l.opts.HandlerTimeout > 0 {
		e.due = now.Add(l.opts.HandlerTimeout)
	}
	e.state, e.given = atApp, true
	l.out.insert(e)
	l.outBytes += e.payload()
	_, after := l.gaps[e.rec.Key]
	l.dirty = true // how often it was tried is kept, for one that kills its handler
	return Message{LogRecord: e.rec, Attempt: e.attempts, OrderGap: after && e.rec.Key != ""}
}

// wake moves repetitions that are due to the urgent ones, and counts messages that stayed too long as
// failed.
func (l *Lane) wake(now time.Time) {
	for e := l.held.top(); e != nil && !now.Before(e.due); e = l.held.top() {
		l.held.pop()
		if e.remedy != RemedyRetry { // a copy is tried again
			if e.state == setAside {
				l.asides.push(e)
			}
			continue
		}
		l.urgent.push(e)
	}
	for l.opts.HandlerTimeout > 0 {
		e := l.out.first()
		if e == nil || now.Before(e.due) {
			return
		}
		l.fail(now, e, RemedyRetry, 0, "the handler took too long")
	}
}

// Hungry tells whether Next would deliver more if it was allowed to.
func (l *Lane) Hungry() bool {
	return !l.Paused && (l.urgent.n > 0 || l.cursor < l.window.len() && !l.squeezed)
}

// Due is when Next is to be called although nothing else happens; zero when it need not be.
func (l *Lane) Due() time.Time {
	var t time.Time
	if e := l.held.top(); e != nil {
		t = e.due
	}
	if l.opts.HandlerTimeout > 0 {
		if e := l.out.first(); e != nil && (t.IsZero() || e.due.Before(t)) {
			t = e.due
		}
	}
	return t
}

// at is the unresolved entry at a position.
func (l *Lane) at(position uint64) *entry {
	if e := l.replays[position]; e != nil {
		return e
	}
	return l.window.find(position)
}

// Ack resolves messages at the app from position from to to. It returns how many it resolved: positions
// that are not at the app, because they were resolved before or never delivered, count for nothing.
func (l *Lane) Ack(now time.Time, from, to uint64) (resolved int) {
	for _, e := range l.replays {
		if e.rec.Position >= from && e.rec.Position <= to && e.state == atApp {
			l.resolve(e)
			resolved++
		}
	}
	l.window.each(from, to, func(e *entry) {
		if e.state == atApp {
			l.resolve(e)
			resolved++
		}
	})
	l.window.advance(&l.cursor)
	return resolved
}

// Delivered tells whether there is nothing from one position to another that was never given to the app.
func (l *Lane) Delivered(from, to uint64) bool {
	if to >= l.window.next {
		return false
	}
	ok := true
	l.window.each(from, to, func(e *entry) { ok = ok && e.given })
	return ok
}

// Nack says that the app could not handle the message at a position. A zero delay means the lane's own.
// It reports whether the message was at the app.
func (l *Lane) Nack(now time.Time, position uint64, r Remedy, delay time.Duration, reason string) bool {
	e := l.at(position)
	if e == nil || e.state != atApp {
		return false
	}
	l.fail(now, e, r, delay, reason)
	l.window.advance(&l.cursor)
	return true
}

// Extend gives a message at the app more time. It reports whether it was there.
func (l *Lane) Extend(now time.Time, position uint64, by time.Duration) bool {
	e := l.at(position)
	if e == nil || e.state != atApp {
		return false
	}
	if l.opts.HandlerTimeout > 0 {
		l.out.remove(e)
		e.due = now.Add(by)
		l.out.insert(e)
	}
	return true
}

// Return takes a message back that the app has not begun with: it will be delivered again, at once, as if it
// had not been. It reports whether it was there.
func (l *Lane) Return(position uint64) bool {
	e := l.at(position)
	if e == nil || e.state != atApp {
		return false
	}
	l.leaveApp(e)
	e.attempts--
	l.held.push(e)
	return true
}

// Tried counts further deliveries of a message at the app, that somebody above made.
func (l *Lane) Tried(position uint64, more int) {
	if e := l.at(position); e != nil && e.state == atApp && more > 0 {
		e.attempts += more
	}
}

func (l *Lane) leaveApp(e *entry) {
	l.out.remove(e)
	l.outBytes -= e.payload()
	e.state = waiting
	e.remedy, e.due = RemedyRetry, time.Time{}
}

// fail applies a remedy to a message at the app.
func (l *Lane) fail(now time.Time, e *entry, r Remedy, delay time.Duration, reason string) {
	l.leaveApp(e)
	l.dirty = true
	if r == RemedyRetry && l.opts.Attempts >= 0 && e.attempts >= l.opts.Attempts {
		r = l.opts.Then
	}
	if l.opts.Ordering == OrderLoose && e.rec.Key != "" && !e.holds {
		switch c := l.keys[e.rec.Key]; {
		case c == nil:
			l.keys[e.rec.Key] = &chain{}
			e.holds = true
		case r == RemedyRetry || r == RemedyPark: // another of the key failed: this one comes again in its turn
			c.waiting.insert(e)
			return
		}
	}
	if r == RemedyPark && !l.mayPark(e) {
		r = RemedyRetry
		if e.rec.Key == "" {
			r = RemedyDeadLetter
		}
	}
	switch r {
	case RemedyDrop:
		l.resolve(e)
		l.mark(e)
	case RemedyPark, RemedyDeadLetter:
		l.putAside(e, r, reason)
	default:
		if delay <= 0 {
			delay = l.opts.Backoff(e.attempts)
		}
		e.due = now.Add(delay)
		l.held.push(e)
	}
}

// mark remembers that a key has a gap.
func (l *Lane) mark(e *entry) {
	if e.rec.Key != "" && len(l.gaps) < maxGaps {
		l.gaps[e.rec.Key] = struct{}{}
	}
}

// resolve is done with an entry. The window is not advanced.
func (l *Lane) resolve(e *entry) {
	if e.state == atApp {
		l.leaveApp(e)
		delete(l.gaps, e.rec.Key)
	}
	l.acks++
	l.dirty = true
	l.bytes -= e.size()
	e.state = done
	if e.replayed {
		delete(l.replays, e.rec.Position)
		l.replayDone(e)
		return
	}
	l.window.resolve(e.rec.Position)
	l.release(e)
}

// release lets the next message of a key go, if it was e that held it back.
func (l *Lane) release(e *entry) {
	key := e.rec.Key
	c := l.keys[key]
	if c == nil || !e.holds {
		return
	}
	next := c.waiting.pop()
	switch {
	case next == nil:
		delete(l.keys, key)
		if p := l.parked[key]; p != nil && p.tail {
			delete(l.parked, key) // the key is live again
		}
	case l.isParked(key) && !next.replayed:
		next.holds = true
		l.putAside(next, RemedyPark, setAsideBehind)
	default:
		next.holds = true
		l.urgent.push(next)
	}
}

// InFlight is how much is at the app.
func (l *Lane) InFlight() (messages, bytes int) { return l.out.n, l.outBytes }

// Oldest is since when the oldest message is at the app; zero when none is.
func (l *Lane) Oldest() time.Time {
	var t time.Time
	for e := l.out.first(); e != nil; e = l.out.after(e) {
		if t.IsZero() || e.since.Before(t) {
			t = e.since
		}
		if l.opts.HandlerTimeout == 0 {
			break // the list is in the order of deliveries
		}
	}
	return t
}

// Full tells whether the window holds back what is new.
func (l *Lane) Full() bool {
	return l.window.len() >= l.opts.Window || l.squeezed || l.bytes >= l.opts.Buffer
}

// Watermark is the position of the first unresolved record, or where it will be.
func (l *Lane) Watermark() uint64 { return l.window.watermark() }

// ReadTo is the position from which on nothing was offered.
func (l *Lane) ReadTo() uint64 { return l.window.next }

// Idle tells whether all that was offered is resolved.
func (l *Lane) Idle() bool { return l.window.len() == 0 && len(l.replays) == 0 }
