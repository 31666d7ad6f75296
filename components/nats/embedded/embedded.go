// Package embedded is the NATS JetStream node that gives a laptop state and messages without
// a server to install: the server library in a process of its own, and the client that finds
// or starts it.
//
// One node serves one directory. It listens on a Unix socket only its user can open, splices
// every connection to an in-process connection of the library, and leaves when its last client
// has left. Nothing listens on TCP. The directory is protected by a lock of ours and carries
// a FORMAT, for the library itself checks neither: it lets two servers write one directory.
//
// What the node stores, and how, is decided by its clients (package nats); this package knows
// streams only well enough to refuse a directory whose streams it could not recover.
//
// Start reading at Run (the node), then Connect (the client). The directory is described in
// dir.go.
package embedded

import (
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// Durability says what an acknowledged write survives. It is chosen once per directory.
type Durability string

const (
	// DurabilityOS acknowledges when the operating system has the write: it survives the death
	// of any process, not of the machine.
	DurabilityOS Durability = "os"
	// DurabilityStrict acknowledges after the write was synced to the disk.
	DurabilityStrict Durability = "strict"
)

func (d Durability) check() error {
	switch d {
	case "", DurabilityOS, DurabilityStrict:
		return nil
	}
	return fault.New(opNode, fault.Invalid, "durability %q is unknown; use os (survives the death of any process) or strict (synced before it is acknowledged)", string(d))
}

// DefaultLinger is how long a node stays after its last client left.
const DefaultLinger = 5 * time.Second

// MaxPayload is the largest message of a node in bytes, headers included. Dapr's largest body
// is 4 MiB by default; the server's own default of 1 MiB would refuse it.
const MaxPayload = 8 << 20

// EnvNode is set in the environment of a node which a client started. A process that has it
// never starts another node.
const EnvNode = "MECHA_EMBEDDED_NODE"

const (
	opNode    fault.Op = "embedded.Run"
	opConnect fault.Op = "embedded.Connect"
)
