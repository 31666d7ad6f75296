package redis

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var _ block.StateWatch = (*state)(nil)

const (
	opWatch fault.Op = "redis.state.Watch"
	// watched are the notifications a watch needs: of keys (K) about hashes (h), strings of old
	// versions of Dapr ($), general commands (g), expiry (x) and eviction (e).
	watched = "Kg$hxe"
	// mostWaiting is how many changed keys may wait for a callee that takes its time.
	mostWaiting = 100_000
	// watchReads is how many items are read, and told, at once.
	watchReads = 128
)

// Watch follows the server's notifications over a connection of its own. They say that a key
// changed and not how: it is read. The server does not remember them, so a lost connection ends
// the watch; so does what it does not notify of, such as an emptied database, when it is found out.
func (s *state) Watch(ctx context.Context, prefix string, started func(), changed func([]block.StateItem)) error {
	if err := ctx.Err(); err != nil {
		return ended(opWatch, s.conn.where(), err, false)
	}
	if s.conn.config.Type == typeCluster {
		return fault.New(opWatch, fault.Unsupported, "%s: a cluster's servers notify each of their own keys only, so changes cannot be watched", s.conn.where()).With(fault.NoWatch)
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.alive, cancel)()
	w := &watch{s: s, prefix: prefix, changed: changed}
	err := w.follow(inner, started)
	switch {
	case ctx.Err() != nil:
		return ended(opWatch, s.conn.where(), ctx.Err(), true)
	case s.alive.Err() != nil:
		return fault.New(opWatch, fault.Unavailable, "%s: the component is closed", s.conn.where())
	}
	return err
}

// watch is a watch at work.
type watch struct {
	s        *state
	prefix   string
	changed  func([]block.StateItem)
	now, old map[string]told // what was told lately, in two generations
	witness  string
}

// told is a state of an item: one write causes several notifications.
type told struct {
	etag    string
	expires time.Time
}

// generation is how many keys one has.
const generation = 1024

func (w *watch) follow(ctx context.Context, started func()) error {
	client, err := w.s.conn.use(opWatch)
	if err != nil {
		return err
	}
	channel := "__keyspace@" + strconv.Itoa(w.s.conn.config.DB) + "__:"
	e := newEar(channel, 1)
	e.most = mostWaiting
	ps := client.Subscribe(ctx)
	defer ps.Close()
	if err := ps.PSubscribe(ctx, channel+globPrefix(w.prefix)); err != nil {
		return w.s.conn.explain(ctx, opWatch, err, false)
	}
	var listening sync.WaitGroup
	defer listening.Wait()
	defer ps.Close() // ends the listening
	// The library looks at a deadline a moment before the context does: then it is no lost connection.
	listening.Go(func() { e.listen(context.WithoutCancel(ctx), ps, w.s.silence) })
	select {
	case <-e.ready:
	case <-e.over:
		return w.s.conn.explain(ctx, opWatch, e.err, true)
	case <-ctx.Done():
		return ctx.Err()
	}
	// Only now: what is changed behind this is heard of, or found out by the next look.
	if err := w.check(ctx); err != nil {
		return err
	}
	started()
	return w.tell(ctx, e)
}

// tell tells what is heard of until that ends.
func (w *watch) tell(ctx context.Context, e *ear) error {
	tick := time.NewTicker(w.s.recheck)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-e.heard:
			err = w.update(ctx, e)
		case <-tick.C:
			err = w.check(ctx)
		case <-e.over:
			if errors.Is(e.err, errOverflow) {
				err = w.missed("more than " + strconv.Itoa(mostWaiting) + " changed keys waited to be told")
			} else {
				err = w.missed("the connection was lost").Because(w.s.conn.explain(ctx, opWatch, e.err, true))
			}
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

func (w *watch) missed(why string) *fault.Error {
	return fault.New(opWatch, fault.Unavailable, "%s: %s, so changes may have been missed; read all again", w.s.conn.where(), why)
}

// update reads and tells what changed.
func (w *watch) update(ctx context.Context, e *ear) error {
	keys := e.take()
	for len(keys) > 0 {
		n := min(len(keys), watchReads)
		if err := w.read(ctx, keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

func (w *watch) read(ctx context.Context, keys []string) error {
	var ours []string
	for _, k := range keys {
		if strings.HasPrefix(k, w.prefix) && !strings.HasPrefix(k, fencePrefix) {
			ours = append(ours, k)
		}
	}
	if len(ours) == 0 {
		return nil
	}
	items, err := w.s.look(ctx, opWatch, ours, false)
	if err != nil {
		return err
	}
	news := items[:0]
	for _, it := range items {
		if w.fresh(it) {
			news = append(news, it)
		}
	}
	if len(news) > 0 && ctx.Err() == nil {
		w.changed(news)
	}
	return nil
}

// fresh tells whether an item is not as it was told last, as far as that is remembered.
func (w *watch) fresh(it block.StateItem) bool {
	state := told{it.ETag, it.Expires}
	before, known := w.now[it.Key]
	if !known {
		before, known = w.old[it.Key]
	}
	if known && before.etag == state.etag && before.expires.Equal(state.expires) {
		return false
	}
	if len(w.now) >= generation {
		w.now, w.old = nil, w.now
	}
	if w.now == nil {
		w.now = make(map[string]told, generation)
	}
	w.now[it.Key] = state
	return true
}

// check makes sure that the server notifies, that it is the master it was, and that nobody has
// emptied a database: of that there are no notifications.
func (w *watch) check(ctx context.Context) error {
	const setting = "notify-keyspace-events"
	get := newCommand(false, 0, "config", "get", setting)
	if err := w.s.conn.one(ctx, opWatch, get); err != nil {
		if c := fault.Of(err); c == fault.Denied || c == fault.Unsupported || c == fault.Internal {
			return fault.New(opWatch, fault.Unsupported, "%s does not tell whether it notifies of changes; allow the command config|get", w.s.conn.where()).Because(err).With(fault.NoWatch)
		}
		return err
	}
	pair, _ := get.Val().([]any)
	if len(pair) != 2 {
		return fault.New(opWatch, fault.Unsupported, "%s does not know the setting %s", w.s.conn.where(), setting).With(fault.NoWatch)
	}
	has, _ := pair[1].(string)
	if missing := missingFlags(has, watched); missing != "" {
		return fault.New(opWatch, fault.Unsupported, "%s does not notify of changes (%s is %q); turn it on with: redis-cli config set %s '%s', and in the server's configuration",
			w.s.conn.where(), setting, has, setting, has+missing).With(fault.NoWatch)
	}
	now, err := w.s.witness(ctx)
	if err != nil {
		return err
	}
	if w.witness == "" {
		w.witness = now
	}
	if now != w.witness {
		return w.missed("a database was emptied or exchanged, or another server is master")
	}
	return nil
}

// witness is a text that changes with what is not notified of.
func (s *state) witness(ctx context.Context) (string, error) {
	cmds := []*command{newCommand(false, 0, "info", "replication"), newCommand(false, 0, "info", "commandstats")}
	if err := s.conn.send(ctx, opWatch, cmds); err != nil {
		return "", err
	}
	var texts [2]string
	for i, c := range cmds {
		if err := s.conn.failure(ctx, opWatch, c); err != nil {
			return "", err
		}
		texts[i], _ = c.Text()
	}
	out := infoLine(texts[0], "role") + " " + infoLine(texts[0], "master_replid")
	for _, name := range []string{"flushall", "flushdb", "swapdb"} {
		calls, _, _ := strings.Cut(infoLine(texts[1], "cmdstat_"+name), ",")
		out += " " + calls
	}
	return out, nil
}
