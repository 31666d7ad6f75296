// Package block is the whole of what the house asks of a backend: one contract per
// building block, the value types they exchange, and the form in which a backend
// registers its parts. It is meant to be read in one sitting; start here, then read
// state.go (and query.go), pubsub.go, configuration.go, lock.go, secret.go, crypto.go, binding.go,
// cache.go or registry.go.
//
// A backend translates between a contract and its product's client library. It does not
// retry, log per request, measure, cache or decide: layers above do, once for all backends.
//
// Rules for every contract, unless a method says otherwise:
//   - Methods are safe for concurrent use and honour ctx promptly: when ctx ends they return
//     its error (wrapped or bare) without waiting for the server.
//   - Errors are, or wrap, *fault.Error. A server that cannot be reached is
//     fault.Unavailable, with SentNever when the request certainly did not leave.
//   - Byte slices passed in are not kept after return; slices returned belong to the caller.
//   - Optional abilities are optional interfaces, offered only when the product has them
//     natively. We do not fake a guarantee.
package block

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
)

// Kind names a building block, in the words used by Component resources ("state.redis").
type Kind string

// The building blocks. KindRegistry backends are chosen in a Configuration's
// nameResolution section, not by a Component.
const (
	KindState    Kind = "state"
	KindPubSub   Kind = "pubsub"
	KindConfig   Kind = "configuration"
	KindLock     Kind = "lock"
	KindSecret   Kind = "secretstores"
	KindBinding  Kind = "bindings"
	KindCrypto   Kind = "crypto"
	KindCache    Kind = "cache"
	KindRegistry Kind = "nameresolution"
)

// Component is what every opened part can do.
type Component interface {
	// Ping checks that the product answers. It is used for readiness, never per call.
	Ping(ctx context.Context) error
	// Close releases everything. It is safe twice and after failed use. Calls in flight
	// may fail with fault.Unavailable.
	Close(ctx context.Context) error
}

// Late is offered by components that learn what they can do only when their product has
// answered, at the latest at the first Ping that succeeds. The others tell by the interfaces
// they offer. An Output that is Late has Operations from then on.
type Late interface {
	// Features are the words that the metadata API shows; nil before the product has answered.
	Features() []string
}

// Env is what the house lends a backend when opening a part.
type Env struct {
	Log       *slog.Logger // never nil; already carries component attributes
	AppID     string       // the app this sidecar serves
	Namespace string       // this sidecar's namespace; "default" when unset
	Component string       // the component's name
	DataDir   string       // the embedded node's directory; empty means the default (~/.mecha/embedded)
}

// Part is one block of a backend: how to make its configuration and how to open it.
// Make parts with StatePart, PubSubPart, RegistryPart….
type Part struct {
	Kind Kind
	// Name is the product part of a component type: "redis" in "state.redis".
	Name string
	// Aliases are other accepted product names.
	Aliases []string
	// Versions lists accepted spec.version values beyond "", "v0" and "v1".
	Versions []string
	// Only says that the part serves Versions and no others: another part of the type serves the
	// rest.
	Only bool
	// Doc is one line for the reference page.
	Doc string
	// Config returns a new configuration holding the defaults: a pointer to a struct whose
	// fields conf.Decode fills.
	Config func() any
	// Open builds the component from a decoded, validated configuration. It does no I/O and
	// starts nothing: the first use, or Ping, meets the server.
	Open func(Env, any) (Component, error)
}

// Type is the component type the part serves, "state.redis".
func (p Part) Type() string { return string(p.Kind) + "." + p.Name }

// Backend is a product with the parts it offers. cmd lists backends; nothing registers
// itself.
type Backend struct {
	Name  string // folder name: "redis"
	Doc   string // what the product is, for the reference page
	Parts []Part
}

// Option adjusts a Part at construction.
type Option func(*Part)

// Alias accepts further product names for the part.
func Alias(names ...string) Option {
	return func(p *Part) { p.Aliases = append(p.Aliases, names...) }
}

// Version accepts further spec.version values for the part.
func Version(versions ...string) Option {
	return func(p *Part) { p.Versions = append(p.Versions, versions...) }
}

// Only makes the part serve these spec.version values and no others.
func Only(versions ...string) Option {
	return func(p *Part) { p.Versions, p.Only = versions, true }
}

