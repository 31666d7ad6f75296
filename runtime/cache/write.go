package cache

import (
	"context"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Options say how an entry is kept. The zero value takes the namespace's settings.
type Options struct {
	TTL      time.Duration  // 0: the namespace's defaultTTL
	Jitter   *float64       // nil: the namespace's
	Sliding  bool           // each read makes it fresh for another TTL
	StaleTTL time.Duration  // how long after its TTL it may be served as stale
	Negative *time.Duration // how long the news are kept that there is no value; nil: the namespace's
	Tags     []string
	Tier     Tier
}

// Epoch makes a write depend on nobody later having written; see Set.
type Epoch struct {
	Topic     string
	Partition uint32
	Number    uint64
}

// maxTTL keeps sums of times within 64 bits.
const maxTTL = 100 * 365 * 24 * time.Hour

// minTTL is the shortest time an entry can be asked to live.
const minTTL = time.Millisecond

func (o *Options) check() error {
	const op fault.Op = "cache.options"
	bad := func(why fault.Reason, format string, args ...any) error {
		return fault.New(op, fault.Invalid, format, args...).With(why)
	}
	switch {
	case o.TTL < 0 || o.TTL > maxTTL || (o.TTL > 0 && o.TTL < minTTL):
		return bad(fault.BadExpiry, "ttl is %v; it can be from 1ms to 100 years", o.TTL)
	case o.StaleTTL < 0 || o.StaleTTL > maxTTL:
		return bad(fault.BadExpiry, "stale_ttl is %v; it can be from 0 to 100 years", o.StaleTTL)
	case o.Negative != nil && (*o.Negative < 0 || *o.Negative > maxTTL):
		return bad(fault.BadExpiry, "negative_ttl is %v; it can be from 0 to 100 years", *o.Negative)
	case o.Jitter != nil && !(*o.Jitter >= 0 && *o.Jitter <= 1):
		return bad(BadOption, "jitter is %v; it can be from 0 to 1", *o.Jitter)
	case o.Tier > Shared:
		return bad(BadOption, "tier %d is not known", o.Tier)
	case len(o.Tags) > maxTags:
		return bad(BadOption, "there are %d tags; at most %d are allowed", len(o.Tags), maxTags)
	}
	for _, t := range o.Tags {
		if err := checkTag(t); err != nil {
			return err
		}
	}
	return nil
}

func checkTag(t string) error {
	if t == "" || len(t) > maxTag || strings.Contains(t, separator) {
		return fault.New("cache.tag", fault.Invalid, "tag %.200q: a tag has 1 to %d bytes without %q", t, maxTag, separator).With(fault.IllegalKey)
	}
	return nil
}

// keep copies the options for use after the request.
func (o Options) keep() Options {
	tags := make([]string, len(o.Tags))
	for i, t := range o.Tags {
		tags[i] = strings.Clone(t)
	}
	o.Tags = tags
	return o
}

// times are how long an entry made now is fresh and how long it is kept.
func (sp *space) times(o *Options, absent bool) (fresh, kept time.Duration) {
	ttl := o.TTL
	if ttl == 0 {
		ttl = sp.conf.DefaultTTL
	}
	if absent {
		if ttl = sp.conf.NegativeTTL; o.Negative != nil {
			ttl = *o.Negative
		}
	}
	jitter := sp.conf.Jitter
	if o.Jitter != nil {
		jitter = *o.Jitter
	}
	if jitter > 0 && ttl > 0 {
		ttl = time.Duration(float64(ttl) * (1 + jitter*(2*rand.Float64()-1)))
		ttl = max(ttl, minTTL)
	}
	if absent {
		return ttl, ttl
	}
	return ttl, ttl + o.StaleTTL
}

// sealed is an entry ready to be written.
type sealed struct {
	env  *envelope
	kept time.Duration
}

// standing is where the near cache stood when a write or a load began.
type standing struct {
	marks []mark // of the namespace and the tags
	moved uint64 // of the key's slot
}

// seal makes the envelope of a value. stamps are the numbers it is written under.
func (sp *space) seal(value []byte, absent bool, o *Options, stamps []stamp) sealed {
	fresh, kept := sp.times(o, absent)
	now := time.Now()
	env := &envelope{absent: absent, sliding: o.Sliding && !absent, shared: o.Tier == Shared, fresh: now.Add(fresh).UnixMilli(), end: now.Add(kept).UnixMilli(),
		stamps: stamps, value: value}
	if env.sliding {
		env.ttl = fresh.Milliseconds()
	}
	return sealed{env: env, kept: kept}
}

// begin notes where the near cache stands before a write, so that what is kept of it afterwards
// gives way to whatever happened meanwhile.
func (sp *space) begin(key string, tags []string) standing {
	b := standing{moved: sp.near.moved(sp.nearKey(key))}
	b.marks = append(b.marks, mark{sp.gen, sp.gen.moves.Load()})
	for _, t := range tags {
		c := sp.cell(t)
		b.marks = append(b.marks, mark{c, c.moves.Load()})
	}
	return b
}

// wrote brings the near cache up to a write that was acknowledged: what was there goes, and where
// the shared store's news do not matter, or come with a version, the new entry is kept.
func (sp *space) wrote(key string, at standing, env *envelope, version string) {
	if sp.near == nil {
		return
	}
	name := sp.nearKey(key)
	sp.near.drop(name) // also what others are reading now
	if sp.conf.Coherence == block.CoherenceLocal && !env.shared {
		sp.near.put(name, &nearEntry{env: env, version: version, believe: math.MaxInt64, marks: at.marks}, at.moved+1)
	}
}

// Set writes one entry and gives its version. With an epoch it is written only if no later epoch
// of that partition has written to the namespace, else fault.Conflict with fault.Fenced.
func (s *Service) Set(ctx context.Context, cacheName, namespace, key string, value []byte, o Options, e *Epoch) (version string, err error) {
	start := time.Now()
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return "", err
	}
	if err := checkKey(key); err != nil {
		return "", err
	}
	if err := o.check(); err != nil {
		return "", err
	}
	if o.Tier == Near {
		if e != nil {
			return "", fault.New("cache.Set", fault.Invalid, "if_epoch needs the shared store, and tier is near").With(BadOption)
		}
		err = sp.setNear(ctx, key, value, &o)
	} else {
		version, err = sp.set(ctx, key, value, &o, e)
	}
	sp.record("set", ended(err), start)
	return version, err
}

