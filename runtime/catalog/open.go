package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog/seal"
)

// Spec is a component as declared, with its references resolved.
type Spec struct {
	Name, Type, Version string
	Items               []conf.Item
	InitTimeout         time.Duration
	IgnoreErrors        bool
}

// LogName is how a component is called in messages: "name (type/version)".
func (s *Spec) LogName() string {
	if s.Version == "" {
		return s.Name + " (" + s.Type + ")"
	}
	return s.Name + " (" + s.Type + "/" + s.Version + ")"
}

// Catalog opens components and holds them by block.
type Catalog struct {
	State  *Store[block.State]
	PubSub *Store[block.PubSub]
	Secret *Store[block.Secret]
	Lock   *Store[block.Lock]
	Config *Store[block.Configuration]
	Cache  *Store[block.Cache]
	Crypto *Store[block.Crypto]
	// Binding holds components that are a block.Output, a block.Input or both.
	Binding *Store[block.Component]

	backends *block.Set
	env      func(component string, log *slog.Logger) block.Env
	govern   func(*call.Target)
	log      *slog.Logger
}

// Options make a Catalog. All are required.
type Options struct {
	Backends *block.Set
	Env      func(component string, log *slog.Logger) block.Env
	Govern   func(*call.Target) // puts calls to a component under policy
	Log      *slog.Logger
	// Namespace is the sidecar's.
	Namespace string
}

// New makes an empty catalog.
func New(o Options) *Catalog {
	return &Catalog{State: NewStore[block.State](block.KindState), PubSub: NewStore[block.PubSub](block.KindPubSub), Secret: NewStore[block.Secret](block.KindSecret),
		Lock: NewStore[block.Lock](block.KindLock), Config: NewStore[block.Configuration](block.KindConfig),
		Cache: NewStore[block.Cache](block.KindCache), Crypto: NewStore[block.Crypto](block.KindCrypto), Binding: NewStore[block.Component](block.KindBinding),
		backends: o.Backends, env: o.Env, govern: o.Govern, log: o.Log}
}

// Opened is a component that was built but may not have met its server yet.
type Opened struct {
	Spec      Spec
	Info      Info
	Component block.Component
	put       func() *Retired
	published bool
}

// Open builds a component without any I/O. The error's text names what is wrong in the
// words operators search for; findings that are only warnings are logged.
func (c *Catalog) Open(s Spec) (*Opened, error) {
	kind, _, ok := strings.Cut(s.Type, ".")
	if !ok || !known(block.Kind(kind)) {
		return nil, creation(&s, fmt.Errorf("incorrect type %s", s.Type))
	}
	part, ok := c.backends.Find(s.Type, s.Version)
	if !ok {
		return nil, creation(&s, c.unknownType(&s, kind))
	}
	log := c.log.With("component", s.LogName())
	items, keys := s.Items, (*seal.Keys)(nil)
	if block.Kind(kind) == block.KindState {
		var err error
		if items, keys, err = seal.Take(s.Items); err != nil {
			return nil, initFailure(&s, err)
		}
	}
	config := part.Config()
	found := conf.Decode(items, config, conf.Also(conf.ServiceKeys(kind)...))
	for _, w := range found.Warnings() {
		log.Warn("component metadata: " + w.String())
	}
	if err := found.Err(); err != nil {
		return nil, initFailure(&s, err)
	}
	comp, err := part.Open(c.env(s.Name, log), config)
	if err != nil {
		return nil, initFailure(&s, err)
	}
	if store, ok := comp.(block.State); ok && keys != nil {
		comp = keys.Wrap(store)
		log.Info("values of this state store are encrypted; new ones with the key of secret " + keys.Name())
	}
	info := Info{Name: s.Name, Type: s.Type, Version: s.Version, Raw: rawItems(s.Items), Capabilities: Capabilities(comp)}
	if out, ok := comp.(block.Output); ok {
		info.Operations = out.Operations()
	}
	if cache, ok := comp.(block.Cache); ok {
		config := cache.Config()
		info.Cache = &config
	}
	return &Opened{Spec: s, Info: info, Component: comp, put: c.place(info, comp)}, nil
}

// unknownType says what is not there, and what is.
func (c *Catalog) unknownType(s *Spec, kind string) error {
	err := fmt.Errorf("couldn't find %s %s/%s", kindName(block.Kind(kind)), s.Type, version(s.Version))
	if near := conf.Nearest(s.Type, c.backends.Types()); near != "" && near != s.Type {
		return fmt.Errorf("%w; did you mean %s?", err, near)
	}
	var have []string
	for _, t := range c.backends.Types() {
		if t != s.Type && strings.HasPrefix(t, kind+".") {
			have = append(have, t)
		}
	}
	if len(have) == 0 || slices.Contains(c.backends.Types(), s.Type) {
		return err
	}
	return fmt.Errorf("%w; this version has %s", err, strings.Join(have, ", "))
}

