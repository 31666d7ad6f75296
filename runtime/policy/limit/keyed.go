package limit

import (
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/runtime/policy/limit/lru"
)

// DefaultKeys is how many keys a Keyed knows unless told otherwise. A key takes about 150
// bytes and its own length.
const DefaultKeys = 10_000

// Keyed is one token bucket per key, all of one rate: a limit per caller or per header.
//
// It knows a bounded number of keys and forgets those used longest ago. A forgotten key that
// comes back starts with a full bucket, so whoever can invent more keys than the bound
// escapes the limit: limit such callers by what they cannot choose.
type Keyed struct {
	pace    atomic.Pointer[pace]
	buckets *lru.Map[atomic.Int64] // for each key, when its bucket is full again
}

// NewKeyed knows at most keys keys; 0 or less means DefaultKeys. An invalid rate is treated as
// by NewLimiter.
func NewKeyed(r Rate, keys int) *Keyed {
	if keys <= 0 {
		keys = DefaultKeys
	}
	k := &Keyed{buckets: lru.New[atomic.Int64](keys, nil)}
	k.pace.Store(newPace(r))
	return k
}

// Allow takes a token of key's bucket; see Limiter.Allow. It allocates only for a key it does
// not know.
func (k *Keyed) Allow(key string, now int64) (ok bool, wait time.Duration) {
	return k.pace.Load().take(k.buckets.For(key), now)
}

// Len is how many keys are known.
func (k *Keyed) Len() int { return k.buckets.Len() }

// SetRate changes the rate of all keys, each as Limiter.SetRate does.
func (k *Keyed) SetRate(r Rate) {
	to, now := newPace(r), Nanotime()
	from := k.pace.Swap(to)
	for _, spent := range k.buckets.All() {
		from.convert(to, spent, now)
	}
}
