package limit_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/runtime/policy/limit"
)

func TestCapsNoCap(t *testing.T) {
	for _, n := range []int{0, 1 << 31, 1<<32 - 1} {
		c := limit.NewCaps(limit.Config{MaxRequests: n, MaxPending: n, MaxRetries: n})
		for range 5000 {
			if c.Acquire(t.Context()) != limit.Acquired || !c.AcquireRetry() {
				t.Fatalf("refused with a cap of %d", n)
			}
		}
		if c.Inflight() != 5000 || c.Pending() != 0 {
			t.Errorf("Inflight, Pending = %d, %d, want 5000, 0", c.Inflight(), c.Pending())
		}
	}
}

func TestCapsFull(t *testing.T) {
	tests := []struct {
		name   string
		config limit.Config
		want   []limit.Verdict // of calls one after the other, each with a second of patience
	}{
		{"nobody may wait", limit.Config{MaxRequests: 2, MaxPending: -1}, []limit.Verdict{limit.Acquired, limit.Acquired, limit.RefusedFull}},
		{"nobody may call", limit.Config{MaxRequests: -1, MaxPending: -1}, []limit.Verdict{limit.RefusedFull}},
		{"anyone may wait", limit.Config{MaxRequests: 1}, []limit.Verdict{limit.Acquired, limit.Ended, limit.Ended}},
		{"one may wait", limit.Config{MaxRequests: 1, MaxPending: 1}, []limit.Verdict{limit.Acquired, limit.Ended, limit.Ended}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := limit.NewCaps(tt.config)
				for i, want := range tt.want {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					if got := c.Acquire(ctx); got != want {
						t.Errorf("call %d: %v, want %v", i, got, want)
					}
					cancel()
				}
				if c.Pending() != 0 {
					t.Errorf("Pending() = %d, want 0", c.Pending())
				}
			})
		})
	}
}

// TestCapsFreeSlotIgnoresContext: a call whose time is over learns it from the call itself.
func TestCapsFreeSlotIgnoresContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := limit.NewCaps(limit.Config{MaxRequests: 1})
	if got := c.Acquire(ctx); got != limit.Acquired {
		t.Errorf("free: %v, want acquired", got)
	}
	if got := c.Acquire(ctx); got != limit.Ended {
		t.Errorf("taken: %v, want ended", got)
	}
}

// line is callers waiting in a row; it notes who got a slot.
type line struct {
	caps *limit.Caps
	mu   sync.Mutex
	got  []string
}

// join starts a caller and returns when it waits, has its slot or was refused.
func (l *line) join(ctx context.Context, name string) {
	go func() {
		v := l.caps.Acquire(ctx)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.got = append(l.got, fmt.Sprint(name, " ", v))
	}()
	synctest.Wait()
}

func (l *line) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Equal(l.got, want) {
		t.Errorf("got %q, want %q", l.got, want)
	}
	l.got = nil
}

func TestCapsFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &line{caps: limit.NewCaps(limit.Config{MaxRequests: 1, MaxPending: 4})}
		patient := t.Context()
		hasty, cancel := context.WithCancel(patient)
		l.join(patient, "a")
		l.join(patient, "b")
		l.join(hasty, "c")
		l.join(patient, "d")
		l.join(patient, "e")
		l.join(patient, "f")
		l.want(t, "a acquired", "f refused_full")
		cancel()
		l.want(t, "c ended")
		l.join(patient, "g") // in c's place, but at the end
		l.caps.Release()
		l.want(t, "b acquired")
		l.caps.Release()
		l.want(t, "d acquired")
		l.caps.Release()
		l.want(t, "e acquired")
		l.caps.Release()
		l.want(t, "g acquired")
		if l.caps.Inflight() != 1 || l.caps.Pending() != 0 {
			t.Errorf("Inflight, Pending = %d, %d, want 1, 0", l.caps.Inflight(), l.caps.Pending())
		}
		l.caps.Release()
		l.join(patient, "h")
		l.want(t, "h acquired")
	})
}

func TestCapsReconfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &line{caps: limit.NewCaps(limit.Config{MaxRequests: 1, MaxPending: 3})}
		for _, name := range []string{"a", "b", "c", "d"} {
			l.join(t.Context(), name)
		}
		l.want(t, "a acquired")
		l.caps.Reconfigure(limit.Config{MaxRequests: 3, MaxPending: 1})
		synctest.Wait()
		slices.Sort(l.got) // granted at once, so they report in any order
		l.want(t, "b acquired", "c acquired")
		l.join(t.Context(), "e")
		l.want(t, "e refused_full")

		l.caps.Reconfigure(limit.Config{MaxRequests: 1, MaxPending: 1})
		l.caps.Release()
		l.caps.Release() // two of three gone: the last one holds the only slot
		l.want(t)
		if l.caps.Inflight() != 1 || l.caps.Pending() != 1 {
			t.Errorf("Inflight, Pending = %d, %d, want 1, 1", l.caps.Inflight(), l.caps.Pending())
		}
		l.caps.Release()
		l.want(t, "d acquired")
		l.caps.Reconfigure(limit.Config{})
		l.join(t.Context(), "f")
		l.want(t, "f acquired")
	})
}

func TestCapsRetries(t *testing.T) {
	c := limit.NewCaps(limit.Config{MaxRetries: 2})
	for i, want := range []bool{true, true, false} {
		if got := c.AcquireRetry(); got != want {
			t.Errorf("retry %d: %t, want %t", i, got, want)
		}
	}
	c.ReleaseRetry()
	if !c.AcquireRetry() || c.AcquireRetry() {
		t.Error("want one place after one was given back")
	}
	c.Reconfigure(limit.Config{MaxRetries: -1})
	c.ReleaseRetry()
	c.ReleaseRetry()
	if c.AcquireRetry() {
		t.Error("a negative value allows none")
	}
}

