package group

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// TestRollingRestart: consumers with names leave and come back, one after the other.
func TestRollingRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		ps := []*player{b.player("p0", HubOptions{}), b.player("p1", HubOptions{}), b.player("p2", HubOptions{})}
		for _, p := range ps {
			p.handler = 100 * time.Millisecond
			p.join(auto(p.name), one(16))
		}
		b.settled(16, ps...)
		had := ps[1].owns()
		b.marks()
		for _, p := range ps {
			p.leave()
			p.join(auto(p.name), one(16))
			b.settled(16, ps...)
		}
		_, gap := b.worst()
		t.Logf("longest pause %v", gap)
		if gap > 600*time.Millisecond {
			t.Errorf("longest pause %v", gap)
		}
		if got := ps[1].owns(); fmt.Sprint(got) != fmt.Sprint(had) {
			t.Errorf("p1 had %v and has %v: who comes back gets what it had", had, got)
		}
		for _, p := range ps {
			if p.logged("lost") > 0 {
				t.Errorf("%s lost something: %v", p.name, p.log)
			}
			p.leave()
		}
		b.empty()
	})
}

// TestSameInstance: who comes with the name of another takes its place at once, whether that one is
// dead or alive.
func TestSameInstance(t *testing.T) {
	for _, dead := range []bool{true, false} {
		t.Run(fmt.Sprintf("dead %v", dead), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard(t)
				p, q := b.player("p", HubOptions{}), b.player("q", HubOptions{})
				p.join(auto("p"), one(8))
				q.join(auto("q"), one(8))
				b.settled(8, p, q)
				had := p.owns()
				b.marks()
				if dead {
					p.crash()
				} else {
					b.excuse() // the old one learns of it when it is done
				}
				again := b.player("again", HubOptions{})
				again.join(auto("p"), one(8))
				took := b.settled(8, again, q)
				if took > 100*time.Millisecond {
					t.Errorf("it took %v", took)
				}
				if fmt.Sprint(again.owns()) != fmt.Sprint(had) || q.logged("revoke") > 0 {
					t.Errorf("it has %v, its predecessor had %v; the other was asked for something %d times", again.owns(), had, q.logged("revoke"))
				}
				if !dead {
					if p.end() == "" || len(p.owns()) > 0 || p.logged("lost") == 0 {
						t.Errorf("the predecessor: ended %q, owns %v", p.end(), p.owns())
					}
					if err := p.seat.Commit(t.Context(), []Progress{{Part: had[0]}})[0]; fault.ReasonOf(err) != fault.Fenced {
						t.Errorf("the predecessor commits: %v", err)
					}
				}
				if err := p.seat.Leave(t.Context()); err != nil {
					t.Errorf("the predecessor leaves: %v", err)
				}
				time.Sleep(2 * ttl)
				again.leave()
				q.leave()
				b.empty()
			})
		})
	}
}

// TestOutage: a short silence of the ledger is felt by nobody, a long one ends all ownership before
// it could be taken, and all is well afterwards.
func TestOutage(t *testing.T) {
	for _, silence := range []time.Duration{ttl / 3, ttl * 3 / 5, 2 * ttl, 10 * ttl} {
		t.Run(silence.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard(t)
				p, q := b.player("p", HubOptions{}), b.player("q", HubOptions{})
				p.join(auto("p"), one(8))
				q.join(auto("q"), one(8))
				b.settled(8, p, q)
				b.marks()
				time.Sleep(5*time.Second + 217*time.Millisecond)
				p.wire.cut(true)
				q.wire.cut(true)
				time.Sleep(silence)
				p.wire.cut(false)
				q.wire.cut(false)
				took := b.settled(8, p, q)
				lost := p.logged("lost") + q.logged("lost")
				t.Logf("lost %d times, doubted %d times, even after %v", lost, p.logged("doubt true"), took)
				if short := silence < ttl*2/5; short && (lost > 0 || p.logged("doubt") > 0) {
					t.Errorf("a short silence: lost %d times, doubted %d times", lost, p.logged("doubt"))
				}
				if long := silence > ttl; long && (lost != 2 || took > ttl+time.Second) {
					t.Errorf("a long silence: lost %d times, even after %v", lost, took)
				}
				time.Sleep(time.Second)
				if p.doubts() || q.doubts() {
					t.Error("doubts remain")
				}
				p.leave()
				q.leave()
				b.empty()
			})
		})
	}
}

