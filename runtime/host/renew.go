package host

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/settings"
)

// Secret stores that change while the sidecar runs, and what refers to them.

// renewal is one change of secret stores.
type renewal struct {
	log     *slog.Logger
	renewed map[string]bool // stores that came or were replaced
	retired []*catalog.Retired
}

// change puts secret stores that have changed in force, and those that take their own settings from
// one that has: each is opened beside the one it replaces. What does not work is told, and what
// was there stays. The caller closes what is retired.
func (s *Secrets) change(ctx context.Context, log *slog.Logger, d *settings.Changes[settings.Component]) *renewal {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &renewal{log: log, renewed: map[string]bool{}}
	s.renewing = r
	defer func() { s.renewing = nil }()
	for i := range d.Removed {
		name := d.Removed[i].Name
		delete(s.stores, name)
		s.order = slices.DeleteFunc(s.order, func(n string) bool { return n == name })
		r.retired = append(r.retired, s.load.catalog.Remove(name)...)
		log.Info("Component removed: " + d.Removed[i].LogName())
	}
	for _, list := range [][]settings.Component{d.Changed, d.Added} {
		for i := range list {
			s.declare(&list[i])
		}
	}
	for _, name := range slices.Clone(s.order) {
		if st := s.stores[name]; st.stale {
			_ = s.open(ctx, name, nil) // told
		}
	}
	for again := true; again; { // stores that refer to what has been renewed, and those that refer to them
		again = false
		for _, name := range s.order {
			if st := s.stores[name]; !r.renewed[name] && refers(st.declared.Metadata, st.declared.SecretStore, r.renewed) && !st.passed(r) {
				st.stale, again = true, true
				_ = s.open(ctx, name, nil)
			}
		}
	}
	return r
}

// declare notes what a store is to be from now on.
func (s *Secrets) declare(c *settings.Component) {
	st, ok := s.stores[c.Name]
	if !ok {
		st = &secretStore{}
		s.stores[c.Name] = st
		s.order = append(s.order, c.Name)
	}
	st.declared, st.stale = c, true
}

// passed tells whether a store has had its turn in this change.
func (st *secretStore) passed(r *renewal) bool { return st.turn == r }

// renew opens a store beside the one with its name; the caller holds mu.
func (s *Secrets) renew(ctx context.Context, st *secretStore, chain []string) error {
	st.stale, st.turn = false, s.renewing
	c, r := st.declared, s.renewing
	says := "Component updated: "
	if !st.tried {
		says = "Adding Component for processing: "
	}
	r.log.Info(says + c.LogName())
	retired, err := s.load.replace(ctx, specOf(c), func(ctx context.Context) ([]conf.Item, error) {
		if err := s.circle(c); err != nil {
			return nil, err
		}
		return completed(c, s.expansion(ctx, func(store string) error { return s.open(ctx, store, chain) }), s.o.Log)
	})
	if err != nil {
		r.log.Error("the changed secret store is not used; one that was there before stays in force: " + err.Error())
		if !st.tried {
			st.tried, st.err = true, err
		}
		return st.failed()
	}
	st.tried, st.err = true, nil
	r.renewed[c.Name] = true
	if retired != nil {
		r.retired = append(r.retired, retired)
	}
	return nil
}

// circle refuses a store that has become one of those it needs itself: with the others as they are
// it would open, and at the next start none of them would.
func (s *Secrets) circle(c *settings.Component) error {
	chain := []string{c.Name}
	for at := c; at != nil && slices.ContainsFunc(at.Metadata, func(e settings.Entry) bool { return e.SecretRef != nil }); {
		next := at.SecretStore
		if slices.Contains(chain, next) {
			return inCircle(append(chain, next))
		}
		chain = append(chain, next)
		if at = nil; s.stores[next] != nil {
			at = s.stores[next].declared
		}
	}
	return nil
}

func inCircle(chain []string) error {
	return fmt.Errorf("secret stores need one another to start: %s", strings.Join(chain, ", "))
}

// refers tells whether entries take something from one of the stores.
func refers(entries []settings.Entry, store string, stores map[string]bool) bool {
	return stores[store] && slices.ContainsFunc(entries, func(e settings.Entry) bool { return e.SecretRef != nil })
}

// secretsOf are all entries of an endpoint that may be secrets.
func secretsOf(e *settings.HTTPEndpoint) []settings.Entry {
	all := slices.Clone(e.Headers)
	if t := e.ClientTLS; t != nil {
		for _, one := range []*settings.Entry{t.RootCA, t.Certificate, t.PrivateKey} {
			if one != nil {
				all = append(all, *one)
			}
		}
	}
	return all
}

