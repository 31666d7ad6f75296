package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/runtime/call"
)

// hedging makes a second attempt beside one that is slow.
func hedging(b *builder) (does, field string) {
	h := b.r.Hedge
	if h == nil {
		return "", ""
	}
	more := cmp.Or(h.Max, 1)
	delay, percentile, err := parseDelay(h.Delay)
	if err != nil {
		return "", "" // refused by Check
	}
	if percentile == 0 {
		b.c.Hedge = func(*call.Call) (time.Duration, int, bool) { return delay, more, true }
		return fmt.Sprintf("safe calls, after %v, %d more", delay, more), "hedge"
	}
	seen := kept(b.e, b.stateKey("latency", b.r.source("hedge"))+"/"+h.Delay, func() *latencies { return &latencies{share: percentile} })
	b.step(seen)
	b.c.Hedge = func(*call.Call) (time.Duration, int, bool) {
		d := seen.delay()
		return d, more, d > 0
	}
	return fmt.Sprintf("safe calls, after their %s, %d more", h.Delay, more), "hedge"
}

// parseDelay reads a duration or a percentile like p95.
func parseDelay(s string) (d time.Duration, share float64, err error) {
	if p, ok := strings.CutPrefix(s, "p"); ok {
		n, err := strconv.ParseFloat(p, 64)
		if err != nil || n <= 0 || n >= 100 {
			return 0, 0, fmt.Errorf("%q is no percentile like p95", s)
		}
		return 0, n / 100, nil
	}
	d, err = time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, 0, fmt.Errorf("%q is neither a duration like 20ms nor a percentile like p95", s)
	}
	return d, 0, nil
}

// latencies remembers how long the last attempts took, for a percentile that follows the load.
// It is a step that only looks.
type latencies struct {
	share float64
	n     atomic.Uint64
	last  [window]atomic.Int64 // ns
	value atomic.Int64         // the percentile; 0: not enough seen
	mu    sync.Mutex           // one goroutine computes
}

// window is how many attempts are remembered; every refresh of them the percentile is computed
// anew. A p99 of 512 is the fifth largest.
const (
	window  = 512
	refresh = 64
)

func (l *latencies) Enter(*call.Call, *call.Try) (call.Token, error) { return call.Token{}, nil }

// Exit takes the time of an attempt that was answered. Hedges count as well: what is left out
// when an attempt is overtaken would make the percentile sink below the truth.
func (l *latencies) Exit(_ *call.Call, t *call.Try, _ call.Token) {
	if t.Outcome == call.Rejected || t.Outcome == call.ConnectFailure {
		return
	}
	n := l.n.Add(1)
	l.last[n%window].Store(max(int64(t.Took), 1))
	if n%refresh == 0 && l.mu.TryLock() {
		l.compute(min(n, window))
		l.mu.Unlock()
	}
}

func (l *latencies) compute(n uint64) {
	all := make([]int64, 0, window)
	for i := range l.last {
		if v := l.last[i].Load(); v > 0 {
			all = append(all, v)
		}
	}
	slices.Sort(all)
	if len(all) > 0 && n > 0 {
		l.value.Store(all[min(int(l.share*float64(len(all))), len(all)-1)])
	}
}

// delay is the percentile, or zero while too little was seen.
func (l *latencies) delay() time.Duration { return time.Duration(l.value.Load()) }
