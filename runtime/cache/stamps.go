package cache

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// A tag's number is an entry of the shared store like others: <namespace>||#||<tag>, its value the
// number and the time it ends. It is made at random by the first who writes an entry with the tag,
// and dropped to invalidate: every entry that was written under it is then good no more, whether
// the tag has no number or a new one. So a store that loses numbers loses entries, and never
// brings one back.

// minStampTTL is how long a number lives at least.
const minStampTTL = 24 * time.Hour

// maxCells bounds the tags whose numbers are remembered here. One that is forgotten takes the near
// entries that rely on it with it.
const maxCells = 100_000

// cell is what this sidecar knows of a tag's number.
type cell struct {
	moves atomic.Uint64 // counts invalidations, and doubts
	state atomic.Pointer[known]
}

// known is a number as it was read.
type known struct {
	id    uint64
	ends  int64  // ms
	epoch uint64 // of the feed when it was read
	until int64  // ms: believed until then
}

// doubt makes near entries that rely on the cell be asked for again.
func (c *cell) doubt() {
	c.state.Store(nil)
	c.moves.Add(1)
}

func newCells() *otter.Cache[string, *cell] {
	return otter.Must(&otter.Options[string, *cell]{MaximumSize: maxCells,
		OnAtomicDeletion: func(e otter.DeletionEvent[string, *cell]) { e.Value.doubt() }})
}

// cell finds the cell of a tag; the empty tag is the namespace's own.
func (sp *space) cell(tag string) *cell {
	if tag == "" {
		return sp.gen
	}
	key := sp.stampKey(tag)
	c, ok := sp.c.cells.GetIfPresent(key)
	if !ok {
		c, _ = sp.c.cells.SetIfAbsent(key, new(cell))
	}
	return c
}

func (sp *space) stampKey(tag string) string { return sp.name + separator + "#" + separator + tag }

// current is a tag's number if it is known well enough to be believed now.
func (sp *space) current(c *cell, now int64) (known, bool) {
	k := c.state.Load()
	if k == nil || now >= k.until {
		return known{}, false
	}
	switch sp.conf.Coherence {
	case block.CoherenceInvalidate:
		return *k, k.epoch != 0 && k.epoch == sp.c.epoch.Load()
	case block.CoherenceLocal:
		return *k, true
	}
	return known{}, false
}

// learn takes up a number that was read from the shared store; 0 when there was none. moved and
// epoch are where the cell and the feed stood before.
func (sp *space) learn(c *cell, value []byte, moved, epoch uint64, now int64) known {
	k := known{epoch: epoch, until: now + sp.conf.MaxAge.Milliseconds()}
	if len(value) == 16 {
		k.id, k.ends = binary.BigEndian.Uint64(value), int64(binary.BigEndian.Uint64(value[8:]))
	}
	if k.id == 0 || c.moves.Load() != moved {
		return k // there is nothing to believe, or it may be old news
	}
	if old := c.state.Load(); old != nil && old.id != k.id {
		c.moves.Add(1) // an invalidation nobody told us of
		moved++
	}
	c.state.Store(&k)
	if c.moves.Load() != moved {
		c.state.CompareAndSwap(&k, nil)
	}
	return k
}

func stampValue(id uint64, ends int64) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16), id)
	return binary.BigEndian.AppendUint64(b, uint64(ends))
}

// stamps gives the numbers of the namespace and of tags, to write an entry that ends in ttl. What
// has none yet gets one.
func (sp *space) stamps(ctx context.Context, tags []string, ttl time.Duration) ([]stamp, error) {
	out := make([]stamp, 0, 1+len(tags))
	out = append(out, stamp{})
	for _, t := range tags {
		out = append(out, stamp{tag: t})
	}
	now := nowMS()
	var ask []int
	for i := range out {
		if k, ok := sp.current(sp.cell(out[i].tag), now); ok && k.ends >= now+ttl.Milliseconds() {
			out[i].id = k.id
		} else {
			ask = append(ask, i)
		}
	}
	if len(ask) == 0 {
		return out, nil
	}
	keys := make([]string, len(ask))
	before := make([]uint64, len(ask))
	for n, i := range ask {
		keys[n] = sp.stampKey(out[i].tag)
		before[n] = sp.cell(out[i].tag).moves.Load()
	}
	epoch := sp.c.epoch.Load()
	raw, err := sp.c.load(ctx, sp, keys)
	if err != nil {
		return nil, err
	}
	for n, i := range ask {
		c := sp.cell(out[i].tag)
		k := sp.learn(c, raw[n].Value, before[n], epoch, now)
		if k.id != 0 && k.ends >= now+ttl.Milliseconds() {
			out[i].id = k.id
			continue
		}
		if out[i].id, err = sp.number(ctx, c, keys[n], raw[n], ttl); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// number makes a tag's number, or makes the one it has live longer. now is what the store has.
func (sp *space) number(ctx context.Context, c *cell, key string, now block.CacheEntry, ttl time.Duration) (uint64, error) {
	for range 8 {
		lives := max(2*ttl, minStampTTL)
		id := rand.Uint64() | 1 // never 0
		if len(now.Value) == 16 {
			id = binary.BigEndian.Uint64(now.Value)
		}
		epoch, before := sp.c.epoch.Load(), c.moves.Load()
		value := stampValue(id, time.Now().Add(lives).UnixMilli())
		_, done, err := sp.c.swap(ctx, sp, block.CacheWrite{Key: key, Value: value, TTL: lives + time.Minute}, now.Version)
		if err != nil {
			return 0, err
		}
		if done {
			sp.learn(c, value, before, epoch, nowMS())
			return id, nil
		}
		raw, err := sp.c.load(ctx, sp, []string{key})
		if err != nil {
			return 0, err
		}
		now = raw[0]
	}
	return 0, fault.New("cache.stamps", fault.Unavailable, "cache %s: too many writers change the same tag at once; try again", sp.c.name)
}
