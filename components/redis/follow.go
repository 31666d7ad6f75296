package redis

import (
	"context"
	"errors"
	"hash/maphash"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

const opSubscribe fault.Op = "redis.configuration.Subscribe"

// Pauses between attempts to follow keys again.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 5 * time.Second
)

// recheck is how often a follower looks whether the server still tells it: the connection may be
// dead, the setting changed, and a whole database is emptied without a word about its keys.
const recheck = 20 * time.Second

// smallDB is how many keys a database may have for all of them to be read at a recheck.
const smallDB = 10_000

// Subscribe follows keys by the server's notifications, which say that a key changed and not how:
// then it is read. A lost connection is made anew, after it all keys are read.
func (s *configuration) Subscribe(ctx context.Context, keys []string, _ map[string]string, started func(), changed func(map[string]block.ConfigItem)) error {
	if err := ctx.Err(); err != nil {
		return ended(opSubscribe, s.conn.where(), err, false)
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	f := &follower{s: s, keys: distinct(keys), started: started, changed: changed}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		f.fresh = false
		err := f.round(inner)
		switch {
		case ctx.Err() != nil:
			return ended(opSubscribe, s.conn.where(), ctx.Err(), true)
		case s.life.Err() != nil:
			return fault.New(opSubscribe, fault.Unavailable, "%s: the component is closed", s.conn.where())
		case !f.begun:
			return err
		case f.fresh: // it worked for a while
			pause = firstPause
		}
		s.log.Warn("following keys in Redis is interrupted; trying again", "error", err, "after", pause)
		select {
		case <-time.After(pause):
		case <-inner.Done():
		}
	}
}

func distinct(keys []string) []string {
	keys = slices.Clone(keys)
	slices.Sort(keys)
	return slices.Compact(keys)
}

// follower is a subscription at work.
type follower struct {
	s       *configuration
	keys    []string // none: all
	started func()
	changed func(map[string]block.ConfigItem)

	begun  bool              // started was called
	fresh  bool              // this round read the keys
	warned bool              // that the server may not tell
	size   int               // of the database, where all keys are followed
	told   map[string]uint64 // what the subscriber knows of items that exist, as digests
}

// round follows the keys over one connection.
func (f *follower) round(ctx context.Context) error {
	client, err := f.s.conn.use(opSubscribe)
	if err != nil {
		return err
	}
	if _, err := f.notify(ctx); err != nil {
		return err
	}
	prefix := "__keyspace@" + strconv.Itoa(f.s.conn.config.DB) + "__:"
	ear := newEar(prefix, max(1, len(f.keys)))
	ps := client.Subscribe(ctx)
	defer ps.Close()
	if len(f.keys) == 0 {
		err = ps.PSubscribe(ctx, prefix+"*")
	} else {
		channels := make([]string, len(f.keys))
		for i, k := range f.keys {
			channels[i] = prefix + k
		}
		err = ps.Subscribe(ctx, channels...)
	}
	if err != nil {
		return f.s.conn.explain(ctx, opSubscribe, err, false)
	}
	var listening sync.WaitGroup
	defer listening.Wait()
	defer ps.Close() // ends the listening
	listening.Go(func() { ear.listen(ctx, ps, f.s.recheck) })
	return f.follow(ctx, ear)
}

