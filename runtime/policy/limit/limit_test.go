package limit_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/time/rate"

	"github.com/mecha-project/mecha/runtime/policy/limit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRateValidate(t *testing.T) {
	tests := []struct {
		name string
		rate limit.Rate
		want string // words of the error, empty: valid
	}{
		{"plain", limit.Rate{Tokens: 10, Per: time.Second}, ""},
		{"burst below tokens", limit.Rate{Tokens: 10, Per: time.Second, Burst: 1}, ""},
		{"one a nanosecond", limit.Rate{Tokens: 1e9, Per: time.Second}, ""},
		{"zero", limit.Rate{}, "tokens: must be at least 1, is 0\nper: must be more than 0, is 0s"},
		{"negative burst", limit.Rate{Tokens: 1, Per: time.Second, Burst: -1}, "burst: must not be negative, is -1"},
		{"no limit at all", limit.Rate{Tokens: 2e9, Per: time.Second}, "more than one a nanosecond"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.rate.Validate()
			if got := fmt.Sprint(err); (err == nil) != (tt.want == "") || tt.want != "" && !strings.Contains(got, tt.want) {
				t.Errorf("Validate() = %q, want %q", got, tt.want)
			}
		})
	}
}

// TestLimiterSteps walks one bucket of two tokens, one back each 100ms.
func TestLimiterSteps(t *testing.T) {
	const ms = int64(time.Millisecond)
	l := limit.NewLimiter(limit.Rate{Tokens: 10, Per: time.Second, Burst: 2})
	steps := []struct {
		at     int64
		before int // remaining
		ok     bool
		wait   time.Duration
	}{
		{0, 2, true, 0},
		{0, 1, true, 0},
		{0, 0, false, 100 * time.Millisecond},
		{40, 0, false, 60 * time.Millisecond},
		{99, 0, false, time.Millisecond},
		{100, 1, true, 0},
		{100, 0, false, 100 * time.Millisecond},
		{299, 1, true, 0},
		{300, 1, true, 0},
		{300, 0, false, 100 * time.Millisecond},
		{9000, 2, true, 0},
	}
	for i, s := range steps {
		if got := l.Remaining(s.at * ms); got != s.before {
			t.Errorf("step %d: Remaining = %d, want %d", i, got, s.before)
		}
		if ok, wait := l.Allow(s.at * ms); ok != s.ok || wait != s.wait {
			t.Errorf("step %d at %dms: Allow = %t, %v, want %t, %v", i, s.at, ok, wait, s.ok, s.wait)
		}
	}
}

// TestLimiterLikeXTime feeds the same arrivals to x/time/rate.
func TestLimiterLikeXTime(t *testing.T) {
	rates := []limit.Rate{
		{Tokens: 10, Per: time.Second},
		{Tokens: 10, Per: time.Second, Burst: 1},
		{Tokens: 1, Per: time.Minute, Burst: 5},
		{Tokens: 1000, Per: time.Second, Burst: 50},
		{Tokens: 7, Per: time.Second, Burst: 3}, // a token is no whole number of nanoseconds
		{Tokens: 250_000, Per: time.Second, Burst: 1000},
	}
	for _, r := range rates {
		t.Run(fmt.Sprintf("%d per %v, burst %d", r.Tokens, r.Per, r.Burst), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(3, uint64(r.Tokens)))
			burst := r.Burst
			if burst == 0 {
				burst = r.Tokens
			}
			start := time.Unix(0, 0)
			theirs := rate.NewLimiter(rate.Limit(float64(r.Tokens)/r.Per.Seconds()), burst)
			ours := limit.NewLimiter(r)
			token := float64(r.Per) / float64(r.Tokens)
			now, accepted := int64(0), 0
			for i := range 20_000 {
				// Mostly a little too often, at times a pause that fills the bucket.
				gap := token * rnd.Float64() * 1.8
				if rnd.IntN(200) == 0 {
					gap = token * rnd.Float64() * float64(min(2*burst, 100))
				}
				if rnd.IntN(4) == 0 {
					gap = 0
				}
				now += int64(gap)
				got, wait := ours.Allow(now)
				want := theirs.AllowN(start.Add(time.Duration(now)), 1)
				if got != want {
					t.Fatalf("arrival %d at %d: %t (wait %v), x/time says %t", i, now, got, wait, want)
				}
				if got {
					accepted++
				}
			}
			if accepted < 5000 || accepted > 19_000 {
				t.Errorf("accepted %d of 20000: the arrivals decide nothing", accepted)
			}
		})
	}
}

