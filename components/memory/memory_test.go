package memory_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openState(t testing.TB, c *memory.StateConfig) block.State {
	t.Helper()
	s, err := memory.NewState(block.Env{}, c)
	if err != nil {
		t.Fatalf("NewState: %v", err)
	}
	return s
}

func TestState(t *testing.T) {
	blocktest.State(t, func(t *testing.T) block.State { return openState(t, memory.DefaultStateConfig()) })
}

func TestCache(t *testing.T) {
	blocktest.Cache(t, func(t *testing.T) func() block.Cache {
		c, err := memory.NewCache(block.Env{}, memory.DefaultCacheConfig())
		if err != nil {
			t.Fatal(err)
		}
		return func() block.Cache { return c }
	})
}

func TestLock(t *testing.T) {
	blocktest.Lock(t, func(*testing.T) func() block.Lock { return memory.NewLocks().Lock })
}

func TestBackendParts(t *testing.T) {
	set, err := block.NewSet(memory.Backend())
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []string{"state.in-memory", "pubsub.in-memory", "lock.in-memory"} {
		part, ok := set.Find(typ, "v1")
		if !ok {
			t.Fatalf("no part for %s", typ)
		}
		cfg := part.Config()
		if f := conf.Decode(nil, cfg); f.Err() != nil {
			t.Errorf("%s: the defaults are refused: %v", typ, f.Err())
		}
		c, err := part.Open(block.Env{}, cfg)
		if err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
		if err := c.Ping(t.Context()); err != nil {
			t.Errorf("%s: Ping: %v", typ, err)
		}
		_ = c.Close(t.Context())
	}
}

func TestConfigIsValidated(t *testing.T) {
	for name, items := range map[string][]conf.Item{
		"messages": conf.Items("maxMessages", "0"), "bytes": conf.Items("maxBytes", "0"), "history": conf.Items("history", "-1"),
		"no partitions": conf.Items("partitions", "0"), "partitions": conf.Items("partitions", "1025"),
		"session": conf.Items("sessionTTL", "999ms"),
	} {
		if conf.Decode(items, memory.DefaultPubSubConfig()).Err() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if conf.Decode(conf.Items("maxBytes", "-1"), memory.DefaultStateConfig()).Err() == nil {
		t.Errorf("negative maxBytes of a store: accepted")
	}
}

// Expired items leave memory by themselves, and a store where nothing can expire has no timer
// at all: a synctest bubble with a live timer would let time jump to it.
func TestExpiryFreesMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openState(t, &memory.StateConfig{MaxBytes: 4 << 10})
		ctx := context.Background()
		set := func(key string, ttl time.Duration) error {
			return s.Set(ctx, block.StateWrite{Key: key, Value: make([]byte, 1000), TTL: ttl})
		}
		for i := range 3 {
			if err := set(fmt.Sprint(i), time.Duration(i+1)*time.Minute); err != nil {
				t.Fatalf("Set: %v", err)
			}
		}
		if err := set("more", 0); fault.Of(err) != fault.Exhausted {
			t.Fatalf("Set in a full store: %v, want exhausted", err)
		}
		if item, _ := s.Get(ctx, "more", block.StateRead{}); item.Exists {
			t.Errorf("the refused write is stored")
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if err := set("more", 0); err != nil {
			t.Errorf("Set after an expiry: %v", err)
		}
		if err := s.Delete(ctx, block.StateDelete{Key: "1"}); err != nil {
			t.Errorf("Delete in a full store: %v", err)
		}
		_ = s.Close(ctx)
	})
}

// Locks that ended leave memory although nobody asks for their names again.
func TestEndedLocksAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		locks := memory.NewLocks()
		l := locks.Lock()
		for i := range 10_000 {
			if ok, err := l.TryLock(t.Context(), fmt.Sprint(i), "o", time.Second); err != nil || !ok {
				t.Fatalf("TryLock %d: %v, %v", i, ok, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := memory.Held(locks); n > 200 {
			t.Errorf("%d locks are kept, of which 10 have not ended", n)
		}
	})
}

func TestTransactionBeyondTheBoundChangesNothing(t *testing.T) {
	s := openState(t, &memory.StateConfig{MaxBytes: 4 << 10})
	tx, _ := s.(block.StateTx)
	ctx := t.Context()
	op := func(key string, n int) block.StateOp {
		return block.StateOp{StateWrite: block.StateWrite{Key: key, Value: make([]byte, n), TTL: time.Hour}}
	}
	if err := tx.Transact(ctx, []block.StateOp{op("a", 100)}); err != nil {
		t.Fatal(err)
	}
	before, _ := s.Get(ctx, "a", block.StateRead{})
	err := tx.Transact(ctx, []block.StateOp{op("a", 10), op("b", 10), {Delete: true, StateWrite: block.StateWrite{Key: "a"}}, op("c", 8000)})
	if fault.Of(err) != fault.Exhausted {
		t.Fatalf("Transact: %v, want exhausted", err)
	}
	after, _ := s.Get(ctx, "a", block.StateRead{})
	if after.ETag != before.ETag || !after.Expires.Equal(before.Expires) {
		t.Errorf("a changed from %+v to %+v", before, after)
	}
	if b, _ := s.Get(ctx, "b", block.StateRead{}); b.Exists {
		t.Errorf("b is stored")
	}
}

