package nats

import (
	"context"
	"encoding/json"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/fault"
)

// walk gets about n messages from a sequence on; over means that there are no more.
func (c *scan) walk(ctx context.Context, from uint64, n int) (all []found, over bool, err error) {
	for size := 0; len(all) < n && size < scanBytes; {
		part, dry, err := c.window(ctx, from, n-len(all))
		if err != nil {
			return nil, false, err
		}
		if dry {
			if len(part) > 0 {
				from = part[len(part)-1].seq + 1
			}
			// Only a read that begins when all others are over tells the end. In a replicated stream
			// it is the leader's: others may not have all yet.
			last, err := c.first(ctx, from)
			if err != nil || last.seq == 0 {
				return append(all, part...), true, err
			}
			part = append(part, last)
		}
		all = append(all, part...)
		from = part[len(part)-1].seq + 1
		for _, f := range part {
			size += len(f.value)
		}
	}
	return all, false, nil
}

// first is the first message from a sequence on; its sequence is 0 when there is none.
func (c *scan) first(ctx context.Context, from uint64) (found, error) {
	if !c.a.replicated {
		fs, err := c.next(ctx, []uint64{from})
		if err != nil {
			return found{}, err
		}
		return fs[0], nil
	}
	m, err := c.s.leader(ctx, c.op, &messageRequest{Seq: max(from, 1), NextFor: c.filter})
	if err != nil || m == nil {
		return found{}, err
	}
	v, err := m.version(c.op)
	return found{version: v, key: c.s.keyOf(m.Subject)}, err
}

// chain walks a range of sequences.
type chain struct {
	at, end uint64
	found   []found
	done    bool
	dry     bool // there was nothing from at on, in the range or behind it
}

// window reads messages from a sequence on, about n of them. The server gives several at once only
// after it has counted all that match, which takes as long as there are keys; so single reads walk
// several ranges side by side. What is returned has no gaps: a range that ended with a message
// behind its end cannot get another, as new messages come behind all there are. Behind a range that
// ended with none nothing is believed; dry means that there was one.
func (c *scan) window(ctx context.Context, from uint64, n int) (all []found, dry bool, err error) {
	gap := max(c.s.scanGap.Load(), 1) // sequences for each message, as it was lately
	k := min(n, scanChains, int(max(scanBytes/max(c.s.scanSize.Load(), 1), 1)))
	stride := gap * uint64((n+k-1)/k)
	chains := make([]chain, k)
	for i := range chains {
		chains[i] = chain{at: from + uint64(i)*stride, end: from + uint64(i+1)*stride}
	}
	for {
		var active []*chain
		var at []uint64
		for i := range chains {
			if ch := &chains[i]; !ch.done {
				active, at = append(active, ch), append(at, ch.at)
			}
			if chains[i].dry {
				break
			}
		}
		if len(active) == 0 {
			break
		}
		found, err := c.next(ctx, at)
		if err != nil {
			return nil, false, err
		}
		for i, f := range found {
			active[i].step(f, active[i] == &chains[k-1])
		}
	}
	for i := range chains {
		if all = append(all, chains[i].found...); chains[i].dry {
			dry = true
			break
		}
	}
	if len(all) > 0 {
		size := 0
		for _, f := range all {
			size += len(f.value)
		}
		c.s.scanSize.Store(uint64(size / len(all)))
		c.s.scanGap.Store(min((all[len(all)-1].seq-from+1)/uint64(len(all)), 1<<20))
	}
	return all, dry, nil
}

// step takes what was found from ch.at on. The last chain keeps also what is behind its end.
func (ch *chain) step(f found, last bool) {
	switch {
	case f.seq == 0:
		ch.done, ch.dry = true, true
		return
	case f.seq < ch.end || last:
		ch.found = append(ch.found, f)
	}
	ch.at = f.seq + 1
	ch.done = ch.at >= ch.end
}

// next reads the first message from each of several sequences on.
func (c *scan) next(ctx context.Context, from []uint64) ([]found, error) {
	msgs := make([]*natsgo.Msg, len(from))
	for i, seq := range from {
		body, err := json.Marshal(messageRequest{Seq: max(seq, 1), NextFor: c.filter})
		if err != nil {
			return nil, fault.Wrap(c.op, fault.Internal, err)
		}
		msgs[i] = &natsgo.Msg{Subject: c.s.direct(), Data: body}
	}
	answers, err := c.s.ask(ctx, c.op, msgs...)
	if err != nil {
		return nil, err
	}
	out := make([]found, len(answers))
	for i, m := range answers {
		v, err := parseVersion(c.op, m)
		if err != nil {
			return nil, err
		}
		out[i].version = v
		if h := m.Header["Nats-Subject"]; len(h) > 0 {
			out[i].key = c.s.keyOf(h[0])
		}
	}
	return out, nil
}
