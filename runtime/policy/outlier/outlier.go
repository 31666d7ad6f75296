// Package outlier is passive outlier detection for one cluster: it watches how calls to each host
// end and takes hosts that do badly out of service for a while.
//
// The algorithm is Envoy's (gRFC A50 is a readable account of its interval half). Three detectors
// act at once, on failures in a row; two judge what an interval gathered. Whatever they find, only
// a share of the cluster is out at any time, and each ejection of a host in a row is longer than
// the one before.
//
// The package decides and tells. Leaving an ejected host out, panic routing when too many are, and
// active checks belong to others: the caller hands in set, which marks a host, and calls Uneject when
// an active check passes. Start reading at Detector, then Host.Report, then sweep.go.
//
// An idle process is not woken: there is a timer only while calls wait to be judged or a host waits
// to come back.
package outlier

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Result is how one call to a host ended.
type Result uint8

const (
	// Success is any answer that does not blame the host.
	Success Result = iota
	// Failure5xx is an answer that blames the host, other than FailureGateway.
	Failure5xx
	// FailureGateway is an answer like 502, 503 or 504: the host, or something behind it, is not there.
	FailureGateway
	// FailureLocal is no answer: a failed connect, a reset, a timeout on this side.
	FailureLocal
	// Neutral counts as nothing: the call says nothing about the host (the caller gave up, a policy
	// refused it).
	Neutral
)

// Cause says what ejected a host or what brought it back.
type Cause string

// Causes of ejections are the detectors.
const (
	ByConsecutive5xx         Cause = "consecutive5xx"
	ByConsecutiveGateway     Cause = "consecutiveGatewayFailure"
	ByConsecutiveLocalOrigin Cause = "consecutiveLocalOrigin"
	BySuccessRate            Cause = "successRate"
	ByFailurePercentage      Cause = "failurePercentage"
	// The interval detectors on local-origin failures alone, with SplitLocalOrigin.
	BySuccessRateLocal       Cause = "successRateLocalOrigin"
	ByFailurePercentageLocal Cause = "failurePercentageLocalOrigin"
)

// Causes of returns.
const (
	ByTime        Cause = "time"               // the ejection is over
	ByHealthCheck Cause = "healthCheck"        // Uneject
	ByPercent     Cause = "maxEjectionPercent" // the cluster or the percentage shrank
	ByRemoval     Cause = "removed"            // the host left the cluster
	ByOff         Cause = "off"                // no detector is on any more
)

// Event is one ejection or one return.
type Event struct {
	Host    string
	Ejected bool  // false is a return
	By      Cause // the detector, or what brought the host back
	// Times is the multiplier of BaseEjection: ejections in a row, less the quiet intervals since. It
	// stops rising where MaxEjection is reached.
	Times int
	// For is the length of the ejection, with jitter. Zero on returns.
	For time.Duration
}

// Detector watches the hosts of one cluster. Its methods are safe for concurrent use.
type Detector struct {
	// Read by every Report, hardly ever written; kept off the line of the mutex.
	rules   atomic.Pointer[rules]
	pending atomic.Bool // calls wait to be judged by a sweep
	_       [128 - 16]byte

	set  func(id string, ejected bool)
	note func(Event)

	mu       sync.Mutex // guards what follows, and the lower half of every Host
	hosts    map[string]*Host
	kept     int       // size of the cluster; -1 before the first Keep
	out      []*Host   // ejected, oldest first
	windowAt time.Time // start of the interval being gathered; zero when nothing is
	random   *rand.Rand
	timer    *time.Timer    // nil until first needed
	sweeps   sync.WaitGroup // one for the armed timer or its running function
	closed   bool

	news    []Event // not told yet, in order
	telling bool    // someone is telling news
}

// rules is a Config ready to be read on every call.
type rules struct {
	Config
	windows bool // an interval detector is on, so calls are counted
	on      bool // any detector is on
}

func compile(cfg Config) *rules {
	r := &rules{Config: cfg.filled()}
	r.windows = r.SuccessRate != nil || r.FailurePercentage != nil
	r.on = r.windows || r.Consecutive5xx > 0 || r.ConsecutiveGateway > 0 || r.ConsecutiveLocalOrigin > 0
	return r
}

