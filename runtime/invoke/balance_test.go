package invoke_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestCallsAreSpreadEvenly(t *testing.T) {
	k := newKit(t)
	k.reg.set(shop, "a", "b", "c")
	got := map[string]int{}
	for range 300 {
		body, err := k.do(t, "shop")
		if err != nil {
			t.Fatal(err)
		}
		got[body]++
	}
	if d := cmp.Diff(map[string]int{"a": 100, "b": 100, "c": 100}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if n := k.reg.lookups(); n != 1 {
		t.Errorf("%d lookups for 300 calls, want 1", n)
	}
}

func TestCallsAreSpreadByWeight(t *testing.T) {
	tests := []struct {
		name    string
		weights map[string]int // 0 counts as 1
		calls   int
		want    map[string]int
	}{
		{"one to three", map[string]int{"a": 1, "b": 3}, 400, map[string]int{"a": 100, "b": 300}},
		{"absent is one", map[string]int{"a": 0, "b": 0, "c": 2}, 400, map[string]int{"a": 100, "b": 100, "c": 200}},
		{"scaled down, nobody to nothing", map[string]int{"a": 1, "b": 1_000_000}, 1000, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(t)
			k.reg.set(shop, slices.Sorted(maps.Keys(tt.weights))...)
			for i := range k.reg.apps[shop] {
				k.reg.apps[shop][i].Weight = tt.weights[k.reg.apps[shop][i].ID]
			}
			got, longest, run, last := map[string]int{}, 0, 0, ""
			for range tt.calls {
				body, err := k.do(t, "shop")
				if err != nil {
					t.Fatal(err)
				}
				got[body]++
				if run++; body != last {
					run, last = 1, body
				}
				longest = max(longest, run)
			}
			if tt.want == nil {
				if got["a"] == 0 {
					t.Error("an instance of small weight is never called")
				}
				return
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if longest > 3 {
				t.Errorf("%d calls in a row to one instance: a round is not spread", longest)
			}
		})
	}
}

func TestFailover(t *testing.T) {
	tests := []struct {
		name  string
		down  map[string]error
		calls int // peers called
		code  fault.Code
	}{
		{"all well", nil, 1, fault.OK},
		{"one cannot be reached", map[string]error{"a": unsent}, 2, fault.OK},
		{"two cannot: who failed lately is asked last", map[string]error{"a": unsent, "b": unsent}, 2, fault.OK},
		{"none can: each is tried once, and the registry asked again", map[string]error{"a": unsent, "b": unsent, "c": unsent}, 3, fault.Unavailable},
		{"one may have got it: no second try", map[string]error{"a": maybe, "b": maybe, "c": maybe}, 1, fault.Unavailable},
		{"nobody knows: no second try", map[string]error{"a": errors.New("x"), "b": errors.New("x"), "c": errors.New("x")}, 1, fault.Internal},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(t)
			k.reg.set(shop, "a", "b", "c")
			for a, err := range tt.down {
				k.peers.set(a, err)
			}
			most := 0
			for range 3 { // whichever is first in turn
				_, err := k.do(t, "shop")
				called := k.peers.take()
				most = max(most, len(called))
				if fault.Of(err) != tt.code {
					t.Errorf("got %v, want %v", err, tt.code)
				}
				slices.Sort(called)
				if len(slices.Compact(called)) != len(called) {
					t.Errorf("an instance was tried twice: %v", called)
				}
			}
			if most != tt.calls {
				t.Errorf("up to %d instances were called, want %d", most, tt.calls)
			}
		})
	}
}

func TestAnInstanceThatCannotBeReachedIsAvoidedForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.reg.set(shop, "a", "b")
		k.peers.set("a", unsent)
		for range 4 {
			_, _ = k.do(t, "shop")
		}
		if got := strings.Count(strings.Join(k.peers.take(), ""), "a"); got != 1 {
			t.Errorf("a was tried %d× in its second, want once", got)
		}
		time.Sleep(1100 * time.Millisecond)
		k.peers.set("a", nil)
		got := map[string]int{}
		for range 10 {
			body, _ := k.do(t, "shop")
			got[body]++
		}
		if got["a"] != 5 || got["b"] != 5 {
			t.Errorf("after that it has its share again: %v", got)
		}
	})
}

