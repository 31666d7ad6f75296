// Package file makes policy out of resource files: TrafficPolicy, Dapr's Resiliency, and the
// accessControl section of a Configuration.
//
// It reads what package settings has parsed, checks what only somebody who knows all resources
// can check (names that lead nowhere, mirrors in a circle), and makes one policy.Snapshot. It
// opens nothing: `mecha check` uses it as it is. Start at Compile.
package file

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/settings"
)

// Source is everything policy is made of.
type Source struct {
	Policies     []settings.TrafficPolicy
	Resiliencies []settings.Resiliency
	Access       *settings.AccessControl // nil: none
	// Components are the names that exist, by the kind of call that reaches them; nil when they
	// are not known, and not judged.
	Components map[call.Kind][]string
}

// Away is a component that exists in policy only: its calls go where the policy's routes lead.
type Away struct {
	Kind  call.Kind
	Name  string
	First string // one of the destinations
}

// Compiled is the outcome.
type Compiled struct {
	Snapshot *policy.Snapshot
	Away     []Away
	// Findings are all that is wrong. A TrafficPolicy with an error is not in the snapshot, and
	// a Resiliency with one neither; whether to go on without them is the caller's to decide.
	Findings conf.Findings
	// Refused tells that a TrafficPolicy or the access control has an error.
	Refused bool
	// Resiliencies are the resources in force.
	Resiliencies []settings.Resiliency
}

// Compile makes a snapshot.
func Compile(s Source) *Compiled {
	c := &compiler{src: s, out: &Compiled{Snapshot: &policy.Snapshot{}}}
	for i := range s.Policies {
		c.policy(&s.Policies[i])
	}
	c.circles()
	c.names()
	c.out.Refused = c.out.Findings.Err() != nil
	slices.SortStableFunc(c.out.Snapshot.Policies, func(a, b policy.Policy) int { return cmp.Compare(b.Spec.Priority, a.Spec.Priority) })
	if r := c.resilience(); r != nil {
		c.out.Snapshot.Resilience = r.of
	}
	c.access()
	return c.out
}

type compiler struct {
	src  Source
	out  *Compiled
	from []*settings.TrafficPolicy // of the snapshot's policies, in the same order before sorting
}

func (c *compiler) add(p *settings.TrafficPolicy, sev conf.Severity, key, nearest, format string, args ...any) {
	c.out.Findings = append(c.out.Findings, conf.Finding{File: p.File, Line: p.LineOf(key), Key: "spec." + key,
		Msg: fmt.Sprintf(format, args...), Nearest: nearest, Severity: sev})
}

// policy takes in one TrafficPolicy, if it is right by itself.
func (c *compiler) policy(p *settings.TrafficPolicy) {
	var spec policy.Spec
	found := p.Decode(&spec)
	if found.Err() == nil {
		for _, x := range spec.Check() {
			found = append(found, conf.Finding{File: p.File, Line: p.LineOf(x.Key), Key: "spec." + x.Key, Msg: x.Msg, Nearest: x.Nearest, Severity: conf.Error})
		}
	}
	if len(found) == 0 && empty(&spec) {
		found = append(found, conf.Finding{File: p.File, Line: p.Line, Key: "spec", Msg: "says nothing about the calls it is for", Severity: conf.Error})
	}
	c.out.Findings = append(c.out.Findings, found...)
	if found.Err() != nil {
		return
	}
	c.from = append(c.from, p)
	c.out.Snapshot.Policies = append(c.out.Snapshot.Policies, policy.Policy{Name: p.Name, Spec: spec, Where: fmt.Sprintf("%s:%d", p.File, p.Line)})
}

// empty tells whether nothing but the match is set.
func empty(s *policy.Spec) bool {
	return s.Authz == nil && s.Fault == nil && s.RateLimit == nil && s.Headers == nil && s.Mirror == nil && s.Timeout == nil && s.Retry == nil &&
		s.Hedge == nil && len(s.Route) == 0 && s.Limits == nil && s.Breaker == nil && s.LB == nil && s.Outlier == nil && s.Health == nil
}

// component kinds that policies name: others have no components.
var componentKinds = map[string]call.Kind{"state": call.State, "publish": call.Publish, "secret": call.Secret, "lock": call.Lock, "configuration": call.Config,
	"binding": call.Binding, "crypto": call.Crypto, "cache": call.Cache}

// reach are the kinds of components a policy is for, each with the plain names it is to have:
// those of the entries of match that say both. No names means any.
func reach(s *policy.Spec) (kinds []call.Kind, names map[call.Kind][]string) {
	names = map[call.Kind][]string{}
	for i := range s.Match {
		m := &s.Match[i]
		for _, k := range m.Kind {
			kind, ok := componentKinds[strings.ToLower(k)]
			if !ok {
				continue
			}
			if !slices.Contains(kinds, kind) {
				kinds = append(kinds, kind)
			}
			for _, d := range m.Dest {
				if !strings.Contains(d, "*") && !slices.Contains(names[kind], d) {
					names[kind] = append(names[kind], d)
				}
			}
		}
	}
	return kinds, names
}

