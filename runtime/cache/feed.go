package cache

import (
	"context"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Pauses before the feed is asked for again.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// feed begins to follow the store's changes, once. c.mu may be held.
func (c *cache) feed() {
	c.feeding.Do(func() {
		go c.s.background(c.follow) // apart, as the service's lock comes before ours
	})
}

// follow keeps the near caches true until the component goes.
func (c *cache) follow() {
	wait := firstPause
	lost := false
	for c.life.Err() == nil {
		began := time.Now()
		err := c.followOnce(&lost)
		c.epoch.Store(0) // from now on near entries are not believed
		c.told(nil)
		if c.life.Err() != nil {
			return
		}
		if fault.Of(err) == fault.Unsupported {
			c.s.log.Warn("the cache does not tell of changes: its near cache stays empty; use coherence local, or strong", "component", c.name, "error", err)
			return
		}
		if time.Since(began) > lastPause {
			wait = firstPause
		}
		if !lost {
			c.s.log.Warn("the feed of changes of a cache is interrupted; near entries are asked for until it is back", "component", c.name, "error", err)
			lost = true
		}
		select {
		case <-time.After(wait):
		case <-c.life.Done():
			return
		}
		wait = min(2*wait, lastPause)
	}
}

func (c *cache) followOnce(lost *bool) error {
	desc := call.Desc{Op: "follow", Safety: call.Safe, Streamed: true, Lasting: true, Caller: c.s.caller}
	_, err := catalog.Do(c.life, c.h, desc, func(ctx context.Context, store block.Cache) (struct{}, error) {
		f, ok := store.(block.CacheFeed)
		if !ok {
			return struct{}{}, fault.New("cache.follow", fault.Unsupported, "this kind of store has no feed")
		}
		return struct{}{}, f.Follow(ctx, c.prefix, func() {
			if *lost {
				c.s.log.Info("the feed of changes of a cache is back", "component", c.name)
				*lost = false
			}
			c.epoch.Store(c.epochs.Add(1))
		}, c.told)
	}, nil)
	return err
}

// told takes up changes; none means that any key may have changed.
func (c *cache) told(changes []block.CacheChange) {
	if len(changes) == 0 {
		c.toldAll()
		return
	}
	spaces := *c.spaces.Load()
	for _, ch := range changes {
		if ch.Key == "" {
			c.toldAll()
			return
		}
		name, ok := strings.CutPrefix(ch.Key, c.prefix)
		if !ok {
			continue
		}
		namespace, key, ok := strings.Cut(name, separator)
		sp := spaces[namespace]
		if !ok || sp == nil {
			c.wake(name, namespace, key)
			continue
		}
		if tag, is := strings.CutPrefix(key, "#"+separator); is {
			sp.toldTag(tag)
			continue
		}
		if sp.near != nil && sp.conf.Coherence == block.CoherenceInvalidate {
			if e := sp.near.get(name); e == nil || ch.Version == "" || e.version != ch.Version {
				sp.near.drop(name)
			}
		}
		c.wake(name, namespace, key)
	}
}

func (sp *space) toldTag(tag string) {
	if tag == "" {
		sp.gen.doubt()
	} else if c, ok := sp.c.cells.GetIfPresent(sp.stampKey(tag)); ok {
		c.doubt()
	}
	sp.c.mu.Lock()
	defer sp.c.mu.Unlock()
	for w := range sp.c.watchers {
		if w.namespace == sp.name {
			w.everything()
		}
	}
}

// toldAll is the feed's news that any key may have changed.
func (c *cache) toldAll() {
	if c.epoch.Load() != 0 {
		c.epoch.Store(c.epochs.Add(1))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, waiters := range c.waiting {
		for _, w := range waiters {
			poke(w)
		}
	}
	for w := range c.watchers {
		w.everything()
	}
}

// wake tells those who wait for a change of a key.
func (c *cache) wake(name, namespace, key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.waiting[name] {
		poke(w)
	}
	for w := range c.watchers {
		if w.namespace == namespace && strings.HasPrefix(key, w.prefix) {
			w.add(key)
		}
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// awaits registers a channel that is poked when a key changes; forget ends it.
func (c *cache) awaits(name string) (changed chan struct{}, forget func()) {
	changed = make(chan struct{}, 1)
	c.mu.Lock()
	c.waiting[name] = append(c.waiting[name], changed)
	c.mu.Unlock()
	return changed, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		left := c.waiting[name]
		for i, w := range left {
			if w == changed {
				left = append(left[:i:i], left[i+1:]...)
				break
			}
		}
		if len(left) == 0 {
			delete(c.waiting, name)
		} else {
			c.waiting[name] = left
		}
	}
}

// watcher collects changes for one who watches. Its fields are guarded by the cache's mu.
type watcher struct {
	namespace, prefix string
	keys              []string
	all               bool
	news              chan struct{}
}

// maxNews bounds what is kept for a watcher that is slow; then it is told that all may have
// changed.
const maxNews = 1000

func (w *watcher) add(key string) {
	switch {
	case w.all:
	case len(w.keys) >= maxNews:
		w.everything()
		return
	default:
		w.keys = append(w.keys, strings.Clone(key))
	}
	poke(w.news)
}

func (w *watcher) everything() {
	w.keys, w.all = nil, true
	poke(w.news)
}

// Watch tells which entries of a namespace change, never their values, until ctx ends; then it
// returns ctx's error. The first news are all, when every later change will be told. tell's error
// ends it and is returned.
func (s *Service) Watch(ctx context.Context, cacheName, namespace, prefix string, tell func(keys []string, all bool) error) error {
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return err
	}
	c := sp.c
	if !catalog.Able[block.CacheFeed](c.h) {
		return fault.New("cache.Watch", fault.Unsupported, "cache %s does not tell of changes", c.name).With(fault.NoWatch)
	}
	if err := sp.allowed(ctx, "watch", prefix); err != nil {
		return err
	}
	w := &watcher{namespace: namespace, prefix: prefix, news: make(chan struct{}, 1)}
	c.mu.Lock()
	c.watchers[w] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.watchers, w)
		c.mu.Unlock()
	}()
	c.feed()
	if err := c.following(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	w.everything()
	c.mu.Unlock()
	for {
		select {
		case <-w.news:
		case <-ctx.Done():
			return fault.Wrap("cache.Watch", fault.Canceled, ctx.Err())
		case <-c.life.Done():
			return fault.New("cache.Watch", fault.Unavailable, "cache %s was closed or replaced; watch again", c.name)
		case <-s.watches.Done():
			return fault.New("cache.Watch", fault.Unavailable, "the sidecar is stopping")
		}
		c.mu.Lock()
		keys, all := w.keys, w.all
		w.keys, w.all = nil, false
		c.mu.Unlock()
		if !all && len(keys) == 0 {
			continue
		}
		if err := tell(keys, all); err != nil {
			return err
		}
	}
}

// EndWatches ends all watches, now and later: the sidecar is stopping.
func (s *Service) EndWatches() { s.endWatches() }

// following waits until the feed is followed.
func (c *cache) following(ctx context.Context) error {
	for c.epoch.Load() == 0 {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fault.Wrap("cache.Watch", fault.Canceled, ctx.Err())
		case <-c.life.Done():
			return fault.New("cache.Watch", fault.Unavailable, "cache %s was closed or replaced; watch again", c.name)
		}
	}
	return nil
}
