package nats

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var _ block.StateScan = (*state)(nil)

// A scan walks the stream by sequence: the token says where it stands. A key's message only ever
// moves to the end of the stream, when the key is written, so no key that stays can slip past
// behind the scan; and a token outlives the server.
//
// Where keys are written faster than pages are read, the end would move away for ever. So a scan
// that has passed what was the end after its first page gives the rest, the keys written since,
// in the order of keys: each page reads all of them and keeps those that come next.
const (
	// scanBytes bounds what a read of several messages asks for; the one that crosses it still comes.
	scanBytes = block.PageBytes
	// scanRounds is how many reads one page takes at most before it is given as it is: most of
	// what is read may be markers, or keys of another prefix.
	scanRounds = 8
	// scanLeast is how many messages are asked for at least where the server cannot pick the keys,
	// scanMost how many at most anywhere.
	scanLeast, scanMost = 16, 1024
)

// Scan gives a page of the keys with a prefix, mostly in the order they were last written. Values
// are read anyway, so keysOnly saves nothing but memory.
func (s *state) Scan(ctx context.Context, prefix, token string, limit int, keysOnly bool) ([]block.StateItem, string, error) {
	const op fault.Op = "nats.state.Scan"
	if limit < 1 {
		return nil, "", fault.New(op, fault.Invalid, "a page of %d items cannot be; ask for 1 or more", limit).WithSent(fault.SentNever)
	}
	filter, err := keyFilter(op, prefix)
	if err != nil {
		return nil, "", err
	}
	at, err := s.parseSpot(op, prefix, token)
	if err != nil {
		return nil, "", err
	}
	a, err := s.able(ctx, op)
	if err != nil {
		return nil, "", err
	}
	c := &scan{s: s, op: op, a: a, prefix: prefix, filter: s.prefix + filter, at: at, limit: limit, keysOnly: keysOnly}
	c.exact = filter == ">" && prefix == "" || strings.HasSuffix(prefix, "||")
	if at.until != 0 && at.next > at.until {
		err = c.rest(ctx)
	} else {
		err = c.page(ctx)
	}
	if err != nil || c.over {
		return c.items, "", err
	}
	return c.items, s.token(prefix, c.at), nil
}

// scan is one page being made.
type scan struct {
	s        *state
	op       fault.Op
	a        *abilities
	prefix   string
	filter   string
	exact    bool // all keys of the filter have the prefix
	limit    int
	keysOnly bool

	items []block.StateItem
	bytes int  // of keys and values on the page
	at    spot // where the scan stands
	over  bool // there is nothing further on
}

// page goes on by sequence.
func (c *scan) page(ctx context.Context) error {
	want := c.limit
	if !c.exact {
		want = max(min(2*want, scanMost), scanLeast)
	}
	for range scanRounds {
		if c.exact {
			want = min(c.limit-len(c.items), scanMost)
		}
		found, over, err := c.read(ctx, c.at.next, want)
		if err != nil {
			return err
		}
		if c.over, err = c.take(ctx, found, over); err != nil || c.over {
			return err
		}
		if len(c.items) == c.limit || c.bytes >= block.PageBytes {
			break
		}
		if !c.exact {
			want = min(4*want, scanMost)
		}
	}
	if c.at.until == 0 { // the first page
		return c.bound(ctx)
	}
	return nil
}

// bound notes where the stream ends now.
func (c *scan) bound(ctx context.Context) error {
	m := &messageRequest{LastFor: c.filter}
	if c.a.replicated {
		last, err := c.s.leader(ctx, c.op, m)
		if err == nil && last != nil {
			c.at.until = last.Seq
		}
		return err
	}
	body, err := json.Marshal(m)
	if err != nil {
		return fault.Wrap(c.op, fault.Internal, err)
	}
	answers, err := c.s.ask(ctx, c.op, &natsgo.Msg{Subject: c.s.direct(), Data: body})
	if err != nil {
		return err
	}
	last, err := parseVersion(c.op, answers[0])
	c.at.until = last.seq
	return err
}

// take keeps what belongs on the page, as far as there is room. over is whether nothing follows
// what was found.
func (c *scan) take(ctx context.Context, all []found, over bool) (bool, error) {
	stale, err := c.outdated(ctx, all)
	if err != nil {
		return false, err
	}
	for i := range all {
		f := &all[i]
		if len(c.items) == c.limit {
			return false, nil
		}
		c.at.next = f.seq + 1
		if c.fits(f) && !stale[i] {
			c.add(f)
		}
	}
	return over, nil
}

func (c *scan) fits(f *found) bool {
	return f.key != nil && strings.HasPrefix(*f.key, c.prefix) && f.live()
}

func (c *scan) add(f *found) {
	item := f.item(*f.key)
	if c.keysOnly {
		item.Value = nil
	}
	c.bytes += len(item.Key) + len(item.Value)
	c.items = append(c.items, item)
}

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
		if all, over, err = c.read(ctx, from, scanMost); err != nil {
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

// read gets up to n messages from a sequence on; over means that there are no more. Only a read
// that ends before either of its bounds says so: the server's own count of what is left is made
// by other means.
func (c *scan) read(ctx context.Context, from uint64, n int) (all []found, over bool, err error) {
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

// outdated tells which messages are not the last of their keys. Only buckets that somebody made
// to remember several have such.
func (c *scan) outdated(ctx context.Context, all []found) (map[int]bool, error) {
	if !c.a.history {
		return nil, nil
	}
	var keys []string
	var place []int
	for i, f := range all {
		if f.key != nil && f.live() {
			keys, place = append(keys, *f.key), append(place, i)
		}
	}
	now, err := c.s.versions(ctx, c.op, keys, true)
	if err != nil {
		return nil, err
	}
	stale := map[int]bool{}
	for j, i := range place {
		stale[i] = now[j].seq != all[i].seq
	}
	return stale, nil
}

// found is a message of a key.
type found struct {
	version
	key *string // nil: no key of ours has this subject
}

// keyOf is the key of a subject; nil when it is not one we could have written.
func (s *state) keyOf(subject string) *string {
	text, ok := strings.CutPrefix(subject, s.prefix)
	if !ok {
		return nil
	}
	key, err := parseKey(text)
	if err != nil {
		return nil
	}
	if again, err := appendKey(nil, "", key); err != nil || string(again) != text {
		return nil
	}
	return &key
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

// direct is where any replica answers requests for messages.
func (s *state) direct() string { return "$JS.API.DIRECT.GET." + s.stream }

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
