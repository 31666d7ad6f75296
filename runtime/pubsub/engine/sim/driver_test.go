package sim_test

import (
	"context"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/memory"
)

// link is the broker as one sidecar sees it: every call can be slow, fail or hang.
type link struct {
	*memory.PubSub
	w    *world
	name string // of the sidecar
	n    uint64 // of the link, for rolls

	replaced bool // guarded by world.mu; another has its name, and it may not know yet

	mu      sync.Mutex
	calls   map[string]uint64 // how often each was made, for rolls
	dead    bool
	died    time.Time
	ended   chan struct{} // closed when dead
	halted  time.Time     // until when the process stands still
	cut     time.Time     // until when nothing gets through
	deaf    time.Time     // until when watches hear nothing
	silent  bool          // the cut hangs instead of refusing
	changed chan struct{} // closed and replaced when a cut begins
	watches map[*watch]bool
}

var (
	_ block.Log       = (*link)(nil)
	_ block.LogAtomic = (*link)(nil)
	_ block.LogKeeper = (*link)(nil)
)

func (w *world) link(name string) *link {
	w.links++
	return &link{PubSub: w.hub.PubSub(), w: w, name: name, n: w.links, calls: map[string]uint64{}, ended: make(chan struct{}),
		changed: make(chan struct{}), watches: map[*watch]bool{}}
}

// kill ends the process: nothing gets in or out any more.
func (l *link) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dead {
		l.dead, l.died = true, time.Now()
		close(l.ended)
	}
}

func (l *link) halt(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.halted = time.Now().Add(d)
}

func (l *link) sever(d time.Duration, silent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut, l.silent = time.Now().Add(d), silent
	close(l.changed)
	l.changed = make(chan struct{})
	for x := range l.watches {
		x.lost = true
	}
}

// plug has watches hear late what happens.
func (l *link) plug(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deaf = time.Now().Add(d)
}

// resetWatches has watches miss what comes and start anew.
func (l *link) resetWatches() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for x := range l.watches {
		x.lost = true
		x.poke()
	}
}

// thawed returns when the process does not stand still.
func (l *link) thawed() {
	for {
		l.mu.Lock()
		d, dead := time.Until(l.halted), l.dead
		l.mu.Unlock()
		if d <= 0 || dead {
			return
		}
		select {
		case <-time.After(d):
		case <-l.ended:
		}
	}
}

// Stall is for engines built with timers that a halt delays.
func (l *link) Stall() { l.thawed() }

// standing is how long the process still stands still.
func (l *link) standing() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.halted)
}

// killedAt is when it was killed; zero if it was not.
func (l *link) killedAt() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.died
}

func (l *link) gone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

// fate is what becomes of one call.
type fate struct {
	there, back   time.Duration
	before, after bool // it fails, before or after its effect
	arrives       bool // what was sent arrives although its caller gave up
}

func (l *link) fate(what string) fate {
	l.mu.Lock()
	l.calls[what]++
	n := l.calls[what]
	l.mu.Unlock()
	r := l.w.roll(l.n, hashText(what), n)
	c := &l.w.cfg
	f := fate{there: r.upTo(c.delay) + 1, back: r.upTo(c.delay) + 1, arrives: r.chance(0.5)}
	if l.w.noisy() {
		f.before, f.after = r.chance(c.noise), r.chance(c.noise)
		if r.chance(c.noise / 2) {
			f.there *= 40
		}
		if r.chance(c.noise / 2) {
			f.back *= 40
		}
	}
	return f
}

// broken is the error of a call that did not get through.
func broken(what string, sent fault.Sent) error {
	return fault.New("sim.link", fault.Unavailable, "%s: the broker cannot be reached", what).WithSent(sent)
}

// through waits until a cut is over, or fails as it does; nil when there is none.
func (l *link) through(ctx context.Context, what string, sent fault.Sent) error {
	l.mu.Lock()
	d, silent, dead := time.Until(l.cut), l.silent, l.dead
	l.mu.Unlock()
	switch {
	case dead:
		sleep(ctx, 50*time.Millisecond, nil)
		return broken(what, sent)
	case d <= 0:
		return nil
	case silent:
		if !sleep(ctx, d, l.ended) {
			return fault.New("sim.link", fault.Unavailable, "%s: no answer", what).WithSent(sent).Because(ctx.Err())
		}
		return broken(what, sent)
	default:
		sleep(ctx, 2*time.Millisecond, nil)
		return broken(what, sent)
	}
}

