// Package balance decides which endpoint of a cluster the next attempt of a call goes to.
//
// A Cluster holds the endpoints with their live state (calls in flight, latency, health) and
// answers Pick without locks or allocations: it reads an immutable snapshot that Update and
// changes of health replace. The order of decisions in one pick is session affinity, priority,
// locality, then the policy over the hosts that are left.
//
// The package knows no network, and neither checks nor judges hosts: outlier detection and
// active checks set the health flags from outside, retries pass the hosts they have been to,
// and whoever makes the call brackets it with Host.Begin and Host.End.
//
// Start reading at Cluster.Pick (cluster.go), then snapshot.pick (pick.go). levels.go has
// priorities, panic and locality; weights.go and hash.go have the tables; host.go the state.
package balance

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Endpoint is one place where a cluster's calls can go, as the registry or the policy lists it.
type Endpoint struct {
	ID       string
	Weight   int    // share of the calls; below 1 counts as 1, above 2^31-1 as that
	Zone     string // locality, "region/zone/…"; empty: unknown
	Priority int    // 0 is used first
}

// Policy is how a host is chosen among equals.
type Policy uint8

const (
	// RoundRobin goes through the hosts in turn, heavier ones more often and evenly spread.
	RoundRobin Policy = iota
	// LeastRequest compares some hosts drawn at random (by weight) and takes the one with the
	// fewest calls in flight for its weight.
	LeastRequest
	// PeakEWMA compares two hosts drawn at random (by weight) and takes the one with the lower
	// product of recent latency and calls in flight. The latency jumps up with a slow or failed
	// call and comes down over Config.Decay.
	PeakEWMA
	// Random draws by weight.
	Random
	// RingHash sends equal hashes to the same host and moves few of them when hosts come or go.
	RingHash
	// Maglev does the same with a better balance and a larger table.
	Maglev
)

var policyNames = [...]string{"round_robin", "least_request", "peak_ewma", "random", "ring_hash", "maglev"}

// ParsePolicy finds a policy by its name in settings.
func ParsePolicy(s string) (Policy, bool) {
	i := slices.Index(policyNames[:], s)
	return Policy(max(i, 0)), i >= 0
}

// Names lists the policies' names in settings, in the order of the constants.
func Names() []string { return slices.Clone(policyNames[:]) }

// String is the policy's name in settings.
func (p Policy) String() string {
	if int(p) < len(policyNames) {
		return policyNames[p]
	}
	return fmt.Sprintf("policy_%d", uint8(p))
}

func (p Policy) hashes() bool { return p == RingHash || p == Maglev }

// Locality is what the caller's own zone means for the choice.
type Locality uint8

const (
	// LocalityOff ignores zones.
	LocalityOff Locality = iota
	// LocalityFailover stays as near as health allows: the own zone first, then zones that share
	// the most leading parts of its name ("region/zone/…"), then the rest. A ring of zones that
	// is not healthy enough spills to the next as priorities do.
	LocalityFailover
	// LocalityWeighted loads zones in proportion to the weight of their healthy endpoints, and
	// within that keeps calls in the own zone. Callers are taken to be spread evenly over the
	// zones, for a sidecar does not know the others. With fewer than six healthy endpoints, or
	// none in the own zone, zones are not preferred. The hash policies ignore it: an own zone
	// would give every caller its own idea of where a key lives.
	LocalityWeighted
)

var localityNames = [...]string{"off", "failover", "weighted"}

// ParseLocality finds a locality mode by its name in settings.
func ParseLocality(s string) (Locality, bool) {
	i := slices.Index(localityNames[:], s)
	return Locality(max(i, 0)), i >= 0
}

// String is the mode's name in settings.
func (l Locality) String() string {
	if int(l) < len(localityNames) {
		return localityNames[l]
	}
	return fmt.Sprintf("locality_%d", uint8(l))
}

// Config is how a cluster is balanced. The zero value is round robin over all healthy endpoints.
// It is comparable: an equal Config changes nothing.
type Config struct {
	Policy    Policy
	Choices   int           // least request: how many hosts are compared; default 2
	Decay     time.Duration // latency average: time to fall to 1/e; default 10s
	TableSize int           // maglev: slots, a prime; default 65537. Should be 100 times the endpoints
	RingSize  int           // ring hash: least number of points; default 1024. The ring has 100 per endpoint at least
	// SlowStart is how long an endpoint that is new, or healthy again, ramps up from 10 % to all
	// of its weight; 0: off. Round robin and least request only.
	SlowStart time.Duration
	// Panic is a percentage. When fewer than this share of a priority's endpoints are healthy and
	// other priorities cannot stand in, health is ignored there; 0: never.
	Panic    int
	Zone     string // own locality; empty: unknown, and Locality has no effect
	Locality Locality
}

