package policy_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
)

func TestTapShowsCallsOnlyWhileSomebodyWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		once := 1
		e := policy.New(policy.Options{})
		defer e.Close()
		e.Swap(&policy.Snapshot{Policies: []policy.Policy{{Name: "p", Where: "f:1", Spec: policy.Spec{Retry: &policy.Retry{Max: &once}}}}})
		tg := &call.Target{Kind: call.State, Name: "db"}
		e.Govern(tg)
		do := func() {
			_, _ = call.Do(t.Context(), tg, call.Desc{Op: "get", Resource: "k", Safety: call.Safe}, func(context.Context) (int, error) {
				return 0, fault.New("t", fault.Unavailable, "down")
			})
		}
		do()
		ctx, stop := context.WithCancel(t.Context())
		var got []policy.Live
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := e.Tap(ctx, func(l policy.Live) { got = append(got, l) }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		if err := e.Tap(ctx, func(policy.Live) {}); fault.Of(err) != fault.Exhausted {
			t.Errorf("a second watcher: %v", err)
		}
		do()
		stop()
		wg.Wait()
		do()
		if len(got) != 1 {
			t.Fatalf("saw %d calls, want the one that was made meanwhile", len(got))
		}
		l := got[0]
		if l.Attempts != 2 || l.Outcome != "unavailable" || l.Target != "db" || l.Op != "get" || len(l.Parts) != 1 || l.Parts[0].Rule != "p" {
			t.Errorf("saw %s", cmp.Diff(policy.Live{}, l))
		}
		if c := tg.Chain(); len(c.Layers) != 0 {
			t.Error("calls still pay for a watcher that has gone")
		}
	})
}