// The order of keys is that of a sorted list, whatever comes and goes.
func TestKeyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, start := range []int{0, 1, 5000} {
		var keys []string
		for i := range start {
			keys = append(keys, fmt.Sprint(i))
		}
		o := memory.NewKeyOrder(keys)
		model := map[string]bool{}
		for _, k := range keys {
			model[k] = true
		}
		for n := range 60_000 {
			k := fmt.Sprint(random.IntN(6000))
			grow := n/10_000%2 == 0 // it fills up, empties and fills up again
			switch there := model[k]; {
			case !there && (grow || random.IntN(10) == 0):
				o.Add(k)
				model[k] = true
			case there && (!grow || random.IntN(10) == 0):
				o.Remove(k)
				delete(model, k)
			}
			if n%1777 != 0 && n != 59_999 {
				continue
			}
			want := slices.Sorted(maps.Keys(model))
			if got := o.From("", "", false); !slices.Equal(got, want) {
				t.Fatalf("after %d steps from %d keys: %d keys, want %d", n, start, len(got), len(want))
			}
			at, exact := slices.BinarySearch(want, k)
			if got := o.From(k, "", false); !slices.Equal(got, want[at:]) {
				t.Fatalf("from %s on: %d keys, want %d", k, len(got), len(want)-at)
			}
			if exact {
				at++
			}
			if got := o.From("", k, true); !slices.Equal(got, want[at:]) {
				t.Fatalf("behind %s: %d keys, want %d", k, len(got), len(want)-at)
			}
		}
	}
}

// A callee that never comes back for more does not hold ever more memory.
func TestSlowWatchIsGivenUp(t *testing.T) {
	s := openState(t, memory.DefaultStateConfig())
	ctx := t.Context()
	blocked, goOn := make(chan struct{}), make(chan struct{})
	started, done := make(chan struct{}), make(chan error, 1)
	calls := 0
	go func() {
		done <- s.(block.StateWatch).Watch(ctx, "", func() { close(started) }, func([]block.StateItem) {
			if calls++; calls == 1 {
				close(blocked)
				<-goOn
			}
		})
	}()
	<-started
	come := func(key string) {
		t.Helper()
		if err := s.Set(ctx, block.StateWrite{Key: key}); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(ctx, block.StateDelete{Key: key}); err != nil {
			t.Fatal(err)
		}
	}
	come("first")
	<-blocked
	for i := range 70_000 {
		come(fmt.Sprint(i))
	}
	close(goOn)
	if err := <-done; fault.Of(err) != fault.Unavailable {
		t.Errorf("Watch returned %v, want unavailable", err)
	}
	if calls != 1 {
		t.Errorf("changed was called %d times, want not after some changes were lost", calls)
	}
}

// Fences count, and a full store takes no new ones.
func TestFencesAreBounded(t *testing.T) {
	s := openState(t, &memory.StateConfig{MaxBytes: 4 << 10})
	f := s.(block.StateFence)
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		err = f.TransactFenced(t.Context(), fmt.Sprint("fence ", n), 5, nil)
	}
	if fault.Of(err) != fault.Exhausted {
		t.Fatalf("after %d fences: %v, want exhausted", n, err)
	}
	if err := f.TransactFenced(t.Context(), "fence 0", 6, nil); err != nil {
		t.Errorf("a known fence in a full store: %v", err)
	}
	if err := f.TransactFenced(t.Context(), "fence 0", 5, nil); fault.ReasonOf(err) != fault.Fenced {
		t.Errorf("a lower epoch in a full store: %v", err)
	}
}

func BenchmarkStateSet(b *testing.B) {
	s := openState(b, memory.DefaultStateConfig())
	value := make([]byte, 1024)
	b.ReportAllocs()
	for b.Loop() {
		_ = s.Set(b.Context(), block.StateWrite{Key: "k", Value: value})
	}
}

func BenchmarkStateGet(b *testing.B) {
	s := openState(b, memory.DefaultStateConfig())
	_ = s.Set(b.Context(), block.StateWrite{Key: "k", Value: make([]byte, 1024)})
	b.ReportAllocs()
	for b.Loop() {
		_, _ = s.Get(b.Context(), "k", block.StateRead{})
	}
}

// BenchmarkStateScan: a page of 100 out of 100 000 items of 1 KiB, writes with a fence, and what
// the order of keys adds to a key that comes and goes.
func BenchmarkStateScan(b *testing.B) {
	value := make([]byte, 1024)
	ctx := b.Context()
	key := func(i int) string { return fmt.Sprintf("app||%06d", i) }
	open := func() block.State {
		s := openState(b, memory.DefaultStateConfig())
		for i := range 100_000 {
			_ = s.Set(ctx, block.StateWrite{Key: key(i * 7919 % 1_000_000), Value: value})
		}
		return s
	}
	s := open()
	comeAndGo := func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			k := key(i*7919%1_000_000) + "+"
			_ = s.Set(ctx, block.StateWrite{Key: k, Value: value})
			_ = s.Delete(ctx, block.StateDelete{Key: k})
		}
	}
	b.Run("a new key comes and goes", comeAndGo)
	for _, keysOnly := range []bool{false, true} {
		b.Run(fmt.Sprintf("scan 100, keys only %v", keysOnly), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				items, _, err := s.(block.StateScan).Scan(ctx, "app||", block.PageToken("app||", key(500_000)), 100, keysOnly)
				if err != nil || len(items) != 100 {
					b.Fatal(len(items), err)
				}
			}
		})
	}
	b.Run("a new key comes and goes, in order", comeAndGo)
	ops := []block.StateOp{{StateWrite: block.StateWrite{Key: "app||a", Value: value}}}
	b.Run("fenced set", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = s.(block.StateFence).TransactFenced(ctx, "f", 7, ops)
		}
	})
	b.Run("first scan", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			s := open()
			b.StartTimer()
			_, _, _ = s.(block.StateScan).Scan(ctx, "app||", "", 100, true)
		}
	})
}
