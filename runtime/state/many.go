package state

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// maxParallel bounds the store operations one request of several items has in flight. Dapr
// starts them all at once, so that one request of a million keys is a million goroutines; 64
// keeps a remote store's round trips overlapped and one caller's share of the machine small.
const maxParallel = 64

// Result is one key's outcome in a request of several. Item.Key is the caller's.
type Result struct {
	block.StateItem
	Err error
}

// errUnread marks a key no attempt has read yet. It never leaves the package: read as "no
// error", such a key would look like a missing one.
var errUnread = fault.New("state.GetMany", fault.Internal, "not read")

// GetMany reads several keys and returns one result per key, in the order of keys. A key that
// cannot be read has its error in its result. The error returned is about the request as a
// whole: the store, an illegal key among the keys, a call that policy refused, a batch the
// store failed. parallelism bounds the reads in flight where the store reads one by one; 0 and
// less mean as many as allowed (64).
func (s *Service) GetMany(ctx context.Context, store string, keys []string, opts ReadOptions, parallelism int) ([]Result, error) {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return nil, err
	}
	full := make([]string, len(keys))
	for i, k := range keys {
		if full[i], err = s.scope(h.Info, k); err != nil {
			return nil, err
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	start := time.Now()
	results := make([]Result, len(keys))
	for i := range results {
		results[i].Err = errUnread
	}
	desc := call.Desc{Op: "bulkGet", Resource: keys[0], Safety: call.Safe}
	_, err = call.Do(ctx, h.Target, desc, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, readAll(ctx, h, full, opts.read(), parallelism, results)
	})
	s.record(store, "bulk_get", start, err)
	for i := range results {
		if results[i].Err == errUnread {
			return nil, err
		}
		results[i].Key = keys[i]
	}
	return results, nil
}

// readAll fills results and returns the first error among them, for the policy to judge. A
// repeated attempt reads only what is not read yet.
func readAll(ctx context.Context, h *catalog.Handle[block.State], full []string, opts block.StateRead, parallelism int, results []Result) error {
	if b, ok := h.Component.(block.StateBatch); ok {
		items, err := b.GetMany(ctx, full, opts)
		if err != nil {
			return err
		}
		if len(items) != len(full) {
			return fault.New("state.GetMany", fault.Internal, "state store %s answered %d items to %d keys", h.Name, len(items), len(full))
		}
		for i := range results {
			results[i] = Result{StateItem: items[i]}
		}
		return nil
	}
	each(len(full), parallelism, func(i int) {
		if r := &results[i]; r.Err != nil {
			r.StateItem, r.Err = h.Component.Get(ctx, full[i], opts)
		}
	})
	for i := range results {
		if results[i].Err != nil {
			return results[i].Err
		}
	}
	return nil
}

// Set writes items. All are checked before any is written. One item is one write; several are
// one exchange where the store offers batches, else parallel writes. A batch is not atomic:
// items without an error of their own are stored although Set returns an error. That error is
// the first conflict or bad etag among the items, or else the first error.
func (s *Service) Set(ctx context.Context, store string, items []Item) error {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return err
	}
	ws := make([]block.StateWrite, len(items))
	conditional := false
	for i := range items {
		if items[i].Key == "" {
			return fault.New("state.Set", fault.Invalid, "state key cannot be empty").With(fault.EmptyName)
		}
		if ws[i], err = s.write(h.Info, &items[i]); err != nil {
			return err
		}
		conditional = conditional || ws[i].ETag != "" || ws[i].FirstWrite
	}
	if len(items) == 0 {
		return nil
	}
	start := time.Now()
	desc := call.Desc{Op: "set", Resource: items[0].Key, Safety: safety(conditional)}
	err = writeMany(ctx, h.Target, desc, ws, func(w *block.StateWrite) string { return w.Key },
		func(ctx context.Context, w *block.StateWrite) error { return h.Component.Set(ctx, *w) },
		batchOf(h.Component, block.StateBatch.SetMany))
	s.record(store, "set", start, err)
	return err
}

