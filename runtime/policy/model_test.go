package policy_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/policy/breaker"
)

var (
	modelFrom = flag.Uint64("model.from", 1, "first seed of the model test")
	modelFor  = flag.Duration("model.for", 0, "how long the model test goes on; 0: an ordinary run")
)

// An ordinary run tries so many random policies, or as many as there is time for.
const (
	modelPolicies = 6000
	modelTime     = 3 * time.Second
)

// TestModel puts random policies over stores that fail in every way a store can, makes random
// calls, and checks what must hold whatever the policy:
//
//	A  no write is applied to two stores, except by a mirror;
//	B  a write that succeeded is what a read of its key then finds, where nothing fails over;
//	C  a write that was applied nowhere returned an error;
//	D  a write whose error says that it was never sent was applied nowhere.
func TestModel(t *testing.T) {
	start, total := time.Now(), tally{}
	more := func(n int) bool {
		if *modelFor > 0 {
			return time.Since(start) < *modelFor
		}
		return n < modelPolicies && time.Since(start) < modelTime
	}
	for n := 0; more(n); n++ {
		seed := *modelFrom + uint64(n)
		synctest.Test(t, func(t *testing.T) {
			defer func() { // a failure here ends the whole test
				if t.Failed() {
					t.Logf("seed %d: go test -run TestModel -model.from %d", seed, seed)
				}
			}()
			m := newModel(t, seed)
			m.run()
			total.add(&m.tally)
			m.e.Close()
			time.Sleep(time.Second) // for attempts that lost and do not notice
		})
		total.policies++
	}
	t.Logf("%+v", total)
	if n := total.policies; total.good < 2*n || total.bad < 2*n || total.readBack < n || total.repeated < n || total.ambiguous < n/2 {
		t.Errorf("too little was tested: %+v", total)
	}
}

// tally is what happened, so that a model that tests nothing is noticed.
type tally struct{ policies, good, bad, readBack, repeated, ambiguous int }

func (t *tally) add(o *tally) {
	t.good, t.bad, t.readBack, t.repeated, t.ambiguous = t.good+o.good, t.bad+o.bad, t.readBack+o.readBack, t.repeated+o.repeated, t.ambiguous+o.ambiguous
}

// write is one step for a store.
type write struct {
	id   int
	keys []string
	del  bool
	etag int // 0: unconditional; else the id that must be there
}

// shaky is a store in memory that fails at random.
type shaky struct {
	m    *model
	name string
	mu   sync.Mutex
	data map[string]int // key → id of the write
}

type model struct {
	tally
	t       *testing.T
	mu      sync.Mutex // guards rnd and what follows: hedges read at once
	rnd     *rand.Rand
	applied map[int][]string // write → stores
	tries   map[int]int
	calm    atomic.Bool
	spec    policy.Spec // all policies of the target together
	e       *policy.Engine
	h       *catalog.Handle[*shaky]
	last    int
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{t: t, rnd: rand.New(rand.NewPCG(seed, 7)), applied: map[int][]string{}, tries: map[int]int{}}
	s := catalog.NewStore[*shaky](block.KindState)
	m.e = policy.New(policy.Options{})
	m.e.Swap(m.snapshot())
	for _, name := range []string{"orders", "a", "b", "shadow"} {
		tg := &call.Target{Kind: call.State, Name: name}
		m.e.Govern(tg)
		h := catalog.NewHandle(catalog.Info{Name: name}, &shaky{m: m, name: name, data: map[string]int{}}, tg)
		s.Put(h)
		if name == "orders" {
			m.h = h
		}
	}
	return m
}

// one in n.
func (m *model) one(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rnd.IntN(n) == 0
}

func (m *model) n(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rnd.IntN(n)
}