// TestLimiterRounding takes what there is for a while: the rate must be right although the
// time of a token is rounded.
func TestLimiterRounding(t *testing.T) {
	for _, tokens := range []int{3, 7, 999, 300_000, 600_000, 999_001, 999_999} {
		l := limit.NewLimiter(limit.Rate{Tokens: tokens, Per: time.Second, Burst: 1})
		n, seconds := 0, max(1, 100_000/tokens)
		for now := int64(0); now < int64(seconds)*int64(time.Second); n++ {
			l.Allow(now)
			_, wait := l.Allow(now)
			now += int64(wait)
		}
		if want := float64(tokens * seconds); math.Abs(float64(n)-want) > 1+want*0.0005 {
			t.Errorf("%d per second: %d in %ds, want %.0f", tokens, n, seconds, want)
		}
	}
}

// TestLimiterWait makes sure that wait is exact: a nanosecond earlier is too early.
func TestLimiterWait(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 4))
	for range 2000 {
		r := limit.Rate{Tokens: 1 + rnd.IntN(5000), Per: time.Duration(1e6 + rnd.Int64N(1e10)), Burst: rnd.IntN(4)}
		l, now := limit.NewLimiter(r), rnd.Int64N(1e15)
		ok, wait := l.Allow(now)
		for ok {
			ok, wait = l.Allow(now)
		}
		if early, left := l.Allow(now + int64(wait) - 1); early || left != 1 {
			t.Fatalf("%+v: allowed %v too early", r, left)
		}
		if ok, _ := l.Allow(now + int64(wait)); !ok {
			t.Fatalf("%+v: refused after the wait", r)
		}
	}
}

func TestLimiterOddRates(t *testing.T) {
	tests := []struct {
		name string
		rate limit.Rate
		want int // allowed at once
	}{
		{"zero", limit.Rate{}, 1},
		{"negative", limit.Rate{Tokens: -5, Per: -1, Burst: -5}, 1},
		{"endless", limit.Rate{Tokens: 1, Per: math.MaxInt64, Burst: 3}, 1}, // no bucket lasts longer than 146 years
		{"more than one a nanosecond", limit.Rate{Tokens: 50, Per: 2}, 50},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, n := limit.NewLimiter(tt.rate), 0
			for ok := true; ok && n < 1000; n++ {
				ok, _ = l.Allow(1 << 60)
			}
			if n-1 != tt.want {
				t.Errorf("%d at once, want %d", n-1, tt.want)
			}
		})
	}
}

