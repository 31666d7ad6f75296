package pubsub

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// manager keeps the subscriptions and their lives. Each runs in a goroutine of its own, and
// nothing that happens to one reaches another.
type manager struct {
	mu           sync.Mutex // guards all below; never held while waiting
	declarative  []*route
	programmatic []*route
	entries      []*entry // static subscriptions in force, then streams
	started      bool     // the app has been found: static subscriptions may run
	paused       bool
	closed       bool
	announced    bool

	// work is the life of deliveries; it ends when Drain's patience does. It is kept here
	// because subscriptions start at many times and outlive the calls that start them.
	work     context.Context
	cancel   context.CancelFunc
	draining chan struct{} // closed when Drain begins
	alive    sync.WaitGroup
}

// entry is one subscription in force.
type entry struct {
	route *route
	sink  EventSink // of a stream; nil: the service's app
	// work ends when the stream's client is gone; nil: the manager's.
	work context.Context
	stop context.CancelFunc // stops the run in progress; nil when there is none
	done chan struct{}      // closed when the last run is over; nil before the first
}

func (m *manager) init() {
	m.work, m.cancel = context.WithCancel(context.Background())
	m.draining = make(chan struct{})
}

// SetDeclarative replaces the subscriptions that come from resources. A rule that cannot be
// compiled is an error and changes nothing; at start it ends the sidecar, as Dapr's does.
func (s *Service) SetDeclarative(subs []Subscription) error {
	return s.set(subs, Declarative, &s.manager.declarative)
}

// SetProgrammatic replaces the subscriptions the app listed. A rule that cannot be compiled is
// an error and none of them is taken.
func (s *Service) SetProgrammatic(subs []Subscription) error {
	return s.set(subs, Programmatic, &s.manager.programmatic)
}

func (s *Service) set(subs []Subscription, source Source, into *[]*route) error {
	subs = slices.Clone(subs)
	for i := range subs {
		subs[i].Source = source
	}
	routes, err := compileAll(subs)
	if err != nil {
		return err
	}
	m := &s.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, r := range routes { // what did not change goes on undisturbed
		for _, old := range *into {
			if reflect.DeepEqual(old.sub, r.sub) {
				routes[i] = old
			}
		}
	}
	*into = routes
	s.reconcile()
	return nil
}

// reconcile makes the entries those of the merged sources. m.mu is held.
func (s *Service) reconcile() {
	m := &s.manager
	want := merge(m.declarative, m.programmatic)
	var keep, streams []*entry
	for _, e := range m.entries {
		switch {
		case e.sink != nil:
			streams = append(streams, e)
		case slices.Contains(want, e.route):
			keep = append(keep, e)
		default:
			e.halt()
		}
	}
	entries := make([]*entry, 0, len(want)+len(streams))
	for _, r := range want {
		i := slices.IndexFunc(keep, func(e *entry) bool { return e.route == r })
		if i >= 0 {
			entries = append(entries, keep[i])
		} else {
			entries = append(entries, &entry{route: r})
		}
	}
	m.entries = append(entries, streams...)
	s.launch()
}

// launch starts what should run and does not. m.mu is held.
func (s *Service) launch() {
	m := &s.manager
	for _, e := range m.entries {
		if e.stop != nil || m.closed || m.paused || e.sink == nil && !m.started {
			continue
		}
		work := e.work
		if work == nil {
			work = m.work
		}
		fetch, stop := context.WithCancel(work)
		before, done := e.done, make(chan struct{})
		e.stop, e.done = stop, done
		m.alive.Go(func() {
			defer close(done)
			if before != nil {
				<-before // an earlier run may still be finishing messages of the same keys
			}
			s.supervise(fetch, work, e.route, e.sink)
		})
	}
}

// halt stops the run in progress. m.mu is held.
func (e *entry) halt() {
	if e.stop != nil {
		e.stop()
		e.stop = nil
	}
}

// Resume starts the subscriptions: the app has been found and is healthy. Streams run before
// the first Resume too, since an app may have nothing but streams.
func (s *Service) Resume() {
	m := &s.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started, m.paused = true, false
	s.announce()
	s.launch()
}

// announce logs, once, the line that tools wait for. m.mu is held.
func (s *Service) announce() {
	m := &s.manager
	if m.announced {
		return
	}
	m.announced = true
	byPubSub := map[string][]string{}
	for _, e := range m.entries {
		if e.sink == nil {
			byPubSub[e.route.sub.PubSub] = append(byPubSub[e.route.sub.PubSub], e.route.sub.Topic)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byPubSub)) {
		s.log.Info(fmt.Sprintf("app is subscribed to the following topics: [[%s]] through pubsub=%s",
			strings.Join(byPubSub[name], " "), name))
	}
}

