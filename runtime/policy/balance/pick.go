package balance

import (
	"math"
	"math/bits"
)

// draws is how often a policy draws again when what it drew is excluded. With half of the hosts
// excluded one in 65 000 picks gives up and looks through all hosts instead.
const draws = 16

func (s *snapshot) pick(r *Request) (*Host, bool) {
	if r.Sticky != "" {
		if h, ok := s.sticky(r); ok {
			return h, true
		}
	}
	g := s.route(r)
	if g == nil {
		return nil, false
	}
	h := s.choose(g, r)
	if h == nil {
		h = s.rest(g, r)
	}
	return h, h != nil
}

func (s *snapshot) sticky(r *Request) (*Host, bool) {
	i, ok := s.list.index[r.Sticky]
	if !ok || !s.usable[i] || r.excludes(s.list.hosts[i]) {
		return nil, false
	}
	return s.list.hosts[i], true
}

// route draws a group by share. A hash draws for itself: when shares move, the keys at the
// edge between two groups move, and no others.
func (s *snapshot) route(r *Request) *group {
	switch len(s.routes) {
	case 0:
		return nil
	case 1:
		return s.routes[0].group
	}
	var at uint64
	if r.Hashed && s.cfg.Policy.hashes() {
		at = mix(r.Hash^saltRoute) >> 1
	} else {
		at = s.env.random() >> 1
	}
	i := 0
	for at >= s.routes[i].limit {
		i++
	}
	return s.routes[i].group
}

// choose applies the policy. It gives nil when it met excluded hosts only.
func (s *snapshot) choose(g *group, r *Request) *Host {
	if len(g.slots) == 1 {
		if h := g.slots[0].host; !r.excludes(h) {
			return h
		}
		return nil
	}
	switch s.cfg.Policy {
	case RoundRobin:
		return s.roundRobin(g, r)
	case LeastRequest:
		return s.leastRequest(g, r)
	case PeakEWMA:
		return s.peakEWMA(g, r)
	case RingHash, Maglev:
		if r.Hashed {
			return g.lookup(r)
		}
	}
	if i := s.draw(g, r, 0); i >= 0 {
		return g.slots[i].host
	}
	return nil
}

// roundRobin takes the next turn. Who is excluded, or not yet warm, loses the turn; the next
// call goes on after it, so that no neighbour inherits more than others.
func (s *snapshot) roundRobin(g *group, r *Request) *Host {
	warming := g.warming(s.env)
	n := uint64(len(g.slots))
	if g.order != nil {
		n = uint64(len(g.order))
	}
	for range draws {
		i := g.turn.Add(1) % n
		if g.order != nil {
			i = uint64(g.order[i])
		}
		sl := &g.slots[i]
		if warming != 0 && !s.ready(g, sl, warming) || r.excludes(sl.host) {
			continue
		}
		return sl.host
	}
	return nil
}

// leastRequest draws by weight and lets a host with fewer calls for its weight win. Equals go
// to the one drawn first: among idle hosts that is the weighted draw itself.
func (s *snapshot) leastRequest(g *group, r *Request) *Host {
	now := g.warming(s.env)
	best := s.draw(g, r, now)
	if best < 0 {
		return nil
	}
	n := len(g.slots)
	other := best
	for range min(s.cfg.Choices, n) - 1 {
		if s.cfg.Choices < n {
			other = s.drawOther(g, best)
		} else if other++; other == n {
			other = 0
		}
		if !r.excludes(g.slots[other].host) && s.load(g, other, now) < s.load(g, best, now) {
			best = other
		}
	}
	return g.slots[best].host
}

// load is the calls in flight by weight.
func (s *snapshot) load(g *group, i int, now int64) float64 {
	sl := &g.slots[i]
	w := sl.weight
	if now != 0 {
		w *= s.warmth(sl.since, now)
	}
	return float64(max(sl.host.inflight.Load(), 0)) / w
}

func (s *snapshot) peakEWMA(g *group, r *Request) *Host {
	first := s.draw(g, r, 0)
	if first < 0 {
		return nil
	}
	a := &g.slots[first]
	b := &g.slots[s.drawOther(g, first)]
	if r.excludes(b.host) {
		return a.host
	}
	now, decay := tickOf(s.env.now()), float64(s.env.decay.Load())
	typical, _ := s.env.typical.load()
	if cost(b.host, b.scale, typical, now, decay) < cost(a.host, a.scale, typical, now, decay) {
		return b.host
	}
	return a.host
}

