package limit_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/mecha-project/mecha/runtime/policy/limit"
)

// bench runs f serially and on all processors.
func bench(b *testing.B, name string, f func(i int)) {
	b.Run(name+"/serial", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			f(i)
		}
	})
	b.Run(name+"/parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				f(i)
			}
		})
	})
}

// hot are the paths that every call takes.
func hot() map[string]func(i int) {
	plenty := limit.Rate{Tokens: 1_000_000_000, Per: time.Second}
	allowing := limit.NewLimiter(plenty)
	refusing := limit.NewLimiter(limit.Rate{Tokens: 1, Per: time.Hour})
	refusing.Allow(limit.Nanotime())
	keyed := limit.NewKeyed(plenty, 0)
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprint("spiffe://mesh/ns/shop/sa/app-", i)
		keyed.Allow(keys[i], limit.Nanotime())
	}
	caps := limit.NewCaps(limit.Config{MaxRequests: 1024, MaxRetries: 3})
	ctx := context.Background()
	budget := limit.NewBudget(0.2, 10, 0)
	return map[string]func(i int){
		"Nanotime":               func(int) { limit.Nanotime() },
		"Limiter.Allow":          func(i int) { allowing.Allow(int64(i)) },
		"Limiter.Allow+Nanotime": func(int) { allowing.Allow(limit.Nanotime()) },
		"Limiter.Allow refused":  func(int) { refusing.Allow(limit.Nanotime()) },
		"Keyed.Allow one key":    func(i int) { keyed.Allow(keys[0], int64(i)) },
		"Keyed.Allow 1000 keys":  func(i int) { keyed.Allow(keys[i%1000], int64(i)) },
		"Caps.Acquire+Release":   func(int) { caps.Acquire(ctx); caps.Release() },
		"Caps retry":             func(int) { caps.AcquireRetry(); caps.ReleaseRetry() },
		"Budget.Deposit":         func(int) { budget.Deposit() },
		"Budget.Withdraw":        func(int) { budget.Withdraw() },
	}
}

func Benchmark(b *testing.B) {
	all := hot()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		bench(b, name, all[name])
	}
}

func TestNoAllocation(t *testing.T) {
	for name, f := range hot() {
		f(0)
		if n := testing.AllocsPerRun(200, func() { f(1) }); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}
