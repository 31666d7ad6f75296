package settings

import (
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/mecha-project/mecha/components/conf"
)

// Resiliency is a Resiliency resource, as runtime/policy/file applies it.
type Resiliency struct {
	Resource
	Timeouts map[string]time.Duration
	Retries  map[string]RetryPolicy
	Breakers map[string]BreakerPolicy
	Targets  ResiliencyTargets
}

// RetryPolicy says how often and how far apart a failed call is repeated.
type RetryPolicy struct {
	Policy      string  `yaml:"policy"` // constant or exponential
	Duration    policyD `yaml:"duration"`
	MaxInterval policyD `yaml:"maxInterval"`
	MaxRetries  *int    `yaml:"maxRetries"` // nil or negative means no limit
	Matching    struct {
		HTTPStatusCodes string `yaml:"httpStatusCodes"` // "429,500-599"; empty means all from 400
		GRPCStatusCodes string `yaml:"gRPCStatusCodes"`
	} `yaml:"matching"`
	Line int `yaml:"-"`
}

// BreakerPolicy says when calls are refused without trying.
type BreakerPolicy struct {
	MaxRequests int     `yaml:"maxRequests"`
	Interval    policyD `yaml:"interval"`
	Timeout     policyD `yaml:"timeout"`
	Trip        string  `yaml:"trip"` // a CEL expression; its syntax is checked where it is compiled
	Line        int     `yaml:"-"`
}

// ResiliencyTargets names the policies of each target.
type ResiliencyTargets struct {
	Apps       map[string]PolicyNames        `yaml:"apps"`
	Actors     map[string]ActorPolicyNames   `yaml:"actors"`
	Components map[string]ComponentDirection `yaml:"components"`
}

// PolicyNames are the policies of one target; empty means none.
type PolicyNames struct {
	Timeout        string `yaml:"timeout"`
	Retry          string `yaml:"retry"`
	CircuitBreaker string `yaml:"circuitBreaker"`
	CacheSize      int    `yaml:"circuitBreakerCacheSize"`
	Line           int    `yaml:"-"`
}

// ActorPolicyNames are the policies of one actor type.
type ActorPolicyNames struct {
	PolicyNames `yaml:",inline"`
	Scope       string `yaml:"circuitBreakerScope"` // type, id or both
}

// ComponentDirection are the policies of a component, by direction.
type ComponentDirection struct {
	Outbound PolicyNames `yaml:"outbound"`
	Inbound  PolicyNames `yaml:"inbound"`
}

// policyD is a duration as this kind writes it: a Go duration, or whole milliseconds.
type policyD Text

// Std is the duration; zero when empty. It is only meaningful on a checked resource.
func (d policyD) Std() time.Duration {
	v, _ := conf.ParseDuration(string(d), time.Millisecond)
	return v
}

type resiliencyDoc struct {
	head `yaml:",inline"`
	Spec struct {
		Policies struct {
			Timeouts map[string]policyD       `yaml:"timeouts"`
			Retries  map[string]RetryPolicy   `yaml:"retries"`
			Breakers map[string]BreakerPolicy `yaml:"circuitBreakers"`
			Line     int                      `yaml:"-"`
		} `yaml:"policies"`
		Targets ResiliencyTargets `yaml:"targets"`
	} `yaml:"spec"`
}

func readResiliency(d document) (Resiliency, conf.Findings, bool) {
	doc, found, ok := read(d, func(r *resiliencyDoc, s *strict) {
		s.named(&r.head)
		before := len(s.found)
		p := &r.Spec.Policies
		for name, t := range maps.All(p.Timeouts) {
			s.policyDuration(timeoutLine(d.root, name, p.Line), "spec.policies.timeouts."+name, t)
		}
		for name, rp := range p.Retries {
			s.retry("spec.policies.retries."+name, &rp)
		}
		for name, b := range p.Breakers {
			at := "spec.policies.circuitBreakers." + name
			s.policyDuration(b.Line, at+".interval", b.Interval)
			s.policyDuration(b.Line, at+".timeout", b.Timeout)
			if b.MaxRequests < 0 {
				s.add(conf.Error, b.Line, at+".maxRequests", "cannot be negative")
			}
		}
		s.targets(r)
		s.found[before:].Sort() // maps have no order; reports must
	})
	out := Resiliency{Resource: doc.resource(), Retries: doc.Spec.Policies.Retries, Breakers: doc.Spec.Policies.Breakers,
		Targets: doc.Spec.Targets, Timeouts: map[string]time.Duration{}}
	for i := range found {
		found[i].Of = KindResiliency + " " + out.Name
	}
	for name, t := range doc.Spec.Policies.Timeouts {
		out.Timeouts[name] = t.Std()
	}
	return out, found, ok
}

