package breaker

import "sync/atomic"

// Counts are what a Trip decides on. They are of the running generation only.
type Counts struct {
	Requests             int64 // calls allowed and not cancelled
	TotalSuccesses       int64
	TotalFailures        int64
	ConsecutiveSuccesses int64
	ConsecutiveFailures  int64
}

// generation is a state and what was counted in it. Only the counts change. A ticket points to
// its generation, so a result that comes too late cannot be mistaken for one of the next.
type generation struct {
	state State
	since int64     // ns since the breaker's start
	_     [112]byte // calls write the counts; what they only read stays on another line

	requests  atomic.Int64 // while half-open, it bounds who is let through
	successes atomic.Int64
	failures  atomic.Int64
	// streak is how many results of one kind came last: successes above zero, failures below.
	// One word, so that two results at once cannot lose one or mix two streaks.
	streak atomic.Int64
	_      [96]byte
}

// admit counts a request if it is among the first n.
func (g *generation) admit(n int64) bool {
	for {
		r := g.requests.Load()
		if r >= n {
			return false
		}
		if g.requests.CompareAndSwap(r, r+1) {
			return true
		}
	}
}

func (g *generation) succeeded() {
	g.successes.Add(1)
	for {
		s := g.streak.Load()
		if g.streak.CompareAndSwap(s, max(s, 0)+1) {
			return
		}
	}
}

// failed counts a failure and gives the counts with the streak as it was at that moment: a
// success right after it must not hide that the streak was long enough to trip.
func (g *generation) failed() Counts {
	g.failures.Add(1)
	for {
		s := g.streak.Load()
		if next := min(s, 0) - 1; g.streak.CompareAndSwap(s, next) {
			return g.counts(next)
		}
	}
}

func (g *generation) counts(streak int64) Counts {
	return Counts{
		Requests:             g.requests.Load(),
		TotalSuccesses:       g.successes.Load(),
		TotalFailures:        g.failures.Load(),
		ConsecutiveSuccesses: max(streak, 0),
		ConsecutiveFailures:  max(-streak, 0),
	}
}
