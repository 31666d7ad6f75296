package host

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/settings"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// retireWithin bounds how long calls may stay inside a component that was replaced.
const retireWithin = 30 * time.Second

// watchResources puts changes of the resource folders in force until ctx ends: components, secret
// stores (renew.go), endpoints, policies, subscriptions. What is new is built beside what is old, takes its place when it works,
// and the old one is closed when the calls in it have ended. What is wrong is told, and what was
// in force stays.
func (h *Sidecar) watchResources(ctx context.Context) {
	log := telemetry.Scope(h.log, "dapr.runtime.hotreload.reconciler")
	if len(h.s.ResourcesPaths) == 0 || !h.o.Config.Feature("HotReload", true) {
		return
	}
	w, err := settings.NewWatcher(h.s.ResourcesPaths, settings.Selection{AppID: h.s.AppID, Namespace: h.s.NamespaceGiven})
	if err != nil {
		log.Warn("resource folders are not watched; changes need a restart: " + err.Error())
		return
	}
	defer w.Close()
	now, err := w.Load()
	if err != nil {
		log.Warn("resource folders are not watched; changes need a restart: " + err.Error())
		return
	}
	h.change(ctx, log, now, settings.Compare(h.o.Resources, now)) // what changed since the start
	_ = w.Run(ctx, func(d settings.Diff) { h.change(ctx, log, w.Resources(), d) })
}

// change puts what the folders hold now in force.
func (h *Sidecar) change(ctx context.Context, log *slog.Logger, now *settings.Resources, d settings.Diff) {
	for _, f := range d.Findings {
		LogFinding(log, f)
	}
	before := h.now.Swap(now)
	stores, others := h.apart(log, before, &d.Components)
	renewed := h.changeSecrets(ctx, log, now, stores)
	h.changeComponents(ctx, log, before, others)
	h.renewComponents(ctx, log, now, others, renewed)
	if !d.Policies.Empty() || !d.Resiliencies.Empty() || !d.Components.Empty() {
		h.changePolicy(log, now, d)
	}
	if !d.Subscriptions.Empty() {
		if err := h.declareSubscriptions(now); err != nil {
			log.Error("the changed subscriptions are not used; those before stay in force: " + err.Error())
		}
	}
	h.changeEndpoints(ctx, log, now, &d.HTTPEndpoints, renewed)
}

// changeComponents opens, replaces and removes components.
func (h *Sidecar) changeComponents(ctx context.Context, log *slog.Logger, before *settings.Resources, d *settings.Changes[settings.Component]) {
	for i := range d.Removed {
		if c := &d.Removed[i]; h.live(log, c) {
			log.Info("Component removed: " + c.LogName())
			h.removeComponent(c.Name)
		}
	}
	for i := range d.Changed {
		if c := &d.Changed[i]; h.live(log, c) {
			if otherBlock(before, c) {
				h.removeComponent(c.Name)
			}
			h.replaceComponent(ctx, log, c, "Component updated: ")
		}
	}
	for i := range d.Added {
		if c := &d.Added[i]; h.live(log, c) {
			h.replaceComponent(ctx, log, c, "Adding Component for processing: ")
		}
	}
}

// otherBlock tells whether a component belonged to another block before.
func otherBlock(before *settings.Resources, c *settings.Component) bool {
	for i := range before.Components {
		if old := &before.Components[i]; old.Name == c.Name {
			return old.Category() != c.Category()
		}
	}
	return false
}

// live tells whether a component can be changed while the sidecar runs.
func (h *Sidecar) live(log *slog.Logger, c *settings.Component) bool {
	switch {
	case h.denied(log, c):
		return false
	case c.Category() == "middleware.http":
		log.Warn(fmt.Sprintf("component %s has changed; for %s that takes effect when the sidecar starts again (SIGHUP does it)", c.Name, c.Category()))
		return false
	}
	return true
}

// denied tells whether the configuration refuses a component, and says so.
func (h *Sidecar) denied(log *slog.Logger, c *settings.Component) bool {
	if !h.o.Config.Denied(c) {
		return false
	}
	log.Warn(fmt.Sprintf("component '%s' cannot be loaded because components of type '%s' are not allowed", c.Name, c.LogName()))
	return true
}

// replaceComponent opens a component beside the one it may replace.
func (h *Sidecar) replaceComponent(ctx context.Context, log *slog.Logger, c *settings.Component, says string) {
	log.Info(says + c.LogName())
	retired, err := h.secrets.load.replace(ctx, specOf(c), func(ctx context.Context) ([]conf.Item, error) {
		return completed(c, h.secrets.Expansion(ctx), h.log)
	})
	if err != nil {
		log.Error("the changed component is not used; one that was there before stays in force: " + err.Error())
		return
	}
	h.refreshEvents(c.Name)
	if store, err := h.catalog.State.Lookup(c.Name); err == nil {
		h.outbox.Serve(store.Info, h.services.State)
	}
	h.retire(retired)
}

func (h *Sidecar) removeComponent(name string) {
	retired := h.catalog.Remove(name)
	h.refreshEvents(name)
	for _, r := range retired {
		h.retire(r)
	}
}

// retire closes a component behind the calls that still use it.
func (h *Sidecar) retire(r *catalog.Retired) {
	if r == nil {
		return
	}
	h.watching.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), retireWithin)
		defer cancel()
		if err := r.Close(ctx); err != nil {
			h.log.Warn("closing a component that was replaced", "err", err)
		}
	})
}
