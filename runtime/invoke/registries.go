package invoke

import (
	"context"
	"errors"
	"sync"

	"github.com/mecha-project/mecha/components/block"
)

// Registries makes one registry of several: an instance known to any of them is known. It
// announces to all that take announcements. It cannot be watched, because not all of them
// can.
func Registries(all ...block.Registry) block.Registry { return registries(all) }

type registries []block.Registry

var (
	_ block.Registry  = registries(nil)
	_ block.Registrar = registries(nil)
)

// Resolve asks all at once. One that fails is passed over as long as another knows the name.
func (rs registries) Resolve(ctx context.Context, name block.Name) ([]block.Instance, error) {
	found := make([][]block.Instance, len(rs))
	errs := make([]error, len(rs))
	var wg sync.WaitGroup
	for i, r := range rs {
		wg.Go(func() { found[i], errs[i] = r.Resolve(ctx, name) })
	}
	wg.Wait()
	seen := map[string]bool{}
	var out []block.Instance
	for _, list := range found {
		for _, in := range list {
			if !seen[in.ID] {
				seen[in.ID] = true
				out = append(out, in)
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.Join(errs...)
	}
	return out, nil
}

// Register announces to all.
func (rs registries) Register(ctx context.Context, self block.Instance) error {
	return rs.each(func(r block.Registry) error {
		if a, ok := r.(block.Registrar); ok {
			return a.Register(ctx, self)
		}
		return nil
	})
}

// Deregister withdraws from all.
func (rs registries) Deregister(ctx context.Context) error {
	return rs.each(func(r block.Registry) error {
		if a, ok := r.(block.Registrar); ok {
			return a.Deregister(ctx)
		}
		return nil
	})
}

// Ping reports the first that does not answer.
func (rs registries) Ping(ctx context.Context) error {
	return rs.each(func(r block.Registry) error { return r.Ping(ctx) })
}

// Close closes all.
func (rs registries) Close(ctx context.Context) error {
	return rs.each(func(r block.Registry) error { return r.Close(ctx) })
}

func (rs registries) each(f func(block.Registry) error) error {
	var errs []error
	for _, r := range rs {
		errs = append(errs, f(r))
	}
	return errors.Join(errs...)
}
