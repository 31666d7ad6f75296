package engine

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

// comeback is a parked key on its way back.
type comeback struct {
	more  chan struct{} // one slot: there may be room
	again []func()      // guarded by Consumer.mu: who asked for it meanwhile
}

// unpark brings a parked key back; done is called when nothing more is to come, with c.mu held. c.mu is held.
func (o *owned) unpark(key string, done func()) {
	if b := o.returns[key]; b != nil {
		// The one under way may have been given up: its first message failed again. Two at a time would
		// take each other's end for their own.
		b.again = append(b.again, done)
		return
	}
	k, ok := o.lane.Unpark(key)
	if !ok {
		done() // it is not parked
		return
	}
	b := &comeback{more: make(chan struct{}, 1)}
	o.returns[key] = b
	o.c.work.Go(func() {
		pause := 200 * time.Millisecond
		for {
			over, err := o.bringBack(k, b.more)
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
		defer o.c.mu.Unlock()
		delete(o.returns, key)
		if o.phase == gone {
			return
		}
		done()
		for _, asked := range b.again {
			o.unpark(key, asked)
		}
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
			if o.replayEnd(k.Key, max(from, bounds[0].Next)) {
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
	own := rec.Metadata[metaEpoch] == strconv.FormatUint(o.epoch, 10)
	for _, name := range []string{metaOrigin, metaOriginTime, metaFailed, metaReason, metaEpoch} {
		delete(rec.Metadata, name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if o.phase != gone {
		o.change(func() {
			if own {
				o.lane.Copied(position, r.Position)
			}
			o.lane.Replay(rec, r.Position)
		})
		o.list()
	}
}

func (o *owned) replayEnd(key string, upTo uint64) (over bool) {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	if o.phase == gone {
		return true
	}
	o.change(func() { over = o.lane.ReplayEnd(key, upTo) })
	o.list()
	return over
}

// seek moves the partition: the app loses it, and gets it back in a later epoch from the new place on. It is
// called by the reader's goroutine. moved is false when the partition is about to be another's.
func (o *owned) seek(to Place) (moved bool, err error) {
	position, err := o.place(to)
	if err != nil {
		return false, err
	}
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	if o.phase != owning {
		return false, nil
	}
	progress := moveTo(position, o.lane.Parked())
	if o.told {
		o.c.announce(Lost{Parts: []Part{o.part}, Reason: "it is moved to another position"})
	}
	o.drop()
	o.c.seat.Release(o.part, progress)
	return true, nil
}

// seekAgain is the pause after a seek that failed.
const seekAgain = 200 * time.Millisecond

// seekSoon moves the partition, and does not give up while it is the consumer's.
func (o *owned) seekSoon(to Place, then func()) {
	moved, err := o.seek(to)
	switch {
	case moved:
		then()
	case err != nil && o.ctx.Err() == nil:
		o.c.report(err, "a partition could not be moved and it is tried again", "partition", o.part.String())
		o.c.work.Go(func() {
			if wait(o.ctx, seekAgain) {
				o.c.mu.Lock()
				defer o.c.mu.Unlock()
				o.do(func() { o.seekSoon(to, then) })
			}
		})
	}
}

// obeySeek carries out a reset. It is done when the partition was moved: a crash before that is no
// reason to forget it, and after one it may be carried out twice.
func (o *owned) obeySeek(cmd group.Command, what order) {
	o.seekSoon(*what.Seek, func() {
		c := o.c
		if len(what.Unpark)+len(what.Drop) == 0 {
			c.seat.Done(o.part, cmd)
			return
		}
		// The rest is for the next epoch.
		err := c.e.ask(c.life, c.opts.Group, o.part, func(now *order) {
			if now.Seek != nil && now.Seek.equal(*what.Seek) {
				now.Seek = nil
			}
		})
		if err != nil && c.life.Err() == nil {
			c.report(err, "a command that was carried out could not be taken back", "partition", o.part.String())
		}
	})
}

func (p Place) equal(o Place) bool {
	return p.Kind == o.Kind && p.Position == o.Position && p.Time.Equal(o.Time)
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
		o.obeySeek(cmd, what)
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
	for _, key := range what.Unpark {
		o.unpark(key, func() {
			if left--; left == 0 {
				o.c.seat.Done(o.part, cmd)
			}
		})
	}
}
