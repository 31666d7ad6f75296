package policy

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy/health"
	"github.com/mecha-project/mecha/runtime/policy/outlier"
)

// Recorder counts what policies do. Methods are called on the path of calls. A nil Recorder
// counts nothing.
type Recorder interface {
	// Resilience is the series of one Resiliency policy on one target.
	Resilience(id SeriesID) Series
	// Rejected counts a call refused by one part of a policy; shadow means that it would have
	// been.
	Rejected(kind, target, part, rule string, shadow bool)
	// Retried counts an attempt after the first; Exhausted one that the budget did not allow.
	Retried(kind, target, rule string, exhausted bool)
	// Mirrored counts a copy: sent, failed, dropped, same or different.
	Mirrored(rule, target, result string)
	// Ejected counts an endpoint taken out of the choice.
	Ejected(rule, target, cause string)
}

// Options make an Engine. The zero value works.
type Options struct {
	Observe Observer
	Record  Recorder
	Log     *slog.Logger
	// Zone is where this sidecar is, "region/zone"; empty means unknown.
	Zone string
	// Probe asks an endpoint of an app how it is: by a GET of path, or, when that is empty, by
	// connecting. Nil: services are not checked.
	Probe func(ctx context.Context, app string, to call.Endpoint, path string) error
	// Ping asks a component. Nil: components are not checked.
	Ping func(ctx context.Context, kind call.Kind, name string) error
	// Judged is told of every decision of the access control: whether the default action made it
	// (global) or the policy of an app. Nil: nobody counts.
	Judged func(caller call.Caller, global, allowed bool)
}

// Engine compiles policy for targets and keeps what survives a change of it. It is safe for
// concurrent use.
type Engine struct {
	o   Options
	log *slog.Logger

	snapshot atomic.Pointer[Snapshot]
	tap      atomic.Pointer[tap] // nil: nobody watches calls

	mu      sync.Mutex // guards what follows, and serialises compiling
	targets map[weak.Pointer[call.Target]]struct{}
	chains  map[targetKey]*call.Chain // of the snapshot

	objects sync.Map // state that outlives chains, by key
	making  sync.Mutex

	recent recentChanges
}

type targetKey struct {
	kind            call.Kind
	direction       call.Direction
	name, namespace string
}

func keyOfTarget(t *call.Target) targetKey {
	return targetKey{t.Kind, t.Direction, t.Name, t.Namespace}
}

// maxChains bounds the chains kept for reuse: callers choose the names of targets.
const maxChains = 4096

// New makes an engine without policies.
func New(o Options) *Engine {
	e := &Engine{o: o, log: o.Log, targets: map[weak.Pointer[call.Target]]struct{}{}, chains: map[targetKey]*call.Chain{}}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	e.snapshot.Store(&Snapshot{})
	return e
}

// Govern puts a target under policy, now and whenever policy changes.
func (e *Engine) Govern(t *call.Target) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t.SetChain(e.chain(t))
	if len(e.targets) >= 2*maxChains {
		e.prune()
	}
	e.targets[weak.Make(t)] = struct{}{}
}

func (e *Engine) prune() {
	for w := range e.targets {
		if w.Value() == nil {
			delete(e.targets, w)
		}
	}
}

// Swap puts another snapshot in force: every target has its new chain when Swap returns. Calls
// in progress keep the chain they began with.
func (e *Engine) Swap(s *Snapshot) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.snapshot.Store(s)
	clear(e.chains)
	for w := range e.targets {
		if t := w.Value(); t != nil {
			t.SetChain(e.chain(t))
		} else {
			delete(e.targets, w)
		}
	}
	e.forget(s)
}

// chain compiles the policy of a target; mu is held.
func (e *Engine) chain(t *call.Target) *call.Chain {
	key := keyOfTarget(t)
	if c, ok := e.chains[key]; ok {
		return c
	}
	c := e.compile(e.snapshot.Load(), &call.Target{Kind: t.Kind, Direction: t.Direction, Name: t.Name, Namespace: t.Namespace})
	if len(e.chains) < maxChains {
		e.chains[key] = c
	}
	return c
}

// maxCandidates is how many policies can match one target: bits of the mask that tells which of
// them match a call.
const maxCandidates = 64

func (e *Engine) compile(s *Snapshot, t *call.Target) *call.Chain {
	all := s.candidates(t)
	if len(all) > maxCandidates {
		e.log.Error("too many traffic policies match one target; the last ones are not applied", "target", t.Name, "limit", maxCandidates)
		all = all[:maxCandidates]
	}
	sel := &selector{e: e, t: t, all: all}
	if s.Resilience != nil {
		sel.dapr = s.Resilience(t)
	}
	sel.access = s.Access
	for i := range all {
		if all[i].when == nil {
			sel.always |= 1 << i
		} else {
			sel.asks = append(sel.asks, i)
		}
	}
	base := sel.chain(sel.always)
	if len(sel.asks) == 0 {
		return base
	}
	return &call.Chain{Select: sel.choose, About: base.About}
}

// selector finds the chain of a call where policies look at more than the target. Chains are
// compiled when a call first needs them: of many policies few combinations occur.
type selector struct {
	e      *Engine
	t      *call.Target
	all    []candidate
	asks   []int // those with conditions
	always uint64
	dapr   *Resilience
	access *Access

	mu    sync.Mutex
	known atomic.Pointer[map[uint64]*call.Chain]
}

func (s *selector) mask(c *call.Call) uint64 {
	m := s.always
	for _, i := range s.asks {
		if s.all[i].fits(c) {
			m |= 1 << i
		}
	}
	return m
}

func (s *selector) choose(c *call.Call) *call.Chain { return s.chain(s.mask(c)) }