func TestSetRate(t *testing.T) {
	ten := limit.Rate{Tokens: 10, Per: time.Second}
	tests := []struct {
		name string
		used int
		to   limit.Rate
		want int // remaining
	}{
		{"same", 6, ten, 4},
		{"unused stays full", 0, limit.Rate{Tokens: 3, Per: time.Hour}, 3},
		{"more", 6, limit.Rate{Tokens: 100, Per: time.Second}, 94},
		{"fewer", 6, limit.Rate{Tokens: 5, Per: time.Second}, 0},
		{"slower", 6, limit.Rate{Tokens: 10, Per: time.Hour}, 4},
		{"faster", 6, limit.Rate{Tokens: 10, Per: time.Millisecond}, 4},
		{"larger burst", 10, limit.Rate{Tokens: 10, Per: time.Second, Burst: 25}, 15},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, k := limit.NewLimiter(ten), limit.NewKeyed(ten, 0)
				time.Sleep(time.Hour) // a bucket long full is not fuller than full
				for range tt.used {
					l.Allow(limit.Nanotime())
					k.Allow("a", limit.Nanotime())
				}
				l.SetRate(tt.to)
				k.SetRate(tt.to)
				if got := l.Remaining(limit.Nanotime()); got != tt.want {
					t.Errorf("Remaining = %d, want %d", got, tt.want)
				}
				n := 0
				for ok := true; ok && n < 1000; n++ {
					ok, _ = k.Allow("a", limit.Nanotime())
				}
				if n-1 != tt.want {
					t.Errorf("the key has %d left, want %d", n-1, tt.want)
				}
			})
		})
	}
}

// TestLimiterConcurrent makes sure that no token is given twice.
func TestLimiterConcurrent(t *testing.T) {
	const burst = 100_000
	l := limit.NewLimiter(limit.Rate{Tokens: 1, Per: time.Hour, Burst: burst})
	var allowed atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range burst / 2 {
				if ok, _ := l.Allow(1); ok {
					allowed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if got := allowed.Load(); got != burst {
		t.Errorf("%d allowed, want %d", got, burst)
	}
}

// TestKeyedFair gives every key its own bucket, however greedy another is.
func TestKeyedFair(t *testing.T) {
	k := limit.NewKeyed(limit.Rate{Tokens: 10, Per: time.Second, Burst: 5}, 100)
	allowed := map[string]int{}
	take := func(key string, now int64) {
		if ok, _ := k.Allow(key, now); ok {
			allowed[key]++
		}
	}
	for ms := range int64(10_000) {
		now := ms * int64(time.Millisecond)
		for range 3 {
			take("greedy", now)
		}
		if ms%100 == 0 { // just what is allowed
			take(fmt.Sprint("modest-", ms/100%2), now)
		}
	}
	for key, want := range map[string]int{"greedy": 104, "modest-0": 50, "modest-1": 50} {
		if allowed[key] != want {
			t.Errorf("%s: %d allowed, want %d", key, allowed[key], want)
		}
	}
}

// TestKeyedBound makes sure that keys are bounded and that a forgotten one starts full.
func TestKeyedBound(t *testing.T) {
	k := limit.NewKeyed(limit.Rate{Tokens: 1, Per: time.Hour}, 3)
	allow := func(key string) bool { ok, _ := k.Allow(key, 1); return ok }
	for _, key := range []string{"a", "b", "c"} {
		if !allow(key) || allow(key) {
			t.Fatalf("key %s: want one call allowed", key)
		}
	}
	allow("a") // used last, though refused
	allow("d") // b is forgotten
	if k.Len() != 3 {
		t.Errorf("Len() = %d, want 3", k.Len())
	}
	if allow("a") {
		t.Error("a was forgotten")
	}
	if !allow("b") {
		t.Error("b was not forgotten")
	}
}

func TestKeyedDefault(t *testing.T) {
	k := limit.NewKeyed(limit.Rate{Tokens: 1, Per: time.Hour}, 0)
	for i := range limit.DefaultKeys + 50 {
		k.Allow(fmt.Sprint(i), 1)
	}
	if k.Len() != limit.DefaultKeys {
		t.Errorf("Len() = %d, want %d", k.Len(), limit.DefaultKeys)
	}
}

func TestNanotime(t *testing.T) {
	if limit.Nanotime() < 0 {
		t.Error("negative")
	}
	synctest.Test(t, func(t *testing.T) {
		from := limit.Nanotime()
		time.Sleep(time.Minute)
		if got := limit.Nanotime() - from; got != int64(time.Minute) {
			t.Errorf("a minute took %d", got)
		}
		if from < 0 {
			t.Error("negative")
		}
	})
}
