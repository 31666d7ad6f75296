// Package redis serves building blocks from Redis (or a server that speaks its protocol, such as
// Valkey): a single server, a master found through sentinels, or a cluster.
//
// State (state.go, several keys at once in batch.go, transactions in tx.go) keeps the format of
// Dapr's state.redis: a hash per key with the fields data and version. The scripts that read and
// write it are in scripts.go; they are the whole truth about what is stored.
//
// Locks (lock.go) and configuration (configuration.go, its changes in follow.go) keep Dapr's
// formats too: a string per name or key. The output binding (binding.go) reads and writes strings
// under keys that the app names.
//
// conn.go is shared by all blocks: it builds the client from a ConnConfig (connconfig.go), ends
// calls when their context ends, and knows of each request whether it left (command.go), from
// which errors.go tells callers honestly what may have happened. Retrying belongs to the layers
// above; the client library's own is off unless the user asks for it. Callers at the same time
// share exchanges with the server (share.go).
package redis

import "github.com/mecha-project/mecha/components/block"

// Backend lists the parts of this backend.
func Backend() block.Backend {
	return block.Backend{
		Name: "redis",
		Doc:  "Redis: a single server, a master behind sentinels, or for state and bindings a cluster.",
		Parts: []block.Part{
			block.StatePart("redis", "State in Redis, in Dapr's format.", DefaultStateConfig, NewState),
			block.ConfigurationPart("redis", "Configuration in Redis, in Dapr's format.", DefaultConfigurationConfig, NewConfiguration),
			block.CachePart("redis", "A cache in Redis with near caches that Redis keeps true.", DefaultCacheConfig, NewCache),
			block.LockPart("redis", "Locks in Redis, in Dapr's format, with fencing tokens.", DefaultLockConfig, NewLock),
			block.BindingPart("redis", "Strings and counters in Redis.", DefaultBindingConfig, NewBinding),
		},
	}
}
