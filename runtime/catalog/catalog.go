// Package catalog holds the live component instances of a sidecar by name.
//
// A service looks a component up and gets a Handle: the instance together with its policy
// target. The instance itself is out of reach; Do and Read run operations on it inside the
// policy, so no call can miss it. Instances are
// swapped by pointer (hot reload builds the new one beside the old, swaps, lets calls in
// flight end, closes the old). Opening components is in open.go, running
// operations in do.go; start at Store.
package catalog

import (
	"context"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Status is where a component is in its life.
type Status uint8

const (
	// Starting components are connecting; calls to them wait for the outcome.
	Starting Status = iota
	// Ready components answered.
	Ready
	// Failed components could not be initialised and ignoreErrors is set; they are as if
	// never declared.
	Failed
)

// Info is what is known about a component whatever its block.
type Info struct {
	Name    string
	Type    string // "state.redis"
	Version string // as written in the resource
	// Raw is the component's metadata with secrets already masked out, for settings that the
	// services read themselves (key prefix, scopes). Keys are lower case.
	Raw map[string]string
	// Capabilities are the words shown by the metadata API.
	Capabilities []string
	// Operations are what an output binding can do; nil for other components.
	Operations []string
	// Cache is how a cache is to be used; nil for other components.
	Cache *block.CacheConfig
}

// Handle is a component together with its policy.
type Handle[T any] struct {
	Info
	// Target is what the policy governs.
	Target *call.Target

	component T
	inside    atomic.Int64  // attempts that use the component
	gone      chan struct{} // closed when the component is replaced or removed
	// away marks a handle that has no component of its own: policy names where its calls go.
	away  bool
	store *Store[T] // where policy's destinations are looked up
}

// NewHandle joins a component to its policy.
func NewHandle[T any](info Info, component T, target *call.Target) *Handle[T] {
	return &Handle[T]{Info: info, component: component, Target: target, gone: make(chan struct{})}
}

// NewAway makes a handle for a name that exists in policy only: every call on it goes where
// its policy sends it. info is that of one of its destinations, under the name.
func NewAway[T any](info Info, target *call.Target) *Handle[T] {
	return &Handle[T]{Info: info, Target: target, away: true}
}

// Gone is closed when the component was replaced or removed: what uses it for long is to let go. It
// is nil for a name that exists in policy only.
func (h *Handle[T]) Gone() <-chan struct{} { return h.gone }

// Away tells whether the name exists in policy only.
func (h *Handle[T]) Away() bool { return h.away }

// Store holds the components of one block. The zero value is not ready; use NewStore.
type Store[T any] struct {
	kind  block.Kind
	items atomic.Pointer[map[string]*Handle[T]]
	mu    sync.Mutex // serialises changes of items
}

// NewStore makes an empty store for one block.
func NewStore[T any](kind block.Kind) *Store[T] {
	s := &Store[T]{kind: kind}
	s.items.Store(&map[string]*Handle[T]{})
	return s
}

// Lookup finds a component by name. With no component of the block loaded at all the error's
// reason is fault.NoComponents, with another name fault.NoSuchComponent.
func (s *Store[T]) Lookup(name string) (*Handle[T], error) {
	items := *s.items.Load()
	if h, ok := items[name]; ok {
		return h, nil
	}
	if len(items) == 0 {
		return nil, fault.New("catalog.Lookup", fault.NotReady, "no %s component is configured", s.kind).With(fault.NoComponents)
	}
	return nil, fault.New("catalog.Lookup", fault.NotFound, "%s component %q is not configured", s.kind, name).With(fault.NoSuchComponent)
}

// List returns the handles sorted by name.
func (s *Store[T]) List() []*Handle[T] {
	items := *s.items.Load()
	out := make([]*Handle[T], 0, len(items))
	for _, h := range items {
		out = append(out, h)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Put adds or replaces a component and returns the one it replaced, which the caller drains
// and closes.
func (s *Store[T]) Put(h *Handle[T]) (old *Handle[T]) {
	h.store = s
	s.change(func(m map[string]*Handle[T]) { old, m[h.Name] = m[h.Name], h })
	return old
}

// Remove takes a component out and returns it; nil when there was none.
func (s *Store[T]) Remove(name string) (old *Handle[T]) {
	s.change(func(m map[string]*Handle[T]) {
		old = m[name]
		delete(m, name)
	})
	return old
}

// Close closes every component and empties the store. All are closed even if some fail; the
// first error is returned.
func (s *Store[T]) Close(ctx context.Context) error {
	var first error
	for _, h := range s.List() {
		s.Remove(h.Name)
		if err := h.close(ctx); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (s *Store[T]) change(f func(map[string]*Handle[T])) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make(map[string]*Handle[T], len(*s.items.Load())+1)
	for k, v := range *s.items.Load() {
		next[k] = v
	}
	f(next)
	s.items.Store(&next)
}

// Retired is a component that no call can reach any more, while some may still be inside.
type Retired struct {
	inside func() int64
	close  func(ctx context.Context) error
}

// Close closes the component when the last call has left it, or when ctx ends.
func (r *Retired) Close(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for r.inside() > 0 {
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	return r.close(context.WithoutCancel(ctx))
}

// retire makes a handle that was replaced or removed ready to be closed; nil for none.
func (h *Handle[T]) retire() *Retired {
	if h == nil || h.away {
		return nil
	}
	h.leave()
	return &Retired{inside: h.inside.Load, close: h.close}
}

// leave tells those who use the component for long that it goes.
func (h *Handle[T]) leave() {
	select {
	case <-h.gone:
	default:
		close(h.gone)
	}
}

// close closes the component, if the handle has one.
func (h *Handle[T]) close(ctx context.Context) error {
	c, ok := any(h.component).(block.Component)
	if h.away || !ok {
		return nil
	}
	return c.Close(ctx)
}

// Ping asks a component's server whether it answers.
func (s *Store[T]) Ping(ctx context.Context, name string) error {
	h, err := s.Lookup(name)
	if err != nil {
		return err
	}
	if c, ok := any(h.component).(block.Component); ok && !h.away {
		return c.Ping(ctx)
	}
	return nil
}
