package host

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/secret"
	"github.com/mecha-project/mecha/runtime/settings"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// lookupPatience bounds the reading of one secret that something is configured with; a component's
// initTimeout may be longer.
const lookupPatience = 5 * time.Second

// Secrets are a sidecar's secret stores, and the catalog they are the first entries of. They come
// before everything else, because everything else may be configured with secrets: tracing, HTTP
// middleware and other secret stores as well as components.
//
// A store is opened when something refers to it, at the latest with the other components. What is
// read before there are policies is not governed by any; the stores are as soon as there are.
type Secrets struct {
	o       SecretsOptions
	load    loader
	service *secret.Service

	mu       sync.Mutex // serialises opening; guards what follows and what stores point at
	stores   map[string]*secretStore
	order    []string
	renewing *renewal // the change of stores under way; nil when there is none

	governing sync.Mutex // guards the rest
	engine    *policy.Engine
	early     []*call.Target // made before there was an engine
}

// SecretsOptions are what secret stores are made from: the same as Options, of which they are a
// part.
type SecretsOptions struct {
	Settings  *settings.Settings
	Config    *settings.Configuration
	Resources *settings.Resources
	Backends  *block.Set
	Log       *slog.Logger
	Metrics   *telemetry.Metrics
}

// secretStore is a declared store and, once that was tried, how opening it went.
type secretStore struct {
	declared *settings.Component
	tried    bool
	err      error
	// stale is set when it is declared anew, until it has been opened so; turn is the change in
	// which that was tried last.
	stale bool
	turn  *renewal
}

// NewSecrets prepares the secret stores of the resources and opens none.
func NewSecrets(o SecretsOptions) *Secrets {
	s := &Secrets{o: o, stores: map[string]*secretStore{}}
	self := selfOf(o.Settings)
	cat := catalog.New(catalog.Options{Backends: o.Backends, Namespace: self.Namespace, Log: telemetry.Scope(o.Log, "dapr.contrib"), Govern: s.govern,
		Env: func(component string, log *slog.Logger) block.Env {
			return block.Env{Log: log, AppID: self.App, Namespace: self.Namespace, Component: component, DataDir: o.Settings.DataDir}
		}})
	s.load = loader{catalog: cat, metrics: o.Metrics, log: telemetry.Scope(o.Log, "dapr.runtime.processor")}
	s.service = secret.New(cat.Secret, self, scopes(o.Config.Secrets), o.Metrics)
	for i := range o.Resources.Components {
		c := &o.Resources.Components[i]
		if isSecretStore(c) && !o.Config.Denied(c) {
			s.stores[c.Name] = &secretStore{declared: c}
			s.order = append(s.order, c.Name)
		}
	}
	return s
}

func selfOf(s *settings.Settings) identity.Self {
	return identity.Self{App: s.AppID, Namespace: s.Namespace, RawNamespace: s.NamespaceGiven}
}

func isSecretStore(c *settings.Component) bool { return block.Kind(c.Category()) == block.KindSecret }

// scopes are what the configuration lets the app read.
func scopes(c *settings.Secrets) []secret.Scope {
	if c == nil {
		return nil
	}
	out := make([]secret.Scope, len(c.Scopes))
	for i := range c.Scopes {
		x := &c.Scopes[i]
		out[i] = secret.Scope{Store: x.StoreName, Deny: x.Denies(), Allowed: x.AllowedSecrets, Denied: x.DeniedSecrets}
	}
	return out
}

// Expansion completes metadata with this sidecar's names, its environment and its secrets. Each
// secret is read once for all that is completed with one Expansion.
func (s *Secrets) Expansion(ctx context.Context) settings.Expansion {
	return s.expansion(ctx, func(store string) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.open(ctx, store, nil)
	})
}

func (s *Secrets) expansion(ctx context.Context, open func(store string) error) settings.Expansion {
	set := s.o.Settings
	return settings.Expansion{AppID: set.AppID, Namespace: set.NamespaceGiven, PodName: set.PodName, Env: osEnv, Secret: s.lookup(ctx, open)}
}

