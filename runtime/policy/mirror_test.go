package policy_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/policy"
)

// journal is a component that writes down what is done to it.
type journal struct {
	mu    sync.Mutex
	done  []string
	err   error
	pause time.Duration
	panic bool
}

func (j *journal) do(ctx context.Context, what string) error {
	j.mu.Lock()
	pause := j.pause
	j.mu.Unlock()
	if err := after(pause, ctx); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.done = append(j.done, what)
	if j.panic {
		panic(what)
	}
	return j.err
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.done)
}

// pair is a store "orders" under a policy and its copy "next".
type pair struct {
	orders, next journal
	h            *catalog.Handle[*journal]
	rec          recorded
	e            *policy.Engine
}

// mirrored makes a pair; more are policies for the copy or other things, after the mirror's.
func mirrored(t *testing.T, m policy.Mirror, more ...policy.Policy) *pair {
	t.Helper()
	p := &pair{}
	m.To = "next"
	p.e = engine(t, policy.Options{Record: &p.rec}, append([]policy.Policy{{Name: "m", Spec: policy.Spec{Match: []policy.Match{{Dest: policy.Words{"orders"}}}, Mirror: &m}}}, more...)...)
	s := catalog.NewStore[*journal](block.KindState)
	p.h = catalog.NewHandle(catalog.Info{Name: "orders"}, &p.orders, governed(p.e, call.State, "orders"))
	s.Put(p.h)
	s.Put(catalog.NewHandle(catalog.Info{Name: "next"}, &p.next, governed(p.e, call.State, "next")))
	return p
}

func (p *pair) set(ctx context.Context, key, value string) error {
	return p.write(ctx, call.Desc{Op: "set", Key: key, Safety: call.Idempotent}, key+"="+value)
}

func (p *pair) write(ctx context.Context, d call.Desc, what string) error {
	_, err := catalog.Do(ctx, p.h, d, func(ctx context.Context, j *journal) (struct{}, error) { return struct{}{}, j.do(ctx, what) },
		func() func(context.Context, *journal) error {
			return func(ctx context.Context, j *journal) error { return j.do(ctx, what) }
		})
	return err
}

func TestMirrorKeepsTheOrderOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mirrored(t, policy.Mirror{})
		p.next.pause = time.Second
		start := time.Now()
		want := map[string][]string{}
		for i := range 60 {
			k := fmt.Sprint("k", i%7)
			if err := p.set(t.Context(), k, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
			want[k] = append(want[k], fmt.Sprintf("%s=%d", k, i))
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("the calls took %v: they wait for the copies", took)
		}
		time.Sleep(2 * time.Minute)
		got := map[string][]string{}
		for _, w := range p.next.all() {
			got[w[:2]] = append(got[w[:2]], w)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("copied %v\nwant %v", got, want)
		}
		if n := p.rec.count("sent"); n != 60 {
			t.Errorf("%d counted as sent", n)
		}
	})
}

func TestMirrorDropsWhenFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mirrored(t, policy.Mirror{MaxPending: 3})
		p.next.pause = time.Second
		for i := range 10 {
			if err := p.set(t.Context(), "k", fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the first is under way, and counts
		}
		time.Sleep(time.Minute)
		if got := fmt.Sprint(p.next.all()); got != "[k=0 k=1 k=2]" || p.rec.count("dropped") != 7 || p.rec.count("sent") != 3 {
			t.Errorf("copied %s, counted %v", got, p.rec.all())
		}
		if err := p.set(t.Context(), "k", "later"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := p.next.all(); len(got) != 4 {
			t.Errorf("nothing is copied after a full queue: %v", got)
		}
	})
}

func TestMirrorChoosesKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mirrored(t, policy.Mirror{Percent: ptr(30.0)})
		for range 3 {
			for i := range 1000 {
				_ = p.set(t.Context(), fmt.Sprint("k", i), "v")
				if i%100 == 0 {
					synctest.Wait()
				}
			}
			synctest.Wait()
		}
		times := map[string]int{}
		for _, w := range p.next.all() {
			times[w]++
		}
		for w, n := range times {
			if n != 3 {
				t.Errorf("%s was copied %d times of 3: a key is copied always or never", w, n)
			}
		}
		if n := len(times); n < 260 || n > 340 {
			t.Errorf("%d of 1000 keys are copied, want 30 %%", n)
		}
	})
}

func TestMirrorLeavesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mirrored(t, policy.Mirror{}, policy.Policy{Name: "back", Spec: policy.Spec{Match: []policy.Match{{Dest: policy.Words{"next"}}}, Mirror: &policy.Mirror{To: "orders"}}})
		if err := p.set(t.Context(), "k", "1"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := p.orders.all(); len(got) != 1 || len(p.next.all()) != 1 {
			t.Errorf("a copy was copied: %v, %v", got, p.next.all())
		}
		if to, ok := p.h.Target.Chain().Mirror.Takes(&call.Call{Desc: call.Desc{Op: "set", Shadow: true}}); ok {
			t.Errorf("a copy that came from elsewhere is copied to %s", to)
		}
		p.orders.err = errMaybe
		if err := p.set(t.Context(), "k", "2"); err == nil {
			t.Fatal("no error")
		}
		synctest.Wait()
		if len(p.next.all()) != 1 {
			t.Errorf("a failed write was copied: %v", p.next.all())
		}
		p.orders.err, p.next.err = nil, errMaybe
		if err := p.set(t.Context(), "k", "3"); err != nil {
			t.Errorf("a copy's failure is the call's: %v", err)
		}
		p.next.panic = true
		if err := p.set(t.Context(), "k", "4"); err != nil {
			t.Errorf("so is its panic: %v", err)
		}
		synctest.Wait()
		if n := p.rec.count("failed"); n != 2 {
			t.Errorf("%d failures counted, want 2: %v", n, p.rec.all())
		}
	})
}

func TestACopyThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mirrored(t, policy.Mirror{})
		p.next.pause = time.Hour
		_ = p.set(t.Context(), "k", "1")
		time.Sleep(11 * time.Second)
		p.next.mu.Lock()
		p.next.pause = 0
		p.next.mu.Unlock()
		_ = p.set(t.Context(), "k", "2")
		time.Sleep(time.Second)
		if got := fmt.Sprint(p.next.all()); got != "[k=2]" || p.rec.count("failed") != 1 {
			t.Errorf("copied %s, counted %v", got, p.rec.all())
		}
	})
}

func TestMirrorCompares(t *testing.T) {
	for name, tt := range map[string]struct {
		values [2]string
		want   string
	}{"same": {[2]string{"v", "v"}, "same"}, "different": {[2]string{"v", "w"}, "different"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := mirrored(t, policy.Mirror{Compare: 100})
				reading := &catalog.Reading[*journal, string, string]{
					Fn: func(_ context.Context, j *journal, _ string) (string, error) {
						if j == &p.orders {
							return tt.values[0], nil
						}
						return tt.values[1], nil
					},
					Keep: func(s string) string { return s },
					Same: func(a, b string) bool { return a == b },
				}
				got, err := catalog.Read(t.Context(), p.h, call.Desc{Op: "get", Key: "k", Safety: call.Safe}, "k", reading)
				synctest.Wait()
				if got != "v" || err != nil || p.rec.count(tt.want) != 1 {
					t.Errorf("got %q, %v; counted %v", got, err, p.rec.all())
				}
			})
		})
	}
}

// What waits is dropped, what runs is stopped, and nothing comes after.
func TestClosingStopsCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mirrored(t, policy.Mirror{})
		p.next.pause = time.Hour
		for i := range 100 {
			_ = p.set(t.Context(), fmt.Sprint(i), "v")
		}
		start := time.Now()
		p.e.Close()
		if took := time.Since(start); took != 0 {
			t.Errorf("closing took %v", took)
		}
		if err := p.set(t.Context(), "k", "v"); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if got := p.next.all(); len(got) != 0 {
			t.Errorf("copied %v", got)
		}
	})
}

func TestClosingDuringCopies(t *testing.T) {
	p := mirrored(t, policy.Mirror{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 200 {
				_ = p.set(context.Background(), fmt.Sprint(w, i), "v")
			}
		})
	}
	p.e.Close()
	wg.Wait()
}
