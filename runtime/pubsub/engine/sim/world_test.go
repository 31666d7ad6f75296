package sim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/memory"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

const topic = "t"

// world is one history: a broker, sidecars, publishers and who breaks them.
type world struct {
	seed uint64
	cfg  config
	hub  *memory.Hub

	mu         sync.Mutex
	judge      *judge
	start      time.Time
	links      uint64
	healed     bool
	sought     bool       // a group was moved
	sidecars   []*sidecar // those that live
	names      int
	windows    []window
	firsts     []int32 // first partition of each generation
	checks     map[string]int
	broken     []violation
	trace      []line
	pending    sync.WaitGroup
	publishing sync.WaitGroup
	peace      chan struct{} // closed when faults end
}

// window is a time in which something was broken, of one link or (nil) of all.
type window struct {
	link     *link
	from, to time.Time
	member   bool // the group changed
}

type violation struct {
	inv, text string
	part      int32
	key       string
	at        time.Duration
}

// line is an event for people to read.
type line struct {
	at     time.Duration
	part   int32
	key    string
	format string
	args   []any
}

// everywhere is the partition of events that concern all.
const everywhere = -1

func (w *world) note(part int32, key, format string, args ...any) {
	for i, a := range args { // as they are now
		switch a := a.(type) {
		case *partOf:
			args[i] = a.String()
		case []byte:
			args[i] = string(a)
		}
	}
	w.trace = append(w.trace, line{time.Since(w.start), part, key, format, args})
}

func (w *world) check(inv string) { w.checks[inv]++ }

func (w *world) violate(inv string, part int32, key, format string, args ...any) {
	w.note(part, key, "VIOLATION of "+inv+": "+format, args...)
	if len(w.broken) < 20 {
		w.broken = append(w.broken, violation{inv, fmt.Sprintf(format, args...), part, key, time.Since(w.start)})
	}
}

// story is what happened around a violation.
func (w *world) story(v violation, most int) string {
	var lines []string
	for _, l := range w.trace {
		if l.part != everywhere && (l.part != v.part || !*wholeFlag && l.key != "" && v.key != "" && l.key != v.key) || l.at > v.at {
			continue
		}
		lines = append(lines, fmt.Sprintf("  %8.3fs  %s", l.at.Seconds(), fmt.Sprintf(l.format, l.args...)))
	}
	if n := len(lines) - most; n > 0 {
		lines = append([]string{fmt.Sprintf("  … %d lines before", n)}, lines[n:]...)
	}
	return strings.Join(lines, "\n")
}

// noisy tells whether calls fail at random.
func (w *world) noisy() bool { return w.cfg.noise > 0 && time.Since(w.start) < w.cfg.span }

// disturbed tells whether something was broken for a link within a time.
func (w *world) disturbed(l *link, from, to time.Time) bool {
	if w.cfg.noise > 0 && from.Before(w.start.Add(w.cfg.span+2*time.Second)) {
		return true
	}
	return slices.ContainsFunc(w.windows, func(x window) bool {
		return !x.member && (x.link == nil || x.link == l) && !x.from.After(to) && !x.to.Before(from)
	})
}

// calm tells that nothing but one event happened within a time.
func (w *world) calm(from, to, but time.Time) bool {
	if w.cfg.noise > 0 {
		return false
	}
	return !slices.ContainsFunc(w.windows, func(x window) bool {
		return !x.from.After(to) && !x.to.Before(from) && !x.from.Equal(but)
	})
}

// quiet tells that nothing was broken within a time, whoever came or left in order.
func (w *world) quiet(from, to time.Time) bool {
	return w.cfg.noise == 0 && !slices.ContainsFunc(w.windows, func(x window) bool { return !x.member && !x.from.After(to) && !x.to.Before(from) })
}

// othersSince tells whether the group has had a member since before a time that still lives.
func (w *world) othersSince(group string, t time.Time) bool {
	return slices.ContainsFunc(w.sidecars, func(s *sidecar) bool {
		return slices.ContainsFunc(s.members, func(m *member) bool {
			return m.group == group && !m.since.IsZero() && m.since.Before(t.Add(-w.cfg.ttl)) && !m.leaving
		})
	})
}

// generation is which one a partition belongs to.
func (w *world) generation(part int32) int {
	for i, first := range slices.Backward(w.firsts) {
		if part >= first {
			return i
		}
	}
	return 0
}

