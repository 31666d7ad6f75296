package cache

import (
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// counts are a namespace's, since the sidecar started.
type counts struct {
	near, shared, miss, stale, absent, loads, coalesced, failures atomic.Uint64

	loadTime atomic.Int64 // ns
}

// Stats counts what this sidecar's part of a cache did.
type Stats struct {
	NearHits, SharedHits, Misses, Stale, Absent uint64
	Loads, Coalesced, LoadFailures              uint64
	Evictions, NearEntries, NearBytes           uint64
	// Staleness is the longest time, now, that a near entry may be behind the shared store.
	Staleness time.Duration
	// LoadTime is what loads that were answered took together, from lease to Fill.
	LoadTime time.Duration
}

// count notes how a read ended.
func (sp *space) count(e *Entry, start time.Time, op string) {
	result := "miss"
	switch {
	case e.Status == Miss:
		sp.stats.miss.Add(1)
	case e.Stale:
		result = "stale"
		sp.stats.stale.Add(1)
	case e.Status == Absent:
		result = "absent"
		sp.stats.absent.Add(1)
	case e.Found == Near:
		result = "near_hit"
		sp.stats.near.Add(1)
	default:
		result = "shared_hit"
		sp.stats.shared.Add(1)
	}
	sp.record(op, result, start)
}

// Stats counts a namespace, or with all a whole cache. What is in the near cache that namespaces
// share counts for each of them.
func (s *Service) Stats(cacheName, namespace string, all bool) (Stats, error) {
	c, err := s.open(cacheName)
	if err != nil {
		return Stats{}, err
	}
	var out Stats
	sharing := all
	for name, sp := range *c.spaces.Load() {
		if !all && name != namespace {
			continue
		}
		sp.addTo(&out)
		if sp.own {
			sp.near.addTo(&out)
		} else if sp.near != nil {
			sharing = true
		}
	}
	if sharing {
		c.near.addTo(&out)
	}
	return out, nil
}

func (sp *space) addTo(s *Stats) {
	n := &sp.stats
	s.NearHits += n.near.Load()
	s.SharedHits += n.shared.Load()
	s.Misses += n.miss.Load()
	s.Stale += n.stale.Load()
	s.Absent += n.absent.Load()
	s.Loads += n.loads.Load()
	s.Coalesced += n.coalesced.Load()
	s.LoadFailures += n.failures.Load()
	s.LoadTime += time.Duration(n.loadTime.Load())
	if sp.near == nil {
		return
	}
	switch sp.conf.Coherence {
	case block.CoherenceInvalidate:
		s.Staleness = max(s.Staleness, sp.conf.MaxAge)
	case block.CoherenceLocal:
		s.Staleness = max(s.Staleness, sp.conf.DefaultTTL)
	}
}

func (n *near) addTo(s *Stats) {
	if n == nil {
		return
	}
	n.entries.CleanUp() // what was written last may not have made its room yet
	s.Evictions += n.evicted.Load()
	s.NearEntries += uint64(max(n.entries.EstimatedSize(), 0))
	s.NearBytes += n.entries.WeightedSize()
}
