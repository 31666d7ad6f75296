// Package limit holds the limits a call can meet: how often (Limiter, Keyed), how many at
// once (Caps), and how many of them may be repeats (Budget).
//
// These are the counters only. Which call meets which limit, what a refusal is called and
// when a slot is given back is decided by the layers of package policy; limits shared by
// several sidecars are not here. All types are safe for concurrent use, start no goroutine
// and cost nothing while nobody calls. Start reading at Limiter.
package limit

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"
)

// Rate is how often something may happen: Tokens per Per, of which Burst at once.
type Rate struct {
	// Tokens come back evenly over Per. At least 1.
	Tokens int
	// Per is more than 0, and at least a nanosecond for each token. The time one token takes
	// is rounded to a nanosecond: below a million tokens a second this is an error of less
	// than 0.05 percent.
	Per time.Duration
	// Burst is how many tokens can be saved up. 0 means Tokens.
	Burst int
}

// Validate says, joined, what is wrong with the rate.
func (r Rate) Validate() error {
	var errs []error
	if r.Tokens < 1 {
		errs = append(errs, fmt.Errorf("tokens: must be at least 1, is %d", r.Tokens))
	}
	if r.Per <= 0 {
		errs = append(errs, fmt.Errorf("per: must be more than 0, is %v", r.Per))
	} else if int64(r.Tokens) > int64(r.Per) {
		errs = append(errs, fmt.Errorf("tokens: %d in %v is more than one a nanosecond; leave the limit out", r.Tokens, r.Per))
	}
	if r.Burst < 0 {
		errs = append(errs, fmt.Errorf("burst: must not be negative, is %d", r.Burst))
	}
	return errors.Join(errs...)
}

// pace is a Rate in the figures that are compared: all in nanoseconds.
type pace struct {
	token int64 // until one token is back
	ahead int64 // how far a bucket may be ahead of time and still give a token
	full  int64 // how far it is ahead of time when it is empty
}

// longest keeps sums of a time and a bucket's size within 64 bits: 146 years.
const longest = math.MaxInt64 / 2

// newPace brings an invalid rate to the nearest valid one.
func newPace(r Rate) *pace {
	tokens, per := int64(max(r.Tokens, 1)), min(int64(max(r.Per, 1)), longest)
	burst := int64(r.Burst)
	if burst <= 0 {
		burst = tokens
	}
	p := &pace{token: max((per+tokens/2)/tokens, 1), full: longest}
	if burst <= longest/p.token {
		p.full = burst * p.token
	}
	p.ahead = p.full - p.token
	return p
}

// take is the generic cell rate algorithm (ITU-T I.371): spent is the time at which the bucket
// is full again. A token moves it on by the time the token takes to come back, and there is
// one as long as spent is not too far ahead of now. One word holds the whole bucket.
func (p *pace) take(spent *atomic.Int64, now int64) (ok bool, wait time.Duration) {
	for {
		was := spent.Load()
		from := max(was, now)
		if early := from - now - p.ahead; early > 0 {
			return false, time.Duration(early)
		}
		if spent.CompareAndSwap(was, from+p.token) {
			return true, 0
		}
	}
}

func (p *pace) remaining(spent *atomic.Int64, now int64) int {
	return int(max(0, p.full-max(0, spent.Load()-now)) / p.token)
}

// convert turns a bucket of pace p into one of pace to with as many tokens used.
func (p *pace) convert(to *pace, spent *atomic.Int64, now int64) {
	for {
		was := spent.Load()
		used := float64(min(max(0, was-now), p.full)) / float64(p.token)
		debt := to.full
		if used*float64(to.token) < float64(to.full) {
			debt = int64(used * float64(to.token))
		}
		if spent.CompareAndSwap(was, now+debt) {
			return
		}
	}
}

// Limiter is a token bucket. It allows Burst at once and Rate in the long run.
type Limiter struct {
	pace atomic.Pointer[pace]
	// spent is on a line of its own: every call writes it, and the pace is only read.
	_     [120]byte
	spent atomic.Int64
	_     [120]byte
}

// NewLimiter is a full bucket. An invalid rate is brought to the nearest valid one; whoever
// reads rates from outside calls Validate first.
func NewLimiter(r Rate) *Limiter {
	l := &Limiter{}
	l.pace.Store(newPace(r))
	return l
}

// Allow takes a token if there is one. Otherwise wait is how long it takes until there is
// one, if nobody else comes. now is the time of Nanotime; the clocks of callers may differ a
// little, but none may be negative.
func (l *Limiter) Allow(now int64) (ok bool, wait time.Duration) {
	return l.pace.Load().take(&l.spent, now)
}

// Remaining is how many tokens there are at now.
func (l *Limiter) Remaining(now int64) int {
	return l.pace.Load().remaining(&l.spent, now)
}

// SetRate changes the rate. Tokens used stay used: a bucket of 10 with 4 left becomes a bucket
// of 100 with 94 left, or one of 5 with none. It reads Nanotime. A call that overlaps may be
// counted at the old rate.
func (l *Limiter) SetRate(r Rate) {
	to := newPace(r)
	l.pace.Swap(to).convert(to, &l.spent, Nanotime())
}
