package balance

import (
	"math"
	"sync/atomic"
)

// snapshot is everything a pick reads: immutable, save for counters that carry no meaning from
// one snapshot to the next. A pick is as good as the health when it loaded the snapshot.
type snapshot struct {
	env  *env
	cfg  Config // resolved
	list *roster

	usable []bool   // by position in list: healthy, or in panic
	routes []route  // groups that get calls, with cumulative shares
	groups []*group // groups with usable hosts, most preferred first, the ones in panic last
	tables []*table // kept for the next snapshot
}

// route is a group and the upper end of its share on a scale of 2^63.
type route struct {
	limit uint64
	group *group
}

const (
	full = 1 << 63
	// leastShare is below what matters and above what rounding leaves behind.
	leastShare = 1e-9
)

// group is the usable hosts of one part, and what the policy needs to choose among them.
type group struct {
	slots []slot
	panic bool
	alias alias    // draws by weight
	order []uint32 // round robin; nil: as the slots stand
	table *table   // hash policies; nil: others
	up    []bool   // which of table.hosts are usable

	until  atomic.Int64 // when the last host has warmed up; 0: none is warming
	oldest int64        // since when the warmest host is in

	_    [cacheLine]byte
	turn atomic.Uint64 // round robin
	_    [cacheLine]byte
}

// slot is a host with the figures a comparison needs.
type slot struct {
	host   *Host
	weight float64
	scale  float64 // average weight by its own
	since  int64
}

func newSnapshot(env *env, cfg Config, list *roster, old *snapshot) *snapshot {
	s := &snapshot{env: env, cfg: cfg, list: list, usable: make([]bool, len(list.hosts))}
	var panicking []*group
	cumulative := 0.0
	for _, p := range parts(cfg, list.hosts) {
		g := s.group(p, old)
		if len(g.slots) == 0 {
			continue
		}
		if p.panic {
			panicking = append(panicking, g)
		} else {
			s.groups = append(s.groups, g)
		}
		if p.share > leastShare {
			cumulative += p.share
			s.routes = append(s.routes, route{limit: uint64(min(cumulative, 1) * full), group: g})
		}
	}
	s.groups = append(s.groups, panicking...)
	if n := len(s.routes); n > 0 {
		s.routes[n-1].limit = math.MaxUint64
	}
	return s
}

func (s *snapshot) group(p part, old *snapshot) *group {
	g := &group{panic: p.panic}
	total := 0.0
	for _, h := range p.hosts {
		if !p.panic && !h.Healthy() {
			continue
		}
		s.usable[s.list.index[h.id]] = true
		w := float64(h.weight())
		total += w
		g.slots = append(g.slots, slot{host: h, weight: w, since: h.since})
	}
	if len(g.slots) == 0 {
		return g
	}
	for i := range g.slots {
		g.slots[i].scale = total / float64(len(g.slots)) / g.slots[i].weight
	}
	g.alias = newAlias(g.slots)
	switch s.cfg.Policy {
	case RoundRobin:
		g.order = interleave(g.slots)
		g.turn.Store(s.env.random()) // callers that start together must not march in step
		g.warmUp(s.cfg, s.env.now())
	case LeastRequest:
		g.warmUp(s.cfg, s.env.now())
	case RingHash, Maglev:
		s.hash(g, p.hosts, old)
	}
	return g
}

// hash gives the group its table. Tables hold all hosts of the part, healthy or not, so that
// a host's health moves its own keys only; they are costly and stay while the hosts stay.
func (s *snapshot) hash(g *group, hosts []*Host, old *snapshot) {
	want := tableKey(s.cfg, hosts)
	if old != nil {
		for _, t := range old.tables {
			if t.same(want) {
				g.table = t
				break
			}
		}
	}
	if g.table == nil {
		g.table = want.fill()
	}
	s.tables = append(s.tables, g.table)
	g.up = make([]bool, len(g.table.hosts))
	for i, h := range g.table.hosts {
		g.up[i] = g.panic || h.Healthy()
	}
}

// warmUp notes whether hosts of the group are in slow start.
func (g *group) warmUp(cfg Config, now int64) {
	if cfg.SlowStart == 0 {
		return
	}
	newest := g.slots[0].since
	g.oldest = newest
	for _, sl := range g.slots[1:] {
		newest = max(newest, sl.since)
		g.oldest = min(g.oldest, sl.since)
	}
	// Hosts that all came together are equally new, and equal they stay.
	if until := newest + int64(cfg.SlowStart); newest != g.oldest && until > now {
		g.until.Store(until)
	}
}
