package lru_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/policy/limit/lru"
)

// model is the same map, slow and plain: keys from used last to used first.
type model struct {
	bound int
	keys  []string
}

func (m *model) use(key string) (known bool) {
	at := slices.Index(m.keys, key)
	if at >= 0 {
		m.keys = slices.Delete(m.keys, at, at+1)
	}
	m.keys = slices.Insert(m.keys, 0, key)
	m.keys = m.keys[:min(len(m.keys), m.bound)]
	return at >= 0
}

// TestSmallIsExact compares maps of one shard with the model, key by key.
func TestSmallIsExact(t *testing.T) {
	for _, bound := range []int{-1, 1, 2, 3, 17} {
		t.Run(fmt.Sprint(bound), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, uint64(bound)))
			made := 0
			m := lru.New(bound, func(_ string, v *int) { made++; *v = made })
			want := &model{bound: max(bound, 1)}
			for step := range 5000 {
				key := fmt.Sprint(rnd.IntN(2*want.bound + 1))
				before := made
				v := m.For(key)
				if known := want.use(key); known != (made == before) {
					t.Fatalf("step %d: key %s known = %t, want %t", step, key, made == before, known)
				}
				if m.For(key) != v {
					t.Fatalf("step %d: key %s has two values", step, key)
				}
			}
			var got []string
			for key := range m.All() {
				got = append(got, key)
			}
			if diff := cmp.Diff(want.keys, got); diff != "" {
				t.Errorf("keys, -want +got:\n%s", diff)
			}
			if m.Len() != len(got) {
				t.Errorf("Len() = %d, want %d", m.Len(), len(got))
			}
		})
	}
}

// TestLargeKeepsAllThatFit makes sure that the bound is of the whole map: no key is forgotten
// because its shard is fuller than others.
func TestLargeKeepsAllThatFit(t *testing.T) {
	const bound = 1000
	m := lru.New[int](bound, nil)
	for i := range bound {
		*m.For(fmt.Sprint(i)) = i + 1
	}
	for i := range bound {
		if got := *m.For(fmt.Sprint(i)); got != i+1 {
			t.Fatalf("key %d has %d, want %d", i, got, i+1)
		}
	}
	if m.Len() != bound {
		t.Fatalf("Len() = %d, want %d", m.Len(), bound)
	}
}

// TestLargeForgetsTheOld keeps using some keys while many others pass through.
func TestLargeForgetsTheOld(t *testing.T) {
	const bound, used = 1024, 64
	made := map[string]int{}
	m := lru.New(bound, func(key string, _ *int) { made[key]++ })
	for i := range 20 * bound {
		m.For(fmt.Sprint("once-", i))
		m.For(fmt.Sprint("often-", i%used))
		if m.Len() > bound {
			t.Fatalf("after %d keys Len() = %d, over the bound", i, m.Len())
		}
	}
	for i := range used {
		if n := made[fmt.Sprint("often-", i)]; n != 1 {
			t.Errorf("a key in use was forgotten: made %d times", n)
		}
	}
	if m.For("once-0"); made["once-0"] != 2 {
		t.Error("the oldest key was not forgotten")
	}
}

func TestAllStops(t *testing.T) {
	m := lru.New[int](1000, nil)
	for i := range 500 {
		m.For(fmt.Sprint(i))
	}
	n := 0
	for key := range m.All() {
		m.For(key) // no lock is held
		if n++; n == 7 {
			break
		}
	}
	if n != 7 {
		t.Errorf("went through %d keys, want 7", n)
	}
}

// TestPanic makes sure that a value that cannot be made leaves no lock behind.
func TestPanic(t *testing.T) {
	m := lru.New(2, func(key string, _ *int) {
		if key == "bad" {
			panic(key)
		}
	})
	func() {
		defer func() { _ = recover() }()
		m.For("bad")
	}()
	m.For("good")
	if m.Len() != 1 {
		t.Errorf("Len() = %d, want 1", m.Len())
	}
}

func TestConcurrent(t *testing.T) {
	for _, bound := range []int{8, 512} {
		m := lru.New[int](bound, nil)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(2, uint64(g)))
				for range 5000 {
					m.For(fmt.Sprint(rnd.IntN(3 * bound)))
				}
			})
		}
		wg.Wait()
		n := 0
		for range m.All() {
			n++
		}
		if n != m.Len() || n > bound {
			t.Errorf("bound %d: %d keys, Len() = %d", bound, n, m.Len())
		}
	}
}

func TestNoAllocation(t *testing.T) {
	m := lru.New[int](1000, nil)
	m.For("known")
	if n := testing.AllocsPerRun(100, func() { m.For("known") }); n != 0 {
		t.Errorf("a known key allocates %v times", n)
	}
}

func BenchmarkFor(b *testing.B) {
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprint("GET /orders/", i)
	}
	m := lru.New[int](10_000, nil)
	b.Run("one key", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.For(keys[0])
		}
	})
	b.Run("1000 keys", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			m.For(keys[i%len(keys)])
		}
	})
	b.Run("1000 keys, parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				m.For(keys[i%len(keys)])
			}
		})
	})
}
