package nats

import (
	"context"
	"encoding/json"
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
	// scanBytes of values are enough for one read, whatever number was asked for.
	scanBytes = block.PageBytes
	// scanChains is how many messages are asked for at once.
	scanChains = 32
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

func (c *scan) full() bool { return len(c.items) == c.limit || c.bytes >= block.PageBytes }

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
		found, over, err := c.walk(ctx, c.at.next, want)
		if err != nil {
			return err
		}
		if c.over, err = c.take(ctx, found, over); err != nil || c.over {
			return err
		}
		if c.full() {
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
		if c.full() {
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
func (s *state) keyOf(subject string) *string { return keyOf(s.prefix, subject) }

func keyOf(prefix, subject string) *string {
	text, ok := strings.CutPrefix(subject, prefix)
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

// direct is where any replica answers requests for messages.
func (s *state) direct() string { return "$JS.API.DIRECT.GET." + s.stream }
