package host

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/policy/file"
	"github.com/mecha-project/mecha/runtime/settings"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// openPolicy makes the policy engine and puts the policies of the resources in force. A
// TrafficPolicy with an error stops the start: the sidecar would run without a policy it was
// given. A Resiliency with one is told and left out, as in Dapr.
func (h *Sidecar) openPolicy() error {
	if found := h.o.Resources.Refused; len(found) > 0 {
		return fmt.Errorf("traffic policies cannot be used:\n%w", found.Err())
	}
	o := policy.Options{Log: h.log, Zone: h.s.Labels["zone"], Probe: h.probe, Ping: h.ping, Judged: h.countAccess}
	if h.o.Metrics != nil {
		o.Record = policyRecorder{h.o.Metrics}
	}
	h.policy = policy.New(o)
	if h.o.Governed != nil {
		h.o.Governed(h.policy)
	}
	c := h.compilePolicy(h.o.Resources)
	if c.Refused {
		return fmt.Errorf("traffic policies cannot be used:\n%w", c.Findings.Err())
	}
	for _, f := range c.Findings {
		LogFinding(h.log, f)
	}
	h.loaded(c.Resiliencies)
	if h.judges = c.Snapshot.Access != nil; h.judges {
		h.log.Info("Calls from other apps pass " + c.Snapshot.Access.String())
	}
	h.resilient = c.Resiliencies
	for i := range c.Snapshot.Policies {
		h.log.Info("Loading TrafficPolicy: " + c.Snapshot.Policies[i].Name)
	}
	h.away = c.Away
	h.policy.Swap(c.Snapshot)
	return nil
}

// LogFinding tells what is wrong with a resource. A Resiliency with an error is left out as a
// whole, which Dapr tells in these words.
func LogFinding(log *slog.Logger, f conf.Finding) {
	name, ok := strings.CutPrefix(f.Of, settings.KindResiliency+" ")
	if !ok || f.Severity != conf.Error {
		log.Warn(f.String())
		return
	}
	log.Error(fmt.Sprintf("Could not read resiliency policy %s: %s: %s", name, f.Position(), f.Text()))
}

// loaded tells of Resiliency resources that come into force.
func (h *Sidecar) loaded(list []settings.Resiliency) {
	for i := range list {
		h.log.Info("Loading Resiliency configuration: " + list[i].Name)
		h.o.Metrics.ResiliencyLoaded(list[i].Name, list[i].Namespace)
	}
}

// compilePolicy makes a snapshot of resources and the configuration.
func (h *Sidecar) compilePolicy(r *settings.Resources) *file.Compiled {
	return file.Compile(file.Source{Policies: r.Policies, Resiliencies: r.Resiliencies, Access: h.o.Config.AccessControl, Components: h.componentNames(r)})
}

// componentNames are the names of components that this sidecar is to have, by kind of call.
func (h *Sidecar) componentNames(r *settings.Resources) map[call.Kind][]string {
	names := map[call.Kind][]string{}
	for _, kind := range catalog.CallKinds() {
		names[kind] = []string{}
	}
	add := func(typ, name string) {
		if kind, ok := catalog.CallKind(typ); ok {
			names[kind] = append(names[kind], name)
		}
	}
	for i := range r.Components {
		add(r.Components[i].LookupType(), r.Components[i].Name)
	}
	for _, s := range h.o.Implicit {
		add(s.Type, s.Name)
	}
	return names
}

// placeAway makes the names that exist only in policy ones that apps can use. It runs when
// components are loaded, and again when policy changes.
func (h *Sidecar) placeAway() {
	for _, a := range h.away {
		switch a.Kind {
		case call.State:
			place(h, h.catalog.State, a)
		case call.Publish:
			place(h, h.catalog.PubSub, a)
		case call.Secret:
			place(h, h.catalog.Secret, a)
		case call.Lock:
			place(h, h.catalog.Lock, a)
		case call.Config:
			place(h, h.catalog.Config, a)
		case call.Crypto:
			place(h, h.catalog.Crypto, a)
		case call.Binding:
			place(h, h.catalog.Binding, a)
		case call.Cache:
			place(h, h.catalog.Cache, a)
		}
	}
}

func place[T block.Component](h *Sidecar, store *catalog.Store[T], a file.Away) {
	if old, err := store.Lookup(a.Name); err == nil && !old.Away() {
		return // a component has the name after all
	}
	first, err := store.Lookup(a.First)
	if err != nil {
		return // its component failed and is ignored; calls will say so
	}
	info := first.Info
	info.Name = a.Name
	t := &call.Target{Kind: a.Kind, Direction: call.Outbound, Name: a.Name}
	h.policy.Govern(t)
	store.Put(catalog.NewAway[T](info, t))
}

