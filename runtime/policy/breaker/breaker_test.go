package breaker_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/runtime/policy/breaker"
)

var update = flag.Bool("update", false, "rewrite the transcripts under testdata")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestValidate(t *testing.T) {
	tests := []struct {
		name   string
		config breaker.Config
		want   string
	}{
		{"zero", breaker.Config{}, ""},
		{"all set", breaker.Config{MaxRequests: 1, Interval: 1, Timeout: 1, FailureRate: 100, Window: 10 * time.Millisecond, MinRequests: 1}, ""},
		{"requests", breaker.Config{MaxRequests: -1}, "maxRequests: must not be negative, is -1"},
		{"interval", breaker.Config{Interval: -1}, "interval: must not be negative, is -1ns"},
		{"timeout", breaker.Config{Timeout: -1}, "timeout: must not be negative, is -1ns"},
		{"rate above", breaker.Config{FailureRate: 101}, "failureRate: must be from 0 to 100 percent, is 101"},
		{"rate below", breaker.Config{FailureRate: -1}, "failureRate: must be from 0 to 100 percent, is -1"},
		{"window", breaker.Config{Window: 9 * time.Millisecond}, "window: must be at least 10ms, is 9ms"},
		{"two at once", breaker.Config{MinRequests: -1, MaxRequests: -2}, "maxRequests: must not be negative, is -2\nminRequests: must not be negative, is -1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := tt.config.Validate(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("Validate() = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		invalid := breaker.Config{MaxRequests: -3, Interval: -1, Timeout: -1, FailureRate: -1, Window: -1, MinRequests: -1}
		for name, b := range map[string]*breaker.Breaker{"zero": breaker.New(breaker.Config{}, nil), "invalid": breaker.New(invalid, nil)} {
			for range 6 {
				ticket, _ := b.Allow()
				b.Done(ticket, false)
			}
			if got := b.State(); got != breaker.Open {
				t.Errorf("%s: %v after six failures, want open", name, got)
			}
			b.Done(breaker.Ticket{}, true) // belongs to nobody
			b.Cancel(breaker.Ticket{})
		}
		b := breaker.New(breaker.Config{FailureRate: 50, Trip: never(t)}, nil)
		for i := range 20 {
			if got := b.State(); got != breaker.Closed {
				t.Fatalf("%v after %d failures, the default minimum is 20", got, i)
			}
			ticket, _ := b.Allow()
			b.Done(ticket, false)
		}
		if got := b.State(); got != breaker.Open {
			t.Errorf("%v after 20 failures, want open", got)
		}
	})
}

func never(t testing.TB) *breaker.Trip { return trip(t, "false") }

func trip(t testing.TB, expr string) *breaker.Trip {
	t.Helper()
	p, err := breaker.ParseTrip(expr)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestTranscripts plays the files of testdata: commands, and after => what came of them. Tickets
// are named by letters.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			synctest.Test(t, func(t *testing.T) { play(t, &out, string(text)) })
			if *update {
				if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(text), out.String()); diff != "" {
				t.Errorf("-want +got (rewrite with -update):\n%s", diff)
			}
		})
	}
}

func play(t *testing.T, out *strings.Builder, text string) {
	p := &player{t: t, tickets: map[string]breaker.Ticket{}}
	for line := range strings.Lines(text) {
		command, _, _ := strings.Cut(strings.TrimRight(line, "\n"), "=>")
		command = strings.TrimSpace(command)
		if command == "" || command[0] == '#' {
			fmt.Fprintln(out, command)
			continue
		}
		words := strings.Fields(command)
		results := p.command(words[0], words[1:])
		if results = append(results, p.changes...); len(results) > 0 {
			command = fmt.Sprintf("%-40s => %s", command, strings.Join(results, ", "))
		}
		fmt.Fprintln(out, command)
		p.changes = nil
	}
}

type player struct {
	t       *testing.T
	b       *breaker.Breaker
	tickets map[string]breaker.Ticket
	changes []string
}

// command gives the results to show.
func (p *player) command(name string, args []string) (results []string) {
	switch name {
	case "breaker":
		p.b = breaker.New(config(p.t, args), func(from, to breaker.State) {
			p.changes = append(p.changes, fmt.Sprintf("[%v to %v]", from, to))
		})
	case "reconfigure":
		p.b.Reconfigure(config(p.t, args))
	case "wait":
		time.Sleep(duration(p.t, args[0]))
	case "state":
		return []string{p.b.State().String()}
	case "counts":
		return []string{fmt.Sprintf("%+v", p.b.Counts())}
	case "allow":
		for _, a := range args {
			ticket, verdict := p.b.Allow()
			if verdict == breaker.Allowed {
				p.tickets[a] = ticket
			}
			results = append(results, verdict.String())
		}
	case "ok", "fail", "cancel":
		for _, a := range args {
			if name == "cancel" {
				p.b.Cancel(p.tickets[a])
			} else {
				p.b.Done(p.tickets[a], name == "ok")
			}
		}
	default:
		p.t.Fatalf("no command %q", name)
	}
	return results
}

