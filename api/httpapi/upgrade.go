package httpapi

import (
	"net"
	"strings"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// upgrader is an exchange that can leave HTTP (WebSocket and the like): one over HTTP/1.1.
type upgrader interface {
	// Upgrades is the protocol the caller offers; empty for none.
	Upgrades() string
	// Upgrade answers 101 and gives the raw connection.
	Upgrade(fields call.Fields) (net.Conn, error)
}

// offer is what of a caller's offer goes on to the app. Other versions of HTTP and TLS are
// between the caller and this sidecar, which does not take them up.
func offer(protocols string) string {
	first, _, _ := strings.Cut(protocols, ",")
	name, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(first)), "/")
	switch name {
	case "h2c", "h2", "http", "tls":
		return ""
	}
	return protocols
}

// switchOver joins the caller's connection with the app's until both have ended.
func (r *Request) switchOver(resp *call.Response, fields call.Fields) error {
	up, ok := r.x.(upgrader)
	if !ok {
		return fault.New("httpapi.respond", fault.Internal, "the app switched protocols, which nobody offered")
	}
	fields.Set("Upgrade", resp.Header.Get("Upgrade"))
	ctx := r.Context() // before the exchange is given up, so that it still ends with the server
	r.status = 101
	conn, err := up.Upgrade(fields)
	if err != nil {
		return fault.Wrap("httpapi.respond", fault.Canceled, err)
	}
	call.Splice(ctx, conn, resp.Upgrade)
	return nil
}
