// Package host builds a sidecar in one straight story and owns the lives of its parts.
//
// Order up: listeners bound, components opened, services made, edges serving, components
// reached (the app may now use the APIs), the app found, subscriptions running, ready. Order
// down is the reverse: not ready, no more events fetched, edges drain, components close.
//
// The host knows no edge and no backend: cmd hands both in. Start at Run.
package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/about"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/cache"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/config"
	"github.com/mecha-project/mecha/runtime/crypto"
	"github.com/mecha-project/mecha/runtime/identity"
	"github.com/mecha-project/mecha/runtime/invoke"
	"github.com/mecha-project/mecha/runtime/lock"
	"github.com/mecha-project/mecha/runtime/outbox"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/policy/file"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/secret"
	"github.com/mecha-project/mecha/runtime/settings"
	"github.com/mecha-project/mecha/runtime/state"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// Options are what a sidecar is built from.
type Options struct {
	Settings  *settings.Settings
	Config    *settings.Configuration
	Resources *settings.Resources
	Implicit  []catalog.Spec // components that exist without a resource (the embedded default)
	Backends  *block.Set
	Version   string
	Log       *slog.Logger
	Metrics   *telemetry.Metrics
	Tracer    *telemetry.Tracer
	Edges     Edges
	Tracing   Tracing // may be nil
	// Secrets are the secret stores, where something has used them before; nil makes them.
	Secrets *Secrets
	// Loaded lists components that an edge opened itself (HTTP middleware), for metadata.
	Loaded []catalog.Info
	// Governed is told of the policy engine as soon as there is one; nil is not told.
	Governed func(*policy.Engine)
	// ListenFor is how long a port in use is tried again; 0 means 10 s.
	ListenFor time.Duration
}

// Tracing starts the spans that no edge starts: of calls that arrive and of messages.
type Tracing interface {
	invoke.Tracing
	pubsub.Tracing
	binding.Tracing
}

// Edges are the ways in and out, implemented by the packages of api.
type Edges interface {
	// AppSide makes the way to the app; nil when the app has no port.
	AppSide() (AppSide, error)
	// Peers and External reach other sidecars and plain HTTP services.
	Peers() invoke.Peers
	External() invoke.External
	// Servers makes the servers on top of the services. Their listeners are bound already.
	Servers(s *Services) ([]Server, error)
	// Close releases what Peers and External hold.
	Close(ctx context.Context)
}

// AppSide is a protocol to the app.
type AppSide interface {
	app.Channel
	// Subscriptions asks the app for its programmatic subscriptions.
	Subscriptions(ctx context.Context, call Invoke) ([]pubsub.Subscription, error)
	// Configured asks the app for its configuration, which so far only proves that it is up.
	Configured(ctx context.Context, call Invoke) error
	// Sink takes events in the app's own protocol; nil when they go as HTTP requests.
	Sink() pubsub.EventSink
	// Bindings takes events of input bindings in the app's own protocol; nil when they go as HTTP
	// requests.
	Bindings() binding.Sink
}

// Invoke calls the app through its limits.
type Invoke func(ctx context.Context, req *call.Request) (*call.Response, error)

// Server is one running edge.
type Server struct {
	Name   string
	Serve  func(ctx context.Context) error // blocks until drained
	Drain  func(ctx context.Context) error
	Opened func() // logs that it runs
}

// Services are what edges are built on.
type Services struct {
	Self      identity.Self
	Invoke    *invoke.Service
	State     *state.Service
	PubSub    *pubsub.Service
	Secret    *secret.Service
	Lock      *lock.Service
	Config    *config.Service
	Crypto    *crypto.Service
	Binding   *binding.Service
	Cache     *cache.Service
	App       *app.App
	About     *about.Sidecar
	Listeners Listeners
}

// Listeners are bound before anything else, so that a port in use is the first error.
type Listeners struct {
	HTTP, GRPC []net.Listener
	Public     net.Listener // nil unless asked for
	Peer       net.Listener
}

