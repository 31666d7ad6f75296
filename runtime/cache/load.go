package cache

import (
	"context"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// A lease is kept in the entry's own place: an envelope that says until when somebody loads, with
// the entry that was there inside. To take it is to swap it in, to fill it is to swap it out, both
// over the version that was seen. So one sidecar holds it, whatever the clocks; and a Delete, a Set
// or another's lease in between makes the Fill fail, which is what keeps an old value from coming
// back.
//
// Within a sidecar the callers of a key share a flight: one leads, the others wait for what comes
// of it, or are served what is stale.

const (
	defaultLoadTimeout = 10 * time.Second
	maxLoadTimeout     = time.Hour
	// leaseGrace is how much longer than the lease its place is kept.
	leaseGrace = 2 * time.Second
)

// Lease is the task to load an entry and to call Fill before Deadline.
type Lease struct {
	ID       string
	Deadline time.Time
}

// flight is a load that callers of this sidecar wait for, or are about to find out about.
type flight struct {
	sp   *space
	key  string
	name string // near key
	done chan struct{}
	once sync.Once
	out  outcome // readable when done

	// Of a lease that was given; set under the cache's mu.
	lease   string
	version string   // the store's, of the lease in the entry's place
	at      standing // where the near cache stood
	stamps  []stamp
	opts    Options
	prior   *envelope
	raw     []byte // prior, encoded
	began   time.Time
	timer   *time.Timer
	local   bool // there is no shared lease
}

// outcome is how a flight ended.
type outcome struct {
	found looked // when there is an entry, or the news that there is none
	known bool
	err   error // loading failed
	retry bool  // look again
}

// finish ends the flight for those who wait.
func (f *flight) finish(o outcome) {
	f.once.Do(func() {
		c := f.sp.c
		c.mu.Lock()
		if c.flights[f.name] == f {
			delete(c.flights, f.name)
		}
		if f.lease != "" {
			delete(c.leases, f.lease)
		}
		if f.timer != nil {
			f.timer.Stop()
		}
		c.mu.Unlock()
		f.out = o
		close(f.done)
	})
}

// GetOrLoad reads an entry, or gives the caller a lease: then it is to load the entry and to call
// Fill within timeout (0: 10 seconds), after which the next caller is asked. With a lease there may
// be an entry too, to be served meanwhile, or if loading fails. Others who ask are served what is
// stale, or wait, for wait at most (0: timeout).
func (s *Service) GetOrLoad(ctx context.Context, cacheName, namespace, key string, o Options, timeout, wait time.Duration) (Entry, *Lease, error) {
	start := time.Now()
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return Entry{}, nil, err
	}
	if err := checkLoad(key, &o, &timeout, &wait); err != nil {
		return Entry{}, nil, err
	}
	if o.Tier == Near && sp.near == nil {
		return Entry{}, nil, fault.New("cache.GetOrLoad", fault.Unsupported, "namespace %q of cache %s keeps nothing in memory: its coherence is strong, or nearBytes is 0", sp.name, sp.c.name)
	}
	now := start.UnixMilli()
	l, ok := sp.nearby(key, now)
	if ok && l.fresh(now) && !early(l.env, now) {
		if err := sp.allowed(ctx, "get", key); err != nil {
			return Entry{}, nil, err
		}
		sp.slide(&l, key, now)
		e := l.entry(key, now)
		sp.count(&e, start, "get_or_load")
		return e, nil, nil
	}
	l, lease, err := sp.getOrLoad(ctx, strings.Clone(key), o.keep(), timeout, start.Add(wait))
	if err != nil {
		sp.record("get_or_load", "error", start)
		return Entry{}, nil, err
	}
	e := l.entry(key, now)
	if lease == nil {
		sp.slide(&l, key, now)
		sp.count(&e, start, "get_or_load")
	} else {
		sp.record("get_or_load", "load", start)
	}
	return e, lease, nil
}

func checkLoad(key string, o *Options, timeout, wait *time.Duration) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	if *timeout == 0 {
		*timeout = defaultLoadTimeout
	}
	if *timeout < minTTL || *timeout > maxLoadTimeout {
		return fault.New("cache.GetOrLoad", fault.Invalid, "load_timeout is %v; it can be from 1ms to 1h", *timeout).With(fault.BadExpiry)
	}
	if *wait == 0 {
		*wait = *timeout
	}
	if *wait < 0 || *wait > maxLoadTimeout {
		return fault.New("cache.GetOrLoad", fault.Invalid, "wait is %v; it can be from 0 to 1h", *wait).With(fault.BadExpiry)
	}
	return nil
}

// early decides at random, the likelier the nearer the end and the dearer the load, that an entry
// is loaded again before it ends, so that a hot one never ends under its callers (XFetch, by
// Vattani, Chierichetti and Lowenstein).
func early(env *envelope, now int64) bool {
	return env.loadMS > 0 && float64(now)-float64(env.loadMS)*math.Log(1-rand.Float64()) >= float64(env.fresh)
}

