package catalog

import (
	"bytes"
	"context"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Able tells whether a component offers an optional interface.
func Able[X, T any](h *Handle[T]) bool {
	h, err := h.at("")
	if err != nil {
		return false
	}
	_, ok := block.As[X](h.component)
	return ok
}

// at is the handle that an attempt goes to: the one policy names, or h itself.
func (h *Handle[T]) at(to string) (*Handle[T], error) {
	if to == h.Name || to == "" {
		if !h.away {
			return h, nil
		}
		if to == "" && h.Target != nil { // an ability of where calls may go
			to = anyDestination(h.Target.Chain())
		}
	}
	if to == "" || h.store == nil {
		return nil, fault.New("catalog.Do", fault.NotFound, "%q is a name of a traffic policy, which sends its calls nowhere", h.Name).With(fault.NoSuchComponent)
	}
	dest, ok := (*h.store.items.Load())[to]
	if !ok || dest.away {
		return nil, fault.New("catalog.Do", fault.NotReady, "traffic policy sends this call to component %q, which is not loaded", to).
			WithSent(fault.SentNever)
	}
	return dest, nil
}

func anyDestination(c *call.Chain) string {
	if c == nil {
		return ""
	}
	if d, ok := c.About.(interface{ Destinations() []string }); ok && len(d.Destinations()) > 0 {
		return d.Destinations()[0]
	}
	return ""
}

// enter is the handle that an attempt uses, counted as in use until the attempt is over. A
// component that was replaced since its handle was looked up is not entered, but the one in its
// place: whoever closes it has waited for those inside, not for those on their way.
func (h *Handle[T]) enter(to string) (*Handle[T], error) {
	for {
		dest, err := h.at(to)
		if err != nil {
			return nil, err
		}
		dest.inside.Add(1)
		if dest.store == nil {
			return dest, nil
		}
		now, ok := (*dest.store.items.Load())[dest.Name]
		if now == dest {
			return dest, nil
		}
		dest.inside.Add(-1)
		if !ok || now.away {
			return nil, fault.New("catalog.Do", fault.NotFound, "component %q has been removed", dest.Name).With(fault.NoSuchComponent).WithSent(fault.SentNever)
		}
		h, to = now, ""
	}
}

// Do runs fn on the component as one call under its policy: fn is called once per attempt,
// with the component that policy chose for it. shadow, which may be nil, makes a copy of the
// operation for a mirror: it is called only if there is one and fn has succeeded, and what it
// returns must not use anything that ends with the call.
func Do[T, R any](ctx context.Context, h *Handle[T], d call.Desc, fn func(context.Context, T) (R, error), shadow func() func(context.Context, T) error) (R, error) {
	var out R
	c, err := call.Begin(ctx, h.Target, d)
	if err != nil {
		return out, err
	}
	for c.Next() {
		out, err = attempt(c.Context(), h, c.To(), fn)
		c.Done(err)
	}
	if m := c.Policy().Mirror; m != nil && shadow != nil && c.Err == nil {
		mirror(c, m, h, shadow)
	}
	return out, c.End(c.Err)
}

func attempt[T, R any](ctx context.Context, h *Handle[T], to string, fn func(context.Context, T) (R, error)) (out R, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = call.Panicked(p)
		}
	}()
	dest, err := h.enter(to)
	if err != nil {
		return out, err
	}
	defer dest.inside.Add(-1)
	return fn(ctx, dest.component)
}

// mirror hands a copy of the operation to the mirror. It is a call of its own, on the mirror's
// destination and under that one's policy.
func mirror[T any](c *call.Call, m call.Mirror, h *Handle[T], shadow func() func(context.Context, T) error) {
	to, ok := m.Takes(c)
	if !ok {
		return
	}
	d := c.Desc
	d.Shadow, d.Attrs = true, nil
	fn := shadow()
	m.Go(d.Key, func(ctx context.Context) error { return h.shadow(ctx, to, d, fn) })
}

func (h *Handle[T]) shadow(ctx context.Context, to string, d call.Desc, fn func(context.Context, T) error) error {
	dest, err := h.at(to)
	if err != nil {
		return err
	}
	_, err = Do(ctx, dest, d, func(ctx context.Context, c T) (struct{}, error) { return struct{}{}, fn(ctx, c) }, nil)
	return err
}