// Sidecar is one running sidecar.
type Sidecar struct {
	o         Options
	s         *settings.Settings
	log       *slog.Logger
	self      identity.Self
	now       atomic.Pointer[settings.Resources] // as last read and put in force
	about     *about.Sidecar
	outbox    *outbox.Service
	secrets   *Secrets
	catalog   *catalog.Catalog // of secrets, and of all other components
	policy    *policy.Engine
	judges    bool                  // the access control judges calls from other apps
	resilient []settings.Resiliency // those in force; written by openPolicy, then by the watcher
	away      []file.Away           // names that exist in policy only; written by settle, then by its watcher
	registry  block.Registry
	app       *app.App
	appSide   AppSide
	services  *Services
	servers   []Server
	edges     sync.WaitGroup
	watching  sync.WaitGroup     // for changes of policy
	cut       context.CancelFunc // breaks what the edges still serve
	lost      chan error         // an edge that ended by itself
	ending    atomic.Bool        // told to end: subscriptions stay stopped
}

// Run builds the sidecar and keeps it alive until ctx ends, a stop is requested over the API,
// or a part fails. It returns nil after a graceful end.
func Run(ctx context.Context, o Options) error {
	h := &Sidecar{o: o, s: o.Settings, log: o.Log, cut: func() {}, lost: make(chan error, 8)}
	h.self = selfOf(h.s)
	if h.secrets = o.Secrets; h.secrets == nil {
		h.secrets = NewSecrets(SecretsOptions{Settings: o.Settings, Config: o.Config, Resources: o.Resources, Backends: o.Backends, Log: o.Log, Metrics: o.Metrics})
	}
	h.catalog = h.secrets.load.catalog
	h.now.Store(o.Resources)
	h.about = about.New(h.s.AppID, "runtime")
	h.about.Describe(h.describe)
	began := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := h.start(ctx)
	if err == nil {
		// What goes on in the background, such as the app's health probes, outlives the request
		// to end by the block duration.
		living, rest := context.WithCancel(context.WithoutCancel(ctx))
		defer rest()
		background := make(chan struct{})
		go func() {
			defer close(background)
			if err := h.settle(living, began); err != nil && living.Err() == nil {
				cancel(err)
			}
		}()
		if err = h.wait(ctx); errors.Is(err, ErrForced) {
			return err // at once: nothing is drained or closed
		}
		h.about.Unready("runtime")
		if err == nil {
			h.block()
		}
		rest()
		<-background
		h.watching.Wait()
	} else if ctx.Err() != nil {
		err = nil // told to end while it still waited for a port
	}
	h.about.Unready("runtime")
	if stop := h.stop(); err == nil {
		err = stop
	}
	return err
}

// ErrForced is the end requested with dapr-force-shutdown.
var ErrForced = errors.New("forced shutdown requested via API")

// wait blocks until the sidecar is to end. A failure of a part is returned.
func (h *Sidecar) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			return cause
		}
		return nil
	case err := <-h.lost:
		return err
	case stop := <-h.about.Stops():
		if stop.Force {
			time.Sleep(100 * time.Millisecond) // the answer is still to be written
			return ErrForced
		}
		telemetry.Scope(h.log, "dapr.api").Info("Shutdown requested via API")
		return nil
	}
}

// start brings the sidecar up to the point where its APIs answer.
func (h *Sidecar) start(ctx context.Context) (err error) {
	l, err := h.listen(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // before there are servers, nobody else would
			l.close()
		}
	}()
	peerPort := l.Peer.Addr().(*net.TCPAddr).Port
	for k, v := range h.s.ProcessEnv(peerPort) {
		os.Setenv(k, v)
	}
	if h.registry, err = h.openRegistry(); err != nil {
		return err
	}
	if err := h.openApp(); err != nil {
		return err
	}
	if err := h.openPolicy(); err != nil {
		return err
	}
	h.secrets.governBy(h.policy)
	if err := h.buildServices(ctx, l); err != nil {
		return err
	}
	if h.servers, err = h.o.Edges.Servers(h.services); err != nil {
		return err
	}
	// The end of ctx is the beginning of a graceful end: calls in flight outlive it.
	serving, cut := context.WithCancel(context.WithoutCancel(ctx))
	h.cut = cut
	for _, s := range h.servers {
		h.edges.Go(func() {
			if err := s.Serve(serving); err != nil && serving.Err() == nil {
				h.lost <- fmt.Errorf("%s server: %w", s.Name, err)
			}
		})
		s.Opened()
	}
	return nil
}

