package group

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/mecha-project/mecha/components/block"
)

func (w *world) come(i int) {
	n := w.own(i)
	n.lives++
	n.status = up
	n.m = newMachine("g", fmt.Sprint(n.name, n.lives), modelTTL, tick)
	n.mail, n.news, n.deaf, n.leaves = nil, nil, false, false
	n.open, n.asked, n.mark, n.done = map[Part]uint64{}, map[Part]bool{}, map[Part]int{}, map[Part]int{}
	n.m.setLayout("t", w.cfg.layout)
	n.m.join(n.instance, fmt.Sprint("i", n.name, n.lives), []string{"t"}, nil, 0)
	w.tellAll(i, n)
}

// tellAll is the watch beginning, or beginning anew.
func (w *world) tellAll(i int, n *node) {
	n.news = nil
	var all []block.LedgerEntry
	for _, k := range slices.Sorted(maps.Keys(w.ledger)) {
		if s := w.ledger[k]; s.there && strings.HasPrefix(k, watchPrefix("g")) {
			all = append(all, block.LedgerEntry{Key: k, Value: s.value, Revision: s.rev})
		}
	}
	w.turn(i, n, func(now instant) { n.m.watch(all, true, now) })
}

// serve does one request of a node and gives it the answer.
func (w *world) serve(i, k int, answer func(l letter) (now, keep bool)) {
	n := w.own(i)
	l := n.mail[k]
	n.mail = slices.Delete(n.mail, k, k+1)
	if !l.answered {
		l.reply = reply{op: l.req.op}
		if l.req.get {
			l.reply.entry = w.read(l.req.Key)
		} else if rev, ok := w.write(l.req.LedgerWrite); ok {
			l.reply.entry.Revision = rev
		} else {
			l.reply.verdict = conflict
		}
		n = w.nodes[i]
		l.answered = true
	}
	now, keep := true, false
	if answer != nil {
		now, keep = answer(l)
	}
	switch {
	case n.status != up && n.status != stopped:
	case keep || n.status == stopped:
		n.mail = append(n.mail, l)
	case now:
		w.turn(i, n, func(t instant) { n.m.reply(l.reply, t) })
	default:
		w.turn(i, n, func(t instant) { n.m.reply(reply{op: l.reply.op, verdict: failed}, t) })
	}
}

// slowMail is a mark in a letter: its answer does not have to come before the next tick.
func (n *node) urgent() bool {
	if n.status != up {
		return false
	}
	if at := n.m.wakeAt; at > 0 && n.now() >= at {
		return true
	}
	if len(n.news) > 0 && !n.deaf {
		return true
	}
	for _, l := range n.mail {
		if !l.answered {
			return true
		}
	}
	return false
}

// steps are all worlds that can come next.
func (w *world) steps(tell func(*world)) {
	idle := true
	for i, n := range w.nodes {
		switch n.status {
		case up:
			if n.urgent() {
				idle = false
			}
			w.stepsOf(i, n, tell)
		case stopped:
			x := w.next(n.name + " goes on")
			x.own(i).status = up
			tell(x)
			for k, l := range n.mail {
				if !l.answered && !l.req.get {
					x := w.next(fmt.Sprintf("the ledger takes what %s, stopped, asked for: %s", n.name, l.req.Key))
					x.serve(i, k, nil)
					tell(x)
				}
			}
		case crashed, absent:
			if w.faults > 0 {
				x := w.next(n.name + " comes")
				x.faults--
				x.come(i)
				tell(x)
			}
		}
	}
	for k, q := range w.ghosts {
		x := w.next("a late write is made: " + q.Key)
		x.ghosts = slices.Delete(slices.Clone(w.ghosts), k, k+1)
		x.write(q)
		tell(x)
	}
	if idle && w.tick > 0 {
		x := w.next("tick")
		x.tick--
		x.forward()
		if !w.cfg.fine {
			for i, n := range x.nodes {
				if n.status != up {
					continue
				}
				if at := n.m.wakeAt; at > 0 && n.now() >= at {
					x.turn(i, x.own(i), nil)
				}
			}
		}
		tell(x)
	}
}

// forward is a tick of all clocks.
func (w *world) forward() {
	for i, n := range w.nodes {
		if n.m == nil {
			continue
		}
		if n = w.own(i); !n.skips {
			n.clock++
		}
		n.skips = false
	}
}