// apart divides changes of components into those of secret stores and the others. A component that
// becomes a secret store is removed at once: it goes before the store of its name comes.
func (h *Sidecar) apart(log *slog.Logger, before *settings.Resources, d *settings.Changes[settings.Component]) (stores, others *settings.Changes[settings.Component]) {
	stores, others = &settings.Changes[settings.Component]{}, &settings.Changes[settings.Component]{}
	side := func(c *settings.Component) *settings.Changes[settings.Component] {
		if isSecretStore(c) {
			return stores
		}
		return others
	}
	for i := range d.Removed {
		c := &d.Removed[i]
		side(c).Removed = append(side(c).Removed, *c)
	}
	for i := range d.Changed {
		c, old := &d.Changed[i], find(before, d.Changed[i].Name)
		switch {
		case isSecretStore(c) && h.denied(log, c):
		case old == nil || isSecretStore(old) == isSecretStore(c):
			side(c).Changed = append(side(c).Changed, *c)
		case isSecretStore(c):
			h.removeComponent(c.Name)
			stores.Added = append(stores.Added, *c)
		default:
			stores.Removed = append(stores.Removed, *old)
			others.Added = append(others.Added, *c)
		}
	}
	for i := range d.Added {
		if c := &d.Added[i]; !isSecretStore(c) || !h.denied(log, c) {
			side(c).Added = append(side(c).Added, *c)
		}
	}
	return stores, others
}

func find(r *settings.Resources, name string) *settings.Component {
	for i := range r.Components {
		if c := &r.Components[i]; c.Name == name {
			return c
		}
	}
	return nil
}

// changeSecrets puts secret stores that have changed in force, and tells which.
func (h *Sidecar) changeSecrets(ctx context.Context, log *slog.Logger, now *settings.Resources, d *settings.Changes[settings.Component]) map[string]bool {
	if d.Empty() {
		return nil
	}
	r := h.secrets.change(ctx, log, d)
	for _, old := range r.retired {
		h.retire(old)
	}
	gone := map[string]bool{}
	for i := range d.Removed {
		gone[d.Removed[i].Name] = true
	}
	var left []string
	for i := range now.Components {
		if c := &now.Components[i]; refers(c.Metadata, c.SecretStore, gone) {
			left = append(left, c.Name)
		}
	}
	for i := range now.HTTPEndpoints {
		if e := &now.HTTPEndpoints[i]; refers(secretsOf(e), e.SecretStore, gone) {
			left = append(left, e.Name)
		}
	}
	if len(left) > 0 {
		log.Warn(fmt.Sprintf("%s still refer to a secret store that is gone; they keep the secrets they have, and could not start again", strings.Join(left, ", ")))
	}
	return r.renewed
}

// renewComponents opens components anew whose secrets are in stores that were renewed, unless they
// have changed themselves.
func (h *Sidecar) renewComponents(ctx context.Context, log *slog.Logger, now *settings.Resources, done *settings.Changes[settings.Component], renewed map[string]bool) {
	for i := range now.Components {
		c := &now.Components[i]
		same := func(o settings.Component) bool { return o.Name == c.Name }
		switch {
		case isSecretStore(c) || !refers(c.Metadata, c.SecretStore, renewed):
		case slices.ContainsFunc(done.Added, same) || slices.ContainsFunc(done.Changed, same):
		case h.o.Config.Denied(c):
		case c.Category() == "middleware.http":
			log.Warn(fmt.Sprintf("component %s refers to secret store %s, which has changed; for middleware.http that takes effect when the sidecar starts again (SIGHUP does it)", c.Name, c.SecretStore))
		default:
			h.replaceComponent(ctx, log, c, "Component updated: ")
		}
	}
}

// changeEndpoints puts HTTP endpoints that have changed, or whose secrets may have, in force.
func (h *Sidecar) changeEndpoints(ctx context.Context, log *slog.Logger, now *settings.Resources, d *settings.Changes[settings.HTTPEndpoint], renewed map[string]bool) {
	for i := range d.Removed {
		h.services.Invoke.RemoveEndpoint(d.Removed[i].Name)
		log.Info("HTTPEndpoint removed: " + d.Removed[i].Name)
	}
	x := h.secrets.Expansion(ctx)
	for i := range now.HTTPEndpoints {
		e := &now.HTTPEndpoints[i]
		same := func(o settings.HTTPEndpoint) bool { return o.Name == e.Name }
		if !slices.ContainsFunc(d.Added, same) && !slices.ContainsFunc(d.Changed, same) && !refers(secretsOf(e), e.SecretStore, renewed) {
			continue
		}
		end, err := h.endpoint(e, x)
		if err != nil {
			log.Error("the changed HTTPEndpoint is not used; one that was there before stays in force: " + err.Error())
			continue
		}
		h.services.Invoke.SetEndpoint(end)
		log.Info("HTTPEndpoint updated: " + e.Name)
	}
}