// follow tells what changes until the connection is lost.
func (f *follower) follow(ctx context.Context, e *ear) error {
	select {
	case <-e.ready:
	case <-e.over:
		return f.s.conn.explain(ctx, opSubscribe, e.err, true)
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := f.relist(ctx); err != nil {
		return err
	}
	f.fresh = true
	tick := time.NewTicker(f.s.recheck)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-e.heard:
			err = f.update(ctx, e.take())
		case <-tick.C:
			err = f.check(ctx)
		case <-e.over:
			err = f.s.conn.explain(ctx, opSubscribe, e.err, true)
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// relist compares all there is with what was told: the first time in silence.
func (f *follower) relist(ctx context.Context) error {
	now := map[string]string{}
	note := func(key, stored string) { now[key] = stored }
	var err error
	if len(f.keys) == 0 {
		f.size, err = f.s.all(ctx, opSubscribe, note)
	} else {
		err = f.s.read(ctx, opSubscribe, f.keys, note)
	}
	if err != nil {
		return err
	}
	if !f.begun {
		f.told = make(map[string]uint64, len(now))
		for k, v := range now {
			f.told[k] = digest(v)
		}
		f.begun = true
		f.started()
		return nil
	}
	keys := f.keys
	if len(keys) == 0 {
		for k := range f.told {
			if _, is := now[k]; !is {
				keys = append(keys, k)
			}
		}
		for k := range now {
			keys = append(keys, k)
		}
	}
	f.tell(keys, now)
	return nil
}

// update reads keys that are said to have changed.
func (f *follower) update(ctx context.Context, keys []string) error {
	now := make(map[string]string, len(keys))
	if err := f.s.read(ctx, opSubscribe, keys, func(key, stored string) { now[key] = stored }); err != nil {
		return err
	}
	f.tell(keys, now)
	return nil
}

// tell passes on what differs from what was told, of these keys.
func (f *follower) tell(keys []string, now map[string]string) {
	news := map[string]block.ConfigItem{}
	for _, k := range keys {
		stored, is := now[k]
		before, was := f.told[k]
		switch {
		case is && (!was || digest(stored) != before):
			f.told[k] = digest(stored)
			news[k] = parseItem(stored)
		case !is && was:
			delete(f.told, k)
			news[k] = block.ConfigItem{}
		}
	}
	if len(news) > 0 {
		f.changed(news)
	}
}

var seed = maphash.MakeSeed()

func digest(stored string) uint64 { return maphash.String(seed, stored) }

// check makes sure that the server tells, and reads again what it may not have told.
func (f *follower) check(ctx context.Context) error {
	silent, err := f.notify(ctx)
	if err != nil {
		return err
	}
	if len(f.keys) > 0 || silent || f.size <= smallDB {
		return f.relist(ctx)
	}
	return nil
}

// wanted are the notifications needed: of keys (K) about general commands (g), strings ($),
// expiry (x) and eviction (e).
const wanted = "Kg$xe"

// notify asks the server to tell of changes, without taking away what others asked for. It
// reports whether something was missing. A server that does not let us see or change its
// settings may be set so already; what it does not tell then, a recheck finds.
func (f *follower) notify(ctx context.Context) (silent bool, err error) {
	const setting = "notify-keyspace-events"
	get := newCommand(false, 0, "config", "get", setting)
	if err := f.s.conn.one(ctx, opSubscribe, get); err != nil {
		return false, f.tolerate(err)
	}
	pair, _ := get.Val().([]any)
	if len(pair) != 2 {
		return false, f.tolerate(fault.New(opSubscribe, fault.Unsupported, "the server does not tell its setting"))
	}
	has, _ := pair[1].(string)
	missing := missingFlags(has, wanted)
	if missing == "" {
		return false, nil
	}
	set := newCommand(false, 0, "config", "set", setting, has+missing)
	if err := f.s.conn.one(ctx, opSubscribe, set); err != nil {
		return false, f.tolerate(err)
	}
	return true, nil
}

// missingFlags are those of the wanted that a setting lacks; A stands for all but K and others we
// do not want.
func missingFlags(has, wanted string) string {
	missing := ""
	for _, flag := range wanted {
		if !strings.ContainsRune(has, flag) && (flag == 'K' || !strings.ContainsRune(has, 'A')) {
			missing += string(flag)
		}
	}
	return missing
}

// tolerate lets refusals pass, with one word to the operator, and nothing else.
func (f *follower) tolerate(err error) error {
	switch fault.Of(err) {
	case fault.Denied, fault.Unsupported, fault.Internal, fault.Invalid:
	default:
		return err
	}
	if !f.warned {
		f.warned = true
		f.s.log.Warn("Redis does not let us set notify-keyspace-events; unless it is "+wanted+" or more, changes come late or not at all", "error", err)
	}
	return nil
}

// ear hears which keys changed, however slow their reader is.
type ear struct {
	prefix string        // of channels
	silent int           // channels not confirmed by the server
	ready  chan struct{} // closed when there are none of these
	heard  chan struct{} // has a token while keys wait
	over   chan struct{} // closed at the end, after err was set
	err    error

	most int // keys that may wait; 0: any number

	mu   sync.Mutex
	keys map[string]struct{} // guarded by mu
}

func newEar(prefix string, channels int) *ear {
	return &ear{prefix: prefix, silent: channels, ready: make(chan struct{}), heard: make(chan struct{}, 1), over: make(chan struct{}), keys: map[string]struct{}{}}
}

// listen ends when the connection does, or says nothing for too long.
func (e *ear) listen(ctx context.Context, ps *goredis.PubSub, silence time.Duration) {
	defer close(e.over)
	asked := false // a sign of life
	for {
		m, err := ps.ReceiveTimeout(ctx, silence)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() && !asked {
			asked = true
			err = ps.Ping(ctx)
			m = nil
		}
		if err != nil {
			e.err = err
			return
		}
		switch m := m.(type) {
		case *goredis.Subscription:
			if e.silent--; e.silent == 0 {
				close(e.ready)
			}
		case *goredis.Message:
			asked = false
			if !e.hear(strings.TrimPrefix(m.Channel, e.prefix)) {
				e.err = errOverflow
				_ = ps.Close() // its only error is that it was closed before
				return
			}
		case *goredis.Pong:
			asked = false
		}
	}
}

// errOverflow ends an ear whose reader is slower than it may be.
var errOverflow = errors.New("too many changed keys wait to be told")

// hear notes a key; it is false when more wait than may.
func (e *ear) hear(key string) bool {
	e.mu.Lock()
	e.keys[key] = struct{}{}
	n := len(e.keys)
	e.mu.Unlock()
	select {
	case e.heard <- struct{}{}:
	default:
	}
	return e.most == 0 || n <= e.most
}

func (e *ear) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	keys := make([]string, 0, len(e.keys))
	for k := range e.keys {
		keys = append(keys, k)
	}
	clear(e.keys)
	return keys
}
