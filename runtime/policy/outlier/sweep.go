package outlier

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// gather starts an interval: what is reported until its end is judged together.
func (d *Detector) gather() {
	if d.pending.CompareAndSwap(false, true) {
		d.change(func(now time.Time) { d.windowAt = now })
	}
}

// wake is the timer's function: hosts whose time is over come back, and an interval that is over is
// judged. It may run with nothing to do, when the timer was set anew while it fired.
func (d *Detector) wake() {
	defer d.sweeps.Done()
	d.change(func(now time.Time) {
		if d.closed {
			return
		}
		for _, h := range slices.Clone(d.out) {
			if !h.mark.After(now) {
				d.restore(h, ByTime, now)
			}
		}
		if end := d.sweepAt(); !end.IsZero() && !end.After(now) {
			d.sweep(now)
		}
	})
}

// sweepAt is the end of the interval being gathered, zero if there is none.
func (d *Detector) sweepAt() time.Time {
	if d.windowAt.IsZero() {
		return time.Time{}
	}
	return d.windowAt.Add(d.rules.Load().Interval)
}

// sample is what one detector knows of one host.
type sample struct {
	host          *Host
	total, failed uint64
}

func (s sample) failures() float64 { return float64(s.failed) / float64(s.total) }

// sweep judges the interval that ends now. d.mu is held.
func (d *Detector) sweep(now time.Time) {
	r := d.rules.Load()
	d.windowAt = time.Time{}
	d.pending.Store(false) // before the counters are read, see Report
	answered, local := d.collect(r.SplitLocalOrigin)
	if r.SuccessRate != nil {
		d.successRate(r.SuccessRate, answered, BySuccessRate, now)
		d.successRate(r.SuccessRate, local, BySuccessRateLocal, now)
	}
	if r.FailurePercentage != nil {
		d.failurePercentage(r.FailurePercentage, answered, ByFailurePercentage, now)
		d.failurePercentage(r.FailurePercentage, local, ByFailurePercentageLocal, now)
	}
}

// collect empties the counters. With split, answered leaves local-origin failures out, and local
// holds them against all calls, for every answer is a success of the way there. Ejected hosts are in
// neither: their few late calls say little and would bend the mean.
func (d *Detector) collect(split bool) (answered, local []sample) {
	for _, h := range d.hosts {
		ok, failed, lost := h.ok.Swap(0), h.failed.Swap(0), h.local.Swap(0)
		switch {
		case h.ejected:
		case split:
			answered = append(answered, sample{h, ok + failed, failed})
			local = append(local, sample{h, ok + failed + lost, lost})
		default:
			answered = append(answered, sample{h, ok + failed + lost, failed + lost})
		}
	}
	return answered, local
}

// successRate ejects hosts that do much worse than the mean.
func (d *Detector) successRate(c *SuccessRate, all []sample, by Cause, now time.Time) {
	judged := judgeable(all, c.Volume, c.MinHosts)
	if len(judged) == 0 {
		return
	}
	mean, stdev := spread(judged)
	// The margin is far below one call in any interval. It keeps rounding from ejecting hosts that
	// are all alike.
	const margin = 1e-9
	bound := mean + stdev*c.StdevFactor + margin
	d.ejectWorst(judged, func(s sample) bool { return s.failures() > bound }, *c.Enforce, by, now)
}

// spread is the mean and the standard deviation of the hosts' shares of failures. Successes have the
// same deviation, and the mirrored mean.
func spread(judged []sample) (mean, stdev float64) {
	n := float64(len(judged))
	for _, s := range judged {
		mean += s.failures() / n
	}
	for _, s := range judged {
		away := s.failures() - mean
		stdev += away * away / n
	}
	return mean, math.Sqrt(stdev)
}

// failurePercentage ejects hosts at or above the threshold.
func (d *Detector) failurePercentage(c *FailurePercentage, all []sample, by Cause, now time.Time) {
	judged := judgeable(all, c.Volume, c.MinHosts)
	d.ejectWorst(judged, func(s sample) bool { return s.failed*100 >= uint64(c.Threshold)*s.total }, *c.Enforce, by, now)
}

// judgeable is the samples with enough calls, or none if they are too few to judge any.
func judgeable(all []sample, volume, minHosts int) []sample {
	var judged []sample
	for _, s := range all {
		if s.total >= uint64(volume) {
			judged = append(judged, s)
		}
	}
	if len(judged) < minHosts {
		return nil
	}
	return judged
}

// ejectWorst ejects the outliers, worst first: where not all may go, those that hurt most go. (Envoy
// takes them as they come.)
func (d *Detector) ejectWorst(judged []sample, outlier func(sample) bool, enforce int, by Cause, now time.Time) {
	outliers := slices.DeleteFunc(judged, func(s sample) bool { return !outlier(s) })
	slices.SortFunc(outliers, func(a, b sample) int {
		return cmp.Or(cmp.Compare(b.failures(), a.failures()), cmp.Compare(a.host.id, b.host.id))
	})
	for _, s := range outliers {
		if d.random.IntN(100) < enforce {
			d.eject(s.host, by, now)
		}
	}
}
