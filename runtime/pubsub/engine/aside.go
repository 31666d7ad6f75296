package engine

import (
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/lane"
)

// Metadata of copies on the park log and on dead-letter topics.
const (
	metaOrigin     = "mecha-origin"      // topic/partition/position of the original
	metaOriginTime = "mecha-origin-time" // when the broker accepted that, RFC 3339
	metaFailed     = "mecha-failed"      // how often it was delivered in vain
	metaReason     = "mecha-reason"      // why it was set aside
	metaEpoch      = "mecha-epoch"       // of the owner that parked it
	metaDeadLetter = "mecha-dead-letter" // the topic it comes from
)

// copyLoop copies what the lanes set aside, until the consumer ends.
func (c *Consumer) copyLoop() {
	for {
		select {
		case <-c.copies:
			c.copyAsides()
		case <-c.life.Done():
			return
		}
	}
}

// copied is a copy under way.
type copied struct {
	o *owned
	a lane.Aside
}

func (c *Consumer) copyAsides() {
	var list []copied
	c.mu.Lock()
	for _, o := range c.owned {
		if o.lane != nil {
			for _, a := range o.lane.Asides() {
				list = append(list, copied{o, a})
			}
		}
	}
	c.mu.Unlock()
	if len(list) == 0 {
		return
	}
	recs := make([]block.LogRecord, 0, len(list))
	var sent []copied
	for _, cp := range list {
		rec, err := c.copyOf(cp)
		if err != nil {
			c.copyDone(cp, block.AppendResult{Err: err})
			continue
		}
		recs, sent = append(recs, rec), append(sent, cp)
	}
	if len(recs) == 0 {
		return
	}
	results := c.e.log.Append(c.life, recs)
	for i, cp := range sent {
		r := block.AppendResult{Err: fault.New("pubsub.aside", fault.Internal, "the broker answered %d results to %d records", len(results), len(recs))}
		if len(results) == len(recs) {
			r = results[i]
		}
		c.copyDone(cp, r)
	}
}

// copyOf makes the copy of a record: to its place in the park log, or where its key belongs on the
// dead-letter topic.
func (c *Consumer) copyOf(cp copied) (block.LogRecord, error) {
	r := cp.a.Record
	origin := fmt.Sprintf("%s/%d/%d", r.Topic, r.Partition, r.Position)
	out := block.LogRecord{Message: block.Message{Key: r.Key, Data: r.Data, Metadata: make(map[string]string, len(r.Metadata)+5)}}
	maps.Copy(out.Metadata, r.Metadata)
	out.Metadata[metaOrigin] = origin
	out.Metadata[metaOriginTime] = r.Time.UTC().Format(time.RFC3339Nano)
	out.Metadata[metaFailed] = strconv.Itoa(cp.a.Failed)
	if cp.a.Reason != "" {
		out.Metadata[metaReason] = cp.a.Reason
	}
	// A copy whose answer was lost, or that a former owner made, is recognised while the broker remembers.
	out.ID = c.opts.Group + "/" + origin
	if cp.a.Remedy == RemedyPark {
		// In the park log order counts, and a copy of a former owner may be before what this one parked
		// already: each owner makes its own.
		epoch := strconv.FormatUint(cp.o.epoch, 10)
		out.ID += "/" + epoch
		out.Metadata[metaEpoch] = epoch
		out.Topic, out.Partition = parkLog(c.opts.Group, r.Topic), r.Partition
		c.keepParked(cp.o, out.Topic)
		return out, nil
	}
	out.Metadata[metaDeadLetter] = r.Topic
	out.Topic = c.opts.deadLetterTopic(r.Topic)
	layout, err := c.e.topics.get(c.life, out.Topic, true)
	if err != nil {
		return out, err
	}
	at := current(layout)
	if r.Key != "" {
		out.Partition = at.First + partitionOf(r.Key, at.Count)
	} else {
		out.Partition = at.First + int32(spread(r.Position)%uint32(at.Count))
	}
	return out, nil
}

// keepParked has a broker that keeps what is not consumed keep what is parked, before the first of it is there.
func (c *Consumer) keepParked(o *owned, parkTopic string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if keeper, ok := block.As[block.LogKeeper](c.e.log); ok && !o.keeps && o.phase != gone {
		o.keeps = true
		keeper.Consumed(parkTopic, c.opts.Group, o.part.ID, o.lane.ParkedFrom())
	}
}

// deadLetterTopic is where messages of a topic go that are given up.
func (o *ConsumeOptions) deadLetterTopic(topic string) string {
	if o.Retry.DeadLetterTopic != "" {
		return o.Retry.DeadLetterTopic
	}
	return topic + ".dead-letter"
}

func (c *Consumer) copyDone(cp copied, r block.AppendResult) {
	rec := &cp.a.Record
	log := c.log.With("partition", cp.o.part.String(), "position", rec.Position, "key", rec.Key, "failed", cp.a.Failed)
	switch {
	case r.Err != nil:
		log.Warn("a message could not be set aside and stays", "error", r.Err)
	case cp.a.Remedy == RemedyDeadLetter:
		log.Warn("message moved to the dead-letter topic", "deadLetterTopic", c.opts.deadLetterTopic(rec.Topic), "reason", cp.a.Reason)
	case cp.a.Failed > 0:
		log.Warn("message parked, and all later ones of its key; unpark the key when its cause is gone", "reason", cp.a.Reason)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := cp.o; o.phase != gone {
		o.change(func() { o.lane.Done(time.Now(), rec.Position, r.Position, r.Err) })
		o.list()
		if r.Err != nil {
			c.announce(Fault{Err: r.Err})
		}
	}
}