// Defaults and limits. The sizes of tables are the ones xDS control planes assume.
const (
	defaultChoices   = 2
	defaultDecay     = 10 * time.Second // as Finagle and Linkerd
	defaultTableSize = 65537
	defaultRingSize  = 1024

	maxChoices   = 128
	minDecay     = time.Millisecond // the stamp of an average is coarser than a shorter one needs
	maxTableSize = 5_000_011
	maxRingSize  = 8 << 20
)

// Validate reports every finding, joined, each with the field's name.
func (c Config) Validate() error {
	var found []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			found = append(found, fmt.Errorf(format, args...))
		}
	}
	check(int(c.Policy) < len(policyNames), "policy: %d is unknown", c.Policy)
	check(c.choicesOK(), "choices: %d is not between 2 and %d", c.Choices, maxChoices)
	check(c.decayOK(), "decay: %v is shorter than %v", c.Decay, minDecay)
	check(c.tableOK(), "table_size: %d is not a prime up to %d", c.TableSize, maxTableSize)
	check(c.ringOK(), "ring_size: %d is not between 1 and %d", c.RingSize, maxRingSize)
	check(c.SlowStart >= 0, "slow_start: %v is negative", c.SlowStart)
	check(c.Panic >= 0 && c.Panic <= 100, "panic: %d is not a percentage", c.Panic)
	check(int(c.Locality) < len(localityNames), "locality: %d is unknown", c.Locality)
	return errors.Join(found...)
}

func (c Config) choicesOK() bool {
	return c.Choices == 0 || c.Choices >= 2 && c.Choices <= maxChoices
}
func (c Config) decayOK() bool { return c.Decay == 0 || c.Decay >= minDecay }
func (c Config) ringOK() bool  { return c.RingSize >= 0 && c.RingSize <= maxRingSize }
func (c Config) tableOK() bool {
	return c.TableSize == 0 || c.TableSize <= maxTableSize && prime(c.TableSize)
}

// resolved fills in the defaults. What Validate refuses becomes the default or the nearest
// limit, so that a Cluster works whatever it was given.
func (c Config) resolved() Config {
	if int(c.Policy) >= len(policyNames) {
		c.Policy = RoundRobin
	}
	if c.Choices == 0 || !c.choicesOK() {
		c.Choices = defaultChoices
	}
	if c.Decay == 0 || !c.decayOK() {
		c.Decay = defaultDecay
	}
	if c.TableSize == 0 || !c.tableOK() {
		c.TableSize = defaultTableSize
	}
	if c.RingSize == 0 || !c.ringOK() {
		c.RingSize = defaultRingSize
	}
	c.SlowStart = max(c.SlowStart, 0)
	c.Panic = min(max(c.Panic, 0), 100)
	return c
}

func prime(n int) bool {
	if n < 2 {
		return false
	}
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}

// Request is what one attempt asks of the balancer. The zero value asks for any host.
type Request struct {
	// Hash is what ring hash and maglev place. It need not be well mixed.
	Hash uint64
	// Hashed tells that a hash was given. Without it the hash policies draw by weight.
	Hashed bool
	// Tried are left out while others are left: the earlier attempts of the same call.
	Tried []*Host
	// Sticky is the ID this call should go to if it is healthy, whatever its priority and zone
	// (session affinity); empty: none. Tried and Filter still exclude it.
	Sticky string
	// Filter narrows the choice to a subset; nil: all. It runs on the path of the call, several
	// times, and must give the same answer each time. A subset known beforehand costs nothing
	// per call and has its own health when made with Cluster.Subset.
	Filter func(*Host) bool
}

// excludes tells whether h must not be taken now. Tried is a handful: a scan beats a set.
func (r *Request) excludes(h *Host) bool {
	return (len(r.Tried) != 0 && slices.Contains(r.Tried, h)) || (r.Filter != nil && !r.Filter(h))
}
