// Package identity says who is speaking and how names are scoped by it.
//
// An identity comes from the connection (a certificate, a Unix peer, a token), never from a
// header the caller can write. Until certificates exist every caller is the local app or an
// unproven peer. Start at Self.
package identity

import (
	"strings"

	"github.com/mecha-project/mecha/components/fault"
)

// DefaultNamespace is used when the NAMESPACE variable is unset.
const DefaultNamespace = "default"

// Self is the app this sidecar serves.
type Self struct {
	App       string
	Namespace string // never empty
	// RawNamespace is NAMESPACE as found in the environment, possibly empty: key prefixes and
	// manifest filtering look at this one.
	RawNamespace string
}

// ParseApp splits an app id as callers write it: "app" or "app.namespace". ns is the
// namespace assumed when none is written.
func ParseApp(id, ns string) (app, namespace string, err error) {
	app, namespace = id, ns
	if i := strings.IndexByte(id, '.'); i >= 0 {
		app, namespace = id[:i], id[i+1:]
		if strings.IndexByte(namespace, '.') >= 0 {
			return "", "", fault.New("identity.ParseApp", fault.Invalid, "invalid app id %s", id)
		}
	}
	if app == "" {
		return "", "", fault.New("identity.ParseApp", fault.Invalid, "app id is empty").With(fault.NoTarget)
	}
	return app, namespace, nil
}