// lookup walks the table from the hash's place to the first host that may be used.
func (g *group) lookup(r *Request) *Host {
	t := g.table
	i := t.place(mix(r.Hash))
	for range min(len(t.cells), walk) {
		if m := t.cells[i]; g.up[m] && !r.excludes(t.hosts[m]) {
			return t.hosts[m]
		}
		if i++; i == len(t.cells) {
			i = 0
		}
	}
	return nil
}

// walk bounds the steps through a table most of whose hosts are out. Past it the choice is as
// stable, and costs a look at every host.
const walk = 512

// draw picks a slot at random by weight, passing over excluded hosts; -1 when it met no other.
// With now set, hosts in slow start are drawn as rarely as their warmth says.
func (s *snapshot) draw(g *group, r *Request, now int64) int {
	for range draws {
		i := g.alias.draw(s.env.random(), len(g.slots))
		sl := &g.slots[i]
		if now != 0 && !s.ready(g, sl, now) || r.excludes(sl.host) {
			continue
		}
		return i
	}
	return -1
}

// drawOther picks a slot other than i, by weight as far as a few draws go: with one host far
// heavier than the rest, chance would not leave it soon.
func (s *snapshot) drawOther(g *group, i int) int {
	n := len(g.slots)
	if g.alias != nil {
		for range 3 {
			if j := g.alias.draw(s.env.random(), n); j != i {
				return j
			}
		}
	}
	j := i + 1 + below64(s.env.random(), n-1)
	if j >= n {
		j -= n
	}
	return j
}

// below64 maps a random number to 0…n-1.
func below64(u uint64, n int) int {
	hi, _ := bits.Mul64(u, uint64(n))
	return int(hi)
}

// warming gives the time while hosts of the group are in slow start, else 0. Once that is over
// it costs no look at the clock.
func (g *group) warming(e *env) int64 {
	until := g.until.Load()
	if until == 0 {
		return 0
	}
	now := e.now()
	if now >= until {
		g.until.Store(0)
		return 0
	}
	return max(now, 1)
}

// leastWarm is the part of its weight a host starts with. The figure is the xDS default.
const leastWarm = 0.1

// warmth is the part of its weight a host that came in at since has now.
func (s *snapshot) warmth(since, now int64) float64 {
	return min(1, max(leastWarm, float64(now-since)/float64(s.cfg.SlowStart)))
}

// ready draws whether a host takes its turn in slow start. The warmest host always does: when
// all are new, only how much newer one is than the other matters.
func (s *snapshot) ready(g *group, sl *slot, now int64) bool {
	w := s.warmth(sl.since, now)
	if w == 1 {
		return true
	}
	return float64(s.env.random()>>11)/(1<<53) < w/s.warmth(g.oldest, now)
}

// rest finds a host when the policy's draws came to nothing: first among the hosts of the
// group, then in the other groups, most preferred first. Only when all have been tried does
// one get the call a second time.
func (s *snapshot) rest(first *group, r *Request) *Host {
	for _, again := range [...]bool{false, true} {
		if again {
			if len(r.Tried) == 0 {
				break
			}
			r.Tried = nil
		}
		if h := s.scan(first, r); h != nil {
			return h
		}
		for _, g := range s.groups {
			if g == first {
				continue
			}
			if h := s.scan(g, r); h != nil {
				return h
			}
		}
	}
	return nil
}

// scan looks at every host of a group and takes the best by score; nil: all are excluded. The
// score follows the policy: cost or load where that is what it compares, else a weighted draw,
// by the hash if there is one.
func (s *snapshot) scan(g *group, r *Request) *Host {
	var best *Host
	least := math.Inf(1)
	for i := range g.slots {
		h := g.slots[i].host
		if r.excludes(h) {
			continue
		}
		if score := s.score(g, i, r); best == nil || score < least {
			best, least = h, score
		}
	}
	return best
}

func (s *snapshot) score(g *group, i int, r *Request) float64 {
	sl := &g.slots[i]
	switch s.cfg.Policy {
	case LeastRequest:
		return s.load(g, i, g.warming(s.env))
	case PeakEWMA:
		typical, _ := s.env.typical.load()
		return cost(sl.host, sl.scale, typical, tickOf(s.env.now()), float64(s.env.decay.Load()))
	}
	// The least of exponential variables with the weights as rates is a draw by weight. With
	// the hash as its chance it is rendezvous hashing: stable, and independent of the list.
	u := s.env.random()
	if r.Hashed && s.cfg.Policy.hashes() {
		u = mix(mix(r.Hash) ^ sl.host.hash)
	}
	return -math.Log((float64(u>>11)+1)/(1<<53)) / sl.weight
}
