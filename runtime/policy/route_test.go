package policy_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
	"github.com/mecha-project/mecha/runtime/policy/outlier"
)

// ways makes routes of "name" or "name weight" or "name weight priority".
func ways(texts ...string) (out []policy.Destination) {
	for _, s := range texts {
		d, w := policy.Destination{}, 1
		_, _ = fmt.Sscan(s, &d.To, &w, &d.Priority) // what is missing keeps its default
		d.Weight = &w
		out = append(out, d)
	}
	return out
}

// goes tells where a call goes, and its error.
func goes(t testing.TB, tg *call.Target, d call.Desc, result error) (string, error) {
	t.Helper()
	c, err := call.Begin(t.Context(), tg, d)
	if err != nil {
		t.Fatal(err)
	}
	to := "nowhere"
	for c.Next() {
		to = c.To()
		c.Done(result)
	}
	return to, c.End(c.Err)
}

func key(i int) call.Desc {
	k := fmt.Sprintf("app||user-%d", i)
	return call.Desc{Op: "get", Safety: call.Safe, Resource: k, Key: k}
}

func TestKeysSpreadByWeight(t *testing.T) {
	const n = 20000
	for _, routes := range [][]string{{"a", "b"}, {"a 95", "b 5"}, {"a 1", "b 2", "c 7"}, {"a 1", "b 0", "c 1"}, {"a 1000", "b 1"}} {
		t.Run(strings.Join(routes, ", "), func(t *testing.T) {
			list := ways(routes...)
			tg := under(t, call.State, policy.Spec{Route: list})
			counts, total := map[string]int{}, 0.0
			for i := range n {
				to, err := goes(t, tg, key(i), nil)
				if err != nil {
					t.Fatal(err)
				}
				if again, _ := goes(t, tg, key(i), nil); again != to {
					t.Fatalf("key %d goes to %s and to %s", i, to, again)
				}
				if place := tg.Chain().Place; place != nil && place(key(i).Key) != to {
					t.Fatalf("key %d goes to %s, is said to be at %s", i, to, place(key(i).Key))
				}
				counts[to]++
			}
			for _, d := range list {
				total += float64(*d.Weight)
			}
			for _, d := range list {
				p := float64(*d.Weight) / total
				if got := float64(counts[d.To]); math.Abs(got-p*n) > 3*math.Sqrt(n*p*(1-p)) {
					t.Errorf("%s has %v of %d keys, want %.1f %%", d.To, got, n, 100*p)
				}
			}
		})
	}
}

func TestMovingWeightsMovesKeysTowardsTheGrownSideOnly(t *testing.T) {
	steps := [][]string{{"a 100", "b 0"}, {"a 95", "b 5"}, {"a 50", "b 50"}, {"a 20", "b 80"}, {"a 0", "b 100"}}
	at, moved := map[int]string{}, 0
	for step, routes := range steps {
		tg := under(t, call.State, policy.Spec{Route: ways(routes...)})
		for i := range 2000 {
			to, _ := goes(t, tg, key(i), nil)
			if step > 0 && to != at[i] {
				if moved++; to != "b" {
					t.Fatalf("%v: key %d moves from %s to %s", routes, i, at[i], to)
				}
			}
			at[i] = to
		}
	}
	if moved != 2000 {
		t.Errorf("%d moves, want each key to move once", moved)
	}
}

// The placement is the same in every sidecar and version: these were computed once.
func TestPlacementIsForEver(t *testing.T) {
	tg := under(t, call.State, policy.Spec{Route: ways("blue 70", "green 30")})
	var got strings.Builder
	for i := range 32 {
		to, _ := goes(t, tg, key(i), nil)
		got.WriteByte(to[0])
	}
	if want := placed; got.String() != want {
		t.Errorf("got %s, want %s: keys would be missing after an update", got.String(), want)
	}
}

const placed = "bbbbbbbbbgbggbbggbbbgbbbbbgbgbgg"

func TestServicesGoAtRandom(t *testing.T) {
	tg := under(t, call.Service, policy.Spec{Route: ways("a 3", "b 1")})
	n := 0
	for range 8000 {
		if to, _ := goes(t, tg, call.Desc{Op: "GET", Key: "k"}, nil); to == "a" {
			n++
		}
	}
	if !likely(n, 8000, 0.75) {
		t.Errorf("%d of 8000 went to a, want three quarters", n)
	}
	if tg.Chain().Place != nil {
		t.Error("random routes have no place for a key")
	}
}

