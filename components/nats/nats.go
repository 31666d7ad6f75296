// Package nats serves state, pub/sub, locks and configuration from NATS JetStream: from the embedded node, which
// needs no installation (types *.embedded, package nats/embedded), or from a server the user
// runs (types *.nats). Both are the same code over another connection.
//
// State is a JetStream key-value bucket, one stream with one message per key (state.go,
// transactions in tx.go). Pub/sub is one stream per component with a subject per topic
// (pubsub.go) and a durable pull consumer per group and topic (consumer.go); as a partitioned log
// it is another stream with a subject per partition, and a ledger (log.go). Locks (lock.go) and
// configuration (configuration.go) are buckets like those of state. Names that
// subjects cannot hold are escaped (names.go). conn.go makes the client library's repair of
// lost connections visible, and lane.go carries requests.
//
// Start reading at state.go. What durability the embedded node gives is its business, see
// package embedded; retrying belongs to the layers above.
package nats

import (
	"github.com/mecha-project/mecha/components/block"
)

// Backend lists the parts of this backend.
func Backend() block.Backend {
	return block.Backend{
		Name: "nats",
		Doc:  "State, messages, locks and configuration on NATS JetStream: an embedded node, or a server of yours.",
		Parts: []block.Part{
			block.StatePart("embedded", "State in the embedded node.", DefaultEmbeddedStateConfig, NewEmbeddedState),
			block.StatePart("nats", "State in a NATS server with JetStream.", DefaultStateConfig, NewState),
			block.PubSubPart("embedded", "Messages through the embedded node.", DefaultEmbeddedPubSubConfig, NewEmbeddedPubSub),
			block.PubSubPart("nats", "Messages through a NATS server with JetStream.", DefaultPubSubConfig, NewPubSub),
			block.LockPart("embedded", "Locks in the embedded node.", DefaultEmbeddedLockConfig, NewEmbeddedLock),
			block.LockPart("nats", "Locks in a NATS server with JetStream.", DefaultLockConfig, NewLock),
			block.CachePart("embedded", "A cache whose shared entries are in the embedded node.", DefaultEmbeddedCacheConfig, NewEmbeddedCache),
			block.CachePart("nats", "A cache whose shared entries are in a NATS server with JetStream.", DefaultCacheConfig, NewCache),
			block.ConfigurationPart("embedded", "Configuration in the embedded node.", DefaultEmbeddedConfigurationConfig, NewEmbeddedConfiguration),
			block.ConfigurationPart("nats", "Configuration in a NATS server with JetStream.", DefaultConfigurationConfig, NewConfiguration),
		},
	}
}