func (w *world) append(l *link, recs []block.LogRecord) []block.AppendResult {
	w.mu.Lock()
	defer w.mu.Unlock()
	results := l.PubSub.Append(context.Background(), recs)
	for i, r := range results {
		if r.Err == nil && !r.Duplicate {
			w.judge.appended(&recs[i], r.Position, false)
		}
	}
	return results
}

func (w *world) appendAtomic(l *link, recs []block.LogRecord) ([]block.AppendResult, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	results, err := l.PubSub.AppendAtomic(context.Background(), recs)
	if err == nil {
		for i, r := range results {
			w.judge.appended(&recs[i], r.Position, true)
		}
	}
	return results, err
}

func (w *world) ledgerPut(l *link, writes []block.LedgerWrite) []block.LedgerResult {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.judge.consumptions()
	results := make([]block.LedgerResult, 0, len(writes))
	for i := range writes {
		r := l.PubSub.LedgerPut(context.Background(), writes[i:i+1])[0]
		results = append(results, r)
		if r.Err == nil {
			w.divided(&writes[i])
			w.judge.ledger(l, &writes[i])
		}
	}
	return results
}

// divided takes in how the topic is divided.
func (w *world) divided(x *block.LedgerWrite) {
	if x.Key != block.LedgerKey("topic", topic) {
		return
	}
	var r struct {
		Generations []struct{ First, Count int32 } `json:"generations"`
		Pending     int32                          `json:"pending"`
	}
	if err := json.Unmarshal(x.Value, &r); err != nil {
		panic(err)
	}
	w.note(everywhere, "", "topic: %v, pending %d", r.Generations, r.Pending)
	w.firsts = nil
	for _, g := range r.Generations {
		w.firsts = append(w.firsts, g.First)
		w.judge.opened = g.First
	}
}

// sidecar is one process.
type sidecar struct {
	w       *world
	name    string
	link    *link
	eng     *engine.Engine
	members []*member
}

// member is a consumer that is started again when it ends.
type member struct {
	s       *sidecar
	group   string
	app     *app // guarded by world.mu
	leaving bool // guarded by world.mu
	since   time.Time
	stop    context.CancelFunc
	done    chan struct{}
}

var silence = slog.New(slog.DiscardHandler)

// sidecar starts a process under a name, or a new one. w.mu is held.
func (w *world) open(name string) *sidecar {
	if name == "" {
		w.names++
		name = fmt.Sprintf("s%d", w.names)
	}
	s := &sidecar{w: w, name: name, link: w.link(name)}
	s.eng = engine.New(s.link, silence)
	for _, g := range w.cfg.groups {
		ctx, stop := context.WithCancel(context.Background())
		m := &member{s: s, group: g, stop: stop, done: make(chan struct{})}
		s.members = append(s.members, m)
		go m.run(ctx)
	}
	w.sidecars = append(w.sidecars, s)
	w.note(everywhere, "", "%s starts", name)
	w.event(s.link)
	return s
}

// event notes that the group changes now. w.mu is held.
func (w *world) event(l *link) {
	w.windows = append(w.windows, window{link: l, from: time.Now(), to: time.Now(), member: true})
}

// hurt notes that a link is broken for a while. w.mu is held.
func (w *world) hurt(l *link, d time.Duration) {
	w.windows = append(w.windows, window{link: l, from: time.Now(), to: time.Now().Add(d)})
}

func (m *member) run(ctx context.Context) {
	defer close(m.done)
	for {
		a, err := newApp(m)
		if err != nil {
			panic(err)
		}
		err = a.c.Run(ctx, m.s.eng, a.tell)
		w := m.s.w
		w.mu.Lock()
		a.over = true
		w.note(everywhere, "", "%s ended in group %s: %v", a.name, m.group, err)
		again := !m.leaving && !m.s.link.gone() && ctx.Err() == nil && !m.s.link.replaced
		w.mu.Unlock()
		if !again || !sleep(ctx, 100*time.Millisecond, m.s.link.ended) {
			return
		}
	}
}

// forget takes a sidecar from those that live. w.mu is held.
func (w *world) forget(s *sidecar) {
	w.sidecars = slices.DeleteFunc(w.sidecars, func(o *sidecar) bool { return o == s })
}

// kill ends a process at once. w.mu is held.
func (w *world) kill(s *sidecar) {
	w.note(everywhere, "", "%s is killed", s.name)
	s.link.kill()
	w.windows = append(w.windows, window{link: s.link, from: s.link.killedAt(), to: s.link.killedAt()})
	w.forget(s)
	w.pending.Go(func() { s.end() })
}

