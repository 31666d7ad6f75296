package state

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Watch tells of every change to the keys that begin with prefix, as the app writes them, until
// ctx ends; then it returns ctx's error. started is called once, before changed; both from one
// goroutine, and an error of theirs ends the watch and is returned. fault.Unavailable means that
// changes may have been missed: read all, then watch again. See block.StateWatch.
func (s *Service) Watch(ctx context.Context, store, prefix string, started func() error, changed func([]block.StateItem) error) error {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return err
	}
	desc := s.desc("watch", prefix, call.Safe)
	desc.Streamed, desc.Lasting = true, true
	own, err := s.reach(h, desc, prefix, fault.NoWatch)
	if err != nil {
		return err
	}
	if !catalog.Able[block.StateWatch](h) {
		return noWatch(store)
	}
	begin := time.Now()
	began := false
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.watches, func() { cancel(context.Cause(s.watches)) })()
	_, err = catalog.Do(ctx, h, desc, func(ctx context.Context, comp block.State) (struct{}, error) {
		watcher, ok := block.As[block.StateWatch](comp)
		if !ok {
			return struct{}{}, noWatch(store)
		}
		err := watcher.Watch(ctx, own.stored(prefix), func() {
			began = true
			s.record(store, "watch", begin, nil)
			if err := started(); err != nil {
				cancel(err)
			}
		}, func(items []block.StateItem) {
			if context.Cause(ctx) != nil {
				return
			}
			if items = own.only(items); len(items) == 0 {
				return
			}
			if err := changed(items); err != nil {
				cancel(err)
			}
		})
		if err == nil && ctx.Err() == nil {
			err = fault.New("state.Watch", fault.Unavailable, "state store %s ended the watch", store)
		}
		return struct{}{}, err
	}, nil)
	if !began {
		s.record(store, "watch", begin, err)
	}
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		return cause
	}
	return err
}

// EndWatches ends all watches, now and later, with fault.Unavailable: the sidecar is stopping.
func (s *Service) EndWatches() {
	s.endWatches(fault.New("state.Watch", fault.Unavailable, "the sidecar is stopping"))
}

func noWatch(store string) error {
	return fault.New("state.Watch", fault.Unsupported, "state store %s does not tell of changes", store).With(fault.NoWatch)
}
