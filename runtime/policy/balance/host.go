package balance

import (
	"math"
	"sync/atomic"
	"time"
)

// Reasons for a host to be unhealthy, as bits. None set is healthy.
const (
	ejected uint32 = 1 << iota
	failing
)

// Host is the live state of one endpoint. It lives as long as the endpoint stays in the
// cluster's list; calls begun on a host that has left may still end on it. Safe for
// concurrent use.
type Host struct {
	id       string
	hash     uint64 // of id: the same in every sidecar
	cluster  *Cluster
	endpoint atomic.Pointer[Endpoint]
	flags    atomic.Uint32 // changes under cluster.mu only
	since    int64         // when it came or became healthy again; under cluster.mu

	// Every call writes what follows, and every pick reads what stands above.
	_        [cacheLine]byte
	inflight atomic.Int64
	latency  ewma
	_        [cacheLine]byte
}

// cacheLine keeps counters apart: two lines, for processors that fetch them in pairs.
const cacheLine = 128

func newHost(c *Cluster, e Endpoint, now int64) *Host {
	h := &Host{id: e.ID, hash: hashID(e.ID), cluster: c, since: now}
	h.endpoint.Store(&e)
	return h
}

// ID is the endpoint's ID.
func (h *Host) ID() string { return h.id }

// Endpoint is the endpoint as the last Update listed it.
func (h *Host) Endpoint() Endpoint { return *h.endpoint.Load() }

// Inflight is the number of calls begun and not ended.
func (h *Host) Inflight() int64 { return h.inflight.Load() }

// Latency is the peak-sensitive average as the last calls left it; 0: none has ended yet.
// It includes the surcharge for failed calls.
func (h *Host) Latency() time.Duration {
	v, _ := h.latency.load()
	return time.Duration(v)
}

// Begin tells that a call goes to the host. Every Begin needs one End.
func (h *Host) Begin() { h.inflight.Add(1) }

// End tells that a call is over: how long it took, and whether the host did well. A call that
// failed counts as slower than it was, for failing fast must not attract calls.
func (h *Host) End(took time.Duration, ok bool) {
	h.inflight.Add(-1)
	env := &h.cluster.env
	now, decay := tickOf(env.now()), float64(env.decay.Load())
	sample := float32(max(took, 1))
	if ok {
		env.typical.average(sample, now, decay)
	} else {
		last, _ := h.latency.load()
		sample = max(sample, surcharge(last))
	}
	h.latency.peak(sample, now, decay)
}

// A failed call counts as failFactor times the host's average, between failLeast and failMost.
// Our own figures: one failure halves a host's calls for about a Decay, a host that only fails
// is left alone for several, and a rate of failures all hosts share ends in failMost for all,
// which leaves the calls in flight to decide.
const (
	failFactor = 5
	failLeast  = float32(time.Millisecond)
	failMost   = float32(time.Second)
)

func surcharge(last float32) float32 {
	return min(max(failFactor*last, failLeast), failMost)
}

// SetEjected sets whether outlier detection has taken the host out. It returns after the pickers
// know: a Pick begun later heeds it.
func (h *Host) SetEjected(v bool) { h.set(ejected, v) }

// Ejected tells what SetEjected said last.
func (h *Host) Ejected() bool { return h.flags.Load()&ejected != 0 }

// SetFailing sets whether active health checks fail. It returns as SetEjected does.
func (h *Host) SetFailing(v bool) { h.set(failing, v) }

// Failing tells what SetFailing said last.
func (h *Host) Failing() bool { return h.flags.Load()&failing != 0 }

// Healthy tells whether nothing speaks against the host.
func (h *Host) Healthy() bool { return h.flags.Load() == 0 }

func (h *Host) set(flag uint32, on bool) {
	if (h.flags.Load()&flag != 0) == on {
		return // detectors repeat themselves; spare the lock
	}
	c := h.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	old := h.flags.Load()
	flags := old &^ flag
	if on {
		flags |= flag
	}
	h.flags.Store(flags)
	if (old == 0) == (flags == 0) {
		return
	}
	if flags == 0 {
		h.since = c.env.now()
	}
	if c.holds(h) {
		c.rebuild()
	}
}

// maxWeight keeps sums of weights exact; no control plane sends more in total.
const maxWeight = math.MaxInt32

func (h *Host) weight() int { return min(max(h.endpoint.Load().Weight, 1), maxWeight) }
