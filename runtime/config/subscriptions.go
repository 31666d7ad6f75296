package config

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// subscription is one follower of keys.
type subscription struct {
	s    *Service
	id   string
	h    *catalog.Handle[block.Configuration]
	req  Request
	send func(context.Context, map[string]block.ConfigItem) error
	stop context.CancelCauseFunc
	done chan struct{} // closed when nothing more is sent

	opened func() error                // runs once, before anything is sent; touched by run's goroutine only
	told   map[string]block.ConfigItem // what was sent last of each key; touched by the telling goroutine only
}

// How a subscription ended, when its owner did not leave.
var (
	errUnsubscribed = errors.New("unsubscribed")
	errClosing      = errors.New("the sidecar is stopping")
)

// Follow serves a subscription on a stream: opened is called with its id as soon as no later
// change can be missed, then update with every change, one at a time, until ctx ends (its error
// is returned), the subscription is given up with Unsubscribe or the service closes (nil). An
// error of opened or update ends it too.
func (s *Service) Follow(ctx context.Context, r Request, opened func(id string) error, update func(id string, items map[string]block.ConfigItem) error) error {
	sub, sctx, err := s.begin(ctx, r)
	if err != nil {
		return err
	}
	sub.opened = func() error { return opened(sub.id) }
	sub.send = func(_ context.Context, items map[string]block.ConfigItem) error { return update(sub.id, items) }
	err = sub.run(sctx)
	switch cause := context.Cause(sctx); {
	case errors.Is(cause, errUnsubscribed), errors.Is(cause, errClosing):
		return nil
	case ctx.Err() != nil:
		return fault.Wrap("config.Follow", fault.Canceled, ctx.Err())
	}
	return err
}

// FollowForApp makes a subscription whose updates are calls to the app, and returns its id. It
// lasts until Unsubscribe or Close.
func (s *Service) FollowForApp(ctx context.Context, r Request) (id string, err error) {
	if err := s.Check(r.Store); err != nil {
		return "", err
	}
	if !s.o.App.Exists() {
		return "", noApp()
	}
	sub, sctx, err := s.begin(s.life, r)
	if err != nil {
		return "", err
	}
	ready, failed := make(chan struct{}), make(chan error, 1)
	sub.opened = func() error { close(ready); return nil }
	sub.send = sub.toApp()
	s.work.Go(func() { failed <- sub.run(sctx) })
	select {
	case <-ready:
		return sub.id, nil
	case err := <-failed:
		if err == nil {
			err = fault.New("config.Subscribe", fault.NotReady, "the sidecar is stopping")
		}
		return "", err
	case <-ctx.Done(): // nobody would know the id
		sub.stop(errUnsubscribed)
		return "", fault.Wrap("config.Subscribe", fault.Canceled, ctx.Err())
	}
}

// Unsubscribe gives a subscription up and returns when it sends nothing any more, or ctx ends.
// With no such id the reason is NoSubscription.
func (s *Service) Unsubscribe(ctx context.Context, id string) error {
	start := time.Now()
	s.mu.Lock()
	sub := s.subs[id]
	delete(s.subs, id)
	s.mu.Unlock()
	if sub == nil {
		return fault.New("config.Unsubscribe", fault.NotFound, "subscription with id %s does not exist", id).With(NoSubscription)
	}
	sub.stop(errUnsubscribed)
	select {
	case <-sub.done:
	case <-ctx.Done(): // it ends all the same
	}
	s.record(sub.req.Store, "unsubscribe", start, nil)
	return nil
}

// Close ends all subscriptions, and waits for them as long as ctx lasts.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	s.over = true
	all := make([]*subscription, 0, len(s.subs))
	for _, sub := range s.subs {
		all = append(all, sub)
	}
	s.mu.Unlock()
	for _, sub := range all {
		sub.stop(errClosing)
	}
	s.end()
	for _, sub := range all {
		select {
		case <-sub.done:
		case <-ctx.Done():
			return fault.Wrap("config.Close", fault.Deadline, ctx.Err())
		}
	}
	s.work.Wait()
	return nil
}

