package policy_test

import (
	"context"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/policy"
)

// usual is what most who set something set.
func usual() policy.Spec {
	return policy.Spec{RateLimit: &policy.RateLimit{Local: &policy.LocalRate{Tokens: 1e8}}, Limits: &policy.Limits{MaxRequests: 1000, MaxRetries: 10},
		Breaker: &policy.Breaker{ConsecutiveFailures: 5}, Retry: &policy.Retry{}, Timeout: &policy.Timeout{Total: time.Minute, PerTry: 10 * time.Second}}
}

// everything is every part that a call can pass without being changed by it.
func everything() policy.Spec {
	s := usual()
	s.Match = []policy.Match{{Headers: map[string]string{"x-tenant": "a*"}, Op: policy.Words{"get", "set"}}}
	s.Route = ways("orders 9", "next 1")
	s.Authz = &policy.Authz{Deny: []policy.Rule{{Path: policy.Words{"/secret/**"}}}, Allow: []policy.Rule{{From: policy.Words{"checkout"}}}}
	s.Retry = &policy.Retry{Budget: &policy.Budget{}}
	s.Breaker = &policy.Breaker{ConsecutiveFailures: 5, FailureRate: 50}
	s.Hedge = &policy.Hedge{Delay: "p95"}
	s.Mirror = &policy.Mirror{To: "next", Percent: ptr(0.0)}
	return s
}

// theCall is one that all parts look at.
var theCall = call.Desc{Op: "get", Resource: "user-1", Key: "user-1", Safety: call.Idempotent, Attrs: call.Fields{{Name: "X-Tenant", Value: "acme"}}, Caller: call.Caller{App: "checkout", Proven: true}}

func chains() []struct {
	name   string
	spec   policy.Spec
	allocs float64
} {
	return []struct {
		name   string
		spec   policy.Spec
		allocs float64
	}{{"nothing", policy.Spec{}, 0}, {"usual", usual(), 1}, {"everything", everything(), 1}}
}

func BenchmarkChainOf(b *testing.B) {
	ctx := b.Context()
	for _, bb := range chains() {
		b.Run(bb.name, func(b *testing.B) {
			tg := under(b, call.State, bb.spec)
			b.ReportAllocs()
			for b.Loop() {
				_, _ = call.Do(ctx, tg, theCall, one)
			}
		})
		b.Run(bb.name+"/parallel", func(b *testing.B) {
			tg := under(b, call.State, bb.spec)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_, _ = call.Do(ctx, tg, theCall, one)
				}
			})
		})
	}
}

func BenchmarkChainCatalog(b *testing.B) {
	ctx := b.Context()
	fn := func(context.Context, *journal, string) (int, error) { return 1, nil }
	reading := &catalog.Reading[*journal, string, int]{Fn: fn, Keep: func(s string) string { return s }}
	for _, bb := range chains() {
		h := stored(b, bb.spec)
		b.Run(bb.name+"/Do", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = catalog.Do(ctx, h, theCall, func(context.Context, *journal) (int, error) { return 1, nil }, nil)
			}
		})
		b.Run(bb.name+"/Read", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = catalog.Read(ctx, h, theCall, "k", reading)
			}
		})
		if bb.spec.Hedge == nil {
			continue
		}
		b.Run(bb.name+"/Read hedged", func(b *testing.B) { // by a time that does not pass
			bb.spec.Hedge = &policy.Hedge{Delay: "1m"}
			bb.spec.Timeout = nil
			h, d := stored(b, bb.spec), theCall
			d.Safety = call.Safe
			b.ReportAllocs()
			for b.Loop() {
				_, _ = catalog.Read(ctx, h, d, "k", reading)
			}
		})
	}
}

// stored is a store "orders" under a policy, with the place that routes lead to.
func stored(t testing.TB, s policy.Spec) *catalog.Handle[*journal] {
	e := engine(t, policy.Options{}, pol("p", s))
	store := catalog.NewStore[*journal](block.KindState)
	h := catalog.NewHandle(catalog.Info{Name: "orders"}, &journal{}, governed(e, call.State, "orders"))
	store.Put(h)
	store.Put(catalog.NewHandle(catalog.Info{Name: "next"}, &journal{}, governed(e, call.State, "next")))
	return h
}

// Policies that let a call through cost no more than its deadline, of which there is one.
func TestChainsAllocateLittle(t *testing.T) {
	ctx := t.Context()
	for _, tt := range chains() {
		tg := under(t, call.State, tt.spec)
		if n := testing.AllocsPerRun(500, func() { _, _ = call.Do(ctx, tg, theCall, one) }); n > tt.allocs {
			t.Errorf("%s: %v allocations per call, want %v", tt.name, n, tt.allocs)
		}
	}
}
