package cache

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Status is what is known of an entry.
type Status uint8

// The statuses.
const (
	Miss   Status = iota // nothing
	Hit                  // there is a value
	Absent               // there is none
)

// Tier is where an entry was found, or is to be kept.
type Tier uint8

// The tiers.
const (
	Anywhere Tier = iota
	Near          // in the sidecar's memory
	Shared        // in the shared store
)

// Entry is an entry as callers see it. Value must not be changed.
type Entry struct {
	Key     string
	Status  Status
	Value   []byte
	Version string
	Stale   bool
	Expires time.Time // when it stops being fresh
	Found   Tier
}

// looked is what a look at a key found, with what writers need to know.
type looked struct {
	env     *envelope // nil: nothing good
	version string    // of the good entry
	raw     string    // the store's version of whatever is there, good or not
	lease   int64     // until when somebody's lease holds, ms; 0: none
	found   Tier
	moved   uint64 // of the near slot before it was read
}

// fresh tells whether what was found is an entry in its ttl.
func (l *looked) fresh(now int64) bool { return l.env != nil && now < l.env.fresh }

func (l *looked) entry(key string, now int64) Entry {
	e := Entry{Key: key, Found: l.found}
	if l.env == nil {
		return Entry{Key: key}
	}
	e.Status, e.Value, e.Version = Hit, l.env.value, l.version
	if e.Value == nil {
		e.Value = []byte{}
	}
	if l.env.absent {
		e.Status, e.Value = Absent, nil
	}
	e.Stale = now >= l.env.fresh
	e.Expires = time.UnixMilli(l.env.fresh)
	return e
}

// Get reads one entry. One that is not there is no error. With staleOK an entry past its ttl is
// taken too, and, if the shared store does not answer, one that should have been asked for again.
func (s *Service) Get(ctx context.Context, cacheName, namespace, key string, staleOK bool) (Entry, error) {
	start := time.Now()
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return Entry{}, err
	}
	if err := checkKey(key); err != nil {
		return Entry{}, err
	}
	now := start.UnixMilli()
	l, ok := sp.nearby(key, now)
	if ok {
		err = sp.allowed(ctx, "get", key)
	} else {
		l, err = sp.ask(ctx, key, l, staleOK)
	}
	if err != nil {
		sp.record("get", "error", start)
		return Entry{}, err
	}
	e := l.entry(key, now)
	if e.Stale && !staleOK {
		e = Entry{Key: key}
	}
	sp.slide(&l, key, now)
	sp.count(&e, start, "get")
	return e, nil
}

// GetMulti reads several, in the order of keys.
func (s *Service) GetMulti(ctx context.Context, cacheName, namespace string, keys []string, staleOK bool) ([]Entry, error) {
	start := time.Now()
	sp, err := s.space(cacheName, namespace)
	if err != nil {
		return nil, err
	}
	now := start.UnixMilli()
	out := make([]Entry, len(keys))
	var ask []int
	found := make([]looked, len(keys))
	for i, key := range keys {
		if err := checkKey(key); err != nil {
			return nil, err
		}
		var ok bool
		if found[i], ok = sp.nearby(key, now); !ok {
			ask = append(ask, i)
		} else if err := sp.allowed(ctx, "get", key); err != nil {
			return nil, err
		}
	}
	if len(ask) > 0 {
		wanted := make([]string, len(ask))
		for n, i := range ask {
			wanted[n] = keys[i]
		}
		got, err := sp.look(ctx, wanted)
		for n, i := range ask {
			switch {
			case err == nil:
				found[i] = got[n]
			case !staleOK || found[i].env == nil:
				sp.record("get", "error", start)
				return nil, err
			}
		}
	}
	for i, key := range keys {
		out[i] = found[i].entry(key, now)
		if out[i].Stale && !staleOK {
			out[i] = Entry{Key: key}
		}
		sp.slide(&found[i], key, now)
		sp.count(&out[i], start, "get")
	}
	return out, nil
}

// nearby looks in memory. ok tells that the shared store need not be asked; what is found without
// it may serve as stale if that fails.
func (sp *space) nearby(key string, now int64) (l looked, ok bool) {
	if sp.near == nil {
		return l, false
	}
	e := sp.near.get(sp.nearKey(key))
	if e == nil || now >= e.env.end || !e.standing() {
		return l, false
	}
	l = looked{env: e.env, version: e.version, found: Near}
	switch {
	case e.only:
		ok = true
	case sp.conf.Coherence == block.CoherenceLocal:
		ok = now < e.env.fresh
	default:
		ok = now < e.believe && e.epoch != 0 && e.epoch == sp.c.epoch.Load()
	}
	return l, ok
}

// ask looks in the shared store for one key. If that fails, doubted, which memory has, serves as
// stale where that is allowed.
func (sp *space) ask(ctx context.Context, key string, doubted looked, staleOK bool) (looked, error) {
	got, err := sp.look(ctx, []string{key})
	if err == nil {
		return got[0], nil
	}
	if doubted.env == nil || !staleOK || ctx.Err() != nil || fault.Of(err) == fault.Denied {
		return looked{}, err
	}
	env := *doubted.env
	env.fresh = min(env.fresh, nowMS()) // it may be another by now
	doubted.env = &env
	return doubted, nil
}

