// Package lru is a map of bounded size that forgets the keys nobody used for longest.
//
// Policy keeps one small thing per key (a limiter per caller, a breaker per method), and keys
// come from outside: without a bound, a caller who invents keys fills the memory. The package
// knows nothing of what it keeps. Start reading at Map.For.
package lru

import (
	"hash/maphash"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
)

// manyKeys is the bound from which a map is cut into shards. Below it one lock serves all
// keys and the order of use is exact, which matters when few keys fit.
const manyKeys = 256

// shards is how many locks a large map has.
const shards = 16

// Map makes a value for each key it is asked for and keeps a bounded number of them. It is safe
// for concurrent use. The zero value is not usable: see New.
type Map[V any] struct {
	max   int64
	fill  func(key string, value *V)
	seed  maphash.Seed
	parts []shard[V]
	_     [128]byte
	kept  atomic.Int64
	_     [120]byte
}

type shard[V any] struct {
	mu    sync.Mutex // guards what follows and the links of the entries
	byKey map[string]*entry[V]
	newer *entry[V] // used last
	older *entry[V] // to be forgotten next
	_     [96]byte  // shards live side by side: keep their locks apart
}

type entry[V any] struct {
	key          string
	newer, older *entry[V]
	value        V
}

// New is a map of at most bound keys; a bound below 1 counts as 1. For a key
// it does not know it calls fill, with the lock of the key held, to set the value up; fill must
// not use the map, and may be nil if a zero value will do.
func New[V any](bound int, fill func(key string, value *V)) *Map[V] {
	n := 1
	if bound >= manyKeys {
		n = shards
	}
	m := &Map[V]{max: int64(max(bound, 1)), fill: fill, seed: maphash.MakeSeed(), parts: make([]shard[V], n)}
	for i := range m.parts {
		m.parts[i].byKey = make(map[string]*entry[V])
	}
	return m
}

// For is the value of key, made if the map does not know it. When the map is full, the key
// used longest ago is forgotten for it: exactly in a map of fewer than 256 keys, otherwise the
// oldest of the sixteenth of the keys it is kept with. The pointer stays good after its key
// was forgotten, but the next For of that key gives another one.
//
// Nothing is allocated for a known key.
func (m *Map[V]) For(key string) *V {
	i := 0
	if len(m.parts) > 1 {
		i = int(maphash.String(m.seed, key) % shards)
	}
	s := &m.parts[i]
	s.mu.Lock()
	if e := s.byKey[key]; e != nil {
		if e != s.newer {
			s.unlink(e)
			s.link(e)
		}
		s.mu.Unlock()
		return &e.value
	}
	e, over := m.insert(s, key)
	if over {
		m.shrink(i)
	}
	return &e.value
}

// insert adds a key to s, whose lock the caller holds and insert releases. In a full map a
// neighbour of the key makes room; over tells that it has none.
func (m *Map[V]) insert(s *shard[V], key string) (e *entry[V], over bool) {
	defer s.mu.Unlock() // even if fill panics
	// The key may be a piece of a request's buffer, which we must not keep alive.
	key = strings.Clone(key)
	e = &entry[V]{key: key}
	if m.fill != nil {
		m.fill(key, &e.value)
	}
	over = m.kept.Add(1) > m.max
	if over && s.older != nil {
		m.forget(s)
		over = false
	}
	s.byKey[key] = e
	s.link(e)
	return e, over
}

// shrink forgets one key of another shard than i, or of i if the others are empty. It holds
// one lock at a time, so keys may move past it while it looks: it goes round until it met one.
// The map is over its bound until then, so there is one to meet.
func (m *Map[V]) shrink(i int) {
	for n := 0; m.kept.Load() > m.max; n++ {
		s := &m.parts[(i+1+n)%len(m.parts)]
		s.mu.Lock()
		found := s.older != nil
		if found {
			m.forget(s)
		}
		s.mu.Unlock()
		if found {
			return
		}
	}
}

// forget drops the oldest key of s, whose lock is held.
func (m *Map[V]) forget(s *shard[V]) {
	e := s.older
	s.unlink(e)
	delete(s.byKey, e.key)
	m.kept.Add(-1)
}

// Len is how many keys are known. While several new keys arrive at once in a full map it may
// be over the bound for a moment, by at most their number.
func (m *Map[V]) Len() int { return int(m.kept.Load()) }

// All goes through the keys known when their shard is reached, newest first within a shard.
// No lock is held during the caller's turn. It is not a use of the keys.
func (m *Map[V]) All() iter.Seq2[string, *V] {
	return func(yield func(string, *V) bool) {
		for i := range m.parts {
			for _, e := range m.parts[i].entries() {
				if !yield(e.key, &e.value) {
					return
				}
			}
		}
	}
}

func (s *shard[V]) entries() []*entry[V] {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*entry[V], 0, len(s.byKey))
	for e := s.newer; e != nil; e = e.older {
		all = append(all, e)
	}
	return all
}

func (s *shard[V]) link(e *entry[V]) {
	e.newer, e.older = nil, s.newer
	if s.newer != nil {
		s.newer.newer = e
	} else {
		s.older = e
	}
	s.newer = e
}

func (s *shard[V]) unlink(e *entry[V]) {
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		s.newer = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		s.older = e.newer
	}
	e.newer, e.older = nil, nil
}
