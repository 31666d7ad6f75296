package postgres

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlstate"
)

const opSubscribe fault.Op = "postgres.configuration.Subscribe"

// Pauses between attempts to follow the table again.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 5 * time.Second
)

// recheck is how often a follower makes sure that its connection lives and reads its keys: a
// trigger may be missing, or not fire for all that changes a table.
const recheck = 20 * time.Second

// Subscribe follows keys by the channel that a trigger notifies. A notification says which key
// changed; then the table is read. A lost connection is made anew, after it all keys are read.
func (s *configuration) Subscribe(ctx context.Context, keys []string, metadata map[string]string, started func(), changed func(map[string]block.ConfigItem)) error {
	if err := ctx.Err(); err != nil {
		return sqlstate.Ended(opSubscribe, err, fault.SentNever)
	}
	channel, err := s.listenTo(metadata)
	if err != nil {
		return err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	f := &follower{s: s, channel: channel, keys: keys, started: started, changed: changed}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		f.fresh = false
		err := f.round(inner)
		switch {
		case ctx.Err() != nil:
			return sqlstate.Ended(opSubscribe, ctx.Err(), fault.SentMaybe)
		case s.life.Err() != nil:
			return sqlstate.Closed(opSubscribe)
		case !f.begun:
			return err
		case f.fresh: // it worked for a while
			pause = firstPause
		}
		s.log.Warn("following a table in PostgreSQL is interrupted; trying again", "table", s.table, "error", err, "after", pause)
		select {
		case <-time.After(pause):
		case <-inner.Done():
		}
	}
}

// listenTo is the channel of a subscription.
func (s *configuration) listenTo(metadata map[string]string) (string, error) {
	if s.channel != "" {
		return s.channel, nil
	}
	for k, v := range metadata {
		if !strings.EqualFold(k, "pgNotifyChannel") || v == "" {
			continue
		}
		if !channelName.MatchString(v) {
			return "", fault.New(opSubscribe, fault.Invalid, "pgNotifyChannel %.80q is not a channel; use lower-case letters, digits and _, at most 63", v).WithSent(fault.SentNever)
		}
		return v, nil
	}
	return "", fault.New(opSubscribe, fault.Invalid, "there is no channel to listen to; set notifyChannel in the component, and a trigger that notifies it").WithSent(fault.SentNever)
}

// follower is a subscription at work.
type follower struct {
	s       *configuration
	channel string
	keys    []string // none: all
	started func()
	changed func(map[string]block.ConfigItem)

	begun bool           // started was called
	fresh bool           // this round read the keys
	told  map[string]row // what the subscriber knows of items that exist
}

