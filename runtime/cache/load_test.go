package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/cache"
)

func TestGetOrLoad(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		e, lease := a.load("k", cache.Options{TTL: 10 * time.Second, StaleTTL: time.Minute, Tags: []string{"x"}})
		if e.Status != cache.Miss || lease == nil {
			t.Fatalf("the first caller got %s, lease %v", show(e), lease)
		}
		// Callers of both sidecars wait for it.
		got := make(chan string, 20)
		for i := range 20 {
			c := []client{a, b}[i%2]
			go func() {
				e, l := c.load("k", cache.Options{})
				if l != nil {
					t.Error("another lease was given")
				}
				got <- show(e)
			}()
		}
		settled()
		if !a.fill("k", lease, cache.Filling{Value: []byte("v")}) {
			t.Fatal("the value was not kept")
		}
		for range 20 {
			if v := <-got; v != "v" {
				t.Errorf("a caller who waited got %s", v)
			}
		}
		a.want("k", "v")
		b.want("k", "v")
		if a.fill("k", lease, cache.Filling{Value: []byte("again")}) {
			t.Error("a lease was filled twice")
		}
		// Stale: one loads anew, the others are served.
		time.Sleep(11 * time.Second)
		e, lease = b.load("k", cache.Options{TTL: 10 * time.Second, StaleTTL: time.Minute})
		if show(e) != "v (stale)" || lease == nil {
			t.Fatalf("the first who met it stale got %s, lease %v", show(e), lease)
		}
		for _, c := range []client{a, b} {
			if e, l := c.load("k", cache.Options{}); show(e) != "v (stale)" || l != nil {
				t.Errorf("another caller got %s, lease %v", show(e), l)
			}
		}
		// It fails: what is stale goes on being served, and the next caller is asked.
		b.fill("k", lease, cache.Filling{Error: "the database is down"})
		settled()
		e, lease = a.load("k", cache.Options{TTL: 10 * time.Second})
		if show(e) != "v (stale)" || lease == nil {
			t.Fatalf("after a failure: %s, lease %v", show(e), lease)
		}
		if !a.fill("k", lease, cache.Filling{Value: []byte("v2")}) {
			t.Error("the new value was not kept")
		}
		a.want("k", "v2")
		settled()
		b.want("k", "v2")
	})
}

func TestLoadFails(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		_, lease := a.load("k", cache.Options{})
		failed := make(chan error, 1)
		go func() {
			_, _, err := a.s.GetOrLoad(t.Context(), "cache", "", "k", cache.Options{}, 0, 0)
			failed <- err
		}()
		settled()
		a.fill("k", lease, cache.Filling{Error: "no such product"})
		if err := <-failed; fault.ReasonOf(err) != cache.LoadFailed || !strings.Contains(err.Error(), "no such product") {
			t.Errorf("who waited got %v", err)
		}
		// It is known that there is none.
		_, lease = b.load("k", cache.Options{})
		if !b.fill("k", lease, cache.Filling{Absent: true}) {
			t.Fatal("the news were not kept")
		}
		for range 2 {
			a.want("k", "absent")
		}
		if e, l := b.load("k", cache.Options{}); e.Status != cache.Absent || l != nil {
			t.Errorf("known to be absent: %s, lease %v", show(e), l)
		}
		time.Sleep(11 * time.Second)
		if _, l := a.load("k", cache.Options{}); l == nil {
			t.Error("the news of absence are kept for longer than negativeTTL")
		}
	})
}

// What was written, removed or invalidated during a load is not undone by it.
func TestNoStaleSet(t *testing.T) {
	for name, during := range map[string]func(b client){
		"delete":    func(b client) { b.remove("k") },
		"set":       func(b client) { b.set("k", "newer", cache.Options{}) },
		"tag":       func(b client) { b.invalidate(cache.Invalidation{Tags: []string{"x"}}) },
		"namespace": func(b client) { b.invalidate(cache.Invalidation{All: true}) },
		"prefix":    func(b client) { b.invalidate(cache.Invalidation{Prefix: "k"}) },
	} {
		for _, same := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s by %v", name, map[bool]string{true: "the same", false: "another"}[same]), func(t *testing.T) {
				two(t, nil, func(t *testing.T, s *shared, a, b client) {
					if same {
						b = a
					}
					_, lease := a.load("k", cache.Options{Tags: []string{"x"}})
					during(b)
					a.fill("k", lease, cache.Filling{Value: []byte("old")})
					want := "-"
					if name == "set" {
						want = "newer"
					}
					b.want("k", want)
					settled() // before it a may not know of what b did
					a.want("k", want)
					b.want("k", want)
				})
			})
		}
	}
}