// TestGrow: partitions of a new generation are nobody's until all of the old one are drained.
func TestGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p, q := b.player("p", HubOptions{}), b.player("q", HubOptions{})
		p.join(auto("p"), one(4))
		q.join(auto("q"), one(4))
		b.settled(4, p, q)
		grown := Layout{Generations: []Generation{{0, 4}, {4, 8}}}
		p.seat.SetLayout("t", grown)
		q.seat.SetLayout("t", grown)
		time.Sleep(time.Second)
		old := append(p.owns(), q.owns()...)
		if len(old) != 4 {
			t.Fatalf("they own %v before anything is drained", old)
		}
		seatOf := func(x Part) *player {
			for _, y := range p.owns() {
				if y == x {
					return p
				}
			}
			return q
		}
		for i, x := range old {
			if n := len(p.owns()) + len(q.owns()); n != 4 {
				t.Errorf("%d are owned with %d of 4 drained", n, i)
			}
			seatOf(x).seat.Drained(x)
			time.Sleep(100 * time.Millisecond)
		}
		b.settled(12, p, q)
		// It is in the ledger: another one finds the way open, and the old partitions still there.
		p.leave()
		q.leave()
		r := b.player("r", HubOptions{})
		r.join(auto("r"), map[string]Layout{"t": grown})
		b.settled(12, r)
		r.leave()
	})
}

func TestManual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p, m := b.player("p", HubOptions{}), b.player("m", HubOptions{})
		p.join(auto("p"), one(4))
		b.settled(4, p)
		m.join(SeatOptions{Manual: []Part{{"t", 1}, {"t", 2}, {"t", 3}}}, nil)
		time.Sleep(time.Second)
		if got := fmt.Sprint(m.owns(), p.owns()); got != "[t/1 t/2 t/3] [t/0]" {
			t.Errorf("they own %s", got)
		}
		if p.sees().Members != 2 || m.sees().Members != 2 || m.sees().Index != 1 {
			t.Errorf("they see %+v and %+v", p.sees(), m.sees())
		}
		m.leave()
		b.settled(4, p)
		p.leave()
		b.empty()
	})
}

func TestCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p, q := b.player("p", HubOptions{}), b.player("q", HubOptions{})
		x := Part{"t", 0}
		ask := func(body string) uint64 {
			rev, err := Ask(t.Context(), b.ledger.wire(), "g", x, func(old []byte) ([]byte, error) {
				return append(old[:len(old):len(old)], body...), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return rev
		}
		pending := func(rev uint64) bool {
			e, err := b.ledger.wire().LedgerGet(t.Context(), commandKey("g", x))
			if err != nil {
				t.Fatal(err)
			}
			return e.Revision == rev
		}
		rev := ask("one ") // nobody is there
		p.obey = false
		p.join(auto("p"), one(1))
		time.Sleep(time.Second)
		if !pending(rev) {
			t.Error("nobody carried it out, and it is gone")
		}
		rev = ask("two ")
		time.Sleep(time.Second)
		if got := p.told(); got != "t/0 one ; t/0 one two " {
			t.Errorf("p was told %q", got)
		}
		p.leave()
		q.join(auto("q"), one(1))
		time.Sleep(time.Second)
		if got := q.told(); got != "t/0 one two " {
			t.Errorf("q was told %q", got)
		}
		if pending(rev) {
			t.Error("it was carried out, and is still there")
		}
		rev = ask("three")
		time.Sleep(time.Second)
		if got := q.told(); got != "t/0 one two ; t/0 three" || pending(rev) {
			t.Errorf("q was told %q", got)
		}
		no := errors.New("no")
		if _, err := Ask(t.Context(), b.ledger.wire(), "g", x, func([]byte) ([]byte, error) { return nil, no }); !errors.Is(err, no) {
			t.Errorf("merge said no, Ask says %v", err)
		}
		q.leave()
		b.empty()
	})
}

