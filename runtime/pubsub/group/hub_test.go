package group

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ttl = 3 * time.Second

// board sees all consumers of a group from above: who has which partition when.
type board struct {
	t      *testing.T
	ledger *memory

	mu      sync.Mutex
	holders map[Part]map[*player]uint64
	last    map[Part]uint64    // highest epoch seen
	free    map[Part]time.Time // since when nobody has it
	gap     map[Part]time.Duration
	moves   map[Part]int
	calm    bool // two owners at once are a mistake, whatever happened before
}

func newBoard(t *testing.T) *board {
	return &board{t: t, ledger: newMemory(), holders: map[Part]map[*player]uint64{}, last: map[Part]uint64{},
		free: map[Part]time.Time{}, gap: map[Part]time.Duration{}, moves: map[Part]int{}, calm: true}
}

// player is a consumer that does as it is told.
type player struct {
	*board
	name    string
	wire    *wire
	hub     *Hub
	seat    *Seat
	handler time.Duration // how long it takes to let go

	log     []string
	view    View
	doubt   bool
	ended   string
	body    map[Part]string // progress as assigned
	orders  []string
	obey    bool // commands are Done
	release sync.WaitGroup
}

func (b *board) player(name string, o HubOptions) *player {
	p := &player{board: b, name: name, wire: b.ledger.wire(), body: map[Part]string{}, obey: true}
	o.Group = "g"
	if o.TTL == 0 {
		o.TTL = ttl
	}
	o.Log = slog.New(slog.DiscardHandler)
	p.hub = NewHub(p.wire, o)
	return p
}

// beside is another consumer of the same process.
func (p *player) beside(name string) *player {
	return &player{board: p.board, name: name, wire: p.wire, hub: p.hub, body: map[Part]string{}, obey: true}
}

func (p *player) join(o SeatOptions, layouts map[string]Layout) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	p.mu.Lock()
	p.view = View{}
	p.mu.Unlock()
	seat, err := p.hub.Join(ctx, o, p)
	if err != nil {
		p.t.Fatalf("%s cannot join: %v", p.name, err)
	}
	p.mu.Lock()
	p.seat = seat
	p.mu.Unlock()
	for topic, l := range layouts {
		seat.SetLayout(topic, l)
	}
}

func (p *player) leave() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	if err := p.seat.Leave(ctx); err != nil {
		p.t.Errorf("%s cannot leave: %v", p.name, err)
	}
	p.release.Wait()
}

func (p *player) say(format string, args ...any) { p.log = append(p.log, fmt.Sprintf(format, args...)) }

func (p *player) Assigned(claims []Claim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range claims {
		if c.Epoch <= p.last[c.Part] {
			p.t.Errorf("%s got %s under epoch %d after %d", p.name, c.Part, c.Epoch, p.last[c.Part])
		}
		p.last[c.Part] = c.Epoch
		if p.holders[c.Part] == nil {
			p.holders[c.Part] = map[*player]uint64{}
		}
		for other, epoch := range p.holders[c.Part] {
			if p.calm && other.seat.Valid(c.Part, epoch) {
				p.t.Errorf("%s got %s (epoch %d) while %s has it (epoch %d)", p.name, c.Part, c.Epoch, other.name, epoch)
			}
		}
		p.holders[c.Part][p] = c.Epoch
		p.moves[c.Part]++
		if since, ok := p.free[c.Part]; ok {
			p.gap[c.Part] = max(p.gap[c.Part], time.Since(since))
			delete(p.free, c.Part)
		}
		p.body[c.Part] = string(c.Progress)
		p.say("assigned %s %d %q", c.Part, c.Epoch, c.Progress)
		if !p.seat.Valid(c.Part, c.Epoch) && p.calm {
			p.say("but not valid")
		}
	}
}

func (p *player) drop(parts []Part) {
	for _, x := range parts {
		delete(p.holders[x], p)
		if len(p.holders[x]) == 0 {
			p.free[x] = time.Now()
		}
	}
}

func (p *player) Revoke(parts []Part, reason string) {
	p.mu.Lock()
	p.say("revoke %v", parts)
	p.mu.Unlock()
	p.release.Go(func() {
		time.Sleep(p.handler)
		for _, x := range parts {
			p.mu.Lock()
			epoch, has := p.holders[x][p]
			p.drop([]Part{x})
			p.mu.Unlock()
			if has {
				p.seat.Release(x, fmt.Appendf(nil, "%s@%d", p.name, epoch))
			}
		}
	})
}

func (p *player) Lost(parts []Part, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.say("lost %v: %s", parts, reason)
	p.drop(parts)
}

func (p *player) Changed(v View) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v.Generation <= p.view.Generation {
		p.t.Errorf("%s: the group's generation went from %d to %d", p.name, p.view.Generation, v.Generation)
	}
	p.view = v
}