// A loader that dies costs its time, and then the next caller is asked.
func TestLeaseEnds(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		begin := time.Now()
		_, lease, err := a.s.GetOrLoad(t.Context(), "cache", "", "k", cache.Options{}, 5*time.Second, 0)
		if err != nil || lease == nil {
			t.Fatal(err)
		}
		for _, c := range []client{a, b} { // the second waits for the first's new lease too
			e, l, err := c.s.GetOrLoad(t.Context(), "cache", "", "k", cache.Options{}, 5*time.Second, 20*time.Second)
			if err != nil || l == nil || e.Status != cache.Miss {
				t.Fatalf("after the lease: %s, %v, %v", show(e), l, err)
			}
		}
		if took := time.Since(begin); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("two leases of 5s ended after %v", took)
		}
		if a.fill("k", lease, cache.Filling{Value: []byte("late")}) {
			t.Error("a lease that had ended was filled")
		}
		a.want("k", "-")
		// Who will not wait is told.
		_, _, err = a.s.GetOrLoad(t.Context(), "cache", "", "k", cache.Options{}, 0, time.Second)
		if fault.Of(err) != fault.Deadline || fault.ReasonOf(err) != cache.Waited {
			t.Errorf("a short wait: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err = b.s.GetOrLoad(ctx, "cache", "", "k", cache.Options{}, 0, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller who leaves: %v", err)
		}
	})
}

// While a lease is held the entry is still read by others.
func TestReadDuringLoad(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		a.set("k", "1", cache.Options{TTL: 10 * time.Second, StaleTTL: time.Minute})
		time.Sleep(11 * time.Second)
		_, lease := a.load("k", cache.Options{})
		if lease == nil {
			t.Fatal("no lease")
		}
		for _, c := range []client{a, b} {
			if e, err := c.s.Get(t.Context(), "cache", "", "k", true); err != nil || show(e) != "1 (stale)" {
				t.Errorf("Get: %s, %v", show(e), err)
			}
			c.want("k", "-")
		}
	})
}

// The nearer the end and the dearer the load, the likelier an early one; one at a time.
func TestEarlyRefresh(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		_, lease := a.load("k", cache.Options{TTL: 100 * time.Second})
		time.Sleep(5 * time.Second) // the load
		a.fill("k", lease, cache.Filling{Value: []byte("v")})
		if st, err := a.s.Stats("cache", "", true); err != nil || st.Loads != 1 || st.LoadTime != 5*time.Second {
			t.Errorf("a load of 5s: %+v, %v", st, err)
		}
		for range 200 {
			if _, l := a.load("k", cache.Options{}); l != nil {
				t.Fatal("a load at once")
			}
		}
		time.Sleep(99 * time.Second)
		leases := 0
		for i := range 200 {
			e, l := []client{a, b}[i%2].load("k", cache.Options{})
			if show(e) != "v" {
				t.Fatalf("the entry is %s", show(e))
			}
			if l != nil {
				leases++
			}
		}
		if leases != 1 {
			t.Errorf("%d early leases, want 1", leases)
		}
	})
}

// Whatever writers, loaders and invalidations do at once, in the end the cache says what the
// database says: no load brings an old value back.
func TestEndsTrue(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			s := newShared(t, nil)
			sidecars := []*cache.Service{sidecar(t, s, nil), sidecar(t, s, nil), sidecar(t, s, nil)}
			var mu sync.Mutex
			database := map[string]int{}
			read := func(key string) int { mu.Lock(); defer mu.Unlock(); return database[key] }
			var wg sync.WaitGroup
			for w := range 9 {
				svc := sidecars[w%3]
				own := rand.New(rand.NewPCG(seed, rnd.Uint64()))
				wg.Go(func() {
					for range 40 {
						key := fmt.Sprint("k", own.IntN(2))
						o := cache.Options{TTL: time.Duration(1+own.IntN(20)) * time.Millisecond * 10, StaleTTL: 50 * time.Millisecond, Tags: []string{"t" + key}}
						switch own.IntN(4) {
						case 0: // write: first the database, then the cache
							mu.Lock()
							database[key]++
							mu.Unlock()
							time.Sleep(time.Duration(own.IntN(3)) * time.Millisecond)
							var err error
							switch own.IntN(3) {
							case 0:
								err = svc.Delete(t.Context(), "cache", "", key)
							case 1:
								err = svc.Invalidate(t.Context(), "cache", "", cache.Invalidation{Tags: []string{"t" + key}})
							default:
								err = svc.Invalidate(t.Context(), "cache", "", cache.Invalidation{All: true})
							}
							if err != nil {
								t.Error(err)
							}
						default:
							_, l, err := svc.GetOrLoad(t.Context(), "cache", "", key, o, 100*time.Millisecond, time.Second)
							if err != nil {
								t.Error(err)
							}
							if l == nil {
								continue
							}
							v := read(key)
							time.Sleep(time.Duration(own.IntN(10)) * time.Millisecond)
							if own.IntN(10) == 0 {
								continue // the loader dies
							}
							if _, err := svc.Fill(t.Context(), "cache", "", key, l.ID, cache.Filling{Value: fmt.Append(nil, v)}); err != nil {
								t.Error(err)
							}
						}
					}
				})
			}
			wg.Wait()
			settled()
			for i, svc := range sidecars {
				for key := range database {
					c := client{t, svc, ""}
					if e := c.get(key); e.Status == cache.Hit && string(e.Value) != fmt.Sprint(database[key]) {
						t.Errorf("seed %d: sidecar %d has %s = %s, the database %d", seed, i, key, e.Value, database[key])
					}
				}
			}
		})
	}
}
