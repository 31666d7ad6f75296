package nats

import (
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
)

// StoreConfig says where a store keeps its items.
type StoreConfig struct {
	// Bucket is the JetStream key-value bucket. Default: the component's name. Components with
	// the same bucket on the same server share their items.
	Bucket string `yaml:"bucket"`
}

// EmbeddedStateConfig configures a store in the embedded node.
type EmbeddedStateConfig struct {
	Node  NodeConfig
	Store StoreConfig
}

// DefaultEmbeddedStateConfig returns the defaults.
func DefaultEmbeddedStateConfig() *EmbeddedStateConfig {
	return &EmbeddedStateConfig{Node: defaultNode()}
}

// StateConfig configures a store in a NATS server.
type StateConfig struct {
	Conn  ConnConfig
	Store StoreConfig
	// Replicas is how many servers of a cluster keep the bucket, when it is created. With more
	// than one, reads that do not ask for strong consistency may be answered by any of them.
	Replicas int `yaml:"replicas"`
}

// DefaultStateConfig returns the defaults.
func DefaultStateConfig() *StateConfig { return &StateConfig{Replicas: 1} }

// Validate reports what cannot work.
func (c *StateConfig) Validate() error { return checkReplicas(c.Replicas) }

func checkReplicas(n int) error {
	if n < 1 || n > 5 {
		return conf.Bad("replicas", "must be from 1 to 5")
	}
	return nil
}

// NewEmbeddedState opens a store in the embedded node.
func NewEmbeddedState(env block.Env, c *EmbeddedStateConfig) (block.State, error) {
	return newState(env, &c.Store, 1, c.Node.dialer(env)), nil
}

// NewState opens a store in a NATS server.
func NewState(env block.Env, c *StateConfig) (block.State, error) {
	return newState(env, &c.Store, c.Replicas, c.Conn.dialer(env)), nil
}