func (sp *space) set(ctx context.Context, key string, value []byte, o *Options, e *Epoch) (string, error) {
	at := sp.begin(key, o.Tags)
	_, kept := sp.times(o, false)
	stamps, err := sp.stamps(ctx, o.Tags, kept)
	if err != nil {
		return "", err
	}
	sealed := sp.seal(value, false, o, stamps)
	w := block.CacheWrite{Key: sp.nearKey(key), Value: sealed.env.encode(), TTL: sealed.kept}
	version, err := sp.write(ctx, w, e)
	if err != nil {
		sp.near.drop(w.Key) // it may have been written
		return "", err
	}
	env, err := decode(w.Value) // of bytes that are ours, not the caller's
	if err == nil {
		sp.wrote(key, at, env, version)
	}
	return version, err
}

func (sp *space) write(ctx context.Context, w block.CacheWrite, e *Epoch) (string, error) {
	if e == nil {
		versions, err := sp.c.store(ctx, sp, []block.CacheWrite{w})
		if err != nil {
			return "", err
		}
		return versions[0], nil
	}
	fence, err := sp.fence(e)
	if err != nil {
		return "", err
	}
	version, err := sp.c.storeFenced(ctx, sp, fence, e.Number, w)
	if fault.ReasonOf(err) == fault.Fenced {
		err = fault.New("cache.Set", fault.Conflict, "a later epoch than %d has written to cache %s: this owner's turn at the partition is over", e.Number, sp.c.name).With(fault.Fenced)
	}
	return version, err
}

func (sp *space) fence(e *Epoch) (string, error) {
	if e.Topic == "" || strings.Contains(e.Topic, separator) || e.Number == 0 {
		return "", fault.New("cache.Set", fault.Invalid, "if_epoch needs a topic without %q and an epoch of at least 1", separator).With(BadOption)
	}
	return sp.name + separator + "fence" + separator + e.Topic + separator + strconv.FormatUint(uint64(e.Partition), 10), nil
}

// setNear keeps an entry in memory only.
func (sp *space) setNear(ctx context.Context, key string, value []byte, o *Options) error {
	if sp.near == nil {
		return fault.New("cache.Set", fault.Unsupported, "namespace %q of cache %s keeps nothing in memory: its coherence is strong, or nearBytes is 0", sp.name, sp.c.name)
	}
	if err := sp.allowed(ctx, "set", key); err != nil {
		return err
	}
	at := sp.begin(key, o.Tags)
	sp.putNear(key, append([]byte(nil), value...), false, o, at)
	return nil
}

