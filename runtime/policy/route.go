package policy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy/breaker"
)

// routing builds the step that chooses where an attempt goes.
func routing(b *builder) (does, field string) {
	if len(b.r.Route) == 0 {
		return "", ""
	}
	s := &route{data: holdsData(b.t.Kind), refuse: b.rejection("route", b.r.source("route")), target: b.t.Name}
	s.writeFailover = b.r.WriteFailover != nil && *b.r.WriteFailover
	s.keyless = b.t.Kind == call.Publish
	s.readOnly = s.data && b.r.Split != nil && b.r.Split.ReadOnly
	var words []string
	for i := range b.r.Route {
		d := &b.r.Route[i]
		w := way{to: d.To, weight: 1, priority: d.Priority}
		if w.to == "" {
			w.to = b.t.Name
		}
		if d.Weight != nil {
			w.weight = float64(*d.Weight)
		}
		if d.Subset != "" {
			w.subset = b.r.Subsets[d.Subset]
		}
		if w.weight <= 0 {
			continue
		}
		w.name = w.to + "/" + d.Subset
		w.seed = hashString(w.name)
		w.breaker = b.breakerOf(w.to)
		w.state = b.destState(w.to)
		s.ways = append(s.ways, w)
		words = append(words, fmt.Sprintf("%s %v", strings.TrimSuffix(w.name, "/"), w.weight))
	}
	s.rank()
	by := b.splitBy(s.data)
	if by != "random" {
		s.key = keyOf(by)
	}
	if s.data && s.key != nil && by == "key" && len(s.level(0)) > 1 {
		b.c.Place = func(key string) string {
			if key == "" && s.keyless {
				return "" // apart from those with keys: by chance, each request of them together
			}
			return s.hashed(s.level(0), key).to
		}
	}
	b.step(s)
	return strings.Join(words, ", ") + " by " + by, "route"
}