// DeleteMany removes several keys, with Set's rules for checks, batches and errors.
func (s *Service) DeleteMany(ctx context.Context, store string, items []Item) error {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return err
	}
	ds := make([]block.StateDelete, len(items))
	conditional := false
	for i := range items {
		if ds[i], err = s.removal(h.Info, items[i]); err != nil {
			return err
		}
		conditional = conditional || ds[i].ETag != ""
	}
	if len(items) == 0 {
		return nil
	}
	start := time.Now()
	desc := call.Desc{Op: "bulkDelete", Resource: items[0].Key, Safety: safety(conditional)}
	err = writeMany(ctx, h.Target, desc, ds, func(d *block.StateDelete) string { return d.Key },
		func(ctx context.Context, d *block.StateDelete) error { return h.Component.Delete(ctx, *d) },
		batchOf(h.Component, block.StateBatch.DeleteMany))
	s.record(store, "bulk_delete", start, err)
	return err
}

// batchOf binds a batch method of the store; nil when the store has none.
func batchOf[T any](store block.State, method func(block.StateBatch, context.Context, []T) []error) func(context.Context, []T) []error {
	b, ok := store.(block.StateBatch)
	if !ok {
		return nil
	}
	return func(ctx context.Context, ts []T) []error { return method(b, ctx, ts) }
}

// writeMany runs writes or removals as one call. An attempt after the first repeats only the
// items that failed for another reason than their etag: those would fail again, and items
// already written must not be written twice.
func writeMany[T any](ctx context.Context, t *call.Target, desc call.Desc, all []T, key func(*T) string,
	one func(context.Context, *T) error, batch func(context.Context, []T) []error) error {
	pending := all
	var refused error // first etag error of any attempt
	_, err := call.Do(ctx, t, desc, func(ctx context.Context) (struct{}, error) {
		errs := attempt(ctx, pending, key, one, batch)
		left, first := []T(nil), error(nil)
		for i, err := range errs {
			switch {
			case err == nil:
			case isEtag(err):
				if refused == nil {
					refused = err
				}
			default:
				if first == nil {
					first = err
				}
				left = append(left, pending[i])
			}
		}
		pending = left
		if first == nil {
			first = refused
		}
		return struct{}{}, first
	})
	if err != nil && refused != nil {
		return refused
	}
	return err
}

// attempt returns nil when all succeeded, else one error or nil per item.
func attempt[T any](ctx context.Context, items []T, key func(*T) string,
	one func(context.Context, *T) error, batch func(context.Context, []T) []error) []error {
	switch len(items) {
	case 0:
		return nil // what is left of an earlier attempt has only etag errors
	case 1:
		if err := one(ctx, &items[0]); err != nil {
			return []error{err}
		}
		return nil
	}
	if batch != nil {
		errs := batch(ctx, items)
		if errs != nil && len(errs) != len(items) {
			return broken(len(items), len(errs))
		}
		return errs
	}
	parallelism := maxParallel
	if repeats(items, key) {
		parallelism = 1 // two writes of one key happen in the order they were given
	}
	errs := make([]error, len(items))
	each(len(items), parallelism, func(i int) { errs[i] = one(ctx, &items[i]) })
	return errs
}

// broken is the answer to a store that breaks the batch contract: nothing can be said of any
// item, so none counts as written.
func broken(want, got int) []error {
	errs := make([]error, want)
	for i := range errs {
		errs[i] = fault.New("state.batch", fault.Internal, "the store answered %d results to %d items", got, want)
	}
	return errs
}

func isEtag(err error) bool {
	c := fault.Of(err)
	return c == fault.Conflict || c == fault.BadEtag
}

func repeats[T any](items []T, key func(*T) string) bool {
	seen := make(map[string]struct{}, len(items))
	for i := range items {
		k := key(&items[i])
		if _, dup := seen[k]; dup {
			return true
		}
		seen[k] = struct{}{}
	}
	return false
}

// each runs f(0) … f(n-1) on at most parallelism goroutines, the caller's among them. A panic
// is carried to the caller, where the call turns it into an error; left in the goroutine it
// would end the process.
func each(n, parallelism int, f func(int)) {
	if parallelism <= 0 || parallelism > maxParallel {
		parallelism = maxParallel
	}
	var next atomic.Int64
	var once sync.Once
	var caught any
	work := func() {
		defer func() {
			if p := recover(); p != nil {
				once.Do(func() { caught = p })
			}
		}()
		for {
			i := int(next.Add(1)) - 1
			if i >= n {
				return
			}
			f(i)
		}
	}
	var wg sync.WaitGroup
	for range min(n, parallelism) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	if caught != nil {
		panic(caught)
	}
}
