package block

import "context"

// Secret is a store of secrets, which the house only reads.
type Secret interface {
	Component
	// Get reads one secret: its values by their names, mostly one under the secret's own name. A
	// secret that does not exist is fault.NotFound. metadata is the request's, for options of
	// the product (a version, a namespace).
	Get(ctx context.Context, name string, metadata map[string]string) (map[string]string, error)
	// GetAll reads every secret this store may read, by name.
	GetAll(ctx context.Context, metadata map[string]string) (map[string]map[string]string, error)
}