// TestLeaveInTime: an app that does not let go cannot hold up the group.
func TestLeaveInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p, q := b.player("p", HubOptions{}), b.player("q", HubOptions{})
		p.handler = time.Hour
		p.join(auto("p"), one(8))
		b.settled(8, p)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.seat.Leave(ctx); fault.Of(err) != fault.Deadline {
			t.Errorf("it left: %v", err)
		}
		q.join(auto("q"), one(8))
		if took := b.settled(8, q); took > 200*time.Millisecond {
			t.Errorf("taken over after %v", took)
		}
		if err := p.seat.Leave(t.Context()); err != nil {
			t.Errorf("left already: %v", err)
		}
		q.leave()
		b.empty()
		p.release.Wait()
	})
}

// TestLeaveWithoutLedger: it ends in time, and nothing runs on.
func TestLeaveWithoutLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p := b.player("p", HubOptions{})
		p.join(auto("p"), one(8))
		b.settled(8, p)
		p.wire.cut(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.seat.Leave(ctx); fault.Of(err) != fault.Deadline {
			t.Errorf("it left: %v", err)
		}
		p.release.Wait()
		time.Sleep(ttl)
		// Without Close or the ledger coming back the goroutines have ended, or synctest would fail.
	})
}

func TestJoinWithoutLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p := b.player("p", HubOptions{})
		p.wire.cut(true)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := p.hub.Join(ctx, auto("p"), p); fault.Of(err) != fault.Deadline {
			t.Errorf("joined: %v", err)
		}
		p.wire.cut(false)
		p.join(auto("p"), one(8))
		b.settled(8, p)
		p.leave()
		p.hub.Close()
		if _, err := p.hub.Join(ctx, auto("p"), p); fault.Of(err) != fault.Unavailable {
			t.Errorf("joined a hub that is closed: %v", err)
		}
		p.hub.Close()
		for _, o := range []SeatOptions{{}, {Topics: []string{""}}, {Manual: []Part{{"", 1}}}, {Manual: []Part{{"t", -1}}}} {
			if _, err := b.player("x", HubOptions{}).hub.Join(ctx, o, p); fault.Of(err) != fault.Invalid {
				t.Errorf("%+v: %v", o, err)
			}
		}
	})
}

// TestSeats: several consumers of one process share a heartbeat, and partitions like strangers.
func TestSeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p := b.player("p0", HubOptions{})
		ps := []*player{p, p.beside("p1"), p.beside("p2")}
		for _, x := range ps {
			x.join(auto(x.name), one(9))
		}
		b.settled(9, ps...)
		ps[0].leave()
		b.settled(9, ps[1:]...)
		// The same name again, in the same process.
		y := p.beside("p1 again")
		b.excuse()
		y.join(auto("p1"), one(9))
		b.settled(9, y, ps[2])
		if ps[1].end() == "" {
			t.Error("the first p1 does not know of its end")
		}
		y.leave()
		ps[2].leave()
		b.empty()
	})
}

// TestCommit: progress survives answers that are lost, the newest of several wins, and ctx ends the
// waiting.
func TestCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p := b.player("p", HubOptions{})
		p.join(auto("p"), one(2))
		b.settled(2, p)
		x := p.owns()[0]
		stored := func() string {
			_, body, err := parseProgress(b.ledger.get(progressKey("g", x)).Value)
			if err != nil {
				t.Fatal(err)
			}
			return string(body)
		}
		commit := func(ctx context.Context, body string) error {
			return p.seat.Commit(ctx, []Progress{{Part: x, Body: []byte(body)}})[0]
		}
		p.wire.mu.Lock()
		n := 0
		p.wire.lose = func(w block.LedgerWrite) bool { n++; return n%2 == 1 }
		p.wire.mu.Unlock()
		for i := range 5 {
			body := fmt.Sprint(i)
			if err := commit(t.Context(), body); err != nil || stored() != body {
				t.Errorf("commit of %s: %v; the ledger has %s", body, err, stored())
			}
		}
		p.wire.cut(true)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		done := make(chan error, 3)
		for i := range 3 {
			go func() { done <- commit(ctx, fmt.Sprint("late ", i)) }()
			synctest.Wait()
		}
		for range 3 {
			if err := <-done; fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentMaybe {
				t.Errorf("a commit without an answer: %v", err)
			}
		}
		p.wire.cut(false)
		time.Sleep(time.Second)
		if got := stored(); got != "late 2" {
			t.Errorf("the ledger has %q, want the last one", got)
		}
		if errs := p.seat.Commit(t.Context(), []Progress{{Part: Part{"t", 77}}, {Part: x}}); fault.ReasonOf(errs[0]) != fault.Fenced || errs[1] != nil {
			t.Errorf("commits of a stranger's and our own: %v", errs)
		}
		p.leave()
	})
}

