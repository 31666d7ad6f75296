package nats

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"hash/fnv"
	"strconv"
	"strings"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var _ block.StateScan = (*state)(nil)

// A scan walks the stream by sequence: the token is where it stands. A key's message only ever
// moves to the end of the stream, when the key is written, so no key that stays can slip past
// behind the scan; and a token outlives the server.
const (
	// scanBytes bounds what a read of several messages asks for; the one that crosses it still comes.
	scanBytes = 4 << 20
	// scanRounds is how many reads one page takes at most before it is given as it is: most of
	// what is read may be markers, or keys of another prefix.
	scanRounds = 8
	// scanWide is the least that is read at once where the server cannot pick the keys.
	scanWide = 256
)

// Scan gives a page of the keys with a prefix, in the order they were last written. Values are
// read anyway, so keysOnly saves nothing but memory.
func (s *state) Scan(ctx context.Context, prefix, token string, limit int, keysOnly bool) ([]block.StateItem, string, error) {
	const op fault.Op = "nats.state.Scan"
	if limit < 1 {
		return nil, "", fault.New(op, fault.Invalid, "a page of %d items cannot be; ask for 1 or more", limit).WithSent(fault.SentNever)
	}
	filter, err := keyFilter(op, prefix)
	if err != nil {
		return nil, "", err
	}
	from, err := s.parseToken(op, prefix, token)
	if err != nil {
		return nil, "", err
	}
	a, err := s.able(ctx, op)
	if err != nil {
		return nil, "", err
	}
	c := &scan{s: s, op: op, a: a, prefix: prefix, filter: s.prefix + filter, next: from, limit: limit, keysOnly: keysOnly}
	c.exact = filter == ">" && prefix == "" || strings.HasSuffix(prefix, "||")
	for range scanRounds {
		if err := c.round(ctx); err != nil {
			return nil, "", err
		}
		if c.over {
			return c.items, "", nil
		}
		if len(c.items) == limit || c.bytes >= scanBytes {
			break
		}
	}
	return c.items, s.token(prefix, c.next), nil
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
	bytes int    // of values on the page
	next  uint64 // sequence from which nothing was read
	over  bool   // there is nothing from next on
}

// round reads one batch of messages.
func (c *scan) round(ctx context.Context) error {
	want := c.limit - len(c.items)
	if !c.exact {
		want = max(want, scanWide)
	}
	msgs, err := c.s.batchFrom(ctx, c.op, c.filter, c.next, want)
	if err != nil {
		return err
	}
	var found []found
	size := 0
	for _, m := range msgs {
		f, err := c.s.parseFound(c.op, m)
		if err != nil {
			return err
		}
		size += m.Size()
		found = append(found, f)
	}
	// A read that ends before either bound found no more. The server's own count of what is left
	// is an estimate by other means.
	c.over = len(msgs) < want && size < scanBytes
	if c.over && c.a.replicated { // the replica that answered may not have all
		f, err := c.last(ctx, found)
		if err != nil {
			return err
		}
		if f.seq != 0 {
			c.over, found = false, append(found, f)
		}
	}
	return c.take(ctx, found)
}

// last asks the leader for what follows.
func (c *scan) last(ctx context.Context, seen []found) (found, error) {
	from := c.next
	if len(seen) > 0 {
		from = seen[len(seen)-1].seq + 1
	}
	m, err := c.s.leader(ctx, c.op, &messageRequest{Seq: max(from, 1), NextFor: c.filter})
	if err != nil || m == nil {
		return found{}, err
	}
	v, err := m.version(c.op)
	return found{version: v, key: c.s.keyOf(m.Subject)}, err
}

// take keeps what belongs on the page, as far as there is room.
func (c *scan) take(ctx context.Context, all []found) error {
	stale, err := c.outdated(ctx, all)
	if err != nil {
		return err
	}
	for i := range all {
		f := &all[i]
		if len(c.items) == c.limit {
			c.over = false
			return nil
		}
		c.next = f.seq + 1
		if f.key == nil || !strings.HasPrefix(*f.key, c.prefix) || !f.live() || stale[i] {
			continue
		}
		item := f.item(*f.key)
		if c.keysOnly {
			item.Value = nil
		}
		c.bytes += len(item.Value)
		c.items = append(c.items, item)
	}
	return nil
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
		msgs, missing, err := p.batch(ctx, op, "$JS.API.DIRECT.GET."+s.stream, body, n)
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

// token is the place of a scan, and a mark by which it is known again.
func (s *state) token(prefix string, next uint64) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], next)
	binary.BigEndian.PutUint64(b[8:], s.mark(prefix, next))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func (s *state) mark(prefix string, next uint64) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(strconv.AppendUint([]byte("nats\x00"+s.stream+"\x00"+prefix+"\x00"), next, 10)) // cannot fail
	return h.Sum64()
}

// parseToken is the inverse of token; the empty one is the beginning.
func (s *state) parseToken(op fault.Op, prefix, token string) (uint64, error) {
	if token == "" {
		return 1, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err == nil && len(b) == 16 {
		if next := binary.BigEndian.Uint64(b); next > 0 && s.token(prefix, next) == token {
			return next, nil
		}
	}
	return 0, fault.New(op, fault.Invalid, "%.40q is not a page token of this store and prefix; begin again without one", token).With(fault.BadToken).WithSent(fault.SentNever)
}
