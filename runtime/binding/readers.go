package binding

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// readers are the input bindings at work, each in a goroutine of its own.
type readers struct {
	mu      sync.Mutex // guards all below; never held while waiting
	running bool       // the app has been found and is healthy
	closed  bool
	byName  map[string]*reader

	work     context.Context // the life of deliveries; it ends when Drain's patience does
	cut      context.CancelFunc
	draining chan struct{} // closed when Drain begins
	alive    sync.WaitGroup
}

// reader is one input binding.
type reader struct {
	stop context.CancelFunc // ends the run in progress; nil when there is none
	done chan struct{}      // closed when the last run is over; nil before the first
}

func (r *readers) init() {
	r.byName = map[string]*reader{}
	r.draining = make(chan struct{})
	r.work, r.cut = context.WithCancel(context.Background())
}

// Resume starts reading: the app has been found and is healthy. Each binding begins with the
// question whether the app wants it.
func (s *Service) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = true
	s.launch()
}

// Pause stops reading, because the app is not healthy. It does not wait for events in progress:
// they finish or fail as the app does, and are cut short after settlePatience.
func (s *Service) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = false
	for _, r := range s.byName {
		r.halt()
	}
}

// Refresh starts reading a component anew, which was added, replaced or removed.
func (s *Service) Refresh(component string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.byName[component]; r != nil {
		r.halt()
	}
	s.launch()
}

// Drain stops reading for good and waits for events in progress until ctx ends, then cuts those
// short and returns ctx's error. It is safe twice.
func (s *Service) Drain(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.draining)
	}
	for _, r := range s.byName {
		r.halt()
	}
	s.mu.Unlock()
	over := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(over)
		s.cut()
	})
	s.alive.Wait()
	s.cut()
	if unhook() {
		return nil
	}
	<-over
	return ctx.Err()
}

// halt ends the run in progress. mu is held.
func (r *reader) halt() {
	if r.stop != nil {
		r.stop()
		r.stop = nil
	}
}

// launch starts what should run and does not. mu is held.
func (s *Service) launch() {
	if !s.running || s.closed || !s.o.App.Exists() {
		return
	}
	for _, h := range s.stores.List() {
		if h.Away() || !catalog.Able[block.Input](h) || !used(h.Info, "input") {
			continue
		}
		r := s.byName[h.Name]
		if r == nil {
			r = &reader{}
			s.byName[h.Name] = r
		}
		if r.stop != nil {
			continue
		}
		fetch, stop := context.WithCancel(s.work)
		before, done := r.done, make(chan struct{})
		r.stop, r.done = stop, done
		s.alive.Go(func() {
			defer close(done)
			if before != nil {
				<-before // the last run may still have events at the app
			}
			s.serve(fetch, h)
		})
	}
}

// serve keeps one input binding read until fetch ends.
func (s *Service) serve(fetch context.Context, h *catalog.Handle[block.Component]) {
	if !s.wanted(fetch, h) {
		return
	}
	for failures := 1; fetch.Err() == nil; failures++ {
		began := time.Now()
		err := s.read(fetch, h)
		if fetch.Err() != nil {
			return
		}
		if time.Since(began) > lastPause {
			failures = 1 // it was well for a while
		}
		pause := backoff(failures)
		s.o.Log.Warn("reading from an input binding failed and is tried again", "component", h.Name, "error", err, "after", pause)
		sleep(fetch, pause)
	}
}

// settlePatience is how long events in progress may take to finish when reading stops for a while.
// A call that hangs must not keep the binding from coming back. A drain has its own limit.
const settlePatience = time.Minute

// read runs the component's Read, as one lasting call under its policy. Events in progress outlive
// fetch by settlePatience.
func (s *Service) read(fetch context.Context, h *catalog.Handle[block.Component]) error {
	work, cut := context.WithCancel(s.work)
	defer cut()
	defer context.AfterFunc(fetch, func() {
		late := time.NewTimer(settlePatience)
		defer late.Stop()
		select {
		case <-late.C:
			cut()
		case <-s.draining:
		case <-work.Done():
		}
	})()
	d := &delivery{s: s, h: h, target: s.o.Inbound(h.Name), route: route(h.Info)}
	desc := call.Desc{Op: "read", Safety: call.Safe, Streamed: true, Lasting: true, Caller: s.caller}
	_, err := catalog.Do(fetch, h, desc, func(ctx context.Context, c block.Component) (struct{}, error) {
		in, ok := c.(block.Input)
		if !ok {
			return struct{}{}, fault.New("binding.read", fault.Unsupported, "policy sends reading to a component that is no input binding")
		}
		return struct{}{}, in.Read(ctx, func(_ context.Context, e block.BindingEvent) ([]byte, error) { return d.deliver(work, e) })
	}, nil)
	return err
}

// wanted asks the app whether it takes the binding's events, until it has said so.
func (s *Service) wanted(ctx context.Context, h *catalog.Handle[block.Component]) bool {
	if slices.Contains(directions(h.Info), "input") {
		return true // the operator knows
	}
	for failures := 1; ; failures++ {
		yes, err := s.ask(ctx, h)
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil && !yes:
			s.o.Log.Info("app has not subscribed to binding " + h.Name + ".")
			return false
		case err == nil:
			return true
		}
		pause := backoff(failures)
		s.o.Log.Warn("the app could not be asked whether it takes the events of an input binding; it is asked again", "component", h.Name, "error", err, "after", pause)
		sleep(ctx, pause)
	}
}

// ask puts the question once. An error means that the app did not answer it.
func (s *Service) ask(ctx context.Context, h *catalog.Handle[block.Component]) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.AskTimeout)
	defer cancel()
	if s.o.Sink == nil {
		status, _, err := s.exchange(ctx, post("OPTIONS", route(h.Info), nil))
		return status >= 200 && status <= 299 || status == 405, err
	}
	leave, err := s.o.App.Enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	names, err := s.o.Sink.Inputs(ctx)
	return slices.Contains(names, h.Name), err
}

// route is the app's path for a component's events.
func route(info catalog.Info) string {
	if r := info.Raw[routeSetting]; r != "" {
		return r
	}
	return info.Name
}

// Pauses after failures, doubled with each.
const (
	firstPause = 500 * time.Millisecond
	lastPause  = 30 * time.Second
)

// backoff is the pause after failure n (from 1), a fifth either way at random.
func backoff(n int) time.Duration {
	d := lastPause
	if n < 7 {
		d = min(firstPause<<max(n-1, 0), lastPause)
	}
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
