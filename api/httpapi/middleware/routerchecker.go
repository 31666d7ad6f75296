package middleware

import (
	"context"
	"net/http"
	"regexp"
	"strings"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// RouterCheckerConfig says which paths are let through.
type RouterCheckerConfig struct {
	// Rule is a regular expression (RE2 syntax) that must match somewhere in the decoded path;
	// anchor it with ^ and $ to judge the whole.
	Rule string `yaml:"rule" required:"true"`
}

func defaultRouterChecker() *RouterCheckerConfig { return &RouterCheckerConfig{} }

// Validate checks the expression.
func (c *RouterCheckerConfig) Validate() error {
	if _, err := regexp.Compile(c.Rule); err != nil {
		return conf.Bad("rule", "is not a regular expression: %s", err)
	}
	return nil
}

func newRouterChecker(_ Env, c *RouterCheckerConfig) (*Middleware, error) {
	rule, err := regexp.Compile(c.Rule)
	if err != nil {
		return nil, fault.Wrap("middleware.routerchecker", fault.Invalid, err)
	}
	return gated(func(_ context.Context, h head) verdict {
		if dotted(h.Path) || !rule.MatchString(h.Path) {
			return verdict{Status: http.StatusBadRequest, Text: "invalid router"}
		}
		return verdict{}
	}), nil
}

// dotted tells whether a decoded path has a segment "." or "..", also behind a second layer of
// escapes. Such a path is another one by the time an app is asked, so no rule can judge it.
func dotted(path string) bool {
	return dotSegment(path) || strings.IndexByte(path, '%') >= 0 && dotSegment(decoded(path))
}

func dotSegment(path string) bool {
	if !strings.Contains(path, "/.") {
		return false
	}
	for seg := range strings.SplitSeq(path, "/") {
		if seg == "." || seg == ".." {
			return true
		}
	}
	return false
}