// putNear keeps an entry in memory only, unless its slot moved since at.
func (sp *space) putNear(key string, value []byte, absent bool, o *Options, at standing) {
	env := sp.seal(value, absent, o, nil).env
	name := sp.nearKey(key)
	sp.near.put(name, &nearEntry{env: env, only: true, believe: math.MaxInt64, marks: at.marks}, at.moved)
}

// Item is one entry of SetMulti.
type Item struct {
	Key   string
	Value []byte
}

// SetMulti writes several entries with the same options, and gives their versions in the same
// order. They are not written at once: after an error some may be.
func (s *Service) SetMulti(ctx context.Context, cacheName, namespace string, items []Item, o Options) ([]string, error) {
	start := time.Now()
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return nil, err
	}
	for _, it := range items {
		if err := checkKey(it.Key); err != nil {
			return nil, err
		}
	}
	if err := o.check(); err != nil || len(items) == 0 {
		return nil, err
	}
	if o.Tier == Near {
		for _, it := range items {
			if err := sp.setNear(ctx, it.Key, it.Value, &o); err != nil {
				return nil, err
			}
		}
		return make([]string, len(items)), nil
	}
	versions, err := sp.setMulti(ctx, items, &o)
	sp.record("set", ended(err), start)
	return versions, err
}

func (sp *space) setMulti(ctx context.Context, items []Item, o *Options) ([]string, error) {
	_, kept := sp.times(o, false)
	stamps, err := sp.stamps(ctx, o.Tags, 2*kept) // of all: jitter differs
	if err != nil {
		return nil, err
	}
	ws := make([]block.CacheWrite, len(items))
	for i, it := range items {
		sealed := sp.seal(it.Value, false, o, stamps)
		ws[i] = block.CacheWrite{Key: sp.nearKey(it.Key), Value: sealed.env.encode(), TTL: sealed.kept}
	}
	defer func() {
		for _, w := range ws {
			sp.near.drop(w.Key)
		}
	}()
	return sp.c.store(ctx, sp, ws)
}

// Delete removes an entry, and makes leases on it void.
func (s *Service) Delete(ctx context.Context, cacheName, namespace, key string) error {
	start := time.Now()
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return err
	}
	if err := checkKey(key); err != nil {
		return err
	}
	name := sp.nearKey(key)
	defer sp.near.drop(name)
	err = sp.c.remove(ctx, sp, []string{name})
	sp.record("delete", ended(err), start)
	return err
}

// Touch gives an entry a new time to live, and reports whether there was one. 0 is the namespace's
// defaultTTL.
func (s *Service) Touch(ctx context.Context, cacheName, namespace, key string, ttl time.Duration) (bool, error) {
	start := time.Now()
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return false, err
	}
	if err := checkKey(key); err != nil {
		return false, err
	}
	o := Options{TTL: ttl}
	if err := o.check(); err != nil {
		return false, err
	}
	fresh, _ := sp.times(&o, false)
	found, err := sp.touch(ctx, key, fresh)
	sp.record("touch", ended(err), start)
	return found, err
}

// tries bounds how often a change is attempted on an entry that others change too.
const tries = 100

func (sp *space) touch(ctx context.Context, key string, fresh time.Duration) (bool, error) {
	name := sp.nearKey(key)
	if sp.near != nil {
		if e := sp.near.get(name); e != nil && e.only && e.standing() {
			moved := sp.near.moved(name)
			env := renewed(e.env, fresh)
			sp.near.put(name, &nearEntry{env: env, only: true, believe: math.MaxInt64, marks: e.marks}, moved)
			return true, nil
		}
	}
	for n := range tries {
		found, err := sp.look(ctx, []string{key})
		if err != nil {
			return false, err
		}
		l := found[0]
		if l.env == nil || !l.fresh(nowMS()) {
			return false, nil
		}
		env := renewed(l.env, fresh)
		if env.stamps, err = sp.lasting(ctx, env); err != nil {
			return false, err
		}
		_, done, err := sp.c.swap(ctx, sp, block.CacheWrite{Key: name, Value: env.encode(), TTL: time.Until(time.UnixMilli(env.end))}, l.raw)
		sp.near.drop(name)
		if err != nil || done {
			return done, err
		}
		if err := pause(ctx, n); err != nil {
			return false, err
		}
	}
	return false, sp.contended(key)
}