func (p *player) Doubt(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doubt = on
	p.say("doubt %v", on)
}

func (p *player) Command(part Part, c Command) {
	p.mu.Lock()
	p.orders = append(p.orders, fmt.Sprintf("%s %s", part, c.Body))
	obey := p.obey
	p.mu.Unlock()
	if obey {
		p.release.Go(func() { p.seat.Done(part, c) })
	}
}

func (p *player) Ended(reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = reason
}

// owns are the partitions a player has, in order.
func (p *player) owns() []Part {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Part
	for x, by := range p.holders {
		if _, ok := by[p]; ok {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, comparePart)
	return out
}

func (p *player) sees() View   { p.mu.Lock(); defer p.mu.Unlock(); return p.view }
func (p *player) doubts() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.doubt }
func (p *player) end() string  { p.mu.Lock(); defer p.mu.Unlock(); return p.ended }
func (p *player) told() string { p.mu.Lock(); defer p.mu.Unlock(); return strings.Join(p.orders, "; ") }

// excuse: from now on two may own a partition at once, for a moment.
func (b *board) excuse() { b.mu.Lock(); defer b.mu.Unlock(); b.calm = false }

func (p *player) logged(what string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, l := range p.log {
		if strings.HasPrefix(l, what) {
			n++
		}
	}
	return n
}

// settled waits until each of n partitions has one owner and loads are even.
func (b *board) settled(n int, players ...*player) time.Duration {
	b.t.Helper()
	start := time.Now()
	for {
		sum, least, most := 0, n, 0
		for _, p := range players {
			k := len(p.owns())
			sum, least, most = sum+k, min(least, k), max(most, k)
		}
		if sum == n && most-least <= 1 {
			took := time.Since(start)
			synctest.Wait() // for what else is told at this moment
			return took
		}
		if time.Since(start) > time.Minute {
			b.dump(players...)
			b.t.Fatalf("after a minute %d of %d partitions have an owner, loads are %d to %d", sum, n, least, most)
		}
		time.Sleep(time.Millisecond)
	}
}

func (b *board) dump(players ...*player) {
	b.t.Helper()
	for _, p := range players {
		b.t.Logf("%s owns %v\n  %s", p.name, p.owns(), strings.Join(p.log, "\n  "))
	}
	b.ledger.mu.Lock()
	defer b.ledger.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(b.ledger.entries)) {
		b.t.Logf("%s = %s (%d)", k, b.ledger.entries[k].Value, b.ledger.entries[k].Revision)
	}
}

// marks forgets what was measured.
func (b *board) marks() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.gap)
	clear(b.moves)
}

// worst is how many partitions moved and the longest time one had no owner.
func (b *board) worst() (moved int, gap time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.gap {
		gap = max(gap, d)
	}
	return len(b.moves), gap
}

func one(n int32) map[string]Layout {
	return map[string]Layout{"t": {Generations: []Generation{{Count: n}}}}
}

func auto(instance string) SeatOptions { return SeatOptions{Topics: []string{"t"}, Instance: instance} }

// moved2 is how many of 16 partitions have another seat when the seats p0, p1 and so on are to
// instead of from.
func moved2(from, to int) int {
	of := func(n int) map[Part]string {
		var out []sharer
		for i := range n {
			out = append(out, sharer{id: fmt.Sprint("p", i), joined: uint64(i), topics: []string{"t"}})
		}
		return share(out, one(16))
	}
	return moved(of(from), of(to))
}

// TestJoinAndLeave: partitions move only between the seats concerned, and pause for no longer than
// the handlers take.
func TestJoinAndLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		var ps []*player
		for i := range 4 {
			p := b.player(fmt.Sprint("p", i), HubOptions{})
			p.handler = 200 * time.Millisecond
			ps = append(ps, p)
		}
		for _, p := range ps[:3] {
			p.join(auto(p.name), one(16))
		}
		b.settled(16, ps[:3]...)
		b.marks()
		ps[3].join(auto("p3"), one(16))
		took := b.settled(16, ps...)
		moved, gap := b.worst()
		t.Logf("a fourth joined: %d partitions moved, longest pause %v, even after %v", moved, gap, took)
		if least := moved2(3, 4); moved != least {
			t.Errorf("%d partitions moved, want %d", moved, least)
		}
		if took > 700*time.Millisecond || gap > 500*time.Millisecond {
			t.Errorf("took %v, longest pause %v", took, gap)
		}
		for _, p := range ps {
			if v := p.sees(); v.Members != 4 || v.Index != int(p.name[1]-'0') {
				t.Errorf("%s sees %+v", p.name, v)
			}
		}
		b.marks()
		start := time.Now()
		ps[1].leave()
		left := time.Since(start)
		took = b.settled(16, ps[0], ps[2], ps[3])
		moved, gap = b.worst()
		t.Logf("one left in %v: %d partitions moved, longest pause %v, even after %v", left, moved, gap, took)
		if left+took > 700*time.Millisecond || gap > 500*time.Millisecond {
			t.Errorf("took %v, longest pause %v", left+took, gap)
		}
		for _, p := range []*player{ps[0], ps[2], ps[3]} {
			if n := p.logged("lost"); n != 0 {
				t.Errorf("%s lost something: %v", p.name, p.log)
			}
			p.leave()
			for part, body := range p.body {
				if body == "" && b.moves[part] > 1 {
					t.Errorf("%s got %s without the progress of its predecessor", p.name, part)
				}
			}
		}
		b.empty()
	})
}

