// Package secret is the deciding half of the secrets block: it says which secrets the app may
// read, and runs every read as one call under the store's policy.
//
// It leaves to the edges: wire forms and status codes. It leaves to the backends: where secrets
// are. Names and values pass unchanged.
//
// Scopes are judged before the store is asked, so that a refusal does not tell whether a secret
// exists. They are for the app: a component whose metadata refer to a secret is configured by who
// wrote the scopes, and Values reads for it without them.
//
// # Errors
//
// Every error is a *fault.Error. Where the code alone does not say which answer a wire owes,
// the reason does:
//
//	NotReady, fault.NoComponents     no secret store is configured
//	NotFound, fault.NoSuchComponent  another name
//	Denied,   fault.ForbiddenSecret  the scopes do not let the app read it
//
// Others are what the store or policy said.
package secret

import (
	"context"
	"maps"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
)

// Recorder counts store operations: get and bulk_get. Requests refused before the store are not
// counted.
type Recorder interface {
	Secret(component, operation string, ok bool, took time.Duration)
}

// Scope limits what the app may read from one store. Names are exact.
type Scope struct {
	Store string
	// Deny is what holds for secrets in neither list.
	Deny bool
	// Allowed, when not empty, are the only secrets that may be read; Denied and Deny do not
	// count then.
	Allowed []string
	Denied  []string
}

// Service serves the secrets block. It is safe for concurrent use.
type Service struct {
	stores *catalog.Store[block.Secret]
	scopes map[string]*rules
	caller call.Caller
	rec    Recorder
}

// rules are a scope, ready to be asked.
type rules struct {
	deny            bool
	allowed, denied map[string]bool
}

// New makes the service. A store without a scope is open to the app. rec may be nil.
func New(stores *catalog.Store[block.Secret], self identity.Self, scopes []Scope, rec Recorder) *Service {
	s := &Service{stores: stores, rec: rec, scopes: make(map[string]*rules, len(scopes)),
		caller: call.Caller{App: self.App, Namespace: self.Namespace, Proven: true}}
	for _, c := range scopes {
		s.scopes[c.Store] = &rules{deny: c.Deny, allowed: set(c.Allowed), denied: set(c.Denied)}
	}
	return s
}

func set(names []string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

func (r *rules) allow(name string) bool {
	switch {
	case r == nil:
		return true
	case len(r.allowed) > 0:
		return r.allowed[name]
	case r.denied[name]:
		return false
	}
	return !r.deny
}

// Get reads one secret for the app: its values by their names.
func (s *Service) Get(ctx context.Context, store, name string, metadata map[string]string) (map[string]string, error) {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return nil, err
	}
	if !s.scopes[store].allow(name) {
		return nil, fault.New("secret.Get", fault.Denied, "access denied by policy to get %q from %q", name, store).With(fault.ForbiddenSecret)
	}
	start := time.Now()
	values, err := s.read(ctx, h, name, metadata)
	s.record(store, "get", start, err)
	return values, err
}

// GetAll reads every secret that the app may read. Others are left out without a word.
func (s *Service) GetAll(ctx context.Context, store string, metadata map[string]string) (map[string]map[string]string, error) {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	all, err := catalog.Read(ctx, h, s.desc("bulk_get", ""), question{metadata: metadata}, &readingAll)
	s.record(store, "bulk_get", start, err)
	if err != nil {
		return nil, err
	}
	// A map of its own: a mirror may still compare the one that was read.
	scope, open := s.scopes[store], make(map[string]map[string]string, len(all))
	for name, values := range all {
		if scope.allow(name) {
			open[name] = values
		}
	}
	return open, nil
}

// Values reads one secret for the sidecar itself: scopes, which are the app's, do not count, and
// neither do the app's metrics.
func (s *Service) Values(ctx context.Context, store, name string, metadata map[string]string) (map[string]string, error) {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return nil, err
	}
	return s.read(ctx, h, name, metadata)
}

func (s *Service) read(ctx context.Context, h *catalog.Handle[block.Secret], name string, metadata map[string]string) (map[string]string, error) {
	return catalog.Read(ctx, h, s.desc("get", name), question{name, metadata}, &reading)
}

// desc describes an operation on a secret.
func (s *Service) desc(op, name string) call.Desc {
	return call.Desc{Op: op, Resource: name, Safety: call.Safe, Caller: s.caller}
}

// question is what a read needs; reading and readingAll are how it is done.
type question struct {
	name     string
	metadata map[string]string
}

// keep copies a question for reads that outlive the call.
func (q question) keep() question {
	return question{strings.Clone(q.name), maps.Clone(q.metadata)}
}

var reading = catalog.Reading[block.Secret, question, map[string]string]{
	Fn: func(ctx context.Context, store block.Secret, q question) (map[string]string, error) {
		return store.Get(ctx, q.name, q.metadata)
	},
	Keep: question.keep,
	Same: func(a, b map[string]string) bool { return maps.Equal(a, b) },
}

var readingAll = catalog.Reading[block.Secret, question, map[string]map[string]string]{
	Fn: func(ctx context.Context, store block.Secret, q question) (map[string]map[string]string, error) {
		return store.GetAll(ctx, q.metadata)
	},
	Keep: question.keep,
	Same: func(a, b map[string]map[string]string) bool {
		return maps.EqualFunc(a, b, func(a, b map[string]string) bool { return maps.Equal(a, b) })
	},
}

func (s *Service) record(store, op string, start time.Time, err error) {
	if s.rec != nil {
		s.rec.Secret(store, op, err == nil, time.Since(start))
	}
}
