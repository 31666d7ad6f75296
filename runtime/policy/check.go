package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy/balance"
)

// Problem is one thing wrong with a Spec: the field's path below spec, what is wrong and what
// would be right, and the nearest known word if there is one.
type Problem struct {
	Key, Msg, Nearest string
}

// Check reports everything that is wrong with a policy by itself. Whether the names in it lead
// anywhere is for those who know all resources.
func (s *Spec) Check() []Problem {
	c := &checker{}
	for i := range s.Match {
		c.match(fmt.Sprintf("match[%d]", i), &s.Match[i])
	}
	c.judging(s)
	c.limits(s)
	c.timing(s)
	c.routes(s)
	c.copies(s)
	c.balance(s)
	c.together(s)
	return c.found
}

type checker struct{ found []Problem }

func (c *checker) bad(key, format string, args ...any) {
	c.found = append(c.found, Problem{Key: key, Msg: fmt.Sprintf(format, args...)})
}

// word reports a word that is none of those known.
func (c *checker) word(key, word string, known []string) {
	if !slices.Contains(known, word) {
		c.found = append(c.found, Problem{Key: key, Msg: fmt.Sprintf("%q is not one of %s", word, strings.Join(known, ", ")), Nearest: conf.Nearest(word, known)})
	}
}

// percent reports what cannot be a percentage.
func (c *checker) percent(key string, p *float64) {
	if p != nil && (*p < 0 || *p > 100) {
		c.bad(key, "%v is not a percentage; want 0 to 100", *p)
	}
}

func (c *checker) notNegative(key string, n int64) {
	if n < 0 {
		c.bad(key, "cannot be negative")
	}
}

// header reports a name that cannot be a header's.
func (c *checker) header(key, name string) {
	if name == "" || strings.ContainsAny(name, " \t\r\n:\x00") {
		c.bad(key, "%q is not the name of a header", name)
	}
}

func (c *checker) match(key string, m *Match) {
	for i, k := range m.Kind {
		if !strings.Contains(k, "*") {
			c.word(fmt.Sprintf("%s.kind[%d]", key, i), strings.ToLower(k), Kinds())
		}
	}
	for i, v := range m.Method {
		if v == "" || strings.ToUpper(v) != v || strings.Contains(v, "/") {
			c.bad(fmt.Sprintf("%s.method[%d]", key, i), "%q is not an HTTP verb in capital letters; other operations go to op", v)
		}
	}
	for _, f := range []struct {
		name  string
		words Words
	}{{"dest", m.Dest}, {"op", m.Op}, {"path", m.Path}, {"from", m.From}} {
		for i, w := range f.words {
			if w == "" {
				c.bad(fmt.Sprintf("%s.%s[%d]", key, f.name, i), "is empty and fits nothing; leave the field out to fit everything")
			}
		}
	}
	for name := range maps.Keys(m.Headers) {
		c.header(key+".headers", name)
	}
}

func (c *checker) judging(s *Spec) {
	if z := s.Authz; z != nil {
		for i := range z.Deny {
			c.rule(fmt.Sprintf("authz.deny[%d]", i), &z.Deny[i])
		}
		for i := range z.Allow {
			c.rule(fmt.Sprintf("authz.allow[%d]", i), &z.Allow[i])
		}
		if z.Deny == nil && z.Allow == nil {
			c.bad("authz", "has neither deny nor allow and does nothing; allow: [] refuses everything")
		}
	}
	f := s.Fault
	if f == nil {
		return
	}
	if f.Delay == nil && f.Abort == nil {
		c.bad("fault", "has neither delay nor abort and does nothing")
	}
	if d := f.Delay; d != nil {
		if d.Fixed <= 0 {
			c.bad("fault.delay.fixed", "want a duration above zero, like 200ms")
		}
		c.percent("fault.delay.percent", d.Percent)
	}
	if a := f.Abort; a != nil {
		if a.Outcome != "" {
			known := slices.DeleteFunc(slices.Clone(call.Outcomes()), func(o string) bool { return o == call.OK.String() })
			c.word("fault.abort.outcome", a.Outcome, known)
		}
		c.percent("fault.abort.percent", a.Percent)
	}
}

