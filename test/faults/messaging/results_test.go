//go:build unix

package messaging

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/mecha-project/mecha/test/faults/messaging/history"
)

// results is the table of all histories.
var results table

type table struct {
	mu   sync.Mutex
	rows []row // guarded by mu
}

type row struct {
	sc scenario
	history.Report
}

func (t *table) add(sc scenario, r history.Report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows = append(t.rows, row{sc, r})
}

// print shows, per invariant, in how many histories it was judged and violated, and what was
// measured.
func (t *table) print() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.rows) == 0 {
		return
	}
	published, delivered := 0, 0
	for _, r := range t.rows {
		published += r.Figures.Published
		delivered += r.Figures.Delivered
	}
	fmt.Printf("driver: %s; %d histories, %d messages, %d deliveries\n", driver(), len(t.rows), published, delivered)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "invariant\thistories\tviolated\tchecks\tclaim")
	for i, c := range history.Claims {
		judged, bad, checks := 0, 0, 0
		for _, r := range t.rows {
			v := r.Verdicts[i]
			checks += v.Checks
			if v.Checks > 0 {
				judged++
			}
			if !v.OK() {
				bad++
			}
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\n", c.ID, judged, bad, checks, c.Text)
	}
	w.Flush()
	t.figures()
}

// figures shows what was measured. The caller holds mu.
func (t *table) figures() {
	var takeovers, handovers []time.Duration
	again := map[string][]history.Again{}
	pauses := map[string][]history.Pause{}
	unexplained, late := 0, 0
	for _, r := range t.rows {
		takeovers = append(takeovers, r.Figures.Takeovers...)
		handovers = append(handovers, r.Figures.Handovers...)
		unexplained += r.Figures.Unexplained
		late += r.Figures.Late
		for _, a := range r.Figures.Again {
			what := a.Cause.What
			if a.Cause.Kind != history.Fault {
				what = string(a.Cause.Kind)
			}
			again[what] = append(again[what], a)
		}
		for _, p := range r.Figures.Pauses {
			pauses[p.What] = append(pauses[p.What], p)
		}
	}
	if len(takeovers) > 0 {
		fmt.Printf("takeover after a crash (TTL %v): %s\n", sessionTTL, spread(takeovers))
	}
	if len(handovers) > 0 {
		fmt.Printf("hand-over: %s\n", spread(handovers))
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "fault\ttimes\tcame again, most\tbound then\tlongest wait, moved\tnot moved")
	names := []string{}
	for what := range again {
		names = append(names, what)
	}
	slices.Sort(names)
	for _, what := range names {
		most := slices.MaxFunc(again[what], func(a, b history.Again) int { return a.Count - b.Count })
		var moved, steady []time.Duration
		for _, p := range pauses[what] {
			if p.NMoved > 0 {
				moved = append(moved, p.Moved)
			}
			if p.NSteady > 0 {
				steady = append(steady, p.Unmoved)
			}
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\n", what, len(again[what]), most.Count, most.Bound, spread(moved), spread(steady))
	}
	w.Flush()
	fmt.Printf("messages that came again for no visible reason: %d; late writes refused by a store: %d\n", unexplained, late)
}

// spread is the least, the middle and the greatest of some times.
func spread(d []time.Duration) string {
	if len(d) == 0 {
		return "–"
	}
	slices.Sort(d)
	var out []string
	for _, x := range []time.Duration{d[0], d[len(d)/2], d[len(d)-1]} {
		out = append(out, x.Round(time.Millisecond).String())
	}
	return strings.Join(slices.Compact(out), " / ")
}
