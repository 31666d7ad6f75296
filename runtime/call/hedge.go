package call

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// Hedge says after what time a safe call that has no answer yet is made a second time; ok is
// false when it is not. more bounds the extra attempts.
type Hedge func(c *Call) (delay time.Duration, more int, ok bool)

// Run makes the attempts of c, each a call of fn with arg. Unlike Do it can hedge: then fn runs
// in several goroutines at once, on copies of arg made by keep, and results that come too late
// are given to drop. keep may be nil when arg borrows nothing that ends with the call, drop
// when results need no closing. The last error is in c.Err, an answer's status in c.Outcome.
//
// A panic of fn is the caller's, who must End the call; in a race it becomes an error.
//
// fn may read what does not change in c, through Policy and its Desc: a hedge may outlive the
// call's other attempts.
func Run[A, T any](c *Call, arg A, keep func(A) A, drop func(T), fn func(context.Context, *Try, A) (T, Status, error)) (T, error) {
	var out T
	for c.Next() {
		delay, more, ok := c.hedge()
		if ok {
			if keep != nil {
				arg = keep(arg)
			}
			out = race(c, arg, drop, fn, delay, more)
			continue
		}
		if c.Attempt > 1 && drop != nil {
			drop(out)
		}
		var st Status
		var err error
		out, st, err = fn(c.Context(), &c.try, arg)
		c.Ended(err, st)
	}
	if c.Err != nil && drop != nil { // the answer of an attempt whose repetition was refused
		drop(out)
		var none T
		out = none
	}
	return out, c.Err
}

func (c *Call) hedge() (delay time.Duration, more int, ok bool) {
	if c.chain == nil || c.chain.Hedge == nil || c.Safety != Safe || c.Streamed || c.Attempt > 1 {
		return 0, 0, false
	}
	return c.chain.Hedge(c)
}

func attempted[A, T any](ctx context.Context, t *Try, arg A, fn func(context.Context, *Try, A) (T, Status, error)) (out T, st Status, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Panicked(p)
		}
	}()
	return fn(ctx, t, arg)
}

// heat is one of the attempts that race.
type heat[T any] struct {
	try *Try
	out T
	st  Status
	err error
}

// race makes the attempt, and another whenever delay passes without an answer. The first good
// answer wins; without one the last failure counts. Losers are told to stop and end by
// themselves, so that one that is stuck does not hold up the answer it lost to.
func race[A, T any](c *Call, arg A, drop func(T), fn func(context.Context, *Try, A) (T, Status, error), delay time.Duration, more int) (won T) {
	c.kept = true
	results := make(chan heat[T], more+1)
	var running []*Try
	start := func(t *Try) {
		running = append(running, t)
		ctx, cancel := context.WithCancel(t.Ctx)
		t.Ctx, t.stop = ctx, cancel
		go func() {
			out, st, err := attempted(ctx, t, arg, fn)
			results <- heat[T]{t, out, st, err}
		}()
	}
	first := c.try // moved out of the call, which goes on
	first.went = nil
	start(&first)
	c.try = Try{}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for left := 1; left > 0; {
		select {
		case <-timer.C:
			t := &Try{Extra: true}
			if more > 0 && c.enterExtra(t) {
				more--
				left++
				start(t)
				timer.Reset(delay)
			}
		case h := <-results:
			left--
			c.leave(h.try, h.err, h.st)
			good := h.try.Outcome == OK || (h.err != nil && !h.try.Outcome.Failed())
			if !good && left > 0 {
				discard(drop, &h)
				continue
			}
			c.try, c.Err, c.Outcome = *h.try, h.try.Err, h.try.Outcome
			if h.err == nil {
				c.try.settle()
			}
			finish(c, running, h.try, results, left, drop)
			return h.out
		}
	}
	return won
}

// finish stops the losers and lets them end behind the call.
func finish[T any](c *Call, running []*Try, winner *Try, results chan heat[T], left int, drop func(T)) {
	for _, t := range running {
		if t != winner && t.stop != nil {
			t.stop()
		}
	}
	if left == 0 {
		return
	}
	go func() {
		for range left {
			h := <-results
			if h.err == nil || fault.Of(h.err) != fault.Canceled {
				c.leave(h.try, h.err, h.st)
			} else {
				c.leave(h.try, errLost, Status{})
			}
			discard(drop, &h)
		}
	}()
}

// errLost ends an attempt that another one overtook.
var errLost = fault.New("call.Run", fault.Canceled, "another attempt was faster")

func discard[T any](drop func(T), h *heat[T]) {
	if drop != nil && h.err == nil {
		drop(h.out)
	}
	h.try.cancel()
}

// enterExtra makes a hedge pass the steps; a refusal only means that there is no hedge.
func (c *Call) enterExtra(t *Try) bool {
	err, outcome := c.Err, c.Outcome
	ok := c.enter(t)
	c.Err, c.Outcome = err, outcome
	return ok
}
