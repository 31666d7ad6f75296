package invoke

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// endpoints are the HTTP endpoints by name. They are read by every call and hardly ever change.
type endpoints struct {
	now atomic.Pointer[map[string]*destination]
	mu  sync.Mutex // serialises changes
}

// get is nil when there is none.
func (e *endpoints) get(name string) *destination {
	if now := e.now.Load(); now != nil {
		return (*now)[name]
	}
	return nil
}

// change makes the next set and gives what had the name before.
func (e *endpoints) change(name string, f func(next map[string]*destination, old *destination)) (old *destination) {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := map[string]*destination{}
	if now := e.now.Load(); now != nil {
		next = maps.Clone(*now)
	}
	old = next[name]
	f(next, old)
	e.now.Store(&next)
	return old
}

// SetEndpoint makes an HTTP endpoint a target that calls can name, in the place of one with its
// name. Calls in progress end where they began; what policy knows of the name stays.
func (s *Service) SetEndpoint(e Endpoint) {
	s.forget(s.endpoints.change(e.Name, func(next map[string]*destination, old *destination) {
		d := &destination{endpoint: &e}
		if old != nil {
			d.target = old.target
		} else {
			d.target = s.outTarget(e.Name, "")
		}
		next[e.Name] = d
	}))
}

// RemoveEndpoint takes an HTTP endpoint away; its name may then be that of an app.
func (s *Service) RemoveEndpoint(name string) {
	s.forget(s.endpoints.change(name, func(next map[string]*destination, _ *destination) { delete(next, name) }))
}

// Endpoints are the names of the HTTP endpoints, sorted.
func (s *Service) Endpoints() []string {
	now := s.endpoints.now.Load()
	if now == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(*now))
}

// forget tells the edge that an endpoint has been replaced.
func (s *Service) forget(old *destination) {
	if f, ok := s.o.External.(interface{ Forget(Endpoint) }); ok && old != nil {
		f.Forget(*old.endpoint)
	}
}