func (sp *space) getOrLoad(ctx context.Context, key string, o Options, timeout time.Duration, until time.Time) (looked, *Lease, error) {
	for {
		f, leads := sp.c.flight(sp, key)
		var l looked
		var lease *Lease
		var again bool
		var err error
		if leads {
			l, lease, again, err = f.lead(ctx, o, timeout, until)
		} else {
			l, again, err = f.await(ctx, until)
		}
		if !again {
			return l, lease, err
		}
	}
}

// flight joins the flight of a key, or begins one.
func (c *cache) flight(sp *space, key string) (f *flight, leads bool) {
	name := sp.nearKey(key)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[name]; f != nil {
		return f, false
	}
	f = &flight{sp: sp, key: key, name: name, done: make(chan struct{})}
	c.flights[name] = f
	return f, true
}

// await waits for somebody else's load, unless there is something stale to be served.
func (f *flight) await(ctx context.Context, until time.Time) (l looked, again bool, err error) {
	f.sp.c.mu.Lock()
	prior, version := f.prior, f.version
	f.sp.c.mu.Unlock()
	if prior != nil && nowMS() < prior.end {
		return looked{env: prior, version: version, found: Shared}, false, nil
	}
	f.sp.stats.coalesced.Add(1)
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-f.done:
		return f.out.found, f.out.retry, f.out.err
	case <-timer.C:
		return looked{}, false, tooSlow(f.sp, f.key)
	case <-ctx.Done():
		return looked{}, false, fault.Wrap("cache.GetOrLoad", fault.Canceled, ctx.Err())
	}
}

func tooSlow(sp *space, key string) error {
	return fault.New("cache.GetOrLoad", fault.Deadline, "entry %q of cache %s is being loaded, and was not there in time", key, sp.c.name).With(Waited)
}

// lead finds out what there is, and takes the lease if it is to be loaded. Unless it returns a
// lease the flight is over.
func (f *flight) lead(ctx context.Context, o Options, timeout time.Duration, until time.Time) (l looked, lease *Lease, again bool, err error) {
	defer func() {
		if lease == nil {
			f.finish(outcome{found: l, known: err == nil, retry: err != nil || again})
		}
	}()
	sp := f.sp
	if o.Tier == Near {
		at := sp.begin(f.key, o.Tags)
		lease = f.take(o, timeout, "", at, nil, looked{})
		return l, lease, false, nil
	}
	var changed chan struct{}
	for n := 0; ; n++ {
		at := sp.begin(f.key, o.Tags)
		doubted, _ := sp.nearby(f.key, nowMS())
		l, err = sp.ask(ctx, f.key, doubted, true)
		if err != nil {
			return looked{}, nil, false, err
		}
		now := nowMS()
		refresh := l.fresh(now) && early(l.env, now)
		switch {
		case l.fresh(now) && (!refresh || l.lease != 0):
			return l, nil, false, nil
		case l.env != nil && (l.lease != 0 || (l.raw == "" && l.found == Near)):
			return l, nil, false, nil // stale, and somebody else loads it, or the store does not answer
		case l.lease == 0:
			version, stamps, done, err := f.swapIn(ctx, o, timeout, l)
			if err != nil {
				if l.env != nil && ctx.Err() == nil { // the store went away meanwhile
					return l, nil, false, nil
				}
				return looked{}, nil, false, err
			}
			if done {
				return l, f.take(o, timeout, version, at, stamps, l), false, nil
			}
			if refresh {
				return l, nil, false, nil
			}
			continue // somebody else was faster
		}
		// Another sidecar loads, and there is nothing to serve meanwhile.
		if n == 0 {
			f.sp.stats.coalesced.Add(1)
			var forget func()
			changed, forget = sp.c.awaits(f.name)
			defer forget()
		}
		left := time.Until(until)
		if left <= 0 {
			return looked{}, nil, false, tooSlow(sp, f.key)
		}
		// The feed tells when to look again; where there is none we ask, at growing intervals.
		pause := min(time.Duration(20<<min(n, 4))*time.Millisecond, time.Until(time.UnixMilli(l.lease))+time.Millisecond, left)
		timer := time.NewTimer(max(pause, time.Millisecond))
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return looked{}, nil, false, fault.Wrap("cache.GetOrLoad", fault.Canceled, ctx.Err())
		}
		timer.Stop()
	}
}

// swapIn puts a lease into the entry's place, if that is still as l was read.
func (f *flight) swapIn(ctx context.Context, o Options, timeout time.Duration, l looked) (version string, stamps []stamp, done bool, err error) {
	_, kept := f.sp.times(&o, false)
	if stamps, err = f.sp.stamps(ctx, o.Tags, kept+timeout); err != nil {
		return "", nil, false, err
	}
	env := envelope{lease: true, until: time.Now().Add(timeout).UnixMilli()}
	ttl := timeout + leaseGrace
	if l.env != nil {
		env.prior = l.env.encode()
		ttl = max(ttl, time.Until(time.UnixMilli(l.env.end)))
	}
	version, done, err = f.sp.c.swap(ctx, f.sp, block.CacheWrite{Key: f.name, Value: env.encode(), TTL: ttl}, l.raw)
	return version, stamps, done, err
}