func TestStreamedBodiesAreOfferedAgainOnlyUntouched(t *testing.T) {
	for _, tt := range []struct {
		name  string
		eats  bool
		tries int
		code  fault.Code
	}{{"untouched", false, 2, fault.OK}, {"begun", true, 1, fault.Unavailable}} {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(t, withRetries)
			k.reg.set(shop, "a", "b")
			k.peers.set("a", unsent)
			k.peers.eats = tt.eats
			for { // until a's turn comes
				body := io.NopCloser(strings.NewReader("xyz"))
				err := k.Invoke(t.Context(), &call.Request{Target: "shop", Stream: body, Length: call.Unknown}, &answer{})
				called := k.peers.take()
				if called[0] != "a" {
					continue
				}
				if len(called) != tt.tries || fault.Of(err) != tt.code {
					t.Errorf("called %v, %v; want %d tries and %v", called, err, tt.tries, tt.code)
				}
				return
			}
		})
	}
}

func TestTheRegistryIsAskedAgainWhenAllAreDown(t *testing.T) {
	k := newKit(t)
	k.reg.set(shop, "old")
	if body, err := k.do(t, "shop"); body != "old" || err != nil {
		t.Fatal(body, err)
	}
	// The app restarts elsewhere.
	k.peers.set("old", unsent)
	k.reg.set(shop, "new")
	if body, err := k.do(t, "shop"); body != "new" || err != nil {
		t.Errorf("got %q, %v; the first call after a restart must find the new address", body, err)
	}
	if d := cmp.Diff([]string{"old", "old", "new"}, k.peers.take()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestRetriesAsTheLastMeans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t, withRetries)
		k.reg.set(shop, "a")
		k.peers.set("a", unsent)
		start := time.Now()
		go func() { // it comes back during the pauses
			time.Sleep(1500 * time.Millisecond)
			k.peers.set("a", nil)
		}()
		body, err := k.do(t, "shop")
		if body != "a" || err != nil || time.Since(start) != 2*time.Second {
			t.Errorf("got %q, %v after %v", body, err, time.Since(start))
		}
		k.peers.set("a", unsent)
		_, err = k.do(t, "shop")
		if err == nil || err.Error() != "failed to invoke target shop after 3 retries. Error: refused" || fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
			t.Errorf("got %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
		}
		k.Close()
	})
}

func TestAnswersOfARegistryAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.reg.set(shop, "a")
		_, _ = k.do(t, "shop")
		k.reg.set(shop, "b")
		time.Sleep(19 * time.Second)
		if body, _ := k.do(t, "shop"); body != "a" {
			t.Errorf("after 19s: %q", body)
		}
		time.Sleep(2 * time.Second)
		if body, _ := k.do(t, "shop"); body != "b" {
			t.Errorf("after 21s: %q", body)
		}
		time.Sleep(21 * time.Second)
		k.reg.set(shop)
		if _, err := k.do(t, "shop"); fault.Of(err) != fault.NotFound {
			t.Errorf("an app that has gone: %v", err)
		}
	})
}

// A registry that is down takes nothing with it that worked before.
func TestARegistryThatFailsLeavesTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.reg.set(shop, "a")
		_, _ = k.do(t, "shop")
		k.reg.fail(fault.New("dns", fault.Unavailable, "timeout"))
		time.Sleep(21 * time.Second)
		before := k.reg.lookups()
		for range 10 {
			if body, err := k.do(t, "shop"); body != "a" || err != nil {
				t.Fatalf("got %q, %v", body, err)
			}
		}
		if n := k.reg.lookups() - before; n != 1 {
			t.Errorf("%d lookups within a moment, want 1", n)
		}
		k.reg.fail(nil)
		k.reg.set(shop, "b")
		time.Sleep(1100 * time.Millisecond)
		if body, _ := k.do(t, "shop"); body != "b" {
			t.Errorf("the registry is back, and %q is still called", body)
		}
	})
}

func TestWatchedNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched()
		w.set(shop, "a")
		k := newKit(t, withRegistry(w))
		want := func(body string, code fault.Code) {
			t.Helper()
			got, err := k.do(t, "shop")
			if got != body || fault.Of(err) != code {
				t.Errorf("got %q, %v; want %q, %v", got, err, body, code)
			}
		}
		want("a", fault.OK)
		w.push <- instances("b")
		synctest.Wait()
		want("b", fault.OK)
		time.Sleep(time.Hour)
		want("b", fault.OK)
		if n := w.lookups(); n != 1 {
			t.Errorf("%d lookups of a watched name, want 1", n)
		}
		w.push <- nil // all gone: the registry itself is asked before giving up
		synctest.Wait()
		want("a", fault.OK)
		w.set(shop)
		w.push <- nil
		synctest.Wait()
		want("", fault.NotFound)
		for _, err := range []error{errors.New("broken"), context.Canceled, nil} { // of the registry's own, not ours
			w.fail <- err
			time.Sleep(1100 * time.Millisecond)
			select {
			case w.push <- instances("c"):
			case <-time.After(time.Minute):
				t.Fatalf("a watch that ended with %v is not started again", err)
			}
			synctest.Wait()
			want("c", fault.OK)
		}
		k.Close()
		synctest.Wait()
		select {
		case w.push <- instances("d"):
			t.Error("a watch outlived Close")
		default:
		}
	})
}

func TestFailuresOfVanishedInstancesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched()
		w.set(shop, "x0", "y0")
		k := newKit(t, withRegistry(w))
		for i := range 50 { // each generation comes, cannot be reached, and goes
			k.peers.set(fmt.Sprint("x", i), unsent)
			k.peers.set(fmt.Sprint("y", i), unsent)
			if i > 0 {
				w.push <- instances(fmt.Sprint("x", i), fmt.Sprint("y", i))
				w.set(shop, fmt.Sprint("x", i), fmt.Sprint("y", i))
				synctest.Wait()
			}
			_, _ = k.do(t, "shop")
		}
		w.push <- instances("a", "b")
		synctest.Wait()
		if n := k.Avoided(shop); n != 0 {
			t.Errorf("%d instances that no longer exist are still avoided", n)
		}
		k.Close()
	})
}

// Names are chosen by callers; what is remembered is bounded.
func TestTheCacheIsBounded(t *testing.T) {
	k := newKit(t)
	for i := range 4200 {
		name := fmt.Sprint("app", i)
		k.reg.set(block.Name{App: name, Namespace: "home"}, name)
		if body, err := k.do(t, name); body != name || err != nil {
			t.Fatal(name, body, err)
		}
	}
	if n := k.Known(); n != 4096 {
		t.Errorf("%d names are kept, want 4096", n)
	}
	before := k.reg.lookups()
	_, _ = k.do(t, "app1")
	_, _ = k.do(t, "app4199")
	if n := k.reg.lookups() - before; n != 1 {
		t.Errorf("%d lookups, want 1: names beyond the bound work, they are just not kept", n)
	}
}

func TestUnknownNamesAreNotKept(t *testing.T) {
	k := newKit(t)
	for i := range 100 {
		_, _ = k.do(t, fmt.Sprint("typo", i))
	}
	if n := k.Known(); n != 0 {
		t.Errorf("%d names that do not exist are kept", n)
	}
}

// Everything at once: calls, failures, recoveries, changes of the list, and the end.
func TestConcurrentUse(t *testing.T) {
	w := newWatched()
	w.set(shop, "a", "b", "c")
	k := newKit(t, withRegistry(w))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for range 300 {
				var out answer
				err := k.Invoke(context.Background(), &call.Request{Target: "shop"}, &out)
				if err == nil && !slices.Contains([]string{"a", "b", "c", "d"}, out.body) {
					t.Errorf("answered by %q", out.body)
				}
				if err != nil && fault.SentOf(err) != fault.SentNever {
					t.Errorf("got %v", err)
				}
			}
		})
	}
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case w.push <- instances("a", "bcd"[i%3:i%3+1]):
			}
			k.peers.set("a", []error{nil, unsent}[i%2])
		}
	})
	time.AfterFunc(200*time.Millisecond, func() { close(stop) })
	wg.Wait()
	var closers sync.WaitGroup
	for range 3 {
		closers.Go(k.Close)
		closers.Go(func() { _ = k.Invoke(context.Background(), &call.Request{Target: "shop"}, &answer{}) })
	}
	closers.Wait()
}
