package state

import (
	"bytes"
	"context"
	"strings"
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
	err = s.apart(h, "bulkGet", len(keys), func(i int) string { return keys[i] }, func(desc call.Desc, some []int) error {
		desc.Safety = call.Safe
		part, mine := full, results
		if some != nil {
			part, mine = pickOf(full, some), pickOf(results, some)
		}
		_, err := catalog.Do(ctx, h, desc, func(ctx context.Context, store block.State) (struct{}, error) {
			return struct{}{}, readAll(ctx, h.Name, store, part, opts.read(), parallelism, mine)
		}, nil)
		for i, at := range some {
			if results[at] = mine[i]; results[at].Err == errUnread {
				results[at].Err = err // the other stores have answered
			}
		}
		return err
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

// apart runs do once for all items of a request, or, where policy splits the store by key, once
// for the items of each part (their indexes in some), and returns the first error. A request of
// one item has nothing to split.
func (s *Service) apart(h *catalog.Handle[block.State], op string, n int, key func(int) string, do func(desc call.Desc, some []int) error) error {
	desc := s.desc(op, key(0), call.Idempotent)
	parts := catalog.Parts(h, desc, n, key)
	if len(parts) < 2 {
		return do(desc, nil)
	}
	errs := make([]error, len(parts))
	each(len(parts), 0, func(i int) {
		errs[i] = do(s.desc(op, key(parts[i][0]), call.Idempotent), parts[i])
	})
	var first error
	for _, err := range errs {
		if first == nil || (!isEtag(first) && isEtag(err)) {
			first = err
		}
	}
	return first
}

func pickOf[T any](all []T, some []int) []T {
	out := make([]T, len(some))
	for i, at := range some {
		out[i] = all[at]
	}
	return out
}

// readAll fills results and returns the first error among them, for the policy to judge. A
// repeated attempt reads only what is not read yet.
func readAll(ctx context.Context, name string, store block.State, full []string, opts block.StateRead, parallelism int, results []Result) error {
	if b, ok := block.As[block.StateBatch](store); ok {
		items, err := b.GetMany(ctx, full, opts)
		if err != nil {
			return err
		}
		if len(items) != len(full) {
			return fault.New("state.GetMany", fault.Internal, "state store %s answered %d items to %d keys", name, len(items), len(full))
		}
		var first error
		for i := range results {
			results[i] = Result{StateItem: items[i], Err: items[i].Err}
			if first == nil {
				first = items[i].Err
			}
		}
		return first
	}
	each(len(full), parallelism, func(i int) {
		if r := &results[i]; r.Err != nil {
			r.StateItem, r.Err = store.Get(ctx, full[i], opts)
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
	err = s.apart(h, "set", len(ws), func(i int) string { return items[i].Key }, func(desc call.Desc, some []int) error {
		desc.Safety = safety(conditional)
		part := ws
		if some != nil {
			part = pickOf(ws, some)
		}
		return writeMany(ctx, h, desc, part, &setting)
	})
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
	err = s.apart(h, "bulkDelete", len(ds), func(i int) string { return items[i].Key }, func(desc call.Desc, some []int) error {
		desc.Safety = safety(conditional)
		part := ds
		if some != nil {
			part = pickOf(ds, some)
		}
		return writeMany(ctx, h, desc, part, &removing)
	})
	s.record(store, "bulk_delete", start, err)
	return err
}

// writing is how items of one kind are written to a store.
type writing[T any] struct {
	key    func(*T) string
	one    func(context.Context, block.State, *T) error
	batch  func(block.StateBatch, context.Context, []T) []error
	shadow func(T) T // a copy that outlives the request, for a store with versions of its own
}

var setting = writing[block.StateWrite]{
	key:   func(w *block.StateWrite) string { return w.Key },
	one:   func(ctx context.Context, s block.State, w *block.StateWrite) error { return s.Set(ctx, *w) },
	batch: block.StateBatch.SetMany,
	shadow: func(w block.StateWrite) block.StateWrite {
		return block.StateWrite{Key: strings.Clone(w.Key), Value: bytes.Clone(w.Value), JSON: w.JSON, Strong: w.Strong, TTL: w.TTL}
	},
}

var removing = writing[block.StateDelete]{
	key:    func(d *block.StateDelete) string { return d.Key },
	one:    func(ctx context.Context, s block.State, d *block.StateDelete) error { return s.Delete(ctx, *d) },
	batch:  block.StateBatch.DeleteMany,
	shadow: func(d block.StateDelete) block.StateDelete { return block.StateDelete{Key: strings.Clone(d.Key)} },
}

// writeMany runs writes or removals as one call. An attempt after the first repeats only the
// items that failed for another reason than their etag: those would fail again, and items
// already written must not be written twice.
func writeMany[T any](ctx context.Context, h *catalog.Handle[block.State], desc call.Desc, all []T, how *writing[T]) error {
	pending := all
	var refused error // first etag error of any attempt
	_, err := catalog.Do(ctx, h, desc, func(ctx context.Context, store block.State) (struct{}, error) {
		errs := attempt(ctx, store, pending, how)
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
	}, func() func(context.Context, block.State) error {
		copies := make([]T, len(all))
		for i := range all {
			copies[i] = how.shadow(all[i])
		}
		return func(ctx context.Context, store block.State) error {
			return firstOf(attempt(ctx, store, copies, how))
		}
	})
	if err != nil && refused != nil {
		return refused
	}
	return err
}

func firstOf(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// attempt returns nil when all succeeded, else one error or nil per item.
func attempt[T any](ctx context.Context, store block.State, items []T, how *writing[T]) []error {
	switch len(items) {
	case 0:
		return nil // what is left of an earlier attempt has only etag errors
	case 1:
		if err := how.one(ctx, store, &items[0]); err != nil {
			return []error{err}
		}
		return nil
	}
	if b, ok := block.As[block.StateBatch](store); ok {
		errs := how.batch(b, ctx, items)
		if errs != nil && len(errs) != len(items) {
			return broken(len(items), len(errs))
		}
		return errs
	}
	parallelism := maxParallel
	if repeats(items, how.key) {
		parallelism = 1 // two writes of one key happen in the order they were given
	}
	errs := make([]error, len(items))
	each(len(items), parallelism, func(i int) { errs[i] = how.one(ctx, store, &items[i]) })
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