func (s *selector) chain(mask uint64) *call.Chain {
	if known := s.known.Load(); known != nil {
		if c, ok := (*known)[mask]; ok {
			return c
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[uint64]*call.Chain{}
	if known := s.known.Load(); known != nil {
		if c, ok := (*known)[mask]; ok {
			return c
		}
		if len(*known) < maxChains {
			next = maps.Clone(*known)
		}
	}
	c := s.e.build(s.t, merge(s.all, mask, s.dapr, s.access))
	next[mask] = c
	s.known.Store(&next)
	return c
}

// stateKey is the key of an object that belongs to a policy on a target.
func (b *builder) stateKey(what, rule string) string {
	return fmt.Sprintf("%s\x00%s\x00%s/%d/%s.%s", rule, what, kindOf(b.t), b.t.Direction, b.t.Name, b.t.Namespace)
}

// ruleSep stands between the policies that an object belongs to; no name can hold it.
const ruleSep = "\x01"

// resiliencyPrefix begins the names of what Resiliency resources say; see Named.
const resiliencyPrefix = "Resiliency "

// kept is the object of a key, made on first use. It survives changes of policy, until its
// policy is gone.
func kept[T any](e *Engine, key string, create func() T) T {
	if o, ok := e.objects.Load(key); ok {
		if t, ok := o.(T); ok {
			return t
		}
	}
	e.making.Lock()
	defer e.making.Unlock()
	if o, ok := e.objects.Load(key); ok {
		if t, ok := o.(T); ok {
			return t
		}
	}
	t := create()
	e.objects.Store(key, t)
	return t
}

// forget drops the objects of policies that are gone.
func (e *Engine) forget(s *Snapshot) {
	alive := map[string]bool{"": true}
	for i := range s.Policies {
		alive[s.Policies[i].Name] = true
	}
	e.objects.Range(func(key, o any) bool {
		rule, _, _ := strings.Cut(key.(string), "\x00")
		for name := range strings.SplitSeq(rule, ruleSep) {
			if !alive[name] && !strings.HasPrefix(name, resiliencyPrefix) {
				e.objects.Delete(key)
				if c, ok := o.(interface{ Close() }); ok {
					go c.Close() // may wait for a copy or a probe in progress
				}
				break
			}
		}
		return true
	})
}

// Close ends what runs in the background: checks, copies, ejections.
func (e *Engine) Close() {
	e.objects.Range(func(key, o any) bool {
		e.objects.Delete(key)
		if c, ok := o.(interface{ Close() }); ok {
			c.Close()
		}
		return true
	})
}

// Change is something that happened to a policy's state, for operators.
type Change struct {
	At     time.Time `json:"at"`
	Part   string    `json:"part"`
	Rule   string    `json:"rule,omitempty"`
	Target string    `json:"target"`
	What   string    `json:"what"`
}

// recentChanges keeps the last ones.
type recentChanges struct {
	mu   sync.Mutex
	list []Change
}

// maxRecent is how many changes are kept for explanations.
const maxRecent = 100

func (e *Engine) changed(c Change) {
	c.At = time.Now()
	e.recent.mu.Lock()
	defer e.recent.mu.Unlock()
	if len(e.recent.list) >= maxRecent {
		e.recent.list = slices.Delete(e.recent.list, 0, 1)
	}
	e.recent.list = append(e.recent.list, c)
}

func (e *Engine) rejected(r *refusal, c *call.Call) {
	r.seen.note(r, c)
	if e.o.Record != nil {
		e.o.Record.Rejected(kindOf(r.t), r.t.Name, r.part, r.rule, false)
	}
}

func (e *Engine) shadowed(r *refusal, c *call.Call, rule string) {
	e.log.Info("an access rule in shadow mode would refuse this call", "policy", r.rule, "rule", rule, "target", r.t.Name, "op", c.Op, "resource", c.Resource, "caller", c.Caller.App)
	if e.o.Record != nil {
		e.o.Record.Rejected(kindOf(r.t), r.t.Name, r.part, r.rule, true)
	}
}

func (e *Engine) mirrored(rule, target, result string) {
	if e.o.Record != nil {
		e.o.Record.Mirrored(rule, target, result)
	}
}

func (e *Engine) ejected(rule, target string, ev outlier.Event) {
	what := fmt.Sprintf("returned %s (%s)", ev.Host, ev.By)
	if ev.Ejected {
		what = fmt.Sprintf("ejected %s for %v (%s, %d times)", ev.Host, ev.For, ev.By, ev.Times)
		if e.o.Record != nil {
			e.o.Record.Ejected(rule, target, string(ev.By))
		}
	}
	e.log.Info("outlier detection "+what, "policy", rule, "target", target)
	e.changed(Change{Part: "outlier", Rule: rule, Target: target, What: what})
}

func (e *Engine) checked(target string, ev health.Event) {
	if !ev.Changed {
		return
	}
	what := ev.Host + " passes its health checks"
	if ev.Failing {
		what = fmt.Sprintf("%s fails its health checks: %v", ev.Host, ev.Err)
	}
	e.log.Info(what, "target", target)
	e.changed(Change{Part: "health", Target: target, What: what})
}

// retrySeries counts the retries of one policy on one target.
func (e *Engine) retrySeries(t *call.Target, rule string) *retrySeries {
	if e.o.Record == nil {
		return nil
	}
	return &retrySeries{e.o.Record, kindOf(t), t.Name, rule}
}

type retrySeries struct {
	r                  Recorder
	kind, target, rule string
}

func (s *retrySeries) retried() {
	if s != nil {
		s.r.Retried(s.kind, s.target, s.rule, false)
	}
}

func (s *retrySeries) exhausted() {
	if s != nil {
		s.r.Retried(s.kind, s.target, s.rule, true)
	}
}
