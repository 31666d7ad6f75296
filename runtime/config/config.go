// Package config is the deciding half of the configuration block: it reads items for apps and
// keeps their subscriptions, on streams the app holds open (Follow) or as calls to the app
// (FollowForApp).
//
// It leaves to the edges: parsing requests, choosing status codes, the form of an update on a
// stream. It leaves to the backends: noticing changes. Every read is one call under the store's
// policy, a subscription one lasting call; a call to the app passes the store's inbound policy.
//
// Start at Service for reading, then subscriptions.go for the life of a subscription; update.go
// is what the app is sent.
//
// # Errors
//
//	NotReady, fault.NoComponents     no configuration store is configured
//	NotFound, fault.NoSuchComponent  another name
//	NotReady, fault.NoApp            a subscription over HTTP, and there is no app to call
//	NotFound, NoSubscription         there is none with this id
package config

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
)

// NoSubscription is the reason of an Unsubscribe from nothing.
const NoSubscription fault.Reason = "no_such_subscription"

// Recorder counts store operations. operation is get, subscribe or unsubscribe; requests refused
// before the store are not counted.
type Recorder interface {
	Configuration(component, operation string, ok bool, took time.Duration)
}

// Options make a Service. Optional fields are off when zero.
type Options struct {
	Log      *slog.Logger
	Recorder Recorder
	App      *app.App // nil: updates cannot be sent to the app
	// Inbound makes the policy target of updates that a store sends to the app.
	Inbound func(component string) *call.Target
}

// Service serves the configuration block. It is safe for concurrent use.
type Service struct {
	stores *catalog.Store[block.Configuration]
	caller call.Caller
	o      Options
	life   context.Context // of all subscriptions
	end    context.CancelFunc
	work   sync.WaitGroup // the subscriptions of the app

	mu   sync.Mutex
	over bool                     // guarded by mu: no new subscriptions
	subs map[string]*subscription // guarded by mu; by id
}

// New makes the service. Close it.
func New(stores *catalog.Store[block.Configuration], self identity.Self, o Options) *Service {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{stores: stores, o: o, caller: call.Caller{App: self.App, Namespace: self.Namespace, Proven: true}, subs: map[string]*subscription{}}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// Check tells whether the store exists.
func (s *Service) Check(store string) error {
	_, err := s.stores.Lookup(store)
	return err
}

// Request says what is asked of which store. No keys means all.
type Request struct {
	Store    string
	Keys     []string
	Metadata map[string]string
}

func (r Request) keep() Request {
	r.Store = strings.Clone(r.Store)
	r.Keys = slices.Clone(r.Keys)
	for i := range r.Keys {
		r.Keys[i] = strings.Clone(r.Keys[i])
	}
	r.Metadata = maps.Clone(r.Metadata)
	return r
}

// Get reads items; those that do not exist are left out.
func (s *Service) Get(ctx context.Context, r Request) (map[string]block.ConfigItem, error) {
	h, err := s.stores.Lookup(r.Store)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	items, err := s.read(ctx, h, r)
	s.record(r.Store, "get", start, err)
	return items, err
}

func (s *Service) read(ctx context.Context, h *catalog.Handle[block.Configuration], r Request) (map[string]block.ConfigItem, error) {
	return catalog.Read(ctx, h, s.desc("get", r), r, &reading)
}

var reading = catalog.Reading[block.Configuration, Request, map[string]block.ConfigItem]{
	Fn: func(ctx context.Context, store block.Configuration, r Request) (map[string]block.ConfigItem, error) {
		return store.Get(ctx, r.Keys, r.Metadata)
	},
	Keep: Request.keep,
	Same: func(a, b map[string]block.ConfigItem) bool { // versions are each store's own
		return maps.EqualFunc(a, b, func(x, y block.ConfigItem) bool { return x.Value == y.Value })
	},
}

// desc describes an operation on keys; a single one is the resource, for rules and routes.
func (s *Service) desc(op string, r Request) call.Desc {
	d := call.Desc{Op: op, Safety: call.Safe, Caller: s.caller}
	if len(r.Keys) == 1 {
		d.Resource, d.Key = r.Keys[0], r.Keys[0]
	}
	return d
}

func (s *Service) record(store, op string, start time.Time, err error) {
	if s.o.Recorder != nil {
		s.o.Recorder.Configuration(store, op, err == nil, time.Since(start))
	}
}

// noApp is the error of subscriptions that need one.
func noApp() error {
	return fault.New("config.Subscribe", fault.NotReady, "app channel is not initialized").With(fault.NoApp).WithSent(fault.SentNever)
}