// rank numbers the priorities from 0 without gaps: what the first ones are is relative, and the
// ways of a priority may all have weight 0.
func (s *route) rank() {
	var all []int
	for i := range s.ways {
		all = append(all, s.ways[i].priority)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	for i := range s.ways {
		s.ways[i].priority = slices.Index(all, s.ways[i].priority)
	}
	s.last = len(all) - 1
}

// splitBy is what decides between routes.
func (b *builder) splitBy(data bool) string {
	switch {
	case data && (b.r.Split == nil || !b.r.Split.ReadOnly):
		return "key" // whatever a policy for all kinds says
	case b.r.Split != nil && b.r.Split.By != "":
		return b.r.Split.By
	case data:
		return "key"
	}
	return "random"
}

// way is one route, compiled.
type way struct {
	name, to string
	subset   call.Labels
	weight   float64
	priority int
	seed     uint64
	breaker  *breaker.Breaker
	state    *destState
}

// down tells whether the destination is known not to work.
func (w *way) down() bool {
	return (w.breaker != nil && w.breaker.State() == breaker.Open) || (w.state != nil && w.state.down())
}

type route struct {
	ways          []way
	last          int // greatest priority
	key           func(*call.Call) string
	data          bool
	keyless       bool // what has no key goes by chance: messages, which then have no order to keep
	readOnly      bool // promised by the policy, so it is held to it
	writeFailover bool
	target        string
	refuse        *refusal
}

func (s *route) level(priority int) (out []*way) {
	for i := range s.ways {
		if s.ways[i].priority == priority {
			out = append(out, &s.ways[i])
		}
	}
	return out
}

func (s *route) Enter(c *call.Call, t *call.Try) (call.Token, error) {
	if c.Op == "subscribe" {
		return call.Token{}, nil // a subscription is at the broker it names
	}
	if s.readOnly && c.Safety != call.Safe {
		return call.Token{}, s.refuse.fault(c, fault.Denied, "policy %s promises that nothing is written to %s (split.readOnly), and %s writes", s.refuse.rule, s.target, c.Op)
	}
	if s.data {
		if to, ok := c.Pinned(); ok {
			return s.send(t, s.find(to))
		}
	}
	for priority := 0; priority <= s.last; priority++ {
		w := s.choose(c, t, priority)
		switch {
		case w == nil:
			continue
		case s.data && c.Safety != call.Safe && priority > 0 && !s.writeFailover:
			return call.Token{}, s.refuse.fault(c, fault.Unavailable, "%s is down, and writes do not fail over to %s (policy %s; allowWriteFailover would let them)", s.target, w.to, s.refuse.rule)
		}
		return s.send(t, w)
	}
	return s.send(t, s.whatever(c)) // all are down: one of them must find out when it no longer is
}

func (s *route) send(t *call.Try, w *way) (call.Token, error) {
	if w == nil {
		return call.Token{}, nil
	}
	t.To, t.Subset, t.Way = w.to, w.subset, w.name
	if w.state != nil {
		w.state.begin()
	}
	return call.Token{P: w}, nil
}

func (s *route) Exit(_ *call.Call, t *call.Try, tok call.Token) {
	if w, ok := tok.P.(*way); ok && w.state != nil {
		w.state.end(t.Outcome)
	}
}

func (s *route) find(to string) *way {
	for i := range s.ways {
		if s.ways[i].to == to {
			return &s.ways[i]
		}
	}
	return nil
}

// choose takes one of the ways of a priority; nil when the ones that may be taken are down. A
// key of data has one place among the ways of a priority, healthy or not: elsewhere it would be
// missing.
func (s *route) choose(c *call.Call, t *call.Try, priority int) *way {
	key, keyed := s.keyOf(c)
	if keyed && s.data {
		if w := s.byHash(key, func(w *way) bool { return w.priority == priority }); w != nil && !w.down() {
			return w
		}
		return nil
	}
	avoid := ""
	if before, o := c.Before(); o == call.ConnectFailure {
		avoid = before // nobody was there a moment ago
	}
	fits := func(w *way) bool { return w.priority == priority && !w.down() && w.name != avoid }
	if keyed {
		return s.byHash(key, fits)
	}
	return s.random(fits)
}

// keyOf is what decides about a call; ok is false when chance does.
func (s *route) keyOf(c *call.Call) (key string, ok bool) {
	if s.key == nil {
		return "", false
	}
	key = s.key(c)
	return key, key != "" || !s.keyless
}

// whatever takes a way though all are down.
func (s *route) whatever(c *call.Call) *way {
	first := func(w *way) bool { return w.priority == 0 }
	if key, ok := s.keyOf(c); ok {
		return s.byHash(key, first)
	}
	return s.random(first)
}

func (s *route) random(fits func(*way) bool) *way {
	total := 0.0
	for i := range s.ways {
		if fits(&s.ways[i]) {
			total += s.ways[i].weight
		}
	}
	at := rand.Float64() * total
	for i := range s.ways {
		if w := &s.ways[i]; fits(w) {
			if at -= w.weight; at < 0 {
				return w
			}
		}
	}
	return nil
}

func (s *route) hashed(ways []*way, key string) *way {
	return s.byHash(key, func(w *way) bool {
		for _, x := range ways {
			if x == w {
				return true
			}
		}
		return false
	})
}

// byHash is weighted rendezvous hashing: each way draws a number from the key, and the largest
// wins. When a weight grows, keys only move to that way; every sidecar draws the same numbers.
func (s *route) byHash(key string, fits func(*way) bool) *way {
	h := hashString(key)
	var best *way
	most := math.Inf(-1)
	for i := range s.ways {
		w := &s.ways[i]
		if !fits(w) {
			continue
		}
		u := (float64(mix(h^w.seed)>>11) + 0.5) / (1 << 53)
		if score := -w.weight / math.Log(u); score > most {
			best, most = w, score
		}
	}
	return best
}

// hashString is FNV-1a, finished so that all bits depend on all: the same in every sidecar and
// every version, for keys are placed by it.
func hashString(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := 0; i < len(s); i++ {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

// mix is the finaliser of MurmurHash3.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
