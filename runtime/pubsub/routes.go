package pubsub

import (
	"sync"

	"github.com/google/cel-go/cel"

	"github.com/mecha-project/mecha/components/fault"
)

// celEnv is built with the first rule: it takes megabytes, and most sidecars have none.
var celEnv = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(cel.Variable("event", cel.MapType(cel.StringType, cel.DynType)))
})

// route is a subscription with its rules compiled.
type route struct {
	sub   Subscription
	rules []compiledRule
	// content tells whether a rule must read the event.
	content bool
}

type compiledRule struct {
	program cel.Program // nil: takes every event
	path    string
}

// compile compiles the rules of a subscription.
func compile(sub Subscription) (*route, error) {
	r := &route{sub: sub}
	for _, rule := range sub.Rules {
		c := compiledRule{path: rule.Path}
		if rule.Match != "" {
			program, err := compileMatch(rule.Match)
			if err != nil {
				return nil, fault.New("pubsub.compile", fault.Invalid, "subscription to %s: rule %q cannot be understood", &sub, rule.Match).Because(err)
			}
			c.program, r.content = program, true
		}
		r.rules = append(r.rules, c)
		if c.program == nil {
			break // later rules can never be reached
		}
	}
	return r, nil
}

func compileAll(subs []Subscription) ([]*route, error) {
	out := make([]*route, 0, len(subs))
	for _, sub := range subs {
		r, err := compile(sub)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func compileMatch(match string) (cel.Program, error) {
	env, err := celEnv()
	if err != nil {
		return nil, err
	}
	ast, issues := env.Compile(match)
	if issues.Err() != nil {
		return nil, issues.Err()
	}
	// A rule is written by the app's owner, but run against events of anybody: the limit keeps
	// a comprehension over a huge event from eating the sidecar.
	return env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(1_000_000))
}

// path finds where an event goes; ok is false when no rule takes it. A rule that fails, or
// answers no boolean, is an error: reading a member the event lacks is one, as in Dapr.
func (r *route) path(event func() (map[string]any, error)) (path string, ok bool, err error) {
	for _, rule := range r.rules {
		if rule.program == nil {
			return rule.path, true, nil
		}
		attributes, err := event()
		if err != nil {
			return "", false, err
		}
		out, _, err := rule.program.Eval(map[string]any{"event": attributes})
		if err != nil {
			return "", false, fault.New("pubsub.route", fault.Invalid, "routing rule for %s failed", rule.path).Because(err)
		}
		matched, isBool := out.Value().(bool)
		if !isBool {
			return "", false, fault.New("pubsub.route", fault.Invalid, "routing rule for %s gave %v, not true or false", rule.path, out.Value())
		}
		if matched {
			return rule.path, true, nil
		}
	}
	return "", false, nil
}
