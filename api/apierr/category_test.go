package apierr_test

import (
	"testing"

	"github.com/mecha-project/mecha/api/apierr"
)

func TestCategory(t *testing.T) {
	for tag, want := range map[string]string{
		"ERR_STATE_GET":                     "state",
		"ERR_NOT_SUPPORTED_STATE_OPERATION": "state",
		"ERR_ACTOR_STATE_GET":               "actor",
		"ERR_TOPIC_NAME_EMPTY":              "pubsub",
		"ERR_PUBSUB_NOT_FOUND":              "pubsub",
		"ERR_DIRECT_INVOKE":                 "service-invocation",
		"ERR_INVOKE_OUTPUT_BINDING":         "binding",
		"ERR_OUTBOUND_HEALTH_NOT_READY":     "health",
		"ERR_SECRET_STORES_NOT_CONFIGURED":  "secret",
		"ERR_TRY_LOCK":                      "lock",
		"ERR_MALFORMED_REQUEST":             "common",
	} {
		if got := apierr.Category(tag); got != want {
			t.Errorf("Category(%s) = %q, want %q", tag, got, want)
		}
	}
}
