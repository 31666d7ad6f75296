package engine

import (
	"time"

	"github.com/mecha-project/mecha/runtime/pubsub/group"
)

// groupEvents is the consumer as its group sees it.
type groupEvents Consumer

// lock waits until Run knows its seat: the group may be faster.
func (g *groupEvents) lock() *Consumer {
	c := (*Consumer)(g)
	<-c.seated
	c.mu.Lock()
	return c
}

// Ended implements group.Ender.
func (g *groupEvents) Ended(reason string) {
	c := (*Consumer)(g)
	select {
	case c.ended <- reason:
	default:
	}
}

// Assigned implements group.Events.
func (g *groupEvents) Assigned(claims []group.Claim) {
	c := g.lock()
	defer c.mu.Unlock()
	for _, cl := range claims {
		o := newOwned(c, cl)
		c.owned[cl.Part] = o
		c.work.Go(func() { o.run(cl.Progress) })
	}
}

// Revoke implements group.Events.
func (g *groupEvents) Revoke(parts []Part, reason string) {
	c := g.lock()
	defer c.mu.Unlock()
	c.assignment++
	patience := c.opts.RevokeTimeout
	if c.closing {
		patience = max(patience, c.opts.LeaveTimeout)
	}
	ev := Revoking{Assignment: c.assignment, Deadline: time.Now().Add(patience), Reason: reason}
	for _, p := range parts {
		if o := c.owned[p]; o != nil && o.revoke(ev.Assignment, ev.Deadline) {
			ev.Parts = append(ev.Parts, p)
		}
	}
	if len(ev.Parts) > 0 {
		c.announce(ev)
		c.revocations[ev.Assignment] = ev.Parts
		for old := range c.revocations {
			if len(c.revocations) > maxRevocations && old != ev.Assignment && ev.Assignment-old > maxRevocations/2 {
				delete(c.revocations, old)
			}
		}
	}
	for _, p := range ev.Parts { // after it is told: one without messages at the app is over at once
		c.owned[p].settle()
	}
	c.poke()
}

// Lost implements group.Events.
func (g *groupEvents) Lost(parts []Part, reason string) {
	c := g.lock()
	defer c.mu.Unlock()
	var lost []Part
	for _, p := range parts {
		if o := c.owned[p]; o != nil {
			if o.told {
				lost = append(lost, p)
			}
			o.drop()
		}
	}
	if len(lost) > 0 {
		c.announce(Lost{Parts: lost, Reason: reason})
	}
}

// Changed implements group.Events.
func (g *groupEvents) Changed(v group.View) {
	c := g.lock()
	defer c.mu.Unlock()
	c.view = v
	c.announce(GroupChanged{View: v})
}

// Doubt implements group.Events.
func (g *groupEvents) Doubt(on bool) {
	c := g.lock()
	defer c.mu.Unlock()
	c.doubt = on
	for _, o := range c.owned {
		o.list()
	}
	c.poke()
}

// Command implements group.Events.
func (g *groupEvents) Command(p Part, cmd group.Command) {
	c := g.lock()
	defer c.mu.Unlock()
	if o := c.owned[p]; o != nil {
		o.do(func() { o.obey(cmd) })
	}
}
