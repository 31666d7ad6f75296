package redis

import (
	"context"
	"hash/fnv"
	"strconv"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var _ block.StateScan = (*state)(nil)

const (
	// scanRounds is how many of the server's steps one page takes at most before it is given as it
	// is: most keys may be of others.
	scanRounds = 16
	// scanLeast and scanMost bound how much a step is asked to cover; it keeps the server from
	// other work.
	scanLeast, scanMost = 10, 1000
	// scanReads is how many items are read in one go.
	scanReads = 128
)

// Scan gives a page of the keys with a prefix, in the order of the server's table. Its steps
// cannot be divided and may give more keys than fit on a page; then the next page repeats the step
// and leaves out what was given, which the token lists.
//
// The order is that of one process, so a token ends with it; in a cluster, with any change of who
// has which slots.
func (s *state) Scan(ctx context.Context, prefix, token string, limit int, keysOnly bool) ([]block.StateItem, string, error) {
	const op fault.Op = "redis.state.Scan"
	if limit < 1 {
		return nil, "", fault.New(op, fault.Invalid, "a page of %d items cannot be; ask for 1 or more", limit).WithSent(fault.SentNever)
	}
	at, err := s.parseSpot(op, prefix, token)
	if err != nil {
		return nil, "", err
	}
	c := &scan{s: s, op: op, prefix: prefix, at: at, limit: limit, keysOnly: keysOnly, seen: map[string]bool{}, count: scanLeast}
	for range scanRounds {
		if err := c.step(ctx); err != nil {
			return nil, "", err
		}
		if c.over {
			return c.items, "", nil
		}
		if c.full() {
			break
		}
	}
	return c.items, s.token(prefix, c.at), nil
}

// scan is one page being made.
type scan struct {
	s        *state
	op       fault.Op
	prefix   string
	limit    int
	keysOnly bool

	items []block.StateItem
	bytes int             // of keys and values on the page
	seen  map[string]bool // keys the page was told of: the server may repeat itself
	count int             // how much the next step is to cover
	at    spot            // where the scan stands
	over  bool            // nothing is left
}

func (c *scan) full() bool { return len(c.items) == c.limit || c.bytes >= block.PageBytes }

// step takes one step of the server's.
func (c *scan) step(ctx context.Context) error {
	count := max(c.count, min((c.limit-len(c.items))*7/8, scanMost)) // a little less than there is room for
	a, err := c.s.keysFrom(ctx, c.op, c.at, globPrefix(c.prefix), count)
	if err != nil {
		return err
	}
	if err := c.recognise(a); err != nil {
		return err
	}
	keys := make([]string, 0, len(a.keys))
	for _, k := range a.keys {
		if strings.HasPrefix(k, c.prefix) && !strings.HasPrefix(k, fencePrefix) && !c.seen[k] && !c.at.gave(k) {
			c.seen[k] = true
			keys = append(keys, k)
		}
	}
	if len(keys) < count/4 {
		c.count = min(4*c.count, scanMost)
	}
	for len(keys) > 0 {
		if c.full() { // the step is repeated for the rest
			return nil
		}
		n := min(len(keys), c.limit-len(c.items), scanReads)
		if err := c.read(ctx, keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	c.at.cursor, c.at.given = a.next, nil
	if a.next == 0 {
		c.at.node, c.at.server = c.at.node+1, 0
		c.over = c.at.node >= a.nodes
	}
	return nil
}

// recognise makes sure that the scan goes on where it began.
func (c *scan) recognise(a *listing) error {
	switch {
	case a.moving:
		return fault.New(c.op, fault.Unavailable, "%s moves slots between servers, and keys with them; scan again when it has done so", c.s.conn.where())
	case c.at.layout != 0 && c.at.layout != a.layout, c.at.server != 0 && c.at.server != a.server:
		return badToken(c.op, "%s is not the server the scan began with, or the cluster has changed; begin again without a token", c.s.conn.where())
	}
	c.at.layout, c.at.server = a.layout, a.server
	return nil
}

// read puts items on the page.
func (c *scan) read(ctx context.Context, keys []string) error {
	items, err := c.s.look(ctx, c.op, keys, c.keysOnly)
	if err != nil {
		return err
	}
	for i, k := range keys {
		c.at.given = append(c.at.given, fingerprint(k))
		if items[i].Exists {
			c.items = append(c.items, items[i])
			c.bytes += len(k) + len(items[i].Value)
		}
	}
	return nil
}

// look reads items, in the order of keys. What holds something else does not exist.
func (s *state) look(ctx context.Context, op fault.Op, keys []string, keysOnly bool) ([]block.StateItem, error) {
	what := "v"
	if keysOnly {
		what = "k"
	}
	cmds := make([]*command, len(keys))
	for i, k := range keys {
		cmds[i] = newCommand(s.conn.repeat(), 3, "evalsha", lookItem.digest, 1, strings.Clone(k), what)
	}
	if err := s.conn.run(ctx, op, lookItem, cmds...); err != nil {
		return nil, err
	}
	items := make([]block.StateItem, len(keys))
	for i, k := range keys {
		err := s.conn.failure(ctx, op, cmds[i])
		if err == nil {
			items[i], err = item(op, k, cmds[i])
		}
		if err != nil {
			return nil, err
		}
		if keysOnly {
			items[i].Value = nil
		}
	}
	return items, nil
}

// globPrefix is a pattern that keys with the prefix match, and no others.
func globPrefix(prefix string) string {
	var b strings.Builder
	for i := range len(prefix) {
		if strings.IndexByte(`*?[]^\-`, prefix[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(prefix[i])
	}
	b.WriteByte('*')
	return b.String()
}

// listing is the answer to one step.
type listing struct {
	keys   []string
	next   uint64 // the cursor to go on with; 0 at the end
	nodes  int    // how many servers have keys
	server uint64 // which process has answered
	layout uint64 // which servers have which slots, and their order; 0 outside of a cluster
	moving bool   // slots are being moved away from the server
}

// keysFrom takes a step. What tells the server travels along, so that it is about the same one.
func (s *state) keysFrom(ctx context.Context, op fault.Op, at spot, pattern string, count int) (*listing, error) {
	info := newCommand(false, 0, "info", "server")
	keys := newCommand(false, 0, "scan", strconv.FormatUint(at.cursor, 10), "match", pattern, "count", count)
	cmds := []*command{info, keys}
	cluster := s.conn.config.Type == typeCluster
	if cluster {
		// It comes last: a move that is not under way by then has not taken anything along.
		cmds = append(cmds, newCommand(false, 0, "cluster", "nodes"))
	}
	nodes, addrs := 1, ""
	err := s.conn.exchange(ctx, op, cmds, func(ctx context.Context, client goredis.UniversalClient) {
		var p goredis.Pipeliner
		if cluster {
			masters, err := mastersOf(ctx, client)
			nodes = len(masters)
			for _, m := range masters {
				addrs += "\n" + m.Options().Addr
			}
			if err == nil && at.node >= nodes {
				err = errFewerServers
			}
			if err != nil {
				for _, c := range cmds {
					c.SetErr(err)
				}
				return
			}
			p = masters[at.node].Pipeline()
		} else {
			p = client.Pipeline()
		}
		for _, c := range cmds {
			_ = p.Process(ctx, c)
		}
		_, _ = p.Exec(ctx)
	})
	if err != nil {
		return nil, err
	}
	for _, c := range cmds {
		if c.Err() == errFewerServers { //nolint:errorlint // set above
			return nil, badToken(op, "%s has fewer servers than when the scan began; begin again without a token", s.conn.where())
		}
		if err := s.conn.failure(ctx, op, c); err != nil {
			return nil, err
		}
	}
	a := &listing{nodes: nodes}
	text, _ := info.Text()
	a.server = fingerprint(infoLine(text, "run_id"))
	if cluster {
		text, _ := cmds[2].Text()
		var layout string
		layout, a.moving = layoutOf(text)
		a.layout = fingerprint(layout + addrs)
	}
	answer, _ := keys.Val().([]any)
	if len(answer) != 2 {
		return nil, fault.New(op, fault.Internal, "%s answers %.100v to a scan of its keys", s.conn.where(), keys.Val())
	}
	cursor, _ := answer[0].(string)
	listed, _ := answer[1].([]any)
	if a.next, err = strconv.ParseUint(cursor, 10, 64); err != nil {
		return nil, fault.New(op, fault.Internal, "%s answers a scan of its keys with the cursor %.40q", s.conn.where(), cursor)
	}
	for _, k := range listed {
		if key, is := k.(string); is {
			a.keys = append(a.keys, key)
		}
	}
	return a, nil
}

// infoLine is the value of a name in the server's information.
func infoLine(text, name string) string {
	for line := range strings.Lines(text) {
		if n, value, is := strings.Cut(strings.TrimSpace(line), ":"); is && n == name {
			return value
		}
	}
	return ""
}

// fingerprint tells texts apart. It is never 0.
func fingerprint(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text)) // cannot fail
	return max(h.Sum64(), 1)
}
