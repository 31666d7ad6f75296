package policy

import (
	"cmp"
	"fmt"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy/breaker"
)

// breaking builds the step that refuses attempts while most fail.
func breaking(b *builder) (does, field string) {
	switch {
	case b.r.Breaker != nil:
		return b.ownBreaker(b.r.Breaker), "breaker"
	case b.r.dapr != nil && b.r.dapr.Breaker != nil && !(b.t.Kind == call.App && b.t.Direction == call.Inbound):
		return b.daprBreaker(b.r.dapr.Breaker), "breaker"
	}
	return "", ""
}

// config is a policy's breaker in the breaker's own terms.
func (p *Breaker) config() (breaker.Config, error) {
	c := breaker.Config{MaxRequests: p.HalfOpen, Timeout: cmp.Or(p.Open, 30*time.Second),
		FailureRate: p.FailureRate, Window: p.Window, MinRequests: p.MinRequests}
	var err error
	trip := p.Trip
	switch {
	case trip != "" && p.ConsecutiveFailures > 0:
		trip = fmt.Sprintf("(%s) || consecutiveFailures >= %d", trip, p.ConsecutiveFailures)
	case p.ConsecutiveFailures > 0:
		trip = fmt.Sprintf("consecutiveFailures >= %d", p.ConsecutiveFailures)
	case trip == "" && p.FailureRate > 0:
		trip = "false" // the rate alone
	case trip == "":
		trip = "consecutiveFailures >= 5"
	}
	c.Trip, err = breaker.ParseTrip(trip)
	return c, err
}

func (b *builder) ownBreaker(p *Breaker) string {
	cfg, err := p.config()
	if err != nil {
		return "" // refused by Check
	}
	s := &breakers{refuse: b.rejection("breaker", b.r.source("breaker")), failed: call.Outcome.Failed, words: "circuit breaker is open"}
	name := b.r.source("breaker")
	if p.Per == "operation" {
		s.group = kept(b.e, b.stateKey("breakers", name), func() *breaker.Group {
			return breaker.NewGroup(1000, func(key string) *breaker.Breaker { return b.e.newBreaker(b.t, name, key, cfg, nil) })
		})
		s.group.Each(func(_ string, br *breaker.Breaker) { br.Reconfigure(cfg) })
		s.key = func(c *call.Call, t *call.Try) string { return t.To + " " + c.Op + " " + c.Resource }
		if b.t.Kind != call.Service && b.t.Kind != call.App { // keys are no operations
			s.key = func(c *call.Call, t *call.Try) string { return t.To + " " + c.Op }
		}
	} else {
		s.own = b.breakerOf(b.t.Name)
		s.others = map[string]*breaker.Breaker{}
		for _, to := range b.r.destinations(b.t) {
			s.others[to] = b.breakerOf(to)
		}
	}
	b.step(s)
	return "opens when " + cfg.Trip.String() + rateWords(cfg)
}

func rateWords(c breaker.Config) string {
	if c.FailureRate == 0 {
		return ""
	}
	return fmt.Sprintf(" or %d%% fail", c.FailureRate)
}

// breakerOf is the breaker of one destination under the policy's own rules; nil when it has
// none, or one for each operation.
func (b *builder) breakerOf(to string) *breaker.Breaker {
	p := b.r.Breaker
	if p == nil || p.Per == "operation" {
		return nil
	}
	cfg, err := p.config()
	if err != nil {
		return nil
	}
	name := b.r.source("breaker")
	br := kept(b.e, b.stateKey("breaker", name)+"/"+to, func() *breaker.Breaker { return b.e.newBreaker(b.t, name, to, cfg, nil) })
	br.Reconfigure(cfg)
	return br
}

