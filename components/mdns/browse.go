package mdns

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	wire "github.com/miekg/dns"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Bounds of what is remembered. Names come from callers, instances from the network.
const (
	maxNames     = 1024
	maxInstances = 512 // per name
)

// quiet is how long a first lookup goes on listening after an answer: members of a group
// answer up to 120 ms apart (RFC 6762, section 6).
const quiet = 150 * time.Millisecond

// askAgain is when a first lookup repeats its question: packets get lost, and whoever
// announced itself less than minGap ago does not answer the first one.
const askAgain = 250 * time.Millisecond

// book is what was heard of the names in use.
type book struct {
	ttl time.Duration

	mu    sync.Mutex
	pages map[block.Name]*page // guarded by mu
}

// page is what was heard of one name. The book's mu guards its fields.
type page struct {
	seen      map[string]seen // by instance id
	asked     time.Time       // last question
	used      time.Time       // last use, for eviction
	listeners map[chan struct{}]bool
	browsing  chan struct{} // closed when the running browse ends; nil when none runs
}

type seen struct {
	block.Instance
	ends time.Time
}

func newBook(ttl time.Duration) *book { return &book{ttl: ttl, pages: map[block.Name]*page{}} }

// pageLocked gives the page of a name, a new one if need be. mu is held.
func (b *book) pageLocked(name block.Name, now time.Time) *page {
	p := b.pages[name]
	if p == nil {
		if len(b.pages) >= maxNames {
			b.evictLocked()
		}
		p = &page{seen: map[string]seen{}, listeners: map[chan struct{}]bool{}}
		b.pages[name] = p
	}
	p.used = now
	return p
}

// evictLocked drops the name longest out of use that nobody listens to. mu is held.
func (b *book) evictLocked() {
	var oldest block.Name
	var used time.Time
	for name, p := range b.pages {
		if len(p.listeners) == 0 && p.browsing == nil && (used.IsZero() || p.used.Before(used)) {
			oldest, used = name, p.used
		}
	}
	delete(b.pages, oldest)
}