// snapshot makes random policies for the target, divided among several resources.
func (m *model) snapshot() *policy.Snapshot {
	s := &m.spec
	m.randomRoutes(s)
	m.randomAttempts(s)
	m.randomGuards(s)
	match := []policy.Match{{Dest: policy.Words{"orders"}}}
	parts := []policy.Policy{pol("routes", policy.Spec{Match: match, Route: s.Route, Split: s.Split, WriteFailover: s.WriteFailover, Breaker: s.Breaker}),
		pol("attempts", policy.Spec{Match: match, Retry: s.Retry, Hedge: s.Hedge, Timeout: s.Timeout}),
		pol("guards", policy.Spec{Match: match, Fault: s.Fault, Limits: s.Limits, Mirror: s.Mirror})}
	if m.one(3) { // some of it only for some calls
		parts[1].Spec.Match = []policy.Match{{Dest: policy.Words{"orders"}, Op: policy.Words{"set", "get"}}}
	}
	out := &policy.Snapshot{}
	for _, p := range parts {
		if len(p.Spec.Check()) > 0 {
			m.t.Fatalf("the model makes a policy that is wrong: %+v", p.Spec.Check())
		}
		out.Policies = append(out.Policies, p)
	}
	if m.one(3) {
		r := &policy.Resilience{Retry: &policy.DaprRetry{Max: m.n(4), Pause: time.Duration(m.n(1000)) * time.Millisecond, Exponential: m.one(2)},
			Timeout: &policy.DaprTimeout{After: time.Second}, Breaker: &policy.DaprBreaker{Config: breaker.Config{Timeout: 2 * time.Second}}}
		out.Resilience = func(t *call.Target) *policy.Resilience {
			if t.Name != "orders" {
				return nil
			}
			return r
		}
	}
	return out
}

func (m *model) randomRoutes(s *policy.Spec) {
	if m.one(4) {
		return
	}
	names := []string{"", "a", "b"}
	for i := range 1 + m.n(3) {
		s.Route = append(s.Route, policy.Destination{To: names[i], Weight: ptr(m.n(4)), Priority: m.n(2) * m.n(3)})
	}
	s.Route[0].Weight = ptr(1 + m.n(3))
	switch m.n(8) {
	case 0:
		s.Split = &policy.Split{By: []string{"random", "caller", "key"}[m.n(3)], ReadOnly: true}
	case 1, 2:
		s.Split = &policy.Split{By: []string{"random", "caller", "key"}[m.n(3)]}
	}
	if m.one(2) {
		s.WriteFailover = ptr(m.one(2))
	}
}

func (m *model) randomAttempts(s *policy.Spec) {
	if !m.one(4) {
		s.Retry = &policy.Retry{Max: ptr(m.n(5)), AtLeastOnce: m.one(4), Backoff: policy.Backoff{Base: time.Duration(1+m.n(50)) * time.Millisecond}}
		if m.one(2) {
			s.Retry.On = policy.Words{"app-error", "not-found", "conflict", "throttled", "unavailable", "connect-failure", "reset", "deadline", "cancelled", "permanent"}
		}
		if m.one(3) {
			s.Retry.Budget = &policy.Budget{Ratio: 0.5, MinPerSecond: 3}
		}
	}
	if m.one(3) {
		s.Hedge = &policy.Hedge{Delay: []string{"5ms", "100ms", "p50"}[m.n(3)], Max: 1 + m.n(2)}
	}
	if m.one(2) {
		s.Timeout = &policy.Timeout{Total: time.Duration(200+m.n(3000)) * time.Millisecond, PerTry: time.Duration(101+m.n(100)) * time.Millisecond}
	}
}

func (m *model) randomGuards(s *policy.Spec) {
	if m.one(2) {
		s.Breaker = &policy.Breaker{ConsecutiveFailures: 1 + m.n(4), Open: time.Duration(1+m.n(5)) * time.Second, HalfOpen: m.n(3), Per: []string{"", "target", "operation"}[m.n(3)]}
	}
	if m.one(3) {
		s.Limits = &policy.Limits{MaxRequests: 1 + m.n(3), MaxPending: m.n(3) - 1, MaxRetries: m.n(2)}
	}
	if m.one(6) {
		s.Fault = &policy.Fault{Abort: &policy.Abort{Outcome: call.Outcomes()[1+m.n(int(call.Rejected))], Percent: ptr(10.0)}}
	}
	if m.one(5) {
		s.Mirror = &policy.Mirror{To: "shadow", Percent: ptr(float64(m.n(101))), Compare: float64(m.n(101))}
	}
}

