package engine

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

// unpark brings a parked key back; done is called when nothing more is to come. c.mu is held.
func (o *owned) unpark(key string, done func()) {
	k, ok := o.lane.Unpark(key)
	if !ok {
		if o.returns[key] == nil {
			done() // it is not parked
		}
		return
	}
	more := make(chan struct{}, 1)
	o.returns[key] = more
	o.c.work.Go(func() {
		pause := 200 * time.Millisecond
		for {
			over, err := o.bringBack(k, more)
			if over {
				break
			}
			if err != nil && o.ctx.Err() == nil {
				o.c.report(err, "reading parked messages failed and is tried again", "partition", o.part.String(), "key", key)
			}
			if !wait(o.ctx, pause) {
				return
			}
			pause = min(2*pause, 5*time.Second)
		}
		o.c.mu.Lock()
		delete(o.returns, key)
		o.c.mu.Unlock()
		done()
	})
}

// bringBack reads the park log from a key's first message on and gives the lane what belongs to the key. over
// is false when that is to be done again.
func (o *owned) bringBack(k lane.ParkedKey, more <-chan struct{}) (over bool, err error) {
	c := o.c
	topic := parkLog(c.opts.Group, o.part.Topic)
	from := max(1, k.From)
	reader, err := c.e.log.OpenReader(o.ctx, topic, o.part.ID, from, block.ReadOptions{Messages: 64})
	if err != nil {
		return false, err
	}
	defer reader.Close()
	for {
		c.mu.Lock()
		room := -1
		if o.phase != gone {
			room = o.lane.ReplayRoom(k.Key)
		}
		c.mu.Unlock()
		if room < 0 {
			return true, nil
		}
		if room == 0 {
			select {
			case <-more:
				continue
			case <-o.ctx.Done():
				return false, o.ctx.Err()
			}
		}
		bounds, err := c.e.log.Bounds(o.ctx, topic, []int32{o.part.ID})
		if err != nil {
			return false, err
		}
		if from >= bounds[0].Next || bounds[0].First >= bounds[0].Next {
			if o.replayEnd(k.Key) {
				return true, nil
			}
			// Something is on its way to the park log.
			select {
			case <-more:
			case <-time.After(100 * time.Millisecond):
			case <-o.ctx.Done():
				return false, o.ctx.Err()
			}
			continue
		}
		recs, err := reader.Next(o.ctx, room, 1<<20)
		if err != nil {
			return false, err
		}
		for i := range recs {
			from = recs[i].Position + 1
			if recs[i].Key == k.Key {
				o.replay(&recs[i])
			}
		}
	}
}

// replay gives the lane a parked message as it was.
func (o *owned) replay(r *block.LogRecord) {
	c := o.c
	rec := *r
	rec.Topic = o.part.Topic
	rec.Metadata = maps.Clone(r.Metadata)
	origin := rec.Metadata[metaOrigin]
	position, err := strconv.ParseUint(origin[strings.LastIndexByte(origin, '/')+1:], 10, 64)
	if err != nil {
		return // not written by us
	}
	rec.Position = position
	if t, err := time.Parse(time.RFC3339Nano, rec.Metadata[metaOriginTime]); err == nil {
		rec.Time = t
	}
	for _, name := range []string{metaOrigin, metaOriginTime, metaFailed, metaReason} {
		delete(rec.Metadata, name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if o.phase != gone {
		o.change(func() { o.lane.Replay(rec, r.Position) })
		o.list()
	}
}

func (o *owned) replayEnd(key string) (over bool) {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	if o.phase == gone {
		return true
	}
	o.change(func() { over = o.lane.ReplayEnd(key) })
	o.list()
	return over
}

// seek moves the partition: the app loses it, and gets it back in a later epoch from the new place on. It is
// called by the reader's goroutine.
func (o *owned) seek(to Place) {
	position, err := o.place(to)
	if err != nil {
		o.c.report(err, "a partition could not be moved", "partition", o.part.String())
		return
	}
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	if o.phase != owning {
		return
	}
	progress := moveTo(position, o.lane.Parked())
	if o.told {
		o.c.announce(Lost{Parts: []Part{o.part}, Reason: "it is moved to another position"})
	}
	o.drop()
	o.c.seat.Release(o.part, progress)
}

// order is what an administrator asks of a partition: the body of a group.Command.
type order struct {
	Seek   *Place   `json:"seek,omitempty"`
	Unpark []string `json:"unpark,omitempty"` // keys
	Drop   []string `json:"drop,omitempty"`   // keys whose parked messages are given up
}

// obey does what an administrator asks. It is called by the reader's goroutine.
func (o *owned) obey(cmd group.Command) {
	var what order
	if err := json.Unmarshal(cmd.Body, &what); err != nil {
		o.c.report(fault.New("pubsub.Command", fault.Invalid, "a command of partition %s cannot be read", o.part).Because(err), "a command was dropped", "partition", o.part.String())
		o.c.seat.Done(o.part, cmd)
		return
	}
	if what.Seek != nil {
		o.c.seat.Done(o.part, cmd)
		o.seek(*what.Seek)
		return
	}
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	if o.phase == gone {
		return
	}
	for _, key := range what.Drop {
		o.change(func() { o.lane.DropParked(key) })
		o.list()
	}
	left := len(what.Unpark)
	if left == 0 {
		o.c.seat.Done(o.part, cmd)
	}
	var mu sync.Mutex
	for _, key := range what.Unpark {
		o.unpark(key, func() {
			mu.Lock()
			defer mu.Unlock()
			if left--; left == 0 {
				o.c.seat.Done(o.part, cmd)
			}
		})
	}
}
