package policy

import (
	"context"
	"fmt"
	"strings"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// authorizing builds the layer that says who may do what: Dapr's access control for calls that
// arrive, and the rules of policies for every call.
func authorizing(b *builder) (does, field string) {
	var words []string
	if a := b.r.access; a != nil && b.t.Kind == call.App && b.t.Direction == call.Inbound {
		b.layer(&accessControl{a: a, refuse: b.rejection("accessControl", "accessControl")})
		words = append(words, a.String())
		field = "accessControl"
	}
	if z := b.r.Authz; z != nil {
		l := &authorize{allowing: z.Allow != nil, shadow: z.Shadow, refuse: b.rejection("authorize", b.r.source("authz"))}
		l.deny, l.allow = compileRules(z.Deny, "deny"), compileRules(z.Allow, "allow")
		b.layer(l)
		words = append(words, fmt.Sprintf("%d deny and %d allow rules", len(l.deny), len(l.allow)))
		if z.Shadow {
			words = append(words, "only reporting")
		}
		field = "authz"
	}
	return strings.Join(words, ", "), field
}

// authorize is the layer of a policy's own rules: deny before allow.
type authorize struct {
	deny, allow []authRule
	allowing    bool // there is an allow list, possibly empty
	shadow      bool
	refuse      *refusal
}

type authRule struct {
	name             string
	from, op, method patterns
	path             patterns
}

func compileRules(rules []Rule, list string) (out []authRule) {
	for i, r := range rules {
		c := authRule{name: r.Name, from: patternsOf(r.From, false), op: patternsOf(r.Op, true), method: patternsOf(r.Method, true), path: pathsOf(r.Path)}
		if c.name == "" {
			c.name = fmt.Sprintf("%s[%d]", list, i)
		}
		out = append(out, c)
	}
	return out
}

// what tells whether the rule is about this operation.
func (r *authRule) what(c *call.Call) bool {
	return r.op.fits(c.Op) && (len(r.method) == 0 || fitsVerb(r.method, c.Op)) && (len(r.path) == 0 || r.path.fitsPath(c.Resource))
}

func (r *authRule) who(c *call.Call) bool {
	return len(r.from) == 0 || fitsName(r.from, c.Caller.App, c.Caller.Namespace)
}

// judge names the rule that refuses the call; ok is true when none does.
func (a *authorize) judge(c *call.Call) (rule string, ok bool) {
	for i := range a.deny {
		r := &a.deny[i]
		// Whoever cannot prove who it is may be anybody, those denied included.
		if r.what(c) && (len(r.from) == 0 || !c.Caller.Proven || r.who(c)) {
			return r.name, false
		}
	}
	if !a.allowing {
		return "", true
	}
	for i := range a.allow {
		r := &a.allow[i]
		if r.what(c) && (len(r.from) == 0 || (c.Caller.Proven && r.who(c))) {
			return "", true
		}
	}
	return "allow", false
}

func (a *authorize) Enter(ctx context.Context, c *call.Call) (context.Context, error) {
	rule, ok := a.judge(c)
	if ok {
		return ctx, nil
	}
	if a.shadow {
		a.refuse.e.shadowed(a.refuse, c, rule)
		return ctx, nil
	}
	why := "no allow rule fits"
	if rule != "allow" {
		why = "rule " + rule + " denies it"
	}
	return nil, a.refuse.fault(c, fault.Denied, "%s may not %s %s of %s: %s (policy %s)", who(c), c.Op, quoted(c.Resource), quoted(c.Target.Name), why, a.refuse.rule)
}

func (a *authorize) Exit(_ *call.Call, err error) error { return err }

// who is the caller in words.
func who(c *call.Call) string {
	switch {
	case c.Caller.App == "":
		return "an unknown caller"
	case !c.Caller.Proven:
		return "a caller that says it is " + c.Caller.App + ", without proof,"
	}
	return c.Caller.App
}

func quoted(s string) string {
	if s == "" {
		return "anything"
	}
	return `"` + s + `"`
}

// Access is Dapr's access control list: who may call which operations of this app.
type Access struct {
	// Deny is what happens to calls that nothing below decides.
	Deny     bool
	Policies []AccessPolicy
}

// AccessPolicy is what one app may do.
type AccessPolicy struct {
	App, Namespace, TrustDomain string
	Deny                        bool // for operations that none below decides
	Operations                  []AccessOperation
}

// AccessOperation allows or denies one operation.
type AccessOperation struct {
	Name  string   // a path with a leading slash; * in a segment, a last /* or /**
	Verbs []string // HTTP verbs; * or none for all
	Deny  bool
}

// String is the list in words.
func (a *Access) String() string {
	word := "allows"
	if a.Deny {
		word = "denies"
	}
	return fmt.Sprintf("access control: %s by default, %d policies", word, len(a.Policies))
}

type accessControl struct {
	a      *Access
	refuse *refusal
}

// Enter judges a call that arrived. Without a proven identity no policy that allows can fit,
// and every one that denies might.
func (a *accessControl) Enter(ctx context.Context, c *call.Call) (context.Context, error) {
	if a.own(c) {
		return ctx, nil
	}
	allowed, global := a.a.judge(c)
	if judged := a.refuse.e.o.Judged; judged != nil {
		judged(c.Caller, global, allowed)
	}
	if allowed {
		return ctx, nil
	}
	verb, operation := c.Op, strings.TrimPrefix(c.Resource, "/")
	if strings.HasPrefix(verb, "/") {
		verb, operation = "NONE", c.Op // a gRPC full method, as Dapr writes it
	}
	return nil, a.refuse.fault(c, fault.Denied, "access control policy has denied access to id: %s operation: %s verb: %s", c.Caller.App, operation, verb).With(fault.AccessDenied)
}

// own tells whether the app calls itself. It needs no leave, and is none of the callers counted.
func (a *accessControl) own(c *call.Call) bool {
	return c.Caller.Proven && c.Caller.App == a.refuse.t.Name && c.Caller.Namespace == a.refuse.t.Namespace
}

func (a *accessControl) Exit(_ *call.Call, err error) error { return err }

// judge decides about a call. global tells that the default action did, rather than the policy
// of an app.
func (a *Access) judge(c *call.Call) (allowed, global bool) {
	if c.Caller.Proven {
		for i := range a.Policies {
			if p := &a.Policies[i]; p.App == c.Caller.App && p.Namespace == c.Caller.Namespace {
				return !p.denies(c), false
			}
		}
		return !a.Deny, true
	}
	if a.Deny {
		return false, true
	}
	for i := range a.Policies {
		if a.Policies[i].denies(c) {
			return false, false
		}
	}
	return true, true
}

func (p *AccessPolicy) denies(c *call.Call) bool {
	path, isGRPC := "/"+strings.TrimPrefix(c.Resource, "/"), strings.HasPrefix(c.Op, "/")
	for i := range p.Operations {
		o := &p.Operations[i]
		if !o.fitsPath(path, isGRPC) {
			continue
		}
		if isGRPC || o.fitsVerb(c.Op) {
			return o.Deny
		}
		return p.Deny // the operation is known, its verbs are others
	}
	return p.Deny
}

func (o *AccessOperation) fitsVerb(verb string) bool {
	for _, v := range o.Verbs {
		if v == "*" || strings.EqualFold(v, verb) {
			return true
		}
	}
	return len(o.Verbs) == 0
}

// fitsPath compares segment by segment. HTTP paths compare without regard to case. Paths have
// no slash at their end any more, so that of a rule is left out too.
func (o *AccessOperation) fitsPath(path string, isGRPC bool) bool {
	name := "/" + strings.Trim(o.Name, "/")
	if !isGRPC {
		name, path = strings.ToLower(name), strings.ToLower(path)
	}
	if below, ok := strings.CutSuffix(name, "/**"); ok {
		have := strings.Split(path, "/")
		want := strings.Split(below, "/")
		return len(have) > len(want) && segmentsFit(want, have[:len(want)])
	}
	return segmentsFit(strings.Split(name, "/"), strings.Split(path, "/"))
}

func segmentsFit(want, have []string) bool {
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		p := newPattern(want[i], false)
		if !p.fits(have[i]) {
			return false
		}
	}
	return true
}