// write notes what a message says. Names not in use are not kept.
func (b *book) write(list []found, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range list {
		p := b.pages[f.Name()]
		if p == nil {
			continue
		}
		_, known := p.seen[f.ID]
		switch {
		case f.ttl == 0:
			delete(p.seen, f.ID)
		case known || len(p.seen) < maxInstances:
			p.seen[f.ID] = seen{f.Instance, now.Add(min(f.ttl, b.ttl))}
		}
		for c := range p.listeners {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
}

// list gives the live instances of a name, whether it is time to ask again, and when the
// first of them ends.
func (b *book) list(name block.Name, now time.Time) (live []block.Instance, ask bool, next time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.pageLocked(name, now)
	next = p.asked.Add(b.ttl * 4 / 5)
	ask = !now.Before(next)
	live = []block.Instance{}
	for _, id := range slices.Sorted(maps.Keys(p.seen)) {
		s := p.seen[id]
		if !now.Before(s.ends) {
			delete(p.seen, id)
			continue
		}
		if s.ends.Before(next) {
			next = s.ends
		}
		s.Labels = maps.Clone(s.Labels)
		live = append(live, s.Instance)
	}
	return live, ask, next
}

// listen gives a channel with a token after each message about a name.
func (b *book) listen(name block.Name) (<-chan struct{}, func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.pageLocked(name, time.Now())
	c := make(chan struct{}, 1)
	p.listeners[c] = true
	return c, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(p.listeners, c)
	}
}

// learn notes what the network says. A loopback address is of use to its own host only.
func (r *registry) learn(m *wire.Msg, fromThisHost bool) {
	list := slices.DeleteFunc(parse(m), func(f found) bool {
		host, _, _ := net.SplitHostPort(f.Address)
		ip := net.ParseIP(host)
		return !fromThisHost && (host == "localhost" || (ip != nil && ip.IsLoopback()))
	})
	if len(list) > 0 {
		r.heard.write(list, time.Now())
	}
}

// ask puts the question for a name to the network.
func (r *registry) ask(s *sockets, name block.Name) error {
	r.heard.mu.Lock()
	r.heard.pageLocked(name, time.Now()).asked = time.Now()
	r.heard.mu.Unlock()
	return s.send(func(*net.Interface) *wire.Msg { return query(appService(name)) })
}

// Resolve lists what was heard. If that is nothing, it asks and waits for answers, at most
// BrowseTimeout. What was heard long ago is asked for again without waiting.
func (r *registry) Resolve(ctx context.Context, name block.Name) ([]block.Instance, error) {
	s, err := r.network(ctx, opResolve)
	if err != nil {
		return nil, err
	}
	live, ask, _ := r.heard.list(name, time.Now())
	if len(live) > 0 {
		if ask {
			err := r.ask(s, name)
			if err != nil {
				r.log.Debug("question by multicast DNS failed", "error", err)
			}
		}
		return live, nil
	}
	if err := r.browse(ctx, s, name); err != nil {
		return nil, fault.Wrap(opResolve, fault.Unavailable, err)
	}
	live, _, _ = r.heard.list(name, time.Now())
	return live, nil
}

// browse asks and waits for answers. Callers at the same time share one browse.
func (r *registry) browse(ctx context.Context, s *sockets, name block.Name) error {
	r.mu.Lock()
	closed := r.closed
	var running chan struct{}
	if !closed {
		r.heard.mu.Lock()
		p := r.heard.pageLocked(name, time.Now())
		if p.browsing == nil {
			p.browsing = make(chan struct{})
			r.work.Go(func() { r.runBrowse(s, name, p) })
		}
		running = p.browsing
		r.heard.mu.Unlock()
	}
	r.mu.Unlock()
	if closed {
		return errClosed(opResolve)
	}
	select {
	case <-running:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	case <-r.done:
		return errClosed(opResolve)
	}
}

func (r *registry) runBrowse(s *sockets, name block.Name, p *page) {
	answers, leave := r.heard.listen(name)
	defer leave()
	defer func() {
		r.heard.mu.Lock()
		close(p.browsing)
		p.browsing = nil
		r.heard.mu.Unlock()
	}()
	if err := r.ask(s, name); err != nil {
		r.log.Warn("question by multicast DNS failed", "error", err)
	}
	deadline := time.Now().Add(r.config.BrowseTimeout)
	end := time.NewTimer(r.config.BrowseTimeout)
	defer end.Stop()
	again := time.NewTimer(min(askAgain, r.config.BrowseTimeout/2))
	defer again.Stop()
	for {
		select {
		case <-r.done:
			return
		case <-end.C:
			return
		case <-again.C:
			_ = r.ask(s, name) // the first question's failure was told
		case <-answers:
			if live, _, _ := r.heard.list(name, time.Now()); len(live) > 0 {
				end.Reset(min(quiet, time.Until(deadline)))
			}
		}
	}
}

// Watch calls changed after a first browse and after each change. It keeps asking for the
// name before what is known of it ends.
func (r *registry) Watch(ctx context.Context, name block.Name, changed func([]block.Instance)) error {
	if _, err := r.Resolve(ctx, name); err != nil {
		return err
	}
	s, err := r.network(ctx, opWatch)
	if err != nil {
		return err
	}
	rings, leave := r.heard.listen(name)
	defer leave()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last []block.Instance
	for first := true; ; {
		select {
		case <-ctx.Done():
			return fault.Wrap(opWatch, fault.Canceled, ctx.Err())
		case <-r.done:
			return errClosed(opWatch)
		case <-rings:
		case <-timer.C:
		}
		live, ask, next := r.heard.list(name, time.Now())
		if first || !slices.EqualFunc(live, last, same) {
			first, last = false, live
			changed(slices.Clone(live))
		}
		if ask {
			if err := r.ask(s, name); err != nil {
				r.log.Debug("question by multicast DNS failed", "error", err)
			}
			_, _, next = r.heard.list(name, time.Now())
		}
		timer.Reset(max(time.Until(next), 10*time.Millisecond))
	}
}

func same(a, b block.Instance) bool {
	labels := maps.Equal(a.Labels, b.Labels)
	a.Labels, b.Labels = nil, nil
	return labels && a.ID == b.ID && a.Name() == b.Name() && a.Address == b.Address && a.Protocol == b.Protocol && a.Weight == b.Weight
}