// place prepares the handle; calling the result publishes it and gives what it replaces.
func (c *Catalog) place(info Info, comp block.Component) func() *Retired {
	// By what was declared, not by what it can do: one type may serve several blocks.
	switch kind, _, _ := strings.Cut(info.Type, "."); block.Kind(kind) {
	case block.KindState:
		if b, ok := comp.(block.State); ok {
			return func() *Retired { return c.State.Put(NewHandle(info, b, c.target(call.State, info.Name))).retire() }
		}
	case block.KindPubSub:
		if b, ok := comp.(block.PubSub); ok {
			return func() *Retired { return c.PubSub.Put(NewHandle(info, b, c.target(call.Publish, info.Name))).retire() }
		}
	case block.KindSecret:
		if b, ok := comp.(block.Secret); ok {
			return func() *Retired { return c.Secret.Put(NewHandle(info, b, c.target(call.Secret, info.Name))).retire() }
		}
	case block.KindLock:
		if b, ok := comp.(block.Lock); ok {
			return func() *Retired { return c.Lock.Put(NewHandle(info, b, c.target(call.Lock, info.Name))).retire() }
		}
	case block.KindConfig:
		if b, ok := comp.(block.Configuration); ok {
			return func() *Retired { return c.Config.Put(NewHandle(info, b, c.target(call.Config, info.Name))).retire() }
		}
	case block.KindCrypto:
		if b, ok := comp.(block.Crypto); ok {
			return func() *Retired { return c.Crypto.Put(NewHandle(info, b, c.target(call.Crypto, info.Name))).retire() }
		}
	case block.KindCache:
		if b, ok := comp.(block.Cache); ok {
			return func() *Retired { return c.Cache.Put(NewHandle(info, b, c.target(call.Cache, info.Name))).retire() }
		}
	case block.KindBinding:
		return func() *Retired {
			return c.Binding.Put(NewHandle(info, comp, c.target(call.Binding, info.Name))).retire()
		}
	}
	return func() *Retired { return nil }
}

func (c *Catalog) target(kind call.Kind, name string) *call.Target {
	t := &call.Target{Kind: kind, Direction: call.Outbound, Name: name}
	c.govern(t)
	return t
}

// Publish makes an opened component available to callers. Of the one that it replaces, if any,
// calls in progress may still make use: the caller closes it.
func (c *Catalog) Publish(o *Opened) *Retired {
	o.published = true
	return o.put()
}

// learn takes up what a component knows of itself only since its server has answered.
func (c *Catalog) learn(o *Opened) {
	late, ok := block.As[block.Late](o.Component)
	if !ok {
		return
	}
	o.Info.Capabilities = late.Features()
	if out, ok := o.Component.(block.Output); ok {
		o.Info.Operations = out.Operations()
	}
	o.put = c.place(o.Info, o.Component)
	if o.published {
		o.put() // the handle that goes has the same component, which nobody closes
	}
}

// Init waits until the component's server answers, at most InitTimeout.
func (c *Catalog) Init(ctx context.Context, o *Opened) error {
	timeout := o.Spec.InitTimeout
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := o.Component.Ping(ctx)
	if err == nil {
		c.learn(o)
		return nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("%w: init timeout for component %s", err, o.Spec.LogName())
	}
	return initFailure(&o.Spec, err)
}

// Withdraw takes a component away from callers and closes it when calls in progress have left it,
// or when ctx ends.
func (c *Catalog) Withdraw(ctx context.Context, name string) {
	for _, r := range c.Remove(name) {
		_ = r.Close(ctx)
	}
}

// Remove takes a component away from callers, in every block that has one of the name. The caller
// closes what it gets.
func (c *Catalog) Remove(name string) (out []*Retired) {
	for _, r := range []*Retired{
		c.State.Remove(name).retire(),
		c.PubSub.Remove(name).retire(),
		c.Secret.Remove(name).retire(),
		c.Lock.Remove(name).retire(),
		c.Config.Remove(name).retire(),
		c.Cache.Remove(name).retire(),
		c.Crypto.Remove(name).retire(),
		c.Binding.Remove(name).retire(),
	} {
		if r != nil {
			out = append(out, r)
		}
	}
	return out
}

