//go:build unix

package blocks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// pause is between the calls of one caller: enough of them are in flight whenever something
// breaks, and processor time is left for what is being tested.
const pause = 8 * time.Millisecond

// errWrong is an answer that is not the one to the question.
var errWrong = errors.New("wrong answer")

// sample is one finished call.
type sample struct {
	from, to time.Time
	err      error
}

// load is callers at work on one block.
type load struct {
	t    testing.TB
	name string
	stop context.CancelFunc
	all  sync.WaitGroup

	mu      sync.Mutex
	samples []sample // guarded by mu
	acked   []int64  // guarded by mu; the numbers of the calls that succeeded
	tried   []int64  // guarded by mu; the numbers of those that did not
}

// number is different in every call of the process, and grows.
var number atomic.Int64

// begin starts n callers. Who calls, and with which number, is told to call.
func begin(t testing.TB, name string, n int, call func(ctx context.Context, who int, n int64) error) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: t, name: name, stop: cancel}
	for who := range n {
		l.all.Go(func() {
			for ctx.Err() == nil {
				l.one(who, call)
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) one(who int, call func(context.Context, int, int64) error) {
	n := number.Add(1)
	s := sample{from: time.Now()}
	s.err = call(context.Background(), who, n) // not cut off when the load ends: its outcome counts
	s.to = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples = append(l.samples, s)
	if s.err == nil {
		l.acked = append(l.acked, n)
	} else {
		l.tried = append(l.tried, n)
	}
}

// end stops the callers and waits for the calls in progress.
func (l *load) end() { l.stop(); l.all.Wait() }

// works waits until twenty calls that began from now on have succeeded.
func (l *load) works(limit time.Duration) {
	l.t.Helper()
	since := time.Now()
	for end := since.Add(limit); ; time.Sleep(5 * time.Millisecond) {
		good, last := l.since(since)
		if good >= 20 {
			return
		}
		if time.Now().After(end) {
			l.t.Fatalf("%s: %d calls succeeded within %v, want 20; the last error: %v", l.name, good, limit, last)
		}
	}
}

func (l *load) since(at time.Time) (good int, last error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.samples {
		switch {
		case s.from.Before(at):
		case s.err == nil:
			good++
		default:
			last = s.err
		}
	}
	return good, last
}

// p99 is of the calls that began in a window.
func (l *load) p99(from, to time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var took []time.Duration
	for _, s := range l.samples {
		if !s.from.Before(from) && s.from.Before(to) {
			took = append(took, s.to.Sub(s.from))
		}
	}
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[len(took)*99/100]
}

// figures are what the callers of a load saw.
type figures struct {
	calls, failed int
	slowest       time.Duration
}

// judge ends the load and checks what holds for every fault: no wrong answer, and none after
// its deadline.
func (l *load) judge() figures {
	l.t.Helper()
	l.end()
	f := figures{calls: len(l.samples)}
	kinds := map[string]int{}
	for _, s := range l.samples {
		f.slowest = max(f.slowest, s.to.Sub(s.from))
		if s.err == nil {
			continue
		}
		f.failed++
		kinds[short(s.err)]++
		if errors.Is(s.err, errWrong) {
			l.t.Errorf("%s: %v", l.name, s.err)
		}
	}
	for text, n := range kinds {
		l.t.Logf("%s: %5d × %s", l.name, n, text)
	}
	if f.slowest > deadline+slack {
		l.t.Errorf("%s: a call with a deadline of %v took %v", l.name, deadline, f.slowest)
	}
	return f
}

// short makes errors of one kind alike.
func short(err error) string {
	text := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return '#'
		}
		return r
	}, err.Error())
	for strings.Contains(text, "##") {
		text = strings.ReplaceAll(text, "##", "#")
	}
	return text
}

// lines are the figures of all cases.
var lines struct {
	mu  sync.Mutex
	all []string
}

func report(format string, args ...any) {
	lines.mu.Lock()
	defer lines.mu.Unlock()
	lines.all = append(lines.all, fmt.Sprintf(format, args...))
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, l := range lines.all {
		fmt.Println(l)
	}
	os.Exit(code)
}

// ms is a duration to read.
func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// soon waits for something to become true.
func soon(t testing.TB, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

// each runs check for every item, sixteen at a time.
func each[T any](items []T, check func(T)) {
	var all sync.WaitGroup
	slots := make(chan struct{}, 16)
	for _, it := range items {
		slots <- struct{}{}
		all.Go(func() { defer func() { <-slots }(); check(it) })
	}
	all.Wait()
}