// changePolicy puts the policies that the folders hold now in force. What is wrong is told, and
// what was in force stays.
func (h *Sidecar) changePolicy(log *slog.Logger, now *settings.Resources, d settings.Diff) {
	c := h.compilePolicy(now)
	for _, f := range c.Findings {
		LogFinding(log, f)
	}
	fine := c.Resiliencies
	if kept, ok := h.keepResilient(now, fine); ok {
		c = h.compilePolicy(kept)
	}
	if c.Refused {
		log.Error("the changed traffic policies are not used; those before stay in force")
		return
	}
	h.away, h.resilient = c.Away, c.Resiliencies
	h.policy.Swap(c.Snapshot)
	h.placeAway()
	h.loaded(slices.DeleteFunc(append(d.Resiliencies.Added, d.Resiliencies.Changed...), func(r settings.Resiliency) bool { return !named(fine, r.Name) }))
	log.Info(fmt.Sprintf("traffic policy changed: %d TrafficPolicy and %d Resiliency resources are in force", len(c.Snapshot.Policies), len(c.Resiliencies)))
}

// keepResilient puts those that were in force before in the place of Resiliency resources that
// are not fine now; ok is false when there is nothing to put back.
func (h *Sidecar) keepResilient(now *settings.Resources, fine []settings.Resiliency) (out *settings.Resources, ok bool) {
	all := *now
	all.Resiliencies = slices.Clone(now.Resiliencies)
	for i := range all.Resiliencies {
		name := all.Resiliencies[i].Name
		at := slices.IndexFunc(h.resilient, func(r settings.Resiliency) bool { return r.Name == name })
		if at >= 0 && !named(fine, name) {
			all.Resiliencies[i], ok = h.resilient[at], true
		}
	}
	return &all, ok
}

func named(list []settings.Resiliency, name string) bool {
	return slices.ContainsFunc(list, func(r settings.Resiliency) bool { return r.Name == name })
}

// probe asks an endpoint of an app how it is.
func (h *Sidecar) probe(ctx context.Context, app string, to call.Endpoint, path string) error {
	if path == "" {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", to.Address)
		if err != nil {
			return err
		}
		return c.Close()
	}
	req := &call.Request{Target: app, Verb: "GET", Path: strings.TrimPrefix(path, "/"), Header: call.Fields{{Name: "dapr-caller-app-id", Value: h.self.App}}}
	resp, err := h.o.Edges.Peers().Invoke(ctx, block.Instance{ID: to.ID, Address: to.Address, App: app, Namespace: h.self.Namespace, Protocol: "mecha"}, req)
	if err != nil {
		return err
	}
	defer resp.Close()
	if resp.Status >= 400 {
		return fault.New("host.probe", fault.Unavailable, "GET %s answered %d", path, resp.Status)
	}
	return nil
}

// ping asks a component's server.
func (h *Sidecar) ping(ctx context.Context, kind call.Kind, name string) error {
	switch kind {
	case call.State:
		return h.catalog.State.Ping(ctx, name)
	case call.Publish:
		return h.catalog.PubSub.Ping(ctx, name)
	case call.Secret:
		return h.catalog.Secret.Ping(ctx, name)
	case call.Lock:
		return h.catalog.Lock.Ping(ctx, name)
	case call.Config:
		return h.catalog.Config.Ping(ctx, name)
	case call.Crypto:
		return h.catalog.Crypto.Ping(ctx, name)
	case call.Binding:
		return h.catalog.Binding.Ping(ctx, name)
	case call.Cache:
		return h.catalog.Cache.Ping(ctx, name)
	}
	return nil
}

// policyRecorder gives the policies' figures to the metrics.
type policyRecorder struct{ m *telemetry.Metrics }

func (r policyRecorder) Resilience(id policy.SeriesID) policy.Series {
	return resilienceSeries{r.m.Resiliency(telemetry.Resiliency{Name: id.Name, Namespace: id.Namespace, Policy: id.Policy, Direction: id.Direction, Target: id.Target})}
}

func (r policyRecorder) Rejected(kind, target, part, rule string, shadow bool) {
	r.m.PolicyRejected(kind, target, part, rule, shadow)
}

func (r policyRecorder) Retried(kind, target, rule string, exhausted bool) {
	r.m.PolicyRetried(kind, target, rule, exhausted)
}
func (r policyRecorder) Mirrored(rule, target, result string) {
	r.m.PolicyMirrored(rule, target, result)
}
func (r policyRecorder) Ejected(rule, target, cause string) { r.m.PolicyEjected(rule, target, cause) }

type resilienceSeries struct{ s *telemetry.ResiliencySeries }

func (r resilienceSeries) Count(s policy.State)    { r.s.Count(telemetry.BreakerState(s)) }
func (r resilienceSeries) Activate(s policy.State) { r.s.Activate(telemetry.BreakerState(s)) }
func (r resilienceSeries) State(s policy.State)    { r.s.State(telemetry.BreakerState(s)) }

// closePolicy ends checks and copies, at most for a while: what hangs must not hold the end up.
func (h *Sidecar) closePolicy() {
	if h.policy == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.policy.Close()
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}