// look reads keys from the shared store, with the numbers of tags that are needed to judge them,
// and keeps what is good in memory.
func (sp *space) look(ctx context.Context, keys []string) ([]looked, error) {
	now := nowMS()
	epoch := sp.c.epoch.Load()
	names := make([]string, 0, len(keys)+1)
	out := make([]looked, len(keys))
	for i, key := range keys {
		names = append(names, sp.nearKey(key))
		out[i].moved = sp.near.moved(names[i])
	}
	j := judge{sp: sp, now: now, epoch: epoch}
	genAt := sp.gen.moves.Load()
	if k, ok := sp.current(sp.gen, now); ok {
		j.gen = number{k.id, genAt}
	} else {
		names = append(names, sp.stampKey(""))
	}
	raw, err := sp.c.load(ctx, sp, names)
	if err != nil {
		return nil, err
	}
	if len(raw) > len(keys) {
		j.gen = number{sp.learn(sp.gen, raw[len(keys)].Value, genAt, epoch, now).id, genAt}
	}
	envs := make([]*envelope, len(keys))
	for i := range keys {
		if raw[i].Version == "" {
			continue
		}
		out[i].raw = raw[i].Version
		env, err := decode(raw[i].Value)
		if err != nil {
			continue // somebody else's bytes; a write goes over them
		}
		if env.lease {
			if now < env.until {
				out[i].lease = env.until
			}
			if env, err = decode(env.prior); err != nil || env.lease {
				continue
			}
		}
		if now >= env.end {
			continue
		}
		envs[i] = env
		j.want(env)
	}
	if err := j.ask(ctx); err != nil {
		return nil, err
	}
	for i, key := range keys {
		marks, good := j.good(envs[i])
		if !good {
			continue
		}
		out[i].env, out[i].version, out[i].found = envs[i], out[i].raw, Shared
		if out[i].lease == 0 {
			sp.keep(key, envs[i], out[i].raw, marks, epoch, out[i].moved)
		}
	}
	return out, nil
}

// keep puts an entry into memory, if the namespace and the entry allow it. marks, epoch and moved
// are from before it was read or written.
func (sp *space) keep(key string, env *envelope, version string, marks []mark, epoch, moved uint64) {
	if sp.near == nil || env.shared || (sp.conf.Coherence == block.CoherenceInvalidate && epoch == 0) {
		return
	}
	e := &nearEntry{env: env, version: version, believe: nowMS() + sp.conf.MaxAge.Milliseconds(), epoch: epoch, marks: marks}
	sp.near.put(sp.nearKey(key), e, moved)
}

// judge knows the numbers of tags during one look.
type judge struct {
	sp    *space
	now   int64
	epoch uint64
	gen   number // of the namespace
	tags  map[string]*tagNow
}

// number is a tag's, and where its cell stood before it was read.
type number struct{ id, at uint64 }

type tagNow struct {
	cell *cell
	id   uint64
	at   uint64 // where the cell stood before the number was read
	ask  bool
}

// want notes the tags of an entry.
func (j *judge) want(env *envelope) {
	for _, st := range env.stamps {
		if st.tag == "" || j.tags[st.tag] != nil {
			continue
		}
		t := &tagNow{cell: j.sp.cell(st.tag)}
		t.at = t.cell.moves.Load()
		if k, ok := j.sp.current(t.cell, j.now); ok {
			t.id = k.id
		} else {
			t.ask = true
		}
		if j.tags == nil {
			j.tags = map[string]*tagNow{}
		}
		j.tags[st.tag] = t
	}
}

// ask reads the numbers that are not known.
func (j *judge) ask(ctx context.Context) error {
	var names []string
	var which []*tagNow
	for tag, t := range j.tags {
		if t.ask {
			names = append(names, j.sp.stampKey(tag))
			which = append(which, t)
		}
	}
	if len(names) == 0 {
		return nil
	}
	raw, err := j.sp.c.load(ctx, j.sp, names)
	if err != nil {
		return err
	}
	for i, t := range which {
		t.id = j.sp.learn(t.cell, raw[i].Value, t.at, j.epoch, j.now).id
	}
	return nil
}

// good tells whether all tags have the numbers the entry was written under.
func (j *judge) good(env *envelope) ([]mark, bool) {
	if env == nil || len(env.stamps) == 0 {
		return nil, false
	}
	marks := make([]mark, 0, len(env.stamps))
	for _, st := range env.stamps {
		c, id, at := j.sp.gen, j.gen.id, j.gen.at
		if st.tag != "" {
			t := j.tags[st.tag]
			c, id, at = t.cell, t.id, t.at
		}
		if id == 0 || id != st.id {
			return nil, false
		}
		marks = append(marks, mark{cell: c, at: at})
	}
	return marks, true
}

// slide makes a sliding entry that was read fresh for another ttl, in the background, when a tenth
// of its ttl has passed.
func (sp *space) slide(l *looked, key string, now int64) {
	if l.env == nil || !l.env.sliding || now >= l.env.fresh || l.env.fresh-now > l.env.ttl-l.env.ttl/10 {
		return
	}
	select {
	case sp.c.touching <- struct{}{}:
	default:
		return // the next read may
	}
	key = string([]byte(key)) // callers' keys may be parts of their buffers
	ttl := time.Duration(l.env.ttl) * time.Millisecond
	began := sp.c.s.background(func() {
		defer func() { <-sp.c.touching }()
		ctx, cancel := context.WithTimeout(sp.c.life, 5*time.Second)
		defer cancel()
		_, _ = sp.touch(ctx, key, ttl) // it ends earlier than it might
	})
	if !began {
		<-sp.c.touching
	}
}
