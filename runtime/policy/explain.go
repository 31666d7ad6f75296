package policy

import (
	"cmp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy/breaker"
)

// Explanation tells what governs one kind of call: which policies match it, what they make of
// it, and which of them decided each part.
type Explanation struct {
	Kind      string    `json:"kind"`
	Direction string    `json:"direction"`
	Target    string    `json:"target"`
	Op        string    `json:"op,omitempty"`
	Resource  string    `json:"resource,omitempty"`
	Caller    string    `json:"caller,omitempty"`
	Policies  []Verdict `json:"policies"`
	// Parts are what the call passes, outermost first.
	Parts []Part `json:"parts"`
	// To is where the call would go, when its key or a single route decides.
	To string `json:"to,omitempty"`
	// Refused is who refuses the call outright, and why.
	Refused string `json:"refused,omitempty"`
}

// Verdict is one policy's fit.
type Verdict struct {
	Policy  string `json:"policy"`
	Where   string `json:"where"`
	Matches bool   `json:"matches"`
	// Why not, in words; empty when it matches.
	Why string `json:"why,omitempty"`
}

// Explain tells what governs a call, without making it. Nothing is charged or counted.
func (e *Engine) Explain(t *call.Target, d call.Desc) Explanation {
	s := e.snapshot.Load()
	out := Explanation{Kind: kindOf(t), Direction: "outbound", Target: t.Name, Op: d.Op, Resource: d.Resource, Caller: d.Caller.App}
	if t.Direction == call.Inbound {
		out.Direction = "inbound"
	}
	c := &call.Call{Desc: d, Target: t}
	for i := range s.Policies {
		out.Policies = append(out.Policies, s.Policies[i].verdict(t, c))
	}
	chain := e.compile(s, t)
	if chain.Select != nil {
		chain = chain.Select(c)
	}
	if a, ok := chain.About.(*about); ok {
		out.Parts = a.parts
	}
	out.To, out.Refused = foresee(chain, c)
	return out
}

// verdict tells whether the policy matches a call, and what keeps it from doing so.
func (p *Policy) verdict(t *call.Target, c *call.Call) Verdict {
	v := Verdict{Policy: p.Name, Where: p.Where}
	cand, ok := p.forTarget(t)
	switch {
	case ok && cand.fits(c):
		v.Matches = true
	case ok:
		v.Why = "op, method, path, headers or from differ"
	default:
		v.Why = "it is for other kinds or destinations"
	}
	return v
}

// foresee runs the judges that look at nothing but the call.
func foresee(chain *call.Chain, c *call.Call) (to, refused string) {
	for _, l := range chain.Layers {
		switch l := l.(type) {
		case *authorize:
			if rule, ok := l.judge(c); !ok && !l.shadow {
				return "", "policy " + l.refuse.rule + ", rule " + rule
			}
		case *accessControl:
			if allowed, _ := l.a.judge(c); !allowed && !l.own(c) {
				return "", "access control"
			}
		}
	}
	for _, s := range chain.Steps {
		r, ok := s.(*route)
		switch {
		case !ok:
		case len(r.ways) == 1:
			return r.ways[0].to, ""
		case r.key != nil && r.key(c) != "":
			if w := r.choose(c, nil, 0); w != nil {
				return w.to, ""
			}
		}
	}
	return "", ""
}

// Seen is the last call that one rule refused.
type Seen struct {
	At       time.Time `json:"at"`
	Kind     string    `json:"kind"`
	Target   string    `json:"target"`
	Part     string    `json:"part"`
	Rule     string    `json:"rule"`
	Op       string    `json:"op"`
	Resource string    `json:"resource"`
	Caller   string    `json:"caller"`
	Times    uint64    `json:"times"` // since the sidecar started
}

// decision keeps the last refusal of one rule on one target.
type decision struct {
	times atomic.Uint64
	next  atomic.Int64 // ns, when the details are taken again
	last  atomic.Pointer[Seen]
}

// detailEvery bounds how often the details of a refusal are taken down: a limit that is reached
// refuses thousands a second, and the last of them says as much as all.
const detailEvery = 100 * time.Millisecond

