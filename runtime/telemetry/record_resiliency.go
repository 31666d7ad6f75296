package telemetry

import (
	"sync"
	"sync/atomic"
)

// BreakerState is the state of a circuit breaker as the metrics name it.
type BreakerState uint8

// The states of a circuit breaker. NoBreaker is the status of policies that are none.
const (
	NoBreaker BreakerState = iota
	Closed
	HalfOpen
	Open
	Unknown
)

var breakerNames = [...]string{NoBreaker: "", Closed: "closed", HalfOpen: "half-open", Open: "open", Unknown: "unknown"}

// String is the state's label value.
func (s BreakerState) String() string { return breakerNames[min(s, Unknown)] }

// ResiliencyLoaded counts a Resiliency resource that is in force. Name and namespace are its own.
func (m *Metrics) ResiliencyLoaded(name, namespace string) {
	if m != nil {
		m.families[resiliencyLoaded].at(name, namespace).inc(pick())
	}
}

// Resiliency names one policy applied to one target: the resource's name and namespace, policy
// retry, timeout or circuitbreaker, direction inbound or outbound, and a target like app_orders
// or Statestore_redis.
type Resiliency struct {
	Name, Namespace, Policy, Direction, Target string
}

// ResiliencySeries records one policy on one target. Get it once, when the policy is compiled,
// and keep it. A nil *ResiliencySeries records nothing.
type ResiliencySeries struct {
	m  *Metrics
	id Resiliency

	counts, activations [Unknown + 1]atomic.Pointer[series]

	mu     sync.Mutex // makes a change of state one step
	states [Unknown + 1]*series
}

// Resiliency returns the recorder of one policy on one target. Two recorders of the same name
// write the same series.
func (m *Metrics) Resiliency(id Resiliency) *ResiliencySeries {
	if m == nil {
		return nil
	}
	return &ResiliencySeries{m: m, id: id}
}

func (r *ResiliencySeries) at(id metric, status BreakerState) *series {
	return r.m.families[id].at(r.id.Name, r.id.Namespace, r.id.Policy, r.id.Direction, r.id.Target, status.String())
}

func (r *ResiliencySeries) inc(kept *[Unknown + 1]atomic.Pointer[series], id metric, status BreakerState) {
	status = min(status, Unknown)
	s := kept[status].Load()
	if s == nil {
		s = r.at(id, status)
		kept[status].Store(s)
	}
	s.inc(pick())
}

// Count counts a call the policy governed. Status is the breaker's state, else NoBreaker.
func (r *ResiliencySeries) Count(status BreakerState) {
	if r != nil {
		r.inc(&r.counts, resiliencyCount, status)
	}
}

// Activate counts that the policy acted on a call.
func (r *ResiliencySeries) Activate(status BreakerState) {
	if r != nil {
		r.inc(&r.activations, resiliencyActivations, status)
	}
}

// State says which state the breaker is in now.
func (r *ResiliencySeries) State(now BreakerState) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := Closed; s <= Unknown; s++ {
		if r.states[s] == nil {
			r.states[s] = r.at(breakerState, s)
		}
		var n uint64
		if s == now {
			n = 1
		}
		r.states[s].words[0].Store(n)
	}
}
