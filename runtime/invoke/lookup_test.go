package invoke_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// stuck is a registry that answers at once, and not at all once it is told to hang.
type stuck struct {
	registry
	hangs atomic.Bool
	asked chan struct{} // a lookup hangs
	let   chan error    // its end
}

func (s *stuck) Resolve(ctx context.Context, name block.Name) ([]block.Instance, error) {
	if !s.hangs.Load() {
		return s.registry.Resolve(ctx, name)
	}
	s.asked <- struct{}{}
	select {
	case err := <-s.let:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newStuck(t *testing.T) (*stuck, *kit) {
	t.Helper()
	reg := &stuck{asked: make(chan struct{}, 100), let: make(chan error)}
	k := newKit(t, withRegistry(reg))
	reg.set(shop, "a")
	if _, err := k.do(t, "shop"); err != nil {
		t.Fatal(err)
	}
	k.peers.set("a", unsent) // so that calls ask again
	reg.hangs.Store(true)
	return reg, k
}

// A caller's patience is its own: it does not wait for a lookup that another one began.
func TestALookupOfAnotherCallIsNotWaitedForWithoutEnd(t *testing.T) {
	reg, k := newStuck(t)
	first := make(chan error, 1)
	go func() { _, err := k.do(t, "shop"); first <- err }()
	<-reg.asked
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	second := make(chan error, 1)
	go func() {
		second <- k.Invoke(ctx, &call.Request{Target: "shop", Verb: "GET"}, &answer{})
	}()
	select {
	case err := <-second:
		if err == nil {
			t.Error("called an app that is nowhere")
		}
	case <-time.After(5 * time.Second):
		t.Error("the second call outlived its time")
	}
	reg.let <- fault.New("dns", fault.Unavailable, "timeout")
	<-first
}

// Calls that waited for a lookup share its failure: otherwise a registry that is slow to fail
// would be asked by each in turn, and the last would wait for all.
func TestAFailedLookupIsShared(t *testing.T) {
	reg, k := newStuck(t)
	const callers = 20
	ended := make(chan error, callers)
	for range callers {
		go func() { _, err := k.do(t, "shop"); ended <- err }()
	}
	<-reg.asked
	time.Sleep(50 * time.Millisecond) // for the others to come
	lookups := 1
	for left := callers; left > 0; {
		select {
		case reg.let <- fault.New("dns", fault.Unavailable, "timeout"):
		case <-reg.asked:
			lookups++
		case err := <-ended:
			left--
			if err == nil {
				t.Error("called an app that is nowhere")
			}
		case <-time.After(5 * time.Second):
			t.Fatal("a call never ends")
		}
	}
	if lookups > callers/2 { // a few may come late
		t.Errorf("%d lookups for %d calls", lookups, callers)
	}
}
