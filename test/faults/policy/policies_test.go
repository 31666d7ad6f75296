//go:build unix

package policy

import (
	"fmt"
	"time"
)

// regime is a policy that calls are made under.
type regime struct {
	name     string
	resource string
	// bounded tells that it is a TrafficPolicy, which assertions hold to its budget.
	bounded bool
	// returns tells that a replica which is well again soon has calls again. A peak_ewma leaves
	// one that was a hundred times slower alone for nearly five times its decay of ten seconds.
	returns bool
}

// The figures of the TrafficPolicy that assertions compare with.
const (
	budgetRatio   = 0.2
	budgetMemory  = 10 * time.Second // what a budget remembers
	budgetReserve = 2 * 10           // minPerSecond, for that time
)

// victimPatience is how long the ejected replica may stay unused after it is well: the longest
// ejection, and a generous allowance for a busy machine.
const victimPatience = 5*time.Second + 10*time.Second

var none = regime{name: "none", returns: true}

var resiliency = regime{name: "Resiliency", returns: true, resource: `apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: campaign}
spec:
  policies:
    timeouts: {short: 1s}
    retries: {often: {policy: constant, duration: 100ms, maxRetries: 3}}
    circuitBreakers: {trips: {maxRequests: 1, timeout: 1s, trip: consecutiveFailures > 5}}
  targets:
    apps: {web: {timeout: short, retry: often, circuitBreaker: trips}}
    components: {statestore: {outbound: {timeout: short, retry: often, circuitBreaker: trips}}}
`}

var (
	leastRequest = regime{"TrafficPolicy", fmt.Sprintf(trafficPolicy, "least_request"), true, true}
	peakEWMA     = regime{"… with peak_ewma", fmt.Sprintf(trafficPolicy, "peak_ewma"), true, false}
)

// The ejections are shorter than anybody would want them, so that a replica comes back within
// the campaign.
const trafficPolicy = `apiVersion: mecha.io/v1
kind: TrafficPolicy
metadata: {name: web}
spec:
  match: [{kind: service, dest: web}]
  timeout: {total: 2500ms, perTry: 300ms}
  retry:
    max: 2
    on: [5xx, reset, connect-failure, unavailable]
    backoff: {base: 10ms, max: 100ms}
    budget: {ratio: 0.2, minPerSecond: 2}
  limits: {maxRequests: 12, maxPending: 12, maxRetries: 12}
  lb: {policy: %s}
  outlier:
    consecutive5xx: 5
    interval: 500ms
    baseEjection: 1s
    maxEjection: 5s
    maxEjectionPercent: 50
    failurePercentage: {threshold: 15, minHosts: 3, volume: 10}
`

var storePolicy = regime{name: "TrafficPolicy", bounded: true, resource: `apiVersion: mecha.io/v1
kind: TrafficPolicy
metadata: {name: store}
spec:
  match: [{kind: state, dest: statestore}]
  timeout: {total: 2500ms, perTry: 500ms}
  retry:
    max: 4
    on: [5xx, reset, connect-failure, unavailable]
    backoff: {base: 50ms, max: 500ms}
    budget: {ratio: 0.2, minPerSecond: 2}
  limits: {maxRequests: 64, maxPending: 64, maxRetries: 32}
`}

var (
	regimes      = []regime{none, resiliency, leastRequest, peakEWMA}
	storeRegimes = []regime{none, resiliency, storePolicy}
)