func (c *checker) rule(key string, r *Rule) {
	if len(r.From)+len(r.Op)+len(r.Method)+len(r.Path) == 0 {
		c.bad(key, "fits every call; say so with from: \"*\" if that is meant")
	}
	for i, v := range r.Method {
		if strings.ToUpper(v) != v {
			c.bad(fmt.Sprintf("%s.method[%d]", key, i), "%q is not an HTTP verb in capital letters", v)
		}
	}
}

// key reports a word that nothing can be divided by.
func (c *checker) key(at, word string, known ...string) {
	if name, ok := headerKey(word); ok {
		c.header(at, name)
		return
	}
	if !slices.Contains(known, word) {
		c.found = append(c.found, Problem{Key: at, Msg: fmt.Sprintf("%q is not one of %s, header:NAME", word, strings.Join(known, ", ")), Nearest: conf.Nearest(word, known)})
	}
}

func (c *checker) limits(s *Spec) {
	if r := s.RateLimit; r != nil {
		l := r.Local
		if l == nil {
			c.bad("rateLimit", "has no local limit and does nothing")
		} else {
			if l.Tokens <= 0 {
				c.bad("rateLimit.local.tokens", "want how many calls are let through per time, at least 1")
			}
			c.notNegative("rateLimit.local.per", int64(l.Per))
			c.notNegative("rateLimit.local.burst", int64(l.Burst))
			c.notNegative("rateLimit.local.maxKeys", int64(l.MaxKeys))
			if l.Key != "" {
				c.key("rateLimit.local.key", l.Key, keyWords...)
			}
		}
	}
	if l := s.Limits; l != nil {
		c.notNegative("limits.maxRequests", int64(l.MaxRequests))
		if l.MaxPending < -1 {
			c.bad("limits.maxPending", "want how many may wait, 0 for any number, or -1 for none")
		}
		c.notNegative("limits.maxRetries", int64(l.MaxRetries))
		if l.MaxPending != 0 && l.MaxRequests == 0 {
			c.bad("limits.maxPending", "nothing waits without maxRequests")
		}
	}
	b := s.Breaker
	if b == nil {
		return
	}
	if b.Per != "" {
		c.word("breaker.per", b.Per, []string{"target", "operation"})
	}
	cfg, err := b.config()
	if err != nil {
		c.bad("breaker.trip", "%s", err)
	}
	c.notNegative("breaker.consecutiveFailures", int64(b.ConsecutiveFailures))
	c.fields("breaker", cfg.Validate(), map[string]string{"maxRequests": "halfOpen", "timeout": "open"})
}

// fields reports the joined findings of a Validate method, each of which begins with its
// field's name.
func (c *checker) fields(at string, err error, rename map[string]string) {
	if err == nil {
		return
	}
	all := []error{err}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		all = joined.Unwrap()
	}
	for _, e := range all {
		field, msg, ok := strings.Cut(e.Error(), ": ")
		if !ok {
			c.bad(at, "%s", e)
			continue
		}
		if to, ok := rename[field]; ok {
			field = to
		}
		c.bad(at+"."+field, "%s", msg)
	}
}