// timeoutLine finds the line of a named timeout, whose value is too plain to carry one.
func timeoutLine(root *yaml.Node, name string, fallback int) int {
	if n := child(child(child(child(root, "spec"), "policies"), "timeouts"), name); n != nil {
		return n.Line
	}
	return fallback
}

func (s *strict) policyDuration(line int, key string, d policyD) {
	if d == "" {
		return
	}
	if v, err := conf.ParseDuration(string(d), time.Millisecond); err != nil {
		s.add(conf.Error, line, key, "%s", err)
	} else if v < 0 {
		s.add(conf.Error, line, key, "cannot be negative")
	}
}

func (s *strict) retry(at string, p *RetryPolicy) {
	switch strings.ToLower(p.Policy) {
	case "", "constant", "exponential":
	default:
		s.add(conf.Error, p.Line, at+".policy", "%q is not one of constant, exponential", p.Policy)
	}
	s.policyDuration(p.Line, at+".duration", p.Duration)
	s.policyDuration(p.Line, at+".maxInterval", p.MaxInterval)
	s.statusCodes(p.Line, at+".matching.httpStatusCodes", p.Matching.HTTPStatusCodes, 100, 599)
	s.statusCodes(p.Line, at+".matching.gRPCStatusCodes", p.Matching.GRPCStatusCodes, 0, 16)
}

func (s *strict) statusCodes(line int, key, list string, lowest, highest int) {
	if list == "" {
		return
	}
	for part := range strings.SplitSeq(list, ",") {
		from, to, ranged := strings.Cut(strings.TrimSpace(part), "-")
		if !ranged {
			to = from
		}
		lo, err1 := strconv.Atoi(strings.TrimSpace(from))
		hi, err2 := strconv.Atoi(strings.TrimSpace(to))
		if err1 != nil || err2 != nil || lo > hi || lo < lowest || hi > highest {
			s.add(conf.Error, line, key, "%q is not a status code or a range like %d-%d", part, lowest, highest)
		}
	}
}

// targets reports references to policies that do not exist. They are ignored at run time,
// which is rarely what was meant.
func (s *strict) targets(r *resiliencyDoc) {
	p, t := &r.Spec.Policies, &r.Spec.Targets
	ref := func(line int, key, name string, names []string, builtin bool) {
		if name == "" || slices.Contains(names, name) || (builtin && strings.HasPrefix(name, "DaprBuiltIn")) {
			return
		}
		s.add(conf.Warning, line, key, "no policy is called %q; this part of the target has no effect", name)
		s.found[len(s.found)-1].Nearest = conf.Nearest(name, names)
	}
	timeouts, retries, breakers := sortedKeys(p.Timeouts), sortedKeys(p.Retries), sortedKeys(p.Breakers)
	names := func(at string, n *PolicyNames) {
		ref(n.Line, at+".timeout", n.Timeout, timeouts, false)
		ref(n.Line, at+".retry", n.Retry, retries, true)
		ref(n.Line, at+".circuitBreaker", n.CircuitBreaker, breakers, false)
	}
	for name, n := range t.Apps {
		names("spec.targets.apps."+name, &n)
	}
	for name, n := range t.Actors {
		at := "spec.targets.actors." + name
		names(at, &n.PolicyNames)
		if n.CircuitBreaker != "" && !slices.Contains([]string{"type", "id", "both"}, n.Scope) {
			s.add(conf.Error, n.Line, at+".circuitBreakerScope", "want type, id or both with a circuit breaker, got %q", n.Scope)
		}
	}
	for name, n := range t.Components {
		names("spec.targets.components."+name+".outbound", &n.Outbound)
		names("spec.targets.components."+name+".inbound", &n.Inbound)
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

var typePolicyD = reflect.TypeFor[policyD]()