func newPart[C any, B Component](kind Kind, name, doc string, defaults func() *C, open func(Env, *C) (B, error), opts []Option) Part {
	p := Part{Kind: kind, Name: name, Doc: doc,
		Config: func() any { return defaults() },
		Open: func(env Env, config any) (Component, error) {
			c, ok := config.(*C)
			if !ok {
				return nil, fmt.Errorf("%s.%s: configuration is %T, want %T", kind, name, config, c)
			}
			b, err := open(env, c)
			if err != nil {
				return nil, err
			}
			return b, nil
		}}
	for _, o := range opts {
		o(&p)
	}
	return p
}

// StatePart declares a state store: name is the product ("redis"), doc one line.
func StatePart[C any](name, doc string, defaults func() *C, open func(Env, *C) (State, error), opts ...Option) Part {
	return newPart(KindState, name, doc, defaults, open, opts)
}

// PubSubPart declares a message broker.
func PubSubPart[C any](name, doc string, defaults func() *C, open func(Env, *C) (PubSub, error), opts ...Option) Part {
	return newPart(KindPubSub, name, doc, defaults, open, opts)
}

// ConfigurationPart declares a configuration store.
func ConfigurationPart[C any](name, doc string, defaults func() *C, open func(Env, *C) (Configuration, error), opts ...Option) Part {
	return newPart(KindConfig, name, doc, defaults, open, opts)
}

// LockPart declares a lock store.
func LockPart[C any](name, doc string, defaults func() *C, open func(Env, *C) (Lock, error), opts ...Option) Part {
	return newPart(KindLock, name, doc, defaults, open, opts)
}

// CachePart declares a cache.
func CachePart[C any](name, doc string, defaults func() *C, open func(Env, *C) (Cache, error), opts ...Option) Part {
	return newPart(KindCache, name, doc, defaults, open, opts)
}

// SecretPart declares a secret store.
func SecretPart[C any](name, doc string, defaults func() *C, open func(Env, *C) (Secret, error), opts ...Option) Part {
	return newPart(KindSecret, name, doc, defaults, open, opts)
}

// BindingPart declares a binding, whose component is an Output, an Input or both.
func BindingPart[C any](name, doc string, defaults func() *C, open func(Env, *C) (Component, error), opts ...Option) Part {
	return newPart(KindBinding, name, doc, defaults, open, opts)
}

// CryptoPart declares a provider of keys.
func CryptoPart[C any](name, doc string, defaults func() *C, open func(Env, *C) (Crypto, error), opts ...Option) Part {
	return newPart(KindCrypto, name, doc, defaults, open, opts)
}

// RegistryPart declares a name resolver.
func RegistryPart[C any](name, doc string, defaults func() *C, open func(Env, *C) (Registry, error), opts ...Option) Part {
	return newPart(KindRegistry, name, doc, defaults, open, opts)
}

// Set is the list of backends linked into a binary, looked up by component type and version.
type Set struct {
	parts map[string]Part // by type
	only  map[string]Part // parts for some versions of a type, by "type/version"
	other func(typ, version string) (Part, bool)
}

// Fallback sets where Find looks for types that no backend of the set serves. Unlike the set,
// find may do I/O. It is set before the set is in use.
func (s *Set) Fallback(find func(typ, version string) (Part, bool)) { s.other = find }

// NewSet indexes backends. Two parts claiming one type are an error naming both.
func NewSet(backends ...Backend) (*Set, error) {
	s := &Set{parts: map[string]Part{}, only: map[string]Part{}}
	owner := map[string]string{}
	for _, b := range backends {
		for _, p := range b.Parts {
			for _, name := range append([]string{p.Name}, p.Aliases...) {
				into, keys := s.parts, []string{string(p.Kind) + "." + name}
				if p.Only {
					into, keys = s.only, nil
					for _, v := range p.Versions {
						keys = append(keys, string(p.Kind)+"."+name+"/"+v)
					}
				}
				for _, key := range keys {
					if other, dup := owner[key]; dup {
						return nil, fmt.Errorf("component type %s is claimed by backends %s and %s", key, other, b.Name)
					}
					owner[key], into[key] = b.Name, p
				}
			}
		}
	}
	return s, nil
}

// Find returns the part serving typ ("state.redis") in the given spec.version.
func (s *Set) Find(typ, version string) (Part, bool) {
	if p, ok := s.only[typ+"/"+version]; ok {
		return p, true
	}
	p, ok := s.parts[typ]
	if !ok {
		if s.other != nil {
			return s.other(typ, version)
		}
		return Part{}, false
	}
	switch version {
	case "", "v0", "v1":
		return p, true
	}
	return p, slices.Contains(p.Versions, version)
}

// Types lists every component type in the set, sorted.
func (s *Set) Types() []string {
	out := make([]string, 0, len(s.parts))
	for t := range s.parts {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}