func (d *decision) note(r *refusal, c *call.Call) {
	d.times.Add(1)
	now, next := time.Now(), d.next.Load()
	if now.UnixNano() < next || !d.next.CompareAndSwap(next, now.Add(detailEvery).UnixNano()) {
		return
	}
	d.last.Store(&Seen{At: now, Kind: kindOf(r.t), Target: r.t.Name, Part: r.part, Rule: r.rule, Op: strings.Clone(c.Op),
		Resource: strings.Clone(c.Resource), Caller: strings.Clone(c.Caller.App)})
}

// Status is what policy is doing now.
type Status struct {
	Policies []string `json:"policies"`
	// Endpoints are those that are watched, and how they fare.
	Endpoints []EndpointStatus `json:"endpoints"`
	// Breakers are those that are not closed.
	Breakers []BreakerStatus `json:"breakers"`
	// Changes are what happened lately, the last first.
	Changes []Change `json:"changes"`
	// Refused are the last calls that each rule refused, the last first.
	Refused []Seen `json:"refused"`
}

// EndpointStatus is an endpoint of a destination.
type EndpointStatus struct {
	Destination string        `json:"destination"`
	ID          string        `json:"id"`
	Address     string        `json:"address,omitempty"`
	Ejected     bool          `json:"ejected"`
	Failing     bool          `json:"failing"`
	Inflight    int64         `json:"inflight"`
	Latency     time.Duration `json:"latencyNs"`
}

// BreakerStatus is a breaker that is not closed.
type BreakerStatus struct {
	Rule  string `json:"rule"`
	Name  string `json:"name"`
	State string `json:"state"`
}

// Status tells what policy is doing now.
func (e *Engine) Status() Status {
	st := Status{Policies: []string{}, Endpoints: []EndpointStatus{}, Breakers: []BreakerStatus{}, Refused: []Seen{}}
	s := e.snapshot.Load()
	for i := range s.Policies {
		st.Policies = append(st.Policies, s.Policies[i].Name+" ("+s.Policies[i].Where+")")
	}
	e.objects.Range(func(key, o any) bool {
		rule, _, _ := strings.Cut(key.(string), "\x00")
		switch o := o.(type) {
		case *cluster:
			st.Endpoints = append(st.Endpoints, o.status()...)
		case *fleet:
			st.Endpoints = append(st.Endpoints, o.status()...)
		case *breaker.Breaker:
			_, name, _ := lastCut(key.(string), "/")
			st.breaker(rule, name, o)
		case *decision:
			if last := o.last.Load(); last != nil {
				seen := *last
				seen.Times = o.times.Load()
				st.Refused = append(st.Refused, seen)
			}
		case *breaker.Group:
			o.Each(func(name string, b *breaker.Breaker) { st.breaker(rule, name, b) })
		}
		return true
	})
	slices.SortFunc(st.Endpoints, func(a, b EndpointStatus) int {
		return cmp.Or(cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.ID, b.ID))
	})
	slices.SortFunc(st.Breakers, func(a, b BreakerStatus) int {
		return cmp.Or(cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Name, b.Name))
	})
	slices.SortFunc(st.Refused, func(a, b Seen) int { return b.At.Compare(a.At) })
	e.recent.mu.Lock()
	st.Changes = slices.Clone(e.recent.list)
	e.recent.mu.Unlock()
	slices.Reverse(st.Changes)
	if st.Changes == nil {
		st.Changes = []Change{}
	}
	return st
}

func lastCut(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+len(sep):], true
}

func (st *Status) breaker(rule, name string, b *breaker.Breaker) {
	if state := b.State(); state != breaker.Closed {
		st.Breakers = append(st.Breakers, BreakerStatus{Rule: rule, Name: strings.TrimSpace(name), State: state.String()})
	}
}

func (cl *cluster) status() (out []EndpointStatus) {
	v := cl.now.Load()
	for _, h := range cl.hosts.Hosts() {
		s := EndpointStatus{Destination: cl.name, ID: h.ID(), Ejected: h.Ejected(), Failing: h.Failing(), Inflight: h.Inflight(), Latency: h.Latency()}
		if v != nil && v.by[h.ID()] != nil {
			s.Address = v.from.All[v.by[h.ID()].at].Address
		}
		out = append(out, s)
	}
	return out
}

func (f *fleet) status() (out []EndpointStatus) {
	f.states.Range(func(name, s any) bool {
		d := s.(*destState)
		out = append(out, EndpointStatus{Destination: f.target, ID: name.(string), Ejected: d.ejected.Load(), Failing: d.failing.Load()})
		return true
	})
	return out
}
