package host

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/cache"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/invoke"
	"github.com/mecha-project/mecha/runtime/lock"
	"github.com/mecha-project/mecha/runtime/outbox"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/settings"
	"github.com/mecha-project/mecha/runtime/state"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// loadComponents opens every component and reaches their servers: the secret stores, then the
// others, which may be configured with secrets, each in its own time. A component that fails ends
// the sidecar unless it says ignoreErrors.
func (h *Sidecar) loadComponents(ctx context.Context) error {
	h.log.Info("Loading components…")
	if err := h.secrets.openAll(ctx); err != nil {
		return err
	}
	specs := h.specs()
	var all sync.WaitGroup
	failed := make(chan error, len(specs))
	for _, spec := range specs {
		all.Go(func() {
			if err := h.loadComponent(ctx, spec); err != nil {
				failed <- err
			}
		})
	}
	h.log.Info("Waiting for all outstanding components to be processed…")
	all.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return err
	}
	h.log.Info("All outstanding components processed")
	for _, store := range h.catalog.State.List() {
		h.outbox.Serve(store.Info, h.services.State)
	}
	h.log.Info("Loading endpoints…")
	for _, e := range h.o.Resources.HTTPEndpoints {
		h.log.Info("Found http endpoint: " + e.Name)
	}
	h.log.Info("All outstanding http endpoints processed")
	return nil
}

// pending is a component to open.
type pending struct {
	catalog.Spec
	// declared is the resource whose metadata the spec still lacks; nil for one without a resource.
	declared *settings.Component
}

func (h *Sidecar) loadComponent(ctx context.Context, p pending) error {
	var complete func(context.Context) ([]conf.Item, error)
	if p.declared != nil {
		complete = func(ctx context.Context) ([]conf.Item, error) {
			return completed(p.declared, h.secrets.Expansion(ctx), h.log)
		}
	}
	err := h.secrets.load.load(ctx, p.Spec, complete)
	if err == nil {
		h.refreshEvents(p.Name)
	}
	if p.IgnoreErrors {
		return nil
	}
	return err
}

// checkComponent judges settings of a component that its service reads.
func checkComponent(o *catalog.Opened) error {
	switch o.Component.(type) {
	case block.State:
		return errors.Join(state.CheckPrefix(o.Info), outbox.Check(o.Info))
	case block.Lock:
		return lock.CheckPrefix(o.Info)
	case block.Cache:
		return cache.CheckPrefix(o.Info)
	case block.Input, block.Output:
		return binding.CheckDirection(o.Info)
	}
	return nil
}

// namespaced tells whether a pub/sub component's topics carry the namespace.
func (h *Sidecar) namespaced(component string) bool {
	now := h.now.Load()
	for i := range now.Components {
		if c := &now.Components[i]; c.Name == component {
			return c.NamespaceScoped()
		}
	}
	return false
}

// specs turns resources into components to open: declared ones, then the implicit ones whose
// names are free.
func (h *Sidecar) specs() []pending {
	var out []pending
	taken := map[string]bool{}
	for i := range h.o.Resources.Components {
		c := &h.o.Resources.Components[i]
		taken[c.Name] = true
		if h.o.Config.Denied(c) {
			h.log.Warn(fmt.Sprintf("component '%s' cannot be loaded because components of type '%s' are not allowed", c.Name, c.LogName()))
			continue
		}
		if c.Category() == "middleware.http" || isSecretStore(c) {
			continue // opened by the HTTP edge, and before
		}
		out = append(out, pending{specOf(c), c})
	}
	for _, s := range h.o.Implicit {
		if !taken[s.Name] {
			out = append(out, pending{Spec: s})
		}
	}
	return out
}

// openRegistry opens the configured name resolution, or the default: the host's own
// directory, joined by mDNS when the peer port is open to other hosts.
func (h *Sidecar) openRegistry() (block.Registry, error) {
	if n := h.o.Config.NameResolution; n != nil && n.Component != "" {
		r, err := h.oneRegistry(n.Component, n.Items())
		if err != nil { // as in Dapr, a broken resolver does not stop the sidecar
			h.log.Error(err.Error())
			return nil, nil
		}
		h.log.Info("Initialized name resolution to " + n.Component)
		return r, nil
	}
	r, err := h.oneRegistry("hostdir", nil)
	if err != nil {
		return nil, err
	}
	name := "hostdir"
	if !h.s.PeerIsLocal() {
		lan, err := h.oneRegistry("mdns", nil)
		if err != nil {
			return nil, err
		}
		r, name = invoke.Registries(r, lan), "hostdir and mdns"
	}
	h.log.Info("Initialized name resolution to " + name)
	return r, nil
}

