package limit_test

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/policy/limit"
)

var update = flag.Bool("update", false, "rewrite the transcripts under testdata")

// TestBudgetTranscript plays testdata/budget.txt: commands, and after => what came of them.
func TestBudgetTranscript(t *testing.T) {
	path := filepath.Join("testdata", "budget.txt")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	synctest.Test(t, func(t *testing.T) {
		var b *limit.Budget
		for line := range strings.Lines(string(text)) {
			command, _, _ := strings.Cut(strings.TrimRight(line, "\n"), "=>")
			command = strings.TrimSpace(command)
			if command == "" || command[0] == '#' {
				fmt.Fprintln(&out, command)
				continue
			}
			var result string
			b, result = budgetCommand(t, b, strings.Fields(command))
			fmt.Fprintf(&out, "%-24s => %s\n", command, result)
		}
	})
	if *update {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(text), out.String()); diff != "" {
		t.Errorf("-want +got (rewrite with -update):\n%s", diff)
	}
}

func budgetCommand(t *testing.T, b *limit.Budget, words []string) (*limit.Budget, string) {
	t.Helper()
	number := func(i int) float64 {
		n, err := strconv.ParseFloat(words[i], 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	span := func(i int) time.Duration {
		d, err := time.ParseDuration(words[i])
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	switch words[0] {
	case "budget": // ratio, minimum, ttl
		b = limit.NewBudget(number(1), int(number(2)), span(3))
	case "calls":
		for range int(number(1)) {
			b.Deposit()
		}
	case "retries": // tries so many
		granted := 0
		for range int(number(1)) {
			if b.Withdraw() {
				granted++
			}
		}
		return b, fmt.Sprintf("%d granted, balance %d", granted, b.Balance())
	case "wait":
		time.Sleep(span(1))
	default:
		t.Fatalf("no command %q", words[0])
	}
	return b, fmt.Sprintf("balance %d", b.Balance())
}

// TestBudgetBound checks the promise over every ttl that ends with a retry, and over all time.
func TestBudgetBound(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(5, seed))
			ratio, minimum := float64(rnd.IntN(5))/8, rnd.IntN(4)
			ttl := time.Duration(1+rnd.IntN(20)) * time.Second
			b := limit.NewBudget(ratio, minimum, ttl)
			start := time.Now()
			var calls, retries []time.Duration // when
			for range 3000 {
				time.Sleep(time.Duration(rnd.Int64N(int64(ttl / 50))))
				if rnd.IntN(300) == 0 {
					time.Sleep(time.Duration(rnd.Int64N(int64(3 * ttl))))
				}
				now := time.Since(start)
				if rnd.IntN(3) > 0 {
					b.Deposit()
					calls = append(calls, now)
				}
				before := b.Balance()
				if got := b.Withdraw(); got != (before > 0) {
					t.Fatalf("seed %d: Withdraw = %t at a balance of %d", seed, got, before)
				} else if !got {
					continue
				}
				retries = append(retries, now)
				// A deposit counts for up to a tenth of the ttl longer.
				paid := ratio*float64(since(calls, now-ttl-ttl/10)) + float64(minimum)*ttl.Seconds()
				if n := since(retries, now-ttl); float64(n) > paid+1e-6 {
					t.Fatalf("seed %d: %d retries within %v, %.1f paid", seed, n, ttl, paid)
				}
			}
			elapsed := time.Since(start)
			most := ratio*float64(len(calls)) + float64(minimum)*(elapsed+ttl).Seconds()
			if float64(len(retries)) > most {
				t.Errorf("seed %d: %d retries in all, at most %.1f are paid", seed, len(retries), most)
			}
			if most >= 10 && len(retries) == 0 {
				t.Errorf("seed %d: no retry was granted of %.1f", seed, most)
			}
		})
	}
}

func since(times []time.Duration, from time.Duration) (n int) {
	for _, at := range times {
		if at >= from {
			n++
		}
	}
	return n
}

func TestBudgetOdd(t *testing.T) {
	tests := []struct {
		name    string
		ratio   float64
		minimum int
		ttl     time.Duration
		calls   int
		want    int
	}{
		{"nothing", 0, 0, 0, 100, 0},
		{"negative", -1, -5, -1, 100, 0},
		{"not a number", math.NaN(), 0, time.Second, 100, 0},
		{"default ttl", 0, 3, 0, 0, 30},
		{"short ttl", 0, 10, 100 * time.Millisecond, 0, 1},
		{"more than one per call", 2.5, 0, time.Second, 3, 7},
		{"endless", math.Inf(1), 0, time.Second, 2, 2000},
		{"no rounding down", 0.1, 0, time.Second, 10, 1},
		{"largest", 1, math.MaxInt32, time.Hour, 0, math.MaxInt64 / 4 / 1_000_000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := limit.NewBudget(tt.ratio, tt.minimum, tt.ttl)
				for range tt.calls {
					b.Deposit()
				}
				if got := b.Balance(); got != tt.want {
					t.Errorf("Balance() = %d, want %d", got, tt.want)
				}
			})
		})
	}
}

// TestBudgetConcurrent lets several spend the same retry at once, round by round.
func TestBudgetConcurrent(t *testing.T) {
	const spenders, rounds = 3, 5000
	b := limit.NewBudget(0.5, 0, 1000*time.Hour) // nothing is forgotten during the test
	var round, granted, done atomic.Int64
	var wg sync.WaitGroup
	for range spenders {
		wg.Go(func() {
			for r := range int64(rounds) {
				for round.Load() <= r {
					runtime.Gosched()
				}
				if b.Withdraw() {
					granted.Add(1)
				}
				done.Add(1)
			}
		})
	}
	for r := range int64(rounds) {
		b.Deposit()
		b.Deposit()
		round.Add(1)
		for done.Load() < (r+1)*spenders {
			runtime.Gosched()
		}
		if got := granted.Load(); got != r+1 {
			t.Errorf("%d retries for %d calls", got, 2*(r+1))
			break
		}
	}
	round.Add(rounds) // after a failure, let the spenders run out
	wg.Wait()
}
