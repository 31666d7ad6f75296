package cache_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/cache"
)

func TestTagsAndNamespaces(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		a.set("p1", "1", cache.Options{Tags: []string{"shoes", "red"}})
		a.set("p2", "2", cache.Options{Tags: []string{"shoes"}})
		a.set("p3", "3", cache.Options{})
		other := client{t, a.s, "other"}
		other.set("p1", "o", cache.Options{Tags: []string{"shoes"}})
		settled()
		for range 2 { // the second time from memory
			for k, v := range map[string]string{"p1": "1", "p2": "2", "p3": "3"} {
				a.want(k, v)
				b.want(k, v)
			}
		}
		b.invalidate(cache.Invalidation{Tags: []string{"red", "unknown"}})
		b.want("p1", "-")
		settled()
		a.want("p1", "-")
		a.want("p2", "2")
		a.invalidate(cache.Invalidation{Tags: []string{"shoes"}})
		a.want("p2", "-")
		a.want("p3", "3")
		other.want("p1", "o") // tags are each namespace's
		settled()
		b.want("p2", "-")
		a.set("p2", "new", cache.Options{Tags: []string{"shoes"}})
		settled()
		b.want("p2", "new")
		b.invalidate(cache.Invalidation{Prefix: "p3"})
		settled()
		a.want("p3", "-")
		a.want("p2", "new")
		b.invalidate(cache.Invalidation{All: true})
		b.want("p2", "-")
		settled()
		a.want("p2", "-")
		other.want("p1", "o")
	})
}

// A store that forgets the numbers of tags forgets their entries, and brings none back.
func TestLostTag(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		a.set("k", "old", cache.Options{Tags: []string{"x"}})
		settled()
		if err := s.Cache.Drop(t.Context(), []string{"cache||shop||||#||x"}); err != nil {
			t.Fatal(err)
		}
		settled()
		a.want("k", "-")
		a.set("other", "1", cache.Options{Tags: []string{"x"}})
		settled()
		a.want("k", "-")
		b.want("k", "-")
	})
}

func TestCompareAndSet(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		cas := func(c client, value, over string) (string, bool) {
			v, ok, err := c.s.CompareAndSet(t.Context(), "cache", "", "k", []byte(value), over, cache.Options{})
			if err != nil {
				t.Fatal(err)
			}
			return v, ok
		}
		v, ok := cas(a, "1", "")
		if !ok || v == "" {
			t.Fatal("not made")
		}
		if _, ok := cas(b, "2", ""); ok {
			t.Error("made twice")
		}
		if e := a.want("k", "1"); e.Version != v {
			t.Errorf("version %q, want %q", e.Version, v)
		}
		if _, ok := cas(b, "2", "nonsense"); ok {
			t.Error("swapped over a version there is not")
		}
		v2, ok := cas(b, "2", v)
		if !ok || v2 == v {
			t.Error("not swapped")
		}
		if _, ok := cas(a, "3", v); ok {
			t.Error("swapped over an old version")
		}
		settled()
		a.want("k", "2")
		a.invalidate(cache.Invalidation{All: true})
		if _, ok := cas(a, "4", v2); ok {
			t.Error("swapped over what was invalidated")
		}
		if _, ok := cas(a, "4", ""); !ok {
			t.Error("not made over what was invalidated")
		}
		a.want("k", "4")
	})
}

func TestIncrement(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		add := func(c client, delta, initial int64) (int64, error) {
			return c.s.Increment(t.Context(), "cache", "", "n", delta, initial, time.Minute)
		}
		if n, err := add(a, 5, 100); err != nil || n != 105 {
			t.Fatalf("Increment: %d, %v", n, err)
		}
		a.want("n", "105")
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				if _, err := add([]client{a, b}[i%2], 1, 0); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		settled()
		a.want("n", "145")
		if n, err := add(b, -146, 0); err != nil || n != -1 {
			t.Errorf("Increment by less: %d, %v", n, err)
		}
		a.set("n", "words", cache.Options{})
		if _, err := add(a, 1, 0); fault.ReasonOf(err) != cache.NotNumber {
			t.Errorf("Increment of words: %v", err)
		}
		a.set("n", "9223372036854775807", cache.Options{})
		if _, err := add(b, 1, 0); fault.ReasonOf(err) != cache.NotNumber {
			t.Errorf("Increment past 64 bits: %v", err)
		}
		// A number keeps the time it was made with.
		a.remove("n")
		_, _ = add(a, 1, 0)
		time.Sleep(40 * time.Second)
		_, _ = add(a, 1, 0)
		time.Sleep(21 * time.Second)
		if n, err := add(a, 1, 0); err != nil || n != 1 {
			t.Errorf("after its time: %d, %v", n, err)
		}
	})
}

