//go:build !race

package embedded

import (
	_ "unsafe" // for go:linkname

	_ "github.com/nats-io/nats-server/v2/server/pse" // its init runs first
)

// The server library samples its own process once a second from the moment it is linked, so
// every sidecar would wake for a figure that only the server's monitoring shows, which we do
// not serve. The sampling ends by itself when the file it reads cannot be read; there is no
// other way to tell it. The write is a second before the next read, but nothing orders the two
// for the race detector, so its builds go without.
//
//go:linkname sampledFile github.com/nats-io/nats-server/v2/server/pse.procStatFile
var sampledFile string

func init() { sampledFile = "" }