// daprBreaker is Dapr's: one for each method of an app, one for a component. Every failure
// counts, also the answers that Dapr's do not make an error of.
func (b *builder) daprBreaker(d *DaprBreaker) string {
	series := b.series(d.Named, "circuitbreaker")
	s := &breakers{refuse: b.rejection("breaker", d.Name), series: series, dapr: true, words: "circuit breaker is open",
		failed: func(o call.Outcome) bool { return o != call.OK }}
	if b.service() {
		s.group = kept(b.e, b.stateKey("daprbreakers", d.Name), func() *breaker.Group {
			return breaker.NewGroup(cmp.Or(d.CacheSize, 100), func(key string) *breaker.Breaker {
				return b.e.newBreaker(b.t, d.Name, b.t.Name+":"+key, d.Config, series)
			})
		})
		s.group.Each(func(_ string, br *breaker.Breaker) { br.Reconfigure(d.Config) })
		s.key = func(c *call.Call, _ *call.Try) string { return c.Resource }
	} else {
		s.own = kept(b.e, b.stateKey("daprbreaker", d.Name), func() *breaker.Breaker {
			return b.e.newBreaker(b.t, d.Name, d.Policy+"-"+b.t.Name, d.Config, series)
		})
		s.own.Reconfigure(d.Config)
	}
	b.step(s)
	return "opens when " + tripWords(d.Config.Trip)
}

func tripWords(t *breaker.Trip) string {
	if t == nil {
		return "consecutiveFailures > 5"
	}
	return t.String()
}

// newBreaker makes a breaker that tells of its changes.
func (e *Engine) newBreaker(t *call.Target, policy, name string, cfg breaker.Config, series Series) *breaker.Breaker {
	if series != nil {
		series.State(Closed)
	}
	return breaker.New(cfg, func(from, to breaker.State) {
		e.log.Info(fmt.Sprintf("Circuit breaker %q changed state from %v to %v", name, from, to), "policy", policy, "target", t.Name)
		if series != nil {
			series.State(stateOf(to))
			series.Activate(stateOf(to))
		}
		e.changed(Change{Part: "breaker", Rule: policy, Target: t.Name, What: fmt.Sprintf("%s: %v → %v", name, from, to)})
	})
}

// breakers is the step.
type breakers struct {
	own    *breaker.Breaker
	others map[string]*breaker.Breaker
	group  *breaker.Group
	key    func(c *call.Call, t *call.Try) string
	failed func(call.Outcome) bool
	series Series
	dapr   bool
	words  string
	refuse *refusal
}

func (s *breakers) of(c *call.Call, t *call.Try) *breaker.Breaker {
	switch {
	case s.group != nil:
		return s.group.For(s.key(c, t))
	case t.To != "":
		if br := s.others[t.To]; br != nil {
			return br
		}
	}
	return s.own
}

func (s *breakers) Enter(c *call.Call, t *call.Try) (call.Token, error) {
	if c.Lasting {
		return call.Token{}, nil // it would keep the one place that a half-open breaker has
	}
	br := s.of(c, t)
	ticket, verdict := br.Allow()
	if s.series != nil {
		s.series.Count(stateOf(br.State()))
	}
	if verdict == breaker.Allowed {
		return call.Token{P: br, Q: ticket}, nil
	}
	err := s.refuse.fault(c, fault.Unavailable, "%s", s.words)
	if verdict == breaker.RefusedHalfOpen {
		err.Msg = "too many requests"
	}
	if s.dapr {
		return call.Token{}, err.With(fault.BreakerOpen)
	}
	err.Msg = fmt.Sprintf("%s (policy %s)", err.Msg, s.refuse.rule)
	return call.Token{}, err
}

func (s *breakers) Exit(_ *call.Call, t *call.Try, tok call.Token) {
	br, ok := tok.P.(*breaker.Breaker)
	if !ok {
		return
	}
	ticket := tok.Q.(breaker.Ticket)
	if t.Outcome == call.Rejected || t.Outcome == call.Canceled {
		br.Cancel(ticket) // it says nothing about the destination
		return
	}
	br.Done(ticket, !s.failed(t.Outcome))
}