// New makes a detector. It calls set on every ejection and return, then note, which may be nil.
// Both are called one change at a time and in the order of the changes, without locks held, from
// whichever goroutine is at hand: that of a Report, of another method, or of the timer. They may call
// the detector, except Close. cfg should have passed Validate.
func New(cfg Config, set func(id string, ejected bool), note func(Event)) *Detector {
	d := &Detector{set: set, note: note, hosts: map[string]*Host{}, kept: -1,
		random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
	d.rules.Store(compile(cfg))
	return d
}

// Reconfigure replaces the configuration. Counters and ejections stay, with the lengths they have;
// hosts come back early where the new percentage allows fewer ejections, or when no detector is on.
func (d *Detector) Reconfigure(cfg Config) {
	d.change(func(now time.Time) {
		r := compile(cfg)
		d.rules.Store(r)
		for !r.on && len(d.out) > 0 {
			d.restore(d.out[0], ByOff, now)
		}
		d.trim(now)
	})
}

// Host is the host with that id, made on first use. Callers keep the pointer for as long as the
// host is in the cluster; Report on a host that Keep forgot does nothing lasting.
func (d *Detector) Host(id string) *Host {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.hosts[id]
	if h == nil {
		h = &Host{d: d, id: id}
		d.hosts[id] = h
	}
	return h
}

// Keep tells which hosts the cluster has: others are forgotten, and the number of ids is the size
// that percentages refer to. Before the first Keep that is the number of hosts asked for. An ejected
// host that is forgotten is told as returned, so that nothing remembers it as ejected.
func (d *Detector) Keep(ids []string) {
	named := make(map[string]bool, len(ids))
	for _, id := range ids {
		named[id] = true
	}
	d.change(func(now time.Time) {
		for _, h := range slices.Clone(d.out) {
			if !named[h.id] {
				d.restore(h, ByRemoval, now)
			}
		}
		for id := range d.hosts {
			if !named[id] {
				delete(d.hosts, id)
			}
		}
		d.kept = len(named)
		d.trim(now)
	})
}

// Uneject brings a host back because an active check passed. A host that is unknown or in service
// is left as it is.
func (d *Detector) Uneject(id string) {
	d.change(func(now time.Time) {
		if h := d.hosts[id]; h != nil && h.ejected {
			d.restore(h, ByHealthCheck, now)
		}
	})
}

// Close stops the timer and waits for a sweep in progress. Hosts stay as they are; nothing is ejected
// or brought back by time any more. It is safe to call twice, and must not be called from set or note.
func (d *Detector) Close() {
	d.change(func(time.Time) { d.closed = true })
	d.sweeps.Wait()
}

// HostInfo explains the standing of one host.
type HostInfo struct {
	ID      string
	Ejected bool
	By      Cause     // the detector of the last ejection; empty if there was none
	Until   time.Time // end of the ejection; zero for a host in service
	Times   int       // see Event.Times

	// Failures in a row, for the detectors that are on.
	Run5xx, RunGateway, RunLocal int
	// Calls of the interval being gathered: successes, failures the host answered, local-origin ones.
	// They stay 0 while no interval detector is on.
	OK, Failed, Local uint64
}

// Snapshot lists the hosts asked for, by id.
func (d *Detector) Snapshot() []HostInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	now, interval := time.Now(), d.rules.Load().Interval
	infos := make([]HostInfo, 0, len(d.hosts))
	for _, h := range d.hosts {
		h.decline(now, interval)
		i := HostInfo{
			ID: h.id, Ejected: h.ejected, By: h.by, Times: h.times,
			Run5xx: int(h.run5xx.Load()), RunGateway: int(h.runGateway.Load()), RunLocal: int(h.runLocal.Load()),
			OK: h.ok.Load(), Failed: h.failed.Load(), Local: h.local.Load(),
		}
		if h.ejected {
			i.Until = h.mark
		}
		infos = append(infos, i)
	}
	slices.SortFunc(infos, func(a, b HostInfo) int { return cmp.Compare(a.ID, b.ID) })
	return infos
}