func (m *model) run() {
	for range 20 {
		time.Sleep(time.Duration(m.n(700)) * time.Millisecond)
		if m.one(4) {
			_, _ = m.read(m.key())
			continue
		}
		w, d := m.randomWrite()
		_, err := catalog.Do(m.t.Context(), m.h, d, func(ctx context.Context, s *shaky) (struct{}, error) { return struct{}{}, s.write(ctx, w) },
			func() func(context.Context, *shaky) error {
				return func(ctx context.Context, s *shaky) error { return s.write(ctx, w) }
			})
		m.judge(w, d, err)
	}
}

func (m *model) key() string { return fmt.Sprint("key-", m.n(6)) }

// randomWrite is a write and its description as the state service makes it.
func (m *model) randomWrite() (*write, call.Desc) {
	m.last++
	w := &write{id: m.last, keys: []string{m.key()}}
	d := call.Desc{Op: "set", Safety: call.Idempotent}
	switch m.n(6) {
	case 0:
		w.del, d.Op = true, "delete"
	case 1, 2:
		w.etag, d.Safety = 1+m.n(m.last), call.Conditional
	case 3:
		d.Op, d.Safety = "transact", call.Unsafe
		place := call.PolicyOf(m.h.Target, d).Place
		for range m.n(3) {
			if k := m.key(); !slices.Contains(w.keys, k) && (place == nil || place(k) == place(w.keys[0])) {
				w.keys = append(w.keys, k)
			}
		}
	}
	d.Key, d.Resource = w.keys[0], w.keys[0]
	return w, d
}

var reading = catalog.Reading[*shaky, string, seen]{
	Fn:   func(ctx context.Context, s *shaky, key string) (seen, error) { return s.read(ctx, key) },
	Keep: func(k string) string { return k },
	Same: func(a, b seen) bool { return a.id == b.id },
}

// seen is what a read found, and where.
type seen struct {
	id    int
	store string
}

func (m *model) read(key string) (seen, error) {
	return catalog.Read(m.t.Context(), m.h, call.Desc{Op: "get", Key: key, Resource: key, Safety: call.Safe}, key, &reading)
}

// judge holds a write against the four rules.
func (m *model) judge(w *write, d call.Desc, err error) {
	m.mu.Lock()
	at, tries := slices.Clone(m.applied[w.id]), m.tries[w.id]
	m.mu.Unlock()
	slices.Sort(at)
	places := slices.Compact(slices.Clone(at))
	what := fmt.Sprintf("write %d (%s %v, etag %d, %d attempts) applied to %v, ended with %v (sent %d); policy %s", w.id, d.Op, w.keys, w.etag, tries, at, err, fault.SentOf(err), m.describe())
	switch {
	case len(places) > 1:
		m.t.Errorf("A: %s", what)
	case err == nil && len(places) == 0:
		m.t.Errorf("C: %s", what)
	case err != nil && fault.SentOf(err) == fault.SentNever && len(places) > 0:
		m.t.Errorf("D: %s", what)
	}
	if tries > 1 {
		m.repeated++
	}
	if err != nil {
		m.bad++
		if len(places) > 0 {
			m.ambiguous++
		}
		return
	}
	m.good++
	if !m.failsOver() {
		m.readBack += m.findAgain(w, places[0], what)
	}
}

// failsOver tells whether reads may go elsewhere than writes did: where there are further
// priorities, or, as promised to be harmless, where nothing is written.
func (m *model) failsOver() bool {
	for _, d := range m.spec.Route {
		if d.Priority != m.spec.Route[0].Priority {
			return true
		}
	}
	return false
}

