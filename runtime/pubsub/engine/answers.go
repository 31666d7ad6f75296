package engine

import (
	"slices"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// maxCredit keeps sums of credit within numbers.
const maxCredit = 1 << 40

// Credit lets the app be given more: messages and bytes on top of what is left. With a part it bounds that
// partition too. Before the first grant of a kind there is no bound of that kind, save that of messages altogether,
// of which the app takes none. It is an error in a consumer that was not opened with Credited.
func (c *Consumer) Credit(messages, bytes int, part *Part) error {
	const op fault.Op = "pubsub.Credit"
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.opts.Credited {
		return fault.New(op, fault.Invalid, "the consumer was opened without credit; it takes none")
	}
	if messages < 0 || bytes < 0 || messages+bytes == 0 || messages > maxCredit || bytes > maxCredit {
		return fault.New(op, fault.Invalid, "credit of %d messages and %d bytes: want 0 to %d, and not nothing at all", messages, bytes, maxCredit)
	}
	if part == nil {
		c.credit.grant(messages, bytes)
		c.feed()
		c.poke()
		return nil
	}
	o, err := c.present(op, *part)
	if err != nil {
		return err
	}
	o.credit.grant(messages, bytes)
	o.list()
	return nil
}

// present is a partition that the app owns. mu is held.
func (c *Consumer) present(op fault.Op, p Part) (*owned, error) {
	switch o := c.owned[p]; {
	case o != nil && o.told:
		return o, nil
	case c.past[p] > 0:
		return nil, fault.New(op, fault.Conflict, "partition %s was lost or given back", p).With(StaleEpoch)
	}
	return nil, fault.New(op, fault.Invalid, "partition %s is not assigned to this consumer", p).With(NotAssigned)
}

// mine is a partition that the app owns in an epoch. mu is held.
func (c *Consumer) mine(op fault.Op, p Part, epoch uint64) (*owned, error) {
	o := c.owned[p]
	switch {
	case o != nil && o.told && o.epoch == epoch:
		return o, nil
	case epoch <= c.past[p] && epoch > 0, o != nil && o.told && epoch < o.epoch:
		return nil, fault.New(op, fault.Conflict, "epoch %d of partition %s is over: the partition was lost or given back", epoch, p).With(StaleEpoch)
	}
	return nil, c.notAssigned(op, p, epoch)
}

func (c *Consumer) notAssigned(op fault.Op, p Part, epoch uint64) error {
	return fault.New(op, fault.Invalid, "partition %s is not assigned to this consumer under epoch %d", p, epoch).With(NotAssigned)
}

// Ack resolves messages. Positions without a message do not matter, nor those that are resolved. An error,
// StaleEpoch, NotAssigned or NotDelivered, changes nothing.
func (c *Consumer) Ack(part Part, epoch uint64, ranges []Range) error {
	const op fault.Op = "pubsub.Ack"
	for _, r := range ranges {
		if r.From > r.To {
			return fault.New(op, fault.Invalid, "range %d to %d of partition %s runs backwards", r.From, r.To, part)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.mine(op, part, epoch)
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if !o.lane.Delivered(r.From, r.To) {
			return fault.New(op, fault.Invalid, "positions %d to %d of partition %s were not all delivered under epoch %d", r.From, r.To, part, epoch).With(NotDelivered)
		}
	}
	now := time.Now()
	o.change(func() {
		for _, r := range ranges {
			o.lane.Ack(now, r.From, r.To)
		}
	})
	return nil
}

// Nack says that the app could not handle a message.
func (c *Consumer) Nack(r Refusal) error {
	const op fault.Op = "pubsub.Nack"
	if r.Remedy > RemedyDrop || r.Delay < 0 {
		return fault.New(op, fault.Invalid, "remedy %d after %v: no such thing", r.Remedy, r.Delay)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.mine(op, r.Part, r.Epoch)
	if err != nil {
		return err
	}
	if !o.lane.Delivered(r.Position, r.Position) {
		return notDelivered(op, r.Part, r.Position, r.Epoch)
	}
	o.change(func() {
		o.lane.Tried(r.Position, r.Tried)
		o.lane.Nack(time.Now(), r.Position, r.Remedy, r.Delay, r.Reason)
	})
	return nil
}

// Return gives a message back that the app has not begun with.
func (c *Consumer) Return(part Part, epoch, position uint64) error {
	const op fault.Op = "pubsub.Return"
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.mine(op, part, epoch)
	if err != nil {
		return err
	}
	if !o.lane.Delivered(position, position) {
		return notDelivered(op, part, position, epoch)
	}
	o.change(func() { o.lane.Return(position) })
	return nil
}

func notDelivered(op fault.Op, p Part, position, epoch uint64) error {
	return fault.New(op, fault.Invalid, "position %d of partition %s was not delivered under epoch %d", position, p, epoch).With(NotDelivered)
}

// Extend gives a message at the app more time, from now; 0 means another handler timeout.
func (c *Consumer) Extend(part Part, epoch, position uint64, by time.Duration) error {
	const op fault.Op = "pubsub.Extend"
	if by < 0 {
		return fault.New(op, fault.Invalid, "an extension by %v", by)
	}
	if by == 0 {
		by = c.opts.HandlerTimeout
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.mine(op, part, epoch)
	if err != nil {
		return err
	}
	if !o.lane.Delivered(position, position) {
		return notDelivered(op, part, position, epoch)
	}
	o.lane.Extend(time.Now(), position, by)
	c.soon(o.lane.Due())
	c.poke()
	return nil
}

// maxRevocations is how many answers to Revoking are remembered, so that one that comes late is no error.
const maxRevocations = 1000

// RevokeDone says that the app has let go of partitions of a Revoking; none means all of it. It is
// NoRevoking when there was no such assignment, or a partition is none of its. One that is answered, or was
// lost meanwhile, is no error.
func (c *Consumer) RevokeDone(assignment uint64, parts []Part) error {
	const op fault.Op = "pubsub.RevokeDone"
	c.mu.Lock()
	defer c.mu.Unlock()
	asked, ok := c.revocations[assignment]
	if !ok {
		return fault.New(op, fault.Invalid, "assignment %d revokes nothing", assignment).With(NoRevoking)
	}
	for _, p := range parts {
		if !slices.Contains(asked, p) {
			return fault.New(op, fault.Invalid, "assignment %d does not revoke partition %s", assignment, p).With(NoRevoking)
		}
	}
	if len(parts) == 0 {
		parts = asked
	}
	for _, p := range parts {
		if o := c.owned[p]; o != nil && o.phase == revoking && o.assignment == assignment {
			o.finish("")
		}
	}
	return nil
}

// Control pauses, resumes or moves partitions, or changes the concurrency.
func (c *Consumer) Control(ct Control) error {
	const op fault.Op = "pubsub.Control"
	c.mu.Lock()
	defer c.mu.Unlock()
	if ct.Concurrency < 0 || ct.Pause && ct.Resume {
		return fault.New(op, fault.Invalid, "concurrency %d, pause %v, resume %v cannot be", ct.Concurrency, ct.Pause, ct.Resume)
	}
	which := make([]*owned, 0, len(c.owned))
	for _, p := range ct.Parts {
		o, err := c.present(op, p)
		if err != nil {
			return err
		}
		which = append(which, o)
	}
	if len(ct.Parts) == 0 {
		for _, o := range c.owned {
			which = append(which, o)
		}
	}
	if ct.Concurrency > 0 {
		c.concurrency = ct.Concurrency
	}
	for _, o := range which {
		if ct.Pause || ct.Resume {
			o.paused = ct.Pause
			if o.lane != nil {
				o.lane.Paused = ct.Pause
			}
		}
		if ct.Seek != nil {
			o.do(func() { o.seekSoon(*ct.Seek, func() {}) })
		}
		o.list()
	}
	for _, o := range c.owned {
		o.list()
	}
	c.poke()
	return nil
}
