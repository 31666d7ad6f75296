package policy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy/breaker"
)

// Resilience is what Dapr's Resiliency resources say about one target. Nil parts are not set.
// It means what it means in Dapr, down to the repetition of calls that it is not safe to
// repeat: who wants better writes a TrafficPolicy.
type Resilience struct {
	Timeout *DaprTimeout
	Retry   *DaprRetry
	Breaker *DaprBreaker
	Where   string // file:line
}

// Named says which policy of which resource it is.
type Named struct {
	Resource, Namespace string
	Policy              string // its name in the resource
	Name                string // as explanations and rejections show it
}

// DaprTimeout bounds each attempt.
type DaprTimeout struct {
	Named
	After time.Duration
}

// DaprRetry repeats attempts.
type DaprRetry struct {
	Named
	Exponential bool
	Pause       time.Duration // constant: between attempts
	MaxPause    time.Duration // exponential: largest pause; 0 means 60s
	Max         int           // attempts after the first; negative: no limit
	// HTTP and GRPC are the only statuses worth another attempt; nil: all from 400, all but OK.
	HTTP, GRPC []Span
	// OnlyTransport leaves what an app or a sidecar answered alone, as the built-in retries do.
	OnlyTransport bool
}

// Span is a range of statuses, both ends included.
type Span struct{ From, To int }

// DaprBreaker refuses attempts.
type DaprBreaker struct {
	Named
	Config    breaker.Config
	CacheSize int // breakers of one app, one for each method; 0 means 100
}

// Series counts what one policy of a Resiliency resource does to one target.
type Series interface {
	Count(State)    // a call it governed
	Activate(State) // a call it acted on
	State(State)    // what state a breaker is in now
}

// State is a breaker's, as metrics name it.
type State uint8

// The states. NoState is that of policies that are no breakers.
const (
	NoState State = iota
	Closed
	HalfOpen
	Open
)

func stateOf(s breaker.State) State {
	switch s {
	case breaker.HalfOpen:
		return HalfOpen
	case breaker.Open:
		return Open
	}
	return Closed
}

// SeriesID names a Series: the resource, the kind of policy (timeout, retry, circuitbreaker),
// the direction and the target in Dapr's words.
type SeriesID struct{ Name, Namespace, Policy, Direction, Target string }

func (b *builder) series(n Named, policy string) Series {
	if b.e.o.Record == nil || n.Resource == "" {
		return nil
	}
	direction := "outbound"
	if b.t.Direction == call.Inbound {
		direction = "inbound"
	}
	return b.e.o.Record.Resilience(SeriesID{Name: n.Resource, Namespace: n.Namespace, Policy: policy, Direction: direction, Target: daprTarget(b.t)})
}

// daprOperation is a call's name in Dapr's log lines about retries, which people look for.
func daprOperation(c *call.Call) string {
	switch {
	case c.Target.Kind == call.Service || c.Target.Kind == call.App:
		return fmt.Sprintf("endpoint[%s, %s:%s]", c.Target.Name, c.Target.Name, c.Resource)
	case c.Target.Direction == call.Inbound:
		return fmt.Sprintf("component[%s] input", c.Target.Name)
	}
	return fmt.Sprintf("component[%s] output", c.Target.Name)
}

// daprTarget is a target's name in Dapr's metrics.
func daprTarget(t *call.Target) string {
	switch t.Kind {
	case call.Service, call.App:
		return "app_" + t.Name
	case call.State:
		return "Statestore_" + t.Name
	case call.Publish, call.Deliver:
		return "Pubsub_" + t.Name
	case call.Config:
		return "Configuration_" + t.Name
	case call.Lock:
		return "Lock_" + t.Name
	case call.Secret:
		return "Secretstore_" + t.Name
	case call.Binding:
		return "Binding_" + t.Name
	case call.Cache: // ours; Dapr has none
		return "Cache_" + t.Name
	}
	return "Crypto_" + t.Name
}

// Dapr's exponential policy: 500 ms growing by half, half of it random, until 15 minutes are over.
const (
	daprFirst    = 500 * time.Millisecond
	daprFactor   = 1.5
	daprJitter   = 0.5
	daprMaxPause = 60 * time.Second
	daprMaxTotal = 15 * time.Minute
)

func (b *builder) daprRetry(r *DaprRetry) string {
	if r.Max == 0 {
		return "never"
	}
	series := b.series(r.Named, "retry")
	if series != nil {
		b.layer(entering(func(ctx context.Context, _ *call.Call) (context.Context, error) {
			series.Count(NoState)
			return ctx, nil
		}))
	}
	b.c.Replay = true
	b.c.Retry = func(c *call.Call, err error) (time.Duration, bool) {
		if (r.Max > 0 && c.Attempt > r.Max) || !r.worth(c, err) {
			return 0, false
		}
		pause := r.Pause
		if r.Exponential {
			pause = r.backoff(c.Attempt)
			if time.Since(c.Start)+pause > daprMaxTotal {
				return 0, false
			}
		}
		if series != nil && c.Attempt == 1 {
			series.Activate(NoState)
		}
		b.e.log.Warn(fmt.Sprintf("Error processing operation %s. Retrying in %v…", daprOperation(c), pause))
		b.e.log.Debug(fmt.Sprintf("Error for operation %s was: %v", daprOperation(c), err), "outcome", c.Outcome.String(), "status", c.Try().Status.HTTP)
		return pause, true
	}
	times := "without limit"
	if r.Max > 0 {
		times = fmt.Sprintf("up to %d times", r.Max)
	}
	if r.Exponential {
		return times + ", exponential pauses"
	}
	return fmt.Sprintf("%s, %v apart", times, r.Pause)
}

func (r *DaprRetry) backoff(attempt int) time.Duration {
	most := r.MaxPause
	if most <= 0 {
		most = daprMaxPause
	}
	d := float64(daprFirst)
	for range attempt - 1 {
		if d *= daprFactor; d > float64(most) {
			d = float64(most)
			break
		}
	}
	return time.Duration(min(d*(1-daprJitter+2*daprJitter*rand.Float64()), float64(most)))
}

// worth tells whether Dapr would try again.
func (r *DaprRetry) worth(c *call.Call, err error) bool {
	st := c.Try().Status
	switch {
	case err != nil && (c.Outcome == call.Rejected || c.Outcome == call.Canceled && c.Whole().Err() != nil):
		return false
	case err != nil && !st.Code && st.HTTP == 0: // no answer came
		return repeatable(err) && (!r.OnlyTransport || fault.ReasonOf(err) == "" && fault.Of(err) == fault.Unavailable)
	case r.OnlyTransport:
		return false
	case st.Code:
		return st.GRPC != 0 && within(r.GRPC, int(st.GRPC))
	}
	return st.HTTP >= 400 && within(r.HTTP, st.HTTP)
}

// repeatable errors may be others the next time. Dapr repeats the rest as well, which only
// makes them come later.
func repeatable(err error) bool {
	switch fault.Of(err) {
	case fault.Invalid, fault.Denied, fault.Unauthenticated, fault.TooLarge, fault.Unsupported, fault.BadEtag, fault.Conflict, fault.Exists:
		return false
	case fault.NotFound, fault.NotReady:
		switch fault.ReasonOf(err) {
		case fault.NoSuchComponent, fault.NoComponents, fault.NoApp:
			return false
		}
	}
	return true
}

func within(spans []Span, status int) bool {
	if spans == nil {
		return true
	}
	for _, s := range spans {
		if s.From <= status && status <= s.To {
			return true
		}
	}
	return false
}
