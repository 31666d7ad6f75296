package engine

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

// What is resolved becomes durable every commitEvery, or as soon as commitAcks of a partition wait for it.
// The numbers bound what a crash delivers again: at 5000 messages a second of a partition about 1000.
const (
	commitEvery = 200 * time.Millisecond
	commitAcks  = 1000
)

const statusPatience = time.Second

// commitLoop commits what changed until the consumer ends. One commit is under way at a time; the final ones
// are part of releasing a partition.
func (c *Consumer) commitLoop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-c.dirty:
		case <-c.life.Done():
			return
		}
		timer.Reset(commitEvery)
		select {
		case <-timer.C:
		case <-c.urgent:
		case <-c.life.Done():
			return
		}
		c.commit()
	}
}

func (c *Consumer) commit() {
	var list []*owned
	var progress []group.Progress
	var marks, parked []uint64
	c.mu.Lock()
	for _, o := range c.owned {
		if o.lane != nil && o.lane.Dirty() {
			list = append(list, o)
			marks = append(marks, o.lane.Watermark())
			parked = append(parked, o.lane.ParkedFrom())
			progress = append(progress, group.Progress{Part: o.part, Body: o.lane.TakeProgress()})
		}
	}
	s := c.seat
	c.mu.Unlock()
	if len(list) == 0 {
		return
	}
	errs := s.Commit(c.life, progress)
	keeper, keeps := block.As[block.LogKeeper](c.e.log)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, o := range list {
		switch {
		case o.phase == gone:
		case i < len(errs) && errs[i] != nil:
			o.lane.Redirty() // when it was fenced, the group says so
			signal(c.dirty)
		default:
			o.committed = max(o.committed, marks[i])
			if keeps {
				keeper.Consumed(o.part.Topic, c.opts.Group, o.part.ID, marks[i])
				if parked[i] > 0 {
					keeper.Consumed(parkLog(c.opts.Group, o.part.Topic), c.opts.Group, o.part.ID, parked[i])
				}
			}
			if o.lane.Hungry() { // a progress record that was too long may fit again
				o.list()
			}
			signal(o.moved)
		}
	}
}

// statusLoop tells how the partitions are.
func (c *Consumer) statusLoop() {
	tick := time.NewTicker(c.opts.StatusEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-c.life.Done():
			return
		}
		st := c.Status()
		c.mu.Lock()
		c.announce(st)
		c.mu.Unlock()
	}
}

// Status is how the partitions are now. It asks the broker for their ends, and tells what it knows if that
// takes longer than statusPatience.
func (c *Consumer) Status() Status {
	c.mu.Lock()
	life := c.life
	c.mu.Unlock()
	if life == nil {
		return Status{}
	}
	ctx, cancel := context.WithTimeout(life, statusPatience)
	defer cancel()
	byTopic := map[string][]int32{}
	c.mu.Lock()
	for p, o := range c.owned {
		if o.lane != nil {
			byTopic[p.Topic] = append(byTopic[p.Topic], p.ID)
		}
	}
	c.mu.Unlock()
	ends := map[Part]uint64{}
	for topic, ids := range byTopic {
		bounds, err := c.e.log.Bounds(ctx, topic, ids)
		for i := range bounds {
			if err == nil {
				ends[Part{Topic: topic, ID: ids[i]}] = bounds[i].Next
			}
		}
	}
	now := time.Now()
	var st Status
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, o := range c.owned {
		if o.lane == nil {
			continue
		}
		o.end = max(o.end, ends[p])
		st.Parts = append(st.Parts, o.status(now))
	}
	return st
}

// status is how the partition is. c.mu is held.
func (o *owned) status(now time.Time) PartStatus {
	n, _ := o.lane.InFlight()
	s := PartStatus{Part: o.part, Epoch: o.epoch, Committed: o.committed, End: o.end, InFlight: n,
		ParkedKeys: len(o.lane.Parked()), Paused: o.paused, Blocked: o.lane.Full()}
	if w := o.lane.Watermark(); s.End > w {
		s.Lag = s.End - w
	}
	if t := o.lane.Oldest(); !t.IsZero() {
		s.Oldest = now.Sub(t)
	}
	return s
}

// moveTo is a progress that begins at a position. Keys parked since before stay parked; what was parked of
// others is read again.
func moveTo(position uint64, parked []lane.ParkedKey) []byte {
	p := lane.Progress{Watermark: position}
	for _, k := range parked {
		if k.Since < position {
			p.Parked = append(p.Parked, k)
		}
	}
	return p.Encode()
}
