package dns

import (
	"sync"
	"time"
)

const (
	// maxTTL bounds how long a wrong or forgotten answer can live.
	maxTTL = 5 * time.Minute
	// negativeTTL bounds how long "no such name" is believed: an app that starts shall be
	// found soon, whatever the zone says.
	negativeTTL = 5 * time.Second
	// maxKept bounds the answers kept: names come from callers.
	maxKept = 1024
)

// cache keeps answers until their TTL ends. It is safe for concurrent use.
type cache struct {
	mu   sync.Mutex
	kept map[string]keptAnswer // guarded by mu
}

type keptAnswer struct {
	answer
	ends time.Time
}

func newCache() *cache { return &cache{kept: map[string]keptAnswer{}} }

func (c *cache) get(key string, now time.Time) (answer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.kept[key]
	if !ok || !now.Before(a.ends) {
		return answer{}, false
	}
	return a.answer, true
}

func (c *cache) put(key string, a answer, now time.Time) {
	ttl := min(a.ttl, maxTTL)
	if len(a.places) == 0 {
		ttl = min(ttl, negativeTTL)
	}
	if ttl <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.kept) >= maxKept {
		c.shrinkLocked(now)
	}
	c.kept[key] = keptAnswer{a, now.Add(ttl)}
}

// shrinkLocked drops what has ended and, if that is too little, something. mu is held.
func (c *cache) shrinkLocked(now time.Time) {
	for key, a := range c.kept {
		if !now.Before(a.ends) {
			delete(c.kept, key)
		}
	}
	for key := range c.kept {
		if len(c.kept) < maxKept {
			return
		}
		delete(c.kept, key)
	}
}