func (h *Sidecar) oneRegistry(name string, items []conf.Item) (block.Registry, error) {
	failed := func(err error) error {
		return fmt.Errorf("[CREATE_COMPONENT_FAILURE]: initialization error occurred for %s (%s/v1): %w", name, name, err)
	}
	part, ok := h.o.Backends.Find("nameresolution."+name, "")
	if !ok {
		return nil, failed(fmt.Errorf("couldn't find name resolver %s/v1", name))
	}
	config := part.Config()
	if err := conf.Decode(items, config).Err(); err != nil {
		return nil, failed(err)
	}
	c, err := part.Open(block.Env{Log: h.log.With("component", name), AppID: h.self.App, Namespace: h.self.Namespace, Component: name, DataDir: h.s.DataDir}, config)
	if err != nil {
		return nil, failed(err)
	}
	r, ok := c.(block.Registry)
	if !ok {
		return nil, failed(fmt.Errorf("%s is no name resolver", name))
	}
	return r, nil
}

// endpoints makes the HTTPEndpoint resources targets. One whose headers or TLS settings cannot be
// had stops start-up: to call it with others would not be what was asked for.
func (h *Sidecar) endpoints(ctx context.Context) ([]invoke.Endpoint, error) {
	var out []invoke.Endpoint
	x := h.secrets.Expansion(ctx)
	for i := range h.o.Resources.HTTPEndpoints {
		end, err := h.endpoint(&h.o.Resources.HTTPEndpoints[i], x)
		if err != nil {
			return nil, err
		}
		out = append(out, end)
	}
	return out, nil
}

// endpoint makes one of them.
func (h *Sidecar) endpoint(e *settings.HTTPEndpoint, x settings.Expansion) (invoke.Endpoint, error) {
	end := invoke.Endpoint{Name: e.Name, BaseURL: e.BaseURL}
	// Header entries are written and resolved as component metadata are.
	items, err := completed(&settings.Component{Resource: e.Resource, Metadata: e.Headers, SecretStore: e.SecretStore}, x, h.log)
	if err != nil {
		return end, fmt.Errorf("http endpoint %s: %w", e.Name, err)
	}
	for _, it := range items {
		end.Header.Add(it.Name, it.Value)
	}
	if e.ClientTLS != nil {
		cfg, err := clientTLS(e, x)
		if err != nil {
			return end, fmt.Errorf("http endpoint %s: %w", e.Name, err)
		}
		end.TLS = cfg
	}
	return end, nil
}

