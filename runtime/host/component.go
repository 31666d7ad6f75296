package host

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/settings"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// loader opens components one by one and tells how it went.
type loader struct {
	catalog *catalog.Catalog
	metrics *telemetry.Metrics
	log     *slog.Logger
}

// load opens a component and reaches its server. complete gives its metadata, which may take
// reading secrets; nil means that spec has them. An error has been told already; unless it may be
// ignored (spec says so) it is to end the sidecar.
func (l *loader) load(ctx context.Context, spec catalog.Spec, complete func(context.Context) ([]conf.Item, error)) error {
	reason, err := l.open(ctx, &spec, complete)
	if err == nil {
		l.metrics.ComponentLoaded()
		l.log.Info("Component loaded: " + spec.LogName())
		return nil
	}
	l.metrics.ComponentInitFail(spec.Type, reason, spec.Name)
	l.log.Error("Failed to init component " + spec.LogName() + ": " + err.Error())
	err = fmt.Errorf("process component %s error: %w", spec.Name, err)
	if spec.IgnoreErrors {
		l.log.Error("Ignoring error processing component: " + err.Error())
	}
	return err
}

// replace opens a component, and only when its server answers puts it in the place of one with its
// name, which it returns; nil when there was none. Nothing is published on an error.
func (l *loader) replace(ctx context.Context, spec catalog.Spec, complete func(context.Context) ([]conf.Item, error)) (*catalog.Retired, error) {
	fail := func(reason string, err error) (*catalog.Retired, error) {
		l.metrics.ComponentInitFail(spec.Type, reason, spec.Name)
		return nil, fmt.Errorf("process component %s error: %w", spec.Name, err)
	}
	var err error
	if spec.Items, err = complete(ctx); err != nil {
		return fail("init", catalog.InitFailure(&spec, err))
	}
	opened, err := l.catalog.Open(spec)
	if err != nil {
		return fail("creation", err)
	}
	l.metrics.ComponentInit(spec.Type)
	if err = checkComponent(opened); err == nil {
		err = l.catalog.Init(ctx, opened)
	}
	if err != nil {
		_ = opened.Component.Close(ctx) // nobody has met it
		return fail("init", err)
	}
	retired := l.catalog.Publish(opened)
	l.tell(opened)
	l.metrics.ComponentLoaded()
	l.log.Info("Component loaded: " + spec.LogName())
	return retired, nil
}

// open does it; reason is the stage that failed, as metrics name it.
func (l *loader) open(ctx context.Context, spec *catalog.Spec, complete func(context.Context) ([]conf.Item, error)) (reason string, err error) {
	if complete != nil {
		if spec.Items, err = complete(ctx); err != nil {
			return "init", catalog.InitFailure(spec, err)
		}
	}
	opened, err := l.catalog.Open(*spec)
	if err != nil {
		return "creation", err
	}
	l.metrics.ComponentInit(spec.Type)
	if err := checkComponent(opened); err != nil {
		_ = opened.Component.Close(ctx) // nobody has met it
		return "init", err
	}
	l.catalog.Publish(opened)
	if err := l.catalog.Init(ctx, opened); err != nil {
		l.catalog.Withdraw(ctx, spec.Name)
		return "init", err
	}
	l.tell(opened)
	return "", nil
}

// tell says in which directions a binding is used, in words that tools wait for.
func (l *loader) tell(o *catalog.Opened) {
	in, out := binding.Directions(o.Component, o.Info)
	log := telemetry.Scope(l.log, "dapr.runtime.processor.binding")
	if in {
		log.Info("successful init for input binding (" + o.Spec.LogName() + ")")
	}
	if out {
		log.Info("successful init for output binding (" + o.Spec.LogName() + ")")
	}
}

// specOf is a declared component whose metadata are still to be completed.
func specOf(c *settings.Component) catalog.Spec {
	return catalog.Spec{Name: c.Name, Type: c.LookupType(), Version: c.Version, InitTimeout: c.InitTimeout, IgnoreErrors: c.IgnoreErrors}
}

// completed gives a component's metadata with everything in it resolved.
func completed(c *settings.Component, x settings.Expansion, log *slog.Logger) ([]conf.Item, error) {
	items, found := c.Items(x)
	for _, w := range found.Warnings() {
		log.Warn(w.String())
	}
	return items, found.Err()
}
