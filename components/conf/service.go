package conf

import (
	"slices"
	"strings"
)

// serviceKeys are entries of component metadata read by the sidecar's services, whatever
// the backend, by category of the component's type.
var serviceKeys = map[string][]string{
	"state": {"keyPrefix", "actorStateStore", "primaryEncryptionKey", "secondaryEncryptionKey",
		"outboxPublishPubsub", "outboxPublishTopic", "outboxPubsub", "outboxDiscardWhenMissingState"},
	"pubsub":   {"consumerID", "allowedTopics", "protectedTopics", "publishingScopes", "subscriptionScopes"},
	"lock":     {"keyPrefix"},
	"cache":    {"keyPrefix"},
	"bindings": {"direction", "route"},
}

// ServiceKeys lists the metadata keys of a category of components ("state", "pubsub") that
// the sidecar's services read themselves. Pass them to Decode with Also: a backend need not
// declare them.
func ServiceKeys(category string) []string { return slices.Clone(serviceKeys[category]) }

// protectiveKeys are those whose loss takes protection away without a sign.
var protectiveKeys = []string{"allowedTopics", "protectedTopics", "publishingScopes", "subscriptionScopes",
	"primaryEncryptionKey", "secondaryEncryptionKey"}

// Protective tells whether a metadata key protects something, so that it must not be empty
// by accident. Case does not count.
func Protective(key string) bool {
	return slices.ContainsFunc(protectiveKeys, func(k string) bool { return strings.EqualFold(k, key) })
}
