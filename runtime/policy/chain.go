// Package policy builds the chains of layers that every call passes.
//
// The order of layers is decided here and nowhere else: the two lists below, outermost
// first. A chain is compiled once per target, is immutable, and is swapped by pointer. Layers
// with nothing to do are not in the chain. Start reading at Outbound.
package policy

import (
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Snapshot is the policy that chains are compiled from. The zero value has the built-in
// defaults only.
type Snapshot struct {
	// Observe receives every finished call; nil observes nothing.
	Observe Observer
}

// Observer learns of finished calls. It is called on the caller's goroutine and must be
// quick.
type Observer interface {
	CallEnded(c *call.Call, err error, took time.Duration)
}

// Outbound compiles the chain of calls that leave: to a component or to another app.
//
// Order, outermost first:
//
//	observe   counts and times what everything below refuses or fails
//	retry     repeats attempts; innermost, so that limits and totals above count once
func Outbound(s Snapshot, t *call.Target) *call.Chain {
	c := &call.Chain{}
	if s.Observe != nil {
		c.Layers = append(c.Layers, observe{s.Observe})
	}
	if t.Kind == call.Service {
		c.Retry = builtinServiceRetry
	}
	return c
}

// Inbound compiles the chain of calls that arrive for the app: invocations and events.
//
// Order, outermost first:
//
//	observe   as in Outbound
//
// There is no retry here: a failed invocation is the caller's to repeat, a failed event the
// messaging service's.
func Inbound(s Snapshot, _ *call.Target) *call.Chain {
	c := &call.Chain{}
	if s.Observe != nil {
		c.Layers = append(c.Layers, observe{s.Observe})
	}
	return c
}

// Dapr's DaprBuiltInServiceRetries: three tries, one second apart.
const (
	builtinRetries = 3
	builtinPause   = time.Second
)

// builtinServiceRetry repeats a call to another app whose sidecar could not be reached or was
// lost. A call that certainly was not seen may be repeated; one that may have been seen only if
// its verb says that a repetition does no harm: a POST could act twice. An error with a reason
// was given by a sidecar that answered (its app is down or unhealthy): that is an answer, not a
// transport failure. Other codes (a certificate that does not fit, a head too large) fail the
// same way again.
func builtinServiceRetry(c *call.Call, err error) (time.Duration, bool) {
	if c.Attempt > builtinRetries || fault.Of(err) != fault.Unavailable || fault.ReasonOf(err) != "" {
		return 0, false
	}
	switch fault.SentOf(err) {
	case fault.SentNever:
		return builtinPause, true
	case fault.SentMaybe:
		return builtinPause, c.Safety >= call.Idempotent
	}
	return 0, false
}
