package pluggable

import (
	"bytes"
	"context"
	"errors"

	proto "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// The protocol's bulk calls are optional, which only calling them tells, and those that write have
// one error for all items. So they carry what cannot be refused one by one: writes and removals
// without conditions, of keys that are all different. The rest goes one after another.

// GetMany implements block.StateBatch.
func (s *state) GetMany(ctx context.Context, keys []string, opts block.StateRead) ([]block.StateItem, error) {
	const op fault.Op = "pluggable.state.GetMany"
	if len(keys) == 0 {
		return nil, nil
	}
	if !s.single.Load() {
		out, err := s.bulkGet(ctx, op, keys, opts)
		if fault.Of(err) != fault.Unsupported {
			return out, err
		}
		s.single.Store(true)
	}
	out := make([]block.StateItem, len(keys))
	for i, k := range keys {
		var err error
		if out[i], err = s.Get(ctx, k, opts); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *state) bulkGet(ctx context.Context, op fault.Op, keys []string, opts block.StateRead) ([]block.StateItem, error) {
	r := &proto.BulkGetRequest{Options: &proto.BulkGetRequestOptions{}}
	at := map[string][]int{} // a key may be asked for twice, and is sent once
	for i, k := range keys {
		if at[k] == nil {
			r.Items = append(r.Items, getRequest(k, opts))
		}
		at[k] = append(at[k], i)
	}
	out := make([]block.StateItem, len(keys))
	for i, k := range keys {
		out[i].Key = k // one that the answer leaves out is missing
	}
	err := s.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
		a, err := proto.NewStateStoreClient(now.cc).BulkGet(ctx, r, o...)
		if err != nil {
			return err
		}
		for _, it := range a.GetItems() {
			if it.GetError() != "" {
				return fault.New(op, fault.Internal, "key %q: %s", it.GetKey(), it.GetError()).WithSent(fault.SentMaybe)
			}
			for n, i := range at[it.GetKey()] {
				out[i] = item(it.GetKey(), it.GetData(), it.GetEtag(), it.GetMetadata())
				if n > 0 {
					out[i].Value = bytes.Clone(out[i].Value)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// SetMany implements block.StateBatch.
func (s *state) SetMany(ctx context.Context, ws []block.StateWrite) []error {
	const op fault.Op = "pluggable.state.SetMany"
	return many(s, ws, func(w *block.StateWrite) (string, bool) { return w.Key, w.ETag != "" || w.FirstWrite },
		func(w *block.StateWrite) error { return s.Set(ctx, *w) },
		func(ws []block.StateWrite) error {
			r := &proto.BulkSetRequest{Options: &proto.BulkSetRequestOptions{}}
			for i := range ws {
				r.Items = append(r.Items, setRequest(&ws[i]))
			}
			return s.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
				for i := range ws {
					if err := now.expressible(op, &ws[i]); err != nil {
						return err
					}
				}
				_, err := proto.NewStateStoreClient(now.cc).BulkSet(ctx, r, o...)
				return err
			})
		})
}

// DeleteMany implements block.StateBatch.
func (s *state) DeleteMany(ctx context.Context, ds []block.StateDelete) []error {
	const op fault.Op = "pluggable.state.DeleteMany"
	return many(s, ds, func(d *block.StateDelete) (string, bool) { return d.Key, d.ETag != "" },
		func(d *block.StateDelete) error { return s.Delete(ctx, *d) },
		func(ds []block.StateDelete) error {
			r := &proto.BulkDeleteRequest{Options: &proto.BulkDeleteRequestOptions{}}
			for i := range ds {
				r.Items = append(r.Items, deleteRequest(ds[i].Key, ""))
			}
			return s.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
				_, err := proto.NewStateStoreClient(now.cc).BulkDelete(ctx, r, o...)
				return err
			})
		})
}

// many does all items in one call if that can be, else one after another.
func many[T any](s *state, items []T, about func(*T) (key string, conditional bool), one func(*T) error, all func([]T) error) []error {
	if len(items) == 0 {
		return nil
	}
	errs := make([]error, len(items))
	if !s.single.Load() && plain(items, about) {
		err := all(items)
		if err == nil {
			return nil
		}
		if status.Code(errors.Unwrap(err)) == codes.Unimplemented {
			s.single.Store(true)
		}
		if fault.Of(err) != fault.Unsupported { // else it may be one item's, or the bulk call's
			for i := range errs {
				errs[i] = err
			}
			return errs
		}
	}
	failed := false
	for i := range items {
		errs[i] = one(&items[i])
		failed = failed || errs[i] != nil
	}
	if !failed {
		return nil
	}
	return errs
}

func plain[T any](items []T, about func(*T) (string, bool)) bool {
	seen := make(map[string]bool, len(items))
	for i := range items {
		key, conditional := about(&items[i])
		if conditional || seen[key] {
			return false
		}
		seen[key] = true
	}
	return true
}