// findAgain is rule B. The stores are well meanwhile; a policy that refuses the read says nothing.
func (m *model) findAgain(w *write, at, what string) (found int) {
	m.calm.Store(true)
	defer func() { m.calm.Store(false) }()
	for _, k := range w.keys {
		got, err := m.read(k)
		switch {
		case err != nil:
		case got.store != at:
			m.t.Errorf("B: %s; %s is read from %s", what, k, got.store)
		case w.del != (got.id == 0) || !w.del && got.id != w.id:
			m.t.Errorf("B: %s; %s holds write %d", what, k, got.id)
		default:
			found++
		}
	}
	return found
}

func (m *model) describe() string {
	c := call.PolicyOf(m.h.Target, call.Desc{Op: "set"})
	text := ""
	for _, d := range m.spec.Route {
		text += fmt.Sprintf("{%q w%d p%d} ", d.To, *d.Weight, d.Priority)
	}
	return fmt.Sprintf("route %ssplit %+v failover %v retry %+v breaker %+v limits %+v timeout %+v (chain of %d layers, %d steps)", text, m.spec.Split, m.spec.WriteFailover != nil && *m.spec.WriteFailover,
		m.spec.Retry, m.spec.Breaker, m.spec.Limits, m.spec.Timeout, len(c.Layers), len(c.Steps))
}

// trouble is what goes wrong with one operation.
type trouble struct {
	pause        time.Duration
	before       error // it is not applied
	after        error // it is applied, and nobody is told
	panics, deaf bool
}

func (m *model) trouble() trouble {
	var x trouble
	if m.calm.Load() {
		return x
	}
	code := func() fault.Code { return fault.Code(1 + m.n(int(fault.Lost))) }
	if m.one(4) {
		x.pause = time.Duration(m.n(300)) * time.Millisecond
	}
	switch m.n(10) {
	case 0, 1:
		x.before = errOf(fault.Unavailable, fault.SentNever)
	case 2:
		x.before = errOf(code(), fault.Sent(m.n(3)))
	case 3:
		x.after = errOf(fault.Unavailable, fault.SentMaybe)
	case 4:
		x.after = errOf(code(), []fault.Sent{fault.SentUnknown, fault.SentMaybe}[m.n(2)])
	}
	x.panics, x.deaf = m.one(15), m.one(5)
	return x
}

// wait is the time an operation takes; a store that is deaf does not notice that nobody waits.
func (x *trouble) wait(ctx context.Context) error {
	if x.deaf {
		time.Sleep(x.pause)
		return nil
	}
	return after(x.pause, ctx)
}

func (s *shaky) write(ctx context.Context, w *write) error {
	s.m.mu.Lock()
	s.m.tries[w.id]++
	s.m.mu.Unlock()
	x := s.m.trouble()
	if x.before != nil {
		if err := x.wait(ctx); err != nil && fault.SentOf(x.before) != fault.SentNever {
			return err
		}
		if x.panics {
			panic("before")
		}
		return x.before
	}
	if s.m.one(2) { // it takes its time after it has been applied
		if err := s.apply(w); err != nil {
			return err
		}
		if err := x.wait(ctx); err != nil {
			return err
		}
	} else {
		if err := x.wait(ctx); err != nil {
			return err
		}
		if err := s.apply(w); err != nil {
			return err
		}
	}
	if x.panics {
		panic("after")
	}
	return x.after
}

func (s *shaky) apply(w *write) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.etag != 0 && s.data[w.keys[0]] != w.etag {
		return errOf(fault.Conflict, fault.SentMaybe)
	}
	for _, k := range w.keys {
		if w.del {
			delete(s.data, k)
		} else {
			s.data[k] = w.id
		}
	}
	if s.name != "shadow" {
		s.m.mu.Lock()
		s.m.applied[w.id] = append(s.m.applied[w.id], s.name)
		s.m.mu.Unlock()
	}
	return nil
}

func (s *shaky) read(ctx context.Context, key string) (seen, error) {
	x := s.m.trouble()
	if err := x.wait(ctx); err != nil {
		return seen{}, err
	}
	if x.panics {
		panic("read")
	}
	if x.before != nil {
		return seen{}, x.before
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return seen{s.data[key], s.name}, nil
}
