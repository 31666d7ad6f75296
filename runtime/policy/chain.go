// Package policy judges every call: who may make it, where it goes, how often it is tried and
// for how long, and what happens to it when things fail.
//
// The order of layers is decided here and nowhere else: the two lists below, outermost first.
// Policy is data (Snapshot, made of Specs by package file) that is compiled once per target
// into a call.Chain, which is immutable and swapped by pointer. A part with nothing to do is
// not in the chain. Counters, breakers and the health of endpoints live beside the chains, in
// a registry, and survive a change of policy.
//
// Start reading at outbound and inbound. Engine (engine.go) compiles and swaps; merge.go joins
// the policies that match a call; each part has a file of its own.
package policy

import (
	"github.com/mecha-project/mecha/runtime/call"
)

// part is one line of the lists: what it is called, and the function that builds it into a
// chain if the rules ask for it. The function returns what it does, in words, and the field of
// the rules that asked; both are empty when it has nothing to do.
type part struct {
	name  string
	build func(*builder) (does, field string)
}

// outbound is what a call that leaves passes: to a component or to another app.
var outbound = []part{
	// Around the call.
	{"observe", observing},       // counts and times what everything below refuses or fails
	{"authorize", authorizing},   // first of the judges: what one may not do costs no tokens and tells nothing
	{"fault", injecting},         // before limits, so that tests of callers do not use up real allowances
	{"rate limit", limiting},     // charged once per call, however often it is tried
	{"headers", rewriting},       // before the mirror, so that copies look like what was sent
	{"mirror", mirroring},        // of calls that were let through, once per call
	{"total timeout", totalling}, // around all attempts and the pauses between them
	{"retry", retrying},          // Dapr's nesting: retry(breaker(timeout(call)))
	{"hedge", hedging},           // the other reason for a further attempt
	{"route", routing},           // around each attempt from here on: each may go elsewhere
	{"limits", capping},          // of the destination chosen; waits at most as long as the call may take
	{"breaker", breaking},        // after limits: a call that only waited says nothing about the destination
	{"endpoint", balancing},      // which endpoint of the destination, and how it fares
	{"attempt timeout", trying},  // innermost: the time of the attempt alone
}

// inbound is what a call that arrives for the app passes: invocations and events. There is no
// retry of invocations here: a failed one is its caller's to repeat, and two that retry
// multiply. Nor are there routes: this is where calls arrive.
var inbound = []part{
	{"observe", observing},     // as above
	{"authorize", authorizing}, // authoritative: whatever the caller's sidecar thinks
	{"fault", injecting},       // before limits, as above
	{"rate limit", limiting},   // per caller, usually
	{"headers", rewriting},     // what the app is to see
	{"total timeout", totalling},
	{"retry", retrying},   // of deliveries only
	{"limits", capping},   // how much the app has in progress
	{"breaker", breaking}, // while most calls fail the app
	{"attempt timeout", trying},
}

// builder builds one chain.
type builder struct {
	e *Engine
	t *call.Target
	r *rules
	c *call.Chain
}

// Part is a part of a chain, for explanations.
type Part struct {
	Name  string `json:"name"` // of the list above
	Does  string `json:"does"`
	Rule  string `json:"rule,omitempty"`  // the policy that asked for it; empty: built in
	Where string `json:"where,omitempty"` // file:line of that policy
}

// build compiles the rules for a target.
func (e *Engine) build(t *call.Target, r *rules) *call.Chain {
	b := &builder{e: e, t: t, r: r, c: &call.Chain{}}
	list := outbound
	if t.Direction == call.Inbound {
		list = inbound
	}
	a := &about{rules: r, dests: r.destinations(t)}
	for _, p := range list {
		if does, field := p.build(b); does != "" {
			a.parts = append(a.parts, Part{Name: p.name, Does: does, Rule: r.from[field], Where: r.where[field]})
		}
	}
	if len(a.parts) > 0 {
		b.c.About = a
	}
	return b.c
}

func (b *builder) layer(l call.Layer) { b.c.Layers = append(b.c.Layers, l) }
func (b *builder) step(s call.Step)   { b.c.Steps = append(b.c.Steps, s) }

// service tells whether calls of the target go to an app.
func (b *builder) service() bool {
	return b.t.Direction == call.Outbound && (b.t.Kind == call.Service || b.t.Kind == call.App)
}
