package balance

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Cluster is the live set of endpoints. Safe for concurrent use: picks read a snapshot behind
// an atomic pointer, and whoever changes endpoints or health builds the next one.
type Cluster struct {
	env   env
	whole view

	mu      sync.Mutex // guards what follows, and every change of the above
	cfg     Config     // as given
	eps     []Endpoint // as given
	hosts   []*Host    // in the order of eps
	subsets map[string]*Subset
}

// env is what all parts of a cluster share on the path of a call.
type env struct {
	epoch  time.Time
	random func() uint64 // safe for concurrent use
	decay  atomic.Int64  // Config.Decay in nanoseconds

	_       [cacheLine]byte
	typical ewma // what a successful call takes, over all hosts; written once a tick
	_       [cacheLine]byte
}

// now is monotonic nanoseconds since the cluster was made.
func (e *env) now() int64 { return int64(time.Since(e.epoch)) }

// view is a part of the cluster's hosts and the pickers for it.
type view struct {
	keep func(Endpoint) bool // nil: all
	list *roster
	snap atomic.Pointer[snapshot]
}

// roster is the hosts of a view. It stays while the endpoints stay, whatever their health.
type roster struct {
	hosts []*Host
	index map[string]int
}

// New makes a cluster without endpoints. A Config that does not validate is used with defaults
// in place of what is wrong.
func New(c Config) *Cluster {
	cl := &Cluster{cfg: c, subsets: make(map[string]*Subset)}
	cl.env.epoch = time.Now()
	cl.env.random = rand.Uint64
	cl.env.decay.Store(int64(c.resolved().Decay))
	cl.enlist(&cl.whole)
	return cl
}

// Update replaces the configuration and the list of endpoints. Hosts whose ID stays keep their
// state: calls in flight, latency, health. Of two endpoints with the same ID the first counts.
// An Update that changes nothing costs a comparison.
func (c *Cluster) Update(cfg Config, eps []Endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cfg == c.cfg && slices.Equal(eps, c.eps) {
		return
	}
	c.cfg, c.eps = cfg, slices.Clone(eps)
	c.env.decay.Store(int64(cfg.resolved().Decay))

	old, now := c.whole.list, c.env.now()
	c.hosts = make([]*Host, 0, len(eps))
	seen := make(map[string]bool, len(eps))
	for _, e := range eps {
		if seen[e.ID] {
			continue
		}
		seen[e.ID] = true
		h, ok := old.host(e.ID)
		if !ok {
			h = newHost(c, e, now)
		} else if h.Endpoint() != e {
			changed := e
			h.endpoint.Store(&changed)
		}
		c.hosts = append(c.hosts, h)
	}
	c.enlist(&c.whole)
	for _, s := range c.subsets {
		c.enlist(&s.view)
	}
}

// enlist decides which hosts are in the view, and builds its pickers.
func (c *Cluster) enlist(v *view) {
	hosts := c.hosts
	if v.keep != nil {
		hosts = nil
		for _, h := range c.hosts {
			if v.keep(h.Endpoint()) {
				hosts = append(hosts, h)
			}
		}
	}
	v.list = &roster{hosts: hosts, index: make(map[string]int, len(hosts))}
	for i, h := range hosts {
		v.list.index[h.id] = i
	}
	c.build(v)
}

// rebuild follows a change of health.
func (c *Cluster) rebuild() {
	c.build(&c.whole)
	for _, s := range c.subsets {
		c.build(&s.view)
	}
}

func (c *Cluster) build(v *view) {
	v.snap.Store(newSnapshot(&c.env, c.cfg.resolved(), v.list, v.snap.Load()))
}

func (c *Cluster) holds(h *Host) bool {
	found, ok := c.whole.list.host(h.id)
	return ok && found == h
}

// Pick chooses the host for one attempt. It reports false when no host may be used: there are
// none, Request.Filter refuses all, or none is healthy and Config.Panic does not apply. The
// choice alone counts nothing; see Host.Begin. It neither locks nor allocates.
func (c *Cluster) Pick(r Request) (*Host, bool) { return c.whole.snap.Load().pick(&r) }

// Hosts lists all hosts in the order of the endpoints, for explanations.
func (c *Cluster) Hosts() []*Host { return slices.Clone(c.whole.snap.Load().list.hosts) }

// Host finds the host of an endpoint.
func (c *Cluster) Host(id string) (*Host, bool) { return c.whole.snap.Load().list.host(id) }

func (l *roster) host(id string) (*Host, bool) {
	i, ok := l.index[id]
	if !ok {
		return nil, false
	}
	return l.hosts[i], true
}

// Subset is a part of a cluster's hosts that is balanced by itself: priorities, panic and
// locality look at its hosts alone. The hosts and their state are the cluster's.
type Subset struct{ view view }

// Subset makes or replaces the subset of that name: the endpoints for which keep is true. keep
// runs now and at each Update that changes something, under the cluster's lock: it must not
// call the cluster. When what it decides by has changed, call Subset again.
func (c *Cluster) Subset(name string, keep func(Endpoint) bool) *Subset {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.subsets[name]
	if s == nil {
		s = &Subset{}
		c.subsets[name] = s
	}
	s.view.keep = keep
	c.enlist(&s.view)
	return s
}

// DropSubset forgets a subset. Who still holds it goes on with the hosts and the health of that
// moment.
func (c *Cluster) DropSubset(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.subsets, name)
}

// Pick chooses among the subset's hosts, as Cluster.Pick does among all.
func (s *Subset) Pick(r Request) (*Host, bool) { return s.view.snap.Load().pick(&r) }

// Hosts lists the subset's hosts in the order of the endpoints.
func (s *Subset) Hosts() []*Host { return slices.Clone(s.view.snap.Load().list.hosts) }
