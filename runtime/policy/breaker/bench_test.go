package breaker_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/mecha-project/mecha/runtime/policy/breaker"
)

// hot are the paths that calls take while nothing is wrong, and while everything is.
func hot(t testing.TB) []path {
	call := func(c breaker.Config, ok bool) func(int) {
		b := breaker.New(c, nil)
		return func(int) {
			ticket, _ := b.Allow()
			b.Done(ticket, ok)
		}
	}
	open := breaker.New(breaker.Config{Trip: trip(t, "true"), Timeout: time.Hour}, nil)
	ticket, _ := open.Allow()
	open.Done(ticket, false)
	keys := make([]string, 1000)
	group := breaker.NewGroup(5000, plain)
	for i := range keys {
		keys[i] = fmt.Sprint("orders:/v1/checkout/", i)
		group.For(keys[i])
	}
	rate := breaker.Config{Trip: never(t), FailureRate: 100, MinRequests: 1 << 40}
	return []path{
		{"closed, success", call(breaker.Config{}, true)},
		{"closed, success, interval", call(breaker.Config{Interval: time.Hour}, true)},
		{"closed, success, rate", call(rate, true)},
		{"closed, failure", call(breaker.Config{Trip: trip(t, "consecutiveFailures < 0")}, false)},
		{"open", func(int) { open.Allow() }},
		{"group, one key", func(int) { group.For(keys[0]) }},
		{"group, 1000 keys", func(i int) { group.For(keys[i%1000]) }},
	}
}

type path struct {
	name string
	take func(i int)
}

func Benchmark(b *testing.B) {
	for _, p := range hot(b) {
		b.Run(p.name+"/serial", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p.take(i)
			}
		})
		b.Run(p.name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					p.take(i)
				}
			})
		})
	}
	// Every failure evaluates the condition; this one is not a plain comparison.
	b.Run("closed, failure, expression", func(b *testing.B) {
		b.ReportAllocs()
		br := breaker.New(breaker.Config{Trip: trip(b, "requests > 10 && totalFailures * 100 / requests > 200")}, nil)
		for b.Loop() {
			ticket, _ := br.Allow()
			br.Done(ticket, false)
		}
	})
}

func TestNoAllocation(t *testing.T) {
	for _, p := range hot(t) {
		p.take(0)
		if n := testing.AllocsPerRun(200, func() { p.take(1) }); n != 0 {
			t.Errorf("%s allocates %v times", p.name, n)
		}
	}
}
