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

// KeyPrefix is what stands before the app's keys in a store, by the store's keyPrefix setting: the
// app id (appid, or nothing set), the store's name (name), the namespace and the app id
// (namespace), nothing (none), or the setting itself in small letters. A setting with "||", which
// separates the parts of keys, is fault.Invalid.
func (s Self) KeyPrefix(setting, store string) (string, error) {
	switch {
	case setting == "", strings.EqualFold(setting, "appid"):
		return s.App, nil
	case strings.EqualFold(setting, "none"):
		return "", nil
	case strings.EqualFold(setting, "name"):
		return store, nil
	case strings.EqualFold(setting, "namespace"):
		// The variable as found: an unset one gives the same keys as appid.
		if s.RawNamespace == "" {
			return s.App, nil
		}
		return s.RawNamespace + "." + s.App, nil
	case strings.Contains(setting, separator):
		return "", fault.New("identity.KeyPrefix", fault.Invalid, "input key/keyPrefix '%s' can't contain '%s'", setting, separator)
	}
	return strings.ToLower(setting), nil
}

// separator stands between the parts of stored keys.
const separator = "||"

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