// TestCapsModel runs random sequences of joining, leaving, releasing and reconfiguring, one
// after the other, against a plain queue.
func TestCapsModel(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(6, seed))
			m := &capsModel{maxRequests: 1 + rnd.IntN(3), maxPending: 1 + rnd.IntN(4)}
			l := &line{caps: limit.NewCaps(m.config())}
			cancels := map[string]context.CancelFunc{}
			for step := range 300 {
				name := fmt.Sprint("call-", step)
				switch op := rnd.IntN(10); {
				case op < 5:
					ctx, cancel := context.WithCancel(t.Context())
					cancels[name] = cancel
					l.join(ctx, name)
					m.join(name)
				case op < 8 && m.inflight > 0:
					l.caps.Release()
					m.inflight--
					m.grant()
				case op < 9 && len(m.queue) > 0:
					gone := m.queue[rnd.IntN(len(m.queue))]
					cancels[gone]()
					m.leave(gone)
				case op == 9 && rnd.IntN(5) == 0:
					m.maxRequests, m.maxPending = 1+rnd.IntN(3), 1+rnd.IntN(4)
					l.caps.Reconfigure(m.config())
					m.grant()
				}
				synctest.Wait()
				slices.Sort(l.got)
				slices.Sort(m.got)
				l.want(t, m.got...)
				m.got = nil
				if l.caps.Inflight() != m.inflight || l.caps.Pending() != len(m.queue) {
					t.Fatalf("seed %d, step %d: Inflight, Pending = %d, %d, want %d, %d", seed, step, l.caps.Inflight(), l.caps.Pending(), m.inflight, len(m.queue))
				}
			}
			for _, cancel := range cancels {
				cancel()
			}
		})
	}
}

type capsModel struct {
	maxRequests, maxPending int
	inflight                int
	queue                   []string
	got                     []string
}

func (m *capsModel) config() limit.Config {
	return limit.Config{MaxRequests: m.maxRequests, MaxPending: m.maxPending}
}

func (m *capsModel) join(name string) {
	switch {
	case len(m.queue) == 0 && m.inflight < m.maxRequests:
		m.inflight++
		m.got = append(m.got, name+" acquired")
	case len(m.queue) >= m.maxPending:
		m.got = append(m.got, name+" refused_full")
	default:
		m.queue = append(m.queue, name)
	}
}

func (m *capsModel) grant() {
	for len(m.queue) > 0 && m.inflight < m.maxRequests {
		m.inflight++
		m.got = append(m.got, m.queue[0]+" acquired")
		m.queue = m.queue[1:]
	}
}

func (m *capsModel) leave(name string) {
	m.queue = slices.DeleteFunc(m.queue, func(n string) bool { return n == name })
	m.got = append(m.got, name+" ended")
}

// TestCapsConcurrent has many callers race, some of them giving up at any moment, and makes
// sure that there are never too many and that no slot is lost.
func TestCapsConcurrent(t *testing.T) {
	const most, callers, rounds = 3, 12, 1500
	c := limit.NewCaps(limit.Config{MaxRequests: most, MaxPending: 6})
	var holding, acquired, refused, ended atomic.Int64
	var wg sync.WaitGroup
	for g := range callers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(g)))
			for range rounds {
				ctx, cancel := context.WithCancel(context.Background())
				if rnd.IntN(2) == 0 {
					go cancel()
				}
				switch c.Acquire(ctx) {
				case limit.Acquired:
					acquired.Add(1)
					if n := holding.Add(1); n > most {
						t.Errorf("%d hold a slot, at most %d may", n, most)
					}
					for range rnd.IntN(3) {
						_ = c.Inflight()
					}
					holding.Add(-1)
					c.Release()
				case limit.RefusedFull:
					refused.Add(1)
				default:
					ended.Add(1)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if c.Inflight() != 0 || c.Pending() != 0 {
		t.Errorf("Inflight, Pending = %d, %d after all calls, want 0, 0", c.Inflight(), c.Pending())
	}
	for range most {
		if got := c.Acquire(t.Context()); got != limit.Acquired {
			t.Fatalf("a slot was lost: %v", got)
		}
	}
	t.Logf("acquired %d, refused %d, ended %d", acquired.Load(), refused.Load(), ended.Load())
}

// TestCapsSlotComesAsContextEnds lets both happen before the waiter runs: whichever it sees,
// the slot must not be lost.
func TestCapsSlotComesAsContextEnds(t *testing.T) {
	for i := range 400 {
		synctest.Test(t, func(t *testing.T) {
			c := limit.NewCaps(limit.Config{MaxRequests: 1})
			ctx, cancel := context.WithCancel(t.Context())
			c.Acquire(ctx)
			first, second := limit.Ended, limit.Ended
			go func() { first = c.Acquire(ctx) }()
			synctest.Wait()
			go func() { second = c.Acquire(context.Background()) }()
			synctest.Wait()
			if i%2 == 0 {
				c.Release()
				cancel()
			} else {
				cancel()
				c.Release()
			}
			synctest.Wait()
			if first == limit.Acquired {
				c.Release()
				synctest.Wait()
			}
			if second != limit.Acquired || c.Inflight() != 1 {
				t.Fatalf("first %v, second %v, Inflight() = %d", first, second, c.Inflight())
			}
			c.Release()
		})
	}
}
