package outlier

import (
	"slices"
	"time"
)

// change runs f with the lock held, then sets the timer anew and tells what happened. Every change
// of the detector's state goes through it.
func (d *Detector) change(f func(now time.Time)) {
	d.mu.Lock()
	now := time.Now()
	f(now)
	d.arm(now)
	tell := len(d.news) > 0 && !d.telling
	d.telling = d.telling || tell
	d.mu.Unlock()
	if tell {
		d.tell()
	}
}

// tell hands out news until there is none. One goroutine does so at a time, hence the order; others
// leave their news to it.
func (d *Detector) tell() {
	finished := false
	defer func() {
		if finished {
			return // another may be telling by now
		}
		// set or note panicked. The next change tells the rest.
		d.mu.Lock()
		d.telling = false
		d.mu.Unlock()
	}()
	for {
		e, ok := d.next()
		if !ok {
			finished = true
			return
		}
		d.set(e.Host, e.Ejected)
		if d.note != nil {
			d.note(e)
		}
	}
}

// next takes the oldest news. With none left it ends the telling in the same breath, or a change
// made just then would stay untold.
func (d *Detector) next() (Event, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.news) == 0 {
		d.telling = false
		return Event{}, false
	}
	e := d.news[0]
	d.news = d.news[1:]
	return e, true
}

// eject takes h out of service if it may go. d.mu is held, as in all below.
func (d *Detector) eject(h *Host, by Cause, now time.Time) {
	r := d.rules.Load()
	// The report that led here may be older than the last Keep or Reconfigure.
	if d.closed || h.ejected || d.hosts[h.id] != h || !r.on || len(d.out) >= d.allowed() {
		return
	}
	h.decline(now, r.Interval)
	if time.Duration(h.times) < (r.MaxEjection+r.BaseEjection-1)/r.BaseEjection {
		h.times++ // no higher than it has an effect, so that it can fall again in good time
	}
	length := min(r.BaseEjection*time.Duration(h.times), r.MaxEjection)
	if r.MaxEjectionJitter > 0 {
		length += time.Duration(d.random.Int64N(int64(r.MaxEjectionJitter) + 1))
	}
	h.ejected, h.by, h.mark = true, by, now.Add(length)
	d.out = append(d.out, h)
	d.news = append(d.news, Event{Host: h.id, Ejected: true, By: by, Times: h.times, For: length})
}

// restore brings h back into service.
func (d *Detector) restore(h *Host, by Cause, now time.Time) {
	h.ejected, h.mark = false, now
	h.forget()
	d.out = slices.DeleteFunc(d.out, func(o *Host) bool { return o == h })
	d.news = append(d.news, Event{Host: h.id, By: by, Times: h.times})
}

// allowed is how many hosts may be out at once.
func (d *Detector) allowed() int {
	r, size := d.rules.Load(), d.kept
	if size < 0 {
		size = len(d.hosts)
	}
	n := size * r.MaxEjectionPercent / 100
	if *r.AlwaysEjectOne {
		n = max(n, 1)
	}
	return n
}

// trim brings back as many hosts as are out beyond what is allowed, those first whose time is nearest.
func (d *Detector) trim(now time.Time) {
	for len(d.out) > d.allowed() {
		d.restore(slices.MinFunc(d.out, func(a, b *Host) int { return a.mark.Compare(b.mark) }), ByPercent, now)
	}
}

// arm sets the timer for the next thing to do, or stops it if there is none.
func (d *Detector) arm(now time.Time) {
	next := d.sweepAt()
	for _, h := range d.out {
		if next.IsZero() || h.mark.Before(next) {
			next = h.mark
		}
	}
	switch {
	case d.closed || next.IsZero():
		if d.timer != nil && d.timer.Stop() {
			d.sweeps.Done()
		}
	case d.timer == nil:
		d.sweeps.Add(1)
		d.timer = time.AfterFunc(next.Sub(now), d.wake)
	case !d.timer.Reset(next.Sub(now)): // it was not running
		d.sweeps.Add(1)
	}
}
