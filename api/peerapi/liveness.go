package peerapi

import (
	"log/slog"
	"time"

	"github.com/mecha-project/mecha/api/link"
)

// A host that vanishes without a word (its power, its network) must not hold calls for long:
// other replicas may be there. With the link's own measures a session to it is given up after
// 30 to 40 s; with these after 5 to 11. A peer that is stopped for less than 5 s loses nothing.
const (
	pingInterval = 3 * time.Second
	pingTimeout  = 5 * time.Second
)

// sessionConfig is what both ends of the peer hop have in common.
func sessionConfig(self string, log *slog.Logger) link.Config {
	return link.Config{Greeting: []byte(self), Log: log, PingInterval: pingInterval, PingTimeout: pingTimeout}
}