func TestFence(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		write := func(c client, value string, epoch uint64) error {
			_, err := c.s.Set(t.Context(), "cache", "", "k", []byte(value), cache.Options{}, &cache.Epoch{Topic: "orders", Partition: 3, Number: epoch})
			return err
		}
		for i, tt := range []struct {
			c     client
			epoch uint64
			fine  bool
		}{{a, 1, true}, {a, 1, true}, {b, 3, true}, {a, 2, false}, {a, 1, false}, {b, 3, true}} {
			err := write(tt.c, fmt.Sprint(i), tt.epoch)
			if (err == nil) != tt.fine || (err != nil && fault.ReasonOf(err) != fault.Fenced) {
				t.Errorf("write %d under epoch %d: %v", i, tt.epoch, err)
			}
		}
		settled()
		a.want("k", "5")
		if err := write(a, "x", 0); fault.Of(err) != fault.Invalid {
			t.Errorf("epoch 0: %v", err)
		}
	})
}

func TestMulti(t *testing.T) {
	two(t, nil, func(t *testing.T, s *shared, a, b client) {
		vs, err := a.s.SetMulti(t.Context(), "cache", "", []cache.Item{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte("2")}}, cache.Options{Tags: []string{"x"}})
		if err != nil || len(vs) != 2 || vs[0] == "" {
			t.Fatalf("SetMulti: %v, %v", vs, err)
		}
		settled()
		b.want("a", "1")
		es, err := b.s.GetMulti(t.Context(), "cache", "", []string{"b", "none", "a"}, false)
		if err != nil || len(es) != 3 || show(es[0]) != "2" || show(es[1]) != "-" || show(es[2]) != "1" || es[2].Found != cache.Near || es[0].Version != vs[1] {
			t.Errorf("GetMulti: %+v, %v", es, err)
		}
		if es, err := b.s.GetMulti(t.Context(), "cache", "", nil, false); err != nil || len(es) != 0 {
			t.Errorf("GetMulti of nothing: %v, %v", es, err)
		}
	})
}

func TestBadInput(t *testing.T) {
	s := client{t, sidecar(t, newShared(t, nil), nil), ""}
	long := strings.Repeat("x", 2000)
	half, two := 0.5, 2.0
	for name, tt := range map[string]struct {
		cache, ns, key string
		o              cache.Options
		code           fault.Code
		reason         fault.Reason
	}{
		"no such cache":     {cache: "other", key: "k", code: fault.NotFound, reason: fault.NoSuchComponent},
		"no key":            {code: fault.Invalid, reason: fault.EmptyName},
		"separator":         {key: "a||b", code: fault.Invalid, reason: fault.IllegalKey},
		"long key":          {key: long, code: fault.Invalid, reason: fault.IllegalKey},
		"long namespace":    {ns: long, key: "k", code: fault.Invalid, reason: fault.IllegalKey},
		"separator in ns":   {ns: "a||b", key: "k", code: fault.Invalid, reason: fault.IllegalKey},
		"negative ttl":      {key: "k", o: cache.Options{TTL: -1}, code: fault.Invalid, reason: fault.BadExpiry},
		"endless ttl":       {key: "k", o: cache.Options{TTL: 1<<63 - 1}, code: fault.Invalid, reason: fault.BadExpiry},
		"negative stale":    {key: "k", o: cache.Options{StaleTTL: -1}, code: fault.Invalid, reason: fault.BadExpiry},
		"jitter":            {key: "k", o: cache.Options{Jitter: &two}, code: fault.Invalid, reason: cache.BadOption},
		"many tags":         {key: "k", o: cache.Options{Tags: make([]string, 17)}, code: fault.Invalid, reason: cache.BadOption},
		"an empty tag":      {key: "k", o: cache.Options{Tags: []string{""}}, code: fault.Invalid, reason: fault.IllegalKey},
		"separator in tag":  {key: "k", o: cache.Options{Tags: []string{"a||b"}}, code: fault.Invalid, reason: fault.IllegalKey},
		"all that is right": {key: "k", o: cache.Options{Jitter: &half, TTL: time.Second, Tags: []string{"ok"}}},
	} {
		t.Run(name, func(t *testing.T) {
			store := "cache"
			if tt.cache != "" {
				store = tt.cache
			}
			_, err := s.s.Set(t.Context(), store, tt.ns, tt.key, []byte("v"), tt.o, nil)
			if fault.Of(err) != tt.code || fault.ReasonOf(err) != tt.reason {
				t.Errorf("Set: %v (%v, %v), want %v, %v", err, fault.Of(err), fault.ReasonOf(err), tt.code, tt.reason)
			}
		})
	}
	if err := s.s.Invalidate(t.Context(), "cache", "", cache.Invalidation{}); fault.Of(err) != fault.Invalid {
		t.Errorf("Invalidate of nothing: %v", err)
	}
	if _, err := s.s.Fill(t.Context(), "cache", "", "k", "", cache.Filling{}); fault.ReasonOf(err) != cache.NoLease {
		t.Errorf("Fill without a lease: %v", err)
	}
	if ok, err := s.s.Fill(t.Context(), "cache", "", "k", "nonsense", cache.Filling{}); err != nil || ok {
		t.Errorf("Fill of nonsense: %v, %v", ok, err)
	}
}