func config(t *testing.T, args []string) (c breaker.Config) {
	t.Helper()
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		switch key {
		case "max":
			c.MaxRequests = number(t, value)
		case "interval":
			c.Interval = duration(t, value)
		case "timeout":
			c.Timeout = duration(t, value)
		case "trip":
			c.Trip = trip(t, value)
		case "rate":
			c.FailureRate = number(t, value)
		case "window":
			c.Window = duration(t, value)
		case "min":
			c.MinRequests = number(t, value)
		default:
			t.Fatalf("no setting %q", key)
		}
	}
	return c
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func duration(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestChangedMayUseTheBreaker calls back into the breaker, which must hold no lock, and makes
// sure that changes it causes itself are told after the one it is told of.
func TestChangedMayUseTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *breaker.Breaker
		var told []string
		depth := 0
		b = breaker.New(breaker.Config{Timeout: time.Second, Trip: trip(t, "totalFailures > 0")}, func(from, to breaker.State) {
			if depth++; depth > 1 {
				t.Error("called while it is being called")
			}
			defer func() { depth-- }()
			told = append(told, fmt.Sprint(from, " to ", to))
			if from == breaker.Closed {
				time.Sleep(2 * time.Second)
				_ = b.State() // half-open now
				ticket, _ := b.Allow()
				b.Done(ticket, true)
			}
		})
		ticket, _ := b.Allow()
		b.Done(ticket, false)
		want := []string{"closed to open", "open to half-open", "half-open to closed"}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

// TestChangedPanics makes sure that later changes are still told.
func TestChangedPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		b := breaker.New(breaker.Config{Timeout: time.Second, Trip: trip(t, "totalFailures > 0")}, func(from, _ breaker.State) {
			told++
			if from == breaker.Closed {
				panic("no")
			}
		})
		func() {
			defer func() { _ = recover() }()
			ticket, _ := b.Allow()
			b.Done(ticket, false)
		}()
		time.Sleep(2 * time.Second)
		if got := b.State(); got != breaker.HalfOpen || told != 2 {
			t.Errorf("%v, told %d times, want half-open, 2", got, told)
		}
	})
}

// TestConcurrent races calls of all kinds of ends, changes of configuration included. Changes of
// state must be a chain, and no more than MaxRequests calls may be under way half-open.
func TestConcurrent(t *testing.T) {
	const most, workers, rounds = 3, 4, 20_000
	conf := breaker.Config{MaxRequests: most, Timeout: time.Microsecond, Trip: trip(t, "consecutiveFailures > 2"), FailureRate: 90, MinRequests: 5}
	last, changes := breaker.Closed, 0
	b := breaker.New(conf, func(from, to breaker.State) { // one at a time: no lock here
		if from != last {
			t.Errorf("told of %v to %v after the change to %v", from, to, last)
		}
		last, changes = to, changes+1
	})
	var wg sync.WaitGroup
	for g := range workers {
		wg.Go(func() {
			for i := range rounds {
				ticket, verdict := b.Allow()
				if verdict == breaker.Allowed {
					switch n := (i*7 + g) % 16; {
					case n == 0:
						b.Cancel(ticket)
					default:
						b.Done(ticket, n > 9)
					}
				}
				if i%500 == 0 {
					b.Reconfigure(conf)
					_ = b.Counts()
				}
			}
		})
	}
	wg.Wait()
	if changes < 3 {
		t.Errorf("only %d changes of state: nothing was tested", changes)
	}
	if got := b.State(); got != last && !(got == breaker.HalfOpen && last == breaker.Open) {
		t.Errorf("%v, last told was %v", got, last)
	}
}

// TestHalfOpenConcurrent has many ask at once; exactly MaxRequests are let through.
func TestHalfOpenConcurrent(t *testing.T) {
	const most = 5
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			b := breaker.New(breaker.Config{MaxRequests: most, Timeout: time.Second, Trip: trip(t, "totalFailures > 0")}, nil)
			ticket, _ := b.Allow()
			b.Done(ticket, false)
			time.Sleep(2 * time.Second)
			var allowed, successes atomic.Int64
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					if ticket, verdict := b.Allow(); verdict == breaker.Allowed {
						allowed.Add(1)
						time.Sleep(time.Second)
						b.Done(ticket, true)
						successes.Add(1)
					}
				})
			}
			wg.Wait()
			if allowed.Load() != most || b.State() != breaker.Closed {
				t.Errorf("%d allowed, then %v, want %d, then closed", allowed.Load(), b.State(), most)
			}
		})
	}
}

// TestCountsConcurrent makes sure that no result is lost.
func TestCountsConcurrent(t *testing.T) {
	b := breaker.New(breaker.Config{Trip: never(t)}, nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 5000 {
				ticket, _ := b.Allow()
				b.Done(ticket, i%2 == 0)
			}
		})
	}
	wg.Wait()
	ticket, _ := b.Allow()
	b.Done(ticket, false)
	got := b.Counts()
	got.ConsecutiveFailures = min(got.ConsecutiveFailures, 1)
	want := breaker.Counts{Requests: 20_001, TotalSuccesses: 10_000, TotalFailures: 10_001, ConsecutiveFailures: 1}
	if got != want {
		t.Errorf("Counts() = %+v, want %+v", got, want)
	}
}