// Pause stops all subscriptions, streams too, because the app is not healthy: nothing is
// fetched any more, and what was fetched and not begun goes back to its group. It does not
// wait for messages in progress; their calls fail or finish as the app does, and are cut short
// after settlePatience.
func (s *Service) Pause() {
	m := &s.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = true
	for _, e := range m.entries {
		e.halt()
	}
}

// Refresh restarts the subscriptions of one pub/sub component, which was added, replaced or
// removed.
func (s *Service) Refresh(component string) {
	m := &s.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.route.sub.PubSub == component {
			e.halt()
		}
	}
	s.launch()
}

// Drain ends all subscriptions in two steps: it stops fetching at once, waits for messages in
// progress until ctx ends, then cuts those short; unanswered ones go back to their groups. It
// returns ctx's error when it had to cut. Nothing starts afterwards. It is safe twice.
func (s *Service) Drain(ctx context.Context) error {
	m := &s.manager
	m.mu.Lock()
	if !m.closed {
		m.closed = true
		close(m.draining)
	}
	for _, e := range m.entries {
		e.halt()
	}
	m.mu.Unlock()
	over := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(over)
		m.cancel()
	})
	m.alive.Wait()
	m.cancel()
	if unhook() {
		return nil
	}
	<-over
	return ctx.Err()
}

// List returns the subscriptions in force, for the metadata API: static ones, then streams.
// Subscriptions to unknown components are among them.
func (s *Service) List() []Subscription {
	m := &s.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Subscription, len(m.entries))
	for i, e := range m.entries {
		out[i] = e.route.sub
	}
	return out
}

// supervise keeps one subscription running until fetch ends.
func (s *Service) supervise(fetch, work context.Context, r *route, sink EventSink) {
	log := s.log.With("component", r.sub.PubSub, "topic", r.sub.Topic)
	if r.sub.DeadLetterTopic != "" && !r.sub.buries() {
		log.WarnContext(fetch, "the dead-letter topic is the topic itself and is not used; name another one")
	}
	for failures := 1; fetch.Err() == nil; failures++ {
		h, err := s.stores.Lookup(r.sub.PubSub)
		if err != nil {
			<-fetch.Done() // until Refresh tells of the component
			return
		}
		rules := s.rulesOf(h)
		if !rules.maySubscribe(s.self.App, r.sub.Topic) {
			log.ErrorContext(fetch, "subscription refused", "error", notAllowed(&r.sub))
			<-fetch.Done() // scopes change only with the component
			return
		}
		c := &consumer{s: s, route: r, h: h, rules: rules, sink: sink, log: log, inbound: s.inbound(h.Name)}
		if sink == nil {
			c.sink = s.opts.Sink
		}
		began := time.Now()
		err = c.run(fetch, work)
		if fetch.Err() != nil {
			return
		}
		if time.Since(began) > lastPause {
			failures = 1 // it was well for a while
		}
		pause := backoff(failures)
		log.WarnContext(fetch, "subscription failed and is tried again", "error", err, "after", pause)
		sleep(fetch, pause)
	}
}

func notAllowed(sub *Subscription) error {
	return forbidden("pubsub.Subscribe", "subscription to topic '%s' on pubsub '%s' is not allowed", sub.Topic, sub.PubSub)
}

// inbound is the policy target of deliveries from a component.
func (s *Service) inbound(component string) *call.Target {
	if s.opts.Inbound != nil {
		if t := s.opts.Inbound(component); t != nil {
			return t
		}
	}
	return &call.Target{Kind: call.Deliver, Direction: call.Inbound, Name: component, Namespace: s.self.Namespace}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// attach adds a stream's entry.
func (s *Service) attach(e *entry) error {
	m := &s.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fault.New("pubsub.Subscribe", fault.Unavailable, "the sidecar is shutting down")
	}
	m.entries = append(m.entries, e)
	s.launch()
	return nil
}

// detach removes a stream's entry and waits for its last run to end. The entry's work must
// have ended, or nothing says when that is.
func (s *Service) detach(e *entry) {
	m := &s.manager
	m.mu.Lock()
	e.halt()
	m.entries = slices.DeleteFunc(m.entries, func(other *entry) bool { return other == e })
	m.mu.Unlock()
	m.wait(e)
}

// wait returns when the entry's last run is over.
func (m *manager) wait(e *entry) {
	m.mu.Lock()
	done := e.done
	m.mu.Unlock()
	if done != nil {
		<-done
	}
}