// openApp makes the way to the app.
func (h *Sidecar) openApp() (err error) {
	h.appSide, err = h.o.Edges.AppSide()
	if err != nil {
		return err
	}
	opts := app.Options{MaxConcurrency: h.s.AppMaxConcurrency, Token: h.s.AppToken.Reveal(), Health: h.s.AppHealth.Enabled && h.appSide != nil}
	if h.appSide == nil {
		telemetry.Scope(h.log, "dapr.runtime.channels").Warn("App channel is not initialized. Did you configure an app-port?")
		h.app = app.New(nil, opts)
		return nil
	}
	h.app = app.New(h.appSide, opts)
	return nil
}

func (h *Sidecar) buildServices(ctx context.Context, l Listeners) error {
	hostName, _ := os.Hostname()
	endpoints, err := h.endpoints(ctx)
	if err != nil {
		return err
	}
	inv := invoke.New(invoke.Options{Self: h.self, HostIP: h.s.HostAddress(), HostName: hostName, Local: h.app,
		Peers: h.o.Edges.Peers(), External: h.o.Edges.External(), Registry: h.registry, Endpoints: endpoints,
		Record: invokeRecorder{m: h.o.Metrics, judged: h.judges}, Tracing: h.o.Tracing, Log: h.log, Govern: h.policy.Govern})
	inbound := func(kind call.Kind) func(component string) *call.Target {
		return func(component string) *call.Target {
			t := &call.Target{Kind: kind, Direction: call.Inbound, Name: component, Namespace: h.self.Namespace}
			h.policy.Govern(t)
			return t
		}
	}
	ps := pubsub.Options{Log: telemetry.Scope(h.log, "dapr.runtime.processor.subscription"), Recorder: h.o.Metrics, Tracing: h.o.Tracing,
		Inbound: inbound(call.Deliver)}
	ps.Namespaced = h.namespaced
	bs := binding.Options{Log: telemetry.Scope(h.log, "dapr.runtime.processor.binding"), Recorder: h.o.Metrics, Tracing: h.o.Tracing,
		App: h.app, Inbound: inbound(call.Binding), AskTimeout: h.s.AppBindingOptionsTimeout}
	if h.app.Exists() {
		ps.App, ps.Sink = h.app, pubsub.Admitted(h.app, h.appSide.Sink())
		bs.Sink = h.appSide.Bindings()
	}
	messages := pubsub.New(h.catalog.PubSub, h.self, ps)
	h.outbox = outbox.New(messages, h.self, telemetry.Scope(h.log, "dapr.runtime.processor.outbox"))
	h.services = &Services{Self: h.self, Invoke: inv, State: state.New(h.catalog.State, h.self, h.o.Metrics).WithOutbox(h.outbox),
		PubSub: messages, Secret: h.secrets.service, Lock: lock.New(h.catalog.Lock, h.self),
		Config: config.New(h.catalog.Config, h.self, config.Options{Log: telemetry.Scope(h.log, "dapr.runtime.processor.configuration"),
			Recorder: h.o.Metrics, App: h.app, Inbound: inbound(call.Config)}),
		Crypto:  crypto.New(h.catalog.Crypto, h.self, h.o.Metrics),
		Binding: binding.New(h.catalog.Binding, h.self, bs),
		Cache:   cache.New(h.catalog.Cache, h.self, h.o.Metrics, telemetry.Scope(h.log, "dapr.runtime.processor.cache")),
		App:     h.app, About: h.about, Listeners: l}
	return h.declareSubscriptions(h.o.Resources)
}

// settle brings the rest up behind the serving APIs: components, then the app.
func (h *Sidecar) settle(ctx context.Context, began time.Time) error {
	if err := h.loadComponents(ctx); err != nil {
		return err
	}
	h.placeAway()
	h.watching.Go(func() { h.watchResources(ctx) })
	h.about.SetOutbound(true)
	if err := h.findApp(ctx); err != nil {
		return nil // ctx ended while waiting
	}
	if err := h.announce(ctx); err != nil {
		return err
	}
	h.about.Ready("runtime")
	h.log.Info(fmt.Sprintf("dapr initialized. Status: Running. Init Elapsed %dms", time.Since(began).Milliseconds()))
	return h.serveApp(ctx)
}

