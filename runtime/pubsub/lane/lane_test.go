package lane_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

var began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func options() lane.Options {
	return lane.Options{Attempts: -1, Backoff: func(n int) time.Duration { return time.Duration(n) * time.Second },
		InFlight: 100, InFlightBytes: 1 << 20, Window: 1000, Buffer: 1 << 20, MaxProgress: 3000}
}

// bench is a lane with a log in front of it, a park log behind it and a clock.
type bench struct {
	t    *testing.T
	l    *lane.Lane
	opts lane.Options
	now  time.Time
	log  []block.LogRecord
	read int // records of log offered
	park []block.LogRecord
	dead []block.LogRecord
}

func start(t *testing.T, o lane.Options) *bench {
	return &bench{t: t, l: lane.New(o, lane.Progress{Watermark: 1}), opts: o, now: began}
}

// add appends records with these keys; positions leave holes.
func (b *bench) add(keys ...string) {
	for _, k := range keys {
		pos := uint64(len(b.log)*3 + 5)
		b.log = append(b.log, block.LogRecord{Message: block.Message{Key: k, Data: []byte("x")}, Position: pos, Time: b.now})
	}
	b.feed()
}

func (b *bench) feed() {
	n, bytes := b.l.Room()
	for ; n > 0 && bytes > 0 && b.read < len(b.log); n-- {
		b.l.Offer(b.log[b.read : b.read+1])
		b.read++
	}
}

// next delivers what may be delivered, as key@index.
func (b *bench) next() []string {
	b.feed()
	var out []string
	for _, m := range b.l.Next(b.now, nil, 1000, 1<<30) {
		s := b.name(m.LogRecord)
		if m.Attempt > 1 {
			s += fmt.Sprintf("#%d", m.Attempt)
		}
		if m.OrderGap {
			s += "!"
		}
		out = append(out, s)
	}
	return out
}

func (b *bench) name(r block.LogRecord) string { return fmt.Sprintf("%s%d", r.Key, (r.Position-5)/3) }

func pos(i int) uint64 { return uint64(i*3 + 5) }

func (b *bench) ack(is ...int) {
	for _, i := range is {
		if n := b.l.Ack(b.now, pos(i), pos(i)); n != 1 {
			b.t.Helper()
			b.t.Errorf("Ack(%d) resolved %d, want 1", i, n)
		}
	}
}

func (b *bench) nack(i int, r lane.Remedy) {
	if !b.l.Nack(b.now, pos(i), r, 0, "broken") {
		b.t.Helper()
		b.t.Errorf("Nack(%d): not at the app", i)
	}
}

// copy does what the lane set aside.
func (b *bench) copy(err error) {
	for _, a := range b.l.Asides() {
		at := uint64(0)
		if err == nil && a.Remedy == lane.RemedyPark {
			b.park = append(b.park, a.Record)
			at = uint64(len(b.park))
		} else if err == nil {
			b.dead = append(b.dead, a.Record)
		}
		b.l.Done(b.now, a.Record.Position, at, err)
	}
}