// renewed is an entry with a new time to live, and as long a stale one as it had.
func renewed(old *envelope, fresh time.Duration) *envelope {
	env := *old
	stale := env.end - env.fresh
	env.fresh = time.Now().Add(fresh).UnixMilli()
	env.end = env.fresh + stale
	if env.sliding {
		env.ttl = fresh.Milliseconds()
	}
	return &env
}

// lasting makes the numbers an entry was written under live as long as it does now. An entry whose
// number is no more is not good, and does not become so.
func (sp *space) lasting(ctx context.Context, env *envelope) ([]stamp, error) {
	tags := make([]string, 0, len(env.stamps))
	for _, st := range env.stamps {
		if st.tag != "" {
			tags = append(tags, st.tag)
		}
	}
	_, err := sp.stamps(ctx, tags, time.Until(time.UnixMilli(env.end)))
	return env.stamps, err
}

// Increment adds delta to a number, which is initial before the first addition, and gives the
// result. ttl is of a number that is made now; one that exists keeps its own.
func (s *Service) Increment(ctx context.Context, cacheName, namespace, key string, delta, initial int64, ttl time.Duration) (int64, error) {
	start := time.Now()
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return 0, err
	}
	if err := checkKey(key); err != nil {
		return 0, err
	}
	o := Options{TTL: ttl}
	if err := o.check(); err != nil {
		return 0, err
	}
	n, err := sp.increment(ctx, key, delta, initial, &o)
	sp.record("increment", ended(err), start)
	return n, err
}

var counterSeed = maphash.MakeSeed()

func (sp *space) increment(ctx context.Context, key string, delta, initial int64, o *Options) (int64, error) {
	const op fault.Op = "cache.Increment"
	name := sp.nearKey(key)
	turn := sp.c.counters[maphash.String(counterSeed, name)%uint64(len(sp.c.counters))]
	select {
	case turn <- struct{}{}: // callers of this sidecar need not race each other
		defer func() { <-turn }()
	case <-ctx.Done():
		return 0, fault.Wrap(op, fault.Canceled, ctx.Err())
	}
	for n := range tries {
		found, err := sp.look(ctx, []string{key})
		if err != nil {
			return 0, err
		}
		l, number := found[0], initial
		var env *envelope
		if l.env != nil && l.fresh(nowMS()) && !l.env.absent {
			if number, err = strconv.ParseInt(string(l.env.value), 10, 64); err != nil {
				return 0, fault.New(op, fault.Invalid, "entry %q of cache %s is not a whole number", key, sp.c.name).With(NotNumber)
			}
			copied := *l.env
			env = &copied
		}
		sum := number + delta
		if (sum > number) != (delta > 0) && delta != 0 {
			return 0, fault.New(op, fault.Invalid, "%d%+d does not fit in 64 bits", number, delta).With(NotNumber)
		}
		value := strconv.AppendInt(nil, sum, 10)
		if env != nil {
			env.value = value
		} else {
			_, kept := sp.times(o, false)
			stamps, err := sp.stamps(ctx, nil, kept)
			if err != nil {
				return 0, err
			}
			env = sp.seal(value, false, o, stamps).env
		}
		left := max(time.Until(time.UnixMilli(env.end)), minTTL)
		_, done, err := sp.c.swap(ctx, sp, block.CacheWrite{Key: name, Value: env.encode(), TTL: left}, l.raw)
		sp.near.drop(name)
		if err != nil {
			return 0, err
		}
		if done {
			return sum, nil
		}
		if err := pause(ctx, n); err != nil {
			return 0, err
		}
	}
	return 0, sp.contended(key)
}

// pause waits before the next attempt at a contended entry, longer with each.
func pause(ctx context.Context, n int) error {
	timer := time.NewTimer(rand.N(time.Duration(min(n+1, 20)) * time.Millisecond))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fault.Wrap("cache.pause", fault.Canceled, ctx.Err())
	}
}

func (sp *space) contended(key string) error {
	return fault.New("cache.change", fault.Exhausted, "entry %q of cache %s changes too fast for a change of its own: %d attempts failed", key, sp.c.name, tries)
}

