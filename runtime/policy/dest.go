package policy

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy/health"
	"github.com/mecha-project/mecha/runtime/policy/outlier"
)

// destState is how a component fares as a destination of routes: it is a cluster's endpoint,
// whatever nodes its own client sees behind it.
type destState struct {
	ejected, failing atomic.Bool
	out              *outlier.Host
	checks           *health.Checker
}

func (d *destState) down() bool { return d.ejected.Load() || d.failing.Load() }

func (d *destState) begin() {
	if d.checks != nil {
		d.checks.Used()
	}
}

func (d *destState) end(o call.Outcome) {
	if d.out != nil {
		d.out.Report(outlierResult(o))
	}
}

// fleet is the destinations of one policy's routes, watched together.
type fleet struct {
	target string
	mu     sync.Mutex // serialises changes of the list
	states sync.Map   // name → *destState
	outs   *outlier.Detector
	checks *health.Checker
}

// Close ends what runs in the background.
func (f *fleet) Close() {
	if f.outs != nil {
		f.outs.Close()
	}
	if f.checks != nil {
		f.checks.Close()
	}
}

// destState is the state of a component that routes lead to; nil when nothing watches it.
func (b *builder) destState(to string) *destState {
	if b.service() || (b.r.Outlier == nil && b.r.Health == nil) {
		return nil
	}
	f := kept(b.e, b.stateKey("fleet", b.r.source("route")+ruleSep+b.r.source("outlier")+ruleSep+b.r.source("health")), func() *fleet { return b.newFleet() })
	return f.state(b, to)
}

// state finds a destination, or takes in one that a change of policy has brought.
func (f *fleet) state(b *builder, to string) *destState {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.outs != nil {
		f.outs.Reconfigure(*b.r.Outlier)
	}
	if f.checks != nil {
		f.checks.Reconfigure(*b.r.Health)
	}
	if s, ok := f.states.Load(to); ok {
		return s.(*destState)
	}
	s := &destState{checks: f.checks}
	names := b.r.destinations(b.t)
	if f.outs != nil {
		f.outs.Keep(names)
		s.out = f.outs.Host(to)
	}
	f.states.Store(to, s)
	if f.checks != nil {
		f.checks.Keep(names)
	}
	return s
}

// set changes the state of a destination.
func (f *fleet) set(to string, change func(*destState)) {
	if s, ok := f.states.Load(to); ok {
		change(s.(*destState))
	}
}

func (b *builder) newFleet() *fleet {
	f := &fleet{target: b.t.Name}
	rule, name, e := b.r.source("outlier"), b.t.Name, b.e
	if b.r.Outlier != nil {
		f.outs = outlier.New(*b.r.Outlier, func(id string, ejected bool) {
			f.set(id, func(s *destState) { s.ejected.Store(ejected) })
		}, func(ev outlier.Event) { e.ejected(rule, name, ev) })
	}
	if b.r.Health != nil && e.o.Ping != nil {
		kind := b.t.Kind
		f.checks = health.New(*b.r.Health, func(ctx context.Context, id string) error { return e.o.Ping(ctx, kind, id) },
			func(id string, failing bool) {
				f.set(id, func(s *destState) { s.failing.Store(failing) })
			}, func(ev health.Event) { e.checked(name, ev) })
	}
	return f
}