func (c *checker) timing(s *Spec) {
	if t := s.Timeout; t != nil {
		c.notNegative("timeout.total", int64(t.Total))
		c.notNegative("timeout.perTry", int64(t.PerTry))
		if t.Total > 0 && t.PerTry > t.Total {
			c.bad("timeout.perTry", "%v is longer than the whole call may take (total: %v)", t.PerTry, t.Total)
		}
	}
	if r := s.Retry; r != nil {
		if r.Max != nil {
			c.notNegative("retry.max", int64(*r.Max))
		}
		for i, w := range r.On {
			c.word(fmt.Sprintf("retry.on[%d]", i), w, sortedRetryNames())
		}
		if _, err := parseStatuses(r.Statuses); err != nil {
			c.bad("retry.statuses", "%s", err)
		}
		c.notNegative("retry.backoff.base", int64(r.Backoff.Base))
		c.notNegative("retry.backoff.max", int64(r.Backoff.Max))
		if r.Backoff.Max > 0 && r.Backoff.Max < r.Backoff.Base {
			c.bad("retry.backoff.max", "is shorter than base")
		}
		if b := r.Budget; b != nil {
			if b.Ratio < 0 || b.Ratio > 1 {
				c.bad("retry.budget.ratio", "%v is not a share of the calls; want 0 to 1", b.Ratio)
			}
			c.notNegative("retry.budget.minPerSecond", int64(b.MinPerSecond))
		}
	}
	if h := s.Hedge; h != nil {
		if _, _, err := parseDelay(h.Delay); err != nil {
			c.bad("hedge.delay", "%s", err)
		}
		if h.Max < 0 || h.Max > 5 {
			c.bad("hedge.max", "want 1 to 5 extra attempts")
		}
	}
}

func sortedRetryNames() []string {
	names := RetryNames()
	slices.Sort(names)
	return slices.Compact(names)
}

func (c *checker) routes(s *Spec) {
	total := 0
	for i := range s.Route {
		d := &s.Route[i]
		at := fmt.Sprintf("route[%d]", i)
		weight := 1
		if d.Weight != nil {
			weight = *d.Weight
			c.notNegative(at+".weight", int64(weight))
		}
		total += max(weight, 0)
		c.notNegative(at+".priority", int64(d.Priority))
		if d.Subset != "" && s.Subsets[d.Subset] == nil {
			c.found = append(c.found, Problem{Key: at + ".subset", Msg: fmt.Sprintf("no subset is called %q", d.Subset), Nearest: conf.Nearest(d.Subset, slices.Sorted(maps.Keys(s.Subsets)))})
		}
		for j := range i {
			if s.Route[j].To == d.To && s.Route[j].Subset == d.Subset && s.Route[j].Priority == d.Priority {
				c.bad(at, "is the same way as route[%d]", j)
			}
		}
	}
	if len(s.Route) > 0 && total == 0 {
		c.bad("route", "every weight is 0, so calls can go nowhere")
	}
	if s.Split != nil && len(s.Route) == 0 {
		c.bad("split", "there is no route to split")
	}
	if s.Split != nil && s.Split.By != "" {
		c.key("split.by", s.Split.By, "key", "random", "caller")
	}
	if s.WriteFailover != nil && len(s.Route) == 0 {
		c.bad("allowWriteFailover", "there is no route to fail over to")
	}
	for name, labels := range s.Subsets {
		if len(labels) == 0 {
			c.bad("subsets."+name, "selects no labels")
		}
	}
}

func (c *checker) copies(s *Spec) {
	if m := s.Mirror; m != nil {
		if m.To == "" {
			c.bad("mirror.to", "required, but not given")
		}
		c.percent("mirror.percent", m.Percent)
		c.percent("mirror.compare", &m.Compare)
		c.notNegative("mirror.maxPending", int64(m.MaxPending))
	}
	if h := s.Headers; h != nil {
		for at, r := range map[string]*Rewrite{"headers.request": &h.Request, "headers.response": &h.Response} {
			for name, value := range r.Set {
				c.header(at+".set", name)
				c.value(at+".set", value)
			}
			for name, value := range r.Add {
				c.header(at+".add", name)
				c.value(at+".add", value)
			}
			for _, name := range r.Remove {
				c.header(at+".remove", name)
			}
		}
		if h.Request.empty() && h.Response.empty() {
			c.bad("headers", "changes nothing")
		}
	}
}

