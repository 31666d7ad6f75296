package breaker

import "github.com/mecha-project/mecha/runtime/policy/limit/lru"

// DefaultGroup is how many breakers a Group keeps unless told otherwise: Dapr's
// circuitBreakerCacheSize for apps. For actors, Dapr keeps 5000.
const DefaultGroup = 100

// Group keeps one breaker per key, for instance per method of an app. It is safe for
// concurrent use.
//
// It keeps a bounded number and forgets those used longest ago. A forgotten key that comes
// back gets a new breaker, closed; calls under way report to the old one, whose state nobody
// asks for any more.
type Group struct {
	breakers *lru.Map[*Breaker]
}

// NewGroup keeps at most size breakers; 0 or less means DefaultGroup. It calls fresh for the
// breaker of a key it does not know; fresh must not use the group.
func NewGroup(size int, fresh func(key string) *Breaker) *Group {
	if size <= 0 {
		size = DefaultGroup
	}
	return &Group{lru.New(size, func(key string, b **Breaker) { *b = fresh(key) })}
}

// For is the breaker of key. It allocates only for a key it does not know.
func (g *Group) For(key string) *Breaker { return *g.breakers.For(key) }

// Len is how many breakers are kept.
func (g *Group) Len() int { return g.breakers.Len() }

// Each calls f for every breaker that is kept, with no lock held, to show or reconfigure them.
// It is not a use of them.
func (g *Group) Each(f func(key string, b *Breaker)) {
	for key, b := range g.breakers.All() {
		f(key, *b)
	}
}