// take makes the flight one that waits for the caller's Fill.
func (f *flight) take(o Options, timeout time.Duration, version string, at standing, stamps []stamp, l looked) *Lease {
	f.sp.stats.loads.Add(1)
	c := f.sp.c
	c.mu.Lock()
	defer c.mu.Unlock()
	f.lease, f.version, f.at, f.stamps, f.opts, f.began, f.local = uuid.NewString(), version, at, stamps, o, time.Now(), version == ""
	if l.env != nil {
		f.prior, f.raw = l.env, l.env.encode()
	}
	c.leases[f.lease] = f
	f.timer = time.AfterFunc(timeout, func() { f.finish(outcome{retry: true}) })
	return &Lease{ID: f.lease, Deadline: f.began.Add(timeout)}
}

// Filling is the answer to a lease: a value, the news that there is none, or a failure.
type Filling struct {
	Value  []byte
	Absent bool
	Error  string
}

// Fill answers a lease. It reports false when nothing was kept: the lease had ended, or the entry
// was written, removed or invalidated meanwhile.
func (s *Service) Fill(ctx context.Context, cacheName, namespace, key, lease string, with Filling) (bool, error) {
	start := time.Now()
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return false, err
	}
	if err := checkKey(key); err != nil {
		return false, err
	}
	if lease == "" {
		return false, fault.New("cache.Fill", fault.Invalid, "no lease is given; GetOrLoad gives one").With(NoLease)
	}
	sp.c.mu.Lock()
	f := sp.c.leases[lease]
	if f != nil && f.name == sp.nearKey(key) {
		delete(sp.c.leases, lease) // one answer each
	}
	sp.c.mu.Unlock()
	switch {
	case f == nil:
		sp.record("fill", "late", start)
		return false, nil
	case f.name != sp.nearKey(key):
		return false, fault.New("cache.Fill", fault.Invalid, "the lease is not for entry %q of namespace %q", key, namespace).With(NoLease)
	}
	stored, out, err := f.fill(ctx, with)
	f.finish(out)
	sp.record("fill", ended(err), start)
	return stored, err
}

func (f *flight) fill(ctx context.Context, with Filling) (stored bool, out outcome, err error) {
	sp := f.sp
	sp.stats.loadTime.Add(int64(time.Since(f.began)))
	if with.Error != "" {
		sp.stats.failures.Add(1)
		err := f.giveBack(ctx)
		return false, outcome{err: fault.New("cache.GetOrLoad", fault.Unavailable, "entry %q of cache %s could not be loaded: %s", f.key, sp.c.name, with.Error).With(LoadFailed)}, err
	}
	value := with.Value
	if with.Absent {
		value = nil
	}
	sealed := sp.seal(append([]byte(nil), value...), with.Absent, &f.opts, f.stamps)
	if sealed.kept <= 0 { // the news are not to be kept
		err := f.giveBack(ctx)
		return false, outcome{known: true, found: looked{env: sealed.env}}, err
	}
	sealed.env.loadMS = max(time.Since(f.began).Milliseconds(), 1)
	if f.local {
		stood := sp.near.moved(f.name) == f.at.moved && (&nearEntry{marks: f.at.marks}).standing()
		if stood {
			sp.near.put(f.name, &nearEntry{env: sealed.env, only: true, believe: math.MaxInt64, marks: f.at.marks}, f.at.moved)
		}
		return stood, outcome{known: stood, retry: !stood, found: looked{env: sealed.env, found: Near}}, nil
	}
	version, done, err := sp.c.swap(ctx, sp, block.CacheWrite{Key: f.name, Value: sealed.env.encode(), TTL: sealed.kept}, f.version)
	if err != nil {
		sp.near.drop(f.name)
		return false, outcome{retry: true}, err
	}
	if !done {
		return false, outcome{retry: true}, nil
	}
	sp.wrote(f.key, f.at, sealed.env, version)
	return true, outcome{known: true, found: looked{env: sealed.env, version: version, raw: version, found: Shared}}, nil
}

// giveBack ends the lease in the entry's place: what was there comes back, if it may be served
// still.
func (f *flight) giveBack(ctx context.Context) error {
	if f.local {
		return nil
	}
	w := block.CacheWrite{Key: f.name}
	if f.prior != nil {
		if left := time.Until(time.UnixMilli(f.prior.end)); left > 0 {
			w.Value, w.TTL = f.raw, left
		}
	}
	_, _, err := f.sp.c.swap(ctx, f.sp, w, f.version)
	f.sp.near.drop(f.name)
	return err
}