// clientTLS builds the TLS settings of an endpoint.
func clientTLS(e *settings.HTTPEndpoint, x settings.Expansion) (*tls.Config, error) {
	t := e.ClientTLS
	pem := map[string]string{}
	for name, entry := range map[string]*settings.Entry{"rootCA": t.RootCA, "certificate": t.Certificate, "privateKey": t.PrivateKey} {
		if entry == nil {
			continue
		}
		items, found := (&settings.Component{Resource: e.Resource, Metadata: []settings.Entry{*entry}, SecretStore: e.SecretStore}).Items(x)
		if len(items) != 1 || items[0].Value == "" {
			return nil, fmt.Errorf("spec.clientTLS.%s has no value: %w", name, errors.Join(found.Err(), errNoPEM))
		}
		pem[name] = items[0].Value
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if pem["rootCA"] != "" {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM([]byte(pem["rootCA"])) {
			return nil, fmt.Errorf("spec.clientTLS.rootCA: %w", errNoPEM)
		}
	}
	if pem["certificate"] != "" {
		pair, err := tls.X509KeyPair([]byte(pem["certificate"]), []byte(pem["privateKey"]))
		if err != nil {
			return nil, fmt.Errorf("spec.clientTLS.certificate and privateKey: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	switch t.Renegotiation {
	case "RenegotiateOnceAsClient":
		cfg.Renegotiation = tls.RenegotiateOnceAsClient
	case "RenegotiateFreelyAsClient":
		cfg.Renegotiation = tls.RenegotiateFreelyAsClient
	}
	return cfg, nil
}

var errNoPEM = errors.New("no certificate in PEM form; give the text of the .pem file")

// declareSubscriptions hands the Subscription resources to the messaging service.
func (h *Sidecar) declareSubscriptions(now *settings.Resources) error {
	h.log.Info("Loading Declarative Subscriptions…")
	var subs []pubsub.Subscription
	for i := range now.Subscriptions {
		r := &now.Subscriptions[i]
		h.log.Info("Found Subscription: " + r.Name)
		sub := pubsub.Subscription{PubSub: r.PubSub, Topic: r.Topic, DeadLetterTopic: r.DeadLetterTopic, Metadata: r.Metadata,
			Bulk: pubsub.BulkSubscribe{Enabled: r.Bulk.Enabled, MaxMessages: r.Bulk.MaxMessagesCount, MaxAwait: time.Duration(r.Bulk.MaxAwaitDurationMs) * time.Millisecond}}
		for _, rule := range r.Rules {
			sub.Rules = append(sub.Rules, pubsub.Rule{Match: rule.Match, Path: rule.Path})
		}
		if r.Default != "" {
			sub.Rules = append(sub.Rules, pubsub.Rule{Path: r.Default})
		}
		subs = append(subs, sub)
	}
	return h.services.PubSub.SetDeclarative(subs)
}

// findApp waits until the app's port accepts connections.
func (h *Sidecar) findApp(ctx context.Context) error {
	if h.appSide == nil {
		return nil
	}
	h.log.Info(fmt.Sprintf("application protocol: %s. waiting on port %d.  This will block until the app is listening on that port.", h.s.AppProtocol, h.s.AppPort))
	addr := net.JoinHostPort(h.s.AppChannelAddress, strconv.Itoa(h.s.AppPort))
	var d net.Dialer
	for {
		dctx, cancel := context.WithTimeout(ctx, time.Second)
		c, err := d.DialContext(dctx, "tcp", addr)
		cancel()
		if err == nil {
			c.Close()
			h.log.Info(fmt.Sprintf("application discovered on port %d", h.s.AppPort))
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// serveApp asks the app what it wants and keeps serving it: subscriptions run while it is
// healthy. It returns when ctx ends.
func (h *Sidecar) serveApp(ctx context.Context) error {
	if h.appSide == nil {
		h.resumeEvents()
		return nil
	}
	if !h.s.AppHealth.Enabled {
		h.askApp(ctx)
		h.resumeEvents()
		return nil
	}
	asked := false
	opts := app.HealthOptions{Interval: h.s.AppHealth.Interval, Timeout: h.s.AppHealth.Timeout, Threshold: h.s.AppHealth.Threshold}
	_ = h.app.Watch(ctx, opts, telemetry.Scope(h.log, "dapr.apphealth"), func(healthy bool) {
		switch {
		case !healthy:
			h.pauseEvents()
			return
		case h.ending.Load():
			return
		case !asked:
			asked = true
			h.askApp(ctx)
		}
		h.resumeEvents()
	})
	return nil
}

// askApp reads the app's configuration and its programmatic subscriptions. Neither is needed
// for the sidecar to work, so failures are told and passed over.
func (h *Sidecar) askApp(ctx context.Context) {
	invoke := func(ctx context.Context, req *call.Request) (*call.Response, error) { return h.app.Invoke(ctx, req) }
	if !h.s.InitEndpointDisabled("config") {
		if err := h.appSide.Configured(ctx, invoke); err != nil {
			h.log.Debug("the app has no configuration", "err", err)
		} else {
			h.log.Info("Application configuration loaded")
		}
	}
	if h.s.InitEndpointDisabled("subscribe") || len(h.catalog.PubSub.List()) == 0 {
		return
	}
	for attempt := 0; ; attempt++ {
		subs, err := h.appSide.Subscriptions(ctx, invoke)
		if err == nil {
			if err = h.services.PubSub.SetProgrammatic(subs); err != nil {
				h.log.Warn("none of the app's subscriptions is used: " + err.Error())
			}
			return
		}
		if attempt == 3 || ctx.Err() != nil {
			h.log.Error("the app could not be asked for its subscriptions", "err", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(attempt+1) * 500 * time.Millisecond):
		}
	}
}