// announce tells the registry where we are.
func (h *Sidecar) announce(ctx context.Context) error {
	r, ok := h.registry.(block.Registrar)
	if !ok {
		return nil
	}
	port := h.services.Listeners.Peer.Addr().(*net.TCPAddr).Port
	err := r.Register(ctx, block.Instance{ID: uuid.NewString(), App: h.self.App, Namespace: h.self.Namespace,
		Address: net.JoinHostPort(h.peerAddress(), fmt.Sprint(port)), Protocol: "mecha", Labels: h.s.Labels})
	if err != nil && ctx.Err() == nil {
		return fault.New("host.announce", fault.Of(err), "cannot announce this sidecar to name resolution").Because(err)
	}
	return nil
}

// peerAddress is where other sidecars reach the peer port.
func (h *Sidecar) peerAddress() string {
	ip := net.ParseIP(h.s.PeerHost())
	switch {
	case ip != nil && !ip.IsUnspecified():
		return ip.String()
	case h.s.PeerIsLocal():
		return "127.0.0.1"
	}
	return h.s.HostAddress() // bound on every address, or by name: others need an address
}

// stop takes the sidecar down in the reverse order, within the grace period.
func (h *Sidecar) stop() error {
	if h.services == nil {
		h.closeAll(context.Background())
		return nil
	}
	h.log.Info("Dapr is shutting down")
	h.about.SetOutbound(false)
	ctx, cancel := context.WithTimeout(context.Background(), h.s.GracefulShutdown)
	defer cancel()
	if r, ok := h.registry.(block.Registrar); ok {
		_ = r.Deregister(ctx) // the entry dies with us anyway
	}
	if err := h.services.Config.Close(ctx); err != nil { // its streams would keep the edges from draining
		h.log.Warn("some configuration updates were not finished within the grace period", "err", err)
	}
	h.services.State.EndWatches() // like those
	h.services.Cache.EndWatches()
	h.drainEvents(ctx)
	h.services.PubSub.EndStreams()
	h.outbox.Close() // its streams have ended with the others
	var drains sync.WaitGroup
	for _, s := range h.servers {
		drains.Go(func() {
			if err := s.Drain(ctx); err != nil {
				h.log.Warn("some calls were cut off at the end of the grace period", "edge", s.Name)
			}
		})
	}
	drains.Wait()
	h.cut()
	h.edges.Wait()
	_ = h.services.Cache.Close(ctx) // what is left was told to end
	h.services.PubSub.Close()
	if ctx.Err() != nil { // closing well matters more than a second
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
	}
	h.closeAll(ctx)
	h.log.Info("Dapr runtime stopped")
	return nil
}

// block keeps the APIs open for the block duration, or until the app is unhealthy. Events are
// not taken any more meanwhile.
func (h *Sidecar) block() {
	d := h.s.BlockShutdown
	if d <= 0 {
		return
	}
	h.ending.Store(true)
	h.pauseEvents()
	h.log.Info(fmt.Sprintf("Blocking graceful shutdown for %s or until app reports unhealthy...", d))
	end := time.After(d)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-end:
			h.log.Info("Block shutdown period expired, entering shutdown...")
			return
		case <-tick.C:
			if !h.app.Healthy() {
				return
			}
		}
	}
}

func (h *Sidecar) closeAll(ctx context.Context) {
	if h.services != nil {
		h.services.Invoke.Close()
	}
	h.o.Edges.Close(ctx)
	h.closePolicy()
	if h.app != nil {
		h.app.Close()
	}
	if h.catalog != nil {
		if err := h.catalog.Close(ctx); err != nil {
			h.log.Warn("closing components", "err", err)
		}
	}
	if h.registry != nil {
		h.registry.Close(ctx)
	}
	_ = h.o.Tracer.Close(ctx) // spans that could not be sent are lost; the exporter has logged it
}
