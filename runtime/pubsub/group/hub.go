package group

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

const opJoin fault.Op = "group.Join"

// HubOptions say which group a hub is a member of, and how.
type HubOptions struct {
	// Group is the name of the group in the ledger.
	Group string
	// TTL is after what silence others take this member for dead. 0 means 6 s; less than 1 s
	// means 1 s. The members of a group may differ.
	TTL time.Duration
	// Member begins the name of this member in the ledger; the rest is random, so that two
	// processes never share a name. It is for people to read.
	Member string
	// Log takes what goes wrong. Nil means slog.Default().
	Log *slog.Logger
}

// Hub is one process's membership in one group. It lives in the ledger from the first Join to
// the last Leave: between them it writes one heartbeat each third of the TTL and watches the
// group's entries, and after them nothing of it runs. It is safe for concurrent use.
type Hub struct {
	ledger block.Ledger
	opts   HubOptions

	mu     sync.Mutex
	run    *run // the newest
	closed bool
	now    atomic.Pointer[run] // the same, for Alive
}

// NewHub makes a hub. It does no I/O and starts nothing.
func NewHub(ledger block.Ledger, opts HubOptions) *Hub {
	if opts.TTL == 0 {
		opts.TTL = 6 * time.Second
	}
	opts.TTL = max(opts.TTL, time.Second)
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	return &Hub{ledger: ledger, opts: opts}
}

// Alive tells whether this member may act for its partitions at that time: its last heartbeat
// is young enough that nobody takes it for dead.
func (h *Hub) Alive(now time.Time) bool {
	r := h.now.Load()
	return r != nil && r.alive(now)
}

// Close ends the hub at once, like a crash: its seats lose what they have, and others find out
// after the TTL. It is for the end of a process whose seats could not leave in time. It returns
// when nothing of the hub runs any more, and is safe twice.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closed = true
	r := h.run
	h.mu.Unlock()
	if r != nil {
		r.kill()
		<-r.gone
	}
}

// current is a run that is not over, or a new one.
func (h *Hub) current() (*run, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, fault.New(opJoin, fault.Unavailable, "group %q: the member is closed", h.opts.Group).WithSent(fault.SentNever)
	}
	if h.run == nil || h.run.over() {
		h.run = newRun(h)
		h.now.Store(h.run)
	}
	return h.run, nil
}

// run is a hub's time in the ledger: a machine and what makes it live. Whatever happens becomes a
// turn of the machine, under one lock. Requests go to the ledger in goroutines of their own; events
// are told by the goroutine of tellAll, and by no other.
type run struct {
	ledger block.Ledger
	log    *slog.Logger
	ttl    time.Duration
	prefix string
	base   time.Time
	ctx    context.Context // of all that runs
	cancel context.CancelFunc
	wg     sync.WaitGroup // requests and the watch
	gone   chan struct{}  // closed when nothing runs any more
	tell   chan struct{}  // there are events, or it is over
	timer  *time.Timer
	fence  atomic.Int64 // until when this member may act, since base

	mu      sync.Mutex
	m       *machine
	joined  bool // there was a seat
	ended   bool // nothing begins any more
	killed  bool
	version uint64 // of the machine, as published to the seats
	seats   map[int]*Seat
	tickets map[uint64]chan *failure
	ticket  uint64
}

func newRun(h *Hub) *run {
	member := rand.Text()[:13]
	if h.opts.Member != "" {
		member = h.opts.Member + "-" + member
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &run{
		ledger: h.ledger, ttl: h.opts.TTL, prefix: watchPrefix(h.opts.Group),
		log:  h.opts.Log.With("group", h.opts.Group, "member", member),
		base: time.Now(), ctx: ctx, cancel: cancel,
		gone: make(chan struct{}), tell: make(chan struct{}, 1), timer: time.NewTimer(time.Hour),
		m:     newMachine(h.opts.Group, member, h.opts.TTL, min(50*time.Millisecond, h.opts.TTL/20)),
		seats: map[int]*Seat{}, tickets: map[uint64]chan *failure{},
	}
	r.timer.Stop()
	r.wg.Go(r.watch)
	go r.loop()
	return r
}

func (r *run) alive(now time.Time) bool { return int64(now.Sub(r.base)) < r.fence.Load() }

func (r *run) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

// turn lets the machine take in what happened and does what it says. It reports false when the
// run is over, and f was not called.
func (r *run) turn(f func(now instant)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return false
	}
	now := time.Since(r.base)
	r.m.wake(now)
	if f != nil {
		f(now)
	}
	r.m.step(now)
	r.publish()
	r.perform()
	if at := r.m.wakeAt; at > 0 {
		r.timer.Reset(at - now)
	} else {
		r.timer.Stop()
	}
	if len(r.m.own) == 0 && r.joined {
		r.ended = true
		r.notify()
	}
	return true
}

// publish makes known what the machine came to: first what seats ask at each delivery, then
// what callers wait for, then the events.
func (r *run) publish() {
	m := r.m
	r.fence.Store(int64(m.fenceAt()))
	if m.version != r.version {
		r.version = m.version
		for handle, s := range r.seats {
			epochs := map[Part]uint64{}
			if own := m.own[handle]; own != nil {
				for p, h := range own.holds {
					if h.told() {
						epochs[p] = h.epoch
					}
				}
			}
			s.epochs.Store(&epochs)
		}
	}
	for _, o := range m.outcomes {
		if ch := r.tickets[o.ticket]; ch != nil {
			ch <- o.err
			delete(r.tickets, o.ticket)
		}
	}
	for _, e := range m.events {
		if s := r.seats[e.seat]; s != nil {
			s.push(e)
		}
	}
	for _, n := range m.notes {
		r.log.Warn(n)
	}
	if len(m.events) > 0 {
		r.notify()
	}
	m.outcomes, m.events, m.notes = nil, nil, nil
}

