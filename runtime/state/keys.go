package state

import (
	"strings"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// separator stands between prefix and key in the store. Callers may not use it in keys, or
// one app could name another's keys.
const separator = "||"

// keyPrefixSetting is the store metadata entry that chooses the prefix; catalog.Info.Raw has
// its keys in lower case.
const keyPrefixSetting = "keyprefix"

// CheckPrefix judges a store's keyPrefix setting. The host calls it when it opens a store, so
// that a bad one is reported at start; a store opened all the same refuses every call, because
// falling back to another prefix would read and write other keys than the user asked for.
func CheckPrefix(info catalog.Info) error {
	if p := info.Raw[keyPrefixSetting]; strings.Contains(p, separator) {
		return illegalKey(p, BadPrefix)
	}
	return nil
}

// scope makes the stored key from the caller's.
func (s *Service) scope(info catalog.Info, key string) (string, error) {
	if strings.Contains(key, separator) {
		return "", illegalKey(key, fault.IllegalKey)
	}
	prefix, err := s.prefix(info)
	if err != nil || prefix == "" {
		return key, err
	}
	return prefix + separator + key, nil
}

// prefix is the part of stored keys before the separator; empty means keys are stored bare.
func (s *Service) prefix(info catalog.Info) (string, error) {
	p, err := s.self.KeyPrefix(info.Raw[keyPrefixSetting], info.Name)
	if err != nil {
		return "", CheckPrefix(info)
	}
	return p, nil
}

func illegalKey(key string, why fault.Reason) error {
	return fault.New("state.scope", fault.Invalid, "input key/keyPrefix '%s' can't contain '%s'", key, separator).With(why)
}
