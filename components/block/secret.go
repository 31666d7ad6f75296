package block

import "context"

// Secret is a store of secrets, which the house only reads. Names are exact: a store answers to a
// name only in the spelling that GetAll lists it in, because rules about who may read a secret
// compare names.
type Secret interface {
	Component
	// Get reads one secret: its values by their names, mostly one under the secret's own name. A
	// secret that does not exist is fault.NotFound. metadata is the request's, for options of
	// the product (a version, a namespace). The map belongs to the caller.
	Get(ctx context.Context, name string, metadata map[string]string) (map[string]string, error)
	// GetAll reads every secret this store may read, by name. The maps belong to the caller.
	GetAll(ctx context.Context, metadata map[string]string) (map[string]map[string]string, error)
}

// SecretBlank is offered by stores that cannot tell a missing secret from an empty one: every
// name they do not know has one value, empty, under the secret's own name.
type SecretBlank interface{ BlankIfMissing() }

// SecretMany is offered by stores whose secrets may have several values each.
type SecretMany interface {
	// ManyValues tells whether this component is set up for it.
	ManyValues() bool
}