func (r *run) notify() {
	select {
	case r.tell <- struct{}{}:
	default:
	}
}

// newTicket makes something to wait for. The caller holds the lock.
func (r *run) newTicket() (uint64, chan *failure) {
	r.ticket++
	ch := make(chan *failure, 1)
	r.tickets[r.ticket] = ch
	return r.ticket, ch
}

// readers is how many entries are read at once.
const readers = 16

// perform sends the machine's requests to the ledger: writes together, but for the heartbeat,
// which nothing may hold up.
func (r *run) perform() {
	var writes, reads []request
	for _, q := range r.m.requests {
		switch {
		case q.get:
			reads = append(reads, q)
		case q.pulse:
			r.wg.Go(func() { r.write([]request{q}) })
		default:
			writes = append(writes, q)
		}
	}
	r.m.requests = nil
	if len(writes) > 0 {
		r.wg.Go(func() { r.write(writes) })
	}
	n := min(readers, len(reads))
	for i := range n {
		r.wg.Go(func() {
			for k := i; k < len(reads); k += n {
				r.read(reads[k])
			}
		})
	}
}

// patience is how long a request may take before its outcome counts as unknown.
func (r *run) patience() (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.ctx, r.ttl/3)
}

func (r *run) write(reqs []request) {
	ctx, cancel := r.patience()
	defer cancel()
	writes := make([]block.LedgerWrite, len(reqs))
	for i, q := range reqs {
		writes[i] = q.LedgerWrite
	}
	results := r.ledger.LedgerPut(ctx, writes)
	r.turn(func(now instant) {
		for i, q := range reqs {
			a := reply{op: q.op, verdict: failed}
			if i < len(results) {
				switch err := results[i].Err; {
				case err == nil:
					a.verdict = done
					a.entry.Revision = results[i].Revision
				case fault.Of(err) == fault.Conflict:
					a.verdict = conflict
				default:
					r.log.Debug("a write of the group's ledger failed", "key", q.Key, "error", err)
				}
			}
			r.m.reply(a, now)
		}
	})
}

func (r *run) read(q request) {
	ctx, cancel := r.patience()
	defer cancel()
	e, err := r.ledger.LedgerGet(ctx, q.Key)
	a := reply{op: q.op, entry: e}
	if err != nil {
		a.verdict = failed
		r.log.Debug("a read of the group's ledger failed", "key", q.Key, "error", err)
	}
	r.turn(func(now instant) { r.m.reply(a, now) })
}

// watch listens to the group's entries until the run is over.
func (r *run) watch() {
	pause := time.Duration(0)
	for {
		err := r.ledger.LedgerWatch(r.ctx, r.prefix, func(entries []block.LedgerEntry, reset bool) {
			pause = 0
			r.turn(func(now instant) { r.m.watch(entries, reset, now) })
		})
		if r.ctx.Err() != nil {
			return
		}
		r.log.Warn("the group cannot be watched; it is tried again", "error", err)
		pause = min(max(2*pause, r.ttl/60), r.ttl/3)
		select {
		case <-r.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// loop looks at the clock when the machine wants it, and tidies up when all is over.
func (r *run) loop() {
	defer close(r.gone)
	told := make(chan struct{})
	go func() {
		defer close(told)
		r.tellAll()
	}()
	for {
		select {
		case <-r.timer.C:
			r.turn(nil)
			continue
		case <-told:
		}
		break
	}
	r.finish()
}

// tellAll tells events until the run is over. It is apart from the clock, so that an app that takes
// its time cannot stop the heartbeat.
func (r *run) tellAll() {
	for range r.tell {
		r.mu.Lock()
		ended := r.ended
		seats := slices.Collect(maps.Values(r.seats))
		r.mu.Unlock()
		for _, s := range seats {
			if s.deliver() {
				r.mu.Lock()
				if r.m.own[s.handle] == nil {
					delete(r.seats, s.handle)
				}
				r.mu.Unlock()
			}
		}
		if ended {
			return
		}
	}
}

// finish is the end of a run: the heartbeat is taken back, if there is time, and everything stops.
func (r *run) finish() {
	r.mu.Lock()
	r.timer.Stop()
	r.fence.Store(0)
	rev, key, killed := r.m.rev, pulseKey(r.m.group, r.m.member), r.killed
	for _, ch := range r.tickets {
		ch <- &failure{fenced: true, why: "the member is closed"}
	}
	r.tickets = nil
	r.mu.Unlock()
	if !killed && rev != 0 {
		r.withdraw(key, rev)
	}
	r.cancel()
	r.wg.Wait()
}

// withdraw takes the heartbeat back. If that does not work others do it, in time.
func (r *run) withdraw(key string, rev uint64) {
	ctx, cancel := r.patience()
	defer cancel()
	for ctx.Err() == nil {
		results := r.ledger.LedgerPut(ctx, []block.LedgerWrite{{Key: key, Revision: rev, Remove: true}})
		if len(results) == 1 && results[0].Err == nil {
			return
		}
		// The answer to the last heartbeat may be what is missing, or that to this.
		e, err := r.ledger.LedgerGet(ctx, key)
		if err != nil || e.Revision == 0 || e.Revision == rev {
			return
		}
		rev = e.Revision
	}
}

// kill ends a run at once.
func (r *run) kill() {
	r.turn(func(instant) {
		for _, s := range r.m.sorted() {
			r.m.end(s, "the member is closed")
		}
		r.killed = true
	})
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.cancel()
	r.notify()
}
