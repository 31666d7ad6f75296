package policy

import (
	"strings"

	"github.com/mecha-project/mecha/runtime/call"
)

// Policy is one TrafficPolicy resource.
type Policy struct {
	Name string
	Spec Spec
	// Where is "file:line", for explanations.
	Where string
}

// Snapshot is all policy there is: immutable, made by a source such as package file. The zero
// value has the built-in defaults only.
type Snapshot struct {
	Policies []Policy // in the order they are asked
	// Resilience gives what Resiliency resources say about a target; nil: nothing.
	Resilience func(t *call.Target) *Resilience
	// Access is Dapr's access control for calls that arrive; nil allows all.
	Access *Access
}

// rules are the fields in force for one kind of call on one target: for each field, what the
// first source that sets it says, and which source that was.
type rules struct {
	Spec
	from   map[string]string // field → source
	where  map[string]string // field → file:line
	dapr   *Resilience
	access *Access
	all    []*Policy // that matched
}

// candidate is a policy that may govern calls on a target.
type candidate struct {
	p *Policy
	// when are the conditions that look at the call; one of them must hold. Nil: always.
	when []*matcher
}

// candidates are the policies that may govern calls on a target, the first that wins first.
func (s *Snapshot) candidates(t *call.Target) (out []candidate) {
	for i := range s.Policies {
		p := &s.Policies[i]
		c, ok := p.forTarget(t)
		if ok {
			out = append(out, c)
		}
	}
	return out
}

func (p *Policy) forTarget(t *call.Target) (c candidate, ok bool) {
	c.p = p
	if len(p.Spec.Match) == 0 {
		return c, true
	}
	for i := range p.Spec.Match {
		if !p.Spec.Match[i].static(t) {
			continue
		}
		m := p.Spec.Match[i].compile()
		if m == nil {
			return candidate{p: p}, true
		}
		c.when = append(c.when, m)
	}
	return c, len(c.when) > 0
}

func (c *candidate) fits(cl *call.Call) bool {
	if c.when == nil {
		return true
	}
	for _, m := range c.when {
		if m.fits(cl) {
			return true
		}
	}
	return false
}

// merge joins the policies whose bits are set in mask, field by field.
func merge(all []candidate, mask uint64, dapr *Resilience, access *Access) *rules {
	r := &rules{from: map[string]string{}, where: map[string]string{}, dapr: dapr, access: access}
	for i := range all {
		if mask&(1<<i) != 0 {
			r.add(all[i].p)
		}
	}
	if dapr != nil {
		r.addDapr(dapr)
	}
	return r
}

// add takes over the fields of a policy that no earlier one has set.
func (r *rules) add(p *Policy) {
	r.all = append(r.all, p)
	s := &p.Spec
	take(r, p, "authz", &r.Authz, s.Authz)
	take(r, p, "fault", &r.Fault, s.Fault)
	take(r, p, "rateLimit", &r.RateLimit, s.RateLimit)
	take(r, p, "headers", &r.Headers, s.Headers)
	take(r, p, "mirror", &r.Mirror, s.Mirror)
	take(r, p, "timeout", &r.Timeout, s.Timeout)
	take(r, p, "retry", &r.Retry, s.Retry)
	take(r, p, "hedge", &r.Hedge, s.Hedge)
	take(r, p, "limits", &r.Limits, s.Limits)
	take(r, p, "breaker", &r.Breaker, s.Breaker)
	take(r, p, "lb", &r.LB, s.LB)
	take(r, p, "outlier", &r.Outlier, s.Outlier)
	take(r, p, "health", &r.Health, s.Health)
	take(r, p, "split", &r.Split, s.Split)
	take(r, p, "allowWriteFailover", &r.WriteFailover, s.WriteFailover)
	if r.Route == nil && s.Route != nil {
		r.Route, r.from["route"], r.where["route"] = s.Route, p.Name, p.Where
		r.Subsets = s.Subsets // names of subsets belong to the routes that use them
	}
}

func take[T any](r *rules, p *Policy, field string, have **T, offered *T) {
	if *have == nil && offered != nil {
		*have, r.from[field], r.where[field] = offered, p.Name, p.Where
	}
}

// addDapr notes what Resiliency resources fill in.
func (r *rules) addDapr(d *Resilience) {
	set := func(field string, taken bool, name string) {
		if !taken && name != "" {
			r.from[field], r.where[field] = name, d.Where
		}
	}
	if d.Timeout != nil {
		set("timeout", r.Timeout != nil, d.Timeout.Name)
	}
	if d.Retry != nil {
		set("retry", r.Retry != nil, d.Retry.Name)
	}
	if d.Breaker != nil {
		set("breaker", r.Breaker != nil, d.Breaker.Name)
	}
}

// source is the policy that set a field, as rejections and explanations name it.
func (r *rules) source(field string) string { return r.from[field] }

// about is what a chain tells of itself.
type about struct {
	rules *rules
	dests []string
	parts []Part // as they were built in
}

// RuleOf names the policy that set a field, for rejections.
func (a *about) RuleOf(field string) string { return a.rules.source(field) }

// Destinations are where calls of this chain can go.
func (a *about) Destinations() []string { return a.dests }

// destinations lists where the routes of a policy go.
func (r *rules) destinations(t *call.Target) (out []string) {
	for i := range r.Route {
		to := r.Route[i].To
		if to == "" {
			to = t.Name
		}
		if w := r.Route[i].Weight; (w == nil || *w > 0) && !contains(out, to) {
			out = append(out, to)
		}
	}
	return out
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if strings.EqualFold(x, s) {
			return true
		}
	}
	return false
}
