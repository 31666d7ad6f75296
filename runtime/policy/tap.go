package policy

import (
	"context"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Live is one call as it was made, for whoever wonders what policy did to it.
type Live struct {
	At        time.Time     `json:"at"`
	Direction string        `json:"direction"`
	Kind      string        `json:"kind"`
	Target    string        `json:"target"`
	Op        string        `json:"op"`
	Resource  string        `json:"resource,omitempty"`
	Caller    string        `json:"caller,omitempty"`
	Attempts  int           `json:"attempts"`
	Outcome   string        `json:"outcome"` // of the last attempt, or policy-rejected
	To        string        `json:"to,omitempty"`
	Endpoint  string        `json:"endpoint,omitempty"`
	Took      time.Duration `json:"tookNs"`
	Refused   string        `json:"refused,omitempty"` // the policy that refused it
	Parts     []Part        `json:"parts,omitempty"`
}

// Tap calls each with every call that ends, until ctx does. Calls pay for it only meanwhile:
// their chains are compiled with an observer and without it again. It is called on the
// goroutines of the calls, must be quick and may not keep its argument's slices. One tap at a
// time: a second one is fault.Exhausted.
func (e *Engine) Tap(ctx context.Context, each func(Live)) error {
	if !e.tap.CompareAndSwap(nil, &tap{each}) {
		return fault.New("policy.Tap", fault.Exhausted, "somebody is watching already; one at a time")
	}
	e.Swap(e.snapshot.Load())
	<-ctx.Done()
	e.tap.Store(nil)
	e.Swap(e.snapshot.Load())
	return nil
}

type tap struct{ each func(Live) }

// CallEnded implements Observer.
func (t *tap) CallEnded(c *call.Call, err error, took time.Duration) {
	l := Live{At: c.Start, Direction: "outbound", Kind: kindOf(c.Target), Target: c.Target.Name, Op: strings.Clone(c.Op),
		Resource: strings.Clone(c.Resource), Caller: strings.Clone(c.Caller.App), Attempts: c.Attempt, To: c.To(), Took: took, Refused: fault.RuleOf(err)}
	if c.Target.Direction == call.Inbound {
		l.Direction = "inbound"
	}
	if tried := c.Tried(); len(tried) > 0 {
		l.Endpoint = tried[len(tried)-1]
	}
	outcome := c.Outcome
	if err != nil {
		outcome = call.OutcomeOf(err, call.Status{})
	}
	l.Outcome = outcome.String()
	if a, ok := c.Policy().About.(*about); ok {
		l.Parts = a.parts
	}
	t.each(l)
}