func TestSplitBy(t *testing.T) {
	caller := func(s string) call.Desc { return call.Desc{Op: "GET", Caller: call.Caller{App: s}} }
	header := func(s string) call.Desc { return call.Desc{Op: "GET", Attrs: call.Fields{{Name: "X-User", Value: s}}} }
	for by, d := range map[string]func(string) call.Desc{"caller": caller, "header:x-user": header} {
		t.Run(by, func(t *testing.T) {
			tg := under(t, call.Service, policy.Spec{Route: ways("a", "b"), Split: &policy.Split{By: by}})
			seen := map[string]bool{}
			for i := range 50 {
				first, _ := goes(t, tg, d(fmt.Sprint("u", i)), nil)
				second, _ := goes(t, tg, d(fmt.Sprint("u", i)), nil)
				if first != second {
					t.Errorf("u%d goes to %s and %s", i, first, second)
				}
				seen[first] = true
			}
			if len(seen) != 2 {
				t.Errorf("all go to %v", seen)
			}
		})
	}
	t.Run("a split for all kinds leaves data by key", func(t *testing.T) {
		tg := under(t, call.State, policy.Spec{Route: ways("a", "b"), Split: &policy.Split{By: "random"}})
		for i := range 50 {
			first, _ := goes(t, tg, key(i), nil)
			for range 5 {
				if again, _ := goes(t, tg, key(i), nil); again != first {
					t.Fatal("one key in two places")
				}
			}
		}
	})
}

func TestReadOnlyRefusesWrites(t *testing.T) {
	tg := under(t, call.State, policy.Spec{Route: ways("a", "b"), Split: &policy.Split{By: "random", ReadOnly: true}})
	seen := map[string]bool{}
	for range 100 {
		to, err := goes(t, tg, key(1), nil)
		if err != nil {
			t.Fatal(err)
		}
		seen[to] = true
	}
	if len(seen) != 2 {
		t.Errorf("reads go to %v only", seen)
	}
	for _, s := range []call.Safety{call.Unsafe, call.Conditional, call.Idempotent} {
		if to, err := goes(t, tg, call.Desc{Op: "set", Key: "k", Safety: s}, nil); to != "nowhere" || fault.Of(err) != fault.Denied || fault.RuleOf(err) != "p" {
			t.Errorf("safety %d: went to %s, %v", s, to, err)
		}
	}
}

func TestSubscriptionsAreNotRouted(t *testing.T) {
	tg := under(t, call.Publish, policy.Spec{Route: ways("a", "b")})
	if to, err := goes(t, tg, call.Desc{Op: "subscribe", Streamed: true}, nil); to != "" || err != nil {
		t.Errorf("a subscription goes to %q (%v), want the broker it names", to, err)
	}
}

func TestFailover(t *testing.T) {
	write := call.Desc{Op: "set", Key: "k", Safety: call.Idempotent}
	read := call.Desc{Op: "get", Key: "k", Safety: call.Safe}
	tests := []struct {
		name     string
		routes   []string
		failover *bool
		d        call.Desc
		up, down string // where the call goes; down after the breaker of the first has opened
	}{
		{"reads", []string{"a 1 0", "b 1 1"}, nil, read, "a", "b"},
		{"writes are refused", []string{"a 1 0", "b 1 1"}, nil, write, "a", "nowhere"},
		{"even if said so", []string{"a 1 0", "b 1 1"}, ptr(false), write, "a", "nowhere"},
		{"unless allowed", []string{"a 1 0", "b 1 1"}, ptr(true), write, "a", "b"},
		{"priorities need not begin at nought", []string{"a 1 3", "b 1 7"}, nil, write, "a", "nowhere"},
		{"nor be without gaps", []string{"a 1 3", "b 1 7"}, ptr(true), write, "a", "b"},
		{"a priority without weight is not there", []string{"gone 0 0", "a 1 1"}, nil, write, "a", "nowhere"},
		{"without another way the breaker says no", []string{"a"}, nil, read, "a", "nowhere"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tg := under(t, call.State, policy.Spec{Route: ways(tt.routes...), WriteFailover: tt.failover, Breaker: &policy.Breaker{ConsecutiveFailures: 1, Open: time.Minute}})
				for turn := range 2 {
					if to, err := goes(t, tg, tt.d, nil); to != tt.up || err != nil {
						t.Fatalf("turn %d: goes to %s, %v; want %s", turn, to, err, tt.up)
					}
					_, _ = goes(t, tg, tt.d, errNever)
					if to, err := goes(t, tg, tt.d, nil); to != tt.down || (err != nil) != (tt.down == "nowhere") {
						t.Errorf("turn %d: goes to %s, %v; want %s", turn, to, err, tt.down)
					} else if err != nil && (fault.RuleOf(err) != "p" || fault.SentOf(err) != fault.SentNever) {
						t.Errorf("refused by %q, sent %v", fault.RuleOf(err), fault.SentOf(err))
					}
					time.Sleep(time.Minute + 1)
				}
			})
		})
	}
}