// names checks what the policies point at, and finds the names that exist only in them.
func (c *compiler) names() {
	if c.src.Components == nil {
		return
	}
	bad := map[int]bool{}
	for i := range c.out.Snapshot.Policies {
		pol, p := &c.out.Snapshot.Policies[i], c.from[i]
		kinds, names := reach(&pol.Spec)
		for _, kind := range kinds {
			if !c.destinations(p, &pol.Spec, kind, names[kind]) {
				bad[i] = true
			}
		}
	}
	c.drop(bad)
}

// destinations checks where a policy for components of a kind sends calls.
func (c *compiler) destinations(p *settings.TrafficPolicy, s *policy.Spec, kind call.Kind, names []string) (ok bool) {
	known := c.src.Components[kind]
	ok = true
	exists := func(key, name string) {
		if name != "" && !slices.Contains(known, name) {
			ok = false
			c.add(p, conf.Error, key, conf.Nearest(name, known), "no %s component is called %q", kind, name)
		}
	}
	for i := range s.Route {
		exists(fmt.Sprintf("route[%d].to", i), s.Route[i].To)
	}
	if s.Mirror != nil {
		exists("mirror.to", s.Mirror.To)
	}
	for _, name := range names {
		if slices.Contains(known, name) {
			continue
		}
		at := slices.IndexFunc(s.Route, func(d policy.Destination) bool { return d.To != "" && (d.Weight == nil || *d.Weight > 0) })
		switch {
		case at >= 0 && slices.ContainsFunc(s.Route, func(d policy.Destination) bool { return d.To == "" }):
			ok = false
			c.add(p, conf.Error, "route", conf.Nearest(name, known), "no %s component is called %q, so every route must say where to", kind, name)
		case at >= 0 && ok:
			c.out.Away = append(c.out.Away, Away{Kind: kind, Name: name, First: s.Route[at].To})
		case at < 0:
			c.add(p, conf.Warning, "match", conf.Nearest(name, known), "no %s component is called %q; the policy is for nothing there", kind, name)
		}
	}
	return ok
}

// circles refuses mirrors that come back to where they began.
func (c *compiler) circles() {
	type node struct {
		kind string
		name string
	}
	next, where := map[node]string{}, map[node]int{}
	var nodes []node // in order: what is reported does not change from run to run
	for i := range c.out.Snapshot.Policies {
		s := &c.out.Snapshot.Policies[i].Spec
		if s.Mirror == nil {
			continue
		}
		for j := range s.Match {
			kinds := s.Match[j].Kind
			if len(kinds) == 0 {
				kinds = policy.Kinds()
			}
			for _, k := range kinds {
				for _, d := range s.Match[j].Dest {
					if n := (node{strings.ToLower(k), d}); next[n] == "" {
						next[n], where[n] = s.Mirror.To, i
						nodes = append(nodes, n)
					}
				}
			}
		}
	}
	bad := map[int]bool{}
	for _, n := range nodes {
		if way, round := circle(n.name, func(name string) string { return next[node{n.kind, name}] }); round && !bad[where[n]] {
			bad[where[n]] = true
			c.add(c.from[where[n]], conf.Error, "mirror.to", "", "copies go in a circle: %s", strings.Join(way, " → "))
		}
	}
	c.drop(bad)
}

// circle follows next from a name and tells whether it comes back to it.
func circle(from string, next func(string) string) (way []string, round bool) {
	way = []string{from}
	for at := next(from); at != ""; at = next(at) {
		way = append(way, at)
		if at == from {
			return way, true
		}
		if slices.Contains(way[:len(way)-1], at) {
			return way, false // a circle, but not one that this name is part of
		}
	}
	return way, false
}

// drop takes policies out of the snapshot.
func (c *compiler) drop(bad map[int]bool) {
	if len(bad) == 0 {
		return
	}
	var keep []policy.Policy
	var from []*settings.TrafficPolicy
	for i, p := range c.out.Snapshot.Policies {
		if !bad[i] {
			keep, from = append(keep, p), append(from, c.from[i])
		}
	}
	c.out.Snapshot.Policies, c.from = keep, from
}

// access translates Dapr's access control.
func (c *compiler) access() {
	a := c.src.Access
	if a == nil {
		return
	}
	out := &policy.Access{Deny: denies(a.DefaultAction, len(a.Policies) > 0)}
	for _, p := range a.Policies {
		ap := policy.AccessPolicy{App: p.AppID, Namespace: p.Namespace, TrustDomain: p.TrustDomain, Deny: denies(p.DefaultAction, out.Deny)}
		for _, o := range p.Operations {
			ap.Operations = append(ap.Operations, policy.AccessOperation{Name: o.Name, Verbs: o.HTTPVerb, Deny: denies(o.Action, true)})
		}
		out.Policies = append(out.Policies, ap)
	}
	if !out.Deny && len(out.Policies) == 0 {
		return // allows all, as without it
	}
	c.out.Snapshot.Access = out
}

func denies(action string, otherwise bool) bool {
	if action == "" {
		return otherwise
	}
	return !strings.EqualFold(action, "allow")
}

// sortedKeys are a map's keys in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
