package outlier

import (
	"sync/atomic"
	"time"
)

// Host is one host of the cluster. Report is safe for concurrent use.
type Host struct {
	d  *Detector
	id string

	// Calls since the last sweep.
	ok, failed, local atomic.Uint64
	// Failures in a row. They share a line with ok on purpose: a success touches both.
	run5xx, runGateway, runLocal atomic.Uint32

	_ [128 - 60]byte // hosts of one cluster are busy on different cores

	// Guarded by d.mu.
	ejected bool
	by      Cause
	times   int
	mark    time.Time // when an ejected host comes back; else since when times has not fallen
}

// Report tells how a call to the host ended. It is called for every call: it costs a few atomic
// operations and no allocation, save when it ejects the host or is the first of an interval. set
// and note may run inside it.
func (h *Host) Report(r Result) {
	rules := h.d.rules.Load()
	switch r {
	case Success:
		rest(&h.run5xx)
		rest(&h.runGateway)
		rest(&h.runLocal)
		if rules.windows {
			h.ok.Add(1)
		}
	case Failure5xx, FailureGateway:
		if rules.windows {
			h.failed.Add(1)
		}
		rest(&h.runLocal) // bad or not, it is an answer
		if r == FailureGateway {
			h.climb(&h.runGateway, rules.ConsecutiveGateway, ByConsecutiveGateway)
		} else {
			rest(&h.runGateway)
		}
		h.climb(&h.run5xx, rules.Consecutive5xx, ByConsecutive5xx)
	case FailureLocal:
		if rules.windows {
			h.local.Add(1)
		}
		h.climb(&h.runLocal, rules.ConsecutiveLocalOrigin, ByConsecutiveLocalOrigin)
		if !rules.SplitLocalOrigin {
			h.climb(&h.runGateway, rules.ConsecutiveGateway, ByConsecutiveGateway)
			h.climb(&h.run5xx, rules.Consecutive5xx, ByConsecutive5xx)
		}
	default: // Neutral
		return
	}
	// Asked after counting: a sweep clears pending before it reads the counters, so a call is either
	// in this sweep or starts the next interval.
	if rules.windows && !h.d.pending.Load() {
		h.d.gather()
	}
}

// rest ends a run. It reads first, so that hosts in good health share the line between cores.
func rest(run *atomic.Uint32) {
	if run.Load() != 0 {
		run.Store(0)
	}
}

// climb makes a run longer by one and ejects the host at the limit. The run then starts again, so
// that a host which MaxEjectionPercent kept in service is tried again after as many failures, not
// after each.
func (h *Host) climb(run *atomic.Uint32, limit int, by Cause) {
	// Not ==: the limit may have been lowered below the run.
	if limit == 0 || int(run.Add(1)) < limit {
		return
	}
	run.Store(0)
	h.d.change(func(now time.Time) { h.d.eject(h, by, now) })
}

// forget drops what was counted. A host that comes back starts clean, or the calls that were still
// under way when it was ejected would eject it again.
func (h *Host) forget() {
	h.run5xx.Store(0)
	h.runGateway.Store(0)
	h.runLocal.Store(0)
	h.ok.Store(0)
	h.failed.Store(0)
	h.local.Store(0)
}

// decline lowers times by one for each whole interval in service. It is worked out when someone
// looks, so that no timer has to run for it. d.mu is held.
func (h *Host) decline(now time.Time, interval time.Duration) {
	if h.ejected || h.times == 0 {
		return
	}
	n := now.Sub(h.mark) / interval
	h.times -= int(min(n, time.Duration(h.times)))
	h.mark = h.mark.Add(n * interval)
}