// end takes down what is left of a process.
func (s *sidecar) end() {
	for _, m := range s.members {
		m.stop()
	}
	s.eng.Close()
	for _, m := range s.members {
		<-m.done
	}
	_ = s.link.Close(context.Background())
}

// leave ends a process in order.
func (w *world) leave(s *sidecar, then func()) {
	w.note(everywhere, "", "%s leaves", s.name)
	w.forget(s)
	w.event(s.link)
	var apps []*app
	for _, m := range s.members {
		m.leaving = true
		if m.app != nil {
			apps = append(apps, m.app)
		}
	}
	w.pending.Go(func() {
		for _, a := range apps {
			a.c.Close(true)
		}
		late := time.After(30 * time.Second)
		for _, m := range s.members {
			select {
			case <-m.done:
			case <-s.link.ended:
			case <-late:
				w.mu.Lock()
				if w.cfg.noise == 0 {
					w.violate("I1", everywhere, "", "the consumer of %s in group %s does not end after Close", s.name, m.group)
				}
				w.mu.Unlock()
			}
		}
		s.end()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.note(everywhere, "", "%s has left", s.name)
		w.event(s.link)
		if then != nil {
			then()
		}
	})
}

// run is the whole history. It returns when nothing of it is left.
func (w *world) run() {
	w.start = time.Now()
	w.mu.Lock()
	broker := w.hub.PubSub()
	for _, g := range w.cfg.groups { // which are not new: the broker keeps everything for them
		broker.Consumed(topic, g, 0, 0)
	}
	_ = broker.Close(context.Background())
	for range w.cfg.sidecars {
		w.open("")
	}
	w.mu.Unlock()
	w.publish()
	for _, a := range w.cfg.actions {
		time.Sleep(time.Until(w.start.Add(a.at)))
		w.act(a)
	}
	time.Sleep(time.Until(w.start.Add(w.cfg.span)))
	w.heal()
	w.publishing.Wait()
	w.drain()
	w.shut()
}

// heal ends all faults.
func (w *world) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.judge.held()
	w.healed = true
	close(w.peace)
	w.note(everywhere, "", "all faults end")
	if len(w.sidecars) == 0 {
		w.open("")
	}
	for _, s := range w.sidecars {
		s.link.halt(0)
		for _, m := range s.members {
			if m.app != nil {
				m.app.settle()
			}
		}
	}
}

// patience is how long everything may take to be resolved once faults have stopped.
const patience = 90 * time.Second

// drain waits until all is resolved, and lets go on what is parked.
func (w *world) drain() {
	for late := time.Now().Add(patience); ; {
		w.mu.Lock()
		n, first := 0, ""
		for _, g := range w.cfg.groups {
			k, f := w.judge.left(g)
			n += k
			if first == "" {
				first = f
			}
			w.check("I1")
		}
		live := slices.Clone(w.sidecars)
		w.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(late) {
			w.mu.Lock()
			part, key := w.stuck()
			w.violate("I1", part, key, "%v after all faults ended %d are not resolved: %s", patience, n, first)
			w.mu.Unlock()
			return
		}
		time.Sleep(100 * time.Millisecond)
		for _, s := range live {
			for _, g := range w.cfg.groups {
				w.unpark(s, g, false)
			}
			break
		}
	}
}

// stuck is where something is not resolved.
func (w *world) stuck() (int32, string) {
	for _, g := range w.cfg.groups {
		for id := range w.judge.parts[g] {
			if p := w.judge.part(g, id); p.askedAt.After(p.movedAt) {
				return id, ""
			}
		}
		for id, log := range w.judge.logs {
			p := w.judge.part(g, id)
			for _, r := range log {
				if !resolved(&p.progress, r.pos) || p.aside(&p.progress, r) {
					return id, r.key
				}
			}
		}
	}
	return everywhere, ""
}

// shut ends everything, in order.
func (w *world) shut() {
	w.mu.Lock()
	for _, s := range slices.Clone(w.sidecars) {
		w.leave(s, nil)
	}
	w.mu.Unlock()
	w.pending.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.judge.consumptions()
}

// simulate runs a history in a bubble of its own time.
func simulate(t *testing.T, w *world) {
	c := memory.DefaultPubSubConfig()
	c.Partitions, c.SessionTTL, c.History = w.cfg.parts, w.cfg.ttl, w.cfg.history
	w.hub = memory.NewHub(c)
	if err := w.cfg.complete(); err != nil {
		t.Fatal(err)
	}
	w.checks = map[string]int{}
	w.peace = make(chan struct{})
	w.judge = newJudge(w)
	w.run()
}
