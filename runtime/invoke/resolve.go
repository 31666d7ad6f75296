package invoke

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

const (
	// resolveTTL bounds the age of an answer of a registry that cannot be watched. Dapr keeps
	// resolved addresses as long.
	resolveTTL = 20 * time.Second
	// downFor keeps an instance that could not be reached out of the rotation, unless no
	// other is left.
	downFor = time.Second
	// askAgain is how long a registry that failed is left alone while old answers will do.
	askAgain = time.Second
	// lookupWithin bounds one lookup, should a registry not bound it itself.
	lookupWithin = 15 * time.Second
	// maxNames bounds the cache; callers choose the names.
	maxNames = 4096
)

// resolver caches where apps are. A name is cached only once it resolved to something.
type resolver struct {
	registry block.Registry
	log      *slog.Logger
	ctx      context.Context // of the watches
	cancel   context.CancelFunc
	running  sync.WaitGroup

	known atomic.Pointer[map[block.Name]*destination]
	mu    sync.Mutex // serialises changes of known, and guards the lookups of names
}

// names is one resolved name: its instances and how they fare. Lists are replaced, never
// changed.
type names struct {
	name    block.Name
	watched bool
	next    atomic.Uint32
	list    atomic.Pointer[instances]
	lookup  *lookup  // under way; guarded by resolver.mu
	down    sync.Map // instance id → time.Time until which it is avoided
	downs   atomic.Int32
}

type instances struct {
	all  []block.Instance
	when time.Time
	// endpoints are the instances as policies see them.
	endpoints call.Endpoints
	turns     []int // one round of picks as indexes of all, by weight; nil when all weigh the same
}

// maxTurns bounds a round; heavier lists are scaled down.
const maxTurns = 1024

// newInstances makes a list with its round: each instance as often as its weight says, spread
// evenly (smooth weighted round robin).
func newInstances(all []block.Instance, when time.Time) *instances {
	l := &instances{all: all, when: when}
	for i := range all {
		in := &all[i]
		l.endpoints.All = append(l.endpoints.All, call.Endpoint{ID: in.ID, Address: in.Address, Weight: in.Weight, Labels: in.Labels, Zone: in.Labels["zone"]})
	}
	total, same := 0, true
	for i := range all {
		total += weight(&all[i], 1)
		same = same && weight(&all[i], 1) == weight(&all[0], 1)
	}
	if same {
		return l
	}
	scale := (total + maxTurns - 1) / maxTurns
	credit := make([]int, len(all))
	round := 0
	for i := range all {
		round += weight(&all[i], scale)
	}
	for range round {
		best := 0
		for i := range all {
			if credit[i] += weight(&all[i], scale); credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= round
		l.turns = append(l.turns, best)
	}
	return l
}

// weight is an instance's share of a round, at least one turn.
func weight(in *block.Instance, scale int) int { return max(in.Weight/scale, 1) }

func newResolver(registry block.Registry, log *slog.Logger) *resolver {
	r := &resolver{registry: registry, log: log}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.known.Store(&map[block.Name]*destination{})
	return r
}

func (r *resolver) close() {
	r.mu.Lock() // a watch is either counted before the wait, or never started
	r.cancel()
	r.mu.Unlock()
	r.running.Wait()
}

// have returns the destination of a name that was resolved before.
func (r *resolver) have(name block.Name) (*destination, bool) {
	d, ok := (*r.known.Load())[name]
	return d, ok
}

// find returns the destination of a name, resolving it on first use or when its answer is too
// old.
func (r *resolver) find(ctx context.Context, name block.Name, target func() *call.Target) (*destination, error) {
	if d, ok := (*r.known.Load())[name]; ok {
		l := d.names.list.Load()
		if len(l.all) > 0 && (d.names.watched || time.Since(l.when) < resolveTTL) {
			return d, nil
		}
		err := r.refresh(ctx, d.names)
		if err != nil && len(l.all) > 0 && fault.Of(err) != fault.NotFound && ctx.Err() == nil {
			// The registry is down: where the app was is the best that is known. Calls of the
			// next second do not ask again.
			d.names.list.CompareAndSwap(l, newInstances(l.all, time.Now().Add(askAgain-resolveTTL)))
			return d, nil
		}
		return d, err
	}
	n := &names{name: name}
	n.list.Store(&instances{})
	if err := r.refresh(ctx, n); err != nil {
		return nil, err
	}
	return r.add(&destination{target: target(), names: n}), nil
}

const opResolve fault.Op = "invoke.resolve"

func notFound(name block.Name) error {
	return fault.New(opResolve, fault.NotFound, "couldn't find service: %s", name.App).With(fault.NoInstances).WithSent(fault.SentNever)
}

// refresh asks the registry again. Callers that come while a lookup runs share its answer, each
// waiting no longer than its ctx.
func (r *resolver) refresh(ctx context.Context, n *names) error {
	if r.registry == nil {
		return fault.New(opResolve, fault.NotReady, "couldn't find service: %s: no name resolution is configured", n.name.App)
	}
	l, err := r.join(n)
	if err != nil {
		return err
	}
	select {
	case <-l.done:
		return l.err
	case <-ctx.Done():
		return fault.New(opResolve, fault.Of(ctx.Err()), "still looking for service: %s", n.name.App).WithSent(fault.SentNever).Because(ctx.Err())
	}
}

// lookup is one question to the registry.
type lookup struct {
	done chan struct{}
	err  error // set before done is closed
}

// join returns the lookup that runs, or begins one. It belongs to no caller: one that loses
// patience must not take the answer from the others.
func (r *resolver) join(n *names) (*lookup, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case n.lookup != nil:
		return n.lookup, nil
	case r.ctx.Err() != nil:
		return nil, fault.New(opResolve, fault.Unavailable, "couldn't find service: %s: this sidecar is shutting down", n.name.App).WithSent(fault.SentNever)
	}
	l := &lookup{done: make(chan struct{})}
	n.lookup = l
	r.running.Add(1)
	go func() {
		defer r.running.Done()
		l.err = r.ask(n)
		r.mu.Lock()
		n.lookup = nil
		r.mu.Unlock()
		close(l.done)
	}()
	return l, nil
}