func (c *checker) value(at, v string) {
	if strings.ContainsAny(v, "\r\n\x00") {
		c.bad(at, "a header's value cannot hold line breaks")
	}
}

func (c *checker) balance(s *Spec) {
	if l := s.LB; l != nil {
		if l.Policy != "" {
			c.word("lb.policy", l.Policy, balance.Names())
		}
		if l.Locality != "" {
			c.word("lb.locality", l.Locality, []string{"off", "failover", "weighted"})
		}
		for i, h := range l.Hash {
			at := fmt.Sprintf("lb.hash[%d]", i)
			switch {
			case h.Word != "":
				c.word(at, h.Word, []string{"key", "caller", "path"})
			case (h.Header == "") == (h.Cookie == ""):
				c.bad(at, "want one of header, cookie, key, caller, path")
			}
		}
		if (l.Policy == "ring_hash" || l.Policy == "maglev") && len(l.Hash) == 0 {
			c.bad("lb.hash", "%s needs something to hash", l.Policy)
		}
		if l.Panic != nil && (*l.Panic < 0 || *l.Panic > 100) {
			c.bad("lb.panic", "%d is not a percentage; want 0 to 100", *l.Panic)
		}
		c.notNegative("lb.slowStart", int64(l.SlowStart))
		if l.Choices != 0 {
			c.fields("lb", balance.Config{Policy: balance.LeastRequest, Choices: l.Choices}.Validate(), nil)
		}
		if st := l.Sticky; st != nil && (st.Header == "") == (st.Cookie == "") {
			c.bad("lb.sticky", "want either header or cookie")
		}
	}
	if s.Outlier != nil {
		c.fields("outlier", s.Outlier.Validate(), nil)
	}
	if s.Health != nil {
		c.fields("health", s.Health.Validate(), nil)
	}
}

// together reports fields that contradict each other, or the calls the policy is for.
func (c *checker) together(s *Spec) {
	if kinds := s.dataKinds(); len(kinds) > 0 && s.Split != nil && s.Split.By != "" && s.Split.By != "key" && !s.Split.ReadOnly && len(s.Route) > 1 {
		c.bad("split.by", "%q would spread the writes of one key over several places (kind %s); use key, or promise readOnly: true", s.Split.By, kinds[0])
	}
	if len(s.dataKinds()) > 0 {
		for i := range s.Route {
			if s.Route[i].Subset != "" {
				c.bad(fmt.Sprintf("route[%d].subset", i), "components have no subsets; name the component in to")
			}
		}
		if s.LB != nil && s.onlyData() {
			c.bad("lb", "components are chosen by route, not by lb")
		}
	}
	if s.Timeout != nil && s.Hedge != nil && s.Timeout.PerTry > 0 {
		if d, _, err := parseDelay(s.Hedge.Delay); err == nil && d >= s.Timeout.PerTry {
			c.bad("hedge.delay", "%v is not shorter than an attempt may take (timeout.perTry: %v), so there is never a hedge", d, s.Timeout.PerTry)
		}
	}
}

// dataKinds are the kinds of data that the policy is for, as far as it says.
func (s *Spec) dataKinds() (out []string) {
	for i := range s.Match {
		for _, k := range s.Match[i].Kind {
			for kind := call.Service; kind <= call.App; kind++ {
				if holdsData(kind) && kind.String() == k && !slices.Contains(out, k) {
					out = append(out, k)
				}
			}
		}
	}
	return out
}

// onlyData tells whether the policy is for nothing but data.
func (s *Spec) onlyData() bool {
	for i := range s.Match {
		if len(s.Match[i].Kind) == 0 {
			return false
		}
		for _, k := range s.Match[i].Kind {
			if !slices.Contains(s.dataKinds(), k) {
				return false
			}
		}
	}
	return len(s.Match) > 0
}
