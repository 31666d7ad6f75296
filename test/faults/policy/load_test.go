//go:build unix

package policy

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// patience is every call's own deadline.
	patience = 3 * time.Second
	// slack is how much later than its deadline a call may end on a busy machine.
	slack = 2 * time.Second
	// rate is how many calls begin each second. One in writeEvery is a write.
	rate       = 130
	writeEvery = 10
)

// errWrong is an answer that is not the one to the question.
var errWrong = errors.New("wrong answer")

// sample is one call, in time since the load began.
type sample struct {
	write    bool
	from, to time.Duration
	err      error
}

// load makes calls at a fixed rate.
type load struct {
	start time.Time
	stop  context.CancelFunc
	all   sync.WaitGroup
	made  atomic.Int64

	mu      sync.Mutex
	samples []sample
}

// begin starts the load. call makes one; n differs in each.
func begin(t testing.TB, call func(ctx context.Context, verb string, n int64) error) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{start: time.Now(), stop: cancel}
	l.all.Go(func() { l.drive(ctx, call) })
	t.Cleanup(l.end)
	return l
}

// drive begins calls when they are due. Those that a stall of the machine held up are made up for.
func (l *load) drive(ctx context.Context, call func(context.Context, string, int64) error) {
	for n := int64(1); ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(l.start.Add(time.Duration(n) * time.Second / rate))):
		}
		verb := http.MethodGet
		if n%writeEvery == 0 {
			verb = http.MethodPost
		}
		l.made.Add(1)
		l.all.Go(func() { l.one(verb, n, call) })
	}
}

func (l *load) one(verb string, n int64, call func(context.Context, string, int64) error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s := sample{write: verb == http.MethodPost, from: l.now()}
	s.err = call(ctx, verb, n)
	s.to = l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples = append(l.samples, s)
}

// end stops the load and waits for the calls in progress.
func (l *load) end() { l.stop(); l.all.Wait() }

// now is the time since the load began.
func (l *load) now() time.Duration { return time.Since(l.start) }

// await waits until reads that began lately succeed: all of the last fifty that ended.
func (l *load) await(t testing.TB, limit time.Duration) {
	t.Helper()
	since := l.now()
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		good, last := l.row(since)
		if good >= 50 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("calls did not succeed within %v; the last error: %v", limit, last)
		}
	}
}

// row is how many reads in a row succeeded last, of those begun after since.
func (l *load) row(since time.Duration) (good int, last error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range slices.Backward(l.samples) {
		switch {
		case s.write || s.from < since:
		case s.err != nil:
			return good, s.err
		default:
			good++
		}
	}
	return good, nil
}
