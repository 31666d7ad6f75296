package lock

import (
	"strings"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// separator stands between the parts of a stored name. Callers may not use it in resources, or
// one app could name another's locks.
const separator = "||"

// base begins every stored name: a store may hold other things than locks.
const base = "lock" + separator

// keyPrefixSetting is the store metadata entry that chooses the prefix; catalog.Info.Raw has its
// keys in lower case.
const keyPrefixSetting = "keyprefix"

// CheckPrefix judges a store's keyPrefix setting. The host calls it when it opens a store, so that
// a bad one is reported at start.
func CheckPrefix(info catalog.Info) error {
	if p := info.Raw[keyPrefixSetting]; strings.Contains(p, separator) {
		return fault.New("lock.scope", fault.Invalid, "input key/keyPrefix '%s' can't contain '%s'", p, separator).With(BadPrefix)
	}
	return nil
}

// scope makes the stored name: lock||<prefix>||<resource>.
func (s *Service) scope(info catalog.Info, resource string) (string, error) {
	if strings.Contains(resource, separator) {
		return "", fault.New("lock.scope", fault.Invalid, "input key/keyPrefix '%s' can't contain '%s'", resource, separator).With(fault.IllegalKey)
	}
	if err := CheckPrefix(info); err != nil {
		return "", err
	}
	switch setting := info.Raw[keyPrefixSetting]; {
	case setting == "", strings.EqualFold(setting, "appid"):
		return base + s.self.App + separator + resource, nil
	case strings.EqualFold(setting, "none"):
		return base + resource, nil
	case strings.EqualFold(setting, "name"):
		return base + info.Name + separator + resource, nil
	default: // unlike stores of state, lock stores know no namespace
		return base + strings.ToLower(setting) + separator + resource, nil
	}
}