// TestValid: a process that was stopped knows on waking that it is too late, before the machine had
// a chance to look.
func TestValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p := b.player("p", HubOptions{})
		p.join(auto("p"), one(1))
		b.settled(1, p)
		x := Part{"t", 0}
		if !p.seat.Valid(x, 1) || p.seat.Valid(x, 2) || p.seat.Valid(x, 0) || p.seat.Valid(Part{"t", 1}, 0) || !p.hub.Alive(time.Now()) {
			t.Error("it does not know what it has")
		}
		// As if a heartbeat was due and the process was stopped.
		run := p.hub.run
		run.fence.Store(int64(time.Since(run.base) + 10*time.Millisecond))
		if !p.seat.Valid(x, 1) || !p.hub.Alive(time.Now()) || p.hub.Alive(time.Now().Add(10*time.Millisecond)) {
			t.Error("it gives up too soon")
		}
		time.Sleep(10 * time.Millisecond)
		if p.seat.Valid(x, 1) || p.hub.Alive(time.Now()) {
			t.Error("it believes in what it has")
		}
		p.leave()
		if p.seat.Valid(x, 1) {
			t.Error("it left, and believes in what it had")
		}
	})
}

// TestStopped: what a machine does first when it was stopped for long, whatever wakes it.
func TestStopped(t *testing.T) {
	for what, wakes := range map[string]func(m *machine, now instant){
		"the timer": func(*machine, instant) {},
		"an answer": func(m *machine, now instant) {
			for id := range m.ops {
				m.reply(reply{op: id, verdict: done, entry: block.LedgerEntry{Revision: 100}}, now)
			}
		},
		"the watch": func(m *machine, now instant) {
			m.watch([]block.LedgerEntry{{Key: pulseKey("g", "other"), Revision: 9, Value: m.nextPulse()}}, false, now)
		},
		"a commit": func(m *machine, now instant) { m.commit(m.sorted()[0], Part{"t", 0}, nil, 9, now) },
	} {
		for _, flying := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, a heartbeat under way: %v", what, flying), func(t *testing.T) {
				l := newMemory()
				m := newMachine("g", "me", ttl, time.Millisecond)
				s := m.join("s", "i", []string{"t"}, nil, 1)
				m.setLayout("t", one(1)["t"])
				m.watch(nil, true, 0)
				turn := func(now instant, f func()) {
					m.wake(now)
					f()
					m.step(now)
				}
				answer := func(now instant) {
					for len(m.requests) > 0 {
						reqs := m.requests
						m.requests = nil
						turn(now, func() {
							for _, q := range reqs {
								a := reply{op: q.op, entry: l.get(q.Key)}
								if !q.get {
									res := l.put(q.LedgerWrite)
									a.entry.Revision = res.Revision
									if res.Err != nil {
										a.verdict = conflict
									}
								}
								m.reply(a, now)
							}
						})
					}
				}
				turn(0, func() {})
				answer(0)
				h := s.holds[Part{"t", 0}]
				if h == nil || h.state != owned || m.fenceAt() != m.fenceAfter() {
					t.Fatalf("it does not own the partition: %+v", h)
				}
				if flying {
					turn(m.beatEvery(), func() {})
					if len(m.requests) != 1 {
						t.Fatalf("requests: %v", m.requests)
					}
				}
				m.events = nil
				now := 10 * ttl
				turn(now, func() { wakes(m, now) })
				if len(m.events) == 0 || m.events[0].kind != evLost || m.fenceAt() != 0 {
					t.Errorf("it did %+v first", m.events)
				}
				if what == "a commit" && (len(m.outcomes) == 0 || m.outcomes[len(m.outcomes)-1].err == nil) {
					t.Errorf("the commit: %+v", m.outcomes)
				}
			})
		}
	}
}