func (b *bench) want(what string, got []string, want ...string) {
	b.t.Helper()
	if !slices.Equal(got, want) {
		b.t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// restart hands the lane to another owner.
func (b *bench) restart() {
	b.t.Helper()
	p, err := lane.ParseProgress(b.l.TakeProgress())
	if err != nil {
		b.t.Fatalf("ParseProgress: %v", err)
	}
	b.l = lane.New(b.opts, p)
	b.read = 0
	for b.read < len(b.log) && b.log[b.read].Position < p.Watermark {
		b.read++
	}
}

func TestKeysWaitForTheirOwn(t *testing.T) {
	b := start(t, options())
	b.add("a", "b", "a", "", "a", "")
	b.want("first", b.next(), "a0", "b1", "3", "5")
	b.want("nothing more", b.next())
	b.ack(1, 3)
	b.want("others free nothing", b.next())
	b.ack(0)
	b.want("the next of the key", b.next(), "a2")
	b.ack(2)
	b.want("and the next", b.next(), "a4")
	b.ack(4, 5)
	if got := b.l.Watermark(); got != pos(5)+1 || !b.l.Idle() {
		t.Errorf("watermark %d, idle %v, want %d, true", got, b.l.Idle(), pos(5)+1)
	}
}

func TestRetryKeepsItsPlace(t *testing.T) {
	b := start(t, options())
	b.add("a", "a", "b", "b")
	b.want("first", b.next(), "a0", "b2")
	b.nack(0, lane.RemedyRetry)
	b.ack(2)
	b.want("b goes on, a waits", b.next(), "b3")
	if got, want := b.l.Due(), b.now.Add(time.Second); !got.Equal(want) {
		t.Errorf("Due %v, want %v", got, want)
	}
	b.now = b.now.Add(time.Second)
	b.want("a again", b.next(), "a0#2")
	b.ack(0)
	b.want("then its successor", b.next(), "a1")
}

func TestPartitionOrder(t *testing.T) {
	o := options()
	o.Ordering = lane.OrderPartition
	b := start(t, o)
	b.add("a", "b", "")
	b.want("one", b.next(), "a0")
	b.want("at a time", b.next())
	b.nack(0, lane.RemedyRetry)
	b.want("not while it waits", b.next())
	b.now = b.now.Add(time.Minute)
	b.want("again", b.next(), "a0#2")
	b.nack(0, lane.RemedyDeadLetter)
	b.want("not while it is copied", b.next())
	b.copy(nil)
	b.want("then the next", b.next(), "b1")
}

func TestNoOrder(t *testing.T) {
	o := options()
	o.Ordering = lane.OrderNone
	b := start(t, o)
	b.add("a", "a", "a")
	b.want("all", b.next(), "a0", "a1", "a2")
}

func TestLooseOrder(t *testing.T) {
	o := options()
	o.Ordering = lane.OrderLoose
	b := start(t, o)
	b.add("a", "a", "a", "b")
	b.want("all", b.next(), "a0", "a1", "a2", "b3")
	b.ack(2)
	b.nack(1, lane.RemedyRetry)
	b.nack(0, lane.RemedyRetry)
	b.add("a", "b")
	b.want("the key is held", b.next(), "b5")
	b.now = b.now.Add(time.Second)
	b.want("what failed first comes first", b.next(), "a1#2")
	b.ack(1)
	b.want("then the other", b.next(), "a0#2")
	b.ack(0)
	b.want("then what is new", b.next(), "a4")
}

func TestDeadLetter(t *testing.T) {
	o := options()
	o.Attempts, o.Then = 2, lane.RemedyDeadLetter
	b := start(t, o)
	b.add("a", "a")
	b.next()
	b.nack(0, lane.RemedyRetry)
	b.now = b.now.Add(time.Minute)
	b.want("second try", b.next(), "a0#2")
	b.nack(0, lane.RemedyRetry)
	b.want("set aside", b.next())
	b.copy(errors.New("full"))
	b.want("its copy failed: the key still waits", b.next())
	b.now = b.now.Add(time.Minute)
	b.next()
	b.copy(nil)
	if len(b.dead) != 1 || b.dead[0].Position != pos(0) {
		t.Errorf("dead letters %v", b.dead)
	}
	b.want("the next knows of the gap", b.next(), "a1!")
	b.ack(1)
	b.add("a")
	b.want("once", b.next(), "a2")
}

func TestGapOutlivesAnOwner(t *testing.T) {
	b := start(t, options())
	b.add("a", "a")
	b.next()
	b.nack(0, lane.RemedyDrop)
	b.restart()
	b.want("told by the next owner", b.next(), "a1!")
}

func TestAttemptsOutliveAnOwner(t *testing.T) {
	b := start(t, options())
	b.add("a")
	b.want("first", b.next(), "a0")
	b.restart()
	b.want("second owner", b.next(), "a0#2")
	b.restart()
	b.want("third owner", b.next(), "a0#3")
}

func TestPark(t *testing.T) {
	b := start(t, options())
	b.add("a", "b", "a", "a", "b")
	b.want("first", b.next(), "a0", "b1")
	b.nack(0, lane.RemedyPark)
	b.ack(1)
	for range 5 {
		b.copy(nil)
	}
	b.want("the others go on", b.next(), "b4")
	b.copy(nil)
	b.copy(nil)
	b.ack(4)
	if got := b.l.Watermark(); got != pos(4)+1 {
		t.Errorf("the watermark is %d, want %d: parked messages do not hold it back", got, pos(4)+1)
	}
	b.add("a")
	b.next()
	b.copy(nil)
	b.want("all in the park log, in order", names(b, b.park), "a0", "a2", "a3", "a5")
	b.restart()
	b.add("a", "b")
	b.want("parked for the next owner too", b.next(), "b7")
	b.copy(nil)

	if _, ok := b.l.Unpark("b"); ok {
		t.Error("b is not parked")
	}
	k, ok := b.l.Unpark("a")
	if !ok || k.From != 1 || k.Since != pos(0) || k.Count != 5 {
		t.Fatalf("Unpark: %+v, %v", k, ok)
	}
	at := 0
	pour := func(n int) {
		for ; n > 0 && at < len(b.park); n-- {
			b.l.Replay(b.park[at], uint64(at+1))
			at++
		}
	}
	pour(2)
	b.add("a") // still goes to the park log
	b.want("replayed", b.next(), "a0")
	b.ack(0)
	b.want("replayed", b.next(), "a2")
	if b.l.ReplayEnd("a", uint64(len(b.park)+1)) {
		t.Error("the end cannot be reached: a message is on its way to the park log")
	}
	b.ack(2)
	b.copy(nil)
	b.next()
	b.copy(nil)
	pour(10)
	if !b.l.ReplayEnd("a", uint64(len(b.park)+1)) {
		t.Error("all is in the lane")
	}
	b.add("a")
	b.want("replayed", b.next(), "a3")
	b.ack(3)
	b.want("replayed", b.next(), "a5")
	b.ack(5)
	b.want("replayed", b.next(), "a6")
	b.ack(6)
	b.want("replayed", b.next(), "a8")
	b.ack(8)
	b.want("live again", b.next(), "a9")
	b.ack(9)
	if len(b.l.Parked()) != 0 {
		t.Errorf("still parked: %v", b.l.Parked())
	}
}

func names(b *bench, recs []block.LogRecord) (out []string) {
	for _, r := range recs {
		out = append(out, b.name(r))
	}
	return out
}

func TestParkAgain(t *testing.T) {
	o := options()
	o.Attempts, o.Then = 1, lane.RemedyPark
	b := start(t, o)
	b.add("a", "a", "a")
	b.next()
	b.nack(0, lane.RemedyRetry)
	for range 4 {
		b.copy(nil)
		b.next()
	}
	b.l.Unpark("a")
	for i, r := range b.park {
		b.l.Replay(r, uint64(i+1))
	}
	b.l.ReplayEnd("a", uint64(len(b.park)+1))
	b.add("a")
	b.want("back", b.next(), "a0")
	b.ack(0)
	b.want("back", b.next(), "a1")
	b.nack(1, lane.RemedyRetry)
	b.want("parked again", b.next())
	b.copy(nil)
	if got := b.l.Parked(); len(got) != 1 || got[0].From != 2 || got[0].Since != pos(0)+1 {
		t.Errorf("Parked: %+v, want from 2 since %d", got, pos(0)+1)
	}
	b.want("what waited is behind it", names(b, b.park), "a0", "a1", "a2", "a3")
}

func TestWindow(t *testing.T) {
	o := options()
	o.Window, o.InFlight = 10, 4
	b := start(t, o)
	b.add("a", "a")
	for range 40 {
		b.add("b")
	}
	delivered := 0
	for got := b.next(); len(got) > 0; got = b.next() {
		for range got {
			delivered++
		}
		b.l.Ack(b.now, pos(1), pos(100))
	}
	if delivered > 10 || !b.l.Full() {
		t.Errorf("%d delivered past a message that is not resolved, full %v; the window is 10", delivered, b.l.Full())
	}
	b.ack(0)
	b.want("what holds it back goes on", b.next()[:1], "a1")
}

func TestBuffer(t *testing.T) {
	o := options()
	o.Buffer = 4000
	b := start(t, o)
	for range 100 {
		b.add("a")
	}
	b.next()
	if b.read > 20 {
		t.Errorf("%d records of a blocked key in memory, the buffer has room for 13", b.read)
	}
}

func TestHandlerTimeout(t *testing.T) {
	o := options()
	o.HandlerTimeout = time.Minute
	b := start(t, o)
	b.add("a", "b")
	b.next()
	if got := b.l.Due(); !got.Equal(b.now.Add(time.Minute)) {
		t.Errorf("Due %v", got)
	}
	b.now = b.now.Add(30 * time.Second)
	if !b.l.Extend(b.now, pos(0), time.Minute) || b.l.Extend(b.now, pos(7), time.Minute) {
		t.Error("Extend: want true for what is at the app only")
	}
	b.now = b.now.Add(45 * time.Second)
	b.want("b failed, and waits", b.next())
	b.now = b.now.Add(2 * time.Second)
	b.want("b again", b.next(), "b1#2")
	b.now = b.now.Add(20 * time.Second)
	b.next()
	b.now = b.now.Add(2 * time.Second)
	b.want("a again", b.next(), "a0#2")
	if b.l.Nack(b.now, pos(0), lane.RemedyRetry, 0, "") != true {
		t.Error("a is at the app")
	}
}

func TestStaleAnswersChangeNothing(t *testing.T) {
	b := start(t, options())
	b.add("a", "a")
	if n := b.l.Ack(b.now, 0, 1<<60); n != 0 {
		t.Errorf("%d resolved before anything was delivered", n)
	}
	b.next()
	b.ack(0)
	if n := b.l.Ack(b.now, pos(0), pos(0)); n != 0 || b.l.Nack(b.now, pos(0), lane.RemedyDrop, 0, "") {
		t.Error("an answer counted twice")
	}
	if n := b.l.Ack(b.now, pos(1), pos(1)); n != 0 {
		t.Error("an ack of a message that was not delivered counted")
	}
}

func TestProgressLimit(t *testing.T) {
	o := options()
	o.MaxProgress, o.Ordering, o.InFlight = 120, lane.OrderNone, 1000
	b := start(t, o)
	for range 400 {
		b.add("")
		b.next()
	}
	for i := 1; i < 400; i += 2 { // every other one: as many runs as possible
		b.l.Ack(b.now, pos(i), pos(i))
	}
	body := b.l.TakeProgress()
	if len(body) > 140 {
		t.Errorf("progress of %d bytes, the limit is 120", len(body))
	}
	if n, _ := b.l.Room(); n != 0 || !b.l.Full() {
		t.Errorf("room for %d more although progress does not fit", n)
	}
	p, err := lane.ParseProgress(body)
	if err != nil || len(p.Resolved) < 10 {
		t.Errorf("%d runs kept, %v", len(p.Resolved), err)
	}
	b.l.Ack(b.now, pos(0), pos(399))
	b.l.TakeProgress()
	if n, _ := b.l.Room(); n == 0 {
		t.Error("no room although all is resolved")
	}
}

// TestHistories drives lanes through random histories with failures, parking and changes of owner, and
// checks what an app may rely on.
func TestHistories(t *testing.T) {
	seeds := 800
	if testing.Short() {
		seeds = 300
	}
	for seed := range seeds {
		if !t.Run("", func(t *testing.T) { history(t, uint64(seed)) }) {
			t.Logf("seed %d", seed)
			return
		}
	}
}

func history(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	o := options()
	o.Attempts, o.Then = 1+r.IntN(4), lane.Remedy(r.IntN(4))
	if o.Then == lane.RemedyRetry {
		o.Attempts = -1
	}
	o.InFlight, o.Window = 1+r.IntN(8), 12+r.IntN(40)
	o.MaxProgress = 60 + r.IntN(200)
	if r.IntN(2) == 0 {
		o.HandlerTimeout = 5 * time.Second
	}
	b := start(t, o)
	done := map[string]int{}   // of a key: index of its last message resolved at the app
	state := map[uint64]bool{} // resolved for good
	var atApp []lane.Message
	keys := []string{"", "a", "b", "c"}
	resolve := func(m lane.Message) {
		i := int((m.Position - 5) / 3)
		if m.Key != "" {
			if last, ok := done[m.Key]; ok && i < last && !state[m.Position] {
				t.Errorf("key %s: message %d took effect first after %d", m.Key, i, last)
			}
			done[m.Key] = max(done[m.Key], i)
		}
		state[m.Position] = true
	}
	step := func(quiet bool) {
		switch n := r.IntN(12); {
		case n < 4 && !quiet && len(b.log) < 120:
			b.add(keys[r.IntN(len(keys))])
		case n < 7:
			b.feed()
			got := b.l.Next(b.now, nil, 1+r.IntN(5), 1<<20)
			for _, m := range got {
				t.Log("deliver", b.name(m.LogRecord), m.Attempt)
				for _, other := range atApp {
					if o.HandlerTimeout == 0 && m.Key != "" && other.Key == m.Key && other.Position != m.Position {
						t.Errorf("two messages of key %s at the app", m.Key)
					}
				}
				atApp = slices.DeleteFunc(atApp, func(o lane.Message) bool { return o.Position == m.Position })
			}
			atApp = append(atApp, got...)
			if n, _ := b.l.InFlight(); n > o.InFlight {
				t.Errorf("%d at the app, limit %d", n, o.InFlight)
			}
		case n < 9 && len(atApp) > 0:
			i := r.IntN(len(atApp))
			m := atApp[i]
			atApp = slices.Delete(atApp, i, i+1)
			if quiet || r.IntN(3) > 0 {
				t.Log("ack", b.name(m.LogRecord))
				if b.l.Ack(b.now, m.Position, m.Position) == 1 {
					resolve(m)
				}
			} else {
				remedy := lane.Remedy(r.IntN(4))
				t.Log("nack", b.name(m.LogRecord), remedy)
				b.l.Nack(b.now, m.Position, remedy, 0, "")
			}
		case n == 9:
			var err error
			if !quiet && r.IntN(4) == 0 {
				err = errors.New("broken")
			}
			for _, a := range b.l.Asides() {
				at := uint64(0)
				if err == nil && a.Remedy == lane.RemedyPark {
					b.park = append(b.park, a.Record)
					at = uint64(len(b.park))
				}
				t.Log("aside", b.name(a.Record), a.Remedy, at, err)
				b.l.Done(b.now, a.Record.Position, at, err)
			}
		case n == 10:
			b.now = b.now.Add(time.Duration(r.IntN(4)) * time.Second)
		case n == 11 && r.IntN(4) == 0:
			before := b.l.Watermark()
			t.Log("restart", before, b.l.Parked())
			b.restart()
			atApp = nil
			if b.l.Watermark() != before {
				t.Errorf("watermark %d after a change of owner, want %d", b.l.Watermark(), before)
			}
		case n == 11:
			for _, k := range b.l.Parked() {
				if quiet || r.IntN(3) == 0 {
					t.Log("unpark", k)
					b.l.Unpark(k.Key)
				}
				for i, rec := range b.park {
					if rec.Key == k.Key && b.l.ReplayRoom(k.Key) > 0 {
						b.l.Replay(rec, uint64(i+1))
					}
				}
				if b.l.ReplayRoom(k.Key) > 0 {
					b.l.ReplayEnd(k.Key, uint64(len(b.park)+1))
				}
			}
		}
	}
	mark := b.l.Watermark()
	for range 600 {
		step(false)
		if b.l.Watermark() < mark {
			t.Fatalf("the watermark went back from %d to %d", mark, b.l.Watermark())
		}
		mark = b.l.Watermark()
	}
	for range 20000 {
		if step(true); b.l.Idle() && b.read == len(b.log) && len(b.l.Parked()) == 0 {
			return
		}
	}
	t.Errorf("not all is resolved: watermark %d of %d, %d of %d read, parked %v", b.l.Watermark(), len(b.log)*3+5, b.read, len(b.log), b.l.Parked())
}

func FuzzProgress(f *testing.F) {
	f.Add([]byte{1, 5, 0, 0, 0, 3, 4})
	f.Add(lane.Progress{Watermark: 9, Parked: []lane.ParkedKey{{Key: "k", Since: 1, From: 2, Count: 3}}, Resolved: []lane.Range{{From: 12, To: 14}}, Gaps: []string{"g"},
		Tries: []lane.Try{{Position: 10, Count: 2}}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := lane.ParseProgress(b)
		if err != nil {
			return
		}
		again, err := lane.ParseProgress(p.Encode())
		if err != nil || again.Watermark != p.Watermark {
			t.Errorf("read again: %+v, %v, want %+v", again, err, p)
		}
	})
}

// TestCopySeenBeforeDone: whoever reads the park log may be faster than the answer to what wrote it.
func TestCopySeenBeforeDone(t *testing.T) {
	o := options()
	o.Attempts, o.Then = 1, lane.RemedyPark
	b := start(t, o)
	b.add("a", "a")
	b.next()
	b.nack(0, lane.RemedyRetry)
	b.copy(nil)
	b.l.Unpark("a")
	under := b.l.Asides() // the copy of a1 is made, its answer is under way
	b.park = append(b.park, under[0].Record)
	for i, r := range b.park {
		b.l.Copied(r.Position, uint64(i+1))
		b.l.Replay(r, uint64(i+1))
	}
	b.want("back", b.next(), "a0")
	b.ack(0)
	b.want("back", b.next(), "a1")
	b.nack(1, lane.RemedyDeadLetter)
	b.l.Done(b.now, pos(1), 2, nil) // the answer: to the copy, not to the dead letter
	b.copy(nil)
	b.want("dead", names(b, b.dead), "a1")
	if !b.l.ReplayEnd("a", uint64(len(b.park)+1)) || len(b.l.Parked()) != 0 || b.l.Watermark() != pos(1)+1 {
		t.Errorf("watermark %d, parked %v", b.l.Watermark(), b.l.Parked())
	}
}

// TestCopyOfAFormerOwner: what an owner parked before it crashed, and could not commit, is in the park log and
// is not resolved.
func TestCopyOfAFormerOwner(t *testing.T) {
	o := options()
	o.Attempts, o.Then = 1, lane.RemedyPark
	b := start(t, o)
	b.add("a", "a", "a")
	b.next()
	b.nack(0, lane.RemedyRetry)
	b.copy(nil)
	progress := b.l.TakeProgress()
	b.copy(nil)
	b.copy(nil)
	b.want("copied", names(b, b.park), "a0", "a1", "a2")
	p, err := lane.ParseProgress(progress)
	if err != nil {
		t.Fatal(err)
	}
	b.l, b.read = lane.New(o, p), 1
	b.l.Unpark("a")
	for i, r := range b.park[:3] {
		b.l.Replay(r, uint64(i+1))
	}
	b.want("back", b.next(), "a0")
	b.ack(0)
	b.next()
	for range 2 {
		b.copy(nil)
	}
	for i, r := range b.park[3:] {
		b.l.Replay(r, uint64(i+4))
	}
	b.want("back", b.next(), "a1")
	b.ack(1)
	b.want("back", b.next(), "a2")
	b.ack(2)
	if got := b.l.Watermark(); got != pos(2)+1 {
		t.Errorf("watermark %d, want %d", got, pos(2)+1)
	}
}

// TestReplayEndIsOld: the end of the park log that was read may be older than the last copy.
func TestReplayEndIsOld(t *testing.T) {
	o := options()
	o.Attempts, o.Then = 1, lane.RemedyPark
	b := start(t, o)
	b.add("a", "a")
	b.next()
	b.nack(0, lane.RemedyRetry)
	b.copy(nil)
	b.l.Unpark("a")
	b.l.Replay(b.park[0], 1)
	b.copy(nil) // a1
	b.want("back", b.next(), "a0")
	b.ack(0)
	if b.l.ReplayEnd("a", 2) {
		t.Error("a1 is at 2, and the park log was read up to there")
	}
	b.l.Replay(b.park[1], 2)
	b.want("back", b.next(), "a1")
}

// TestParkedFrom: what is needed of the park log.
func TestParkedFrom(t *testing.T) {
	o := options()
	o.Attempts, o.Then = 1, lane.RemedyPark
	b := start(t, o)
	if got := b.l.ParkedFrom(); got != 0 {
		t.Errorf("nothing is parked: %d", got)
	}
	b.add("a", "b")
	b.next()
	b.nack(0, lane.RemedyRetry)
	b.nack(1, lane.RemedyRetry)
	b.copy(nil)
	if got := b.l.ParkedFrom(); got != 1 {
		t.Errorf("both are parked: %d, want 1", got)
	}
	b.restart()
	for i, want := range []uint64{2, 3} {
		key := b.park[i].Key
		b.l.Unpark(key)
		b.l.Replay(b.park[i], uint64(i+1))
		b.next()
		b.ack(i)
		b.l.ReplayEnd(key, 3)
		if got := b.l.ParkedFrom(); got != want {
			t.Errorf("without %s: %d, want %d", key, got, want)
		}
	}
}

// TestLooseRefusal: the app's word on a message counts, although another of its key is to come again.
func TestLooseRefusal(t *testing.T) {
	o := options()
	o.Ordering = lane.OrderLoose
	b := start(t, o)
	b.add("a", "a", "a")
	b.want("all", b.next(), "a0", "a1", "a2")
	b.nack(0, lane.RemedyRetry)
	b.nack(1, lane.RemedyDeadLetter)
	b.nack(2, lane.RemedyDrop)
	b.copy(nil)
	b.want("dead", names(b, b.dead), "a1")
	b.now = b.now.Add(time.Minute)
	b.want("again", b.next(), "a0#2!")
	b.ack(0)
	b.want("no more", b.next())
	if got := b.l.Watermark(); got != pos(2)+1 {
		t.Errorf("watermark %d, want %d", got, pos(2)+1)
	}
}
