package breaker_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/sony/gobreaker/v2"

	"github.com/mecha-project/mecha/runtime/policy/breaker"
)

var (
	errFailed   = errors.New("failed")
	errExcluded = errors.New("excluded")
)

// TestLikeGobreaker takes the same random steps with sony/gobreaker and compares every answer,
// the state and the counts. A cancelled call is an excluded one there; it stays in gobreaker's
// Requests, so its trip functions take the exclusions off.
func TestLikeGobreaker(t *testing.T) {
	trips := []struct {
		expr string
		trip func(c gobreaker.Counts) bool
	}{
		{"", nil},
		{"consecutiveFailures >= 3", func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= 3 }},
		{"requests > 6", func(c gobreaker.Counts) bool { return requests(c) > 6 }},
		{"totalFailures == 4", func(c gobreaker.Counts) bool { return c.TotalFailures == 4 }},
		{"requests >= 8 && totalFailures * 2 >= requests", func(c gobreaker.Counts) bool {
			return requests(c) >= 8 && int(c.TotalFailures)*2 >= requests(c)
		}},
	}
	for _, tt := range trips {
		for maxRequests := range 4 {
			for _, interval := range []time.Duration{0, 7 * time.Second} {
				t.Run(fmt.Sprintf("%s, max %d, interval %v", tt.expr, maxRequests, interval), func(t *testing.T) {
					told := 0
					for seed := range uint64(8) {
						synctest.Test(t, func(t *testing.T) {
							p := &pair{t: t, rnd: rand.New(rand.NewPCG(seed, uint64(maxRequests)))}
							conf := breaker.Config{MaxRequests: maxRequests, Interval: interval, Timeout: 5 * time.Second}
							if tt.expr != "" {
								conf.Trip = trip(t, tt.expr)
							}
							p.ours = breaker.New(conf, func(from, to breaker.State) { p.oursTold += fmt.Sprint(from, to, " ") })
							p.theirs = gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
								MaxRequests: uint32(maxRequests), Interval: interval, Timeout: conf.Timeout, ReadyToTrip: tt.trip,
								IsExcluded:    func(err error) bool { return errors.Is(err, errExcluded) },
								OnStateChange: func(_ string, from, to gobreaker.State) { p.theirsTold += fmt.Sprint(from, to, " ") },
							})
							for p.steps < 1500 {
								p.step()
							}
							told += strings.Count(p.oursTold, " ")
						})
					}
					if told < 50 {
						t.Errorf("only %d changes of state: nothing was tested", told)
					}
				})
			}
		}
	}
}

func requests(c gobreaker.Counts) int { return int(c.Requests) - int(c.TotalExclusions) }

type pair struct {
	t                    *testing.T
	rnd                  *rand.Rand
	ours                 *breaker.Breaker
	theirs               *gobreaker.TwoStepCircuitBreaker[any]
	under                []underWay
	steps                int
	oursTold, theirsTold string
}

type underWay struct {
	ours   breaker.Ticket
	theirs func(error)
}

func (p *pair) step() {
	p.steps++
	switch n := p.rnd.IntN(20); {
	case n < 9:
		p.allow()
	case n < 17 && len(p.under) > 0:
		p.end()
	case n == 17: // often exactly the timeout or interval
		time.Sleep(time.Duration(p.rnd.IntN(8)) * time.Second)
	case n == 18:
		time.Sleep(time.Duration(p.rnd.IntN(3)))
	}
	if got, want := p.ours.State().String(), p.theirs.State().String(); got != want {
		p.t.Fatalf("step %d: state %s, gobreaker says %s", p.steps, got, want)
	}
	c := p.theirs.Counts()
	want := breaker.Counts{
		Requests: int64(requests(c)), TotalSuccesses: int64(c.TotalSuccesses), TotalFailures: int64(c.TotalFailures),
		ConsecutiveSuccesses: int64(c.ConsecutiveSuccesses), ConsecutiveFailures: int64(c.ConsecutiveFailures),
	}
	if got := p.ours.Counts(); got != want {
		p.t.Fatalf("step %d: counts %+v, gobreaker has %+v", p.steps, got, want)
	}
	if p.oursTold != p.theirsTold {
		p.t.Fatalf("step %d: told %s, gobreaker %s", p.steps, p.oursTold, p.theirsTold)
	}
}

