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

// returning is a key on its way back from the park log.
type returning struct {
	key  string
	more chan struct{} // one slot: the lane may have room, or something was copied
	done []func()      // guarded by Consumer.mu; called when nothing more is to come
}

// unpark brings a parked key back; done is called when nothing more is to come. A key that failed again and is asked
// for again gets a new returning: the one before ends by itself, and brings nothing any more. c.mu is held.
func (o *owned) unpark(key string, done func()) {
	k, ok := o.lane.Unpark(key)
	if !ok {
		if r := o.returns[key]; r != nil {
			r.done = append(r.done, done)
			return
		}
		done() // it is not parked
		return
	}
	r := &returning{key: key, more: make(chan struct{}, 1), done: []func(){done}}
	if before := o.returns[key]; before != nil {
		signal(before.more)
	}
	o.returns[key] = r
	o.c.work.Go(func() { o.comeBack(k, r) })
}

// comeBack is the life of a returning.
func (o *owned) comeBack(k lane.ParkedKey, r *returning) {
	pause := 200 * time.Millisecond
	for {
		over, err := o.bringBack(k, r)
		if over {
			break
		}
		if err != nil && o.ctx.Err() == nil {
			o.c.report(err, "reading parked messages failed and is tried again", "partition", o.part.String(), "key", r.key)
		}
		if !wait(o.ctx, pause) {
			return
		}
		pause = min(2*pause, 5*time.Second)
	}
	o.c.mu.Lock()
	if o.returns[r.key] == r {
		delete(o.returns, r.key)
	}
	done := r.done
	r.done = nil
	o.c.mu.Unlock()
	for _, f := range done {
		f()
	}
}

// room is how much of the key the lane takes; -1 when this returning is over. c.mu is not held.
func (o *owned) returnRoom(r *returning) int {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	if o.phase == gone || o.returns[r.key] != r {
		return -1
	}
	return o.lane.ReplayRoom(r.key)
}

// bringBack reads the park log from a key's first message on and gives the lane what belongs to the key. over
// is false when that is to be done again.
func (o *owned) bringBack(k lane.ParkedKey, r *returning) (over bool, err error) {
	log := o.c.e.log
	topic := parkLog(o.c.opts.Group, o.part.Topic)
	from := max(1, k.From)
	reader, err := log.OpenReader(o.ctx, topic, o.part.ID, from, block.ReadOptions{Messages: 64})
	if err != nil {
		return false, err
	}
	defer reader.Close()
	for {
		room := o.returnRoom(r)
		if room < 0 {
			return true, nil
		}
		if room == 0 {
			select {
			case <-r.more:
				continue
			case <-o.ctx.Done():
				return false, o.ctx.Err()
			}
		}
		bounds, err := log.Bounds(o.ctx, topic, []int32{o.part.ID})
		if err != nil {
			return false, err
		}
		if b := bounds[0]; from >= b.Next || b.First >= b.Next {
			if o.replayEnd(r, max(from, b.Next)) {
				return true, nil
			}
			select { // something came to the park log since, or is on its way
			case <-r.more:
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
			if recs[i].Key == r.key {
				o.replay(r, &recs[i])
			}
		}
	}
}

// replay gives the lane a parked message as it was.
func (o *owned) replay(ret *returning, r *block.LogRecord) {
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
	if o.phase != gone && o.returns[ret.key] == ret {
		o.change(func() { o.lane.Replay(rec, r.Position) })
		o.list()
	}
}

// replayEnd tells the lane that the park log was read up to a position, where it ended.
func (o *owned) replayEnd(r *returning, read uint64) (over bool) {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	if o.phase == gone || o.returns[r.key] != r {
		return true
	}
	o.change(func() { over = o.lane.ReplayEnd(r.key, read) })
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