// CompareAndSet writes an entry over the version given, or, with none, only if there is no entry.
// It reports whether it did.
func (s *Service) CompareAndSet(ctx context.Context, cacheName, namespace, key string, value []byte, over string, o Options) (version string, done bool, err error) {
	start := time.Now()
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return "", false, err
	}
	if err := checkKey(key); err != nil {
		return "", false, err
	}
	if err := o.check(); err != nil {
		return "", false, err
	}
	if o.Tier == Near {
		return "", false, fault.New("cache.CompareAndSet", fault.Invalid, "tier near has no versions").With(BadOption)
	}
	version, done, err = sp.compareAndSet(ctx, key, value, over, &o)
	sp.record("compare_and_set", ended(err), start)
	return version, done, err
}

func (sp *space) compareAndSet(ctx context.Context, key string, value []byte, over string, o *Options) (string, bool, error) {
	found, err := sp.look(ctx, []string{key})
	if err != nil {
		return "", false, err
	}
	l := found[0]
	is := ""
	if l.fresh(nowMS()) {
		is = l.version
	}
	if is != over {
		return "", false, nil
	}
	_, kept := sp.times(o, false)
	stamps, err := sp.stamps(ctx, o.Tags, kept)
	if err != nil {
		return "", false, err
	}
	sealed := sp.seal(value, false, o, stamps)
	name := sp.nearKey(key)
	defer sp.near.drop(name)
	return sp.c.swap(ctx, sp, block.CacheWrite{Key: name, Value: sealed.env.encode(), TTL: sealed.kept}, l.raw)
}

// Invalidation says which entries to drop; one of the three is set.
type Invalidation struct {
	Tags   []string
	Prefix string
	All    bool
}

// Invalidate drops entries by tag, by prefix of the key, or all of a namespace. By tag and all cost
// the same whatever the number of entries; by prefix costs a walk through the namespace's keys.
func (s *Service) Invalidate(ctx context.Context, cacheName, namespace string, what Invalidation) error {
	start := time.Now()
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return err
	}
	switch {
	case what.All:
		err = sp.invalidate(ctx, []string{""})
	case len(what.Tags) > 0:
		for _, t := range what.Tags {
			if err := checkTag(t); err != nil {
				return err
			}
		}
		err = sp.invalidate(ctx, what.Tags)
	case what.Prefix != "":
		if strings.Contains(what.Prefix, separator) {
			return checkKey(what.Prefix)
		}
		err = sp.invalidatePrefix(ctx, what.Prefix)
	default:
		return fault.New("cache.Invalidate", fault.Invalid, "name tags or a prefix, or say all").With(BadOption)
	}
	sp.record("invalidate", ended(err), start)
	return err
}

// invalidate drops the numbers of tags.
func (sp *space) invalidate(ctx context.Context, tags []string) error {
	keys := make([]string, len(tags))
	for i, t := range tags {
		keys[i] = sp.stampKey(t)
	}
	defer func() { // also after an error: it may have been done
		for _, t := range tags {
			sp.cell(t).doubt()
		}
	}()
	return sp.c.remove(ctx, sp, keys)
}

func (sp *space) invalidatePrefix(ctx context.Context, prefix string) error {
	if !catalog.Able[block.CacheScan](sp.c.h) {
		return fault.New("cache.Invalidate", fault.Unsupported, "cache %s cannot go through its keys; use tags", sp.c.name).With(fault.NoScan)
	}
	if sp.near != nil {
		for key := range sp.near.entries.Keys() {
			if strings.HasPrefix(key, sp.nearKey(prefix)) {
				sp.near.drop(key)
			}
		}
	}
	_, err := catalog.Do(ctx, sp.c.h, sp.desc("invalidate", prefix, call.Idempotent), func(ctx context.Context, store block.Cache) (struct{}, error) {
		scan, ok := store.(block.CacheScan)
		if !ok {
			return struct{}{}, fault.New("cache.Invalidate", fault.Unsupported, "the cache behind this name cannot go through its keys; use tags").With(fault.NoScan)
		}
		stored := sp.c.prefix + sp.nearKey(prefix)
		return struct{}{}, scan.Keys(ctx, stored, func(keys []string) error {
			own := keys[:0]
			for _, k := range keys { // not the numbers of tags
				if !strings.Contains(k[len(stored):], separator) {
					own = append(own, k)
				}
			}
			if len(own) == 0 {
				return nil
			}
			err := store.Drop(ctx, own)
			for _, k := range own {
				sp.near.drop(strings.TrimPrefix(k, sp.c.prefix))
			}
			return err
		})
	}, nil)
	return err
}