// Infos lists the published components, sorted by block and name.
func (c *Catalog) Infos() []Info {
	var out []Info
	for _, h := range c.PubSub.List() {
		if !h.Away() {
			out = append(out, h.Info)
		}
	}
	for _, h := range c.State.List() {
		if !h.Away() {
			out = append(out, h.Info)
		}
	}
	for _, h := range c.Secret.List() {
		if !h.Away() {
			out = append(out, h.Info)
		}
	}
	for _, h := range c.Lock.List() {
		if !h.Away() {
			out = append(out, h.Info)
		}
	}
	for _, h := range c.Config.List() {
		if !h.Away() {
			out = append(out, h.Info)
		}
	}
	for _, h := range c.Crypto.List() {
		if !h.Away() {
			out = append(out, h.Info)
		}
	}
	for _, h := range c.Cache.List() {
		if !h.Away() {
			out = append(out, h.Info)
		}
	}
	for _, h := range c.Binding.List() {
		if !h.Away() {
			out = append(out, h.Info)
		}
	}
	return out
}

// Close closes all components.
func (c *Catalog) Close(ctx context.Context) error {
	for _, info := range c.Infos() {
		c.log.Info("Shutting down component " + (&Spec{Name: info.Name, Type: info.Type, Version: info.Version}).LogName())
	}
	return errors.Join(c.PubSub.Close(ctx), c.State.Close(ctx), c.Secret.Close(ctx), c.Lock.Close(ctx), c.Config.Close(ctx), c.Crypto.Close(ctx), c.Cache.Close(ctx), c.Binding.Close(ctx))
}

func creation(s *Spec, err error) error {
	return fault.New("catalog.Open", fault.Invalid, "[CREATE_COMPONENT_FAILURE]: initialization error occurred for %s", s.LogName()).Because(err)
}

// InitFailure makes the error of a component whose metadata could not be completed.
func InitFailure(s *Spec, err error) error { return initFailure(s, err) }

func initFailure(s *Spec, err error) error {
	return fault.New("catalog.Open", fault.Of(err), "[INIT_COMPONENT_FAILURE]: initialization error occurred for %s", s.LogName()).Because(err)
}

func version(v string) string {
	if v == "" {
		return "v1"
	}
	return v
}

func known(k block.Kind) bool {
	switch k {
	case block.KindState, block.KindPubSub, block.KindConfig, block.KindLock, block.KindSecret, block.KindBinding, block.KindCrypto, block.KindCache:
		return true
	}
	return k == "conversation" || k == "middleware" || k == "workflowbackend"
}

func kindName(k block.Kind) string {
	switch k {
	case block.KindState:
		return "state store"
	case block.KindPubSub:
		return "message bus"
	case block.KindConfig:
		return "configuration store"
	case block.KindLock:
		return "lock store"
	case block.KindSecret:
		return "secret store"
	case block.KindBinding:
		return "binding"
	case block.KindCache:
		return "cache"
	case block.KindCrypto:
		return "crypto provider"
	}
	return string(k) + " component"
}

// rawItems gives services the settings they read themselves, secrets left out.
func rawItems(items []conf.Item) map[string]string {
	raw := make(map[string]string, len(items))
	for _, it := range items {
		if !it.Secret {
			raw[strings.ToLower(it.Name)] = it.Value
		}
	}
	return raw
}

// Capabilities names what a component can do, from the interfaces it offers, in the words of
// the metadata API.
func Capabilities(comp block.Component) []string {
	caps := []string{}
	switch comp.(type) {
	case block.State:
		caps = append(caps, "ETAG")
		_, tx := block.As[block.StateTx](comp)
		if tx {
			caps = append(caps, "TRANSACTIONAL")
		}
		if _, ok := block.As[block.StateTTL](comp); ok {
			caps = append(caps, "TTL")
		}
		if q, ok := block.As[block.StateQuery](comp); ok && q.Queries() {
			caps = append(caps, "QUERY_API")
		}
		if tx {
			caps = append(caps, "ACTOR")
		}
	case block.Queue, block.Log:
		if _, ok := comp.(block.PubSubTTL); ok {
			caps = append(caps, "MESSAGE_TTL")
		}
	case block.Secret:
		if m, ok := comp.(block.SecretMany); ok && m.ManyValues() {
			caps = append(caps, "MULTIPLE_KEY_VALUES_PER_SECRET")
		}
	}
	if _, ok := comp.(block.Input); ok {
		caps = append(caps, "INPUT_BINDING")
	}
	if _, ok := comp.(block.Output); ok {
		caps = append(caps, "OUTPUT_BINDING")
	}
	return caps
}