func (w *world) stepsOf(i int, n *node, tell func(*world)) {
	if at := n.m.wakeAt; at > 0 && n.now() >= at {
		x := w.next(n.name + " wakes")
		x.turn(i, x.own(i), nil)
		tell(x)
	}
	if len(n.news) > 0 {
		x := w.next(n.name + " hears the news")
		x.hear(i)
		tell(x)
	}
	if open := n.unserved(); !w.cfg.fine && open > 1 {
		x := w.next(fmt.Sprintf("%s does all %d it has under way", n.name, open))
		x.serveAll(i)
		tell(x)
	}
	for k, l := range n.mail {
		what := fmt.Sprintf("%s writes %s %s", n.name, l.req.Key, l.req.Value)
		if l.req.get {
			what = n.name + " reads " + l.req.Key
		}
		if l.answered {
			what = n.name + " gets the answer for " + l.req.Key
		}
		if w.cfg.fine || l.answered || n.unserved() == 1 {
			x := w.next(what)
			x.serve(i, k, nil)
			tell(x)
		}
		if w.faults == 0 || l.answered {
			continue
		}
		x := w.next(what + ", and the answer is slow")
		x.faults--
		x.serve(i, k, func(letter) (bool, bool) { return false, true })
		tell(x)
		if l.req.get {
			continue
		}
		x = w.next(what + ", and the answer is lost")
		x.faults--
		x.serve(i, k, func(letter) (bool, bool) { return false, false })
		tell(x)
		x = w.next(what + ": it will be late")
		x.faults--
		y := x.own(i)
		y.mail = slices.Delete(y.mail, k, k+1)
		x.ghosts = append(slices.Clone(x.ghosts), l.req.LedgerWrite)
		x.turn(i, y, func(t instant) { y.m.reply(reply{op: l.req.op, verdict: failed}, t) })
		tell(x)
	}
	for p := range n.asked {
		x := w.next(fmt.Sprintf("%s releases %s", n.name, p))
		x.release(i, p)
		tell(x)
	}
	if w.commits > 0 {
		for p := range n.open {
			if n.may(p) {
				x := w.next(fmt.Sprintf("%s commits %s", n.name, p))
				x.commits--
				y := x.own(i)
				y.mark[p]++
				x.turn(i, y, func(t instant) { y.m.commit(y.m.sorted()[0], p, []byte(strconv.Itoa(y.mark[p])), 0, t) })
				tell(x)
			}
		}
	}
	if w.cfg.drains {
		for p := range n.open {
			if n.may(p) && !n.m.owners[p].rec.Drained && !n.m.busy(slot{kind: opDrain, seat: n.m.sorted()[0].handle, part: p}) {
				x := w.next(fmt.Sprintf("%s drained %s", n.name, p))
				y := x.own(i)
				x.turn(i, y, func(t instant) { y.m.markDrained(y.m.sorted()[0], p, t) })
				tell(x)
			}
		}
	}
	if w.faults > 0 {
		w.disturb(i, n, tell)
	}
}

// unserved counts the requests nothing was done about yet.
func (n *node) unserved() (k int) {
	for _, l := range n.mail {
		if !l.answered {
			k++
		}
	}
	return k
}

// serveAll does what a node has under way, and gives it the answers in one turn, as the hub does.
func (w *world) serveAll(i int) {
	var answers []reply
	for _, l := range w.nodes[i].mail {
		if l.answered {
			continue
		}
		a := reply{op: l.req.op}
		if l.req.get {
			a.entry = w.read(l.req.Key)
		} else if rev, ok := w.write(l.req.LedgerWrite); ok {
			a.entry.Revision = rev
		} else {
			a.verdict = conflict
		}
		answers = append(answers, a)
	}
	n := w.own(i)
	if n.status != up {
		return
	}
	n.mail = slices.DeleteFunc(n.mail, func(l letter) bool {
		return slices.ContainsFunc(answers, func(a reply) bool { return a.op == l.req.op })
	})
	w.turn(i, n, func(t instant) {
		for _, a := range answers {
			n.m.reply(a, t)
		}
	})
}

func (w *world) hear(i int) {
	n := w.own(i)
	news := n.news
	n.news, n.deaf = nil, false
	w.turn(i, n, func(t instant) { n.m.watch(news, false, t) })
}

