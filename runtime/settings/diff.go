package settings

import (
	"reflect"

	"github.com/mecha-project/mecha/components/conf"
)

// Diff is what changed between two readings. Resources are compared by kind and name, and
// by content without position: moving a document within a file changes nothing.
type Diff struct {
	Components    Changes[Component]
	Subscriptions Changes[Subscription]
	HTTPEndpoints Changes[HTTPEndpoint]
	Resiliencies  Changes[Resiliency]
	Policies      Changes[TrafficPolicy]
	Findings      conf.Findings // what is wrong with the files now; the rest of the diff is usable
}

// Changes are the differences in one kind.
type Changes[T any] struct {
	Added, Changed []T // as they are now
	Removed        []T // as they were
}

// Empty tells whether there is nothing to do in this kind.
func (c *Changes[T]) Empty() bool { return len(c.Added)+len(c.Changed)+len(c.Removed) == 0 }

// Empty tells whether there is nothing to do or to say.
func (d *Diff) Empty() bool {
	return d.Components.Empty() && d.Subscriptions.Empty() && d.HTTPEndpoints.Empty() && d.Resiliencies.Empty() && d.Policies.Empty() && len(d.Findings) == 0
}

// Compare tells what changed between two readings.
func Compare(before, now *Resources) (d Diff) {
	d.compare(before, now)
	return d
}

func (d *Diff) compare(before, now *Resources) {
	d.Components.compare(before.Components, now.Components, func(c *Component) *Resource { return &c.Resource })
	d.Subscriptions.compare(before.Subscriptions, now.Subscriptions, func(s *Subscription) *Resource { return &s.Resource })
	d.HTTPEndpoints.compare(before.HTTPEndpoints, now.HTTPEndpoints, func(h *HTTPEndpoint) *Resource { return &h.Resource })
	d.Resiliencies.compare(before.Resiliencies, now.Resiliencies, func(r *Resiliency) *Resource { return &r.Resource })
	d.Policies.compare(before.Policies, now.Policies, func(p *TrafficPolicy) *Resource { return &p.Resource })
}

func (c *Changes[T]) compare(before, now []T, of func(*T) *Resource) {
	old := map[string]T{}
	for i := range before {
		if name := of(&before[i]).Name; !hasKey(old, name) { // of several with one name the first counts
			old[name] = before[i]
		}
	}
	seen := map[string]bool{}
	for i := range now {
		name := of(&now[i]).Name
		if seen[name] {
			continue
		}
		seen[name] = true
		was, existed := old[name]
		switch {
		case !existed:
			c.Added = append(c.Added, now[i])
		case !same(reflect.ValueOf(was), reflect.ValueOf(now[i])):
			c.Changed = append(c.Changed, now[i])
		}
	}
	for i := range before {
		name := of(&before[i]).Name
		if !seen[name] {
			seen[name] = true
			c.Removed = append(c.Removed, before[i])
		}
	}
}

func hasKey[V any](m map[string]V, key string) bool { _, ok := m[key]; return ok }

// same compares two values of one type, leaving out the fields File and Line.
func same(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Pointer:
		if a.IsNil() || b.IsNil() {
			return a.IsNil() == b.IsNil()
		}
		return same(a.Elem(), b.Elem())
	case reflect.Struct:
		for i := range a.NumField() {
			if name := a.Type().Field(i).Name; name == "File" || name == "Line" || name == "Column" {
				continue
			}
			if !same(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	case reflect.Slice:
		if a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !same(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Map:
		if a.Len() != b.Len() {
			return false
		}
		for _, k := range a.MapKeys() {
			if v := b.MapIndex(k); !v.IsValid() || !same(a.MapIndex(k), v) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// blank tells whether a file holds nothing at all, not even mistakes.
func (r *Resources) blank() bool {
	return len(r.Components)+len(r.Subscriptions)+len(r.HTTPEndpoints)+len(r.Resiliencies)+len(r.Policies)+len(r.Configurations)+len(r.Findings)+len(r.Ignored) == 0
}