// ask is the lookup itself. A panic of a registry is its callers' error.
func (r *resolver) ask(n *names) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = call.Panicked(p)
		}
	}()
	ctx, cancel := context.WithTimeout(r.ctx, lookupWithin)
	defer cancel()
	all, err := r.registry.Resolve(ctx, n.name)
	if err != nil {
		code := fault.Of(err)
		if ctx.Err() != nil {
			code = fault.Unavailable // our own limit, not a caller's
		}
		return fault.New(opResolve, code, "couldn't find service: %s", n.name.App).WithSent(fault.SentNever).Because(err)
	}
	if len(all) == 0 {
		return notFound(n.name)
	}
	n.set(all)
	return nil
}

// add publishes a destination; a concurrent first use of the same name wins once.
func (r *resolver) add(d *destination) *destination {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := *r.known.Load()
	if have, ok := old[d.names.name]; ok {
		return have
	}
	if len(old) >= maxNames {
		return d // usable, just not kept
	}
	if w, ok := r.registry.(block.RegistryWatcher); ok && r.ctx.Err() == nil {
		d.names.watched = true
		r.running.Add(1)
		go r.watch(w, d.names)
	}
	next := make(map[block.Name]*destination, len(old)+1)
	for k, v := range old {
		next[k] = v
	}
	next[d.names.name] = d
	r.known.Store(&next)
	return d
}

// watch keeps a name's list current. An empty list is stored too: the next call then asks the
// registry itself before it gives up.
func (r *resolver) watch(w block.RegistryWatcher, n *names) {
	defer r.running.Done()
	for {
		err := w.Watch(r.ctx, n.name, n.set)
		if r.ctx.Err() != nil {
			return
		}
		r.log.Warn("watching a name failed; trying again", "target", n.name.App, "err", err)
		select {
		case <-r.ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// set replaces the list and forgets the failures of instances that have gone: ids are never
// used again, so nothing else would.
func (n *names) set(all []block.Instance) {
	n.list.Store(newInstances(all, time.Now()))
	if n.downs.Load() == 0 {
		return
	}
	n.down.Range(func(id, _ any) bool {
		if !slices.ContainsFunc(all, func(in block.Instance) bool { return in.ID == id }) {
			n.forget(id.(string))
		}
		return true
	})
}

// pick chooses the next instance in turn, leaving out the tried ones and, while others are
// left, those that lately could not be reached.
func (n *names) pick(tried []string) (block.Instance, bool) {
	list := n.list.Load()
	all := list.all
	if len(all) == 0 {
		return block.Instance{}, false
	}
	if len(all) == 1 {
		return all[0], !slices.Contains(tried, all[0].ID)
	}
	start := int(n.next.Add(1))
	if list.turns != nil {
		start = list.turns[start%len(list.turns)]
	}
	fallback := -1
	for i := range all {
		at := (start + i) % len(all)
		if slices.Contains(tried, all[at].ID) {
			continue
		}
		if n.downs.Load() == 0 || !n.isDown(all[at].ID) {
			return all[at], true
		}
		if fallback < 0 {
			fallback = at
		}
	}
	if fallback < 0 {
		return block.Instance{}, false
	}
	return all[fallback], true
}

func (n *names) isDown(id string) bool {
	until, ok := n.down.Load(id)
	if !ok {
		return false
	}
	if time.Now().Before(until.(time.Time)) {
		return true
	}
	n.forget(id)
	return false
}

func (n *names) bad(in block.Instance) {
	if _, had := n.down.Swap(in.ID, time.Now().Add(downFor)); !had {
		n.downs.Add(1)
	}
}

func (n *names) good(in block.Instance) {
	if n.downs.Load() > 0 {
		n.forget(in.ID)
	}
}

func (n *names) forget(id string) {
	if _, had := n.down.LoadAndDelete(id); had {
		n.downs.Add(-1)
	}
}
