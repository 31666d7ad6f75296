package file

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/policy/breaker"
	"github.com/mecha-project/mecha/runtime/settings"
)

// resilience is what all Resiliency resources say together, by the names of their policies and
// targets.
type resilience struct {
	timeouts   map[string]*policy.DaprTimeout
	retries    map[string]*policy.DaprRetry
	breakers   map[string]*policy.DaprBreaker
	apps       map[string]settings.PolicyNames
	components map[string]settings.ComponentDirection
	where      string
}

// resilience joins the resources; nil when there is none.
func (c *compiler) resilience() *resilience {
	r := &resilience{timeouts: map[string]*policy.DaprTimeout{}, retries: map[string]*policy.DaprRetry{}, breakers: map[string]*policy.DaprBreaker{},
		apps: map[string]settings.PolicyNames{}, components: map[string]settings.ComponentDirection{}}
	for i := range c.src.Resiliencies {
		one := &c.src.Resiliencies[i]
		found := r.take(one)
		for _, f := range found {
			f.File, f.Of = one.File, settings.KindResiliency+" "+one.Name
			c.out.Findings = append(c.out.Findings, f)
		}
		if found.Err() == nil {
			c.out.Resiliencies = append(c.out.Resiliencies, *one)
			if r.where == "" {
				r.where = fmt.Sprintf("%s:%d", one.File, one.Line)
			}
		}
	}
	if len(c.out.Resiliencies) == 0 {
		return nil
	}
	return r
}

// take joins one resource to the others, all of it or, when a part is wrong, nothing.
func (r *resilience) take(s *settings.Resiliency) (found conf.Findings) {
	breakers := map[string]*policy.DaprBreaker{}
	for _, name := range sortedKeys(s.Breakers) {
		b := s.Breakers[name]
		cfg := breaker.Config{MaxRequests: b.MaxRequests, Interval: b.Interval.Std(), Timeout: b.Timeout.Std()}
		if b.Trip != "" {
			trip, err := breaker.ParseTrip(b.Trip)
			if err != nil {
				found = append(found, conf.Finding{Line: b.Line, Key: "spec.policies.circuitBreakers." + name + ".trip", Msg: err.Error(), Severity: conf.Error})
			}
			cfg.Trip = trip
		}
		breakers[name] = &policy.DaprBreaker{Named: named(s, name), Config: cfg}
	}
	if found.Err() != nil {
		return found
	}
	for name, b := range breakers {
		r.breakers[name] = b
	}
	for name, d := range s.Timeouts {
		r.timeouts[name] = &policy.DaprTimeout{Named: named(s, name), After: d}
	}
	for name, p := range s.Retries {
		retry, warning := retryOf(s, name, &p)
		r.retries[name] = retry
		if warning != "" {
			found = append(found, conf.Finding{Line: p.Line, Key: "spec.policies.retries." + name + ".maxRetries", Msg: warning})
		}
	}
	for name, n := range s.Targets.Apps {
		r.apps[name] = n
	}
	for name, n := range s.Targets.Components {
		r.components[name] = n
	}
	return found
}

func named(s *settings.Resiliency, name string) policy.Named {
	return policy.Named{Resource: s.Name, Namespace: s.Namespace, Policy: name, Name: "Resiliency " + s.Name + "/" + name}
}

// builtinService is the policy that calls to other apps have without any of their own.
const builtinService = "DaprBuiltInServiceRetries"

// leastBuiltin is how few retries a policy of that name can ask for.
const leastBuiltin = 3

func retryOf(s *settings.Resiliency, name string, p *settings.RetryPolicy) (r *policy.DaprRetry, warning string) {
	r = &policy.DaprRetry{Named: named(s, name), Exponential: strings.EqualFold(p.Policy, "exponential"),
		Pause: p.Duration.Std(), MaxPause: p.MaxInterval.Std(), Max: -1,
		HTTP: spans(p.Matching.HTTPStatusCodes), GRPC: spans(p.Matching.GRPCStatusCodes)}
	if p.Duration == "" {
		r.Pause = 5 * time.Second // Dapr's default
	}
	if p.MaxRetries != nil {
		r.Max = *p.MaxRetries
	}
	if name == builtinService && r.Max >= 0 && r.Max < leastBuiltin {
		warning = fmt.Sprintf("%d is too few for %s; %d are made", r.Max, name, leastBuiltin)
		r.Max = leastBuiltin
	}
	return r, warning
}

// spans reads "429,500-599", which was checked when the file was read.
func spans(list string) (out []policy.Span) {
	if strings.TrimSpace(list) == "" {
		return nil
	}
	for part := range strings.SplitSeq(list, ",") {
		from, to, ranged := strings.Cut(strings.TrimSpace(part), "-")
		if !ranged {
			to = from
		}
		lo, _ := strconv.Atoi(strings.TrimSpace(from))
		hi, _ := strconv.Atoi(strings.TrimSpace(to))
		out = append(out, policy.Span{From: lo, To: hi})
	}
	return out
}

// of is what the resources say about a target; nil: nothing.
func (r *resilience) of(t *call.Target) *policy.Resilience {
	out := &policy.Resilience{Where: r.where}
	switch {
	case t.Direction == call.Outbound && (t.Kind == call.Service || t.Kind == call.App):
		n, listed := r.apps[t.Name]
		r.fill(out, n, listed, "App")
		if t.Kind == call.Service && out.Retry == nil {
			if own := r.retries[builtinService]; own != nil {
				builtin := *own
				builtin.OnlyTransport = true
				out.Retry = &builtin
			}
		}
		if out.Breaker != nil && n.CacheSize > 0 {
			b := *out.Breaker
			b.CacheSize = n.CacheSize
			out.Breaker = &b
		}
	case t.Kind == call.App || t.Kind == call.Service:
		return nil // invocations that arrive are their caller's to repeat
	default:
		entry, listed := r.components[t.Name]
		n, direction := entry.Outbound, "Outbound"
		if t.Direction == call.Inbound {
			n, direction = entry.Inbound, "Inbound"
		}
		r.fill(out, n, listed, typeWord(t.Kind)+"Component"+direction, "Component"+direction, "Component")
	}
	if out.Timeout == nil && out.Retry == nil && out.Breaker == nil {
		return nil
	}
	return out
}

// fill takes the policies a target names, or, when it is not listed at all, the default
// policies, the most specific first.
func (r *resilience) fill(out *policy.Resilience, n settings.PolicyNames, listed bool, levels ...string) {
	if listed {
		out.Timeout, out.Retry, out.Breaker = r.timeouts[n.Timeout], r.retries[n.Retry], r.breakers[n.CircuitBreaker]
		return
	}
	for _, level := range append(levels, "") {
		if out.Timeout == nil {
			out.Timeout = r.timeouts["Default"+level+"TimeoutPolicy"]
		}
		if out.Retry == nil {
			out.Retry = r.retries["Default"+level+"RetryPolicy"]
		}
		if out.Breaker == nil {
			out.Breaker = r.breakers["Default"+level+"CircuitBreakerPolicy"]
		}
	}
}

// typeWord is a kind in the names of default policies.
func typeWord(k call.Kind) string {
	switch k {
	case call.State:
		return "Statestore"
	case call.Publish, call.Deliver:
		return "Pubsub"
	case call.Config:
		return "Configuration"
	case call.Lock:
		return "Lock"
	case call.Secret:
		return "Secretstore"
	case call.Binding:
		return "Binding"
	case call.Cache: // ours; Dapr has none
		return "Cache"
	}
	return "Crypto"
}
