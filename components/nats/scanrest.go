package nats

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// rest gives keys that were written since the first page, in their order, from the last one given
// on. A key among them stays among them, whatever is written.
func (c *scan) rest(ctx context.Context) error {
	kept := map[string]found{} // the first that follow, a few more than fit
	var size int
	var ceiling *string // keys above it are left for later pages
	c.over = true
	for from, over := c.at.until+1, false; !over; {
		var all []found
		var err error
		if all, over, err = c.sweep(ctx, from, scanMost); err != nil {
			return err
		}
		stale, err := c.outdated(ctx, all)
		if err != nil {
			return err
		}
		for i, f := range all {
			from = f.seq + 1
			if f.key == nil {
				continue
			}
			if old, is := kept[*f.key]; is { // another message of it came
				size -= len(*f.key) + len(old.value)
				delete(kept, *f.key)
			}
			if !c.fits(&f) || stale[i] || c.at.begun && *f.key <= c.at.last {
				continue
			}
			if ceiling != nil && *f.key > *ceiling {
				c.over = false
				continue
			}
			if c.keysOnly {
				f.value = nil
			}
			kept[*f.key] = f
			size += len(*f.key) + len(f.value)
			if len(kept) > 2*c.limit || size > 2*block.PageBytes {
				size, ceiling = c.prune(kept)
			}
		}
	}
	_, ceiling = c.prune(kept)
	if ceiling != nil {
		c.at.begun, c.at.last = true, *ceiling
	}
	for _, k := range slices.Sorted(maps.Keys(kept)) {
		f := kept[k]
		c.add(&f)
	}
	return nil
}

// prune keeps what fits on a page, and tells its size and last key.
func (c *scan) prune(kept map[string]found) (size int, last *string) {
	for i, k := range slices.Sorted(maps.Keys(kept)) {
		if i >= c.limit || size >= block.PageBytes {
			delete(kept, k)
			c.over = false
			continue
		}
		size += len(k) + len(kept[k].value)
		last = &k
	}
	return size, last
}

// sweep gets up to n messages from a sequence on, all of one moment; over means that there are no more. Only a read
// that ends before either of its bounds says so: the server's own count of what is left is made
// by other means.
func (c *scan) sweep(ctx context.Context, from uint64, n int) (all []found, over bool, err error) {
	msgs, err := c.s.batchFrom(ctx, c.op, c.filter, from, n)
	if err != nil {
		return nil, false, err
	}
	size := 0
	for _, m := range msgs {
		f, err := c.s.parseFound(c.op, m)
		if err != nil {
			return nil, false, err
		}
		size += m.Size()
		from = f.seq + 1
		all = append(all, f)
	}
	over = len(msgs) < n && size < scanBytes
	if !over || !c.a.replicated {
		return all, over, nil
	}
	// The replica that answered may not have all yet.
	m, err := c.s.leader(ctx, c.op, &messageRequest{Seq: max(from, 1), NextFor: c.filter})
	if err != nil || m == nil {
		return all, true, err
	}
	v, err := m.version(c.op)
	return append(all, found{version: v, key: c.s.keyOf(m.Subject)}), false, err
}

func (s *state) parseFound(op fault.Op, m *natsgo.Msg) (found, error) {
	v, err := parseVersion(op, m)
	if err != nil || v.seq == 0 {
		return found{}, err
	}
	f := found{version: v}
	if h := m.Header["Nats-Subject"]; len(h) > 0 {
		f.key = s.keyOf(h[0])
	}
	if len(m.Header[headerPending]) == 0 {
		return f, fault.New(op, fault.Unsupported, "the server reads messages one at a time only; going through keys needs version 2.11 or later")
	}
	return f, nil
}

// headerPending is in all answers to a read of several messages, and in no others.
const headerPending = "Nats-Num-Pending"

// batchFrom reads up to n messages that match filter, from a sequence on. The answers come one
// by one to an inbox of their own.
func (s *state) batchFrom(ctx context.Context, op fault.Op, filter string, from uint64, n int) ([]*natsgo.Msg, error) {
	p, err := s.conn.acquire(ctx, op)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(messageRequest{Seq: max(from, 1), NextFor: filter, Batch: n, Bytes: scanBytes})
	if err != nil {
		return nil, fault.Wrap(op, fault.Internal, err)
	}
	for again := false; ; again = true {
		msgs, missing, err := p.batch(ctx, op, s.direct(), body, n)
		if err != nil || !missing {
			return msgs, err
		}
		if again {
			return nil, fault.New(op, fault.Unavailable, "bucket %s does not answer", s.stream).WithSent(fault.SentNever)
		}
		if err := s.create(ctx, op, p); err != nil {
			return nil, err
		}
	}
}

// batch sends one request that has up to n answers and an end; missing means that nobody was
// there to answer it.
func (p *period) batch(ctx context.Context, op fault.Op, subject string, body []byte, n int) (msgs []*natsgo.Msg, missing bool, err error) {
	answers := make(chan *natsgo.Msg, n+1) // the library drops what finds no room
	inbox := p.nc.NewInbox()
	sub, err := p.nc.ChanSubscribe(inbox, answers)
	if err != nil {
		return nil, false, sendError(op, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := p.nc.PublishRequest(subject, inbox, body); err != nil {
		return nil, false, sendError(op, err)
	}
	for {
		m, err := p.answer(ctx, op, &lane{answers: answers})
		if err != nil {
			return nil, false, err
		}
		switch status := statusOf(m); status {
		case "":
			msgs = append(msgs, m)
			if len(m.Header[headerPending]) == 0 {
				return msgs, false, nil // an old server, which does not end what it answers
			}
		case "204", "404":
			return msgs, false, nil
		case "503":
			return nil, true, nil
		default:
			return nil, false, fault.New(op, fault.Unavailable, "the server answers a read with %s %s", status, m.Header.Get("Description"))
		}
	}
}