func (w *world) release(i int, p Part) {
	n := w.own(i)
	w.turn(i, n, func(t instant) {
		if !n.asked[p] {
			return // Lost came first
		}
		body := n.mark[p] + 1
		n.done[p] = body
		delete(n.asked, p)
		delete(n.open, p)
		delete(n.mark, p)
		n.m.release(n.m.sorted()[0], p, []byte(strconv.Itoa(body)), t)
	})
}

// disturb is what may happen to a member.
func (w *world) disturb(i int, n *node, tell func(*world)) {
	with := func(what string, f func(x *world, n *node)) {
		x := w.next(n.name + " " + what)
		x.faults--
		f(x, x.own(i))
		tell(x)
	}
	with("dies", func(x *world, n *node) {
		n.status = crashed
		x.ghosts = slices.Clone(x.ghosts)
		for _, l := range n.mail {
			if !l.answered && !l.req.get {
				x.ghosts = append(x.ghosts, l.req.LedgerWrite)
			}
		}
		n.mail, n.news, n.open, n.asked, n.mark, n.done = nil, nil, nil, nil, nil, nil
	})
	with("is stopped", func(_ *world, n *node) { n.status = stopped })
	if !n.leaves {
		with("leaves", func(x *world, n *node) {
			n.leaves = true
			x.turn(i, n, func(instant) { n.m.leave(n.m.sorted()[0], 0) })
		})
	}
	if n.beat == arrives {
		for f, what := range []string{"", "loses its next heartbeat", "gets no answer to its next heartbeat", "gets a slow answer to its next heartbeat", "sends its next heartbeat late"} {
			if f > 0 {
				with(what, func(_ *world, n *node) { n.beat = fate(f) })
			}
		}
	}
	if !n.deaf {
		with("hears nothing any more", func(_ *world, n *node) { n.deaf = true })
	}
	with("hears everything anew", func(x *world, n *node) {
		n.deaf = false
		x.tellAll(i, n)
	})
	if !n.missed {
		with("has a clock that misses the next tick", func(_ *world, n *node) { n.missed, n.skips = true, true })
	}
}

// quiet lets everything happen that is due, with nothing disturbed any more, until nothing is.
func (w *world) quiet() {
	for range 200 {
		busy := false
		for i := range w.nodes {
			n := w.nodes[i]
			if n.status == stopped {
				w.own(i).status = up
				n = w.nodes[i]
			}
			if n.status != up {
				continue
			}
			switch at := n.m.wakeAt; {
			case len(n.mail) > 0:
				w.serve(i, 0, nil)
			case len(n.news) > 0:
				w.hear(i)
			case len(n.asked) > 0:
				w.release(i, slices.SortedFunc(maps.Keys(n.asked), comparePart)[0])
			case at > 0 && n.now() >= at:
				w.turn(i, w.own(i), nil)
			default:
				continue
			}
			busy = true
		}
		if !busy {
			return
		}
	}
	w.fail("liveness: it does not come to rest")
}

// settle stops all disturbances and checks that all comes right: every partition ends with its
// target among those who live.
func (w *world) settle() {
	for _, q := range w.ghosts {
		w.write(q)
	}
	w.ghosts = nil
	for range 12 {
		w.quiet()
		w.look()
		w.forward()
		if w.wrong != "" {
			return
		}
	}
	w.quiet()
	var seats []sharer
	for _, n := range w.nodes {
		if n.status != up {
			continue
		}
		if n.leaves {
			w.fail("liveness: %s does not get away", n.name)
		}
		rec, err := parseSeat(w.read(seatKey("g", n.instance)).Value)
		if err != nil || rec.Member != n.m.member {
			w.fail("liveness: %s has no seat", n.name)
		}
		seats = append(seats, sharer{id: n.instance, joined: rec.Joined, topics: rec.Topics})
	}
	for p, id := range share(seats, map[string]Layout{"t": w.cfg.layout}) {
		for _, n := range w.nodes {
			if n.status != up || w.cfg.drains && w.cfg.layout.generationOf(p.ID) > 0 {
				continue
			}
			if has := n.may(p); has != (n.instance == id) {
				w.fail("liveness: %s should be with %s; with %s it is: %v", p, id, n.name, has)
			}
		}
	}
	for k, s := range w.ledger {
		parts := block.LedgerParts(k)
		if s.there && len(seats) > 0 && parts[0] == spaceGroup && parts[2] == kindSeat &&
			!slices.ContainsFunc(seats, func(x sharer) bool { return x.id == parts[3] }) {
			w.fail("liveness: the dead left %s", k)
		}
	}
}
