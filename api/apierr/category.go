package apierr

import "strings"

// Category is the block an error code belongs to, as metrics name it.
func Category(tag string) string {
	for _, c := range categories {
		for _, part := range c.parts {
			if strings.Contains(tag, part) {
				return c.name
			}
		}
	}
	return "common"
}

// categories are tried in order: a code can name two blocks, like ERR_ACTOR_STATE_GET.
var categories = []struct {
	name  string
	parts []string
}{
	{"actor", []string{"ACTOR"}},
	{"workflow", []string{"WORKFLOW"}},
	{"job", []string{"JOB", "SCHEDULE"}},
	{"pubsub", []string{"PUBSUB", "TOPIC"}},
	{"state", []string{"STATE"}},
	{"configuration", []string{"CONFIGURATION"}},
	{"conversation", []string{"CONVERSATION"}},
	{"crypto", []string{"CRYPTO"}},
	{"lock", []string{"LOCK"}},
	{"secret", []string{"SECRET", "PERMISSION_DENIED"}},
	{"binding", []string{"BINDING"}},
	{"health", []string{"HEALTH"}},
	{"service-invocation", []string{"DIRECT_INVOKE"}},
}