// sleep is false when ctx ended first, or the other channel was closed.
func sleep(ctx context.Context, d time.Duration, over <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	case <-over:
		return false
	}
}

// call makes a request whose effect happens at the broker, at most once, be it after the caller gave
// up. What effect found is for the caller only if err is nil.
func (l *link) call(ctx context.Context, what string, effect func()) error {
	return l.request(ctx, what, true, effect)
}

// ask makes a request that changes nothing.
func (l *link) ask(ctx context.Context, what string, effect func()) error {
	return l.request(ctx, what, false, effect)
}

func (l *link) request(ctx context.Context, what string, late bool, effect func()) error {
	l.thawed()
	if err := ctx.Err(); err != nil {
		return fault.Wrap("sim.link", fault.Unavailable, err)
	}
	if err := l.through(ctx, what, fault.SentNever); err != nil {
		l.thawed()
		return err
	}
	f := l.fate(what)
	began := time.Now()
	l.mu.Lock()
	changed := l.changed
	l.mu.Unlock()
	if !sleep(ctx, f.there, l.ended) {
		if late && f.arrives {
			time.AfterFunc(max(1, f.there-time.Since(began)), effect)
		}
		l.thawed()
		return fault.New("sim.link", fault.Unavailable, "%s: no answer", what).WithSent(fault.SentMaybe).Because(ctx.Err())
	}
	if f.before {
		l.thawed()
		return broken(what, fault.SentMaybe)
	}
	effect()
	lost := !sleep(ctx, f.back, l.ended) || f.after
	select {
	case <-changed: // the answer is lost with the connection
		lost = true
		if err := l.through(ctx, what, fault.SentMaybe); err != nil {
			l.thawed()
			return err
		}
	default:
	}
	l.thawed()
	if lost {
		return broken(what, fault.SentMaybe)
	}
	return nil
}

// Append implements block.Log.
func (l *link) Append(ctx context.Context, recs []block.LogRecord) []block.AppendResult {
	recs = append([]block.LogRecord(nil), recs...)
	results := make([]block.AppendResult, len(recs))
	var there []block.AppendResult
	err := l.call(ctx, "append", func() { there = l.w.append(l, recs) })
	for i := range results {
		if err != nil {
			results[i].Err = err
		} else if results[i] = there[i]; there[i].Err == nil {
			l.w.judge.answered(&recs[i])
		}
	}
	return results
}

// AppendAtomic implements block.LogAtomic.
func (l *link) AppendAtomic(ctx context.Context, recs []block.LogRecord) ([]block.AppendResult, error) {
	recs = append([]block.LogRecord(nil), recs...)
	var there []block.AppendResult
	var refused error
	if err := l.call(ctx, "atomic", func() { there, refused = l.w.appendAtomic(l, recs) }); err != nil {
		return nil, err
	}
	if refused == nil || fault.Of(refused) == fault.Exists {
		for i := range recs {
			l.w.judge.answered(&recs[i])
		}
	}
	return there, refused
}

// Bounds implements block.Log.
func (l *link) Bounds(ctx context.Context, topic string, parts []int32) ([]block.LogBounds, error) {
	var there []block.LogBounds
	var failed error
	if err := l.ask(ctx, "bounds", func() { there, failed = l.PubSub.Bounds(context.Background(), topic, parts) }); err != nil {
		return nil, err
	}
	return there, failed
}

// PositionAt implements block.Log.
func (l *link) PositionAt(ctx context.Context, topic string, part int32, t time.Time) (uint64, error) {
	var at uint64
	var failed error
	if err := l.ask(ctx, "position", func() { at, failed = l.PubSub.PositionAt(context.Background(), topic, part, t) }); err != nil {
		return 0, err
	}
	return at, failed
}

// Consumed implements block.LogKeeper. It is called under the engine's locks.
func (l *link) Consumed(topic, group string, part int32, upTo uint64) {
	if l.gone() {
		return
	}
	l.w.judge.consumed(topic, group, part, upTo)
	l.PubSub.Consumed(topic, group, part, upTo)
}

// LedgerGet implements block.Ledger.
func (l *link) LedgerGet(ctx context.Context, key string) (block.LedgerEntry, error) {
	var e block.LedgerEntry
	var failed error
	if err := l.ask(ctx, "get "+key, func() { e, failed = l.PubSub.LedgerGet(context.Background(), key) }); err != nil {
		return block.LedgerEntry{}, err
	}
	return e, failed
}