// empty checks that nobody left anything but owner entries and progress.
func (b *board) empty() {
	b.t.Helper()
	b.ledger.mu.Lock()
	defer b.ledger.mu.Unlock()
	for k := range b.ledger.entries {
		if strings.Contains(k, "||pulse||") || strings.Contains(k, "||seat||") {
			b.t.Errorf("the ledger still has %s", k)
		}
	}
}

// crash stops a player as if its process died: the ledger hears nothing more.
func (p *player) crash() {
	p.wire.cut(true)
	p.mu.Lock()
	var all []Part
	for x, by := range p.holders {
		if _, ok := by[p]; ok {
			all = append(all, x)
		}
	}
	p.drop(all)
	p.mu.Unlock()
	p.hub.Close()
}

func TestCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p, q := b.player("p", HubOptions{}), b.player("q", HubOptions{})
		p.join(auto("p"), one(8))
		q.join(auto("q"), one(8))
		b.settled(8, p, q)
		time.Sleep(10 * time.Second)
		b.marks()
		p.crash()
		took := b.settled(8, q)
		moved, gap := b.worst()
		t.Logf("%d partitions moved, longest pause %v, even after %v", moved, gap, took)
		if moved != 4 || gap > ttl+500*time.Millisecond {
			t.Errorf("%d partitions moved, longest pause %v", moved, gap)
		}
		time.Sleep(time.Second)
		if e := b.ledger.get(seatKey("g", "p")); e.Revision != 0 {
			t.Errorf("the dead left %s", e.Key)
		}
		q.leave()
		b.empty()
	})
}

// TestZombie: a member that cannot reach the ledger lets go before others take over, cannot commit
// and comes back under higher epochs.
func TestZombie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p, q := b.player("p", HubOptions{}), b.player("q", HubOptions{})
		p.join(auto("p"), one(8))
		q.join(auto("q"), one(8))
		b.settled(8, p, q)
		time.Sleep(10 * time.Second)
		had := p.owns()[0]
		p.wire.cut(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		commit := make(chan error, 1)
		go func() { commit <- p.seat.Commit(ctx, []Progress{{Part: had, Body: []byte("late")}})[0] }()
		if took := b.settled(8, q); took > ttl+500*time.Millisecond {
			t.Errorf("taken over after %v", took)
		}
		if err := <-commit; fault.Of(err) != fault.Conflict || fault.ReasonOf(err) != fault.Fenced {
			t.Errorf("the commit of the zombie: %v", err)
		}
		if n := p.logged("doubt true"); n != 1 {
			t.Errorf("the zombie doubted %d times", n)
		}
		if len(p.owns()) != 0 || p.hub.Alive(time.Now()) {
			t.Error("the zombie believes in itself")
		}
		time.Sleep(time.Second)
		p.wire.cut(false)
		b.settled(8, p, q)
		if n := p.logged("doubt false"); n != 1 {
			t.Errorf("the zombie stopped to doubt %d times", n)
		}
		if err := p.seat.Commit(ctx, []Progress{{Part: p.owns()[0], Body: []byte("good")}})[0]; err != nil {
			t.Errorf("back again it cannot commit: %v", err)
		}
		p.leave()
		q.leave()
		b.empty()
	})
}

// TestIdle counts what a hub does while nothing happens.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		p := b.player("p", HubOptions{})
		p.join(auto("p"), one(64))
		b.settled(64, p)
		time.Sleep(time.Second)
		calls, writes := p.wire.count()
		time.Sleep(100 * ttl)
		moreCalls, moreWrites := p.wire.count()
		calls, writes = moreCalls-calls, moreWrites-writes
		t.Logf("%d calls, %d writes in 100 TTL", calls, writes)
		if writes > 302 || calls > 604 { // each write, and its coming back by the watch
			t.Errorf("%d calls, %d writes in 100 TTL", calls, writes)
		}
		p.leave()
	})
}