// TestFenceCountsFromSending: how long a heartbeat took to be answered does not make it younger.
func TestFenceCountsFromSending(t *testing.T) {
	m := newMachine("g", "me", ttl, time.Millisecond)
	m.join("s", "i", []string{"t"}, nil, 1)
	m.watch(nil, true, 0)
	sent := 5 * time.Second
	m.step(sent)
	m.reply(reply{op: m.requests[0].op, verdict: done, entry: block.LedgerEntry{Revision: 1}}, sent+ttl/2)
	m.step(sent + ttl/2)
	if m.fenceAt() != sent+m.fenceAfter() || m.due != sent+m.beatEvery() {
		t.Errorf("sent at %v: fenced at %v, the next is due at %v", sent, m.fenceAt(), m.due)
	}
	// One that was answered too late is none.
	m.wake(sent + ttl)
	if m.fenceAt() != 0 {
		t.Error("it is not fenced")
	}
	m.step(sent + ttl)
	for _, q := range m.requests {
		if q.pulse {
			m.reply(reply{op: q.op, verdict: done, entry: block.LedgerEntry{Revision: 2}}, sent+3*ttl)
		}
	}
	if m.fenceAt() != 0 {
		t.Error("it believes in a heartbeat that is older than the fence")
	}
}

// TestStorm: everything at once, at random, over many seeds. Afterwards all is even, and what must
// never be was not (player.Assigned and memory.put look).
func TestStorm(t *testing.T) {
	seeds := 20
	if n, err := strconv.Atoi(os.Getenv("MECHA_SEEDS")); err == nil {
		seeds = n
	}
	for seed := range seeds {
		ok := t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { storm(t, uint64(seed)) })
		})
		if !ok {
			return
		}
	}
}

func storm(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	b := newBoard(t)
	b.ledger.check = true
	b.ledger.t = t
	const n = 6
	var ps []*player
	come := func(name string) *player {
		p := b.player(name, HubOptions{})
		p.handler = time.Duration(rnd.IntN(300)) * time.Millisecond
		p.wire.latency = time.Duration(rnd.IntN(30)) * time.Millisecond
		if rnd.IntN(2) == 0 {
			own := rand.New(rand.NewPCG(seed, rnd.Uint64()))
			p.wire.lose = func(block.LedgerWrite) bool { return own.IntN(8) == 0 }
		}
		p.join(auto(name), one(n))
		return p
	}
	for i := range 3 {
		ps = append(ps, come(fmt.Sprint("p", i)))
	}
	names := len(ps)
	for range 40 {
		time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
		i := rnd.IntN(len(ps))
		p := ps[i]
		switch rnd.IntN(9) {
		case 0:
			p.wire.cut(true)
		case 1, 2:
			p.wire.cut(false)
		case 3:
			p.wire.cut(false)
			p.leave()
			ps[i] = come(p.name)
		case 4:
			if len(ps) < 5 {
				ps = append(ps, come(fmt.Sprint("p", names)))
				names++
			}
		case 5:
			p.crash()
			ps[i] = come(p.name)
		case 6:
			p.crash()
			ps[i] = come(fmt.Sprint("p", names))
			names++
		case 7:
			p.wire.forgetWatch()
		case 8:
			for _, x := range p.owns() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				p.seat.Commit(ctx, []Progress{{Part: x, Body: []byte("storm")}})
				cancel()
			}
		}
	}
	for _, p := range ps {
		p.wire.cut(false)
	}
	took := b.settled(n, ps...)
	if took > 2*ttl {
		t.Errorf("even after %v", took)
	}
	time.Sleep(2 * ttl)
	b.settled(n, ps...)
	for _, p := range ps {
		p.leave()
	}
	b.empty()
}