// An ejected component is down for routes as one with an open breaker is.
func TestOutliersAreRoutedAround(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := engine(t, policy.Options{}, pol("p", policy.Spec{Route: ways("a 1 0", "b 1 1"), Outlier: &outlier.Config{Consecutive5xx: 3, BaseEjection: time.Minute, MaxEjectionPercent: 100}}))
		defer e.Close()
		tg := governed(e, call.State, "orders")
		for range 3 {
			if to, _ := goes(t, tg, key(1), errOf(fault.Internal, fault.SentMaybe)); to != "a" {
				t.Fatalf("goes to %s", to)
			}
		}
		if to, err := goes(t, tg, key(1), nil); to != "b" || err != nil {
			t.Errorf("goes to %s, %v; want around the one ejected", to, err)
		}
	})
}

// A write that may have reached one place is repeated there and nowhere else.
func TestAWriteStaysWhereItMayBe(t *testing.T) {
	for name, sent := range map[string]fault.Sent{"maybe": fault.SentMaybe, "unknown": fault.SentUnknown, "never": fault.SentNever} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tg := under(t, call.State, policy.Spec{Route: ways("a 1 0", "b 1 1"), WriteFailover: ptr(true), Breaker: &policy.Breaker{ConsecutiveFailures: 1}, Retry: &policy.Retry{AtLeastOnce: true}})
				var went []string
				c, err := call.Begin(t.Context(), tg, call.Desc{Op: "set", Key: "k", Safety: call.Idempotent})
				if err != nil {
					t.Fatal(err)
				}
				for c.Next() {
					went = append(went, c.To())
					c.Done(errOf(fault.Unavailable, sent))
				}
				err = c.End(c.Err)
				want := "[a]"
				if sent == fault.SentNever {
					want = "[a b]"
				}
				if fmt.Sprint(went) != want || fault.SentOf(err) == fault.SentNever && sent != fault.SentNever {
					t.Errorf("went to %v, want %v (%v)", went, want, err)
				}
			})
		})
	}
}

func TestEachDestinationHasItsOwnCapsAndBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tg := under(t, call.State, policy.Spec{Route: ways("a", "b"), Limits: &policy.Limits{MaxRequests: 1, MaxPending: -1}, Breaker: &policy.Breaker{ConsecutiveFailures: 1}})
		place := tg.Chain().Place
		at := map[string]call.Desc{}
		for i := range 100 {
			at[place(key(i).Key)] = key(i)
		}
		err := do(t.Context(), tg, at["a"], func(context.Context) error {
			if to, err := goes(t, tg, at["b"], nil); to != "b" || err != nil {
				t.Errorf("b waits for a's place: %s, %v", to, err)
			}
			if _, err := goes(t, tg, at["a"], nil); fault.Of(err) != fault.Exhausted {
				t.Errorf("a has two places: %v", err)
			}
			return errMaybe
		})
		if !errors.Is(err, errMaybe) {
			t.Fatal(err)
		}
		if _, err := goes(t, tg, at["a"], nil); err == nil {
			t.Error("a's breaker is closed")
		}
		if _, err := goes(t, tg, at["b"], nil); err != nil {
			t.Errorf("b pays for a: %v", err)
		}
	})
}
