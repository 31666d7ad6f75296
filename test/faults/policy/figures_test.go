//go:build unix

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// figures are what one cell of the campaign showed. Times that never came are negative.
type figures struct {
	order         int // of the fault and the policy in the table
	fault, under  string
	reads, writes share
	p50, p99      time.Duration // of reads that succeeded
	reached       float64       // calls that reached apps for each that was made; 0: not known
	adapted       time.Duration // from the fault's begin until reads succeed again
	recovered     time.Duration // from its end
	ejections     int
	twice         int // unsafe calls that reached apps more than once
}

// share is a part of a whole.
type share struct{ good, all int }

func (s *share) count(good bool) {
	s.all++
	if good {
		s.good++
	}
}

func (s share) percent() float64 { return 100 * float64(s.good) / float64(max(s.all, 1)) }

// restored is what counts as success again, in percent.
const restored = 99

// never stands for a time that did not come.
const never = time.Duration(-1)

// judge counts the calls of a load that began between broke and healed, and those after.
func (l *load) judge(t testing.TB, broke, healed time.Duration) (f figures) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.SortFunc(l.samples, func(a, b sample) int { return cmp.Compare(a.from, b.from) })
	var took []time.Duration
	kinds := map[string]int{}
	for _, s := range l.samples {
		switch {
		case errors.Is(s.err, errWrong):
			t.Error(s.err)
		case s.to-s.from > patience+slack:
			t.Errorf("a call took %v, although its deadline was %v", s.to-s.from, patience)
		}
		if s.err != nil {
			kinds[short(s.err)]++
		}
		if s.from < broke || s.from >= healed {
			continue
		}
		if s.write {
			f.writes.count(s.err == nil)
			continue
		}
		f.reads.count(s.err == nil)
		if s.err == nil {
			took = append(took, s.to-s.from)
		}
	}
	slices.Sort(took)
	f.p50, f.p99 = quantile(took, 50), quantile(took, 99)
	f.adapted = restoredAfter(l.samples, broke, healed, func(s sample) bool { return s.err == nil && !freed(s, healed) })
	f.recovered = restoredAfter(l.samples, healed, l.now(), func(s sample) bool { return s.err == nil })
	for text, n := range kinds {
		t.Logf("%5d × %s", n, text)
	}
	return f
}

// restoredAfter is the least time after from such that of the reads begun between then and to
// enough succeed. They must be a quarter of all, or the end is mistaken for a cure.
func restoredAfter(samples []sample, from, to time.Duration, good func(sample) bool) time.Duration {
	var reads []sample
	for _, s := range samples {
		if !s.write && s.from >= from && s.from < to {
			reads = append(reads, s)
		}
	}
	best, rest := never, share{}
	for i, s := range slices.Backward(reads) {
		rest.count(good(s))
		if rest.percent() < restored || rest.all*4 < len(reads) {
			continue
		}
		if best = s.from - from; i == 0 {
			best = 0 // it never was worse
		}
	}
	return best
}

// freed tells whether only the end of the fault let a call go on.
func freed(s sample, healed time.Duration) bool {
	return s.to > healed && s.to-s.from > 500*time.Millisecond
}

func quantile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return never
	}
	return sorted[(len(sorted)-1)*percent/100]
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

// table is all cells.
type table struct {
	mu   sync.Mutex
	rows []figures
}

func (b *table) add(f figures) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows = append(b.rows, f)
}

func (b *table) print() {
	if len(b.rows) == 0 {
		return
	}
	slices.SortStableFunc(b.rows, func(a, b figures) int { return cmp.Compare(a.order, b.order) })
	var s strings.Builder
	s.WriteString("\n| fault | policy | reads ok | p50 ms | p99 ms | reached / made | adapts after | recovers after | ejections | writes ok | writes twice |\n" +
		"|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, f := range b.rows {
		reached, ejections, twice := "–", "–", "–"
		if f.reached > 0 {
			reached, twice = fmt.Sprintf("%.2f", f.reached), fmt.Sprint(f.twice)
			if f.under == leastRequest.name || f.under == peakEWMA.name {
				ejections = fmt.Sprint(f.ejections)
			}
		}
		fmt.Fprintf(&s, "| %s | %s | %.1f %% | %s | %s | %s | %s | %s | %s | %.0f %% | %s |\n", f.fault, f.under, f.reads.percent(),
			ms(f.p50), ms(f.p99), reached, after(f.adapted), after(f.recovered), ejections, f.writes.percent(), twice)
	}
	os.Stdout.WriteString(s.String())
}

func ms(d time.Duration) string {
	if d < 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f", float64(d)/float64(time.Millisecond))
}

func after(d time.Duration) string {
	if d < 0 {
		return "never"
	}
	if d == 0 {
		return "at once"
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
