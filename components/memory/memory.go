// Package memory keeps state, messages and locks in this process and nowhere else: for tests,
// demonstrations and data that may die with the sidecar. It is also the reference the other
// backends are read against, so it does everything a contract allows.
//
// Nothing is durable and nothing is shared with another process; a sidecar that wants either
// without a server uses the embedded node (components/nats). Start reading at state.go for
// the store, hub.go for the broker and lock.go for the locks.
package memory

import (
	"github.com/mecha-project/mecha/components/block"
)

// Backend lists the parts of this backend.
func Backend() block.Backend {
	return block.Backend{
		Name: "memory",
		Doc:  "Process-local state, messages and locks, lost on exit.",
		Parts: []block.Part{
			block.StatePart("in-memory", "State in the memory of this process.", DefaultStateConfig, NewState),
			block.PubSubPart("in-memory", "A message broker in the memory of this process.", DefaultPubSubConfig, NewPubSub),
			block.CachePart("in-memory", "A cache in the memory of this process, of bounded size.", DefaultCacheConfig, NewCache),
			block.LockPart("in-memory", "Locks in the memory of this process.", DefaultLockConfig, NewLock),
		},
	}
}