// round follows the table over one connection, which is the round's own.
func (f *follower) round(ctx context.Context) error {
	c, err := f.connect(ctx)
	if err != nil {
		return err
	}
	listening, stop := context.WithCancel(ctx)
	e := newEar()
	var work sync.WaitGroup
	defer func() { hangUp(c) }()
	defer work.Wait()
	defer stop()
	work.Go(func() { e.listen(listening, c, f.s.recheck) })
	if err := f.relist(ctx); err != nil {
		return err
	}
	f.fresh = true
	tick := time.NewTicker(f.s.recheck)
	defer tick.Stop()
	for err == nil {
		select {
		case <-e.heard:
			err = f.update(ctx, e)
		case <-tick.C:
			err = f.relist(ctx)
		case <-e.over:
			err = f.s.failed(ctx, ctx, opSubscribe, e.err, fault.SentMaybe)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return err
}

// connect makes a connection that listens.
func (f *follower) connect(ctx context.Context) (*pgx.Conn, error) {
	if f.s.closed.Load() {
		return nil, sqlstate.Closed(opSubscribe)
	}
	limited, cancel := context.WithTimeout(ctx, f.s.timeout)
	defer cancel()
	c, err := pgx.ConnectConfig(limited, f.s.pool.config.conn.Copy())
	if err != nil {
		return nil, f.s.failed(ctx, limited, opSubscribe, err, fault.SentNever)
	}
	if _, err := c.Exec(limited, "LISTEN "+pgx.Identifier{f.channel}.Sanitize()); err != nil {
		hangUp(c)
		return nil, f.s.failed(ctx, limited, opSubscribe, err, fault.SentMaybe)
	}
	return c, nil
}

func hangUp(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = c.Close(ctx) // the server notices in any case
	<-c.PgConn().CleanupDone()
}

// relist compares all there is with what was told: the first time in silence.
func (f *follower) relist(ctx context.Context) error {
	now, err := f.s.read(ctx, opSubscribe, f.keys)
	if err != nil {
		return err
	}
	if !f.begun {
		f.told, f.begun = now, true
		f.started()
		return nil
	}
	keys := make([]string, 0, len(now)+len(f.told))
	for k := range now {
		keys = append(keys, k)
	}
	for k := range f.told {
		if _, is := now[k]; !is {
			keys = append(keys, k)
		}
	}
	f.tell(keys, now)
	return nil
}

// update reads keys that are said to have changed.
func (f *follower) update(ctx context.Context, e *ear) error {
	keys, all := e.take()
	if all {
		return f.relist(ctx)
	}
	if len(f.keys) > 0 {
		keys = slices.DeleteFunc(keys, func(k string) bool { return !slices.Contains(f.keys, k) })
	}
	if len(keys) == 0 {
		return nil
	}
	now, err := f.s.read(ctx, opSubscribe, keys)
	if err != nil {
		return err
	}
	f.tell(keys, now)
	return nil
}

// tell passes on what differs from what was told, of these keys.
func (f *follower) tell(keys []string, now map[string]row) {
	news := map[string]block.ConfigItem{}
	for _, k := range keys {
		r, is := now[k]
		before, was := f.told[k]
		switch {
		case is && (!was || r != before):
			f.told[k] = r
			news[k] = r.item()
		case !is && was:
			delete(f.told, k)
			news[k] = block.ConfigItem{}
		}
	}
	if len(news) > 0 {
		f.changed(news)
	}
}

// ear hears which keys changed, however slow their reader is.
type ear struct {
	heard chan struct{} // has a token while something waits
	over  chan struct{} // closed at the end, after err was set
	err   error

	mu   sync.Mutex
	keys map[string]struct{} // guarded by mu
	all  bool                // guarded by mu; a notification did not say which
}

func newEar() *ear {
	return &ear{heard: make(chan struct{}, 1), over: make(chan struct{}), keys: map[string]struct{}{}}
}

// listen ends with ctx, or when the connection is lost or gives no sign of life.
func (e *ear) listen(ctx context.Context, c *pgx.Conn, silence time.Duration) {
	defer close(e.over)
	for {
		limited, cancel := context.WithTimeout(ctx, silence)
		n, err := c.WaitForNotification(limited)
		if err != nil && ctx.Err() == nil && limited.Err() != nil {
			cancel()
			limited, cancel = context.WithTimeout(ctx, silence)
			err = c.Ping(limited)
		}
		cancel()
		if err != nil {
			e.err = err
			return
		}
		if n != nil {
			e.hear(n.Payload)
		}
	}
}

// hear takes a notification as Dapr's: {"data": {"key": …}}. What more it says is left to the
// table, which knows better: triggers send old values, and of several rows the one just written.
func (e *ear) hear(payload string) {
	var n struct{ Data struct{ Key *string } }
	err := json.Unmarshal([]byte(payload), &n)
	e.mu.Lock()
	if err == nil && n.Data.Key != nil {
		e.keys[*n.Data.Key] = struct{}{}
	} else {
		e.all = true
	}
	e.mu.Unlock()
	select {
	case e.heard <- struct{}{}:
	default:
	}
}

func (e *ear) take() (keys []string, all bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k := range e.keys {
		keys = append(keys, k)
	}
	all = e.all
	clear(e.keys)
	e.all = false
	return keys, all
}