// begin registers a subscription that ends with ctx.
func (s *Service) begin(ctx context.Context, r Request) (*subscription, context.Context, error) {
	h, err := s.stores.Lookup(r.Store)
	if err != nil {
		return nil, nil, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	sub := &subscription{s: s, id: uuid.NewString(), h: h, req: r.keep(), stop: stop, done: make(chan struct{}), told: map[string]block.ConfigItem{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		stop(errClosing)
		return nil, nil, fault.New("config.Subscribe", fault.NotReady, "the sidecar is stopping").WithSent(fault.SentNever)
	}
	s.subs[sub.id] = sub
	return sub, ctx, nil
}

// Pauses before a subscription that its store has dropped is made again.
const (
	firstPause = time.Second
	lastPause  = 30 * time.Second
)

// run follows the store until ctx ends. A store that cannot go on is asked again, and what it
// missed meanwhile is read. It returns an error of the first attempt, and one of who is told.
func (sub *subscription) run(ctx context.Context) error {
	defer func() {
		sub.stop(nil)
		sub.s.mu.Lock()
		delete(sub.s.subs, sub.id)
		sub.s.mu.Unlock()
		close(sub.done)
	}()
	pause := firstPause
	for again := false; ; again = true {
		at := time.Now()
		began, listener, err := sub.once(ctx, again)
		switch {
		case ctx.Err() != nil:
			return nil
		case listener != nil:
			return listener
		case !again && !began:
			return err
		case began && time.Since(at) > lastPause: // it worked for a while
			pause = firstPause
		}
		sub.s.o.Log.Warn("configuration subscription is interrupted; subscribing again", "component", sub.req.Store, "id", sub.id, "after", pause, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, lastPause)
	}
}

// once is one call of the store's Subscribe. began tells whether the store followed the keys;
// listener is an error of who is told.
func (sub *subscription) once(ctx context.Context, again bool) (began bool, listener, err error) {
	start := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var opening error
	updates := make(chan map[string]block.ConfigItem)
	started := make(chan struct{})
	telling := make(chan struct{})
	go func() { // apart from the store, which must hear of the end while an update is on its way
		defer close(telling)
		select {
		case <-started:
		case <-ctx.Done():
			return
		}
		if opening = sub.open(ctx, again); opening != nil {
			cancel()
			return
		}
		for {
			select {
			case items := <-updates:
				if opening = sub.tell(ctx, items); opening != nil {
					cancel()
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	desc := sub.s.desc("subscribe", sub.req)
	desc.Streamed, desc.Lasting = true, true
	_, err = catalog.Do(ctx, sub.h, desc, func(ctx context.Context, store block.Configuration) (struct{}, error) {
		return struct{}{}, store.Subscribe(ctx, sub.req.Keys, sub.req.Metadata, func() {
			began = true
			sub.s.record(sub.req.Store, "subscribe", start, nil)
			if again {
				sub.s.o.Log.Info("configuration subscription is back", "component", sub.req.Store, "id", sub.id)
			}
			close(started)
		}, func(items map[string]block.ConfigItem) {
			select {
			case updates <- items:
			case <-ctx.Done():
			}
		})
	}, nil)
	if !began {
		sub.s.record(sub.req.Store, "subscribe", start, err)
	}
	cancel()
	<-telling
	if err == nil {
		err = fault.New("config.Subscribe", fault.Unavailable, "the store ended the subscription")
	}
	return began, opening, err
}

// open tells the listener that the subscription stands; after an interruption it tells what may
// have been missed.
func (sub *subscription) open(ctx context.Context, again bool) error {
	if !again {
		return sub.opened()
	}
	items, err := sub.s.read(ctx, sub.h, sub.req)
	if err != nil {
		if ctx.Err() == nil {
			sub.s.o.Log.Warn("changes made while a configuration subscription was interrupted are not known", "component", sub.req.Store, "id", sub.id, "error", err)
		}
		return nil
	}
	news := map[string]block.ConfigItem{}
	for k, it := range items { // what was never told may be news: once too often does no harm
		if old, was := sub.told[k]; !was || old.Value != it.Value || old.Version != it.Version {
			news[k] = it
		}
	}
	for k, old := range sub.told {
		if _, is := items[k]; !is && old.Value != "" {
			news[k] = block.ConfigItem{}
		}
	}
	if len(news) == 0 {
		return nil
	}
	return sub.tell(ctx, news)
}

// tell sends an update. The error is the listener's.
func (sub *subscription) tell(ctx context.Context, items map[string]block.ConfigItem) error {
	for k, it := range items {
		sub.told[k] = it
	}
	return sub.send(ctx, items)
}