func (p *pair) allow() {
	ticket, verdict := p.ours.Allow()
	done, err := p.theirs.Allow()
	want := breaker.Allowed
	switch {
	case errors.Is(err, gobreaker.ErrOpenState):
		want = breaker.RefusedOpen
	case errors.Is(err, gobreaker.ErrTooManyRequests):
		want = breaker.RefusedHalfOpen
	}
	if verdict != want {
		p.t.Fatalf("step %d: %v, gobreaker says %v", p.steps, verdict, want)
	}
	if verdict == breaker.Allowed {
		p.under = append(p.under, underWay{ticket, done})
	}
}

// end ends one of the calls under way, in any order.
func (p *pair) end() {
	i := p.rnd.IntN(len(p.under))
	u := p.under[i]
	p.under[i] = p.under[len(p.under)-1]
	p.under = p.under[:len(p.under)-1]
	switch n := p.rnd.IntN(12); {
	case n == 0:
		p.ours.Cancel(u.ours)
		u.theirs(errExcluded)
	case n < 8:
		p.ours.Done(u.ours, false)
		u.theirs(errFailed)
	default:
		p.ours.Done(u.ours, true)
		u.theirs(nil)
	}
}

// TestLikeFailsafe compares with failsafe-go where the two mean the same. They differ in this:
//   - it counts results of calls allowed before a change of state, we ignore them: calls are
//     made one after the other here;
//   - half-open, it lets as many through at once as must succeed, we as many in all: the same
//     for calls one after the other;
//   - it goes half-open at the end of the delay, we after it: no step here ends exactly then;
//   - it rounds the rate to a whole percent: with 100 results or fewer that never turns less
//     than one half into one half;
//   - it opens upon a success if that makes the results enough or finds older successes gone,
//     we upon the next failure: the test then makes that failure.
func TestLikeFailsafe(t *testing.T) {
	const delay = 5*time.Second - 1
	configs := []struct {
		name   string
		ours   breaker.Config
		theirs circuitbreaker.Builder[any]
	}{
		{
			"consecutive", breaker.Config{Trip: trip(t, "consecutiveFailures >= 4"), MaxRequests: 3, Timeout: delay},
			circuitbreaker.NewBuilder[any]().WithFailureThreshold(4).WithSuccessThreshold(3).WithDelay(delay),
		},
		{
			"rate", breaker.Config{Trip: never(t), FailureRate: 50, Window: 10 * time.Second, MinRequests: 8, MaxRequests: 2, Timeout: delay},
			circuitbreaker.NewBuilder[any]().WithFailureRateThreshold(0.5, 8, 10*time.Second).WithSuccessThreshold(2).WithDelay(delay),
		},
	}
	for _, tt := range configs {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range uint64(30) {
				synctest.Test(t, func(t *testing.T) {
					rnd := rand.New(rand.NewPCG(8, seed))
					ours, theirs := breaker.New(tt.ours, nil), tt.theirs.Build()
					opened := 0
					for step := range 2000 {
						if rnd.IntN(4) == 0 {
							// Whole seconds: both cut the time into the same tenths of the window.
							time.Sleep(time.Duration(rnd.IntN(4)) * time.Second)
						}
						ticket, verdict := ours.Allow()
						if got, want := verdict == breaker.Allowed, theirs.TryAcquirePermit(); got != want {
							t.Fatalf("seed %d, step %d: allowed %t (%v), failsafe says %t", seed, step, got, verdict, want)
						}
						if verdict != breaker.Allowed {
							continue
						}
						ok := rnd.IntN(10) < 6
						before := ours.State()
						ours.Done(ticket, ok)
						if ok {
							theirs.RecordSuccess()
						} else {
							theirs.RecordFailure()
						}
						if ok && before == breaker.Closed && theirs.IsOpen() && ours.State() == breaker.Closed {
							ticket, _ := ours.Allow()
							ours.Done(ticket, false)
						}
						if got, want := ours.State().String(), theirs.State().String(); got != want {
							t.Fatalf("seed %d, step %d: state %s, failsafe says %s", seed, step, got, want)
						}
						if theirs.IsOpen() {
							opened++
						}
					}
					if opened < 5 {
						t.Errorf("seed %d: opened %d times: nothing was tested", seed, opened)
					}
				})
			}
		})
	}
}
