package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/api/httpapi/middleware"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/settings"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// middlewareOptions are what HTTP middleware is built from. Config and Metrics may be nil.
type middlewareOptions struct {
	Components []settings.Component // those of other categories are passed over
	Config     *settings.Configuration
	Expand     settings.Expansion
	Metrics    *telemetry.Metrics
	Log        *slog.Logger
}

// middlewareSet is the HTTP middleware of a sidecar, built, whether a pipeline uses it or not.
// A nil set is empty.
type middlewareSet struct {
	opened []openedMiddleware
	log    *slog.Logger
}

type openedMiddleware struct {
	info catalog.Info
	*middleware.Middleware
}

// openMiddleware builds every middleware component there is. One that fails ends the sidecar
// unless it says ignoreErrors; those the configuration denies are left out (the host says so).
func openMiddleware(o middlewareOptions) (*middlewareSet, error) {
	s := &middlewareSet{log: telemetry.Scope(o.Log, "dapr.runtime.processor")}
	for i := range o.Components {
		c := &o.Components[i]
		if c.Category() != "middleware.http" || o.Config != nil && o.Config.Denied(c) {
			continue
		}
		m, reason, err := openOneMiddleware(c, o)
		if err == nil {
			o.Metrics.ComponentInit(c.LookupType())
			o.Metrics.ComponentLoaded()
			s.log.Info(fmt.Sprintf("Adding %s/%s %s middleware", c.Type, versionOrFirst(c.Version), c.Name))
			s.log.Info("Component loaded: " + c.LogName())
			s.opened = append(s.opened, openedMiddleware{catalog.Info{Name: c.Name, Type: c.LookupType(), Version: c.Version}, m})
			continue
		}
		o.Metrics.ComponentInitFail(c.LookupType(), reason, c.Name)
		s.log.Error("Failed to init component " + c.LogName() + ": " + err.Error())
		if !c.IgnoreErrors {
			s.close()
			return nil, fmt.Errorf("process component %s error: %w", c.Name, err)
		}
		s.log.Error("Ignoring error processing component: process component " + c.Name + " error: " + err.Error())
	}
	return s, nil
}

// openOneMiddleware builds one; reason is the stage that failed, as metrics name it.
func openOneMiddleware(c *settings.Component, o middlewareOptions) (m *middleware.Middleware, reason string, err error) {
	f, ok := middleware.Find(c.LookupType(), c.Version)
	if !ok {
		return nil, "creation", fmt.Errorf("[CREATE_COMPONENT_FAILURE]: initialization error occurred for %s: %w", c.LogName(), noMiddleware(c))
	}
	log := o.Log.With("component", c.LogName())
	items, found := c.Items(o.Expand)
	config := f.Config()
	found = append(found, conf.Decode(items, config)...)
	for _, w := range found.Warnings() {
		log.Warn("component metadata: " + w.String())
	}
	if err = found.Err(); err == nil {
		m, err = f.Open(middleware.Env{Log: log}, config)
	}
	if err != nil {
		return nil, "init", fmt.Errorf("[INIT_COMPONENT_FAILURE]: initialization error occurred for %s: %w", c.LogName(), err)
	}
	return m, "", nil
}

// noMiddleware says that there is no middleware of a component's type or version.
func noMiddleware(c *settings.Component) error {
	err := fmt.Errorf("couldn't find HTTP middleware %s/%s", c.Type, versionOrFirst(c.Version))
	if _, known := middleware.Find(c.LookupType(), ""); known {
		return fmt.Errorf("%w; leave spec.version out or write v1", err)
	}
	const prefix = "middleware.http." // what all have in common says nothing
	var names []string
	for _, t := range middleware.Types() {
		names = append(names, strings.TrimPrefix(t, prefix))
	}
	if near := conf.Nearest(strings.TrimPrefix(c.LookupType(), prefix), names); near != "" {
		return fmt.Errorf("%w; did you mean %s%s?", err, prefix, near)
	}
	return fmt.Errorf("%w; there are %s", err, strings.Join(middleware.Types(), ", "))
}

func versionOrFirst(v string) string {
	if v == "" {
		return "v1"
	}
	return v
}

// api is the pipeline around the HTTP API, outermost first.
func (s *middlewareSet) api(p *settings.Pipeline) []httpapi.Middleware {
	var out []httpapi.Middleware
	for _, m := range s.pipeline("httpPipeline", p) {
		out = append(out, m.API)
	}
	return out
}

// app is the pipeline around calls to an HTTP app, outermost first.
func (s *middlewareSet) app(p *settings.Pipeline) []httpapi.CallMiddleware {
	var out []httpapi.CallMiddleware
	for _, m := range s.pipeline("appHttpPipeline", p) {
		out = append(out, m.App)
	}
	return out
}

// pipeline finds the handlers of a pipeline among the components. As in Dapr, one that is not
// there is left out; of a guard that is said aloud, for more gets through without it.
func (s *middlewareSet) pipeline(where string, p *settings.Pipeline) []openedMiddleware {
	if s == nil || p == nil {
		return nil
	}
	var out []openedMiddleware
	for _, h := range p.Handlers {
		if m, ok := s.find(h); ok {
			out = append(out, m)
			continue
		}
		const msg = "a handler of the HTTP pipeline is left out: no component of its name and type is loaded"
		attrs := []any{"pipeline", where, "name", h.Name, "type", h.Type}
		if guards(h.Type) {
			s.log.Warn(msg+"; what it should refuse gets through", attrs...)
		} else {
			s.log.Debug(msg, attrs...)
		}
	}
	return out
}

func (s *middlewareSet) find(h settings.Handler) (openedMiddleware, bool) {
	for _, m := range s.opened {
		if m.info.Name == h.Name && strings.EqualFold(m.info.Type, h.Type) && sameVersion(m.info.Version, h.Version) {
			return m, true
		}
	}
	return openedMiddleware{}, false
}

// sameVersion compares component versions: "", v0 and v1 are one.
func sameVersion(a, b string) bool {
	first := func(v string) bool { return v == "" || v == "v0" || v == "v1" }
	return a == b || first(a) && first(b)
}

// guards tells whether a type of middleware refuses requests. One that is not known may.
func guards(typ string) bool {
	f, ok := middleware.Find(typ, "")
	return !ok || f.Guards
}

// infos lists the components, for the metadata API.
func (s *middlewareSet) infos() []catalog.Info {
	if s == nil {
		return nil
	}
	var out []catalog.Info
	for _, m := range s.opened {
		out = append(out, m.info)
	}
	return out
}

// close ends what the middleware runs in the background.
func (s *middlewareSet) close() {
	if s == nil {
		return
	}
	for _, m := range s.opened {
		if m.Close != nil {
			m.Close()
		}
	}
}