// LedgerPut implements block.Ledger.
func (l *link) LedgerPut(ctx context.Context, writes []block.LedgerWrite) []block.LedgerResult {
	var there []block.LedgerResult
	if err := l.call(ctx, "put "+writes[0].Key, func() { there = l.w.ledgerPut(l, writes) }); err != nil {
		failed := make([]block.LedgerResult, len(writes))
		for i := range failed {
			failed[i].Err = err
		}
		return failed
	}
	return there
}

// watch is news on their way.
type watch struct {
	wake  chan struct{}
	queue []news // guarded by link.mu
	lost  bool   // guarded by link.mu; it missed something
}

type news struct {
	entries []block.LedgerEntry
	reset   bool
}

func (x *watch) poke() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// LedgerWatch implements block.Ledger: news come late, and after a lost connection all anew.
func (l *link) LedgerWatch(ctx context.Context, prefix string, tell func([]block.LedgerEntry, bool)) error {
	for {
		l.thawed()
		if err := l.through(ctx, "watch", fault.SentNever); err != nil {
			return err
		}
		if err := l.listen(ctx, prefix, tell); err != nil {
			return err
		}
	}
}

// listen tells news until the connection is lost (nil), or it ends.
func (l *link) listen(ctx context.Context, prefix string, tell func([]block.LedgerEntry, bool)) error {
	x := &watch{wake: make(chan struct{}, 1)}
	l.mu.Lock()
	l.watches[x] = true
	l.mu.Unlock()
	inner, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.PubSub.LedgerWatch(inner, prefix, func(entries []block.LedgerEntry, reset bool) {
			l.mu.Lock()
			x.queue = append(x.queue, news{entries, reset})
			l.mu.Unlock()
			x.poke()
		})
	}()
	defer func() {
		stop()
		<-done
		l.mu.Lock()
		delete(l.watches, x)
		l.mu.Unlock()
	}()
	for {
		select {
		case <-x.wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ended:
			return broken("watch", fault.SentNever)
		}
		f := l.fate("news " + prefix)
		l.mu.Lock()
		deaf := time.Until(l.deaf)
		l.mu.Unlock()
		if !sleep(ctx, max(f.back, deaf), l.ended) {
			return fault.Wrap("sim.link", fault.Unavailable, ctx.Err())
		}
		l.thawed()
		l.mu.Lock()
		lost, queue, dead := x.lost, x.queue, l.dead
		x.queue = nil
		l.mu.Unlock()
		switch {
		case dead:
			return broken("watch", fault.SentNever)
		case lost && f.before:
			return broken("watch", fault.SentNever)
		case lost:
			return nil
		}
		for _, n := range queue {
			tell(n.entries, n.reset)
		}
	}
}

// reader stalls, fails and hangs.
type reader struct {
	block.LogReader
	l       *link
	what    string
	waiting []block.LogRecord // read, and not handed over yet
	broken  bool
}

// OpenReader implements block.Log.
func (l *link) OpenReader(ctx context.Context, topic string, part int32, from uint64, o block.ReadOptions) (block.LogReader, error) {
	var r block.LogReader
	var failed error
	if err := l.ask(ctx, "open", func() { r, failed = l.PubSub.OpenReader(context.Background(), topic, part, from, o) }); err != nil {
		if r != nil {
			r.Close()
		}
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	return &reader{LogReader: r, l: l, what: "read " + topic}, nil
}

// Next implements block.LogReader.
func (r *reader) Next(ctx context.Context, most, bytes int) ([]block.LogRecord, error) {
	for {
		r.l.thawed()
		if r.broken || r.l.gone() {
			sleep(ctx, 50*time.Millisecond, nil)
			return nil, broken(r.what, fault.SentNever)
		}
		if len(r.waiting) == 0 {
			recs, err := r.LogReader.Next(ctx, most, bytes)
			if err != nil {
				r.l.thawed()
				return nil, err
			}
			r.waiting = append([]block.LogRecord(nil), recs...)
		}
		f := r.l.fate(r.what)
		if f.before && f.after {
			r.broken = true
			continue
		}
		if !sleep(ctx, f.back, r.l.ended) {
			if r.l.gone() {
				continue
			}
			return nil, ctx.Err()
		}
		if err := r.l.through(ctx, r.what, fault.SentNever); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			continue // repaired inside
		}
		r.l.thawed()
		n := min(len(r.waiting), max(1, most))
		out := r.waiting[:n:n]
		r.waiting = r.waiting[n:]
		return out, nil
	}
}