// Reading is a read that policy may hedge or compare with a mirror's: an operation with what
// it needs given as a value, so that it can outlive the call.
type Reading[T, A, R any] struct {
	Fn   func(context.Context, T, A) (R, error)
	Keep func(A) A         // a copy of the argument that outlives the call
	Same func(a, b R) bool // tells whether two stores answered alike; nil: not compared
}

// arg is what a racing attempt needs.
type readArg[T, A any] struct {
	h   *Handle[T]
	arg A
}

// Read runs a read as one call under the component's policy.
func Read[T, A, R any](ctx context.Context, h *Handle[T], d call.Desc, arg A, r *Reading[T, A, R]) (R, error) {
	c, err := call.Begin(ctx, h.Target, d)
	if err != nil {
		var none R
		return none, err
	}
	if c.Policy().Hedge == nil && c.Policy().Mirror == nil { // the usual case, without copies
		var out R
		for c.Next() {
			out, err = readOnce(c.Context(), h, c.To(), arg, r.Fn)
			c.Done(err)
		}
		return out, c.End(c.Err)
	}
	out, err := call.Run(c, readArg[T, A]{h, arg}, func(a readArg[T, A]) readArg[T, A] { a.arg = r.Keep(a.arg); return a }, nil,
		func(ctx context.Context, t *call.Try, a readArg[T, A]) (R, call.Status, error) {
			out, err := readOnce(ctx, a.h, t.To, a.arg, r.Fn)
			return out, call.Status{}, err
		})
	if m := c.Policy().Mirror; m != nil && err == nil && r.Same != nil && !d.Shadow && m.Compares(c) {
		compare(c, m, h, d, r.Keep(arg), out, r)
	}
	return out, c.End(err)
}

func readOnce[T, A, R any](ctx context.Context, h *Handle[T], to string, arg A, fn func(context.Context, T, A) (R, error)) (out R, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = call.Panicked(p)
		}
	}()
	dest, err := h.enter(to)
	if err != nil {
		return out, err
	}
	defer dest.inside.Add(-1)
	return fn(ctx, dest.component, arg)
}

// compare reads the same from the mirror's destination, behind the writes of that key, and
// reports whether it is the same.
func compare[T, A, R any](c *call.Call, m call.Mirror, h *Handle[T], d call.Desc, arg A, first R, r *Reading[T, A, R]) {
	to, ok := m.Takes(c)
	if !ok {
		return
	}
	d.Shadow, d.Attrs = true, nil
	m.Go(d.Key, func(ctx context.Context) error {
		dest, err := h.at(to)
		if err != nil {
			return err
		}
		second, err := Do(ctx, dest, d, func(ctx context.Context, comp T) (R, error) { return r.Fn(ctx, comp, arg) }, nil)
		if err == nil {
			m.Compared(r.Same(first, second))
		}
		return err
	})
}

// SameItem tells whether two stores hold the same value; versions and times of expiry are each
// store's own.
func SameItem(a, b block.StateItem) bool {
	return a.Exists == b.Exists && bytes.Equal(a.Value, b.Value)
}

// Parts divides the items of a request by the destination that policy sends each key to: one
// list of indexes per destination, in the order of first appearance. It is nil when policy does
// not divide the store.
func Parts[T any](h *Handle[T], d call.Desc, n int, key func(int) string) [][]int {
	if n < 2 || !Divided(h, d) {
		return nil
	}
	place := call.PolicyOf(h.Target, d).Place
	var parts [][]int
	at := map[string]int{}
	for i := range n {
		to := place(key(i))
		p, seen := at[to]
		if !seen {
			p = len(parts)
			at[to] = p
			parts = append(parts, nil)
		}
		parts[p] = append(parts[p], i)
	}
	return parts
}

// Divided tells whether policy sends the keys of a store to different ones.
func Divided[T any](h *Handle[T], d call.Desc) bool {
	return h.Target.Chain() != nil && call.PolicyOf(h.Target, d).Place != nil
}
