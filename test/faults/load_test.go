//go:build unix

package faults

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
	"text/tabwriter"
	"time"
)

const (
	// deadline is every call's own.
	deadline = 3 * time.Second
	// slack is how much later than its deadline a call may end on a busy machine.
	slack = time.Second
	// pause between the calls of one caller: enough of them to be in flight whenever something
	// breaks, and processor time left for what is being tested.
	pause = 4 * time.Millisecond
)

// errWrong is an answer that is not the one to the question.
var errWrong = errors.New("wrong answer")

// caller makes one call. n is different in every call.
type caller func(ctx context.Context, n int64) error

// sample is one finished call, in time since the load began.
type sample struct {
	from, to time.Duration
	err      error
}

// load is a set of callers at work.
type load struct {
	t      testing.TB
	name   string
	start  time.Time
	stop   context.CancelFunc
	all    sync.WaitGroup
	number atomic.Int64
	good   atomic.Int64

	mu      sync.Mutex
	samples []sample
}

// begin starts n callers, which take turns in what they call.
func begin(t testing.TB, name string, n int, kinds ...caller) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: t, name: name, start: time.Now(), stop: cancel}
	for i := range n {
		call := kinds[i%len(kinds)]
		l.all.Go(func() { l.work(ctx, call) })
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) end() { l.stop(); l.all.Wait() }

func (l *load) work(ctx context.Context, call caller) {
	for ctx.Err() == nil {
		n := l.number.Add(1)
		// The call is not cut off when the load ends: its outcome counts.
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deadline)
		from := time.Since(l.start)
		err := call(cctx, n)
		cancel()
		l.mu.Lock()
		l.samples = append(l.samples, sample{from, time.Since(l.start), err})
		l.mu.Unlock()
		if err == nil {
			l.good.Add(1)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// now is the time since the load began.
func (l *load) now() time.Duration { return time.Since(l.start) }

// warm waits until calls succeed, and forgets what came before.
func (l *load) warm() {
	l.t.Helper()
	l.awaitGood(20 * time.Second)
	l.mu.Lock()
	l.samples = nil
	l.mu.Unlock()
	time.Sleep(300 * time.Millisecond)
}

// awaitGood waits for many further calls to succeed.
func (l *load) awaitGood(limit time.Duration) {
	l.t.Helper()
	want := l.good.Load() + 50
	for end := time.Now().Add(limit); l.good.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("%s: calls did not succeed again within %v; the last error: %v", l.name, limit, l.lastError())
		}
	}
}

func (l *load) lastError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range slices.Backward(l.samples) {
		if s.err != nil {
			return s.err
		}
	}
	return nil
}

// verdict is what a load's callers saw.
type verdict struct {
	name                       string
	calls, failed, late, wrong int
	outage                     time.Duration // longest time without any success
	recovery                   time.Duration // from the part's return to the end of the last failed call
	errs                       map[string]int
}

// judge ends the load. back is when the broken part was there again.
func (l *load) judge(back time.Duration) verdict {
	l.end()
	l.mu.Lock()
	defer l.mu.Unlock()
	v := verdict{name: l.name, calls: len(l.samples), errs: map[string]int{}}
	slices.SortFunc(l.samples, func(a, b sample) int { return int(a.to - b.to) })
	lastGood := time.Duration(-1)
	for _, s := range l.samples {
		if s.to-s.from > deadline+slack {
			v.late++
		}
		if s.err == nil {
			if lastGood >= 0 {
				v.outage = max(v.outage, s.to-lastGood)
			}
			lastGood = s.to
			continue
		}
		v.failed++
		v.errs[short(s.err)]++
		if errors.Is(s.err, errWrong) {
			v.wrong++
		}
		v.recovery = max(v.recovery, s.to-back)
	}
	results.add(v)
	return v
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

// limits are what a verdict must keep.
type limits struct {
	failures int // -1: any number
	outage   time.Duration
	recovery time.Duration
}

func (v verdict) check(t *testing.T, want limits) {
	t.Helper()
	defer func() {
		if t.Failed() || testing.Verbose() {
			for text, n := range v.errs {
				t.Logf("%5d × %s", n, text)
			}
		}
	}()
	t.Logf("%d calls, %d failed, longest outage %v, recovered after %v", v.calls, v.failed, v.outage, v.recovery)
	if v.calls == 0 {
		t.Error("no calls were made")
	}
	if v.wrong > 0 {
		t.Errorf("%d answers were wrong", v.wrong)
	}
	if v.late > 0 {
		t.Errorf("%d calls ended more than %v after their deadline", v.late, slack)
	}
	if want.failures >= 0 && v.failed > want.failures {
		t.Errorf("%d of %d calls failed, want at most %d", v.failed, v.calls, want.failures)
	}
	if v.outage > want.outage {
		t.Errorf("nothing succeeded for %v, want at most %v", v.outage, want.outage)
	}
	if v.recovery > want.recovery {
		t.Errorf("calls still failed %v after the return, want at most %v", v.recovery, want.recovery)
	}
}

// results is the table of all tests.
var results table

type table struct {
	mu   sync.Mutex
	rows []verdict
}

func (r *table) add(v verdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, v)
}

func (r *table) print() {
	if len(r.rows) == 0 {
		return
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "fault\tcalls\tfailed\twrong\tlate\tlongest outage\trecovery")
	for _, v := range r.rows {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%v\t%v\n", v.name, v.calls, v.failed, v.wrong, v.late,
			v.outage.Round(time.Millisecond), v.recovery.Round(time.Millisecond))
	}
	w.Flush()
}