// lookup makes the function that reads what something refers to, from stores that open makes ready.
func (s *Secrets) lookup(ctx context.Context, open func(store string) error) func(*settings.Component, *settings.SecretRef) (string, error) {
	type place struct{ store, name, namespace string }
	type answer struct {
		values map[string]string
		err    error
	}
	known := map[place]answer{}
	return func(c *settings.Component, ref *settings.SecretRef) (string, error) {
		at := place{c.SecretStore, ref.Name, c.Namespace}
		got, ok := known[at]
		if !ok {
			if got.err = open(at.store); got.err == nil {
				got.values, got.err = s.read(ctx, c, at.name)
			}
			known[at] = got
		}
		if got.err != nil {
			return "", got.err
		}
		v, ok := got.values[ref.Key]
		if !ok {
			return "", fmt.Errorf("the secret has no key %q", ref.Key)
		}
		return v, nil
	}
}

func (s *Secrets) read(ctx context.Context, c *settings.Component, name string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, max(lookupPatience, c.InitTimeout))
	defer cancel()
	var metadata map[string]string
	if c.Namespace != "" {
		metadata = map[string]string{"namespace": c.Namespace}
	}
	return s.service.Values(ctx, c.SecretStore, name, metadata)
}

// open makes a store ready; the caller holds mu. chain are the stores whose opening needs it, for
// a store may itself be configured with secrets of another.
func (s *Secrets) open(ctx context.Context, name string, chain []string) error {
	st, ok := s.stores[name]
	switch {
	case name == "":
		return fmt.Errorf("auth.secretStore does not say which store that is%s", s.names())
	case !ok:
		return fmt.Errorf("no such secret store is loaded%s", s.names())
	case slices.Contains(chain, name):
		return inCircle(append(chain, name))
	case st.tried && !st.stale:
		return st.failed()
	}
	chain = append(slices.Clip(chain), name)
	if st.stale {
		return s.renew(ctx, st, chain)
	}
	c := st.declared
	st.err = s.load.load(ctx, specOf(c), func(ctx context.Context) ([]conf.Item, error) {
		return completed(c, s.expansion(ctx, func(store string) error { return s.open(ctx, store, chain) }), s.o.Log)
	})
	st.tried = true
	return st.failed()
}

// failed is what those say who need a store that did not start.
func (st *secretStore) failed() error {
	if st.err != nil {
		return fmt.Errorf("the secret store did not start: %w", st.err)
	}
	return nil
}

// names tells what a mistaken name may have meant.
func (s *Secrets) names() string {
	if len(s.order) == 0 {
		return "; there is none"
	}
	return "; there are " + strings.Join(s.order, ", ")
}

// openAll makes every store ready. The error is that of the first that must not fail and does.
func (s *Secrets) openAll(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var first error
	for _, name := range s.order {
		_ = s.open(ctx, name, nil) // kept in the store
		if st := s.stores[name]; st.err != nil && !st.declared.IgnoreErrors && first == nil {
			first = st.err
		}
	}
	return first
}

// govern puts a component's calls under policy, now or when there is policy.
func (s *Secrets) govern(t *call.Target) {
	s.governing.Lock()
	defer s.governing.Unlock()
	if s.engine == nil {
		s.early = append(s.early, t)
		return
	}
	s.engine.Govern(t)
}

// governBy puts what is open already under policy.
func (s *Secrets) governBy(e *policy.Engine) {
	s.governing.Lock()
	defer s.governing.Unlock()
	s.engine = e
	for _, t := range s.early {
		e.Govern(t)
	}
	s.early = nil
}

// Close closes what was opened. The sidecar does it at its end; it is for a start that failed
// before there was one.
func (s *Secrets) Close(ctx context.Context) error { return s.load.catalog.Close(ctx) }
