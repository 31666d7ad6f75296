package block

import "context"

// Registry tells where the instances of an app are. Callers cache, balance and judge health
// above it; a registry only knows names and places.
type Registry interface {
	Component
	// Resolve returns every live instance of the named app. None is an empty list and no
	// error. Instances known to be dead are left out.
	Resolve(ctx context.Context, name Name) ([]Instance, error)
}

// Registrar is offered by registries that instances announce themselves to.
type Registrar interface {
	// Register announces self and keeps the announcement alive until Close or Deregister.
	// Registering the same ID again replaces the entry.
	Register(ctx context.Context, self Instance) error
	// Deregister withdraws the announcement. It is no error when there is none.
	Deregister(ctx context.Context) error
}

// RegistryWatcher is offered by registries that can tell of changes.
type RegistryWatcher interface {
	// Watch calls changed with the complete current list at once and after every change,
	// from one goroutine, until ctx ends; then it returns ctx's error. The slice belongs to
	// the callee.
	Watch(ctx context.Context, name Name, changed func([]Instance)) error
}

// Name identifies an app.
type Name struct{ App, Namespace string }

// Instance is one running sidecar of an app.
type Instance struct {
	ID        string // unique among all instances; survives nothing
	App       string
	Namespace string
	Address   string // host:port of the peer port
	// Protocol is what the peer port speaks: "mecha" (the link) or "dapr". Empty is "mecha".
	Protocol string
	Labels   map[string]string
	Weight   int // relative share of calls; 0 means 1
}
